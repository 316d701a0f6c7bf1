# SPDX-License-Identifier: Apache-2.0
"""The same call for many things of a back end, several at a time: removing segments, for example."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TypeVar

from storelib.exceptions import StoreError
from storelib.transfer.calls import DriverCalls
from storelib.transfer.contract import Backend
from storelib.transfer.monitor import Monitor

T = TypeVar("T")


def for_each(
    store: Backend, function: Callable[[T], object], items: Iterable[T], subject: str, concurrency: int
) -> None:
    """``function(item)`` for all, each tried again after transient errors; then the first error is raised.

    An item that fails for good keeps no other from its turn. Raises TransferTimeout, and leaves the rest undone, when
    no call returned within transfer_timeout.
    """
    store.hung_calls.check()
    errors: list[StoreError] = []

    def attempt(item: T) -> None:
        try:
            store.retry_policy.call(functools.partial(function, item), store.map_error, subject, calls.cancelled)
        except StoreError as error:
            errors.append(error)

    calls = DriverCalls(store, subject, Monitor(store.retry_policy.timeout))
    try:
        for item in items:
            calls.start(functools.partial(attempt, item), at_once=concurrency)
        calls.drain()
    except BaseException:
        calls.abort(_nothing)
        raise
    finally:
        calls.close(_nothing)
        calls.forget()
    if errors:
        # They refer to frames that refer to the list.
        del errors[1:]
        raise errors.pop()


def _nothing() -> None:
    """What was done stays done."""

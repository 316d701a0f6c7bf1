# SPDX-License-Identifier: Apache-2.0
"""When to try again, and what becomes of calls that never return. Nothing else in storelib retries."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from storelib.exceptions import StoreError, TransferTimeout, causes
from storelib.transfer.deadlines import Deadline, LazyEvent, pause
from storelib.transfer.forking import forget_in_child

T = TypeVar("T")
ErrorMap = Callable[[Exception, str], StoreError | None]

#: Seconds: the first wait is at most FIRST_WAIT, doubling up to LONGEST_WAIT, each drawn at random below that
#: ("full jitter", so that clients which failed together do not come back together).
FIRST_WAIT = 0.2
LONGEST_WAIT = 20.0


@dataclass(frozen=True)
class RetryPolicy:
    """``retries`` further attempts after transient errors, within ``timeout`` seconds without progress."""

    retries: int = 4
    timeout: float = 300.0

    def call(
        self,
        function: Callable[[], T],
        map_error: ErrorMap,
        subject: str,
        cancelled: LazyEvent | None = None,
        repeatable: bool = True,
    ) -> T:
        """``function()``, its native errors mapped, tried again while they are transient.

        Waits end at once when ``cancelled`` is set; the last error is raised then.
        """
        begun = time.monotonic()
        tried_again, longest = 0, FIRST_WAIT
        while True:
            try:
                return mapped(function, map_error, subject)
            except StoreError as error:
                if not error.transient or not repeatable or tried_again >= self.retries:
                    raise
                seconds = max(error.retry_after or 0.0, random.uniform(0.0, longest))  # noqa: S311
                if time.monotonic() - begun + seconds > self.timeout:
                    raise
                # Nothing is imported for it: that fails where the process can open no more files.
                pause(seconds, cancelled)
                if cancelled is not None and cancelled.is_set():
                    raise
                tried_again, longest = tried_again + 1, min(2 * longest, LONGEST_WAIT)

    def ask(self, function: Callable[[], T], map_error: ErrorMap, subject: str) -> T:
        """``call`` for a small response, for which also a server that sends it byte by byte has ``timeout`` seconds."""
        with Deadline(self.timeout):
            return self.call(function, map_error, subject)


def mapped(function: Callable[[], T], map_error: ErrorMap, subject: str) -> T:
    """``function()`` with native errors turned into the storelib error that ``map_error`` names."""
    try:
        return function()
    except StoreError:
        raise
    except Exception as error:
        known = map_error(error, subject)
        if known is None:
            raise
        if not isinstance(known, StoreError):
            gave = f"map_error gave an object of the type {type(known).__name__} for {type(error).__name__}"
            raise StoreError(f"{subject}: the driver is at fault: {gave}") from error
        _forget_requests(error)
        raise known from error


def _forget_requests(error: BaseException) -> None:
    """Take from native errors the request that failed: its headers hold credentials, and tools log attributes."""
    for link in causes(error):
        attributes = vars(link)
        for holder in (attributes, attributes.get("kwargs")):  # botocore keeps it twice
            if isinstance(holder, dict):
                holder.pop("request", None)


class HungCall(Protocol):
    """A call that did not return in time: the thread that was made for it, or what stands for it in a pool's thread."""

    def is_alive(self) -> bool:
        """Whether it has still not returned."""


class HungCalls:
    """Calls into one store's back end that did not return, each still holding its daemon thread."""

    def __init__(self, store_name: str, limit: int) -> None:
        self._store_name = store_name
        self._limit = limit
        self.forget_parent()
        forget_in_child(self)

    def forget_parent(self) -> None:
        """In a forked child: none hangs here, and no lock is held."""
        self._lock = threading.Lock()
        self._calls: list[HungCall] = []

    def add(self, call: HungCall) -> None:
        """Leave ``call`` to itself."""
        with self._lock:
            self._calls.append(call)

    def check(self) -> None:
        """Raise TransferTimeout when too many calls hang for another one to be wise."""
        with self._lock:
            self._calls = [call for call in self._calls if call.is_alive()]
            stuck = len(self._calls)
        if stuck >= self._limit:
            raise TransferTimeout(
                f"store {self._store_name}: {stuck} calls into the back end hang; no more are started "
                "until they return (option transfer_max_stuck_calls)"
            )

# SPDX-License-Identifier: Apache-2.0
"""Calls that may hang for ever (a dead NFS server), each given a time limit and counted when it hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from storelib.exceptions import TransferTimeout
from storelib.transfer.retry import Stragglers

T = TypeVar("T")


class Guard:
    """Runs calls in daemon threads of their own; with ``timeout`` 0 it just makes the calls."""

    def __init__(self, timeout: float, stragglers: Stragglers) -> None:
        self._timeout = timeout
        self._stragglers = stragglers

    @property
    def timeout(self) -> float:
        """Seconds a call may take; 0 for any time."""
        return self._timeout

    @property
    def active(self) -> bool:
        """Calls have a time limit."""
        return self._timeout > 0

    def call(self, function: Callable[[], T], what: str) -> T:
        """``function()``, or TransferTimeout once it has hung for ``timeout`` seconds or too many others do."""
        if not self.active:
            return function()
        self._stragglers.check()
        answers: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                answers.append(function())
            except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
                errors.append(error)

        thread = threading.Thread(target=run, name="storelib-guard", daemon=True)
        thread.start()
        thread.join(self._timeout)
        if errors:
            raise errors[0]
        if not answers:
            self._stragglers.add(thread)
            raise TransferTimeout(f"{what} did not answer within {self._timeout:g} s; check the storage behind it")
        return answers[0]

# SPDX-License-Identifier: Apache-2.0
"""What the threads of one transfer share: a lock, the first fatal error, cancellation, the time of last progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from storelib.exceptions import TransferTimeout


class Monitor:
    """One per transfer. ``changed`` guards and announces every change that a thread may wait for."""

    def __init__(self, timeout: float) -> None:
        self.changed = threading.Condition()
        self.cancelled = threading.Event()
        self._timeout = timeout
        self._moved = time.monotonic()
        self._error: BaseException | None = None

    def beat(self) -> None:
        """Note that something moved, and wake all that wait."""
        with self.changed:
            self._moved = time.monotonic()
            self.changed.notify_all()

    def allow(self, seconds: float) -> None:
        """Wait so much longer for anything to move."""
        self._timeout += seconds

    def fail(self, error: BaseException) -> None:
        """The whole transfer cannot succeed any more; the first error is the one that counts."""
        with self.changed:
            self._error = self._error or error
            self.changed.notify_all()

    def cancel(self) -> None:
        """Let every thread of the transfer end as soon as it can."""
        self.cancelled.set()
        with self.changed:
            self.changed.notify_all()

    def check(self) -> None:
        """Raise the error that ended the transfer, if one did."""
        if self._error is not None:
            raise self._error

    def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Block until ``predicate``; raises the transfer's error, or TransferTimeout when nothing moves."""
        with self.changed:
            started = time.monotonic()
            while not predicate():
                self.check()
                left = max(started, self._moved) + self._timeout - time.monotonic()
                if left <= 0:
                    raise TransferTimeout(
                        f"nothing moved for {self._timeout:g} s (option transfer_timeout); the transfer was given up"
                    )
                self.changed.wait(left)

# SPDX-License-Identifier: Apache-2.0
"""What the threads of one transfer share: a lock, the first fatal error, cancellation, the time of last progress."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from storelib.exceptions import StoreError, TransferTimeout
from storelib.transfer.deadlines import LOOK, LazyEvent, check_wanted, is_watched
from storelib.transfer.forking import forget_in_child


class Monitor:
    """One per transfer. ``changed`` guards and announces every change that a thread may wait for."""

    def __init__(self, timeout: float) -> None:
        self.changed = threading.Condition()
        self.cancelled = LazyEvent()
        self._timeout = timeout
        self._moved = time.monotonic()
        self._error: BaseException | None = None
        self._process = os.getpid()
        forget_in_child(self)

    def forget_parent(self) -> None:
        """In a forked child: a thread of the parent may have held the lock, which what ends a transfer takes, too."""
        # Made anew in its place, as threading does with its own: others refer to it.
        self.changed._at_fork_reinit()  # type: ignore[attr-defined]

    @property
    def is_inherited(self) -> bool:
        """In a forked child: the threads of this transfer, and what it made in a back end, are the parent's alone."""
        return os.getpid() != self._process

    def check_process(self) -> None:
        """Raise StoreError in a forked child."""
        if self.is_inherited:
            raise StoreError("the transfer was begun before this process was forked; begin another one")

    def move(self) -> None:
        """Note that something moved, which nobody waits for: waiting threads look at that when their time is over."""
        self._moved = time.monotonic()

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
        if self.is_inherited:
            return
        self.cancelled.set()
        with self.changed:
            self.changed.notify_all()

    def forget(self) -> None:
        """Once all is over: what the error refers to, this for one, would wait for the garbage collector."""
        self._error = None

    def check(self) -> None:
        """Raise the error that ended the transfer, if one did."""
        self.check_process()
        if self._error is not None:
            raise self._error
        if self.cancelled.is_set():
            # By another thread, which closed what this one still reads.
            raise TransferTimeout("the transfer was given up")

    def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Block until ``predicate``; raises the transfer's error, or TransferTimeout when nothing moves.

        Raises also what ``while_wanted`` says.
        """
        self.check_process()
        started = time.monotonic()
        while not self._wait(predicate, started):
            # Without the lock: it may take its time.
            check_wanted()

    def _wait(self, predicate: Callable[[], bool], started: float) -> bool:
        """Returns whether ``predicate`` holds; False: it is time to look whether it still matters."""
        watched = is_watched()
        looked = time.monotonic()
        with self.changed:
            while not predicate():
                self.check()
                now = time.monotonic()
                left = max(started, self._moved) + self._timeout - now
                if left <= 0:
                    raise TransferTimeout(
                        f"nothing moved for {self._timeout:g} s (option transfer_timeout); the transfer was given up"
                    )
                if watched and now - looked >= LOOK:
                    return False
                self.changed.wait(min(left, LOOK) if watched else left)
        return True

# SPDX-License-Identifier: Apache-2.0
"""Work that goes on after the response is sent: a few threads, shared fairly among the projects it is done for.

A server that answers a byte now and then must neither hold a thread for ever nor keep the work of others waiting. So
each project has its turn, and each piece of work a time limit.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Literal

from storelib.api.errors import Unavailable

LOG = logging.getLogger(__name__)


class TookTooLong(Unavailable):
    """Work in the background was ended by its time limit."""


class Interrupted(BaseException):
    """This process ends: its work is left as it is, for another one to begin again."""


class _Thread(threading.local):
    #: By the monotonic clock, when the work of this thread has to be over; and how many seconds it had.
    end: float | None = None
    seconds = 0.0
    #: Set when it is to end at once.
    interrupted: threading.Event | None = None


_thread = _Thread()


def check_time() -> None:
    """Raise TookTooLong where this thread's work in the background has used up its time, Interrupted in its end."""
    if _thread.interrupted is not None and _thread.interrupted.is_set():
        raise Interrupted
    if _thread.end is not None and time.monotonic() > _thread.end:
        raise TookTooLong(f"it took longer than {_thread.seconds:g} s (option import_time_limit)")


class Workers:
    """At most ``count`` pieces of work at a time; the others wait, and their owners take turns.

    An owner for whom nothing is done yet does not wait for others: as many again may be begun for such owners. Work has
    ``seconds`` (0: no limit), which ``check_time`` tells.
    """

    def __init__(self, count: int, seconds: float = 0.0) -> None:
        self._count = count
        self._seconds = seconds
        #: Called whenever a piece of work has ended.
        self.on_end: Callable[[], None] | None = None
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        # By whose turn it is; none is empty.
        self._waiting: dict[str, deque[Callable[[], None]]] = {}
        self._running: Counter[str] = Counter()
        self._interrupted = threading.Event()

    def start(self, owner: str | None, work: Callable[[], None]) -> None:
        """Run ``work`` soon. What it raises is logged; it is expected to have cleaned up by then."""
        if self._pid != os.getpid():
            self._forget()
        with self._changed:
            self._waiting.setdefault(owner or "", deque()).append(work)
            try:
                self._begin()
            except BaseException:
                # With others at work, the first that ends begins it.
                if not self._running.total():
                    self._waiting.clear()
                    raise

    def room(self) -> Literal["any", "new"] | None:
        """For whom work would begin at once: any owner, one that has none here (``new``), or nobody."""
        with self._changed:
            total = self._running.total() + sum(map(len, self._waiting.values()))
        return "any" if total < self._count else "new" if total < 2 * self._count else None

    def count(self) -> int:
        """How much is under way."""
        with self._changed:
            return self._running.total()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is under way, at most ``timeout`` seconds; returns whether that is so."""
        if self._pid != os.getpid():
            return True
        with self._changed:
            return self._changed.wait_for(lambda: not self._running.total(), timeout)

    def interrupt(self) -> None:
        """Have ``check_time`` end all that is under way."""
        self._interrupted.set()

    def stop(self) -> None:
        """Finish what is under way."""
        self.wait()

    def _begin(self) -> None:
        """Begin all that may begin now."""
        while (owner := self._next()) is not None:
            left = self._waiting[owner]
            self._running[owner] += 1
            try:
                threading.Thread(target=self._run, args=(owner, left[0]), name="storelib-work").start()
            except BaseException:
                self._running[owner] -= 1
                raise
            # The next turn comes after those of the others.
            del self._waiting[owner]
            left.popleft()
            if left:
                self._waiting[owner] = left

    def _next(self) -> str | None:
        """The owner whose turn it is; None: nothing may begin now."""
        total = self._running.total()
        for owner in self._waiting:
            if total < (self._count if self._running[owner] else 2 * self._count):
                return owner
        return None

    def _run(self, owner: str, work: Callable[[], None]) -> None:
        _thread.interrupted = self._interrupted
        if self._seconds:
            _thread.end, _thread.seconds = time.monotonic() + self._seconds, self._seconds
        try:
            work()
        except Interrupted:
            LOG.info("work in the background was interrupted")
        except Exception:
            LOG.exception("work in the background failed")
        finally:
            with self._changed:
                self._running[owner] -= 1
                self._running += Counter()  # forget those with none
                try:
                    self._begin()
                finally:
                    self._changed.notify_all()
            if self.on_end is not None:
                self.on_end()

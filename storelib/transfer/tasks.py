# SPDX-License-Identifier: Apache-2.0
"""TaskQueue: where the engine works beside the caller's thread. Single calls with a time limit are guard.py's.

Whose threads these are is threads.py's: one works for a queue as long as there is something to do.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from storelib.transfer.deadlines import LazyEvent
from storelib.transfer.guard import InUse
from storelib.transfer.monitor import Monitor
from storelib.transfer.threads import ThreadPool, pool_of

#: What a call returns that is to be made again: it is cut in pieces, so that others have their turn.
AGAIN = object()
#: Seconds that a thread works for one queue while others wait for it. Images that are hashed sooner than that are done
#: one after the other, and give back their memory, where shorter turns would keep all of them half done.
TURN = 0.25


class Task:
    """One call; ``result`` is there once it is ``done``, which it never is when it failed."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.done = False
        self.result: Any = None


class Shift:
    """The time that one thread works for a queue, from when it is asked for."""

    def __init__(self) -> None:
        self.begun = False
        self.withdrawn = False
        self.ended = False

    def is_alive(self) -> bool:
        """Whether the call at which it was left behind has not returned. Its thread may serve others afterwards."""
        return not self.ended


class TaskQueue:
    """Calls that threads of a pool make in the order given; ``error`` is the first that one of them raised.

    No call begins after an error, nor once ``cancelled`` is set and announced through ``monitor``. ``in_use`` is
    entered by each call. The pool is that of ``name``, if none is given. ``as_one``: nobody waits for a single call,
    only for all of them, or for the last but one.
    """

    def __init__(
        self,
        name: str,
        monitor: Monitor,
        cancelled: LazyEvent,
        in_use: InUse,
        pool: ThreadPool | None = None,
        *,
        as_one: bool = False,
    ) -> None:
        self.error: BaseException | None = None
        self._pool = pool or pool_of(name)
        self._monitor = monitor
        self._cancelled = cancelled
        self._in_use = in_use
        self._as_one = as_one
        self._tasks: deque[Task] = deque()
        self._process = os.getpid()
        # Calls that threads make now.
        self._in_flight = 0
        # Threads at most, the shifts of those that were asked for and have not begun, and of those that work.
        self._most = 0
        self._coming: set[Shift] = set()
        self._working: dict[threading.Thread, Shift] = {}

    @property
    def unfinished(self) -> int:
        """Calls that are queued or being made."""
        return len(self._tasks) + self._in_flight

    def put(self, function: Callable[[], Any]) -> Task:
        """Queue a call for as many threads as there may be."""
        task = Task(function)
        with self._monitor.changed:
            self._tasks.append(task)
        self._call_threads()
        return task

    def have_threads(self, count: int) -> None:
        """From now on up to ``count`` threads may work at once, if it were fewer before."""
        self._most = max(self._most, count)
        self._call_threads()

    def _call_threads(self) -> None:
        """See that there is a thread for each call that waits, as far as there may be so many."""
        while True:
            shift = Shift()
            try:
                with self._monitor.changed:
                    # Those that were asked for and have not begun take one each.
                    coming = len(self._coming)
                    if self._is_over() or coming + len(self._working) >= self._most or coming >= len(self._tasks):
                        return
                    self._coming.add(shift)
                self._pool.use(self)
                self._pool.run(lambda shift=shift: self._work(shift))  # type: ignore[misc]
            except BaseException:
                with self._monitor.changed:
                    # Ctrl-C may come once it has begun, or is about to.
                    if not shift.begun:
                        shift.withdrawn = True
                        self._coming.discard(shift)
                raise

    def cancel(self, timeout: float) -> bool:
        """Begin no further call; returns whether those in flight returned within ``timeout`` seconds."""
        self._cancelled.set()
        with self._monitor.changed:
            self._tasks.clear()
            self._monitor.changed.notify_all()
            returned = self._monitor.changed.wait_for(lambda: not self.unfinished, timeout)
        if not returned:
            # Nobody may ever join it.
            self._pool.leave(self)
        return returned

    def forget(self) -> None:
        """Once all is over: what errors and calls refer to, this for one, would wait for the garbage collector."""
        with self._monitor.changed:
            self._tasks.clear()
            self.error = None

    def join(self, timeout: float | None = None) -> list[Shift]:
        """Wait until no thread works for this queue, at most ``timeout`` seconds; returns what hangs then."""
        if self._is_left_alone():
            return []
        own = threading.current_thread()
        with self._monitor.changed:
            self._monitor.changed.wait_for(lambda: not self._coming and self._working.keys() <= {own}, timeout)
            left = [shift for thread, shift in self._working.items() if thread is not own]
        self._pool.leave(self)
        return left

    def _is_left_alone(self) -> bool:
        """In a forked child, and where the interpreter ends, its threads neither run any more nor give back a lock."""
        return sys.is_finalizing() or os.getpid() != self._process

    def _work(self, shift: Shift) -> None:
        """One thread's shift, until there is nothing more to do, or nothing more can be done."""
        try:
            self._serve(shift)
        except BaseException as error:  # noqa: BLE001  (no memory, as a rule; handed to threads that wait for this one)
            with self._monitor.changed:
                self.error = self.error or error
                self._end(shift)

    def _serve(self, shift: Shift) -> None:
        pool = self._pool
        with self._monitor.changed:
            if shift.withdrawn:
                return
            shift.begun = True
            self._working[threading.current_thread()] = shift
            self._coming.discard(shift)
        end = time.monotonic() + TURN
        while (task := self._next(shift)) is not None:
            again = self._make(task, shift)
            # What it was about, a part of an image perhaps, is not held while this thread waits for the next one.
            task = None
            if (again or self._tasks) and pool.others_wait() and time.monotonic() >= end:
                with self._monitor.changed:
                    del self._working[threading.current_thread()]
                    self._coming.add(shift)
                pool.run_later(lambda: self._work(shift))
                return

    def _end(self, shift: Shift) -> None:
        """With the lock held: this thread does nothing more here."""
        self._working.pop(threading.current_thread(), None)
        self._coming.discard(shift)
        shift.ended = True
        self._pool.done()
        self._monitor.changed.notify_all()

    def _make(self, task: Task, shift: Shift) -> bool:
        """Make one call; returns whether it is to be made again."""
        error: BaseException | None = None
        try:
            task.result = task.function()
        except BaseException as caught:  # noqa: BLE001  (handed to the caller's thread)
            error = caught
        again = error is None and task.result is AGAIN
        try:
            with self._monitor.changed:
                self._in_flight -= 1
                if again and not self._is_over():
                    self._tasks.appendleft(task)
                else:
                    task.done = error is None and not again
                    self.error = self.error or error
                if self._as_one and len(self._tasks) > 1 and self.error is None:
                    # Woken by each, waiting threads would only go to sleep again.
                    self._monitor.move()
                else:
                    self._monitor.beat()
        finally:
            # This frame is one that the error refers to.
            error = None
            self._in_use.leave(shift)
        return again

    def _next(self, shift: Shift) -> Task | None:
        with self._monitor.changed:
            if self._is_over() or not self._tasks:
                self._end(shift)
                return None
            self._in_use.enter(shift)
            self._in_flight += 1
            return self._tasks.popleft()

    def _is_over(self) -> bool:
        return self.error is not None or self._cancelled.is_set()

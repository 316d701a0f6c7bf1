# SPDX-License-Identifier: Apache-2.0
"""TaskQueue: calls into a driver, made side by side in daemon threads, with retries, a deadline and one error.

Driven by the caller's thread, which waits here. A call that never returns is left behind and counted (``HungCalls``);
should it return after all, what it used is rolled back and closed then, never under it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from storelib.exceptions import TransferTimeout
from storelib.transfer.contract import Backend
from storelib.transfer.deadlines import progress
from storelib.transfer.monitor import Monitor

LOG = logging.getLogger(__name__)

#: Seconds that calls still in flight get to return once a transfer has timed out.
GRACE = 1.0


class Task:
    """One call into the driver; ``answer`` is there once it is ``done``, which it never is when it failed."""

    def __init__(self, function: Callable[[], Any], repeatable: bool, release: Callable[[], None] | None) -> None:
        self.function = function
        self.repeatable = repeatable
        self.release = release
        self.done = False
        self.answer: Any = None


class TaskQueue:
    """The calls of one transfer into one store's driver. ``error`` is the first that one of them ended with."""

    def __init__(self, store: Backend, subject: str, monitor: Monitor) -> None:
        self.error: BaseException | None = None
        self._store = store
        self._subject = subject
        self._monitor = monitor
        self._cancelled = threading.Event()
        self._threads: list[threading.Thread] = []
        self._tasks: deque[Task] = deque()
        self._pending = 0  # tasks queued or running
        self._running = 0
        self._rolling_back = False
        #: What waits for calls that did not return in time: the last of them does it, if it returns at all.
        self._later: deque[Callable[[], None]] = deque()

    @property
    def cancelled(self) -> threading.Event:
        """Set once nothing more is to be started or tried again."""
        return self._cancelled

    # -- Making calls -----------------------------------------------------------------------------------------

    def start(
        self,
        function: Callable[[], Any],
        *,
        at_once: int = 1,
        repeatable: bool = True,
        release: Callable[[], None] | None = None,
    ) -> Task:
        """Have ``function`` called, with at most ``at_once`` calls in flight; ``release`` is called when it ended."""
        task = Task(function, repeatable, release)
        with self._monitor.changed:
            self._pending += 1
            self._tasks.append(task)
            self._monitor.changed.notify_all()
            wanted = min(self._pending, max(at_once, 1))
        if len(self._threads) < wanted:
            thread = threading.Thread(target=self._run, name="storelib-write", daemon=True)
            # Ctrl-C may come before it runs; only one that does can be joined.
            thread.start()
            self._threads.append(thread)
        return task

    def call(self, function: Callable[[], Any]) -> Any:
        """``function()``, waited for."""
        return self.wait(self.start(function))

    def wait(self, task: Task) -> Any:
        """What ``task`` answers; raises the queue's error."""
        self.wait_for(lambda: task.done)
        return task.answer

    def drain(self) -> None:
        """Wait until nothing is queued or running; raises the queue's error."""
        self.wait_for(lambda: not self._pending)

    def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Block until ``predicate``; raises the queue's error, or the monitor's."""
        try:
            self._monitor.wait_for(lambda: self.error is not None or predicate())
        except TransferTimeout as error:
            self.error = self.error or error
        self.check()
        progress()

    def check(self) -> None:
        """Raise the error of this queue, if there is one."""
        if self.error is not None:
            raise self.error

    # -- Ending -----------------------------------------------------------------------------------------------

    def abort(self, rollback: Callable[[], object]) -> None:
        """Start nothing more, wait for calls in flight, then have ``rollback`` remove what they did.

        Raises nothing but a new Ctrl-C: the error that led here is the one to report, and ``gc`` finds what is left.
        """
        self._cancelled.set()
        with self._monitor.changed:
            self._pending -= len(self._tasks)
            self._tasks.clear()
            self._monitor.changed.notify_all()
            timeout = GRACE if isinstance(self.error, TransferTimeout) else self._store.retry_policy.timeout
            returned = self._monitor.changed.wait_for(lambda: not self._running, timeout)
        if not returned:
            self._give_up("a call into the back end", self._threads)
            self._when_free(lambda: self._roll_back(rollback))
            return
        self._rolling_back = True
        guard = threading.Thread(target=self._end_with, args=(rollback,), name="storelib-abort", daemon=True)
        try:
            guard.start()
        except BaseException as error:
            # Better without a time limit than not at all.
            if guard.ident is None:
                self._end_with(rollback)
            if not isinstance(error, Exception):
                raise
            return
        guard.join(self._store.retry_policy.timeout)
        if guard.is_alive():
            # Not among the threads that are joined: nobody knows when it returns.
            self._give_up("the abort", [guard])

    def join(self) -> None:
        """End the threads that are not inside the driver."""
        self._cancelled.set()
        with self._monitor.changed:
            self._monitor.changed.notify_all()
            idle = not self._running
        for thread in self._threads if idle else ():
            thread.join()

    def close(self, close: Callable[[], None]) -> None:
        """``close()`` what the calls used, now or when the last of them returns; its error changes nothing any more."""
        self._when_free(lambda: self._close(close))

    def _close(self, close: Callable[[], None]) -> None:
        try:
            close()
        except Exception as error:  # noqa: BLE001  (the image is where it should be, or is not)
            LOG.warning("%s: closing: %s", self._subject, error)

    def _when_free(self, step: Callable[[], None]) -> None:
        """Take ``step`` when no call is in flight any more."""
        with self._monitor.changed:
            if self._running or self._rolling_back or self._later:
                self._later.append(step)
                return
        step()

    def _take_later_steps(self) -> None:
        """A call has returned: what waited for the last of them comes now, in order, one after the other."""
        while True:
            with self._monitor.changed:
                if self._running or self._rolling_back or not self._later:
                    return
                step = self._later.popleft()
                self._rolling_back = True
            try:
                step()
            finally:
                with self._monitor.changed:
                    self._rolling_back = False

    def _end_with(self, rollback: Callable[[], object]) -> None:
        try:
            self._roll_back(rollback)
        finally:
            with self._monitor.changed:
                self._rolling_back = False
            self._take_later_steps()

    def _roll_back(self, rollback: Callable[[], object]) -> None:
        try:
            self._store.retry_policy.call(rollback, self._store.map_error, self._subject)
        except Exception as error:  # noqa: BLE001  (the first error is the one to report; gc finds the rest)
            LOG.warning("%s: removing a failed add: %s; gc will find what is left", self._subject, error)

    def _give_up(self, what: str, threads: Iterable[threading.Thread]) -> None:
        LOG.error("%s: %s does not return; gc will find what is left", self._subject, what)
        for thread in threads:
            if thread.is_alive():
                self._store.hung_calls.add(thread)

    # -- Threads ----------------------------------------------------------------------------------------------

    def _next_task(self) -> Task | None:
        with self._monitor.changed:
            while not (self._tasks or self.error or self._cancelled.is_set()):
                self._monitor.changed.wait()
            if self.error or self._cancelled.is_set():
                return None
            self._running += 1
            return self._tasks.popleft()

    def _run(self) -> None:
        while (task := self._next_task()) is not None:
            error: BaseException | None = None
            try:
                task.answer = self._store.retry_policy.call(
                    task.function, self._store.map_error, self._subject, self._cancelled, task.repeatable
                )
            except BaseException as caught:  # noqa: BLE001  (handed to the caller's thread)
                error = caught
            with self._monitor.changed:
                task.done = error is None
                self.error = self.error or error
                self._pending -= 1
                self._running -= 1
                if task.release is not None:
                    task.release()
                self._monitor.beat()
            if self._later:
                self._take_later_steps()

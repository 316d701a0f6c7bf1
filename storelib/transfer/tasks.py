# SPDX-License-Identifier: Apache-2.0
"""TaskQueue: where the engine works beside the caller's thread. Single calls with a time limit are guard.py's."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from storelib.transfer.guard import InUse
from storelib.transfer.monitor import Monitor


class Task:
    """One call; ``result`` is there once it is ``done``, which it never is when it failed."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.done = False
        self.result: Any = None


class TaskQueue:
    """Calls that daemon threads make in the order given; ``error`` is the first that one of them raised.

    No call begins after an error, nor once ``cancelled`` is set and announced through ``monitor``. ``in_use`` is
    entered by each call.
    """

    def __init__(self, name: str, monitor: Monitor, cancelled: threading.Event, in_use: InUse) -> None:
        self.error: BaseException | None = None
        #: Calls that are queued or being made.
        self.unfinished = 0
        self._name = name
        self._monitor = monitor
        self._cancelled = cancelled
        self._in_use = in_use
        self._threads: list[threading.Thread] = []
        self._tasks: deque[Task] = deque()
        self._complete = False

    def put(self, function: Callable[[], Any]) -> Task:
        """Queue a call for the threads that there are."""
        task = Task(function)
        with self._monitor.changed:
            self.unfinished += 1
            self._tasks.append(task)
            self._monitor.changed.notify_all()
        return task

    def have_threads(self, count: int) -> None:
        """Start threads until there are ``count``."""
        while len(self._threads) < count:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            # Ctrl-C may come before it runs; only one that does can be joined.
            thread.start()
            self._threads.append(thread)

    def complete(self) -> None:
        """No further call comes: the threads end when all are done."""
        with self._monitor.changed:
            self._complete = True
            self._monitor.changed.notify_all()

    def cancel(self, timeout: float) -> bool:
        """Begin no further call; returns whether those in flight returned within ``timeout`` seconds."""
        self._cancelled.set()
        with self._monitor.changed:
            self.unfinished -= len(self._tasks)
            self._tasks.clear()
            self._monitor.changed.notify_all()
            return self._monitor.changed.wait_for(lambda: not self.unfinished, timeout)

    def join(self, timeout: float | None = None) -> list[threading.Thread]:
        """Wait for each thread to end, at most ``timeout`` seconds; returns those that did not."""
        others = [thread for thread in self._threads if thread is not threading.current_thread()]
        for thread in others:
            thread.join(timeout)
        return [thread for thread in others if thread.is_alive()]

    def _run(self) -> None:
        while (task := self._next()) is not None:
            error: BaseException | None = None
            try:
                task.result = task.function()
            except BaseException as caught:  # noqa: BLE001  (handed to the caller's thread)
                error = caught
            with self._monitor.changed:
                task.done = error is None
                self.error = self.error or error
                self.unfinished -= 1
                self._monitor.beat()
            self._in_use.leave()

    def _next(self) -> Task | None:
        with self._monitor.changed:
            while not (self._tasks or self._complete or self._is_over()):
                self._monitor.changed.wait()
            if self._is_over() or not self._tasks:
                return None
            self._in_use.enter()
            return self._tasks.popleft()

    def _is_over(self) -> bool:
        return self.error is not None or self._cancelled.is_set()

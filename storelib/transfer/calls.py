# SPDX-License-Identifier: Apache-2.0
"""DriverCalls: the calls of one transfer into one store's driver, with retries, a deadline, one error and a rollback.

Waited for by the caller's thread. A call that never returns is left behind and counted (``HungCalls``); should it
return after all, what it used is rolled back and closed then, never under it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from storelib.exceptions import TransferTimeout
from storelib.transfer.contract import Backend
from storelib.transfer.deadlines import LazyEvent, progress
from storelib.transfer.guard import InUse
from storelib.transfer.monitor import Monitor
from storelib.transfer.retry import HungCall
from storelib.transfer.tasks import Task, TaskQueue
from storelib.transfer.threads import start

LOG = logging.getLogger(__name__)

#: Seconds that calls still in flight get to return once a transfer has timed out.
GRACE = 1.0


class DriverCalls:
    """What one transfer asks of one store; ``error`` is the first that a call ended with."""

    def __init__(self, store: Backend, subject: str, monitor: Monitor) -> None:
        #: Set once nothing more is to be started or tried again.
        self.cancelled = LazyEvent()
        self._store = store
        self.subject = subject
        self.monitor = monitor
        self._in_use = InUse()
        self._queue = TaskQueue("storelib-write", monitor, self.cancelled, self._in_use)

    # -- Making calls -----------------------------------------------------------------------------------------

    def start(
        self,
        function: Callable[[], Any],
        *,
        at_once: int = 1,
        repeatable: bool = True,
        release: Callable[[], None] | None = None,
    ) -> Task:
        """Have ``function`` called, with at most ``at_once`` calls in flight, then ``release``, whatever came of it."""
        self.monitor.check_process()
        store = self._store

        def attempts() -> Any:
            try:
                return store.retry_policy.call(function, store.map_error, self.subject, self.cancelled, repeatable)
            finally:
                if release is not None:
                    release()

        task = self._queue.put(attempts)
        self._queue.have_threads(min(self._queue.unfinished, max(at_once, 1)))
        return task

    def call(self, function: Callable[[], Any]) -> Any:
        """Wait for ``function()`` and return what it does; raises the first error of all calls."""
        return self.wait(self.start(function))

    def wait(self, task: Task) -> Any:
        """The result of ``task``; raises the first error of all calls."""
        self.wait_for(lambda: task.done)
        return task.result

    def drain(self) -> None:
        """Wait until every call has returned; raises the first error."""
        self.wait_for(lambda: not self._queue.unfinished)

    def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Block until ``predicate``; raises the first error of these calls, or the monitor's."""
        try:
            self.monitor.wait_for(lambda: self._queue.error is not None or predicate())
        except TransferTimeout as error:
            self.fail(self.error or error)
        self.check()
        progress()

    @property
    def error(self) -> BaseException | None:
        """The first error of all calls."""
        return self._queue.error

    def fail(self, error: BaseException) -> None:
        """Begin no further call, because of ``error``."""
        self._queue.error = error

    def check(self) -> None:
        """Raise the first error, if there is one."""
        if self.error is not None:
            raise self.error

    # -- Ending -----------------------------------------------------------------------------------------------

    def abort(self, rollback: Callable[[], object]) -> None:
        """Start nothing more, wait for calls in flight, then have ``rollback`` remove what they did.

        Raises nothing but a new Ctrl-C: the error that led here is the one to report, and ``gc`` finds what is left.
        """
        if self.monitor.is_inherited:
            # The parent goes on with what this would remove.
            return
        timeout = self._store.retry_policy.timeout
        if not self._queue.cancel(GRACE if isinstance(self.error, TransferTimeout) else timeout):
            self._leave_behind("a call into the back end", self._queue.join(0))
            self._in_use.when_free(lambda: self._roll_back(rollback))
            return
        self._in_use.enter(self)
        guard = threading.Thread(target=self._end_with, args=(rollback,), name="storelib-abort", daemon=True)
        try:
            start(guard)
        except BaseException as error:
            # Better without a time limit than not at all.
            if guard.ident is None:
                self._end_with(rollback)
            if not isinstance(error, Exception):
                raise
            return
        guard.join(timeout)
        if guard.is_alive():
            self._leave_behind("the abort", [guard])

    def close(self, close: Callable[[], None]) -> None:
        """End the threads that are not inside the driver, then ``close()`` what the calls used.

        Where one never returned, that happens when it does. The error of ``close`` changes nothing any more.
        """
        if self.monitor.is_inherited:
            return
        if self._queue.cancel(0):
            # Those that have nothing to do, unless they did not even begin.
            self._queue.join(GRACE)
        self._in_use.when_free(lambda: self._close(close))

    def forget(self) -> None:
        """Refer to no error any more, now that all is over."""
        self._queue.forget()

    def _close(self, close: Callable[[], None]) -> None:
        try:
            close()
        except Exception as error:  # noqa: BLE001  (the image is where it should be, or is not)
            LOG.warning("%s: closing: %s", self.subject, error)

    def _end_with(self, rollback: Callable[[], object]) -> None:
        try:
            self._roll_back(rollback)
        finally:
            self._in_use.leave(self)

    def _roll_back(self, rollback: Callable[[], object]) -> None:
        try:
            self._store.retry_policy.call(rollback, self._store.map_error, self.subject)
        except Exception as error:  # noqa: BLE001  (the first error is the one to report; gc finds the rest)
            LOG.warning("%s: removing a failed add: %s; gc will find what is left", self.subject, error)

    def _leave_behind(self, what: str, calls: Iterable[HungCall]) -> None:
        LOG.error("%s: %s does not return; gc will find what is left", self.subject, what)
        for call in calls:
            self._store.hung_calls.add(call)

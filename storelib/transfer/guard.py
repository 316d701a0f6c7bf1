# SPDX-License-Identifier: Apache-2.0
"""Calls that may hang for ever (a dead NFS server), each given a time limit and counted when it hangs.

What such a call uses or returns is freed exactly once, and never under it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from storelib.exceptions import TransferTimeout
from storelib.transfer.retry import HungCalls
from storelib.transfer.threads import start

LOG = logging.getLogger(__name__)
R = TypeVar("R")
T = TypeVar("T")


class InUse:
    """Knows the calls that use something; what must not happen under them waits for the last one to return."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Not only how many: Ctrl-C may come between the two, and then nobody knows whether one was counted.
        self._calls: set[object] = set()
        self._steps: deque[Callable[[], object]] = deque()

    def enter(self, call: object) -> None:
        """``call`` begins."""
        with self._lock:
            self._calls.add(call)

    def leave(self, call: object) -> None:
        """``call`` has returned, if it ever began; the last one takes the steps that wait."""
        with self._lock:
            self._calls.discard(call)
            if self._calls or not self._steps:
                return
        try:
            self._take_steps()
        except Exception as error:  # noqa: BLE001  (nobody waits for this call any more)
            LOG.warning("after a call that returned too late: %s", error)

    def when_free(self, step: Callable[[], object]) -> None:
        """Take ``step`` now, or have the last call take it when it returns; several in order, one after the other."""
        with self._lock:
            self._steps.append(step)
        self._take_steps()

    def _take_steps(self) -> None:
        while True:
            with self._lock:
                if self._calls or not self._steps:
                    return
                step = self._steps.popleft()
                self._calls.add(self)
            try:
                step()
            finally:
                with self._lock:
                    self._calls.discard(self)


class Guard:
    """Runs calls in daemon threads of their own; with ``timeout`` 0 it just makes the calls."""

    def __init__(self, timeout: float, hung_calls: HungCalls) -> None:
        self._timeout = timeout
        self._hung_calls = hung_calls

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
        self._hung_calls.check()
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(function())
            except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
                errors.append(error)

        thread = threading.Thread(target=run, name="storelib-guard", daemon=True)
        start(thread)
        thread.join(self._timeout)
        if errors:
            # It refers to frames that refer to the list.
            raise errors.pop()
        if not results:
            self._hung_calls.add(thread)
            raise TransferTimeout(f"{what} did not answer within {self._timeout:g} s; check the storage behind it")
        return results[0]

    def free(self, function: Callable[[], object], what: str) -> None:
        """``call`` for what has to be done in any case: without a time limit where no thread can be started."""
        once = threading.Lock()

        def run() -> None:
            if once.acquire(blocking=False):
                function()

        try:
            self.call(run, what)
        except TransferTimeout:
            # It hangs, or so many others do that it would, too.
            raise
        except BaseException:
            run()
            raise


def bounded(guard: Guard, function: Callable[[], T], what: str, late: Callable[[T], object]) -> T:
    """``function()`` under the guard; what it returns after it was given up is handed to ``late``."""
    if not guard.active:
        return function()
    lock = threading.Lock()
    given_up = False
    results: list[T] = []

    def run() -> T:
        result = function()
        with lock:
            if not given_up:
                results.append(result)
                return result
        late(result)
        return result

    try:
        return guard.call(run, what)
    except BaseException:
        # It took too long, or Ctrl-C ended the wait; and it may have returned just before this line.
        with lock:
            given_up = True
        for result in results:
            late(result)
        raise


def in_fresh_thread(function: Callable[[], T], late: Callable[[T], object]) -> T:
    """``function()`` in a thread that has done nothing before, waited for however long it takes.

    For libraries that keep something for each thread. What it returns after Ctrl-C is handed to ``late``.
    """
    return bounded(Guard(threading.TIMEOUT_MAX, HungCalls("", 1)), function, "a thread", late)


class Held(Generic[R]):
    """A resource that is freed once: by its owner, or by the last call in it where that never returned in time."""

    def __init__(self, guard: Guard, resource: R, free: Callable[[R], object], what: str) -> None:
        self.resource = resource
        self._guard = guard
        self._free = free
        self._what = what
        self._in_use = InUse()
        self._closed = False

    def call(self, function: Callable[[R], T]) -> T:
        """``function(resource)`` under the guard."""
        if not self._guard.active:
            return function(self.resource)

        def run() -> T:
            self._in_use.enter(run)
            try:
                if self._closed:
                    raise TransferTimeout(f"{self._what}: the call began too late")
                return function(self.resource)
            finally:
                self._in_use.leave(run)

        return self._guard.call(run, self._what)

    def close(self) -> None:
        """Free the resource, or leave that to a call that hangs in it; harmless when done twice."""
        if not self._closed:
            self._closed = True
            self._in_use.when_free(lambda: self._guard.free(lambda: self._free(self.resource), self._what))

# SPDX-License-Identifier: Apache-2.0
"""Descriptors and listings that calls with a time limit use: freed exactly once, and never under such a call."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from storelib.exceptions import TransferTimeout
from storelib.transfer.guard import Guard

LOG = logging.getLogger(__name__)
R = TypeVar("R")
T = TypeVar("T")


def let_go(descriptor: int) -> None:
    """Close what was only read: whatever close(2) says, the descriptor is gone, and no byte depended on it."""
    try:
        os.close(descriptor)
    except OSError as error:
        LOG.debug("closing a descriptor that was read: %s", error)


def bounded(guard: Guard, function: Callable[[], T], what: str, late: Callable[[T], object]) -> T:
    """``function()`` under the guard; what it answers after it was given up is handed to ``late``."""
    if not guard.active:
        return function()
    lock = threading.Lock()
    given_up = False
    answers: list[T] = []

    def run() -> T:
        answer = function()
        with lock:
            if not given_up:
                answers.append(answer)
                return answer
        late(answer)
        return answer

    try:
        return guard.call(run, what)
    except TransferTimeout:
        with lock:
            given_up = True
        # It returned between the end of the wait and this line.
        for answer in answers:
            late(answer)
        raise


class Held(Generic[R]):
    """A resource that is freed once: by its owner, or by the last call in it where that never returned in time."""

    def __init__(self, guard: Guard, resource: R, free: Callable[[R], object], what: str) -> None:
        self.resource = resource
        self._guard = guard
        self._free = free
        self._what = what
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False

    def call(self, function: Callable[[R], T]) -> T:
        """``function(resource)`` under the guard."""
        if not self._guard.active:
            return function(self.resource)

        def run() -> T:
            with self._lock:
                if self._closed:
                    raise TransferTimeout(f"{self._what}: the call began too late")
                self._users += 1
            try:
                return function(self.resource)
            finally:
                with self._lock:
                    self._users -= 1
                    last = self._closed and not self._users
                if last:
                    self._free(self.resource)

        return self._guard.call(run, self._what)

    def close(self) -> None:
        """Free the resource, or leave that to a call that hangs in it."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._users:
                return
        self._guard.call(lambda: self._free(self.resource), self._what)

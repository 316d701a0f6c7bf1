# SPDX-License-Identifier: Apache-2.0
"""Deadlines of what a thread asks of a back end, for servers that answer a byte now and then and never come to an end.

A time limit of a socket begins anew with each byte. So what the engine asks for has a deadline of the whole, which the
connections of the drivers keep (``http/``): each wait is cut to what is left. Only what is progress moves it.
"""

from __future__ import annotations

import contextlib
import math
import select
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

#: Seconds between two looks at whether what a thread waits for is still wanted.
LOOK = 1.0


class Deadline:
    """``with Deadline(seconds)``: what this thread asks within has so long, from each progress on.

    Progress is a response that has begun with a success. Where bytes of an image are read (``stream``), they are
    progress, too; those of other responses are not. Within another one it changes nothing.
    """

    def __init__(self, seconds: float, *, stream: bool = False) -> None:
        self._seconds = seconds
        self._stream = stream
        self._outer: Deadline | None = None
        self._end = 0.0

    def __enter__(self) -> None:
        self._outer = _thread.deadline
        if self._outer is None:
            self.move()
            _thread.deadline = self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._outer is None:
            _thread.deadline = None

    def move(self) -> None:
        """Begin anew, since there was progress."""
        self._end = time.monotonic() + self._seconds

    @property
    def left(self) -> float:
        """Seconds that are left; below 0 when it is over."""
        return self._end - time.monotonic()

    @property
    def of_stream(self) -> bool:
        """Whether bytes that come are progress."""
        return self._stream


class _Thread(threading.local):
    deadline: Deadline | None = None
    #: By the monotonic clock, what at_most() allows.
    limit: float | None = None
    #: What while_wanted() was given.
    check: Callable[[], object] | None = None


_thread = _Thread()


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Give what this thread asks within no more than that in all, whatever its deadline and whatever comes."""
    outer, limit = _thread.limit, time.monotonic() + seconds
    _thread.limit = limit if outer is None else min(outer, limit)
    try:
        yield
    finally:
        _thread.limit = outer


@contextlib.contextmanager
def while_wanted(check: Callable[[], object]) -> Iterator[None]:
    """Have ``check`` called about every LOOK seconds while this thread waits within; what it raises ends the wait."""
    outer = _thread.check
    _thread.check = check
    try:
        yield
    finally:
        _thread.check = outer


def is_watched() -> bool:
    """Whether this thread is within ``while_wanted``."""
    return _thread.check is not None


def check_wanted() -> None:
    """Raise what ``while_wanted`` says, if it does."""
    if _thread.check is not None:
        _thread.check()


class LazyEvent:
    """A ``threading.Event`` for what is hardly ever waited for: to make one and set it took a seventh of the time in
    which a small file is read.
    """

    def __init__(self) -> None:
        self._is_set = False
        # Empty until something waits: setdefault() has several threads wait for the same one.
        self._waited_for: dict[str, threading.Event] = {}

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._is_set

    def set(self) -> None:
        """Have all that wait for it go on, for good."""
        self._is_set = True
        for event in list(self._waited_for.values()):
            event.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for it, ``timeout`` seconds at most, and return whether it was set."""
        event = self._waited_for.setdefault("", threading.Event())
        # What was set before the event was there did not know of it.
        return self._is_set or event.wait(timeout)


def pause(seconds: float, ended: LazyEvent | None = None) -> None:
    """Sleep for so many seconds, or until ``ended`` is set; raises what ``while_wanted`` says."""
    ended = ended or LazyEvent()
    until = time.monotonic() + seconds
    while _thread.check is not None and (left := until - time.monotonic()) > LOOK:
        _thread.check()
        if ended.wait(min(left, LOOK)):
            return
    ended.wait(max(until - time.monotonic(), 0))


def await_bytes(sock: Any, seconds: float | None) -> None:
    """Wait until something can be read from a socket, in steps if ``while_wanted`` asks for that, else not at all.

    Raises TimeoutError where nothing comes in ``seconds``, and what ``while_wanted`` says.
    """
    check = _thread.check
    # What TLS has decrypted already is not seen by poll(2).
    if check is None or getattr(sock, "pending", int)():
        return
    until = math.inf if seconds is None else time.monotonic() + seconds
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while True:
        check()
        left = until - time.monotonic()
        if poll.poll(1000 * max(min(left, LOOK), 0)):
            return
        if left <= 0:
            raise TimeoutError("timed out")


def progress() -> None:
    """What this thread waits for has moved on."""
    deadline = _thread.deadline
    if deadline is not None:
        deadline.move()


def bytes_came() -> None:
    """Bytes of a response have come, which are progress where they are an image's."""
    deadline = _thread.deadline
    if deadline is not None and deadline.of_stream:
        deadline.move()


def is_moved_by_bytes() -> bool:
    """Whether any byte is progress and nothing else ends this thread's wait: a socket's own time limit is enough."""
    deadline = _thread.deadline
    return _thread.check is None and _thread.limit is None and (deadline is None or deadline.of_stream)


def within(seconds: Any) -> Any:
    """``seconds`` of a socket's time limit, None for no limit, or what is left to this thread if that is less.

    Raises TimeoutError where nothing is left.
    """
    deadline, limit = _thread.deadline, _thread.limit
    if deadline is None and limit is None:
        return seconds
    left = deadline.left if deadline else math.inf
    if limit is not None:
        left = min(left, limit - time.monotonic())
    if left <= 0:
        raise TimeoutError("the server sends its response too slowly (option transfer_timeout)")
    return min(seconds, left) if isinstance(seconds, int | float) else left

# SPDX-License-Identifier: Apache-2.0
"""Deadlines of what a thread asks of a back end, for servers that answer a byte now and then and never come to an end.

A time limit of a socket begins anew with each byte. So what the engine asks for has a deadline of the whole, which the
connections of the drivers keep (``http/``): each wait is cut to what is left. Only what is progress moves it.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any


class Deadline:
    """``with Deadline(seconds)``: what this thread asks within has so long, from each progress on.

    Progress is an answer that has begun with a success. Where bytes of an image are read (``stream``), they are
    progress, too; those of other answers are not. Within another one it changes nothing.
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


def progress() -> None:
    """What this thread waits for has moved on."""
    deadline = _thread.deadline
    if deadline is not None:
        deadline.move()


def bytes_came() -> None:
    """Bytes of an answer have come, which are progress where they are an image's."""
    deadline = _thread.deadline
    if deadline is not None and deadline.of_stream:
        deadline.move()


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
        raise TimeoutError("the server sends its answer too slowly (option transfer_timeout)")
    return min(seconds, left) if isinstance(seconds, int | float) else left

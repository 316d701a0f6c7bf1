# SPDX-License-Identifier: Apache-2.0
"""Usage: who uses something of this host, a mount or a device, counted over all processes and right after a crash.

Each user has a lock on a file, which the kernel takes away when its process ends, however that ends. What nobody has a
lock on is used by nobody; so nothing is written down that a crash would leave wrong.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from storelib.exceptions import TransferTimeout
from storelib.transfer.deadlines import within
from storelib.transfer.forking import forget_in_child

T = TypeVar("T")

#: Seconds between two looks whether another process is done with making or undoing the same.
_LOOK = 0.05


class Use:
    """A lock, until ``end`` is called, the process ends, or the object is let go of."""

    _descriptor: int | None = None

    def __init__(self, path: str, operation: int) -> None:
        """Raises BlockingIOError if another one has it and does not share."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, operation | fcntl.LOCK_NB)
        except BaseException:
            self.forget_parent()
            raise
        forget_in_child(self)

    def end(self) -> None:
        """Give the lock up, also where a child was forked meanwhile. May be called again."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self.forget_parent()

    __del__ = end

    def forget_parent(self) -> None:
        """In a forked child: the lock is the parent's, and would outlive it here."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class Usage:
    """The uses of one thing: made for the first, undone after the last."""

    def __init__(self, directory: str, name: str, timeout: float) -> None:
        """``directory``: the same for all processes; ``name``: hexadecimal; ``timeout``: seconds to wait for them."""
        self._users = os.path.join(directory, f"{name}.users")
        # What is made and undone in turns; few files, which may stay for ever.
        self._turns = os.path.join(directory, f"{name[:2]}.turn")
        self._timeout = timeout

    def begin(self, make: Callable[[], T]) -> tuple[Use, T]:
        """Use it from now on; ``make`` is called first, and finds it made where there are others."""
        with self._turn():
            use = Use(self._users, fcntl.LOCK_SH)
            try:
                return use, make()
            except BaseException:
                use.end()
                raise

    def end(self, use: Use | None, undo: Callable[[], None]) -> None:
        """Use it no more; without a ``use``, look after what the dead have left. The last one calls ``undo``."""
        with self._turn():
            if use is not None:
                use.end()
            try:
                alone = Use(self._users, fcntl.LOCK_EX)
            except BlockingIOError:
                return
            try:
                undo()
                os.unlink(self._users)
            finally:
                alone.end()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        end = time.monotonic() + within(self._timeout)
        while True:
            try:
                turn = Use(self._turns, fcntl.LOCK_EX)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TransferTimeout(
                        "another process of this host has been connecting or disconnecting a volume for "
                        f"{self._timeout:g} s"
                    ) from None
                time.sleep(_LOOK)
            else:
                break
        try:
            yield
        finally:
            turn.end()

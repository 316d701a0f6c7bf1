# SPDX-License-Identifier: Apache-2.0
"""Page-aligned buffers, allocated once and reused, within the limits of the transfer and of the whole process."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Callable
from typing import Protocol

from storelib.exceptions import StoreError
from storelib.transfer.contract import MiB
from storelib.transfer.memory import MemoryBudget

#: Bytes that writers which take one part at a time get at least, so that digests may lag behind.
IN_ORDER = 12 * MiB
#: Bytes up to which a transfer takes new memory though it has enough to do: more than that only falls out of the
#: processor's cache (512 MiB to a server as fast as this machine: a tenth less time than with 48 MiB).
FEW = 24 * MiB
PAGE = mmap.PAGESIZE
#: Bytes of a large page. Touching a MiB costs 0.06 ms in one, 0.40 ms in small ones, 0.70 ms where they are shared.
LARGE_PAGE = 2 * MiB


def nothing() -> None:
    """For callers that hold nothing back."""


def never() -> bool:
    """For callers that have nothing else to do."""
    return False


class Waiter(Protocol):
    """Who waits for memory: the calls of a transfer, or its monitor."""

    def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Block until ``predicate``; raises the error that ended the transfer."""

    def check(self) -> None:
        """Raise the error that ended the transfer, if one did."""


def new_pages(length: int, *, will_be_full: bool) -> mmap.mmap:
    """Page-aligned memory, which costs nothing until touched; in large pages where all of it is going to be."""
    pages = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if will_be_full and length >= LARGE_PAGE:
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


class Buffer:
    """Memory with holders; the last one to let go gives it back to the pool."""

    __slots__ = ("_holders", "_pages", "_pool", "capacity", "memory")

    def __init__(self, pool: Pool, capacity: int, *, will_be_full: bool = True) -> None:
        try:
            self._pages = new_pages(capacity, will_be_full=will_be_full)
        except (OSError, OverflowError, ValueError) as error:
            raise StoreError(f"there is no memory for a part of {capacity} bytes: {error}") from error
        self.memory = memoryview(self._pages)
        self.capacity = capacity
        self._pool = pool
        self._holders = 1

    def empty(self) -> None:
        """Give the pages back to the system now: a client library may refer to what it has sent for a while."""
        with contextlib.suppress(OSError):
            self._pages.madvise(mmap.MADV_DONTNEED)

    def hold(self) -> None:
        """Keep the memory until one more ``release``."""
        with self._pool.changed:
            self._holders += 1

    def release(self) -> None:
        """Let go; after the last one the pool hands the memory out again."""
        with self._pool.changed:
            self._holders -= 1
            if not self._holders:
                self._pool.put_back(self)


class Pool:
    """Buffers of one transfer, of ``budget`` bytes or two of them. ``changed`` is notified whenever one comes back."""

    def __init__(self, changed: threading.Condition, budget: int, memory: MemoryBudget) -> None:
        self.changed = changed
        self._budget = budget
        self._account = memory.account()
        self._free: list[Buffer] = []
        self._closed = False

    @property
    def held(self) -> int:
        """Bytes of all buffers that were not given back to the system."""
        return self._account.held

    def take(
        self,
        size: int,
        calls: Waiter,
        let_go: Callable[[], None],
        can_wait: Callable[[], bool] = never,
        *,
        will_be_full: bool = True,
    ) -> Buffer:
        """A buffer of at least ``size`` bytes; waits while there is none, for other transfers too where none is in use.

        ``let_go`` is called before that: what is only held back is done then, or it would be waited for in vain. As
        long as ``can_wait``, one that comes back is waited for rather than many taken. ``will_be_full`` says whether
        that many bytes are sure to come.
        """
        buffer = self._take_now(size, can_wait)
        if buffer is not None:
            return buffer
        if not self.held:
            return self._take_first(size, calls, will_be_full=will_be_full)
        let_go()

        def ready() -> bool:
            nonlocal buffer
            buffer = self._take_now(size, can_wait)
            return buffer is not None or not self._in_use

        calls.wait_for(ready)
        if buffer is not None:
            return buffer
        # None is in use, so none comes back meanwhile.
        with self.changed:
            self._give_back_free()
        return self._take_first(size, calls)

    def _take_first(self, size: int, calls: Waiter, *, will_be_full: bool = True) -> Buffer:
        self._account.take(size, calls.check)
        return self._new(size, will_be_full=will_be_full)

    def _take_now(self, size: int, can_wait: Callable[[], bool]) -> Buffer | None:
        """A buffer of at least ``size`` bytes if there is one without waiting, beside those in use."""
        with self.changed:
            for index, buffer in enumerate(self._free):
                if buffer.capacity >= size:
                    del self._free[index]
                    buffer._holders = 1
                    return buffer
            in_use = self._in_use
            if not in_use or in_use + size > max(self._budget, 2 * size):
                return None
            if in_use + size > max(FEW, 2 * size) and can_wait():
                return None
            # Parts have grown: the smaller buffers make room for a larger one.
            self._give_back_free()
            return self._new(size) if self._account.take_more(size) else None

    def put_back(self, buffer: Buffer) -> None:
        """Called by the last holder, with ``changed`` held."""
        if self._closed:
            return
        if self._account.is_short:
            buffer.empty()
            self._account.give_back(buffer.capacity)
        else:
            self._free.append(buffer)
        self.changed.notify_all()

    def close(self) -> None:
        """Nothing more is taken. What a call that never returns still holds is not counted any longer."""
        with self.changed:
            self._closed = True
            self._give_back_free()
            self._account.give_back(self.held)

    @property
    def _in_use(self) -> int:
        return self.held - sum(buffer.capacity for buffer in self._free)

    def _new(self, size: int, *, will_be_full: bool = True) -> Buffer:
        try:
            return Buffer(self, size, will_be_full=will_be_full)
        except BaseException:
            self._account.give_back(size)
            raise

    def _give_back_free(self) -> None:
        for buffer in self._free:
            buffer.empty()
            self._account.give_back(buffer.capacity)
        self._free.clear()

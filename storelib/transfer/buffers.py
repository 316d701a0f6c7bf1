# SPDX-License-Identifier: Apache-2.0
"""Page-aligned buffers that are allocated once, reused, and counted against a transfer's memory budget."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable

from storelib.exceptions import StoreError
from storelib.transfer.contract import MiB

#: Bytes one transfer may hold, unless two parts are more.
BUDGET = 48 * MiB
#: Bytes that writers which take one part at a time get at least, so that digests may lag behind.
IN_ORDER = 12 * MiB


class Buffer:
    """Memory with holders; the last one to let go gives it back to the pool."""

    __slots__ = ("_holders", "_pool", "capacity", "memory")

    def __init__(self, pool: Pool, capacity: int) -> None:
        # Anonymous mappings are page-aligned (O_DIRECT needs that) and cost nothing until touched.
        try:
            self.memory = memoryview(mmap.mmap(-1, capacity))
        except (OSError, OverflowError, ValueError) as error:
            raise StoreError(f"there is no memory for a part of {capacity} bytes: {error}") from error
        self.capacity = capacity
        self._pool = pool
        self._holders = 1

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
    """Buffers of one transfer. ``changed`` is notified whenever one comes back."""

    def __init__(self, changed: threading.Condition, budget: int) -> None:
        self.changed = changed
        self._budget = budget
        self._allocated = 0
        self._free: list[Buffer] = []

    def take(self, size: int, wait_for: Callable[[Callable[[], bool]], None]) -> Buffer:
        """A buffer of at least ``size`` bytes; ``wait_for(predicate)`` blocks while there is none."""
        with self.changed:
            wait_for(lambda: self._available(size))
            for index, buffer in enumerate(self._free):
                if buffer.capacity >= size:
                    del self._free[index]
                    buffer._holders = 1
                    return buffer
            # Parts have grown: the smaller buffers make room for a larger one.
            self._allocated += size - sum(buffer.capacity for buffer in self._free)
            self._free.clear()
            return Buffer(self, size)

    def _available(self, size: int) -> bool:
        if any(buffer.capacity >= size for buffer in self._free):
            return True
        in_use = self._allocated - sum(buffer.capacity for buffer in self._free)
        return in_use + size <= max(self._budget, 2 * size)

    def put_back(self, buffer: Buffer) -> None:
        """Called by the last holder, with ``changed`` held."""
        self._free.append(buffer)
        self.changed.notify_all()

    def clear(self) -> None:
        """Give the memory of buffers nobody holds back to the system."""
        with self.changed:
            self._allocated -= sum(buffer.capacity for buffer in self._free)
            self._free.clear()

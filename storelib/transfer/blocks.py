# SPDX-License-Identifier: Apache-2.0
"""BlockSink: takes the bytes of an image block by block, for those that hold none of them back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from storelib.transfer.buffers import IN_ORDER, Buffer, Pool, Waiter, never, nothing
from storelib.transfer.digests import BLOCK, HOLE
from storelib.transfer.memory import MemoryBudget

_S = TypeVar("_S", bound="BlockSink")


class BlockSink:
    """The memory of a block is used again once ``take`` and the digests have seen it."""

    #: Where in ``buffer`` the bytes of ``block()`` are.
    position = 0

    def __init__(self, waiter: Waiter, changed: threading.Condition, memory: MemoryBudget) -> None:
        #: What holds the bytes of ``block()``.
        self.buffer: Buffer | None = None
        self._waiter = waiter
        self._pool = Pool(changed, IN_ORDER, memory)

    def __enter__(self: _S) -> _S:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    def block(self, let_go: Callable[[], None] = nothing, can_wait: Callable[[], bool] = never) -> memoryview:
        """Memory for the next bytes of the image, a block; waits until there is some, after ``let_go``.

        It never takes so much that ``can_wait`` would have to be asked.
        """
        if self.buffer is None:
            self.buffer = self._pool.take(BLOCK, self._waiter, let_go)
        return self.buffer.memory[:BLOCK]

    def push(self, count: int) -> None:
        """``count`` bytes of ``block()`` have been filled."""
        buffer, self.buffer = self.buffer, None
        assert buffer is not None  # noqa: S101  (block() gave it)
        self.take(buffer.memory[:count])
        buffer.release()

    def take(self, data: memoryview) -> None:
        """Bytes that pass, which are only hashed here."""

    def stretch(self, length: int) -> int:
        """How much of a hole to go over at once, so that progress and cancelling work in between."""
        return min(length, HOLE)

    def skip(self, length: int) -> None:
        """``length`` zero bytes follow, which the digests are told of."""

    def clear(self) -> None:
        """Let go of all memory."""
        self.buffer = None
        self._pool.close()

# SPDX-License-Identifier: Apache-2.0
"""PartCutter: cuts the bytes of an image into the parts that a writer wants, and leaves its zeros out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from storelib.transfer.buffers import IN_ORDER, PAGE, Buffer, Pool, never, nothing
from storelib.transfer.contract import Part
from storelib.transfer.digests import BLOCK, HOLE, ZEROS
from storelib.transfer.memory import MemoryBudget
from storelib.transfer.source import GRAIN
from storelib.transfer.writing import PartWriter


class PartCutter:
    """Takes the bytes in order, in the caller's thread, and passes them on part by part.

    A first part that may be the whole image is held back as long as the writer could take it by ``put``.
    """

    def __init__(self, target: PartWriter, budget: int, memory: MemoryBudget) -> None:
        #: What holds the bytes of ``block()``.
        self.buffer: Buffer | None = None
        self._target = target
        self._writer = target.writer
        self._calls = target.calls
        # The window is the part being filled: `_filled` bytes of the `_window` bytes that begin at `_offset`.
        self._number = 0
        self._offset = 0
        self._window = target.part_size(0)
        self._filled = 0
        # Asked for the checksum of the window once the window is sure to be a part, and what it said so far.
        several = self._writer.put is None or (target.size is not None and target.size > self._window)
        self._checksum = self._writer.checksum if several else None
        self._value = 0
        self._held: Buffer | None = None  # a full first part, while it may be the only one
        concurrency = self._writer.concurrency
        wanted = IN_ORDER if concurrency == 1 else (concurrency + 1) * self._window
        self._pool = Pool(self._calls.monitor.changed, min(max(wanted, IN_ORDER), budget), memory)

    @property
    def position(self) -> int:
        """Where in ``buffer`` the bytes of ``block()`` are."""
        return self._filled

    def block(self, let_go: Callable[[], None] = nothing, can_wait: Callable[[], bool] = never) -> memoryview:
        """Memory for the next bytes of the image, a block at most; waits until there is some, after ``let_go``.

        Takes no more than a few parts as long as the caller ``can_wait``.
        """
        self._calls.check()
        if self.buffer is None:
            wanted, known = self._window, self._target.size is not None
            if self._target.size is not None:
                # Of a small image no more than it has, which counts where many transfers share the memory.
                wanted = min(wanted, max(-(-(self._target.size - self._offset) // PAGE), 1) * PAGE)
            will_be_full = known or bool(self._offset)
            self.buffer = self._pool.take(
                wanted, self._calls, lambda: self._let_go(let_go), can_wait, will_be_full=will_be_full
            )
        return self.buffer.memory[self._filled : min(self._filled + BLOCK, self._window)]

    def push(self, count: int) -> None:
        """``count`` bytes of ``block()`` have been filled."""
        self._write_held()
        if self._checksum is not None and self.buffer is not None:
            self._value = self._checksum(self.buffer.memory[self._filled : self._filled + count], self._value)
        self._filled += count
        if self._filled == self._window:
            self._end_window()

    def take(self, data: memoryview) -> None:
        """Copy ``data``, which may be longer than a block."""
        while data:
            view = self.block()
            count = min(len(view), len(data))
            view[:count] = data[:count]
            self.push(count)
            data = data[count:]

    def stretch(self, length: int) -> int:
        """How much of a hole to skip at once: up to the end of a window, as only whole windows can be left out."""
        rest = self._window - self._filled if self._filled else 0
        return min(length, rest + max(HOLE // self._window, 1) * self._window)

    def skip(self, length: int) -> None:
        """``length`` zero bytes follow; whole windows of them are never written by a sparse writer."""
        while length:
            begins = self.buffer is None and length >= self._window and self.only_part() is None
            if begins and self._is_sparse(self._offset + self._window):
                self._calls.check()
                skipped = length // self._window * self._window
                self._offset += skipped
                length -= skipped
            else:
                # Up to the end of the window: the next one may be left out as a whole.
                count = min(length, BLOCK, self._window - self._filled)
                self.take(memoryview(ZEROS)[:count])
                length -= count

    def flush(self) -> None:
        """Have what was taken written, unless all of it can go out by ``put``."""
        if self._filled and self.only_part() is None:
            self._end_window()

    def only_part(self) -> memoryview | None:
        """All bytes so far, as long as the writer may take them by ``put``; None when they must be written."""
        if self._writer.put is None:
            return None
        if self._held is not None:
            return self._held.memory[: self._offset]
        if self._offset:
            return None
        return memoryview(b"") if self.buffer is None else self.buffer.memory[: self._filled]

    def clear(self) -> None:
        """Let go of all memory that no call into the driver uses."""
        self.buffer = self._held = None
        self._pool.close()

    def _let_go(self, let_go: Callable[[], None]) -> None:
        """Where there is no memory for the next part, the first one is not held back any more."""
        let_go()
        self._write_held()

    def _end_window(self) -> None:
        """Write the window, or hold a full first one back while it may be all there is; begin the next."""
        buffer, offset, length = self.buffer, self._offset, self._filled
        assert buffer is not None  # noqa: S101  (there are bytes in it)
        size = self._target.size
        hold = self.only_part() is not None and (size is None or size <= self._window)
        checksum = None if self._checksum is None else self._value
        self.buffer = None
        self._filled = self._value = 0
        self._offset += self._window
        self._checksum = self._writer.checksum
        if hold:
            self._held = buffer
        else:
            self._write(buffer, offset, length, checksum)
        # A part held back counts, too: what follows it goes into a buffer of this size before it is written.
        self._window = self._target.part_size(self._number + hold)

    def _write_held(self) -> None:
        """There is more than the first part, so that one is written like the others."""
        if self._held is not None:
            buffer, self._held = self._held, None
            self._write(buffer, 0, self._offset)

    def _is_sparse(self, end: int) -> bool:
        """Whether zeros may be left out, of which a writer may not be sure before it has made room, to ``end`` here."""
        if self._target.untouched:
            self._target.make_room(end)
        return self._writer.sparse

    def _write(self, buffer: Buffer, offset: int, length: int, checksum: int | None = None) -> None:
        """Have ``length`` bytes of the image from ``offset`` on written; a sparse writer's zeros are left out."""
        window = buffer.memory[:length]
        for start, end in data_runs(window) if self._is_sparse(offset + length) else [(0, length)]:
            whole = end - start == length
            part = Part(self._number, offset + start, window[start:end], checksum if whole else None)
            self._number += 1
            buffer.hold()
            self._target.write(part, buffer.release)
        buffer.release()


def data_runs(window: memoryview) -> Iterator[tuple[int, int]]:
    """Start and end of each run of grains that are not all zeros."""
    start: int | None = None
    for position in range(0, len(window), GRAIN):
        # bytes.startswith compares with memcmp and copies nothing: over 30 GB/s.
        if ZEROS.startswith(window[position : position + GRAIN]):
            if start is not None:
                yield start, position
            start = None
        elif start is None:
            start = position
    if start is not None:
        yield start, len(window)

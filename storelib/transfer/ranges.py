# SPDX-License-Identifier: Apache-2.0
"""RangeCutter: parts too large to be held, for a writer that reads them from the local file that the image comes from.

The bytes pass through here once, to be hashed, and are read again when their part is sent, as often as it is: so a
part is tried again though nothing of it was kept. What is sent must be what was hashed, which a checksum of each part
tells: the one that it is sent with, where the writer has one.
Where nothing is hashed, parts are only sent.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable

from storelib.exceptions import StoreError
from storelib.transfer.blocks import BlockSink
from storelib.transfer.buffers import never, nothing
from storelib.transfer.contract import MiB, Progress
from storelib.transfer.digests import BLOCK, ZEROS
from storelib.transfer.memory import MemoryBudget
from storelib.transfer.partfile import RangeFile
from storelib.transfer.source import FileAgain
from storelib.transfer.writing import PartWriter

#: Bytes of a part up to which it is held: two of them, as a transfer holds at least, are 64 MiB then.
LARGE = 32 * MiB

#: How much more the busiest of the calls at once may send where parts go out as one: that takes longer, but saves
#: requests, each of which costs a processor about as much as 4 MiB that are sent.
UNEVEN = 1.3


def _parts_in_one(parts: int, most: int, at_once: int) -> int:
    """How many of ``parts`` go out as one, ``most`` at most, where ``at_once`` calls send them."""

    def busiest(together: int) -> int:
        """Parts that the busiest call sends."""
        sent = math.ceil(parts / together)
        return math.ceil(sent / at_once) * together

    longest = UNEVEN * busiest(1)
    return next((each for each in range(most, 1, -1) if busiest(each) <= longest), 1)


class RangeCutter(BlockSink):
    """Takes the bytes in order, in the caller's thread, as PartCutter does; for an image of ``size`` bytes."""

    def __init__(self, target: PartWriter, size: int, file: FileAgain, memory: MemoryBudget, unread: int = 0) -> None:
        """``unread``: bytes of parts at most that go out as one, since they are not read; 0: each by itself."""
        super().__init__(target.calls, target.calls.monitor.changed, memory)
        self._target = target
        self._calls = target.calls
        self._file = file
        self._size = size
        # The part that passes: `_filled` bytes of the `_window` bytes that begin at `_offset`, and their checksum.
        self._number = 0
        self._offset = 0
        part = target.part_size(0)
        self._parts_in_one = _parts_in_one(math.ceil(size / part), unread // part, target.writer.concurrency)
        self._window = min(part * self._parts_in_one, size)
        self._filled = 0
        self._update = target.writer.checksum or zlib.crc32
        self._checksum = 0
        self._under_way = 0

    def block(self, let_go: Callable[[], None] = nothing, can_wait: Callable[[], bool] = never) -> memoryview:
        """Memory for the next bytes of the image, a block at most; waits until there is some, after ``let_go``."""
        self._calls.check()
        # One byte more than there are, so that a source that is too long is found out.
        return super().block(let_go, can_wait)[: max(self._window - self._filled, 1)]

    def take(self, data: memoryview) -> None:
        """Note what passes, and have each part sent once it has passed."""
        self._calls.check()
        while data:
            piece = data[: self._window - self._filled]
            self._checksum = self._update(piece, self._checksum)
            self._filled += len(piece)
            data = data[len(piece) :]
            if self._filled == self._window:
                self._end_window(self._checksum)

    def send_all(self, progress: Progress | None) -> int:
        """Have all parts of a file sent of which nothing is hashed; returns how many bytes it has."""
        while self._offset < self._size:
            if progress is not None:
                progress(self._offset, self._size)
            self._end_window(None)
        if progress is not None:
            progress(self._size, self._size)
        return self._size

    def skip(self, length: int) -> None:
        """``length`` zero bytes follow, which are read from the file like others."""
        while length:
            count = min(length, BLOCK)
            self.take(memoryview(ZEROS)[:count])
            length -= count

    def flush(self) -> None:
        """Nothing is held back."""

    def only_part(self) -> None:
        """None: there are several parts."""

    def _end_window(self, checksum: int | None) -> None:
        """Have the part sent; ``checksum`` is that of its bytes, None where they have not passed."""
        writer = self._target.writer
        # What passes is not far ahead of what is sent, so that the system still has it in memory.
        self._calls.wait_for(lambda: self._under_way < writer.concurrency)
        self._target.make_room(self._offset + self._window)
        self._under_way += 1
        self._calls.start(
            functools.partial(self._send, self._number, self._offset, self._window, checksum),
            at_once=writer.concurrency,
            repeatable=writer.retryable,
            release=self._sent,
        )
        self._number += 1
        self._offset += self._window
        self._filled = self._checksum = 0
        window = self._target.part_size(self._number) * self._parts_in_one
        self._window = min(window, max(self._size - self._offset, 1))

    def _sent(self) -> None:
        with self._calls.monitor.changed:
            self._under_way -= 1

    def _read_some(self, offset: int, view: memoryview) -> int:
        # A part may be so large that a slow line takes longer for it than a transfer may take without progress.
        self._calls.monitor.move()
        return self._file.read(offset, view)

    def _send_some(self, socket: int, offset: int, count: int) -> int:
        self._calls.monitor.move()
        return self._file.send(socket, offset, count)

    def _source_failed(self, error: OSError) -> None:
        """It passes through as it is, before the driver takes it for one of its back end and tries again."""
        if self._calls.error is None:
            self._calls.fail(error)
        self._calls.monitor.beat()

    def _source_changed(self) -> StoreError:
        return StoreError(f"{self._calls.subject}: the source changed while it was added; nothing was stored")

    def _send(self, number: int, offset: int, length: int, checksum: int | None) -> None:
        write_range = self._target.writer.write_range
        assert write_range is not None  # noqa: S101  (where this class was chosen, that was looked at)
        part = RangeFile(self._read_some, offset, length, checksum=checksum, update=self._update, send=self._send_some)
        try:
            write_range(number, part)
        except Exception:
            # Client libraries make a transient error of the connection of whatever comes out of a body.
            if part.error is not None:
                if isinstance(part.error, OSError):
                    self._source_failed(part.error)
                raise part.error from None
            # The back end has found out as well, and cannot know whose fault it is.
            if part.checksums - {checksum}:
                raise self._source_changed() from None
            raise
        if checksum is not None and part.checksums != {checksum}:
            raise self._source_changed()

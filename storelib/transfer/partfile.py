# SPDX-License-Identifier: Apache-2.0
"""A part as the seekable file that many client libraries want: PartFile without copying its bytes, RangeFile without
holding them, UnreadFile without reading them.
"""

from __future__ import annotations

import contextlib
import io
import socket
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from storelib.exceptions import Invalid, StoreError


class _Seekable(io.RawIOBase):
    """A read-only file of a length that is known, and where it is."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._position = 0

    def __len__(self) -> int:
        return self._length

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; returns the new one."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position


class PartFile(_Seekable):
    """A read-only file over a memoryview; ``read`` hands out views of it, valid as long as the part is."""

    def __init__(self, data: memoryview) -> None:
        super().__init__(len(data))
        self._data = data

    def read(self, size: int | None = -1) -> memoryview:
        """Up to ``size`` bytes, all that is left for None or -1, as a view; empty at the end."""
        end = self._length if size is None or size < 0 else self._position + size
        piece = self._data[self._position : end]
        self._position += len(piece)
        return piece

    def readinto(self, buffer: Any) -> int:
        """Copy bytes into ``buffer``; returns how many."""
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


#: Bytes that a RangeFile hands out at once, and at least where more of them are there.
PIECE = 512 * 1024


class RangeFile(_Seekable):
    """A read-only file over ``length`` bytes of another from ``offset`` on, read anew each time.

    ``read(offset, view)`` fills memory with bytes of that file and returns how many, ``send(socket, offset, count)``
    sends some of ``count`` bytes of it into a socket that takes some, and returns how many. ``checksum`` is what
    ``update`` made of its bytes when they were hashed; None where they were not.
    """

    def __init__(
        self,
        read: Callable[[int, memoryview], int],
        offset: int,
        length: int,
        *,
        checksum: int | None = None,
        update: Callable[[memoryview, int], int] = zlib.crc32,
        send: Callable[[int, int, int], int] | None = None,
    ) -> None:
        super().__init__(length)
        self._read = read
        self._send = send
        self._offset = offset
        self._update = update
        self._memory: bytearray | None = None
        self.checksum = checksum
        #: The checksum of each time that it was read from its beginning to its end; one, unless it changed.
        self.checksums: set[int] = set()
        self._passed: int | None = 0
        #: Why it could not be read; an OSError is that of a file of the caller's.
        self.error: StoreError | OSError | None = None

    @property
    def sendable(self) -> bool:
        """Whether an UnreadFile can send it: nothing has to be computed of its bytes."""
        return self._send is not None and self.checksum is None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; returns the new one."""
        super().seek(offset, whence)
        # Only what is read from the beginning on, without a jump, is all of it.
        self._passed = None if self._position else 0
        return self._position

    def read(self, size: int | None = -1) -> memoryview:
        """The next bytes, empty at the end; a piece, or what is left, where less is asked for. Raises Invalid.

        They are there until the next call.
        """
        left = max(self._length - self._position, 0)
        wanted = left if size is None or size < 0 else min(max(size, PIECE), left)
        if self._memory is None or len(self._memory) < wanted:
            self._memory = bytearray(wanted)
        memory = memoryview(self._memory)[:wanted]
        filled = 0
        while filled < len(memory):
            try:
                count = self._read(self._offset + self._position + filled, memory[filled:])
            except (OSError, StoreError) as error:
                self.error = error
                raise
            if not count:
                self.error = Invalid("the source file shrank while it was added; nothing was stored")
                raise self.error
            filled += count
        self._position += filled
        if self.checksum is not None and self._passed is not None:
            self._passed = self._update(memory, self._passed)
            if self._position == self._length:
                self.checksums.add(self._passed)
        return memory

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` with the next bytes; returns how many."""
        raise io.UnsupportedOperation("read() hands out more than is asked for")

    def send(self, connection: socket.socket, position: int, length: int) -> int:
        """Send some of ``length`` bytes from ``position`` on, unread, into a connection that takes some.

        Returns how many; 0 where they have to be read.
        """
        if self._send is not None:
            # Of this file, its file system or the connection: what reads and sends them then finds out.
            with contextlib.suppress(OSError):
                return self._send(connection.fileno(), self._offset + position, length)
        return 0

    def pieces(self) -> Iterator[memoryview]:
        """All its bytes, each piece there until the next; afterwards it is at its beginning again."""
        self.seek(0)
        while piece := self.read(PIECE):
            yield piece
        self.seek(0)


#: Bytes that an UnreadFile hands out at once. Where a connection is encrypted they are held after all.
STRETCH = 8 * 1024 * 1024


class UnreadFile(_Seekable):
    """A RangeFile whose ``read`` hands out bytes that are not read, for the connections of ``transfer.http``."""

    def __init__(self, file: RangeFile) -> None:
        super().__init__(len(file))
        self._file = file

    def read(self, size: int | None = -1) -> Unread:
        """The next bytes, none at the end; more of them than ``size`` says."""
        piece = Unread(self._file, self._position, min(STRETCH, max(self._length - self._position, 0)))
        self._position += len(piece)
        return piece


class Unread:
    """``length`` bytes of a RangeFile from ``position`` on; fewer, as they are sent."""

    def __init__(self, file: RangeFile, position: int, length: int) -> None:
        self._file = file
        self._position = position
        self._length = length
        # The next of them, where they have to be read.
        self._read = memoryview(b"")

    def __len__(self) -> int:
        return self._length

    def send_to(self, connection: socket.socket) -> None:
        """Send some of them into a connection that takes some."""
        count = 0 if self._read else self._file.send(connection, self._position, self._length)
        if not count:
            if not self._read:
                self._file.seek(self._position)
                self._read = self._file.read(PIECE)[: self._length]
            count = connection.send(self._read)
            self._read = self._read[count:]
        self._position += count
        self._length -= count

    def read(self) -> memoryview:
        """All of them."""
        self._file.seek(self._position)
        return self._file.read(self._length)[: self._length]

# SPDX-License-Identifier: Apache-2.0
"""FileReader: an open image file."""

from __future__ import annotations

import os
from collections.abc import Iterator

from storelib.driver import Extent, Reader
from storelib.drivers.filesystem.location import FileLocation
from storelib.exceptions import IncompleteRead
from storelib.transfer.guard import Guard, Held
from storelib.transfer.source import file_extents


class FileReader(Reader):
    """An open image file, which it closes."""

    inheritable = True

    def __init__(self, file: int, status: os.stat_result, location: FileLocation, guard: Guard) -> None:
        self.file = file
        self.location = location
        self.guard = guard
        self.size = status.st_size
        self.has_holes = status.st_blocks * 512 < status.st_size
        self._held = Held(guard, file, lambda file: os.close(file), str(location))

    def read_into(self, offset: int, view: memoryview) -> int:
        """pread(2); a file that shrank is an error at once."""
        if self.guard.active:
            # A call that hangs must not fill the caller's memory when it comes back after all.
            data = self._held.call(lambda file: os.pread(file, len(view), offset))
            view[: len(data)] = data
            count = len(data)
        else:
            count = os.preadv(self.file, [view], offset)
        if not count:
            raise IncompleteRead(f"{self.location} shrank: it had {self.size} bytes and now ends at {offset}")
        return count

    def extents(self, offset: int, length: int) -> Iterator[Extent] | None:
        """The file's own holes."""
        if not self.has_holes:
            return None
        return self._extents(offset, file_extents(self.file, offset, length))

    def _extents(self, offset: int, found: Iterator[Extent]) -> Iterator[Extent]:
        while (extent := self._held.call(lambda _: next(found, None))) is not None:
            yield extent._replace(offset=extent.offset + offset)

    def fileno(self) -> int:
        """The descriptor of the file, which stays the reader's."""
        return self.file

    def close(self) -> None:
        """Close the file, or leave that to a read that hangs in it."""
        self._held.close()

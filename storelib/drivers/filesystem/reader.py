# SPDX-License-Identifier: Apache-2.0
"""FileReader: an open image file."""

from __future__ import annotations

import os
from collections.abc import Iterator

from storelib.driver import Extent, Reader
from storelib.drivers.filesystem.location import FileLocation
from storelib.exceptions import IncompleteRead
from storelib.transfer.guard import Guard
from storelib.transfer.source import file_extents


class FileReader(Reader):
    """An open image file."""

    def __init__(self, file: int, location: FileLocation, guard: Guard) -> None:
        self.file = file
        self.location = location
        self.guard = guard
        status = os.fstat(file)
        self.size = status.st_size
        self.has_holes = status.st_blocks * 512 < status.st_size

    def read_into(self, offset: int, view: memoryview) -> int:
        """pread(2); a file that shrank is an error at once."""
        if self.guard.active:
            # A call that hangs must not fill the caller's memory when it comes back after all.
            data = self.guard.call(lambda: os.pread(self.file, len(view), offset), str(self.location))
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
        return (e._replace(offset=e.offset + offset) for e in file_extents(self.file, offset, length))

    def fileno(self) -> int:
        """The descriptor."""
        return self.file

    def close(self) -> None:
        """Close the file."""
        os.close(self.file)

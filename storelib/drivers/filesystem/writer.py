# SPDX-License-Identifier: Apache-2.0
"""FileWriter: the bytes of one image on their way into a file, which becomes the image by its Publication."""

from __future__ import annotations

import contextlib
import os

from storelib import system_calls
from storelib.driver import Committed, Digests, Part, Writer
from storelib.drivers.filesystem.datadirs import DataDirs
from storelib.drivers.filesystem.errors import NO_ALLOCATION
from storelib.drivers.filesystem.options import WriteSettings
from storelib.drivers.filesystem.publication import Publication
from storelib.exceptions import Invalid
from storelib.system_calls import PAGE
from storelib.transfer.contract import KiB, MiB
from storelib.transfer.source import GRAIN

#: Bytes from which on writing past the page cache takes less of the processor, the flush included (measured).
LEAST_DIRECT = 64 * KiB
#: Room for images of unknown size grows at least, and at most, by this many bytes at a time.
LEAST_GROWTH, MOST_GROWTH = 64 * MiB, 1024 * MiB


class FileWriter(Writer):
    """Writes at offsets, past the page cache where the file system can."""

    smallest_part = GRAIN

    def __init__(self, datadirs: DataDirs, datadir: str, image_id: str, settings: WriteSettings | None = None) -> None:
        self.settings = settings or datadirs.settings
        self.publication = Publication(datadirs, datadir, image_id, self.settings)
        self.image_id = image_id
        self.guard = datadirs.guard
        self.sparse = self.settings.sparse
        self.room = 0
        self.share = self.share_file
        self.take = self.take_file
        if not self.sparse:
            self.put = self.put_whole
        if not self.settings.direct:
            # Copying in the kernel goes through the page cache, at half the speed of direct writes (measured).
            self.clone = self.clone_range

    @property
    def file(self) -> int:
        """The descriptor of the file, -1 before ``reserve``."""
        return self.publication.file

    def part_size(self, number: int, size: int | None) -> int:
        """The same for every part."""
        return self.settings.chunk

    def reserve(self, end: int) -> int | None:
        """Allocate disk blocks ahead; a full disk shows before anything is written."""
        self._create(direct=self.settings.direct)
        if self.sparse:
            return None
        growth = min(max(self.room, LEAST_GROWTH), MOST_GROWTH) if self.room else 0
        for wanted in (end + growth, end):
            try:
                system_calls.allocate(self.file, wanted)
            except OSError as error:
                if error.errno in NO_ALLOCATION:
                    return None
                if wanted == end:
                    raise
            else:
                self.room = wanted
                break
        return self.room

    def _create(self, *, direct: bool) -> None:
        """Have a file, if it is to be so one that is written past the page cache."""
        self.publication.create()
        self.self_cleaning = self.publication.part is None
        if direct:
            # Not every file system has it, some only from some kernel on.
            with contextlib.suppress(OSError):
                system_calls.set_flag(self.file, os.O_DIRECT, on=True)

    def write(self, part: Part) -> None:
        """Write at the part's offset; only the last part may be no multiple of a page."""
        whole = len(part.data) // PAGE * PAGE
        system_calls.write_all(self.file, part.data[:whole], part.offset)
        if whole < len(part.data):
            system_calls.set_flag(self.file, os.O_DIRECT, on=False)
            system_calls.write_all(self.file, part.data[whole:], part.offset + whole)

    def put_whole(self, data: memoryview, digests: Digests) -> Committed:
        """All of a small image in one call, which spares two changes of thread; its first write needs no room made."""
        if not self.publication.tried:  # else it may be visible already, and only that response was lost
            self._create(direct=self.settings.direct and len(data) >= LEAST_DIRECT)
            self.write(Part(0, 0, data))
        return self.commit(len(data), digests)

    def clone_range(self, source: int, offset: int, length: int) -> None:
        """Copy within the kernel, which shares the blocks on file systems that can; read where it cannot."""
        system_calls.set_flag(self.file, os.O_DIRECT, on=False)
        done = system_calls.copy_range(source, self.file, offset, length)
        if done < length:
            done += system_calls.copy_by_reading(source, self.file, offset + done, length - done)
        if done < length:
            raise Invalid(f"image {self.image_id!r}: the source file shrank while it was copied")

    def share_file(self, source: int, length: int) -> int | None:
        """Share the blocks of the whole source, on btrfs, xfs and the like."""
        if not system_calls.has_proc():  # the engine reads the copy by way of it
            return None
        self.publication.create()
        return self.file if system_calls.reflink(source, self.file) else None

    def take_file(self, source: int, length: int) -> int | None:
        """Let the image be another name of the source, where both are on one file system."""
        return self.file if system_calls.has_proc() and self.publication.adopt(source) else None

    def commit(self, size: int, digests: Digests) -> Committed:
        """Give the file its name."""
        return self.publication.publish(size)

    def abort(self) -> None:
        """Take the name away again if it is this file's."""
        self.publication.retract()

    def close(self) -> None:
        """Close file and directory; the kernel frees a file that got no name."""
        # Bound methods of its own: without this, only the garbage collector could free the writer.
        self.put = self.clone = self.share = self.take = None
        if self.file >= 0 or self.publication.directory >= 0:
            self.guard.free(self.publication.free, f"closing image {self.image_id!r}")

# SPDX-License-Identifier: Apache-2.0
"""FilesystemStore: configuration, and everything but moving bytes."""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from oslo_config import cfg

from storelib.capabilities import COMPLETE, Capability
from storelib.driver import Area, Context, Deletion, Digests, Garbage, Health, ImageInfo, Store
from storelib.drivers.filesystem import garbage
from storelib.drivers.filesystem.datadirs import DataDirs, aside_of, flush_directory, only_files
from storelib.drivers.filesystem.errors import storelib_error
from storelib.drivers.filesystem.location import SCHEMES, FileLocation, is_image, new_token
from storelib.drivers.filesystem.options import OPTIONS, WriteSettings, file_mode, misconfigured, read_metadata
from storelib.drivers.filesystem.publication import Aside, Identity, Replaced, take_away
from storelib.drivers.filesystem.reader import FileReader
from storelib.drivers.filesystem.writer import FileWriter
from storelib.exceptions import Invalid, NotFound, StorageFull, StoreError, TransferTimeout
from storelib.rehearsal import PREFIX
from storelib.system_calls import PAGE, let_go
from storelib.transfer.guard import bounded

#: Bytes of the image of a check: a page that can go out by direct I/O, and a byte that cannot.
_LENGTH = PAGE + 1
#: Clocks of file servers go ahead of ours: nothing is too young for the gc of a check.
_ANY_AGE = -86400.0
#: Option, value, and what it changes in how a file is written.
_ALTERNATIVES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("filesystem_store_direct_io", "false", {"direct": False}),
    ("filesystem_store_staging", "part", {"unnamed": False}),
    ("filesystem_store_file_perm", "0", {"mode": None}),
    ("filesystem_store_fsync", "false", {"direct": False, "fsync": False}),
)


class FilesystemStore(Store[FileLocation]):
    """Images as files below data directories."""

    schemes = SCHEMES
    location_class = FileLocation
    options: ClassVar[Sequence[cfg.Opt]] = OPTIONS
    capabilities = COMPLETE
    datadirs: DataDirs

    # -- Configuration ----------------------------------------------------------------------------------------

    def configure_get(self) -> None:
        """Work out the data directories."""
        self.datadirs = DataDirs(self.conf, self.name, self._lose_atomic_add)
        several = self.conf.filesystem_store_datadirs
        if several and len({datadir.path for datadir in self.datadirs.all}) < len(several):
            raise misconfigured(self.name, self.datadirs.option, "a directory is listed twice", several)
        if self.datadirs.settings.sparse:
            self.capabilities |= Capability.SPARSE

    def configure_add(self) -> None:
        """Check that the data directories can be written to or made, read the metadata file."""
        datadirs = self.datadirs
        datadirs.settings = replace(datadirs.settings, mode=file_mode(self.conf, self.name))
        datadirs.metadata = read_metadata(self.conf, self.name)
        datadirs.each(datadirs.check_writable)
        if datadirs.copy_in_kernel():
            self.capabilities |= Capability.COPY

    def prepare(self) -> None:
        """Make the data directories that are missing."""
        # Not flushed: like a directory made by hand, it is on the disk with the file system's next commit.
        self.datadirs.each(functools.partial(self.datadirs.make, flush=False))

    def areas(self) -> list[Area]:
        """What lies below the data directories, symbolic links followed."""
        paths = self.datadirs.each(os.path.realpath)
        return [Area(("file",), f"{path.rstrip('/')}/", self.datadirs.option) for path in paths]

    def owns(self, location: FileLocation) -> bool:
        """Whether the path lies below one of the data directories."""
        return self.datadirs.split(location) is not None

    def roots(self) -> list[str]:
        """The paths of all data directories, without a slash at the end."""
        return [datadir.path.rstrip("/") for datadir in self.datadirs.all]

    @classmethod
    def possible_roots(cls, location: FileLocation) -> Iterator[str]:
        """All directories above the file."""
        path = location.path
        return (path[:position] for position, character in enumerate(path) if character == "/")

    def _lose_atomic_add(self) -> None:
        self.capabilities &= ~Capability.ATOMIC_ADD

    # -- The driver contract ----------------------------------------------------------------------------------

    def open_writer(self, image_id: str, size: int | None, context: Context | None) -> FileWriter:
        """Choose the data directory; raises Duplicate or StorageFull."""
        return self.datadirs.guard.call(functools.partial(self._open_writer, image_id, size), self.name)

    def _open_writer(self, image_id: str, size: int | None) -> FileWriter:
        if not is_image(image_id):
            raise Invalid(
                f"image id {image_id!r}: files of that name are temporary ones of other programs or of this store, "
                f"which listings leave out; choose another id, such as one without the leading dot"
            )
        self.datadirs.check_id_is_free(image_id)
        return FileWriter(self.datadirs, self.datadirs.choose(size).path, image_id)

    def open_reader(
        self, location: FileLocation, offset: int, length: int | None, context: Context | None
    ) -> FileReader:
        """Open the file and look at its status; nothing is read yet."""
        guard = self.datadirs.guard
        return bounded(
            guard,
            lambda: FileReader(*self.datadirs.open(location), location, guard),
            str(location),
            late=lambda reader: let_go(reader.file),
        )

    def remove(self, location: FileLocation, context: Context | None, deletion: Deletion) -> None:
        """Unlink the file that is there now, and no newer one, should the file system carry it out late."""
        guard = self.datadirs.guard
        # After that long no caller waits for this call any more, whose name may be another image's by then.
        end = time.monotonic() + (guard.timeout or self.retry_policy.timeout)
        guard.call(lambda: self.remove_now(location, deletion, end), str(location))

    def remove_now(self, location: FileLocation, deletion: Deletion, end: float = math.inf) -> None:
        """Unlink the file unless it is later than ``end`` on the monotonic clock when it is found."""
        with self.datadirs.directory_of(location) as (directory, name):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            only_files(status, location)
            this = Identity.of(status)
            if time.monotonic() > end:
                raise TransferTimeout(f"{location}: the file system answered too late; nothing was removed")
            deletion.meet(this, location)
            try:
                self._take_away(location, directory, name, this)
            except Replaced:
                what = "was replaced while it was being deleted; the newer image was left"
                raise StoreError(f"{location} {what}") from None
            if self.datadirs.settings.fsync:
                try:
                    flush_directory(directory)
                except OSError as error:
                    # Final, since another try would find no image.
                    what = "was removed, but may be there again after a power loss"
                    raise StoreError(f"{location} {what}: {error.strerror}") from error

    def _take_away(self, location: FileLocation, directory: int, name: str, met: Identity) -> None:
        datadir, depth = self.datadirs.depth_of(location)
        if depth is None:
            take_away(directory, name, name, met, Aside(directory))
            return
        with aside_of(self.datadirs, datadir, directory) as aside:
            take_away(directory, name, name, met, Aside(aside, depth))

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """The error of storelib for an OSError: see errors.py."""
        return storelib_error(error, subject)

    # -- Looking after the store ------------------------------------------------------------------------------

    def candidate_locations(self, image_id: str) -> list[FileLocation]:
        """In any data directory, as deep as images ever are."""
        return self.datadirs.candidate_locations(image_id)

    def images(self) -> Iterator[ImageInfo]:
        """Every file that is neither ours nor some other program's temporary one."""
        return self.datadirs.files(_listed)

    def inspect(self, location: FileLocation, context: Context | None) -> ImageInfo:
        """Size and times of one file."""

        def status() -> ImageInfo:
            file, status = self.datadirs.open(location)
            let_go(file)
            return _info(location, status)

        return self.datadirs.guard.call(status, str(location))

    def garbage(self, older_than: float, prefix: str | None) -> Iterator[Garbage]:
        """Files of ours whose writers are dead: see garbage.py."""
        return garbage.find(self.datadirs, older_than, prefix)

    def discard(self, item: Garbage) -> bool:
        """Unlink a file of ours if its writer is still dead: see garbage.py."""
        return garbage.discard(self.datadirs, item)

    # -- The health check -------------------------------------------------------------------------------------

    def probe(self) -> Health:
        """Do in each data directory what adds, reads, listings, deletes and gc do, with a small image of its own.

        Raises the StoreError or OSError that stands in the way.
        """
        adding = Capability.ADD in self.capabilities
        rooms = []
        for datadir in self.datadirs.all:
            rooms.append(self.datadirs.guard.call(datadir.room, datadir.path))
            if adding:
                self._exercise(datadir.path)
            else:
                self._look_and_read(datadir.path)
        paths = ", ".join(datadir.path for datadir in self.datadirs.all)
        racing = adding and Capability.ATOMIC_ADD not in self.capabilities
        atomic = "; of adds racing for one id several may succeed, the last one is kept" if racing else ""
        known = [room for room in rooms if room is not None]
        if len(known) < len(rooms):
            return Health(f"{paths}: free space unknown{atomic}")
        free, total = (sum(column) for column in zip(*known, strict=True))
        return Health(f"{paths}: {free} bytes free of {total}{atomic}", free, total)

    def _exercise(self, path: str) -> None:
        """An add, a read, a listing, a delete and a gc in one data directory; nothing of them stays."""
        image_id = PREFIX + new_token()
        # Not in a subdirectory, which would stay.
        settings = replace(self.datadirs.settings, shard_levels=0)
        try:
            location = self._add_small(path, image_id, settings)
        except (StoreError, OSError) as error:
            raise self._advised(error, path, image_id, settings) from error
        try:
            self._compare(location)
            if self._first(path, lambda name: name == image_id) is None:
                what = "an image that was added is missing in the listing; check the storage behind it"
                raise StoreError(f"{path}: {what}")
        finally:
            self.remove(location, None, Deletion())
        self._collect(path, image_id, replace(settings, unnamed=False))

    def _add_small(self, path: str, image_id: str, settings: WriteSettings) -> FileLocation:
        writer = FileWriter(self.datadirs, path, image_id, settings)

        def add() -> FileLocation:
            # Aligned, as direct I/O wants it.
            view = memoryview(mmap.mmap(-1, 2 * PAGE))[:_LENGTH]
            try:
                writer.put_whole(view, Digests(None, ""))
            except BaseException:
                # What stands in the way of the add is what matters; gc finds the rest.
                with contextlib.suppress(OSError):
                    writer.abort()
                raise
            finally:
                writer.publication.free()
            return writer.publication.location

        return bounded(self.datadirs.guard, add, path, late=lambda added: self.remove_now(added, Deletion()))

    def _advised(self, error: Exception, path: str, image_id: str, settings: WriteSettings) -> Exception:
        """The error of an add, with the option that makes adds work if there is one."""
        known = error if isinstance(error, StoreError) else storelib_error(error, f"{path}: adding an image")
        if known is None or isinstance(known, (StorageFull, NotFound, TransferTimeout)):
            return known or error
        for option, value, changes in _ALTERNATIVES:
            try:
                self.remove(self._add_small(path, image_id, replace(settings, **changes)), None, Deletion())
            except (StoreError, OSError):
                continue
            return type(known)(f"{known}; with option {option} = {value} it works")
        return type(known)(f"{known}; check that this process may write to what option {self.datadirs.option} names")

    def _compare(self, location: FileLocation) -> None:
        """Read the small image, all of it."""
        with contextlib.closing(self.open_reader(location, 0, None, None)) as reader:
            memory = memoryview(bytearray(_LENGTH))
            done = 0
            while done < min(reader.size, _LENGTH):
                done += reader.read_into(done, memory[done:])
            if reader.size != _LENGTH or any(memory):
                raise StoreError(f"{location} does not read back as it was written; check the storage behind it")

    def _first(self, path: str, wanted: Callable[[str], bool]) -> FileLocation | None:
        """The first file in one data directory with a name that is ``wanted``."""

        def look(where: str, entry: os.DirEntry[str]) -> FileLocation | None:
            return FileLocation(os.path.join(where, entry.name)) if wanted(entry.name) else None

        with contextlib.closing(self.datadirs.files_below(path, look)) as found:
            return next(found, None)

    def _collect(self, path: str, image_id: str, settings: WriteSettings) -> None:
        """Leave what an add that dies leaves, and have gc remove it."""
        writer = FileWriter(self.datadirs, path, image_id, settings)

        def die() -> None:
            try:
                writer.reserve(PAGE)
            finally:
                writer.publication.free()

        self.datadirs.guard.call(die, path)
        if not any(self.discard(item) for item in self.garbage(_ANY_AGE, image_id)):
            what = "gc does not find and remove what an add that died left; check the storage behind it"
            raise StoreError(f"{path}: {what}")

    def _look_and_read(self, path: str) -> None:
        """List a data directory that is only read, and read the first image in it."""
        first = self._first(path, is_image)
        if first is not None:
            with contextlib.suppress(NotFound), contextlib.closing(self.open_reader(first, 0, None, None)) as reader:
                if reader.size:
                    reader.read_into(0, memoryview(bytearray(1)))


def _listed(path: str, entry: os.DirEntry[str]) -> ImageInfo | None:
    """What a listing says of a file; None for what is no image."""
    if not is_image(entry.name):
        return None
    return _info(FileLocation(os.path.join(path, entry.name)), entry.stat(follow_symlinks=False))


def _info(location: FileLocation, status: os.stat_result) -> ImageInfo:
    """What stat(2) tells of an image."""
    # Not the inode number, which some network file systems change.
    version = f"{status.st_size:x}-{status.st_mtime_ns:x}"
    return ImageInfo(location.uri, status.st_size, os.path.basename(location.path), status.st_mtime, version)

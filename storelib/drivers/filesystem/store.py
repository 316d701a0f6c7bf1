# SPDX-License-Identifier: Apache-2.0
"""FilesystemStore: configuration, which directory an image goes to, and everything but moving bytes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import itertools
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from oslo_config import cfg

from storelib.capabilities import Capability
from storelib.driver import Garbage, Health, ImageInfo, Store
from storelib.drivers.filesystem.location import SCHEMES, FileLocation
from storelib.drivers.filesystem.options import DEFAULT_DATADIR, OPTIONS
from storelib.drivers.filesystem.paths import DEEPEST_SHARD, PART, SHARD, is_held, open_directory, shards
from storelib.drivers.filesystem.reader import FileReader
from storelib.drivers.filesystem.writer import PAGE, FileWriter, has_reflinks
from storelib.exceptions import (
    BadStoreConfiguration,
    BadStoreUri,
    Duplicate,
    Forbidden,
    Invalid,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StorageWriteDenied,
    StoreError,
)
from storelib.transfer.guard import Guard
from storelib.transfer.retry import Stragglers

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY}
PASSING = {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN}


@dataclass(frozen=True)
class DataDir:
    """A data directory; those with a higher priority are filled first."""

    path: str
    priority: int = 0

    def room(self) -> tuple[int, int]:
        """Free and total bytes, as an unprivileged writer sees them."""
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


class FilesystemStore(Store[FileLocation]):
    """Images as files below data directories."""

    schemes = SCHEMES
    location_class = FileLocation
    options: ClassVar[Sequence[cfg.Opt]] = OPTIONS
    capabilities = (
        Capability.READ
        | Capability.RANGE
        | Capability.ADD
        | Capability.DELETE
        | Capability.ATOMIC_ADD
        | Capability.LIST
        | Capability.STAT
        | Capability.GC
        | Capability.CHECK
    )

    def __init__(self, name: str, conf: Any) -> None:
        super().__init__(name, conf)
        self.datadirs: list[DataDir] = []
        self.mode: int | None = None
        self._metadata: list[Mapping[str, Any]] = []
        hung = Stragglers(name, conf.filesystem_store_thread_pool_size)
        self.guard = Guard(conf.filesystem_store_timeout, hung)
        if conf.filesystem_thin_provisioning:
            self.capabilities |= Capability.SPARSE

    # -- Configuration ----------------------------------------------------------------------------------------

    def configure_get(self) -> None:
        """Work out the data directories."""
        several = self.conf.filesystem_store_datadirs
        if several and self.conf.filesystem_store_datadir != DEFAULT_DATADIR:
            what = "set either this or filesystem_store_datadirs, also where one is inherited from [storelib]"
            raise self._misconfigured("filesystem_store_datadir", what, self.conf.filesystem_store_datadir)
        self.datadirs = [self._datadir(entry) for entry in several or [self.conf.filesystem_store_datadir]]
        self.datadirs.sort(key=lambda datadir: -datadir.priority)
        paths = [datadir.path for datadir in self.datadirs]
        if len(set(paths)) < len(paths):
            raise self._misconfigured("filesystem_store_datadirs", "a directory is listed twice", several)

    def configure_add(self) -> None:
        """Make the data directories, check that they can be written, read the metadata file."""
        self.mode = self._file_mode()
        self._metadata = self._read_metadata()
        for datadir in self.datadirs:
            self.guard.call(functools.partial(self._make, datadir.path), datadir.path)
        if self._copies_in_kernel():
            self.capabilities |= Capability.COPY

    def _datadir(self, entry: str) -> DataDir:
        several = bool(self.conf.filesystem_store_datadirs)
        path, colon, priority = entry.rpartition(":") if several else (entry, "", "")
        if not colon:
            path, priority = entry, "0"
        option = "filesystem_store_datadirs" if several else "filesystem_store_datadir"
        if not path.strip() or "\0" in path:
            raise self._misconfigured(option, "a directory is needed", entry)
        try:
            return DataDir(os.path.abspath(os.path.expanduser(path.strip())), int(priority))
        except ValueError:
            raise self._misconfigured(option, "the priority after ':' is a whole number", entry) from None

    def _make(self, path: str) -> None:
        option = "filesystem_store_datadir"
        try:
            os.makedirs(path, exist_ok=True)
        except OSError as error:
            raise self._misconfigured(option, f"cannot be made: {error.strerror}", path) from error
        if not os.access(path, os.W_OK | os.X_OK):
            raise self._misconfigured(option, "this process may not write there", path)

    def _copies_in_kernel(self) -> bool:
        """Blocks can be shared, or writes go through the page cache anyway, where the kernel copies best."""
        if not (self.conf.filesystem_store_fsync and self.conf.filesystem_store_direct_io):
            return True
        return all(self.guard.call(functools.partial(has_reflinks, each.path), each.path) for each in self.datadirs)

    def _file_mode(self) -> int | None:
        value = self.conf.filesystem_store_file_perm
        if value <= 0:
            return None
        try:
            mode = int(str(value), 8)
        except ValueError:
            raise self._misconfigured("filesystem_store_file_perm", "octal digits, for example 640", value) from None
        if not mode & stat.S_IRUSR or mode > 0o7777:
            raise self._misconfigured("filesystem_store_file_perm", "the owner must be able to read", value)
        return mode

    def _read_metadata(self) -> list[Mapping[str, Any]]:
        path = self.conf.filesystem_store_metadata_file
        if not path:
            return []
        option = "filesystem_store_metadata_file"
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
        except (OSError, ValueError) as error:
            raise self._misconfigured(option, f"cannot be read as JSON: {error}", path) from error
        entries = content if isinstance(content, list) else [content]
        for entry in entries:
            texts = isinstance(entry, dict) and [entry.get(key) for key in ("id", "mountpoint")]
            if not texts or not all(isinstance(text, str) and text for text in texts):
                raise self._misconfigured(option, "every object has the strings 'id' and 'mountpoint'", path)
        return entries

    def _misconfigured(self, option: str, what: str, value: object) -> BadStoreConfiguration:
        return BadStoreConfiguration(f"store {self.name}, option {option} = {value!r}: {what}")

    # -- Paths ------------------------------------------------------------------------------------------------

    def owns(self, location: FileLocation) -> bool:
        """Whether the path lies below one of the data directories."""
        return self._split(location) is not None

    def _split(self, location: FileLocation) -> tuple[str, list[str]] | None:
        """The data directory a path lies in and the components below it."""
        inside = [each.path for each in self.datadirs if location.path.startswith(each.path.rstrip("/") + "/")]
        if not inside:
            return None
        datadir = max(inside, key=len)
        return datadir, location.path[len(datadir.rstrip("/")) + 1 :].split("/")

    def location(self, datadir: str, image_id: str, levels: int) -> FileLocation:
        """Where an image with this id is at that depth of subdirectories."""
        return FileLocation(os.path.join(datadir, *shards(image_id, levels), image_id))

    def _existing(self, image_id: str) -> FileLocation | None:
        """The image with this id wherever in this store it is."""
        for location in self.places(image_id):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if not stat.S_ISDIR(os.lstat(location.path).st_mode):
                    return location
        return None

    def refuse_existing(self, image_id: str) -> None:
        """Raise Duplicate if the id is taken."""
        existing = self._existing(image_id)
        if existing is not None:
            raise Duplicate(f"image {image_id!r} exists in store {self.name} at {existing}")

    @contextlib.contextmanager
    def _opened(self, location: FileLocation) -> Iterator[tuple[int, str, int]]:
        """The open directory of an image, its name there and its open file; closed again unless duplicated."""
        split = self._split(location)
        if split is None or PART.fullmatch(split[1][-1]):
            raise BadStoreUri(f"{location} is not an image of store {self.name}")
        datadir, parts = split
        with contextlib.ExitStack() as closing:
            try:
                directory = open_directory(datadir, parts[:-1])
                closing.callback(os.close, directory)
                # O_NONBLOCK: opening a FIFO or a device must not wait for its other end.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                file = os.open(parts[-1], flags, dir_fd=directory)
                closing.callback(os.close, file)
            except (FileNotFoundError, NotADirectoryError):
                raise NotFound(f"no image at {location}") from None
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO):
                    raise Forbidden(f"{location} is a symbolic link or a device; only files are read") from error
                raise
            mode = os.fstat(file).st_mode
            if stat.S_ISDIR(mode):
                raise NotFound(f"no image at {location}, which is a directory")
            if not stat.S_ISREG(mode):
                raise Forbidden(f"{location} is not a regular file")
            yield directory, parts[-1], file

    # -- The driver contract ----------------------------------------------------------------------------------

    def open_writer(self, image_id: str, size: int | None, context: Any) -> FileWriter:
        """Choose the data directory; raises Duplicate or StorageFull."""
        return self.guard.call(functools.partial(self._open_writer, image_id, size), self.name)

    def _open_writer(self, image_id: str, size: int | None) -> FileWriter:
        self.refuse_existing(image_id)
        free = {datadir: datadir.room()[0] for datadir in self.datadirs}
        # A thinly provisioned image may need far less than its size.
        needed = 1 if size is None or self.conf.filesystem_thin_provisioning else size
        fitting = [datadir for datadir in self.datadirs if free[datadir] >= needed]
        if not fitting:
            most = max(free.values())
            raise StorageFull(f"store {self.name} has no room for {needed} bytes; at most {most} are free")
        chosen = max(fitting, key=lambda datadir: (datadir.priority, free[datadir]))
        return FileWriter(self, chosen.path, image_id)

    def open_reader(self, location: FileLocation, offset: int, length: int | None, context: Any) -> FileReader:
        """Open the file."""

        def opened() -> FileReader:
            with self._opened(location) as (_, _, file):
                return FileReader(os.dup(file), location, self.guard)

        with forbidden(location):
            return self.guard.call(opened, str(location))

    def measure(self, location: FileLocation, context: Any) -> int:
        """The size of the file."""
        return self.inspect(location, context).size

    def remove(self, location: FileLocation, context: Any) -> None:
        """Unlink the file."""

        def unlink() -> None:
            with self._opened(location) as (directory, name, _):
                os.unlink(name, dir_fd=directory)
                if self.conf.filesystem_store_fsync:
                    os.fsync(directory)

        with forbidden(location):
            self.guard.call(unlink, str(location))

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """By errno; what cannot be read or removed is Forbidden and comes from ``forbidden``."""
        if not isinstance(error, OSError):
            return None
        number, text = error.errno or 0, f"{subject}: {error.strerror or error}"
        if number in FULL:
            return StorageFull(text)
        if number in DENIED:
            return StorageWriteDenied(text)
        if number in (errno.ENOENT, errno.ENOTDIR):
            return NotFound(f"{text}; is the data directory there?")
        if number == errno.ENAMETOOLONG:
            return Invalid(text)
        if number in PASSING:
            return RemoteServiceUnavailable(text)
        return StoreError(text)

    # -- Looking after the store ------------------------------------------------------------------------------

    def _files(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Every file of every data directory and its shards, with the directory it is in."""
        pending = [(datadir.path, 0) for datadir in self.datadirs]
        while pending:
            path, depth = pending.pop()
            with self.guard.call(functools.partial(os.scandir, path), path) as entries:
                # In batches, so that a directory of a million images neither fills memory nor hangs for ever.
                while batch := self.guard.call(lambda e=entries: list(itertools.islice(e, 1000)), path):  # type: ignore[misc]
                    for entry in batch:
                        if entry.is_file(follow_symlinks=False):
                            yield path, entry
                        elif depth < DEEPEST_SHARD and SHARD.fullmatch(entry.name) and not entry.is_symlink():
                            pending.append((entry.path, depth + 1))

    def places(self, image_id: str) -> list[FileLocation]:
        """In any data directory, as deep as images ever are; a part file is no image."""
        if PART.fullmatch(image_id):
            return []
        depths = range(DEEPEST_SHARD + 1)
        return [self.location(each.path, image_id, depth) for each in self.datadirs for depth in depths]

    def images(self) -> Iterator[ImageInfo]:
        """Every file that is not a part file."""
        for path, entry in self._files():
            if not PART.fullmatch(entry.name):
                with contextlib.suppress(FileNotFoundError):
                    yield image_info(FileLocation(os.path.join(path, entry.name)), entry.stat(follow_symlinks=False))

    def inspect(self, location: FileLocation, context: Any) -> ImageInfo:
        """Size and times of one file."""

        def status() -> ImageInfo:
            with self._opened(location) as (_, _, file):
                return image_info(location, os.fstat(file))

        with forbidden(location):
            return self.guard.call(status, str(location))

    def garbage(self, older_than: float, prefix: str | None) -> Iterator[Garbage]:
        """Part files that no writer holds. Unnamed files need no collecting: the kernel frees them."""
        for path, entry in self._files():
            match = PART.fullmatch(entry.name)
            if match is None or not match["image_id"].startswith(prefix or ""):
                continue
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                name = os.path.join(path, entry.name)
                if status.st_mtime <= time.time() - older_than and not is_held(name):
                    yield Garbage(name, match["image_id"], status.st_blocks * 512, status.st_mtime)

    def discard(self, garbage: Garbage) -> bool:
        """Unlink a part file."""
        with contextlib.suppress(FileNotFoundError):
            if not is_held(garbage.name):
                os.unlink(garbage.name)
                return True
        return False

    def probe(self) -> Health:
        """Room in all data directories, and whether a file can be made in each."""
        free = total = 0
        for datadir in self.datadirs:
            room = self.guard.call(datadir.room, datadir.path)
            free, total = free + room[0], total + room[1]
            if Capability.ADD in self.capabilities:
                self.guard.call(functools.partial(self._try_writing, datadir.path), datadir.path)
        paths = ", ".join(datadir.path for datadir in self.datadirs)
        return Health(f"{paths}: {free} bytes free of {total}", free, total)

    def _try_writing(self, path: str) -> None:
        writer = FileWriter(self, path, "check")
        try:
            writer.reserve(PAGE)
        finally:
            writer.abort()
            writer.close()

    def metadata_for(self, path: str) -> Mapping[str, Any]:
        """The entry of the metadata file whose mountpoint ``path`` lies under."""
        for entry in self._metadata:
            if path.startswith(entry["mountpoint"].rstrip("/") + "/"):
                return json.loads(json.dumps(entry))  # type: ignore[no-any-return]
        return {}

    @contextlib.contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """With several data directories an id is only unique if checking and publishing are one step."""
        if len(self.datadirs) == 1:
            yield
            return
        lock = os.open(min(datadir.path for datadir in self.datadirs), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def image_info(location: FileLocation, status: os.stat_result) -> ImageInfo:
    """What stat(2) tells of an image."""
    version = f"{status.st_ino:x}-{status.st_mtime_ns:x}"
    return ImageInfo(location.uri, status.st_size, os.path.basename(location.path), status.st_mtime, version)


@contextlib.contextmanager
def forbidden(location: FileLocation) -> Iterator[None]:
    """What may not be read or removed is Forbidden, where it would be StorageWriteDenied when written."""
    try:
        yield
    except OSError as error:
        if error.errno in DENIED:
            raise Forbidden(f"{location}: {error.strerror}") from error
        raise

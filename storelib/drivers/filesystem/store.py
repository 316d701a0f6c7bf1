# SPDX-License-Identifier: Apache-2.0
"""FilesystemStore: configuration, which directory an image goes to, and everything but moving bytes."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import math
import os
import stat
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from oslo_config import cfg

from storelib.capabilities import Capability
from storelib.driver import Area, Garbage, Health, ImageInfo, Store
from storelib.drivers.filesystem import checking, publishing
from storelib.drivers.filesystem.directories import (
    existing_part,
    files_below,
    flush_directory,
    make_datadir,
    open_directory,
)
from storelib.drivers.filesystem.kernel import FULL, has_reflinks, let_go
from storelib.drivers.filesystem.location import SCHEMES, FileLocation
from storelib.drivers.filesystem.options import DEFAULT_DATADIR, OPTIONS
from storelib.drivers.filesystem.paths import (
    DEEPEST_SHARD,
    OwnName,
    is_image,
    is_whole,
    parse_own,
    shards,
)
from storelib.drivers.filesystem.reader import FileReader
from storelib.drivers.filesystem.writer import FileWriter
from storelib.exceptions import (
    BadStoreConfiguration,
    BadStoreUri,
    Duplicate,
    Forbidden,
    InUseByStore,
    Invalid,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StorageWriteDenied,
    StoreError,
    TransferTimeout,
)
from storelib.transfer.guard import Guard, bounded
from storelib.transfer.retry import HungCalls

LOG = logging.getLogger(__name__)
T = TypeVar("T")

DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY}
PASSING = {
    errno.EAGAIN,
    errno.EINTR,
    errno.EMFILE,
    errno.ENFILE,
    errno.ESTALE,
    # The server of a network file system is away for a while.
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENOTCONN,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
}
#: statvfs(2) is not there.
NO_STATVFS = {errno.ENOSYS, errno.EOPNOTSUPP}
#: Bytes free where nobody tells: the write itself will.
UNKNOWN_ROOM = 1 << 62
#: Seconds for which a claim counts as held where the file system has no locks to tell; claims are held for moments.
CLAIM_AGE = 600.0


@dataclass(frozen=True)
class DataDir:
    """A data directory; those with a higher priority are filled first."""

    path: str
    priority: int = 0

    def room(self) -> tuple[int, int] | None:
        """Free and total bytes, as an unprivileged writer sees them; None where the file system does not tell."""
        try:
            status = os.statvfs(existing_part(self.path))
        except OSError as error:
            if error.errno in NO_STATVFS:
                return None
            raise
        if not status.f_blocks:
            return None
        unit = status.f_frsize or status.f_bsize
        return status.f_bavail * unit, status.f_blocks * unit


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
        #: Those that were missing at the start: the first image makes them, a mere look does not.
        self.missing: set[str] = set()
        self.mode: int | None = None
        self._metadata: list[Mapping[str, Any]] = []
        hung = HungCalls(name, conf.filesystem_store_thread_pool_size)
        self.guard = Guard(conf.filesystem_store_timeout, hung)
        #: Subdirectories whose entry in their parent is on stable storage.
        self.flushed: set[tuple[str, ...]] = set()
        #: Data directories where unnamed files can be made but never get a name.
        self.named_only: set[str] = set()
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
        """Check that the data directories can be written to or made, read the metadata file."""
        self.mode = self._file_mode()
        self._metadata = self._read_metadata()
        for datadir in self.datadirs:
            self.guard.call(functools.partial(self._check_writable, datadir.path), datadir.path)
        if self._copies_in_kernel():
            self.capabilities |= Capability.COPY

    @property
    def datadir_option(self) -> str:
        """The option that names the data directories."""
        return "filesystem_store_datadirs" if self.conf.filesystem_store_datadirs else "filesystem_store_datadir"

    def _datadir(self, entry: str) -> DataDir:
        several = bool(self.conf.filesystem_store_datadirs)
        option = self.datadir_option
        path, colon, priority = entry.rpartition(":") if several else (entry, "", "")
        if not colon:
            path, priority = entry, "0"
        if not path.strip() or "\0" in path:
            raise self._misconfigured(option, "a directory is needed", entry)
        try:
            return DataDir(os.path.abspath(os.path.expanduser(path.strip())), int(priority))
        except ValueError:
            raise self._misconfigured(option, "the priority after ':' is a whole number", entry) from None

    def _check_writable(self, path: str) -> None:
        there = existing_part(path)
        if not os.path.isdir(there):
            raise self._misconfigured(self.datadir_option, f"{there} is no directory", path)
        if not os.access(there, os.W_OK | os.X_OK):
            made = "" if there == path else f"cannot be made: Permission denied in {there}; "
            raise self._misconfigured(self.datadir_option, f"{made}this process may not write there", path)
        if there != path:
            self.missing.add(path)

    def prepare(self) -> None:
        """Make the data directories that are missing."""
        for path in list(self.missing):
            # Not flushed: like a directory made by hand, it is on the disk with the file system's next commit.
            self.guard.call(functools.partial(self.make_datadir, path, flush=False), path)

    def make_datadir(self, path: str, *, flush: bool) -> None:
        """Make a data directory that was missing at the start; one that went away since is an error instead."""
        if path in self.missing:
            make_datadir(path, flush=flush)
            self.missing.discard(path)

    def _copies_in_kernel(self) -> bool:
        """Blocks can be shared, or writes go through the page cache anyway, where the kernel copies best."""
        if not (self.conf.filesystem_store_fsync and self.conf.filesystem_store_direct_io):
            return True
        return all(self.guard.call(functools.partial(_shares_blocks, each.path), each.path) for each in self.datadirs)

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

    def areas(self) -> list[Area]:
        """What lies below the data directories, symbolic links followed."""
        paths = [self.guard.call(functools.partial(os.path.realpath, each.path), each.path) for each in self.datadirs]
        return [Area(("file",), f"{path.rstrip('/')}/", self.datadir_option) for path in paths]

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
        for location in self.candidate_locations(image_id):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if not stat.S_ISDIR(os.lstat(location.path).st_mode):
                    return location
        return None

    def refuse_existing(self, image_id: str) -> None:
        """Raise Duplicate if the id is taken."""
        existing = self._existing(image_id)
        if existing is not None:
            raise Duplicate(f"image {image_id!r} exists in store {self.name} at {existing}")

    def _place(self, location: FileLocation) -> tuple[str, list[str], str]:
        """The data directory of an image, the directories below it, and the name there."""
        split = self._split(location)
        if split is None or parse_own(split[1][-1]) is not None:
            raise BadStoreUri(f"{location} is not an image of store {self.name}")
        datadir, parts = split
        return datadir, parts[:-1], parts[-1]

    def _open(self, location: FileLocation) -> tuple[int, os.stat_result]:
        """An image's open file, which the caller closes, and its status."""
        datadir, below, name = self._place(location)
        try:
            directory = open_directory(datadir, below)
            try:
                # O_NONBLOCK: opening a FIFO or a device must not wait for its other end.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                file = os.open(name, flags, dir_fd=directory)
            finally:
                let_go(directory)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"no image at {location}") from None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise Forbidden(f"{location} is a symbolic link or a device; only files are read") from error
            raise
        try:
            status = os.fstat(file)
            only_files(status, location)
        except BaseException:
            let_go(file)
            raise
        return file, status

    # -- The driver contract ----------------------------------------------------------------------------------

    def open_writer(self, image_id: str, size: int | None, context: Any) -> FileWriter:
        """Choose the data directory; raises Duplicate or StorageFull."""
        return self.guard.call(functools.partial(self._open_writer, image_id, size), self.name)

    def _open_writer(self, image_id: str, size: int | None) -> FileWriter:
        if not is_image(image_id):
            raise Invalid(
                f"image id {image_id!r}: files of that name are temporary ones of other programs or of this store, "
                f"which listings leave out; choose another id, such as one without the leading dot"
            )
        self.refuse_existing(image_id)
        rooms = {datadir: datadir.room() for datadir in self.datadirs}
        free = {datadir: UNKNOWN_ROOM if room is None else room[0] for datadir, room in rooms.items()}
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
            return FileReader(*self._open(location), location, self.guard)

        with forbidden(location):
            return bounded(self.guard, opened, str(location), late=lambda reader: let_go(reader.file))

    def measure(self, location: FileLocation, context: Any) -> int:
        """The size of the file."""
        return self.inspect(location, context).size

    def remove(self, location: FileLocation, context: Any) -> None:
        """Unlink the file that is there now, and no newer one, should the file system answer late."""
        # After that long nobody waits for this call any more, whose name may be another image's by then.
        end = time.monotonic() + (self.guard.timeout or self.retry_policy.timeout)
        with forbidden(location):
            self.guard.call(lambda: self.remove_now(location, end), str(location))

    def remove_now(self, location: FileLocation, end: float = math.inf) -> None:
        """Unlink the file unless it is later than ``end`` on the monotonic clock when it is found."""
        datadir, below, name = self._place(location)
        missing = NotFound(f"no image at {location}")
        try:
            directory = open_directory(datadir, below)
        except (FileNotFoundError, NotADirectoryError):
            raise missing from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise Forbidden(f"{location} is below a symbolic link") from error
            raise
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            only_files(status, location)
            if time.monotonic() > end:
                raise TransferTimeout(f"{location}: the file system answered too late; nothing was removed")
            publishing.take_away(directory, name, name, publishing.Identity.of(status))
            if self.conf.filesystem_store_fsync:
                flushed(directory, location)
        except (FileNotFoundError, NotADirectoryError):
            raise missing from None
        except publishing.Replaced:
            raise StoreError(f"{location} was replaced while it was being deleted; the newer image was left") from None
        finally:
            let_go(directory)

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

    def _files(self, look: Callable[[str, os.DirEntry[str]], T | None]) -> Iterator[T]:
        """What ``look`` answers for every file of every data directory and its shards."""
        for datadir in self.datadirs:
            yield from self.look_below(datadir.path, look)

    def look_below(self, path: str, look: Callable[[str, os.DirEntry[str]], T | None]) -> Generator[T, None, None]:
        """The same for one data directory."""
        try:
            yield from files_below(path, self.guard, look)
        except FileNotFoundError as error:
            if path not in self.missing or error.filename != path:
                raise
        except OSError as error:
            if error.errno in DENIED:
                raise Forbidden(
                    f"{error.filename or path} cannot be listed: {error.strerror}; this process must be allowed to "
                    f"read what option {self.datadir_option} names"
                ) from error
            raise

    def candidate_locations(self, image_id: str) -> list[FileLocation]:
        """In any data directory, as deep as images ever are; a part file is no image."""
        if not is_image(image_id):
            return []
        depths = range(DEEPEST_SHARD + 1)
        return [self.location(each.path, image_id, depth) for each in self.datadirs for depth in depths]

    def images(self) -> Iterator[ImageInfo]:
        """Every file that is neither ours nor some other program's temporary one."""
        return self._files(listed)

    def inspect(self, location: FileLocation, context: Any) -> ImageInfo:
        """Size and times of one file."""

        def status() -> ImageInfo:
            file, status = self._open(location)
            let_go(file)
            return image_info(location, status)

        with forbidden(location):
            return self.guard.call(status, str(location))

    def garbage(self, older_than: float, prefix: str | None) -> Iterator[Garbage]:
        """What dead writers left. Unnamed files need no collecting: the kernel frees them."""

        def look(path: str, entry: os.DirEntry[str]) -> Garbage | None:
            own = parse_own(entry.name)
            if own is None or not own.image_id.startswith(prefix or ""):
                return None
            name = os.path.join(path, entry.name)
            found = Garbage(name, own.image_id, 0, changed(own, entry.stat(follow_symlinks=False)), (own, older_than))
            file = dead_file(found)
            if file is None:
                return None
            try:
                return replace(found, size=os.fstat(file).st_blocks * 512)
            finally:
                let_go(file)

        return self._files(look)

    def discard(self, garbage: Garbage) -> bool:
        """Unlink a file of ours if its writer is dead; what a delete moved aside by mistake gets its name again."""
        return self.guard.call(lambda: discard(garbage), garbage.name)

    def probe(self) -> Health:
        """Do in each data directory what adds, reads, listings and gc do, with a small image of its own prefix."""
        return checking.check(self)

    def metadata_for(self, path: str) -> Mapping[str, Any]:
        """The entry of the metadata file whose mountpoint ``path`` lies under."""
        for entry in self._metadata:
            if path.startswith(entry["mountpoint"].rstrip("/") + "/"):
                return json.loads(json.dumps(entry))  # type: ignore[no-any-return]
        return {}

    @contextlib.contextmanager
    def one_at_a_time(self, image_id: str) -> Iterator[None]:
        """With several data directories an id is only unique if checking and publishing are one step."""
        if len(self.datadirs) == 1:
            yield
            return
        path = min(datadir.path for datadir in self.datadirs)
        self.make_datadir(path, flush=self.conf.filesystem_store_fsync)
        first = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if publishing.lock(first):
                yield
            else:
                with publishing.claim(first, image_id):
                    yield
        finally:
            let_go(first)


def _shares_blocks(path: str) -> bool:
    return has_reflinks(existing_part(path))


def only_files(status: os.stat_result, location: FileLocation) -> None:
    """Raise NotFound for a directory, Forbidden for anything else that is no file."""
    if stat.S_ISDIR(status.st_mode):
        raise NotFound(f"no image at {location}, which is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise Forbidden(f"{location} is not a regular file")


def flushed(directory: int, location: FileLocation) -> None:
    """Flush the directory of a removed image; an error is final, since another try would find no image."""
    try:
        flush_directory(directory)
    except OSError as error:
        raise StoreError(
            f"{location} was removed, but may be there again after a power loss: {error.strerror}"
        ) from error


def listed(path: str, entry: os.DirEntry[str]) -> ImageInfo | None:
    """What a listing says of a file; None for what is no image."""
    if not is_image(entry.name):
        return None
    return image_info(FileLocation(os.path.join(path, entry.name)), entry.stat(follow_symlinks=False))


def changed(own: OwnName, status: os.stat_result) -> float:
    """Since when a file of ours is as it is: for what was moved aside, since it was."""
    return status.st_ctime if own.kind == "gone" else status.st_mtime


def dead_file(garbage: Garbage) -> int | None:
    """A file of ours, open so that no writer can lock it meanwhile; None if its writer lives or it is too young.

    Where the file system has no locks, age alone tells, and a claim counts as held for a while.
    """
    own, older_than = garbage.handle
    file = os.open(garbage.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        locked = publishing.is_locked(file)
        if locked is None and own.kind == "claim":
            older_than = max(older_than, CLAIM_AGE)
        if not locked and changed(own, os.fstat(file)) <= time.time() - older_than:
            return file
    except BaseException:
        let_go(file)
        raise
    let_go(file)
    return None


def discard(garbage: Garbage) -> bool:
    """Unlink what a dead writer left; answers whether."""
    own = garbage.handle[0]
    try:
        file = dead_file(garbage)
    except FileNotFoundError:
        return False
    if file is None:
        return False
    try:
        status = os.fstat(file)
        if own.kind == "gone" and publishing.Identity.of(status).token != own.token[8:]:
            restore(garbage)
            return False
        if own.kind == "claim":
            # The only name of ours that is used again.
            remove_claim(garbage, publishing.Identity.of(status))
        else:
            os.unlink(garbage.name)
    except (FileNotFoundError, publishing.Replaced):
        return False
    finally:
        let_go(file)
    return True


def remove_claim(garbage: Garbage, met: publishing.Identity) -> None:
    """Remove a claim that a dead add left, and not one that another add has made since."""
    where, name = os.path.split(garbage.name)
    directory = open_directory(where, [])
    try:
        publishing.take_away(directory, name, garbage.handle[0].image_id, met, kind="part")
    finally:
        let_go(directory)


def restore(garbage: Garbage) -> None:
    """Give an image its name again that a delete, carried out late, moved aside in place of an older one."""
    own = garbage.handle[0]
    if not is_whole(own.image_id):
        LOG.error("%r is an image that lost its name; its id is too long to be known", garbage.name)
        return
    directory, name = os.path.split(garbage.name)
    descriptor = open_directory(directory, [])
    try:
        publishing.put_back(descriptor, name, own.image_id)
    finally:
        let_go(descriptor)


def image_info(location: FileLocation, status: os.stat_result) -> ImageInfo:
    """What stat(2) tells of an image."""
    # Not the inode number, which some network file systems change.
    version = f"{status.st_size:x}-{status.st_mtime_ns:x}"
    return ImageInfo(location.uri, status.st_size, os.path.basename(location.path), status.st_mtime, version)


@contextlib.contextmanager
def forbidden(location: FileLocation) -> Iterator[None]:
    """What may not be read or removed is Forbidden, where it would be StorageWriteDenied when written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ETXTBSY):
            raise InUseByStore(f"{location}: {error.strerror}; try again when nobody uses it") from error
        if error.errno in DENIED:
            raise Forbidden(f"{location}: {error.strerror}") from error
        raise

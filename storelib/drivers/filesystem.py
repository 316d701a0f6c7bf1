# SPDX-License-Identifier: Apache-2.0
"""Images as regular files in one or more data directories.

A file gets its name only when it is whole (link(2), which never overwrites); until then it is an unnamed file, or a
part file where the file system has no O_TMPFILE. Every path is opened component by component below the data
directory and never through a symbolic link.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import errno
import fcntl
import functools
import hashlib
import itertools
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from oslo_config import cfg

from storelib.capabilities import Capability
from storelib.driver import (
    Committed,
    Digests,
    Extent,
    Garbage,
    Health,
    ImageInfo,
    Part,
    Reader,
    Store,
    StoreLocation,
    Writer,
)
from storelib.exceptions import (
    BadStoreConfiguration,
    BadStoreUri,
    Duplicate,
    Forbidden,
    IncompleteRead,
    Invalid,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StorageWriteDenied,
    StoreError,
)
from storelib.location import quote, redact, scheme_of, unquote
from storelib.transfer.contract import KiB, MiB
from storelib.transfer.guard import Guard
from storelib.transfer.retry import Stragglers
from storelib.transfer.source import GRAIN, file_extents

PAGE = 4 * KiB
#: linux/fs.h; shares all extents of one file with another (reflink).
FICLONE = 0x40049409
#: An image id has no control character, so no image can ever have the name of a part file.
PART = re.compile(r"\.part\x01(?P<token>[0-9a-f]{16})\x01(?P<image_id>.*)", re.DOTALL)
SHARD = re.compile(r"[0-9a-f]{2}")
DEEPEST_SHARD = 2
#: Room for images of unknown size grows at least, and at most, by this many bytes at a time.
LEAST_GROWTH, MOST_GROWTH = 64 * MiB, 1024 * MiB

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY}
PASSING = {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN}
CANNOT_CLONE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EBADF, errno.EPERM}
#: What open(2) answers where there is no O_TMPFILE (EISDIR: kernels or network protocols that do not know it).
NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}


@dataclass(frozen=True, repr=False)
class FileLocation(StoreLocation):
    """``file:///absolute/path``, percent-encoded; ``filesystem:`` and paths that are not encoded are read too."""

    path: str

    @classmethod
    def parse(cls, uri: str) -> FileLocation:
        """The absolute path in ``uri``; raises BadStoreUri for ``..``, hosts, queries and relative paths."""
        scheme = scheme_of(uri)
        rest = uri[len(scheme) + len("://") :]
        host, slash, path = rest.partition("/")
        if scheme not in FilesystemStore.schemes or host not in ("", "localhost") or not slash:
            raise BadStoreUri(f"expected file:///absolute/path, not {redact(uri)}")
        if "?" in path or "#" in path:
            raise BadStoreUri(f"a query or fragment in {redact(uri)}; write '?' as %3F and '#' as %23")
        parts = [unquote(part, uri) for part in path.split("/") if part not in ("", ".")]
        bad = [part for part in parts if part in ("", ".", "..") or "/" in part or "\0" in part]
        if bad or not parts or path.endswith("/"):
            raise BadStoreUri(f"not the path of a file: {redact(uri)!r}")
        return cls("/" + "/".join(parts))

    @property
    def uri(self) -> str:
        """The URI of this path."""
        return "file://" + "/".join(map(quote, self.path.split("/")))


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
    """Images as files; see the module."""

    schemes = ("file", "filesystem")
    location_class = FileLocation
    options: ClassVar[Sequence[cfg.Opt]] = (
        cfg.StrOpt(
            "filesystem_store_datadir",
            default="/var/lib/storelib/images",
            help="Directory that holds the images. Made if it is missing.",
        ),
        cfg.MultiStrOpt(
            "filesystem_store_datadirs",
            help="Several directories instead of one, each as path[:priority] (default priority 0). A new image goes "
            "to the highest priority with room for it, among equals to the one with most free space.",
        ),
        cfg.StrOpt(
            "filesystem_store_metadata_file",
            help="JSON file, an object or a list of objects with 'id' and 'mountpoint': the object whose mountpoint "
            "an image lies under is returned as its location metadata.",
        ),
        cfg.IntOpt(
            "filesystem_store_file_perm",
            default=0,
            help="Permissions of image files in octal digits, for example 640; 0 leaves them to the umask.",
        ),
        cfg.IntOpt(
            "filesystem_store_chunk_size",
            default=4 * MiB,
            min=1,
            max=64 * MiB,
            help="Bytes per write, rounded up to 64 KiB.",
        ),
        cfg.BoolOpt(
            "filesystem_thin_provisioning",
            default=False,
            help="Leave runs of zeros out of the file as holes instead of allocating room for them.",
        ),
        cfg.BoolOpt(
            "filesystem_store_fsync",
            default=True,
            help="Flush file and directory to stable storage before an add succeeds. Off, a power loss soon "
            "after an add may lose the image, or leave it with zeros.",
        ),
        cfg.BoolOpt(
            "filesystem_store_direct_io",
            default=True,
            help="Write past the page cache where the file system can, which leaves the processor to the digests. "
            "Only with filesystem_store_fsync.",
        ),
        cfg.IntOpt(
            "filesystem_store_shard_levels",
            default=0,
            min=0,
            max=DEEPEST_SHARD,
            help="Levels of subdirectories (256 each) to spread new images over. Images already there stay readable.",
        ),
        cfg.StrOpt(
            "filesystem_store_staging",
            default="auto",
            choices=[
                ("auto", "unnamed files where the file system has them, else part files"),
                ("part", "always part files"),
            ],
            help="What an image is while it is being written.",
        ),
        cfg.FloatOpt(
            "filesystem_store_timeout",
            default=0.0,
            min=0.0,
            help="Seconds after which a call into the file system that does not return (a dead NFS server) "
            "is given up; 0 for never.",
        ),
        cfg.IntOpt(
            "filesystem_store_thread_pool_size",
            default=10,
            min=1,
            help="Calls given up in that way which may hang at once; further calls fail immediately.",
        ),
    )
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
        | Capability.COPY
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
        for datadir, levels in itertools.product(self.datadirs, range(DEEPEST_SHARD + 1)):
            location = self.location(datadir.path, image_id, levels)
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
            if not stat.S_ISREG(os.fstat(file).st_mode):
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
        return Health(f"{len(self.datadirs)} data directories, {free} bytes free of {total}", free, total)

    def _try_writing(self, path: str) -> None:
        writer = FileWriter(self, path, "check")
        try:
            writer.reserve(PAGE)
        finally:
            writer.abort()

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


class FileWriter(Writer):
    """An unnamed file, or a part file, that becomes the image."""

    def __init__(self, store: FilesystemStore, datadir: str, image_id: str) -> None:
        conf = store.conf
        self.store = store
        self.image_id = image_id
        self.datadir = datadir
        self.location = store.location(datadir, image_id, conf.filesystem_store_shard_levels)
        self.sparse = conf.filesystem_thin_provisioning
        self.fsync = conf.filesystem_store_fsync
        self.direct = self.fsync and conf.filesystem_store_direct_io
        self.chunk = -(-conf.filesystem_store_chunk_size // GRAIN) * GRAIN
        self.directory = self.file = -1
        self.part: str | None = None
        self.room = 0
        self.clone = self.clone_range
        self.share = self.share_file

    def part_size(self, number: int, size: int | None) -> int:
        """The same for every part."""
        return int(self.chunk)

    def reserve(self, end: int) -> int | None:
        """Allocate disk blocks ahead; a full disk shows before anything is written."""
        self.create()
        if self.sparse:
            return None
        if self.direct:
            # Not every file system has it, some only from some kernel on.
            with contextlib.suppress(OSError):
                set_flag(self.file, os.O_DIRECT, on=True)
        growth = min(max(self.room, LEAST_GROWTH), MOST_GROWTH) if self.room else 0
        for wanted in (end + growth, end):
            try:
                allocate(self.file, wanted)
            except OSError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                    return None
                if error.errno not in FULL or wanted == end:
                    raise
            else:
                self.room = wanted
                break
        return self.room

    def write(self, part: Part) -> None:
        """Write at the part's offset; only the last part may be no multiple of a page."""
        whole = len(part.data) // PAGE * PAGE
        write_all(self.file, part.data[:whole], part.offset)
        if whole < len(part.data):
            set_flag(self.file, os.O_DIRECT, on=False)
            write_all(self.file, part.data[whole:], part.offset + whole)

    def clone_range(self, source: int, offset: int, length: int) -> None:
        """Copy within the kernel; shares the blocks on file systems that can (copy_file_range(2))."""
        set_flag(self.file, os.O_DIRECT, on=False)
        end = offset + length
        while offset < end:
            count = os.copy_file_range(source, self.file, end - offset, offset, offset)
            if not count:
                raise Invalid(f"image {self.image_id!r}: the source file shrank while it was copied")
            offset += count

    def share_file(self, source: int, length: int) -> int | None:
        """Reflink the whole source, on btrfs, xfs and the like (ioctl_ficlone(2))."""
        self.create()
        try:
            fcntl.ioctl(self.file, FICLONE, source)
        except OSError as error:
            if error.errno in CANNOT_CLONE:
                return None
            raise
        return self.file

    def commit(self, size: int, digests: Digests) -> Committed:
        """Give the file its name."""
        os.ftruncate(self.file, size)
        if self.fsync:
            os.fsync(self.file)
        with self.store.one_at_a_time():
            if not self.is_published():
                self.store.refuse_existing(self.image_id)
                self.link()
        self.unlink_part()
        if self.fsync:
            os.fsync(self.directory)
        self.close()
        return Committed(self.location, self.store.metadata_for(self.location.path))

    def abort(self) -> None:
        """Take the name away again if it is this file's, and let the file go."""
        if self.file < 0:
            return
        try:
            if self.is_published():
                os.unlink(os.path.basename(self.location.path), dir_fd=self.directory)
            self.unlink_part()
        finally:
            self.close()

    def create(self) -> None:
        """Make the file, without a name if possible."""
        if self.file >= 0:
            return
        below = shards(self.image_id, self.store.conf.filesystem_store_shard_levels)
        self.directory = make_directory(self.datadir, below)
        flags = os.O_RDWR | os.O_CLOEXEC
        if self.store.conf.filesystem_store_staging == "auto":
            try:
                self.file = os.open(".", flags | os.O_TMPFILE, 0o666, dir_fd=self.directory)
            except OSError as error:
                if error.errno not in NO_TMPFILE:
                    raise
        if self.file < 0:
            # As much of the id as a file name holds; gc goes by it.
            shown = self.image_id.encode()[:200].decode(errors="ignore")
            self.part = f".part\x01{secrets.token_hex(8)}\x01{shown}"
            self.file = os.open(self.part, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=self.directory)
            # Tells gc, in this and other processes, that the file is not dead.
            fcntl.flock(self.file, fcntl.LOCK_EX)
        if self.store.mode is not None:
            os.fchmod(self.file, self.store.mode)

    def link(self) -> None:
        """link(2) never overwrites."""
        name = os.path.basename(self.location.path)
        try:
            if self.part is not None:
                os.link(self.part, name, src_dir_fd=self.directory, dst_dir_fd=self.directory, follow_symlinks=False)
            else:
                # Both directory arguments are needed for CPython to call linkat(2) with AT_SYMLINK_FOLLOW.
                own = f"/proc/self/fd/{self.file}"
                os.link(own, name, src_dir_fd=self.directory, dst_dir_fd=self.directory, follow_symlinks=True)
        except FileExistsError:
            raise Duplicate(f"image {self.image_id!r} exists in store {self.store.name}") from None

    def is_published(self) -> bool:
        """Whether the image's name is this very file, as after a commit whose answer was lost."""
        try:
            named = os.stat(os.path.basename(self.location.path), dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(self.file))

    def unlink_part(self) -> None:
        """Remove the part file's own name."""
        if self.part is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.part, dir_fd=self.directory)
            self.part = None

    def close(self) -> None:
        """Close file and directory."""
        for descriptor in (self.file, self.directory):
            if descriptor >= 0:
                os.close(descriptor)
        self.file = self.directory = -1


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


def shards(image_id: str, levels: int) -> list[str]:
    """The subdirectories for an id: the first bytes of its SHA-256 in hexadecimal."""
    digest = hashlib.sha256(image_id.encode()).hexdigest()
    return [digest[2 * level : 2 * level + 2] for level in range(levels)]


def open_directory(path: str, below: Sequence[str]) -> int:
    """A descriptor of a directory below ``path``, which itself may be a symbolic link; the rest may not."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in below:
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(name, flags, dir_fd=directory)
        finally:
            os.close(directory)
        directory = inner
    return directory


def make_directory(path: str, below: Sequence[str]) -> int:
    """Like open_directory, but makes what is missing below ``path`` and flushes it."""
    for depth, name in enumerate(below):
        parent = open_directory(path, below[:depth])
        try:
            os.mkdir(name, dir_fd=parent)
            os.fsync(parent)
        except FileExistsError:
            pass
        finally:
            os.close(parent)
    return open_directory(path, below)


def image_info(location: FileLocation, status: os.stat_result) -> ImageInfo:
    """What stat(2) tells of an image."""
    version = f"{status.st_ino:x}-{status.st_mtime_ns:x}"
    return ImageInfo(location.uri, status.st_size, os.path.basename(location.path), status.st_mtime, version)


def is_held(path: str) -> bool:
    """Whether some writer, in any process of this host, has this part file open."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


@contextlib.contextmanager
def forbidden(location: FileLocation) -> Iterator[None]:
    """What may not be read or removed is Forbidden, where it would be StorageWriteDenied when written."""
    try:
        yield
    except OSError as error:
        if error.errno in DENIED:
            raise Forbidden(f"{location}: {error.strerror}") from error
        raise


def set_flag(file: int, flag: int, *, on: bool) -> None:
    """Set or clear a status flag of an open file."""
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    wanted = flags | flag if on else flags & ~flag
    if wanted != flags:
        fcntl.fcntl(file, fcntl.F_SETFL, wanted)


def write_all(file: int, data: memoryview, offset: int) -> None:
    """Write all of ``data``; where the file system refuses direct I/O after all, through the page cache."""
    while data:
        try:
            count = os.pwrite(file, data, offset)
        except OSError as error:
            if error.errno != errno.EINVAL or not fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
                raise
            set_flag(file, os.O_DIRECT, on=False)
            continue
        data, offset = data[count:], offset + count


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(ctypes.util.find_library("c") or None, use_errno=True)


def allocate(file: int, length: int) -> None:
    """fallocate(2). Not os.posix_fallocate, which writes every block where the file system cannot allocate."""
    if length and _libc().fallocate64(file, 0, ctypes.c_int64(0), ctypes.c_int64(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

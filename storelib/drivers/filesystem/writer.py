# SPDX-License-Identifier: Apache-2.0
"""FileWriter: an unnamed file, or a part file, that becomes an image when it is linked to its name."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import errno
import fcntl
import functools
import os
import secrets
from typing import TYPE_CHECKING

from storelib.driver import Committed, Digests, Part, Writer
from storelib.drivers.filesystem.paths import make_directory, shards
from storelib.exceptions import Duplicate, Invalid
from storelib.transfer.contract import KiB, MiB
from storelib.transfer.source import GRAIN

if TYPE_CHECKING:
    from storelib.drivers.filesystem.store import FilesystemStore

PAGE = 4 * KiB
#: linux/fs.h; shares all extents of one file with another (reflink).
FICLONE = 0x40049409
#: Room for images of unknown size grows at least, and at most, by this many bytes at a time.
LEAST_GROWTH, MOST_GROWTH = 64 * MiB, 1024 * MiB
CANNOT_CLONE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EBADF, errno.EPERM}
#: What open(2) answers where there is no O_TMPFILE (EISDIR: kernels or network protocols that do not know it).
NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}
NO_ALLOCATION = {errno.EOPNOTSUPP, errno.ENOSYS}


class FileWriter(Writer):
    """An unnamed file, or a part file, that becomes the image."""

    smallest_part = GRAIN

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
        self.share = self.share_file
        if not self.sparse:
            self.put = self.put_whole
        if not self.direct:
            # Copying in the kernel goes through the page cache, at half the speed of direct writes (measured).
            self.clone = self.clone_range

    def part_size(self, number: int, size: int | None) -> int:
        """The same for every part."""
        return int(self.chunk)

    def reserve(self, end: int) -> int | None:
        """Allocate disk blocks ahead; a full disk shows before anything is written."""
        self.create()
        if self.direct:
            # Not every file system has it, some only from some kernel on.
            with contextlib.suppress(OSError):
                set_flag(self.file, os.O_DIRECT, on=True)
        if self.sparse:
            return None
        growth = min(max(self.room, LEAST_GROWTH), MOST_GROWTH) if self.room else 0
        for wanted in (end + growth, end):
            try:
                allocate(self.file, wanted)
            except OSError as error:
                if error.errno in NO_ALLOCATION:
                    return None
                if wanted == end:
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

    def put_whole(self, data: memoryview, digests: Digests) -> Committed:
        """All of a small image in one call, which spares two changes of thread."""
        self.reserve(len(data))
        self.write(Part(0, 0, data))
        return self.commit(len(data), digests)

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
        """Share the blocks of the whole source, on btrfs, xfs and the like."""
        self.create()
        return self.file if reflink(source, self.file) else None

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
        return Committed(self.location, self.store.metadata_for(self.location.path))

    def abort(self) -> None:
        """Take the name away again if it is this file's."""
        if self.file >= 0 and self.is_published():
            os.unlink(os.path.basename(self.location.path), dir_fd=self.directory)
        self.unlink_part()

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
                self.self_cleaning = True
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
        """Close file and directory; the kernel frees a file that got no name."""
        # Bound methods of its own: without this, only the garbage collector could free the writer.
        self.put = self.clone = self.share = None
        for descriptor in (self.file, self.directory):
            if descriptor >= 0:
                os.close(descriptor)
        self.file = self.directory = -1

    __del__ = close


def reflink(source: int, target: int) -> bool:
    """Let one file share all blocks of another (ioctl_ficlone(2)); answers whether the file system can."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno in CANNOT_CLONE:
            return False
        raise
    return True


def has_reflinks(path: str) -> bool:
    """Whether files in this directory can share blocks; tried on two files without names."""
    try:
        files = [os.open(path, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600) for _ in range(2)]
    except OSError:
        return False
    try:
        os.pwrite(files[0], bytes(PAGE), 0)
        return reflink(*files)
    except OSError:
        return False
    finally:
        for file in files:
            os.close(file)


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

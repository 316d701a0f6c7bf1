# SPDX-License-Identifier: Apache-2.0
"""System calls that Python lacks, and what to make of those it has where a file system does not know them."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import errno
import fcntl
import functools
import logging
import os
import re
from collections.abc import Iterator

LOG = logging.getLogger(__name__)

PAGE = 4 << 10
#: What any call returns where there is no room.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
#: What write(2) returns where direct I/O is refused after all.
NO_DIRECT = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
#: Bytes in memory at a time while a file is copied by way of it.
_COPIED = 1 << 20
#: linux/fs.h; shares all extents of one file with another (reflink).
FICLONE = 0x40049409
#: linux/fs.h, for renameat2(2).
RENAME_NOREPLACE = 1
#: How files are opened to be read: a symbolic link is an error, and a FIFO or a device does not wait for its other end.
ONLY_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: What is to be mounted where, and what is (proc(5)).
FSTAB, MOUNTS = "/etc/fstab", "/proc/self/mountinfo"


def let_go(descriptor: int) -> None:
    """Close what was only read: whatever close(2) says, the descriptor is gone, and no byte depended on it."""
    try:
        os.close(descriptor)
    except OSError as error:
        LOG.debug("closing a descriptor that was read: %s", error)


@contextlib.contextmanager
def released(descriptor: int) -> Iterator[int]:
    """A descriptor that is let go at the end of the ``with``."""
    try:
        yield descriptor
    finally:
        let_go(descriptor)


def unmounted(path: str) -> str | None:
    """The mount point of ``FSTAB`` above a path, or the path, where nothing is mounted there or in between; or None."""
    known = _wanted(FSTAB)
    there = os.path.realpath(path) if known else ""
    above = {there[:end] for end, character in enumerate(f"{there}/") if character == "/"}
    wanted = max(known & above, key=len, default=None)
    mounted = set(_places(MOUNTS, 4)) if wanted is not None else set()
    # Where the root is not mounted this is another one, of which the file does not speak (chroot(2)).
    if wanted is None or "/" not in mounted:
        return None
    return None if any(len(place) >= len(wanted) for place in mounted & above) else wanted


@functools.cache
def _wanted(file: str) -> frozenset[str]:
    """The mount points in a file when it was first read, but for the root: every add asks."""
    return frozenset(os.path.normpath(place) for place in _places(file, 1) if place.startswith("/")) - {"/"}


def _places(file: str, column: int) -> Iterator[str]:
    """The mount points in a file, where some characters are written as octal numbers."""
    with contextlib.suppress(OSError), open(file, encoding="utf-8", errors="surrogateescape") as lines:
        for fields in map(str.split, lines):
            if len(fields) > column and not fields[0].startswith("#"):
                yield re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[column])


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(ctypes.util.find_library("c") or None, use_errno=True)


def _raise_errno() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def allocate(file: int, length: int) -> None:
    """fallocate(2). Not os.posix_fallocate, which writes every block where the file system cannot allocate."""
    while length and _libc().fallocate64(file, 0, ctypes.c_int64(0), ctypes.c_int64(length)):
        # Python itself does so after a signal (PEP 475), but not for calls that it does not know.
        if ctypes.get_errno() != errno.EINTR:
            _raise_errno()


def rename_without_overwriting(old_directory: int, old: str, directory: int, new: str) -> None:
    """renameat2(2) with RENAME_NOREPLACE: an error, like that of a kernel without it, instead of overwriting."""
    function = getattr(_libc(), "renameat2", None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(old_directory, os.fsencode(old), directory, os.fsencode(new), RENAME_NOREPLACE):
        _raise_errno()


@functools.cache
def has_proc() -> bool:
    """Whether open files can be named by way of /proc, which a chroot may lack."""
    return os.path.exists("/proc/self/fd/0") or os.path.isdir("/proc/self/fd")


def reflink(source: int, target: int) -> bool:
    """Let one file share all blocks of another (ioctl_ficlone(2)); returns whether the file system can."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        # Whatever else it is, reading and writing is tried next and tells.
        if error.errno not in FULL:
            return False
        raise
    return True


def has_reflinks(path: str) -> bool:
    """Whether files in this directory can share blocks; tried on two files without names."""
    files: list[int] = []
    try:
        for _ in range(2):
            files.append(os.open(path, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600))
        os.pwrite(files[0], bytes(PAGE), 0)
        return reflink(*files)
    except OSError:
        return False
    finally:
        for file in files:
            os.close(file)


def copy_range(source: int, target: int, offset: int, length: int) -> int:
    """Copy within the kernel (copy_file_range(2)); returns how many bytes were copied before it refused.

    Between file systems, on swap files, on older kernels and some network file systems it does not work, or only up to
    some point; the rest has to be read and written. Raises only for what is about room.
    """
    done = 0
    while done < length:
        try:
            count = os.copy_file_range(source, target, length - done, offset + done, offset + done)
        except OSError as error:
            if error.errno in FULL:
                raise
            break
        if not count:
            break
        done += count
    return done


def copy_by_reading(source: int, target: int, offset: int, length: int) -> int:
    """Copy by way of memory; returns how many bytes there were."""
    memory = memoryview(bytearray(min(length, _COPIED)))
    done = 0
    while done < length:
        count = os.preadv(source, [memory[: length - done]], offset + done)
        if not count:
            break
        write_all(target, memory[:count], offset + done)
        done += count
    return done


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
            if error.errno not in NO_DIRECT or not fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
                raise
            set_flag(file, os.O_DIRECT, on=False)
            continue
        if not count:
            raise OSError(errno.EIO, "the file system takes no more bytes")
        data, offset = data[count:], offset + count

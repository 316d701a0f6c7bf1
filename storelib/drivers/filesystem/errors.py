# SPDX-License-Identifier: Apache-2.0
"""What an errno means, for a caller and for the way in which a file is written: the only place that knows."""

from __future__ import annotations

import errno

from storelib.drivers.filesystem.location import FileLocation
from storelib.exceptions import (
    Forbidden,
    InUseByStore,
    Invalid,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StorageWriteDenied,
    StoreError,
)
from storelib.system_calls import FULL

DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY}
#: The server of a network file system is away for a while.
_AWAY = {errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH}
_CUT = {errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET}
_TRANSIENT = {errno.EAGAIN, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ESTALE} | _AWAY | _CUT
_KINDS: tuple[tuple[set[int], type[StoreError]], ...] = (
    (FULL, StorageFull),
    (DENIED, StorageWriteDenied),
    ({errno.ENAMETOOLONG}, Invalid),
    (_TRANSIENT, RemoteServiceUnavailable),
)

#: What statvfs(2), or any other call, returns where the file system does not have it.
NO_STATVFS = _ABSENT = {errno.EOPNOTSUPP, errno.ENOSYS}
#: Where it does not have it, or does not know what it was asked for.
_UNKNOWN = _ABSENT | {errno.EINVAL}
#: What open(2) returns where there is no O_TMPFILE (EISDIR: kernels or network protocols that do not know it).
NO_TMPFILE = _UNKNOWN | {errno.EISDIR, errno.ENOENT, errno.EPERM, errno.EACCES, errno.ENOTDIR}
#: What fallocate(2) returns where blocks cannot be allocated ahead.
NO_ALLOCATION = _UNKNOWN | {errno.ENODEV, errno.EPERM}
#: What open(2) returns where there is no O_EXCL.
NO_EXCLUSION = _UNKNOWN
#: What link(2) returns where there are no hard links, or none for this kind of file.
NO_LINKS = _UNKNOWN | {errno.EPERM, errno.EMLINK, errno.EXDEV, errno.ENOTTY}
#: What renameat2(2) returns to RENAME_NOREPLACE where that is not known (EPERM: sandboxes that do not know the call).
NO_RENAME = _UNKNOWN | {errno.ENOTTY, errno.EPERM}
#: What flock(2) returns where there are no locks, or none across hosts (EBADF: NFS wants other open modes).
NO_LOCKS = _UNKNOWN | {errno.ENOLCK, errno.EBADF}
#: What fsync(2) of a directory returns where directories cannot be flushed (SMB, some FUSE file systems; EBADF: what
#: cannot be written is not flushed, which PostgreSQL puts up with, too).
NO_FLUSH = _UNKNOWN | {errno.EISDIR, errno.EBADF, errno.ENOTTY}
#: What open(2) and rename(2) return to a name that the file system does not take (ENOENT: SMB).
BAD_NAME = {errno.EINVAL, errno.EILSEQ, errno.ENOENT}
#: What rename(2) returns where a name cannot be moved aside, but perhaps removed (a full disk, too long a name).
NOT_ASIDE = DENIED | _ABSENT | {errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.EBUSY, errno.EXDEV}


def storelib_error(error: Exception, subject: str) -> StoreError | None:
    """The error of storelib for an OSError; what cannot be read or removed has a ``refusal`` before."""
    if not isinstance(error, OSError):
        return None
    number, place = error.errno or 0, str(error.filename or "")
    # Most files are opened by names in a directory that is open, which tell nobody where that is.
    where = (
        f": {place}" if place.startswith("/") and not place.startswith("/proc/self/") and place not in subject else ""
    )
    text = f"{subject}: {error.strerror or error}{where}"
    if number in (errno.ENOENT, errno.ENOTDIR):
        # Of a data directory: it is not the image that is not there, and a client that adds one is told so.
        return RemoteServiceUnavailable(f"{text}; is the data directory there?", transient=False)
    return next((kind for numbers, kind in _KINDS if number in numbers), StoreError)(text)


def refusal(error: OSError, location: FileLocation) -> StoreError | None:
    """The error of opening or removing an image, where it is another than that of writing one."""
    number = error.errno or 0
    if number in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(f"no image at {location}")
    if number in (errno.ELOOP, errno.ENXIO):
        what = "is a symbolic link or a device, or is below a symbolic link; only files are images"
        return Forbidden(f"{location} {what}")
    if number in (errno.EBUSY, errno.ETXTBSY):
        return InUseByStore(f"{location}: {error.strerror}; try again when nobody uses it")
    if number in DENIED:
        return Forbidden(f"{location}: {error.strerror}")
    return None

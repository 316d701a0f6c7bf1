# SPDX-License-Identifier: Apache-2.0
"""Disks: volumes that are open, in Ceph or under a path of this host, whose reads and writes are positioned."""

from __future__ import annotations

import abc
import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator

from storelib.exceptions import RemoteServiceUnavailable, StorageFull, StoreError, TransferTimeout
from storelib.transfer.contract import Extent
from storelib.transfer.deadlines import within
from storelib.transfer.source import file_extents
from storelib.volumes.root_helper import Root

#: Seconds that a device may take to be as large as Cinder says: ScaleIO's, and what was grown just now.
_GROWING, _LOOK = 20.0, 0.1


class Disk(abc.ABC):
    """An open volume. Reads and writes may be made side by side."""

    @abc.abstractmethod
    def size(self) -> int:
        """Bytes of the volume now."""

    @abc.abstractmethod
    def read_into(self, offset: int, view: memoryview) -> int:
        """Fill ``view`` with bytes from ``offset`` on; returns how many."""

    @abc.abstractmethod
    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``."""

    @abc.abstractmethod
    def flush(self) -> None:
        """What was written is safe when this returns."""

    @abc.abstractmethod
    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Data and holes of that range."""

    @abc.abstractmethod
    def close(self) -> None:
        """Whatever comes of it: what was written was flushed, or is of no use any more. May be called again."""

    def await_size(self, expected: int) -> int:
        """Bytes of the volume, ``expected`` or more unless it does not get there within some seconds."""
        end = time.monotonic() + within(_GROWING)
        while (size := self.size()) < expected and time.monotonic() < end:
            time.sleep(_LOOK)
        return size


class FileDisk(Disk):
    """A volume that is a block device, or a file in a file system that is mounted here."""

    _descriptor: int | None = None

    def __init__(self, path: str, subject: str, root: Root, *, read_only: bool) -> None:
        self._subject = subject
        with self._explained():
            self._descriptor = _open(path, os.O_RDONLY if read_only else os.O_RDWR, root)
        #: After a flush that failed none is believed: the kernel forgets what it could not write.
        self._lost: StoreError | None = None

    def size(self) -> int:
        """As the kernel knows it."""
        with self._explained():
            descriptor = self._open()
            found = os.fstat(descriptor)
            return found.st_size if stat.S_ISREG(found.st_mode) else os.lseek(descriptor, 0, os.SEEK_END)

    def read_into(self, offset: int, view: memoryview) -> int:
        """Read at ``offset`` into ``view``; returns the bytes that came, 0 at the end. Raises StoreError."""
        with self._explained():
            return os.preadv(self._open(), [view], offset)

    def write(self, offset: int, data: memoryview) -> None:
        """Positioned writes, until all is written."""
        with self._explained():
            while data:
                count = os.pwrite(self._open(), data, offset)
                data, offset = data[count:], offset + count

    def flush(self) -> None:
        """To the server or the device, with its cache; raises StoreError, then each time again, if that failed."""
        if self._lost is None:
            try:
                os.fdatasync(self._open())
            except OSError as error:
                self._lost = StoreError(f"{self._subject}: what was written could not be flushed: {error.strerror}")
        if self._lost is not None:
            raise self._lost

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What the file system tells; a block device tells nothing."""
        for extent in file_extents(self._open(), offset, length):
            yield extent._replace(offset=offset + extent.offset)

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    __del__ = close

    def _open(self) -> int:
        if self._descriptor is None:
            raise StoreError(f"{self._subject} is closed")
        return self._descriptor

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _explained(error, self._subject) from error


def _open(path: str, flags: int, root: Root) -> int:
    """Open it, as a user who may not, too: the file is this user's for that moment."""
    try:
        return os.open(path, flags)
    except PermissionError:
        owner = os.stat(path)
        root.run("chown", str(os.geteuid()), path)
        try:
            return os.open(path, flags)
        finally:
            root.run("chown", str(owner.st_uid), path)


def _explained(error: OSError, subject: str) -> StoreError:
    """The error of storelib for one of the kernel."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"{subject}: no space is left where it is kept")
    if error.errno == errno.ETIMEDOUT:
        return TransferTimeout(f"{subject}: what it is kept on does not answer")
    if error.errno in (errno.EACCES, errno.EPERM):
        return StoreError(f"{subject}: this user may not open it; check its owner, and rootwrap_config")
    return RemoteServiceUnavailable(f"{subject}: {error.strerror or type(error).__name__}")

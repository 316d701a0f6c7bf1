# SPDX-License-Identifier: Apache-2.0
"""Images on their way to local files and pipes: a file appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from typing import IO, Any, Protocol

from storelib.cli.output import Progress

BLOCK = 1024 * 1024
ZEROS = bytes(BLOCK)
#: Where a part remembers what the server called its data.
_TAG = "user.storelib.etag"


class Readable(Protocol):
    """An image's stream, or any file."""

    def readinto(self, buffer: Any, /) -> int | None:
        """Read into ``buffer``; returns how many bytes."""


def refuse_existing(path: str) -> None:
    """Raise FileExistsError if there is something at ``path``."""
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists; replace it with --force")


def chunks(stream: Readable, progress: Progress | None) -> Iterator[memoryview]:
    """All of ``stream`` in views of one buffer, each valid until the next."""
    for chunk, hole in pieces(stream, progress):
        for done in range(0, hole, BLOCK):
            yield memoryview(ZEROS)[: hole - done]
        if not hole:
            yield chunk


def pieces(stream: Readable, progress: Progress | None) -> Iterator[tuple[memoryview, int]]:
    """All of ``stream``: a view of one buffer, valid until the next, or the bytes of a hole, which are not read."""
    from storelib.transfer.source import open_source

    source = open_source(stream)
    view = memoryview(bytearray(BLOCK))
    done, total = 0, getattr(stream, "size", None)
    while True:
        hole = source.hole()
        count = 0 if hole else source.read_into(view)
        if not hole and not count:
            return
        yield view[:count], hole
        done += hole + count
        if progress:
            progress(done, total)


def pour(stream: Readable, target: IO[bytes], progress: Progress | None) -> None:
    """Write all of ``stream`` to a pipe."""
    for chunk in chunks(stream, progress):
        target.write(chunk)
    target.flush()


def save(stream: Readable, path: str, progress: Progress | None, *, force: bool, mode: int | None = None) -> None:
    """Write all of ``stream`` to ``path``, with holes for zeros; a special file such as /dev/null is written to.

    ``mode`` is the file's; what the umask leaves of 0666 if not given.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as file:
            return pour(stream, file, progress)
    directory, name = os.path.split(os.path.realpath(path))
    with _in_directory(directory):
        descriptor, part = tempfile.mkstemp(prefix=f".{name[:200]}.", suffix=".part", dir=directory)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o666 & ~_umask() if mode is None else mode)
            _write_sparse(stream, file, progress)
        _publish(part, os.path.join(directory, name), force=force)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


class Part:
    """The beginning of the file ``path``, kept beside it under a name with ``key`` until all of it is there.

    Raises FileExistsError while another process is at it. ``size`` is what is there, in bytes.
    """

    def __init__(self, path: str, key: str) -> None:
        self._path = os.path.realpath(path)
        directory, name = os.path.split(self._path)
        #: Where it is kept.
        self.place = os.path.join(directory, f".{os.fsdecode(os.fsencode(name)[:150])}.{key}.part")
        with _in_directory(directory):
            self._file = _open_locked(self.place)
        self.size = os.fstat(self._file.fileno()).st_size

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def chunks(self) -> Iterator[memoryview]:
        """What is there, each piece valid until the next one."""
        view = memoryview(bytearray(BLOCK))
        self._file.seek(0)
        while count := self._file.readinto(view):  # type: ignore[attr-defined]
            yield view[:count]

    def recall(self) -> str | None:
        """The tag that was noted with what is there."""
        try:
            return os.getxattr(self._file.fileno(), _TAG).decode("ascii") or None
        except (OSError, ValueError):
            return None

    def note(self, tag: str | None) -> None:
        """Remember a tag with what is there, where the file system can."""
        with contextlib.suppress(OSError, ValueError):
            os.setxattr(self._file.fileno(), _TAG, (tag or "").encode("ascii"))

    def fill(self, stream: Readable, progress: Progress | None) -> None:
        """Write the rest, with holes for zeros. What came before a failure stays, and is all that is there."""
        from storelib.transfer.cutting import data_runs

        self._file.seek(self.size)
        try:
            for chunk, hole in pieces(stream, None):
                for start, end in data_runs(chunk):
                    self._file.seek(self.size + start)
                    self._file.write(chunk[start:end])
                self.size += hole or len(chunk)
                if progress:
                    progress(self.size, getattr(stream, "size", None))
        finally:
            self._file.flush()
            self._file.truncate(self.size)
        os.fsync(self._file.fileno())

    def publish(self, *, force: bool) -> None:
        """It is complete: give it its name, with what the umask leaves of 0666."""
        os.fchmod(self._file.fileno(), 0o666 & ~_umask())
        with contextlib.suppress(OSError):
            os.removexattr(self._file.fileno(), _TAG)
        _publish(self.place, self._path, force=force)

    def remove(self) -> None:
        """Forget what is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.place)


@contextlib.contextmanager
def _in_directory(directory: str) -> Iterator[None]:
    """Around the making of a part: where the directory allows none, that is told, and not of a name nobody gave."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS):
            raise type(error)(error.errno, error.strerror, directory) from error
        raise


def _open_locked(path: str) -> IO[bytes]:
    """A file that no other process has open like this; raises FileExistsError."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        file = open(descriptor, "r+b")  # noqa: SIM115  (the caller closes it)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise FileExistsError(f"another process is writing {path}") from None
        except OSError:
            # A file system without locks.
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return file
        # Its holder has just finished.
        file.close()


def _write_sparse(stream: Readable, file: IO[bytes], progress: Progress | None) -> None:
    from storelib.transfer.cutting import data_runs

    done = 0
    for chunk, hole in pieces(stream, progress):
        for start, end in data_runs(chunk):
            file.seek(done + start)
            file.write(chunk[start:end])
        done += hole or len(chunk)
    file.truncate(done)
    file.flush()
    os.fsync(file.fileno())


def _publish(part: str, path: str, *, force: bool) -> None:
    if force:
        return os.replace(part, path)
    try:
        os.link(part, path)
    except FileExistsError:
        refuse_existing(path)
        raise
    except OSError:
        # File systems such as FAT have no links.
        refuse_existing(path)
        return os.replace(part, path)
    os.unlink(part)
    return None


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current

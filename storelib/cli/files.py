# SPDX-License-Identifier: Apache-2.0
"""Images on their way to local files and pipes: a file appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import IO, Any, Protocol

from storelib.cli.output import Progress

BLOCK = 1024 * 1024
ZEROS = bytes(BLOCK)


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

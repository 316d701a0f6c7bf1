# SPDX-License-Identifier: Apache-2.0
"""Opening, making, flushing and listing directories; never through a symbolic link below the data directory."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from storelib.drivers.filesystem.kernel import let_go
from storelib.drivers.filesystem.paths import DEEPEST_SHARD, SHARD
from storelib.transfer.guard import Guard, Held, bounded

T = TypeVar("T")

#: What fsync(2) of a directory answers where directories cannot be flushed (SMB, some FUSE file systems; EBADF: what
#: cannot be written is not flushed, which PostgreSQL puts up with, too).
NO_FLUSH = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EISDIR, errno.EBADF, errno.ENOTTY}
#: Entries looked at in one call, so that a directory of a million images neither fills memory nor hangs for ever.
BATCH = 1000


def open_directory(path: str, below: Sequence[str]) -> int:
    """A descriptor of a directory below ``path``, which itself may be a symbolic link; the rest may not."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in below:
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(name, flags, dir_fd=directory)
        finally:
            let_go(directory)
        directory = inner
    return directory


def existing_part(path: str) -> str:
    """The longest part of ``path`` that is there: itself, or the directory in which the rest can be made."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def make_datadir(path: str, *, flush: bool) -> None:
    """Make a data directory and what is missing above it, on stable storage if ``flush``; raises OSError."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_datadir(parent, flush=flush)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    if not flush:
        return
    above = open_directory(parent, [])
    try:
        flush_directory(above)
    except OSError:
        # The next one who needs it makes and flushes it again.
        with contextlib.suppress(OSError):
            os.rmdir(path)
        raise
    finally:
        let_go(above)


def make_directory(path: str, below: Sequence[str], flushed: set[tuple[str, ...]] | None) -> int:
    """Like open_directory, but makes what is missing below ``path``.

    ``flushed`` are the directories whose entry in their parent is known to be on stable storage; this adds to it, and
    what failed to be flushed, here or in another process, is flushed by the next one who needs it. None: no flushing.
    """
    try:
        _make(path, below, flushed)
        return open_directory(path, below)
    except FileNotFoundError:
        if not below or not flushed:
            raise
        # Somebody removed a directory that was empty.
        flushed.difference_update({(path, *below[: depth + 1]) for depth in range(len(below))})
    _make(path, below, flushed)
    return open_directory(path, below)


def _make(path: str, below: Sequence[str], flushed: set[tuple[str, ...]] | None) -> None:
    for depth, name in enumerate(below):
        place = (path, *below[: depth + 1])
        if flushed is not None and place in flushed:
            continue
        parent = open_directory(path, below[:depth])
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=parent)
            if flushed is not None:
                flush_directory(parent)
                flushed.add(place)
        finally:
            let_go(parent)


def flush_directory(directory: int) -> None:
    """fsync(2) of a directory, where the file system has that."""
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in NO_FLUSH:
            raise


def files_below(path: str, guard: Guard, look: Callable[[str, os.DirEntry[str]], T | None]) -> Iterator[T]:
    """What ``look(directory, entry)`` answers for the files of a data directory and its shards, None left out.

    ``look`` runs under the guard, as does everything else that touches the file system.
    """
    pending = [(path, 0)]
    while pending:
        where, depth = pending.pop()
        scan = bounded(guard, functools.partial(os.scandir, where), where, late=lambda entries: entries.close())
        listing = Held(guard, scan, lambda entries: entries.close(), where)
        try:
            more = True
            while more:
                call = functools.partial(_batch, where=where, look=look, timeout=guard.timeout or None)
                found, inner, more = listing.call(call)
                if depth < DEEPEST_SHARD:
                    pending += [(directory, depth + 1) for directory in inner]
                yield from found
        finally:
            listing.close()


def _batch(
    entries: Iterator[os.DirEntry[str]],
    where: str,
    look: Callable[[str, os.DirEntry[str]], T | None],
    timeout: float | None,
) -> tuple[list[T], list[str], bool]:
    """What is found in the next entries, the shards among them, and whether there are more entries."""
    found, inner = [], []
    # Slow is not hung: a batch ends long before the time limit of the call.
    end = None if timeout is None else time.monotonic() + timeout / 4
    for number, entry in enumerate(entries, 1):
        if entry.is_file(follow_symlinks=False):
            with contextlib.suppress(FileNotFoundError):
                answer = look(where, entry)
                if answer is not None:
                    found.append(answer)
        elif SHARD.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            inner.append(entry.path)
        if number == BATCH or (end is not None and time.monotonic() > end):
            return found, inner, True
    return found, inner, False

# SPDX-License-Identifier: Apache-2.0
"""The directory of the image cache, which all processes of a host share: complete files, and those being filled.

Whatever is told of the cache, this is what holds: a file in ``entries`` has all bytes of an image and was proven to.
It got there by a rename from ``incomplete``, where a file is locked by the process that fills it (flock(2), which ends
with the process) and grows at its end only, its last bytes being written when the digest of all is right. When a file
was used is its time of access, so the least recently used ones are known whatever becomes of the database.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import struct
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

LOG = logging.getLogger(__name__)

#: Seconds without a new byte after which nobody begins to read what another fills: it may be frozen.
SILENT = 60.0
#: Seconds that a request waits for others that look for room at the moment; then it does without the cache.
LOCK_TIMEOUT = 2.0
_POLL = 0.005
# Other programs' files are none of ours.
_ENTRY = re.compile(r"([^.]{1,36})\.([0-9a-f]{32})")
_PARTIAL = re.compile(r"(([^.]{1,36})\.[0-9a-f]{32})\.(\d{1,19})\.[0-9a-f]{32}")
# struct flock of fcntl(2): the kind of lock, where it begins and how long it is, and a process, here none.
_FLOCK = struct.Struct("hhqqi4x")
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW


class Entry(NamedTuple):
    """A complete file; ``name`` is the image's id and what tells its data from other data. Times are POSIX seconds."""

    path: Path
    name: str
    image_id: str
    size: int
    used: float
    made: float


class Unfinished(NamedTuple):
    """A file in ``incomplete``; ``size`` is what it will have, ``present`` what it has."""

    path: Path
    name: str
    image_id: str
    size: int
    present: int


class Begun(NamedTuple):
    """An open file of an image that is being filled: by the caller, or (``mine`` False) by another or already full."""

    file: int
    path: Path
    name: str
    mine: bool

    @property
    def image_id(self) -> str:
        """The image whose data it is."""
        return self.name.partition(".")[0]


class Pruned(NamedTuple):
    """How much was removed to make room."""

    files: int
    bytes: int


class Directory:
    """The files of one cache, within ``limit`` bytes together. Methods raise OSError where the directory is no use."""

    def __init__(self, path: str, limit: int) -> None:
        root = Path(path)
        self.root, self.entries_path, self._incomplete = root, root / "entries", root / "incomplete"
        self.limit = limit

    # -- the directory itself -------------------------------------------------------------------------------------

    def node(self) -> str:
        """What tells this cache from those of other hosts, kept in the directory."""
        file = self.root / "id"
        with contextlib.suppress(FileNotFoundError, UnicodeDecodeError, ValueError):
            return str(uuid.UUID(file.read_text(encoding="ascii").strip()))
        with self._locked():
            # Another process may have been faster.
            with contextlib.suppress(FileNotFoundError, UnicodeDecodeError, ValueError):
                return str(uuid.UUID(file.read_text(encoding="ascii").strip()))
            made, new = str(uuid.uuid4()), file.with_name("id.new")
            new.write_text(f"{made}\n", encoding="ascii")
            new.replace(file)
            return made

    @contextlib.contextmanager
    def turn(self) -> Iterator[bool]:
        """Whether this process is the one of the host that looks after the directory now; it is to the end."""
        self._make()
        file = os.open(self.root / ".turn", os.O_CREAT | os.O_RDWR | _FLAGS, 0o600)
        try:
            yield _lock(file, fcntl.LOCK_EX)
        finally:
            os.close(file)

    def _make(self) -> None:
        for path in (self.entries_path, self._incomplete):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else begins files or takes them for left behind; raises TimeoutError."""
        self._make()
        file = os.open(self.root / ".lock", os.O_CREAT | os.O_RDWR | _FLAGS, 0o600)
        try:
            deadline = time.monotonic() + LOCK_TIMEOUT
            while not _lock(file, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise TimeoutError(0, "another process holds the lock of the cache")
                time.sleep(_POLL)
            yield
        finally:
            os.close(file)

    # -- complete files -------------------------------------------------------------------------------------------

    def path_of(self, name: str) -> Path:
        """Where the complete file of this name is, if there is one."""
        return self.entries_path / name

    def entries(self) -> list[Entry]:
        """All complete files, in no order."""
        found = []
        for path, status in _files(self.entries_path):
            match = _ENTRY.fullmatch(path.name)
            if match:
                entry = Entry(path, path.name, match[1], status.st_size, status.st_atime, status.st_mtime)
                found.append(entry)
        return found

    def use(self, path: Path) -> None:
        """Note that a complete file is used now. Never raises: it may have made room for another."""
        with contextlib.suppress(OSError):
            status = os.stat(path)
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))

    # -- files being filled ---------------------------------------------------------------------------------------

    def begin(self, name: str, size: int) -> Begun | None:
        """Begin a file of ``size`` bytes, or open the one that another fills or has filled.

        None: there is no room, or what another fills does not grow.
        """
        with self._locked():
            try:
                found = self._joined(name)
            except TimeoutError:
                return None
            return found or (self._begun(name, size) if self._make_room(size) else None)

    def join(self, name: str) -> Begun | None:
        """Open a file that another fills or has filled; None: there is none, or it does not grow."""
        with self._locked(), contextlib.suppress(TimeoutError):
            return self._joined(name)
        return None

    def _joined(self, name: str) -> Begun | None:
        """Raises TimeoutError for a file that does not grow."""
        # In this order: a file goes from the second place to the first.
        for unfinished in self.unfinished():
            if unfinished.name != name or (file := _open(unfinished.path)) is None:
                continue
            if not is_alive(file):
                os.close(file)
                _unlink(unfinished.path)
            elif time.time() - os.fstat(file).st_mtime < SILENT:
                return Begun(file, unfinished.path, name, mine=False)
            else:
                os.close(file)
                raise TimeoutError
        file = _open(self.path_of(name))
        return None if file is None else Begun(file, self.path_of(name), name, mine=False)

    def _begun(self, name: str, size: int) -> Begun:
        path = self._incomplete / f"{name}.{size}.{uuid.uuid4().hex}"
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | _FLAGS, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            _unlink(path)
            os.close(file)
            raise
        return Begun(file, path, name, mine=True)

    def open_full(self, name: str) -> int | None:
        """The file of this name that has all its bytes, complete or about to be; None if there is none."""
        for unfinished in self.unfinished():
            if unfinished.name == name and (file := _open(unfinished.path)) is not None:
                if os.fstat(file).st_size == unfinished.size:
                    return file
                os.close(file)
        return _open(self.path_of(name))

    def settle(self, seconds: float) -> None:
        """Wait for files that have all their bytes to be complete: they are on their way to the disk."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(_is_on_its_way(each) for each in self.unfinished()):
            time.sleep(_POLL)

    def open_to_read(self, begun: Begun) -> int:
        """Another descriptor of the file that was begun, which is not what it is locked by."""
        # Not by its path: it may have been removed since.
        return os.open(f"/proc/self/fd/{begun.file}", os.O_RDONLY | os.O_CLOEXEC)

    def publish(self, begun: Begun) -> Path:
        """Make a full file complete, so that it outlives a loss of power; raises OSError where it was removed."""
        os.fdatasync(begun.file)
        # It may have taken hours, and has just been used.
        os.utime(begun.file)
        target = self.path_of(begun.name)
        os.rename(begun.path, target)
        return target

    def drop(self, begun: Begun) -> None:
        """Remove what was begun; never raises."""
        _unlink(begun.path)

    def unfinished(self) -> list[Unfinished]:
        """All files being filled, and those whose processes died over it."""
        found = []
        for path, status in _files(self._incomplete):
            match = _PARTIAL.fullmatch(path.name)
            if match:
                found.append(Unfinished(path, match[1], match[2], int(match[3]), status.st_size))
        return found

    # -- room -----------------------------------------------------------------------------------------------------

    def prune(self) -> Pruned:
        """Remove complete files until all are within the limit, the least recently used ones first."""
        with self._locked():
            entries, unfinished = self._contents()
            coming = sum(each.size for each in unfinished)
            over = sum(each.size for each in entries) + coming - self.limit
            return _removed(_oldest(entries, over))

    def remove(self, *image_ids: str) -> Pruned:
        """Remove all that is there of these images; what is being filled or read goes on without a name."""
        # In this order: a file goes from the first place to the second.
        for unfinished in self.unfinished():
            if unfinished.image_id in image_ids:
                _unlink(unfinished.path)
        return _removed(entry for entry in self.entries() if entry.image_id in image_ids)

    def discard(self, entry: Entry) -> None:
        """Remove one complete file; never raises."""
        _unlink(entry.path)

    def clear(self) -> Pruned:
        """Remove all complete files."""
        return _removed(self.entries())

    def tidy(self, stall: float) -> int:
        """Remove files that dead processes left, and those to which nothing was added for ``stall`` seconds."""
        removed, now = 0, time.time()
        with self._locked():
            for unfinished in self.unfinished():
                file = _open(unfinished.path)
                if file is None:
                    continue
                try:
                    if not is_alive(file) or now - os.fstat(file).st_mtime > stall:
                        _unlink(unfinished.path)
                        removed += 1
                finally:
                    os.close(file)
        return removed

    def _contents(self) -> tuple[list[Entry], list[Unfinished]]:
        """The complete files, those first that were used least recently, and those being filled."""
        # In this order: a file goes from the first place to the second, and is then in both.
        unfinished = self.unfinished()
        entries = sorted(self.entries(), key=lambda entry: entry.used)
        complete = {entry.name for entry in entries}
        return entries, [each for each in unfinished if each.name not in complete]

    def _make_room(self, size: int) -> bool:
        """Within the limit and on the disk; nothing is removed for what would not fit in any case."""
        entries, others = self._contents()
        held, coming = sum(each.size for each in entries), sum(each.size for each in others)
        disk, missing = os.statvfs(self.entries_path), sum(each.size - each.present for each in others)
        over = max(held + coming + size - self.limit, missing + size - disk.f_bavail * disk.f_frsize)
        if over > held:
            return False
        _removed(_oldest(entries, over))
        return True


def _oldest(entries: list[Entry], over: int) -> Iterator[Entry]:
    """The first of ``entries`` that have ``over`` bytes together."""
    for entry in entries:
        if over <= 0:
            return
        over -= entry.size
        yield entry


def _removed(entries: Iterable[Entry]) -> Pruned:
    files = size = 0
    for entry in entries:
        if _unlink(entry.path):
            files, size = files + 1, size + entry.size
    return Pruned(files, size)


def _unlink(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        LOG.warning("a file of the image cache cannot be removed: %s", error.strerror)
        return False
    return True


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | _FLAGS)
    except FileNotFoundError:
        return None


def _files(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """What is in a directory and still is when it is looked at; nothing where there is no directory."""
    try:
        found = list(os.scandir(directory))
    except FileNotFoundError:
        return
    for each in found:
        try:
            yield Path(each.path), each.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue


def is_alive(file: int) -> bool:
    """Whether the process that fills an open file is still at it."""
    if not _lock(file, fcntl.LOCK_SH):
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _is_on_its_way(unfinished: Unfinished) -> bool:
    """Whether all bytes are there and a living process makes the file complete."""
    if unfinished.present != unfinished.size or (file := _open(unfinished.path)) is None:
        return False
    try:
        return is_alive(file)
    finally:
        os.close(file)


def announce_reader(file: int) -> None:
    """Tell the process that fills an open file that it is read, until that is closed; never raises."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))


def has_readers(file: int) -> bool:
    """Whether any process announced to read the file; True where that is not known."""
    try:
        found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError:
        return True
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


def _lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

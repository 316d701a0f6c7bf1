# SPDX-License-Identifier: Apache-2.0
"""DataDirs: the data directories of a store, what is where in them, and how files are found, opened and listed.

Every path is opened component by component, never through a symbolic link below the data directory. How a file gets
its name, or loses it, is publication.py.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import stat
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from storelib.drivers.filesystem.errors import DENIED, NO_FLUSH, NO_STATVFS, refusal, storelib_error
from storelib.drivers.filesystem.location import (
    ASIDE,
    DEEPEST_SHARD,
    SHARD,
    FileLocation,
    image_location,
    is_image,
    parse_own,
    shards,
)
from storelib.drivers.filesystem.options import DEFAULT_DATADIR, WriteSettings, misconfigured
from storelib.exceptions import BadStoreUri, Duplicate, Forbidden, NotFound, RemoteServiceUnavailable, StorageFull
from storelib.system_calls import ONLY_READ, has_reflinks, let_go, released, unmounted
from storelib.transfer.contract import Options
from storelib.transfer.guard import Guard, Held, bounded
from storelib.transfer.places import everywhere
from storelib.transfer.retry import HungCalls

T = TypeVar("T")

#: Called with the path of a directory and an entry in it.
Look = Callable[[str, "os.DirEntry[str]"], T | None]

#: Bytes free where the file system does not tell: the write itself will.
UNKNOWN_ROOM = 1 << 62
_DIRECTORY = ONLY_READ | os.O_DIRECTORY
#: Entries looked at in one call, so that a directory of a million images neither fills memory nor hangs for ever.
BATCH = 1000
#: Another process may remove the directory, which is empty, before there is a file in it.
_ASIDE_TRIES = 4


@dataclass(frozen=True)
class DataDir:
    """A data directory; those with a higher priority are filled first."""

    path: str
    priority: int = 0

    def room(self) -> tuple[int, int] | None:
        """Free and total bytes, as an unprivileged writer sees them; None where the file system does not tell."""
        try:
            try:
                status = os.statvfs(self.path)
            except FileNotFoundError:
                status = os.statvfs(existing_part(self.path))
        except OSError as error:
            if error.errno in NO_STATVFS:
                return None
            raise
        if not status.f_blocks:
            return None
        unit = status.f_frsize or status.f_bsize
        return status.f_bavail * unit, status.f_blocks * unit


class DataDirs:
    """The data directories as configured; raises BadStoreConfiguration for options that cannot be.

    Safe to use from many threads. Making one touches no file. ``not_exclusive`` is called once the file system turns
    out to have no means to let only one of several racing adds succeed.
    """

    def __init__(self, conf: Options, store_name: str, not_exclusive: Callable[[], None]) -> None:
        self.store_name = store_name
        self.not_exclusive = not_exclusive
        #: The option that names the directories.
        self.option = "filesystem_store_datadirs" if conf.filesystem_store_datadirs else "filesystem_store_datadir"
        #: Highest priority first.
        self.all = self._configured(conf)
        #: Bounds every call into the file systems.
        self.guard = Guard(conf.filesystem_store_timeout, HungCalls(store_name, conf.filesystem_store_thread_pool_size))
        self.settings = WriteSettings.of(conf)
        #: The objects of the metadata file.
        self.metadata: Sequence[Mapping[str, Any]] = ()
        #: Those that were missing at the start: the first image makes them, a mere look does not.
        self.missing: set[str] = set()
        #: Subdirectories whose entry in their parent is on stable storage.
        self.flushed: set[tuple[str, ...]] = set()
        #: Data directories where unnamed files can be made but never get a name.
        self.named_only: set[str] = set()
        #: Data directories where files of our own had to be made beside the images.
        self.beside: set[str] = set()

    def _configured(self, conf: Options) -> list[DataDir]:
        several = conf.filesystem_store_datadirs
        if several and conf.filesystem_store_datadir != DEFAULT_DATADIR:
            what = "set either this or filesystem_store_datadirs, also where one is inherited from [storelib]"
            raise misconfigured(self.store_name, "filesystem_store_datadir", what, conf.filesystem_store_datadir)
        if several:
            found = [self._parsed(entry, *entry.rpartition(":")) for entry in several]
        else:
            found = [self._parsed(conf.filesystem_store_datadir)]
        return sorted(found, key=lambda datadir: -datadir.priority)

    def _parsed(self, entry: str, path: str = "", colon: str = "", priority: str = "") -> DataDir:
        if not colon:
            path, priority = entry, "0"
        if not path.strip() or "\0" in path:
            raise misconfigured(self.store_name, self.option, "a directory is needed", entry)
        try:
            return DataDir(_absolute(os.path.expanduser(path.strip())), int(priority))
        except ValueError:
            what = "the priority after ':' is a whole number"
            raise misconfigured(self.store_name, self.option, what, entry) from None

    def each(self, function: Callable[[str], T]) -> list[T]:
        """What ``function(path)`` returns for each of them, called under the guard."""
        return [self.guard.call(functools.partial(function, each.path), each.path) for each in self.all]

    # -- Making them ------------------------------------------------------------------------------------------

    def check_writable(self, path: str) -> None:
        """Raise BadStoreConfiguration unless this directory can be written to or made; note whether it is missing."""
        there = existing_part(path)
        if not os.path.isdir(there):
            raise misconfigured(self.store_name, self.option, f"{there} is no directory", path)
        if not os.access(there, os.W_OK | os.X_OK):
            made = "" if there == path else f"cannot be made: Permission denied in {there}; "
            raise misconfigured(self.store_name, self.option, f"{made}this process may not write there", path)
        if there != path:
            self.missing.add(path)

    def make(self, path: str, *, flush: bool) -> None:
        """Make a data directory that was missing at the start; one that went away since is an error instead.

        None is made in place of a file system that is not mounted.
        """
        if path in self.missing and unmounted(path) is None:
            make_datadir(path, flush=flush)
            self.missing.discard(path)

    def check_mounted(self, path: str) -> None:
        """Raise RemoteServiceUnavailable where the file system of a data directory is not mounted.

        What is there instead has none of the images, and what was written to it would be out of sight later.
        """
        place = unmounted(path)
        if place is not None:
            raise RemoteServiceUnavailable(
                f"store {self.store_name}: {place}, where {path} is, is not mounted", transient=False
            )

    def copy_in_kernel(self) -> bool:
        """Blocks can be shared, or writes go through the page cache anyway, where the kernel copies best."""
        return not self.settings.direct or all(self.each(lambda path: has_reflinks(existing_part(path))))

    def choose(self, size: int | None) -> DataDir:
        """The directory for a new image of ``size`` bytes, None if unknown; raises StorageFull."""
        mounted = [datadir for datadir in self.all if unmounted(datadir.path) is None]
        if not mounted:
            mounted = self.all[:1]
            # It may be by now.
            self.check_mounted(mounted[0].path)
        rooms = {datadir: datadir.room() for datadir in mounted}
        free = {datadir: UNKNOWN_ROOM if room is None else room[0] for datadir, room in rooms.items()}
        # A thinly provisioned image may need far less than its size.
        needed = 1 if size is None or self.settings.sparse else size
        fitting = [datadir for datadir in mounted if free[datadir] >= needed]
        if not fitting:
            most = max(free.values())
            raise StorageFull(f"store {self.store_name} has no room for {needed} bytes; at most {most} are free")
        return max(fitting, key=lambda datadir: (datadir.priority, free[datadir]))

    # -- Where images are -------------------------------------------------------------------------------------

    def candidate_locations(self, image_id: str) -> list[FileLocation]:
        """In any data directory, as deep as images ever are; a part file is no image."""
        if not is_image(image_id):
            return []
        below = shards(image_id, DEEPEST_SHARD)
        depths = range(DEEPEST_SHARD + 1)
        return [image_location(each.path, below[:depth], image_id) for each in self.all for depth in depths]

    def check_id_is_free(self, image_id: str) -> None:
        """Raise Duplicate if there is an image with this id in any of them."""
        for location in self.candidate_locations(image_id):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if not stat.S_ISDIR(os.lstat(location.path).st_mode):
                    raise Duplicate(f"image {image_id!r} exists in store {self.store_name} at {location}")

    def metadata_for(self, path: str) -> dict[str, Any]:
        """The entry of the metadata file whose mountpoint ``path`` lies under."""
        for entry in self.metadata:
            if path.startswith(_absolute(entry["mountpoint"]).rstrip("/") + "/"):
                return copy.deepcopy(dict(entry))
        return {}

    def split(self, location: FileLocation) -> tuple[str, list[str]] | None:
        """The data directory a path lies in and the components below it; None if it lies in none."""
        inside = [each.path for each in self.all if location.path.startswith(each.path.rstrip("/") + "/")]
        if not inside:
            return None
        datadir = max(inside, key=len)
        return datadir, location.path[len(datadir.rstrip("/")) + 1 :].split("/")

    def depth_of(self, location: FileLocation) -> tuple[str, int | None]:
        """The data directory an image lies in, and its level below it; None where this store would put no image."""
        split = self.split(location)
        assert split is not None  # noqa: S101  (the caller has opened it)
        datadir, (*below, name) = split
        usual = len(below) <= DEEPEST_SHARD and below == shards(name, len(below))
        return datadir, len(below) if usual else None

    # -- Finding and opening ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def directory_of(self, location: FileLocation) -> Iterator[tuple[int, str]]:
        """The open directory of an image and the name in it; errors of what is done there are about the image."""
        split = self.split(location)
        if split is None or parse_own(split[1][-1]) is not None:
            raise BadStoreUri(f"{location} is not an image of store {self.store_name}")
        datadir, (*below, name) = split
        try:
            directory = open_directory(datadir, below)
            try:
                yield directory, name
            finally:
                let_go(directory)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                self.check_mounted(datadir)
            if isinstance(error, FileNotFoundError) and datadir not in self.missing and not os.path.isdir(datadir):
                # The image may well be there again when the directory is: with its file system, most likely.
                # Others that this store has may be.
                raise RemoteServiceUnavailable(
                    f"store {self.store_name}: {datadir} is not there; is its file system mounted?", transient=False
                ) from error
            refused = refusal(error, location)
            if refused is None:
                raise
            raise refused from error

    def open(self, location: FileLocation) -> tuple[int, os.stat_result]:
        """An image's open file, which the caller closes, and its status."""
        with self.directory_of(location) as (directory, name):
            file = os.open(name, ONLY_READ, dir_fd=directory)
            try:
                status = os.fstat(file)
                only_files(status, location)
            except BaseException:
                let_go(file)
                raise
            return file, status

    def files(self, look: Look[T]) -> Iterator[T]:
        """What ``look(directory, entry)`` returns for every file of every data directory and its shards, None left out.

        One that cannot be listed keeps none of the others, and is an error in the end. ``look`` runs under the guard,
        as does everything else that touches the file system.
        """
        return everywhere(functools.partial(self.files_below, datadir.path, look) for datadir in self.all)

    def files_below(self, path: str, look: Look[T]) -> Generator[T, None, None]:
        """The same for one data directory."""
        pending = [(path, 0)]
        with self._readable(path):
            while pending:
                where, depth = pending.pop()
                inner: list[str] = []
                yield from self._files_in(where, look, inner)
                if depth < DEEPEST_SHARD:
                    pending += [(directory, depth + 1) for directory in inner]

    def files_aside(self, path: str, look: Look[T]) -> Generator[T, None, None]:
        """The same for what lies aside in one data directory."""
        with self._readable(path):
            try:
                yield from self._files_in(os.path.join(path, ASIDE), look, [])
            except NotADirectoryError:
                self.beside.add(path)
            except FileNotFoundError:
                # Nothing is under way; unless the whole data directory is not there.
                self.guard.call(functools.partial(os.stat, path), path)

    @contextlib.contextmanager
    def _readable(self, path: str) -> Iterator[None]:
        """Explains what keeps one data directory from being listed; one that was missing from the start is empty."""
        # Looked at before: an add may make it while this finds that it is not there.
        is_missing = path in self.missing
        self.guard.call(functools.partial(self.check_mounted, path), path)
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) and is_missing and error.filename == path:
                return
            if error.errno in DENIED:
                raise Forbidden(
                    f"{error.filename or path} cannot be listed: {error.strerror}; this process must be allowed to "
                    f"read what option {self.option} names"
                ) from error
            raise storelib_error(error, f"store {self.store_name}: {path}") or error

    def _files_in(self, where: str, look: Look[T], inner: list[str]) -> Generator[T, None, None]:
        """The same for one directory; the shards in it are added to ``inner``."""
        more = True
        with contextlib.closing(self._scan(where)) as listing:
            while more:
                call = functools.partial(_batch, where=where, look=look, timeout=self.guard.timeout or None)
                found, shards_found, more = listing.call(call)
                inner += shards_found
                yield from found

    def _scan(self, path: str) -> Held[Any]:
        scan = bounded(self.guard, functools.partial(os.scandir, path), path, late=lambda entries: entries.close())
        return Held(self.guard, scan, lambda entries: entries.close(), path)


def _batch(
    entries: Iterator[os.DirEntry[str]], where: str, look: Look[T], timeout: float | None
) -> tuple[list[T], list[str], bool]:
    """What is found in the next entries, the shards among them, and whether there are more entries."""
    found, inner = [], []
    # Slow is not hung: a batch ends long before the time limit of the call.
    end = None if timeout is None else time.monotonic() + timeout / 4
    for number, entry in enumerate(entries, 1):
        if entry.is_file(follow_symlinks=False):
            with contextlib.suppress(FileNotFoundError):
                seen = look(where, entry)
                if seen is not None:
                    found.append(seen)
        elif SHARD.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            inner.append(entry.path)
        if number == BATCH or (end is not None and time.monotonic() > end):
            return found, inner, True
    return found, inner, False


def _absolute(path: str) -> str:
    """With one slash at its beginning, as URIs have it; POSIX leaves open what two mean, so abspath() keeps them."""
    return "/" + os.path.abspath(path).lstrip("/")


def only_files(status: os.stat_result, location: FileLocation) -> None:
    """Raise NotFound for a directory, Forbidden for anything else that is no file."""
    if stat.S_ISDIR(status.st_mode):
        raise NotFound(f"no image at {location}, which is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise Forbidden(f"{location} is not a regular file")


# -- Directories ----------------------------------------------------------------------------------------------------


def existing_part(path: str) -> str:
    """The longest part of ``path`` that is there: itself, or the directory in which the rest can be made."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def open_directory(path: str, below: Sequence[str] = ()) -> int:
    """A descriptor of a directory below ``path``, which itself may be a symbolic link; the rest may not."""
    if not below:
        return os.open(path, _DIRECTORY & ~os.O_NOFOLLOW)
    with released(open_directory(path, below[:-1])) as parent:
        return os.open(below[-1], _DIRECTORY, dir_fd=parent)


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
    with released(open_directory(parent)) as above:
        try:
            flush_directory(above)
        except OSError:
            # The next one that needs it makes and flushes it again.
            with contextlib.suppress(OSError):
                os.rmdir(path)
            raise


def make_directory(path: str, below: Sequence[str], flushed: set[tuple[str, ...]] | None) -> int:
    """Like open_directory, but makes what is missing below ``path``.

    ``flushed`` are the directories whose entry in their parent is known to be on stable storage; this adds to it, and
    what failed to be flushed, here or in another process, is flushed by the next one that needs it. None: no flushing.
    """
    if not below:
        return open_directory(path)
    place = (path, *below)
    with released(make_directory(path, below[:-1], flushed)) as parent:
        if flushed is not None and place in flushed:
            # Another process may have removed a directory that was empty.
            with contextlib.suppress(FileNotFoundError):
                return os.open(below[-1], _DIRECTORY, dir_fd=parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(below[-1], dir_fd=parent)
        if flushed is not None:
            flush_directory(parent)
            flushed.add(place)
        return os.open(below[-1], _DIRECTORY, dir_fd=parent)


def flush_directory(directory: int) -> None:
    """fsync(2) of a directory, where the file system has that."""
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in NO_FLUSH:
            raise


# -- What lies aside --------------------------------------------------------------------------------------------------
#
# Part files, and images on their way out, lie in a directory of their own in each data directory. So the gc of one id
# looks at what is under way, however many images there are. The directory is made when it is needed and goes when it is
# empty. Where it cannot be used such files lie beside the images, and only a gc of all finds them.


def open_aside(datadirs: DataDirs, datadir: str, directory: int) -> int:
    """A new descriptor of the directory for files that ``directory``, one below ``datadir``, is to have or had."""
    with contextlib.suppress(OSError):
        found = _opened_aside(datadir)
        try:
            # Files are linked and renamed between the two.
            if os.fstat(found).st_dev == os.fstat(directory).st_dev and _is_writable(found):
                return found
        except BaseException:
            let_go(found)
            raise
        let_go(found)
    datadirs.beside.add(datadir)
    return os.dup(directory)


def is_gone(aside: int) -> bool:
    """Whether another process has removed the directory, so that nothing can be made in it."""
    return os.fstat(aside).st_nlink == 0


def remove_aside(datadir: str) -> None:
    """Remove the directory if nothing is in it."""
    with contextlib.suppress(OSError):
        os.rmdir(os.path.join(datadir, ASIDE))


@contextlib.contextmanager
def aside_of(datadirs: DataDirs, datadir: str, directory: int) -> Iterator[int]:
    """``open_aside`` for the time of a ``with``."""
    aside = open_aside(datadirs, datadir, directory)
    try:
        yield aside
    finally:
        let_go(aside)
        remove_aside(datadir)


def _opened_aside(datadir: str) -> int:
    for _ in range(_ASIDE_TRIES):
        made = False
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.join(datadir, ASIDE))
            made = True
        with contextlib.suppress(FileNotFoundError):
            aside = open_directory(datadir, [ASIDE])
            if made:
                # Who may write to the data directory may write here.
                with contextlib.suppress(OSError):
                    os.fchmod(aside, stat.S_IMODE(os.stat(datadir).st_mode))
            return aside
    raise FileNotFoundError(ASIDE)


def _is_writable(directory: int) -> bool:
    effective = os.access in os.supports_effective_ids
    return os.access(".", os.W_OK | os.X_OK, dir_fd=directory, effective_ids=effective) or is_gone(directory)

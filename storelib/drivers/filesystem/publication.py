# SPDX-License-Identifier: Apache-2.0
"""Publication: how a finished file gets its name without overwriting, and loses it without hitting a newer image.

A finished part file is published by the first of these that the file system has: link(2); renameat2(2) with
RENAME_NOREPLACE; a claim, which is a file beside it made with O_EXCL and held while the part file is renamed. Nothing
unfinished ever stands under an image's name, whichever it is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from typing import Literal, NamedTuple

from storelib import system_calls
from storelib.driver import Committed, Extent
from storelib.drivers.filesystem import errors
from storelib.drivers.filesystem.datadirs import (
    DataDirs,
    aside_of,
    flush_directory,
    is_gone,
    make_directory,
    open_aside,
    open_directory,
    remove_aside,
)
from storelib.drivers.filesystem.location import id_token, image_location, new_token, own_names, shards
from storelib.drivers.filesystem.options import WriteSettings
from storelib.exceptions import Duplicate, Invalid, RemoteServiceUnavailable, StorageFull, StoreError
from storelib.system_calls import ONLY_READ, let_go, released
from storelib.transfer.source import file_extents

LOG = logging.getLogger(__name__)

#: How often a part file is tried whose directory others remove at the same time, which is empty before.
_TRIES = 8
_MADE_ANEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Identity(NamedTuple):
    """What tells two images of one name apart. Not the inode number, which some network file systems change."""

    size: int
    modified: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """What tells the file with this status apart."""
        return cls(status.st_size, status.st_mtime_ns)

    @classmethod
    def at(cls, directory: int, name: str) -> Identity:
        """What tells the file of this name apart; raises FileNotFoundError where there is none."""
        return cls.of(os.stat(name, dir_fd=directory, follow_symlinks=False))

    @property
    def token(self) -> str:
        """The same in 8 hexadecimal digits, for the name of a file."""
        return hashlib.sha256(f"{self.size} {self.modified}".encode()).hexdigest()[:8]


class Replaced(Exception):
    """What has the name is not the image that was met under it; it was left."""


class Publication:
    """The file of one add, from its making to its name; until then it has none, or that of a part file.

    ``publish`` and ``retract`` may be called again after a transient error: what was done is found out first.
    """

    def __init__(self, datadirs: DataDirs, datadir: str, image_id: str, settings: WriteSettings) -> None:
        #: -1 before ``create``.
        self.file = self.directory = -1
        #: The directory of a part file, -1 where there is none.
        self._aside = -1
        #: The name of a part file, None for an unnamed file.
        self.part: str | None = None
        #: The image may be visible.
        self.tried = False
        self._below = shards(image_id, settings.shard_levels)
        self.location = image_location(datadir, self._below, image_id)
        self._datadirs = datadirs
        self._datadir = datadir
        self._image_id = image_id
        self._settings = settings
        #: What tells the finished file from others.
        self._met = Identity(0, 0)
        self._published = False
        #: Names that a file has which was not made here.
        self._names = 0
        #: Why what was written cannot be believed any more.
        self._lost: StoreError | None = None

    def create(self) -> None:
        """Make the file if there is none yet, without a name if possible."""
        if self.file >= 0:
            return
        datadirs, settings = self._datadirs, self._settings
        datadirs.check_mounted(self._datadir)
        try:
            datadirs.make(self._datadir, flush=settings.fsync)
            self.directory = make_directory(self._datadir, self._below, datadirs.flushed if settings.fsync else None)
            if not self._open_unnamed():
                self._open_part()
            self._set_mode()
        except BaseException:
            # Tried again it begins anew, with a fresh handle of the directory.
            with contextlib.suppress(OSError):
                self._unlink_part()
            self.free()
            raise

    def adopt(self, file: int) -> bool:
        """Publish an open file that another has made, beside the names it has; returns whether that can be."""
        self.create()
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_dev != os.fstat(self.directory).st_dev:
            return False
        try:
            own = os.open(f"/proc/self/fd/{file}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        self._unlink_part()
        made, self.file, self._names = self.file, own, status.st_nlink
        let_go(made)
        self._set_mode()
        return True

    def publish(self, size: int) -> Committed:
        """Give the file, of ``size`` bytes, its name; raises Duplicate if the id is taken in any data directory."""
        if self._lost is not None:
            raise self._lost
        if not self._published:
            if not self.tried:
                self._finish(size)
            with one_at_a_time(self._datadirs, self._image_id):
                if not (self.tried and self._has_name()):
                    self._datadirs.check_id_is_free(self._image_id)
                    self._give_name()
            self._published = True
        try:
            self._unlink_part()
        except OSError as error:
            # A second name of an image that is there; gc removes it.
            LOG.warning("image %r: removing the name of its part file: %s", self._image_id, error)
        if self._settings.fsync:
            try:
                flush_directory(self.directory)
            except OSError as error:
                raise self._give_up(error) from error
        return Committed(self.location, self._datadirs.metadata_for(self.location.path))

    def retract(self) -> None:
        """Take the name away again if it is this file's, and that of a part file."""
        if self.file >= 0 and self.tried and (self._published or self._has_name()):
            with (
                contextlib.suppress(FileNotFoundError, Replaced),
                aside_of(self._datadirs, self._datadir, self.directory) as aside,
            ):
                take_away(self.directory, self._image_id, self._image_id, self._met, Aside(aside, len(self._below)))
            self._published = self.tried = False
        self._unlink_part()

    def free(self) -> None:
        """Close what is open, once: close(2) frees the number also when it fails."""
        descriptors = self.file, self.directory, self._aside
        self.file = self.directory = self._aside = -1
        for descriptor in descriptors:
            if descriptor >= 0:
                let_go(descriptor)

    __del__ = free

    # -- The file ---------------------------------------------------------------------------------------------

    def _open_unnamed(self) -> bool:
        """Make a file that the kernel frees by itself; returns whether there are such files here."""
        if not self._settings.unnamed or self._datadir in self._datadirs.named_only or not system_calls.has_proc():
            return False
        try:
            self.file = os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o666, dir_fd=self.directory)
        except OSError as error:
            if error.errno not in errors.NO_TMPFILE:
                raise
            return False
        return True

    def _open_part(self) -> None:
        """Make a file that is named, locked while its writer lives, and found by gc when it is dead."""
        for _ in range(_TRIES):
            aside = open_aside(self._datadirs, self._datadir, self.directory)
            try:
                self.part, self.file = open_part(aside, self._image_id)
            except BaseException as error:
                again = isinstance(error, FileNotFoundError) and is_gone(aside)
                let_go(aside)
                if not again:
                    raise
            else:
                self._aside = aside
                return
        raise RemoteServiceUnavailable(f"image {self._image_id!r}: a part file cannot be made; others keep removing it")

    def _set_mode(self) -> None:
        if self._settings.mode is not None:
            os.fchmod(self.file, self._settings.mode)

    def _finish(self, size: int) -> None:
        """Have all bytes where they belong; what fails here is never tried again (fsync(2): the pages are gone)."""
        os.ftruncate(self.file, size)
        twin = os.dup(self.file)
        try:
            try:
                if self._settings.fsync:
                    os.fsync(self.file)
            finally:
                # close(2) of any descriptor of the file tells what was held back: quotas and full disks of servers.
                os.close(twin)
        except OSError as error:
            raise self._give_up(error) from error
        self._met = Identity.of(os.fstat(self.file))

    def _give_up(self, error: OSError) -> StoreError:
        """The error, from now on, of this add."""
        kind = StorageFull if error.errno in system_calls.FULL else StoreError
        what = f"flushing it to stable storage failed, so nothing was stored: {error.strerror}"
        self._lost = kind(f"image {self._image_id!r}: {what}")
        return self._lost

    def _become_part(self) -> None:
        """Copy an unnamed file, which turned out to get no name here, into a part file; the next one is one at once."""
        unnamed, size = self.file, self._met.size
        self._open_part()
        self._datadirs.named_only.add(self._datadir)
        # Until it is whole, no further try may publish it.
        self._lost = StoreError(f"image {self._image_id!r}: it could not be copied into a file with a name")
        try:
            self._set_mode()
            system_calls.set_flag(unnamed, os.O_DIRECT, on=False)
            if not system_calls.reflink(unnamed, self.file):
                whole = [Extent(0, size, data=True)]
                for extent in file_extents(unnamed, 0, size) if self._settings.sparse else whole:
                    if extent.data:
                        system_calls.copy_by_reading(unnamed, self.file, extent.offset, extent.length)
        finally:
            let_go(unnamed)
        self._finish(size)
        self._lost = None

    def _unlink_part(self) -> None:
        """Remove the part file's own name."""
        if self.part is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.part, dir_fd=self._aside)
            self._forget_part()

    def _forget_part(self) -> None:
        """The part file has no name of its own any more."""
        self.part = None
        aside, self._aside = self._aside, -1
        let_go(aside)
        remove_aside(self._datadir)

    # -- Its name ---------------------------------------------------------------------------------------------

    def _give_name(self) -> None:
        """Name the file, in the way the file system has; nothing is ever overwritten."""
        self.tried = True
        if self.part is None:
            try:
                # Both directory arguments are needed for CPython to call linkat(2) with AT_SYMLINK_FOLLOW.
                self._link(f"/proc/self/fd/{self.file}", self.directory, follow=True)
            except OSError as error:
                if error.errno not in errors.NO_LINKS | {errno.ENOENT}:
                    raise
                self._become_part()
        if self.part is not None:
            self._name_part(self.part)

    def _name_part(self, part: str) -> None:
        try:
            try:
                self._link(part, self._aside)
            except OSError as error:
                if error.errno not in errors.NO_LINKS:
                    raise
                self._rename(part)
        except FileNotFoundError:
            raise StoreError(
                f"image {self._image_id!r}: what was written of it is gone, and nothing was stored; a gc removed it, "
                "which cannot see adds of others on a file system without locks: let gc look at older files only"
            ) from None

    def _link(self, own: str, where: int, follow: bool = False) -> None:
        """link(2) never overwrites. A response may be lost: what counts is how many names the file has."""
        try:
            os.link(own, self._image_id, src_dir_fd=where, dst_dir_fd=self.directory, follow_symlinks=follow)
        except OSError as error:
            if self._has_name():
                return
            if error.errno == errno.EEXIST:
                raise self._taken() from None
            raise

    def _rename(self, part: str) -> None:
        """Publish on a file system without hard links."""
        try:
            try:
                system_calls.rename_without_overwriting(self._aside, part, self.directory, self._image_id)
            except OSError as error:
                if error.errno not in errors.NO_RENAME or self._was_renamed(part):
                    raise
                self._rename_claimed(part)
        except OSError as error:
            if not self._was_renamed(part):
                if error.errno == errno.EEXIST:
                    raise self._taken() from None
                raise
        self._forget_part()

    def _rename_claimed(self, part: str) -> None:
        """Rename while no other add can publish this id, as far as the file system has means to see to it."""
        with contextlib.ExitStack() as claimed:
            try:
                claimed.enter_context(claim(self.directory, self._image_id))
            except OSError as error:
                if error.errno not in errors.NO_EXCLUSION:
                    raise
                self._datadirs.not_exclusive()
            _rename_if_free(self._aside, part, self.directory, self._image_id)

    def _taken(self) -> StoreError:
        """The error when something has the image's name."""
        subject, store = f"image {self._image_id!r}", f"store {self._datadirs.store_name}"
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(self._image_id, dir_fd=self.directory, follow_symlinks=False).st_mode):
                return Invalid(f"{subject}: {store} has a directory of that name")
        return Duplicate(f"{subject} exists in {store}")

    def _has_name(self) -> bool:
        """Whether the image's name is this very file, by its count of names: inode numbers may change."""
        named = self._named()
        if named is None or named.size != self._met.size:
            return False
        if self.part is None:
            return os.fstat(self.file).st_nlink > self._names
        # Opening revalidates what the client of a network file system remembers (never by the name it was to get).
        with contextlib.suppress(OSError):
            let_go(os.open(self.part, ONLY_READ, dir_fd=self._aside))
        return os.fstat(self.file).st_nlink > 1 or self._was_renamed(self.part)

    def _was_renamed(self, part: str) -> bool:
        """Whether the part file itself, which alone ever had that name, stands under the image's name now."""
        return not exists(self._aside, part) and self._named() == self._met

    def _named(self) -> Identity | None:
        """What has the image's name."""
        with contextlib.suppress(FileNotFoundError):
            return Identity.at(self.directory, self._image_id)
        return None


@contextlib.contextmanager
def one_at_a_time(datadirs: DataDirs, image_id: str) -> Iterator[None]:
    """With several data directories an id is only unique if checking and publishing are one step."""
    if len(datadirs.all) == 1:
        yield
        return
    path = min(datadir.path for datadir in datadirs.all)
    datadirs.make(path, flush=datadirs.settings.fsync)
    with (
        released(open_directory(path)) as first,
        contextlib.nullcontext() if lock(first) else claim(first, image_id),
    ):
        yield


# -- Part files and claims, and the locks that say that a writer lives -----------------------------------------------


def lock(file: int) -> bool:
    """Take the lock that says that a writer lives; returns whether the file system has locks."""
    return _flock(file, fcntl.LOCK_EX) is not None


def is_locked(file: int) -> bool | None:
    """Whether some writer lives; None where the file system cannot tell. If none does, others are kept out now."""
    # A shared lock, which NFS grants for descriptors that only read; writers take exclusive ones.
    taken = _flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return None if taken is None else not taken


def _flock(file: int, how: int) -> bool | None:
    """flock(2): whether it took the lock; None where the file system has none."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in errors.NO_LOCKS:
            return None
        raise
    return True


def exists(directory: int, name: str) -> bool:
    """Whether anything has this name."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno in errors.BAD_NAME:
            return False
        raise
    return True


@contextlib.contextmanager
def claim(directory: int, image_id: str) -> Iterator[None]:
    """Be the only one, on all hosts, who publishes this id; raises a transient error while another does."""
    busy = RemoteServiceUnavailable(
        f"image {image_id!r} is being published by another add, or by one that died; gc removes what that left"
    )
    name, file = _open_own(directory, "claim", id_token(image_id), image_id, _MADE_ANEW)
    if file < 0:
        raise busy
    with released(file):
        try:
            lock(file)
            token = new_token().encode()
            os.write(file, token)
            # Between its making and its lock a gc may have taken it, and another add may have made its own.
            held = _content(directory, name) == token
        except BaseException:
            _release(directory, name, file, image_id)
            raise
        if not held:
            raise busy
        try:
            yield
        finally:
            _release(directory, name, file, image_id)


def _release(directory: int, name: str, file: int, image_id: str) -> None:
    """Remove a claim; if the file system hung meanwhile, the name may be another add's."""
    try:
        # Moved aside, it is to gc what any dead add left.
        take_away(directory, name, image_id, Identity.of(os.fstat(file)), Aside(directory), kind="part")
    except (FileNotFoundError, Replaced):
        pass
    except OSError as error:
        LOG.warning("image %r: removing the claim on its id: %s; gc will", image_id, error)


def _content(directory: int, name: str) -> bytes:
    with contextlib.suppress(FileNotFoundError), released(os.open(name, ONLY_READ, dir_fd=directory)) as file:
        return os.read(file, 64)
    return b""


def open_part(directory: int, image_id: str) -> tuple[str, int]:
    """A new part file: its name and its descriptor, locked where the file system has locks."""
    for _ in range(8):
        try:
            name, file = _open_own(directory, "part", new_token(), image_id, _MADE_ANEW)
        except OSError as error:
            if error.errno not in errors.NO_EXCLUSION:
                raise
            # The token alone makes the name this writer's.
            name, file = _open_own(directory, "part", new_token(), image_id, _MADE_ANEW & ~os.O_EXCL)
        if file < 0:  # a response that was lost, and asked for again
            continue
        try:
            lock(file)
            # Until then a gc may have taken it for dead; no gc removes it from now on.
            if exists(directory, name):
                return name, file
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)
            let_go(file)
            raise
        let_go(file)
    raise RemoteServiceUnavailable(f"image {image_id!r}: a part file cannot be made; others remove it at once")


def _open_own(directory: int, kind: str, token: str, image_id: str, flags: int) -> tuple[str, int]:
    """Open a file of our own under the name that the file system takes; descriptor -1 where it exists."""
    refused: OSError | None = None
    for name in own_names(kind, token, image_id):
        try:
            return name, os.open(name, flags, 0o666, dir_fd=directory)
        except FileExistsError:
            return name, -1
        except OSError as error:
            if error.errno not in errors.BAD_NAME:
                raise
            refused = refused or error
    assert refused is not None  # noqa: S101  (there are two names)
    raise refused


# -- Taking a name away ---------------------------------------------------------------------------------------------


class Aside(NamedTuple):
    """Where what is taken away is moved first, and how many levels below the data directory it was."""

    directory: int
    depth: int = 0


def take_away(
    directory: int, name: str, image_id: str, met: Identity, aside: Aside, kind: Literal["gone", "part"] = "gone"
) -> None:
    """Remove the image that was met under ``name``; raises Replaced and leaves it where it is another by now.

    It is renamed to a name that is used once, looked at, and unlinked there. So a call that a file server carries out
    late, when a newer image has been published, moves that one for a moment, and it is put back: by this call, or
    by gc if this process dies in between and ``kind`` is "gone".
    """
    where = aside.directory
    gone = _move_aside(directory, name, image_id, met, aside, kind)
    if gone is None and where != directory and exists(directory, name):
        # Not there, so beside it.
        where = directory
        gone = _move_aside(directory, name, image_id, met, Aside(directory), kind)
    if gone is None:
        # The file system refuses to rename, or has no room for the name. Look and unlink is what is left.
        if Identity.at(directory, name) != met:
            raise Replaced(name)
        _unlink(directory, name)
        return
    try:
        if Identity.at(where, gone) != met:
            raise Replaced(name)
        _unlink(where, gone)
    except FileNotFoundError:
        pass  # a response that was lost, or gc was faster
    except BaseException:
        put_back(where, gone, directory, name)
        raise


def depth_of(token: str) -> int:
    """How many levels below the data directory an image was that has this token now that it is moved aside."""
    return int(token[0], 16)


def _unlink(directory: int, name: str) -> None:
    """unlink(2). A response may be lost: what counts is whether the name is still there."""
    try:
        os.unlink(name, dir_fd=directory)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or exists(directory, name):
            raise


def _move_aside(directory: int, name: str, image_id: str, met: Identity, aside: Aside, kind: str) -> str | None:
    where, depth = aside
    for gone in own_names(kind, f"{depth}{new_token()[:7]}{met.token}", image_id):
        try:
            os.rename(name, gone, src_dir_fd=directory, dst_dir_fd=where)
        except OSError as error:
            if exists(where, gone):
                return gone  # done, and the response lost
            if error.errno in errors.NOT_ASIDE:
                return None
            if error.errno not in errors.BAD_NAME or not exists(directory, name):
                raise
        else:
            return gone
    return None


def put_back(aside: int, gone: str, directory: int, name: str) -> None:
    """Give what was moved aside its name again, unless something else has it by now; what fails is logged."""
    try:
        try:
            os.link(gone, name, src_dir_fd=aside, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in errors.NO_LINKS:
                raise
            _rename_back(aside, gone, directory, name)
        else:
            os.unlink(gone, dir_fd=aside)
    except OSError as error:
        # Ctrl-C may have come when it was removed already.
        if not isinstance(error, FileNotFoundError) or exists(aside, gone):
            LOG.error("%r was moved aside to be removed and cannot be put back: %s; gc tries again", name, error)


def _rename_back(aside: int, gone: str, directory: int, name: str) -> None:
    try:
        system_calls.rename_without_overwriting(aside, gone, directory, name)
    except OSError as error:
        if error.errno not in errors.NO_RENAME:
            raise
        _rename_if_free(aside, gone, directory, name)


def _rename_if_free(where: int, old: str, directory: int, new: str) -> None:
    """rename(2) where the file system itself cannot keep it from overwriting; raises FileExistsError."""
    if exists(directory, new):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    os.rename(old, new, src_dir_fd=where, dst_dir_fd=directory)

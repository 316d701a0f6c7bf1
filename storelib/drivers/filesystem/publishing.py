# SPDX-License-Identifier: Apache-2.0
"""How a finished file gets its name without overwriting, and how a name is taken away without hitting a newer image.

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
from collections.abc import Iterator
from typing import NamedTuple

from storelib.drivers.filesystem.kernel import let_go, rename_without_overwriting
from storelib.drivers.filesystem.paths import id_token, new_token, own_names
from storelib.exceptions import Duplicate, RemoteServiceUnavailable, StoreError

LOG = logging.getLogger(__name__)

#: What link(2) answers where there are no hard links, or none for this kind of file.
NO_LINKS = {
    errno.EPERM,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EMLINK,
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOTTY,
}
#: What renameat2(2) answers to RENAME_NOREPLACE where that is not known (EPERM: sandboxes that do not know the call).
NO_RENAME = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM}
#: What flock(2) answers where there are no locks, or none across hosts (EBADF: NFS wants other open modes).
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF}
#: What rename(2) answers where a name cannot be moved aside, but perhaps removed (a full disk, too long a name).
NOT_ASIDE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
    errno.EPERM,
    errno.EACCES,
    errno.EROFS,
    errno.EBUSY,
    errno.ETXTBSY,
    errno.EXDEV,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
}
#: What open(2) answers where there is no O_EXCL.
NO_EXCLUSION = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
#: What open(2) and rename(2) answer to a name that the file system does not take (ENOENT: SMB).
BAD_NAME = {errno.EINVAL, errno.EILSEQ, errno.ENOENT}


class Identity(NamedTuple):
    """What tells two images of one name apart. Not the inode number, which some network file systems change."""

    size: int
    modified: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """That of a file."""
        return cls(status.st_size, status.st_mtime_ns)

    @property
    def token(self) -> str:
        """8 hexadecimal digits."""
        return hashlib.sha256(f"{self.size} {self.modified}".encode()).hexdigest()[:8]


class Replaced(Exception):
    """What has the name is not the image that was met under it; it was left."""


# -- Locks ----------------------------------------------------------------------------------------------------------


def lock(file: int) -> bool:
    """Take the lock that says that a writer lives; answers whether the file system has locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def is_locked(file: int) -> bool | None:
    """Whether some writer lives; None where the file system cannot tell. If none does, others are kept out now."""
    try:
        # A shared lock, which NFS grants for descriptors that only read; writers take exclusive ones.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise
    return False


def exists(directory: int, name: str) -> bool:
    """Whether anything has this name."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno in BAD_NAME:
            return False
        raise
    return True


# -- Publishing -----------------------------------------------------------------------------------------------------


def link_count(directory: int, part: str | None, file: int) -> int:
    """How many names an open file has, asked anew of a file server (open(2): never of the name it was to get)."""
    if part is not None:
        # Opening revalidates what the client of a network file system remembers.
        with contextlib.suppress(OSError):
            let_go(os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory))
    return os.fstat(file).st_nlink


def was_renamed(directory: int, part: str, name: str, met: Identity) -> bool:
    """Whether the part file itself, which alone ever had that name, stands under ``name`` now."""
    if exists(directory, part):
        return False
    try:
        return Identity.of(os.stat(name, dir_fd=directory, follow_symlinks=False)) == met
    except FileNotFoundError:
        return False


def rename_part(directory: int, part: str, name: str, met: Identity, image_id: str) -> bool:
    """Publish where there are no hard links; answers whether nobody else can have published that id meanwhile.

    Raises Duplicate, or FileNotFoundError when the part file is gone.
    """
    try:
        rename_without_overwriting(directory, part, name)
    except OSError as error:
        if was_renamed(directory, part, name, met):
            return True
        if error.errno == errno.EEXIST:
            raise Duplicate(f"image {image_id!r} exists") from None
        if error.errno not in NO_RENAME:
            raise
    else:
        return True
    with contextlib.ExitStack() as claimed:
        try:
            claimed.enter_context(claim(directory, image_id))
            alone = True
        except OSError as error:
            if error.errno not in NO_EXCLUSION:
                raise
            alone = False
        if exists(directory, name):
            raise Duplicate(f"image {image_id!r} exists")
        try:
            os.rename(part, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            if not was_renamed(directory, part, name, met):
                raise
    return alone


@contextlib.contextmanager
def claim(directory: int, image_id: str) -> Iterator[None]:
    """Be the only one, on all hosts, who publishes this id; raises a transient error while another does."""
    busy = RemoteServiceUnavailable(
        f"image {image_id!r} is being published by another add, or by one that died; gc removes what that left"
    )
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    name, file = _open_own(directory, "claim", id_token(image_id), image_id, flags)
    if file < 0:
        raise busy
    try:
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
    finally:
        let_go(file)


def _release(directory: int, name: str, file: int, image_id: str) -> None:
    """Remove a claim; if the file system hung meanwhile, the name may be another add's."""
    try:
        # Moved aside, it is to gc what any dead add left.
        take_away(directory, name, image_id, Identity.of(os.fstat(file)), kind="part")
    except (FileNotFoundError, Replaced):
        pass
    except OSError as error:
        LOG.warning("image %r: removing the claim on its id: %s; gc will", image_id, error)


def _content(directory: int, name: str) -> bytes:
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return b""
    try:
        return os.read(file, 64)
    finally:
        let_go(file)


def open_part(directory: int, image_id: str) -> tuple[str, int]:
    """A new part file: its name and its descriptor, locked where the file system has locks."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(8):
        try:
            name, file = _open_own(directory, "part", new_token(), image_id, flags)
        except OSError as error:
            if error.errno not in NO_EXCLUSION:
                raise
            # The token alone makes the name this writer's.
            name, file = _open_own(directory, "part", new_token(), image_id, flags & ~os.O_EXCL)
        if file < 0:  # an answer that was lost, and asked for again
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
            if error.errno not in BAD_NAME:
                raise
            refused = refused or error
    assert refused is not None  # noqa: S101  (there are two names)
    raise refused


# -- Taking a name away ---------------------------------------------------------------------------------------------


def take_away(directory: int, name: str, image_id: str, met: Identity, kind: str = "gone") -> None:
    """Remove the image that was met under ``name``; raises Replaced and leaves it where it is another by now.

    It is renamed to a name that is used once, looked at, and unlinked there. So a call that a file server carries out
    late, when somebody has published a newer image, moves that one for a moment, and it is put back: by this call, or
    by gc if this process dies in between and ``kind`` is "gone".
    """
    gone = _move_aside(directory, name, image_id, met, kind)
    if gone is None:
        # The file system refuses to rename, or has no room for the name. Look and unlink is what is left.
        if Identity.of(os.stat(name, dir_fd=directory, follow_symlinks=False)) != met:
            raise Replaced(name)
        _unlink(directory, name)
        return
    try:
        if Identity.of(os.stat(gone, dir_fd=directory, follow_symlinks=False)) != met:
            raise Replaced(name)
        _unlink(directory, gone)
    except FileNotFoundError:
        pass  # an answer that was lost, or gc was faster
    except BaseException:
        put_back(directory, gone, name)
        raise


def _unlink(directory: int, name: str) -> None:
    """unlink(2). An answer may be lost: what counts is whether the name is still there."""
    try:
        os.unlink(name, dir_fd=directory)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or exists(directory, name):
            raise


def _move_aside(directory: int, name: str, image_id: str, met: Identity, kind: str) -> str | None:
    for gone in own_names(kind, new_token()[:8] + met.token, image_id):
        try:
            os.rename(name, gone, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as error:
            if exists(directory, gone):
                return gone  # done, and the answer lost
            if error.errno in NOT_ASIDE:
                return None
            if error.errno not in BAD_NAME or not exists(directory, name):
                raise
        else:
            return gone
    return None


def put_back(directory: int, gone: str, name: str) -> bool:
    """Give what was moved aside its name again, unless something else has it by now; answers whether."""
    try:
        try:
            os.link(gone, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            _rename_back(directory, gone, name)
        else:
            os.unlink(gone, dir_fd=directory)
    except OSError as error:
        LOG.error("%r was moved aside to be removed and cannot be put back: %s; gc tries again", name, error)
        return False
    return True


def _rename_back(directory: int, gone: str, name: str) -> None:
    try:
        rename_without_overwriting(directory, gone, name)
    except OSError as error:
        if error.errno not in NO_RENAME:
            raise
        if exists(directory, name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(gone, name, src_dir_fd=directory, dst_dir_fd=directory)


def part_is_gone(image_id: str) -> StoreError:
    """The error of an add whose part file a gc removed."""
    return StoreError(
        f"image {image_id!r}: what was written of it is gone, and nothing was stored; a gc removed it, which cannot "
        "see adds of others on a file system without locks: let gc look at older files only"
    )

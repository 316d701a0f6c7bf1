# SPDX-License-Identifier: Apache-2.0
"""What adds and deletes left that died: part files, claims, and images that were moved aside to be removed.

Unnamed files need no collecting: the kernel frees them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Iterator

from storelib.driver import Garbage
from storelib.drivers.filesystem.datadirs import DataDirs, open_directory
from storelib.drivers.filesystem.kernel import ONLY_READ, released
from storelib.drivers.filesystem.location import OwnName, is_whole, parse_own
from storelib.drivers.filesystem.publication import Identity, Replaced, is_locked, put_back, take_away

LOG = logging.getLogger(__name__)

#: Seconds for which a claim counts as held where the file system has no locks to tell; claims are held for moments.
CLAIM_AGE = 600.0


def find_garbage(datadirs: DataDirs, older_than: float, prefix: str | None) -> Iterator[Garbage]:
    """Files of ours without a living writer that have been as they are for ``older_than`` seconds."""

    def look(path: str, entry: os.DirEntry[str]) -> Garbage | None:
        own = parse_own(entry.name)
        if own is None or not own.image_id.startswith(prefix or ""):
            return None
        name = os.path.join(path, entry.name)
        with _if_dead(name, own, older_than) as status:
            if status is None:
                return None
            return Garbage(name, own.image_id, status.st_blocks * 512, _changed(own, status), (own, older_than))

    return datadirs.files(look)


def discard(datadirs: DataDirs, garbage: Garbage) -> bool:
    """Unlink a file of ours if its writer is dead; what a delete moved aside by mistake gets its name again."""
    return datadirs.guard.call(functools.partial(_discard, garbage.name, *garbage.handle), garbage.name)


def _discard(path: str, own: OwnName, older_than: float) -> bool:
    try:
        with _if_dead(path, own, older_than) as status:
            if status is None:
                return False
            met = Identity.of(status)
            mistaken = own.kind == "gone" and met.token != own.token[8:]
            if own.kind != "claim" and not mistaken:
                os.unlink(path)
                return True
            with released(open_directory(os.path.dirname(path))) as directory:
                if mistaken:
                    _restore(directory, path, own)
                else:
                    # The only name of ours that is used again: another add may have made its own claim since.
                    take_away(directory, os.path.basename(path), own.image_id, met, kind="part")
            return not mistaken
    except (FileNotFoundError, Replaced):
        return False


def _restore(directory: int, path: str, own: OwnName) -> None:
    """Give an image its name again that a delete, carried out late, moved aside in place of an older one."""
    if is_whole(own.image_id):
        put_back(directory, os.path.basename(path), own.image_id)
    else:
        LOG.error("%r is an image that lost its name; its id is too long to be known", path)


@contextlib.contextmanager
def _if_dead(path: str, own: OwnName, older_than: float) -> Iterator[os.stat_result | None]:
    """The status of a file of ours that no writer can lock meanwhile; None if its writer lives or it is too young.

    Where the file system has no locks, age alone tells, and a claim counts as held for a while.
    """
    with released(os.open(path, ONLY_READ)) as file:
        locked = is_locked(file)
        if locked is None and own.kind == "claim":
            older_than = max(older_than, CLAIM_AGE)
        status = os.fstat(file)
        dead = not locked and _changed(own, status) <= time.time() - older_than
        yield status if dead else None


def _changed(own: OwnName, status: os.stat_result) -> float:
    """Since when a file of ours is as it is: for what was moved aside, since it was."""
    return status.st_ctime if own.kind == "gone" else status.st_mtime

# SPDX-License-Identifier: Apache-2.0
"""What adds and deletes left that died: part files, claims, and images that were moved aside to be removed.

Unnamed files need no collecting: the kernel frees them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import time
from collections.abc import Iterator

from storelib.driver import Garbage
from storelib.drivers.filesystem.datadirs import DataDirs, open_directory, remove_aside
from storelib.drivers.filesystem.errors import BAD_NAME
from storelib.drivers.filesystem.location import ASIDE, OwnName, id_token, is_whole, own_names, parse_own, shards
from storelib.drivers.filesystem.publication import (
    Aside,
    Identity,
    Replaced,
    depth_of,
    is_locked,
    put_back,
    take_away,
)
from storelib.system_calls import ONLY_READ, released
from storelib.transfer.places import everywhere

LOG = logging.getLogger(__name__)

#: Seconds for which a claim counts as held where the file system has no locks to tell; claims are held for moments.
CLAIM_AGE = 600.0


def find(datadirs: DataDirs, older_than: float, prefix: str | None) -> Iterator[Garbage]:
    """Files of ours without a living writer that have been as they are for ``older_than`` seconds.

    With a prefix no image is passed on the way: what lies aside is looked at, and the claims on that very id.
    """

    start = prefix or ""

    def look(path: str, entry: os.DirEntry[str]) -> Garbage | None:
        return _looked_at(os.path.join(path, entry.name), older_than, start)

    def below(path: str) -> Iterator[Garbage]:
        yield from datadirs.files_aside(path, look)
        if not start or path in datadirs.beside:
            yield from datadirs.files_below(path, look)

    def at(path: str) -> Iterator[Garbage]:
        found = datadirs.guard.call(functools.partial(_claim_at, path, older_than, start), path)
        if found is not None:
            yield found

    looks = [functools.partial(below, datadir.path) for datadir in datadirs.all]
    if start:
        looks += [functools.partial(at, path) for path in _claims(datadirs, start)]
    return everywhere(looks)


def _claims(datadirs: DataDirs, image_id: str) -> list[str]:
    """Where claims on an id can be, which are beside its image."""
    places = {os.path.dirname(location.path) for location in datadirs.candidate_locations(image_id)}
    names = own_names("claim", id_token(image_id), image_id)
    return [os.path.join(place, name) for place in sorted(places) for name in names]


def _claim_at(path: str, older_than: float, prefix: str) -> Garbage | None:
    try:
        return _looked_at(path, older_than, prefix)
    except OSError as error:
        # Not there, nor its directory; or no name for this file system.
        if error.errno in BAD_NAME | {errno.ENOTDIR, errno.ENAMETOOLONG}:
            return None
        raise


def _looked_at(path: str, older_than: float, prefix: str) -> Garbage | None:
    """A file of ours if it is dead, and of an id with this prefix."""
    own = parse_own(os.path.basename(path))
    if own is None or not own.image_id.startswith(prefix):
        return None
    with _if_dead(path, own, older_than) as status:
        if status is None:
            return None
        return Garbage(path, own.image_id, status.st_blocks * 512, _changed(own, status), (own, older_than))


def discard(datadirs: DataDirs, item: Garbage) -> bool:
    """Unlink a file of ours if its writer is dead; what a delete moved aside by mistake gets its name again."""
    return datadirs.guard.call(functools.partial(_discard, item.name, *item.handle), item.name)


def _discard(path: str, own: OwnName, older_than: float) -> bool:
    where = os.path.dirname(path)
    try:
        with _if_dead(path, own, older_than) as status:
            if status is None:
                return False
            met = Identity.of(status)
            mistaken = own.kind == "gone" and met.token != own.token[8:]
            if mistaken:
                _restore(where, os.path.basename(path), own)
            elif own.kind == "claim":
                # The only name of ours that is used again: another add may have made its own claim since.
                with released(open_directory(where)) as directory:
                    take_away(directory, os.path.basename(path), own.image_id, met, Aside(directory), kind="part")
            else:
                os.unlink(path)
            return not mistaken
    except (FileNotFoundError, Replaced):
        return False
    finally:
        if os.path.basename(where) == ASIDE:
            remove_aside(os.path.dirname(where))


def _restore(where: str, gone: str, own: OwnName) -> None:
    """Give an image its name again that a delete, carried out late, moved aside in place of an older one."""
    if not is_whole(own.image_id):
        LOG.error("%r is an image that lost its name; its id is too long to be known", os.path.join(where, gone))
        return
    datadir, below = where, list[str]()
    if os.path.basename(where) == ASIDE:
        datadir, below = os.path.dirname(where), shards(own.image_id, depth_of(own.token))
    with released(open_directory(where)) as aside, released(open_directory(datadir, below)) as directory:
        put_back(aside, gone, directory, own.image_id)


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

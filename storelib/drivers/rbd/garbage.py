# SPDX-License-Identifier: Apache-2.0
"""What failed adds and deletes left: images under way that nobody works on, deleted ones with nothing in their way.

Only what bears storelib's marks is ever taken for garbage: others may keep their disks in the same pool. An add watches
the image that it writes. Of one that died Ceph believes for another 30 seconds that it still does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from storelib.driver import Garbage
from storelib.drivers.rbd import publication
from storelib.drivers.rbd.cluster import RbdCluster, has_clones, modified, snapshots, used
from storelib.drivers.rbd.location import SNAPSHOT
from storelib.librbd import directory
from storelib.librbd.cluster import Connection

LOG = logging.getLogger(__name__)

#: Seconds that an add has between making its image and marking it as its own, from when on it watches it.
UNMARKED = 60.0


@dataclass(frozen=True)
class Dead:
    """Where garbage lies: under a name in the pool, or under an id in the trash."""

    name: str
    trash_id: str | None = None
    #: RBD's id of an image in the pool, which can have another name by now, as its name can another image.
    image_id: str | None = None


def find(cluster: RbdCluster, older_than: float, prefix: str) -> Iterator[Garbage]:
    """Everything dead for ``older_than`` seconds."""
    import rbd

    connection = cluster.get()
    latest = time.time() - older_than
    # All at once: what is removed between two pages must not disturb the next.
    places = [Dead(name) for name in list(directory.names(connection, prefix))]
    places += [Dead(entry["name"], entry["id"]) for entry in rbd.RBD().trash_list(connection.ioctx)]
    for place in places:
        if place.name.startswith(prefix):
            found = examine(cluster, connection, place)
            if found is not None and found.modified <= latest and (found.image_id or "").startswith(prefix):
                yield found


def examine(cluster: RbdCluster, connection: Connection, place: Dead) -> Garbage | None:
    """The garbage at that place; None if what is there is an image, alive, or none of storelib's."""
    import rbd

    if place.name in cluster.live:
        return None
    try:
        if place.trash_id is not None:
            with connection.open_id(place.trash_id, read_only=True) as image:
                return _in_trash(image, place)
        with connection.open(place.name, read_only=True) as image:
            return _in_pool(image, place)
    except rbd.ImageNotFound:
        return _in_part(connection, place)


def discard(cluster: RbdCluster, place: Dead) -> bool:
    """Remove it if it is still dead."""
    import rbd

    connection = cluster.get().freeing
    if examine(cluster, connection, place) is None:
        return False
    try:
        if place.trash_id is not None:
            with connection.open_id(place.trash_id) as image:
                for snapshot in snapshots(image):
                    publication.unseal(image, snapshot)
            rbd.RBD().trash_remove(connection.ioctx, place.trash_id)
        else:
            _undo_rename(connection, place.name)
            publication.take_back(connection, place.name, place.image_id)
    except (rbd.ImageBusy, rbd.ImageHasSnapshots) as error:
        LOG.info("%s is in use after all, a later gc may remove it: %s", place.name, error)
        return False
    return True


def _in_pool(image: Any, place: Dead) -> Garbage | None:
    under_way = publication.split(place.name)
    known = snapshots(image)
    if under_way is None:
        # Deleted in part. One without a mark of its own may be another program's.
        dead = not known and publication.is_being_deleted(image)
    elif publication.is_temporary(place.name, image):
        dead = known in ([], [SNAPSHOT])
    else:
        # Nobody watches what has only just been made.
        dead = not known and modified(image) < time.time() - UNMARKED
    if not dead or has_clones(image):
        return None
    watchers = [watcher["addr"] for watcher in image.watchers_list()]
    if watchers:
        LOG.info(
            "%s is watched by %s: it is being written, or its writer died less than 30 s ago and a later gc removes it",
            place.name,
            ", ".join(watchers),
        )
        return None
    found = replace(place, image_id=str(image.id()))
    return Garbage(place.name, under_way[0] if under_way else place.name, used(image), modified(image), found)


def _in_trash(image: Any, place: Dead) -> Garbage | None:
    """Put there because it had clones, and has none any more."""
    marked = publication.is_being_deleted(image)
    # Of others' snapshots, made since, it is not for gc to judge.
    if not marked or len(snapshots(image)) > 1 or has_clones(image):
        return None
    return Garbage(f"trash: {place.name}", place.name, used(image), modified(image), place)


def _in_part(connection: Connection, place: Dead) -> Garbage | None:
    """Made or removed in part: there is a name and no image; None where another gc took the name away, too."""
    import rados

    under_way = publication.split(place.name)
    if under_way is None or place.trash_id is not None:
        return None
    try:
        _, changed = connection.ioctx.stat(f"rbd_id.{place.name}")
    except rados.ObjectNotFound:
        if directory.id_at(connection, place.name) is None:
            return None
        return Garbage(place.name, under_way[0], 0, 0.0, place)
    return Garbage(place.name, under_way[0], 0, time.mktime(changed), place)


def _undo_rename(connection: Connection, name: str) -> None:
    """Where a writer died in the middle of renaming, two names lead to its image."""
    under_way = publication.split(name)
    if under_way is None:
        return
    image_id = publication.id_of(connection, name)
    if image_id is not None and publication.id_of(connection, under_way[0]) == image_id:
        publication.finish_rename(connection, name, under_way[0], image_id)
        publication.take_back(connection, under_way[0], image_id)

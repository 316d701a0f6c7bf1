# SPDX-License-Identifier: Apache-2.0
"""The steps by which an image becomes one that can be read, and those that take it back; each may be repeated.

A sealed image has its snapshot, protected if clones need that. It is published by being renamed to its id.
"""

from __future__ import annotations

import errno
from typing import Any

from storelib.drivers.rbd.cluster import Connection
from storelib.drivers.rbd.location import SNAPSHOT


def seal(image: Any, protect: bool) -> None:
    """Make the snapshot."""
    if SNAPSHOT not in snapshots(image):
        image.create_snap(SNAPSHOT)
    if protect and not image.is_protected_snap(SNAPSHOT):
        image.protect_snap(SNAPSHOT)


def unseal(image: Any, snapshot: str = SNAPSHOT) -> None:
    """Remove the snapshot; ImageBusy, and nothing has changed, when there are clones of it."""
    if snapshot not in snapshots(image):
        return
    if image.is_protected_snap(snapshot):
        image.unprotect_snap(snapshot)
    image.remove_snap(snapshot)


def snapshots(image: Any) -> list[str]:
    """The names of all snapshots."""
    return [str(found["name"]) for found in image.list_snaps()]


def publish(connection: Connection, temporary: str, name: str, image_id: str) -> None:
    """Rename the image with RBD's id ``image_id``; ImageExists if another one has ``name``. May be repeated.

    librbd takes the new name exclusively, then changes the pool's directory, then lets the old name go. Of several who
    rename to the same name at the same time it tells all that they succeeded, so each looks who did.
    """
    import rbd

    lost: Exception = rbd.ImageExists(f"another image is called {name!r}", errno=errno.EEXIST)
    complete = True
    try:
        rbd.RBD().rename(connection.ioctx, temporary, name)
    except (rbd.ImageExists, rbd.ImageNotFound, rbd.ObjectNotFound) as error:
        # Another image's, or this one's from an attempt whose answer was lost.
        lost, complete = error, False
    if id_of(connection, name) != image_id:
        raise lost
    if not complete:
        finish_rename(connection, temporary, name, image_id)


def finish_rename(connection: Connection, temporary: str, name: str, image_id: str) -> None:
    """Complete a rename that was interrupted after it had taken the new name: by way of the trash.

    Restoring from the trash is the one call that accepts a name which belongs to the image already.
    """
    import rbd

    directory = {entry["name"]: entry["id"] for entry in rbd.RBD().list2(connection.ioctx)}
    if directory.get(temporary) == image_id:
        rbd.RBD().trash_move(connection.ioctx, temporary)
    if directory.get(name) != image_id:
        rbd.RBD().trash_restore(connection.ioctx, image_id, name)


def id_of(connection: Connection, name: str) -> str | None:
    """The id that RBD gave the image which has this name now; None if there is none."""
    import rbd

    try:
        with connection.open(name, read_only=True) as image:
            return str(image.id())
    except rbd.ImageNotFound:
        return None


def take_back(connection: Connection, name: str) -> None:
    """Remove an image that nobody else knows, with its snapshot; nothing to do if it is not there."""
    import rbd

    try:
        with connection.open(name) as image:
            unseal(image)
    except rbd.ImageNotFound:
        pass
    try:
        # Where an image was made in part only, this removes the parts.
        rbd.RBD().remove(connection.ioctx, name)
    except rbd.ImageNotFound:
        pass

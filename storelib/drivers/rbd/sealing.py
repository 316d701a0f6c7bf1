# SPDX-License-Identifier: Apache-2.0
"""The steps by which an image becomes one that can be read, and those that take it back; each may be repeated.

A sealed image has its snapshot, protected if clones need that. It is published by being renamed to its id.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, NamedTuple

from storelib.drivers.rbd import temporary as marks
from storelib.drivers.rbd.cluster import Connection
from storelib.drivers.rbd.location import SNAPSHOT
from storelib.exceptions import StoreError


def seal(image: Any, protect: bool) -> None:
    """Make the snapshot."""
    _ensure(lambda: SNAPSHOT in snapshots(image), lambda: image.create_snap(SNAPSHOT))
    if protect:
        _ensure(lambda: image.is_protected_snap(SNAPSHOT), lambda: image.protect_snap(SNAPSHOT))


def unseal(image: Any, snapshot: str = SNAPSHOT) -> None:
    """Remove the snapshot; ImageBusy, and nothing has changed, when there are clones of it."""
    if snapshot not in snapshots(image):
        return
    _ensure(lambda: not image.is_protected_snap(snapshot), lambda: image.unprotect_snap(snapshot))
    _ensure(lambda: snapshot not in snapshots(image), lambda: image.remove_snap(snapshot))


def _ensure(is_so: Callable[[], bool], make_so: Callable[[], object]) -> None:
    """Make something so; a refusal counts for nothing where it is so, since an answer may have been lost before."""
    import rbd

    if is_so():
        return
    try:
        make_so()
    except (rbd.ImageExists, rbd.ImageBusy, rbd.ImageNotFound, rbd.InvalidArgument):
        if not is_so():
            raise


def snapshots(image: Any) -> list[str]:
    """The names of all snapshots."""
    return [str(found["name"]) for found in image.list_snaps()]


def publish(
    connection: Connection,
    temporary: str,
    name: str,
    image_id: str,
    size: int | None = None,
    release: Callable[[], None] | None = None,
) -> None:
    """Rename the image with RBD's id ``image_id``; ImageExists if another one has ``name``. May be repeated.

    librbd takes the new name exclusively, then changes the pool's directory, then lets the old name go. Of several who
    rename to the same name at the same time it tells all that they succeeded, so each looks who did, and whether the
    snapshot is there with ``size`` bytes. ``release`` closes the image where a rename has to be finished.
    """
    import rbd

    complete = True
    try:
        rbd.RBD().rename(connection.ioctx, temporary, name)
    except (rbd.ImageExists, rbd.ImageNotFound, rbd.ObjectNotFound):
        # Another image's, or this one's from an attempt whose answer was lost.
        complete = False
    found = look_at(connection, name)
    if found is None:
        raise StoreError(f"{name!r}: somebody removed what was written, perhaps gc; nothing is stored")
    if found.image_id != image_id:
        raise rbd.ImageExists(f"another image is called {name!r}", errno=errno.EEXIST)
    if found.sealed_size is None or (size is not None and found.sealed_size != size):
        raise StoreError(f"{name!r}: somebody removed or changed the snapshot of what was written; nothing is stored")
    if not complete:
        if release is not None:
            release()
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


class Look(NamedTuple):
    """What there is under a name."""

    #: RBD's.
    image_id: str
    #: Bytes at the snapshot; None where it has none.
    sealed_size: int | None


def look_at(connection: Connection, name: str) -> Look | None:
    """The image that has this name now; None if there is none."""
    import rbd

    try:
        with connection.open(name, read_only=True) as image:
            sizes = [int(found["size"]) for found in image.list_snaps() if found["name"] == SNAPSHOT]
            return Look(str(image.id()), sizes[0] if sizes else None)
    except rbd.ImageNotFound:
        return None


def id_of(connection: Connection, name: str) -> str | None:
    """The id that RBD gave the image which has this name now; None if there is none."""
    found = look_at(connection, name)
    return None if found is None else found.image_id


def take_back(connection: Connection, name: str, image_id: str | None = None) -> None:
    """Remove an image that nobody else knows, with its snapshot; nothing to do if it is not there.

    With ``image_id`` it is only that one, since a name can be used again.
    """
    import rbd

    try:
        with connection.open(name) as image:
            if image_id is not None and str(image.id()) != image_id:
                return
            marks.set_deleting(image)
            unseal(image)
    except rbd.ImageNotFound:
        pass
    try:
        # Where an image was made in part only, this removes the parts.
        rbd.RBD().remove(connection.ioctx, name)
    except rbd.ImageNotFound:
        pass

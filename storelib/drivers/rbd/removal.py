# SPDX-License-Identifier: Apache-2.0
"""Deleting an image: what keeps it is looked at before anything is touched, and what was touched is put back.

Snapshot first, then the image: from the first step on it cannot be read, and is known to be on its way out.
"""

from __future__ import annotations

import contextlib
import errno
from typing import Any

from storelib.drivers.rbd import sealing, temporary
from storelib.drivers.rbd.cluster import Connection
from storelib.drivers.rbd.location import RbdLocation
from storelib.exceptions import HasSnapshot, InUseByStore, NotFound


def remove(connection: Connection, location: RbdLocation, *, protect: bool, to_trash: bool) -> None:
    """Remove one image; ``to_trash``: move it there if it has clones."""
    import rbd

    try:
        opened = connection.open(location.image)
    except rbd.ImageNotFound:
        if _remove_rest(connection, location.image):
            return None
        raise
    with opened as image:
        image_id = str(image.id())
        known = sealing.snapshots(image)
        if location.snapshot not in known:
            # Otherwise an earlier attempt came as far as this.
            if known or not temporary.is_being_deleted(image):
                raise NotFound(f"{location}: there is no such snapshot, so this is no image that could be read")
        elif len(known) > 1:
            raise HasSnapshot(f"{location} has other snapshots: {', '.join(sorted({*known} - {location.snapshot}))}")
        elif has_clones(image):
            temporary.set_deleting(image)
            return _set_aside(connection, location, image, to_trash=to_trash)
        elif len(list(image.watchers_list())) > 1:
            raise InUseByStore(f"{location} is in use: somebody has it open for writing")
        else:
            temporary.set_deleting(image)
            try:
                sealing.unseal(image, location.snapshot)
            except rbd.ImageBusy:
                # A clone was made of it just now.
                return _set_aside(connection, location, image, to_trash=to_trash)
    try:
        rbd.RBD().remove(connection.ioctx, location.image)
    except rbd.ImageNotFound:
        # It was there a moment ago, so it is gone as wanted (seen of librbd 16 in a full pool).
        return None
    except (rbd.ImageBusy, rbd.ImageHasSnapshots):
        if _restore(connection, location, image_id, protect=protect):
            raise
    except rbd.Error:
        # Not answered. What has the name now may be another image already, which a second attempt would remove.
        found = sealing.id_of(connection, location.image)
        if found is None or found == image_id:
            raise
    return None


def _remove_rest(connection: Connection, name: str) -> bool:
    """Remove what is left of an image that was removed in part: a name that leads to no image, and keeps it taken."""
    import rados
    import rbd

    try:
        connection.ioctx.stat(f"rbd_id.{name}")
    except rados.ObjectNotFound:
        return False
    with contextlib.suppress(rbd.ImageNotFound):
        rbd.RBD().remove(connection.ioctx, name)
    return True


def has_clones(image: Any) -> bool:
    """Whether other images depend on some snapshot of it, those in the trash included."""
    return any(True for _ in image.list_children2())


def _set_aside(connection: Connection, location: RbdLocation, image: Any, *, to_trash: bool) -> None:
    """What becomes of an image with clones; it bears the mark of one that is being deleted."""
    import rbd

    try:
        if not to_trash:
            raise InUseByStore(f"{location}: there are clones of it (option rbd_store_delete_in_use)")
        image_id = str(image.id())
        # The trash takes no image that somebody has open.
        image.close()
        if sealing.id_of(connection, location.image) != image_id:
            raise rbd.ImageNotFound(f"{location} is another image by now", errno=errno.ENOENT)
        rbd.RBD().trash_move(connection.ioctx, location.image)
    except (rbd.ImageBusy, InUseByStore):
        with contextlib.suppress(rbd.Error), connection.open(location.image) as again:
            temporary.unset_deleting(again)
        raise
    except rbd.ImageNotFound:
        # It was there a moment ago: moved by an attempt whose answer was lost.
        return


def _restore(connection: Connection, location: RbdLocation, image_id: str, *, protect: bool) -> bool:
    """Nobody has written to it since, so a new snapshot is as good as the old one; False if it is another image now."""
    if sealing.id_of(connection, location.image) != image_id:
        return False
    with connection.open(location.image) as image:
        if location.snapshot not in sealing.snapshots(image):
            image.create_snap(location.snapshot)
        if protect and not image.is_protected_snap(location.snapshot):
            image.protect_snap(location.snapshot)
        temporary.unset_deleting(image)
    return True

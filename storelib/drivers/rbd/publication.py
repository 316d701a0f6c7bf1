# SPDX-License-Identifier: Apache-2.0
"""Publication: how an image becomes visible in a pool, how it is known on the way, and how it goes away again.

An image under way is called ``<image id>.storelib-<token>`` and carries the token in its metadata, too. It gets its
snapshot, protected if clones need that, and is published by being renamed to its id. The token stays then, so an id
that happens to look like such a name is not taken for one. Each step may be repeated.

Clones and copies inherit the metadata of their original, any client's: a mark counts only on the image whose
RBD id it names.
"""

from __future__ import annotations

import contextlib
import errno
import re
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

from storelib.driver import Deletion, Digest, Digests
from storelib.drivers.rbd.cluster import RbdCluster, has_clones, snapshots
from storelib.drivers.rbd.location import SNAPSHOT, RbdLocation
from storelib.exceptions import Duplicate, HasSnapshot, InUseByStore, NotFound, StoreError
from storelib.librbd import directory
from storelib.librbd.cluster import Connection

#: The token of the add that made an image, and RBD's id of that image.
TOKEN = "storelib.token"  # noqa: S105  (a name)
#: Set, to RBD's id of the image, before the snapshot of an image goes away because the image is being deleted.
DELETING = "storelib.deleting"

#: RBD's id of an image, and the digest of its bytes.
DIGEST = "storelib.digest"

_NAME = re.compile(r"(.+)\.storelib-([0-9a-f]{24})", re.DOTALL)


# -- Names and marks of images under way ------------------------------------------------------------------------


def new_name(image_id: str) -> tuple[str, str]:
    """A name for an image under way, and its token."""
    token = secrets.token_hex(12)
    return f"{image_id}.storelib-{token}", token


def split(name: str) -> tuple[str, str] | None:
    """Image id and token in the name of an image under way; None for other names."""
    match = _NAME.fullmatch(name)
    return (match[1], match[2]) if match else None


def mark(image: Any, key: str) -> str | None:
    """One of the marks above."""
    try:
        return str(image.metadata_get(key))
    except KeyError:
        return None


def set_token(image: Any, token: str) -> None:
    """Note which add made the image."""
    image.metadata_set(TOKEN, f"{token} {image.id()}")


def set_digest(image: Any, digests: Digests) -> None:
    """Note the digest of the image's bytes."""
    image.metadata_set(DIGEST, f"{image.id()} {digests.algorithm}:{digests.multihash}")


def digest_of(image: Any) -> Digest | None:
    """The digest that was noted for this image, and not for one from which it was cloned and then written to."""
    owner, _, digest = (mark(image, DIGEST) or "").partition(" ")
    algorithm, colon, value = digest.partition(":")
    return Digest(algorithm, value) if colon and owner == str(image.id()) else None


def is_temporary(name: str, image: Any) -> bool:
    """Whether an image with its snapshot is one under way all the same."""
    found = split(name)
    return found is not None and (mark(image, TOKEN) or "").partition(" ")[0] == found[1]


def set_deleting(image: Any) -> None:
    """Note that the image is on its way out."""
    image.metadata_set(DELETING, str(image.id()))


def unset_deleting(image: Any) -> None:
    """It stays after all."""
    with contextlib.suppress(KeyError):
        image.metadata_remove(DELETING)


def is_being_deleted(image: Any) -> bool:
    """Whether this image is on its way out, and not that from which it was cloned or copied."""
    deleting, image_id = mark(image, DELETING), str(image.id())
    if deleting is None or deleting == image_id:
        return deleting is not None
    # Earlier versions noted no id there.
    return (mark(image, TOKEN) or "").partition(" ")[2] == image_id


# -- Publishing, and taking back --------------------------------------------------------------------------------


def check_id_is_free(cluster: RbdCluster, image_id: str) -> None:
    """Raise Duplicate if the pool has such an image, which is cheap to see; renaming finds out for good."""
    import rbd

    try:
        cluster.get().open(image_id, read_only=True).close()
    except rbd.ImageNotFound:
        return
    raise Duplicate(f"image {image_id!r} in store {cluster.store_name}: pool {cluster.pool} has it already")


def seal(image: Any, protect: bool) -> None:
    """Make the snapshot, and protect it if that is wanted."""
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
    """Make something so; a refusal counts for nothing where it is so, since a response may have been lost before."""
    import rbd

    if is_so():
        return
    try:
        make_so()
    except (rbd.ImageExists, rbd.ImageBusy, rbd.ImageNotFound, rbd.InvalidArgument):
        if not is_so():
            raise


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
        # Another image's, or this one's from an attempt whose response was lost.
        complete = False
    found = look_at(connection, name)
    if found is None:
        raise StoreError(f"{name!r}: another client removed what was written, perhaps gc; nothing is stored")
    if found.image_id != image_id:
        raise rbd.ImageExists(f"another image is called {name!r}", errno=errno.EEXIST)
    if found.sealed_size is None or (size is not None and found.sealed_size != size):
        raise StoreError(
            f"{name!r}: another client removed or changed the snapshot of what was written; nothing is stored"
        )
    if not complete:
        if release is not None:
            release()
        finish_rename(connection, temporary, name, image_id)


def finish_rename(connection: Connection, temporary: str, name: str, image_id: str) -> None:
    """Complete a rename that was interrupted after it had taken the new name: by way of the trash.

    Restoring from the trash is the one call that accepts a name which belongs to the image already.
    """
    import rbd

    before = directory.id_at(connection, name)
    if directory.id_at(connection, temporary) == image_id:
        rbd.RBD().trash_move(connection.ioctx, temporary)
    if before != image_id:
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
            set_deleting(image)
            unseal(image)
    except rbd.ImageNotFound:
        pass
    try:
        # Where an image was made in part only, this removes the parts.
        rbd.RBD().remove(connection.ioctx, name)
    except rbd.ImageNotFound:
        pass


# -- Deleting ---------------------------------------------------------------------------------------------------


def remove(connection: Connection, location: RbdLocation, deletion: Deletion, *, protect: bool, to_trash: bool) -> None:
    """Remove one image; ``to_trash``: move it there if it has clones.

    What keeps it is looked at before anything is touched, and what was touched is put back. The snapshot goes first:
    from then on the image cannot be read, and is known to be on its way out.
    """
    import rbd

    try:
        opened = connection.open(location.image)
    except rbd.ImageNotFound:
        if _remove_rest(connection, location.image):
            return None
        raise
    with opened as image:
        image_id = str(image.id())
        deletion.meet(image_id, location)
        known = snapshots(image)
        if location.snapshot not in known:
            # Otherwise an earlier attempt came as far as this.
            if known or not is_being_deleted(image):
                raise NotFound(f"{location}: there is no such snapshot, so this is no image that could be read")
        elif len(known) > 1:
            raise HasSnapshot(f"{location} has other snapshots: {', '.join(sorted({*known} - {location.snapshot}))}")
        elif has_clones(image):
            set_deleting(image)
            return _set_aside(connection, location, image, to_trash=to_trash)
        elif len(list(image.watchers_list())) > 1:
            raise InUseByStore(f"{location} is in use: another client has it open for writing")
        else:
            set_deleting(image)
            try:
                unseal(image, location.snapshot)
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
        found = id_of(connection, location.image)
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


def _set_aside(connection: Connection, location: RbdLocation, image: Any, *, to_trash: bool) -> None:
    """What becomes of an image with clones; it bears the mark of one that is being deleted."""
    import rbd

    try:
        if not to_trash:
            raise InUseByStore(f"{location}: there are clones of it (option rbd_store_delete_in_use)")
        image_id = str(image.id())
        # The trash takes no image that is open.
        image.close()
        if id_of(connection, location.image) != image_id:
            raise rbd.ImageNotFound(f"{location} is another image by now", errno=errno.ENOENT)
        rbd.RBD().trash_move(connection.ioctx, location.image)
    except (rbd.ImageBusy, InUseByStore):
        with contextlib.suppress(rbd.Error), connection.open(location.image) as again:
            unset_deleting(again)
        raise
    except rbd.ImageNotFound:
        # It was there a moment ago: moved by an attempt whose response was lost.
        return


def _restore(connection: Connection, location: RbdLocation, image_id: str, *, protect: bool) -> bool:
    """Nobody has written to it since, so a new snapshot is as good as the old one; False if it is another image now."""
    if id_of(connection, location.image) != image_id:
        return False
    with connection.open(location.image) as image:
        if location.snapshot not in snapshots(image):
            image.create_snap(location.snapshot)
        if protect and not image.is_protected_snap(location.snapshot):
            image.protect_snap(location.snapshot)
        unset_deleting(image)
    return True

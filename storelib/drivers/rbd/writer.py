# SPDX-License-Identifier: Apache-2.0
"""RbdWriter: one image on its way into a pool, under a temporary name until it is whole. RbdCopy: a clone."""

from __future__ import annotations

import logging
from typing import Any

from storelib.driver import Committed, Digests, Part, Writer, WriterCopy
from storelib.drivers.rbd import publication
from storelib.drivers.rbd.cluster import RbdCluster
from storelib.drivers.rbd.location import RbdLocation
from storelib.exceptions import BadStoreConfiguration, ImageChanged, StoreError
from storelib.librbd import images
from storelib.librbd.cluster import Connection
from storelib.transfer.contract import KiB, MiB

LOG = logging.getLogger(__name__)

#: Of one write at most: two of 4 MiB beside each other are faster than one of 8 (measured).
WRITE = 4 * MiB
#: Room that an image of unknown size gets at first, and by how much it grows at most; neither is filled.
FIRST_ROOM = 256 * MiB
LARGEST_STEP = 8 * KiB * MiB


class RbdWriter(Writer):
    """Writes side by side, each acknowledged by the OSDs before it returns."""

    smallest_part = 64 * KiB

    def __init__(self, cluster: RbdCluster, image_id: str, size: int | None) -> None:
        self.concurrency = cluster.concurrency
        self.sparse = cluster.thin
        self._cluster = cluster
        self._image_id = image_id
        self._size = size
        #: Names of all images made for this one: a second where creating the first was not answered.
        self._names: list[str] = []
        self._image: Any = None
        #: The id that RBD gave it.
        self._rbd_id: str | None = None
        self._room = 0
        self._sealed = False
        self._flusher = images.Flusher(f"image {image_id!r}")

    def part_size(self, number: int, size: int | None) -> int:
        """Parts lie within one object each."""
        return min(WRITE, 1 << self._cluster.order)

    def reserve(self, end: int) -> int:
        """Make the image, or make it larger."""
        room = end
        if self._size is None:
            room = max(end, FIRST_ROOM, min(2 * self._room, self._room + LARGEST_STEP))
        if self._image is None:
            self._create(room)
        elif room > self._room:
            self._image.resize(room)
        self._room = room
        return room

    def _create(self, size: int) -> None:
        import rbd

        connection = self._cluster.get()
        name, token = self._new_name()
        order, data_pool = self._cluster.order, self._cluster.data_pool
        try:
            rbd.RBD().create(connection.ioctx, name, size, order=order, old_format=False, data_pool=data_pool)
        except rbd.ImageExists:
            # The name is random: made by this very call, whose first response was lost.
            pass
        except (rbd.ImageNotFound, rbd.ObjectNotFound) as error:
            raise BadStoreConfiguration(
                f"store {self._cluster.store_name}: the cluster has no such data pool or namespace; "
                "check rbd_store_data_pool and rbd_store_namespace"
            ) from error
        self._open(connection, name, token)

    def clone_of(self, parent: str, snapshot: str, parent_id: str) -> None:
        """Make the image a clone of another one, which has the id ``parent_id``; raises ImageChanged."""
        import rbd

        connection = self._cluster.get()
        name, token = self._new_name()
        ioctx = connection.ioctx
        rbd.RBD().clone(ioctx, parent, snapshot, ioctx, name, data_pool=self._cluster.data_pool)
        self._open(connection, name, token)
        self._room = int(self._image.size())
        if str(self._image.parent_id()) != parent_id:
            raise ImageChanged(f"image {parent!r} was deleted and made anew while it was copied")

    def _new_name(self) -> tuple[str, str]:
        # What an attempt made whose response was lost would stay until gc, and a clone its parent with it.
        self._close_image()
        for earlier in self._names:
            publication.take_back(self._cluster.get().freeing, earlier)
        name, token = publication.new_name(self._image_id)
        self._names.append(name)
        self._cluster.live.begin(name, self)
        return name, token

    def _open(self, connection: Connection, name: str, token: str) -> None:
        import rbd

        try:
            image = connection.open(name)
        except rbd.ImageNotFound as error:
            raise self._removed() from error
        try:
            publication.set_token(image, token)
            self._rbd_id = str(image.id())
        except BaseException:
            image.close()
            raise
        self._image = image

    def write(self, part: Part) -> None:
        """Write one part where it belongs."""
        images.write(self._image, part.offset, part.data)

    def commit(self, size: int, digests: Digests) -> Committed:
        """Cut to size, seal, rename to the image's id."""
        return self.publish(size, digests)

    def publish(self, size: int, digests: Digests | None = None) -> Committed:
        """See ``commit``; it may be repeated from any point."""
        if self._rbd_id is None:
            raise StoreError(f"image {self._image_id!r} was never made")
        if self._image is not None and not self._sealed:
            self._seal(size, digests)
        # Watched until it is renamed, so that gc of others does not take it for dead.
        publication.publish(
            self._cluster.get(), self._names[-1], self._image_id, self._rbd_id, size, release=self._close_image
        )
        self._close_image()
        return Committed(self._cluster.location(self._image_id))

    def _seal(self, size: int, digests: Digests | None) -> None:
        import rbd

        try:
            if self._room != size:
                self._image.resize(size)
                self._room = size
            self._flusher.flush(self._image)
            if digests is not None:
                publication.set_digest(self._image, digests)
            publication.seal(self._image, self._cluster.protect)
        except rbd.ImageNotFound as error:
            raise self._removed() from error
        self._sealed = True

    def _removed(self) -> StoreError:
        return StoreError(
            f"image {self._image_id!r}: another client removed what was written, perhaps gc; nothing is stored"
        )

    def abort(self) -> None:
        """Remove whatever was made, the published image if it is this one."""
        if not self._names:
            return
        self._close_image()
        connection = self._cluster.get().freeing
        if self._rbd_id is not None and publication.id_of(connection, self._image_id) == self._rbd_id:
            publication.finish_rename(connection, self._names[-1], self._image_id, self._rbd_id)
            publication.take_back(connection, self._image_id, self._rbd_id)
        for name in self._names:
            publication.take_back(connection, name)

    def close(self) -> None:
        """Close the image, which ends its watch."""
        self._close_image()

    def _close_image(self) -> None:
        """Once, whatever comes of it: what was written is flushed, or of no use any more."""
        import rbd

        image, self._image = self._image, None
        if image is not None:
            try:
                image.close()
            except rbd.Error as error:
                LOG.warning("image %r: closing it: %s", self._image_id, error)


class RbdCopy(WriterCopy[RbdWriter]):
    """A clone, for which no bytes move, under a temporary name; published like an upload."""

    def __init__(self, cluster: RbdCluster, source: RbdLocation, image_id: str) -> None:
        size, self._rbd_id = cluster.size_and_id(source)
        self._source = source
        publication.check_id_is_free(cluster, image_id)
        super().__init__(RbdWriter(cluster, image_id, size), size)

    def begin(self) -> None:
        """Make the clone; RBD makes none of an image without bytes."""
        if self.size:
            self.writer.clone_of(self._source.image, self._source.snapshot, self._rbd_id)
        else:
            super().begin()

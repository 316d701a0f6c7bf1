# SPDX-License-Identifier: Apache-2.0
"""RbdStore: configuration, and everything but moving bytes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import ClassVar

from oslo_config import cfg

from storelib.capabilities import COMPLETE, Capability
from storelib.driver import Area, Context, Deletion, Garbage, Health, ImageInfo, Store
from storelib.drivers.rbd import garbage, publication
from storelib.drivers.rbd.cluster import RbdCluster, describe, identity
from storelib.drivers.rbd.location import SCHEME, RbdLocation
from storelib.drivers.rbd.options import OPTIONS
from storelib.drivers.rbd.reader import RbdReader
from storelib.drivers.rbd.writer import RbdCopy, RbdWriter
from storelib.exceptions import Forbidden, NotFound, OperationNotSupported, StoreError
from storelib.rehearsal import rehearse

LOG = logging.getLogger(__name__)


class RbdStore(Store[RbdLocation]):
    """Images as RBD images with a snapshot ``snap``, in one pool.

    * Cluster, pool, image and snapshot are all in the URI: who wants a copy-on-write clone needs nothing more.
    * ``copy`` with known digests makes a clone (rbd_store_copy_mode); a clone needs its original, so deleting that
      moves it to the trash, from where ``gc`` removes it when its last clone is gone.
    * ``gc`` removes nothing that does not bear storelib's mark, and spares the adds of all processes: they watch what
      they write. What a killed writer left is watched by it for another 30 seconds.
    """

    schemes = (SCHEME,)
    location_class = RbdLocation
    options: ClassVar[tuple[cfg.Opt, ...]] = tuple(OPTIONS)
    capabilities = COMPLETE | Capability.SPARSE | Capability.COPY
    cluster: RbdCluster

    # -- Configuration ----------------------------------------------------------------------------------------

    def configure_get(self) -> None:
        """Where the images are and who asks."""
        self.cluster = RbdCluster(self.conf, self.name)

    def configure_add(self) -> None:
        """How images are stored."""
        for option, capability in (
            (self.conf.rbd_thin_provisioning, Capability.SPARSE),
            (self.conf.rbd_store_copy_mode == "clone", Capability.COPY),
        ):
            if not option:
                self.capabilities &= ~capability
        if self.conf.rbd_store_clone_format == "1" and not self.conf.rbd_store_protect_snapshot:
            raise self.misconfigured("rbd_store_clone_format", "1 needs rbd_store_protect_snapshot")

    def areas(self) -> list[Area]:
        """The namespace of the pool, in the cluster that ceph.conf is about."""
        pool, namespace = self.conf.rbd_store_pool, self.conf.rbd_store_namespace
        option = "rbd_store_namespace" if namespace else "rbd_store_pool"
        return [Area(("rbd", identity(self.conf), pool, namespace), "", option)]

    def details(self) -> dict[str, str]:
        """``fsid``: the id of the cluster. Raises StoreError."""
        return {"fsid": self._call(lambda: self.cluster.fsid, self.name).lower()}

    def owns(self, location: RbdLocation) -> bool:
        """Whether it is in this namespace of this pool of this cluster; the short form says nothing against it."""
        if location.fsid is None:
            return True
        return (location.pool, location.namespace) == (self.cluster.pool, self.cluster.namespace) and (
            location.fsid.lower() == self._call(lambda: self.cluster.fsid, self.name).lower()
        )

    def roots(self) -> list[tuple[str, str]]:
        """Pool and namespace; to tell the cluster, some have to be asked."""
        return [(self.cluster.pool, self.cluster.namespace)]

    @classmethod
    def possible_roots(cls, location: RbdLocation) -> list[tuple[str, str]] | None:
        """The same; the short form says nothing."""
        return None if location.fsid is None else [(str(location.pool), location.namespace)]

    def canonical(self, location: RbdLocation) -> RbdLocation:
        """With cluster and pool, which the short form leaves out."""
        return self.cluster.location(location.image, location.snapshot)

    # -- The driver contract ----------------------------------------------------------------------------------

    def open_writer(self, image_id: str, size: int | None, context: Context | None) -> RbdWriter:
        """Looks whether the id is taken, before any data is read."""
        publication.check_id_is_free(self.cluster, image_id)
        return RbdWriter(self.cluster, image_id, size)

    def open_reader(self, location: RbdLocation, offset: int, length: int | None, context: Context | None) -> RbdReader:
        """Open the image at its snapshot."""
        return RbdReader(self.cluster, location)

    def measure(self, location: RbdLocation, context: Context | None) -> int:
        """The size at the snapshot."""
        return self.cluster.size_and_id(location)[0]

    def remove(self, location: RbdLocation, context: Context | None, deletion: Deletion) -> None:
        """Remove snapshot and image, or move it to the trash: see publication.py."""
        protect, to_trash = self.cluster.protect, self.conf.rbd_store_delete_in_use == "trash"
        publication.remove(self.cluster.get().freeing, location, deletion, protect=protect, to_trash=to_trash)

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """The error of storelib for one of the bindings: see errors.py."""
        return self.cluster.map_error(error, subject)

    # -- Looking after the store ------------------------------------------------------------------------------

    def candidate_locations(self, image_id: str) -> list[RbdLocation]:
        """The only one, in this pool."""
        return [self.cluster.location(image_id)]

    def images(self) -> Iterator[ImageInfo]:
        """Every image with its snapshot, of any client."""
        import rbd

        connection = self.cluster.get()
        for name in rbd.RBD().list(connection.ioctx):
            try:
                with connection.open(name, read_only=True) as image:
                    found = describe(self.cluster.location(name), image)
                    alive = not publication.is_temporary(name, image)
            except (rbd.ImageNotFound, NotFound):
                continue
            if alive:
                yield found

    def inspect(self, location: RbdLocation, context: Context | None) -> ImageInfo:
        """What the image says of itself."""
        full = self.cluster.location(location.image, location.snapshot)
        with self.cluster.get().open(location.image, read_only=True) as image:
            return describe(full, image)

    def garbage(self, older_than: float, prefix: str | None) -> Iterator[Garbage]:
        """Images under way that died, and deleted ones with nothing in their way: see garbage.py."""
        return garbage.find(self.cluster, older_than, prefix or "")

    def discard(self, item: Garbage) -> bool:
        """Remove it if it is still dead: see garbage.py."""
        return garbage.discard(self.cluster, item.handle)

    def check(self) -> Health:
        """Ask the cluster, then try it out, unless it is full."""
        health = super().check()
        if self.cluster.is_full():
            return health
        try:
            rehearse(self)
        except Forbidden as error:
            raise Forbidden(f"{error}; set read_only if this store is not to be written to") from error
        except OperationNotSupported as error:
            raise OperationNotSupported(
                f"{error}; check rbd_default_features in Ceph's configuration (option rbd_store_ceph_conf)"
            ) from error
        return health

    def probe(self) -> Health:
        """Connect, look for an image in the pool, ask how much room there is."""
        import rbd

        connection = self.cluster.get()
        try:
            connection.open(f"{self.name}.storelib-check", read_only=True).close()
        except rbd.ImageNotFound:
            pass
        free, total = self.cluster.room() or (None, None)
        full = ", which is full" if self.cluster.is_full() else ""
        return Health(f"connected to pool {self.cluster.pool} of cluster {connection.fsid}{full}", free, total)

    # -- What the cluster does by itself ----------------------------------------------------------------------

    def server_side_copy(self, source: RbdLocation, image_id: str, context: Context | None) -> RbdCopy:
        """A clone; without Capability.COPY, as rbd_store_copy_mode says, this is not asked."""
        return RbdCopy(self.cluster, source, image_id)

# SPDX-License-Identifier: Apache-2.0
"""RbdStore: configuration, and everything but moving bytes."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

from oslo_config import cfg

from storelib.capabilities import Capability
from storelib.driver import Area, Garbage, Health, ImageInfo, Store
from storelib.drivers.rbd import garbage, removal, temporary
from storelib.drivers.rbd.cluster import Cluster, configured_cluster
from storelib.drivers.rbd.copying import RbdCopy
from storelib.drivers.rbd.errors import DISCONNECTED, code_of, storelib_error
from storelib.drivers.rbd.location import SCHEME, SNAPSHOT, RbdLocation
from storelib.drivers.rbd.options import OPTIONS
from storelib.drivers.rbd.reader import RbdReader
from storelib.drivers.rbd.writer import RbdWriter
from storelib.exceptions import (
    BadStoreConfiguration,
    Duplicate,
    Forbidden,
    NotFound,
    OperationNotSupported,
    StorageFull,
    StoreError,
    TransferTimeout,
)
from storelib.rehearsal import rehearse
from storelib.transfer.contract import MiB

LOG = logging.getLogger(__name__)


class RbdStore(Store[RbdLocation]):
    """Images as RBD images with a snapshot ``snap``, in one pool.

    * Cluster, pool, image and snapshot are all in the URI: whoever wants a copy-on-write clone needs nothing more.
    * ``copy`` with known digests makes a clone (rbd_store_copy_mode); a clone needs its original, so deleting that
      moves it to the trash, from where ``gc`` removes it when its last clone is gone.
    * ``gc`` removes nothing that does not bear storelib's mark, and spares the adds of all processes: they watch what
      they write. What a killed writer left is watched by it for another 30 seconds.
    """

    schemes = (SCHEME,)
    location_class = RbdLocation
    options: ClassVar[tuple[cfg.Opt, ...]] = tuple(OPTIONS)
    capabilities = (
        Capability.READ
        | Capability.RANGE
        | Capability.ADD
        | Capability.DELETE
        | Capability.ATOMIC_ADD
        | Capability.SPARSE
        | Capability.LIST
        | Capability.STAT
        | Capability.GC
        | Capability.CHECK
        | Capability.COPY
    )
    cluster: Cluster

    def __init__(self, name: str, conf: Any) -> None:
        super().__init__(name, conf)
        #: Writers still in use by the names of what they write, so that gc leaves that alone.
        self.under_way: weakref.WeakValueDictionary[str, RbdWriter] = weakref.WeakValueDictionary()

    # -- Configuration ----------------------------------------------------------------------------------------

    def configure_get(self) -> None:
        """Where the images are and who asks."""
        self.cluster = Cluster(self.conf, self.name)

    def configure_add(self) -> None:
        """How images are stored."""
        for option, capability in (
            (self.conf.rbd_thin_provisioning, Capability.SPARSE),
            (self.conf.rbd_store_copy_mode == "clone", Capability.COPY),
        ):
            if not option:
                self.capabilities &= ~capability
        if self.conf.rbd_store_clone_format == "1" and not self.conf.rbd_store_protect_snapshot:
            raise BadStoreConfiguration(
                f"store {self.name}: rbd_store_clone_format = 1 needs rbd_store_protect_snapshot"
            )

    @property
    def order(self) -> int:
        """The size of the objects of new images, as a power of two."""
        return (int(self.conf.rbd_store_chunk_size) * MiB).bit_length() - 1

    # -- Locations --------------------------------------------------------------------------------------------

    def location(self, image_id: str) -> RbdLocation:
        """Where the image with this id is, or would be."""
        conf = self.conf
        return RbdLocation(image_id, SNAPSHOT, self.cluster.fsid, conf.rbd_store_pool, conf.rbd_store_namespace)

    def areas(self) -> list[Area]:
        """The namespace of the pool, in the cluster that ceph.conf is about."""
        conf = self.conf
        cluster = configured_cluster(conf)
        option = "rbd_store_namespace" if conf.rbd_store_namespace else "rbd_store_pool"
        return [Area(("rbd", cluster, conf.rbd_store_pool, conf.rbd_store_namespace), "", option)]

    def owns(self, location: RbdLocation) -> bool:
        """Whether it is in this namespace of this pool of this cluster; the short form says nothing against it."""
        if location.fsid is None:
            return True
        place = (location.pool, location.namespace)
        return place == (self.conf.rbd_store_pool, self.conf.rbd_store_namespace) and (
            location.fsid.lower() == self._call(lambda: self.cluster.fsid, self.name).lower()
        )

    # -- The driver contract ----------------------------------------------------------------------------------

    def open_writer(self, image_id: str, size: int | None, context: Any) -> RbdWriter:
        """Looks whether the id is taken, which is cheap; renaming finds out for good."""
        import rbd

        try:
            self.cluster.get().open(image_id, read_only=True).close()
        except rbd.ImageNotFound:
            return RbdWriter(self, image_id, size)
        raise Duplicate(f"image {image_id!r} in store {self.name}: pool {self.conf.rbd_store_pool} has it already")

    def open_reader(self, location: RbdLocation, offset: int, length: int | None, context: Any) -> RbdReader:
        """Open the image at its snapshot."""
        return RbdReader(self, location)

    def measure(self, location: RbdLocation, context: Any) -> int:
        """The size at the snapshot."""
        return self.size_and_id(location)[0]

    def size_and_id(self, location: RbdLocation) -> tuple[int, str]:
        """The size at the snapshot, and the id that RBD gave the image: another one of its name has another."""
        with self.cluster.get().open(location.image, read_only=True) as image:
            return int(_snapshot(image, location)["size"]), str(image.id())

    def remove(self, location: RbdLocation, context: Any) -> None:
        """See removal.py."""
        conf = self.conf
        removal.remove(
            self.cluster.get().freeing,
            location,
            protect=conf.rbd_store_protect_snapshot,
            to_trash=conf.rbd_store_delete_in_use == "trash",
        )

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """See errors.py. What times out may do so because the pool is full."""
        if code_of(error) in DISCONNECTED:
            self.cluster.drop()
        found = storelib_error(error, subject)
        if isinstance(found, TransferTimeout) and self.cluster.is_full():
            return StorageFull(f"{subject}: pool {self.conf.rbd_store_pool} is full")
        return found

    # -- Looking after the store ------------------------------------------------------------------------------

    def candidate_locations(self, image_id: str) -> list[RbdLocation]:
        """The only one."""
        return [self.location(image_id)]

    def images(self) -> Iterator[ImageInfo]:
        """Every image with its snapshot, whoever made it."""
        import rbd

        connection = self.cluster.get()
        for name in rbd.RBD().list(connection.ioctx):
            try:
                with connection.open(name, read_only=True) as image:
                    found = self._info(self.location(name), image)
                    alive = not temporary.is_temporary(name, image)
            except (rbd.ImageNotFound, NotFound):
                continue
            if alive:
                yield found

    def inspect(self, location: RbdLocation, context: Any) -> ImageInfo:
        """What the image says of itself."""
        conf = self.conf
        place = (self.cluster.fsid, conf.rbd_store_pool, conf.rbd_store_namespace)
        with self.cluster.get().open(location.image, read_only=True) as image:
            return self._info(RbdLocation(location.image, location.snapshot, *place), image)

    def _info(self, location: RbdLocation, image: Any) -> ImageInfo:
        snapshot = _snapshot(image, location)
        made = garbage.posix_time(image.get_snap_timestamp(snapshot["id"]))
        return ImageInfo(location.uri, int(snapshot["size"]), location.image, made, str(image.id()))

    def garbage(self, older_than: float, prefix: str | None) -> Iterator[Garbage]:
        """See garbage.py."""
        return garbage.find(self, older_than, prefix or "")

    def discard(self, garbage_: Garbage) -> bool:
        """See garbage.py."""
        return garbage.discard(self, self.cluster.get().freeing, garbage_.handle)

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
        return Health(f"connected to pool {self.conf.rbd_store_pool} of cluster {connection.fsid}{full}", free, total)

    # -- What the cluster does by itself ----------------------------------------------------------------------

    def server_side_copy(self, source: RbdLocation, image_id: str, context: Any) -> RbdCopy:
        """A clone; without Capability.COPY, as rbd_store_copy_mode says, this is not asked."""
        return RbdCopy(self, source, image_id, context)


def _snapshot(image: Any, location: RbdLocation) -> Any:
    """What an image that is open at no snapshot knows of one, without another request."""
    for found in image.list_snaps():
        if found["name"] == location.snapshot:
            return found
    raise NotFound(f"{location}: there is no such snapshot")

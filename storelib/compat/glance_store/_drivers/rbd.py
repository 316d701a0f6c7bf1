# SPDX-License-Identifier: Apache-2.0
"""The rbd driver of storelib."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from storelib.compat import options
from storelib.compat.errors import translating
from storelib.compat.glance_store import exceptions
from storelib.compat.glance_store._drivers.native import NativeLocation, NativeStore
from storelib.drivers.rbd.cluster import snapshots
from storelib.drivers.rbd.location import RbdLocation
from storelib.drivers.rbd.publication import id_of, is_being_deleted
from storelib.drivers.rbd.reader import RbdReader
from storelib.drivers.rbd.store import RbdStore
from storelib.transfer.contract import Deletion, MiB
from storelib.uris import quote


class OldImage(NamedTuple):
    """Which image without a snapshot a deletion met first."""

    id: str | None


class RbdStoreWithOldImages(RbdStore):
    """Knows images without a snapshot, too: Glance wrote such ones before it made any, and their URI is the name."""

    def open_reader(self, location: RbdLocation, offset: int, length: int | None, context: Any) -> RbdReader:
        """The image as it is, where it is an old one."""
        return RbdReader(self.cluster, self._as_it_is(location) or location)

    def measure(self, location: RbdLocation, context: Any) -> int:
        """The same of the size."""
        if self._as_it_is(location) is None:
            return super().measure(location, context)
        with self.cluster.get().open(location.image, read_only=True) as image:
            return int(image.size())

    def remove(self, location: RbdLocation, context: Any, deletion: Deletion) -> None:
        """The same for an old image, of which there is no snapshot that others could have cloned."""
        is_old = isinstance(deletion.image, OldImage)
        if not is_old and (deletion.image is not None or self._as_it_is(location) is None):
            super().remove(location, context, deletion)
        else:
            import rbd

            connection = self.cluster.get().freeing
            deletion.meet(OldImage(id_of(connection, location.image)), location)
            rbd.RBD().remove(connection.ioctx, location.image)

    def _as_it_is(self, location: RbdLocation) -> RbdLocation | None:
        """Where an image without any snapshot is; None for all others, and those that are being deleted."""
        if location.fsid is not None:
            return None
        with self.cluster.get().open(location.image, read_only=True) as image:
            if snapshots(image) or is_being_deleted(image):
                return None
        return replace(location, snapshot=None)  # type: ignore[arg-type]


class StoreLocation(NativeLocation):
    """A URI of it."""

    DRIVER = "rbd"

    def composed(self, specs: Mapping[str, Any]) -> str:
        """All four parts, or the image alone."""
        parts = [str(specs.get(name) or "") for name in ("fsid", "pool", "image", "snapshot")]
        return f"rbd://{'/'.join(map(quote, parts))}" if all(parts) else f"rbd://{specs['image']}"


class Store(NativeStore):
    """Images in Ceph, as glance_store names and configures them."""

    DRIVER = "rbd"
    NAME = "rbd"
    OPTIONS = options.known_options("rbd")

    def native_class(self) -> Any:
        """The one that knows old images."""
        return RbdStoreWithOldImages

    def prefix(self) -> str | None:
        """Cluster and pool; asks the cluster, which must not keep a service from starting."""
        try:
            with translating():
                found = self._store().cluster.location("image")
        except (exceptions.GlanceStoreException, exceptions.BackendException):
            return None
        return str(found.uri).rpartition("/")[0].rpartition("/")[0] + "/"

    @property
    def pool(self) -> str:
        """The pool of the images."""
        return str(self.options.rbd_store_pool)

    @property
    def chunk_size(self) -> int:
        """Bytes in one object."""
        return int(self.options.rbd_store_chunk_size) * MiB

    @property
    def thin_provisioning(self) -> bool:
        """Whether runs of zeros are left out."""
        return bool(self.options.rbd_thin_provisioning)

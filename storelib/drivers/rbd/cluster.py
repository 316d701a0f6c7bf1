# SPDX-License-Identifier: Apache-2.0
"""RbdCluster: the connection of a store to Ceph, its options read once, and where and how its images are stored.

Nothing here decides what becomes visible: that is publication.py.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
from typing import Any

from storelib.driver import ImageInfo
from storelib.drivers.rbd.errors import ADVICE, storelib_error
from storelib.drivers.rbd.location import SNAPSHOT, RbdLocation
from storelib.exceptions import NotFound, StorageFull, StoreError, TransferTimeout, misconfigured
from storelib.librbd.cluster import Cluster, Settings, require_bindings
from storelib.librbd.errors import DISCONNECTED, code_of
from storelib.librbd.images import runs_by_object_map
from storelib.times import posix_seconds
from storelib.transfer.contract import MiB, Options
from storelib.transfer.live import LiveAdds

#: Where Ceph looks first.
_CEPH_CONF = "/etc/ceph/ceph.conf"
_LARGEST_CONF = 1 << 20
_FSID = re.compile(r"^[ \t]*fsid[ \t]*=[ \t]*([0-9A-Fa-f-]{36})\b", re.MULTILINE)


def identity(conf: Options) -> str:
    """What tells the cluster from others without asking it: its fsid if ceph.conf has it, else the file's path."""
    path = os.path.realpath(os.path.expanduser(conf.rbd_store_ceph_conf or _CEPH_CONF))
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        if found := _FSID.search(file.read(_LARGEST_CONF)):
            return found[1].lower()
    return path


class RbdCluster(Cluster):
    """The pool, and namespace, of a store; raises BadStoreConfiguration for options that cannot be.

    Safe to use from many threads; making one imports nothing and opens nothing.
    """

    def __init__(self, conf: Options, store_name: str) -> None:
        require_bindings("rbd")
        for option in ("rbd_store_ceph_conf", "rbd_store_keyring"):
            path = getattr(conf, option)
            if path and not os.access(path, os.R_OK):
                raise misconfigured(store_name, option, f"{path} cannot be read")
        if not conf.rbd_store_pool:
            raise misconfigured(store_name, "rbd_store_pool", "the name of a pool")
        super().__init__(_settings(conf), f"store {store_name}", ADVICE)
        self.store_name = store_name
        self.pool: str = conf.rbd_store_pool
        self.namespace: str = conf.rbd_store_namespace
        self.data_pool: str | None = conf.rbd_store_data_pool or None
        #: Reads or writes of one image in flight at most.
        self.concurrency: int = conf.rbd_store_concurrency
        #: Whether runs of zeros are left out of new images.
        self.thin: bool = conf.rbd_thin_provisioning
        #: Whether the snapshot of new images is protected.
        self.protect: bool = conf.rbd_store_protect_snapshot
        #: The size of the objects of new images, as a power of two.
        self.order = (int(conf.rbd_store_chunk_size) * MiB).bit_length() - 1
        #: Writers still in use by the names of what they write, so that gc leaves that alone.
        self.live: LiveAdds[object] = LiveAdds()

    def location(self, image_id: str, snapshot: str = SNAPSHOT) -> RbdLocation:
        """Where the image with this id is, or would be."""
        return RbdLocation(image_id, snapshot, self.fsid, self.pool, self.namespace)

    def size_and_id(self, location: RbdLocation) -> tuple[int, str]:
        """The size at the snapshot, and the id that RBD gave the image: another one of its name has another."""
        with self.get().open(location.image, read_only=True) as image:
            return int(_snapshot(image, location)["size"]), str(image.id())

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """See errors.py. What times out may do so because the pool is full."""
        if code_of(error) in DISCONNECTED:
            self.drop()
        found = storelib_error(error, subject)
        if isinstance(found, TransferTimeout) and self.is_full():
            return StorageFull(f"{subject}: pool {self.pool} is full")
        return found


def _settings(conf: Options) -> Settings:
    return Settings(
        pool=conf.rbd_store_pool,
        namespace=conf.rbd_store_namespace,
        data_pool=conf.rbd_store_data_pool or "",
        conf_file=conf.rbd_store_ceph_conf or "",
        user=conf.rbd_store_user,
        keyring=conf.rbd_store_keyring,
        connect_timeout=conf.rados_connect_timeout,
        osd_op_timeout=conf.rados_osd_op_timeout,
        mon_op_timeout=conf.rados_mon_op_timeout,
        # No single question takes longer than a transfer may go without progress.
        longest_timeout=conf.transfer_timeout,
        options=(("rbd_default_clone_format", conf.rbd_store_clone_format),),
    )


# -- What an open image says of itself -----------------------------------------------------------------------------


def describe(location: RbdLocation, image: Any) -> ImageInfo:
    """What is known of an image that is open at no snapshot; raises NotFound where the location's is not there."""
    snapshot = _snapshot(image, location)
    made = posix_seconds(image.get_snap_timestamp(snapshot["id"]))
    return ImageInfo(location.uri, int(snapshot["size"]), location.image, made, str(image.id()))


def _snapshot(image: Any, location: RbdLocation) -> Any:
    """What an image that is open at no snapshot knows of one, without another request."""
    for found in image.list_snaps():
        if found["name"] == location.snapshot:
            return found
    raise NotFound(f"{location}: there is no such snapshot")


def snapshots(image: Any) -> list[str]:
    """The names of all snapshots."""
    return [str(found["name"]) for found in image.list_snaps()]


def has_clones(image: Any) -> bool:
    """Whether other images depend on some snapshot of it, those in the trash included."""
    return any(True for _ in image.list_children2())


def used(image: Any) -> int:
    """Bytes that the image takes up at most."""
    runs = runs_by_object_map(image)
    return int(image.size()) if runs is None else sum(run.end - run.start for run in runs)


def modified(image: Any) -> float:
    """When it was made or last written to, in POSIX seconds."""
    # The bindings tell this one time in the zone of the process, all others in UTC.
    written: datetime.datetime = image.modify_timestamp()
    return max(posix_seconds(image.create_timestamp()), written.timestamp())

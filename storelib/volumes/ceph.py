# SPDX-License-Identifier: Apache-2.0
"""Volumes in Ceph: opened with librbd, straight from what Cinder says of them; neither root nor a kernel module."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from storelib.exceptions import RemoteServiceUnavailable, StorageFull, StoreError, TransferTimeout
from storelib.librbd import images
from storelib.librbd.cluster import Cluster, require_bindings
from storelib.librbd.cluster import Settings as ClusterSettings
from storelib.librbd.errors import DISCONNECTED, Advice, code_of, storelib_error
from storelib.transfer.contract import Extent
from storelib.transfer.forking import forget_in_child
from storelib.volumes.disks import Disk
from storelib.volumes.settings import Settings

LOG = logging.getLogger(__name__)

_USER = "; check cinder_rbd_keyring"
_ADVICE = Advice(
    connecting={
        errno.ENOENT: "; check cinder_rbd_ceph_conf and cinder_rbd_keyring",
        errno.EPERM: _USER,
        errno.EACCES: _USER,
        errno.EINVAL: "; check cinder_rbd_ceph_conf and cinder_rbd_keyring",
    },
    pool=", which Cinder names; check cinder_rbd_ceph_conf",
    calls={
        errno.EPERM: _USER,
        errno.EACCES: _USER,
        errno.ETIMEDOUT: " (option cinder_rbd_op_timeout)",
    },
)


class Clusters:
    """Opens volumes in Ceph for one store. Safe to use from many threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._clusters: dict[ClusterSettings, Cluster] = {}
        forget_in_child(self)

    def forget_parent(self) -> None:
        """In a forked child: a lock may have been held, and the clusters forget by themselves."""
        self._lock = threading.Lock()

    def open(self, info: Mapping[str, Any], *, read_only: bool) -> RbdDisk:
        """The volume that an attachment's ``connection_info`` is about."""
        pool, slash, name = str(info.get("name")).rpartition("/")
        pool, _, namespace = pool.partition("/")
        if not (slash and pool and name):
            raise RemoteServiceUnavailable("Cinder did not tell where in Ceph the volume is")
        return RbdDisk(self._cluster(info, pool, namespace), name, read_only)

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """The error of storelib for one of Ceph; None if it is none of its."""
        clusters = list(self._clusters.values())
        if code_of(error) in DISCONNECTED:
            for cluster in clusters:
                cluster.drop()
        found = storelib_error(error, subject, _ADVICE)
        # A full pool shows only so: what is written to it is not answered.
        if isinstance(found, TransferTimeout) and any(cluster.is_full() for cluster in clusters):
            return StorageFull(f"{subject}: the pool of the volumes is full")
        return found

    def _cluster(self, info: Mapping[str, Any], pool: str, namespace: str) -> Cluster:
        require_bindings("cinder")
        settings = self._settings_of(info, pool, namespace)
        with self._lock:
            if settings not in self._clusters:
                self._clusters[settings] = Cluster(settings, f"store {self._settings.store_name}", _ADVICE)
            return self._clusters[settings]

    def _settings_of(self, info: Mapping[str, Any], pool: str, namespace: str) -> ClusterSettings:
        ours = self._settings
        hosts = tuple(
            _address(host, port) for host, port in zip(info.get("hosts") or (), info.get("ports") or (), strict=False)
        )
        return ClusterSettings(
            pool,
            namespace,
            # What Cinder says of the monitors is newer than a file, which may be a remainder of something else.
            conf_file=ours.ceph_conf,
            mon_hosts=() if ours.ceph_conf else hosts,
            cluster_name=info.get("cluster_name") or None,
            user=info.get("auth_username") or None,
            keyring=ours.ceph_keyring,
            connect_timeout=ours.ceph_connect_timeout,
            osd_op_timeout=ours.ceph_op_timeout,
            mon_op_timeout=ours.ceph_connect_timeout,
            longest_timeout=ours.transfer_timeout,
        )


class RbdDisk(Disk):
    """A volume as an image of Ceph."""

    def __init__(self, cluster: Cluster, name: str, read_only: bool) -> None:
        import rbd

        self._connection = cluster.get()
        try:
            self._image = self._connection.open(name, read_only=read_only)
        except rbd.ImageNotFound as error:
            # Cinder has it, so it is no image that is missing.
            raise StoreError(
                f"volume {name} is not in the pool of Ceph in which Cinder says it is; check cinder_rbd_ceph_conf, if "
                "that is another cluster's, and Cinder's own log"
            ) from error
        self._flusher = images.Flusher(f"volume {name}")

    def size(self) -> int:
        """Bytes of the volume now."""
        return int(self._image.size())

    def read_into(self, offset: int, view: memoryview) -> int:
        """Fill ``view`` with bytes from ``offset`` on; returns how many."""
        return images.read_into(self._image, offset, view)

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``."""
        images.write(self._image, offset, data)

    def flush(self) -> None:
        """What was written is safe when this returns."""
        self._flusher.flush(self._image)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Data and holes of that range; exact ones, asked for bit by bit, where the object map has objects at all."""
        return images.extents_of(self._runs(offset, offset + length), offset, length)

    def _runs(self, start: int, end: int) -> Iterator[images.Run]:
        for rough in images.runs_by_object_map(self._image) or [images.Run(start, end)]:
            first, last = max(rough.start, start), min(rough.end, end)
            for span in images.exact_spans(first, last):
                yield from images.exact_runs(self._image, *span)

    def close(self) -> None:
        """Whatever comes of it: what was written was flushed, or is of no use any more. May be called again."""
        import rbd

        image, self._image = self._image, None
        if image is not None:
            try:
                image.close()
            except rbd.Error as error:
                LOG.warning("closing a volume: %s", error)


def _address(host: object, port: object) -> str:
    """A monitor as Ceph takes it."""
    plain = str(host).strip("[]")
    return f"[{plain}]:{port}" if ":" in plain else f"{plain}:{port}"

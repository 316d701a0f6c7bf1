# SPDX-License-Identifier: Apache-2.0
"""Cluster: the one connection of a store to Ceph, shared by all threads, and the images that are opened through it.

A librados handle that is used or closed in a forked child hangs for ever, so a child gets a new one and keeps what it
has inherited until it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import json
import math
import os
import re
import threading
import time
import weakref
from dataclasses import dataclass, replace
from typing import Any

from storelib.drivers.rbd.errors import connection_error
from storelib.exceptions import BadStoreConfiguration, MissingDependency, StoreError
from storelib.transfer.guard import in_fresh_thread

#: Where Ceph looks first.
_CEPH_CONF = "/etc/ceph/ceph.conf"
_LARGEST_CONF = 1 << 20
_FSID = re.compile(r"^\s*fsid\s*=\s*([0-9A-Fa-f-]{36})\b", re.MULTILINE)


@dataclass(frozen=True, eq=False)
class Connection:
    """A connected librados handle and the pool, and namespace, of the store."""

    rados: Any
    ioctx: Any
    fsid: str
    freeing_ioctx: Any

    @property
    def freeing(self) -> Connection:
        """The same for removing things, which works in a full pool too; anything else waits there for room."""
        return replace(self, ioctx=self.freeing_ioctx)

    def open(self, name: str, snapshot: str | None = None, read_only: bool = False) -> Any:
        """An ``rbd.Image``. Only one that is open for writing is watched, which keeps others from removing it."""
        return _at(snapshot, _tracked_image()(self.ioctx, name, read_only=read_only))

    def open_id(self, image_id: str, snapshot: str | None = None, read_only: bool = False) -> Any:
        """The same by the id that RBD gave the image, under whatever name it goes now, in the trash too."""
        return _at(snapshot, _tracked_image()(self.ioctx, image_id=image_id, read_only=read_only))

    def ask(self, **command: str) -> Any:
        """The answer of the monitors to a command; None if they give none."""
        status, answer, _ = self.rados.mon_command(json.dumps({**command, "format": "json"}), b"")
        return None if status else json.loads(answer)


def configured_cluster(conf: Any) -> str:
    """What tells the cluster from others without asking it: its fsid if ceph.conf has that, else the file's path."""
    path = os.path.realpath(os.path.expanduser(conf.rbd_store_ceph_conf or _CEPH_CONF))
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        if found := _FSID.search(file.read(_LARGEST_CONF)):
            return found[1].lower()
    return path


class Cluster:
    """Connects at first use. Safe to use from many threads; making one imports nothing and opens nothing."""

    def __init__(self, conf: Any, store_name: str) -> None:
        self._conf = conf
        self._store_name = store_name
        for module in ("rados", "rbd"):
            if importlib.util.find_spec(module) is None:
                raise MissingDependency(
                    "the rbd driver needs the Python bindings of Ceph: install the Debian packages python3-rados and "
                    "python3-rbd, and make them visible in this environment (.ci/ceph-bindings PYTHON does)"
                )
        for option in ("rbd_store_ceph_conf", "rbd_store_keyring"):
            path = getattr(conf, option)
            if path and not os.access(path, os.R_OK):
                raise BadStoreConfiguration(f"store {store_name}, option {option}: {path} cannot be read")
        if not conf.rbd_store_pool:
            raise BadStoreConfiguration(f"store {store_name}, option rbd_store_pool: the name of a pool")
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        #: What the latest attempt to connect ended with, if it failed, and when.
        self._refusal: StoreError | None = None
        self._refused_at = 0.0
        self._configured_fsid: str | None = None
        _clusters.add(self)

    @property
    def fsid(self) -> str:
        """The cluster's id: from ceph.conf where it stands there, else the cluster is asked."""
        connection = self._connection
        if connection is not None:
            return connection.fsid
        if self._configured_fsid is None:
            fsid = str(self._handle().conf_get("fsid") or "")
            self._configured_fsid = fsid if fsid.strip("0-") else ""
        return self._configured_fsid or self.get().fsid

    def get(self) -> Connection:
        """The connection; raises what stands in its way, as an error of storelib."""
        connection = self._connection
        if connection is not None:
            return connection
        asked = time.monotonic()
        with self._lock:
            if self._connection is None:
                self._connection = self._try_to_connect(asked)
            return self._connection

    def _try_to_connect(self, asked: float) -> Connection:
        """Connect; who waited for another one's attempt gets its error, or many would wait one after the other."""
        if self._refusal is not None and self._refused_at >= asked:
            raise type(self._refusal)(str(self._refusal), transient=self._refusal.transient) from self._refusal
        try:
            return self._connect()
        except StoreError as error:
            self._refusal, self._refused_at = error.with_traceback(None), time.monotonic()
            raise

    def drop(self) -> None:
        """The connection is of no more use: the next one who asks gets a new one."""
        self._connection = None

    def is_full(self) -> bool:
        """Whether writes wait for room, as far as the monitors tell. Raises nothing."""
        connection = self._connection
        with contextlib.suppress(Exception):
            osdmap = connection.ask(prefix="osd dump") if connection is not None else None
            pools = {self._conf.rbd_store_pool, self._conf.rbd_store_data_pool}
            flags = [pool["flags_names"] for pool in (osdmap or {}).get("pools", ()) if pool["pool_name"] in pools]
            words = {word for names in [*flags, (osdmap or {}).get("flags", "")] for word in names.split(",")}
            return bool(words & {"full", "full_quota"})
        return False

    def room(self) -> tuple[int, int] | None:
        """Bytes free and bytes in all in the pool that holds the bytes; None if the cluster does not know."""
        data_pool = self._conf.rbd_store_data_pool or self._conf.rbd_store_pool
        connection = self.get()
        # Whatever else a monitor answers: then it does not know.
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            for pool in connection.ask(prefix="df")["pools"]:
                if pool["name"] == data_pool and pool["stats"].get("max_avail"):
                    free = int(pool["stats"]["max_avail"])
                    return free, free + int(pool["stats"].get("stored", 0))
        return None

    def _handle(self) -> Any:
        import rados

        conf = self._conf
        timeouts = {
            "client_mount_timeout": conf.rados_connect_timeout,
            "rados_osd_op_timeout": conf.rados_osd_op_timeout,
            "rados_mon_op_timeout": conf.rados_mon_op_timeout,
        }
        # No single question takes longer than a transfer may go without progress; Ceph takes whole seconds only.
        longest = math.ceil(conf.transfer_timeout)
        settings = {name: str(min(seconds, longest)) for name, seconds in timeouts.items() if seconds >= 0}
        # Each byte passes once: a cache would only cost a copy, and hide the error of a write until the flush.
        settings["rbd_cache"] = "false"
        settings["rbd_default_clone_format"] = conf.rbd_store_clone_format
        if conf.rbd_store_keyring:
            settings["keyring"] = conf.rbd_store_keyring
        try:
            return rados.Rados(
                conffile=conf.rbd_store_ceph_conf or rados.Rados.DEFAULT_CONF_FILES,
                rados_id=conf.rbd_store_user or None,
                conf=settings,
            )
        except rados.Error as error:
            raise connection_error(error, self._store_name) from error

    def _connect(self) -> Connection:
        import rados

        handle = self._handle()
        try:
            # Ceph draws the number by which it knows a client from a generator of the calling thread, whose state
            # forked children inherit: all would have one number, and be shut out with the first of them that died.
            in_fresh_thread(handle.connect, late=lambda _: handle.shutdown())
        except rados.Error as error:
            raise connection_error(error, self._store_name) from error
        try:
            freeing_ioctx = self._open_pool(handle)
            freeing_ioctx.set_osdmap_full_try()
            return Connection(handle, self._open_pool(handle), str(handle.get_fsid()), freeing_ioctx)
        except BaseException:
            handle.shutdown()
            raise

    def _open_pool(self, handle: Any) -> Any:
        import rados

        pool = self._conf.rbd_store_pool
        try:
            ioctx = handle.open_ioctx(pool)
        except rados.ObjectNotFound as error:
            raise BadStoreConfiguration(
                f"store {self._store_name}: the cluster has no pool {pool!r}; check rbd_store_pool"
            ) from error
        if self._conf.rbd_store_namespace:
            ioctx.set_namespace(self._conf.rbd_store_namespace)
        return ioctx

    def forget_parent(self) -> None:
        """In a forked child: neither use nor close the parent's connection, nor wait for a lock its threads held."""
        self._lock = threading.Lock()
        if self._connection is not None:
            # And with it all that it refers to.
            _never_collect(self._connection)
        self._connection = None


def _at(snapshot: str | None, image: Any) -> Any:
    """The image at a snapshot.

    Opened there in one step, librbd 16 aborts the process about once in two thousand times, in two steps it does not.
    """
    if snapshot is not None:
        try:
            image.set_snap(snapshot)
        except BaseException:
            image.close()
            raise
    return image


@functools.cache
def _tracked_image() -> Any:
    """``rbd.Image``, each of them known to ``_forget_parents``."""
    import rbd

    class TrackedImage(rbd.Image):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._owner = os.getpid()
            super().__init__(*arguments, **options)
            _images.add(self)

        def close(self) -> None:
            # A forked child that closes what it has inherited waits for ever. (The destructor, which a child never
            # calls, has no more attributes.)
            if getattr(self, "_owner", os.getpid()) == os.getpid():
                super().close()

    return TrackedImage


def _never_collect(inherited: object) -> None:
    """Its destructor would wait for threads that only the parent has."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


_clusters: weakref.WeakSet[Cluster] = weakref.WeakSet()
_images: weakref.WeakSet[Any] = weakref.WeakSet()


def _forget_parents() -> None:
    for image in list(_images):
        _never_collect(image)
    for cluster in list(_clusters):
        cluster.forget_parent()


os.register_at_fork(after_in_child=_forget_parents)

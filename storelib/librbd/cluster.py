# SPDX-License-Identifier: Apache-2.0
"""Cluster: one connection to Ceph, shared by all threads, and the images of one pool that are opened through it.

A librados handle that is used or closed in a forked child hangs for ever, so a child gets a new one and keeps what it
has inherited until it ends.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import ctypes
import functools
import importlib.util
import json
import math
import os
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

from storelib.exceptions import BadStoreConfiguration, MissingDependency, StoreError
from storelib.librbd.errors import Advice, connection_error
from storelib.transfer.forking import forget_in_child
from storelib.transfer.guard import in_fresh_thread

#: Seconds that a process which ends waits for connections that are being shut down.
_GRACE = 5.0


@dataclass(frozen=True)
class Settings:
    """Which pool of which cluster, as whom, and how long a question may take."""

    pool: str
    namespace: str = ""
    #: The pool of the bytes, where it is another one.
    data_pool: str = ""
    #: Path of Ceph's configuration file; empty: where Ceph looks; None: there is none, all is said here.
    conf_file: str | None = ""
    #: Host and port of each monitor, an IPv6 address in brackets; none: conf_file says it.
    mon_hosts: tuple[str, ...] = ()
    #: What ``$cluster`` stands for in Ceph's configuration; None: what librados makes of conf_file.
    cluster_name: str | None = None
    #: Without the "client." before it; None: what librados chooses.
    user: str | None = None
    #: Path of the file with the user's key; or else the key itself, in base64.
    keyring: str | None = None
    key: str | None = field(default=None, repr=False)
    #: Seconds; below 0: what conf_file says; 0: for ever.
    connect_timeout: int = -1
    osd_op_timeout: int = -1
    mon_op_timeout: int = -1
    #: Seconds that none of the three may exceed.
    longest_timeout: float = math.inf
    #: Further options of Ceph.
    options: tuple[tuple[str, str], ...] = ()

    def of_ceph(self) -> dict[str, str]:
        """All of it that is said with options of Ceph, which take whole seconds only."""
        timeouts = {
            "client_mount_timeout": self.connect_timeout,
            "rados_osd_op_timeout": self.osd_op_timeout,
            "rados_mon_op_timeout": self.mon_op_timeout,
        }
        longest = self.longest_timeout if math.isinf(self.longest_timeout) else math.ceil(self.longest_timeout)
        said = {"mon_host": ",".join(self.mon_hosts), "keyring": self.keyring, "key": self.key}
        return {
            **{name: str(min(seconds, longest)) for name, seconds in timeouts.items() if seconds >= 0},
            # Each byte passes once: a cache would only cost a copy, and hide the error of a write until the flush.
            "rbd_cache": "false",
            **dict(self.options),
            **{name: value for name, value in said.items() if value},
        }


@dataclass(frozen=True, eq=False)
class Connection:
    """A connected librados handle and the pool, and namespace."""

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
        """The response of the monitors to a command; None if they give none."""
        status, response, _ = self.rados.mon_command(json.dumps({**command, "format": "json"}), b"")
        return None if status else json.loads(response)


def require_bindings(driver: str) -> None:
    """Raise MissingDependency unless Ceph's Python bindings are installed; imports nothing."""
    if any(importlib.util.find_spec(module) is None for module in ("rados", "rbd")):
        raise MissingDependency(
            f"the {driver} driver needs the Python bindings of Ceph: install the Debian packages python3-rados and "
            "python3-rbd, and make them visible in this environment (.ci/ceph-bindings PYTHON does)"
        )


def _refuse_libtorrent(subject: str) -> None:
    """Raise BadStoreConfiguration where librados would end the process at its first connection.

    Both have C++ symbols that a process has once; librados loaded first goes well with libtorrent.
    """
    # In the order in which they were loaded.
    loaded = [name for name in list(sys.modules) if name in ("libtorrent", "rados")]
    if loaded[:1] == ["libtorrent"]:
        raise BadStoreConfiguration(
            f"{subject}: this process loaded libtorrent before librados, which would end it: "
            "import rados first, or use the store in another process"
        )


class Cluster:
    """Connects at first use. Safe to use from many threads; making one imports nothing and opens nothing.

    ``subject`` and ``advice`` are for the errors: who connects, and what to look at.
    """

    def __init__(self, settings: Settings, subject: str, advice: Advice) -> None:
        self._settings = settings
        self._subject = subject
        self._advice = advice
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        #: What the latest attempt to connect ended with, if it failed, and when.
        self._refusal: StoreError | None = None
        self._refused_at = 0.0
        self._configured_fsid: str | None = None
        forget_in_child(self)

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
        """The connection is of no more use: the next caller gets a new one."""
        self._connection = None

    def is_full(self) -> bool:
        """Whether writes wait for room, as far as the monitors tell. Raises nothing."""
        connection = self._connection
        with contextlib.suppress(Exception):
            osdmap = connection.ask(prefix="osd dump") if connection is not None else None
            pools = {self._settings.pool, self._settings.data_pool}
            flags = [pool["flags_names"] for pool in (osdmap or {}).get("pools", ()) if pool["pool_name"] in pools]
            words = {word for names in [*flags, (osdmap or {}).get("flags", "")] for word in names.split(",")}
            return bool(words & {"full", "full_quota"})
        return False

    def room(self) -> tuple[int, int] | None:
        """Bytes free and bytes in all in the pool that holds the bytes; None if the cluster does not know."""
        data_pool = self._settings.data_pool or self._settings.pool
        connection = self.get()
        # Whatever else a monitor answers: then it does not know.
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            for pool in connection.ask(prefix="df")["pools"]:
                if pool["name"] == data_pool and pool["stats"].get("max_avail"):
                    free = int(pool["stats"]["max_avail"])
                    return free, free + int(pool["stats"].get("stored", 0))
        return None

    def _handle(self) -> Any:
        _refuse_libtorrent(self._subject)
        import rados

        settings = self._settings
        try:
            return _tracked_rados()(
                conffile=rados.Rados.DEFAULT_CONF_FILES if settings.conf_file == "" else settings.conf_file,
                clustername=settings.cluster_name,
                rados_id=settings.user or None,
                conf=settings.of_ceph(),
            )
        except rados.Error as error:
            raise connection_error(error, self._subject, self._advice) from error

    def _connect(self) -> Connection:
        import rados

        handle = self._handle()
        try:
            # Ceph draws the number by which it knows a client from a generator of the calling thread, whose state
            # forked children inherit: all would have one number, and be shut out with the first of them that died.
            in_fresh_thread(handle.connect, late=lambda _: handle.shutdown())
        except rados.Error as error:
            # Not when it is collected: the error holds it, and may be kept.
            handle.shutdown()
            raise connection_error(error, self._subject, self._advice) from error
        try:
            freeing_ioctx = self._open_pool(handle)
            freeing_ioctx.set_osdmap_full_try()
            return Connection(handle, self._open_pool(handle), str(handle.get_fsid()), freeing_ioctx)
        except BaseException:
            handle.shutdown()
            raise

    def _open_pool(self, handle: Any) -> Any:
        import rados

        pool = self._settings.pool
        try:
            ioctx = handle.open_ioctx(pool)
        except rados.ObjectNotFound as error:
            raise BadStoreConfiguration(
                f"{self._subject}: the cluster has no pool {pool!r}{self._advice.pool}"
            ) from error
        if self._settings.namespace:
            ioctx.set_namespace(self._settings.namespace)
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
def _tracked_rados() -> Any:
    """``rados.Rados`` that is shut down once nobody has it: the bindings leave it open, with a dozen descriptors.

    Everything that is open in it refers to it.
    """
    import rados

    ending = _Ending()

    class TrackedRados(rados.Rados):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._owner = os.getpid()
            super().__init__(*arguments, **options)

        def __del__(self) -> None:
            # At the end of the process no thread can be begun any more, and nothing needs to be freed.
            if self.state in ("configuring", "connected") and self._owner == os.getpid() and not sys.is_finalizing():
                ending.shut_down(self)

    return TrackedRados


class _Ending:
    """Connections that are shut down beside everything else, as each may wait for its cluster.

    A process that ends waits for them a while: librados is not made to be torn down beside its exit.
    """

    def __init__(self) -> None:
        self._under_way: set[Any] = set()
        atexit.register(self._wait)
        forget_in_child(self)

    def shut_down(self, handle: Any) -> None:
        """Begin it; from a destructor, which may be called in any thread, wherever that is."""
        self._under_way.add(handle)
        try:
            # Not threading.Thread: this thread may be in its code, and hold its locks.
            _thread.start_new_thread(self._run, (handle,))
        except RuntimeError:
            # No thread can be begun any more; what is open is closed with the process.
            self._under_way.discard(handle)

    def _run(self, handle: Any) -> None:
        try:
            handle.shutdown()
        finally:
            self._under_way.discard(handle)

    def _wait(self) -> None:
        end = time.monotonic() + _GRACE
        while self._under_way and time.monotonic() < end:
            time.sleep(0.01)

    def forget_parent(self) -> None:
        """In a forked child: those threads are the parent's alone."""
        self._under_way = set()


@functools.cache
def _tracked_image() -> Any:
    """``rbd.Image`` that a forked child neither closes nor collects."""
    import rbd

    class TrackedImage(rbd.Image):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._owner = os.getpid()
            super().__init__(*arguments, **options)
            forget_in_child(self)

        def close(self) -> None:
            # A forked child that closes what it has inherited waits for ever. (The destructor, which a child never
            # calls, has no more attributes.)
            if getattr(self, "_owner", os.getpid()) == os.getpid():
                super().close()

        def forget_parent(self) -> None:
            _never_collect(self)

    return TrackedImage


def _never_collect(inherited: object) -> None:
    """Its destructor would wait for threads that only the parent has."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))

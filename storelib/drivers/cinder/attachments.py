# SPDX-License-Identifier: Apache-2.0
"""Attachments: volumes connected to this host, each for one transfer or shared by the readers of one image.

Only Cinder's attachment API is used. A transfer has a hold, a locked file named after its token, in which each
attachment is noted as soon as it is there. The lock ends with the transfer, however that ends: what an unlocked file
tells of, nobody holds, and gc finds it. Transfers of other hosts are none of ours to judge.

Behind an attachment are the disks: volumes in Ceph are opened with librbd, straight from what Cinder says of them,
which needs neither root nor a kernel module. Volumes of other kinds are refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from storelib.drivers.cinder.api import Api
from storelib.drivers.cinder.errors import status_of
from storelib.exceptions import (
    BadStoreConfiguration,
    OperationNotSupported,
    RemoteServiceUnavailable,
    StorageFull,
    StoreError,
    TransferTimeout,
)
from storelib.librbd import images
from storelib.librbd.cluster import Cluster, Settings, require_bindings
from storelib.librbd.errors import DISCONNECTED, Advice, code_of, storelib_error
from storelib.transfer.contract import Extent, Options
from storelib.transfer.forking import forget_in_child

LOG = logging.getLogger(__name__)

_TOKEN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Note:
    """An attachment, and the image for which it was made."""

    volume: str
    attachment: str
    image_id: str


class Hold:
    """The lock of one transfer: ``release`` it, ``drop`` it, or let go of the object."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.token = os.path.basename(path)
        self._path = path
        self._descriptor: int | None = descriptor
        self._is_empty = True
        forget_in_child(self)

    def note(self, volume: str, attachment: str, image_id: str) -> None:
        """The transfer has this attachment from now on."""
        self._is_empty = False
        if self._descriptor is not None:
            os.write(self._descriptor, json.dumps([volume, attachment, image_id]).encode() + b"\n")

    def release(self) -> None:
        """The transfer is over, and so are its attachments."""
        if self._descriptor is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
        self._close()

    def drop(self) -> None:
        """The transfer is over; what became of its attachments, if it had some, nobody knows: gc will look."""
        if self._is_empty:
            self.release()
        self._close()

    __del__ = drop

    def forget_parent(self) -> None:
        """In a forked child: the lock is the parent's, and would outlive it here."""
        self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class Holds:
    """Those of one cloud, in a directory of its own."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def take(self) -> Hold:
        """A new one, with a token that was never used."""
        token = secrets.token_hex(16)
        path = os.path.join(self._directory, token)
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            # Locked before it has the name under which others look for it.
            descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.rename(f"{path}.new", path)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise BadStoreConfiguration(
                f"cinder_state_path: {self._directory} cannot be written to: {error.strerror}"
            ) from error
        return Hold(path, descriptor)

    def is_alive(self, token: str) -> bool | None:
        """Whether the transfer with that token is at work; None if this host knows nothing of it."""
        if not _TOKEN.fullmatch(token):
            return None
        try:
            with open(os.path.join(self._directory, token), encoding="utf-8") as file:
                return not _lock(file)
        except FileNotFoundError:
            return None

    def dead(self) -> Iterator[tuple[str, float]]:
        """The tokens of all that nobody holds, and when each last noted something (POSIX seconds)."""
        try:
            names = sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return
        for name in filter(_TOKEN.fullmatch, names):
            with contextlib.suppress(FileNotFoundError):
                if self.is_alive(name) is False:
                    yield name, os.stat(os.path.join(self._directory, name)).st_mtime

    def notes(self, token: str) -> list[Note]:
        """The attachments of one transfer; a line that was cut short tells of none."""
        found = []
        with contextlib.suppress(FileNotFoundError), open(os.path.join(self._directory, token), encoding="utf-8") as f:
            for line in f:
                with contextlib.suppress(ValueError, TypeError):
                    found.append(Note(*map(str, json.loads(line))))
        return found

    def forget(self, token: str) -> None:
        """A dead one has left nothing any more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._directory, token))


def _lock(file: IO[str]) -> bool:
    """Whether nobody else has the lock; it is had until the file is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def default_directory() -> str:
    """Where such things are kept if no option says where."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "storelib", "cinder")


#: What Cinder shows people as the device of our attachments.
MOUNTPOINT = "storelib"
#: Seconds that others may take between reserving a volume and connecting it, while a client looks for what a request
#: without an answer has reserved. Who is slower tries again.
_CONNECTING = 1.0
#: States in which a volume is for a moment, while a client attaches, grows or leaves it.
_BUSY = ("reserved", "attaching", "detaching", "extending", "in-use")


class Attachment:
    """One volume, connected to this host."""

    def __init__(self, api: Api, hold: Hold, volume: str, attachment_id: str, info: Mapping[str, Any]) -> None:
        self.volume = volume
        self.id = attachment_id
        #: How the volume is reached.
        self.info = info
        self.hold = hold
        self._api = api

    def detach(self) -> None:
        """End it. May be called again after an error; the hold stays."""
        self._api.detach(self.id)


def reserve(api: Api, hold: Hold, volume: str, image_id: str, mode: str, *, alone: bool) -> str:
    """The id of a new attachment, which keeps the volume from being deleted; noted in ``hold``.

    ``alone``: nobody else attaches this volume. Raises RemoteServiceUnavailable while the volume is busy.
    """
    try:
        attachment_id = api.reserve(volume, mode)
    except Exception as error:
        status = status_of(error)
        if status == 400:
            raise _refusal(api, volume) from error
        if status is None or status >= 500:
            # It may be reserved all the same.
            with contextlib.suppress(Exception):
                _end_unanswered(api, volume, alone)
        raise
    hold.note(volume, attachment_id, image_id)
    return attachment_id


def attach(api: Api, hold: Hold, volume: str, image_id: str, mode: str, *, alone: bool) -> Attachment:
    """Attach a volume ('rw' or 'ro'); leaves no attachment behind when it fails."""
    attachment_id = reserve(api, hold, volume, image_id, mode, alone=alone)
    try:
        info = api.connect(attachment_id, _connector(mode))
        api.complete(attachment_id)
    except BaseException as error:
        with contextlib.suppress(Exception):
            api.detach(attachment_id)
        if isinstance(error, Exception) and status_of(error) == 404:
            raise RemoteServiceUnavailable(
                f"another client ended the attachment of volume {volume} before it was used"
            ) from error
        raise
    return Attachment(api, hold, volume, attachment_id, info)


def _end_unanswered(api: Api, volume: str, alone: bool) -> None:
    """End the reservation of a volume that nobody knows of, since its answer was lost: one that nobody follows up."""
    before = {each.id for each in api.attachments(volume) if each.reserved}
    if before and not alone:
        time.sleep(_CONNECTING)
    for each in api.attachments(volume) if before else ():
        if each.reserved and each.id in before:
            api.detach(each.id)


def _refusal(api: Api, volume: str) -> StoreError:
    found = api.volume(volume)
    if found.status in _BUSY:
        return RemoteServiceUnavailable(
            f"volume {volume} is {found.status}: another client has it attached; volumes of a type with "
            "multiattach='<is> True' several can read at a time"
        )
    return StoreError(f"volume {volume} cannot be attached: it is {found.status}")


def _connector(mode: str) -> dict[str, Any]:
    """This host as Cinder wants to know it; all that volumes in Ceph need."""
    return {
        "host": socket.gethostname(),
        "ip": _own_address(),
        "platform": platform.machine(),
        "os_type": sys.platform,
        "multipath": False,
        "do_local_attach": False,
        "mountpoint": MOUNTPOINT,
        "mode": mode,
    }


def _own_address() -> str:
    """An address of this host, for Cinder's records; connecting a datagram socket sends nothing."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return "127.0.0.1"


class SharedAttachments:
    """Attachments for reading: one for each volume, however many readers it has. Safe to use from many threads."""

    def __init__(self, api: Api, holds: Holds) -> None:
        self._api = api
        self._holds = holds
        self._lock = threading.Lock()
        self._shared: dict[str, _Shared] = {}
        forget_in_child(self)

    def acquire(self, volume: str, image_id: str) -> Attachment:
        """The attachment of that volume; every one must be given back with ``release``."""
        with self._lock:
            shared = self._shared.setdefault(volume, _Shared())
            shared.users += 1
        try:
            with shared.lock:
                if shared.attachment is None:
                    shared.attachment = self._attach(volume, image_id)
                return shared.attachment
        except BaseException:
            self._leave(volume, shared)
            raise

    def release(self, attachment: Attachment) -> None:
        """One reader less; the last one detaches. What Cinder refuses then is left to gc."""
        shared = self._shared.get(attachment.volume)
        if shared is not None and shared.attachment is attachment:
            self._leave(attachment.volume, shared)

    def _attach(self, volume: str, image_id: str) -> Attachment:
        hold = self._holds.take()
        try:
            return attach(self._api, hold, volume, image_id, "ro", alone=False)
        except BaseException:
            hold.drop()
            raise

    def _leave(self, volume: str, shared: _Shared) -> None:
        with self._lock:
            shared.users -= 1
            last = not shared.users
            if last and self._shared.get(volume) is shared:
                # Who comes now gets another one.
                del self._shared[volume]
        attachment = shared.attachment
        if not last or attachment is None:
            return
        try:
            attachment.detach()
        except Exception as error:  # noqa: BLE001  (what was read was read)
            LOG.warning("volume %s could not be detached: %s; gc will do it", volume, type(error).__name__)
            attachment.hold.drop()
        else:
            attachment.hold.release()

    def forget_parent(self) -> None:
        """In a forked child: all of them are the parent's."""
        self._lock = threading.Lock()
        self._shared = {}


class _Shared:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.attachment: Attachment | None = None


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


class Disks:
    """Opens volumes for one store. Safe to use from many threads."""

    def __init__(self, conf: Options, store_name: str) -> None:
        self._conf = conf
        self._store_name = store_name
        self._lock = threading.Lock()
        self._clusters: dict[Settings, Cluster] = {}
        forget_in_child(self)

    def forget_parent(self) -> None:
        """In a forked child: a lock may have been held, and the clusters forget by themselves."""
        self._lock = threading.Lock()

    def open(self, info: Mapping[str, Any], *, read_only: bool) -> Disk:
        """The volume that an attachment's ``connection_info`` is about."""
        kind = info["driver_volume_type"]
        if kind != "rbd":
            raise OperationNotSupported(
                f"store {self._store_name}: its volumes are reached by {kind!r}; the cinder driver reads and writes "
                "volumes in Ceph (rbd) only; check cinder_volume_type"
            )
        if info.get("encrypted"):
            raise OperationNotSupported(
                f"store {self._store_name}: its volumes are encrypted, which the cinder driver cannot do; check "
                "cinder_volume_type"
            )
        pool, slash, name = str(info.get("name")).rpartition("/")
        pool, _, namespace = pool.partition("/")
        if not (slash and pool and name):
            raise RemoteServiceUnavailable("Cinder did not tell where in Ceph the volume is")
        return Disk(self._cluster(info, pool, namespace), name, read_only)

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
        settings = self._settings(info, pool, namespace)
        with self._lock:
            if settings not in self._clusters:
                self._clusters[settings] = Cluster(settings, f"store {self._store_name}", _ADVICE)
            return self._clusters[settings]

    def _settings(self, info: Mapping[str, Any], pool: str, namespace: str) -> Settings:
        conf = self._conf
        hosts = tuple(
            _address(host, port) for host, port in zip(info.get("hosts", ()), info.get("ports", ()), strict=False)
        )
        return Settings(
            pool,
            namespace,
            # What Cinder says of the monitors is newer than a file, which may be a remainder of something else.
            conf_file=conf.cinder_rbd_ceph_conf or None,
            mon_hosts=() if conf.cinder_rbd_ceph_conf else hosts,
            cluster_name=info.get("cluster_name") or None,
            user=info.get("auth_username") or None,
            keyring=conf.cinder_rbd_keyring or None,
            connect_timeout=conf.cinder_rbd_connect_timeout,
            osd_op_timeout=conf.cinder_rbd_op_timeout,
            mon_op_timeout=conf.cinder_rbd_connect_timeout,
            longest_timeout=conf.transfer_timeout,
        )


class Disk:
    """An open volume. Reads and writes are positioned and may be made side by side."""

    def __init__(self, cluster: Cluster, name: str, read_only: bool) -> None:
        self._connection = cluster.get()
        self._image = self._connection.open(name, read_only=read_only)
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

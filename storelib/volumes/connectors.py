# SPDX-License-Identifier: Apache-2.0
"""Connectors: how volumes come to this host, one for each kind of network, and how they leave it again.

Volumes in Ceph are opened straight from what Cinder says of them; those on NFS are files in a share that is mounted
here; all others are connected by os-brick (brick.py), for which Cinder must know more of this host than for those two.
"""

from __future__ import annotations

import abc
import contextlib
import json
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from storelib.exceptions import OperationNotSupported, StoreError
from storelib.volumes.brick import Brick, is_installed
from storelib.volumes.ceph import Clusters
from storelib.volumes.disks import Disk, FileDisk
from storelib.volumes.mounts import Mounts
from storelib.volumes.root_helper import Root
from storelib.volumes.settings import Settings
from storelib.volumes.usage import Use

#: What Cinder shows people as the device of our attachments.
MOUNTPOINT = "storelib"
#: Seconds for which this host stays what it was: another initiator, or a multipathd that was started.
_FRESH = 60.0


class Unknown(Exception):
    """Cinder must know more of this host: the volume is of a kind that os-brick connects."""


class Connection(abc.ABC):
    """One volume on this host."""

    #: Where nothing was written it reads as zeros.
    reads_zeros = True
    #: It may grow while it is attached.
    grows = False

    @abc.abstractmethod
    def open(self, *, read_only: bool) -> Disk:
        """Open the volume for reading, and for writing unless ``read_only``."""

    def rescan(self) -> None:  # noqa: B027  (most see it by themselves)
        """Have this host see that it has grown."""

    def disconnect(self) -> None:  # noqa: B027  (there may be nothing to undo)
        """Take it away from this host; may be called again, after an error, too."""


class Connectors:
    """Those of one store. Safe to use from many threads; making one does nothing yet."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.root = Root(settings)
        self._clusters = Clusters(settings)
        self._mounts = Mounts(settings, self.root)
        self._brick = Brick(settings, self.root, os.path.join(settings.directory, "devices"))
        #: Whether Cinder is told what os-brick knows of this host; some volume was of such a kind.
        self._by_brick = False
        #: That, and until when (by the monotonic clock) it is believed.
        self._description: tuple[dict[str, Any], float] = {}, 0.0

    def properties(self, mode: str) -> dict[str, Any]:
        """This host as Cinder wants to know it, a "connector", for an attachment that is 'rw' or 'ro'."""
        return {**(self._describe() if self._by_brick else _describe()), "mountpoint": MOUNTPOINT, "mode": mode}

    def _describe(self) -> dict[str, Any]:
        """As os-brick does it, by a dozen commands."""
        known, end = self._description
        if time.monotonic() > end:
            known = self._brick.describe(_own_address())
            self._description = known, time.monotonic() + _FRESH
        return known

    @property
    def can_tell_more(self) -> bool:
        """Whether there is more that Cinder could be told of this host."""
        return not self._by_brick and is_installed()

    def tell_more(self) -> None:
        """Tell Cinder all from now on."""
        self._by_brick = True

    def connect(self, info: Mapping[str, Any], volume: str, note: Callable[[str], None]) -> Connection:
        """Have a volume here, as ``connection_info`` says; ``note`` is told what would have to be undone.

        Raises Unknown if Cinder has to be told more before, and OperationNotSupported for what cannot be.
        """
        if info.get("encrypted"):
            raise OperationNotSupported(
                f"store {self._settings.store_name}: its volumes are encrypted, which the cinder driver cannot do; "
                "check cinder_volume_type"
            )
        kind = info["driver_volume_type"]
        if kind == "rbd":
            return RbdConnection(self._clusters, info)
        if kind == "nfs":
            path, mount, use = self._mounts.begin(info)
            shared = NfsConnection(path, volume, self.root, lambda: self._mounts.end(mount, use))
            with _undone(shared):
                note(json.dumps({"mount": mount}))
            return shared
        if not self._by_brick:
            raise Unknown
        # Should this process end before os-brick is done, something may be here all the same.
        note(json.dumps({"path": None}))
        device, taken = self._brick.connect(info, volume)
        connection = DeviceConnection(self._settings, self._brick, info, device, volume, self.root, taken)
        with _undone(connection):
            note(json.dumps(device, default=str))
        return connection

    def disconnect_dead(self, device: str, volume: str, info: Mapping[str, Any] | None) -> None:
        """Undo what a dead process has noted of an attachment; ``info``: of the attachment, None if it is gone."""
        known = json.loads(device) if device else {}
        if "mount" in known:
            self._mounts.end(known["mount"], None)
        elif known and info is not None:
            self._brick.disconnect(info, known if known.get("path") else {}, volume, None)

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """The error of storelib for one of Ceph or os-brick; None if it is none of theirs."""
        return self._clusters.map_error(error, subject) or self._brick.map_error(error, subject)


class RbdConnection(Connection):
    """A volume in Ceph."""

    grows = True

    def __init__(self, clusters: Clusters, info: Mapping[str, Any]) -> None:
        self._clusters = clusters
        self._info = info

    def open(self, *, read_only: bool) -> Disk:
        """Open the RBD image by librbd."""
        return self._clusters.open(self._info, read_only=read_only)


class NfsConnection(Connection):
    """A file on a share; Cinder grows it only where nobody has it attached."""

    def __init__(self, path: str, volume: str, root: Root, end: Callable[[], None]) -> None:
        self._path = path
        self._subject = f"volume {volume}"
        self._root = root
        self._end: Callable[[], None] | None = end

    def open(self, *, read_only: bool) -> Disk:
        """Open the file on the share."""
        return FileDisk(self._path, self._subject, self._root, read_only=read_only)

    def disconnect(self) -> None:
        """Unmount the share after the last one."""
        if self._end is not None:
            self._end()
            self._end = None


class DeviceConnection(Connection):
    """What os-brick has connected: a block device, which may hold anything where nothing was written."""

    reads_zeros = False

    def __init__(
        self,
        settings: Settings,
        brick: Brick,
        info: Mapping[str, Any],
        device: Mapping[str, Any],
        volume: str,
        root: Root,
        use: Use,
    ) -> None:
        self.grows = settings.grows_attached
        self._brick = brick
        self._info = info
        self._device = device
        self._volume = volume
        self._root = root
        self._use: Use | None = use

    def open(self, *, read_only: bool) -> Disk:
        """Open the block device by its path."""
        return FileDisk(os.fsdecode(self._device["path"]), f"volume {self._volume}", self._root, read_only=read_only)

    def rescan(self) -> None:
        """Have os-brick do it."""
        self._brick.rescan(self._info)

    def disconnect(self) -> None:
        """Have os-brick do it, after the last one of this host."""
        if self._use is not None:
            self._brick.disconnect(self._info, self._device, self._volume, self._use)
            self._use = None


@contextlib.contextmanager
def _undone(connection: Connection) -> Iterator[None]:
    """Take a volume away again where it cannot be noted."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            connection.disconnect()
        raise


def _describe() -> dict[str, Any]:
    """All that volumes in Ceph and on NFS need."""
    return {
        "host": socket.gethostname(),
        "ip": _own_address(),
        "platform": platform.machine(),
        "os_type": sys.platform,
        "multipath": False,
        "do_local_attach": False,
    }


def _own_address() -> str:
    """An address of this host, for Cinder's records; connecting a datagram socket sends nothing."""
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            return str(probe.getsockname()[0])
    return "127.0.0.1"

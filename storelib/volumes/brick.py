# SPDX-License-Identifier: Apache-2.0
"""Brick: volumes that come to this host by iSCSI, Fibre Channel, NVMe and so on, connected by OpenStack's os-brick.

It is imported when the first such volume is met, and not before: it brings much with it, and runs commands as root.
Eventlet is part of that, and stays unused: what os-brick does, it does in the thread that calls it.
"""

from __future__ import annotations

import importlib.util
import os
import queue
import shlex
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from storelib.exceptions import MissingDependency, OperationNotSupported, RemoteServiceUnavailable, StoreError
from storelib.extras import needing, needs
from storelib.volumes.root_helper import Root
from storelib.volumes.settings import Settings
from storelib.volumes.usage import Usage, Use

#: File systems that os-brick mounts, and leaves mounted.
_MOUNTED = ("glusterfs", "quobyte", "scality", "vzstorage")
_WHAT = "a volume that is neither in Ceph nor on NFS"
_starting = threading.Lock()


class Brick:
    """os-brick as one store uses it. Safe to use from many threads."""

    def __init__(self, settings: Settings, root: Root, directory: str) -> None:
        """``directory``: where all processes of this host note what they use."""
        self._settings = settings
        self._root = root
        self._directory = directory

    def describe(self, address: str) -> dict[str, Any]:
        """This host, at ``address``, as Cinder wants to know it: its names in each kind of network."""
        properties: dict[str, Any] = self._connectors().get_connector_properties(
            self._root.helper,
            address,
            self._settings.use_multipath,
            self._settings.enforce_multipath,
            host=socket.gethostname(),
        )
        return properties

    def connect(self, info: Mapping[str, Any], volume: str) -> tuple[dict[str, Any], Use]:
        """Have a volume here, as ``connection_info`` says; returns what os-brick says of it, and the use of it.

        All who use it get the same device.
        """
        connector = self._connector(info)
        use, device = self._usage(volume).begin(lambda: connector.connect_volume(dict(info)))
        return dict(device), use

    def disconnect(self, info: Mapping[str, Any], device: Mapping[str, Any], volume: str, use: Use | None) -> None:
        """Take it away, unless others use it; without a ``use``, look after what the dead have left."""
        connector = self._connector(info)
        dead = use is None
        self._usage(volume).end(
            use,
            lambda: connector.disconnect_volume(dict(info), dict(device) or None, force=dead, ignore_errors=dead),
        )

    def rescan(self, info: Mapping[str, Any]) -> None:
        """Have the kernel see that it has grown."""
        self._connector(info).extend_volume(dict(info))

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """The error of storelib for one of os-brick; None if it is none of its. Their texts may hold credentials."""
        module, name = type(error).__module__, type(error).__name__
        if module.startswith("oslo_privsep."):
            return self._root.unusable(f"os-brick did not become root ({name})")
        if name == "InvalidConnectorProtocol":
            return OperationNotSupported(f"{subject}: os-brick does not know how its volume is reached")
        if module.startswith(("os_brick.", "oslo_concurrency.")):
            return RemoteServiceUnavailable(
                f"{subject}: its volume could not be connected to this host, or not be disconnected ({name}); "
                "os-brick's log has more"
            )
        return None

    def _usage(self, volume: str) -> Usage:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        return Usage(self._directory, volume.replace("-", ""), self._settings.transfer_timeout)

    def _connector(self, info: Mapping[str, Any]) -> Any:
        kind = str(info["driver_volume_type"])
        more: dict[str, Any] = {}
        if kind in _MOUNTED:
            more[f"{kind}_mount_point_base"] = os.path.join(self._settings.mount_point_base, kind)
        return self._connectors().InitiatorConnector.factory(
            kind,
            self._root.helper,
            use_multipath=self._settings.use_multipath,
            conn={"driver_volume_type": kind, "data": dict(info)},
            **more,
        )

    def _connectors(self) -> Any:
        """os-brick's module of connectors."""
        helper = self._root.helper
        with _starting, needing(_WHAT, "brick"):
            module = _imported()
            _set_up(helper, os.path.join(self._directory, "locks"))
            return module


def _imported() -> Any:
    """os-brick's module of connectors.

    The first import is done in a thread of its own, which nobody joins. Eventlet makes a second copy of ``threading``,
    which takes the thread where that happens for the main thread: joining it would wait for ever (Python 3.10 to 3.12).
    And os-brick puts a function of its own in the place of ``time.sleep``, for its tests; that is put back.
    """
    name = "os_brick.initiator.connector"
    if name not in sys.modules:
        done: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

        def work() -> None:
            plain = time.sleep
            try:
                _choose_threads()
                importlib.import_module(name)
                time.sleep = plain
            except Exception as error:  # noqa: BLE001  (raised where it is waited for)
                done.put(error)
            else:
                done.put(None)

        threading.Thread(target=work, name="storelib-import", daemon=True).start()
        if (error := done.get()) is not None:
            raise error
    return importlib.import_module(name)


def _choose_threads() -> None:
    """Have oslo.service, which os-brick uses, work with threads; a service that has chosen otherwise has chosen."""
    try:
        backend = importlib.import_module("oslo_service.backend")
    except ModuleNotFoundError:
        # One so old that there is no choice.
        return
    try:
        backend.init_backend(backend.BackendType.THREADING)
    except backend.exceptions.BackendAlreadySelected:
        pass
    except ValueError as error:
        # What it says when a part of it is not installed.
        raise MissingDependency(needs(_WHAT, "brick", "oslo.service[threading]")) from error


def _set_up(helper: str, locks: str) -> None:
    """What os-brick has one of in a process: how it becomes root, and where its locks are."""
    from os_brick import privileged
    from oslo_config import cfg
    from oslo_privsep import priv_context

    if helper:
        priv_context.init(root_helper=shlex.split(helper))
    elif os.geteuid() == 0:
        for each in vars(privileged).values():
            if isinstance(each, priv_context.PrivContext):
                each.set_client_mode(False)
    importlib.import_module("oslo_concurrency.lockutils")
    if not cfg.CONF.os_brick.lock_path:
        path = cfg.CONF.oslo_concurrency.lock_path or locks
        os.makedirs(path, mode=0o700, exist_ok=True)
        cfg.CONF.set_default("lock_path", path, "os_brick")


def is_installed() -> bool:
    """Whether os-brick is here, without importing it."""
    return importlib.util.find_spec("os_brick") is not None

# SPDX-License-Identifier: Apache-2.0
"""Mounts that several processes of a host share, counted; for drivers written for glance_store.

The counts are where glance_store keeps them, in ``_state`` beside the mount points, so both may work on one host.
storelib's own cinder driver has no use for it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from oslo_concurrency import lockutils, processutils
from oslo_config import cfg

CONF = cfg.CONF
LOG = logging.getLogger(__name__)


def mount(
    fstype: str,
    export: str,
    vol_name: str,
    mountpoint: str,
    host: str,
    rootwrap_helper: str,
    options: Sequence[str] | None = None,
) -> None:
    """Mount ``export`` unless it is, and count one more that uses it. Raises ProcessExecutionError."""

    def count_one() -> None:
        if not os.path.ismount(mountpoint):
            os.makedirs(mountpoint, mode=0o755, exist_ok=True)
            command = ["mount", "-t", fstype, *(options or ()), export, mountpoint]
            try:
                processutils.execute(*command, run_as_root=True, root_helper=rootwrap_helper)
            except processutils.ProcessExecutionError:
                # Another process may have mounted it meanwhile.
                if not os.path.ismount(mountpoint):
                    raise
        _write_count(mountpoint, _read_count(mountpoint) + 1)

    _locked(mountpoint, count_one)


def umount(vol_name: str, mountpoint: str, host: str, rootwrap_helper: str) -> None:
    """Count one less that uses it, and unmount it after the last; what cannot be unmounted is logged."""

    def count_one() -> None:
        count = _read_count(mountpoint)
        if not count:
            LOG.warning("%s is unmounted for volume %s, but nothing is known to use it", mountpoint, vol_name)
        left = max(count - 1, 0)
        if left or (os.path.ismount(mountpoint) and not _unmounted(mountpoint, rootwrap_helper)):
            _write_count(mountpoint, left)
            return
        with contextlib.suppress(OSError):
            os.rmdir(mountpoint)
        with contextlib.suppress(FileNotFoundError):
            os.remove(_state_file(mountpoint))

    _locked(mountpoint, count_one)


def _locked(mountpoint: str, function: Callable[[], None]) -> None:
    """Alone among the processes of this host that use the mount point."""
    name = f"fs_mount_{os.path.basename(mountpoint)}"
    lockutils.synchronized(name, external=True)(function)()


def _unmounted(mountpoint: str, root_helper: str) -> bool:
    command: tuple[str, ...] = ("umount", mountpoint)
    settings: dict[str, Any] = {"run_as_root": True, "root_helper": root_helper, "attempts": 3, "delay_on_retry": True}
    try:
        processutils.execute(*command, **settings)
    except processutils.ProcessExecutionError as error:
        LOG.error("%s cannot be unmounted: %s", mountpoint, error)
    return not os.path.ismount(mountpoint)


def _state_file(mountpoint: str) -> str:
    directory, name = os.path.split(mountpoint)
    return os.path.join(directory, "_state", f"mount_state_{name}.json")


def _read_count(mountpoint: str) -> int:
    try:
        with open(_state_file(mountpoint), encoding="utf-8") as file:
            return int(json.load(file).get("attachment_count", 0))
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, AttributeError) as error:
        LOG.warning("%s cannot be read: %s", _state_file(mountpoint), error)
        return 0


def _write_count(mountpoint: str, count: int) -> None:
    path = _state_file(mountpoint)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        json.dump({"attachment_count": count}, file)
    os.rename(f"{path}.tmp", path)

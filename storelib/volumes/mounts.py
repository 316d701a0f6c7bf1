# SPDX-License-Identifier: Apache-2.0
"""Mounts: the NFS shares in which volumes are files, each mounted once for all processes of this host."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shlex
from collections.abc import Mapping
from typing import Any

from storelib.exceptions import OperationNotSupported, RemoteServiceUnavailable, misconfigured
from storelib.volumes.root_helper import CommandFailed, Root
from storelib.volumes.settings import Settings
from storelib.volumes.usage import Usage, Use

LOG = logging.getLogger(__name__)

_ESCAPED = re.compile(r"\\([0-7]{3})")


class Mounts:
    """Those of one store. Safe to use from many threads."""

    def __init__(self, settings: Settings, root: Root) -> None:
        self._store_name = settings.store_name
        self._directory = os.path.join(settings.mount_point_base, "nfs")
        self._timeout = settings.transfer_timeout
        self._root = root

    def begin(self, info: Mapping[str, Any]) -> tuple[str, str, Use]:
        """Where a volume is, as ``connection_info`` says; returns its path, the mount and the use of it."""
        share, name = str(info.get("export") or ""), str(info.get("name") or "")
        if not share or share.startswith("-") or name in ("", ".", "..") or "/" in name:
            raise RemoteServiceUnavailable("Cinder did not tell where on NFS the volume is")
        if info.get("format") not in (None, "raw"):
            raise OperationNotSupported(
                f"store {self._store_name}: its volumes are {info['format']} files, as those of nfs_qcow2_volumes and "
                "those with snapshots are; the cinder driver reads and writes raw ones only"
            )
        mount = hashlib.sha256(share.encode()).hexdigest()
        try:
            os.makedirs(self._directory, mode=0o755, exist_ok=True)
            use, _ = self._usage(mount).begin(lambda: self._mount(mount, share, str(info.get("options") or "")))
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise misconfigured(
                self._store_name,
                "cinder_mount_point_base",
                f"shares cannot be mounted below {self._directory}: {error.strerror}",
            ) from error
        return os.path.join(self._directory, mount, name), mount, use

    def end(self, mount: str, use: Use | None) -> None:
        """It is used no more; without a ``use``, look after what the dead have left."""
        if os.path.isdir(self._directory):
            self._usage(mount).end(use, lambda: self._unmount(mount))

    def _usage(self, mount: str) -> Usage:
        return Usage(self._directory, mount, self._timeout)

    def _mount(self, mount: str, share: str, options: str) -> None:
        path = os.path.join(self._directory, mount)
        if _is_mounted(path):
            return
        os.makedirs(path, exist_ok=True)
        try:
            self._root.run("mount", "-t", "nfs", *shlex.split(options), share, path)
        except CommandFailed as error:
            LOG.debug("mount: %s", error.said)
            raise RemoteServiceUnavailable(
                "the NFS share of a volume could not be mounted on this host; is nfs-common installed, and may this "
                "host and its user mount it? The log has more at the level DEBUG"
            ) from None

    def _unmount(self, mount: str) -> None:
        path = os.path.join(self._directory, mount)
        if _is_mounted(path):
            try:
                self._root.run("umount", path)
            except CommandFailed as error:
                # glance_store, or a user who looks around there: it stays for the next one.
                LOG.warning("%s could not be unmounted: %s", path, error.said)


def _is_mounted(path: str) -> bool:
    """Whether something is mounted there; without asking a server, which may be away."""
    wanted = os.path.realpath(path)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        return any(_ESCAPED.sub(lambda code: chr(int(code[1], 8)), line.split()[4]) == wanted for line in mounts)

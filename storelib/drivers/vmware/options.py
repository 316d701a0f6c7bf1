# SPDX-License-Identifier: Apache-2.0
"""The options of VMware stores, and what they say of the server and the datastores. Names are glance_store's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from oslo_config import cfg

from storelib.drivers.vmware.location import DEFAULT_PORT, inventory_path
from storelib.exceptions import BadStoreUri, misconfigured
from storelib.option_types import LocalPath
from storelib.transfer.contract import Options
from storelib.uris import split_endpoint

OPTIONS: Sequence[cfg.Opt] = (
    # -- Where ------------------------------------------------------------------------------------------------
    cfg.StrOpt(
        "vmware_server_host", help="Host name or address of the vCenter, without a scheme; part of the URIs of images."
    ),
    cfg.PortOpt("vmware_server_port", default=DEFAULT_PORT, min=1, help="Its port for HTTPS."),
    cfg.MultiStrOpt(
        "vmware_datastores",
        default=[],
        help="A datastore for images, as datacenter path:datastore name, or datacenter path:datastore name:weight. May "
        "be given several times. The path leads through the folders that the datacenter is in, as europe/dc1. Of the "
        "datastores with room for an image, one with the highest weight is taken, and of these the one with most room.",
    ),
    cfg.StrOpt(
        "vmware_store_image_dir",
        default="/openstack_glance",
        help="Directory of the images in every datastore; made when it is missing.",
    ),
    # -- As whom ----------------------------------------------------------------------------------------------
    cfg.StrOpt("vmware_server_username", help="User of the vCenter."),
    cfg.StrOpt("vmware_server_password", secret=True, help="The user's password."),
    # -- Trust ------------------------------------------------------------------------------------------------
    cfg.Opt(
        "vmware_ca_file",
        type=LocalPath(),
        help="File of CA certificates (PEM) that the server is verified against, instead of the system's.",
    ),
    cfg.StrOpt(
        "vmware_thumbprint",
        help="SHA-1, SHA-256 or SHA-512 thumbprint of the server's certificate, in hexadecimal with or without colons. "
        "With it that certificate is trusted and no other, no matter what authority signed it.",
    ),
    cfg.BoolOpt(
        "vmware_insecure",
        default=False,
        deprecated_name="vmware_api_insecure",
        help="Do not verify the certificate of the server. A server in between can then read the password and replace "
        "every image.",
    ),
    # -- How long ---------------------------------------------------------------------------------------------
    cfg.FloatOpt("vmware_connect_timeout", default=10.0, min=0.01, help="Seconds to wait for a connection."),
    cfg.FloatOpt(
        "vmware_read_timeout",
        default=60.0,
        min=0.01,
        help="Seconds to wait for the next bytes, and for the server to take some.",
    ),
    cfg.IntOpt(
        "vmware_download_concurrency",
        default=4,
        min=1,
        max=64,
        help="Ranges of one image in flight at most, from a vCenter that is far away; from a near one there is one.",
    ),
    cfg.FloatOpt(
        "vmware_task_poll_interval",
        default=5.0,
        min=0.01,
        help="Seconds between two looks at a task of vCenter that runs for long. The first looks are much closer.",
    ),
)

#: Characters that XML cannot carry.
_NOT_IN_XML = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")
#: Hexadecimal digits of SHA-1, SHA-256 and SHA-512.
_THUMBPRINTS = {40: "sha1", 64: "sha256", 128: "sha512"}


@dataclass(frozen=True)
class Target:
    """One datastore of a store: the path of its datacenter in the inventory without ``/`` around it, and its name."""

    datacenter: str
    name: str
    weight: int = 0

    def __str__(self) -> str:
        return f"datastore {self.name} of {self.datacenter}"


@dataclass(frozen=True)
class Settings:
    """What the options say, checked; raises BadStoreConfiguration for what cannot be."""

    host: str
    port: int
    targets: tuple[Target, ...]
    #: Names with ``/`` between them.
    directory: str
    #: Algorithm of hashlib and hexadecimal digest, if the certificate is pinned.
    thumbprint: tuple[str, str] | None

    @classmethod
    def from_conf(cls, conf: Options, store_name: str) -> Settings:
        """Read the options of a store."""
        host, port = _endpoint(conf, store_name)
        return cls(
            host,
            port,
            _targets(conf, store_name),
            _directory(conf, store_name),
            _thumbprint(conf.vmware_thumbprint, store_name),
        )


def check_credentials(conf: Options, store_name: str) -> None:
    """Raise BadStoreConfiguration unless it says who asks."""
    for option in ("vmware_server_username", "vmware_server_password"):
        value = getattr(conf, option)
        if not value:
            raise misconfigured(store_name, option, "must be given, since a vCenter lets nobody in without")
        if _NOT_IN_XML.search(value):
            raise misconfigured(store_name, option, "has characters that cannot be sent to a vCenter")


def _endpoint(conf: Options, store_name: str) -> tuple[str, int]:
    value = (conf.vmware_server_host or "").strip()
    if not value:
        raise misconfigured(store_name, "vmware_server_host", "the host of the vCenter must be given")
    if value.count(":") > 1 and not value.startswith("["):
        value = f"[{value}]"
    try:
        host, port = split_endpoint(value, value)
    except BadStoreUri as error:
        raise misconfigured(store_name, "vmware_server_host", str(error)) from None
    return host, conf.vmware_server_port if port is None else port


def _targets(conf: Options, store_name: str) -> tuple[Target, ...]:
    targets: dict[tuple[str, str], Target] = {}
    for value in conf.vmware_datastores or ():
        parts = [part.strip() for part in value.rsplit(":", 2)]
        weight = parts[2] if len(parts) == 3 else "0"
        datacenter = inventory_path(parts[0])
        if _NOT_IN_XML.search(value):
            raise misconfigured(store_name, "vmware_datastores", f"{value!r} has characters that cannot be sent")
        if len(parts) < 2 or not datacenter or not parts[1] or not re.fullmatch("[0-9]{0,18}", weight, re.ASCII):
            why = f"{value!r} is not datacenter path:datastore name[:weight]"
            raise misconfigured(store_name, "vmware_datastores", why)
        if (datacenter, parts[1]) in targets:
            raise misconfigured(store_name, "vmware_datastores", f"{datacenter}:{parts[1]} is there twice")
        targets[datacenter, parts[1]] = Target(datacenter, parts[1], int(weight or 0))
    if not targets:
        raise misconfigured(store_name, "vmware_datastores", "at least one datastore must be given")
    return tuple(targets.values())


def _directory(conf: Options, store_name: str) -> str:
    names = [name for name in conf.vmware_store_image_dir.strip().split("/") if name]
    if {".", ".."}.intersection(names) or any(not name.isprintable() for name in names):
        raise misconfigured(store_name, "vmware_store_image_dir", "not a path without '.', '..' and control characters")
    return "/".join(names)


def _thumbprint(value: str | None, store_name: str) -> tuple[str, str] | None:
    if not value:
        return None
    digest = re.sub(r"[:\s]", "", value).lower()
    algorithm = _THUMBPRINTS.get(len(digest))
    if algorithm is None or not re.fullmatch("[0-9a-f]*", digest):
        why = "not the 40, 64 or 128 hexadecimal digits of SHA-1, SHA-256 or SHA-512"
        raise misconfigured(store_name, "vmware_thumbprint", why)
    return algorithm, digest

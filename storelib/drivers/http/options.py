# SPDX-License-Identifier: Apache-2.0
"""The options of HTTP stores, and Rules: which URLs may be asked for, and which addresses connected to. No sockets.

A URL handed in by a tenant must not become a way into the operator's own network, so addresses are judged
where the connection is made, after the name was resolved; what a URL says is judged before.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from oslo_config import cfg, types

from storelib.drivers.http.location import HttpLocation
from storelib.exceptions import misconfigured
from storelib.option_types import LocalPath
from storelib.transfer.contract import KiB, MiB, Options

_PORTS = types.Integer(min=1, max=65535)

OPTIONS: Sequence[cfg.Opt] = (
    cfg.Opt(
        "https_ca_certificates_file",
        type=LocalPath(),
        help="File of CA certificates (PEM) that servers are verified against, instead of the system's.",
    ),
    cfg.BoolOpt(
        "https_insecure",
        default=False,
        help="Do not verify the certificates of servers. A server in between can then replace every image.",
    ),
    cfg.DictOpt(
        "http_proxy_information",
        default={},
        secret=True,
        help="Proxies by scheme, as http:proxy.example.org:3128,https:proxy.example.org:3128. A proxy may also be a "
        "URL with credentials. It resolves names and connects by itself, so http_allowed_networks and "
        "http_disallowed_networks then hold only for addresses written in URLs; the address of the proxy is not "
        "checked. Proxies named by the environment are never used.",
    ),
    cfg.FloatOpt("http_connect_timeout", default=10.0, min=0.01, help="Seconds to wait for a connection."),
    cfg.FloatOpt("http_read_timeout", default=60.0, min=0.01, help="Seconds to wait for the next bytes."),
    cfg.IntOpt("http_max_redirects", default=5, min=0, max=50, help="Redirects followed for one request."),
    cfg.ListOpt(
        "http_allowed_hosts",
        default=[],
        help="Hosts that images may be read from, as in the URL; ``*.example.org`` is every host below example.org. "
        "Empty: all. Holds for redirects too, as do the lists below.",
    ),
    cfg.ListOpt("http_disallowed_hosts", default=[], help="Hosts never to be asked, even if they are also allowed."),
    cfg.ListOpt(
        "http_allowed_ports", default=[], item_type=_PORTS, help="Ports that images may be read from. Empty: all."
    ),
    cfg.ListOpt(
        "http_disallowed_ports",
        default=[],
        item_type=_PORTS,
        help="Ports never to be asked, even if they are also allowed.",
    ),
    cfg.ListOpt(
        "http_allowed_networks",
        default=[],
        help="Networks, as 10.1.0.0/16, that may be connected to although their addresses are loopback, link-local, "
        "private or otherwise not public. Public addresses need no entry. Checked on the address that is connected "
        "to, so no name and no way to write an address gets around it.",
    ),
    cfg.ListOpt(
        "http_disallowed_networks",
        default=[],
        help="Networks never to be connected to, even if they are public or also allowed.",
    ),
    cfg.IntOpt(
        "http_download_concurrency",
        default=4,
        min=1,
        max=64,
        help="Ranges of one image in flight at most, from servers that are far away; near ones send one stream.",
    ),
    cfg.IntOpt("http_download_part_size", default=8 * MiB, min=64 * KiB, max=64 * MiB, help="Bytes in one such range."),
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# RFC 6052: how hosts with IPv6 alone reach IPv4.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Rules:
    """The lists of one store's options. What is disallowed stays so even when it is also allowed."""

    allowed_hosts: Sequence[str] = ()
    disallowed_hosts: Sequence[str] = ()
    allowed_ports: Sequence[int] = ()
    disallowed_ports: Sequence[int] = ()
    allowed_networks: Sequence[Network] = ()
    disallowed_networks: Sequence[Network] = ()
    #: With what the names of the options begin that have these lists.
    prefix: str = "http_"

    @classmethod
    def from_conf(cls, conf: Options, store_name: str) -> Rules:
        """Take the lists from the options; raises BadStoreConfiguration for what is no network."""
        return cls(
            conf.http_allowed_hosts,
            conf.http_disallowed_hosts,
            conf.http_allowed_ports,
            conf.http_disallowed_ports,
            _networks(conf, "http_allowed_networks", store_name),
            _networks(conf, "http_disallowed_networks", store_name),
        )

    def refuse_url(self, location: HttpLocation) -> str | None:
        """Why this host or port may not be asked, or None."""
        port = location.effective_port
        if self.allowed_hosts and not _listed(location.host, self.allowed_hosts):
            return f"host {location.host} is not in {self.prefix}allowed_hosts"
        if _listed(location.host, self.disallowed_hosts):
            return f"host {location.host} is in {self.prefix}disallowed_hosts"
        if self.allowed_ports and port not in self.allowed_ports:
            return f"port {port} is not in {self.prefix}allowed_ports"
        if port in self.disallowed_ports:
            return f"port {port} is in {self.prefix}disallowed_ports"
        return None

    def refuse_address(self, text: str) -> str | None:
        """Why this numeric address may not be connected to, or None."""
        forms = _forms(ipaddress.ip_address(text.partition("%")[0]))
        if _inside(forms, self.disallowed_networks):
            return f"it is inside {self.prefix}disallowed_networks"
        if not _inside(forms, self.allowed_networks) and not _is_public(forms[-1]):
            return f"it is not a public address and not inside {self.prefix}allowed_networks"
        return None

    def refuse_written_address(self, location: HttpLocation) -> str | None:
        """Why the address in a URL may not be connected to, or None; also for a name, which the proxy resolves."""
        try:
            return self.refuse_address(location.host.strip("[]"))
        except ValueError:
            return None


def _networks(conf: Options, option: str, store_name: str) -> list[Network]:
    networks = []
    for value in getattr(conf, option):
        try:
            networks.append(ipaddress.ip_network(value, strict=False))
        except ValueError:
            why = f"{value!r} is not a network; write 10.0.0.0/8, fd00::/8 or one address"
            raise misconfigured(store_name, option, why) from None
    return networks


def _listed(host: str, names: Iterable[str]) -> bool:
    host = host.rstrip(".")
    for name in (name.lower().rstrip(".") for name in names):
        if host == name or (name.startswith("*.") and host.endswith(name[1:])):
            return True
    return False


def _forms(address: Address) -> list[Address]:
    """The address and, last, the IPv4 address that is really reached through it."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return [address, inner]
    return [address]


def _inside(forms: Sequence[Address], networks: Iterable[Network]) -> bool:
    return any(form in network for network in networks for form in forms)


def _is_public(address: Address) -> bool:
    # is_global alone is true for multicast and for the reserved parts of IPv6, and differs between Python versions.
    special = (
        address.is_loopback,
        address.is_link_local,
        address.is_private,
        address.is_multicast,
        address.is_unspecified,
        address.is_reserved,
        isinstance(address, ipaddress.IPv6Address) and address.is_site_local,
    )
    return address.is_global and not any(special)

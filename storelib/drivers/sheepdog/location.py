# SPDX-License-Identifier: Apache-2.0
"""SheepdogLocation: the URI of a vdi, with or without the daemon that leads to it. No commands."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from storelib.drivers.sheepdog.names import is_image_name
from storelib.exceptions import BadStoreUri
from storelib.uris import StoreLocation, quote, redact, scheme_of, unquote

SCHEMES = ("sheepdog",)

_FORM = re.compile(r"(?:(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5}):)?([^:/?#\x00-\x1f\x7f]+)")


@dataclass(frozen=True, repr=False)
class SheepdogLocation(StoreLocation):
    """``sheepdog://address:port:vdi``, an IPv6 address in brackets; ``sheepdog://vdi`` leaves the daemon open.

    The vdi's name is percent-encoded. Old URIs are not, which makes no difference for ids such as UUIDs.
    """

    #: A host name or an IP address, without brackets; None is whatever daemon the store talks to.
    address: str | None
    port: int | None
    vdi: str

    @classmethod
    def parse(cls, uri: str) -> SheepdogLocation:
        """Take a URI apart; raises BadStoreUri."""
        rest = uri[len(scheme_of(uri)) + len("://") :]
        match = _FORM.fullmatch(rest)
        if scheme_of(uri) not in SCHEMES or match is None:
            raise BadStoreUri(f"expected sheepdog://address:port:vdi or sheepdog://vdi, not {redact(uri)!r}")
        vdi = unquote(match[3], uri)
        if not is_image_name(vdi):
            raise BadStoreUri(f"no vdi that holds an image is called so: {redact(uri)!r}")
        if match[1] is None:
            return cls(None, None, vdi)
        port = int(match[2])
        if not 0 < port < 65536:
            raise BadStoreUri(f"port {port} does not exist: {redact(uri)!r}")
        try:
            return cls(normalised(match[1].strip("[]")), port, vdi)
        except ValueError:
            raise BadStoreUri(f"not an IPv6 address in {redact(uri)!r}") from None

    @property
    def uri(self) -> str:
        """The URI."""
        if self.address is None:
            return f"sheepdog://{quote(self.vdi)}"
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"sheepdog://{host}:{self.port}:{quote(self.vdi)}"


def normalised(address: str) -> str:
    """One spelling for each address; raises ValueError for an IPv6 address that is none."""
    return ipaddress.IPv6Address(address).compressed if ":" in address else address.lower()

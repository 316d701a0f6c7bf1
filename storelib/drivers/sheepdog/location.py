# SPDX-License-Identifier: Apache-2.0
"""SheepdogLocation: the URI of a vdi, with or without the daemon that leads to it; and what vdis are called.

Those of images are called like their ids, those of adds under way so that no id can look like them: ids have no "/", so
a name with one is free for other uses. Names and tags are at most 255 bytes long. No commands.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from dataclasses import dataclass
from typing import NamedTuple

from storelib.exceptions import BadStoreUri
from storelib.uris import StoreLocation, quote, redact, scheme_of, unquote

SCHEMES = ("sheepdog",)

_FORM = re.compile(r"(?:(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5}):)?([^:/?#\x00-\x1f\x7f]+)")
LONGEST = 255
_PREFIX = "storelib/"
_TEMPORARY = re.compile(r"storelib/([0-9a-f]{16})(~?)/(.+)", re.DOTALL)


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
        """The URI, in the short form if that is where it came from."""
        if self.address is None:
            return f"sheepdog://{quote(self.vdi)}"
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"sheepdog://{host}:{self.port}:{quote(self.vdi)}"


def normalised(address: str) -> str:
    """One spelling for each address; raises ValueError for an IPv6 address that is none."""
    return ipaddress.IPv6Address(address).compressed if ":" in address else address.lower()


# -- Names of vdis ----------------------------------------------------------------------------------------------


def name_of(image_id: str) -> str:
    """The name of the vdi that holds an image: its id, but "/" for a first "-", which would begin an option."""
    return f"/{image_id[1:]}" if image_id.startswith("-") else image_id


def id_of(name: str) -> str | None:
    """The id of the image in the vdi with this name; None if it is none that an id would lead to."""
    if name.startswith("/"):
        return f"-{name[1:]}" if "/" not in name[1:] else None
    return None if "/" in name or name in (".", "..") else name


def is_image_name(name: str) -> bool:
    """Whether an image may be read from a vdi called so, of any client: one that can be an argument of dog."""
    categories = {unicodedata.category(character) for character in name}
    return (
        name not in ("", ".", "..")
        and not name.startswith(("-", _PREFIX))
        and not categories & {"Cc", "Cs"}
        and len(name.encode()) <= LONGEST
    )


class Temporary(NamedTuple):
    """The name of a vdi, or the tag of a snapshot, that belongs to one add."""

    token: str
    #: What the image is to be called, or only how that begins.
    image_id: str
    cut: bool = False

    def __str__(self) -> str:
        whole = f"{_PREFIX}{self.token}/{self.image_id}"
        if not self.cut and len(whole.encode()) <= LONGEST:
            return whole
        start = f"{_PREFIX}{self.token}~/".encode()
        return (start + self.image_id.encode()[: LONGEST - len(start)]).decode(errors="ignore")

    @classmethod
    def parse(cls, name: str) -> Temporary | None:
        """None for what is not the name of such a vdi."""
        match = _TEMPORARY.fullmatch(name)
        return cls(match[1], match[3], bool(match[2])) if match else None


def is_temporary(name: str) -> bool:
    """Whether it is a name that only storelib gives."""
    return name.startswith(_PREFIX)

# SPDX-License-Identifier: Apache-2.0
"""What every part of storelib has to know of URIs: parsed ones as value objects, percent-encoding, redaction.

What storelib writes never carries a credential; old URIs that do are still read. ``storelib/location.py`` finds the
driver that a URI belongs to.
"""

from __future__ import annotations

import abc
import ipaddress
import re
import urllib.parse
from collections.abc import Mapping
from typing import Protocol, TypeVar

from storelib.exceptions import BadStoreUri, UnknownScheme

# RFC 3986, 3.1
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_SECRET_NAME = re.compile(r"sig|token|key|secret|passw|pwd|credential|auth", re.IGNORECASE)
_SEPARATOR = re.compile(r"([?&;#])")
#: What need not be encoded (RFC 3986, 2.3), so that most of what is stored is not looked at letter by letter.
_PLAIN = re.compile(r"[A-Za-z0-9._~-]*")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9._~/-]*")
#: Without one of these nothing is blotted out.
_TELLING = re.compile(r"[@?&;#]")
_AUTHORITY_ENDS = re.compile(r"[/?#]")
#: JSON may hold them, but no encoding of a URI, a path or a request can.
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
# RFC 3986, 3.2.2 and 3.2.3. Where a part of a host name is empty or longer (RFC 1035, 2.3.4), looking it up fails with
# an error that nobody expects.
_NAME = r"[A-Za-z0-9_-]{1,63}"
_ENDPOINT = re.compile(rf"(\[[0-9A-Fa-f:.]+\]|{_NAME}(?:\.{_NAME})*\.?)(?::([0-9]{{1,5}}))?")

_L = TypeVar("_L", bound="StoreLocation")


class StoreLocation(abc.ABC):
    """A driver's parsed location: a frozen dataclass (``repr=False``) with these two members.

    ``parse(location.uri) == location`` must hold for every location without credentials.
    Fields that hold credentials are declared with ``field(repr=False, compare=False)``. Where one part of a URI is an
    image's id, a field or property ``image_id`` has it: ``Store.locate`` then refuses what is none.
    """

    __slots__ = ()

    @classmethod
    @abc.abstractmethod
    def parse(cls: type[_L], uri: str) -> _L:
        """The location that ``uri`` names; raises BadStoreUri, naming the redacted URI."""

    @property
    @abc.abstractmethod
    def uri(self) -> str:
        """The URI of this location, percent-encoded and without credentials."""

    def __str__(self) -> str:
        return redact(self.uri)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class ParsedLocation(Protocol):
    """What a store sees of ``storelib.location.Location``: a URI that was parsed before."""

    @property
    def store_location(self) -> StoreLocation:
        """The driver's parsed form."""


def scheme_of(uri: str) -> str:
    """The scheme of ``uri`` in lower case; raises BadStoreUri if it has none."""
    match = _SCHEME.match(uri) if isinstance(uri, str) else None
    if match is None or not uri.startswith("://", match.end(1)):
        shown = redact(uri) if isinstance(uri, str) else type(uri).__name__
        raise BadStoreUri(f"not a location URI: {shown!r}; expected scheme://...")
    return match[1].lower()


def parse_uri(uri: str, schemes: Mapping[str, type[StoreLocation]]) -> StoreLocation:
    """The location that ``uri`` names, parsed with the class of its scheme.

    Raises BadStoreUri for a malformed URI and UnknownScheme for a scheme that is not in ``schemes``.
    """
    scheme = scheme_of(uri)
    if scheme not in schemes:
        known = ", ".join(sorted(schemes)) or "none"
        raise UnknownScheme(f"unknown scheme {scheme!r} in {redact(uri)}; known are: {known}")
    if _LONE_SURROGATE.search(uri):
        raise BadStoreUri(f"half a character in {redact(uri)!a}")
    # Schemes are case-insensitive (RFC 3986, 3.1); drivers see them in lower case only.
    return schemes[scheme].parse(scheme + uri[len(scheme) :])


def quote(segment: str) -> str:
    """Percent-encode one part of a URI, ``/`` included (RFC 3986, 2.1)."""
    return segment if _PLAIN.fullmatch(segment) else urllib.parse.quote(segment, safe="")


def quote_path(path: str) -> str:
    """The same for each part of ``path``, the slashes between them left."""
    return path if _PLAIN_PATH.fullmatch(path) else urllib.parse.quote(path, safe="/")


def unquote(segment: str, uri: str) -> str:
    """Percent-decode one part of ``uri``; raises BadStoreUri for what is not UTF-8."""
    try:
        return urllib.parse.unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise BadStoreUri(f"percent-encoded bytes that are not UTF-8 in {redact(uri)}") from None


def split_endpoint(endpoint: str, uri: str) -> tuple[str, int | None]:
    """Host in lower case, an IPv6 address in brackets, and port if one is given; raises BadStoreUri, naming ``uri``."""
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None:
        raise BadStoreUri(f"not a host name or address, with or without a port, in {redact(uri)!r}")
    host, port = match.groups()
    if host.startswith("["):
        try:
            host = f"[{ipaddress.IPv6Address(host[1:-1])}]"
        except ValueError:
            raise BadStoreUri(f"not an IPv6 address in {redact(uri)!r}") from None
    if port and not 0 < int(port) < 65536:
        raise BadStoreUri(f"port {port} does not exist, in {redact(uri)!r}")
    return host.lower(), int(port) if port else None


def redact(uri: str) -> str:
    """``uri`` with credentials blotted out, for people to read; works on malformed URIs and on texts with several, too.

    Old URIs may hold unquoted secrets with ``/``, ``:`` and ``@`` in them, so when in doubt more is hidden. Clients
    send them, too, so it takes time in proportion to the length.
    """
    return _without_parameters(_without_users(uri)) if _TELLING.search(uri) else uri


def _without_users(text: str) -> str:
    """``text`` without what stands before an ``@`` in the authority of its URIs."""
    last = text.rfind("@")
    shown: list[str] = []
    position = 0
    while 0 <= position <= last:
        mark = text.find("://", position)
        if mark < 0:
            # Without any scheme it may be all authority.
            if not shown:
                shown, position = ["***"], last
            break
        begin = mark + len("://")
        shown.append(text[position:begin])
        position = begin
        ends = _AUTHORITY_ENDS.search(text, begin)
        end = ends.start() if ends else len(text)
        # A "?" or "#" may be part of an unquoted secret too, so the "@" is looked for in all of the rest
        # when there is a user name (a ":" before the first "/"), else in the authority only.
        at = last if text.find(":", begin, end) >= 0 else text.rfind("@", begin, end)
        if at >= begin:
            shown.append("***")
            position = at
    return "".join(shown) + text[position:]


def _without_parameters(text: str) -> str:
    """``text`` without the values of parameters whose names speak of secrets, percent-encoded ones too."""
    first, *others = _SEPARATOR.split(text)
    shown = [first]
    secret = hidden = False
    for separator, piece in zip(others[::2], others[1::2], strict=True):
        # An unquoted "?" may be part of a name or of a value, a "#" of a name.
        if separator in "&;":
            secret = False
        hidden = hidden and separator == "?"
        if hidden:
            continue
        name, equals, _ = piece.partition("=")
        secret = secret or _SECRET_NAME.search(urllib.parse.unquote(name)) is not None
        hidden = secret and bool(equals)
        shown.append(separator + (f"{name}=***" if hidden else piece))
        secret = secret and not equals
    return "".join(shown)

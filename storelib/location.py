# SPDX-License-Identifier: Apache-2.0
"""Where one image's bytes are: URIs parsed into value objects, formatted and redacted.

Each driver brings a StoreLocation class for its schemes; ``Location`` finds the class by scheme.
What storelib writes never carries a credential; old URIs that do are still read.
"""

from __future__ import annotations

import abc
import functools
import re
import urllib.parse
from collections.abc import Mapping
from typing import TypeVar

from storelib.exceptions import BadStoreUri, UnknownScheme

# RFC 3986, 3.1
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_SECRET_NAME = re.compile(r"sig|token|key|secret|passw|pwd|credential|auth", re.IGNORECASE)
_SEPARATOR = re.compile(r"([?&;#])")
_AUTHORITY_ENDS = re.compile(r"[/?#]")

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


class Location:
    """A URI of any installed driver's scheme, parsed: ``Location("file:///srv/images/1").uri``.

    ``schemes`` maps scheme to StoreLocation class; by default those of all installed drivers.
    Raises BadStoreUri for a malformed URI and UnknownScheme for a scheme nobody serves.
    """

    __slots__ = ("scheme", "store_location")

    def __init__(self, uri: str, schemes: Mapping[str, type[StoreLocation]] | None = None) -> None:
        self.scheme = scheme_of(uri)
        table = installed_schemes() if schemes is None else schemes
        if self.scheme not in table:
            known = ", ".join(sorted(table)) or "none"
            raise UnknownScheme(f"unknown scheme {self.scheme!r} in {redact(uri)}; known are: {known}")
        # Schemes are case-insensitive (RFC 3986, 3.1); drivers see them in lower case only.
        self.store_location = table[self.scheme].parse(self.scheme + uri[len(self.scheme) :])

    @property
    def uri(self) -> str:
        """The URI, percent-encoded and without credentials."""
        return self.store_location.uri

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and self.store_location == other.store_location

    def __hash__(self) -> int:
        return hash(self.store_location)

    def __str__(self) -> str:
        return str(self.store_location)

    def __repr__(self) -> str:
        return f"Location({str(self)!r})"


def get_location_from_uri(uri: str) -> Location:
    """Parse ``uri`` with the location class of the installed driver that serves its scheme."""
    return Location(uri)


def scheme_of(uri: str) -> str:
    """The scheme of ``uri`` in lower case; raises BadStoreUri if it has none."""
    match = _SCHEME.match(uri) if isinstance(uri, str) else None
    if match is None or not uri.startswith("://", match.end(1)):
        shown = redact(uri) if isinstance(uri, str) else type(uri).__name__
        raise BadStoreUri(f"not a location URI: {shown!r}; expected scheme://...")
    return match[1].lower()


@functools.cache
def installed_schemes() -> Mapping[str, type[StoreLocation]]:
    """The location class for each scheme of each installed driver."""
    from storelib.plugins import driver_classes

    return {scheme.lower(): driver.location_class for driver in driver_classes().values() for scheme in driver.schemes}


def quote(segment: str) -> str:
    """Percent-encode one part of a URI, ``/`` included (RFC 3986, 2.1)."""
    return urllib.parse.quote(segment, safe="")


def unquote(segment: str, uri: str) -> str:
    """Percent-decode one part of ``uri``; raises BadStoreUri for what is not UTF-8."""
    try:
        return urllib.parse.unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise BadStoreUri(f"percent-encoded bytes that are not UTF-8 in {redact(uri)}") from None


def redact(uri: str) -> str:
    """``uri`` with credentials blotted out, for people to read; works on malformed URIs and on texts with several, too.

    Old URIs may hold unquoted secrets with ``/``, ``:`` and ``@`` in them, so when in doubt more is hidden. Anybody may
    have sent it, so it takes time in proportion to the length.
    """
    return _without_parameters(_without_users(uri))


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

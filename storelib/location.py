# SPDX-License-Identifier: Apache-2.0
"""Where one image's bytes are: a URI parsed with the class of the installed driver that serves its scheme."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from storelib.plugins import driver_classes
from storelib.uris import StoreLocation, parse_uri, redact, scheme_of

__all__ = ["Location", "StoreLocation", "get_location_from_uri", "installed_schemes", "redact", "scheme_of"]


class Location:
    """A URI of any installed driver's scheme, parsed: ``Location("file:///srv/images/1").uri``.

    ``schemes`` maps scheme to StoreLocation class; by default those of all installed drivers.
    Raises BadStoreUri for a malformed URI and UnknownScheme for a scheme nobody serves.
    """

    __slots__ = ("scheme", "store_location")

    def __init__(self, uri: str, schemes: Mapping[str, type[StoreLocation]] | None = None) -> None:
        self.scheme = scheme_of(uri)
        self.store_location = parse_uri(uri, installed_schemes() if schemes is None else schemes)

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


@functools.cache
def installed_schemes() -> Mapping[str, type[StoreLocation]]:
    """The location class for each scheme of each installed driver."""
    return {scheme.lower(): driver.location_class for driver in driver_classes().values() for scheme in driver.schemes}

# SPDX-License-Identifier: Apache-2.0
"""CinderLocation: the URI of a volume. No network."""

from __future__ import annotations

import re
from dataclasses import dataclass

from storelib.exceptions import BadStoreUri
from storelib.uris import StoreLocation, quote, redact, scheme_of, unquote

SCHEME = "cinder"
_VOLUME = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\ud800-\udfff]")


def is_volume_id(text: object) -> bool:
    """Whether it is a UUID as Cinder writes them."""
    return isinstance(text, str) and _VOLUME.fullmatch(text) is not None


@dataclass(frozen=True, repr=False)
class CinderLocation(StoreLocation):
    """``cinder://store/volume`` or ``cinder://volume``: the volume by its UUID, the store by its id, percent-encoded.

    The short form leaves the store open.
    """

    volume: str
    store: str | None = None

    @classmethod
    def parse(cls, uri: str) -> CinderLocation:
        """Take a URI apart; raises BadStoreUri."""
        scheme = scheme_of(uri)
        *store, volume = uri[len(scheme) + len("://") :].split("/")
        # There is no place for credentials, so what looks like some is not taken for a name and shown as one.
        if scheme != SCHEME or len(store) > 1 or _FORBIDDEN.search(uri) or "@" in "".join(store):
            raise _malformed(uri)
        volume = unquote(volume, uri).lower()
        named = unquote(store[0], uri) if store else None
        if not is_volume_id(volume) or named == "":
            raise _malformed(uri)
        return cls(volume, named)

    @property
    def uri(self) -> str:
        """The URI."""
        return f"{SCHEME}://{self.volume}" if self.store is None else f"{SCHEME}://{quote(self.store)}/{self.volume}"


def _malformed(uri: str) -> BadStoreUri:
    return BadStoreUri(f"expected cinder://store/volume or cinder://volume with a volume's UUID, not {redact(uri)!r}")

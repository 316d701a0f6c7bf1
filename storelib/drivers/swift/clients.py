# SPDX-License-Identifier: Apache-2.0
"""Clients: what a store keeps: its connections, an identity for each of its accounts, what their services can do."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storelib.exceptions import StoreError

if TYPE_CHECKING:
    from storelib.drivers.swift.account import Account
    from storelib.drivers.swift.connection import Connections
    from storelib.drivers.swift.credentials import Credentials
    from storelib.drivers.swift.identity import Identity, V3Identity

# Swift's default, and radosgw's.
_MOST_SEGMENTS = 1000


@dataclass(frozen=True)
class Features:
    """What one service can do."""

    #: Manifests that list their segments.
    static: bool = True
    #: Lines in one of them.
    most_segments: int = _MOST_SEGMENTS
    #: Such manifests may list others.
    nested: bool = False
    #: If-None-Match is honoured.
    conditional: bool = False
    #: Whoever sends a manifest is told which of its segments are missing.
    checks_segments: bool = False
    #: Algorithms of temporary URLs.
    digests: tuple[str, ...] = ("sha1",)

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Features:
        """From what it tells; nothing is expected of one that tells nothing."""
        if not about:
            return cls()
        sections = {name: about[name] for name in ("swift", "slo", "tempurl") if isinstance(about.get(name), dict)}
        # radosgw has such a section too, but calls this max_object_name_size.
        genuine = "max_object_name_length" in sections.get("swift", {})
        most = sections.get("slo", {}).get("max_manifest_segments")
        digests = sections.get("tempurl", {}).get("allowed_digests")
        return cls(
            static="slo" in sections,
            most_segments=most if isinstance(most, int) and most > 0 else _MOST_SEGMENTS,
            nested=genuine,
            conditional=genuine,
            checks_segments=genuine,
            digests=tuple(digests) if isinstance(digests, list) else ("sha1",),
        )

    def fits_static(self, count: int) -> bool:
        """Whether so many segments can be a static large object."""
        return self.static and count <= self.most_segments * (self.most_segments if self.nested else 1)


class Clients:
    """Safe to use from many threads; made at first use, and anew in a forked child."""

    def __init__(self, conf: Any, credentials: Mapping[str, Credentials]) -> None:
        self._conf = conf
        self._credentials = credentials
        # What a child inherits is kept, unused: closing it would end the parent's connections too.
        self._inherited: list[object] = []
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._connections: Connections | None = None
        self._identities: dict[str, Identity] = {}
        self._features: dict[str, Features] = {}

    @property
    def connections(self) -> Connections:
        """All connections of the store."""
        from storelib.drivers.swift.connection import Connections

        with self._lock:
            if self._connections is None:
                self._connections = Connections(self._conf)
            return self._connections

    def identity(self, reference: str) -> Identity:
        """Of one of the accounts the store is configured with."""
        from storelib.drivers.swift.identity import V1Identity, V3Identity

        with self._lock:
            if reference not in self._identities:
                credentials = self._credentials[reference]
                kind = V1Identity if credentials.auth_version == "1" else V3Identity
                self._identities[reference] = kind(self.connections, credentials, self._conf)
            return self._identities[reference]

    def trusted(self, reference: str, trust: str) -> V3Identity:
        """The same, on behalf of the user who made a trust."""
        from storelib.drivers.swift.identity import V3Identity

        return V3Identity(self.connections, self._credentials[reference], self._conf, trust)

    def features(self, account: Account) -> Features:
        """What the service of ``account`` can do; asked once."""
        origin = account.url.partition("/v")[0]
        known = self._features.get(origin)
        if known is None:
            try:
                about = account.about()
            except StoreError as error:
                if error.transient:
                    raise
                about = {}
            known = Features.of(about or {})
            # What something else answered in its place holds for now only.
            if about is not None:
                self._features[origin] = known
        return known

    def forget_parent(self) -> None:
        """In a forked child: neither use nor close the parent's connections, nor wait for a lock its threads held."""
        self._inherited += [self._connections, self._identities]
        self._begin()


_all: weakref.WeakSet[Clients] = weakref.WeakSet()


def _forget_parents() -> None:
    for clients in list(_all):
        clients.forget_parent()


os.register_at_fork(after_in_child=_forget_parents)

# SPDX-License-Identifier: Apache-2.0
"""Owners: which of many stores a location may belong to, found without asking each of them.

A driver that tells the ``roots`` of its stores is asked for the locations that have one of them; any other is asked for
every location. ``Store.owns`` alone decides which store owns a location.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from storelib.driver import Store
from storelib.exceptions import BadStoreUri
from storelib.location import Location

AnyStore = Store[Any]
_Roots = dict[Hashable, list[int]]


class _Kind(NamedTuple):
    """Stores with one form of URI, by their positions in the list of all."""

    #: Those to be asked for every location.
    rootless: list[int]
    #: By class, since each has its own idea of roots.
    rooted: dict[type[AnyStore], _Roots]


class Owners:
    """The stores of one scheme, in the order in which they are to be asked."""

    def __init__(self, stores: Sequence[AnyStore]) -> None:
        self.stores = stores
        self._kinds: dict[type[Any], _Kind] = {}
        for position, store in enumerate(stores):
            kind = self._kinds.setdefault(store.location_class, _Kind([], {}))
            roots = store.roots() if _tells_roots(store) else None
            if roots is None:
                kind.rootless.append(position)
                continue
            known = kind.rooted.setdefault(type(store), {})
            for root in roots:
                known.setdefault(root, []).append(position)

    def of(self, uri: str | Location, scheme: str) -> list[AnyStore]:
        """The stores that own a location; a URI is parsed once for each form it may have."""
        found: set[int] = set()
        for location_class, kind in self._kinds.items():
            location = _parsed(uri, scheme, location_class)
            # What is not of a store is told so in an error that takes longer to write than all the rest.
            if location is not None and isinstance(location.store_location, location_class):
                found.update(position for position in _candidates(kind, location) if self._owns(position, location))
        return [self.stores[position] for position in sorted(found)]

    def _owns(self, position: int, location: Location) -> bool:
        store = self.stores[position]
        if not store.owns(location.store_location):
            return False
        try:
            store.locate(location)
        except BadStoreUri:
            return False
        return True


def _candidates(kind: _Kind, location: Location) -> Iterator[int]:
    yield from kind.rootless
    for driver, known in kind.rooted.items():
        roots = driver.possible_roots(location.store_location)
        for positions in known.values() if roots is None else _those(known, roots):
            yield from positions


def _those(known: _Roots, roots: Iterable[Hashable]) -> Iterator[list[int]]:
    return (known[root] for root in roots if root in known)


def _tells_roots(store: AnyStore) -> bool:
    """Whether its roots are those of its ``owns``, and not of a driver that it is derived from."""
    if "owns" in vars(store):
        return False
    return all(_depth(type(store), name) <= _depth(type(store), "owns") for name in ("roots", "possible_roots"))


def _depth(driver: type[AnyStore], name: str) -> int:
    """How many classes up a method is defined."""
    return next(number for number, each in enumerate(driver.__mro__) if name in vars(each))


def _parsed(uri: str | Location, scheme: str, kind: type[Any]) -> Location | None:
    """The URI in one of its forms; None if it has not that form."""
    try:
        return uri if isinstance(uri, Location) else Location(uri, {scheme.lower(): kind})
    except BadStoreUri:
        return None

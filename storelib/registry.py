# SPDX-License-Identifier: Apache-2.0
"""Registry: the configured stores by id, by scheme and by URI. An ordinary object; as many as you like.

Making one opens no connection and starts no thread. How options are found is ``config.py``'s.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from oslo_config import cfg

from storelib import config
from storelib.capabilities import Capability
from storelib.driver import STORE_OPTIONS, Area, Context, Store
from storelib.exceptions import BadStoreConfiguration, BadStoreUri, NotFound, StoreError, UnknownScheme
from storelib.location import Location
from storelib.owners import Owners
from storelib.plugins import checked_class, driver_class
from storelib.transfer.memory import MemoryBudget
from storelib.transfer.retry import mapped
from storelib.uris import scheme_of

AnyStore = Store[Any]


class DisabledStore(NamedTuple):
    """A listed store that could not be configured, and why."""

    name: str
    driver: str
    reason: str


def open_store(driver: str | type[AnyStore], name: str | None = None, **options: Any) -> AnyStore:
    """A configured store without a configuration file.

    ``open_store("file", filesystem_store_datadir="/srv/images")``. ``name`` is the store's id, the driver's name if
    not given. A wrong option or value raises BadStoreConfiguration.
    """
    if isinstance(driver, str):
        known_as, found = driver, driver_class(driver)
    else:
        found = checked_class(driver)
        known_as = found.schemes[0]
    store_id = known_as if name is None else name
    if not isinstance(store_id, str) or not store_id:
        raise BadStoreConfiguration(f"name must be the id of a store, a text that is not empty, not {name!r:.80}")
    values = config.given_options(store_id, known_as, [*STORE_OPTIONS, *found.options], options)
    store = found(store_id, values)
    store.configure()
    if Capability.ADD in store.capabilities:
        # Who opens one store is about to use it. A registry opens all, to look at one of them perhaps.
        mapped(store.prepare, store.map_error, f"store {store_id}")
    return store


class Registry:
    """Stores by id: ``registry["fast"]``; iterating gives the stores in the order they were listed.

    ``default`` is the id of the default store, else it is the first one. ``reserved`` stores belong to the calling
    program: they are found by id and nothing else. ``disabled`` are those that could not be configured.
    ``memory`` is shared by the transfers of all stores: a quarter of what the process may use, if not given.
    """

    def __init__(
        self,
        stores: Iterable[AnyStore],
        default: str | None = None,
        *,
        reserved: Iterable[AnyStore] = (),
        disabled: Iterable[DisabledStore] = (),
        conf: cfg.ConfigOpts | None = None,
        memory: MemoryBudget | None = None,
    ) -> None:
        self._stores = _by_name(stores)
        self.reserved = _by_name(reserved, self._stores)
        self.disabled = {store.name: store for store in disabled}
        #: Id of the default store, which may be disabled.
        self.default_name = default or next(iter(self._stores), None)
        #: The ConfigOpts it was made from, if it was.
        self.conf = conf
        #: What the transfers of all its stores may hold together.
        self.memory = memory or MemoryBudget()
        for store in (*self._stores.values(), *self.reserved.values()):
            store.memory = self.memory

    @classmethod
    def from_conf(cls, conf: cfg.ConfigOpts, reserved: Mapping[str, str] | None = None) -> Registry:
        """The stores that ``[storelib]`` of ``conf`` lists, and ``reserved`` ones (id to driver).

        A mistake in the configuration raises BadStoreConfiguration. A store that cannot work, for want of a directory
        or a client library, is disabled and the others are there.
        """
        configuration = config.Configuration(conf, reserved)
        stores: dict[bool, list[AnyStore]] = {False: [], True: []}
        disabled = []
        known: dict[str, Iterable[str]] = {}
        areas: list[tuple[AnyStore, Area]] = []
        for entry in configuration.entries:
            try:
                driver = driver_class(entry.driver)
            except BadStoreConfiguration as error:
                disabled.append(DisabledStore(entry.name, entry.driver, str(error)))
                continue
            options = configuration.options(entry, driver)
            known[entry.name] = options.names()
            store = driver(entry.name, options)
            # Of one that is disabled, the areas are known as far as it came with its configuration.
            unknown: tuple[type[Exception], ...] = (StoreError,)
            try:
                store.configure()
                stores[entry.reserved].append(store)
            except BadStoreConfiguration as error:
                disabled.append(DisabledStore(entry.name, entry.driver, _explain(error, options)))
                unknown = (StoreError, AttributeError)
            with contextlib.suppress(*unknown):
                areas += [(store, area) for area in store.areas()]
        configuration.check_names(known)
        _refuse_common_areas(areas)
        for each in disabled:
            config.LOG.warning("store %s is disabled: %s", each.name, each.reason)
        return cls(
            stores[False],
            configuration.default,
            reserved=stores[True],
            disabled=disabled,
            conf=conf,
            memory=MemoryBudget(configuration.transfer_memory),
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Registry:
        """The stores of an ini file; raises BadStoreConfiguration."""
        return cls.from_conf(config.load_file(path))

    def __getitem__(self, name: str) -> AnyStore:
        store = self._stores.get(name) or self.reserved.get(name)
        if store is not None:
            return store
        if name in self.disabled:
            raise BadStoreConfiguration(f"store {name} is disabled: {self.disabled[name].reason}")
        raise UnknownScheme(f"there is no store {name!r}{config.did_you_mean(name, self._stores)}")

    def __contains__(self, name: object) -> bool:
        # Iterating gives stores, so one of them is in it as its id is.
        return name in self._stores or name in self.reserved or name in self._stores.values()

    def __iter__(self) -> Iterator[AnyStore]:
        return iter(self._stores.values())

    def __len__(self) -> int:
        return len(self._stores)

    def __repr__(self) -> str:
        return f"<Registry of {', '.join(self._stores) or 'no stores'}>"

    @property
    def default(self) -> AnyStore:
        """The default store; raises BadStoreConfiguration if it is disabled or there is none."""
        if self.default_name is None:
            raise BadStoreConfiguration("there is no default store")
        return self[self.default_name]

    @property
    def by_weight(self) -> list[AnyStore]:
        """The stores, those with the highest weight first, equal ones as listed."""
        return sorted(self, key=lambda store: -int(store.conf.weight))

    @property
    def schemes(self) -> list[str]:
        """All URI schemes that some store serves, sorted."""
        return sorted({scheme.lower() for store in self for scheme in store.schemes})

    def get_store_weight(self, name: str) -> int:
        """The weight of the store called ``name``; raises UnknownScheme."""
        return int(self[name].conf.weight)

    def store_for_scheme(self, scheme: str) -> AnyStore:
        """The default store if it serves ``scheme``, else the first by weight that does; raises UnknownScheme."""
        return self._owners_for(scheme).stores[0]

    def resolve(self, uri: str | Location, context: Context | None = None) -> AnyStore:
        """The one store that ``uri`` belongs to.

        Where several might have it the back ends are asked, the default store first, then by weight; the first that
        has the image is the one. Raises UnknownScheme, BadStoreUri if it lies in none of the stores, and NotFound.
        """
        owners = self.owners(uri)
        return owners[0] if len(owners) == 1 else _first_with(owners, uri, self._shown(uri), context)

    def owners(self, uri: str | Location) -> Sequence[AnyStore]:
        """The stores that ``uri`` may belong to, by its form alone, the default store first, then by weight.

        Raises UnknownScheme, and BadStoreUri if it lies in none of the stores.
        """
        scheme = uri.scheme if isinstance(uri, Location) else scheme_of(uri)
        owners = self._owners_for(scheme).of(uri, scheme)
        if not owners:
            raise BadStoreUri(f"{self._shown(uri)} does not belong to any store{self._disabled_hint()}")
        return owners

    def _shown(self, uri: str | Location) -> str:
        return str(uri if isinstance(uri, Location) else Location(uri, _schemes(self)))

    def _owners_for(self, scheme: str) -> Owners:
        found = self._by_scheme.get(scheme.lower()) if isinstance(scheme, str) else None
        if not found:
            hint = config.did_you_mean(scheme, self.schemes) + self._disabled_hint()
            raise UnknownScheme(f"no store serves the scheme {scheme!r}{hint}")
        return found

    @functools.cached_property
    def _by_scheme(self) -> Mapping[str, Owners]:
        """The stores of each scheme, the default one first, then by weight. Nothing of it changes."""
        found: dict[str, list[AnyStore]] = {}
        for store in sorted(self.by_weight, key=lambda store: store.name != self.default_name):
            for scheme in dict.fromkeys(map(str.lower, store.schemes)):
                found.setdefault(scheme, []).append(store)
        return {scheme: Owners(stores) for scheme, stores in found.items()}

    def _disabled_hint(self) -> str:
        return f"; disabled are: {', '.join(self.disabled)}" if self.disabled else ""


def _by_name(stores: Iterable[AnyStore], others: Iterable[str] = ()) -> dict[str, AnyStore]:
    found: dict[str, AnyStore] = {}
    for store in stores:
        if store.name in found or store.name in others:
            raise BadStoreConfiguration(
                f"two stores are called {store.name}: give each a name of its own, open_store(..., name='fast')"
            )
        found[store.name] = store
    return found


def common_areas(
    areas: Iterable[tuple[AnyStore, Area]],
) -> Iterator[tuple[tuple[AnyStore, Area], tuple[AnyStore, Area]]]:
    """Every two stores that keep images in one place, or one within the other's, and where."""
    for one, other in itertools.combinations(areas, 2):
        if one[0] is not other[0] and one[1].overlaps(other[1]):
            yield one, other


def _refuse_common_areas(areas: Iterable[tuple[AnyStore, Area]]) -> None:
    for (one, its), (other, others) in common_areas(areas):
        raise BadStoreConfiguration(
            f"stores {one.name} and {other.name} would keep images in the same place: {one.conf.where(its.option)} "
            f"and {other.conf.where(others.option)}; give each a place of its own, neither within the other's"
        )


def _explain(error: BadStoreConfiguration, options: config.StoreOptions) -> str:
    """The driver's reason with the places of the options it speaks of, which the driver cannot know."""
    words = set(re.findall(r"\w+", str(error)))
    places = [options.where(option) for option in options if option in words]
    return f"{error} ({'; '.join(places)})" if places else str(error)


def _schemes(stores: Iterable[AnyStore]) -> dict[str, Any]:
    return {scheme.lower(): store.location_class for store in stores for scheme in store.schemes}


def _first_with(stores: Iterable[AnyStore], uri: str | Location, shown: str, context: Context | None) -> AnyStore:
    trouble: StoreError | None = None
    for store in stores:
        try:
            store.get_size(uri, context)
        except NotFound:
            continue
        except StoreError as error:
            trouble = trouble or error
        else:
            return store
    # A store that did not answer may well have it, so "not found" would be a guess.
    raise trouble or NotFound(f"no store has an image at {shown}")

# SPDX-License-Identifier: Apache-2.0
"""glance_store's locations, and the two tables of the stores that were made, which Glance reads directly."""

from __future__ import annotations

import logging
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from oslo_config import cfg

from storelib.compat.glance_store import exceptions

CONF = cfg.CONF
LOG = logging.getLogger(__name__)

#: Of single stores: scheme to ``store``, ``location_class`` and ``store_entry``.
SCHEME_TO_CLS_MAP: dict[str, dict[str, Any]] = {}
#: Of several: the same by scheme and id of the store.
SCHEME_TO_CLS_BACKEND_MAP: dict[str, dict[str, dict[str, Any]]] = {}


def get_location_from_uri(uri: str, conf: Any = CONF) -> Location:
    """The location that ``uri`` names; raises UnknownScheme and BadStoreUri."""
    scheme = scheme_of(uri)
    if scheme not in SCHEME_TO_CLS_MAP:
        raise exceptions.UnknownScheme(scheme=scheme)
    return Location(scheme, SCHEME_TO_CLS_MAP[scheme]["location_class"], conf, uri=uri)


def get_location_from_uri_and_backend(uri: str, backend: str, conf: Any = CONF) -> Location:
    """The location that ``uri`` names in the store called ``backend``; raises UnknownScheme and BadStoreUri."""
    scheme = scheme_of(uri)
    stores = SCHEME_TO_CLS_BACKEND_MAP.get(scheme)
    if stores is None:
        raise exceptions.UnknownScheme(scheme=scheme)
    if backend not in stores:
        raise exceptions.UnknownScheme(scheme=backend)
    return Location(scheme, stores[backend]["location_class"], conf, uri=uri, backend=backend)


def scheme_of(uri: str) -> str:
    """The scheme of ``uri`` in lower case, empty where there is none."""
    try:
        return urllib.parse.urlsplit(uri).scheme
    except ValueError:
        return uri.partition(":")[0].lower()


def register_scheme_backend_map(scheme_map: Mapping[str, Mapping[str, dict[str, Any]]]) -> None:
    """Add stores to those that have names; a name is taken from a store of another driver that had it before."""
    for scheme, stores in scheme_map.items():
        for others in SCHEME_TO_CLS_BACKEND_MAP.values():
            for name in stores.keys() & others.keys():
                if others[name].get("store_entry") != stores[name].get("store_entry"):
                    del others[name]
        SCHEME_TO_CLS_BACKEND_MAP.setdefault(scheme, {}).update(stores)


def register_scheme_map(scheme_map: Mapping[str, dict[str, Any]]) -> None:
    """Add stores to those that have none."""
    SCHEME_TO_CLS_MAP.update(scheme_map)


class Location:
    """Where one image is: ``store_location`` is the driver's own form."""

    def __init__(
        self,
        store_name: str,
        store_location_class: Any,
        conf: Any,
        uri: str | None = None,
        image_id: str | None = None,
        store_specs: Mapping[str, Any] | None = None,
        backend: str | None = None,
    ) -> None:
        self.store_name = store_name
        self.image_id = image_id
        self.store_specs = store_specs or {}
        self.conf = conf
        self.backend_group = backend
        self.store_location = store_location_class(self.store_specs, conf, backend_group=backend)
        if uri:
            self.store_location.parse_uri(uri)

    def get_store_uri(self) -> str:
        """The URI of the store's own location."""
        return str(self.store_location.get_uri())

    def get_uri(self) -> None:
        """None: a location has no other URI than that of the store."""


class StoreLocation:
    """What a driver makes of a URI; the base of those of drivers written for glance_store."""

    def __init__(self, store_specs: Mapping[str, Any], conf: Any, backend_group: str | None = None) -> None:
        self.conf = conf
        self.specs = store_specs
        self.backend_group = backend_group
        if self.specs:
            self.process_specs()

    def process_specs(self) -> None:
        """Take what is known from ``specs``."""

    def get_uri(self) -> str:
        """The URI that names this place; a driver overrides it."""
        raise NotImplementedError("StoreLocation subclass must implement get_uri()")

    def parse_uri(self, uri: str) -> None:
        """Take a URI apart; raises BadStoreUri."""
        raise NotImplementedError("StoreLocation subclass must implement parse_uri()")

    @staticmethod
    def validate_schemas(uri: str, valid_schemas: Sequence[str]) -> None:
        """Raise BadStoreUri unless ``uri`` begins with one of these."""
        if not uri.startswith(tuple(valid_schemas)):
            raise exceptions.BadStoreUri(
                message=f"Location URI must start with one of the following schemas: {', '.join(valid_schemas)}"
            )

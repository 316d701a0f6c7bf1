# SPDX-License-Identifier: Apache-2.0
"""glance_store's functions for stores with names: ``enabled_backends`` lists them, and each has a group of options."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping
from typing import Any

from oslo_config import cfg

from storelib.compat import options
from storelib.compat.glance_store import backend as single
from storelib.compat.glance_store import capabilities, driver, exceptions, location
from storelib.compat.glance_store.backend import (
    check_location_metadata,
    store_add_to_backend,
    store_add_to_backend_with_multihash,
)
from storelib.exceptions import StoreError
from storelib.registry import common_areas

__all__ = [
    "CONF",
    "FS_CONF_CHUNKSIZE_HELP",
    "FS_CONF_DATADIR_HELP",
    "add",
    "add_with_multihash",
    "check_location_metadata",
    "create_multi_stores",
    "delete",
    "get",
    "get_known_schemes_for_multi_store",
    "get_size_from_uri_and_backend",
    "get_store_from_store_identifier",
    "get_store_weight",
    "register_store_opts",
    "set_acls_for_multi_store",
    "store_add_to_backend",
    "store_add_to_backend_with_multihash",
    "verify_store",
]

CONF = cfg.CONF
LOG = logging.getLogger(__name__)

_SINGLE = "glance_store"
_STORE_OPTS: list[cfg.Opt] = [cfg.StrOpt("default_backend", help="The store that images go to when none is named.")]
_STORE_CFG_OPTS = driver._MULTI_BACKEND_OPTS
FS_CONF_DATADIR_HELP = "Directory of what the service keeps in {} while it works on an image."
FS_CONF_CHUNKSIZE_HELP = "Bytes per read and write."
#: Stores that the service itself keeps things in, name to driver.
_RESERVED_STORES: dict[str, str] = {}


def _list_config_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """Every option of stores with names, for oslo-config-generator; groups are called like the kinds of store."""
    found = [(_SINGLE, list(_STORE_OPTS))]
    for name in sorted(options.KNOWN):
        found.append((name, [*_STORE_CFG_OPTS, *options.known_options(name)]))
    for entry in single.third_party_entries():
        found.append((entry, [*_STORE_CFG_OPTS, *single.third_party_options(entry)]))
    for name, what in (("os_glance_tasks_store", "tasks"), ("os_glance_staging_store", "staging")):
        found.append((name, _reserved_options(name, what)))
    return found


def _reserved_options(name: str, what: str) -> list[cfg.Opt]:
    return [
        cfg.StrOpt(
            "filesystem_store_datadir", default=f"/var/lib/glance/{name}", help=FS_CONF_DATADIR_HELP.format(what)
        ),
        cfg.IntOpt("filesystem_store_chunk_size", default=64 * 1024, min=1, help=FS_CONF_CHUNKSIZE_HELP),
    ]


def register_store_opts(conf: Any, reserved_stores: Mapping[str, str] | None = None) -> None:
    """Register the options of all stores that ``conf.enabled_backends`` lists, and of the service's own."""
    for option in _STORE_OPTS:
        driver.safe_register(conf, option, _SINGLE)
    for name, entry in (conf.enabled_backends or {}).items():
        for option in _STORE_CFG_OPTS:
            driver.safe_register(conf, option, name)
        _register(conf, name, entry)
    _RESERVED_STORES.clear()
    for name, entry in (reserved_stores or {}).items():
        _RESERVED_STORES[name] = entry
        # Before the others, whose default is the directory of the images.
        for option in (*_reserved_options(name, name), *_STORE_CFG_OPTS):
            driver.safe_register(conf, option, name)
        _register(conf, name, entry)


def _register(conf: Any, name: str, entry: str) -> None:
    own = single.driver_of(entry)
    if own is not None:
        driver.BackendGroupConfiguration(options.all_options(own), config_group=name, conf=conf)
        return
    for option in single.third_party_options(entry):
        driver.safe_register(conf, option, name)


def _load_multi_store(conf: Any, store_entry: str, invoke_load: bool = True, backend: str | None = None) -> Any:
    """What ``backend.load`` returns, of the store that ``backend`` names."""
    return single.load(store_entry, invoke_load, conf, backend)


def _load_multi_stores(conf: Any, reserved_stores: Mapping[str, str] | None = None) -> Iterator[tuple[str, str, Any]]:
    for name, entry in {**(conf.enabled_backends or {}), **(reserved_stores or {})}.items():
        try:
            store = _load_multi_store(conf, entry, backend=name)
        except exceptions.BadStoreConfiguration:
            continue
        if store is not None:
            yield entry, name, store


def create_multi_stores(conf: Any = CONF, reserved_stores: Mapping[str, str] | None = None) -> int:
    """Make and configure the stores that are listed; returns how many schemes they serve, each counted."""
    made = []
    for entry, name, store in _load_multi_stores(conf, reserved_stores):
        schemes, found = single.configured(store, entry)
        made.append((store, name, schemes, found))
    _warn_of_common_places(store for store, *_ in made)
    # Where drivers of others say nothing, in the order of the configuration.
    made.sort(key=lambda each: -getattr(each[0], "precedence", 0))
    for _, name, schemes, found in made:
        for scheme in schemes:
            location.register_scheme_backend_map({scheme: {name: dict(found)}})
    return sum(len(schemes) for _, _, schemes, _ in made)


def _warn_of_common_places(made: Iterable[Any]) -> None:
    """Not refused as storelib does: old files have such stores, and glance_store serves them."""
    areas = []
    for native in filter(None, (getattr(store, "native", None) for store in made)):
        with contextlib.suppress(StoreError):
            areas += [(native, area) for area in native.areas()]
    for (one, its), (other, others) in common_areas(areas):
        LOG.warning(
            "Stores %s and %s keep images in the same place (%s, %s): an image that is deleted in one is lost to the "
            "other. Give each a place of its own, neither within the other's.",
            *(one.name, other.name, its.option, others.option),
        )


def verify_store() -> None:
    """Raise RuntimeError unless the default store is named and among those that were made."""
    name = CONF.glance_store.default_backend
    if not name:
        raise RuntimeError("'default_backend' config option is not set.")
    try:
        get_store_from_store_identifier(name)
    except exceptions.UnknownScheme:
        raise RuntimeError(f"Store for identifier {name} not found") from None


def get_store_weight(store_identifier: str) -> int:
    """The weight of a store; raises UnknownScheme."""
    return int(_known(store_identifier)["store"].weight)


def get_store_from_store_identifier(store_identifier: str) -> Any:
    """The store of this name; raises UnknownScheme."""
    known = _known(store_identifier)
    store = known["store"]
    if not store.is_capable(capabilities.BitMasks.DRIVER_REUSABLE):
        # A third-party driver whose stores are for one use.
        store = _load_multi_store(store.conf, known["store_entry"], backend=store_identifier)
        store.configure()
        for scheme in store.get_schemes():
            location.register_scheme_backend_map({scheme: {store_identifier: {**known, "store": store}}})
    return store


def _known(name: str) -> dict[str, Any]:
    for stores in location.SCHEME_TO_CLS_BACKEND_MAP.values():
        if name in stores:
            return stores[name]
    raise exceptions.UnknownScheme(message=f"Store for identifier {name} not found")


def add(
    conf: Any,
    image_id: str,
    data: Any,
    size: int,
    backend: str | None,
    context: Any = None,
    verifier: Any = None,
) -> Any:
    """Add an image to a store, or the default one; returns URI, size, md5 and metadata."""
    store = get_store_from_store_identifier(backend or conf[_SINGLE]["default_backend"])
    return store_add_to_backend(image_id, data, size, store, context, verifier)


def add_with_multihash(
    conf: Any,
    image_id: str,
    data: Any,
    size: int,
    backend: str | None,
    hashing_algo: str,
    scheme: str | None = None,
    context: Any = None,
    verifier: Any = None,
) -> Any:
    """The same with a multihash. ``scheme`` means nothing."""
    store = get_store_from_store_identifier(backend or conf[_SINGLE]["default_backend"])
    return store_add_to_backend_with_multihash(image_id, data, size, hashing_algo, store, context, verifier)


def delete(uri: str, backend: str | None, context: Any = None) -> Any:
    """Remove an image from a store; without one, from the first that has it."""
    return _in_store(uri, backend, lambda store, found: store.delete(found, context=context))


def set_acls_for_multi_store(
    location_uri: str,
    backend: str,
    public: bool = False,
    read_tenants: Any = (),
    write_tenants: Any = None,
    context: Any = None,
) -> None:
    """Say who may read and write an image, where its store has such lists."""
    found = location.get_location_from_uri_and_backend(location_uri, backend, conf=CONF)
    store = get_store_from_store_identifier(backend)
    single.share(store, found, public, read_tenants, write_tenants, context)


def get(uri: str, backend: str | None, offset: int = 0, chunk_size: int | None = None, context: Any = None) -> Any:
    """The bytes of an image, and how many they are; without a store from the first that has it."""
    return _in_store(
        uri,
        backend,
        lambda store, found: store.get(found, offset=offset, chunk_size=chunk_size, context=context),
    )


def get_size_from_uri_and_backend(uri: str, backend: str | None, context: Any = None) -> int:
    """Bytes in an image."""
    return int(_in_store(uri, backend, lambda store, found: store.get_size(found, context=context)))


def _in_store(uri: str, name: str | None, operation: Callable[[Any, Any], Any]) -> Any:
    if name:
        found = location.get_location_from_uri_and_backend(uri, name, conf=CONF)
        return operation(get_store_from_store_identifier(name), found)
    scheme = location.scheme_of(uri)
    unusable: Exception | None = None
    for each in location.SCHEME_TO_CLS_BACKEND_MAP.get(scheme, {}):
        if each in _RESERVED_STORES:
            continue
        try:
            found = location.get_location_from_uri_and_backend(uri, each, conf=CONF)
            return operation(get_store_from_store_identifier(each), found)
        except (exceptions.NotFound, exceptions.BadStoreUri):
            continue
        except (exceptions.BadStoreConfiguration, exceptions.StoreDeleteNotSupported) as error:
            unusable = error
    if unusable is not None:
        # It may be there: nobody is to take the image for one whose data is gone.
        raise unusable
    raise exceptions.NotFound("Image not found in any configured backend")


def get_known_schemes_for_multi_store() -> KeysView[str]:
    """The schemes that some store serves."""
    return location.SCHEME_TO_CLS_BACKEND_MAP.keys()

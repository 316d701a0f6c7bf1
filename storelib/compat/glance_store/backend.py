# SPDX-License-Identifier: Apache-2.0
"""glance_store's functions for stores without names: one of each kind, found by the scheme of a URI."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Iterator, KeysView, Sequence
from typing import Any

from oslo_config import cfg

from storelib.compat import options
from storelib.compat.glance_store import capabilities, driver, exceptions, location

CONF = cfg.CONF
LOG = logging.getLogger(__name__)

_PACKAGE = "storelib.compat.glance_store._drivers"
#: The drivers of storelib by their names among glance_store's entry points, and the kind of each.
_MODULES = {
    "cinder": "cinder",
    "file": "filesystem",
    "http": "http",
    "rbd": "rbd",
    "s3": "s3",
    "swift": "swift",
    "vmware": "vmware_datastore",
}
_NAMESPACE = "glance_store.drivers"
_SINGLE = "glance_store"

_STORE_OPTS = [
    cfg.ListOpt("stores", default=["file", "http"], help="The kinds of store, one of each."),
    cfg.StrOpt(
        "default_store",
        default="file",
        choices=(
            *("file", "filesystem", "http", "https", "swift", "swift+http", "swift+https", "swift+config"),
            *("rbd", "cinder", "vsphere", "s3"),
        ),
        help="The scheme of the store that images go to.",
    ),
]


def driver_of(entry: str) -> str | None:
    """The driver of storelib that an entry point of glance_store names; None for a third party's."""
    kind = entry.removeprefix("glance.store.").removesuffix(".Store")
    return next((name for name, module in _MODULES.items() if kind in (name, module)), None)


def store_class(entry: str) -> Any:
    """The class of a store, storelib's own or that of a driver written for glance_store; raises RuntimeError."""
    name = driver_of(entry)
    if name is not None:
        return importlib.import_module(f"{_PACKAGE}.{_MODULES[name]}").Store
    for found in _entry_points(tuple(sys.path)):
        if found.name == entry:
            return found.load()
    raise RuntimeError(f"there is no driver {entry!r} among the entry points {_NAMESPACE}")


def third_party_entries() -> list[str]:
    """Entry points of drivers that are not storelib's, sorted."""
    found = _entry_points(tuple(sys.path))
    return sorted({entry.name for entry in found if driver_of(entry.name) is None and entry.name != "no_conf"})


@functools.lru_cache(maxsize=1)
def _entry_points(path: tuple[str, ...]) -> tuple[importlib.metadata.EntryPoint, ...]:
    """Drivers of others in the directories of ``path``, and ours by glance_store's names.

    Glance registers all options anew for each image that it stages, and the metadata of a hundred packages takes longer
    to read than all else.
    """
    return tuple(importlib.metadata.entry_points(group=_NAMESPACE))


def third_party_options(entry: str) -> list[cfg.Opt]:
    """The options of a driver that is not storelib's; none, with a warning, where it cannot be loaded."""
    return list(getattr(load(entry, False), "OPTIONS", None) or ())


def _list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """Every option of stores without names, for oslo-config-generator."""
    drivers = [option for name in sorted(_MODULES) for option in options.known_options(name)]
    drivers += [option for entry in third_party_entries() for option in third_party_options(entry)]
    return [(_SINGLE, list(_STORE_OPTS)), (_SINGLE, drivers)]


def register_opts(conf: Any) -> None:
    """Register the options of all drivers, in groups as glance_store has them."""
    for group, found in _list_opts():
        for option in found:
            # Two drivers may have one of the same name.
            driver.safe_register(conf, option, group)


class Indexable:
    """An iterator of bytes with a length, of which a client takes slices to the end: it gets a chunk, or its rest."""

    def __init__(self, wrapped: Any, size: Any) -> None:
        self.size = int(size) if size else (wrapped.len if hasattr(wrapped, "len") else 0)
        self.wrapped = wrapped
        #: The last chunk, and where in the image it ends.
        self.chunk: Any = None
        self.cursor = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.wrapped:
            self.chunk = chunk
            yield chunk

    def __getitem__(self, i: Any) -> Any:
        start = (i.start or 0) if isinstance(i, slice) else i
        if start < self.cursor:
            return self.chunk[start - self.cursor :]
        self.chunk = self.another()
        self.cursor += len(self.chunk or b"")
        return self.chunk

    def another(self) -> Any:
        """The next chunk."""
        raise NotImplementedError

    def getvalue(self) -> Any:
        """All bytes, where what is wrapped has them."""
        return self.wrapped.getvalue()

    def __len__(self) -> int:
        return self.size


def load(store_entry: str, invoke_load: bool, *arguments: Any) -> Any:
    """A store that is not configured yet, or its class; None, with a warning, where it cannot be loaded."""
    try:
        found = store_class(store_entry)
    except Exception as error:  # noqa: BLE001  (whatever a third-party module raises, others work without it)
        return _unloadable(store_entry, error)
    try:
        return found(*arguments) if invoke_load else found
    except (RuntimeError, ImportError) as error:
        return _unloadable(store_entry, error)


def _unloadable(store_entry: str, error: Exception) -> None:
    LOG.warning("Failed to load driver %s. The driver will be disabled: %s", store_entry, error)


def _load_store(conf: Any, store_entry: str, invoke_load: bool = True) -> Any:
    """What ``load`` returns, of a store without a name."""
    return load(store_entry, invoke_load, conf)


def configured(store: Any, store_entry: str) -> tuple[Sequence[str], dict[str, Any]]:
    """Configure a store; returns its schemes, and what the tables of ``location`` hold of it.

    No schemes: its driver does not implement what that takes. Raises BackendException for one that has none.
    """
    try:
        schemes = store.get_schemes()
        store.configure(re_raise_bsc=False)
    except NotImplementedError:
        return (), {}
    except exceptions.BadStoreConfiguration as error:
        # Some drivers check their options before the part that only adding needs.
        LOG.warning("The store of driver %s is left out: %s", store_entry, error)
        return (), {}
    if not schemes:
        raise exceptions.BackendException(f"Unable to register store {type(store)}. No schemes associated with it.")
    return schemes, {"store": store, "location_class": store.get_store_location_class(), "store_entry": store_entry}


def _load_stores(conf: Any) -> Iterator[tuple[str, Any]]:
    for entry in dict.fromkeys(conf.glance_store.stores):
        try:
            store = _load_store(conf, entry)
        except exceptions.BadStoreConfiguration:
            continue
        if store is not None:
            yield entry, store


def create_stores(conf: Any = CONF) -> int:
    """Make and configure the stores that are listed; returns how many."""
    count = 0
    for entry, store in _load_stores(conf):
        schemes, found = configured(store, entry)
        location.register_scheme_map({scheme: dict(found) for scheme in schemes})
        count += bool(schemes)
    return count


def verify_default_store() -> None:
    """Raise RuntimeError unless the default store is among those that were made."""
    scheme = CONF.glance_store.default_store
    try:
        get_store_from_scheme(scheme)
    except exceptions.UnknownScheme:
        raise RuntimeError(f"Store for scheme {scheme} not found") from None


def get_known_schemes() -> KeysView[str]:
    """The schemes that some store serves."""
    return location.SCHEME_TO_CLS_MAP.keys()


def get_store_from_scheme(scheme: str) -> Any:
    """The store that serves a scheme; raises UnknownScheme."""
    if scheme not in location.SCHEME_TO_CLS_MAP:
        raise exceptions.UnknownScheme(scheme=scheme)
    known = location.SCHEME_TO_CLS_MAP[scheme]
    store = known["store"]
    if not store.is_capable(capabilities.BitMasks.DRIVER_REUSABLE):
        # A third-party driver whose stores are for one use.
        store = _load_store(store.conf, known["store_entry"], invoke_load=True)
        store.configure()
        location.register_scheme_map({each: {**known, "store": store} for each in store.get_schemes()})
    return store


def get_store_from_uri(uri: str) -> Any:
    """The store that serves the scheme of ``uri``; raises UnknownScheme."""
    return get_store_from_scheme(location.scheme_of(uri))


def get_from_backend(uri: str, offset: int = 0, chunk_size: int | None = None, context: Any = None) -> Any:
    """The bytes of an image, and how many they are."""
    found = location.get_location_from_uri(uri, conf=CONF)
    return get_store_from_uri(uri).get(found, offset=offset, chunk_size=chunk_size, context=context)


def get_size_from_backend(uri: str, context: Any = None) -> int:
    """Bytes in an image."""
    found = location.get_location_from_uri(uri, conf=CONF)
    return int(get_store_from_uri(uri).get_size(found, context=context))


def delete_from_backend(uri: str, context: Any = None) -> Any:
    """Remove the image at ``uri`` from the store it belongs to."""
    found = location.get_location_from_uri(uri, conf=CONF)
    return get_store_from_uri(uri).delete(found, context=context)


def get_store_from_location(uri: str) -> str:
    """The scheme of ``uri``; raises UnknownScheme and BadStoreUri."""
    return location.get_location_from_uri(uri, conf=CONF).store_name


def check_location_metadata(val: Any, key: str = "") -> None:
    """Raise BackendException unless all that is in it is text."""
    if isinstance(val, dict):
        for name, value in val.items():
            check_location_metadata(value, key=name)
    elif isinstance(val, list):
        for index, value in enumerate(val):
            check_location_metadata(value, key=f"{key}[{index}]")
    elif not isinstance(val, str):
        raise exceptions.BackendException(
            f"The image metadata key {key} has an invalid type of {type(val)}: only dict, list and str are supported"
        )


def _check_metadata(store: Any, metadata: Any) -> None:
    if not isinstance(metadata, dict):
        raise exceptions.BackendException(
            f"The storage driver {store} returned invalid metadata {metadata}. This must be a dictionary type"
        )
    try:
        check_location_metadata(metadata)
    except exceptions.BackendException as error:
        raise exceptions.BackendException(
            f"A bad metadata structure was returned from the {store} storage driver: {metadata}. {error}."
        ) from error


def store_add_to_backend(
    image_id: str, data: Any, size: int, store: Any, context: Any = None, verifier: Any = None
) -> Any:
    """Add an image to a store; returns URI, size, md5 and metadata."""
    uri, size, checksum, metadata = store.add(image_id, data, size, context=context, verifier=verifier)
    if metadata is not None:
        _check_metadata(store, metadata)
    return uri, size, checksum, metadata


def store_add_to_backend_with_multihash(
    image_id: str, data: Any, size: int, hashing_algo: str, store: Any, context: Any = None, verifier: Any = None
) -> Any:
    """Add an image to a store; returns URI, size, md5, multihash and metadata. Raises UnknownHashingAlgo."""
    if hashing_algo not in hashlib.algorithms_available:
        raise exceptions.UnknownHashingAlgo(algo=hashing_algo)
    uri, size, checksum, multihash, metadata = store.add(
        image_id, data, size, hashing_algo, context=context, verifier=verifier
    )
    if metadata is not None:
        _check_metadata(store, metadata)
    return uri, size, checksum, multihash, metadata


def add_to_backend(
    conf: Any,
    image_id: str,
    data: Any,
    size: int,
    scheme: str | None = None,
    context: Any = None,
    verifier: Any = None,
) -> Any:
    """Add an image to the store of a scheme, or the default one; returns URI, size, md5 and metadata."""
    store = get_store_from_scheme(scheme or conf[_SINGLE]["default_store"])
    return store_add_to_backend(image_id, data, size, store, context, verifier)


def add_to_backend_with_multihash(
    conf: Any,
    image_id: str,
    data: Any,
    size: int,
    hashing_algo: str,
    scheme: str | None = None,
    context: Any = None,
    verifier: Any = None,
) -> Any:
    """The same with a multihash."""
    store = get_store_from_scheme(scheme or conf[_SINGLE]["default_store"])
    return store_add_to_backend_with_multihash(image_id, data, size, hashing_algo, store, context, verifier)


def set_acls(
    location_uri: str,
    public: bool = False,
    read_tenants: Any = (),
    write_tenants: Any = None,
    context: Any = None,
) -> None:
    """Say who may read and write an image, where its store has such lists."""
    found = location.get_location_from_uri(location_uri, conf=CONF)
    share(get_store_from_uri(location_uri), found, public, read_tenants, write_tenants, context)


def share(store: Any, found: Any, public: bool, read_tenants: Any, write_tenants: Any, context: Any) -> None:
    """The same for an image whose store and location are known."""
    try:
        store.set_acls(
            found,
            public=public,
            read_tenants=list(read_tenants or ()),
            write_tenants=list(write_tenants or ()),
            context=context,
        )
    except NotImplementedError:
        LOG.debug("Skipping store.set_acls... not implemented.")

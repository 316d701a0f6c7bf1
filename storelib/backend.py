# SPDX-License-Identifier: Apache-2.0
"""Functions over one default registry, for programs that set their stores up once and pass no objects around.

``register_opts(conf)`` comes before the configuration is parsed, ``create_stores(conf)`` after it. The default registry
is the only global state of storelib. Here alone an old caller's size 0 means unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oslo_config import cfg

from storelib import config
from storelib.driver import Context, ImageData, Store, StoredImage
from storelib.exceptions import AclsNotSupported, BadStoreConfiguration, Invalid
from storelib.location import Location
from storelib.registry import Registry
from storelib.transfer.digests import Verifier
from storelib.transfer.source import Data
from storelib.transfer.upload import a_store
from storelib.transfer.verifying import Verify
from storelib.uris import scheme_of

_default: Registry | None = None


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register the options of ``[storelib]``; call it before ``conf`` is parsed."""
    config.register_opts(conf)


def create_stores(conf: cfg.ConfigOpts, reserved: Mapping[str, str] | None = None) -> int:
    """Make the stores that ``conf`` lists the default ones, in place of earlier ones; returns how many work.

    ``reserved`` are stores of the calling program itself, id to driver. Registers the group of each store. Raises
    BadStoreConfiguration, and then the earlier stores stay.
    """
    return use_registry(Registry.from_conf(conf, reserved))


def use_registry(registry: Registry | None) -> int:
    """Make ``registry`` the default one; None forgets it. Returns how many stores it has."""
    global _default
    _default = registry
    return 0 if registry is None else len(registry)


def default_registry() -> Registry:
    """The registry these functions use; raises BadStoreConfiguration before ``create_stores``."""
    if _default is None:
        raise BadStoreConfiguration("there are no stores yet: call create_stores(conf) first")
    return _default


def verify_default_store() -> None:
    """Raise BadStoreConfiguration unless the default store can be used."""
    _ = default_registry().default


def get_known_schemes() -> list[str]:
    """All URI schemes that some store serves."""
    return default_registry().schemes


def get_store_from_scheme(scheme: str) -> Store[Any]:
    """The default store if it serves ``scheme``, else the first by weight that does; raises UnknownScheme."""
    return default_registry().store_for_scheme(scheme)


def get_store_from_uri(uri: str | Location, context: Context | None = None) -> Store[Any]:
    """The store that ``uri`` belongs to; raises UnknownScheme, BadStoreUri or NotFound."""
    return default_registry().resolve(uri, context)


def get_store_from_location(uri: str | Location) -> str:
    """The scheme of ``uri``, which is what this function of glance_store returns under its misleading name."""
    return uri.scheme if isinstance(uri, Location) else scheme_of(uri)


def get_from_backend(
    uri: str | Location,
    offset: int = 0,
    length: int | None = None,
    context: Context | None = None,
    *,
    verify: Verify = None,
) -> ImageData:
    """The stream and the size of the image at ``uri``, or of a range of it; ``verify`` is that of ``Store.get``."""
    return get_store_from_uri(uri, context).get(uri, offset, length, context, verify=verify)


def get_size_from_backend(uri: str | Location, context: Context | None = None) -> int:
    """The size of the image at ``uri`` in bytes."""
    return get_store_from_uri(uri, context).get_size(uri, context)


def delete_from_backend(uri: str | Location, context: Context | None = None) -> None:
    """Remove the image at ``uri``."""
    get_store_from_uri(uri, context).delete(uri, context)


def store_add_to_backend(
    image_id: str,
    data: Data,
    size: int | None,
    store: Store[Any] | str,
    context: Context | None = None,
    verifier: Verifier | None = None,
    hashing_algo: str = "sha512",
) -> StoredImage:
    """Add an image to ``store``, which is a Store or the id of one; a size of 0 or None is unknown."""
    target = default_registry()[store] if isinstance(store, str) else a_store(store)
    added = target.add(image_id, data, size or None, hashing_algo=hashing_algo, context=context, verifier=verifier)
    check_location_metadata(added.metadata)
    return added


def add_to_backend(
    conf: cfg.ConfigOpts | None,
    image_id: str,
    data: Data,
    size: int | None,
    scheme: str | None = None,
    context: Context | None = None,
    verifier: Verifier | None = None,
    *,
    store: str | None = None,
    hashing_algo: str = "sha512",
) -> StoredImage:
    """Add an image to the store called ``store``, else to the one for ``scheme``, else to the default store.

    ``conf`` is the one ``create_stores`` was given, or None; another one raises BadStoreConfiguration, since its
    stores are not the ones used here.
    """
    registry = default_registry()
    if conf is not None and conf is not registry.conf:
        raise BadStoreConfiguration("these stores were made from another conf: call create_stores(conf) with this one")
    target = registry.default
    if store or scheme:
        target = registry[store] if store else registry.store_for_scheme(scheme or "")
    return store_add_to_backend(image_id, data, size, target, context, verifier, hashing_algo)


def set_acls(
    location_uri: str | Location,
    public: bool = False,
    read_tenants: Sequence[str] = (),
    write_tenants: Sequence[str] | None = (),
    context: Context | None = None,
) -> None:
    """Let everybody or these tenants use an image; does nothing in a store without access control lists."""
    store = get_store_from_uri(location_uri, context)
    try:
        store.set_acls(location_uri, public, read_tenants, write_tenants or (), context)
    except AclsNotSupported:
        pass


def check_location_metadata(val: Any, key: str = "") -> None:
    """Raise Invalid unless ``val`` is made of dicts, lists and strings only; ``key`` is its name in the message."""
    if isinstance(val, Mapping):
        for name, item in val.items():
            check_location_metadata(item, f"{key}.{name}" if key else str(name))
    elif isinstance(val, list):
        for number, item in enumerate(val):
            check_location_metadata(item, f"{key}[{number}]")
    elif not isinstance(val, str):
        what = f"location metadata {key}" if key else "location metadata"
        raise Invalid(f"{what} must be a dict, a list or a string, not {type(val).__name__}")

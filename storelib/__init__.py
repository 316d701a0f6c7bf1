# SPDX-License-Identifier: Apache-2.0
"""Pluggable image stores: one interface, one URI per image, many back ends.

The public names and nothing else. Each is imported when it is first used (PEP 562), so that ``import storelib`` costs
next to nothing and loads no driver and no third-party library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from storelib._version import __version__

if TYPE_CHECKING:
    from storelib.backend import (
        add_to_backend,
        check_location_metadata,
        create_stores,
        delete_from_backend,
        get_from_backend,
        get_known_schemes,
        get_size_from_backend,
        get_store_from_location,
        get_store_from_scheme,
        get_store_from_uri,
        register_opts,
        set_acls,
        store_add_to_backend,
        verify_default_store,
    )
    from storelib.capabilities import Capability
    from storelib.driver import Digest, ImageData, Store, StoredImage
    from storelib.exceptions import (
        AclsNotSupported,
        BadStoreConfiguration,
        BadStoreUri,
        DigestMismatch,
        Duplicate,
        Forbidden,
        HasSnapshot,
        ImageChanged,
        IncompleteRead,
        InUseByStore,
        Invalid,
        MissingDependency,
        NotFound,
        OperationNotSupported,
        RemoteServiceUnavailable,
        StorageFull,
        StorageWriteDenied,
        StoreAddDisabled,
        StoreDeleteNotSupported,
        StoreError,
        StoreGetNotSupported,
        StoreRandomGetNotSupported,
        TransferTimeout,
        UnknownHashingAlgo,
        UnknownScheme,
    )
    from storelib.location import Location, get_location_from_uri
    from storelib.registry import Registry, open_store
    from storelib.transfer import copy, fan_out

__all__ = [
    "AclsNotSupported",
    "BadStoreConfiguration",
    "BadStoreUri",
    "Capability",
    "Digest",
    "DigestMismatch",
    "Duplicate",
    "Forbidden",
    "HasSnapshot",
    "ImageChanged",
    "ImageData",
    "InUseByStore",
    "IncompleteRead",
    "Invalid",
    "Location",
    "MissingDependency",
    "NotFound",
    "OperationNotSupported",
    "Registry",
    "RemoteServiceUnavailable",
    "StorageFull",
    "StorageWriteDenied",
    "Store",
    "StoreAddDisabled",
    "StoreDeleteNotSupported",
    "StoreError",
    "StoreGetNotSupported",
    "StoreRandomGetNotSupported",
    "StoredImage",
    "TransferTimeout",
    "UnknownHashingAlgo",
    "UnknownScheme",
    "__version__",
    "add_to_backend",
    "check_location_metadata",
    "copy",
    "create_stores",
    "delete_from_backend",
    "fan_out",
    "get_from_backend",
    "get_known_schemes",
    "get_location_from_uri",
    "get_size_from_backend",
    "get_store_from_location",
    "get_store_from_scheme",
    "get_store_from_uri",
    "open_store",
    "register_opts",
    "set_acls",
    "store_add_to_backend",
    "verify_default_store",
]

# Names that do not live in exceptions.py (errors) or backend.py (functions).
_HOMES = {
    "Capability": "capabilities",
    "Digest": "driver",
    "ImageData": "driver",
    "Location": "location",
    "Registry": "registry",
    "Store": "driver",
    "StoredImage": "driver",
    "copy": "transfer",
    "fan_out": "transfer",
    "get_location_from_uri": "location",
    "open_store": "registry",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name) or ("exceptions" if name[0].isupper() else "backend")
    value = globals()[name] = getattr(import_module(f"storelib.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

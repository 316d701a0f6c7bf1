# SPDX-License-Identifier: Apache-2.0
"""What clients may know of the stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storelib.api.context import Context
from storelib.api.service.core import LOG, Core
from storelib.capabilities import Capability
from storelib.driver import Store
from storelib.exceptions import StoreError
from storelib.plugins import driver_classes
from storelib.transfer.contract import MiB

#: Options of drivers that are shown as properties: where things are, never how to get in.
SHOWN: Mapping[str, Mapping[str, str]] = {
    "file": {
        "data_dir": "filesystem_store_datadir",
        "datadir": "filesystem_store_datadir",
        "datadirs": "filesystem_store_datadirs",
        "chunk_size": "filesystem_store_chunk_size",
        "thin_provisioning": "filesystem_thin_provisioning",
    },
    "rbd": {
        "pool": "rbd_store_pool",
        "chunk_size": "rbd_store_chunk_size",
        "user": "rbd_store_user",
        "thin_provisioning": "rbd_thin_provisioning",
    },
    "s3": {
        "host": "s3_store_host",
        "bucket": "s3_store_bucket",
        "bucket_url_format": "s3_store_bucket_url_format",
        "s3_store_large_object_size": "s3_store_large_object_chunk_size",
        "s3_store_large_object_chunk_size": "s3_store_large_object_chunk_size",
        "s3_store_thread_pools": "s3_store_thread_pools",
    },
    "swift": {
        "container": "swift_store_container",
        "region": "swift_store_region",
        "multi_tenant": "swift_store_multi_tenant",
        "large_object_size": "swift_store_large_object_size",
        "large_object_chunk_size": "swift_store_large_object_chunk_size",
    },
    "cinder": {"volume_type": "cinder_volume_type", "use_multipath": "cinder_use_multipath"},
    "vmware": {"vmware_datastores": "vmware_datastores", "image_dir": "vmware_store_image_dir"},
}
#: Options in MiB that clients know in bytes.
_MEBIBYTES = {
    "rbd_store_chunk_size",
    "s3_store_large_object_chunk_size",
    "swift_store_large_object_size",
    "swift_store_large_object_chunk_size",
}


Shown = list[dict[str, Any]]


class Stores:
    """Describes stores in the words of the API: absent rather than false, booleans as strings."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def ids(self) -> list[str]:
        """The ids of the stores images can be added to."""
        return [store.name for store in self._core.registry]

    def list(self, context: Context) -> Shown:
        """All stores, without what only administrators may know."""
        return [self._shown(store) for store in self._core.registry]

    def detail(self, context: Context) -> Shown:
        """All stores with type, weight and properties; raises NotPermitted."""
        self._core.policy.require(context, "stores_info_detail", {})
        return [self._shown(store) | self._details(store) for store in self._core.registry]

    def _shown(self, store: Store[Any]) -> dict[str, Any]:
        shown: dict[str, Any] = {"id": store.name}
        if store.conf.description:
            shown["description"] = store.conf.description
        if store.name == self._core.registry.default_name:
            shown["default"] = "true"
        if Capability.ADD not in store.capabilities:
            shown["read-only"] = "true"
        return shown

    def _details(self, store: Store[Any]) -> dict[str, Any]:
        kind = _driver_of(store)
        properties: dict[str, Any] = {}
        for name, option in SHOWN.get(kind, {}).items():
            value = getattr(store.conf, option, None)
            if value is not None:
                properties[name] = value * MiB if option in _MEBIBYTES else value
        try:
            properties |= store.details()
        except StoreError as error:
            LOG.warning("store %s does not tell its details: %s", store.name, error)
        return {"type": kind, "weight": int(store.conf.weight), "properties": properties}


def _driver_of(store: Store[Any]) -> str:
    """The name of a store's driver, the first where it has several; its scheme where it was not found by a name."""
    return next((name for name, driver in driver_classes().items() if type(store) is driver), store.schemes[0])

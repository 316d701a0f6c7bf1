# SPDX-License-Identifier: Apache-2.0
"""What clients may know of the stores."""

from __future__ import annotations

from typing import Any

from storelib.api.context import Context
from storelib.api.service.core import Core
from storelib.capabilities import Capability
from storelib.driver import Store
from storelib.plugins import driver_classes

#: Options of drivers that are shown as properties: where things are, never how to get in.
SHOWN = {
    "file": ("filesystem_store_datadir", "filesystem_store_datadirs", "filesystem_store_chunk_size"),
    "rbd": ("rbd_store_pool", "rbd_store_chunk_size", "rbd_store_user"),
    "s3": ("s3_store_host", "s3_store_bucket", "s3_store_bucket_url_format"),
    "swift": ("swift_store_container", "swift_store_region", "swift_store_multi_tenant"),
    "cinder": ("cinder_volume_type",),
    "vmware": ("vmware_datastores", "vmware_store_image_dir"),
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
        properties = {}
        for option in SHOWN.get(kind, ()):
            value = getattr(store.conf, option, None)
            if value is not None:
                properties[option.removeprefix("filesystem_store_").removeprefix(f"{kind}_store_")] = value
        return {"type": kind, "weight": int(store.conf.weight), "properties": properties}


def _driver_of(store: Store[Any]) -> str:
    """The name of a store's driver, the first where it has several; its scheme where it was not found by a name."""
    return next((name for name, driver in driver_classes().items() if type(store) is driver), store.schemes[0])

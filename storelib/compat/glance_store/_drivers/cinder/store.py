# SPDX-License-Identifier: Apache-2.0
"""The cinder driver of storelib."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from storelib.compat import options
from storelib.compat.glance_store._drivers.native import NativeLocation, NativeStore
from storelib.drivers.cinder import CinderStore
from storelib.drivers.cinder.publication import STORE, Shelf
from storelib.drivers.cinder.service import Api, Volume

LOG = logging.getLogger(__name__)
#: What a store without a name calls itself in the metadata of its volumes.
_UNNAMED = "cinder"


class ShelfWithOldImages(Shelf):
    """Has those, too, that the store made before it had a name."""

    def holds(self, api: Api, volume: Volume) -> bool:
        """By its type, if nobody's name is on it."""
        if volume.metadata.get(STORE) == _UNNAMED:
            told = {name: value for name, value in volume.metadata.items() if name != STORE}
            volume = replace(volume, metadata=told)
        return super().holds(api, volume)


class CinderStoreWithOldImages(CinderStore):
    """Knows all volumes that Glance does."""

    def configure_get(self) -> None:
        """The same with another shelf."""
        super().configure_get()
        self.shelf = ShelfWithOldImages(self.name, self.conf.cinder_volume_type)


class StoreLocation(NativeLocation):
    """A URI of it."""

    DRIVER = "cinder"

    def composed(self, specs: Mapping[str, Any]) -> str:
        """The volume, in the store of this name."""
        store = f"{self.backend_group}/" if self.backend_group else ""
        return f"cinder://{store}{specs['volume_id']}"


class Store(NativeStore):
    """Images as volumes of Cinder."""

    DRIVER = "cinder"
    NAME = _UNNAMED
    OPTIONS = options.known_options("cinder")

    def prefix(self) -> str:
        """The store by its name; old URIs name none."""
        return f"cinder://{self.backend_group or ''}"

    def shown_uri(self, uri: str) -> str:
        """The name of a store is the one of its group; without one it has none."""
        return uri if self.backend_group else f"cinder://{uri.rpartition('/')[2]}"

    @property
    def store_conf(self) -> Any:
        """The options of the store."""
        return self.options

    def native_class(self) -> Any:
        """The one that knows old images."""
        return CinderStoreWithOldImages

    def is_image_associated_with_store(self, context: Any, volume_id: str) -> bool:
        """Whether a volume, which a URI without a store names, is of the type that this store makes.

        Glance asks whenever it looks at such an image, so what cannot be found out is no reason to fail.
        """
        try:
            api = self._store().service.user(context).api
            volume = api.volume(volume_id)
            return bool(volume.type == (self.options.cinder_volume_type or api.default_type()))
        except Exception as error:  # noqa: BLE001  (of whatever kind)
            LOG.warning("it is not known whether volume %s is of store %s: %s", volume_id, self.backend_group, error)
            return False

# SPDX-License-Identifier: Apache-2.0
"""Nodes with a ticket that are sent elsewhere for the bytes: to the store itself, or to another process of the API."""

from __future__ import annotations

import random
from typing import Any
from urllib.parse import quote

from storelib.api.context import administrator
from storelib.api.db.records import Image
from storelib.api.service.core import LOG, Core
from storelib.api.service.foreign import is_foreign
from storelib.capabilities import Capability
from storelib.exceptions import BadStoreConfiguration, StoreError


class Redirects:
    """What ``[preload]`` says of it. Raises BadStoreConfiguration."""

    def __init__(self, core: Core) -> None:
        self._core = core
        options: Any = core.options.preload
        self._others = [url.rstrip("/") for url in options.source_urls]
        for url in self._others:
            if not url.startswith(("http://", "https://")):
                raise BadStoreConfiguration("[preload] source_urls: each has to begin with http:// or https://")
        self._to_stores = bool(options.redirect_to_stores)
        self._lifetime = float(options.redirect_lifetime)

    def url(self, ticket: str, image_id: str) -> str | None:
        """Where a node with this ticket, which is valid, gets the image; None: here. Raises ImageNotFound."""
        if not self._others and not self._to_stores:
            return None
        image = self._core.repository.images.get(image_id)
        if image.status != "active":
            return None
        if self._others:
            # Which one it is decides nothing.
            other = random.choice(self._others)  # noqa: S311
            return f"{other}/v2/preloads/sources/{quote(ticket, safe='')}/{quote(image_id, safe='')}"
        return self._signed(image)

    def _signed(self, image: Image) -> str | None:
        """A URL of the first store that makes such, of data that no one else put there."""
        context = administrator()
        for location in self._core.by_weight(image.locations):
            try:
                store = self._core.store_of(location, context)
                if Capability.PRESIGN in store.capabilities and not is_foreign(store, location, image):
                    return store.presign(location.uri, self._lifetime)
            except StoreError as error:
                LOG.warning("image %s: no URL can be signed for its data at %r: %s", image.id, location, error)
        return None

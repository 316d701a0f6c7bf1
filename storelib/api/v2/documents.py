# SPDX-License-Identifier: Apache-2.0
"""Images as JSON, encoded once for all who see them alike."""

from __future__ import annotations

from storelib.api.caching import BoundedCache
from storelib.api.db.records import Image
from storelib.api.json_response import encode
from storelib.api.service import Context
from storelib.api.service.core import Core
from storelib.api.v2.serializers import image_document

#: Documents remembered at most, and characters of one that is: together about 32 MiB.
MEMORY, LARGEST = 4096, 8192


class ImageDocuments:
    """Encodes images. The repository returns the same object as long as an image does not change."""

    def __init__(self, core: Core) -> None:
        self._core = core
        # Otherwise a document depends on who asks.
        self._alike = not (core.protection.active or core.show_locations or core.show_direct_url)
        self._encoded: BoundedCache[str, tuple[Image, str]] = BoundedCache(MEMORY)

    def encode(self, context: Context, image: Image) -> str:
        """The image as the caller may see it."""
        known = self._encoded.get(image.id)
        if known is not None and known[0] is image:
            return known[1]
        text = encode(image_document(self._core, context, image))
        if self._alike and len(text) <= LARGEST:
            self._encoded.put(image.id, (image, text))
        return text

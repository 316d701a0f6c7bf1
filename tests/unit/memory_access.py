# SPDX-License-Identifier: Apache-2.0
"""The back-end access of a MemoryStore."""

from __future__ import annotations

from storelib.testing.conformance import BackendAccess
from storelib.testing.memory import Image, MemoryStore


class MemoryAccess(BackendAccess):
    """Looks into ``MemoryStore.backend``."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.backend = store.backend

    def read(self, image_id: str) -> bytes | None:
        image = self.backend.images.get(image_id)
        return image.data if image else None

    def plant(self, image_id: str, data: bytes) -> str:
        self.backend.images[image_id] = Image(data, "planted")
        return self.store.location(image_id).uri

    def residue(self, prefix: str) -> set[str]:
        images = {image_id for image_id in self.backend.images if image_id.startswith(prefix)}
        return images | {token for token, upload in self.backend.uploads.items() if upload.image_id.startswith(prefix)}

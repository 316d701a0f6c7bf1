# SPDX-License-Identifier: Apache-2.0
"""Images that were read before, so that what belongs to one is read again only after it has changed.

A row of the images table has a version that grows with every change of the image's properties, tags and locations, so
an image whose row is what it was, is what it was. Only committed rows may be kept here: those of reading transactions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storelib.api.caching import BoundedCache
from storelib.api.db.records import Image

#: Images remembered at most.
MEMORY = 4096
#: Characters of properties and locations in an image that is remembered at most: together about 32 MiB.
LARGEST = 8192


class ImageCache:
    """Images by the row they were read with. Safe from many threads."""

    def __init__(self, memory: int = MEMORY) -> None:
        self._images: BoundedCache[str, tuple[tuple[Any, ...], Image]] = BoundedCache(memory)

    def find(self, row: Sequence[Any]) -> Image | None:
        """The image of this row, if the row is the one it was read with."""
        known = self._images.get(row[0])
        return known[1] if known is not None and known[0] == tuple(row) else None

    def add(self, row: Sequence[Any], image: Image) -> None:
        """Remember the image as that of this row, unless it is too large."""
        if _characters(image) <= LARGEST:
            self._images.put(image.id, (tuple(row), image))


def _characters(image: Image) -> int:
    count = sum(len(name) + len(value or "") for name, value in image.properties.items())
    count += sum(len(tag) for tag in image.tags)
    return count + sum(len(location.uri) + len(repr(location.metadata)) for location in image.locations)

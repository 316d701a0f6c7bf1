# SPDX-License-Identifier: Apache-2.0
"""Copying within a bucket: the server copies the chunks by aggregation, some at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storelib.driver import Committed, Digests, ServerSideCopy
from storelib.drivers.gridfs.layout import count_chunks
from storelib.drivers.gridfs.location import GridfsLocation
from storelib.transfer.contract import MiB

if TYPE_CHECKING:
    from storelib.drivers.gridfs.store import GridfsStore

#: Bytes that one request copies.
PART = 128 * MiB


class GridfsCopy(ServerSideCopy):
    """Chunks of the same size as the source's under a record of its own, published like an upload."""

    def __init__(self, store: GridfsStore, source: GridfsLocation, image_id: str) -> None:
        original = store.find(source, store.client.files_at_primary)
        self.size = original.size
        self._source = original.files_id
        self._writer = store.open_writer(image_id, self.size, None)
        self._chunk = self._writer.chunk_size = original.chunk_size
        length = self._chunk * max(1, PART // self._chunk)
        self.parts = [min(length, self.size - start) for start in range(0, self.size, length)]
        self.moved_at_once = max(self.parts, default=0)

    def begin(self) -> None:
        """Leave the record of it."""
        self._writer.reserve(self.size)

    def copy_part(self, number: int, offset: int, length: int) -> None:
        """Some chunks; those that are there already stay."""
        first = offset // self._chunk
        self._writer.copy_chunks(self._source, first, first + count_chunks(length, self._chunk))

    def commit(self, digests: Digests) -> Committed:
        """Turn the record into an image."""
        return self._writer.commit(self.size, digests)

    def abort(self) -> None:
        """Remove the record and the chunks."""
        self._writer.abort()

    def close(self) -> None:
        """The writer's."""
        self._writer.close()

# SPDX-License-Identifier: Apache-2.0
"""Copying within a pool: a clone, for which no bytes move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storelib.driver import Committed, Digests, ServerSideCopy
from storelib.drivers.rbd.location import RbdLocation

if TYPE_CHECKING:
    from storelib.drivers.rbd.store import RbdStore


class RbdCopy(ServerSideCopy):
    """A clone under a temporary name, published like an upload."""

    def __init__(self, store: RbdStore, source: RbdLocation, image_id: str, context: Any) -> None:
        self.size, self._rbd_id = store.size_and_id(source)
        self._source = source
        self._writer = store.open_writer(image_id, self.size, context)

    def begin(self) -> None:
        """Make the clone; RBD makes none of an image without bytes."""
        if self.size:
            self._writer.clone_of(self._source.image, self._source.snapshot, self._rbd_id)
        else:
            self._writer.reserve(0)

    def commit(self, digests: Digests) -> Committed:
        """Seal it, rename it."""
        return self._writer.commit(self.size, digests)

    def abort(self) -> None:
        """Remove it."""
        self._writer.abort()

    def close(self) -> None:
        """End the watch."""
        self._writer.close()

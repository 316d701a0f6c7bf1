# SPDX-License-Identifier: Apache-2.0
"""Copying within a cluster: a snapshot of the image, and a clone of that; no bytes move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storelib.driver import Committed, Digests, ServerSideCopy
from storelib.drivers.sheepdog.claims import DELETING
from storelib.drivers.sheepdog.location import SheepdogLocation
from storelib.drivers.sheepdog.publication import Publication
from storelib.exceptions import ImageChanged

if TYPE_CHECKING:
    from storelib.drivers.sheepdog.store import SheepdogStore


class SheepdogCopy(ServerSideCopy):
    """A snapshot of the source that is there as long as the copy is being made."""

    def __init__(self, store: SheepdogStore, source: SheepdogLocation, image_id: str) -> None:
        self._store = store
        self._source = store.existing(source)
        self._claim = store.whole_claim(self._source)
        self._publication = Publication(store, image_id)
        self._tag = self._publication.temporary
        self.size = self._source.size
        store.refuse_existing(image_id)

    def begin(self) -> None:
        """Take the snapshot unless an attempt before this one did."""
        store, name = self._store, self._source.name
        if store.find_snapshot(name, self._tag) is None:
            store.dog.call("snapshot", "-s", self._tag, name)
        found = list(store.vdis(name))
        if not any(vdi.snapshot and vdi.tag == self._tag and vdi.vid == self._source.vid for vdi in found):
            raise ImageChanged(f"{store.location(name)} was deleted and made anew while it was copied")
        now = next((vdi for vdi in found if not vdi.snapshot), None)
        # Attributes do not stay with the vdi by themselves.
        if self._claim is not None and now is not None:
            vdi = now
            store.set_claim(name, self._claim.moved_to(vdi), lambda other: other.fits(vdi) and other.token != DELETING)

    def commit(self, digests: Digests) -> Committed:
        """Clone the snapshot to the final name, then remove it."""
        if not self._publication.done:
            self._publication.publish(self._source.name, self._tag, self._source, digests)
        self._store.clean_up(self._remove_snapshot, f"snapshot {self._tag} of {self._source.name}")
        return Committed(self._publication.location)

    def abort(self) -> None:
        """Remove the snapshot first, so that no clone is made any more, then the image if this copy published it."""
        try:
            self._remove_snapshot()
        finally:
            self._publication.withdraw()

    def close(self) -> None:
        """From now on, what is left is for gc."""
        self._publication.close()

    def _remove_snapshot(self) -> None:
        self._store.delete_snapshot(self._source.name, self._tag)

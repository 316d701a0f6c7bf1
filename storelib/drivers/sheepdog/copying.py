# SPDX-License-Identifier: Apache-2.0
"""Copying within a cluster: a snapshot of the image, and a clone of that; no bytes move."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from storelib.driver import Committed, Digests, ServerSideCopy
from storelib.drivers.sheepdog.claims import DELETING, Claim
from storelib.drivers.sheepdog.listing import Vdi
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
        # Copies of one image side by side would find it without its claim.
        with self._store.taking_snapshots:
            snapshot = self._store.find_snapshot(self._source.name, self._tag) or self._take_snapshot()
            if snapshot is None or (snapshot.vid, snapshot.created) != (self._source.vid, self._source.created):
                raise self._changed()
            self._move_claim()

    def _take_snapshot(self) -> Vdi | None:
        """Of the image alone that this copy was asked for, which another one's snapshot may have renumbered."""
        store, name = self._store, self._source.name
        if self._claim is not None and self._claim.fits(self._source):
            claim, now = store.claim(name), store.find(name)
            if now is None or claim is None or not claim.fits(now) or claim.token != self._claim.token:
                # A copy of another process puts the claim back in a moment.
                raise self._changed(passing=now is not None and claim is None)
            self._source, self._claim = now, claim
        store.dog.call("snapshot", "-s", self._tag, name)
        return store.find_snapshot(name, self._tag)

    def _move_claim(self) -> None:
        """Attributes do not stay with the vdi by themselves, and the number may be another again by then."""
        store, name, claim = self._store, self._source.name, self._claim
        now, moved = store.find(name), ""
        while claim is not None and now is not None and now.vid != moved:
            moved = now.vid
            store.set_claim(name, claim.moved_to(now), functools.partial(_stands, now))
            now = store.find(name)

    def _changed(self, *, passing: bool = False) -> ImageChanged:
        where = self._store.location(self._source.name)
        return ImageChanged(f"{where} was deleted and made anew while it was copied", transient=passing)

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


def _stands(vdi: Vdi, claim: Claim) -> bool:
    return claim.fits(vdi) and claim.token != DELETING

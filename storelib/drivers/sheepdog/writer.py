# SPDX-License-Identifier: Apache-2.0
"""SheepdogWriter: one image on its way into a cluster. SheepdogCopy: one made of another, for which no bytes move."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterator

from storelib.driver import Committed, Digests, Part, ServerSideCopy, Writer
from storelib.drivers.sheepdog.cluster import LARGEST, TOUCHED, SheepdogCluster, Vdi
from storelib.drivers.sheepdog.errors import CommandFailed
from storelib.drivers.sheepdog.location import SheepdogLocation
from storelib.drivers.sheepdog.publication import DELETING, Claim, Publication, claim_to, set_claim, whole_claim_to
from storelib.exceptions import Duplicate, ImageChanged, StorageFull, StoreError
from storelib.transfer.contract import KiB

#: Seconds between two notes in ``TOUCHED``.
TOUCH = 60.0
#: The snapshot that becomes the image; a number would be taken for the number of a snapshot.
TAG = "storelib"


class SheepdogWriter(Writer):
    """Writes into a vdi under a temporary name. Its size is exact at any time, since no vdi can be made smaller."""

    sparse = True
    smallest_part = 4 * KiB

    def __init__(self, cluster: SheepdogCluster, image_id: str) -> None:
        self._cluster = cluster
        self._dog = cluster.dog
        self.concurrency = cluster.concurrency
        self._publication = Publication(cluster, image_id)
        self.name = self._publication.temporary
        self._room: int | None = None
        self._touched = time.monotonic()
        self._objects = Objects(cluster.block_size)
        # Something may be there to be removed; the snapshot may be.
        self._begun = self._snapshot_begun = False
        #: The vdi and its snapshot, once they are complete.
        self._made_of: list[Vdi] = []

    def part_size(self, number: int, size: int | None) -> int:
        """The same for all parts, as configured."""
        return self._cluster.chunk_size

    def reserve(self, end: int) -> int:
        """Make the vdi, or make it larger, to hold exactly ``end`` bytes."""
        try:
            if self._room is None:
                self._create(end)
            else:
                self._dog.call("resize", self.name, str(end))
        except CommandFailed as error:
            if error.meaning is StoreError and end > LARGEST:
                raise StorageFull(f"{self._publication.location}: a vdi has {LARGEST} bytes at most") from error
            raise
        self._room = end
        # Within the first object there is nothing to be gained by knowing how large they are.
        if end > self._objects.size and not self._objects.known:
            made = self._cluster.find(self.name)
            if made is not None:
                self._cluster.block_size = 1 << made.block_shift
                # So far there was one at most.
                self._objects = Objects(self._cluster.block_size, known=True, written=self._objects.written)
        return end

    def _create(self, size: int) -> None:
        copies = self._cluster.copies
        self._begun = True
        try:
            self._dog.call("create", *(("-c", copies) if copies else ()), self.name, str(size))
        except CommandFailed as error:
            # The name is random: this is what an earlier attempt did whose response was lost.
            if error.meaning is not Duplicate:
                raise

    def write(self, part: Part) -> None:
        """Write one part; others wait that touch the same object."""
        with self._objects.of(part):
            self._dog.call("write", self.name, str(part.offset), str(len(part.data)), data=part.data)
        if time.monotonic() - self._touched > TOUCH:
            self._touched = time.monotonic()
            self._dog.call("setattr", self.name, TOUCHED, str(int(time.time())))

    def commit(self, size: int, digests: Digests) -> Committed:
        """Snapshot what was written, clone that to the final name, remove both."""
        if size != self._room:
            raise StoreError(f"{self._publication.location} would have {self._room} bytes instead of {size}")
        if not self._publication.done:
            self._snapshot()
            self._publication.publish(self.name, TAG, self._sealed(size), digests)
        self._cluster.clean_up(lambda: self._cluster.delete_all(self.name, self._made_of), self._publication.location)
        return Committed(self._publication.location)

    def _snapshot(self) -> None:
        again, self._snapshot_begun = self._snapshot_begun, True
        if not (again and self._cluster.find_snapshot(self.name, TAG)):
            self._dog.call("snapshot", "-s", TAG, self.name)

    def _sealed(self, size: int) -> Vdi:
        """The snapshot; raises StoreError if anything was taken away from it, as by gc in another process.

        That makes the vdi too large before it deletes anything.
        """
        self._made_of = list(self._cluster.vdis(self.name))
        sealed = next((vdi for vdi in self._made_of if vdi.snapshot and vdi.tag == TAG), None)
        is_whole = len(self._made_of) > 1 and all(vdi.size == size for vdi in self._made_of)
        if sealed is None or not is_whole or not self._objects.are_in(sealed):
            raise StoreError(
                f"{self._publication.location}: another client deleted what was written, perhaps gc in another process "
                "with a shorter time than adds need; nothing is stored"
            )
        return sealed

    def abort(self) -> None:
        """Remove the image if this add published it, and all it was made of."""
        try:
            if self._begun:
                # First, so that no clone is made any more.
                self._cluster.delete_all(self.name)
        finally:
            self._publication.withdraw()

    def close(self) -> None:
        """From now on, what is left is for gc."""
        self._publication.close()


class Objects:
    """The objects that parts lie in, each for one command at a time.

    Two commands that find an object missing would both create it, and what the first wrote into it would be lost.
    """

    def __init__(self, size: int, known: bool = False, written: int = 0) -> None:
        self.size = size
        #: Whether the size is that of the vdi, and not only that of most clusters.
        self.known = known
        self._busy: set[int] = set()
        #: A bit for each that something was written into: 128 KiB for the largest vdi.
        self.written = written
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def of(self, part: Part) -> Iterator[None]:
        """Have the objects of one part to oneself."""
        first, last = part.offset // self.size, (part.offset + len(part.data) - 1) // self.size
        numbers = set(range(first, last + 1))
        with self._changed:
            self._changed.wait_for(lambda: not numbers & self._busy)
            self._busy |= numbers
        try:
            yield
            with self._changed:
                self.written |= ((1 << len(numbers)) - 1) << first
        finally:
            with self._changed:
                self._busy -= numbers
                self._changed.notify_all()

    def are_in(self, vdi: Vdi) -> bool:
        """Whether the vdi has as many objects as were written, or more where they are smaller than was thought."""
        return vdi.stored >= bin(self.written).count("1") << vdi.block_shift


class SheepdogCopy(ServerSideCopy):
    """A snapshot of the source, there as long as the copy is being made, and a clone of that."""

    def __init__(self, cluster: SheepdogCluster, source: SheepdogLocation, image_id: str) -> None:
        self._cluster = cluster
        self._source = cluster.existing(source)
        self._claim = whole_claim_to(cluster, self._source)
        self._publication = Publication(cluster, image_id)
        self._tag = self._publication.temporary
        self.size = self._source.size
        cluster.check_id_is_free(image_id)

    def begin(self) -> None:
        """Take the snapshot unless an attempt before this one did."""
        # Copies of one image side by side would find it without its claim.
        with self._cluster.taking_snapshots:
            snapshot = self._cluster.find_snapshot(self._source.name, self._tag) or self._take_snapshot()
            if snapshot is None or (snapshot.vid, snapshot.created) != (self._source.vid, self._source.created):
                raise self._changed()
            self._move_claim()

    def _take_snapshot(self) -> Vdi | None:
        """Of the image alone that this copy was asked for, which another one's snapshot may have renumbered."""
        cluster, name = self._cluster, self._source.name
        if self._claim is not None and self._claim.fits(self._source):
            claim, now = claim_to(cluster, name), cluster.find(name)
            if now is None or claim is None or not claim.fits(now) or claim.token != self._claim.token:
                # A copy of another process puts the claim back in a moment.
                raise self._changed(transient=now is not None and claim is None)
            self._source, self._claim = now, claim
        cluster.dog.call("snapshot", "-s", self._tag, name)
        return cluster.find_snapshot(name, self._tag)

    def _move_claim(self) -> None:
        """Attributes do not stay with the vdi by themselves, and the number may be another again by then."""
        cluster, name, claim = self._cluster, self._source.name, self._claim
        now, moved = cluster.find(name), ""
        while claim is not None and now is not None and now.vid != moved:
            moved = now.vid
            set_claim(cluster, name, claim.moved_to(now), functools.partial(_stands, now))
            now = cluster.find(name)

    def _changed(self, *, transient: bool = False) -> ImageChanged:
        where = self._cluster.location(self._source.name)
        return ImageChanged(f"{where} was deleted and made anew while it was copied", transient=transient)

    def commit(self, digests: Digests) -> Committed:
        """Clone the snapshot to the final name, then remove it."""
        if not self._publication.done:
            self._publication.publish(self._source.name, self._tag, self._source, digests)
        self._cluster.clean_up(self._remove_snapshot, f"snapshot {self._tag} of {self._source.name}")
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
        self._cluster.delete_snapshot(self._source.name, self._tag)


def _stands(vdi: Vdi, claim: Claim) -> bool:
    return claim.fits(vdi) and claim.token != DELETING

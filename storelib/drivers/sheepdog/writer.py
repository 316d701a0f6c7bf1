# SPDX-License-Identifier: Apache-2.0
"""SheepdogWriter: one image on its way into a cluster."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from storelib.driver import Committed, Digests, Part, Writer
from storelib.drivers.sheepdog.errors import CommandFailed
from storelib.drivers.sheepdog.listing import LARGEST, Vdi
from storelib.drivers.sheepdog.publication import Publication
from storelib.exceptions import Duplicate, StorageFull, StoreError
from storelib.transfer.contract import KiB, MiB

if TYPE_CHECKING:
    from storelib.drivers.sheepdog.store import SheepdogStore

#: The attribute of a temporary vdi that says when something was last written into it, in POSIX seconds.
TOUCHED = "storelib-touched"
#: Seconds between two such notes.
TOUCH = 60.0
#: The snapshot that becomes the image; a number would be taken for the number of a snapshot.
TAG = "storelib"


class SheepdogWriter(Writer):
    """Writes into a vdi under a temporary name. Its size is exact at any time, since no vdi can be made smaller."""

    sparse = True
    smallest_part = 4 * KiB

    def __init__(self, store: SheepdogStore, image_id: str) -> None:
        self._store = store
        self._dog = store.dog
        self.concurrency = store.conf.sheepdog_store_concurrency
        self._publication = Publication(store, image_id)
        self.name = self._publication.temporary
        self._room: int | None = None
        self._touched = time.monotonic()
        self._objects = Objects(store.block_size)
        # Something may be there to be removed; the snapshot may be.
        self._begun = self._snapshot_begun = False
        #: The vdi and its snapshot, once they are complete.
        self._made_of: list[Vdi] = []

    def part_size(self, number: int, size: int | None) -> int:
        """As configured."""
        return int(self._store.conf.sheepdog_store_chunk_size) * MiB

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
            made = self._store.find(self.name)
            if made is not None:
                self._store.block_size = 1 << made.block_shift
                # So far there was one at most.
                self._objects = Objects(self._store.block_size, known=True, written=self._objects.written)
        return end

    def _create(self, size: int) -> None:
        copies = self._store.conf.sheepdog_store_copies
        self._begun = True
        try:
            self._dog.call("create", *(("-c", copies) if copies else ()), self.name, str(size))
        except CommandFailed as error:
            # The name is random: this is what an earlier attempt did whose answer was lost.
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
        self._store.clean_up(lambda: self._store.delete_all(self.name, self._made_of), self._publication.location)
        return Committed(self._publication.location)

    def _snapshot(self) -> None:
        again, self._snapshot_begun = self._snapshot_begun, True
        if not (again and self._store.find_snapshot(self.name, TAG)):
            self._dog.call("snapshot", "-s", TAG, self.name)

    def _sealed(self, size: int) -> Vdi:
        """The snapshot; raises StoreError if anything was taken away from it, as by gc in another process.

        That makes the vdi too large before it deletes anything.
        """
        self._made_of = list(self._store.vdis(self.name))
        sealed = next((vdi for vdi in self._made_of if vdi.snapshot and vdi.tag == TAG), None)
        is_whole = len(self._made_of) > 1 and all(vdi.size == size for vdi in self._made_of)
        if sealed is None or not is_whole or not self._objects.are_in(sealed):
            raise StoreError(
                f"{self._publication.location}: somebody deleted what was written, perhaps gc in another process with "
                "a shorter time than adds need; nothing is stored"
            )
        return sealed

    def abort(self) -> None:
        """Remove the image if this add published it, and all it was made of."""
        try:
            if self._begun:
                # First, so that no clone is made any more.
                self._store.delete_all(self.name)
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

# SPDX-License-Identifier: Apache-2.0
"""RbdReader: one image at its snapshot. Holes are not read, and zeros are not believed without a look.

librbd returns zeros for objects that are not there, also for those of an image that was removed meanwhile: readers
keep nobody from removing it. So where zeros are seen, the snapshot is looked for again.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Iterator

from storelib.driver import Digest, Extent, Reader
from storelib.drivers.rbd.cluster import RbdCluster
from storelib.drivers.rbd.location import RbdLocation
from storelib.drivers.rbd.publication import digest_of
from storelib.exceptions import ImageChanged
from storelib.librbd.images import Run, exact_runs, exact_spans, extents_of, read_into, runs_by_object_map
from storelib.transfer.contract import MiB

LOG = logging.getLogger(__name__)

#: Of one read at most.
READ = 4 * MiB
#: Of images with holes between shorter runs than this, most reading ahead would be wasted: callers jump over holes.
SHORT_RUNS = 64 * MiB
ZEROS = bytes(MiB)


class RbdReader(Reader):
    """Reads side by side."""

    part_size = READ

    def __init__(self, cluster: RbdCluster, location: RbdLocation) -> None:
        self.concurrency = cluster.concurrency
        self._location = location
        self._connection = cluster.get()
        self._image = self._connection.open(location.image, location.snapshot, read_only=True)
        try:
            self.size = int(self._image.size())
            self._rbd_id = str(self._image.id())
            self._object_size = int(self._image.stat()["obj_size"])
            known = runs_by_object_map(self._image)
        except BaseException:
            self._image.close()
            raise
        self._has_map = known is not None
        #: Where there may be data, by end and by start; what lies between was never written.
        self._runs = [Run(0, self.size)] if known is None else known
        self._ends = [run.end for run in self._runs]
        self._holes_confirmed = False
        data = sum(run.end - run.start for run in self._runs)
        if data < self.size and data < SHORT_RUNS * len(self._runs):
            self.concurrency = min(self.concurrency, 2)

    @property
    def digest(self) -> Digest | None:  # type: ignore[override]  # asked for only where it is wanted
        """What was recorded with the image, one request to the cluster."""
        return digest_of(self._image)

    def read_into(self, offset: int, view: memoryview) -> int:
        """Read from the cluster, or fill with zeros what is a hole."""
        index = bisect.bisect_right(self._ends, offset)
        run = self._runs[index] if index < len(self._runs) else Run(self.size, self.size)
        if offset < run.start:
            self._confirm_holes()
            count = min(len(view), run.start - offset, len(ZEROS))
            view[:count] = ZEROS[:count]
            return count
        count = read_into(self._image, offset, view[: run.end - offset])
        if self._has_empty_object(offset, view[:count]):
            self._confirm()
        return count

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Exact ones, asked for bit by bit."""
        return extents_of(self._data(offset, offset + length), offset, length)

    def close(self) -> None:
        """Close the image; what was read was read, whatever comes of it."""
        import rbd

        try:
            self._image.close()
        except rbd.Error as error:
            LOG.warning("%s: closing the image: %s", self._location, error)

    def _data(self, start: int, end: int) -> Iterator[Run]:
        for rough in self._runs:
            first, last = max(rough.start, start), min(rough.end, end)
            for span in exact_spans(first, last):
                yield from self._exactly(*span)
        if self._has_map:
            self._confirm_holes()

    def _exactly(self, start: int, end: int) -> list[Run]:
        found = exact_runs(self._image, start, end)
        if found != [Run(start, end)]:
            self._confirm()
        return found

    # -- Whether the image is still there -------------------------------------------------------------------------

    def _has_empty_object(self, offset: int, data: memoryview) -> bool:
        """Whether all that was read of some object is zeros."""
        position, end = offset, offset + len(data)
        while position < end:
            border = min((position // self._object_size + 1) * self._object_size, end)
            if _is_zero(data[position - offset : border - offset]):
                return True
            position = border
        return False

    def _confirm_holes(self) -> None:
        """The map of holes was read while the image was there."""
        if not self._holes_confirmed:
            self._confirm()
            self._holes_confirmed = True

    def _confirm(self) -> None:
        """Raise ImageChanged unless the snapshot is there, under whatever name the image goes now."""
        import rbd

        try:
            self._connection.open_id(self._rbd_id, self._location.snapshot, read_only=True).close()
        except rbd.ImageNotFound as error:
            raise ImageChanged(f"{self._location}: the image was deleted while it was read") from error


def _is_zero(data: memoryview) -> bool:
    # startswith compares with memcmp, copies nothing, and ends at the first byte that differs.
    return all(ZEROS.startswith(data[start : start + len(ZEROS)]) for start in range(0, len(data), len(ZEROS)))

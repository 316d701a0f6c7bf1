# SPDX-License-Identifier: Apache-2.0
"""What is done with an image that is open: positioned reads and writes, flushing, and where it has data.

That is told quickly by its object map, object by object; or exactly, asking for each object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from storelib.exceptions import StoreError
from storelib.transfer.contract import Extent, MiB


def read_into(image: Any, offset: int, view: memoryview) -> int:
    """Fill ``view`` with the bytes from ``offset`` on; returns how many, fewer at the end of the image."""
    data = image.read(offset, len(view))
    view[: len(data)] = data
    return len(data)


def write(image: Any, offset: int, data: memoryview) -> None:
    """Write all of ``data``; where there is no cache, the OSDs have it once this returns."""
    # The binding takes nothing but bytes.
    image.write(bytes(data), offset)


class Flusher:
    """The flushes of one image: after one that failed none is believed, since what it held may have been forgotten."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._lost: StoreError | None = None

    def flush(self, image: Any) -> None:
        """Return once all that was written is safe; raises StoreError, then each time again, if that is not known."""
        import rbd

        if self._lost is None:
            try:
                image.flush()
            except rbd.Error as error:
                self._lost = StoreError(f"{self._subject}: what was written could not be flushed: {error}")
        if self._lost is not None:
            raise self._lost


# -- Extents ---------------------------------------------------------------------------------------------------


#: Bytes for which the exact extents are asked in one go.
SPAN = 2048 * MiB


class Run(NamedTuple):
    """Bytes from ``start`` up to ``end``."""

    start: int
    end: int


def runs_by_object_map(image: Any) -> list[Run] | None:
    """The runs of objects that exist, in order; None where the image keeps no valid map.

    The map was read when the image was opened; asking costs no request.
    """
    import rbd

    if not image.features() & rbd.RBD_FEATURE_FAST_DIFF:
        return None
    if image.flags() & (rbd.RBD_FLAG_OBJECT_MAP_INVALID | rbd.RBD_FLAG_FAST_DIFF_INVALID):
        return None
    return _runs(image, 0, image.size(), whole_objects=True)


def exact_runs(image: Any, start: int, end: int) -> list[Run]:
    """The runs of that range to which something was written."""
    return _runs(image, start, end, whole_objects=False)


def exact_spans(start: int, end: int) -> Iterator[tuple[int, int]]:
    """That range in pieces for ``exact_runs``, each of some hundred requests, ten at a time."""
    for begin in range(start, end, SPAN):
        yield begin, min(begin + SPAN, end)


def extents_of(runs: Iterable[Run], offset: int, length: int) -> Iterator[Extent]:
    """Data and holes of that range, of which ``runs``, in order and within it, are the data."""
    position, end = offset, offset + length
    for run in runs:
        if run.start > position:
            yield Extent(position, run.start - position, data=False)
        yield Extent(run.start, run.end - run.start, data=True)
        position = run.end
    if position < end:
        yield Extent(position, end - position, data=False)


def _runs(image: Any, start: int, end: int, *, whole_objects: bool) -> list[Run]:
    found: list[Run] = []

    def note(offset: int, length: int, exists: bool) -> None:
        first, last = max(offset, start), min(offset + length, end)
        if not exists or first >= last:
            return
        if found and found[-1].end >= first:
            found[-1] = Run(found[-1].start, max(found[-1].end, last))
        else:
            found.append(Run(first, last))

    if start < end:
        # From the beginning of time, what a parent holds included.
        image.diff_iterate(start, end - start, None, note, True, whole_objects)
    return found

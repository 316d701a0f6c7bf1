# SPDX-License-Identifier: Apache-2.0
"""Where an image has data: quickly by its object map, object by object; or exactly, asking for each object."""

from __future__ import annotations

from typing import Any, NamedTuple


class Run(NamedTuple):
    """Bytes from ``start`` up to ``end``."""

    start: int
    end: int


def by_object_map(image: Any) -> list[Run] | None:
    """The runs of objects that exist, in order; None where the image keeps no valid map.

    The map was read when the image was opened; asking costs no request.
    """
    import rbd

    if not image.features() & rbd.RBD_FEATURE_FAST_DIFF:
        return None
    if image.flags() & (rbd.RBD_FLAG_OBJECT_MAP_INVALID | rbd.RBD_FLAG_FAST_DIFF_INVALID):
        return None
    return _runs(image, 0, image.size(), whole_objects=True)


def exactly(image: Any, start: int, end: int) -> list[Run]:
    """The runs of that range to which something was written."""
    return _runs(image, start, end, whole_objects=False)


def used(image: Any) -> int:
    """Bytes that the image takes up at most."""
    runs = by_object_map(image)
    return int(image.size()) if runs is None else sum(run.end - run.start for run in runs)


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

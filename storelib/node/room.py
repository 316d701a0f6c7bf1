# SPDX-License-Identifier: Apache-2.0
"""Which images go when there is no room for a new one: the least recently used, those first that no job wants.

Pinned ones stay, and those that are fetched or verified, or that an instance on the node stands on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from storelib.node.copies import Copy, Phase
from storelib.node.disk import Disk
from storelib.node.options import Settings
from storelib.node.publishing import Target


class Room:
    """The disk of a node, as far as images may have it."""

    def __init__(self, settings: Settings, disk: Disk, target: Target) -> None:
        self._settings, self._disk, self._target = settings, disk, target

    def is_pinned(self, copy: Copy) -> bool:
        """Whether it is never removed to make room."""
        return copy.record.pinned or copy.image in self._settings.pinned

    def for_one(self, copy: Copy, all_copies: Iterable[Copy]) -> Sequence[Copy] | None:
        """The images that have to go before this one fits; None if it does not fit, whichever go."""
        others = [other for other in all_copies if other is not copy]
        lacking = self._lacking(copy, others)
        going: list[Copy] = []
        for other in self._removable(others) if lacking > 0 else ():
            if lacking <= 0:
                break
            going.append(other)
            lacking -= other.used
        return going if lacking <= 0 else None

    def _removable(self, others: Iterable[Copy]) -> Sequence[Copy]:
        """Images that may go, in the order in which they do."""
        ready = [other for other in others if other.phase is Phase.READY and not other.leaving]
        standing = self._target.backing_files()
        found = [
            other
            for other in ready
            if not self.is_pinned(other) and self._target.path(other.image).name not in standing
        ]
        return sorted(found, key=lambda other: (bool(other.jobs), self._last_used(other)))

    def _last_used(self, copy: Copy) -> float:
        return self._disk.last_used(copy.image, self._target.path(copy.image))

    def _lacking(self, copy: Copy, others: Sequence[Copy]) -> int:
        """Bytes that have to go before the image fits."""
        promised = sum(max(other.needed - other.used, 0) for other in others if other.is_working)
        lacking = max(copy.needed - copy.used, 0) + promised - self._disk.free()
        if self._settings.budget:
            taken = sum(other.used for other in others) + promised
            lacking = max(lacking, taken + copy.needed - self._settings.budget)
        return lacking

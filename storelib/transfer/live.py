# SPDX-License-Identifier: Apache-2.0
"""LiveAdds: what a driver's ``gc`` leaves alone because an add of the same store object is still at it."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

A = TypeVar("A")


class LiveAdds(Generic[A]):
    """Adds under way, by what names their traces in the back end, as long as they are neither ended nor dropped.

    It knows those of this object alone: whether the adds of others are alive, only the back end can tell.
    """

    def __init__(self) -> None:
        self._adds: weakref.WeakValueDictionary[Hashable, A] = weakref.WeakValueDictionary()

    def begin(self, name: Hashable, add: A) -> None:
        """``add`` leaves traces of this name."""
        self._adds[name] = add

    def end(self, name: Hashable) -> None:
        """There are none any more; harmless when there never were."""
        self._adds.pop(name, None)

    def __contains__(self, name: Hashable) -> bool:
        return name in self._adds

    def __iter__(self) -> Iterator[A]:
        return iter(list(self._adds.values()))

# SPDX-License-Identifier: Apache-2.0
"""What the API remembers between requests, bounded: when a cache is full, its oldest entry makes room."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

from cachetools import FIFOCache

from storelib.transfer.forking import forget_in_child

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class BoundedCache(Generic[_Key, _Value]):
    """At most ``size`` entries. Safe from many threads and forks.

    Reading takes no lock and reorders nothing, which is why the oldest goes and not the least recently used: a list
    of images reads thousands of entries.
    """

    def __init__(self, size: int) -> None:
        self._entries: FIFOCache[_Key, _Value] = FIFOCache(size)
        self.forget_parent()
        forget_in_child(self)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: _Key) -> _Value | None:
        """The value last put for ``key``; None if there is none, or it made room for others."""
        try:
            value: _Value = self._entries[key]
        except KeyError:
            return None
        return value

    def put(self, key: _Key, value: _Value) -> None:
        """Remember ``value`` for ``key`` as the newest entry."""
        with self._lock:
            self._entries[key] = value

    def forget_parent(self) -> None:
        """In a forked child: a thread of the parent may have held the lock; entries stay."""
        self._lock = threading.Lock()

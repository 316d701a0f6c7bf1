# SPDX-License-Identifier: Apache-2.0
"""A MemoryStore whose writers note every call, and can be told to fail, to be slow or to hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from storelib.registry import open_store
from storelib.testing.memory import MemoryStore, MemoryWriter
from storelib.transfer.contract import KiB

PART = 64 * KiB


class RecordingWriter(MemoryWriter):
    def __init__(self, store: RecordingStore, image_id: str) -> None:
        super().__init__(store, image_id)
        self.store = store
        self.sparse = store.sparse
        self.retryable = store.retryable
        self.checksum = store.checksum
        if not store.has_put:
            self.put = None

    def part_size(self, number, size):
        return self.store.part_size(number) if self.store.part_size else super().part_size(number, size)

    def reserve(self, end):
        assert not self.store.in_flight, "reserve runs alone"
        self.store.note("reserve", end)
        return self.store.room(end) if self.store.room else None

    def write(self, part):
        with self.store.lock:
            self.store.in_flight += 1
            self.store.most_in_flight = max(self.store.most_in_flight, self.store.in_flight)
        try:
            self.store.on_write(part)
            super().write(part)
            self.store.note("write", (part.number, part.offset, len(part.data)))
        finally:
            with self.store.lock:
                self.store.in_flight -= 1

    def put_whole(self, data, digests):
        self.store.note("put", len(data))
        return super().put_whole(data, digests)

    def commit(self, size, digests):
        self.store.on_commit()
        committed = super().commit(size, digests)
        self.store.note("commit", size)
        return committed

    def abort(self):
        assert not self.store.in_flight, "abort waits for calls in flight"
        self.store.note("abort", None)
        super().abort()


class RecordingStore(MemoryStore):
    """``calls`` is what the engine did, in order: ("write", (number, offset, length)), ("commit", size) ..."""

    def __init__(self, name: str, conf: Any) -> None:
        super().__init__(name, conf)
        self.lock = threading.Lock()
        self.calls: list[tuple[str, Any]] = []
        self.in_flight = self.most_in_flight = 0
        self.sparse = False
        self.has_put = False
        self.retryable = True
        self.checksum: Callable[[memoryview, int], int] | None = None
        self.part_size: Callable[[int], int] | None = None
        self.room: Callable[[int], int | None] | None = None
        self.on_write: Callable[[Any], None] = lambda part: None
        self.on_commit: Callable[[], None] = lambda: None

    def open_writer(self, image_id, size, context):
        super().open_writer(image_id, size, context)
        return RecordingWriter(self, image_id)

    def note(self, what: str, value: Any) -> None:
        with self.lock:
            self.calls.append((what, value))

    def called(self, what: str) -> list[Any]:
        return [value for name, value in self.calls if name == what]


def recording_store(**attributes: Any) -> RecordingStore:
    """A store with parts of 64 KiB, quick retries and these attributes."""
    concurrency = attributes.pop("concurrency", 2)
    timeout = attributes.pop("timeout", 30.0)
    store = open_store(
        RecordingStore,
        attributes.pop("name", "recording"),
        memory_store_part_size=PART,
        memory_store_concurrency=concurrency,
        transfer_timeout=timeout,
    )
    for name, value in attributes.items():
        setattr(store, name, value)
    return store


def image_of(store: MemoryStore, image_id: str) -> bytes | None:
    """Behind the driver's back."""
    image = store.backend.images.get(image_id)
    return None if image is None else image.data


def eventually(predicate: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether ``predicate`` becomes true in time."""
    end = time.monotonic() + seconds
    while not predicate():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True

# SPDX-License-Identifier: Apache-2.0
"""MemoryStore keeps every promise; so does one that writes in order, and one that can only read."""

from __future__ import annotations

from typing import Any

import pytest
from memory_access import MemoryAccess

from storelib.capabilities import Capability
from storelib.driver import Store
from storelib.registry import open_store
from storelib.testing.conformance import BackendAccess, ReadOnlyConformance, StoreConformance
from storelib.testing.memory import MemoryStore


class InMemory:
    """Two objects of a MemoryStore on one backend, which no other process sees."""

    not_applicable = frozenset(
        {
            "test_gc_of_another_process_leaves_no_add_without_data",
            "test_gc_finds_what_a_killed_process_left",
            "test_forked_child_adds",
        }
    )

    @classmethod
    def reopened(cls, store: MemoryStore) -> Store[Any]:
        other = MemoryStore(store.name, store.conf)
        other.configure()
        other.backend = store.backend
        return other


class TestMemoryStore(InMemory, StoreConformance):
    capabilities = MemoryStore.capabilities

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls) -> Store[Any]:
        return open_store(MemoryStore)

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, store: MemoryStore) -> BackendAccess:
        return MemoryAccess(store)


class TestMemoryStoreInOrder(InMemory, StoreConformance):
    """One part at a time, parts as large as the driver makes them, no back-end access."""

    capabilities = MemoryStore.capabilities
    keep_part_size = True

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls) -> Store[Any]:
        return open_store(MemoryStore, memory_store_concurrency=1)


class TestMemoryStoreReadOnly(InMemory, ReadOnlyConformance):
    capabilities = (
        MemoryStore.capabilities & ~Capability.ADD & ~Capability.DELETE & ~Capability.ATOMIC_ADD & ~Capability.GC
    )

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls) -> Store[Any]:
        return open_store(MemoryStore, read_only=True)

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, store: MemoryStore) -> BackendAccess:
        return MemoryAccess(store)

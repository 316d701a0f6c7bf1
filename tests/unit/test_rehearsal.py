# SPDX-License-Identifier: Apache-2.0
"""What ``check`` ends with: an image goes in and out, and nothing of it stays."""

import pytest

from storelib.capabilities import Capability
from storelib.exceptions import StorageWriteDenied, StoreError
from storelib.registry import open_store
from storelib.rehearsal import rehearse
from storelib.testing import MemoryStore


@pytest.fixture
def store():
    return open_store(MemoryStore, "memory")


def ids(store):
    return [info.image_id for info in store.list_images()]


def test_nothing_stays(store):
    store.add("other", b"data")
    rehearse(store)
    assert ids(store) == ["other"]


@pytest.mark.parametrize("method", ["add", "get", "get_size", "list_images", "find_image", "gc", "delete"])
def test_every_method_that_fails_is_told(store, method, monkeypatch):
    def fail(*arguments, **options):
        raise StorageWriteDenied("not allowed")

    monkeypatch.setattr(store, method, fail)
    with pytest.raises(StorageWriteDenied):
        rehearse(store)
    monkeypatch.undo()
    assert not ids(store) or method == "delete"


@pytest.mark.parametrize(("method", "answer"), [("get_size", 4999), ("find_image", None)])
def test_image_that_is_not_what_was_added_is_told(store, method, answer, monkeypatch):
    monkeypatch.setattr(store, method, lambda *arguments: answer)
    with pytest.raises(StoreError, match="just added"):
        rehearse(store)
    assert not ids(store)


def test_image_that_reads_back_otherwise_is_told(store, monkeypatch):
    other = store.add("other", b"data").uri
    plain = store.get
    monkeypatch.setattr(store, "get", lambda uri: plain(other))
    with pytest.raises(StoreError, match="other bytes"):
        rehearse(store)
    assert ids(store) == ["other"]


def test_store_without_adds_is_only_listed(store, monkeypatch):
    store.capabilities &= ~Capability.ADD
    monkeypatch.setattr(store, "add", None)
    rehearse(store)

# SPDX-License-Identifier: Apache-2.0
"""Names can be used again: what the swift driver takes back, undoes or collects is compared with its token first."""

import pytest
from object_store import MARK, ObjectStore
from scripted_server import reply

from storelib.driver import Digests
from storelib.drivers.swift import garbage
from storelib.drivers.swift.writer import SwiftWriter
from storelib.exceptions import StoreError

KiB = 1024
OWN = {"swift_store_container_per_image": True, "transfer_retries": 3}
THEIRS = "f" * 16


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr("storelib.transfer.retry.FIRST_WAIT", 0.001)
    monkeypatch.setattr(SwiftWriter, "part_size", lambda self, number, size: 4 * KiB)


@pytest.fixture
def swift():
    remote = ObjectStore()
    with remote.serve():
        yield remote


def plant(swift, container, name="", data=b"theirs"):
    """An image of another client's add, or the container for one."""
    kept = {"x-object-meta-storelib-token": THEIRS} if name else {}
    swift.kept[container, ""] = {"x-container-meta-storelib": "yes", "x-container-meta-storelib-token": THEIRS}, b""
    if name:
        swift.kept[container, name] = kept, data


def once(swift, method, ending, then):
    """The first such request is carried out, ``then`` happens, and its answer is lost."""
    left = [then]

    def instead(request):
        if left and request.method == method and request.target.partition("?")[0].endswith(ending):
            swift.right(request)
            left.pop()()
            return reply(503, MARK)
        return None

    swift.instead = instead


@pytest.mark.parametrize("size", [10, 20 * KiB])
def test_failed_add_does_not_remove_the_container_of_the_next(swift, size):
    """Its container was collected by gc and made again by another add, before its image was published."""
    store = swift.open(**OWN)

    def instead(request):
        if request.method == "PUT" and request.target.partition("?")[0].endswith("/glance_id/id"):
            swift.kept = {key: value for key, value in swift.kept.items() if key[0] != "glance_id"}
            plant(swift, "glance_id")
            swift.instead = lambda request: None

    swift.instead = instead
    with pytest.raises(StoreError):
        store.add("id", bytes(size))
    assert swift.kept["glance_id", ""][0]["x-container-meta-storelib-token"] == THEIRS
    assert not [name for container, name in swift.kept if name == "id"]


def test_failed_add_does_not_remove_the_image_of_the_next(swift):
    """The first attempt to take it back went well, but its answer was lost; meanwhile the id was added again."""
    store = swift.open(transfer_retries=3)
    store.add("before", b"the container is there after this")
    writer = store.open_writer("id", 4, None)
    writer.put(memoryview(b"mine"), Digests(None, ""))
    once(swift, "DELETE", "/glance/id", lambda: plant(swift, "glance", "id"))
    # As the engine calls it, which tries again.
    store.retry_policy.call(writer.abort, store.map_error, "image 'id'")
    writer.close()
    assert swift.kept["glance", "id"][1] == b"theirs"


def test_delete_does_not_remove_the_container_of_the_next_add(swift):
    store = swift.open(**OWN)
    uri = store.add("id", b"data").uri
    once(swift, "DELETE", "/glance_id", lambda: plant(swift, "glance_id"))
    store.delete(uri)
    assert ("glance_id", "") in swift.kept


def test_gc_does_not_remove_the_container_of_the_next_add(swift):
    store = swift.open(**OWN)
    plant(swift, "glance_id")
    dead = garbage.Dead("glance_id", "", "glance_id", "0" * 16)
    assert not garbage.discard(store.service, store.service.own_account(), dead, "id")
    assert "x-container-meta-storelib-dead" not in swift.kept["glance_id", ""][0]
    assert ("glance_id", "") in swift.kept


def test_gc_does_not_remove_the_segments_of_the_next_add(swift):
    store = swift.open()
    stored = store.add("id", bytes(20 * KiB))
    swift.kept["glance", f"id/{THEIRS}/00000000"] = {}, b"dead"
    dead = garbage.Dead("glance", f"id/{THEIRS}/", "glance", THEIRS)
    assert garbage.discard(store.service, store.service.own_account(), dead, "id")
    assert not [name for name in swift.names("glance") if THEIRS in name]
    with store.get(stored.uri).data as stream:
        assert stream.read() == bytes(20 * KiB)


@pytest.mark.parametrize("options", [OWN, {"transfer_retries": 3}], ids=["own container", "one container"])
@pytest.mark.parametrize("size", [10, 20 * KiB])
def test_delete_does_not_remove_the_image_of_the_next_add(swift, size, options):
    """The first attempt removed the image, its answer was lost, and the id was added again."""
    store = swift.open(**options)
    uri = store.add("id", bytes(size)).uri
    where = store.locate(uri).container
    once(swift, "DELETE", f"/{where}/id", lambda: plant(swift, where, "id"))
    store.delete(uri)
    assert swift.kept[where, "id"][1] == b"theirs"
    assert swift.names(where) == ["id"]
    assert (where, "") in swift.kept


@pytest.mark.parametrize("options", [OWN, {"transfer_retries": 3}], ids=["own container", "one container"])
@pytest.mark.parametrize("size", [10, 20 * KiB])
def test_delete_whose_answer_was_lost_leaves_nothing(swift, size, options):
    store = swift.open(**options)
    uri = store.add("id", bytes(size)).uri
    where = store.locate(uri).container
    once(swift, "DELETE", f"/{where}/id", lambda: None)
    store.delete(uri)
    assert swift.names(where) == []
    assert ((where, "") in swift.kept) is ("swift_store_container_per_image" not in options)


def test_gc_finds_segments_where_no_image_was_ever_published(swift):
    """The container of the images is made with the first of them."""
    store = swift.open(swift_store_segment_container="segments")
    swift.kept["segments", ""] = {}, b""
    swift.kept["segments", f"id/{THEIRS}/00000000"] = {}, b"dead"
    swift.dated = True
    assert [item.image_id for item in store.gc(0)] == ["id"]
    assert swift.names("segments") == []

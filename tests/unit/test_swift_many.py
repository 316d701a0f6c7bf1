# SPDX-License-Identifier: Apache-2.0
"""What gc of one id, and looking for one image, ask of a Swift with few images and with many."""

import uuid

import pytest
from object_store import ObjectStore

from storelib.drivers.swift.errors import MADE_HEADER

ID = "0d2a7d0e-6f0f-4a4e-9c0f-3c9d7a8a1b2c"
LAYOUTS = {
    "one container": {"swift_store_segment_container": "segments"},
    "with segments beside": {},
    "seed": {"swift_store_multiple_containers_seed": 2},
    "own": {"swift_store_container_per_image": True},
}


def image_container(store, image_id):
    return store.service.layout.container_for(image_id)


def fill(swift, store, count):
    """Images as they look, without adding them; all begin unlike ID, with a seed they are in 16 containers at most."""
    for number in range(count):
        image_id = str(uuid.UUID(int=number | (number % 15 + 1) << 124))
        container = image_container(store, image_id)
        swift.kept.setdefault((container, ""), ({MADE_HEADER.lower(): "yes"}, b""))
        swift.kept[container, image_id] = {}, b"data"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gc_of_one_id_and_looking_for_it_cost_the_same_among_few_images_and_many(layout):
    costs = []
    for count in (40, 400):
        swift = ObjectStore()
        with swift.serve() as server:
            store = swift.open(**LAYOUTS[layout])
            for container in ("glance", "segments"):
                swift.kept[container, ""] = {}, b""
            fill(swift, store, count)
            server.requests.clear()
            assert store.gc(0, ID) == []
            assert store.find_image(ID) is None
            costs.append(len(server.requests))
            container = image_container(store, ID)
            swift.kept.setdefault((container, ""), ({MADE_HEADER.lower(): "yes"}, b""))
            swift.kept[container, ID] = {}, b"data"
            assert store.find_image(ID).size == 4
    assert costs[0] == costs[1]


def test_leftovers_of_long_ids_are_found_by_how_the_ids_begin():
    swift = ObjectStore()
    swift.dated = True
    with swift.serve():
        store = swift.open(swift_store_container_per_image=True)
        image_id = "a" * 255
        container = image_container(store, image_id)
        assert image_id not in container
        swift.kept[container, ""] = {MADE_HEADER.lower(): "yes"}, b""
        swift.kept[container, f"{image_id}/{'0' * 32}/1"] = {}, b"data"
        assert [item.image_id for item in store.find_garbage(0, "aaa")] == [image_id]
        assert list(store.find_garbage(0, "b")) == []


def test_an_image_is_found_with_whatever_seed_it_was_added():
    swift = ObjectStore()
    with swift.serve():
        stored = [swift.open(swift_store_multiple_containers_seed=seed).add(f"{seed}{ID[1:]}", b"x") for seed in (1, 3)]
        stored.append(swift.open().add(ID, b"x"))
        store = swift.open(swift_store_multiple_containers_seed=2)
        for image in stored:
            assert store.find_image(image.uri.rpartition("/")[2]).uri == image.uri
        assert store.find_image("missing") is None

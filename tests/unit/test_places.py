# SPDX-License-Identifier: Apache-2.0
"""A listing and gc of a store in several places, one of which is away: what can be reached, and an error in the end."""

import itertools
import os
import types

import pytest

from storelib.driver import Garbage
from storelib.drivers.filesystem.location import ASIDE, new_token, own_names
from storelib.exceptions import RemoteServiceUnavailable, StorageWriteDenied, StoreError
from storelib.registry import open_store
from storelib.testing import MemoryStore
from storelib.transfer import deadlines
from storelib.transfer.deadlines import Deadline, within
from storelib.transfer.places import everywhere

NAMES = ("first", "second", "third")


def taken(items):
    """What comes before the error that ends it, and the error."""
    found = []
    with pytest.raises(StoreError) as ended:
        found += map(found.append, items)
    return [item for item in found if item is not None], ended.value


@pytest.fixture
def store(tmp_path):
    """Three data directories with an image and a leftover in each, but the second is not there any more."""
    places = [tmp_path / name for name in NAMES]
    for place in places:
        open_store("file", filesystem_store_datadir=str(place)).add(f"image-{place.name}", b"data")
        (place / ASIDE).mkdir(exist_ok=True)
        left = place / ASIDE / own_names("part", new_token(), f"left-{place.name}")[0]
        left.write_bytes(b"half")
        os.utime(left, (0, 0))
    store = open_store("file", "several", filesystem_store_datadirs=[str(place) for place in places])
    places[1].rename(tmp_path / "unmounted")
    return store


def test_a_listing_has_all_that_can_be_reached_and_ends_with_an_error(store):
    found, error = taken(store.list_images())
    assert {info.image_id for info in found} == {"image-first", "image-third"}
    assert "second" in str(error)


@pytest.mark.parametrize("prefix", [None, "left"])
def test_gc_collects_all_that_can_be_reached_and_ends_with_an_error(store, tmp_path, prefix):
    found, error = taken(store.collect(1, prefix))
    assert {item.image_id for item in found} == {"left-first", "left-third"}
    assert "second" in str(error)
    assert not list(tmp_path.glob(f"[ft]*/{ASIDE}/*"))


class Littered(MemoryStore):
    """Three leftovers, of which the first cannot be removed."""

    why: StoreError = StorageWriteDenied("the first is read-only")

    def garbage(self, older_than, prefix):
        return (Garbage(name, name, 1, 0.0) for name in NAMES)

    def discard(self, garbage):
        if garbage.name == "first":
            raise self.why
        return garbage.name != "second"


def test_what_cannot_be_removed_keeps_nothing_else():
    found, error = taken(open_store(Littered).collect(0))
    assert [item.name for item in found] == ["third"]
    assert "read-only" in str(error)


def test_a_back_end_that_is_away_is_not_asked_to_remove_the_rest():
    store = open_store(Littered, transfer_retries=0)
    store.why = RemoteServiceUnavailable("away")
    assert taken(store.collect(0))[0] == []


def test_a_place_that_hung_leaves_the_next_one_its_time(monkeypatch):
    clock = itertools.count(0, 60)
    monkeypatch.setattr(deadlines, "time", types.SimpleNamespace(monotonic=lambda: float(next(clock))))

    def hang():
        with pytest.raises(TimeoutError):
            within(10)
        raise RemoteServiceUnavailable("hung")

    with Deadline(50):
        found = []
        with pytest.raises(RemoteServiceUnavailable, match="hung"):
            found.extend(found.append(each) for each in everywhere([hang, lambda: [1]]))
    assert found[0] == 1


@pytest.mark.parametrize("name", [b"no-utf8-\xff", b"escape-\x1b[31m"])
def test_files_that_no_uri_can_name_are_no_images_and_hide_none(tmp_path, name):
    store = open_store("file", filesystem_store_datadir=str(tmp_path))
    store.add("image-ü", b"data")
    (tmp_path / os.fsdecode(name)).write_bytes(b"of another program")
    assert [info.image_id for info in store.list_images()] == ["image-ü"]
    assert list(store.gc(older_than=0)) == []
    assert (tmp_path / os.fsdecode(name)).exists()

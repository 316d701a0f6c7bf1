# SPDX-License-Identifier: Apache-2.0
"""One source into several stores: one read, one hash pass, independent failures."""

from __future__ import annotations

import hashlib
import os

import pytest
from recording import PART, image_of, recording_store

from storelib.driver import Digests
from storelib.exceptions import Duplicate, NotFound, StorageFull
from storelib.registry import open_store
from storelib.transfer import MiB, copy, fan_out

DATA = os.urandom(4 * MiB + 5)


def test_every_store_gets_the_image_and_the_source_is_read_once():
    stores = [recording_store(name=name, part_size=lambda number: 3 * PART) for name in "abc"]
    reads = []

    def source():
        for start in range(0, len(DATA), 1000):
            reads.append(start)
            yield DATA[start : start + 1000]

    results = fan_out(stores, "x", source())
    assert [image_of(store, "x") for store in stores] == [DATA] * 3
    assert [result.metadata["store"] for result in results] == ["a", "b", "c"]
    assert {result.multihash for result in results} == {hashlib.sha512(DATA).hexdigest()}
    assert len(reads) == len(set(reads))


def test_one_store_that_fails_does_not_stop_the_others():
    def full(part):
        raise StorageFull("full")

    good, bad = recording_store(), recording_store(on_write=full)
    results = fan_out([bad, good], "x", iter([DATA]))
    assert isinstance(results[0], StorageFull)
    assert image_of(good, "x") == DATA
    assert bad.calls[-1] == ("abort", None)


def test_a_duplicate_in_one_store_is_that_stores_result():
    first, second = recording_store(), recording_store()
    first.add("x", b"older")
    results = fan_out([first, second], "x", DATA)
    assert isinstance(results[0], Duplicate)
    assert image_of(first, "x") == b"older"
    assert image_of(second, "x") == DATA


def test_when_all_stores_fail_each_error_is_told_and_the_source_is_not_read():
    stores = [recording_store(name=name) for name in "ab"]
    for store in stores:
        store.add("x", b"older")
    read = []
    results = fan_out(stores, "x", (read.append(1) or DATA for _ in "a"))
    assert [type(result) for result in results] == [Duplicate, Duplicate]
    assert ["store a" in str(results[0]), "store b" in str(results[1])] == [True, True]
    assert not read


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("step", ["on_write", "on_commit"])
def test_stores_that_fail_later_are_told_each_too(step, count):
    def full(*given):
        raise StorageFull("full")

    stores = [recording_store(has_put=False, **{step: full}) for _ in range(count)]
    results = fan_out(stores, "x", iter([DATA]))
    assert [type(result) for result in results] == [StorageFull] * count
    assert len({id(result) for result in results}) == count
    assert [store.calls[-1] for store in stores] == [("abort", None)] * count


def test_a_source_that_fails_ends_all_and_leaves_nothing():
    stores = [recording_store() for _ in range(2)]

    def source():
        yield DATA
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fan_out(stores, "x", source())
    assert [image_of(store, "x") for store in stores] == [None, None]


def test_copy_moves_an_image_between_stores():
    origin, target = open_store("memory", "origin"), open_store("memory", "target")
    stored = origin.add("x", DATA)
    result = copy(origin, stored.uri, target, "y")
    assert result.multihash == stored.multihash
    assert target.get(result.uri).data.read() == DATA


def test_copy_with_known_digests_hashes_nothing(monkeypatch):
    origin, target = open_store("memory", "origin"), open_store("memory", "target")
    stored = origin.add("x", DATA)
    monkeypatch.setattr(hashlib, "new", lambda *args, **kwargs: pytest.fail("hashed"))
    result = copy(origin, stored.uri, target, "y", digests=Digests(stored.checksum, stored.multihash))
    assert result[1:4] == stored[1:4]


def test_an_error_of_the_source_store_is_raised_as_it_is():
    origin, target = open_store("memory", "origin"), recording_store()
    with pytest.raises(NotFound, match="memory://origin/gone"):
        copy(origin, "memory://origin/gone", target, "y")
    assert target.calls == []

# SPDX-License-Identifier: Apache-2.0
"""The bench of the conformance suite keeps what tests share, and lets nothing else pile up."""

from __future__ import annotations

import pytest

from storelib.exceptions import NotFound
from storelib.registry import open_store
from storelib.testing.conformance import Bench, bench
from storelib.testing.memory import MemoryStore


def ids(bench):
    return sorted(info.image_id.rpartition("-")[2] for info in bench.store.list_images())


@pytest.fixture
def tested():
    return Bench(open_store(MemoryStore))


def test_images_of_earlier_tests_are_removed_once_they_are_more_than_a_few(tested):
    uri, data = tested.image(7)
    for number in range(bench.FEW):
        tested.put(b"old", f"old{number}")
    tested.tidy()
    assert len(ids(tested)) == 1 + bench.FEW
    tested.put(b"one too many")
    tested.tidy()
    assert ids(tested) == ["shared"]
    assert tested.image(7) == (uri, data)
    assert tested.clean() == []
    assert ids(tested) == []


def test_image_that_a_test_removed_behind_the_bench_is_no_trouble(tested):
    uris = [tested.put(b"old") for _ in range(bench.FEW + 1)]
    tested.store.delete(uris[3])
    tested.tidy()
    assert ids(tested) == []
    assert tested.clean() == []


def test_image_that_cannot_be_removed_is_told_of_at_the_end(tested, monkeypatch):
    stuck, *_ = (tested.put(b"old") for _ in range(bench.FEW + 1))
    remove = tested.store.remove

    def refuse(location, context, deletion):
        if tested.location(stuck).store_location == location:
            raise PermissionError("stuck")
        remove(location, context, deletion)

    monkeypatch.setattr(tested.store, "remove", refuse)
    tested.tidy()
    assert len(ids(tested)) == 1
    [trouble] = tested.clean()
    assert "stuck" in trouble
    monkeypatch.undo()
    tested.store.delete(stuck)
    with pytest.raises(NotFound):
        tested.store.get_size(stuck)

# SPDX-License-Identifier: Apache-2.0
"""Measuring a store: what is measured, that it is checked, and that nothing is left."""

from __future__ import annotations

import time

import pytest

from storelib import open_store
from storelib.driver import Health
from storelib.exceptions import Invalid, NotFound, StorageFull, StoreError
from storelib.testing import benchmark
from storelib.testing.benchmark import PREFIX, Case, Measurement, MiB
from storelib.testing.memory import MemoryReader, MemoryStore


@pytest.fixture
def store():
    return open_store(MemoryStore, "measured")


def left(store):
    return [info.image_id for info in store.list_images()] + [item.name for item in store.find_garbage(0)]


def test_every_operation_of_every_case_is_measured_and_nothing_is_left(store):
    plan = benchmark.cases([5000, MiB + 1], [1, 3])
    found = list(benchmark.run(store, plan, rounds=2))
    assert [(each.case, each.operation) for each in found] == [
        (case, operation) for case in plan for operation in ("add", "get", "get again", "get_size", "delete")
    ]
    assert all(each.slowest <= each.rate <= each.fastest for each in found)
    assert all(each.images > 0 and each.cpu >= 0 for each in found)
    assert left(store) == []


def test_the_cases_have_all_sizes_with_all_numbers_and_the_unusual_once():
    plan = benchmark.cases([10, 20], [1, 8])
    assert [(case.size, case.at_once) for case in plan if not case.variant] == [(10, 1), (10, 8), (20, 1), (20, 8)]
    unusual = [case.variant for case in plan if case.variant]
    assert unusual == ["unknown size", "known digests", "nine tenths holes"]
    assert {case.size for case in plan if case.variant} == {20}


def test_what_the_cases_need_is_known_before():
    large, small = Case(64 * MiB, at_once=2), Case(MiB)
    assert (large.images, small.images) == (2, 16)
    assert benchmark.needed([large, small]) == 128 * MiB
    assert benchmark.written([large, small], rounds=1) == 2 * (128 + 16) * MiB


def test_a_store_that_says_it_has_no_room_is_not_written_to(store, monkeypatch):
    monkeypatch.setattr(MemoryStore, "probe", lambda self: Health("nearly full", free=MiB))
    with pytest.raises(StorageFull, match=f"store measured: {MiB} bytes are free, and {16 * MiB} are needed"):
        list(benchmark.run(store, [Case(MiB, at_once=2)]))


@pytest.mark.parametrize("at_once", [1, 3])
def test_other_bytes_than_were_stored_are_an_error_not_a_rate(store, monkeypatch, at_once):
    read = MemoryReader.read_into

    def wrong(self, offset, buffer):
        count = read(self, offset, buffer)
        if offset <= MiB < offset + count:
            buffer[MiB - offset] ^= 1
        return count

    monkeypatch.setattr(MemoryReader, "read_into", wrong)
    with pytest.raises(StoreError, match="store measured: image storelib-bench-.* reads back as other bytes"):
        list(benchmark.run(store, [Case(2 * MiB, at_once=at_once)]))
    assert left(store) == []


@pytest.mark.parametrize("at_once", [1, 3])
def test_an_interrupted_run_leaves_nothing(store, at_once):
    def interrupted(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(benchmark.run(store, [Case(MiB, at_once=at_once)], progress=interrupted))
    assert left(store) == []


@pytest.mark.parametrize("operation", ["add", "delete"])
def test_nothing_is_left_where_ctrl_c_comes_just_after_the_store_is_done(store, monkeypatch, caplog, operation):
    module, name = (benchmark.upload, "add") if operation == "add" else (store, "delete")
    work = getattr(module, name)
    calls = []

    def interrupted(*arguments, **options):
        work(*arguments, **options)
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(benchmark.run(store, [Case(MiB)]))
    assert left(store) == []
    assert not [record for record in caplog.records if record.name.startswith("storelib")]


def test_a_run_whose_reader_has_seen_enough_leaves_nothing(store):
    found = benchmark.run(store, [Case(MiB), Case(2 * MiB)], rounds=1)
    assert isinstance(next(found), Measurement)
    found.close()
    assert left(store) == []


def test_progress_ends_with_the_whole(store):
    seen = []
    list(benchmark.run(store, [Case(MiB), Case(1)], rounds=1, progress=lambda *each: seen.append(each)))
    assert seen[-1][0] == seen[-1][1] == 3 * benchmark.written([Case(MiB), Case(1)], 1)


def test_after_its_time_a_run_begins_no_case(store):
    assert list(benchmark.run(store, [Case(1)], rounds=5, seconds=-1)) == []


def test_an_image_of_a_run_that_was_killed_is_removed_when_it_is_old(store):
    old, new, other = (store.add(name, b"data") for name in (f"{PREFIX}1-0", f"{PREFIX}2-0", "an-image"))
    images = store.backend.images
    images[f"{PREFIX}1-0"].modified = time.time() - benchmark.STALE - 60
    assert benchmark.remove_stale(store) == 1
    with pytest.raises(NotFound):
        store.get_size(old.uri)
    assert store.get_size(new.uri) == store.get_size(other.uri) == 4


def test_a_store_that_cannot_be_written_to_is_refused(tmp_path):
    store = open_store(MemoryStore, "measured", read_only=True)
    with pytest.raises(Invalid, match="store measured cannot be measured, .*: option read_only is set"):
        list(benchmark.run(store, [Case(1)]))


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": 1, "at_once": 0}, {"size": 1, "at_once": 257}])
def test_a_case_without_sense_is_refused(wrong):
    with pytest.raises(Invalid, match="1 byte or more and 1 to 256"):
        Case(**wrong)

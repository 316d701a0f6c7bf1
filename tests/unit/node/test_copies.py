# SPDX-License-Identifier: Apache-2.0
"""An image on its way through a node: what fails, what is left on the disk, and what is told of it."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from concurrent.futures import Future

import pytest

from storelib.exceptions import RemoteServiceUnavailable
from storelib.node import publishing, reports
from storelib.node.api import resolved
from storelib.node.copies import LAST_RETRY, Copy, Phase, Workshop
from storelib.node.disk import Disk, Record
from storelib.node.engine import Progress
from storelib.node.jobs import Job
from storelib.node.options import Settings
from storelib.node.publishing import Target
from storelib.preload import torrent
from storelib.preload.pieces import PieceHasher

IMAGE = "6f9e0a5c-5a5f-4c9c-9d0b-5d3b2a4f0001"
DATA = b"x" * 5000


class AtOnce:
    """Does what it is given in the calling thread."""

    def submit(self, work, *arguments):
        future = Future()
        try:
            future.set_result(work(*arguments))
        except Exception as error:  # noqa: BLE001  (as an executor does)
            future.set_exception(error)
        return future


@pytest.fixture
def settings(tmp_path):
    values = {field.name: None for field in dataclasses.fields(Settings)}
    places = {"state_dir": tmp_path / "state", "target_dir": tmp_path / "images", "layout": "directory"}
    sizes = {"budget": 0, "reserve": 0, "mode": 0o644}
    return Settings(**values | places | sizes | {"convert_to_raw": False, "pinned": frozenset()})


@pytest.fixture
def make(settings):
    """Makes a node's disk, its target directory and an image on it, whose bytes are there."""

    def make(**more):
        chosen = dataclasses.replace(settings, **more)
        target = Target(chosen)
        target.prepare()
        disk = Disk(chosen)
        copy = Copy(Record(IMAGE, len(DATA), "md5", "00", "raw"), Workshop(disk, target, AtOnce()))
        disk.save(copy.record)
        disk.data(IMAGE).write_bytes(DATA)
        return copy, disk, target

    return make


def job(preload="p1"):
    hasher = PieceHasher()
    hasher.update(DATA)
    found = Job(preload, IMAGE, len(DATA), "md5", "00", "raw")
    found.torrent = torrent.torrent(IMAGE, hasher.finish())
    return found


def test_what_fails_for_weeks_is_tried_again(make):
    copy, _, _ = make()
    copy.want(job())
    for number in range(1100):
        copy.fail("the disk is full", float(number))

    assert not copy.may_start(1099.0 + LAST_RETRY - 1)
    assert copy.may_start(1099.0 + LAST_RETRY)


class Exchange:
    """An engine that only knows what it has."""

    has_peers = True

    def __init__(self):
        self.held = set()
        self.holds = self.held.__contains__
        self.remove = self.held.discard

    def add(self, part):
        self.held.add(part.preload)


def passed_on(make, engine):
    """An image that was there when the agent began, and is passed on."""
    copy, _, _ = make()
    copy.phase, wanted = Phase.READY, job()
    wanted.ca = wanted.key = wanted.certificate = "PEM"
    copy.want(wanted)
    copy.take_part(engine)
    assert engine.held == {"p1"}
    return copy


def test_an_image_that_is_wrong_on_disk_is_passed_on_no_more(make):
    engine = Exchange()
    copy = passed_on(make, engine)

    copy.completed()
    copy.step(0.0)

    # It is fetched again, which an engine that has all of it would never do.
    assert (copy.phase, engine.held) == (Phase.QUEUED, set())


def test_an_image_that_leaves_is_passed_on_no_more(make):
    engine = Exchange()
    copy = passed_on(make, engine)

    copy.leave()

    assert engine.held == set()


def test_who_asks_anew_does_not_wait_for_what_failed_before(make):
    copy, _, _ = make()
    copy.want(job())
    for _ in range(9):
        copy.fail("the source sends wrong bytes", 0.0)
    assert not copy.may_start(0.0)

    copy.jobs = {}
    copy.want(job("p2"))

    assert copy.may_start(0.0)
    assert (copy.phase, copy.reason) == (Phase.QUEUED, None)


def test_bytes_count_once_and_for_good(make):
    copy, _, _ = make()
    copy.want(job())
    copy.start(Exchange(), None)
    copy.progress = Progress(700, 600, 100)
    copy.want(job("p2"))
    assert (copy.told("p1"), copy.told("p2")) == (Progress(700, 600, 100), Progress(700, 0, 0))

    # It begins again, for whatever reason, and the engine counts from zero.
    copy.interrupt()
    copy.start(Exchange(), None)
    assert copy.told("p1") == Progress(700, 600, 100)
    copy.progress = Progress(900, 150, 50)
    assert (copy.told("p1"), copy.told("p2")) == (Progress(900, 750, 150), Progress(900, 0, 0))

    del copy.jobs["p1"]
    copy.start(Exchange(), None)
    copy.progress = Progress(1000, 100, 0)
    assert copy.told("p2") == Progress(1000, 100, 0)


def test_an_image_that_nobody_thought_of_fails_alone(make, monkeypatch):
    copy, _, _ = make()
    copy.want(job())
    monkeypatch.setattr("storelib.node.checking.verify", lambda *given: None)
    monkeypatch.setattr("storelib.node.checking.inspect", lambda *given: [][0])

    copy.completed()
    copy.step(0.0)

    assert (copy.phase, copy.reason) == (Phase.FAILED, "the agent failed: IndexError")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_conversion_that_fails_leaves_nothing(make, monkeypatch, error):
    copy, disk, target = make(convert_to_raw=True)
    copy.record.disk_format = "qcow2"

    def convert(data, disk_format, part, check):
        part.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(publishing.raw, "convert", convert)

    with pytest.raises(type(error)):
        target.publish(copy.record, disk.data(IMAGE), lambda: None, lambda: None)

    assert sorted(os.listdir(disk.directory(IMAGE))) == ["data", "image.json"]
    assert os.listdir(target.path(IMAGE).parent) == []


def test_a_conversion_leaves_the_reserve_alone(make, monkeypatch):
    copy, disk, _ = make(convert_to_raw=True, reserve=1 << 60)
    copy.record.disk_format = "qcow2"
    monkeypatch.setattr("storelib.node.checking.verify", lambda *given: None)
    monkeypatch.setattr("storelib.node.checking.inspect", lambda *given: None)
    monkeypatch.setattr(publishing.raw, "convert", lambda data, disk_format, part, check: check())

    copy.completed()
    copy.step(0.0)

    assert (copy.phase, copy.reason) == (Phase.FAILED, "the disk is full")
    assert sorted(os.listdir(disk.directory(IMAGE))) == ["data", "image.json"]


def test_a_file_of_others_takes_no_room_of_images(make, settings):
    copy, _, target = make(layout="nova")
    before = copy.used
    target.path(IMAGE).write_bytes(os.urandom(1 << 20))

    copy.record.foreign = True

    assert copy.used == before
    assert before < 1 << 20


@pytest.mark.parametrize(
    "damage",
    [
        {"size": "5000"},
        {"size": None},
        {"size": -1},
        {"os_hash_algo": None},
        {"os_hash_value": 7},
        {"disk_format": ["raw"]},
        {"virtual_size": "much"},
        {"published": 7},
        {"image": "../other"},
        {"more": 1},
    ],
)
def test_a_damaged_record_is_as_good_as_none(make, damage):
    _, disk, _ = make()
    place = disk.directory(IMAGE) / "image.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | damage))

    assert list(disk.records()) == []


def test_more_images_than_can_be_told_are_told_in_turn(make, monkeypatch):
    monkeypatch.setattr(reports, "MOST_HELD", 2)
    copies = {}
    for number in range(4):
        copy, _, _ = make()
        copy.record.image, copy.phase = f"image-{number}", Phase.READY
        copies[copy.image] = copy

    told = [reports.everything([], copies, None)["holds"] for _ in range(200)]

    assert {len(each) for each in told} == {2}
    assert {image for each in told for image in each} == copies.keys()


def test_the_address_that_others_are_told_is_no_name():
    assert resolved("localhost") in ("127.0.0.1", "::1")
    assert resolved("192.0.2.1") == "192.0.2.1"
    with pytest.raises(RemoteServiceUnavailable):
        resolved("x" * 300)

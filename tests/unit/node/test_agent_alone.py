# SPDX-License-Identifier: Apache-2.0
"""What keeps one image on a node from coming forward, and none of the others: its disk, or nobody who has it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import lone_agent
import pytest

from storelib.node import agent as module
from storelib.node import checking, identity, raw, reports
from storelib.node.api import Api
from storelib.node.copies import STANDSTILL, Phase
from storelib.node.direct import Direct
from storelib.node.engine import Address, BadPeer, Broken, Part, Progress
from storelib.node.publishing import Target
from storelib.node.reading import Reader
from storelib.preload import torrent
from storelib.preload.pieces import PieceHasher

DATA = b"x" * 5000


class World:
    """An agent that is called by hand, and what it told an API that answers what it is told to."""

    def __init__(self, directory, monkeypatch):
        self.state, self.images = directory / "state", directory / "images"
        self.heard, self.answer, self.now = [], {"jobs": []}, 0.0
        load = lone_agent.enrolled(directory, monkeypatch)
        monkeypatch.setattr(Api, "heartbeat", lambda api, node, secret, document: self._hear(document))
        self.agent = load()
        self.agent._identity = identity.load(self.state)

    def _hear(self, document):
        self.heard.append(document)
        return self.answer

    def publish(self, image):
        """Have an image on the node, as if it had come."""
        target = self.agent._target
        record = module.jobs.read(document_of(image), None).record()
        disk = self.agent._disk
        disk.save(record)
        disk.data(image).write_bytes(DATA)
        target.publish(record, disk.data(image), lambda: None, lambda: disk.save(record))
        copy = self.agent._copies[image] = module.Copy(record, self.agent._workshop)
        assert copy.phase is Phase.READY
        return copy

    def know(self, document):
        """Have an agent know a job, and its torrent."""
        job = self.agent._jobs[document["preload"]] = module.jobs.read(document, None)
        hasher = PieceHasher()
        hasher.update(DATA)
        job.torrent = torrent.torrent(job.image, hasher.finish())
        return job

    def beat(self):
        self.agent._next_heartbeat = 0.0
        self.agent._next_look = 0.0
        self.agent._tick()

    def until(self, done):
        for _ in range(1000):
            self.beat()
            if done():
                return
            # What its thread does takes as long as it takes.
            self.agent._executor.submit(bool).result()
        raise AssertionError([copy.reason for copy in self.agent._copies.values()])


class Nothing:
    """An engine to which nothing comes."""

    has_peers = False

    def __init__(self):
        self.held, self.added, self.events = set(), [], []
        self.holds = self.held.__contains__
        self.remove = self.held.discard

    def add(self, part):
        self.held.add(part.preload)
        self.added.append(part.have)

    def progress(self, preload):
        return Progress()

    def poll(self):
        found, self.events = self.events, []
        return found

    def __getattr__(self, name):
        return lambda *given: ()


class Refusing(Nothing):
    """One that finds fault with each image that it is given whole."""

    has_peers = True

    def add(self, part):
        super().add(part)
        if all(part.have):
            self.events.append(Broken(part.preload, "libtorrent: mismatching file size"))


def document_of(image, preload="p1", **more):
    digest = hashlib.sha256(DATA).hexdigest()
    return {
        "preload": preload,
        "image": image,
        "size": len(DATA),
        "os_hash_algo": "sha256",
        "os_hash_value": digest,
        "disk_format": "raw",
        "container_format": "bare",
        **more,
    }


@pytest.fixture
def world(tmp_path, monkeypatch):
    made = World(tmp_path, monkeypatch)
    yield made
    made.agent.close()


def refuse(*given):
    raise PermissionError(1, "Operation not permitted", "/images/first")


def test_an_image_that_cannot_be_removed_keeps_none_of_the_others_waiting(world, monkeypatch):
    world.publish("first")
    world.publish("second")
    withdraw = Target.withdraw
    monkeypatch.setattr(
        Target, "withdraw", lambda target, record: refuse() if record.image == "first" else withdraw(target, record)
    )

    world.answer = {"jobs": [], "drop": ["first", "second"]}
    world.beat()
    world.beat()

    assert world.agent._copies.keys() == {"first"}
    assert os.listdir(world.images) == ["first"]
    monkeypatch.setattr(Target, "withdraw", withdraw)
    world.beat()
    assert not world.agent._copies
    assert os.listdir(world.images) == []


def test_what_cannot_make_room_is_a_reason(world, monkeypatch):
    world.publish("old")
    monkeypatch.setattr(Target, "withdraw", refuse)
    monkeypatch.setattr(module.Room, "for_one", lambda room, copy, copies: [world.agent._copies["old"]])
    world.answer = {"jobs": [document_of("new", size=0)]}

    world.beat()
    world.beat()

    assert world.agent._copies["old"].phase is Phase.READY
    [state] = world.heard[-1]["states"]
    assert (state["state"], state["reason"]) == ("failed", "Operation not permitted: /images/first")


def test_an_agent_whose_disk_says_nothing_is_heard_of(world, monkeypatch):
    world.publish("first")
    monkeypatch.setattr(module.Disk, "free", refuse)
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **more: refuse() if path.name == "data" else stat(path, **more))

    world.beat()

    assert [document["free"] for document in world.heard] == [None]


def test_the_directory_of_images_is_made_again(world):
    image = world.publish("first")
    world.answer = {"jobs": [document_of("first")]}
    shutil.rmtree(world.state / "images")

    world.beat()

    assert (world.state / "images").stat().st_mode & 0o777 == 0o700
    assert image.phase is Phase.READY
    assert world.heard[-1]["holds"] == ["first"]


def test_that_the_target_directory_is_gone_is_told_by_its_name(world):
    image = world.publish("first")
    world.answer = {"jobs": [document_of("first")]}
    shutil.rmtree(world.images)

    world.until(lambda: image.phase is Phase.FAILED)

    assert image.reason == f"No such file or directory: {world.images / 'first'}"


def test_jobs_that_cannot_be_kept_are_worked_on(world, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    world.agent._refused = True
    monkeypatch.setattr(module.jobs, "save", full)
    world.answer = {"jobs": [document_of("first", size=0)]}

    world.beat()

    assert world.agent._jobs.keys() == {"p1"}
    assert not world.agent._refused


def test_images_that_come_no_further_let_others_go(world):
    agent = world.agent
    agent._direct = Nothing()
    documents = [document_of(f"image-{number}", f"p{number}") for number in range(5)]
    for document in documents:
        world.know(document)
    world.answer = {"jobs": documents}
    most = agent._settings.max_fetching

    def fetched():
        return [image for image, copy in agent._copies.items() if copy.phase is Phase.FETCHING]

    world.until(lambda: len(agent._direct.held) == most)
    assert fetched() == [f"image-{number}" for number in range(most)]

    agent._copies["image-1"]._moved_at -= 2 * STANDSTILL
    world.until(lambda: "image-4" in fetched() and len(agent._direct.held) == most)

    assert list(agent._copies)[-1] == "image-1"
    assert agent._copies["image-1"].reason == "nothing came of it for a while: others go first"


@pytest.mark.parametrize("wrong", [True, False])
def test_an_image_that_cannot_be_passed_on_is_looked_at_once(world, monkeypatch, wrong):
    monkeypatch.setattr(module.jobs.Job, "wanted_csr", lambda *given: None)
    image = world.publish("first")
    engine = world.agent._swarm = Refusing()
    job = world.know(document_of("first", ca="PEM", certificate="PEM"))
    job.key = "PEM"
    world.answer = {"jobs": [document_of("first", ca="PEM", certificate="PEM")]}
    if wrong:
        world.agent._disk.data("first").write_bytes(b"y" * len(DATA))

    world.until(lambda: engine.added)
    for _ in range(10):
        world.until(lambda: image.phase is (Phase.FETCHING if wrong else Phase.READY))

    # What is lacking is fetched, and what is right is not given to it again and again.
    assert engine.added == ([[True], [False]] if wrong else [[True]])
    assert os.listdir(world.images) == ([] if wrong else ["first"])


def test_bytes_whose_own_name_is_gone_are_found_by_the_published_one(world):
    image = world.publish("first")
    job = world.know(document_of("first"))
    world.answer = {"jobs": [document_of("first")]}
    world.agent._direct = engine = Nothing()
    world.agent._disk.data("first").unlink()
    job.is_refused = True

    image.want(job)
    image.doubt("libtorrent: no such file")
    world.until(lambda: image.phase is Phase.READY)

    assert not engine.added
    assert not job.is_refused
    assert os.path.samefile(world.images / "first", world.agent._disk.data("first"))


def test_a_published_file_that_was_cut_is_mended_out_of_sight_also_after_a_kill(world):
    image = world.publish("first")
    world.know(document_of("first"))
    world.answer = {"jobs": [document_of("first")]}
    world.agent._direct = Nothing()
    os.truncate(world.images / "first", 100)

    world.until(lambda: image.phase is Phase.FETCHING)

    assert os.listdir(world.images) == []
    # As a kill leaves it: of the right length, with the bytes not there yet, and by the name that nova knows.
    os.link(world.agent._disk.data("first"), world.images / "first")
    [record] = world.agent._disk.records()
    assert module.Copy(record, world.agent._workshop).phase is Phase.QUEUED


def test_a_file_that_was_changed_in_place_is_mended_once_it_is_removed(world):
    image = world.publish("first")
    world.know(document_of("first"))
    world.answer = {"jobs": [document_of("first")]}
    world.agent._direct = engine = Nothing()
    with open(world.images / "first", "r+b") as file:
        file.write(b"y")
    (world.images / "first").unlink()

    world.until(lambda: engine.added)

    assert (image.phase, engine.added) == (Phase.FETCHING, [[False]])
    assert os.listdir(world.images) == []


@pytest.mark.parametrize("layout", ["directory", "nova"])
@pytest.mark.parametrize("agent", ["there", "away"])
def test_a_converted_file_that_was_cut_is_made_again(world, monkeypatch, layout, agent):
    object.__setattr__(world.agent._settings, "layout", layout)
    monkeypatch.setattr(Target, "in_use", lambda target, image: layout == "nova")
    object.__setattr__(world.agent._settings, "convert_to_raw", True)
    monkeypatch.setattr(raw, "convert", lambda data, kind, part, check: part.write_bytes(b"y" * 9000))
    monkeypatch.setattr(checking, "inspect", lambda *given: None)
    qcow2 = document_of("first", disk_format="qcow2")
    image = world.publish("first")
    place = world.agent._target.path("first")
    image.record.disk_format = "qcow2"
    world.know(qcow2)
    world.answer = {"jobs": [qcow2]}
    image.completed()
    world.until(lambda: place.stat().st_size == 9000 and image.phase is Phase.READY)
    world.beat()

    os.truncate(place, 100)
    if agent == "away":
        world.agent._copies.clear()
        world.agent._remember()
        image = world.agent._copies["first"]
    world.until(lambda: image.phase is not Phase.READY)
    world.until(lambda: image.phase is Phase.READY)

    assert place.read_bytes() == b"y" * 9000


@pytest.mark.parametrize("wanted", [True, False])
def test_images_are_known_when_the_number_of_their_file_system_is_another_one(world, wanted):
    world.publish("first")
    world.answer = {"jobs": [document_of("first")] if wanted else []}
    record = world.state / "images" / "first" / "image.json"
    kept = json.loads(record.read_text())
    # As it was before the machine was started again, which found its disks in another order.
    kept["published"][0] += 1
    record.write_text(json.dumps(kept))
    world.agent._copies.clear()

    world.agent._remember()
    world.beat()
    assert world.heard[-1]["holds"] == ["first"]

    world.answer = {"jobs": [], "drop": ["first"]}
    world.until(lambda: not world.agent._copies)
    assert os.listdir(world.images) == []


def test_an_agent_starts_although_a_place_cannot_be_looked_at(world):
    world.publish("first")
    (world.images / "first").unlink()
    (world.images / "first").symlink_to("first")
    world.agent._copies.clear()

    world.agent._remember()

    assert world.agent._copies["first"].phase is not Phase.READY


def test_what_is_no_file_in_the_place_of_an_image_is_a_reason(world):
    object.__setattr__(world.agent._settings, "layout", "nova")
    place = world.agent._target.path("first")
    place.mkdir()
    world.answer = {"jobs": [document_of("first", size=0, os_hash_value=hashlib.sha256().hexdigest())]}

    world.until(lambda: world.agent._copies["first"].phase is Phase.FAILED)

    assert world.agent._copies["first"].reason == f"what has the image's place is no file: {place}"


def test_an_engine_that_nobody_thought_of_is_not_the_end_of_the_agent(world, monkeypatch):
    world.publish("first")
    world.know(document_of("first"))
    world.answer = {"jobs": [document_of("first")]}
    monkeypatch.setattr(world.agent, "_introduce", lambda *given: 1 / 0)

    world.beat()
    world.beat()

    assert len(world.heard) == 2


def test_a_peer_of_the_local_link_is_reported_as_the_api_takes_it(world):
    world.know(document_of("first"))
    world.agent._copies["first"] = module.Copy(world.agent._jobs["p1"].record(), world.agent._workshop)
    world.agent._hear(BadPeer("p1", Address("fe80::1%eth0", 6881)), 0.0)
    world.beat()
    assert world.heard[-1]["bad_peers"] == [{"preload": "p1", "address": "fe80::1", "port": 6881}]


def test_a_piece_for_which_there_was_no_room_is_not_there(world, monkeypatch, tmp_path):
    job = world.know(document_of("first"))
    (tmp_path / "data").write_bytes(b"")
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: len(data) - 1)
    direct = Direct(Reader(lambda url, offset, length: DATA, 0, 1))
    direct.add(Part("p1", job.torrent, tmp_path / "data", [False]))
    direct.source("p1", "x")
    direct._reader._executor.shutdown()
    assert direct.poll() == [Broken("p1", "No space left on device")]
    assert direct.progress("p1").done == 0


def test_why_nothing_comes_is_told(world):
    world.know(document_of("first"))
    world.answer = {"jobs": [document_of("first")]}
    world.agent._direct = Nothing()
    world.until(lambda: "first" in world.agent._copies and world.agent._copies["first"].phase is Phase.FETCHING)
    image = world.agent._copies["first"]
    world.beat()
    assert world.heard[-1]["states"][0]["reason"].startswith("libtorrent is not installed")

    image._moved_at -= 2 * STANDSTILL
    world.beat()
    world.beat()

    assert world.heard[-1]["states"][0]["reason"] == "nothing comes, neither from the image API nor from other nodes"
    image._engine.has_peers, image.jobs["p1"].ca = True, "PEM"
    assert image.told_reason == "the image API gives the node no certificate to exchange it with"


def test_why_an_image_is_not_begun_is_told(world, monkeypatch):
    monkeypatch.setattr(Api, "torrent", lambda api, path, secret: b"de")
    world.answer = {"jobs": [document_of("first", torrent_url="/torrent")]}

    world.beat()
    world.beat()

    [state] = world.heard[-1]["states"]
    assert state["state"] == "queued"
    assert state["reason"] == "the digests of its parts do not come: this is no torrent of one image"

    job = world.know(document_of("first"))
    monkeypatch.setattr(Api, "torrent", lambda api, path, secret: job.torrent)
    world.beat()
    assert world.agent._copies["first"].reason != state["reason"]


def test_a_file_whose_name_is_no_text_keeps_no_heartbeat_from_being_heard(world):
    world.answer = {"jobs": [document_of("first")]}
    world.beat()
    world.agent._copies["first"].fail("Permission denied: /images/\udcff", 0.0)
    world.beat()
    [state] = world.heard[-1]["states"]
    assert state["reason"] == "Permission denied: /images/\\udcff"


def test_a_node_that_can_ask_for_no_certificate_is_heard_of(world, monkeypatch):
    # Also of what other tests have imported.
    for name in ("cryptography", *(name for name in sys.modules if name.startswith("cryptography."))):
        monkeypatch.setitem(sys.modules, name, None)
    job = world.know(document_of("first", ca="PEM"))
    [state] = reports.everything([job], {}, "n1")["states"]
    assert state["wanted_csr"] is None
    assert "needs cryptography" in state["reason"]

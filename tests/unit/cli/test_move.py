# SPDX-License-Identifier: Apache-2.0
"""storelib image move: everything leaves a store, nothing is lost, whatever happens in between."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
import uuid
import warnings
from contextlib import closing

import pytest
from empty_database import make_empty_database

with warnings.catch_warnings():
    # WebOb, which oslo.middleware stands on, still imports cgi.
    warnings.simplefilter("ignore", DeprecationWarning)
    import webob  # noqa: F401

import storelib.config
from storelib import open_store
from storelib.api import config as api_config
from storelib.api.auditing import Audit
from storelib.api.context import administrator
from storelib.api.db import open_repository
from storelib.api.db.records import Changes, NewImage, NewLocation
from storelib.api.errors import UploadLost
from storelib.api.service import Service, moving, rate_limit
from storelib.api.service.deletion import scrub
from storelib.api.service.moving import Move
from storelib.api.service.rate_limit import RateLimit
from storelib.exceptions import (
    BadStoreConfiguration,
    InUseByStore,
    RemoteServiceUnavailable,
    StoreAddDisabled,
    StoreDeleteNotSupported,
)
from storelib.registry import Registry

DATA = b"what an image is made of " * 100
OTHER = b"WHAT AN IMAGE IS MADE OF " * 100

INI = """
[storelib]
stores = old:file, new:file, mem:memory, fixed:file, web:http
default_store = old
transfer_retries = 0
[old]
filesystem_store_datadir = {directory}/old
[new]
filesystem_store_datadir = {directory}/new
filesystem_thin_provisioning = true
[fixed]
filesystem_store_datadir = {directory}/fixed
read_only = true
[database]
connection = sqlite:///{directory}/images.sqlite
sqlite_synchronous = false
[api]
lease_timeout = 1
"""


class Place:
    """A directory with a database and stores, and a service that works on them."""

    def __init__(self, directory) -> None:
        self.directory = directory
        (directory / "fixed").mkdir()
        self.config = directory / "my.ini"
        self.config.write_text(INI.format(directory=directory))
        make_empty_database(directory / "images.sqlite")
        conf = storelib.config.load_file(self.config)
        api_config.register_opts(conf)
        self.registry = Registry.from_conf(conf)
        self.repository = open_repository(conf)
        self.service = Service(conf, self.repository, self.registry, renew=0)

    def close(self) -> None:
        self.service.stop()
        self.repository.close()

    def image(self, data: bytes = DATA, *, stores=("old",), **fields) -> str:
        """The id of an active image with its data in these stores."""
        image_id = str(uuid.uuid4())
        stored = [self.registry[name].add(image_id, data) for name in stores]
        known = {
            "status": "active",
            "size": len(data),
            "checksum": hashlib.md5(data, usedforsecurity=False).hexdigest(),
            "os_hash_algo": "sha512",
            "os_hash_value": hashlib.sha512(data).hexdigest(),
            "locations": tuple(NewLocation(item.uri, item.metadata) for item in stored),
        }
        self.repository.images.create(NewImage(image_id, **{**known, **fields}))
        return image_id

    def path(self, image_id: str, store: str = "old"):
        return self.directory / store / image_id

    def files(self, store: str) -> list[str]:
        directory = self.directory / store
        return os.listdir(directory) if directory.exists() else []

    def move(self, source: str = "old", target: str = "new", **options) -> dict[str, str]:
        """What became of each image."""
        work = Move(self.service, source, target, **{"linger": 0, **options})
        results = list(work.run())
        # Shown where a test failed.
        sys.stdout.writelines(f"{each}\n" for each in results)
        return {each.image_id: each.state for each in results}

    def where(self, image_id: str) -> list[str]:
        return [location.metadata["store"] for location in self.repository.images.get(image_id).locations]

    def read(self, image_id: str) -> bytes:
        with closing(self.service.data.read(administrator(), self.repository.images.get(image_id)).data) as stream:
            return stream.read()

    def findings(self) -> list[str]:
        return [found.kind for found in Audit(self.repository, self.registry, deep=True, older_than=0).run()]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(moving, "_PAUSE", 0.1)
    made = Place(tmp_path)
    yield made
    made.close()


class TestMoving:
    def test_all_images_leave_and_keep_their_bytes(self, place):
        images = {place.image(bytes([number]) * 1000): bytes([number]) * 1000 for number in range(5)}
        images[place.image(b"")] = b""
        images[place.image(status="deactivated")] = DATA
        images[place.image(stores=("mem",))] = DATA
        assert set(place.move().values()) == {"moved"}
        assert {image: place.read(image) for image in images} == images
        assert place.files("old") == []
        assert place.findings() == []

    def test_the_order_of_other_places_and_the_image_itself_stay(self, place):
        image = place.image(stores=("mem", "old"), name="n", properties={"a": "b"}, tags=frozenset({"t"}))
        before = place.repository.images.get(image)
        assert place.move() == {image: "moved"}
        after = place.repository.images.get(image)
        assert place.where(image) == ["mem", "new"]
        for name in ("name", "properties", "tags", "status", "checksum", "os_hash_value", "size", "created_at"):
            assert getattr(after, name) == getattr(before, name)

    def test_between_stores_of_different_kinds(self, place):
        images = {place.image(bytes([number]) * 100_000): bytes([number]) * 100_000 for number in range(3)}
        assert set(place.move("old", "mem").values()) == {"moved"}
        assert ({image: place.read(image) for image in images}, place.files("old")) == (images, [])
        assert set(place.move("mem", "new").values()) == {"moved"}
        assert ({image: place.read(image) for image in images}, place.findings()) == (images, [])
        assert list(place.registry["mem"].list_images()) == []

    def test_a_sparse_image_stays_sparse(self, place):
        data = b"x" * 65536 + bytes(16 << 20) + b"y" * 65536
        image = place.image(data)
        with open(place.path(image), "wb") as file:
            file.write(data[:65536])
            file.seek(65536 + (16 << 20))
            file.write(data[-65536:])
        assert place.move() == {image: "moved"}
        assert place.read(image) == data
        assert place.path(image, "new").stat().st_blocks * 512 < len(data) // 2

    def test_only_the_images_of_one_project(self, place):
        mine, other = place.image(owner="me"), place.image(owner="you")
        assert place.move(owner="me") == {mine: "moved"}
        assert (place.where(mine), place.where(other)) == (["new"], ["old"])

    @pytest.mark.parametrize("workers", [1, 4])
    def test_only_so_many(self, place, workers):
        for _ in range(5):
            place.image()
        assert list(place.move(limit=3, workers=workers).values()) == ["moved"] * 3
        assert len(place.files("old")) == 2
        assert list(place.move().values()) == ["moved"] * 2

    def test_an_image_without_digests_is_moved(self, place):
        image = place.image(checksum=None, os_hash_algo=None, os_hash_value=None)
        both = place.image(stores=("old", "new"), checksum=None, os_hash_algo=None, os_hash_value=None)
        assert place.move() == {image: "moved", both: "moved"}
        assert place.read(image) == place.read(both) == DATA

    def test_an_image_whose_digest_cannot_be_computed_goes_by_its_md5(self, place):
        image = place.image(OTHER, os_hash_algo="whirlpool9", os_hash_value="00")
        place.path(image).write_bytes(DATA)
        assert place.move() == {image: "failed"}

    def test_images_that_come_meanwhile_are_moved_too(self, place):
        place.image()
        results = Move(place.service, "old", "new", linger=0).run()
        next(results)
        late = place.image()
        assert late in {each.image_id for each in results}
        assert place.findings() == []

    def test_the_old_copy_stays_for_those_who_are_about_to_read_it(self, place):
        image = place.image()
        thread = threading.Thread(target=lambda: place.move(linger=1.0))
        thread.start()
        deadline = time.monotonic() + 30
        while place.where(image) != ["new"]:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert place.path(image).read_bytes() == DATA
        thread.join()
        assert not place.path(image).exists()

    def test_images_are_readable_all_the_time(self, place):
        images = [place.image() for _ in range(10)]
        results = Move(place.service, "old", "new", linger=0).run()
        for _ in results:
            assert {place.read(image) for image in images} == {DATA}


class TestStillToBeDeleted:
    """A copy in the target was taken from the image before, and is not deleted yet."""

    @pytest.fixture
    def image(self, place, monkeypatch):
        image = place.image(stores=("old", "new"))
        [copy] = [each for each in place.repository.images.get(image).locations if each.metadata["store"] == "new"]
        place.repository.locations.drop(image, copy.id)
        read_back = Move._read_back

        def scrub_then(*arguments):
            read_back(*arguments)
            # As a server does now and then.
            scrub(place.service.core, 0)

        monkeypatch.setattr(Move, "_read_back", scrub_then)
        return image

    def test_its_deletion_does_not_take_the_new_copy(self, place, image):
        assert place.move() == {image: "moved"}
        assert (place.where(image), place.read(image), place.findings()) == (["new"], DATA, [])

    def test_while_it_cannot_be_deleted_the_image_stays(self, place, image, monkeypatch):
        def fail(*_):
            raise RemoteServiceUnavailable("not now")

        monkeypatch.setattr(place.registry["new"], "delete", fail)
        assert place.move() == {image: "in use"}
        assert (place.where(image), place.read(image)) == (["old"], DATA)


class TestTrouble:
    def test_data_that_is_not_as_recorded_stays_where_it_is(self, place):
        image = place.image()
        place.path(image).write_bytes(OTHER)
        assert place.move() == {image: "failed"}
        assert (place.where(image), place.files("new")) == (["old"], [])

    def test_data_of_another_size_stays_where_it_is(self, place):
        image = place.image()
        place.path(image).write_bytes(DATA + b"!")
        assert place.move() == {image: "failed"}
        assert (place.where(image), place.files("new")) == (["old"], [])

    def test_a_copy_that_reads_otherwise_is_not_used(self, place, monkeypatch):
        image, new = place.image(), place.registry["new"]
        start = new.start_writer

        def spoil(image_id, *more):
            writer = start(image_id, *more)
            commit = writer.commit

            def commit_other(*arguments):
                committed = commit(*arguments)
                place.path(image, "new").write_bytes(OTHER)
                return committed

            writer.commit = commit_other
            return writer

        monkeypatch.setattr(new, "start_writer", spoil)
        assert place.move() == {image: "failed"}
        assert (place.where(image), place.read(image), place.findings()) == (["old"], DATA, [])
        assert place.files("new") == []

    def test_an_old_copy_is_not_deleted_for_a_wrong_one_that_was_there(self, place):
        image = place.image(stores=("old", "new"))
        place.path(image, "new").write_bytes(OTHER)
        assert place.move() == {image: "failed"}
        assert (place.where(image), place.path(image).read_bytes()) == (["old", "new"], DATA)

    def test_data_in_use_stays_in_both_stores(self, place, monkeypatch):
        image = place.image()

        def refuse(*arguments):
            raise InUseByStore("it has clones")

        monkeypatch.setattr(place.registry["old"], "remove", refuse)
        assert place.move() == {image: "in use"}
        assert place.where(image) == ["new", "old"]
        monkeypatch.undo()
        assert place.move() == {image: "moved"}
        assert place.where(image) == ["new"]

    def test_a_copy_under_way_by_others_is_waited_for(self, place):
        image = place.image()
        other = place.repository.processes.join("elsewhere", 1)
        place.repository.uploads.begin(image, other.id, from_=("active",), to=None, stores=("mem",), token="t")
        begun = threading.Timer(0.3, place.repository.uploads.finish, (image, other.id), {"to": None, "token": "t"})
        begun.start()
        assert place.move() == {image: "moved"}
        begun.join()

    def test_what_stays_busy_is_told(self, place):
        image, writing = place.image(), place.image(stores=(), status="queued")
        other = place.repository.processes.join("elsewhere", 1)
        place.repository.uploads.begin(image, other.id, from_=("active",), to=None, stores=("mem",))
        place.repository.uploads.begin(writing, other.id, stores=("old",))
        assert place.move() == {image: "busy", writing: "busy"}

    def test_an_image_that_is_deleted_while_it_is_copied_leaves_nothing(self, place, monkeypatch):
        image, new = place.image(), place.registry["new"]
        start = new.start_writer

        def delete_first(*arguments):
            place.service.images.delete(administrator(), image)
            return start(*arguments)

        monkeypatch.setattr(new, "start_writer", delete_first)
        assert place.move() == {image: "gone"}
        assert place.findings() == []
        assert place.files("new") == place.files("old") == []

    def test_a_long_copy_of_a_deleted_image_is_ended(self, place, monkeypatch):
        monkeypatch.setattr("storelib.api.service.data.LOOK", 0.0)
        image = place.image(b"x" * 64)
        store = place.registry["old"]
        read, served = store.open_reader, []

        def delete_then_read(location, *more):
            if not served:
                served.append(location)
                place.repository.images.transition(image, from_=("active",), to="pending_delete")
            return read(location, *more)

        monkeypatch.setattr(store, "open_reader", delete_then_read)
        assert place.move() == {image: "gone"}
        assert place.files("new") == []

    def test_data_that_several_images_have_goes_with_the_last_of_them(self, place):
        first = place.image()
        uri = place.repository.images.get(first).locations[0]
        second = place.image(stores=(), locations=(NewLocation(uri.uri, uri.metadata),), owner="other")
        assert place.move(owner="other") == {second: "moved"}
        assert place.read(first) == place.read(second) == DATA
        assert place.where(first) == ["old"]
        assert place.move() == {first: "moved"}
        assert place.read(first) == place.read(second) == DATA
        assert (place.files("old"), place.findings()) == ([], [])

    def test_a_store_that_does_not_answer_fails_the_image(self, place, monkeypatch):
        image = place.image()

        def refuse(*arguments):
            raise RemoteServiceUnavailable("gone fishing")

        monkeypatch.setattr(place.registry["new"], "open_writer", refuse)
        assert place.move() == {image: "failed"}
        monkeypatch.undo()
        assert place.move() == {image: "moved"}

    @pytest.mark.parametrize(
        ("source", "target", "error"),
        [
            ("old", "old", BadStoreConfiguration),
            ("old", "web", StoreAddDisabled),
            ("old", "fixed", StoreAddDisabled),
            ("fixed", "new", StoreDeleteNotSupported),
        ],
    )
    def test_stores_that_cannot_be_are_refused(self, place, source, target, error):
        with pytest.raises(error):
            Move(place.service, source, target)


class TestInterrupted:
    """Killed between any two steps, the next run ends what is left."""

    @pytest.mark.parametrize("step", ["begin", "finish", "drop", "claim", "forget"])
    @pytest.mark.parametrize("after", [False, True])
    def test_a_run_that_ended_at_a_step_is_gone_on_with(self, place, monkeypatch, step, after):
        images = [place.image() for _ in range(3)]
        tables = place.repository.uploads if step in ("begin", "finish") else place.repository.locations
        done = getattr(tables, step)

        class Killed(BaseException):
            pass

        def die(*arguments, **named):
            if after:
                done(*arguments, **named)
            raise Killed

        monkeypatch.setattr(tables, step, die)
        monkeypatch.setattr(place.service.data, "discard", lambda *arguments: None)
        monkeypatch.setattr(place.service.data, "give_up", lambda *arguments: None)
        monkeypatch.setattr(place.service.data, "undo_later", lambda *arguments: None)
        with pytest.raises(Killed):
            place.move(workers=1)
        monkeypatch.undo()
        assert {place.read(image) for image in images} == {DATA}
        # The process is gone, and the next one of this machine finds that out.
        place.repository.processes.leave(place.service.lease.id)
        place.service.lease._id = None
        place.service.lease.beat()
        place.move()
        assert {place.read(image) for image in images} == {DATA}
        assert {tuple(place.where(image)) for image in images} == {("new",)}
        assert (place.files("old"), place.findings()) == ([], [])

    def test_closing_the_results_undoes_what_is_half_done(self, place):
        images = [place.image(DATA * 50) for _ in range(4)]
        results = Move(place.service, "old", "new", linger=0, workers=2, rate=len(DATA) * 150).run()
        next(results)
        results.close()
        assert place.service.core.repository.uploads.list_for(place.service.lease.id) == []
        assert {place.read(image) for image in images} == {DATA * 50}
        assert place.findings() == []

    def test_a_process_that_is_killed_in_the_middle_is_gone_on_with(self, place):
        images = [place.image(DATA * 100) for _ in range(3)]
        command = [
            sys.executable,
            "-c",
            "from storelib.cli.main import main; main()",
            "image",
            "move",
            "--config",
            str(place.config),
        ]
        command += ["--from", "old", "--to", "new", "--linger", "0", "--format", "json"]
        slowly = [*command, "--rate", "500K", "--workers", "1"]
        with subprocess.Popen(slowly, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert json.loads(process.stdout.readline())["state"] == "moved"
            time.sleep(0.2)
            process.send_signal(signal.SIGKILL)
        assert {place.read(image) for image in images} == {DATA * 100}
        response = subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert response.returncode == 0, response.stderr
        assert {place.read(image) for image in images} == {DATA * 100}
        assert (place.files("old"), place.findings()) == ([], [])


class TestRateLimit:
    def test_no_more_than_the_rate_over_all_threads(self):
        slept = []
        limit = RateLimit(100, slept.append)
        moment = [0.0]
        clock = pytest.MonkeyPatch()
        with clock.context() as patch:
            patch.setattr(rate_limit, "time", types.SimpleNamespace(monotonic=lambda: moment[0] + sum(slept)))
            limit._due = 0.0
            for _ in range(5):
                limit.spend(50)
        assert sum(slept) == pytest.approx(2.5)
        assert max(slept) <= 1

    def test_waiting_ends_when_the_check_raises(self):
        def refuse():
            raise UploadLost("enough")

        with pytest.raises(UploadLost):
            RateLimit(1).spend(1000, refuse)


class TestCommand:
    def test_it_tells_each_image_and_ends_with_0(self, place, storelib):
        image = place.image()
        response = storelib(
            *("image", "move", "--config", place.config, "--from", "old", "--to", "new"), "--linger", "0"
        )
        assert (response.code, response.err) == (0, "")
        assert response.out.decode().splitlines() == [
            f"{image}\t{len(DATA)}\tmoved\t",
            "database and stores agree: 1 locations",
        ]

    def test_json(self, place, storelib):
        image = place.image()
        config = ("--config", place.config, "--format", "json", "--linger", "0")
        response = storelib("image", "move", "--from", "old", "--to", "new", *config)
        assert (response.code, response.document) == (
            0,
            {"image": image, "size": len(DATA), "state": "moved", "detail": ""},
        )

    def test_a_dry_run_changes_nothing(self, place, storelib):
        image = place.image()
        config = ("--config", place.config, "--format", "json")
        response = storelib("image", "move", "--from", "old", "--to", "new", "--dry-run", *config)
        assert (response.code, response.document["image"], response.document["state"]) == (0, image, "would move")
        assert (place.where(image), (place.directory / "new").exists()) == (["old"], False)
        assert place.repository.processes.list() == []

    def test_what_is_left_decides_the_exit_code(self, place, storelib):
        spoiled = place.image()
        place.path(spoiled).write_bytes(OTHER)
        config = ("--config", place.config, "--linger", "0")
        response = storelib("image", "move", "--from", "old", "--to", "new", *config)
        assert (response.code, f"image {spoiled} is not moved" in response.err) == (9, True)

    def test_what_is_in_use_ends_with_6(self, place, storelib):
        image = place.image()
        other = place.repository.processes.join("elsewhere", 1)
        place.repository.uploads.begin(image, other.id, from_=("active",), to=None, stores=("mem",))
        beat = threading.Event()

        def live():
            while not beat.wait(0.1):
                place.repository.processes.heartbeat(other.id)

        thread = threading.Thread(target=live)
        thread.start()
        config = ("--config", place.config, "--linger", "0")
        response = storelib("image", "move", "--from", "old", "--to", "new", *config)
        beat.set()
        thread.join()
        assert response.code == 6

    def test_an_orphan_in_the_old_store_is_told(self, place, storelib):
        open_store("file", filesystem_store_datadir=str(place.directory / "old")).add("orphan", DATA)
        config = ("--config", place.config, "--format", "json", "--linger", "0")
        response = storelib("image", "move", "--from", "old", "--to", "new", *config)
        assert (response.code, response.document["kind"], response.document["image"]) == (9, "orphan", "orphan")

    def test_it_has_no_url(self, place, storelib):
        config = ("--config", place.config)
        response = storelib("image", "--url", "http://x", "move", "--from", "old", "--to", "new", *config)
        assert (response.code, "no --url" in response.err) == (2, True)

    def test_a_store_that_is_not_there_is_an_error(self, place, storelib):
        response = storelib("image", "move", "--from", "odl", "--to", "new", "--config", place.config)
        assert (response.code, "did you mean old?" in response.err) == (2, True)

    @pytest.mark.parametrize(
        ("text", "rate"),
        [("1", 1), ("500k", 512000), ("80M", 80 << 20), ("1.5G", 1.5 * (1 << 30)), ("2MiB/s", 2 << 20)],
    )
    def test_rates(self, text, rate):
        from storelib.cli.parameters import Rate

        assert Rate().convert(text, None, None) == rate

    @pytest.mark.parametrize("text", ["", "0", "-1", "fast", "1X", "nan"])
    def test_no_rates(self, place, storelib, text):
        config = ("--config", place.config)
        response = storelib("image", "move", "--from", "old", "--to", "new", "--rate", text, *config)
        assert response.code == 2


def test_an_image_of_the_database_changes_like_any_other(place):
    """A version that was read before the move is not written over it."""
    image = place.image()
    before = place.repository.images.get(image)
    place.move()
    with pytest.raises(Exception, match="changed by another"):
        place.repository.images.update(before, Changes(tags=frozenset({"t"})))

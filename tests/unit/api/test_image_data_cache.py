# SPDX-License-Identifier: Apache-2.0
"""The image cache in one process: what is filled, what is served from it and to whom, and what leaves it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import subprocess
import sys
import threading
import time
import uuid

import pytest
from deployment import Deployed, Deployment

from storelib.api.db.cached import Hits, NewCached
from storelib.api.db.records import Changes
from storelib.api.service.cache import filling, keeping
from storelib.api.service.cache.directory import Directory, is_alive
from storelib.driver import Reader
from storelib.exceptions import BadStoreConfiguration, DigestMismatch, NotFound
from storelib.registry import open_store
from storelib.transfer.contract import Digest

#: Several blocks, and no multiple of one.
DATA = bytes(range(251)) * 12_000
HALF = len(DATA) // 2
LIMIT = 4 * len(DATA)


class Gate:
    """Stands before a memory store: counts who reads, and lets so many bytes through."""

    def __init__(self, store, patch, bytes_at_first=None) -> None:
        self.opened = 0
        self.let = threading.Condition()
        self.allowed = 1 << 60 if bytes_at_first is None else bytes_at_first
        original = store.open_reader

        def open_reader(location, offset, length, context):
            self.opened += 1
            return Gated(self, original(location, offset, length, context))

        patch.setattr(store, "open_reader", open_reader)

    def open(self) -> None:
        with self.let:
            self.allowed = 1 << 60
            self.let.notify_all()


class Gated(Reader):
    def __init__(self, gate, inner) -> None:
        self._gate, self._inner, self.size = gate, inner, inner.size

    def read_into(self, offset, view):
        with self._gate.let:
            assert self._gate.let.wait_for(lambda: offset < self._gate.allowed, 20)
            ready = min(len(view), self._gate.allowed - offset)
        return self._inner.read_into(offset, view[:ready])


class Cached(Deployed):
    """One API with a cache for the tests of a class, and what they look at."""

    options = {"image_cache_max_size": LIMIT, "image_cache_stall_time": 3600}  # noqa: RUF012

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _deployed(cls, tmp_path_factory):
        directory = tmp_path_factory.mktemp("api")
        cls.api = Deployment(directory, image_cache_dir=directory / "cache", **cls.options)
        yield
        cls.api.close()
        del cls.api

    @pytest.fixture(autouse=True)
    def _empty(self, _deployed):
        yield
        self.settle()
        self.api.admin.delete("/v2/cache")

    @property
    def place(self):
        return self.api.directory / "cache"

    @property
    def keeper(self):
        return self.api.service.cache._keeper

    @property
    def store(self):
        return self.api.registry["mem"]

    def files(self):
        return sorted(path.name.partition(".")[0] for path in (self.place / "entries").iterdir())

    def unfinished(self):
        return list((self.place / "incomplete").iterdir())

    def settle(self):
        for thread in list(self.keeper.reading._threads):
            thread.join(20)
            assert not thread.is_alive()

    def image(self, data=DATA, **values):
        """An image in the memory store."""
        image_id = self.api.alice.create(**values)
        assert self.api.alice.upload(image_id, data, x_image_meta_store="mem").status_code == 204
        return image_id

    def cached(self, data=DATA):
        image_id = self.image(data)
        assert self.api.alice.download(image_id).content == data
        self.settle()
        assert image_id in self.files()
        return image_id

    def listed(self):
        return self.api.admin.get("/v2/cache").json

    def stream(self, image_id, service=None):
        """The bytes of a download, read by the test itself."""
        found = (service or self.api.service).data.download(self.api.context, image_id)
        return found.data.data


@pytest.fixture(autouse=True)
def _context(request):
    if request.instance is not None and hasattr(request.instance, "api"):
        from storelib.api.context import administrator

        request.instance.api.context = administrator()


def wait_until(done):
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


class TestDownloads(Cached):
    def test_a_download_fills_the_cache_and_the_next_one_needs_no_store(self, monkeypatch):
        gate = Gate(self.store, monkeypatch)
        image_id = self.cached()
        for _ in range(2):
            response = self.api.alice.download(image_id)
            assert response.content == DATA
            assert self.api.alice.get(f"/v1/images/{image_id}").content == DATA
            assert response.headers["Content-MD5"] == self.api.alice.show(image_id)["checksum"]
        assert gate.opened == 1

    def test_a_hit_leaves_as_the_file_that_it_is(self):
        image_id = self.cached()
        with self.stream(image_id) as stream:
            assert os.readlink(f"/proc/self/fd/{stream.fileno()}").startswith(str(self.place / "entries"))

    def test_a_range_comes_from_the_cache(self, monkeypatch):
        image_id = self.cached()
        gate = Gate(self.store, monkeypatch)
        response = self.api.alice.download(image_id, Range="bytes=1000-1999")
        assert response.status_code == 206
        assert response.headers["Content-Range"] == f"bytes 1000-1999/{len(DATA)}"
        assert response.content == DATA[1000:2000]
        assert self.api.alice.download(image_id, Range="bytes=-5").content == DATA[-5:]
        assert self.api.alice.download(image_id, Range=f"bytes={len(DATA)}-").status_code == 416
        assert gate.opened == 0

    def test_a_range_of_what_is_not_cached_fills_nothing(self):
        image_id = self.image()
        assert self.api.alice.download(image_id, Range="bytes=7-9").content == DATA[7:10]
        assert self.files() == []
        assert self.unfinished() == []

    def test_a_range_of_what_is_on_its_way_to_the_disk_needs_no_store(self, monkeypatch):
        image_id = self.image()
        gate, sync = Gate(self.store, monkeypatch), threading.Event()
        monkeypatch.setattr(os, "fdatasync", lambda file: sync.wait(20))
        assert self.api.alice.download(image_id).content == DATA
        try:
            assert self.files() == []
            assert self.api.alice.download(image_id, Range="bytes=7-9").content == DATA[7:10]
            listed = []
            waiting = threading.Thread(target=lambda: listed.append(self.listed()["cached_images"]))
            waiting.start()
        finally:
            sync.set()
        waiting.join(20)
        assert [each["image_id"] for each in listed[0]] == [image_id]
        assert gate.opened == 1

    def test_if_range_holds_for_hits(self):
        image_id = self.cached()
        tag = f'"{self.api.alice.show(image_id)["os_hash_value"]}"'
        assert self.api.alice.download(image_id, Range="bytes=0-3", If_Range=tag).status_code == 206
        whole = self.api.alice.download(image_id, Range="bytes=0-3", If_Range='"other"')
        assert (whole.status_code, whole.content) == (200, DATA)

    def test_concurrent_readers_are_served_by_one_read_of_the_store(self, monkeypatch):
        image_id = self.image()
        gate = Gate(self.store, monkeypatch, HALF)
        responses = []
        threads = [threading.Thread(target=lambda: responses.append(self.api.alice.download(image_id).content))]
        threads += [threading.Thread(target=lambda: responses.append(self.read_elsewhere(image_id))) for _ in range(2)]
        threads += [
            threading.Thread(target=lambda: responses.append(b"".join(self.stream(image_id)))) for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: gate.opened)
        gate.open()
        for thread in threads:
            thread.join(20)
        assert responses == [DATA] * 8
        assert gate.opened == 1

    def read_elsewhere(self, image_id):
        """As another process of the host reads."""
        other = self.api.another_process()
        try:
            with self.stream(image_id, other) as stream:
                return b"".join(stream)
        finally:
            other.stop()
            other.core.repository.close()

    def test_others_follow_also_when_this_process_begins_no_more(self, monkeypatch):
        from storelib.api.service.cache import reading

        image_id, other = self.image(), self.image()
        gate = Gate(self.store, monkeypatch, HALF)
        monkeypatch.setattr(reading, "FILLS", 1)
        with self.stream(image_id) as first, self.stream(image_id) as second:
            assert first.read(10) == second.read(10) == DATA[:10]
            gate.open()
            assert self.api.alice.download(other).content == DATA
            assert second.read() == DATA[10:]
        assert gate.opened == 2
        self.settle()
        assert self.files() == [image_id]

    def test_without_another_thread_an_image_is_read_from_its_store(self, monkeypatch):
        image_id = self.image()

        def fail(*_):
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", fail)
            assert self.api.alice.download(image_id).content == DATA
        assert (self.files(), self.unfinished()) == ([], [])

    def test_the_first_reader_gets_bytes_before_the_store_has_given_all(self, monkeypatch):
        image_id = self.image()
        gate = Gate(self.store, monkeypatch, HALF)
        with self.stream(image_id) as stream:
            assert stream.read(1000) == DATA[:1000]
            gate.open()
            assert stream.read() == DATA[1000:]

    def test_a_fill_without_readers_is_dropped_when_less_than_half_is_there(self, monkeypatch):
        image_id = self.image()
        gate = Gate(self.store, monkeypatch, 1000)
        with self.stream(image_id) as stream:
            stream.read(10)
        gate.open()
        self.settle()
        assert (self.files(), self.unfinished()) == ([], [])

    def test_a_fill_without_readers_is_finished_when_more_than_half_is_there(self, monkeypatch):
        image_id = self.image()
        gate = Gate(self.store, monkeypatch, HALF + 1)
        with self.stream(image_id) as stream:
            stream.read(HALF + 1)
        gate.open()
        self.settle()
        assert (self.files(), self.unfinished()) == ([image_id], [])

    def test_a_fill_goes_on_for_those_who_still_read(self, monkeypatch):
        image_id = self.image()
        gate = Gate(self.store, monkeypatch, 1000)
        with self.stream(image_id) as stays:
            with self.stream(image_id) as leaves:
                leaves.read(10)
            gate.open()
            assert stays.read() == DATA
        assert gate.opened == 1

    def test_a_fill_goes_on_for_those_who_read_in_other_processes(self, monkeypatch):
        image_id = self.image()
        gate = Gate(self.store, monkeypatch, 1000)
        other = self.api.another_process()
        leaves, stays = self.stream(image_id), self.stream(image_id, other)
        leaves.read(10)
        assert stays.read(10) == DATA[:10]
        leaves.close()
        gate.open()
        with stays:
            assert stays.read() == DATA[10:]
        other.stop()
        other.core.repository.close()
        assert gate.opened == 1

    @pytest.mark.parametrize("late", [False, True], ids=["while it comes", "when it was found wrong"])
    def test_wrong_bytes_never_count(self, late):
        image_id = self.image()
        image = self.store.backend.images[image_id]
        self.store.backend.images[image_id].data = b"x" + image.data[1:]
        stream = self.stream(image_id)
        if late:
            self.settle()
        with pytest.raises(Exception, match="throw away|cut"), stream:
            stream.read()
        self.settle()
        assert (self.files(), self.unfinished()) == ([], [])

    def test_data_of_another_length_never_counts(self):
        image_id = self.image()
        self.store.backend.images[image_id].data = DATA[:-1]
        assert self.api.alice.download(image_id).status_code == 503
        assert (self.files(), self.unfinished()) == ([], [])

    def test_what_the_store_does_not_have_is_said_as_without_a_cache(self):
        image_id = self.image()
        del self.store.backend.images[image_id]
        assert self.api.alice.download(image_id).status_code == 404
        assert self.unfinished() == []

    def test_a_store_that_fails_in_the_middle_leaves_nothing(self, monkeypatch):
        image_id = self.image()
        original = Gated.read_into
        broken = threading.Event()

        def read_into(reader, offset, view):
            if offset >= 1000 and not broken.is_set():
                broken.set()
                raise NotFound("gone")
            return original(reader, offset, view)

        Gate(self.store, monkeypatch, 1000).allowed = 1 << 60
        monkeypatch.setattr(Gated, "read_into", read_into)
        monkeypatch.setattr(filling, "BLOCK", 1000)
        # The reader goes on with the store, which has it again.
        assert self.api.alice.download(image_id).content == DATA
        self.settle()
        assert (self.files(), self.unfinished()) == ([], [])

    def test_a_disk_that_is_full_ends_the_fill_and_not_the_download(self, monkeypatch):
        image_id = self.image()
        write, written = os.write, []

        def full(file, data):
            if os.readlink(f"/proc/self/fd/{file}").startswith(str(self.place)) and sum(written) > HALF:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(len(data))
            return write(file, data)

        monkeypatch.setattr(os, "write", full)
        assert self.api.alice.download(image_id).content == DATA
        self.settle()
        assert (self.files(), self.unfinished()) == ([], [])

    def test_a_store_that_gives_no_ranges_is_read_again_from_the_start(self, monkeypatch):
        from storelib.api.errors import BadRequest

        reads = []

        def store(offset):
            reads.append(offset)
            if offset:
                raise BadRequest("only whole images")
            return self.api.service.data.read(self.api.context, image)

        image = self.api.repository.images.get(self.image())
        (self.place / "entries").mkdir(parents=True, exist_ok=True)
        path = self.place / "half"
        path.write_bytes(DATA[:HALF])
        reader = filling.FollowingReader(os.open(path, os.O_RDONLY), len(DATA), None, store)
        view, position = memoryview(bytearray(len(DATA))), 0
        while position < len(DATA):
            position += reader.read_into(position, view[position:])
        reader.close()
        path.unlink()
        assert bytes(view) == DATA
        assert reads == [HALF, 0]


class TestWho(Cached):
    def test_a_hit_is_for_those_who_may_download(self):
        image_id = self.cached()
        assert self.api.bob.download(image_id).status_code == 404
        assert self.api.nobody.download(image_id).status_code in (401, 404)
        # Readers of the project may not.
        assert self.api.colleague.download(image_id).status_code == 403

    def test_a_deactivated_image_leaves_the_cache_and_stays_out(self):
        image_id = self.cached()
        assert self.api.admin.post(f"/v2/images/{image_id}/actions/deactivate").status_code == 204
        assert self.files() == []
        assert self.api.alice.download(image_id).status_code == 403
        assert self.api.admin.download(image_id).content == DATA
        self.settle()
        assert self.files() == []
        assert self.listed()["cached_images"] == []

    def test_a_deleted_image_leaves_the_cache(self):
        image_id = self.cached()
        assert self.api.alice.delete(f"/v2/images/{image_id}").status_code == 204
        assert self.files() == []
        assert self.listed()["cached_images"] == []

    def test_an_image_that_is_deleted_while_it_is_filled_never_gets_in(self, monkeypatch):
        image_id = self.image()
        gate = Gate(self.store, monkeypatch, HALF + 1)
        with self.stream(image_id) as stream:
            stream.read(HALF)
            assert self.api.alice.delete(f"/v2/images/{image_id}").status_code == 204
            gate.open()
            # Its readers go on.
            assert stream.read() == DATA[HALF:]
            self.settle()
        assert (self.files(), self.unfinished()) == ([], [])

    def test_an_image_that_another_process_deletes_while_it_is_filled_never_gets_in(self, monkeypatch):
        image_id = self.image()
        gate = Gate(self.store, monkeypatch, HALF + 1)
        with self.stream(image_id) as stream:
            stream.read(HALF)
            self.api.repository.images.transition(image_id, from_=("active",), to="deactivated")
            gate.open()
            self.settle()
        assert (self.files(), self.unfinished()) == ([], [])

    def test_other_data_under_the_same_id_is_not_what_is_cached(self):
        image_id = self.cached()
        image = self.api.repository.images.get(image_id)
        other = DATA[::-1]
        self.store.backend.images[image_id].data = other
        self.api.repository.images.update(image, Changes(values={"checksum": None, "os_hash_value": None}))
        assert self.api.alice.download(image_id).content == other
        self.settle()
        self.keeper.tend()
        assert self.files() == [image_id]
        assert self.api.alice.download(image_id).content == other

    def test_who_chooses_the_store_gets_what_is_there(self, monkeypatch):
        image_id = self.cached()
        gate = Gate(self.store, monkeypatch)
        assert self.api.admin.get(f"/v2/images/{image_id}/file?prefer=mem").content == DATA
        assert gate.opened == 1


class TestRoom(Cached):
    def test_the_images_used_least_recently_make_room(self):
        first, second, third, fourth = (self.cached() for _ in range(4))
        self.api.alice.download(first)
        fifth = self.cached()
        assert self.files() == sorted([first, third, fourth, fifth])
        assert [each["image_id"] for each in self.listed()["cached_images"]] == [fifth, first, fourth, third]
        assert second not in self.files()

    def test_an_image_that_is_too_large_for_the_cache_is_read_from_the_store(self):
        image_id = self.image(bytes(LIMIT + 1))
        before = self.files()
        assert len(self.api.alice.download(image_id).content) == LIMIT + 1
        assert (self.files(), self.unfinished()) == (before, [])

    def test_what_is_being_filled_counts(self, monkeypatch):
        slow = [self.image() for _ in range(4)]
        gate = Gate(self.store, monkeypatch, HALF)
        streams = [self.stream(image_id) for image_id in slow]
        fast = self.image(b"small")
        assert self.api.alice.download(fast).content == b"small"
        assert len(self.unfinished()) == 4
        gate.open()
        for stream in streams:
            assert stream.read() == DATA
            stream.close()
        self.settle()
        assert self.files() == sorted(slow)

    def test_a_reader_goes_on_when_its_image_makes_room(self):
        image_id = self.cached()
        with self.stream(image_id) as stream:
            assert stream.read(1000) == DATA[:1000]
            others = [self.cached() for _ in range(4)]
            assert self.files() == sorted(others)
            assert stream.read() == DATA[1000:]

    def test_a_lower_limit_is_kept_by_pruning(self):
        old, new = self.cached(), self.cached()
        self.keeper._directory.limit = len(DATA)
        try:
            response = self.api.admin.post("/v2/cache/prune")
        finally:
            self.keeper._directory.limit = LIMIT
        assert response.json == {"total_files_pruned": 1, "total_bytes_pruned": len(DATA)}
        assert self.files() == [new]
        assert [each["image_id"] for each in self.listed()["cached_images"]] == [new]
        assert old != new


class TestQueue(Cached):
    def test_a_queued_image_is_fetched_in_the_background(self):
        image_id = self.image()
        assert self.api.admin.put(f"/v2/cache/{image_id}").status_code == 202
        self.api.settle()
        assert self.files() == [image_id]
        listed = self.listed()
        assert listed["queued_images"] == []
        [cached] = listed["cached_images"]
        assert {name: cached[name] for name in ("image_id", "size", "hits")} == {
            "image_id": image_id,
            "size": len(DATA),
            "hits": 0,
        }
        assert abs(cached["last_modified"] - time.time()) < 60

    def test_an_image_without_bytes_is_cached_like_others(self, monkeypatch):
        image_id = self.image(b"")
        assert self.api.admin.put(f"/v2/cache/{image_id}").status_code == 202
        self.api.settle()
        [cached] = self.listed()["cached_images"]
        assert (cached["image_id"], cached["size"]) == (image_id, 0)
        gate = Gate(self.store, monkeypatch)
        assert self.api.alice.download(image_id).content == b""
        assert gate.opened == 0
        assert self.api.admin.delete("/v2/cache").status_code == 204
        assert self.api.alice.download(image_id).content == b""
        self.settle()
        assert self.files() == [image_id]

    def test_an_image_is_never_out_of_sight_between_queue_and_cache(self, monkeypatch):
        image_id = self.image()
        self.keeper.enqueue(image_id)
        queued = self.api.repository.cached.queued

        def fetched_meanwhile(node):
            found = queued(node)
            self.keeper.fetch(image_id)
            return found

        monkeypatch.setattr(self.api.repository.cached, "queued", fetched_meanwhile)
        listed = self.listed()
        assert [each["image_id"] for each in listed["cached_images"]] == [image_id]
        assert listed["queued_images"] == []

    def test_what_cannot_be_read_stays_queued_and_is_tried_again(self, monkeypatch):
        image_id = self.image()
        image = self.store.backend.images.pop(image_id)
        assert self.api.admin.put(f"/v2/cache/{image_id}").status_code == 202
        self.api.settle()
        assert self.listed() == {"cached_images": [], "queued_images": [image_id]}
        self.store.backend.images[image_id] = image
        self.keeper.tend()
        self.api.settle()
        assert self.files() == []  # not before the interval is over
        monkeypatch.setattr(self.api.service.core.options, "cache_prefetcher_interval", 0)
        self.keeper.tend()
        self.api.settle()
        assert self.files() == [image_id]
        assert self.listed()["queued_images"] == []

    def test_images_that_are_gone_leave_the_queue(self):
        image_id = str(uuid.uuid4())
        assert self.api.admin.put(f"/v2/queued_images/{image_id}").status_code == 200
        self.api.settle()
        assert self.listed()["queued_images"] == []

    def test_what_is_downloaded_meanwhile_leaves_the_queue(self):
        image_id = self.image()
        self.keeper.enqueue(image_id)
        assert self.api.alice.download(image_id).content == DATA
        self.settle()
        assert self.listed()["queued_images"] == []

    @pytest.mark.parametrize("older", [False, True])
    def test_only_administrators_use_it(self, older):
        image_id = self.image()
        paths = ("cached_images", "queued_images") if older else ("cache",)
        for path in paths:
            assert self.api.alice.get(f"/v2/{path}").status_code == 403
            assert self.api.alice.delete(f"/v2/{path}").status_code == 403
            assert self.api.alice.delete(f"/v2/{path}/{image_id}").status_code == 403
        assert self.api.alice.put(f"/v2/{paths[-1]}/{image_id}").status_code == 403
        for path in ("prune", "clean"):
            assert self.api.alice.post(f"/v2/cache/{path}").status_code == 403
        assert self.api.alice.get(f"/v2/cache/nodes/{image_id}").status_code == 403

    def test_images_that_cannot_be_cached_are_refused(self):
        assert self.api.admin.put(f"/v2/cache/{uuid.uuid4()}").status_code == 404
        assert self.api.admin.put(f"/v2/cache/{self.api.alice.create()}").status_code == 400

    def test_one_image_is_deleted_from_both(self):
        image_id, other = self.cached(), self.cached()
        queued = self.image()
        self.keeper.enqueue(queued)
        assert self.api.admin.delete(f"/v2/cache/{image_id}").status_code == 204
        assert self.api.admin.delete(f"/v2/cache/{queued}").status_code == 204
        assert self.api.admin.delete(f"/v2/cache/{queued}").status_code == 204
        assert self.api.admin.delete(f"/v2/cache/{uuid.uuid4()}").status_code == 404
        assert self.files() == [other]
        assert self.listed()["queued_images"] == []

    @pytest.mark.parametrize(("target", "left"), [("cache", (0, 1)), ("queue", (1, 0)), ("", (0, 0))])
    def test_both_or_one_are_cleared(self, target, left):
        self.cached()
        self.keeper.enqueue(self.image())
        headers = {"x-image-cache-clear-target": target} if target else {}
        assert self.api.admin.request("DELETE", "/v2/cache", headers).status_code == 204
        listed = self.listed()
        assert (len(listed["cached_images"]), len(listed["queued_images"])) == left
        assert len(self.files()) == left[0]

    def test_nothing_else_can_be_cleared(self):
        headers = {"x-image-cache-clear-target": "all"}
        assert self.api.admin.request("DELETE", "/v2/cache", headers).status_code == 400

    @pytest.mark.parametrize("prefix", ["/v1", "/v2"])
    def test_the_older_paths_do_the_same(self, prefix):
        image_id, queued = self.cached(), self.image()
        self.keeper.enqueue(queued)
        admin = self.api.admin
        [cached] = admin.get(f"{prefix}/cached_images").json["cached_images"]
        assert cached["image_id"] == image_id
        assert admin.get(f"{prefix}/queued_images").json == {"queued_images": [queued]}
        assert admin.delete(f"{prefix}/queued_images/{queued}").status_code == 200
        assert admin.delete(f"{prefix}/queued_images").json == {"num_deleted": 0}
        assert admin.delete(f"{prefix}/cached_images/{image_id}").status_code == 200
        assert self.files() == []
        self.cached()
        assert admin.delete(f"{prefix}/cached_images").json == {"num_deleted": 1}

    def test_the_hosts_that_have_an_image_are_told(self):
        image_id = self.cached()
        assert self.api.admin.get(f"/v2/cache/nodes/{image_id}").json == [keeping._host()]
        assert self.api.admin.get(f"/v2/cache/nodes/{self.image()}").json == []
        assert self.api.admin.get(f"/v2/cache/nodes/{uuid.uuid4()}").status_code == 404

    def test_uses_are_counted(self):
        image_id = self.cached()
        for _ in range(3):
            self.api.alice.download(image_id)
        [cached] = self.listed()["cached_images"]
        assert cached["hits"] == 3
        assert cached["last_accessed"] >= cached["last_modified"]

    def test_uses_that_cannot_be_noted_now_are_noted_later(self, monkeypatch):
        image_id = self.cached()
        self.api.alice.download(image_id)
        with monkeypatch.context() as patch:
            patch.setattr(self.api.repository.cached, "note", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                self.keeper.note_hits()
        self.api.alice.download(image_id)
        [cached] = self.listed()["cached_images"]
        assert cached["hits"] == 2

    def test_the_versions_say_that_there_is_a_cache(self):
        versions = {each["id"]: each["status"] for each in self.api.nobody.get("/versions").json["versions"]}
        assert versions["v2.18"] == "CURRENT"
        assert versions["v2.14"] == versions["v2.16"] == versions["v2.17"] == "SUPPORTED"

    def test_what_comes_from_where_is_counted(self):
        def metric(name):
            [line] = [each for each in self.api.nobody.get("/metrics").text.splitlines() if each.startswith(name)]
            return float(line.rpartition(" ")[2])

        names = ("hits", "misses", "bytes_sent")
        before = {name: metric(f"storelib_api_cache_{name}_total") for name in names}
        image_id = self.cached()
        self.api.alice.download(image_id)
        self.api.alice.download(image_id, Range="bytes=0-9")
        after = {name: metric(f"storelib_api_cache_{name}_total") - before[name] for name in names}
        assert after == {"hits": 2, "misses": 1, "bytes_sent": len(DATA) + 10}


class TestTrouble(Cached):
    def test_rows_that_are_missing_or_too_many_are_put_right(self):
        image_id = self.cached()
        tables, node = self.api.repository.cached, self.keeper.node
        tables.remove(node, [image_id])
        ghost = str(uuid.uuid4())
        tables.add(node, "host", [NewCached(ghost, 5, 1.0, 1.0)])
        tables.note(node, {ghost: Hits(7, 8.0)})
        assert self.api.alice.download(image_id).content == DATA
        self.keeper.tend()
        assert [each["image_id"] for each in self.listed()["cached_images"]] == [image_id]

    def test_a_file_that_was_cut_is_not_served(self):
        image_id = self.cached()
        [path] = (self.place / "entries").iterdir()
        os.truncate(path, 100)
        assert self.api.alice.download(image_id).content == DATA
        self.settle()
        assert (self.place / "entries" / path.name).stat().st_size == len(DATA)

    def test_files_of_images_that_others_deleted_are_removed(self):
        image_id = self.cached()
        self.api.repository.images.transition(image_id, from_=("active",), to="deactivated")
        self.keeper.tend()
        assert self.files() == []
        assert self.listed()["cached_images"] == []

    def test_foreign_files_are_left_alone(self):
        self.cached()
        foreign = [self.place / "entries" / "notes.txt", self.place / "incomplete" / "other"]
        for path in foreign:
            path.write_text("mine")
        self.keeper.tend()
        assert self.api.admin.delete("/v2/cache").status_code == 204
        for path in foreign:
            assert path.read_text() == "mine"
            path.unlink()

    def test_a_cache_whose_directory_was_removed_begins_anew(self):
        import shutil

        image_id = self.cached()
        shutil.rmtree(self.place)
        assert self.api.alice.download(image_id).content == DATA
        self.settle()
        assert self.files() == [image_id]
        self.keeper.tend()
        assert [each["image_id"] for each in self.listed()["cached_images"]] == [image_id]

    def test_an_id_of_the_cache_that_is_garbage_is_made_anew(self):
        self.cached()
        (self.place / "id").write_bytes(b"\xff\0")
        self.keeper.tend()
        assert uuid.UUID(self.keeper.node)
        assert len(self.listed()["cached_images"]) == 1

    def test_a_link_to_a_directory_will_do(self, tmp_path):
        (tmp_path / "there").mkdir()
        (tmp_path / "cache").symlink_to("there")
        api = Deployment(tmp_path, image_cache_dir=tmp_path / "cache")
        image_id = api.alice.active(DATA)
        assert api.alice.download(image_id).content == DATA
        assert [each["image_id"] for each in api.admin.get("/v2/cache").json["cached_images"]] == [image_id]
        (api.directory / "images" / image_id).unlink()
        assert api.alice.download(image_id).content == DATA
        api.close()

    def test_what_nobody_adds_to_is_dropped(self, monkeypatch):
        image_id = self.image()
        gate = Gate(self.store, monkeypatch, HALF)
        with self.stream(image_id) as stream:
            stream.read(1000)
            monkeypatch.setattr(self.api.service.core.options, "image_cache_stall_time", -60)
            assert self.api.admin.post("/v2/cache/clean").status_code == 200
            assert self.unfinished() == []
            gate.open()
            assert stream.read() == DATA[1000:]
        self.settle()
        assert self.files() == []

    def test_the_lock_of_a_frozen_process_keeps_nobody_from_reading(self, monkeypatch):
        from storelib.api.service.cache import directory

        image_id = self.image()
        monkeypatch.setattr(directory, "LOCK_TIMEOUT", 0.05)
        with self.keeper._directory._locked():
            assert self.api.alice.download(image_id).content == DATA
        assert self.files() == []


class TestUnusable(Cached):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _deployed(cls, tmp_path_factory):
        directory = tmp_path_factory.mktemp("api")
        # No user, root included, makes a directory below a file.
        (directory / "file").write_text("in the way")
        cls.api = Deployment(directory, image_cache_dir=directory / "file" / "cache")
        yield
        cls.api.close()
        del cls.api

    def test_requests_go_on_without_a_directory(self, caplog):
        image_id = self.image()
        for _ in range(3):
            assert self.api.alice.download(image_id).content == DATA
        complaints = [each for each in caplog.messages if "image_cache_dir" in each]
        assert len(complaints) == 1
        assert str(self.api.directory) not in complaints[0]

    def test_the_cache_says_that_it_cannot_be_used(self):
        image_id = self.image()
        for method, path in (("GET", "/v2/cache"), ("PUT", f"/v2/cache/{image_id}"), ("POST", "/v2/cache/prune")):
            response = self.api.admin.request(method, path)
            assert response.status_code == 503, path
            assert str(self.api.directory) not in response.text
        assert self.api.alice.delete(f"/v2/images/{image_id}").status_code == 204


class TestWithout(Deployed):
    def test_there_is_none_where_none_is_configured(self):
        image_id = self.api.alice.active()
        for method, path in (("GET", "/v2/cache"), ("PUT", f"/v2/cache/{image_id}"), ("DELETE", "/v2/cache")):
            assert self.api.admin.request(method, path).status_code == 404
            assert self.api.alice.request(method, path).status_code == 403
        assert self.api.alice.download(image_id).content == b"the data"
        versions = {each["id"]: each["status"] for each in self.api.nobody.get("/versions").json["versions"]}
        assert versions["v2.17"] == "CURRENT"


class TestSomeStores(Cached):
    options = {"image_cache_stores": "spare", "image_cache_management": "false"}  # noqa: RUF012

    def test_only_images_of_the_stores_that_are_named_are_cached(self):
        image_id = self.image()
        assert self.api.alice.download(image_id).content == DATA
        self.settle()
        slow = self.api.alice.create()
        self.api.alice.upload(slow, DATA, x_image_meta_store="spare")
        assert self.api.alice.download(slow).content == DATA
        self.settle()
        assert self.files() == [slow]

    def test_stores_that_are_not_there_are_refused(self, tmp_path):
        with pytest.raises(BadStoreConfiguration, match="image_cache_stores = spar.*did you mean spare"):
            Deployment(tmp_path, image_cache_dir=tmp_path / "cache", image_cache_stores="mem,spar")

    def test_the_older_paths_can_be_left_out(self):
        assert self.api.admin.get("/v2/cached_images").status_code == 404
        assert self.api.admin.get("/v2/cache").status_code == 200

    def test_the_directory_is_no_place_of_a_store(self, tmp_path):
        for place in (tmp_path / "images", tmp_path / "images" / "cache", tmp_path):
            with pytest.raises(BadStoreConfiguration, match="image_cache_dir and store fast"):
                Deployment(tmp_path, image_cache_dir=place)


# -- the directory alone


def test_what_is_put_together_of_file_and_store_is_compared_with_the_digest(tmp_path):
    path, digest = tmp_path / "half", Digest("sha512", hashlib.sha512(DATA).hexdigest())
    path.write_bytes(DATA[:HALF])
    store = open_store("memory", "mem")
    uri, replaced = store.add("right", DATA).uri, store.add("wrong", DATA[::-1]).uri
    for source, fits in ((uri, True), (replaced, False)):
        file = os.open(path, os.O_RDONLY)
        reader = filling.FollowingReader(
            file, len(DATA), None, lambda offset, source=source: store.get(source, offset), digest
        )
        view, position = memoryview(bytearray(len(DATA))), 0
        with contextlib.nullcontext() if fits else pytest.raises(DigestMismatch):
            while position < len(DATA):
                position += reader.read_into(position, view[position:][:100_000])
        reader.close()
        assert (position == len(DATA)) is fits


def test_what_was_just_begun_can_be_read_though_it_is_removed(tmp_path):
    directory = Directory(str(tmp_path), 1000)
    begun = directory.begin(f"{uuid.uuid4()}.{'0' * 32}", 4)
    directory.remove(begun.image_id)
    file = directory.open_to_read(begun)
    os.write(begun.file, b"data")
    assert os.read(file, 10) == b"data"
    assert is_alive(file)
    os.close(begun.file)
    assert not is_alive(file)
    os.close(file)


def test_nobody_waits_for_a_file_that_does_not_grow(tmp_path):
    directory = Directory(str(tmp_path), 1000)
    name = f"{uuid.uuid4()}.{'0' * 32}"
    begun = directory.begin(name, 10)
    os.utime(begun.path, (0, 0))
    assert directory.begin(name, 10) is None
    os.write(begun.file, b"more")
    again = directory.begin(name, 10)
    assert again.mine is False
    os.close(again.file)
    os.close(begun.file)


def test_what_a_killed_process_was_filling_is_removed_and_filled_anew(tmp_path):
    name = f"{uuid.uuid4()}.{'0' * 32}"
    program = (
        "import sys, time\n"
        "from storelib.api.service.cache.directory import Directory\n"
        "begun = Directory(sys.argv[1], 1000).begin(sys.argv[2], 10)\n"
        "print(begun.mine, flush=True)\n"
        "time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, tmp_path, name], stdout=subprocess.PIPE, text=True)
    directory = Directory(str(tmp_path), 1000)
    try:
        assert child.stdout.readline() == "True\n"
        assert directory.tidy(3600) == 0
        begun = directory.begin(name, 10)
        assert begun.mine is False
        os.close(begun.file)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    begun = directory.begin(name, 10)
    assert begun.mine is True
    assert [each.path for each in directory.unfinished()] == [begun.path]
    os.close(begun.file)
    assert directory.tidy(3600) == 1
    assert directory.unfinished() == []


def test_a_file_is_complete_only_when_it_is_published(tmp_path):
    directory = Directory(str(tmp_path), 1000)
    name = f"{uuid.uuid4()}.{'0' * 32}"
    begun = directory.begin(name, 4)
    os.write(begun.file, b"data")
    os.utime(begun.file, (1, 1))
    assert directory.entries() == []
    directory.publish(begun)
    os.close(begun.file)
    assert [(each.name, each.size) for each in directory.entries()] == [(name, 4)]
    # Used now, however long it took.
    assert all(abs(each.used - time.time()) < 60 for each in directory.entries())
    again = directory.begin(name, 4)
    assert again.mine is False
    os.close(again.file)


def test_nothing_makes_room_for_what_would_not_fit(tmp_path):
    directory = Directory(str(tmp_path), 100)
    for _ in range(2):
        begun = directory.begin(f"{uuid.uuid4()}.{'0' * 32}", 40)
        os.write(begun.file, bytes(40))
        directory.publish(begun)
        os.close(begun.file)
    assert directory.begin(f"{uuid.uuid4()}.{'0' * 32}", 101) is None
    assert len(directory.entries()) == 2

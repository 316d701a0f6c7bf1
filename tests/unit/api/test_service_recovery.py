# SPDX-License-Identifier: Apache-2.0
"""Processes that die, databases that go away, changes that race: nothing stays saving, nothing leaks."""

from __future__ import annotations

import gc
import io
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
from deployment import OCTETS, Deployment, add_location

from storelib.api.db.records import NewLocation
from storelib.api.db.schema import images, processes
from storelib.api.errors import DatabaseUnavailable, OutcomeUnknown, StaleImage, Unavailable
from storelib.api.service import Operation, Service, Source, administrator
from storelib.api.service import lease as lease_module
from storelib.api.service.deletion import finish_deletion, scrub
from storelib.api.service.lease import Lease, this_host
from storelib.drivers.filesystem import publication
from storelib.exceptions import InUseByStore, RemoteServiceUnavailable
from storelib.testing.threads import started_threads

DATA = b"some data " * 100


@pytest.fixture
def api(tmp_path):
    deployment = Deployment(tmp_path)
    yield deployment
    deployment.close()


def die_in_mid_upload(api, service, image, when):
    """Let ``service`` upload and stop in the middle as if its process were killed, without any cleaning up."""
    store = api.registry["fast"]
    if when == "stored":
        store.add(image, DATA)
    service.core.repository.uploads.begin(image, service.lease.id, stores=["fast"])


class TestDeadProcess:
    # Python 3.12 and later warn of forking with threads, which is what gunicorn does as well.
    @pytest.mark.filterwarnings("ignore:.*fork")
    def test_a_process_killed_while_it_writes_leaves_nothing(self, api):
        image = api.alice.create()
        reading, writing = os.pipe()

        class Stalls:
            sent = 0

            def read(self, size):
                self.sent += 1
                if self.sent > 20:
                    os.write(writing, b"!")
                    time.sleep(60)
                return b"x" * size

        child = os.fork()
        if child == 0:
            try:
                api.service.data.upload(administrator(), image, Source(Stalls(), None))
            finally:
                os._exit(1)
        assert os.read(reading, 1) == b"!"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
        assert api.alice.show(image)["status"] == "saving"
        restarted = api.another_process()
        restarted.start()
        assert api.alice.show(image)["status"] == "queued"
        assert api.files() == []
        restarted.stop()
        restarted.core.repository.close()

    @pytest.mark.parametrize("when", ["begun", "stored"])
    def test_its_upload_is_undone_by_another(self, api, when):
        image = api.alice.create()
        other = api.another_process()
        die_in_mid_upload(api, other, image, when)
        assert api.alice.show(image)["status"] == "saving"
        other.core.repository.processes.leave(other.lease.id)
        api.service.lease.beat()
        assert api.alice.show(image)["status"] == "queued"
        assert api.files() == []
        assert api.alice.upload(image, DATA).status_code == 204
        other.core.repository.close()

    def test_a_living_process_is_left_alone(self, api):
        image = api.alice.create()
        other = api.another_process()
        die_in_mid_upload(api, other, image, "begun")
        api.service.lease.beat()
        assert api.alice.show(image)["status"] == "saving"
        other.stop()
        other.core.repository.close()

    def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(self, api):
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        image = api.alice.create()
        process = api.repository.processes.join(this_host(), gone.pid)
        api.repository.uploads.begin(image, process.id, stores=["fast"])
        api.service.start()
        assert api.alice.show(image)["status"] == "queued"

    def test_a_process_of_another_machine_is_waited_for(self, api):
        image = api.alice.create()
        process = api.repository.processes.join("elsewhere", os.getpid())
        api.repository.uploads.begin(image, process.id, stores=["fast"])
        api.service.start()
        assert api.alice.show(image)["status"] == "saving"

    def test_an_image_that_was_deleted_meanwhile_leaves_nothing(self, api):
        image = api.alice.create()
        other = api.another_process()
        die_in_mid_upload(api, other, image, "stored")
        assert api.alice.delete(f"/v2/images/{image}").status_code == 204
        other.core.repository.processes.leave(other.lease.id)
        api.service.lease.beat()
        assert api.files() == []
        other.core.repository.close()

    @pytest.mark.parametrize("status", ["uploading", "importing"])
    def test_what_it_staged_is_removed_and_its_task_has_failed(self, api, status):
        image = api.alice.create()
        other = api.another_process()
        other.imports.staging._store.add(image, DATA)
        other.data.begin(api.repository.images.get(image), from_=("queued",), to=status, stores=["fast"])
        other.tasks.begin(administrator(), image, "api_image_import", {}, ["fast"])
        api.repository.processes.leave(other.lease.id)
        api.service.lease.beat()
        assert api.alice.show(image)["status"] == "queued"
        assert list((api.directory / "staging").iterdir()) == []
        [task] = api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        assert task["status"] == "failure"
        shown = api.alice.show(image)
        assert (shown["os_glance_failed_import"], shown["os_glance_importing_to_stores"]) == ("fast", "")
        other.core.repository.close()

    def test_an_import_of_what_was_staged_is_undone(self, api):
        image = api.alice.create()
        assert api.alice.request("PUT", f"/v2/images/{image}/stage", OCTETS, body=DATA).status_code == 204
        other = api.another_process()
        other.data.begin(api.repository.images.get(image), from_=("uploading",), to="importing", stores=["fast"])
        api.repository.processes.leave(other.lease.id)
        api.service.lease.beat()
        assert api.alice.show(image)["status"] == "queued"
        assert list((api.directory / "staging").iterdir()) == []
        assert api.alice.upload(image, DATA).status_code == 204
        other.core.repository.close()

    def test_an_upload_that_cannot_be_undone_does_not_hinder_others(self, api, monkeypatch):
        first, second = sorted(api.alice.create() for _ in range(2))
        other = api.another_process()
        for image in (first, second):
            die_in_mid_upload(api, other, image, "stored")
        api.repository.processes.leave(other.lease.id)
        garbage = api.registry["fast"].garbage

        def break_down(older_than, prefix):
            if prefix == first:
                raise ZeroDivisionError
            return garbage(older_than, prefix)

        with monkeypatch.context() as patch:
            patch.setattr(api.registry["fast"], "garbage", break_down)
            api.service.lease.beat()
            assert [api.alice.show(image)["status"] for image in (first, second)] == ["saving", "queued"]
        api.service.lease.beat()
        assert api.alice.show(first)["status"] == "queued"
        assert api.files() == []
        other.core.repository.close()

    def die_beside(self, api, monkeypatch, image):
        """Die in mid-upload to a store that is away from then on; returns what ends both."""
        other = api.another_process()
        die_in_mid_upload(api, other, image, "stored")
        api.repository.processes.leave(other.lease.id)

        def away(*given):
            raise RemoteServiceUnavailable("not now")

        patch = monkeypatch.context()
        patch.__enter__().setattr(api.registry["fast"], "garbage", away)
        return lambda: (patch.__exit__(None, None, None), other.core.repository.close())

    def test_an_image_does_not_wait_for_the_store_that_it_was_written_to(self, api, monkeypatch):
        image = api.alice.create()
        back = self.die_beside(api, monkeypatch, image)
        api.service.lease.beat()
        assert api.alice.show(image)["status"] == "queued"
        assert api.alice.upload(image, DATA, x_image_meta_store="mem").status_code == 204
        back()
        api.service.lease.scrub()
        assert api.files() == []
        assert api.alice.download(image).content == DATA

    def test_what_is_left_of_an_image_that_was_deleted_is_removed_when_the_store_is_back(self, api, monkeypatch):
        image = api.alice.create()
        back = self.die_beside(api, monkeypatch, image)
        assert api.alice.delete(f"/v2/images/{image}").status_code == 204
        api.service.lease.beat()
        assert api.repository.uploads.get(image) is None
        back()
        api.service.lease.scrub()
        assert api.files() == []

    def test_work_that_is_begun_again_waits_for_its_store(self, api, monkeypatch):
        image = api.alice.create()
        back = self.die_beside(api, monkeypatch, image)
        api.repository.jobs.put(api.repository.uploads.get(image).ticket, "import", {}, "alpha")
        api.service.lease.beat()
        assert (api.alice.show(image)["status"], api.files()) == ("saving", [image])
        assert api.repository.locations.pending_for(image) == []
        back()
        api.service.lease.beat()
        assert (api.repository.jobs.exists(image), api.files()) == (True, [])

    def test_what_may_be_in_a_store_that_is_not_configured_here_is_not_forgotten(self, api, monkeypatch):
        image = api.alice.create()
        other = api.another_process()
        other.core.repository.uploads.begin(image, other.lease.id, stores=["of others"])
        api.repository.processes.leave(other.lease.id)
        api.service.lease.beat()
        assert api.alice.show(image)["status"] == "queued"
        [left] = api.repository.locations.pending_for(image)
        assert (left.status, left.metadata["store"]) == ("leftover", "of others")
        other.core.repository.close()

    def test_a_process_that_was_taken_for_dead_joins_again(self, api):
        first = api.service.lease.id
        api.repository.processes.leave(first)
        api.service.lease.beat()
        assert api.service.lease.id != first
        api.alice.active(DATA)

    def test_an_upload_that_was_taken_over_leaves_no_data(self, api):
        image = api.alice.create()

        class Slow:
            def read(inner, size):  # noqa: N805
                api.repository.processes.leave(api.service.lease.id)
                other = api.another_process()
                other.lease.beat()
                other.stop()
                other.core.repository.close()
                return b""

        with pytest.raises(Exception, match="another one gave the upload up"):
            api.service.data.upload(administrator(), image, Source(Slow(), None))
        assert api.files() == []

    def test_an_upload_that_was_taken_over_spares_the_next_one(self, api, monkeypatch):
        """A process that slept between storing and recording must not delete what was uploaded since."""
        image = api.alice.create()
        finish = api.repository.uploads.finish

        def sleep(*given, **more):
            monkeypatch.undo()
            api.repository.processes.leave(api.service.lease.id)
            other = api.another_process()
            other.lease.beat()
            other.data.upload(administrator(), image, Source(io.BytesIO(b"newer data")))
            other.stop()
            other.core.repository.close()
            return finish(*given, **more)

        monkeypatch.setattr(api.repository.uploads, "finish", sleep)
        assert api.alice.upload(image, DATA).status_code == 503
        assert api.alice.download(image).content == b"newer data"

    def test_an_upload_that_was_taken_over_gives_way_to_the_next_one(self, api, monkeypatch):
        """A process that slept in the middle must not win the place in the store from who came since."""
        image, other = api.alice.create(), api.another_process()
        asleep, awake = threading.Event(), threading.Event()

        class Sleeps(io.BytesIO):
            def read(self, size=-1):
                if self.tell() and not asleep.is_set():
                    asleep.set()
                    assert awake.wait(20)
                return super().read(size)

        class Wakes(io.BytesIO):
            def read(self, size=-1):
                if not awake.is_set():
                    awake.set()
                    with pytest.raises(Unavailable, match="another one gave the upload up"):
                        first.result(20)
                return super().read(size)

        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(api.service.data.upload, administrator(), image, Source(Sleeps(DATA)))
            assert asleep.wait(20)
            api.repository.processes.leave(api.service.lease.id)
            other.lease.beat()
            # The first has slept since the boot, which is longer than its lease lasts.
            monkeypatch.setattr(api.service.lease, "_seen", 0)
            other.data.upload(administrator(), image, Source(Wakes(b"newer data")))
        other.stop()
        other.core.repository.close()
        assert api.alice.download(image).content == b"newer data"


class TestTokens:
    """What undoes one upload never meets a later one of the same image."""

    @pytest.mark.parametrize("committed", [True, False])
    def test_a_failed_upload_whose_end_was_not_confirmed_spares_the_next(self, api, monkeypatch, committed):
        image = api.alice.create()
        finish = api.repository.uploads.finish

        def lose(*given, **more):
            monkeypatch.undo()
            if committed:
                finish(*given, **more)
            raise OutcomeUnknown("lost")

        class Broken:
            def read(self, size):
                raise OSError("client gone")

        monkeypatch.setattr(api.repository.uploads, "finish", lose)
        with pytest.raises(Exception, match="connection was lost"):
            api.service.data.upload(administrator(), image, Source(Broken(), None))
        if not committed:
            api.service.lease.beat()
            assert api.alice.upload(image, DATA).status_code == 204
            return

        class RecoversMeanwhile(io.BytesIO):
            def read(self, size=-1):
                api.service.lease.beat()
                return super().read(size)

        api.service.data.upload(administrator(), image, Source(RecoversMeanwhile(DATA), None))
        api.service.lease.beat()
        assert api.alice.download(image).content == DATA

    def test_a_begin_that_was_not_confirmed_is_undone(self, api, monkeypatch):
        image = api.alice.create()
        begin = api.repository.uploads.begin

        def lose(*given, **more):
            monkeypatch.undo()
            begin(*given, **more)
            raise OutcomeUnknown("lost")

        monkeypatch.setattr(api.repository.uploads, "begin", lose)
        assert api.alice.upload(image, DATA).status_code == 503
        api.service.lease.beat()
        assert api.alice.upload(image, DATA).status_code == 204
        api.service.lease.beat()
        assert api.alice.download(image).content == DATA

    def test_nobody_uploads_while_an_upload_is_undone(self, api, monkeypatch):
        image = api.alice.create()
        other = api.another_process()
        die_in_mid_upload(api, other, image, "stored")
        api.repository.processes.leave(other.lease.id)
        store, met = api.registry["fast"], []
        find = type(store).find_image

        def look(self, image_id):
            met.append(api.alice.upload(image, b"newer").status_code)
            return find(self, image_id)

        monkeypatch.setattr(type(store), "find_image", look)
        api.service.lease.beat()
        monkeypatch.undo()
        assert set(met) == {409}
        assert api.alice.upload(image, b"newer").status_code == 204
        assert api.alice.download(image).content == b"newer"
        other.core.repository.close()

    def test_who_undoes_and_sleeps_meanwhile_spares_what_came_since(self, api, monkeypatch):
        image = api.alice.create()
        other = api.another_process()
        die_in_mid_upload(api, other, image, "stored")
        api.repository.processes.leave(other.lease.id)
        store = api.registry["fast"]
        find = type(store).find_image

        def sleep(self, image_id):
            monkeypatch.undo()
            api.repository.processes.leave(api.service.lease.id)
            third = api.another_process()
            third.lease.beat()
            third.data.upload(administrator(), image, Source(io.BytesIO(b"newer"), None))
            third.stop()
            third.core.repository.close()
            return find(self, image_id)

        monkeypatch.setattr(type(store), "find_image", sleep)
        api.service.lease.beat()
        api.service.lease.beat()
        assert api.alice.download(image).content == b"newer"
        other.core.repository.close()

    @pytest.mark.parametrize("step", ["inspected", "watching", "_check", "record"])
    @pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
    def test_whatever_is_raised_on_the_way_leaves_nothing(self, api, monkeypatch, step, error):
        image = api.alice.create()

        def fail(*given, **more):
            raise error

        where = (api.repository.uploads, "finish") if step == "record" else (api.service.data, step)
        with monkeypatch.context() as patch:
            patch.setattr(*where, fail)
            with pytest.raises(error):
                api.service.data.upload(administrator(), image, Source(io.BytesIO(DATA), None))
        api.service.lease.beat()
        assert api.alice.show(image)["status"] == "queued"
        assert api.files() == []


class TestClocks:
    def test_a_clock_that_jumps_kills_nobody(self, api, monkeypatch):
        image = api.alice.create()
        other = api.another_process()
        die_in_mid_upload(api, other, image, "begun")
        # As if the time of day had been an hour ago when it was seen.
        api.repository.database.write(lambda c: c.execute(processes.update().values(seen_at=1)))
        api.service.lease.recover()
        assert api.alice.show(image)["status"] == "saving"
        api.repository.database.write(lambda c: c.execute(processes.update().values(ticks=1)))
        api.service.lease.recover()
        assert api.alice.show(image)["status"] == "queued"
        other.core.repository.close()


class TestOutage:
    @pytest.fixture
    def later(self, api, monkeypatch):
        """Have the process renew every five seconds, and let some pass."""
        lease = api.service.lease
        lease.beat()
        monkeypatch.setattr(lease, "_every", 5.0)

        def later(seconds):
            moment = lease_module.ticks()
            monkeypatch.setattr(lease_module, "ticks", lambda: moment + seconds * 1_000_000)
            lease.beat()

        return later

    def all_run_out(self, api, **only):
        api.repository.database.write(
            lambda c: c.execute(processes.update().filter_by(**only).values(seen_at=1, ticks=1))
        )

    def test_the_first_to_be_back_takes_nobody_for_dead(self, api, later):
        image = api.alice.create()
        other = api.another_process()
        die_in_mid_upload(api, other, image, "begun")
        self.all_run_out(api)
        later(0)
        assert other.core.repository.processes.heartbeat(other.lease.id)
        later(60)
        assert api.alice.show(image)["status"] == "saving"
        other.core.repository.close()

    def test_one_that_does_not_come_back_is_dead(self, api, later):
        image = api.alice.create()
        other = api.another_process()
        die_in_mid_upload(api, other, image, "begun")
        self.all_run_out(api, id=other.lease.id)
        later(0)
        later(9)
        assert api.alice.show(image)["status"] == "saving"
        later(2)
        assert api.alice.show(image)["status"] == "queued"
        other.core.repository.close()


class TestDatabaseTrouble:
    def upload_with(self, api, monkeypatch, error, *, after):
        image = api.alice.create()
        finish = api.repository.uploads.finish

        def fail(*arguments, **more):
            if after:
                finish(*arguments, **more)
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(api.repository.uploads, "finish", fail)
            assert api.alice.upload(image, DATA).status_code == 503
        return image

    def test_a_database_that_is_away_at_the_end_leaves_nothing(self, api, monkeypatch):
        image = self.upload_with(api, monkeypatch, DatabaseUnavailable("away"), after=False)
        assert api.files() == []
        api.service.lease.beat()
        assert api.alice.show(image)["status"] == "queued"

    def test_a_mistake_at_the_end_leaves_nothing(self, api, monkeypatch):
        image = api.alice.create()

        def fail(*arguments, **more):
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(api.repository.uploads, "finish", fail)
            assert api.alice.upload(image, DATA).status_code == 500
        api.service.lease.beat()
        assert api.alice.show(image)["status"] == "queued"
        assert api.files() == []

    def test_a_commit_that_did_not_happen_is_undone(self, api, monkeypatch):
        image = self.upload_with(api, monkeypatch, OutcomeUnknown("lost"), after=False)
        api.service.lease.beat()
        assert api.alice.show(image)["status"] == "queued"
        assert api.files() == []

    def test_a_commit_that_did_happen_is_kept(self, api, monkeypatch):
        image = self.upload_with(api, monkeypatch, OutcomeUnknown("lost"), after=True)
        api.service.lease.beat()
        assert api.alice.show(image)["status"] == "active"
        assert api.alice.download(image).content == DATA

    @pytest.mark.parametrize("work", [Lease.renew, Lease.recover, Lease.scrub])
    def test_a_database_that_is_away_is_one_line_in_the_log(self, api, monkeypatch, caplog, work):
        lease, stop = api.service.lease, threading.Event()

        def fail(lease):
            stop.set()
            raise DatabaseUnavailable("the database is away")

        fail.__name__ = work.__name__
        monkeypatch.setattr(Lease, work.__name__, fail)
        if work is Lease.scrub:
            lease_module._scrub(weakref.ref(lease))
        else:
            lease_module._run(weakref.ref(lease), fail, stop, 0.0, threading.Barrier(1))
        [record] = caplog.records
        assert (record.getMessage(), record.exc_info) == (f"{work.__name__} has to wait: the database is away", None)


class TestOlderServers:
    """Those of the version before begin an upload where something of the image is still to be deleted."""

    @pytest.mark.parametrize("known", [True, False])
    def test_what_they_write_is_not_taken_for_what_was_left(self, api, known):
        image, store, lease = api.alice.create(), api.registry["fast"], api.service.lease
        uri = store.add(image, DATA).uri
        left = NewLocation(uri if known else "", {"store": "fast"})
        if not known:
            store.delete(uri)
        uploads = api.repository.uploads
        uploads.begin(image, lease.id, stores=["fast"])
        uploads.finish(image, lease.id, to="queued", left=[left])
        # Without asking what is left.
        uploads.begin(image, lease.id, stores=["fast"])
        if not known:
            store.add(image, DATA)
        lease.scrub()
        uploads.finish(image, lease.id, to="active", locations=[NewLocation(uri, {"store": "fast"})], size=len(DATA))
        lease.scrub()
        assert api.files() == [image]
        assert api.repository.locations.pending_for(image) == []


class TestRaces:
    def test_changes_of_different_properties_are_all_there(self, api):
        image = api.alice.create()
        names = [f"p{number}" for number in range(6)]
        responses = []

        def change(name):
            responses.append(api.alice.patch(image, {"op": "add", "path": f"/{name}", "value": "x"}).status_code)

        threads = [threading.Thread(target=change, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert responses == [200] * 6
        assert set(names) <= set(api.alice.show(image))

    def test_a_change_that_never_gets_through_is_a_conflict(self, api, monkeypatch):
        image = api.alice.create()

        def stale(*arguments):
            raise StaleImage("changed")

        monkeypatch.setattr(api.repository.images, "update", stale)
        with pytest.raises(StaleImage):
            api.service.images.update(administrator(), image, [Operation("add", ("a",), "x")])

    def test_of_racing_deletions_one_is_done_and_the_data_is_gone(self, api):
        image = api.alice.active(DATA)
        responses = []
        threads = [
            threading.Thread(target=lambda: responses.append(api.alice.delete(f"/v2/images/{image}").status_code))
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert responses.count(204) == 1
        assert set(responses) <= {204, 403, 404, 409}
        assert api.files() == []


class TestThreads:
    def test_they_renew_and_recover_until_the_service_stops(self, api):
        image = api.alice.create()
        process = api.repository.processes.join("elsewhere", 1)
        api.repository.uploads.begin(image, process.id, stores=["fast"])
        service = Service(api.conf, api.repository, api.registry, renew=0.05)
        with started_threads() as mine:
            service.start()
        assert {thread.name for thread in mine} == {"storelib-renew", "storelib-recover"}
        api.repository.processes.leave(process.id)
        deadline = time.monotonic() + 60
        while api.alice.show(image)["status"] != "queued" and time.monotonic() < deadline:
            time.sleep(0.02)
        assert api.alice.show(image)["status"] == "queued"
        service.stop()
        assert not any(thread.is_alive() for thread in mine)

    def test_a_service_that_is_forgotten_ends_its_threads(self, api):
        service = Service(api.conf, api.repository, api.registry, renew=0.05)
        with started_threads() as mine:
            service.start()
        del service
        deadline = time.monotonic() + 60
        while any(thread.is_alive() for thread in mine) and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.02)
        assert not any(thread.is_alive() for thread in mine)


class TestInterruptedDeletion:
    @pytest.mark.parametrize(
        ("table", "method"),
        [
            ("uploads", "begin_deletion"),
            ("locations", "pending_for"),
            ("locations", "forget"),
            ("images", "transition"),
        ],
    )
    @pytest.mark.parametrize("after", [False, True])
    @pytest.mark.parametrize("again", ["client", "process"])
    def test_one_whose_transaction_fails_is_finished_soon(self, api, monkeypatch, table, method, after, again):
        image = api.alice.active(DATA)
        table = getattr(api.repository, table)
        real = getattr(table, method)

        def fail(*given, **more):
            monkeypatch.undo()
            if after:
                real(*given, **more)
            raise OutcomeUnknown("lost")

        monkeypatch.setattr(table, method, fail)
        assert api.alice.delete(f"/v2/images/{image}").status_code == 503
        if again == "process":
            api.service.lease.beat()
        if again == "client" or (method == "begin_deletion" and not after):
            assert api.alice.delete(f"/v2/images/{image}").status_code in (204, 404)
        assert api.alice.get(f"/v2/images/{image}").status_code == 404
        assert api.files() == []

    @pytest.mark.parametrize("deleted", [False, True])
    def test_what_a_dead_process_was_deleting_is_deleted_at_once_by_another(self, api, deleted):
        image = api.alice.active(DATA)
        other = api.another_process()
        other.core.repository.uploads.begin_deletion(image, other.lease.id, from_=("active",))
        if deleted:
            [location] = other.core.repository.locations.pending_for(image)
            other.core.delete_data(image, location, administrator())
        assert api.alice.show(image)["status"] == "pending_delete"
        other.core.repository.processes.leave(other.lease.id)
        api.service.lease.beat()
        assert api.alice.get(f"/v2/images/{image}").status_code == 404
        assert api.files() == []
        assert api.repository.locations.pending_for(image) == []
        other.core.repository.close()

    @pytest.mark.parametrize("away", [False, True])
    def test_what_a_dead_process_was_deleting_does_not_wait_for_the_next_scrub(self, api, monkeypatch, away):
        """Its claim comes to be after others have done its work: PostgreSQL goes on with what it was sent."""
        image = api.alice.active(DATA)
        [location] = api.repository.images.get(image).locations
        lease = api.service.lease
        lease.beat()
        api.repository.images.transition(image, from_=("active",), to="deleted")
        assert api.repository.locations.claim(image, location.id, "a process that is gone", "late")
        with monkeypatch.context() as patch:
            if away:
                patch.setattr(api.registry["fast"], "delete", mock.Mock(side_effect=RemoteServiceUnavailable("away")))
            lease.beat()
            assert api.files() == ([image] if away else [])
            # Then it is data like other that could not be deleted.
            assert api.repository.locations.claimed_by_dead() == []
        lease.beat()
        assert api.files() == ([image] if away else [])
        scrub(api.service.core, 0)
        assert api.files() == []

    def test_two_that_delete_at_once_ask_the_store_once(self, api, monkeypatch):
        image = api.alice.active(DATA)
        other = api.another_process()
        store, plain, calls = api.registry["fast"], api.registry["fast"].delete, []

        def delete(*given):
            calls.append(given)
            # In the middle of it another process takes its turn.
            other.lease.scrub()
            finish_deletion(other.core, administrator(), image, "active")
            plain(*given)

        monkeypatch.setattr(store, "delete", delete)
        assert api.alice.delete(f"/v2/images/{image}").status_code in (204, 404)
        assert len(calls) == 1
        assert api.files() == []
        assert api.repository.locations.pending_for(image) == []
        other.core.repository.close()

    def test_a_copy_that_came_to_a_place_where_a_deletion_was_not_recorded_stays(self, api, monkeypatch):
        image = api.alice.active(DATA)
        [location] = api.repository.images.get(image).locations
        add_location(api.repository, image, NewLocation("memory://elsewhere/x", {"store": "mem"}))
        api.repository.locations.drop(image, location.id)
        # The data was deleted, and nobody took note of it; then it came back.
        api.registry["fast"].delete(location.uri)
        again = api.registry["fast"].add(image, DATA)
        add_location(api.repository, image, NewLocation(again.uri, {"store": "fast"}))
        monkeypatch.setattr("storelib.api.service.lease.ABANDONED", -1.0)
        api.service.lease.scrub()
        assert image in api.files()

    @pytest.mark.parametrize("copier", ["living", "dead"])
    def test_one_that_met_a_copy_is_finished_when_the_copy_ends(self, api, copier):
        image = api.alice.active(DATA)
        other = api.another_process()
        writer = api.service if copier == "living" else other
        _, ticket = writer.data.begin(api.repository.images.get(image), from_=("active",), to=None, stores=["mem"])
        other.core.repository.uploads.begin_deletion(image, other.lease.id, from_=("active",))
        other.core.repository.processes.leave(other.lease.id)
        if copier == "living":
            api.service.data.give_up(ticket, None)
        else:
            api.service.lease.beat()
        assert api.alice.get(f"/v2/images/{image}").status_code == 404
        assert api.files() == []
        assert api.repository.uploads.get(image) is None
        other.core.repository.close()

    def test_one_that_met_a_copy_and_is_refused_leaves_a_deactivated_image_deactivated(self, api, monkeypatch):
        image = api.alice.active(DATA)
        _, ticket = api.service.data.begin(api.repository.images.get(image), from_=("active",), to=None, stores=["mem"])
        assert api.admin.post(f"/v2/images/{image}/actions/deactivate").status_code == 204
        api.repository.uploads.begin_deletion(image, api.service.lease.id, from_=("active", "deactivated"))

        def refuse(*given):
            raise InUseByStore("mapped by a host")

        monkeypatch.setattr(api.registry["fast"], "delete", refuse)
        api.service.data.give_up(ticket, None)
        shown = api.alice.show(image)
        assert (shown["status"], [name for name in shown if name.startswith("os_glance")]) == ("deactivated", [])

    def test_a_deletion_that_others_finished_succeeds(self, api, monkeypatch):
        image = api.alice.active(DATA)
        delete = api.service.core.delete_data

        def slow(image_id, location, context):
            other = api.another_process()
            other.core.repository.processes.leave(api.service.lease.id)
            other.lease.beat()
            other.stop()
            other.core.repository.close()
            delete(image_id, location, context)

        monkeypatch.setattr(api.service.core, "delete_data", slow)
        assert api.alice.delete(f"/v2/images/{image}").status_code == 204
        assert api.files() == []

    def test_an_image_whose_deletion_stopped_half_way_is_deleted_in_the_end(self, api, monkeypatch):
        image = api.alice.active(DATA)
        api.repository.images.transition(image, from_=("active",), to="pending_delete")
        monkeypatch.setattr("storelib.api.service.lease.ABANDONED", -1.0)
        api.service.lease.scrub()
        assert api.alice.get(f"/v2/images/{image}").status_code == 404
        assert api.files() == []

    def test_what_a_process_moved_aside_that_was_killed_while_it_deleted_goes_with_the_image(self, api, monkeypatch):
        image = api.alice.active(DATA)
        [location] = api.repository.images.get(image).locations
        api.repository.images.transition(image, from_=("active",), to="pending_delete")

        class Killed(BaseException):
            pass

        def kill(*given):
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(publication, "_unlink", kill)
            patch.setattr(publication, "put_back", lambda *given: None)
            with pytest.raises(Killed):
                api.registry["fast"].delete(location.uri)
        monkeypatch.setattr("storelib.api.service.lease.ABANDONED", -1.0)
        api.service.lease.scrub()
        assert api.repository.locations.pending_for(image) == []
        assert [path for path in (api.directory / "images").rglob("*") if path.is_file()] == []

    def test_a_deletion_that_began_while_the_clock_was_ahead_is_done(self, api):
        image = api.alice.active(DATA)
        api.repository.images.transition(image, from_=("active",), to="pending_delete")
        ahead = images.update().values(updated_at=images.c.updated_at + 86400 * 1_000_000)
        api.repository.database.write(lambda connection: connection.execute(ahead))
        api.service.lease.scrub()
        assert api.alice.get(f"/v2/images/{image}").status_code == 404

    def test_a_store_that_is_away_is_asked_once_and_does_not_keep_the_others(self, api, monkeypatch):
        images = [api.alice.active(DATA) for _ in range(3)]
        for image in images:
            add_location(api.repository, image, NewLocation(api.registry["mem"].add(image, DATA).uri, {"store": "mem"}))
            # Nobody deletes the data now.
            api.repository.images.transition(image, from_=("active",), to="deleted")
        calls = []

        def away(*given):
            calls.append(given)
            raise RemoteServiceUnavailable("no answer")

        monkeypatch.setattr(api.registry["mem"], "delete", away)
        monkeypatch.setattr("storelib.api.service.lease.ABANDONED", -1.0)
        api.service.lease.scrub()
        assert len(calls) == 1
        assert api.files() == []
        monkeypatch.undo()
        monkeypatch.setattr("storelib.api.service.lease.ABANDONED", -1.0)
        api.service.lease.scrub()
        assert not any(image in api.registry["mem"].backend.images for image in images)

    def test_one_directory_of_a_store_that_is_away_does_not_keep_what_is_in_the_others(self, api, monkeypatch):
        away, second = [api.alice.active(DATA) for _ in range(2)]
        for image in (away, second):
            api.repository.images.transition(image, from_=("active",), to="deleted")
        store = api.registry["fast"]
        split = store.datadirs.split

        def elsewhere(location):
            directory, below = split(location)
            return (f"{directory}/away" if location.path.endswith(away) else directory), below

        store.datadirs.missing.clear()
        monkeypatch.setattr(store.datadirs, "split", elsewhere)
        monkeypatch.setattr("storelib.api.service.lease.ABANDONED", -1.0)
        api.service.lease.scrub()
        assert api.files() == [away]
        assert len(api.repository.locations.pending_for(away)) == 1


class TestStagedData:
    def stage(self, api):
        image = api.alice.create()
        assert api.alice.request("PUT", f"/v2/images/{image}/stage", OCTETS, body=DATA).status_code == 204
        return image

    def staged(self, api):
        return sorted(path.name for path in (api.directory / "staging").iterdir())

    def test_what_an_interrupted_deletion_left_is_removed(self, api):
        waiting, gone = self.stage(api), self.stage(api)
        api.repository.images.transition(gone, from_=("uploading",), to="deleted")
        (api.directory / "staging" / "of another program").write_bytes(DATA)
        api.service.lease.scrub()
        assert self.staged(api) == sorted([waiting, "of another program"])

    def test_what_is_being_staged_is_left_alone(self, api):
        image = api.alice.create()
        other = api.another_process()
        other.data.begin(api.repository.images.get(image), from_=("queued",), to="uploading", stores=())
        other.imports.staging._store.add(image, DATA)
        api.service.lease.scrub()
        assert self.staged(api) == [image]
        other.stop()
        other.core.repository.close()

    def test_an_image_that_is_staged_while_it_is_deleted_leaves_nothing(self, api, monkeypatch):
        image = api.alice.create()
        transition = api.repository.images.transition

        def stage_first(*given, **more):
            monkeypatch.undo()
            assert api.alice.request("PUT", f"/v2/images/{image}/stage", OCTETS, body=DATA).status_code == 204
            return transition(*given, **more)

        monkeypatch.setattr(api.repository.images, "transition", stage_first)
        assert api.alice.delete(f"/v2/images/{image}").status_code == 204
        assert self.staged(api) == []

    @pytest.mark.parametrize("committed", [True, False])
    def test_a_stage_of_which_the_commit_is_lost_is_there_or_not(self, api, monkeypatch, committed):
        image = api.alice.create()
        finish = api.repository.uploads.finish

        def lose(*given, **more):
            monkeypatch.undo()
            if committed:
                finish(*given, **more)
            raise OutcomeUnknown("lost")

        monkeypatch.setattr(api.repository.uploads, "finish", lose)
        assert api.alice.request("PUT", f"/v2/images/{image}/stage", OCTETS, body=DATA).status_code == 503
        api.service.lease.beat()
        assert api.alice.show(image)["status"] == ("uploading" if committed else "queued")
        assert self.staged(api) == ([image] if committed else [])


class TestForkedChild:
    # Python 3.12 and later warn of forking with threads, which is what gunicorn does as well.
    @pytest.mark.filterwarnings("ignore:.*fork")
    def test_a_child_has_a_lease_of_its_own(self, api):
        parent = api.service.lease.id
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writing, api.service.lease.id.encode())
            finally:
                os._exit(0)
        os.close(writing)
        os.waitpid(child, 0)
        with os.fdopen(reading) as pipe:
            assert pipe.read() not in ("", parent)
        assert api.service.lease.id == parent


class TestThreadsThatCannotStart:
    @pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("can't start new thread")], ids=repr)
    @pytest.mark.parametrize("name", ["storelib-renew", "storelib-recover"])
    def test_where_one_cannot_start_none_does_and_no_lease_stays(self, api, monkeypatch, name, error):
        start, started = threading.Thread.start, []

        def interrupted(thread):
            if thread.name == name:
                raise error
            started.append(thread)
            start(thread)

        known = {process.id for process in api.repository.processes.list()}
        lease = Lease(api.service.core, renew=60)
        monkeypatch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(type(error)) as caught:
            _ = lease.id
        monkeypatch.undo()
        assert caught.value is error
        assert not [thread for thread in started if thread.is_alive()]
        assert {process.id for process in api.repository.processes.list()} == known
        # The next one that needs it gets it, and threads that keep it.
        assert lease.id in {process.id for process in api.repository.processes.list()}
        mine = [thread for thread in lease._threads if thread.is_alive()]
        assert [thread.name for thread in mine] == ["storelib-renew", "storelib-recover"]
        lease.stop()
        assert not [thread for thread in mine if thread.is_alive()]

    def test_a_lease_that_was_half_begun_is_not_kept_without_threads(self, api, monkeypatch):
        lease = Lease(api.service.core, renew=60)

        def unavailable(own):
            raise DatabaseUnavailable("gone for a moment")

        monkeypatch.setattr(lease, "_expire_dead_local_peers", unavailable)
        with pytest.raises(DatabaseUnavailable):
            _ = lease.id
        monkeypatch.undo()
        _ = lease.id
        assert len(lease._threads) == 2
        lease.stop()

    def test_stopping_waits_for_a_scrub_that_began_meanwhile(self, api, monkeypatch):
        lease = Lease(api.service.core, renew=60)
        looked, stopping, scrubbing, ended = (threading.Event() for _ in range(4))

        def look_for_work():
            looked.set()
            assert stopping.wait(20)

        def scrub():
            scrubbing.set()
            time.sleep(0.05)
            ended.set()

        lease.on_waiting = look_for_work
        monkeypatch.setattr(lease, "scrub", scrub)
        _ = lease.id
        assert looked.wait(20)
        stop = threading.Thread(target=lease.stop)
        stop.start()
        assert lease._stop.wait(20)
        stopping.set()
        stop.join(20)
        assert scrubbing.is_set()
        assert ended.is_set()

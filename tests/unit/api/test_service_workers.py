# SPDX-License-Identifier: Apache-2.0
"""Work that other processes do: who takes it, what a process leaves that dies over it, and what the database tells."""

from __future__ import annotations

import contextlib
import json
import threading
import wsgiref.simple_server

import pytest
import sqlalchemy as sa
from deployment import OCTETS, Deployed
from web_servers import serving

from storelib.api import config
from storelib.api.context import Context
from storelib.api.db import open_repository
from storelib.api.db.schema import jobs, uploads
from storelib.api.errors import OutcomeUnknown
from storelib.api.service import Service, bus
from storelib.api.service.sealing import Sealing
from storelib.api.service.workers import Interrupted
from storelib.config import load_file
from storelib.exceptions import RemoteServiceUnavailable

DATA = b"imported data " * 1000
TIMEOUT = 60


class Told:
    """A bus on which nothing is heard."""

    def __init__(self):
        self.woken = 0

    def wake(self):
        self.woken += 1

    def listen(self, woken):
        pass


class Worker:
    """A worker process that does what it is told in this one; ``conf`` may be that of another host."""

    def __init__(self, api, conf=None):
        repository = open_repository(api.conf)
        api.repositories.append(repository)
        self.service = Service(conf or api.conf, repository, api.registry, renew=0, is_worker=True)
        assert self.service.lease.id

    def work(self):
        """Do what waits, and wait for its end."""
        self.service.background.fill()
        assert self.service.workers.wait(TIMEOUT)

    def die(self):
        """Leave without a word; the next one to look finds its lease run out."""
        self.service.background.close()
        self.service.core.repository.processes.leave(self.service.lease.id)


class WithWorkers(Deployed):
    @pytest.fixture(autouse=True)
    def told(self, monkeypatch):
        """The bus of the API."""
        told = Told()
        monkeypatch.setattr(self.api.service.background, "_bus", told)
        monkeypatch.setattr(self.api.service.lease, "on_waiting", self.api.service.background.look)
        return told

    @pytest.fixture
    def worker(self):
        with contextlib.ExitStack() as stack:
            found = Worker(self.api)
            stack.callback(found.service.lease.stop)
            yield found

    def staged(self, caller=None):
        caller = caller or self.api.alice
        image = caller.create()
        assert caller.request("PUT", f"/v2/images/{image}/stage", OCTETS, body=DATA).status_code == 204
        return image

    def start(self, image, caller=None, method="glance-direct", **more):
        asked = {"method": {"name": method}, **more}
        assert (caller or self.api.alice).post(f"/v2/images/{image}/import", asked).status_code == 202

    def status(self, image):
        return self.api.alice.show(image)["status"]

    def recover(self):
        """The API undoes, or has done again, what dead processes left."""
        self.api.service.lease.beat()

    def waiting(self):
        return self.api.repository.jobs.count_waiting()


class TestTaking(WithWorkers):
    def test_an_import_waits_for_a_worker_who_does_it(self, worker, told):
        image = self.staged()
        self.start(image, stores=["fast", "mem"])
        self.api.settle()
        assert (self.status(image), self.waiting(), told.woken) == ("importing", 1, 1)
        worker.work()
        assert (self.status(image), self.api.alice.show(image)["stores"]) == ("active", "fast,mem")
        assert self.api.alice.download(image).content == DATA
        assert self.waiting() == 0
        assert not list((self.api.directory / "staging").iterdir())

    def test_a_copy_waits_for_a_worker(self, worker):
        image = self.api.alice.active(DATA)
        self.start(image, self.api.admin, "copy-image", stores=["mem"])
        worker.work()
        assert self.api.alice.show(image)["stores"] == "fast,mem"

    def test_a_location_waits_for_a_worker(self, worker):
        place = self.api.registry["mem"].add("elsewhere", DATA).uri
        image = self.api.alice.create()
        assert self.api.admin.post(f"/v2/images/{image}/locations", {"url": place}).status_code == 202
        assert (self.status(image), self.waiting()) == ("importing", 1)
        worker.work()
        shown = self.api.alice.show(image)
        assert (shown["status"], shown["size"], bool(shown["os_hash_value"])) == ("active", len(DATA), True)

    def test_without_workers_the_api_does_it(self, told):
        image = self.staged()
        self.start(image)
        self.api.settle()
        assert (self.status(image), told.woken) == ("active", 0)

    def test_what_waits_for_workers_that_went_is_done_by_the_api(self, worker):
        image = self.staged()
        self.start(image)
        worker.die()
        assert self.status(image) == "importing"
        self.recover()
        self.api.settle()
        assert self.status(image) == "active"

    def test_a_program_that_is_no_server_does_it_not(self, worker):
        """Such as storelib image move, which has a lease, too."""
        image = self.staged()
        self.start(image)
        worker.die()
        program = self.api.another_process()
        program.lease.beat()
        assert program.workers.wait(TIMEOUT)
        assert (self.status(image), self.waiting()) == ("importing", 1)
        program.lease.stop()
        self.recover()
        self.api.settle()
        assert self.status(image) == "active"

    def test_an_image_that_was_deleted_meanwhile_is_forgotten(self, worker):
        image = self.staged()
        self.start(image)
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204
        worker.work()
        assert (self.api.repository.uploads.get(image), self.waiting()) == (None, 0)

    def test_a_failure_is_told_as_ever(self, worker, monkeypatch):
        image = self.staged()
        self.start(image, stores=["fast", "mem"])
        monkeypatch.setattr(self.api.registry["mem"], "open_writer", self.unavailable)
        worker.work()
        shown = self.api.alice.show(image)
        assert (shown["status"], shown["os_glance_failed_import"]) == ("queued", "fast,mem")
        assert self.waiting() == 0

    @staticmethod
    def unavailable(*arguments):
        raise RemoteServiceUnavailable("no", transient=False)

    def test_owners_take_turns(self, worker):
        """The one for whom the least is done comes first."""
        mine = [self.staged() for _ in range(3)]
        theirs = self.staged(self.api.bob)
        for image in mine:
            self.start(image)
        self.start(theirs, self.api.bob)
        taken = [self.take(worker).ticket.image_id for _ in range(4)]
        assert taken == [mine[0], theirs, *mine[1:]]

    def test_an_owner_for_whom_something_is_done_waits_where_there_is_no_room(self, worker):
        carol = self.api.caller("carol", "member", "reader")
        mine = [self.staged(carol) for _ in range(2)]
        for image in mine:
            self.start(image, carol)
        assert self.take(worker, owners_at_rest=True).ticket.image_id == mine[0]
        assert self.take(worker, owners_at_rest=True) is None

    def take(self, worker, **more):
        return self.api.repository.jobs.take(worker.service.lease.id, token=self.token(), **more)

    def token(self):
        self.count = getattr(self, "count", 0) + 1
        return f"token-{self.count}"


class TestDying(WithWorkers):
    def test_what_a_dead_worker_was_at_is_begun_again(self, worker, monkeypatch):
        """It has stored half, and the stage still is there."""
        image = self.staged()
        self.start(image)
        self.stop_in_the_middle(worker, monkeypatch)
        assert (self.status(image), self.waiting()) == ("importing", 0)
        worker.die()
        self.recover()
        self.api.settle()
        assert self.status(image) == "active"
        assert self.api.alice.download(image).content == DATA
        assert self.api.files().count(image) == 1

    def stop_in_the_middle(self, worker, monkeypatch):
        """The process ends when the data is in the store, and nothing of that is recorded."""

        def end(*arguments, **more):
            raise Interrupted

        with monkeypatch.context() as patch:
            patch.setattr(worker.service.data, "record", end)
            worker.work()

    def test_another_worker_takes_it(self, worker, monkeypatch):
        other = Worker(self.api)
        image = self.staged()
        self.start(image)
        self.stop_in_the_middle(worker, monkeypatch)
        worker.die()
        self.recover()
        assert (self.status(image), self.waiting()) == ("importing", 1)
        other.work()
        assert self.status(image) == "active"
        other.service.lease.stop()

    def test_what_kills_every_process_is_given_up(self, worker, monkeypatch):
        image = self.staged()
        self.start(image)
        for _ in range(3):
            killed = Worker(self.api)
            self.stop_in_the_middle(killed, monkeypatch)
            killed.die()
            self.recover()
        assert (self.status(image), self.waiting()) == ("queued", 0)
        [task] = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        assert task["status"] == "failure"
        assert image not in self.api.files()

    def test_an_answer_that_is_lost_when_it_is_taken_loses_nothing(self, worker, monkeypatch):
        image = self.staged()
        self.start(image)
        take = worker.service.core.repository.jobs.take

        def lose(*arguments, **more):
            monkeypatch.undo()
            take(*arguments, **more)
            raise OutcomeUnknown("lost")

        monkeypatch.setattr(worker.service.core.repository.jobs, "take", lose)
        with pytest.raises(OutcomeUnknown):
            worker.service.background.fill()
        worker.work()
        worker.service.lease.beat()
        worker.work()
        assert self.status(image) == "active"

    def test_an_api_process_that_dies_leaves_what_waits(self, worker):
        """The job is its own until a worker takes it."""
        image = self.staged()
        self.start(image)
        self.api.repository.processes.leave(self.api.service.lease.id)
        worker.service.lease.beat()
        worker.work()
        assert self.status(image) == "active"
        self.recover()


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


class TestStagedElsewhere(WithWorkers):
    """The API and its worker are on hosts that share no directory."""

    options = {"worker_self_reference_url": "http://127.0.0.1:1"}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def reachable(self, monkeypatch):
        """The host of the API, as other hosts see it."""
        server = wsgiref.simple_server.make_server("127.0.0.1", 0, self.api.wsgi, handler_class=Quiet)
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(self.api.service.core.options, "worker_self_reference_url", url)
        with serving(server):
            yield url

    @pytest.fixture
    def worker(self, tmp_path):
        path = tmp_path / "storelib.ini"
        here = (self.api.directory / "storelib.ini").read_text()
        path.write_text(here.replace(f"staging_dir = {self.api.directory}/staging", f"staging_dir = {tmp_path}"))
        conf = load_file(path)
        config.register_opts(conf)
        found = Worker(self.api, conf)
        yield found
        found.service.lease.stop()

    def test_a_worker_fetches_it(self, worker):
        image = self.staged()
        self.start(image)
        worker.work()
        assert self.status(image) == "active"
        assert self.api.alice.download(image).content == DATA
        properties = self.api.repository.images.get(image).properties
        assert not [name for name in properties if name.startswith("os_glance_stage")]
        self.api.service.lease.scrub()
        assert not (self.api.directory / "staging" / image).exists()

    def test_only_its_token_opens_it(self):
        image = self.staged()
        token = self.api.repository.images.get(image).properties["os_glance_stage_token"]
        other = self.api.repository.images.get(self.staged()).properties["os_glance_stage_token"]
        assert len(token) >= 32
        assert self.fetch(image, token) == (200, DATA)
        assert self.fetch(image, token, "HEAD") == (200, b"")
        for wrong in (other, token[:-1], "", "\xe4"):
            assert self.fetch(image, wrong) == (404, b"")
        assert self.fetch("none", token) == (404, b"")
        assert self.fetch(image, token, "DELETE") == (405, b"")
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204
        assert self.fetch(image, token) == (404, b"")

    def fetch(self, image, token, method="GET"):
        response = self.api.nobody.request(method, f"/staged?image={image}", {"X-Storelib-Staged": token})
        return response.status_code, response.content

    def test_nobody_is_told_the_token(self, worker, caplog):
        image = self.staged()
        token = self.api.repository.images.get(image).properties["os_glance_stage_token"]
        caplog.set_level("DEBUG")
        for caller in (self.api.alice, self.api.admin):
            assert token not in caller.get(f"/v2/images/{image}").text + caller.get("/v2/images").text
            assert token not in caller.get(f"/v1/images/{image}").headers.values()
        self.start(image)
        worker.work()
        assert self.status(image) == "active"
        assert token not in caplog.text + str(self.api.events)

    def test_a_host_that_is_away_fails_the_import(self, worker, monkeypatch):
        monkeypatch.setattr(self.api.service.core.options, "worker_self_reference_url", "http://127.0.0.1:1")
        image = self.staged()
        self.start(image)
        worker.work()
        [task] = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        assert (self.status(image), task["status"]) == ("queued", "failure")
        assert "another host" in task["message"]
        assert "127.0.0.1" not in task["message"]


class TestSecrets(WithWorkers):
    def test_the_token_of_a_caller_is_not_in_the_database(self, worker):
        context = Context("u", "alpha", ("member",), auth_token="TOKEN-OF-ALICE", catalog='["CATALOG"]', is_admin=True)
        image = self.api.repository.images.get(self.staged())
        ticket = self.api.service.lease.ticket(image.id)
        given = {"from_": ("uploading",), "to": "importing", "token": ticket.token}
        self.api.repository.uploads.begin(image.id, ticket.process_id, **given)
        self.api.service.background.start("seen", context, image, ticket, {"a": 1}, lambda: None)
        [row] = self.rows(jobs)
        assert not any(word in row.document for word in ("TOKEN", "CATALOG"))
        seen = []
        worker.service.background.handle("seen", lambda *arguments: seen.append(arguments))
        worker.work()
        [(found, taken, noted)] = seen
        assert (found.auth_token, found.service_catalog, found.fingerprint, noted) == (
            "TOKEN-OF-ALICE",
            ["CATALOG"],
            context.fingerprint,
            {"a": 1},
        )
        assert "TOKEN" not in repr(found) + repr(taken)
        self.api.repository.uploads.finish(image.id, taken.process_id, to="queued", token=taken.token)
        assert self.rows(jobs) == self.rows(uploads) == []

    def rows(self, table):
        return self.api.repository.database.read(lambda connection: connection.execute(sa.select(table)).all())

    def test_policies_see_the_same_caller_in_a_worker(self):
        claims = {"user_domain_id": "default", "project_domain_id": None, "is_admin_project": False}
        context = Context("u", "alpha", ("member",), service_roles=("service",), system_scope="all", claims=claims)
        sealed = json.loads(json.dumps(Sealing("rabbit://one/").seal(context)))
        assert Sealing("rabbit://one/").unseal(sealed).fingerprint == context.fingerprint
        del sealed["claims"]  # as an older release wrote it
        assert Sealing("rabbit://one/").unseal(sealed).claims == {}

    def test_another_key_opens_nothing(self):
        context = Context("u", "alpha", ("member",), auth_token="TOKEN", catalog="[]")
        sealed = json.loads(json.dumps(Sealing("rabbit://one/").seal(context)))
        assert Sealing("rabbit://one/").unseal(sealed).auth_token == "TOKEN"
        found = Sealing("rabbit://other/").unseal(sealed)
        assert (found.auth_token, found.project_id, found.roles) == (None, "alpha", ["member"])


class TestBus:
    @pytest.fixture
    def conf(self, tmp_path):
        path = tmp_path / "storelib.ini"
        path.write_text("[DEFAULT]\ntransport_url = fake://\n[storelib]\nstores = mem:memory\n")
        return load_file(path)

    def test_workers_are_woken(self, conf):
        """With the driver of oslo.messaging that stays in the process; its options are those of a private object."""
        found, woken = bus.bus_from(conf), threading.Event()
        found.listen(woken.set)
        for _ in range(TIMEOUT * 10):
            found.wake()
            if woken.wait(0.1):
                break
        assert woken.is_set()

    def test_a_bus_that_is_away_holds_nobody(self, tmp_path):
        path = tmp_path / "storelib.ini"
        path.write_text("[DEFAULT]\ntransport_url = rabbit://u:SECRET@127.0.0.1:1/\n[storelib]\nstores = mem:memory\n")
        found = bus.bus_from(load_file(path))
        found.listen(lambda: None)
        found.wake()
        assert "SECRET" not in repr(found)

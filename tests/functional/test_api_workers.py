# SPDX-License-Identifier: Apache-2.0
"""Imports and copies in worker processes: told by RabbitMQ, killed at every stage, without a broker, or frozen."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import signal
import threading

import pytest
from servers.api import INI, Deployment, wait_until
from servers.rabbitmq import RabbitMQ
from servers.worker import STAGES, WorkerProcess
from web_servers import web_server

from storelib.api.db import Repository
from storelib.api.db.engine import Database

MORE = """
[api]
staging_dir = {directory}/staging
lease_timeout = 1.5
wakeup_time = 1
import_workers = 2
import_allowed_ports =
import_allowed_networks = 127.0.0.0/8
[DEFAULT]
transport_url = {url}
"""
#: Small, since each image is written several times.
DATA = bytes(range(256)) * (8 * 1024)
FORMATS = {"name": "worked", "disk_format": "raw", "container_format": "bare"}


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


class Slow(http.server.BaseHTTPRequestHandler):
    """Half of an image, and the other half once ``go`` is set."""

    go = threading.Event()

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        try:
            self.wfile.write(DATA[: len(DATA) // 2])
            self.go.wait(60)
            self.wfile.write(DATA[len(DATA) // 2 :])
        except OSError:
            pass

    def log_message(self, *arguments):
        pass


@pytest.fixture
def slow():
    """The URL of a server that holds imports in the middle."""
    Slow.go.clear()
    with web_server(Slow) as url:
        yield f"{url}/image"
        Slow.go.set()


class Api:
    """One server of the API, whose workers the tests start."""

    def __init__(self, directory, url):
        more = MORE.format(directory=directory, url=url)
        self.deployment = Deployment(directory, ini=INI + more)
        self.server = self.deployment.serve("--workers", "1")
        self.repository = Repository(Database(f"sqlite:///{directory}/images.sqlite"))

    def close(self):
        self.repository.close()
        self.deployment.close()

    def start(self, method, image_id=None, **more):
        """The id of an image, a new one if none is named, of which an import begins."""
        image_id = image_id or str(self.server.request("POST", "/v2/images", FORMATS)["id"])
        if method == "glance-direct":
            self.send(image_id, "stage")
        name = {"name": method} | ({"uri": more.pop("uri")} if "uri" in more else {})
        assert self.answer("POST", f"/v2/images/{image_id}/import", {"method": name, **more}) == 202
        return image_id

    def until_told(self):
        """Images whose imports a worker has done that does not look for any.

        The first message may come before it listens; then one of the next ones tells it of all.
        """
        images = []

        def ask_again():
            images.append(self.start("glance-direct"))
            return self.active(images[0])

        wait_until(ask_again)
        wait_until(lambda: all(map(self.active, images)))
        return images

    def send(self, image_id, to):
        connection = http.client.HTTPConnection(self.server.address, timeout=60)
        with contextlib.closing(connection):
            connection.request("PUT", f"/v2/images/{image_id}/{to}", DATA, {"Content-Type": "application/octet-stream"})
            assert connection.getresponse().status == 204

    def answer(self, method, path, document):
        connection = http.client.HTTPConnection(self.server.address, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, json.dumps(document), {"Content-Type": "application/json"})
            return connection.getresponse().status

    def active(self, image_id):
        return self.server.status(image_id) == "active"

    def worker_of(self, image_id):
        """The process id of the one that is at the import of an image; None: it waits, or is over."""
        upload = self.repository.uploads.get(image_id)
        found = {process.id: process.pid for process in self.repository.processes.list()}
        return found.get(upload.process_id) if upload else None

    def is_clean(self, image_id, stores=("fast",)):
        """Whether the image is whole, in these stores and nowhere else."""
        shown = self.server.request("GET", f"/v2/images/{image_id}")
        assert self.server.download(image_id) == DATA
        wait_until(lambda: not list((self.deployment.directory / "staging").glob("*")))
        return sorted(shown["stores"].split(",")) == sorted(stores)


@pytest.fixture(scope="module")
def api(tmp_path_factory, broker):
    """The API that most tests share; each starts the workers it needs."""
    found = Api(tmp_path_factory.mktemp("api"), broker.url)
    yield found
    found.close()


def test_a_worker_is_told_of_work(api):
    with WorkerProcess(api.deployment, looks=False) as worker:
        images = api.until_told()
        assert worker.stop() == 0
    assert api.is_clean(images[0])


@pytest.mark.parametrize("stage", STAGES)
def test_an_import_outlives_a_worker_that_is_killed(api, stage):
    """There is no other worker, so the API goes on with it."""
    with WorkerProcess(api.deployment, dies=stage) as victim:
        image = api.start("glance-direct", stores=["fast", "archive"])
        assert victim.process.wait(90) == -signal.SIGKILL
    wait_until(lambda: api.active(image))
    assert api.is_clean(image, ("fast", "archive"))


@pytest.mark.parametrize("stage", ["taken", "stored", "not recorded", "recorded"])
def test_a_copy_outlives_a_worker_that_is_killed(api, stage):
    image = str(api.server.request("POST", "/v2/images", FORMATS)["id"])
    api.send(image, "file")
    with WorkerProcess(api.deployment, dies=stage) as victim:
        api.start("copy-image", image, stores=["archive"])
        assert victim.process.wait(90) == -signal.SIGKILL
    wait_until(lambda: "archive" in api.server.request("GET", f"/v2/images/{image}")["stores"])
    wait_until(lambda: api.repository.uploads.get(image) is None)
    assert api.is_clean(image, ("fast", "archive"))


def test_workers_share_what_there_is_and_take_over_from_each_other(api, slow):
    with WorkerProcess(api.deployment, "--grace", "0") as one, WorkerProcess(api.deployment) as other:
        images = [api.start("web-download", uri=slow) for _ in range(5)]
        wait_until(lambda: sum(api.worker_of(image) in (one.pid, other.pid) for image in images) == 4)
        doing = [api.worker_of(image) for image in images]
        assert (doing.count(one.pid), doing.count(other.pid)) == (2, 2)
        # What it cannot finish is left.
        assert one.stop() == 0
        Slow.go.set()
        wait_until(lambda: all(map(api.active, images)))
        assert other.stop() == 0
    assert all(map(api.is_clean, images))


def test_a_worker_that_hangs_is_given_up_for_dead(api, slow):
    """It finds that when it comes back, and harms nothing."""
    with WorkerProcess(api.deployment) as frozen:
        image = api.start("web-download", uri=slow)
        wait_until(lambda: api.worker_of(image) == frozen.pid)
        api.deployment.freeze(frozen.pid)
        Slow.go.set()
        wait_until(lambda: api.active(image))
        os.kill(frozen.pid, signal.SIGCONT)
        again = api.start("web-download", uri=slow)
        wait_until(lambda: api.active(again))
        assert frozen.stop() == 0
    assert api.is_clean(image)


def test_in_the_end_database_and_stores_agree(api):
    """After all of the above."""
    assert api.deployment.disagreements(120) == []


def test_work_is_found_while_the_broker_is_away_and_told_of_when_it_is_back(tmp_path, tmp_path_factory):
    broker = RabbitMQ(tmp_path_factory.mktemp("first"))
    again = RabbitMQ(tmp_path_factory.mktemp("second"))
    again.port, again.url = broker.port, broker.url
    api = Api(tmp_path, broker.url)
    try:
        with WorkerProcess(api.deployment) as worker:
            image = api.start("glance-direct")
            wait_until(lambda: api.active(image))
            assert worker.stop() == 0
        with WorkerProcess(api.deployment, looks=False) as worker:
            with broker:
                api.until_told()
            with again:
                api.until_told()
            assert worker.stop() == 0
        assert api.is_clean(image)
        assert "guest:guest" not in api.deployment.log() + (tmp_path / "worker.log").read_text()
    finally:
        api.close()

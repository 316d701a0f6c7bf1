# SPDX-License-Identifier: Apache-2.0
"""Work in the background: fair among projects, limited in time, and ended when the image is deleted."""

from __future__ import annotations

import http.server
import threading
import time

import pytest
from deployment import OCTETS
from v1_client import WithWeb
from web_servers import web_server

from storelib.api.errors import BadRequest, Gone
from storelib.api.service import Source, data
from storelib.api.service.workers import Workers
from storelib.transfer import deadlines

#: Seconds that nothing here takes unless it waits for what never comes.
TIMEOUT = 60


class Slow(http.server.BaseHTTPRequestHandler):
    """/stall sends half an image and then nothing, /drip a byte now and then, for ever; /image one that is whole."""

    protocol_version = "HTTP/1.1"
    asked: list[str] = []  # noqa: RUF012
    ended = threading.Event()

    def do_HEAD(self):
        self._begin()

    def do_GET(self):
        self.asked.append(self.path)
        self._begin()
        try:
            self.wfile.write(b"half")
            self.wfile.flush()
            while self.path != "/image" and not self.ended.wait(0.02):
                if self.path == "/drip":
                    self.wfile.write(b".")
                    self.wfile.flush()
        except OSError:
            pass
        self.close_connection = True

    def _begin(self):
        if self.path == "/gone" and self.command == "GET":
            self.send_response(404)
            self.send_header("Content-Length", "4")
        else:
            self.send_response(200)
            self.send_header("Content-Length", "4" if self.path in ("/image", "/gone") else "1000000")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def slow():
    """The URL of a server that takes its time."""
    Slow.ended.clear()
    Slow.asked.clear()
    with web_server(Slow) as url:
        yield url
        Slow.ended.set()


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """What is looked at every other second is so all the time."""
    monkeypatch.setattr(data, "LOOK", 0.02)
    monkeypatch.setattr(deadlines, "LOOK", 0.02)


class Background(WithWeb):
    options = {  # noqa: RUF012
        "import_allowed_ports": "",
        "import_allowed_networks": "127.0.0.0/8",
        "import_workers": 1,
        "import_timeout": 600,
    }

    def download(self, caller, url):
        """The id of a new image into which the data at ``url`` is imported."""
        image = caller.create()
        method = {"method": {"name": "web-download", "uri": url}}
        assert caller.post(f"/v2/images/{image}/import", method).status_code == 202
        return image

    def until(self, condition):
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def delete(self, *images):
        for image in images:
            assert self.api.admin.delete(f"/v2/images/{image}").status_code == 204
        self.api.settle()


class TestFairness(Background):
    def test_imports_of_one_project_do_not_keep_those_of_another_waiting(self, slow):
        held = [self.download(self.api.alice, f"{slow}/stall") for _ in range(16)]
        image = self.download(self.api.bob, f"{slow}/image")
        self.until(lambda: self.api.bob.show(image)["status"] == "active")
        assert {self.api.alice.show(each)["status"] for each in held} == {"importing"}
        self.delete(*held)

    def test_a_project_may_use_all_that_nobody_else_needs(self):
        workers, together = Workers(3), threading.Barrier(3)
        for _ in range(3):
            workers.start("alpha", lambda: together.wait(TIMEOUT))
        assert workers.wait(TIMEOUT)
        assert not together.broken

    def test_projects_take_turns(self):
        workers, order = Workers(1), []
        held, other = threading.Event(), threading.Event()
        workers.start("alpha", lambda: held.wait(TIMEOUT))
        workers.start("beta", lambda: other.wait(TIMEOUT))
        for owner in ("alpha", "beta", "beta", "gamma"):
            workers.start(owner, lambda owner=owner: order.append(owner))
        other.set()
        self.until(lambda: len(order) == 3)
        held.set()
        assert workers.wait(TIMEOUT)
        assert order == ["beta", "gamma", "beta", "alpha"]

    def test_work_that_waits_is_begun_when_a_thread_could_not_be(self, monkeypatch):
        workers, go, done = Workers(2), threading.Event(), []
        workers.start("alpha", lambda: go.wait(TIMEOUT))

        def fail(thread):
            monkeypatch.undo()
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", fail)
        workers.start("alpha", lambda: done.append(1))
        go.set()
        assert workers.wait(TIMEOUT)
        assert done == [1]

    def test_what_cannot_be_begun_at_all_is_not_kept(self, monkeypatch):
        workers, done = Workers(2), []

        def fail(thread):
            monkeypatch.undo()
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            workers.start("alpha", lambda: done.append("lost"))
        workers.start("alpha", lambda: done.append("begun"))
        assert workers.wait(TIMEOUT)
        assert done == ["begun"]


class TestDeletedMeanwhile(Background):
    @pytest.mark.parametrize("path", ["stall", "drip"])
    def test_an_import_ends_with_its_image(self, slow, path):
        image = self.download(self.api.alice, f"{slow}/{path}")
        self.until(lambda: Slow.asked)
        self.delete(image)
        assert self.api.repository.uploads.get(image) is None
        assert self.api.files() == []

    def test_hashing_ends_with_the_image(self, slow):
        image = self.api.alice.create()
        response = self.api.alice.post(f"/v2/images/{image}/locations", {"url": f"{slow}/stall"})
        assert response.status_code == 202, response.text
        self.until(lambda: Slow.asked)
        self.delete(image)
        assert self.api.repository.uploads.get(image) is None

    def test_an_upload_ends_with_its_image(self):
        api, image = self.api, self.api.alice.create()

        class Endless:
            """A body that goes on for ever, and whose image is deleted at its beginning."""

            deleted = False

            def read(self, size):
                if not self.deleted:
                    self.deleted = True
                    assert api.alice.delete(f"/v2/images/{image}").status_code == 204
                time.sleep(0.01)
                return b"x" * 1000

        caller = data.Context("u", "alpha", ("member", "reader"))
        with pytest.raises(Gone):
            api.service.data.upload(caller, image, Source(Endless()))
        assert api.files() == []


class TestTimeLimit(Background):
    options = {**Background.options, "import_time_limit": 0.3}  # noqa: RUF012

    @pytest.mark.parametrize("path", ["stall", "drip"])
    def test_an_import_that_takes_too_long_fails(self, slow, path):
        image = self.download(self.api.alice, f"{slow}/{path}")
        self.api.settle()
        shown = self.api.alice.show(image)
        assert (shown["status"], shown["os_glance_failed_import"]) == ("queued", "fast")
        [task] = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        assert (task["status"], "import_time_limit" in task["message"]) == ("failure", True)
        assert self.api.files() == []

    def test_a_copy_of_v1_that_takes_too_long_fails(self, slow):
        headers = {"x-image-meta-name": "v1", "x-image-meta-disk_format": "raw"}
        headers |= {"x-image-meta-container_format": "bare", "x-glance-api-copy-from": f"{slow}/drip"}
        response = self.api.admin.request("POST", "/v1/images", headers)
        assert response.status_code == 201, response.text
        self.api.settle()
        assert self.api.admin.show(response.json["image"]["id"])["status"] == "killed"


class TestDefiniteRefusal(Background):
    @pytest.mark.parametrize("to", ["file", "stage"])
    def test_what_the_database_does_not_take_is_over_at_once(self, monkeypatch, to):
        """Not when the lease looks next, seconds later."""
        image = self.api.alice.create()
        finish = self.api.repository.uploads.finish

        def refuse(*given, **more):
            if more["to"] != "queued":
                raise BadRequest("the database refuses a value")
            return finish(*given, **more)

        monkeypatch.setattr(self.api.repository.uploads, "finish", refuse)
        assert self.api.alice.request("PUT", f"/v2/images/{image}/{to}", OCTETS, body=b"data").status_code == 400
        assert self.api.alice.show(image)["status"] == "queued"
        assert image not in self.api.files()
        assert not (self.api.directory / "staging" / image).exists()
        assert self.api.repository.uploads.get(image) is None

    def test_data_that_is_gone_is_not_asked_for_again(self, slow):
        image = self.api.alice.create()
        assert self.api.alice.post(f"/v2/images/{image}/locations", {"url": f"{slow}/gone"}).status_code == 202
        self.api.settle()
        assert self.api.alice.show(image)["status"] == "queued"
        assert Slow.asked == ["/gone"]

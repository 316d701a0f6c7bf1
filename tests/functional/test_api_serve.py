# SPDX-License-Identifier: Apache-2.0
"""``storelib serve`` as real processes: driven by ``storelib image``, stopped, killed and started again, and after
each of that ``storelib audit`` says whether the database and the stores agree.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers.api import COMMAND, DATA, TIMEOUT, Deployment, Upload, wait_until
from servers.nginx import make_certificate
from servers.postgresql import PostgreSQL

MIB = 1024 * 1024


@pytest.fixture
def deployment(tmp_path) -> Iterator[Deployment]:
    made = Deployment(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="class")
def served(tmp_path_factory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("served"))
    made.serve("--workers", "2")
    yield made
    made.close()


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgreSQL]:
    with PostgreSQL() as server:
        yield server


@pytest.fixture(scope="session")
def disk(tmp_path_factory) -> Path:
    """A real qcow2 image with something in it."""
    directory = tmp_path_factory.mktemp("disk")
    (directory / "disk.raw").write_bytes(DATA)
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", directory / "disk.raw", directory / "disk.qcow2"]
    subprocess.run(convert, check=True, timeout=TIMEOUT)
    return directory / "disk.qcow2"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    make_certificate(directory / "certificate", directory / "key")
    return directory


def sha512(path: Path) -> str:
    return hashlib.sha512(path.read_bytes()).hexdigest()


class TestServing:
    @pytest.mark.parametrize("store", ["fast", "archive"])
    def test_an_image_travels_there_and_back(self, served, disk, store, tmp_path):
        created = served.image("create", f"in-{store}", "--file", disk, "--store", store).document
        assert (created["status"], created["disk_format"], created["stores"]) == ("active", "qcow2", [store])
        assert created["os_hash_value"] == sha512(disk)
        listed = served.image("list", "--name", f"in-{store}").document
        assert listed["id"] == created["id"]
        assert served.image("save", f"in-{store}", "-o", tmp_path / "back").code == 0
        assert sha512(tmp_path / "back") == sha512(disk)
        assert served.disagreements() == []

    def test_it_says_where_it_listens_and_who_may_do_what(self, served):
        [server] = served.servers
        assert server.said == {
            "url": server.url,
            "auth": "noauth",
            "workers": 2,
            "threads": 64,
            "pid": server.process.pid,
        }

    def test_the_database_was_made_at_the_start(self, served):
        assert served.run("db", "check").code == 0

    def test_a_worker_that_is_killed_is_replaced(self, served):
        [server] = served.servers
        wait_until(server.workers)
        before = server.workers()
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: before[0] not in server.workers() and set(server.workers()) - set(before))
        assert served.image("list", "--name", "nothing").code == 0

    def test_an_image_may_have_more_headers_than_the_server_usually_takes(self, served):
        """v1 sends each property as a header, more than gunicorn takes by default."""
        [server] = served.servers
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.url).netloc, timeout=TIMEOUT)
        with contextlib.closing(connection):
            headers = {f"x-image-meta-property-p{number}": "v" for number in range(200)}
            connection.request("GET", "/v2/images?limit=1", headers=headers)
            assert connection.getresponse().status == 200

    def test_all_headers_together_have_a_limit(self, served):
        """Longer ones would be looked at again and again while they come."""
        [server] = served.servers
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.url).netloc, timeout=TIMEOUT)
        with contextlib.closing(connection):
            connection.request("GET", "/v2/images", headers={f"x-{number}": "x" * 8000 for number in range(300)})
            assert connection.getresponse().status == 431

    def test_the_fields_of_v1_arrive_and_other_headers_with_underscores_do_not(self, served):
        [server] = served.servers
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.url).netloc, timeout=TIMEOUT)
        headers = {"x-image-meta-name": "old", "x-image-meta-min_ram": "7", "SCRIPT_NAME": "/v1", "Content-Length": "0"}
        with contextlib.closing(connection):
            connection.request("POST", "/v1/images", headers=headers)
            response = connection.getresponse()
            assert (response.status, json.loads(response.read())["image"]["min_ram"]) == (201, 7)

    @pytest.mark.parametrize(
        "headers",
        [
            {"X-Forwarded-Proto": "https"},
            {"X-Forwarded-Ssl": "on"},
            {"X-Forwarded-Proto": "https", "X-Forwarded-Ssl": "off"},
            {"X-Forwarded-Prefix": "/evil", "X-Forwarded-Host": "evil.example"},
        ],
    )
    def test_a_proxy_is_believed_only_where_the_configuration_says_so(self, served, headers):
        """Any client can send these."""
        [server] = served.servers
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.url).netloc, timeout=TIMEOUT)
        with contextlib.closing(connection):
            connection.request("GET", "/versions", headers=headers)
            response = connection.getresponse()
            assert response.status == 200
            assert json.loads(response.read())["versions"][0]["links"][0]["href"] == f"{server.url}/v2/"

    @pytest.mark.parametrize("chunked", [False, True])
    def test_the_client_of_an_upload_that_is_refused_learns_why(self, served, chunked):
        [server] = served.servers
        image = {"disk_format": "raw", "container_format": "bare"}
        path = f"/v2/images/{server.request('POST', '/v2/images', image)['id']}/file"
        octets = {"Content-Type": "application/octet-stream"}
        connection = http.client.HTTPConnection(server.address, timeout=TIMEOUT)
        with contextlib.closing(connection):
            connection.request("PUT", path, b"the data", octets)
            assert connection.getresponse().read() == b""
            # Which sends everything before it reads the answer, as most clients do.
            connection.request("PUT", path, iter([DATA] * 3) if chunked else DATA * 3, octets, encode_chunked=chunked)
            response = connection.getresponse()
            assert (response.status, response.headers["Connection"]) == (409, "close")
            assert "is active" in json.loads(response.read())["error"]["message"]

    def test_refused_uploads_that_go_on_keep_no_thread(self, deployment):
        server = deployment.serve("--workers", "1", "--threads", "1")
        parts = urllib.parse.urlsplit(server.url)
        head = b"PUT /v2/images/none/file HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n"
        head += b"Content-Type: application/octet-stream\r\n\r\n"
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                slow = stack.enter_context(socket.create_connection((parts.hostname, parts.port), TIMEOUT))
                slow.sendall(head)
                assert b" 404 " in slow.recv(100)
                slow.sendall(b"more")
            assert server.request("GET", "/v2/images?limit=1")["images"] == []
            # One after the other, silent clients would be waited for 5 s each.
            assert time.monotonic() - started < 30

    def test_clients_that_do_not_close_what_was_to_be_closed_keep_no_thread(self, deployment):
        server = deployment.serve("--workers", "1", "--threads", "1")
        parts = urllib.parse.urlsplit(server.url)
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            for _ in range(16):
                slow = stack.enter_context(socket.create_connection((parts.hostname, parts.port), TIMEOUT))
                slow.sendall(b"GET /v2/schemas/image HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                while slow.recv(65536):
                    pass
            # gunicorn would wait 2 s for each of them.
            assert time.monotonic() - started < 25

    def test_metrics_are_those_of_all_workers_also_of_one_that_died(self, deployment):
        server = deployment.serve("--workers", "2")
        line = r'storelib_api_request_seconds_count\{method="GET",route="/v2/schemas/\{name\}",status="200"\} (\d+)'

        def ask(path: str) -> str:
            """In a connection of its own, which any worker may take."""
            with urllib.request.urlopen(server.url + path, timeout=TIMEOUT) as response:
                return response.read().decode()

        def counted() -> set[int]:
            return {int(re.search(line, ask("/metrics"))[1]) for _ in range(10)}

        for _ in range(30):
            ask("/v2/schemas/image")
        assert counted() == {30}
        wait_until(server.workers)
        before = server.workers()
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: before[0] not in server.workers() and set(server.workers()) - set(before))
        for _ in range(10):
            ask("/v2/schemas/image")
        assert counted() == {40}

    def test_metrics_tell_what_is_under_way_and_keep_no_files_of_dead_workers(self, deployment, tmp_path, monkeypatch):
        counting = tmp_path / "counting"
        counting.mkdir()
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(counting))
        server = deployment.serve("--workers", "1")

        def gauges() -> dict[str, float]:
            with urllib.request.urlopen(server.url + "/metrics", timeout=TIMEOUT) as response:
                text = response.read().decode()
            return dict(re.findall(r"storelib_api_(\w+_in_flight) (\S+)", text))

        upload = Upload(server)
        # The request for the metrics itself is one.
        wait_until(
            lambda: gauges() == {"requests_in_flight": "2.0", "uploads_in_flight": "1.0", "imports_in_flight": "0.0"}
        )
        assert upload.finish() == 204
        wait_until(
            lambda: gauges() == {"requests_in_flight": "1.0", "uploads_in_flight": "0.0", "imports_in_flight": "0.0"}
        )
        again = Upload(server)
        wait_until(lambda: gauges()["uploads_in_flight"] == "1.0")
        files, [dead] = set(os.listdir(counting)), server.workers()
        os.kill(dead, signal.SIGKILL)
        wait_until(lambda: server.workers() not in ([], [dead]))
        wait_until(lambda: gauges()["uploads_in_flight"] == "0.0")
        again.connection.close()
        assert any(f"_{dead}.db" in name for name in files)
        assert [name for name in os.listdir(counting) if f"_{dead}.db" in name] == []

    def test_an_audit_in_the_background_finds_what_has_rotted(self, deployment):
        with deployment.config.open("a") as file:
            file.write("[api]\naudit_interval = 0.5\n")
        server = deployment.serve("--workers", "2")

        def findings() -> dict[str, float]:
            with urllib.request.urlopen(server.url + "/metrics", timeout=TIMEOUT) as response:
                text = response.read().decode()
            return dict(re.findall(r'storelib_audit_findings{kind="(\w+)",round="last"} (\S+)', text))

        upload = Upload(server)
        assert upload.finish() == 204
        assert findings() == {}
        path = deployment.directory / "fast" / upload.image_id
        path.write_bytes(DATA[::-1])
        wait_until(lambda: findings() == {"digest": "2.0"})
        assert f"audit: digest: image {upload.image_id}" in deployment.log()
        path.write_bytes(DATA)
        wait_until(lambda: findings() == {})
        assert server.stop() == 0

    def test_a_client_whose_headers_do_not_come_keeps_no_thread(self, deployment):
        server = deployment.serve("--workers", "1", "--threads", "1")
        parts = urllib.parse.urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port), TIMEOUT) as slow:
            slow.sendall(b"GET /v2/images HTTP/1.1\r\nHost: x\r\nX-Half: ")
            time.sleep(0.5)
            assert server.request("GET", "/v2/images?limit=1")["images"] == []
            assert slow.recv(1) == b""

    def test_a_local_file_leaves_without_passing_through_the_server(self, deployment, disk, tmp_path):
        server = deployment.serve("--workers", "1")
        image = deployment.image("create", "one", "--file", disk).document
        [worker] = server.workers()

        def written() -> int:
            """Bytes; what is sent to a socket counts when it is sent by sendfile(2)."""
            fields = Path(f"/proc/{worker}/io").read_text().split()
            return int(fields[fields.index("wchar:") + 1])

        before = written()
        assert deployment.image("save", "one", "-o", tmp_path / "back").code == 0
        assert written() - before >= image["size"]

    def test_a_client_that_never_pauses_does_not_keep_the_only_thread(self, deployment):
        server = deployment.serve("--workers", "1", "--threads", "1")
        address = urllib.parse.urlsplit(server.url).netloc
        answered = threading.Event()

        def ask(connection: http.client.HTTPConnection) -> int:
            connection.request("GET", "/v2/images?limit=1")
            response = connection.getresponse()
            response.read()
            return response.status

        def hurry() -> None:
            with contextlib.closing(http.client.HTTPConnection(address, timeout=TIMEOUT)) as connection:
                while not answered.is_set():
                    ask(connection)

        busy = threading.Thread(target=hurry)
        busy.start()
        try:
            with contextlib.closing(http.client.HTTPConnection(address, timeout=TIMEOUT)) as connection:
                assert [ask(connection) for _ in range(20)] == [200] * 20
        finally:
            answered.set()
            busy.join()

    def test_a_port_that_is_taken_is_named(self, served):
        [server] = served.servers
        address = urllib.parse.urlsplit(server.url).netloc
        response = served.run("serve", "--bind", address)
        assert (response.code, response.err) == (
            2,
            f"storelib: cannot listen on --bind {address}: Address already in use\n",
        )


class TestStopping:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_an_upload_under_way_is_finished(self, deployment, number):
        server = deployment.serve("--workers", "1")
        upload = Upload(server)
        server.process.send_signal(number)
        time.sleep(0.5)
        assert upload.finish() == 204
        assert server.process.wait(TIMEOUT) == 0
        assert deployment.disagreements() == []
        assert deployment.stored() == [upload.image_id]

    def test_ctrl_c_for_the_whole_group_is_graceful(self, deployment):
        server = deployment.serve("--workers", "1")
        upload = Upload(server)
        os.killpg(server.process.pid, signal.SIGINT)
        time.sleep(0.5)
        assert upload.finish() == 204
        assert server.process.wait(TIMEOUT) == 0

    @pytest.mark.parametrize(("signals", "grace"), [([signal.SIGTERM], "0.5"), ([signal.SIGINT] * 2, "60")])
    def test_an_upload_that_does_not_end_leaves_nothing(self, deployment, signals, grace):
        server = deployment.serve("--workers", "1", "--grace", grace)
        upload = Upload(server)
        begun = time.monotonic()
        for number in signals:
            server.process.send_signal(number)
            time.sleep(0.5)
        assert server.process.wait(TIMEOUT) == 0
        assert time.monotonic() - begun < 25
        upload.connection.close()
        assert deployment.stored() == []
        assert deployment.disagreements() == []
        assert deployment.serve("--workers", "1").status(upload.image_id) == "queued"

    @pytest.mark.parametrize("later", [0, 0.003, 0.01, 0.03])
    def test_without_requests_it_ends_at_once(self, deployment, later):
        """Also while its workers are only beginning; with requests it would wait 30 seconds for them."""
        server = deployment.serve("--workers", "2")
        time.sleep(later)
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 20

    def test_nothing_listens_while_the_last_upload_ends(self, deployment):
        server = deployment.serve("--workers", "1")
        upload = Upload(server)
        server.process.send_signal(signal.SIGTERM)
        parts = urllib.parse.urlsplit(server.url)

        def refused() -> bool:
            try:
                socket.create_connection((parts.hostname, parts.port), 1).close()
            except ConnectionRefusedError:
                return True
            return False

        wait_until(refused)
        assert upload.finish() == 204

    def test_a_client_whose_server_stops_leaves_no_half_image(self, deployment):
        server = deployment.serve("--workers", "1", "--grace", "0")
        other = deployment.serve("--workers", "1")
        client = subprocess.Popen(
            [*COMMAND, "image", "--url", server.url, "create", "half", "--file", "-", "--disk-format", "raw"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        client.stdin.write(DATA)
        client.stdin.flush()
        wait_until(
            lambda: [image["status"] for image in deployment.image("list", server=other).documents] == ["saving"]
        )
        assert server.stop() == 0
        with contextlib.suppress(BrokenPipeError):
            client.stdin.write(DATA)
        _, said = client.communicate(timeout=TIMEOUT)
        assert client.returncode == 7
        assert b"is left without data, delete it later" in said
        assert [image["status"] for image in deployment.image("list", server=other).documents] == ["queued"]
        assert deployment.disagreements() == []


class TestKilling:
    def test_what_a_killed_server_was_writing_is_undone_at_the_next_start(self, deployment):
        first, second = deployment.serve("--workers", "1"), deployment.serve("--workers", "1")
        upload = Upload(first)
        done = Upload(second)
        first.kill()
        upload.connection.close()
        assert done.finish() == 204
        third = deployment.serve("--workers", "1")
        wait_until(lambda: third.status(upload.image_id) == "queued")
        assert second.status(done.image_id) == "active"
        assert deployment.stored() == [done.image_id]
        assert deployment.disagreements() == []

    def test_what_a_killed_worker_was_writing_is_undone_by_its_successor(self, deployment):
        server = deployment.serve("--workers", "1")
        upload = Upload(server)
        [worker] = server.workers()
        os.kill(worker, signal.SIGKILL)
        upload.connection.close()
        wait_until(lambda: server.status(upload.image_id) == "queued")
        assert deployment.disagreements() == []

    def test_workers_whose_parent_is_killed_finish_and_go(self, deployment):
        server = deployment.serve("--workers", "1")
        upload = Upload(server)
        [worker] = server.workers()
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(TIMEOUT)
        assert upload.finish() == 204
        wait_until(lambda: not Path(f"/proc/{worker}").exists())
        assert deployment.disagreements() == []

    def test_the_audit_of_a_dead_server_names_only_what_is_not_its_own(self, deployment):
        server = deployment.serve("--workers", "1")
        upload = Upload(server)
        wait_until((deployment.directory / "fast").exists)
        server.kill()
        upload.connection.close()
        (deployment.directory / "fast" / "stranger").write_bytes(b"whatever")
        assert [(found["kind"], found["image"]) for found in deployment.disagreements()] == [("orphan", "stranger")]


class TestFreezing:
    """A server that is stopped for longer than its lease lasts, in the middle of an upload, and then goes on."""

    @pytest.fixture(scope="class", params=["sqlite", "postgresql"])
    @classmethod
    def pair(cls, request, tmp_path_factory) -> Iterator[Deployment]:
        connection = None
        if request.param == "postgresql":
            connection = request.getfixturevalue("postgresql").new_database()
        deployment = Deployment(tmp_path_factory.mktemp("frozen"), connection)
        try:
            with deployment.config.open("a") as file:
                file.write("[api]\nlease_timeout = 4\n")
            if connection:
                assert deployment.run("db", "sync").code == 0
            for _ in range(2):
                deployment.serve("--workers", "1")
            yield deployment
        finally:
            deployment.close()

    @pytest.fixture
    def frozen(self, pair) -> Iterator[Frozen]:
        made = Frozen(pair)
        try:
            made.wait_until_given_up()
            yield made
        finally:
            made.thaw()

    def test_its_upload_is_given_up_and_says_so(self, frozen):
        assert frozen.finish() in (409, 503)
        assert frozen.other.status(frozen.image_id) == "queued"
        frozen.nothing_disagrees(stored=False)
        # The client that was asked to send it again does.
        assert Upload(frozen.first, frozen.image_id).finish() == 204
        frozen.nothing_disagrees(stored=True)

    def test_what_another_has_acknowledged_since_stays(self, frozen):
        assert Upload(frozen.other, frozen.image_id, data=DATA[::-1]).finish() == 204
        assert frozen.finish() in (409, 503)
        frozen.nothing_disagrees(stored=True)
        assert frozen.first.download(frozen.image_id) == DATA[::-1]

    def test_what_another_is_writing_is_not_hindered(self, frozen):
        upload = Upload(frozen.other, frozen.image_id, data=DATA[::-1])
        assert frozen.finish() in (409, 503)
        assert upload.finish() == 204
        frozen.nothing_disagrees(stored=True)
        assert frozen.first.download(frozen.image_id) == DATA[::-1]

    def test_an_image_that_was_deleted_meanwhile_is_gone(self, frozen):
        assert frozen.other.delete(frozen.image_id) == 204
        assert frozen.finish() in (404, 410)
        frozen.nothing_disagrees(stored=False)


class Frozen:
    """The first of two servers has half an upload and is stopped."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.first, self.other = deployment.servers
        self.upload = Upload(self.first)
        self.image_id = self.upload.image_id
        deployment.freeze(self.first.process.pid)

    def wait_until_given_up(self) -> None:
        # If it was stopped in the middle of a transaction, the database ends that first, after a minute.
        wait_until(lambda: self.other.status(self.image_id) == "queued", 120.0)

    def thaw(self) -> None:
        os.killpg(self.first.process.pid, signal.SIGCONT)

    def finish(self) -> int:
        self.thaw()
        return self.upload.finish()

    def nothing_disagrees(self, *, stored: bool) -> None:
        """Also after both have cleaned up once more."""
        time.sleep(1)
        wait_until(lambda: self._files() == ([self.image_id] if stored else []))
        assert self.deployment.disagreements() == []

    def _files(self) -> list[str]:
        return [name for name in self.deployment.stored() if self.image_id in name]


class TestTls:
    def test_images_travel_over_https(self, deployment, certificate, disk, tmp_path):
        files = ("--certfile", str(certificate / "certificate"), "--keyfile", str(certificate / "key"))
        server = deployment.serve("--workers", "1", *files)
        url = server.url.replace("127.0.0.1", "localhost")
        assert url.startswith("https://")
        trusted = ("--url", url, "--cacert", certificate / "certificate")
        assert deployment.image("create", "one", "--file", disk, *trusted).document["status"] == "active"
        assert deployment.image("save", "one", "-o", tmp_path / "back", *trusted).code == 0
        assert sha512(tmp_path / "back") == sha512(disk)
        stranger = deployment.image("list", "--url", url)
        assert (stranger.code, "--cacert" in stranger.err) == (7, True)

    def test_a_stop_cuts_an_upload_over_https(self, deployment, certificate):
        files = ("--certfile", str(certificate / "certificate"), "--keyfile", str(certificate / "key"))
        server = deployment.serve("--workers", "1", "--grace", "0.5", *files)
        trusted = ("--url", server.url.replace("127.0.0.1", "localhost"), "--cacert", certificate / "certificate")
        image = ("one", "--disk-format", "raw", "--container-format", "bare")
        created = deployment.image("create", *image, *trusted).document
        context = ssl.create_default_context(cafile=certificate / "certificate")
        port = urllib.parse.urlsplit(server.url).port
        connection = http.client.HTTPSConnection("localhost", port, timeout=TIMEOUT, context=context)
        connection.putrequest("PUT", f"/v2/images/{created['id']}/file")
        connection.putheader("Content-Type", "application/octet-stream")
        connection.putheader("Content-Length", str(len(DATA)))
        connection.endheaders()
        connection.send(DATA[: len(DATA) // 2])
        wait_until(lambda: deployment.image("show", "one", *trusted).document["status"] == "saving")
        assert server.stop() == 0
        connection.close()
        assert deployment.stored() == []
        assert deployment.disagreements() == []

    @pytest.mark.parametrize("options", [("--certfile", "nowhere"), ("--keyfile", "key")])
    def test_files_that_cannot_be_used_are_refused_by_name(self, deployment, options):
        response = deployment.run("serve", "--bind", "127.0.0.1:0", *options)
        assert response.code == 2
        assert options[0] in response.err
        assert not (deployment.directory / "images.sqlite").exists()


class TestRefusing:
    @pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
    def test_no_authentication_is_for_this_machine_only(self, deployment, address):
        response = deployment.run("serve", "--bind", address)
        assert (response.code, response.out) == (2, "")
        assert f"--bind {address}" in response.err
        assert "auth_strategy" in response.err
        assert str(deployment.config) in response.err

    def test_who_insists_gets_it(self, deployment):
        server = deployment.serve("--workers", "1", "--bind", "0.0.0.0:0", "--allow-noauth-anywhere")
        assert server.said["auth"] == "noauth"
        assert server.stop() == 0

    def test_a_mistake_in_the_configuration_of_the_api_is_named(self, deployment):
        with deployment.config.open("a") as file:
            file.write("[api]\nproperty_protection_file = /nowhere\n")
        response = deployment.run("serve", "--bind", "127.0.0.1:0")
        assert (response.code, response.out) == (2, "")
        assert "property_protection_file" in response.err

    def test_a_database_server_without_tables_is_refused_until_db_sync(self, tmp_path, postgresql):
        deployment = Deployment(tmp_path, postgresql.new_database())
        try:
            response = deployment.run("serve", "--bind", "127.0.0.1:0")
            assert (response.code, response.out) == (2, "")
            assert "storelib db sync" in response.err
            assert deployment.run("db", "sync").code == 0
            server = deployment.serve("--workers", "2")
            image = server.request("POST", "/v2/images", {"name": "one"})
            assert server.status(str(image["id"])) == "queued"
            assert server.stop() == 0
            assert deployment.disagreements() == []
        finally:
            deployment.close()

# SPDX-License-Identifier: Apache-2.0
"""``storelib serve`` under a service manager: readiness, watchdog, reload, its socket, and the units in the docs."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers.api import COMMAND, DATA, TIMEOUT, Deployment, Server, Upload, wait_until

UNITS = Path(__file__).parents[2] / "docs" / "examples" / "systemd"


class Manager:
    """What systemd is to a service: a socket that takes notifications."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.settimeout(0.05)
        self.said: list[dict[str, str]] = []

    def hear(self) -> list[dict[str, str]]:
        while True:
            try:
                lines = self.socket.recv(4096).decode().split("\n")
            except TimeoutError:
                return self.said
            self.said.append(dict(line.split("=", 1) for line in lines))

    def count(self, name: str) -> int:
        return sum(name in said for said in self.hear())


@pytest.fixture
def manager(tmp_path, monkeypatch) -> Iterator[Manager]:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    made = Manager(path)
    yield made
    made.socket.close()


@pytest.fixture
def deployment(tmp_path) -> Iterator[Deployment]:
    made = Deployment(tmp_path)
    yield made
    made.close()


def configure(deployment: Deployment, **options: object) -> None:
    """The options of [api]; those of before are forgotten."""
    base = deployment.config.read_text().partition("[api]")[0]
    deployment.config.write_text(base + "[api]\n" + "".join(f"{name} = {value}\n" for name, value in options.items()))


def formats(server: Server) -> list[str]:
    """Of several workers, whichever is asked: the disk formats that it takes."""
    with urllib.request.urlopen(server.url + "/v2/schemas/image", timeout=TIMEOUT) as response:
        return json.loads(response.read())["properties"]["disk_format"]["enum"]


def test_it_is_ready_when_a_worker_serves_and_says_that_it_stops(deployment, manager):
    server = deployment.serve("--workers", "2")
    wait_until(lambda: manager.count("READY"))
    assert server.url in manager.said[0]["STATUS"]
    assert server.request("GET", "/v2/images")["images"] == []
    # Only the parent speaks, whom systemd believes.
    [worker, _] = server.workers()
    assert b"NOTIFY_SOCKET" not in Path(f"/proc/{worker}/environ").read_bytes() or manager.count("READY") == 1
    assert server.stop() == 0
    assert [next(iter(said)) for said in manager.hear()] == ["READY", "STOPPING"]


def test_signs_of_life(deployment, manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    deployment.serve("--workers", "1")
    wait_until(lambda: manager.count("WATCHDOG") >= 3)


def test_a_watchdog_for_another_process_is_none_of_ours(deployment, manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    deployment.serve("--workers", "1")
    wait_until(lambda: manager.count("READY"))
    time.sleep(0.3)
    assert manager.count("WATCHDOG") == 0


class TestReload:
    def test_new_options_are_read_and_requests_under_way_end(self, deployment, manager):
        configure(deployment, disk_formats="raw, qcow2")
        server = deployment.serve("--workers", "2", "--grace", "0")
        wait_until(lambda: manager.count("READY") and len(server.workers()) == 2)
        before = set(server.workers())
        upload = Upload(server)
        configure(deployment, disk_formats="raw, iso")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: manager.count("READY") == 2)
        assert [next(iter(said)) for said in manager.said] == ["READY", "RELOADING", "READY"]
        assert int(manager.said[1]["MONOTONIC_USEC"]) > 0
        wait_until(lambda: all("iso" in formats(server) for _ in range(10)))
        # The one with the upload is still there, without a grace, and its parent replaces nothing.
        wait_until(lambda: len(before & set(server.workers())) == 1)
        time.sleep(1.5)
        assert len(server.workers()) == 3
        assert upload.finish() == 204
        assert server.download(upload.image_id) == DATA
        wait_until(lambda: not before & set(server.workers()))
        assert len(server.workers()) == 2
        assert deployment.disagreements() == []

    def test_no_request_is_refused_meanwhile(self, deployment, manager):
        server = deployment.serve("--workers", "2")
        wait_until(lambda: manager.count("READY"))
        for number in range(3):
            server.process.send_signal(signal.SIGHUP)
            while manager.count("READY") < number + 2:
                assert server.request("GET", "/v2/images?limit=1")["images"] == []
        wait_until(lambda: len(server.workers()) == 2)

    @pytest.mark.parametrize(
        ("right", "wrong"),
        [
            ("[database]", "[api]\nimage_size_cap = none\n[database]"),
            ("default_store = fast", "default_store = nowhere"),
            ("[storelib]", "stores"),
        ],
        ids=["option", "store", "file"],
    )
    def test_a_wrong_configuration_is_refused_and_the_old_one_stays(self, deployment, manager, right, wrong):
        server = deployment.serve("--workers", "1")
        wait_until(lambda: manager.count("READY"))
        before = server.workers()
        whole = deployment.config.read_text()
        deployment.config.write_text(whole.replace(right, wrong))
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: manager.count("READY") == 2)
        assert "refused" in manager.said[-1]["STATUS"]
        assert server.workers() == before
        assert server.request("GET", "/v2/images")["images"] == []
        assert "the configuration stays as it is" in deployment.log()
        deployment.config.write_text(whole)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: manager.count("READY") == 3 and not set(before) & set(server.workers()))

    def test_a_server_that_stops_ends_what_a_reload_left(self, deployment, manager):
        server = deployment.serve("--workers", "1", "--grace", "0")
        wait_until(lambda: manager.count("READY"))
        upload = Upload(server)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: manager.count("READY") == 2)
        assert server.stop() == 0
        upload.connection.close()
        again = deployment.serve("--workers", "1")
        assert again.status(upload.image_id) == "queued"
        assert deployment.disagreements() == []


class TestSocket:
    def start(self, deployment: Deployment, listening: socket.socket, *options: str, **variables: str) -> Server:
        """As systemd does: the socket is descriptor 3, and the variables name this very process."""
        command = [*COMMAND, "--format", "json", "--config", str(deployment.config), "serve", "--bind", "systemd"]
        script = f'exec 3<&{listening.fileno()}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
        server = Server.__new__(Server)
        with (deployment.directory / "serve.log").open("a") as log:
            server.process = subprocess.Popen(
                ["bash", "-c", script, "bash", *command, *options],
                cwd=deployment.directory,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                pass_fds=[listening.fileno()],
                env={**os.environ, **variables},
            )
        server.said = {}
        deployment.servers.append(server)
        return server

    def test_it_serves_the_socket_it_is_given(self, deployment, manager):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            server = self.start(deployment, listening, "--workers", "1")
            # It comes before the server listens, and waits.
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
            connection.request("GET", "/v2/images")
            assert connection.getresponse().status == 200
            connection.close()
            server.wait_until_listening()
            assert server.url == f"http://127.0.0.1:{port}"
            wait_until(lambda: manager.count("READY"))
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: manager.count("READY") == 2)
            assert server.request("GET", "/v2/images")["images"] == []
            assert server.stop() == 0

    def test_one_that_others_reach_needs_authentication(self, deployment):
        with socket.create_server(("0.0.0.0", 0)) as listening:
            server = self.start(deployment, listening)
            assert server.process.wait(TIMEOUT) == 2
        assert "auth_strategy" in deployment.log()

    def test_without_a_socket_it_says_so(self, deployment):
        response = deployment.run("serve", "--bind", "systemd")
        assert (response.code, ".socket unit" in response.err) == (2, True)


def test_the_units_in_the_docs_are_right(tmp_path):
    command = Path(sys.executable).with_name("storelib")
    assert command.exists()
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/usr/bin/storelib", str(command))
        # Not there on the machine of the test.
        (tmp_path / unit.name).write_text(re.sub(r"(?m)^(User|Group)=.*\n", "", text))
    verify = ["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.iterdir())]
    done = subprocess.run(verify, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", ["storelib-api.service", "storelib-worker.service", "storelib-node.service"])
def test_the_units_say_what_the_command_takes(unit):
    [line] = re.findall(r"(?m)^ExecStart=/usr/bin/storelib (.*)$", (UNITS / unit).read_text())
    done = subprocess.run([*COMMAND, *line.split(), "--help"], capture_output=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0

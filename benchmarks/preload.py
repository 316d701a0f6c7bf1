# SPDX-License-Identifier: Apache-2.0
"""Sixteen nodes that get an image at the same time, against one that gets it alone.

python benchmarks/preload.py [--nodes N] [--size MiB] [--rate MiB/s] [--rounds N]

Every agent may fetch and send RATE, and the API may send as much to all of them together: a relay before it sees to
that. All are on this machine, at addresses of their own. Time is from the request for the preload until the last node
has published the image, verified; bytes are compared on every node.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from pairs import MiB, Pair, argument, compare_rates, show, workplace

NODES = argument("--nodes", 16)
SIZE = argument("--size", 96) * MiB + 7
RATE = argument("--rate", 4) * MiB
ROUNDS = argument("--rounds", 1)
COMMAND = [sys.executable, "-c", "from storelib.cli.main import main; main()", "--format", "json"]
API = """
[storelib]
stores = files:file
filesystem_store_datadir = {directory}/files
[database]
connection = sqlite:///{directory}/images.sqlite
[preload]
enabled = true
interval = 2
idle_interval = 2
web_seeds = 3
"""
NODE = """
[node]
api_url = http://127.0.0.1:{relay}
name = n{number}
enrolment_token = {token}
bind = 127.0.3.{number}
port = {port}
state_dir = {directory}/state
target_dir = {directory}/images
down_limit = {rate}
up_limit = {rate}
"""
#: What is no part of an image, such as a heartbeat, waits for nothing.
SMALL = 16 * 1024


VERIFIED = "the digest of the file on every node"


class Relay:
    """Passes connections on, and RATE bytes a second back over all of them."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._turn = threading.Lock()
        self._free_at = 0.0
        self.sent = 0
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            for source, target, slow in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pass_on, args=(source, target, slow), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, slow: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(64 * 1024):
                if slow and len(data) > SMALL:
                    self._wait(len(data))
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _wait(self, length: int) -> None:
        with self._turn:
            self.sent += length
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + length / RATE
            wait = self._free_at - now
        time.sleep(wait)

    def close(self) -> None:
        self._socket.close()


class Agent:
    """One node."""

    def __init__(self, directory: Path, number: int, relay: int, token: str) -> None:
        self.name, self.directory = f"n{number}", directory / f"n{number}"
        self.directory.mkdir()
        host = f"127.0.3.{number}"
        with socket.create_server((host, 0)) as free:
            port = free.getsockname()[1]
        values = {"relay": relay, "number": number, "token": token, "port": port, "rate": RATE}
        config = self.directory / "node.ini"
        config.write_text(NODE.format(directory=self.directory, **values))
        command = [*COMMAND, "--config", str(config), "node"]
        with (self.directory / "log").open("w") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)

    def await_start(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def digest(self, image: str) -> str:
        return hashlib.sha256((self.directory / "images" / image).read_bytes()).hexdigest()

    def seconds(self) -> float:
        """Of one core, so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Bytes, at most so far."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Rack:
    """The API, the relay and the nodes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        config = directory / "api.ini"
        config.write_text(API.format(directory=directory))
        command = [*COMMAND, "--config", str(config), "serve", "--bind", "127.0.0.1:0", "--workers", "1"]
        with (directory / "log").open("w") as log:
            self._server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._server.stdout is not None
        self._port = int(json.loads(self._server.stdout.readline())["url"].rpartition(":")[2])
        self.relay = Relay(self._port)
        enrolment = {"group": "all", "expires_in": 3600, "uses": NODES}
        token = self.ask("POST", "/v2/nodes/enrolments", enrolment)["token"]
        self.agents = [Agent(directory, number + 1, self.relay.port, token) for number in range(NODES)]
        for agent in self.agents:
            agent.await_start()
        self.sources: list[float] = []
        self.seconds: list[float] = []
        self.longest = self.shortest = 0.0

    def ask(self, method: str, path: str, document: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        with contextlib.closing(connection):
            body = document if isinstance(document, bytes) else json.dumps(document) if document else None
            kind = "application/octet-stream" if isinstance(document, bytes) else "application/json"
            connection.request(method, path, body, {"Content-Type": kind})
            response = connection.getresponse()
            data = response.read()
            assert response.status < 300, (response.status, data)
            return json.loads(data) if data else None

    def distribute(self, count: int) -> float:
        """MiB a second at which so many nodes get an image, each."""
        data = os.urandom(SIZE)
        formats = {"name": "an image", "disk_format": "raw", "container_format": "bare"}
        image = self.ask("POST", "/v2/images", formats)["id"]
        self.ask("PUT", f"/v2/images/{image}/file", data)
        agents, sent = self.agents[:count], self.relay.sent
        busy = sum(agent.seconds() for agent in agents)
        begun = time.monotonic()
        names = [agent.name for agent in agents]
        [preload] = self.ask("POST", "/v2/preloads", {"images": [image], "nodes": names})["preloads"]
        while not all((agent.directory / "images" / image).exists() for agent in agents):
            time.sleep(0.1)
            assert time.monotonic() - begun < 50 * SIZE / RATE, self.ask("GET", f"/v2/preloads/{preload['id']}")
        elapsed = time.monotonic() - begun
        if count == 1:
            self.shortest = elapsed
        else:
            self.longest = elapsed
            self.sources.append((self.relay.sent - sent) / SIZE)
            self.seconds.append((sum(agent.seconds() for agent in agents) - busy) / count)
        digest = hashlib.sha256(data).hexdigest()
        assert all(agent.digest(image) == digest for agent in agents)
        self.ask("DELETE", f"/v2/images/{image}")
        while any((agent.directory / "images" / image).exists() for agent in agents):
            time.sleep(0.1)
        return SIZE / MiB / elapsed

    def close(self) -> None:
        for agent in self.agents:
            agent.stop()
        self.relay.close()
        self._server.send_signal(signal.SIGTERM)
        self._server.wait()
        assert self._server.stdout is not None
        self._server.stdout.close()


def main() -> None:
    directory = Path(tempfile.mkdtemp(dir=workplace()))
    rack = Rack(directory)
    try:
        compare_rates(
            f"{NODES} nodes at once, {RATE // MiB} MiB/s each",
            lambda: rack.distribute(NODES),
            lambda: rack.distribute(1),
            # All need at most one and a half times what one needs.
            target=1 / 1.5,
            peer="one node alone",
            rounds=ROUNDS,
            verified=VERIFIED,
        )
        sent = statistics.median(rack.sources)
        size = SIZE / MiB
        # The API sends the image twice at most, and without the others it would for each node.
        ratio = 1 / sent
        out = Pair("out of the API", size, sent * size, ratio, 0.5, "the image once", "MiB", VERIFIED, ratios=(ratio,))
        show(out)
        memory = max(agent.memory() for agent in rack.agents)
        if "--json" in sys.argv:
            print(json.dumps({"name": "an agent's memory", "growth_mib": memory / MiB}), flush=True)
        else:
            busy = statistics.median(rack.seconds)
            print(f"all need {rack.longest / rack.shortest:.2f} times what one needs")
            print(f"an agent: {memory / MiB:.0f} MiB of memory at most, {busy:.1f} s of one core for {size:.0f} MiB")
    finally:
        rack.close()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()

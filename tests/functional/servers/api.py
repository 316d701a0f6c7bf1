# SPDX-License-Identifier: Apache-2.0
"""``storelib serve`` as real processes on one database and two file stores, and ``storelib`` itself to look at them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

from servers import freezing, warm

COMMAND = [sys.executable, "-c", warm.MAIN]
#: Seconds that anything may take.
TIMEOUT = 120.0
#: Enough for several parts, so that half an upload has reached the store.
DATA = bytes(range(256)) * (4 * 24 * 1024)

INI = """
[storelib]
stores = fast:file, archive:file
default_store = fast
[fast]
filesystem_store_datadir = {directory}/fast
[archive]
filesystem_store_datadir = {directory}/archive
[database]
connection = {connection}
sqlite_synchronous = false
"""


class Answer:
    """What one run of the command gave."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    @property
    def documents(self):
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def document(self):
        [document] = self.documents
        return document


class Deployment:
    """A directory with a configuration, and the servers that were started on it."""

    def __init__(self, directory: Path, connection: str | None = None, ini: str = INI) -> None:
        self.directory = directory
        self.config = directory / "my.ini"
        self.connection = connection or f"sqlite:///{directory}/images.sqlite"
        self.config.write_text(ini.format(directory=directory, connection=self.connection))
        self.servers: list[Server] = []

    def serve(self, *options: str) -> Server:
        """A server that listens."""
        server = Server(self, options)
        self.servers.append(server)
        server.wait_until_listening()
        return server

    def run(self, *arguments: object, server: Server | None = None, timeout: float = TIMEOUT) -> Answer:
        """``storelib ...``; with ``server``, an image command to that one."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
        if server is not None:
            environment["OS_IMAGE_URL"] = server.url
        written = ["--format", "json", "--config", str(self.config), *map(str, arguments)]
        done = warm.run(warm.MAIN, written, env=environment, cwd=self.directory, timeout=timeout)
        return Answer(done)

    def image(self, *arguments: object, server: Server | None = None) -> Answer:
        return self.run("image", *arguments, server=server or self.servers[-1])

    def disagreements(self, timeout: float = TIMEOUT):
        """What the audit finds, with everything read and every leftover named."""
        response = self.run("audit", "--deep", "--older-than", "0", timeout=timeout)
        assert response.code == (9 if response.out else 0), response.err
        return response.documents

    def stored(self) -> list[str]:
        """The names of all files in the stores."""
        return sorted(
            name for store in ("fast", "archive") for _, _, files in os.walk(self.directory / store) for name in files
        )

    def log(self) -> str:
        """What the servers complained about."""
        return (self.directory / "serve.log").read_text()

    def freeze(self, group: int) -> None:
        """Stop a group of processes."""
        freezing.freeze(group, self.directory / "images.sqlite")

    def close(self) -> None:
        for server in self.servers:
            server.kill()


class Server:
    """One ``storelib serve`` on a free port, in a process group of its own."""

    def __init__(self, deployment: Deployment, options: tuple[str, ...]) -> None:
        arguments = ["--format", "json", "--config", str(deployment.config), "serve", "--bind", "127.0.0.1:0"]
        with (deployment.directory / "serve.log").open("a") as log:
            self.process = warm.Program(warm.MAIN, [*arguments, *options], cwd=deployment.directory, stderr=log)
        self.said: dict[str, object] = {}

    def wait_until_listening(self) -> None:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], TIMEOUT)
        assert readable, "the server says nothing"
        self.said = json.loads(self.process.stdout.readline())

    @property
    def url(self) -> str:
        return str(self.said["url"])

    @property
    def address(self) -> str:
        return urllib.parse.urlsplit(self.url).netloc

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT)

    def kill(self) -> None:
        """All its processes at once, as when the machine loses power."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(TIMEOUT)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def request(self, method: str, path: str, document: object = None) -> dict[str, object]:
        connection = http.client.HTTPConnection(self.address, timeout=TIMEOUT)
        with contextlib.closing(connection):
            body = None if document is None else json.dumps(document)
            connection.request(method, path, body, {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read())

    def status(self, image_id: str) -> object:
        return self.request("GET", f"/v2/images/{image_id}")["status"]

    def delete(self, image_id: str) -> int:
        connection = http.client.HTTPConnection(self.address, timeout=TIMEOUT)
        with contextlib.closing(connection):
            connection.request("DELETE", f"/v2/images/{image_id}")
            return connection.getresponse().status

    def download(self, image_id: str) -> bytes:
        connection = http.client.HTTPConnection(self.address, timeout=TIMEOUT)
        with contextlib.closing(connection):
            connection.request("GET", f"/v2/images/{image_id}/file")
            return connection.getresponse().read()


class Upload:
    """An upload that has been sent by half; of a new image, unless one is named."""

    def __init__(self, server: Server, image_id: str | None = None, data: bytes = DATA) -> None:
        image = {"name": "half", "disk_format": "raw", "container_format": "bare"}
        self.image_id = image_id or str(server.request("POST", "/v2/images", image)["id"])
        self._data = data
        self.connection = http.client.HTTPConnection(server.address, timeout=TIMEOUT)
        self.connection.putrequest("PUT", f"/v2/images/{self.image_id}/file")
        self.connection.putheader("Content-Type", "application/octet-stream")
        self.connection.putheader("Content-Length", str(len(data)))
        self.connection.endheaders()
        self.connection.send(data[: len(data) // 2])
        wait_until(lambda: server.status(self.image_id) == "saving")

    def finish(self) -> int:
        self.connection.send(self._data[len(self._data) // 2 :])
        with contextlib.closing(self.connection):
            return self.connection.getresponse().status


def wait_until(done, timeout: float = TIMEOUT) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.05)

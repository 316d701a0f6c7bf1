# SPDX-License-Identifier: Apache-2.0
"""A server that costs next to nothing, so that a benchmark measures the client: S3, Swift and as much of Keystone.

What is sent is thrown away in the kernel; what is asked for comes from the page cache by sendfile. Nothing is stored or
checked, so it proves nothing: that is what the functional tests are for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, unquote, urlsplit

from storelib.testing.faults import Direction, Far, FaultyProxy

KiB, MiB = 1024, 1024 * 1024
#: Objects whose names end with this are there, with the bytes of the file; all others are missing.
SOURCE = "source"
#: As much as a connection of default settings may have on the way.
WINDOW = MiB
_STARTED = "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
_COMPLETED = '<CompleteMultipartUploadResult><ETag>"0-1"</ETag></CompleteMultipartUploadResult>'
#: By which clients of Swift know that no proxy answers in its place.
_MARK = {"X-Trans-Id": "sink"}
_INFO = {
    "swift": {"version": "2.30.0", "max_object_name_length": 1024},
    "slo": {"max_manifest_segments": 1000, "min_segment_size": 1},
}


@contextlib.contextmanager
def sink(path: str, segment: int = 16 * MiB, far: float = 0.0) -> Iterator[int]:
    """The port of a server in a process of its own that serves the file ``path``, ``far`` seconds away.

    Each object whose name ends with a number is taken for that segment of the file, which then begins again. From far
    away at most WINDOW bytes are on the way in each connection.
    """
    command = [sys.executable, os.path.abspath(__file__), path, str(segment), str(far)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


class Server:
    def __init__(self, path: str, segment: int) -> None:
        self.file = open(path, "rb")  # noqa: SIM115  (as long as the process)
        self.size = os.path.getsize(path)
        # Swift names what it stored by its md5. That of a segment is known before it comes.
        self.etags: list[str] = []
        while block := self.file.read(segment):
            self.etags.append(hashlib.md5(block, usedforsecurity=False).hexdigest())
        #: What was said of the objects that were stored in Swift.
        self.metadata: dict[str, dict[str, str]] = {}
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listener.getsockname()[1]

    def serve(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.talk, args=(connection,), daemon=True).start()

    def talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            pending = b""
            while True:
                while b"\r\n\r\n" not in pending:
                    if not (data := connection.recv(64 * KiB)):
                        return
                    pending += data
                head, _, pending = pending.partition(b"\r\n\r\n")
                pending = self.response(connection, head.decode("latin-1"), pending)

    def response(self, connection: socket.socket, head: str, pending: bytes) -> bytes:
        """Serve one request; returns what was received of the next one."""
        request, *lines = head.split("\r\n")
        method, target, _ = request.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("expect", "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        url = urlsplit(target)
        query = parse_qs(url.query, keep_blank_values=True)
        length, size = int(headers.get("content-length", 0)), 0
        etag = self.etag_of(url.path)
        if "multipart-manifest" in query and method == "PUT":
            manifest, pending = take(connection, pending, length)
            size = sum(segment["size_bytes"] for segment in json.loads(manifest))
        elif headers.get("transfer-encoding") == "chunked":
            pending = drop_chunks(connection, pending)
        elif length < 64 * KiB:
            body, pending = take(connection, pending, length)
            if not re.search(r"/(\d+)$", unquote(url.path)):
                etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
        else:
            pending = drop(connection, pending, length)
        if url.path.endswith(SOURCE) and method in ("GET", "HEAD"):
            self.send_object(connection, method, headers.get("range"))
        elif method in ("GET", "HEAD"):
            self.describe(connection, method, url.path)
        elif url.path == "/v3/auth/tokens":
            reply(connection, 201, json.dumps({"token": self.token}), **{"X-Subject-Token": "t"})
        elif method == "POST" and "uploads" in query:
            reply(connection, 200, _STARTED)
        elif method == "POST":
            reply(connection, 200, _COMPLETED)
        elif method == "DELETE":
            self.metadata.pop(url.path, None)
            reply(connection, 204)
        else:
            if url.path.startswith("/v1/"):
                known = {key: headers[key] for key in headers if key.startswith("x-object-meta-")}
                self.metadata[url.path] = {**known, "Content-Length": str(size)}
            reply(connection, 201 if url.path.startswith("/v1/") else 200, "", ETag=etag)
        return pending

    def etag_of(self, path: str) -> str:
        number = re.search(r"/(\d+)$", unquote(path))
        return self.etags[int(number[1]) % len(self.etags)] if number else "of-what-was-thrown-away"

    def describe(self, connection: socket.socket, method: str, path: str) -> None:
        if path.startswith("/v3"):
            reply(connection, 200, json.dumps({"version": self.identity}))
        elif path == "/info":
            reply(connection, 200, json.dumps(_INFO))
        elif path.count("/") <= (3 if path.startswith("/v1/") else 1) or path.endswith("/"):
            # An account, a container or a bucket; listings are empty.
            reply(connection, 200, "[]", head=method == "HEAD")
        elif path in self.metadata:
            reply(connection, 200, **self.metadata[path])
        else:
            reply(connection, 404, head=method == "HEAD")

    @property
    def identity(self) -> dict[str, object]:
        link = {"rel": "self", "href": f"http://127.0.0.1:{self.port}/v3/"}
        return {"id": "v3.14", "status": "stable", "links": [link]}

    @property
    def token(self) -> dict[str, object]:
        domain = {"id": "default", "name": "Default"}
        url = f"http://127.0.0.1:{self.port}/v1/AUTH_test"
        endpoint = {"id": "e", "interface": "public", "region": "r", "region_id": "r", "url": url}
        return {
            "methods": ["password"],
            "user": {"id": "user", "name": "user", "domain": domain},
            "project": {"id": "test", "name": "test", "domain": domain},
            "roles": [],
            "issued_at": "2026-01-01T00:00:00.000000Z",
            "expires_at": "2099-01-01T00:00:00.000000Z",
            "catalog": [{"id": "c", "type": "object-store", "name": "swift", "endpoints": [endpoint]}],
        }

    def send_object(self, connection: socket.socket, method: str, wanted: str | None) -> None:
        begin, end = 0, self.size
        headers = {**_MARK, "ETag": '"0"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        if match:
            begin, end = int(match[1]), min(int(match[2]) + 1, self.size) if match[2] else self.size
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{self.size}"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        status = "206 Partial Content" if match else "200 OK"
        connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {end - begin}\r\n{lines}\r\n".encode())
        while method == "GET" and begin < end:
            begin += os.sendfile(connection.fileno(), self.file.fileno(), begin, end - begin)


def reply(connection: socket.socket, status: int, body: str = "", head: bool = False, **headers: str) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in {**_MARK, **headers}.items())
    if status != 204 and "Content-Length" not in headers:
        lines += f"Content-Length: {len(body)}\r\n"
    connection.sendall(f"HTTP/1.1 {status} -\r\n{lines}\r\n{'' if head else body}".encode())


def take(connection: socket.socket, pending: bytes, length: int) -> tuple[bytes, bytes]:
    """A body, and what came after it."""
    while len(pending) < length and (data := connection.recv(64 * KiB)):
        pending += data
    return pending[:length], pending[length:]


def drop(connection: socket.socket, pending: bytes, length: int) -> bytes:
    """Read a body away without copying it into this process; returns what came after it."""
    left = length - len(pending)
    scratch = bytearray(MiB)
    while left > 0:
        count = connection.recv_into(scratch, min(left, len(scratch)), socket.MSG_TRUNC)
        if not count:
            raise ConnectionResetError
        left -= count
    return pending[length:]


def drop_chunks(connection: socket.socket, pending: bytes) -> bytes:
    while True:
        while b"\r\n" not in pending:
            if not (data := connection.recv(256 * KiB)):
                raise ConnectionResetError
            pending += data
        line, _, pending = pending.partition(b"\r\n")
        length = int(line.split(b";")[0], 16)
        pending = drop(connection, pending, length + 2)
        if length == 0:
            return pending


def main(path: str, segment: str, far: str) -> None:
    server = Server(path, int(segment))
    if not float(far):
        print(server.port, flush=True)
        server.serve()
    with FaultyProxy(("127.0.0.1", server.port)) as proxy:
        ways: tuple[Direction, ...] = ("up", "down")
        proxy.always(*(Far(seconds=float(far) / 2, window=WINDOW // 2, direction=way) for way in ways))
        server.port = proxy.address[1]
        print(server.port, flush=True)
        server.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])

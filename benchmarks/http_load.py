# SPDX-License-Identifier: Apache-2.0
"""HTTP clients that cost next to nothing, so that a benchmark measures the server.

Requests are bytes made beforehand, connections are kept, bodies of responses are thrown away in the kernel and those of
requests leave it by sendfile. Each call of ``run`` is a process of its own with a thread for each client.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)", re.IGNORECASE)
_CHUNK = 1024 * 1024
#: How often a second slow clients do something.
_TURNS = 4
#: Seconds a server may be silent.
TIMEOUT = 120.0


class Load(NamedTuple):
    """What several clients did: how often, how many bytes of responses and requests, in how many seconds."""

    requests: int
    received: int
    sent: int
    seconds: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def run(
    url: str,
    paths: list[str],
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    clients: int = 1,
    seconds: float | None = None,
    body: str | None = None,
    slowly: int = 0,
) -> Load:
    """Send requests for ``paths`` in turn, each client one after the other.

    For ``seconds``, or without them until each path was asked for once. ``body`` is a file; ``slowly`` are the bytes a
    second at most of one client's requests and responses. Raises RuntimeError for a response that is not a success.
    """
    told = {
        "url": url,
        "paths": paths,
        "method": method,
        "headers": dict(headers or {}),
        "clients": clients,
        "seconds": seconds,
        "body": body,
        "slowly": slowly,
    }
    done = subprocess.run(
        [sys.executable, os.path.abspath(__file__)],
        input=json.dumps(told),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    response = json.loads(done.stdout)
    if "failed" in response:
        raise RuntimeError(f"{method} {url}: {response['failed']}")
    return Load(**response)


class _Clients:
    def __init__(self, told: dict[str, Any]) -> None:
        parts = urlsplit(told["url"])
        self.address = parts.hostname, parts.port
        self.clients: int = told["clients"]
        self.seconds: float | None = told["seconds"]
        self.slowly: int = told["slowly"]
        self.body = told["body"]
        self.size = os.path.getsize(self.body) if self.body else 0
        length = {"Content-Length": str(self.size)} if self.body else {}
        lines = "".join(f"{name}: {value}\r\n" for name, value in {**told["headers"], **length}.items())
        self.requests = [
            f"{told['method']} {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{lines}\r\n".encode()
            for path in told["paths"]
        ]
        self.lock = threading.Lock()
        self.next = 0
        self.done = self.received = self.sent = 0
        self.failed: list[str] = []
        self.begun = 0.0
        self.start = threading.Barrier(self.clients + 1, self._begin)

    def run(self) -> dict[str, Any]:
        threads = [threading.Thread(target=self._client) for _ in range(self.clients)]
        for thread in threads:
            thread.start()
        self.start.wait()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - self.begun
        if self.failed:
            return {"failed": self.failed[0]}
        return {"requests": self.done, "received": self.received, "sent": self.sent, "seconds": seconds}

    def _begin(self) -> None:
        self.begun = time.perf_counter()

    def _take(self) -> bytes | None:
        with self.lock:
            number, self.next = self.next, self.next + 1
        if self.seconds is None:
            return self.requests[number] if number < len(self.requests) else None
        if time.perf_counter() - self.begun > self.seconds:
            return None
        return self.requests[number % len(self.requests)]

    def _client(self) -> None:
        self.start.wait()
        connection = None
        try:
            connection = self._connect()
            while (request := self._take()) is not None and not self.failed:
                kept = self._one(connection, request)
                if not kept:
                    connection.close()
                    connection = self._connect()
        except (OSError, RuntimeError) as error:
            self.failed.append(str(error))
        finally:
            if connection is not None:
                connection.close()

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self.address, TIMEOUT)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.slowly:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        return connection

    def _one(self, connection: socket.socket, request: bytes) -> bool:
        """One request and its response; whether the connection may be used again."""
        connection.sendall(request)
        if self.body:
            with open(self.body, "rb") as file:
                self._send(connection, file)
        head = b""
        while b"\r\n\r\n" not in head:
            more = connection.recv(65536)
            if not more:
                raise RuntimeError(f"the connection ended after {head!r}")
            head += more
        head, _, rest = head.partition(b"\r\n\r\n")
        if head[9:10] != b"2":
            raise RuntimeError((head + rest)[:300].decode(errors="replace"))
        found = _LENGTH.search(head)
        length = int(found[1]) if found else 0
        if found is None and head[9:12] != b"204":
            raise RuntimeError(f"a response without length: {head!r}")
        self._discard(connection, length - len(rest))
        with self.lock:
            self.done += 1
            self.received += length
            self.sent += self.size
        return b"connection: close" not in head.lower()

    def _send(self, connection: socket.socket, file: Any) -> None:
        if not self.slowly:
            connection.sendfile(file)
            return
        while chunk := file.read(self.slowly // _TURNS):
            connection.sendall(chunk)
            time.sleep(1 / _TURNS)

    def _discard(self, connection: socket.socket, left: int) -> None:
        turn = self.slowly // _TURNS if self.slowly else left
        buffer = bytearray(min(_CHUNK, turn) or 1)
        while left:
            pause = left - min(turn, left)
            while left > pause:
                # With MSG_TRUNC, tcp(7) throws away what it would copy.
                count = connection.recv_into(buffer, min(left - pause, len(buffer)), socket.MSG_TRUNC)
                if not count:
                    raise RuntimeError(f"the connection ended {left} bytes too early")
                left -= count
            if self.slowly:
                time.sleep(1 / _TURNS)


if __name__ == "__main__":
    json.dump(_Clients(json.load(sys.stdin)).run(), sys.stdout)

# SPDX-License-Identifier: Apache-2.0
"""ScriptedServer: an HTTP server of raw sockets that answers what a test says, byte by byte, right or wrong."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple


class Request(NamedTuple):
    """What came; names of headers are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


#: Bytes to send, in pieces where something is to happen between them; ends the connection where they are empty.
Answer = bytes | Iterable[bytes]


def welcome(request: Request) -> Answer:
    """What is sent to who asks before sending the body."""
    return b"HTTP/1.1 100 Continue\r\n\r\n" if "expect" in request.headers else b""


class ScriptedServer:
    """``with ScriptedServer(answer) as server``: each request is read whole, then answered with ``answer(request)``.

    ``early(request)``, given the headers alone, says what is sent before the body is read.
    """

    def __init__(self, answer: Callable[[Request], Answer], early: Callable[[Request], Answer] = welcome) -> None:
        self.requests: list[Request] = []
        self._answer = answer
        self._early = early
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._opened: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def methods(self) -> list[str]:
        """Of the requests that came."""
        return [request.method for request in self.requests]

    @property
    def connections(self) -> int:
        """How many were accepted so far."""
        return len(self._opened)

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in (self._listener, *self._opened):
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for opened in (self._listener, *self._opened):
            opened.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._opened.append(client)
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), client.makefile("rb") as lines:
            while line := lines.readline():
                request = self._read_head(line.decode("latin-1"), lines)
                _send(client, self._early(request))
                request = request._replace(body=lines.read(int(request.headers.get("content-length", 0))))
                self.requests.append(request)
                if not _send(client, self._answer(request)):
                    break
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _read_head(line: str, lines: Iterable[bytes]) -> Request:
        method, target, _ = line.split(" ", 2)
        headers = {}
        for header in lines:
            name, _, value = header.decode("latin-1").partition(":")
            if not name.strip():
                break
            headers[name.lower()] = value.strip()
        return Request(method, target, headers, b"")


def _send(client: socket.socket, answer: Answer) -> bool:
    sent = False
    for piece in [answer] if isinstance(answer, bytes) else answer:
        client.sendall(piece)
        sent |= bool(piece)
    return sent


def reply(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> bytes:
    """One whole answer."""
    lines = {"Content-Length": str(len(body))} if status not in (204, 304) else {}
    head = "".join(f"{name}: {value}\r\n" for name, value in (lines | (headers or {})).items())
    return f"HTTP/1.1 {status} Reason\r\n{head}\r\n".encode("latin-1") + body

# SPDX-License-Identifier: Apache-2.0
"""Connections to one HTTPS server of which a store asks all: kept, each wait limited, the certificate perhaps pinned.

For clients that push the body of a PUT part by part, where urllib3 pulls it: FileUpload notices a server that responds
before the end. Response is one response with its body unread.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import select
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from storelib._version import __version__
from storelib.transfer.contract import KiB
from storelib.transfer.forking import forget_in_child
from storelib.transfer.http import connections, reading
from storelib.transfer.http.headers import whole_number

#: Bytes of one call that sends.
BLOCK = 256 * KiB
#: Idle connections that are kept: several transfers at once.
_KEPT = 8
#: Seconds that a server has to say whether a body is welcome; many never say it (RFC 9110, 10.1.1).
_WAIT_FOR_WELCOME = 1.0


class HttpError(Exception):
    """A status that is neither a file, nor that one was taken, nor the response to a call."""

    def __init__(self, method: str, status: int) -> None:
        super().__init__(f"{method}: status {status}")
        self.method = method
        self.status = status


@dataclass(frozen=True)
class Server:
    """Where it is, and how it is trusted and waited for."""

    host: str
    port: int
    context: ssl.SSLContext
    #: Algorithm of hashlib and hexadecimal digest, if the certificate is pinned.
    thumbprint: tuple[str, str] | None
    #: Seconds.
    connect_timeout: float
    read_timeout: float


class Connection(connections.ListeningConnection, http.client.HTTPSConnection):  # type: ignore[misc]
    """One connection; raises SSLCertVerificationError where it leads to another server than that of the thumbprint."""

    def __init__(self, server: Server) -> None:
        host = server.host.strip("[]")
        super().__init__(host, server.port, timeout=server.connect_timeout, context=server.context)
        self._thumbprint = server.thumbprint
        self.stall_timeout = server.read_timeout

    def connect(self) -> None:
        """Connect, and compare the certificate if it is pinned."""
        super().connect()
        try:
            self._check_certificate()
        except BaseException:
            self.close()
            raise

    def _check_certificate(self) -> None:
        if self._thumbprint is None:
            return
        algorithm, expected = self._thumbprint
        certificate: Any = self.sock.getpeercert(binary_form=True)
        found = hashlib.new(algorithm, certificate, usedforsecurity=False).hexdigest()
        if not hmac.compare_digest(found, expected):
            raise ssl.SSLCertVerificationError("the certificate has another thumbprint")

    def __del__(self) -> None:
        # A writer that was dropped has no other way to say that nothing more comes.
        self.close()

    @property
    def is_stale(self) -> bool:
        """The server has closed it, or sent what nobody asked for."""
        if self.sock is None:
            return True
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))


class Connections:
    """The idle connections to one server; safe to use from many threads, and forgotten in a forked child."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._inherited: list[list[Connection]] = []
        forget_in_child(self)

    def take(self) -> Connection:
        """A connection that is ready, for the caller alone."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                connection = Connection(self._server)
                connection.connect()
                return connection
            if not connection.is_stale:
                return connection
            connection.close()

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose last response was read to its end."""
        with self._lock:
            if connection.sock is not None and len(self._idle) < _KEPT:
                self._idle.append(connection)
                return
        connection.close()

    def drop_idle(self) -> None:
        """Close those that nobody uses."""
        with self._lock:
            dropped, self._idle = self._idle, []
        for connection in dropped:
            connection.close()

    def forget_parent(self) -> None:
        """In a forked child: neither use nor close the parent's connections, nor wait for a lock its threads held."""
        self._lock = threading.Lock()
        self._inherited.append(self._idle)
        self._idle = []

    def ask(self, method: str, target: str, headers: Mapping[str, str], body: Any = None) -> Response:
        """One request, one response with its body unread."""
        connection = self.take()
        try:
            connection.request(method, target, body, {**_HEADERS, **headers})
            return Response(self, connection, connection.getresponse())
        except BaseException:
            connection.close()
            raise


_HEADERS = {"User-Agent": f"storelib/{__version__}", "Accept-Encoding": "identity"}


class Response:
    """One response; ``discard`` it, which keeps the connection if the body was read to its end or little is left.

    ``reading.Body`` reads it as it reads one of urllib3.
    """

    def __init__(self, connections: Connections, connection: Connection, response: Any) -> None:
        self.status: int = response.status
        self.headers: http.client.HTTPMessage = response.headers
        #: Seconds that it took to begin.
        self.seconds: float = response.seconds
        self._connections = connections
        self._connection = connection
        self._fp = response

    @property
    def length(self) -> int | None:
        """Bytes that the body has by its headers."""
        return whole_number(self.headers.get("Content-Length"))

    @property
    def closed(self) -> bool:
        """The body was read to its end, or will not be."""
        return bool(self._fp.isclosed())

    def release_conn(self) -> None:
        """Give the connection back, which is of use only where nothing was left to read."""
        if not self._fp.length:
            self._connections.give_back(self._connection)

    def close(self) -> None:
        """Close the connection, unless it was given back."""
        if self._fp.length or not self.closed:
            self._connection.close()
        self._fp.close()

    def discard(self) -> None:
        """Be done with it."""
        reading.discard(self)


class FileUpload:
    """One PUT: ``begin``, ``send`` for all of the body, ``finish``; ``close`` in any case. ``size`` None: in chunks."""

    def __init__(self, connections: Connections, target: str, cookies: Mapping[str, str], size: int | None) -> None:
        self._connections = connections
        self._connection = connections.take()
        self._chunked = size is None
        length = {"Transfer-Encoding": "chunked"} if size is None else {"Content-Length": str(size)}
        # Of nothing the server may tell at once that it took it.
        self._asks = size != 0
        self._head = {**_HEADERS, **cookies, **length, **({"Expect": "100-continue"} if self._asks else {})}
        self._target = target
        #: The login that it was begun with, for its session to know.
        self.login: Any = None

    def begin(self) -> None:
        """Send the headers; raises HttpError where the server refuses what would follow."""
        connection = self._connection
        connection.putrequest("PUT", self._target, skip_accept_encoding=True)
        for name, value in self._head.items():
            connection.putheader(name, value)
        connection.endheaders()
        if self._asks:
            connection.await_welcome(_WAIT_FOR_WELCOME)
        self._raise_early()

    def send(self, data: memoryview) -> None:
        """The next bytes; raises HttpError where the server has answered and wants no more of them."""
        if not data:
            return
        if self._chunked:
            self._send(b"%x\r\n" % len(data))
        for start in range(0, len(data), BLOCK):
            self._send(data[start : start + BLOCK])
        if self._chunked:
            self._send(b"\r\n")

    def finish(self) -> None:
        """End the body and read the response; raises HttpError unless the server says that it took it."""
        if self._chunked:
            self._send(b"0\r\n\r\n")
        self._read_response()

    def close(self) -> None:
        """Break off what has not ended."""
        self._connection.close()

    def _send(self, data: Any) -> None:
        self._connection.send(data)
        self._raise_early()

    def _raise_early(self) -> None:
        if self._connection.has_responded:
            self._read_response()
            # A success is of a part of the image only.
            raise HttpError("PUT", http.HTTPStatus.OK)

    def _read_response(self) -> None:
        response = self._connection.getresponse()
        status = response.status
        if self._connection.has_responded:
            # The rest of the body will never be sent, so nothing else can be.
            response.close()
            self._connection.close()
        else:
            Response(self._connections, self._connection, response).discard()
        if status not in (http.HTTPStatus.OK, http.HTTPStatus.CREATED, http.HTTPStatus.NO_CONTENT):
            raise HttpError("PUT", status)

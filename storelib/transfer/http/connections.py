# SPDX-License-Identifier: Apache-2.0
"""Connections whose responses are whole and final, for urllib3 and what builds on it, which is imported when needed."""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from storelib.transfer.deadlines import within
from storelib.transfer.http.responses import EarlyResponse, WholeResponse
from storelib.transfer.partfile import Unread


class Connection:
    """Mixed into a connection of urllib3: connecting, TLS included, takes no longer than the thread has left.

    Each response has ``seconds``, which it took to begin once the connection was ready for the request.
    """

    response_class: Callable[..., WholeResponse] = WholeResponse
    timeout: Any
    _ready = 0.0

    def connect(self) -> None:
        own, self.timeout = self.timeout, within(self.timeout)
        try:
            super().connect()  # type: ignore[misc]
        finally:
            self.timeout = own
        self._ready = time.monotonic()

    def request(self, *arguments: Any, **options: Any) -> Any:
        self._ready = time.monotonic()
        return super().request(*arguments, **options)  # type: ignore[misc]

    def getresponse(self) -> Any:
        response = super().getresponse()  # type: ignore[misc]
        response.seconds = time.monotonic() - self._ready
        return response


class ListeningConnection(Connection):
    """Gives up after ``stall_timeout`` seconds without progress, and stops sending a body when a response has begun.

    http.client and urllib3 let the whole of a body take as long as connecting may, and do not see that a server
    responds while it is still going out; one that reads no further would be waited for.
    """

    #: Seconds; not http.client's own ``timeout``, which is that of connecting.
    stall_timeout: float
    sock: Any
    # Once it holds the beginning of the final response, the connection is of no more use for what is still to be sent.
    _early: EarlyResponse

    def connect(self) -> None:
        self._early = EarlyResponse()
        super().connect()
        self.sock.settimeout(self.stall_timeout)

    def putrequest(self, *arguments: Any, **options: Any) -> Any:
        self._early = EarlyResponse()
        return super().putrequest(*arguments, **options)  # type: ignore[misc]

    @property
    def has_responded(self) -> bool:
        """The final response has begun, and nothing more is sent before it is read."""
        return self._early.final

    def await_welcome(self, seconds: float) -> None:
        """Wait until the server says that the body is welcome or begins the final response, but no longer than that."""
        deadline = time.monotonic() + seconds
        welcome = False
        while not (welcome or self._early.final) and (left := deadline - time.monotonic()) > 0:
            welcome = self._take_byte(left)

    def send(self, data: Any) -> None:
        if self._early.final:
            return
        # With TLS, what can be read need not be a response; there each send has a time limit of its own.
        if type(self.sock) is not socket.socket:
            self._send_encrypted(data.read() if isinstance(data, Unread) else data)
            return
        poll = select.poll()
        poll.register(self.sock, select.POLLIN | select.POLLOUT)
        left = data if isinstance(data, Unread) else memoryview(data)
        while left and not self._early.final:
            ready = poll.poll(self.stall_timeout * 1000)
            if not ready:
                raise TimeoutError("the server takes no more bytes")
            if ready[0][1] & select.POLLIN:
                self._take_byte(self.stall_timeout)
            elif isinstance(left, Unread):
                left.send_to(self.sock)
            else:
                left = left[self.sock.send(left) :]

    def _send_encrypted(self, data: Any) -> None:
        self._listen()
        if self._early.final:
            return
        try:
            super().send(data)  # type: ignore[misc]
        except OSError:
            # The server may have responded before it closed, which says more.
            with contextlib.suppress(OSError):
                self._listen()
            if not self._early.final:
                raise

    def _listen(self) -> None:
        """Take what has come of a response."""
        while not self._early.final and isinstance(self.sock, ssl.SSLSocket) and self._something_came():
            self._take_byte(0.0)

    def _something_came(self) -> bool:
        """Of the response, or of what TLS has to say."""
        if self.sock.pending():
            return True
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))

    def getresponse(self) -> Any:
        self.response_class = functools.partial(WholeResponse, early=self._early)
        response = super().getresponse()
        if self._early.final and self.sock is not None:
            # The response keeps what it needs of the socket; close() would close the response as well.
            self.sock.close()
            self.sock = None
        return response

    def _take_byte(self, seconds: float) -> bool:
        """Take one byte of an early response, if one comes in that time; returns whether it ended a "100 Continue"."""
        self.sock.settimeout(seconds)
        try:
            return self._early.take(self.sock.recv(1))
        except (TimeoutError, ssl.SSLWantReadError):
            return False
        finally:
            self.sock.settimeout(self.stall_timeout)


def pool_classes(
    kind: type[Connection] = Connection, plain: Any = None, tls: Any = None, **attributes: Any
) -> dict[str, Any]:
    """Pools of such connections by scheme: a PoolManager's ``pool_classes_by_scheme``.

    ``plain`` and ``tls`` are the classes of connections they are mixed into, urllib3's if not given; ``attributes`` are
    set on the classes made.
    """
    import urllib3

    plain = type("PlainConnection", (kind, plain or urllib3.connection.HTTPConnection), attributes)
    tls = type("TlsConnection", (kind, tls or urllib3.connection.HTTPSConnection), attributes)
    return {
        "http": type("PlainPool", (urllib3.HTTPConnectionPool,), {"ConnectionCls": plain}),
        "https": type("TlsPool", (urllib3.HTTPSConnectionPool,), {"ConnectionCls": tls}),
    }

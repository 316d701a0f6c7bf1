# SPDX-License-Identifier: Apache-2.0
"""The connections of a client: botocore's, with three holes stopped.

Headers that were cut are an error. urllib3 lets the whole of a request's body take as long as connecting may. And
neither sees that a server answers while the body is still going out; one that reads no further would be waited for.
"""

from __future__ import annotations

import math
import select
import socket
import time
from typing import Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)

from storelib.transfer.responses import WholeResponse


class Distance:
    """How far away a server is: ``seconds`` that its quickest answer so far took, whatever it had to do for others.

    urllib3 keeps connections until their pool is collected, so nothing that a connection knows may lead to the client.
    """

    seconds = math.inf

    def note(self, seconds: float) -> None:
        """An answer took so long to begin."""
        self.seconds = min(self.seconds, seconds)


class _Patient:
    """Gives up after ``patience`` seconds without progress, and stops sending when there is an answer."""

    response_class = WholeResponse
    patience: float
    distance: Distance
    sock: Any
    _begun = 0.0
    # The server answered before the body was sent; the connection is of no more use after that.
    _answered = False

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self.sock.settimeout(self.patience)

    def request(self, *arguments: Any, **options: Any) -> Any:
        self._answered = False
        self._begun = time.monotonic()
        return super().request(*arguments, **options)  # type: ignore[misc]

    def send(self, data: Any) -> None:
        if self._answered:
            return
        # With TLS, what can be read need not be an answer; there each send has a time limit of its own.
        if type(self.sock) is not socket.socket or getattr(self, "_response_received", False):
            super().send(data)  # type: ignore[misc]
            return
        poll = select.poll()
        poll.register(self.sock, select.POLLIN | select.POLLOUT)
        view = memoryview(data)
        while view and not self._answered:
            ready = poll.poll(self.patience * 1000)
            if not ready:
                raise TimeoutError("the server takes no more bytes")
            if ready[0][1] & select.POLLIN:
                self._answered = True
            else:
                view = view[self.sock.send(view) :]

    def getresponse(self) -> Any:
        response = super().getresponse()  # type: ignore[misc]
        self.distance.note(time.monotonic() - self._begun)
        if self._answered and self.sock is not None:
            # The response keeps what it needs of the socket; close() would close the response as well.
            self.sock.close()
            self.sock = None
        return response


def use(client: Any, timeout: float, to_server: Distance) -> None:
    """Have ``client`` make such connections, on which ``timeout`` seconds without progress are too many."""

    class Connection(_Patient, AWSHTTPConnection):  # type: ignore[misc]
        patience = timeout
        distance = to_server

    class TlsConnection(_Patient, AWSHTTPSConnection):  # type: ignore[misc]
        patience = timeout
        distance = to_server

    class Pool(AWSHTTPConnectionPool):  # type: ignore[misc]
        ConnectionCls = Connection

    class TlsPool(AWSHTTPSConnectionPool):  # type: ignore[misc]
        ConnectionCls = TlsConnection

    # Botocore has no public way to say so; tests see to it that this one works.
    session = client._endpoint.http_session
    session._pool_classes_by_scheme = {"http": Pool, "https": TlsPool}
    session._manager.pool_classes_by_scheme = session._pool_classes_by_scheme

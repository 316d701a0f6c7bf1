# SPDX-License-Identifier: Apache-2.0
"""The connections of a client: botocore's, with four holes stopped.

Headers that were cut are an error. urllib3 lets the whole of a request's body take as long as connecting may. Neither
sees that a server answers while the body is still going out; one that reads no further would be waited for. And
botocore takes any interim answer but "100 Continue" for the final one.
"""

from __future__ import annotations

import functools
import math
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)

from storelib.transfer.deadlines import PunctualConnection
from storelib.transfer.responses import EarlyAnswer, WholeResponse

#: Seconds that a server has to say whether the body is welcome; many never say it (RFC 9110, 10.1.1).
_WAIT_FOR_WELCOME = 1.0


class Distance:
    """How far away a server is: ``seconds`` that its quickest answer so far took, whatever it had to do for others.

    urllib3 keeps connections until their pool is collected, so nothing that a connection knows may lead to the client.
    """

    seconds = math.inf

    def note(self, seconds: float) -> None:
        """An answer took so long to begin."""
        self.seconds = min(self.seconds, seconds)


class _Patient(PunctualConnection):
    """Gives up after ``stall_timeout`` seconds without progress, and stops sending when there is an answer."""

    response_class: Callable[..., WholeResponse] = WholeResponse
    #: Not http.client's own ``timeout``, which is that of connecting.
    stall_timeout: float
    distance: Distance
    sock: Any
    _begun = 0.0
    # Once it holds the beginning of the final answer, the connection is of no more use for what is still to be sent.
    _early: EarlyAnswer

    def connect(self) -> None:
        self._early = EarlyAnswer()
        super().connect()
        self.sock.settimeout(self.stall_timeout)

    def request(self, *arguments: Any, **options: Any) -> Any:
        self._early = EarlyAnswer()
        self._begun = time.monotonic()
        return super().request(*arguments, **options)  # type: ignore[misc]

    def _handle_expect_response(self, message_body: Any) -> None:
        """What botocore calls when something came after headers that ask whether the body is welcome."""
        deadline = time.monotonic() + _WAIT_FOR_WELCOME
        welcome = False
        while not (welcome or self._early.final) and (left := deadline - time.monotonic()) > 0:
            welcome = self._take_byte(left)
        if message_body is not None:
            self.send(message_body)

    def send(self, data: Any) -> None:
        if self._early.final:
            return
        # With TLS, what can be read need not be an answer; there each send has a time limit of its own.
        if type(self.sock) is not socket.socket:
            super().send(data)  # type: ignore[misc]
            return
        poll = select.poll()
        poll.register(self.sock, select.POLLIN | select.POLLOUT)
        view = memoryview(data)
        while view and not self._early.final:
            ready = poll.poll(self.stall_timeout * 1000)
            if not ready:
                raise TimeoutError("the server takes no more bytes")
            if ready[0][1] & select.POLLIN:
                self._take_byte(self.stall_timeout)
            else:
                view = view[self.sock.send(view) :]

    def _take_byte(self, seconds: float) -> bool:
        """One byte of an early answer, if one comes in that time; whether it ended a "100 Continue"."""
        self.sock.settimeout(seconds)
        try:
            return self._early.take(self.sock.recv(1))
        except TimeoutError:
            return False
        finally:
            self.sock.settimeout(self.stall_timeout)

    def getresponse(self) -> Any:
        self.response_class = functools.partial(WholeResponse, early=self._early)
        response = super().getresponse()  # type: ignore[misc]
        self.distance.note(time.monotonic() - self._begun)
        if self._early.final and self.sock is not None:
            # The response keeps what it needs of the socket; close() would close the response as well.
            self.sock.close()
            self.sock = None
        return response


def use(client: Any, timeout: float, to_server: Distance) -> None:
    """Have ``client`` make such connections, on which ``timeout`` seconds without progress are too many."""

    class Connection(_Patient, AWSHTTPConnection):  # type: ignore[misc]
        stall_timeout = timeout
        distance = to_server

    class TlsConnection(_Patient, AWSHTTPSConnection):  # type: ignore[misc]
        stall_timeout = timeout
        distance = to_server

    class Pool(AWSHTTPConnectionPool):  # type: ignore[misc]
        ConnectionCls = Connection

    class TlsPool(AWSHTTPSConnectionPool):  # type: ignore[misc]
        ConnectionCls = TlsConnection

    # Botocore has no public way to say so; tests see to it that this one works.
    session = client._endpoint.http_session
    session._pool_classes_by_scheme = {"http": Pool, "https": TlsPool}
    session._manager.pool_classes_by_scheme = session._pool_classes_by_scheme

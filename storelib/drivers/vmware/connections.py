# SPDX-License-Identifier: Apache-2.0
"""Connections to one vCenter: kept, verified as the options say and not as the environment does, each wait limited.

Answer is one response with its body unread; FileUpload a PUT whose body is pushed, by a server that may answer
before its end. What is asked is for others to know.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import http.client
import select
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any

from storelib._version import __version__
from storelib.drivers.vmware.errors import HttpError
from storelib.drivers.vmware.options import Settings
from storelib.exceptions import misconfigured
from storelib.transfer.contract import KiB, Options
from storelib.transfer.forking import forget_in_child
from storelib.transfer.http import connections, reading
from storelib.transfer.http.headers import whole_number
from storelib.transfer.http.responses import EarlyResponse, WholeResponse

#: Bytes of one call that sends.
BLOCK = 256 * KiB
#: Idle connections that are kept: several transfers at once.
_KEPT = 8
#: Seconds that a server has to say whether a body is welcome; many never say it (RFC 9110, 10.1.1).
_WAIT_FOR_WELCOME = 1.0


class Connection(connections.Connection, http.client.HTTPSConnection):  # type: ignore[misc]
    """One connection; raises SSLCertVerificationError where it leads to another server than that of the thumbprint."""

    def __init__(self, settings: Settings, context: ssl.SSLContext, connect_timeout: float, timeout: float) -> None:
        super().__init__(settings.host.strip("[]"), settings.port, timeout=connect_timeout, context=context)
        self._thumbprint = settings.thumbprint
        self.read_timeout = timeout

    def connect(self) -> None:
        """Connect, and compare the certificate if it is pinned."""
        super().connect()
        try:
            self._check_certificate()
        except BaseException:
            self.close()
            raise
        self.sock.settimeout(self.read_timeout)

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
    """Safe to use from many threads; raises BadStoreConfiguration for a file of certificates that cannot be used."""

    def __init__(self, conf: Options, settings: Settings, store_name: str) -> None:
        self._settings = settings
        self._context = _tls_context(conf, settings, store_name)
        # No longer than the whole transfer may stand still.
        longest = conf.transfer_timeout
        self._timeouts = min(conf.vmware_connect_timeout, longest), min(conf.vmware_read_timeout, longest)
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
                connection = Connection(self._settings, self._context, *self._timeouts)
                connection.connect()
                return connection
            if not connection.is_stale:
                return connection
            connection.close()

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose last answer was read to its end."""
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

    def ask(self, method: str, target: str, headers: Mapping[str, str], body: Any = None) -> Answer:
        """One request, one answer with its body unread."""
        connection = self.take()
        try:
            connection.request(method, target, body, {**_HEADERS, **headers})
            return Answer(self, connection, connection.getresponse())
        except BaseException:
            connection.close()
            raise


_HEADERS = {"User-Agent": f"storelib/{__version__}", "Accept-Encoding": "identity"}


class Answer:
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
        self._early = EarlyResponse()
        self._welcome = False
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
        end = time.monotonic() + _WAIT_FOR_WELCOME
        while self._asks and not self._welcome and not self._early.final and (left := end - time.monotonic()) > 0:
            self._take_byte(left)
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
        """End the body and read the answer; raises HttpError unless the server says that it took it."""
        if self._chunked:
            self._send(b"0\r\n\r\n")
        self._read_answer()

    def close(self) -> None:
        """Break off what has not ended."""
        self._connection.close()

    def _send(self, data: Any) -> None:
        self._listen()
        try:
            self._connection.send(data)
        except OSError:
            # The server may have answered before it closed, which says more.
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._listen()
            raise

    def _listen(self) -> None:
        """Take what has come of an answer; raises HttpError where it is the final one."""
        while not self._early.final and self._something_came() and self._take_byte(0.0):
            pass
        self._raise_early()

    def _something_came(self) -> bool:
        """Of the answer, or of what TLS has to say."""
        sock: Any = self._connection.sock
        if sock.pending():
            return True
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))

    def _take_byte(self, seconds: float) -> bool:
        """Take one byte of an early answer; returns whether one came in that time."""
        sock: Any = self._connection.sock
        sock.settimeout(seconds)
        try:
            self._welcome |= self._early.take(sock.recv(1))
        except (TimeoutError, ssl.SSLWantReadError):
            return False
        finally:
            sock.settimeout(self._connection.read_timeout)
        return True

    def _raise_early(self) -> None:
        if self._early.final:
            self._read_answer()
            # A success is of a part of the image only.
            raise HttpError("PUT", http.HTTPStatus.OK)

    def _read_answer(self) -> None:
        self._connection.response_class = functools.partial(WholeResponse, early=self._early)
        response = self._connection.getresponse()
        status = response.status
        if self._early.final:
            # The rest of the body will never be sent, so nothing else can be.
            response.close()
            self._connection.close()
        else:
            del self._connection.response_class
            Answer(self._connections, self._connection, response).discard()
        if status not in (http.HTTPStatus.OK, http.HTTPStatus.CREATED, http.HTTPStatus.NO_CONTENT):
            raise HttpError("PUT", status)


def _tls_context(conf: Options, settings: Settings, store_name: str) -> ssl.SSLContext:
    """Verifies against the given certificates alone, or else the system's."""
    # Not create_default_context(): that fails for a SSLKEYLOGFILE that cannot be written, and since Python 3.13 refuses
    # certificates that vCenters make for themselves.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if not conf.vmware_ca_file:
        context.load_default_certs()
    try:
        if conf.vmware_ca_file:
            context.load_verify_locations(conf.vmware_ca_file)
    except OSError as error:  # ssl.SSLError is one
        why = f"no certificates can be read from {conf.vmware_ca_file}: {error.strerror}"
        raise misconfigured(store_name, "vmware_ca_file", why) from None
    if conf.vmware_insecure or settings.thumbprint is not None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context

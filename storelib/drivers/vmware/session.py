# SPDX-License-Identifier: Apache-2.0
"""Session: one login to a vCenter for all threads of a store, made at first use and anew when vCenter has ended it.

pyVmomi speaks SOAP over the store's own connections; files travel over the same, with the same cookies.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import os
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pyVmomi import vim, vmodl
from pyVmomi.SoapAdapter import SoapStubAdapter

from storelib.drivers.vmware.errors import NothingTold, NotSoap, is_session_lost
from storelib.drivers.vmware.options import Settings
from storelib.exceptions import TransferTimeout, misconfigured
from storelib.transfer import deadlines
from storelib.transfer.contract import Options
from storelib.transfer.forking import forget_in_child
from storelib.transfer.http.server import Answer, Connection, Connections, FileUpload, HttpError, Server

T = TypeVar("T")

#: What every vCenter since 5.5 speaks, newer ones too.
_VERSION = "vim.version.version9"
_SOAP = ("text/xml", "application/xml", "application/soap+xml")
#: Seconds between the first two looks at a task; each pause is twice the one before.
_FIRST_PAUSE = 0.02
#: All of a task would include what it is about, which the simulator of govmomi gives a wrong type.
_OF_TASK = ("info.state", "info.error", "info.result", "info.progress")
#: Seconds after which a session is shown that its client is there; vCenter ends it after 30 minutes without a call.
_KEEP_ALIVE = 300.0
#: Seconds that saying goodbye may take.
_GOODBYE = 2.0


class Session:
    """Safe to use from many threads; opens no connection before it is first used, and forgets all in a forked child."""

    def __init__(self, conf: Options, settings: Settings, store_name: str) -> None:
        self._conf = conf
        self._store_name = store_name
        self._connections = Connections(_server(conf, settings, store_name))
        self._lock = threading.Lock()
        self._logins: list[Login] = []
        self._used = time.monotonic()
        #: Seconds that the quickest answer about a file took: how far away vCenter is, however busy.
        self.latency = math.inf
        forget_in_child(self)
        weakref.finalize(self, _log_out, self._logins)

    # -- What vCenter is asked ----------------------------------------------------------------------------------

    def call(self, ask: Callable[[Login], T]) -> T:
        """``ask(login)``, and once more with a new login where the session turns out to have ended."""
        login = self._login()
        try:
            return ask(login)
        except Exception as error:
            if not is_session_lost(error):
                raise
        return ask(self._login(instead_of=login))

    def run(self, start: Callable[[Login], Any], subject: str, allowance: float = 0.0) -> Any:
        """Start a task, wait for it and return its result; raises what it ended with.

        TransferTimeout after ``transfer_timeout`` and ``allowance`` seconds without progress.
        """
        task = self.call(start)
        longest = self._conf.transfer_timeout + allowance
        end, pause, progress = time.monotonic() + longest, _FIRST_PAUSE, None
        while True:
            [told] = self.properties([task], *_OF_TASK)
            if told["info.state"] == "success":
                return told.get("info.result")
            if told["info.state"] == "error":
                raise told["info.error"]
            if told.get("info.progress") != progress:
                progress, end = told.get("info.progress"), time.monotonic() + longest
                deadlines.progress()
            if time.monotonic() > end:
                self._cancel(task)
                raise TransferTimeout(f"{subject}: a task of vCenter does not end")
            time.sleep(deadlines.within(pause))
            pause = min(2 * pause, self._conf.vmware_task_poll_interval)

    def properties(self, objects: Sequence[Any], *paths: str) -> list[dict[str, Any]]:
        """Properties of managed objects of one kind; raises NothingTold where the first of them is left out."""
        collector = vmodl.query.PropertyCollector
        spec = collector.FilterSpec(
            objectSet=[collector.ObjectSpec(obj=each) for each in objects],
            propSet=[collector.PropertySpec(type=type(objects[0]), pathSet=list(paths))],
        )

        def retrieve(login: Login) -> list[dict[str, Any]]:
            found = login.content.propertyCollector.RetrieveContents([spec]) or ()
            values = {each.obj._moId: {told.name: told.val for told in each.propSet} for each in found}
            ordered = [values.get(each._moId, {}) for each in objects]
            if not all(paths[0] in told for told in ordered):
                raise NothingTold(paths[0])
            return ordered

        return self.call(retrieve)

    def now(self) -> float:
        """What time it is for vCenter, in POSIX seconds."""
        moment = self.call(lambda login: login.instance.CurrentTime())
        return float(moment.timestamp())

    def keep_alive(self) -> None:
        """Call now and then while a long transfer is under way: the session must not end for want of calls."""
        if time.monotonic() - self._used > _KEEP_ALIVE:
            # What is wrong with it will show when the transfer has ended, and may be over by then.
            with contextlib.suppress(Exception):
                self.now()

    # -- Files ------------------------------------------------------------------------------------------------

    def ask(self, method: str, target: str, headers: Mapping[str, str] | None = None) -> Answer:
        """A request about a file; the answer is any but that there is no session."""

        def send(login: Login) -> Answer:
            answer = self._connections.ask(method, target, {**(headers or {}), **login.cookies})
            self.latency = min(self.latency, answer.seconds)
            if answer.status == 401:
                answer.discard()
                raise HttpError(method, answer.status)
            return answer

        return self.call(send)

    def upload(self, target: str, size: int | None) -> FileUpload:
        """A PUT that the server is ready to take the body of; where it ends with a 401, ``doubt`` its session."""

        def begin(login: Login) -> FileUpload:
            upload = FileUpload(self._connections, target, login.cookies, size)
            upload.login = login
            try:
                upload.begin()
            except BaseException:
                upload.close()
                raise
            return upload

        return self.call(begin)

    # -- Logging in -------------------------------------------------------------------------------------------

    def _login(self, instead_of: Login | None = None) -> Login:
        self._used = time.monotonic()
        with self._lock:
            if not self._logins or self._logins[0] is instead_of:
                login = Login(self._connections, self._conf.vmware_server_username, self._conf.vmware_server_password)
                self._logins[:] = [login]
                if instead_of is not None:
                    # Where it was only doubted: a vCenter has only so many.
                    instead_of.end()
            return self._logins[0]

    def doubt(self, upload: FileUpload) -> None:
        """Log in anew before the next question, unless that was done since: the login of this upload was refused."""
        with self._lock:
            if self._logins and self._logins[0] is upload.login:
                self._logins.clear()
        upload.login.end()

    def _cancel(self, task: Any) -> None:
        with contextlib.suppress(Exception):
            self.call(lambda login: login.object(task).CancelTask())

    def forget_parent(self) -> None:
        """In a forked child: log in anew; the parent's session is not the child's to end."""
        self._lock = threading.Lock()
        self._logins.clear()


class Login:
    """One session of vCenter with its cookies."""

    def __init__(self, connections: Connections, user: str, password: str) -> None:
        self.process = os.getpid()
        self._jar: dict[str, str] = {}
        self._connections = connections
        self.stub = _Stub(connections, self._jar)
        self.instance: Any = vim.ServiceInstance("ServiceInstance", self.stub)
        self.content: Any = self.instance.RetrieveContent()
        self.content.sessionManager.Login(user, password)

    @property
    def cookies(self) -> dict[str, str]:
        """The header that has all of them."""
        return _cookie_header(self._jar)

    def object(self, known: Any) -> Any:
        """A managed object, asked through this session."""
        return type(known)(known._moId, self.stub)

    def end(self) -> None:
        """End the session, unless vCenter has done so."""
        with contextlib.suppress(Exception), deadlines.at_most(_GOODBYE):
            self.content.sessionManager.Logout()

    def leave(self) -> None:
        """End the session and close the connections."""
        self.end()
        self._connections.drop_idle()


def _log_out(logins: list[Login]) -> None:
    """When the session's owner is gone, or the process ends; in a child, not the parent's."""
    for login in logins:
        if login.process == os.getpid():
            login.leave()


# -- SOAP over our own connections ----------------------------------------------------------------------------


class _Stub(SoapStubAdapter):  # type: ignore[misc]
    """What pyVmomi sends its calls through: it would trust other certificates, wait for ever, and send one cookie."""

    def __init__(self, connections: Connections, jar: dict[str, str]) -> None:
        super().__init__(host="vcenter", version=_VERSION, acceptCompressedResponses=False)
        self._own = connections
        self._jar = jar

    def GetConnection(self) -> _SoapConnection:  # noqa: N802
        return _SoapConnection(self._own.take(), self._jar)

    def ReturnConnection(self, conn: _SoapConnection) -> None:  # noqa: N802
        self._own.give_back(conn.connection)

    def DropConnections(self) -> None:  # noqa: N802
        self._own.drop_idle()


class _SoapConnection:
    """A connection as pyVmomi uses it."""

    def __init__(self, connection: Connection, jar: dict[str, str]) -> None:
        self.connection = connection
        self._jar = jar

    def request(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> None:
        sent = {name: value for name, value in headers.items() if name != "Cookie"}
        self.connection.request(method, path, body, {**sent, **_cookie_header(self._jar)})

    def getresponse(self) -> Any:
        response = self.connection.getresponse()
        try:
            _check_soap(response)
        except BaseException:
            response.close()
            self.close()
            raise
        for cookie in response.headers.get_all("Set-Cookie", ()):
            name, _, value = cookie.partition(";")[0].partition("=")
            self._jar[name.strip()] = value.strip()
        # Some versions of pyVmomi fail where there are several.
        del response.headers["Set-Cookie"]
        return response

    def close(self) -> None:
        self.connection.close()


def _check_soap(response: http.client.HTTPResponse) -> None:
    """Raise unless it is an answer to a call, of success or not: pyVmomi takes a page for an answer without content."""
    if response.status not in (http.HTTPStatus.OK, http.HTTPStatus.INTERNAL_SERVER_ERROR):
        raise HttpError("POST", response.status)
    if response.headers.get_content_type() not in _SOAP:
        raise NotSoap("a page, or something else that is no answer to a call")


def _cookie_header(jar: Mapping[str, str]) -> dict[str, str]:
    cookies = "; ".join(f"{name}={value}" for name, value in dict(jar).items())
    return {"Cookie": cookies} if cookies else {}


def _server(conf: Options, settings: Settings, store_name: str) -> Server:
    """The vCenter; raises BadStoreConfiguration for a file of certificates that cannot be used."""
    # No longer than the whole transfer may stand still.
    timeouts = (
        min(seconds, conf.transfer_timeout) for seconds in (conf.vmware_connect_timeout, conf.vmware_read_timeout)
    )
    context = _tls_context(conf, settings, store_name)
    return Server(settings.host, settings.port, context, settings.thumbprint, *timeouts)


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

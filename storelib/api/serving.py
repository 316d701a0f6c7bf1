# SPDX-License-Identifier: Apache-2.0
"""How the image API is served: gunicorn with threads, asked to do nothing but carry requests.

What cannot work is refused before a socket is bound. Stopping finishes what is under way, then cuts connections, so
that unfinished uploads end as failed ones do and leave nothing. What SIGKILL leaves is undone at the next start.
"""

from __future__ import annotations

import gc
import ipaddress
import os
import select
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.workers.gthread import ThreadWorker
from oslo_config import cfg

from storelib.api import config, request_body
from storelib.api.access_log import AccessLog
from storelib.api.app import Application, build_wsgi, create_app
from storelib.api.arbiter import HELD_BACK, RETIRE, Arbiter
from storelib.api.db import open_repository
from storelib.api.lingering import Lingering
from storelib.api.middleware.metrics_files import mark_process_dead
from storelib.api.service import Service
from storelib.api.systemd import forget_sockets, socket_of_manager
from storelib.api.unknown_options import warn_of_unknown_options
from storelib.exceptions import BadStoreConfiguration
from storelib.registry import Registry

#: Seconds a client may be silent in the middle of a body.
SILENCE = 300.0
#: Seconds in which the headers of a request must have come, once they begin.
HEADERS = 10.0
#: Seconds that uploads whose connection was cut have for removing what they wrote.
CLEANUP = 15.0
#: Seconds that a small request waits for others to end before it runs beside them. Threads that run at once
#: fight for the interpreter at each row that SQLite gives them: in turn they serve a fifth more.
TURN = 0.01
#: Bytes of an unread body that gunicorn certainly reads to keep the connection.
_SMALL = 32768
#: Seconds between two looks at whether to stop.
_POLL = 0.2
#: Milliseconds that a thread waits for the next request of its client before it takes another's.
_LINGER = 1
# Image properties travel as headers in v1, each with its own; gunicorn's default is 100.
_HEADERS = 1000
#: Bytes of all headers: gunicorn looks at all that came for each piece that comes, which for 8 MiB costs seconds.
_ALL_HEADERS = 1536 * 1024
_REQUEST_LINE = 8190
_BACKLOG = 2048
#: Seconds; a century.
_FOR_EVER = 100 * 365 * 86400


class Address:
    """``HOST:PORT``, ``[IPv6]:PORT`` or ``unix:PATH``; port 0 is any free one. ``systemd``: the socket it gives."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._local: bool | None = None
        self.inherited = text == "systemd"
        self.path = text.removeprefix("unix:") if text.startswith("unix:") else None
        if self.path is not None:
            if not self.path:
                raise BadStoreConfiguration("--bind unix: needs the path of a socket")
            return
        if self.inherited:
            return
        host, _, port = text.rpartition(":")
        if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise BadStoreConfiguration(f"--bind {text} is not HOST:PORT, [IPv6]:PORT or unix:PATH")
        self.host, self.port = host.removeprefix("[").removesuffix("]"), int(port)

    def is_local(self) -> bool:
        """Whether only this machine can reach it; found out once, as the socket is made once."""
        if self._local is None:
            self._local = self._is_local()
        return self._local

    def _is_local(self) -> bool:
        if self.inherited:
            with socket_of_manager() as listening:
                name = listening.getsockname()
                return listening.family == socket.AF_UNIX or _is_loopback(name[0])
        return self.path is not None or all(_is_loopback(str(found[4][0])) for found in self._resolved())

    def bind(self) -> socket.socket:
        """A bound socket; raises BadStoreConfiguration saying why not."""
        if self.inherited:
            return socket_of_manager()
        if self.path is not None:
            return self._bind(socket.AF_UNIX, self.path)
        family, _, _, _, address = self._resolved()[0]
        return self._bind(family, address)

    def _resolved(self) -> list[Any]:
        try:
            return socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise BadStoreConfiguration(f"--bind {self.text}: there is no such host: {why}") from error

    def _bind(self, family: int, address: Any) -> socket.socket:
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family == socket.AF_UNIX:
                _remove_dead_socket(address)
            else:
                # What SO_REUSEADDR lets through on Linux are connections that linger, not servers that listen.
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(_BACKLOG)
        except OSError as error:
            bound.close()
            raise BadStoreConfiguration(f"cannot listen on --bind {self.text}: {error.strerror}") from error
        return bound


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _remove_dead_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass


@dataclass(frozen=True)
class Settings:
    """How to serve. ``grace`` is how many seconds requests under way may go on after a signal to stop."""

    address: Address
    workers: int = 1
    threads: int = 64
    certfile: str | None = None
    keyfile: str | None = None
    grace: float = 30.0
    access_log: str | None = None
    allow_noauth_anywhere: bool = False
    verbose: bool = False


def check(conf: cfg.ConfigOpts, settings: Settings) -> None:
    """Raise what a start would fail with, before anything listens. An absent or empty SQLite database is made.

    Raises BadStoreConfiguration, BadDatabase, DatabaseUnavailable.
    """
    config.register_opts(conf)
    config.read_options(conf)
    if conf.api.auth_strategy == "noauth" and not settings.allow_noauth_anywhere and not settings.address.is_local():
        raise BadStoreConfiguration(
            f"--bind {settings.address.text} can be reached from other machines, and with [api] auth_strategy = "
            f"noauth {_source(conf)} every client that reaches it is an administrator; set auth_strategy to "
            "keystone or http_basic, bind 127.0.0.1, or insist with --allow-noauth-anywhere"
        )
    _check_tls(settings)
    _check_log(settings.access_log)
    repository = open_repository(conf)
    try:
        # Made and dropped: policy, schemas, files of users and the like are read here. It starts no thread, so that
        # the workers are forked from a process with a single one.
        build_wsgi(conf, Service(conf, repository, Registry.from_conf(conf)))
        warn_of_unknown_options(conf)
    finally:
        repository.close()


def run(
    conf: cfg.ConfigOpts,
    settings: Settings,
    announce: Callable[[str], None],
    read_again: Callable[[], cfg.ConfigOpts] | None = None,
) -> None:
    """Serve until a signal says to stop. ``announce`` is told the URL once something listens there.

    SIGTERM and SIGINT stop gracefully, a second SIGINT and SIGQUIT at once; it ends with SystemExit. After SIGHUP new
    workers serve with the configuration that ``read_again`` returns, if ``check`` has nothing against it.
    """
    # Sockets handed over by another gunicorn were not checked, so they are not served.
    for name in ("GUNICORN_PID", "GUNICORN_FD"):
        os.environ.pop(name, None)
    settings.address.is_local()
    listener = settings.address.bind()
    forget_sockets()
    url = _url(settings, listener)

    def read() -> cfg.ConfigOpts:
        found = conf if read_again is None else read_again()
        check(found, settings)
        return found

    # Workers share the memory of all that is imported here for as long as none writes to it, and a collection of
    # garbage writes to every object that it looks at.
    gc.collect()
    gc.freeze()
    Arbiter(_Gunicorn(conf, settings, listener.detach(), lambda: announce(url)), url, read).run()


def _source(conf: cfg.ConfigOpts) -> str:
    files = ", ".join(getattr(conf, "config_file", None) or ())
    return f"({files})" if files else ""


def _check_tls(settings: Settings) -> None:
    if settings.keyfile and not settings.certfile:
        raise BadStoreConfiguration("--keyfile needs --certfile")
    if settings.certfile is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # A key that is encrypted would be asked for on the terminal.
    try:
        context.load_cert_chain(settings.certfile, settings.keyfile, password="")
    except (OSError, ValueError) as error:
        key = f" and --keyfile {settings.keyfile}" if settings.keyfile else ""
        reason = getattr(error, "strerror", None) or error
        raise BadStoreConfiguration(f"--certfile {settings.certfile}{key} cannot be used: {reason}") from error


def _check_log(path: str | None) -> None:
    if path in (None, "-"):
        return
    try:
        with open(str(path), "ab"):
            pass
    except OSError as error:
        raise BadStoreConfiguration(f"--access-log {path} cannot be written: {error.strerror}") from error


def _url(settings: Settings, listener: socket.socket) -> str:
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if settings.certfile else 'http'}://{shown}:{port}"


class _Gunicorn(BaseApplication):  # type: ignore[misc]
    """The settings in gunicorn's words. It reads neither the command line nor files nor GUNICORN_CMD_ARGS."""

    def __init__(self, conf: cfg.ConfigOpts, settings: Settings, descriptor: int, announce: Callable[[], None]) -> None:
        #: What workers that start now go by.
        self.conf = conf
        #: Called in a worker that begins to serve.
        self.on_worker: Callable[[], object] = lambda: None
        self._settings = settings
        self._descriptor = descriptor
        self._announce = announce
        super().__init__(prog="storelib serve")

    def load_config(self) -> None:
        """Called by the base class."""
        for name, value in self._words().items():
            # What is new in gunicorn is not known to an older one, which has nothing to switch off either.
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def _words(self) -> Mapping[str, Any]:
        settings = self._settings
        return {
            "bind": f"fd://{self._descriptor}",
            "backlog": _BACKLOG,
            "worker_class": Worker,
            "workers": settings.workers,
            "threads": settings.threads,
            "worker_connections": max(1000, 4 * settings.threads),
            "timeout": 120,
            "graceful_timeout": int(settings.grace + CLEANUP),
            "keepalive": 15,
            "certfile": settings.certfile,
            "keyfile": settings.keyfile,
            "accesslog": settings.access_log,
            "errorlog": "-",
            "logger_class": AccessLog,
            "loglevel": "info" if settings.verbose else "warning",
            "proc_name": "storelib",
            "limit_request_line": _REQUEST_LINE,
            "limit_request_fields": _HEADERS,
            # Worker keeps of them what the API knows.
            "header_map": "dangerous",
            # Gunicorn would believe what a client on this machine, or of a socket file, says of the scheme; whether a
            # proxy is believed is an option of [oslo_middleware].
            "forwarded_allow_ips": "",
            "secure_scheme_headers": {},
            "control_socket_disable": True,
            "child_exit": lambda arbiter, worker: mark_process_dead(worker.pid),
            "post_worker_init": lambda worker: self.on_worker(),
            "when_ready": lambda arbiter: self._announce(),
        }

    def load(self) -> Application:
        """The application, made in each worker after the fork."""
        return create_app(self.conf)

    @property
    def grace(self) -> float:
        """Seconds that a request has to end when its worker stops."""
        return self._settings.grace


class _LimitedRequest(Request):  # type: ignore[misc]
    """A request whose headers have a limit as a whole; gunicorn's own is that of each times their number."""

    max_buffer_headers = property(lambda self: _ALL_HEADERS, lambda self, value: None)

    def set_body_reader(self) -> None:
        """Called by the base class."""
        super().set_body_reader()
        self.body: Any = request_body.direct(self.body)


class Worker(ThreadWorker):  # type: ignore[misc]
    """One process with threads, which knows the connections it is working on."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        RequestParser.mesg_class = _LimitedRequest
        self._busy: set[Any] = set()
        self._lingering = Lingering()
        self._turn = threading.Lock()
        # Whether SIGHUP has others take over, so that requests end by themselves; and whether that, too, is over.
        self._retired = self._told_to_stop = False
        #: Connections of which the headers are read, and when that has to be over.
        self._late: dict[Any, float] = {}

    def init_signals(self) -> None:
        """Ctrl-C reaches the whole group; what becomes of the workers is the parent's to say."""
        super().init_signals()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(RETIRE, self._retire)
        signal.siginterrupt(RETIRE, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)

    def run(self) -> None:
        """Serve, then leave nothing half done."""
        try:
            threading.Thread(target=self._watch, name="storelib-stop", daemon=True).start()
            super().run()
        finally:
            # Also at SIGQUIT, which waits for no request.
            self._cut()
            self._wait(CLEANUP)
            self.wsgi.close()

    def _retire(self, number: int, frame: object) -> None:
        """Others have taken over: end when the last request has ended, however long that takes."""
        self._retired = True
        self.cfg.set("graceful_timeout", _FOR_EVER)
        super().handle_exit(number, frame)

    def handle_exit(self, sig: int, frame: object) -> None:
        """SIGTERM: requests under way have the grace."""
        self._told_to_stop = True
        super().handle_exit(sig, frame)

    def set_accept_enabled(self, enabled: bool) -> None:
        """While the last requests end, new connections are refused, not left waiting for a process that is going."""
        super().set_accept_enabled(enabled)
        if not enabled and (not self.alive or os.getppid() != self.ppid):
            for listener in self.sockets:
                listener.close()

    def handle(self, conn: Any) -> Any:
        """Requests of one connection. A client that asks again at once is served by the same thread: two changes of
        thread cost more than a small response.
        """
        # gunicorn closes in the thread that takes connections, and would wait there for the client.
        conn.close = lambda *arguments, **named: self._lingering.take(conn.sock)
        kept = self._handle_one(conn)
        while kept is True and self._asks_again(conn):
            kept = self._handle_one(conn)
        return kept

    def _handle_one(self, conn: Any) -> Any:
        # gunicorn would wait for the headers for ever.
        self._late[conn] = time.monotonic() + HEADERS
        try:
            return super().handle(conn)
        finally:
            self._late.pop(conn, None)

    def _asks_again(self, conn: Any) -> bool:
        if not self.alive or self.tpool._work_queue.qsize():
            return False
        poll = select.poll()
        poll.register(conn.sock, select.POLLIN)
        return bool(poll.poll(_LINGER))

    def handle_request(self, req: Any, conn: Any) -> bool:
        """One request, with the headers that are ours and a limit to the client's silence."""
        self._late.pop(conn, None)
        req.headers = [(name, value) for name, value in req.headers if _is_plain(name)]
        wants_close = req.should_close
        # Asked when the response is sent: the client must be told that its connection ends.
        req.should_close = lambda: wants_close() or _is_unread(req)
        conn.sock.settimeout(SILENCE)
        self._busy.add(conn)
        in_turn = _is_quick(req) and self._turn.acquire(timeout=TURN)
        try:
            kept = bool(super().handle_request(req, conn))
            return kept and not _is_unread(req)
        finally:
            if in_turn:
                self._turn.release()
            self._busy.discard(conn)

    def _watch(self) -> None:
        """Cut the connections whose headers do not come, and those that are still busy when the grace is over."""
        while self.alive and os.getppid() == self.ppid:
            self._cut_late()
        while self._retired and not self._told_to_stop and os.getppid() == self.ppid:
            # Until the process ends: work in the background, too, may go on for longer than the parent is patient.
            self.notify()
            self._cut_late()
        self._wait(self.app.grace)
        self._cut()

    def _cut_late(self) -> None:
        time.sleep(_POLL)
        now = time.monotonic()
        _shut_down([conn for conn, until in list(self._late.items()) if until < now])

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._busy and time.monotonic() < deadline:
            time.sleep(_POLL / 4)

    def _cut(self) -> None:
        _shut_down(list(self._busy))


def _shut_down(connections: Iterable[Any]) -> None:
    for conn in connections:
        try:
            conn.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def _is_quick(req: Any) -> bool:
    """Whether a request only asks for metadata."""
    return req.method == "GET" and req.path.startswith("/v2/") and not req.path.endswith("/file")


def _is_unread(req: Any) -> bool:
    """Whether much of the body was not read: it was refused."""
    reader = req.body.reader
    left = getattr(reader, "length", None)
    return left > _SMALL if left is not None else getattr(reader, "parser", None) is not None


def _is_plain(name: str) -> bool:
    """Whether a header may pass: CGI takes ``X_Foo`` for ``X-Foo``, and only v1's image fields have underscores."""
    return "_" not in name or name.startswith("X-IMAGE-META-")

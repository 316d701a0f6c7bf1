# SPDX-License-Identifier: Apache-2.0
"""How the image API is served: gunicorn with threads, asked to do nothing but carry requests.

What cannot work is refused before a socket is bound. Stopping finishes what is under way, then cuts connections, so
that unfinished uploads end as failed ones do and leave nothing. What SIGKILL leaves is undone at the next start.
"""

from __future__ import annotations

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
from gunicorn.arbiter import Arbiter
from gunicorn.workers.gthread import ThreadWorker
from oslo_config import cfg

from storelib.api import config
from storelib.api.app import Application, build_wsgi, create_app
from storelib.api.db import open_repository
from storelib.api.service import Service
from storelib.exceptions import BadStoreConfiguration
from storelib.registry import Registry

#: Seconds a client may be silent in the middle of a body.
SILENCE = 300.0
#: Seconds in which the headers of a request must have come, once they begin.
HEADERS = 10.0
#: Seconds that uploads whose connection was cut have for removing what they wrote.
CLEANUP = 15.0
#: Seconds that a refused upload is still read, and that its client may be silent meanwhile (nginx's lingering_close):
#: most clients look at the response only when all is sent, and closing before that would take it from them.
DISCARD, DISCARD_SILENCE = 30.0, 5.0
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
_REQUEST_LINE = 8190
_BACKLOG = 2048
_HELD_BACK = {signal.SIGTERM}


class Address:
    """``HOST:PORT``, ``[IPv6]:PORT`` or ``unix:PATH``; port 0 is any free one."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.path = text.removeprefix("unix:") if text.startswith("unix:") else None
        if self.path is not None:
            if not self.path:
                raise BadStoreConfiguration("--bind unix: needs the path of a socket")
            return
        host, _, port = text.rpartition(":")
        if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise BadStoreConfiguration(f"--bind {text} is not HOST:PORT, [IPv6]:PORT or unix:PATH")
        self.host, self.port = host.removeprefix("[").removesuffix("]"), int(port)

    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.path is not None or all(
            ipaddress.ip_address(str(found[4][0]).partition("%")[0]).is_loopback for found in self._resolved()
        )

    def bind(self) -> socket.socket:
        """A bound socket; raises BadStoreConfiguration saying why not."""
        if self.path is not None:
            return self._bind(socket.AF_UNIX, self.path)
        family, _, _, _, address = self._resolved()[0]
        return self._bind(family, address)

    def _resolved(self) -> list[Any]:
        try:
            return socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            raise BadStoreConfiguration(f"--bind {self.text}: there is no such host: {error}") from error

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
        config.warn_of_unread(conf)
    finally:
        repository.close()


def run(conf: cfg.ConfigOpts, settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve until a signal says to stop. ``announce`` is told the URL once something listens there.

    SIGTERM and SIGINT stop gracefully, a second SIGINT and SIGQUIT at once; it ends with SystemExit.
    """
    # Sockets handed over by systemd or another gunicorn were not checked, so they are not served.
    for name in ("LISTEN_FDS", "LISTEN_PID", "GUNICORN_PID", "GUNICORN_FD"):
        os.environ.pop(name, None)
    listener = settings.address.bind()
    url = _url(settings, listener)
    _Arbiter(_Gunicorn(conf, settings, listener.detach(), lambda: announce(url))).run()


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
    if settings.address.path is not None:
        return settings.address.text
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if settings.certfile else 'http'}://{shown}:{port}"


class _Gunicorn(BaseApplication):  # type: ignore[misc]
    """The settings in gunicorn's words. It reads neither the command line nor files nor GUNICORN_CMD_ARGS."""

    def __init__(self, conf: cfg.ConfigOpts, settings: Settings, descriptor: int, announce: Callable[[], None]) -> None:
        self._conf = conf
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
            "loglevel": "info" if settings.verbose else "warning",
            "proc_name": "storelib",
            "limit_request_line": _REQUEST_LINE,
            "limit_request_fields": _HEADERS,
            # Worker keeps of them what the API knows.
            "header_map": "dangerous",
            "control_socket_disable": True,
            "when_ready": lambda arbiter: self._announce(),
        }

    def load(self) -> Application:
        """The application, made in each worker after the fork."""
        return create_app(self._conf)

    @property
    def grace(self) -> float:
        """Seconds that a request has to end when its worker stops."""
        return self._settings.grace


class _Arbiter(Arbiter):  # type: ignore[misc]
    """The parent: SIGINT is as graceful as SIGTERM; nothing is read or executed again."""

    def spawn_worker(self) -> Any:
        """Fork, with SIGTERM held back until the worker handles it: one in between would be lost."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
        try:
            return super().spawn_worker()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)

    def handle_int(self) -> None:
        """Stop gracefully; a second one, at once."""
        raise StopIteration

    def handle_hup(self) -> None:
        """A terminal that is closed does not end a server; a changed configuration needs a new start."""
        self.log.warning("SIGHUP does nothing: stop and start to read the configuration again")

    handle_usr2 = handle_hup


class Worker(ThreadWorker):  # type: ignore[misc]
    """One process with threads, which knows the connections it is working on."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._busy: set[Any] = set()
        self._turn = threading.Lock()
        #: Connections of which the headers are read, and when that has to be over.
        self._late: dict[Any, float] = {}

    def init_signals(self) -> None:
        """Ctrl-C reaches the whole group; what becomes of the workers is the parent's to say."""
        super().init_signals()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)

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
            if not _is_unread(req):
                return kept
            _discard(conn.sock)
            return False
        finally:
            if in_turn:
                self._turn.release()
            self._busy.discard(conn)

    def _watch(self) -> None:
        """Cut the connections whose headers do not come, and those that are still busy when the grace is over."""
        while self.alive and os.getppid() == self.ppid:
            time.sleep(_POLL)
            now = time.monotonic()
            _shut_down([conn for conn, until in list(self._late.items()) if until < now])
        self._wait(self.app.grace)
        self._cut()

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


def _discard(sock: socket.socket) -> None:
    deadline = time.monotonic() + DISCARD
    try:
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(DISCARD_SILENCE)
        while time.monotonic() < deadline and sock.recv(_SMALL):
            pass
    except OSError:
        pass


def _is_plain(name: str) -> bool:
    """Whether a header may pass: CGI takes ``X_Foo`` for ``X-Foo``, and only v1's image fields have underscores."""
    return "_" not in name or name.startswith("X-IMAGE-META-")

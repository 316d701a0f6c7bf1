# SPDX-License-Identifier: Apache-2.0
"""FaultyProxy: a TCP proxy that cuts, resets, stalls, slows or delays at a chosen byte, for tests of drivers.

Threads and sockets of the standard library only::

    with FaultyProxy(("127.0.0.1", 9000)) as proxy:
        proxy.plan(Cut(after=1_000_000))  # what the next connection suffers
        ...  # talk to proxy.address
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

#: As seen by the client: "down" is what the server answers, "up" is what the client sends.
Direction = Literal["up", "down"]
_CHUNK = 64 * 1024


@dataclass(frozen=True)
class Fault:
    """Something that happens once ``after`` bytes have passed in one direction; by itself nothing does."""

    after: int = 0
    direction: Direction = "down"


@dataclass(frozen=True)
class Cut(Fault):
    """Both sides see the end, in good order, as from a peer that stops early; what they still send is lost."""


@dataclass(frozen=True)
class Reset(Fault):
    """Both sides are reset, as by a crash or a firewall."""


@dataclass(frozen=True)
class Stall(Fault):
    """Nothing passes for ``seconds`` (by default until the proxy is closed), then all goes on."""

    seconds: float = float("inf")


@dataclass(frozen=True)
class Slow(Fault):
    """From then on every ``chunk`` bytes take ``seconds``: a thin line."""

    seconds: float = 0.1
    chunk: int = _CHUNK


@dataclass(frozen=True)
class Far(Fault):
    """From then on everything arrives ``seconds`` later, with at most ``window`` bytes on the way: a long line."""

    seconds: float = 0.01
    window: int = 1024 * 1024


class FaultyProxy:
    """Listens on a free local port and passes connections on to ``target``; closes and joins all on exit."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._plans: deque[tuple[Fault, ...]] = deque()
        self._always: tuple[Fault, ...] = ()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        #: Connections taken so far.
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._start(self._accept)

    def plan(self, *faults: Fault, connections: int = 1) -> None:
        """The next ``connections`` that nothing is planned for yet suffer ``faults``; later ones none."""
        with self._lock:
            self._plans.extend([faults] * connections)

    def always(self, *faults: Fault) -> None:
        """Every connection that nothing is planned for suffers ``faults``, from now on."""
        with self._lock:
            self._always = faults

    def forget(self) -> None:
        """Drop what is planned for connections that were not made."""
        with self._lock:
            self._plans.clear()

    def close(self) -> None:
        """Drop all connections and wait for the threads."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        with self._lock:
            _shut(*self._sockets)
        for thread in self._threads:
            thread.join(10)
        for opened in (self._listener, *self._sockets):
            opened.close()

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name="faulty-proxy", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                faults = self._plans.popleft() if self._plans else self._always
                self._sockets.append(client)
            try:
                server = socket.create_connection(self._target, timeout=10)
            except OSError:
                _reset(client)
                continue
            server.settimeout(None)
            with self._lock:
                self._sockets.append(server)
            ended = threading.Event()
            for source, sink, direction in ((client, server, "up"), (server, client, "down")):
                mine = sorted(
                    (fault for fault in faults if fault.direction == direction), key=lambda fault: fault.after
                )
                self._start(self._pass_on, source, sink, deque(mine), ended)

    def _pass_on(
        self, source: socket.socket, sink: socket.socket, waiting: deque[Fault], ended: threading.Event
    ) -> None:
        """One direction of one connection, until it ends or a fault ends it."""
        slow: Slow | None = None
        line: _LongLine | None = None
        passed = 0
        try:
            while True:
                while waiting and waiting[0].after <= passed and not ended.is_set():
                    fault = waiting.popleft()
                    if isinstance(fault, Reset):
                        ended.set()
                        return _reset(source, sink)
                    if isinstance(fault, Cut):
                        ended.set()
                        _end(source, sink)
                    if isinstance(fault, Stall):
                        self._wait(fault.seconds)
                    slow = fault if isinstance(fault, Slow) else slow
                    if isinstance(fault, Far) and line is None:
                        line = _LongLine(sink, fault, self._wait)
                        self._start(line.deliver)
                room = waiting[0].after - passed if waiting and not ended.is_set() else _CHUNK
                data = source.recv(min(room, slow.chunk if slow else _CHUNK))
                if not data:
                    return line.end() if line else _end(sink)
                if ended.is_set():
                    # Read on: closing with bytes unread would be a reset, and lose what the peer has yet to read.
                    continue
                if slow:
                    self._wait(slow.seconds)
                if self._closing.is_set():
                    return _shut(source, sink)
                if line:
                    line.send(data)
                else:
                    sink.sendall(data)
                passed += len(data)
        except OSError:
            # One side is gone, so the other has nobody to talk to.
            if not ended.is_set():
                _shut(source, sink)
        finally:
            if line:
                line.end()

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._closing.is_set() and time.monotonic() < deadline:
            self._closing.wait(min(deadline - time.monotonic(), 3600.0))


class _LongLine:
    """What is on its way to ``sink``; a thread of its own delivers it when it is due."""

    def __init__(self, sink: socket.socket, far: Far, wait: Callable[[float], None]) -> None:
        self._sink = sink
        self._far = far
        self._wait = wait
        self._changed = threading.Condition()
        self._travelling: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._broken = False

    def send(self, data: bytes) -> None:
        """Put ``data`` on its way, once there is room."""
        with self._changed:
            self._changed.wait_for(lambda: self._bytes < self._far.window or self._broken)
            if self._broken:
                raise BrokenPipeError
            self._travelling.append((time.monotonic() + self._far.seconds, data))
            self._bytes += len(data)
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing comes after this."""
        with self._changed:
            self._travelling.append((time.monotonic() + self._far.seconds, b""))
            self._changed.notify_all()

    def deliver(self) -> None:
        """Until the end of what is sent."""
        data = b"-"
        while data:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._travelling))
                due, data = self._travelling.popleft()
            self._wait(due - time.monotonic())
            try:
                self._sink.sendall(data) if data else _end(self._sink)
            except OSError:
                data = b""
            with self._changed:
                self._bytes -= len(data)
                self._broken = not data
                self._changed.notify_all()


def _end(*sockets: socket.socket) -> None:
    for opened in sockets:
        with contextlib.suppress(OSError):
            opened.shutdown(socket.SHUT_WR)


def _shut(*sockets: socket.socket) -> None:
    for opened in sockets:
        with contextlib.suppress(OSError):
            opened.shutdown(socket.SHUT_RDWR)


def _reset(*sockets: socket.socket) -> None:
    for opened in sockets:
        with contextlib.suppress(OSError):
            # Lingering for no time at all makes close() send RST (socket(7), SO_LINGER).
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            _disconnect(opened)


def _disconnect(opened: socket.socket) -> None:
    """Reset at once, also while another thread waits in recv() for this socket, where close() would not."""
    import ctypes

    # connect() to AF_UNSPEC dissolves the association and sends RST (connect(2)); Python offers no call for it.
    libc = ctypes.CDLL(None, use_errno=True)
    unspecified = struct.pack("=H14x", socket.AF_UNSPEC)
    libc.connect(opened.fileno(), unspecified, len(unspecified))

# SPDX-License-Identifier: Apache-2.0
"""Connections that are over for this server and not yet for the client: one thread reads away what still comes.

Most clients look at a response only when they have sent everything, and closing before that would take it from them
(RFC 9112, 9.6). No thread that serves requests waits for that, and none that takes new connections.
"""

from __future__ import annotations

import contextlib
import queue
import select
import socket
import threading
import time
from typing import Any, NamedTuple

#: Seconds that what comes is still read, and that the client may be silent meanwhile (nginx's lingering_close).
LONGEST, SILENCE = 30.0, 5.0
#: Connections that linger at once; of more, the oldest are closed.
MOST = 256
#: Seconds between two looks at connections that came.
_POLL = 0.1
_BLOCK = 65536


class _Left(NamedTuple):
    sock: socket.socket
    end: float
    heard: float


class Lingering:
    """Closes connections as their clients can bear it. The thread starts when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._new: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._left: dict[int, _Left] = {}

    def take(self, sock: Any) -> None:
        """Close ``sock``, which nobody else uses any more, once its client has stopped sending; returns at once."""
        try:
            # Of TLS, too, only the bytes have to go.
            raw = socket.socket(fileno=sock.detach())
        except (OSError, ValueError):
            return
        try:
            raw.setblocking(False)
            raw.shutdown(socket.SHUT_WR)
            self._start()
        except (OSError, RuntimeError):
            raw.close()
            return
        self._new.put(raw)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="storelib-linger", daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        while True:
            self._admit()
            poll = select.poll()
            for descriptor in self._left:
                poll.register(descriptor, select.POLLIN)
            for descriptor, _ in poll.poll(_POLL * 1000):
                self._read(descriptor)
            now = time.monotonic()
            for descriptor, (_, end, heard) in list(self._left.items()):
                if now > min(end, heard + SILENCE):
                    self._close(descriptor)

    def _admit(self) -> None:
        """Take what came; wait for it where there is nothing else to do."""
        with contextlib.suppress(queue.Empty):
            while True:
                sock = self._new.get(block=not self._left)
                now = time.monotonic()
                self._left[sock.fileno()] = _Left(sock, now + LONGEST, now)
                if len(self._left) > MOST:
                    self._close(next(iter(self._left)))

    def _read(self, descriptor: int) -> None:
        left = self._left[descriptor]
        try:
            if left.sock.recv(_BLOCK):
                self._left[descriptor] = left._replace(heard=time.monotonic())
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        self._left.pop(descriptor).sock.close()

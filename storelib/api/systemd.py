# SPDX-License-Identifier: Apache-2.0
"""What a service manager is told and gives: sd_notify(3), its watchdog, and sockets (sd_listen_fds(3)).

Without a manager, and with one that does not ask, nothing is told.
"""

from __future__ import annotations

import os
import socket
import time

from storelib.exceptions import BadStoreConfiguration

_FIRST_SOCKET = 3
_SOCKETS = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class Manager:
    """The manager that started this process. What it said of itself is taken out of the environment: children that
    speak to it would be refused, or believed."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        self._every = _watchdog()
        self._told = -float("inf")

    def ready(self, status: str) -> None:
        """It serves, or serves again."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """It is about to read its configuration again; ``ready`` follows."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """It takes no more requests."""
        self._tell("STOPPING=1", "STATUS=finishing the last requests")

    def alive(self) -> None:
        """It is not stuck; to be called often."""
        now = time.monotonic()
        if self._every is not None and now - self._told >= self._every:
            self._told = now
            self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            try:
                sock.sendto("\n".join(lines).encode(), address)
            except OSError:
                # A manager that is gone keeps no server from serving.
                pass


def _watchdog() -> float | None:
    """Seconds between two signs of life, a third of what the manager waits; None if it does not wait for any."""
    microseconds, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 3_000_000


def socket_of_manager() -> socket.socket:
    """The one socket that the manager listens on for this process; raises BadStoreConfiguration."""
    pid, count = os.environ.get("LISTEN_PID", ""), os.environ.get("LISTEN_FDS", "")
    if pid != str(os.getpid()) or count != "1":
        raise BadStoreConfiguration("--bind systemd needs one socket of systemd's; start it by a .socket unit")
    try:
        listening = socket.socket(fileno=os.dup(_FIRST_SOCKET))
        if not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise BadStoreConfiguration("--bind systemd: the socket has to listen; set Accept=no")
    except OSError as error:
        raise BadStoreConfiguration(f"--bind systemd: descriptor 3 is no socket: {error.strerror}") from error
    return listening


def forget_sockets() -> None:
    """They were taken, or are not wanted; children are not to look for them."""
    for name in _SOCKETS:
        os.environ.pop(name, None)

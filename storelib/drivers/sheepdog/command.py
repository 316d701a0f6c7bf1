# SPDX-License-Identifier: Apache-2.0
"""Dog: runs ``dog vdi`` commands, each with a time limit and all of its output looked at.

Arguments are passed as they are, never through a shell. Data goes from and into the caller's memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import time
from typing import IO, NoReturn

from storelib.drivers.sheepdog.errors import CommandCut, CommandFailed, CommandHung

#: fcntl.F_SETPIPE_SZ; a pipe of 64 KiB needs a change of processes for every 64 KiB.
_SET_PIPE_SIZE = 1031
_PIPE = 1 << 20
#: More than this of what a command complains about is thrown away.
_MOST_COMPLAINTS = 64 * 1024
#: Seconds that a command gets to go once it was killed.
_GRACE = 5.0


class Dog:
    """The command, and the daemon it is to talk to."""

    def __init__(self, path: str, address: str, port: int, timeout: float) -> None:
        self.path = path
        self.address = address
        self.port = port
        self._timeout = timeout

    def call(self, verb: str, *arguments: str, data: memoryview | None = None) -> tuple[bytes, str]:
        """Run ``dog vdi verb``; returns what it printed and what it complained about.

        With ``data`` exactly that goes in. Raises CommandFailed, CommandHung, CommandCut, OSError.
        """
        with self.start(verb, *arguments, takes_data=data is not None) as running:
            if data is not None:
                running.send(data)
            output = running.read_all()
            return output, running.finish()

    def start(self, verb: str, *arguments: str, takes_data: bool = False) -> Running:
        """A running ``dog vdi verb``."""
        command = (self.path, "vdi", verb, "-a", self.address, "-p", str(self.port), *arguments)
        return Running(command, takes_data, self._timeout)


class Running:
    """One command under way, of a process group of its own; ends with ``finish`` or is killed by ``close``."""

    def __init__(self, command: tuple[str, ...], takes_data: bool, timeout: float) -> None:
        self._arguments = (command[2], *command[7:])
        self._timeout = timeout
        self._complaints = bytearray()
        self._process = subprocess.Popen(  # noqa: S603  (a list of arguments; no shell)
            command,
            bufsize=0,
            stdin=subprocess.PIPE if takes_data else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A signal to the caller's terminal is the caller's to handle.
            start_new_session=True,
            # What counts as a space in a name depends on the locale.
            env={**os.environ, "LC_ALL": "C"},
        )
        assert self._process.stdout is not None  # noqa: S101
        assert self._process.stderr is not None  # noqa: S101
        self._stdin = self._process.stdin
        self._stdout: IO[bytes] = self._process.stdout
        self._stderr: IO[bytes] = self._process.stderr
        for pipe in (self._stdin, self._stdout):
            if pipe is not None:
                # Refused to users who have very many pipes; then it is slower.
                with contextlib.suppress(OSError):
                    fcntl.fcntl(pipe, _SET_PIPE_SIZE, _PIPE)
        self._moved = time.monotonic()
        self._complaining = True

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def send(self, data: memoryview) -> None:
        """Hand over all of ``data``.

        The pipe stays open after it: what a command would do at the end of too little data is to write zeros.
        """
        assert self._stdin is not None  # noqa: S101
        descriptor = self._stdin.fileno()
        os.set_blocking(descriptor, False)
        sent = 0
        self._moved = time.monotonic()
        while sent < len(data) and self._wait(descriptor, select.POLLOUT):
            try:
                sent += os.write(descriptor, data[sent:])
            except BrokenPipeError:
                break
        if sent < len(data):
            self._raise_failure()
            raise CommandCut(self._arguments, f"it took {sent} of {len(data)} bytes")

    def read_into(self, view: memoryview) -> int:
        """Fill ``view`` from the output; returns fewer bytes at its end only."""
        filled = 0
        self._moved = time.monotonic()
        while filled < len(view):
            self._wait(self._stdout.fileno(), select.POLLIN)
            count = os.readv(self._stdout.fileno(), [view[filled:]])
            if not count:
                break
            filled += count
        return filled

    def read_all(self) -> bytes:
        """All of the output."""
        pieces = bytearray()
        buffer = memoryview(bytearray(64 * 1024))
        while count := self.read_into(buffer):
            pieces += buffer[:count]
        return bytes(pieces)

    def finish(self) -> str:
        """Wait for its end; returns what it complained about. Raises CommandFailed, CommandCut, CommandHung."""
        self._moved = time.monotonic()
        extra = self.read_into(memoryview(bytearray(1)))
        self._raise_failure()
        unread = self._unread()
        if extra:
            raise CommandCut(self._arguments, "it sent more bytes than it was asked for")
        if unread:
            raise CommandCut(self._arguments, f"it left {unread} bytes unread; was the vdi too small?")
        return self._complaint

    def close(self) -> None:
        """Kill it if it still runs, and let nothing of it remain."""
        if self._process.poll() is None:
            # Killed before its input ends, so that it takes nothing for the end of the data.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
        for pipe in (self._stdin, self._stdout, self._stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    # -- Waiting ----------------------------------------------------------------------------------------------

    @property
    def _complaint(self) -> str:
        return self._complaints.decode(errors="replace")

    def _wait(self, descriptor: int, event: int) -> bool:
        """Until the pipe is ready; False if its other end is closed and nothing can be written any more."""
        poll = select.poll()
        poll.register(descriptor, event)
        if self._complaining:
            poll.register(self._stderr.fileno(), select.POLLIN)
        while True:
            ready = dict(poll.poll(max(self._left(), 0.0) * 1000))
            if not ready and self._left() <= 0:
                self._give_up()
            if self._stderr.fileno() in ready and not self._listen():
                poll.unregister(self._stderr.fileno())
            if descriptor in ready:
                self._moved = time.monotonic()
                return event == select.POLLIN or not ready[descriptor] & select.POLLERR

    def _listen(self) -> bool:
        """Take what is on stderr; False at its end."""
        heard = os.read(self._stderr.fileno(), 16 * 1024)
        room = _MOST_COMPLAINTS - len(self._complaints)
        self._complaints += heard[: max(room, 0)]
        self._complaining = bool(heard)
        return self._complaining

    def _raise_failure(self) -> None:
        """Wait for its end, and raise CommandFailed if it is not a good one."""
        poll = select.poll()
        poll.register(self._stderr.fileno(), select.POLLIN)
        while self._complaining:
            if not poll.poll(max(self._left(), 0.0) * 1000) and self._left() <= 0:
                self._give_up()
            self._listen()
        try:
            code = self._process.wait(max(self._left(), 0.01))
        except subprocess.TimeoutExpired:
            self._give_up()
        if code:
            raise CommandFailed(self._arguments, code, self._complaint)

    def _unread(self) -> int:
        """Bytes that went in and never came out: with exit code 0, ``write`` leaves what lies beyond the end."""
        if self._stdin is None:
            return 0
        count = fcntl.ioctl(self._stdin.fileno(), termios.FIONREAD, bytes(struct.calcsize("i")))
        return int(struct.unpack("i", count)[0])

    def _left(self) -> float:
        return self._moved + self._timeout - time.monotonic()

    def _give_up(self) -> NoReturn:
        self.close()
        raise CommandHung(self._arguments, f"nothing happened for {self._timeout:g} s")

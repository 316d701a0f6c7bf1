# SPDX-License-Identifier: Apache-2.0
"""Programs of storelib as processes of their own, without the second that each needs to import what it is made of.

One process has imported it all and does nothing but fork: each program that is wanted is a child of a child of it, with
a session, a directory, an environment and descriptors of its own, as if Python had just been started with ``-c``. It
ends with the tests.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

#: What takes long to import. Not prometheus_client: that looks at the environment when it is imported.
_MODULES = (
    "falcon",
    "gunicorn.app.base",
    "gunicorn.workers.gthread",
    "storelib.cli.main",
    "storelib.cli.image.client",
    "storelib.api.arbiter",
    "storelib.api.auditing",
    "storelib.api.service",
    "storelib.api.systemd",
    "storelib.api.v1",
    "storelib.api.v2",
    "storelib.drivers.filesystem.store",
)
_FORKING = """
import gc, importlib, json, os, signal, socket, sys

control = socket.socket(fileno=int(sys.argv[1]))
for name in sys.argv[2:]:
    importlib.import_module(name)
assert "prometheus_client" not in sys.modules
gc.collect()
gc.freeze()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    message, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 3)
    if not message:
        sys.exit()
    if not os.fork():
        break
    for descriptor in descriptors:
        os.close(descriptor)

control.close()
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
output, errors, status = descriptors
child = os.fork()
if child:
    os.close(output)
    os.close(errors)
    os.write(status, b"%d\\n" % child)
    _, code = os.waitpid(child, 0)
    os.write(status, b"%d\\n" % os.waitstatus_to_exitcode(code))
    os._exit(0)

os.close(status)
os.setsid()
for number, descriptor in ((1, output), (2, errors)):
    os.dup2(descriptor, number)
    os.close(descriptor)
code, arguments, directory, environment = json.loads(message)
os.chdir(directory)
os.environ.clear()
os.environ.update(environment)
sys.argv = ["-c", *arguments]
exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
"""
MAIN = "from storelib.cli.main import main; main()"


class Program:
    """What ``subprocess.Popen`` is for ``python -c CODE ARGUMENTS``, in a session of its own, its input empty.

    Without ``stdout`` what it writes is read from the attribute of that name.
    """

    def __init__(
        self,
        code: str,
        arguments: Sequence[str],
        *,
        cwd: Path,
        stderr: IO[Any],
        stdout: IO[Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.returncode: int | None = None
        self.stdout: IO[str] | None = None
        self._lock = threading.Lock()
        status, told = os.pipe()
        message = json.dumps([code, [*arguments], str(cwd), {**(os.environ if env is None else env)}]).encode()
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, told)
            if stdout is None:
                read, written = os.pipe()
                self.stdout = open(read, encoding="utf-8")
                stack.callback(os.close, written)
            else:
                written = stdout.fileno()
            socket.send_fds(_forking(), [message], [written, stderr.fileno(), told])
        self._status = open(status, "rb", buffering=0)
        self.pid = int(self._status.readline())

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status once it has ended; raises subprocess.TimeoutExpired."""
        with self._lock:
            if self.returncode is None:
                waiting = select.poll()
                waiting.register(self._status, select.POLLIN)
                if not waiting.poll(None if timeout is None else timeout * 1000):
                    raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
                self.returncode = int(self._status.readline())
                self._status.close()
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def run(
    code: str, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run`` is for such a program, with what it writes as text."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        program = Program(code, arguments, cwd=cwd, env=env, stdout=output, stderr=errors)
        try:
            status = program.wait(timeout)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
            raise
        written = []
        for file in (output, errors):
            file.seek(0)
            written.append(file.read().decode())
    return subprocess.CompletedProcess([*arguments], status, *written)


@functools.cache
def _forking() -> socket.socket:
    """Where the process that forks is told what to start."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with there:
        process = subprocess.Popen(
            [sys.executable, "-c", _FORKING, str(there.fileno()), *_MODULES],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[there.fileno()],
            start_new_session=True,
        )

    def end() -> None:
        here.close()
        process.wait(10)

    atexit.register(end)
    return here

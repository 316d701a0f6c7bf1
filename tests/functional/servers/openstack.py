# SPDX-License-Identifier: Apache-2.0
"""OpenStack's own servers in a virtual environment of theirs, so that storelib's stays free of them.

``python -m servers.openstack`` in ``tests/functional`` installs it; a second time does nothing. Processes are started
in the foreground, each known by its pid and ended by it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from servers import environments

PACKAGES = ("swift>=2.33", "keystone>=26", "keystonemiddleware>=10.4", "gunicorn>=22", "setuptools<81")
#: Seconds a server may take to answer.
TIMEOUT = 120.0


def install() -> Path:
    """The directory of the environment's programs; makes the environment at the first call, in about a minute."""
    return environments.install("openstack", PACKAGES)


class Processes:
    """Servers of one directory: their output is in ``logs``, and all of them end with it."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: list[subprocess.Popen[bytes]] = []
        self._named: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str | Path], **environment: str) -> None:
        """Start one in the foreground and in a session of its own, so that an interrupted test run still ends it."""
        with (self._logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**_inherited(), **environment},
            )
        self._running.append(process)
        self._named[name] = process

    def pid(self, name: str) -> int:
        """The process id of the one that was started last under that name, for signals."""
        return self._named[name].pid

    def forget(self, name: str) -> None:
        """One that was killed is waited for, and no longer counts."""
        process = self._named.pop(name)
        self._running.remove(process)
        process.wait(10)

    def wait_for(self, url: str) -> None:
        """Until a web server answers at ``url``, whatever it answers."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
            except urllib.error.HTTPError:
                return
            except OSError:
                dead = [process.args for process in self._running if process.poll() is not None]
                if dead or time.monotonic() > deadline:
                    raise RuntimeError(f"{url} does not answer; ended: {dead}\n{self._tail()}") from None
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """End all, the last one first; those that do not listen are killed with their children."""
        for process in reversed(self._running):
            process.terminate()
        for process in reversed(self._running):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
        self._running.clear()

    def kill(self) -> None:
        """End all at once, with their children."""
        for process in reversed(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        self._running.clear()

    def _tail(self) -> str:
        logs = sorted(self._logs.glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-2000:]}" for log in logs)


def _inherited() -> Mapping[str, str]:
    """The environment without what would lead a server to other packages or through a proxy."""
    unwanted = ("PYTHON", "PIP_", "OS_", "VIRTUAL_ENV", "HTTP_PROXY", "HTTPS_PROXY")
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(unwanted)}


if __name__ == "__main__":
    install()

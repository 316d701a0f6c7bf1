# SPDX-License-Identifier: Apache-2.0
"""The commands ``openstack`` and ``glance`` as people install them, in an environment of their own; with tempest and
the test suites that they bring, for ``servers.suites``.

``python -m servers.clients`` in ``tests/functional`` installs them; a second time does nothing. A command spends most
of its seconds importing, so one long-lived process imports everything once and forks for each command.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servers import environments

#: setuptools for the pkg_resources that some of their dependencies still import; ddt and oslotest for suites of tests.
REQUIREMENTS = (
    *("python-openstackclient", "python-glanceclient>=4", "setuptools<81"),
    *("tempest>=40", "glance-tempest-plugin>=0.17", "ddt", "oslotest"),
)
#: Seconds that a command may take.
_TIMEOUT = 120.0

# What a child runs is what the console scripts run. Its standard input is a terminal, because glance takes any other
# for data, unless the request names a file.
_RUNNER = """
import contextlib, gc, importlib, io, json, os, signal, sys, traceback
MAINS = {"openstack": "openstackclient.shell", "glance": "glanceclient.shell"}
for name in (*MAINS.values(), "glanceclient.v1.shell", "glanceclient.v2.shell", "openstackclient.image.client",
             "openstackclient.image.v1.image", "openstackclient.image.v2.image", "openstackclient.identity.client",
             "openstackclient.identity.v3.project", "openstack.image.v2._proxy", "openstack.image.v1._proxy",
             "keystoneauth1.identity.v3", "cliff.formatters.json_format", "cliff.formatters.table", "jsonschema",
             "openstack.config.loader", "requests"):
    importlib.import_module(name)

def run(request):
    os.chdir(request["directory"])
    os.environ.update(request["environment"])
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    os.dup2(os.open(request["input"], os.O_RDONLY) if request["input"] else os.openpty()[1], 0)
    os.dup2(os.open(request["out"], flags, 0o600), 1)
    os.dup2(os.open(request["err"], flags, 0o600), 2)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)
    sys.argv = [request["program"], *request["arguments"]]
    signal.alarm(request["timeout"])
    try:
        code = importlib.import_module(MAINS[request["program"]]).main() or 0
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
        code = code if isinstance(code, int) else int(code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

# What openstack finds out about its plugins, a second time in each child otherwise.
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    importlib.import_module(MAINS["openstack"]).main(["image", "list", "--help"])
gc.freeze()

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Answer:
    """What one command gave: its exit code and what it printed."""

    def __init__(self, command: tuple[str, ...], code: int, out: bytes, err: str) -> None:
        self.command, self.code, self.data, self.err = command, code, out, err

    def __repr__(self) -> str:
        return f"{' '.join(self.command)} ended with {self.code}\n{self.out}\n{self.err}"

    @property
    def out(self) -> str:
        """What it printed, as text."""
        return self.data.decode(errors="replace")

    @property
    def document(self) -> Any:
        """What ``--format json`` printed."""
        return json.loads(self.data)

    @property
    def rows(self) -> list[dict[str, str]]:
        """The table that ``glance`` printed, a dictionary for each row."""
        lines = [line for line in self.out.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
        return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]] if cells else []

    @property
    def fields(self) -> dict[str, str]:
        """The table of properties and values that ``glance`` printed."""
        return {row["Property"]: row["Value"] for row in self.rows}


class Clients:
    """``with Clients(directory) as clients``: both programs, their caches and what they print in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._programs = install()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Clients:
        with (self.directory / "clients.log").open("w") as log:
            self._process = subprocess.Popen(
                [self._programs / "python", "-c", _RUNNER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment({}),
                cwd=self.directory,
                text=True,
                start_new_session=True,
            )
        if self._read() != "ready":
            raise RuntimeError(f"the clients do not start: {(self.directory / 'clients.log').read_text()}")
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
        self._process.stdout.close()

    def run(self, *command: str, environment: Mapping[str, str], data: Path | None = None) -> Answer:
        """One command, in a child of the process that has imported everything; ``data`` is its standard input."""
        assert self._process is not None
        assert self._process.stdin is not None
        out, err = self.directory / "out", self.directory / "err"
        request = {
            "program": command[0],
            "arguments": command[1:],
            "environment": dict(environment),
            "directory": str(self.directory),
            "input": None if data is None else str(data),
            "out": str(out),
            "err": str(err),
            "timeout": int(_TIMEOUT),
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Answer(command, int(self._read()), out.read_bytes(), err.read_text())

    def run_process(self, *command: str, environment: Mapping[str, str], data: Path | None = None) -> Answer:
        """One command as its console script, from nothing."""
        terminal = os.openpty()
        try:
            with (data or Path(os.ttyname(terminal[1]))).open("rb") as standard_input:
                done = subprocess.run(
                    [self._programs / command[0], *command[1:]],
                    stdin=standard_input,
                    capture_output=True,
                    env=self._environment(environment),
                    cwd=self.directory,
                    check=False,
                    timeout=_TIMEOUT,
                )
        finally:
            for end in terminal:
                os.close(end)
        return Answer(command, done.returncode, done.stdout, done.stderr.decode())

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """Nobody's clouds, proxies or tokens, and caches of their own."""
        return {"PATH": os.environ.get("PATH", ""), "HOME": str(self.directory), "LANG": "C.UTF-8", **more}

    def _read(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def install() -> Path:
    """The directory of the commands; makes the environment at the first call."""
    return environments.install("clients", REQUIREMENTS)


if __name__ == "__main__":
    install()

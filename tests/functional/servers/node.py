# SPDX-License-Identifier: Apache-2.0
"""``storelib node`` as real processes, each with an address of its own on this machine, as nodes have."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from servers import api
from servers.api import TIMEOUT

INI = """
[node]
api_url = {url}
name = {name}
{token}
bind = {host}
port = {port}
state_dir = {directory}/state
target_dir = {directory}/{target}
reserve = 0
{more}
"""
#: Agents are children of one process that has imported what they need: processes of their own, started in a moment.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["libtorrent", "oslo_utils.imageutils.format_inspector", "storelib.node.agent"])


def wait_until(done: Any, timeout: float = 90.0) -> None:
    """Several agents and an API may have to share a machine with a lot more."""
    api.wait_until(done, timeout)


class Options(NamedTuple):
    """How an agent is started. It cannot write files of more than ``largest`` bytes; its clock is so many seconds
    ``ahead``.
    """

    libtorrent: bool = True
    largest: int | None = None
    ahead: float = 0.0


def _be_agent(config: Path, options: Options) -> None:
    """In a process of its own: ``storelib node`` with everything quicker."""
    place = config.parent
    for number, name in ((1, "said"), (2, "node.log")):
        descriptor = os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(place)
    from storelib.cli.main import main
    from storelib.node import agent, copies

    agent.TICK, agent.LOOK, agent.SOONEST, copies.FIRST_RETRY = 0.1, 0.5, 0.1, 1.0
    if not options.libtorrent:
        sys.modules["libtorrent"] = None  # type: ignore[assignment]
    if options.ahead:
        right = time.time
        time.time = lambda: right() + options.ahead
    if options.largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.largest, options.largest))
    sys.argv = ["storelib", "--format", "json", "--config", str(config), "node"]
    main()


class Node:
    """One node: a directory, and the agent on it while it runs. ``number`` makes its address."""

    def __init__(self, directory: Path, number: int, url: str, token: str = "", more: str = "", target: str = "images"):
        self.name = f"n{number}"
        self.directory = directory / self.name
        self.directory.mkdir(parents=True)
        self.host = f"127.0.1.{number}"
        with socket.socket() as free:
            free.bind((self.host, 0))
            self.port = free.getsockname()[1]
        self.target = self.directory / target
        self.config = self.directory / "node.ini"
        self._values = {"url": url, "name": self.name, "host": self.host, "port": self.port}
        self._values |= {"directory": self.directory, "target": target}
        self.configure(token, more)
        self.process: Any = None

    def configure(self, token: str = "", more: str = "", **values: str) -> None:
        """What its file says from the next start on."""
        self._values |= values
        line = f"enrolment_token = {token}" if token else ""
        self.config.write_text(INI.format(**self._values, token=line, more=more))

    def start(self, await_it: bool = True, **options: Any) -> Node:
        """Start the agent as the Options say."""
        assert self.process is None or not self.process.is_alive()
        (self.directory / "said").unlink(missing_ok=True)
        self.process = _FORKS.Process(target=_be_agent, args=(self.config, Options(**options)), daemon=True)
        self.process.start()
        if await_it:
            self.await_start()
        return self

    def await_start(self) -> None:
        """Until it is enrolled."""
        said = self.directory / "said"
        wait_until(lambda: not self.process.is_alive() or (said.exists() and said.read_text().endswith("\n")))
        assert self.process.is_alive(), self.log()
        self.id = str(json.loads(said.read_text())["id"])

    def wait(self) -> int:
        """Its exit code."""
        self.process.join(TIMEOUT)
        assert self.process.exitcode is not None
        return self.process.exitcode

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def stop(self) -> int:
        """As systemd does it; returns the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """As a machine that loses power."""
        if self.process is not None and self.process.is_alive():
            self.process.kill()
            self.wait()

    def path(self, image: str) -> Path:
        """Where an image appears."""
        name = image if self.target.name != "_base" else hashlib.sha1(image.encode()).hexdigest()
        return self.target / name

    def has(self, image: str, data: bytes) -> bool:
        """Whether it has the image; one that is not whole, or wrong, fails the test."""
        try:
            found = self.path(image).read_bytes()
        except FileNotFoundError:
            return False
        assert hashlib.sha256(found).digest() == hashlib.sha256(data).digest(), f"{self.name} has something else"
        return True

    def files(self) -> list[str]:
        """Everything on it that belongs to images, complete or not."""
        found = []
        for place in (self.target, self.directory / "state" / "images", self.directory / "state" / "torrents"):
            with contextlib.suppress(FileNotFoundError):
                found += [f"{place.name}/{name}" for name in os.listdir(place)]
        return sorted(found)

    def log(self) -> str:
        """What it said."""
        try:
            return (self.directory / "node.log").read_text()
        except FileNotFoundError:
            return ""

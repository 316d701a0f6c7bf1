# SPDX-License-Identifier: Apache-2.0
"""A real PostgreSQL on a free loopback port, with all it writes in one directory (Debian: postgresql-15).

It refuses to run as root, and its user cannot enter root's temporary directories, so the directory is its own.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import psycopg
import pytest
from servers.nginx import free_ports

#: Seconds that anything may take.
_TIMEOUT = 120.0


class PostgreSQL:
    """``with PostgreSQL() as server``: ``server.new_database()`` is the URL of an empty one."""

    def __init__(self) -> None:
        self._programs = _programs()
        self._password = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> PostgreSQL:
        self.directory = server_directory("postgresql")
        self._as = server_user("postgres", self.directory)
        password = self.directory / "password"
        password.write_text(self._password)
        command = ["initdb", "--pgdata", "data", "--username", "storelib", "--pwfile", password, "--encoding", "UTF8"]
        # A collation with other rules than code points, as production servers often have.
        command += ["--locale", "C.UTF-8", "--locale-provider", "icu", "--icu-locale", "en-US"]
        command += ["--auth", "scram-sha-256", "--no-sync"]
        subprocess.run(
            [self._programs / command[0], *command[1:]],
            **self._as,
            cwd=self.directory,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=_TIMEOUT,
        )
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        shutil.rmtree(self.directory)

    def start(self) -> None:
        """Start it, after the first time on the same port."""
        for _ in range(5):  # a port found free may be taken by the time it listens
            self.port = self.port or free_ports(1)[0]
            options = {
                "listen_addresses": "127.0.0.1",
                "unix_socket_directories": self.directory,
                "fsync": "off",
                "max_connections": 100,
            }
            settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
            with (self.directory / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [self._programs / "postgres", "-D", "data", "-p", str(self.port), *settings],
                    **self._as,
                    cwd=self.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            if wait_until(self._answers, self._process):
                return
            self.stop()
            self.port = 0
        raise RuntimeError(f"PostgreSQL does not start: {(self.directory / 'log').read_text()}")

    def stop(self) -> None:
        """Stop it at once; what was committed stays."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(timeout=_TIMEOUT)

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"d{uuid.uuid4().hex}"
        self.execute(f'CREATE DATABASE "{name}"')
        return f"postgresql://storelib:{self._password}@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str, *values: object) -> list[Any]:
        """A statement on the server, in a connection of its own."""
        with self._connect() as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def kill_connections(self) -> int:
        """Cut every client's connection; returns how many there were."""
        return len(
            self.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        )

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="storelib",
            password=self._password,
            dbname="postgres",
            connect_timeout=5,
            autocommit=True,
        )

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError), self._connect():
            return True
        return False


def server_directory(name: str) -> Path:
    """A new directory that a user other than root can enter: with all other temporary files, or below /tmp."""
    usual = Path(tempfile.gettempdir()).resolve()
    open_to_all = all(path.stat().st_mode & 0o001 for path in (usual, *usual.parents))
    return Path(tempfile.mkdtemp(prefix=f"storelib-{name}-", dir=usual if open_to_all else "/tmp"))


def server_user(name: str, directory: Path) -> dict[str, Any]:
    """How subprocess runs a server that refuses root; ``directory`` becomes its own, for temporary files too."""
    environment = {"env": {**os.environ, "TMPDIR": str(directory)}}
    if os.geteuid() != 0:
        return environment
    user = pwd.getpwnam(name)
    os.chown(directory, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], **environment}


def wait_until(answers, process: subprocess.Popen[bytes]) -> bool:
    """Whether a server came to answer; False if it ended."""
    deadline = time.monotonic() + _TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        if answers():
            return True
        time.sleep(0.05)
    return False


def is_listening(port: int) -> bool:
    """Whether a server accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _programs() -> Path:
    # Debian keeps those of each version in a directory of its own, out of PATH.
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb") if not versions else str(versions[-1])
    if found is None:
        pytest.skip("no PostgreSQL here (Debian: postgresql-15)")
    return Path(found).parent

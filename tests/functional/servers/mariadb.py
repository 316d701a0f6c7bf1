# SPDX-License-Identifier: Apache-2.0
"""A real MariaDB on a free loopback port, with all it writes in one directory (Debian: mariadb-server)."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import uuid
from typing import Any

import pymysql
import pytest
from servers.nginx import free_ports
from servers.postgresql import is_listening, server_directory, server_user, wait_until

#: Seconds that anything may take.
_TIMEOUT = 120.0


class MariaDB:
    """``with MariaDB() as server``: ``server.new_database()`` is the URL of an empty one."""

    def __init__(self) -> None:
        self._server = _program("mariadbd")
        self._install = _program("mariadb-install-db")
        self._password = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> MariaDB:
        self.directory = server_directory("mariadb")
        self._as = server_user("mysql", self.directory)
        subprocess.run(
            [
                self._install,
                "--no-defaults",
                f"--datadir={self.directory}/data",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            **self._as,
            cwd=self.directory,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT,
        )
        self.start()
        self.execute(f"CREATE USER storelib@'%%' IDENTIFIED BY '{self._password}'")
        self.execute("GRANT ALL ON *.* TO storelib@'%%'")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        shutil.rmtree(self.directory)

    def start(self) -> None:
        """Start it, after the first time on the same port."""
        for _ in range(5):  # a port found free may be taken by the time it listens
            self.port = self.port or free_ports(1)[0]
            options = {
                "datadir": self.directory / "data",
                "socket": self.directory / "socket",
                "pid-file": self.directory / "pid",
                "bind-address": "127.0.0.1",
                "port": self.port,
                "innodb-flush-log-at-trx-commit": 0,
                "max-connections": 100,
                # Others must not decide how text is compared.
                "character-set-server": "latin1",
                "collation-server": "latin1_swedish_ci",
            }
            with (self.directory / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [
                        self._server,
                        "--no-defaults",
                        "--skip-name-resolve",
                        *(f"--{name}={value}" for name, value in options.items()),
                    ],
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
        raise RuntimeError(f"MariaDB does not start: {(self.directory / 'log').read_text()}")

    def stop(self) -> None:
        """Stop it at once; what was committed stays."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=_TIMEOUT)

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"d{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return f"mysql://storelib:{self._password}@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str, *values: object) -> list[Any]:
        """A statement on the server, in a connection of its own."""
        with contextlib.closing(self._connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement, values)
            return list(cursor.fetchall())

    def kill_connections(self) -> int:
        """Cut every client's connection; returns how many there were."""
        found = self.execute("SELECT id FROM information_schema.processlist WHERE user = 'storelib'")
        for (connection,) in found:
            self.execute(f"KILL CONNECTION {connection}")
        return len(found)

    def _connect(self) -> pymysql.Connection[Any]:
        return pymysql.connect(
            unix_socket=f"{self.directory}/socket", user="root", connect_timeout=5, autocommit=True, charset="utf8mb4"
        )

    def _answers(self) -> bool:
        # Asked for only when it listens: the client leaves the socket of a failed attempt open.
        if is_listening(self.port):
            self._connect().close()
            return True
        return False


def _program(name: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") or shutil.which(name)
    if found is None:
        pytest.skip("no MariaDB here (Debian: mariadb-server)")
    return found

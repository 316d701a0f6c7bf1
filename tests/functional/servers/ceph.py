# SPDX-License-Identifier: Apache-2.0
"""A real one-node Ceph on free loopback ports: monitor, OSD and, in front, radosgw (S3, Swift v1).

All it writes is in one directory; the daemons stay in the foreground and are killed by pid. Debian packages:
ceph-mon, ceph-osd, ceph-common, and radosgw for ``radosgw``.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import socket
import struct
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from servers.nginx import free_ports, make_certificate

#: One replica on one OSD, no manager, and no waiting for peers that will never come.
_GLOBAL = {
    "auth_cluster_required": "cephx",
    "auth_service_required": "cephx",
    "auth_client_required": "cephx",
    "public_addr": "127.0.0.1",
    "cluster_addr": "127.0.0.1",
    "admin_socket": "",
    "osd_crush_chooseleaf_type": 0,
    "osd_pool_default_size": 1,
    "osd_pool_default_min_size": 1,
    "osd_pool_default_pg_num": 8,
    "osd_pool_default_pgp_num": 8,
    "osd_pool_default_pg_autoscale_mode": "off",
}
_MON = {
    "mon_allow_pool_size_one": "true",
    "mon_allow_pool_delete": "true",
    "mon_max_pg_per_osd": 1000,
    "mon_data_avail_warn": 2,
    "mon_data_avail_crit": 1,
    "auth_allow_insecure_global_id_reclaim": "false",
    # Seconds between two changes of the cluster's maps: there is nobody to agree with.
    "paxos_propose_interval": 0.05,
    "paxos_min_wait": 0.01,
}
_OSD = {
    "osd_class_load_list": "*",
    "osd_class_default_list": "*",
    # A sparse file.
    "bluestore_block_size": 20 << 30,
    "bluestore_cache_autotune": "false",
    "bluestore_cache_size": 128 << 20,
    "bdev_aio_poll_ms": 10,
}
_RGW = {
    "rgw_thread_pool_size": 32,
    "rgw_run_sync_thread": "false",
    # Seconds that quotas may look at old numbers.
    "rgw_bucket_quota_ttl": 0,
    "rgw_user_quota_bucket_sync_interval": 1,
}
_USERS = {
    "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *", "mgr": "allow profile osd"},
    "client.rgw": {"mon": "allow rw", "osd": "allow rwx", "mgr": "allow rw"},
}
#: Seconds that anything may take to start.
_TIMEOUT = 120.0


class Daemon:
    """A process in the foreground, its output in a file beside its log."""

    def __init__(self, command: list[str], environment: Mapping[str, str], output: Path) -> None:
        self.output = output
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id, for signals."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it at once: the data is thrown away anyway."""
        self._process.kill()
        self._process.wait(timeout=30)


class Cluster:
    """``with Cluster(directory) as ceph``: ``conf_file`` and ``keyring`` are all a client needs, as client.admin."""

    def __init__(self, directory: Path, **options: object) -> None:
        _need("ceph-mon", "ceph-osd", "ceph")
        self.directory = directory
        self.conf_file = directory / "ceph.conf"
        self.keyring = directory / "keyring"
        self.fsid = str(uuid.uuid4())
        self._options = options
        self._users: dict[str, tuple[str, Mapping[str, str]]] = {}
        self._sections: dict[str, Mapping[str, object]] = {}
        self._daemons: list[Daemon] = []
        self._osd: Daemon | None = None

    def __enter__(self) -> Cluster:
        for name in ("mon", "osd", "run"):
            (self.directory / name).mkdir(parents=True)
        for user, capabilities in _USERS.items():
            self._users[user] = (_new_key(), capabilities)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        while self._daemons:
            self._daemons.pop().kill()

    @property
    def environment(self) -> dict[str, str]:
        """What makes every Ceph program use this cluster and no other."""
        return {"CEPH_CONF": str(self.conf_file), "CEPH_ARGS": "", "CEPH_KEYRING": str(self.keyring)}

    def run(self, *command: str, timeout: float = _TIMEOUT) -> str:
        """The output of one of Ceph's programs."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, timeout=timeout, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
        return done.stdout

    def command(self, *words: str) -> str:
        """``ceph`` with these words."""
        return self.run("ceph", "--connect-timeout", "30", *words)

    def add_user(self, name: str, **capabilities: str) -> str:
        """Make a user (``client.glance``) with capabilities (``mon="profile rbd"``); returns its secret key."""
        pairs = [word for pair in capabilities.items() for word in pair]
        key = json.loads(self.command("auth", "get-or-create", name, *pairs, "--format", "json"))[0]["key"]
        self._users[name] = (key, capabilities)
        self._write_keyring(self.keyring)
        return str(key)

    def key(self, name: str) -> str | None:
        """The secret key of a user; None if there is no such user."""
        return self._users[name][0] if name in self._users else None

    def add_pool(self, name: str) -> None:
        """Make a pool of one replica."""
        self.command("osd", "pool", "create", name)
        self.command("osd", "pool", "application", "enable", name, "rbd")

    @property
    def osd_pid(self) -> int:
        """The process id of the OSD, for SIGSTOP and SIGCONT."""
        assert self._osd is not None
        return self._osd.pid

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Every pool is full meanwhile: what is used is more than what is allowed."""
        try:
            self._set_full_ratios("0.00001", "0.00002", "0.00003")
            _wait("being full", lambda: self._is_full())
            yield
        finally:
            self._set_full_ratios("0.85", "0.90", "0.95")
            _wait("having room", lambda: not self._is_full())

    def _set_full_ratios(self, *ratios: str) -> None:
        kinds = ["nearfull", "backfillfull", "full"]
        for kind, ratio in zip(kinds, ratios, strict=True):
            self.command("osd", f"set-{kind}-ratio", ratio)

    def _is_full(self) -> bool:
        pools = json.loads(self.command("osd", "dump", "--format", "json"))["pools"]
        return any("full" in pool["flags_names"].split(",") for pool in pools)

    def configure(self, section: str, options: Mapping[str, object]) -> None:
        """Options of daemons that are started from now on."""
        self._sections[section] = options
        sections = (f"[{name}]\n{_lines(values)}" for name, values in self._sections.items())
        self.conf_file.write_text("\n".join(sections))

    def start(self, name: str, *command: str) -> Daemon:
        """Run a daemon that ends with the cluster."""
        daemon = Daemon(list(command), self.environment, self.directory / f"{name}.out")
        self._daemons.append(daemon)
        return daemon

    def _start(self) -> None:
        v1, v2 = free_ports(2)
        folder = self.directory
        mon_host = f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]"
        addresses = {"mon_host": mon_host, "keyring": self.keyring}
        places = {"run_dir": folder / "run", "crash_dir": folder / "run", "fsid": self.fsid}
        self.configure("global", {**_GLOBAL, **places, **addresses})
        self.configure("mon", {**_MON, "mon_data": folder / "mon", "log_file": folder / "mon.log"})
        self.configure("osd", {**_OSD, "osd_data": folder / "osd", "log_file": folder / "osd.log", **self._options})
        # Where librados says why it ends a process: what it prints as well is lost with the output of a test.
        self.configure("client", {"log_file": folder / "client.log"})
        self._write_keyring(self.keyring)
        # The monitor learns every user from its first keyring, so none has to be made with a command.
        mon_keyring = folder / "mon.keyring"
        self._users["mon."] = (_new_key(), {"mon": "allow *"})
        self._write_keyring(mon_keyring)
        del self._users["mon."]

        monmap = str(folder / "monmap")
        members = ["--create", "--fsid", self.fsid, "--addv", "a", mon_host, "--enable-all-features"]
        self.run("monmaptool", *members, monmap)
        self.run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", str(mon_keyring))
        mon = self.start("mon", "ceph-mon", "-f", "-i", "a")
        osd_uuid = str(uuid.uuid4())
        self.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_uuid)
        self.command("osd", "new", osd_uuid, "0")
        osd = self._osd = self.start("osd", "ceph-osd", "-f", "-i", "0")
        # A client that asks before the OSD is up sleeps for five seconds.
        _wait("the OSD", lambda: self._osds_up() == 1, mon, osd)

    def _osds_up(self) -> int:
        return int(json.loads(self.command("osd", "stat", "--format", "json"))["num_up_osds"])

    def _write_keyring(self, path: Path) -> None:
        path.write_text(
            "".join(
                f"[{name}]\n\tkey = {key}\n" + "".join(f'\tcaps {who} = "{what}"\n' for who, what in caps.items())
                for name, (key, caps) in self._users.items()
            )
        )
        path.chmod(0o600)


class RadosGateway:
    """radosgw in front of a Cluster, with one user known to S3 and to Swift."""

    def __init__(self, cluster: Cluster, **options: object) -> None:
        _need("radosgw", "radosgw-admin")
        self.cluster = cluster
        #: S3 keys.
        self.access_key = "STORELIBTESTKEY00001"
        self.secret_key = secrets.token_hex(20)
        self.user = "storelib"
        #: Swift v1 user and key.
        self.swift_user = "storelib:swift"
        self.swift_key = secrets.token_hex(20)
        #: What clients must trust to reach ``https_endpoint``.
        self.certificate = cluster.directory / "rgw-certificate.pem"
        self._options = options
        self._daemon: Daemon | None = None
        self.port, self.tls_port = 0, 0

    @property
    def s3_endpoint(self) -> str:
        """S3 over plain HTTP; path-style addressing, region us-east-1."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def https_endpoint(self) -> str:
        """The same over TLS; Swift is there too, under /auth/1.0."""
        return f"https://localhost:{self.tls_port}"

    @property
    def swift_auth_url(self) -> str:
        """Swift's version 1 authentication."""
        return f"{self.s3_endpoint}/auth/1.0"

    @property
    def pid(self) -> int:
        """The daemon's process id, for SIGSTOP and the like."""
        assert self._daemon is not None
        return self._daemon.pid

    def admin(self, *words: str) -> Any:
        """``radosgw-admin`` with these words; its answer, decoded."""
        response = self.cluster.run("radosgw-admin", *words)
        return json.loads(response) if response.strip().startswith(("{", "[")) else response

    def add_user(self, uid: str) -> tuple[str, str]:
        """Another S3 user; returns access key and secret key."""
        made = self.admin("user", "create", f"--uid={uid}", f"--display-name={uid}")
        return made["keys"][0]["access_key"], made["keys"][0]["secret_key"]

    def __enter__(self) -> RadosGateway:
        user = [f"--uid={self.user}", f"--access-key={self.access_key}", f"--secret={self.secret_key}"]
        self.admin("user", "create", "--display-name=storelib", *user)
        swift = [f"--subuser={self.swift_user}", "--access=full", "--key-type=swift", f"--secret={self.swift_key}"]
        self.admin("subuser", "create", f"--uid={self.user}", *swift)
        key = self.cluster.directory / "rgw-key.pem"
        make_certificate(self.certificate, key)
        for _ in range(5):  # a port found free may be taken by the time radosgw listens
            self.port, self.tls_port = free_ports(2)
            frontend = f"beast endpoint=127.0.0.1:{self.port} ssl_endpoint=127.0.0.1:{self.tls_port}"
            frontend += f" ssl_certificate={self.certificate} ssl_private_key={key}"
            folder = self.cluster.directory
            own = {"rgw_frontends": frontend, "rgw_data": folder / "run", "log_file": folder / "rgw.log"}
            self.cluster.configure("client.rgw", {**_RGW, **own, **self._options})
            self._daemon = self.cluster.start("rgw", "radosgw", "-f", "-n", "client.rgw")
            with contextlib.suppress(ServerDied):
                _wait("radosgw", lambda: _listens(self.port) and _listens(self.tls_port), self._daemon)
                return self
        raise RuntimeError(f"radosgw does not start: {self._daemon.output.read_text()}")

    def __exit__(self, *exc_info: object) -> None:
        if self._daemon is not None and self._daemon.alive:
            self._daemon.kill()


@contextlib.contextmanager
def radosgw(directory: Path, **options: object) -> Iterator[RadosGateway]:
    """A cluster of its own with radosgw in front; ``options`` are radosgw's (``rgw_multipart_min_part_size=1``)."""
    with Cluster(directory) as cluster, RadosGateway(cluster, **options) as gateway:
        yield gateway


class ServerDied(Exception):
    """A daemon ended while it was waited for."""


def _wait(what: str, ready: Any, *daemons: Daemon) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while not ready():
        for daemon in daemons:
            if not daemon.alive:
                raise ServerDied(f"{what} does not start: {daemon.output.read_text()[-2000:]}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} does not start within {_TIMEOUT:g} s")
        time.sleep(0.05)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _new_key() -> str:
    """A cephx key: type AES, creation time, length and 16 random bytes (CryptoKey::encode)."""
    header = struct.pack("<hiih", 1, int(time.time()), 0, 16)
    return base64.b64encode(header + secrets.token_bytes(16)).decode()


def _lines(options: Mapping[str, object]) -> str:
    return "".join(f"{name} = {value}\n" for name, value in options.items())


def _need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (Debian: ceph-mon ceph-osd ceph-common radosgw)")

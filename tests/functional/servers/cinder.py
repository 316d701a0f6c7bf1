# SPDX-License-Identifier: Apache-2.0
"""Cinder on free loopback ports: API, scheduler and a volume service that keeps its volumes in a Ceph of servers.ceph.

By itself all three are one process without a message broker. With a ``broker``, the URL of one, each is a process of
its own that can be stopped alone. ``python -m servers.cinder`` in ``tests/functional`` installs it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from servers import environments
from servers.ceph import Cluster
from servers.environments import CHECKOUT
from servers.keystone import Keystone
from servers.nginx import free_ports
from servers.openstack import Processes

PACKAGES = ("cinder>=25", "os-brick>=6.7", "python-memcached>=1.59", "setuptools<81")
#: The pool of Ceph, and Cinder's user there.
POOL, USER = "volumes", "cinder"
#: Volume types: one whose volumes several may attach at once, and one whose volumes only one may.
TYPES = {"shared": {"multiattach": "<is> True"}, "single": {}}

# A schema takes long to make: it is made once and copied.
_TEMPLATE = CHECKOUT / ".venv-cinder/template"

_CINDER = """
[DEFAULT]
use_stderr = true
host = localhost
my_ip = 127.0.0.1
transport_url = {broker}
auth_strategy = keystone
osapi_volume_listen = 127.0.0.1
osapi_volume_listen_port = {port}
osapi_volume_workers = 1
public_endpoint = http://127.0.0.1:{port}
api_paste_config = {programs}/../etc/cinder/api-paste.ini
resource_query_filters_file = {programs}/../etc/cinder/resource_filters.json
rootwrap_config = {programs}/../etc/cinder/rootwrap.conf
state_path = {directory}/state
enabled_backends = rbd
default_volume_type = shared
# Without a manager Ceph does not tell how full it is.
scheduler_default_filters = AvailabilityZoneFilter,CapabilitiesFilter
periodic_interval = 5
report_interval = 2
service_down_time = 3600
rpc_response_timeout = {rpc_timeout}
[database]
connection = sqlite:///{directory}/cinder.db
{authtoken}
memcached_servers = 127.0.0.1:{memcached}
service_token_roles = service
service_token_roles_required = true
[oslo_concurrency]
lock_path = {directory}/lock
[coordination]
backend_url = file://{directory}/coordination
[oslo_messaging_rabbit]
heartbeat_in_pthread = false
[rbd]
volume_driver = cinder.volume.drivers.rbd.RBDDriver
volume_backend_name = rbd
rbd_pool = {pool}
rbd_user = {user}
rbd_ceph_conf = {ceph_conf}
rbd_secret_uuid = 457eb676-33da-42ec-9a8c-9293d545c337
rados_connection_interval = 1
rbd_flatten_volume_from_snapshot = false
report_dynamic_total_capacity = false
"""

#: What each process of Cinder does before anything else: SQLite queues its writers instead of refusing them.
_SITE = """
from sqlalchemy import event
from sqlalchemy.engine import Engine

@event.listens_for(Engine, "connect")
def connected(connection, record):
    for setting in ("busy_timeout=30000", "synchronous=OFF"):
        connection.execute("PRAGMA " + setting)

@event.listens_for(Engine, "before_cursor_execute", retval=True)
def before(connection, cursor, statement, parameters, context, executemany):
    return ("BEGIN IMMEDIATE" if statement == "BEGIN" else statement), parameters
"""

#: All services in one process. Its bus, which is made for tests, looks for messages when there are some, not 20 times a
#: second; and where Ceph's monitors are is asked once, not with a program of its own for each attachment.
_TOGETHER = """
from cinder import monkey_patch; monkey_patch.patch()
import functools, sys, threading, types
from oslo_config import cfg
from oslo_log import log
from oslo_service import service as launching
from cinder import coordination, objects, rpc, service, version
from cinder.common import config, constants
import oslo_messaging._drivers.impl_fake as fake_bus
import time
bell = threading.Condition()
plain_deliver = fake_bus.FakeExchange.deliver_message
def deliver(*arguments, **options):
    plain_deliver(*arguments, **options)
    with bell:
        bell.notify_all()
def wait(seconds):
    with bell:
        bell.wait(seconds)
fake_bus.FakeExchange.deliver_message = deliver
fake_bus.time = types.SimpleNamespace(**{**vars(time), "sleep": wait})
from cinder.volume.drivers.rbd import RBDDriver
RBDDriver._get_mon_addrs = functools.lru_cache(RBDDriver._get_mon_addrs)
CONF = cfg.CONF
objects.register_all()
CONF(sys.argv[1:], project="cinder", version=version.version_string())
log.setup(CONF, "cinder")
config.set_middleware_defaults()
import os_brick
os_brick.setup(CONF)
coordination.COORDINATOR.start()
rpc.init(CONF)
launcher = launching.ServiceLauncher(CONF, restart_method="mutate")
launcher.launch_service(service.WSGIService("osapi_volume"))
launcher.launch_service(service.Service.create(binary=constants.SCHEDULER_BINARY))
for backend in CONF.enabled_backends:
    launcher.launch_service(service.Service.create(
        host=f"{CONF.host}@{backend}", service_name=backend, binary=constants.VOLUME_BINARY,
        coordination=True, cluster=None))
launcher.wait()
"""


def install() -> Path:
    """The directory of the environment's programs; makes the environment at the first call, in about two minutes."""
    programs = environments.install("cinder", PACKAGES)
    # The bindings of Ceph are the distribution's; linking them takes milliseconds.
    subprocess.run([CHECKOUT / ".ci/ceph-bindings", programs / "python"], check=True, stdin=subprocess.DEVNULL)
    return programs


class Cinder:
    """``with Cinder(directory, keystone, ceph) as server``: version 3 at ``server.url`` and in Keystone's catalog."""

    def __init__(
        self,
        directory: Path,
        keystone: Keystone,
        ceph: Cluster,
        *,
        broker: str = "fake:/",
        region: str = "RegionOne",
        rpc_timeout: int = 60,
    ) -> None:
        self.directory = directory
        self.keystone = keystone
        self.ceph = ceph
        self.broker = broker
        self.region = region
        self.port, self._memcached = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}/v3"
        #: What a client needs to reach the volumes, as Cinder's user.
        self.keyring = directory / f"ceph.client.{USER}.keyring"
        self._rpc_timeout = rpc_timeout
        self._processes = Processes(directory)
        self._programs = install()
        self._conf = directory / "cinder.conf"

    def __enter__(self) -> Cinder:
        self._prepare()
        try:
            self._start()
        except BaseException:
            self._processes.kill()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        # The data is thrown away anyway, and a quiet end takes ten seconds.
        self._processes.kill()

    def call(self, method: str, path: str, body: Any = None, version: str = "3.60", **headers: str) -> Any:
        """One call as admin of the project ``admin``."""
        given = {"OpenStack_API_Version": f"volume {version}", **headers}
        return self.keystone.call_service(method, self.url + path, body, **given)

    def forget_tokens(self) -> None:
        """Ask Keystone again about each token, also those that were good a moment ago."""
        with socket.create_connection(("127.0.0.1", self._memcached), 10) as memcached:
            memcached.sendall(b"flush_all\r\n")
            assert memcached.recv(4) == b"OK\r\n"

    @contextlib.contextmanager
    def stopped(self, service: str) -> Iterator[None]:
        """One of the services ``api``, ``scheduler`` and ``volume`` stands still meanwhile, with its children."""
        self._signal(service, signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(service, signal.SIGCONT)

    @contextlib.contextmanager
    def killed(self, service: str) -> Iterator[None]:
        """One of the services is not there meanwhile, ended without a chance to clean up."""
        self._signal(service, signal.SIGKILL)
        self._processes.forget(f"cinder-{service}")
        try:
            yield
        finally:
            self._run(service)

    def _signal(self, service: str, number: signal.Signals) -> None:
        os.killpg(self._processes.pid(f"cinder-{service}"), number)

    def wait_until_up(self, service: str = "cinder-volume") -> None:
        """Until the services say that they work."""
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                found = self.call("GET", "/os-services")["services"]
                if {each["binary"] for each in found if each["state"] == "up"} >= {"cinder-scheduler", service}:
                    return
            if time.monotonic() > deadline:
                raise RuntimeError(f"Cinder's services do not start: logs are in {self.directory}")
            time.sleep(0.1)

    def _prepare(self) -> None:
        key = self.ceph.key(f"client.{USER}")
        if key is None:
            self.ceph.add_pool(POOL)
            key = self.ceph.add_user(f"client.{USER}", mon="profile rbd", osd=f"profile rbd pool={POOL}")
        self.keyring.write_text(f"[client.{USER}]\n\tkey = {key}\n")
        for name in ("state", "lock", "coordination"):
            (self.directory / name).mkdir()
        (self.directory / "sitecustomize.py").write_text(_SITE)
        (self.directory / "together.py").write_text(_TOGETHER)
        self._conf.write_text(
            _CINDER.format(
                broker=self.broker,
                port=self.port,
                programs=self._programs,
                directory=self.directory,
                rpc_timeout=self._rpc_timeout,
                authtoken=self.keystone.authtoken.strip(),
                memcached=self._memcached,
                pool=POOL,
                user=USER,
                ceph_conf=self.ceph.conf_file,
            )
        )
        self._make_database()

    def _make_database(self) -> None:
        with (CHECKOUT / ".cache/cinder-template.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (_TEMPLATE / "ready").exists():
                shutil.rmtree(_TEMPLATE, ignore_errors=True)
                _TEMPLATE.mkdir()
                (_TEMPLATE / "cinder.conf").write_text(
                    f"[database]\nconnection = sqlite:///{_TEMPLATE}/cinder.db\n[DEFAULT]\nuse_stderr = true\n"
                )
                command = [self._programs / "cinder-manage", "--config-file", _TEMPLATE / "cinder.conf", "db", "sync"]
                subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
                (_TEMPLATE / "ready").touch()
        shutil.copy(_TEMPLATE / "cinder.db", self.directory / "cinder.db")
        with contextlib.closing(sqlite3.connect(self.directory / "cinder.db")) as database:
            database.execute("PRAGMA journal_mode=WAL")

    def _start(self) -> None:
        user = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
        memcached = ["memcached", "-l", "127.0.0.1", "-p", str(self._memcached), "-U", "0", "-u", user, "-m", "16"]
        self._processes.start("memcached", memcached)
        if self.broker == "fake:/":
            self._run("together")
        else:
            for service in ("api", "scheduler", "volume"):
                self._run(service)
        self._processes.wait_for(self.url)
        self.keystone.add_endpoints("volumev3", **{self.region: self.url})
        unlimited = dict.fromkeys(("volumes", "gigabytes", "snapshots", "per_volume_gigabytes"), -1)
        self.call("PUT", "/os-quota-class-sets/default", {"quota_class_set": unlimited})
        for name, specs in TYPES.items():
            specs = {"volume_backend_name": "rbd", **specs}
            self.call("POST", "/types", {"volume_type": {"name": name, "extra_specs": specs}})
        self.wait_until_up()

    def _run(self, service: str) -> None:
        program: list[str | Path] = [self._programs / f"cinder-{service}"]
        if service == "together":
            program = [self._programs / "python", self.directory / "together.py"]
        command = [*program, "--config-file", self._conf]
        environment = {"PYTHONPATH": str(self.directory), "CEPH_ARGS": ""}
        environment["PATH"] = f"{self._programs}:{os.environ['PATH']}"
        self._processes.start(f"cinder-{service}", command, **environment)


if __name__ == "__main__":
    install()

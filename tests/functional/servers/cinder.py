# SPDX-License-Identifier: Apache-2.0
"""Cinder on free loopback ports: API, scheduler and volume services, whose volumes are in a Ceph of servers.ceph, on
NFS (a directory; there is no NFS server, mounting it is a bind mount), or loop devices of the kernel.

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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from servers import environments
from servers.ceph import Cluster
from servers.environments import CHECKOUT
from servers.freezing import freeze
from servers.keystone import Keystone
from servers.nginx import free_ports
from servers.openstack import Processes

#: Nova and Ironic, whose code ``servers.consumers`` runs, need nearly the same packages as Cinder and live beside it.
PACKAGES = ("cinder>=25", "os-brick>=6.7", "python-memcached>=1.59", "setuptools<81", "nova>=30", "ironic>=24")
#: The pool of Ceph, and Cinder's user there.
POOL, USER = "volumes", "cinder"
#: Volume types of each back end: those whose volumes several may attach at once, and those whose volumes only one may.
TYPES: dict[str, dict[str, dict[str, str]]] = {
    "rbd": {"shared": {"multiattach": "<is> True"}, "single": {}},
    "nfs": {"nfs": {}},
    "loop": {"loop": {"multiattach": "<is> True"}},
}

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
enabled_backends = {backends}
default_volume_type = {default}
# Without a manager Ceph does not tell how full it is.
scheduler_default_filters = AvailabilityZoneFilter,CapabilitiesFilter
periodic_interval = 5
report_interval = 2
service_down_time = 3600
rpc_response_timeout = {rpc_timeout}
default_log_levels = cinder=WARNING,eventlet=WARNING,keystonemiddleware=WARNING,oslo.messaging=WARNING
[database]
connection = sqlite:///{directory}/cinder.db
sqlite_synchronous = false
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
"""

_BACKENDS = {
    "rbd": """
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
""",
    "nfs": """
[nfs]
volume_driver = cinder.volume.drivers.nfs.NfsDriver
volume_backend_name = nfs
nfs_shares_config = {directory}/nfs_shares
nfs_mount_point_base = {directory}/nfs_mounts
nfs_snapshot_support = true
nas_secure_file_permissions = false
nas_secure_file_operations = false
max_over_subscription_ratio = 1000
""",
    "loop": """
[loop]
volume_driver = loops.LoopDriver
volume_backend_name = loop
""",
}

#: What ``mount -t nfs HOST:/PATH DIRECTORY`` runs here, where neither the kernel nor the machine has NFS: the same
#: files under another path. A version of NFS that does not exist is refused, as by the real one.
_MOUNT = """#!/bin/sh
[ "$1 $2" = "-t nfs" ] || exec /bin/mount "$@"
shift 2
while [ "$1" = -o ]; do
    case $2 in *vers=9*) echo "mount.nfs: an incorrect mount option was specified" >&2; exit 32;; esac
    shift 2
done
exec /bin/mount --bind "${1#*:}" "$2"
"""

#: A driver of Cinder whose volumes are loop devices of this host, with something in them that is not zeros.
_LOOPS = """
import os, shutil, subprocess
from cinder import exception, interface
from cinder.volume import driver

def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

@interface.volumedriver
class LoopDriver(driver.VolumeDriver):
    VERSION = "1"
    def path(self, volume):
        return os.path.join(os.path.dirname(__file__), "loops", volume.id)
    def check_for_setup_error(self):
        pass
    def _update_volume_stats(self):
        self._stats = dict(volume_backend_name="loop", vendor_name="x", driver_version="1", storage_protocol="local",
                           total_capacity_gb=1000, free_capacity_gb=1000, multiattach=True, online_extend_support=True)
    def validate_connector(self, connector):
        if "nqn" not in connector:
            raise exception.InvalidConnectorException(missing="nqn")
    def create_volume(self, volume):
        with open(self.path(volume), "wb") as file:
            file.write(b"*" * (24 << 20))
            file.truncate(volume.size << 30)
    def create_cloned_volume(self, volume, source):
        run("cp", "--sparse=auto", self.path(source), self.path(volume))
        os.truncate(self.path(volume), volume.size << 30)
    def delete_volume(self, volume):
        if os.path.exists(self.path(volume)):
            os.unlink(self.path(volume))
    def extend_volume(self, volume, size):
        os.truncate(self.path(volume), size << 30)
        for device in self.devices(volume):
            run("losetup", "-c", device)
    def devices(self, volume):
        return run("losetup", "-n", "-O", "NAME", "-j", self.path(volume)).split()
    def create_export(self, context, volume, connector=None):
        pass
    ensure_export = remove_export = create_export
    def initialize_connection(self, volume, connector):
        device = (self.devices(volume) or [run("losetup", "-f", "--show", self.path(volume))])[0]
        return {"driver_volume_type": "local", "data": {"device_path": device}}
    def terminate_connection(self, volume, connector, **options):
        if len(volume.volume_attachment) < 2:
            for device in self.devices(volume):
                run("losetup", "-d", device)
"""

#: What each process of Cinder does before anything else: SQLite queues its writers instead of refusing them, and
#: connections to it are kept; opening one for each transaction is a quarter of all that Cinder does.
_SITE = """
import sqlalchemy
from sqlalchemy import event, pool
from sqlalchemy.engine import Engine

create_engine = sqlalchemy.create_engine
def keeping(url, **options):
    if options.get("poolclass") is pool.NullPool:
        options.update(poolclass=pool.QueuePool, pool_size=32, max_overflow=64)
    return create_engine(url, **options)
sqlalchemy.create_engine = keeping

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
# Root is root already; and a Python of its own, only to limit what qemu-img may use, takes longer than qemu-img.
import cinder.privsep, os_brick.privileged
from oslo_concurrency import processutils
cinder.privsep.sys_admin_pctxt.set_client_mode(False)
os_brick.privileged.default.set_client_mode(False)
processutils.ProcessLimits = lambda **limits: None
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
# What is there now stays, and need not be looked through for garbage again and again.
import gc
gc.collect()
gc.freeze()
launcher.wait()
"""


def install() -> Path:
    """The directory of the environment's programs; makes the environment at the first call, in about two minutes."""
    programs = environments.install("cinder", PACKAGES)
    # The bindings of Ceph are the distribution's; linking them takes milliseconds.
    subprocess.run([CHECKOUT / ".ci/ceph-bindings", programs / "python"], check=True, stdin=subprocess.DEVNULL)
    return programs


class Cinder:
    """``with Cinder(directory, keystone, ceph) as server``: version 3 at ``server.url`` and in Keystone's catalog.

    Back ends are ``rbd``, ``nfs`` and ``loop``; only the first needs a Ceph, only the others root.
    """

    def __init__(
        self,
        directory: Path,
        keystone: Keystone,
        ceph: Cluster | None = None,
        *,
        backends: Sequence[str] = ("rbd",),
        broker: str = "fake:/",
        region: str = "RegionOne",
        rpc_timeout: int = 60,
    ) -> None:
        self.directory = directory
        self.keystone = keystone
        self.ceph = ceph
        self.backends = backends
        self.broker = broker
        self.region = region
        self.port, self._memcached = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}/v3"
        #: What a client needs to reach the volumes, as Cinder's user.
        self.keyring = directory / f"ceph.client.{USER}.keyring"
        #: The directory that is the NFS share.
        self.share = directory / "nfs_share"
        #: To be first in the PATH of who mounts it.
        self.programs = directory / "bin"
        self._rpc_timeout = rpc_timeout
        self._processes = Processes(directory)
        self._programs = install()
        self._conf = directory / "cinder.conf"

    def __enter__(self) -> Cinder:
        self._prepare()
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        # The data is thrown away anyway, and a quiet end takes ten seconds.
        self._processes.kill()
        self._clean_up()

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
        freeze(self._processes.pid(f"cinder-{service}"), self.directory / "cinder.db")
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
                up = [each["binary"] for each in found if each["state"] == "up"]
                if "cinder-scheduler" in up and up.count(service) >= len(self.backends):
                    return
            if time.monotonic() > deadline:
                raise RuntimeError(f"Cinder's services do not start: logs are in {self.directory}")
            time.sleep(0.1)

    def _prepare(self) -> None:
        if self.ceph is not None:
            self._prepare_ceph(self.ceph)
        for name in ("state", "lock", "coordination", "loops", "bin", "nfs_share", "nfs_mounts"):
            (self.directory / name).mkdir()
        (self.directory / "nfs_shares").write_text(f"127.0.0.1:{self.share} -o vers=4.2\n")
        (self.programs / "mount").write_text(_MOUNT)
        (self.programs / "mount.nfs").write_text("#!/bin/sh\n")
        for program in self.programs.iterdir():
            program.chmod(0o755)
        (self.directory / "loops.py").write_text(_LOOPS)
        (self.directory / "sitecustomize.py").write_text(_SITE)
        (self.directory / "together.py").write_text(_TOGETHER)
        self._conf.write_text(
            "".join([_CINDER, *(_BACKENDS[name] for name in self.backends)]).format(
                backends=",".join(self.backends),
                default=next(iter(TYPES[self.backends[0]])),
                broker=self.broker,
                port=self.port,
                programs=self._programs,
                directory=self.directory,
                rpc_timeout=self._rpc_timeout,
                authtoken=self.keystone.authtoken.strip(),
                memcached=self._memcached,
                pool=POOL,
                user=USER,
                ceph_conf=self.ceph.conf_file if self.ceph is not None else "",
            )
        )
        self._make_database()

    def _prepare_ceph(self, ceph: Cluster) -> None:
        key = ceph.key(f"client.{USER}")
        if key is None:
            ceph.add_pool(POOL)
            key = ceph.add_user(f"client.{USER}", mon="profile rbd", osd=f"profile rbd pool={POOL}")
        self.keyring.write_text(f"[client.{USER}]\n\tkey = {key}\n")

    def _clean_up(self) -> None:
        """What is mounted or a device would outlive the directory."""
        for mount in (self.directory / "nfs_mounts").iterdir():
            subprocess.run(["umount", mount], check=False, capture_output=True)
        for volume in (self.directory / "loops").iterdir():
            found = subprocess.run(["losetup", "-n", "-O", "NAME", "-j", volume], capture_output=True, text=True)
            for device in found.stdout.split():
                subprocess.run(["losetup", "-d", device], check=False)

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
        for backend in self.backends:
            for name, specs in TYPES[backend].items():
                specs = {"volume_backend_name": backend, **specs}
                self.call("POST", "/types", {"volume_type": {"name": name, "extra_specs": specs}})
        self.wait_until_up()

    def _run(self, service: str) -> None:
        program: list[str | Path] = [self._programs / f"cinder-{service}"]
        if service == "together":
            program = [self._programs / "python", self.directory / "together.py"]
        command = [*program, "--config-file", self._conf]
        environment = {"PYTHONPATH": str(self.directory), "CEPH_ARGS": ""}
        environment["PATH"] = f"{self.programs}:{self._programs}:{os.environ['PATH']}"
        self._processes.start(f"cinder-{service}", command, **environment)


if __name__ == "__main__":
    install()

# SPDX-License-Identifier: Apache-2.0
"""OpenStack Swift on free loopback ports: proxy, account, container and object server, one replica, one directory.

Tokens are tempauth's, or Keystone's when told where that is. Needs Debian's memcached; see ``openstack.install``.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from servers.nginx import free_ports
from servers.openstack import Processes, install

#: account, user and key; the last is one of another account.
USER, KEY = "test:tester", "testing-key"
OTHER_USER, OTHER_KEY = "other:stranger", "stranger-key"

# Swift takes storage policies and limits from /etc/swift/swift.conf while it is imported, whatever swift_dir says.
_RUN = """
import runpy, sys
from swift.common import utils
utils.SWIFT_CONF_FILE = sys.argv[1]
utils.validate_configuration()
from swift.common import constraints, storage_policy
constraints.reload_constraints()
storage_policy.reload_storage_policies()
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# What swift-ring-builder does with create, add and rebalance: one partition, one device; arguments: files and ports.
# One process for all rings, because each takes half a second to import Swift.
_RINGS = """
import sys
from swift.common.ring import RingBuilder
for file, port in zip(sys.argv[1::2], sys.argv[2::2]):
    builder = RingBuilder(0, 1, 1)
    place = {"ip": "127.0.0.1", "port": int(port), "replication_ip": "127.0.0.1", "replication_port": int(port)}
    builder.add_dev({"region": 1, "zone": 1, "device": "d1", "weight": 1, "meta": "", **place})
    builder.rebalance()
    builder.get_ring().save(file)
"""

_SWIFT = """
[swift-hash]
swift_hash_path_prefix = {prefix}
swift_hash_path_suffix = {suffix}
[storage-policy:0]
name = gold
default = yes
[storage-policy:1]
name = silver
[swift-constraints]
container_listing_limit = 100
"""

_COMMON = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {directory}
devices = {directory}/devices
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
log_level = WARNING
log_address = {directory}/nobody-listens
"""

_STORAGE = """
[pipeline:main]
pipeline = healthcheck {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
log_requests = false
[filter:healthcheck]
use = egg:swift#healthcheck
"""

_PROXY = """
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache listing_formats bulk tempurl {auth} copy container-quotas
    account-quotas {large} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
recheck_container_existence = 0
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:tempurl]
use = egg:swift#tempurl
[filter:copy]
use = egg:swift#copy
[filter:container-quotas]
use = egg:swift#container_quotas
[filter:account-quotas]
use = egg:swift#account_quotas
[filter:slo]
use = egg:swift#slo
max_manifest_segments = {manifest}
# Segments under a MiB would be read at one a second.
rate_limit_under_size = 0
[filter:dlo]
use = egg:swift#dlo
rate_limit_after_segment = 100000
[filter:tempauth]
use = egg:swift#tempauth
token_life = {token_life}
user_test_tester = testing-key .admin
user_other_stranger = stranger-key .admin
user_test_reader = reader-key
"""

#: Kinds of large objects, segments in a manifest, seconds that a token is good.
_SETTINGS = {"large": "slo dlo", "manifest": 1000, "token_life": 86400}

_KEYSTONE = """
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
www_authenticate_uri = {url}
auth_type = password
auth_url = {url}
username = swift
password = swiftpass
project_name = service
user_domain_id = default
project_domain_id = default
delay_auth_decision = True
cache = swift.cache
include_service_catalog = False
interface = public
[filter:keystoneauth]
use = egg:swift#keystoneauth
operator_roles = admin, member
reseller_admin_role = ResellerAdmin
"""


class Swift:
    """``with Swift(directory) as server``: version 1 tokens at ``server.auth_url``, for ``USER`` and ``KEY``.

    With ``keystone``, the URL of a Keystone, tokens are that one's.
    """

    def __init__(self, directory: Path, keystone: str | None = None) -> None:
        self.directory = directory
        self.keystone = keystone
        self.ports = dict(zip(("proxy", "account", "container", "object", "memcached"), free_ports(5), strict=True))
        self.url = f"http://127.0.0.1:{self.ports['proxy']}"
        self.auth_url = keystone or f"{self.url}/auth/v1.0"
        self._processes = Processes(directory)
        self._programs = install()

    def __enter__(self) -> Swift:
        (self.directory / "devices/d1").mkdir(parents=True)
        text = _SWIFT.format(prefix=secrets.token_hex(8), suffix=secrets.token_hex(8))
        (self.directory / "swift.conf").write_text(text)
        try:
            self._start()
        except BaseException:
            self._processes.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._processes.stop()

    def forget_tokens(self) -> None:
        """No token given out until now is good any more."""
        with socket.create_connection(("127.0.0.1", self.ports["memcached"]), 5) as memcached:
            memcached.sendall(b"flush_all\r\n")
            assert memcached.recv(100) == b"OK\r\n"

    def another_proxy(self, **settings: object) -> str:
        """The URL of one more proxy before the same storage, with other settings; see ``_SETTINGS``."""
        (port,) = free_ports(1)
        self._start_proxy(f"proxy-{port}", port, settings)
        self._processes.wait_for(f"http://127.0.0.1:{port}/healthcheck")
        return f"http://127.0.0.1:{port}"

    def _start(self) -> None:
        memcached = shutil.which("memcached") or "/usr/bin/memcached"
        self._processes.start(
            "memcached",
            [memcached, "-u", "root", "-l", "127.0.0.1", "-p", str(self.ports["memcached"]), "-U", "0", "-m", "16"],
        )
        self._make_rings()
        for kind in ("account", "container", "object"):
            text = _COMMON.format(port=self.ports[kind], **self._places()) + _STORAGE.format(kind=kind)
            self._run(kind, kind, text)
        self._start_proxy("proxy", self.ports["proxy"], {})
        for kind in ("account", "container", "object", "proxy"):
            self._processes.wait_for(f"http://127.0.0.1:{self.ports[kind]}/healthcheck")

    def _start_proxy(self, name: str, port: int, settings: Mapping[str, object]) -> None:
        auth = "authtoken keystoneauth" if self.keystone else "tempauth"
        text = _COMMON.format(port=port, **self._places())
        text += _PROXY.format(auth=auth, memcached=self.ports["memcached"], **{**_SETTINGS, **settings})
        self._run(name, "proxy", text + (_KEYSTONE.format(url=self.keystone) if self.keystone else ""))

    def _run(self, name: str, kind: str, text: str) -> None:
        config = self.directory / f"{name}.conf"
        config.write_text(text)
        program = self._programs / f"swift-{kind}-server"
        command = [self._programs / "python", "-c", _RUN, self.directory / "swift.conf", program, config, "-v"]
        # Nobody else's requests have to wait for a disk: no threads for it.
        self._processes.start(name, command, EVENTLET_THREADPOOL_SIZE="0")

    def _make_rings(self) -> None:
        """``object-1`` is the ring of the second storage policy."""
        rings = {"account": "account", "container": "container", "object": "object", "object-1": "object"}
        places = [(self.directory / f"{name}.ring.gz", self.ports[kind]) for name, kind in rings.items()]
        command = [self._programs / "python", "-c", _RINGS, *(str(word) for place in places for word in place)]
        subprocess.run(command, check=True, capture_output=True)

    def _places(self) -> Mapping[str, object]:
        user = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
        return {"directory": self.directory, "user": user}

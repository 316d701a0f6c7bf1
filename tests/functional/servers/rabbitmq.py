# SPDX-License-Identifier: Apache-2.0
"""RabbitMQ on free loopback ports, for services that are processes of their own. Debian package: rabbitmq-server."""

from __future__ import annotations

import secrets
import shutil
import time
from pathlib import Path

import pytest
from servers.nginx import free_ports
from servers.openstack import TIMEOUT, Processes

_CONFIG = """
listeners.tcp.1 = 127.0.0.1:{port}
loopback_users.guest = true
log.file.level = info
vm_memory_high_watermark.absolute = 512MB
disk_free_limit.absolute = 100MB
"""


class RabbitMQ:
    """``with RabbitMQ(directory) as broker``: ``broker.url`` is what oslo.messaging wants."""

    def __init__(self, directory: Path) -> None:
        # What /usr/sbin has changes to a user of its own and the home of that.
        scripts = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"))
        if not scripts or shutil.which("erl") is None:
            pytest.skip("rabbitmq-server not installed (Debian: rabbitmq-server)")
        self._script = scripts[-1]
        self.directory = directory
        self.port, self._distribution, self._mapper = free_ports(3)
        self.url = f"rabbit://guest:guest@127.0.0.1:{self.port}/"
        self._processes = Processes(directory)

    def __enter__(self) -> RabbitMQ:
        folder = self.directory
        for name in ("mnesia", "log", "home"):
            (folder / name).mkdir()
        (folder / "rabbitmq.conf").write_text(_CONFIG.format(port=self.port))
        (folder / "advanced.config").write_text("[].\n")
        (folder / "enabled_plugins").write_text("[].\n")
        cookie = folder / "home" / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(10).upper())
        cookie.chmod(0o400)
        # Otherwise RabbitMQ starts one in the background, which outlives it.
        self._processes.start("epmd", ["epmd", "-address", "127.0.0.1", "-port", str(self._mapper)])
        self._processes.start(
            "rabbitmq",
            [self._script],
            HOME=str(folder / "home"),
            ERL_EPMD_ADDRESS="127.0.0.1",
            ERL_EPMD_PORT=str(self._mapper),
            RABBITMQ_NODENAME=f"rabbit{self.port}@localhost",
            RABBITMQ_NODE_PORT=str(self.port),
            RABBITMQ_DIST_PORT=str(self._distribution),
            RABBITMQ_CONFIG_FILE=str(folder / "rabbitmq"),
            RABBITMQ_ADVANCED_CONFIG_FILE=str(folder / "advanced.config"),
            RABBITMQ_CONF_ENV_FILE=str(folder / "none"),
            RABBITMQ_MNESIA_BASE=str(folder / "mnesia"),
            RABBITMQ_LOG_BASE=str(folder / "log"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(folder / "enabled_plugins"),
            RABBITMQ_PID_FILE=str(folder / "pid"),
            RABBITMQ_SERVER_START_ARGS="-kernel inet_dist_use_interface {127,0,0,1}",
        )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        # The data is thrown away anyway, and a quiet end takes ten seconds.
        self._processes.kill()

    def _wait(self) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not any("startup complete" in log.read_text() for log in (self.directory / "log").glob("rabbit*.log")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"RabbitMQ does not start: {(self.directory / 'rabbitmq.log').read_text()[-2000:]}")
            time.sleep(0.1)

# SPDX-License-Identifier: Apache-2.0
"""The code of Nova, Cinder and Ironic that talks to the image service, as PyPI has it, each in a process of its own.

It lives in the environment of ``servers.cinder``. The modules beside this file run there and import nothing of ours:
each calls what the service itself calls, in the same order.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from servers import cinder

_SERVICE_USER = """
auth_type = password
auth_url = {keystone}
username = images
password = imagespass
project_name = service
user_domain_id = default
project_domain_id = default
"""

CONFIGURATIONS = {
    "nova": """
[DEFAULT]
instances_path = {directory}/instances
[glance]
num_retries = 1
[service_user]
send_service_user_token = true
{service_user}
[libvirt]
images_type = rbd
images_rbd_pool = {pool}
images_rbd_ceph_conf = {ceph_conf}
images_rbd_glance_store_name = ceph
images_rbd_glance_copy_poll_interval = 1
images_rbd_glance_copy_timeout = 60
""",
    "cinder": """
[DEFAULT]
auth_strategy = keystone
glance_api_servers = {url}
image_conversion_dir = {directory}
[glance]
{service_user}
[service_user]
send_service_user_token = true
{service_user}
[rbd]
volume_driver = cinder.volume.drivers.rbd.RBDDriver
rbd_pool = {pool}
rbd_user = admin
rbd_ceph_conf = {ceph_conf}
""",
    "ironic": """
[glance]
{service_user}
region_name = {region}
num_retries = 1
swift_temp_url_key = {temp_url_key}
swift_temp_url_duration = 600
swift_container = images
[swift]
{service_user}
region_name = {region}
[service_catalog]
{service_user}
""",
}


class Refused(Exception):
    """The service raised something: the name of its class, and what it says."""


class Consumer:
    """``with Consumer("nova", directory, ...) as nova``: calls functions of the module ``nova_images``."""

    def __init__(self, name: str, directory: Path, *, keystone: str, **values: object) -> None:
        self._directory = directory
        directory.mkdir()
        config = directory / f"{name}.conf"
        service_user = _SERVICE_USER.format(keystone=keystone).strip()
        config.write_text(CONFIGURATIONS[name].format(directory=directory, service_user=service_user, **values))
        self._command = [cinder.install() / "python", Path(__file__).with_name(f"{name}_images.py"), config]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Consumer:
        unwanted = ("OS_", "PYTHON", "HTTP_PROXY", "HTTPS_PROXY")
        environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(unwanted)}
        with (self._directory / "log").open("w") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self._directory,
                env={**environment, "CEPH_ARGS": ""},
            )
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process is not None
        # Threads of its libraries would keep it for seconds.
        self._process.kill()
        self._process.communicate()

    def call(self, function: str, *arguments: object) -> Any:
        """What a function returns. Raises Refused for what it raises."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([function, *arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, (self._directory / "log").read_text()
        kind, value = json.loads(line)
        if kind == "raised":
            raise Refused(value)
        return value

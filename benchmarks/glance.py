# SPDX-License-Identifier: Apache-2.0
"""A real Glance to compare with, in an environment of its own, under gunicorn, behind a Keystone."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from servers.glance import install
from servers.keystone import Keystone
from servers.nginx import free_ports
from servers.openstack import Processes

_CONFIG = """
[DEFAULT]
use_stderr = true
enabled_backends = files:file
enabled_import_methods = [copy-image]
worker_self_reference_url = http://127.0.0.1:{port}
[database]
connection = {connection}
[glance_store]
default_backend = files
[files]
filesystem_store_datadir = {directory}/images
[os_glance_staging_store]
filesystem_store_datadir = {directory}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {directory}/tasks
[wsgi]
python_interpreter = {programs}/python
[paste_deploy]
flavor = keystone
config_file = {paste}
[oslo_concurrency]
lock_path = {directory}/lock
"""

_GUNICORN = """
bind = "127.0.0.1:{port}"
wsgi_app = "glance.wsgi.api:application"
workers = {workers}
threads = {threads}
keepalive = 30
timeout = 300
"""


@contextlib.contextmanager
def glance(directory: Path, keystone: Keystone, connection: str, workers: int, threads: int) -> Iterator[str]:
    """The URL of a Glance whose images are files in ``directory``."""
    programs = install()
    (port,) = free_ports(1)
    for name in ("images", "staging", "tasks", "lock"):
        (directory / name).mkdir()
    settings = {
        "directory": directory,
        "port": port,
        "connection": connection.replace("mysql://", "mysql+pymysql://"),
        "programs": programs,
        "paste": programs.parent / "etc/glance/glance-api-paste.ini",
        "workers": workers,
        "threads": threads,
    }
    (directory / "glance-api.conf").write_text(_CONFIG.format(**settings) + keystone.authtoken)
    (directory / "gunicorn.py").write_text(_GUNICORN.format(**settings))
    manage = [programs / "glance-manage", "--config-file", directory / "glance-api.conf", "db", "sync"]
    subprocess.run(manage, check=True, capture_output=True)
    processes = Processes(directory)
    processes.start(
        "glance",
        [programs / "gunicorn"],
        OS_GLANCE_CONFIG_DIR=str(directory),
        GUNICORN_CMD_ARGS=f"--config {directory}/gunicorn.py",
    )
    try:
        processes.wait_for(f"http://127.0.0.1:{port}/healthcheck")
        yield f"http://127.0.0.1:{port}"
    finally:
        processes.stop()

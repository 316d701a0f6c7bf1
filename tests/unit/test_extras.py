# SPDX-License-Identifier: Apache-2.0
"""A caller without a package of an extra is told how to install it, always in the same words."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import subprocess
import sys
from types import SimpleNamespace

import pytest

from storelib.api.db.engine import Database
from storelib.api.service.keys import KeyManager
from storelib.api.service.notifications import notifier_from
from storelib.api.service.plugins import decompression
from storelib.cli.image import connection
from storelib.node.swarm import Swarm
from storelib.registry import open_store
from storelib.testing.live import run
from storelib.testing.memory import MemoryStore
from storelib.transfer.digests import new_hasher
from storelib.volumes.brick import Brick

CREATE_APP = """
import sys
for name in sys.argv[1:]:
    sys.modules[name] = None
from oslo_config import cfg
from storelib.exceptions import MissingDependency
try:
    from storelib.api import create_app
    conf = cfg.ConfigOpts()
    conf([], default_config_files=["api.ini"])
    create_app(conf)
except MissingDependency as error:
    print(error)
"""
OPEN_VMWARE = {
    "vmware_server_host": "vc.example",
    "vmware_server_username": "u",
    "vmware_server_password": "p",
    "vmware_datastores": ["dc:ds"],
}
OPEN_S3 = {"s3_store_host": "s3.example", "s3_store_bucket": "b"}


def connect():
    options = connection.Options(None, None, None, 1.0)
    return connection.find(options, {"OS_AUTH_URL": "https://keys.example", "OS_AUTH_TYPE": "password"})


#: What misses which package, and which extra has it.
MISSING = {
    "s3": ("botocore", lambda: open_store("s3", **OPEN_S3)),
    "swift": ("swiftclient", lambda: open_store("swift", swift_store_auth_address="https://keys.example")),
    "gridfs": ("pymongo", lambda: open_store("gridfs", mongodb_store_uri="h", mongodb_store_db="d")),
    "cinder": ("cinderclient", lambda: open_store("cinder")),
    "vmware": ("pyVmomi", lambda: open_store("vmware", **OPEN_VMWARE)),
    "client": ("keystoneauth1", connect),
    "postgresql": ("psycopg", lambda: Database("postgresql://u:p@h/n")),
    "mysql": ("pymysql", lambda: Database("mysql://u:p@h/n")),
    "notifications": (
        "oslo_messaging",
        lambda: notifier_from(SimpleNamespace(api=SimpleNamespace(notifications=True))),
    ),
    "castellan": ("castellan", lambda: KeyManager(None)),
    "zstd": ("zstandard", lambda: next(decompression._zstd(io.BytesIO(b"data")))),
    "brick": ("os_brick", lambda: Brick(None, SimpleNamespace(helper="sudo"), "/nowhere").describe("127.0.0.1")),
    "node": ("libtorrent", lambda: Swarm(None)),
    "blake3": ("blake3", lambda: new_hasher("blake3")),
    "test": ("hypothesis", lambda: run(MemoryStore("m", open_store("memory").conf))),
}


@pytest.mark.parametrize("extra", MISSING)
def test_every_extra_gives_the_same_sentence(extra, monkeypatch):
    package, use = MISSING[extra]
    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else plain(name))
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Exception, match=r" needs .+; install it with: pip install 'storelib\[") as caught:
        use()
    assert f"'storelib[{extra}]'" in str(caught.value)


@pytest.mark.parametrize("package", ["falcon", "sqlalchemy", "jsonschema"])
def test_create_app_gives_it_too(tmp_path, package):
    (tmp_path / "api.ini").write_text("[storelib]\nstores = m:memory\n[database]\nconnection = sqlite:///x.sqlite\n")
    command = [sys.executable, "-c", CREATE_APP, package]
    response = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert response.stdout == f"storelib.api needs {package}; install it with: pip install 'storelib[api]'\n"


def test_no_extra_is_left_out():
    tools = {"api", "all", "dev", "docs", "parallel"}
    extras = importlib.metadata.metadata("storelib").get_all("Provides-Extra") or ()
    assert {*extras} - tools == {*MISSING}

# SPDX-License-Identifier: Apache-2.0
"""The vmware driver against glance_store's, on govmomi's simulator (Debian: see tests/functional/servers/vcenter.py).

python benchmarks/vmware.py [--json] [--size MiB] [--only small|large]

Needs an environment of its own, since oslo.vmware brings eventlet, and root, since glance_store knows no port but 443:

    python3 -m venv .venv-peer
    .venv-peer/bin/pip install -e '.[vmware]' 'glance_store==5.7.0' oslo.vmware
    .venv-peer/bin/python benchmarks/vmware.py

The simulator shares both cores with the client. Sizes are known to both sides.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import glance_store
import oslo_vmware
from glance_store._drivers import vmware_datastore
from oslo_config import cfg
from oslo_vmware import api
from pairs import (
    MiB,
    Stored,
    argument,
    compare,
    dense_image,
    expect,
    expect_pieces,
    pieces_of,
    pieces_of_file,
    received,
    workplace,
)

from storelib import open_store

sys.path.append(str(Path(__file__).parents[1] / "tests/functional"))
from servers.vcenter import FIRST, PLAIN, Vcenter
from servers.vcenter_wsdl import write_wsdl

SIZE = argument("--size", 2048) * MiB
#: Images that are added and read for one measurement of small ones, and bytes of each.
MANY, SMALL = 100, MiB
#: An address that no other server here listens on.
HOST = "127.18.0.7"


class Side:
    """Adds a file and reads an image back; what was added is removed behind the back of both sides."""

    def __init__(self, server: Vcenter, name: str) -> None:
        self.directory = server.datastores[PLAIN, FIRST] / "openstack_glance"
        self.names = (f"{name}-{number}" for number in itertools.count())

    def removal(self, names: list[str]) -> Callable[[], None]:
        def remove() -> None:
            for name in names:
                (self.directory / name).unlink()

        return remove

    def add_file(self, path: str, size: int) -> Stored:
        name = next(self.names)
        with open(path, "rb") as file:
            self.add(name, file, size)
        return Stored(size, lambda: pieces_of_file(str(self.directory / name)), self.removal([name]))

    def add_many(self, data: bytes) -> Stored:
        names = [next(self.names) for _ in range(MANY)]
        for name in names:
            self.add(name, Stream(data), len(data))
        paths = [str(self.directory / name) for name in names]
        return Stored(
            len(data) * MANY, lambda: itertools.chain.from_iterable(map(pieces_of_file, paths)), self.removal(names)
        )

    def get_many(self, name: str, size: int) -> None:
        for _ in range(MANY):
            self.get(name, size)

    def add(self, name: str, file: Any, size: int) -> None:
        raise NotImplementedError

    def get(self, name: str, size: int) -> None:
        raise NotImplementedError


class Stream:
    """What both sides take for a file that has no name."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)

    def read(self, size: int = -1) -> bytes:
        piece, self.data = self.data[: size if size >= 0 else None], self.data[size if size >= 0 else len(self.data) :]
        return bytes(piece)


class Ours(Side):
    def __init__(self, server: Vcenter) -> None:
        super().__init__(server, "ours")
        self.store = open_store("vmware", **_options(server), vmware_insecure=True)
        self.prefix = self.store.add("probe", b"").uri

    def add(self, name: str, file: Any, size: int) -> None:
        self.store.add(name, file, size)

    def get(self, name: str, size: int) -> None:
        with self.store.get(self.prefix.replace("probe", name)).data as data:
            received(pieces_of(data, bytearray(MiB)), size)


class Glance(Side):
    def __init__(self, server: Vcenter, wsdl: str) -> None:
        super().__init__(server, "theirs")
        self.conf = cfg.ConfigOpts()
        glance_store.register_opts(self.conf)
        self.conf([])
        for name, value in {**_options(server), "vmware_insecure": True}.items():
            self.conf.set_override(name, value, group="glance_store")
        vmware_datastore.api = SimpleNamespace(VMwareAPISession=functools.partial(api.VMwareAPISession, wsdl_loc=wsdl))
        self.store = vmware_datastore.Store(self.conf)
        self.store.configure()
        self.store.configure_add()

    def add(self, name: str, file: Any, size: int) -> None:
        assert self.store.add(name, file, size, "sha512")[1] == size

    def get(self, name: str, size: int) -> None:
        parts = {
            "scheme": "vsphere",
            "server_host": self.store.server_host,
            "image_dir": self.store.store_image_dir,
            "datacenter_path": PLAIN,
            "datastore_name": FIRST,
            "image_id": name,
        }
        location = SimpleNamespace(store_location=vmware_datastore.StoreLocation(parts, self.conf))
        chunks, _ = self.store.get(location)
        received(chunks, size)


def _options(server: Vcenter) -> dict[str, Any]:
    return {
        "vmware_server_host": HOST,
        "vmware_server_username": server.user,
        "vmware_server_password": server.password,
        "vmware_datastores": [f"{PLAIN}:{FIRST}"],
    }


def small(ours: Ours, glance: Glance, path: str) -> None:
    with open(path, "rb") as file:
        data = file.read(SMALL)
    (ours.directory / "small").write_bytes(data)
    expect(str(ours.directory / "small"))
    expect_pieces([data] * MANY)
    size = MANY * SMALL
    names = {"target": 1.0, "peer": "glance_store"}
    compare("1 MiB: add", size, lambda: ours.add_many(data), lambda: glance.add_many(data), **names)
    compare("1 MiB: get", size, lambda: ours.get_many("small", SMALL), lambda: glance.get_many("small", SMALL), **names)


def large(ours: Ours, glance: Glance, path: str) -> None:
    peer = "glance_store"
    what = f"{SIZE // MiB} MiB"
    adds = (lambda: ours.add_file(path, SIZE), lambda: glance.add_file(path, SIZE))
    gets = (lambda: ours.get("large", SIZE), lambda: glance.get("large", SIZE))
    compare(f"{what}: add", SIZE, *adds, target=1.5, peer=peer)
    Path(path).rename(ours.directory / "large")
    compare(f"{what}: get", SIZE, *gets, target=1.3, peer=peer)
    (ours.directory / "large").rename(path)


def main() -> None:
    logging.disable()
    # glance_store would believe them more than its own options.
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        os.environ.pop(name, None)
    warnings.simplefilter("ignore")
    wanted = argument("--only", "")
    with dense_image(SIZE) as path, tempfile.TemporaryDirectory(prefix="storelib-bench-", dir=workplace()) as directory:
        wsdl = Path(directory) / "wsdl"
        write_wsdl(wsdl, Path(oslo_vmware.__file__).parent / "wsdl" / "7.0")
        with Vcenter(Path(directory) / "vcenter", host=HOST, port=443, routed=False) as server:
            ours, glance = Ours(server), Glance(server, (wsdl / "vimService.wsdl").as_uri())
            for measured in (small, large):
                if wanted in ("", measured.__name__):
                    measured(ours, glance, path)


if __name__ == "__main__":
    main()

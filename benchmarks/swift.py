# SPDX-License-Identifier: Apache-2.0
"""The swift driver against glance_store's. Needs ``pip install glance_store==5.7.0 python-swiftclient``.

python benchmarks/swift.py [--json] [--size MiB] [--only free|far|swift]

Free and far servers are those of benchmarks/s3.py; ``swift`` is a real OpenStack Swift with Keystone that shares the
machine and is most of the work (Debian: memcached). Images are of unknown size, because glance_store sends a wrong
length with the last segment of one that is known. Segments are of 16 MiB on both sides.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import glance_store
import swiftclient
from glance_store._drivers.swift import store as glance_swift
from oslo_config import cfg
from pairs import MiB, Stored, argument, compare, dense_image, pieces_of, received, verify, workplace
from sink import SOURCE, sink

from storelib import open_store

SIZE = argument("--size", 512) * MiB
SEGMENT = 16
CONTAINER = "images"
#: The servers that are free or far away keep nothing.
ELSEWHERE = "the same calls moved the right bytes to and from Swift"


class Server:
    """Where Swift is, whose account it is, and what a benchmark stored there, unless the server ``keeps`` nothing."""

    def __init__(
        self, auth_url: str, project: str = "project", user: str = "user", key: str = "key", keeps: bool = False
    ) -> None:
        self.keeps = keeps
        self.auth_url = auth_url
        self.user = f"{project}:{user}"
        self.key = key
        self.names = (f"image-{number}-x" for number in itertools.count())
        self.client = swiftclient.Connection(
            auth_url, user, key, auth_version="3", os_options={"project_name": project}
        )

    def stored(self, name: str) -> Callable[[], None]:
        def remove() -> None:
            for entry in self.client.get_container(CONTAINER, prefix=name, full_listing=True)[1]:
                self.client.delete_object(CONTAINER, entry["name"])

        return Stored(SIZE, lambda: self.client.get_object(CONTAINER, name, MiB)[1], remove) if self.keeps else remove


class Ours:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.store = open_store(
            "swift",
            swift_store_auth_version="3",
            swift_store_auth_address=server.auth_url,
            swift_store_user=server.user,
            swift_store_key=server.key,
            swift_store_container=CONTAINER,
            swift_store_large_object_chunk_size=SEGMENT,
        )
        self.prefix = self.store.add("probe", b"").uri.removesuffix("probe")

    def add(self, path: str) -> Callable[[], None]:
        with open(path, "rb") as file:
            self.store.add(name := next(self.server.names), Unsized(file))
        return self.server.stored(name)

    def get(self) -> None:
        with self.store.get(self.prefix + SOURCE).data as data:
            received(pieces_of(data, bytearray(MiB)), SIZE)


class Unsized:
    """What comes from a client that does not say how much it sends."""

    def __init__(self, file: Any) -> None:
        self.read = file.read


class Glance:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.conf = cfg.ConfigOpts()
        glance_store.register_opts(self.conf)
        self.conf([])
        options = {
            "swift_store_auth_version": "3",
            "swift_store_auth_address": server.auth_url,
            "swift_store_user": server.user,
            "swift_store_key": server.key,
            "swift_store_container": CONTAINER,
            "swift_store_large_object_chunk_size": SEGMENT,
        }
        for name, value in options.items():
            self.conf.set_override(name, value, group="glance_store")
        self.store = glance_swift.Store(self.conf)
        self.store.configure()

    def add(self, path: str) -> Callable[[], None]:
        with open(path, "rb") as file:
            self.store.add(name := next(self.server.names), file, 0, "sha512")
        return self.server.stored(name)

    def get(self) -> None:
        location = SimpleNamespace(store_location=self.store.create_location(SOURCE))
        chunks, _ = self.store.get(location)
        received(chunks, SIZE)


def measure(ours: Ours, glance: Glance, path: str, where: str, verified: str = "") -> None:
    for name, mine, theirs in [
        ("add, size unknown", lambda: ours.add(path), lambda: glance.add(path)),
        ("get", ours.get, glance.get),
    ]:
        compare(f"{where}: {name}", SIZE, mine, theirs, target=2.0, peer="glance_store", verified=verified)


def free(path: str) -> None:
    with sink(path, SEGMENT * MiB) as port:
        server = Server(f"http://127.0.0.1:{port}/v3")
        measure(Ours(server), Glance(server), path, "free", ELSEWHERE)


def far(path: str) -> None:
    with sink(path, SEGMENT * MiB, far=0.02) as port:
        server = Server(f"http://127.0.0.1:{port}/v3")
        measure(Ours(server), Glance(server), path, "20 ms away", ELSEWHERE)


def swift(path: str) -> None:
    sys.path.append(str(Path(__file__).parents[1] / "tests/functional"))
    from servers.keystone import Keystone
    from servers.swift import Swift

    with tempfile.TemporaryDirectory(prefix="storelib-bench-", dir=workplace()) as directory:
        for name in ("keystone", "swift"):
            (Path(directory) / name).mkdir()
        with (
            Keystone(Path(directory) / "keystone") as keystone,
            Swift(Path(directory) / "swift", keystone=keystone.url) as storage,
        ):
            keystone.add_endpoints("object-store", RegionOne=f"{storage.url}/v1/AUTH_%(tenant_id)s")
            server = Server(keystone.url, "demo", "demo", "demopass", keeps=True)
            server.client.put_container(CONTAINER)
            with open(path, "rb") as file:
                server.client.put_object(CONTAINER, SOURCE, file, content_length=SIZE)
            ours, glance = Ours(server), Glance(server)
            verify(lambda: ours.add(path), lambda: glance.add(path), ours.get, glance.get)
            if argument("--only", "swift") == "swift":
                measure(ours, glance, path, "swift")


def main() -> None:
    wanted = argument("--only", "")
    with dense_image(SIZE) as path:
        swift(path)
        for measured in (free, far):
            if wanted in ("", measured.__name__):
                measured(path)


if __name__ == "__main__":
    main()

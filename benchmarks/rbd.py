# SPDX-License-Identifier: Apache-2.0
"""The RBD driver against glance_store's and the rbd command, on a one-node Ceph of its own.

python benchmarks/rbd.py [--json] [--size MiB] [--sparse GiB]. Needs ``pip install glance_store==5.7.0`` and what the
functional tests of the driver need. Cluster and clients share the machine's cores, so rates are those of both together.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Beside this file, which has the name of the module: the bindings of Ceph must be found before it.
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path = [path for path in sys.path if os.path.abspath(path or ".") != HERE]
import rados  # noqa: E402, F401
import rbd as ceph_rbd  # noqa: E402

sys.path += [HERE, os.path.join(os.path.dirname(HERE), "tests", "functional")]

from glance_store import location as glance_location  # noqa: E402
from glance_store._drivers import rbd as glance_rbd  # noqa: E402
from oslo_config import cfg  # noqa: E402
from pairs import (  # noqa: E402
    MiB,
    Stored,
    argument,
    compare,
    expect,
    pieces_of,
    pieces_of_file,
    received,
    workplace,
)
from servers.ceph import Cluster  # noqa: E402

from storelib import open_store  # noqa: E402
from storelib.driver import Digests  # noqa: E402
from storelib.drivers.rbd import RbdStore  # noqa: E402
from storelib.transfer import copy  # noqa: E402

SIZE = argument("--size", 512) * MiB
SPARSE = argument("--sparse", 10) * 1024 * MiB
#: Of the sparse image, 8 MiB each, spread evenly.
PIECES, PIECE = 32, 8 * MiB


class Peer:
    """glance_store's driver with a pool of its own."""

    def __init__(self, ceph: Cluster, **options: Any) -> None:
        self.ceph, self.pool = ceph, f"glance{len(options)}"
        ceph.add_pool(self.pool)
        self.conf = cfg.ConfigOpts()
        self.store = glance_rbd.Store(self.conf)
        self.conf([])
        # Left alone, it would call itself "None".
        settings = {"rbd_store_ceph_conf": str(ceph.conf_file), "rbd_store_user": "admin", "rbd_store_pool": self.pool}
        for name, value in {**settings, **options}.items():
            self.conf.set_override(name, value, group="glance_store")
        self.store.configure()
        self.store.configure_add()

    def add(self, path: str) -> Stored:
        with open(path, "rb") as file:
            uri = self.store.add("x", file, size := os.path.getsize(path), "sha512")[0]
        return Stored(size, lambda: self.chunks(uri), lambda: self.store.delete(self.location(uri)))

    def location(self, uri: str) -> Any:
        return glance_location.Location("rbd", glance_rbd.StoreLocation, self.conf, uri=uri)

    def keep(self, path: str) -> str:
        with open(path, "rb") as file:
            return str(self.store.add("kept", file, os.path.getsize(path), "sha512")[0])

    def read(self, uri: str) -> None:
        received(self.chunks(uri), SIZE)

    def chunks(self, uri: str) -> Iterator[bytes]:
        yield from self.store.get(self.location(uri))[0]


class Ours:
    """storelib's driver with a pool of its own."""

    def __init__(self, ceph: Cluster, **options: Any) -> None:
        settings = {"rbd_store_ceph_conf": str(ceph.conf_file), "rbd_store_pool": "storelib"}
        self.store = open_store(RbdStore, "rbd", **settings, **options)

    def add(self, path: str, algorithm: str = "sha512") -> Stored:
        return self._stored(self.store.add("x", path, hashing_algo=algorithm))

    def _stored(self, image: Any) -> Stored:
        return Stored(image.size, lambda: self.chunks(image.uri), lambda: self.store.delete(image.uri))

    def copy_from(self, other: Any, stored: Any) -> Stored:
        digests = Digests(stored.checksum, stored.multihash)
        return self._stored(copy(other, stored.uri, self.store, "x", digests=digests))

    def read(self, uri: str) -> None:
        received(self.chunks(uri), SIZE)

    def chunks(self, uri: str) -> Iterator[memoryview]:
        with self.store.get(uri).data as stream:
            yield from pieces_of(stream, bytearray(4 * MiB))


def dense(path: str) -> None:
    block = os.urandom(MiB)
    with open(path, "wb") as file:
        for index in range(SIZE // MiB):
            turn = index % 255 + 1
            file.write(block[turn:] + block[:turn])
    expect(path)


def mostly_holes(path: str) -> None:
    block = os.urandom(PIECE)
    with open(path, "wb") as file:
        for index in range(PIECES):
            file.seek(index * (SPARSE // PIECES))
            file.write(block)
        file.truncate(SPARSE)
    expect(path)


def save_chunks(chunks: Iterator[bytes], path: str) -> Stored:
    """What a caller of glance_store does."""
    with open(path, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
    return Stored(SPARSE, lambda: pieces_of_file(path), lambda: os.unlink(path))


def save_extents(store: Any, uri: str, path: str) -> Stored:
    """What a caller of storelib can do: holes stay holes."""
    buffer = memoryview(bytearray(4 * MiB))
    with store.get(uri).data as stream, open(path, "wb") as file:
        for extent in stream.extents():
            if not extent.data:
                continue
            stream.seek(extent.offset)
            file.seek(extent.offset)
            left = extent.length
            while left:
                count = stream.readinto(buffer[:left])
                file.write(buffer[:count])
                left -= count
        file.truncate(stream.size)
    return Stored(stream.size, lambda: pieces_of_file(path), lambda: os.unlink(path))


def command(ceph: Cluster, *words: str) -> None:
    """The rbd command; its output goes nowhere."""
    for _ in output_of(ceph, *words):
        pass


def output_of(ceph: Cluster, *words: str) -> Iterator[memoryview]:
    """What the rbd command writes."""
    environment = {**os.environ, **ceph.environment}
    with subprocess.Popen(["rbd", "--no-progress", *words], env=environment, stdout=subprocess.PIPE, bufsize=0) as rbd:
        assert rbd.stdout is not None
        yield from pieces_of(rbd.stdout, bytearray(MiB))
    if rbd.returncode:
        raise subprocess.CalledProcessError(rbd.returncode, words)


def imported(ceph: Cluster, path: str) -> Stored:
    command(ceph, "import", "--object-size", "8M", path, "command/x")
    return Stored(SIZE, lambda: output_of(ceph, "export", "command/x", "-"), lambda: command(ceph, "rm", "command/x"))


def show_cpu(name: str, function: Callable[[], Callable[[], None]]) -> None:
    """Seconds of CPU that the client takes, for people: what is left of both cores the OSD has for itself."""
    before = sum(os.times()[:4])
    clean_up = function()
    seconds = sum(os.times()[:4]) - before
    clean_up()
    if "--json" not in sys.argv:
        print(f"{name:46} {seconds:8.2f} s of client CPU", flush=True)


def main() -> None:
    root = tempfile.mkdtemp(dir=workplace())
    try:
        with Cluster(Path(root) / "ceph") as ceph:
            run(ceph, root)
    finally:
        shutil.rmtree(root)


def run(ceph: Cluster, root: str) -> None:
    source, sparse, target = (os.path.join(root, name) for name in ("dense", "sparse", "target"))
    dense(source)
    for pool in ("storelib", "command"):
        ceph.add_pool(pool)
    peer, thin_peer, ours = Peer(ceph), Peer(ceph, rbd_thin_provisioning=True), Ours(ceph)
    if "--json" not in sys.argv:
        print(f"librbd {'.'.join(map(str, ceph_rbd.RBD().version()))}, load average {os.getloadavg()[0]:.1f}")

    add, glance = "add, md5+sha512", "glance_store md5+sha512"
    compare(add, SIZE, lambda: ours.add(source), lambda: peer.add(source), target=1.5, peer=glance)
    bare = "rbd import, no digests"
    compare(add, SIZE, lambda: ours.add(source), lambda: imported(ceph, source), target=1.0, peer=bare)
    quick = Ours(ceph, md5_checksum=False)
    compare(
        "add, sha256 alone",
        SIZE,
        lambda: quick.add(source, "sha256"),
        lambda: imported(ceph, source),
        target=1.0,
        peer=bare,
    )
    files = open_store("file", filesystem_store_datadir=os.path.join(root, "files"), filesystem_thin_provisioning=True)
    known = files.add("image", source)
    compare(
        "add, known digests",
        SIZE,
        lambda: ours.copy_from(files, known),
        lambda: imported(ceph, source),
        target=1.0,
        peer=bare,
    )
    show_cpu("add, md5+sha512", lambda: ours.add(source))
    show_cpu("add, known digests", lambda: ours.copy_from(files, known))
    show_cpu("rbd import", lambda: imported(ceph, source))
    show_cpu("glance_store, md5+sha512", lambda: peer.add(source))
    files.delete(known.uri)

    stored = ours.store.add("image", source)
    their_uri = peer.keep(source)

    compare(
        "get",
        SIZE,
        lambda: ours.read(stored.uri),
        lambda: peer.read(their_uri),
        target=1.5,
        peer="glance_store",
    )
    compare(
        "get",
        SIZE,
        lambda: ours.read(stored.uri),
        lambda: received(output_of(ceph, "export", "storelib/image", "-"), SIZE),
        target=1.0,
        peer="rbd export",
    )
    ours.store.delete(stored.uri)
    os.unlink(source)

    mostly_holes(sparse)
    what = f"{SPARSE >> 30} GiB, 256 MiB of data"
    glance = "glance_store thin"
    known = files.add("image", sparse)
    compare(
        f"add, {what}, md5+sha512",
        SPARSE,
        lambda: ours.add(sparse),
        lambda: thin_peer.add(sparse),
        target=3.0,
        peer=glance,
        rounds=1,
    )
    compare(
        f"add, {what}, known digests",
        SPARSE,
        lambda: ours.copy_from(files, known),
        lambda: thin_peer.add(sparse),
        target=8.0,
        peer=glance,
        rounds=1,
    )
    stored = ours.store.add("sparse", sparse)
    their_uri = thin_peer.keep(sparse)
    compare(
        f"get to a file, {what}",
        SPARSE,
        lambda: save_extents(ours.store, stored.uri, target),
        lambda: save_chunks(thin_peer.chunks(their_uri), target),
        target=8.0,
        peer=glance,
        rounds=1,
    )


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""The filesystem driver against glance_store's, cp and a plain read loop. Needs ``pip install glance_store==5.7.0``.

python benchmarks/filesystem.py [--json] [--size MiB]
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from glance_store._drivers import filesystem as glance_filesystem
from oslo_config import cfg
from pairs import (
    MiB,
    Stored,
    argument,
    compare,
    dense_image,
    expect,
    forget,
    pieces_of,
    pieces_of_file,
    received,
    show_rate,
    workplace,
)

from storelib import open_store
from storelib.driver import Digests
from storelib.transfer import copy

SIZE = argument("--size", 2048) * MiB


class Peer:
    """glance_store's driver in a directory of its own."""

    def __init__(self, root: str, **options: Any) -> None:
        self.datadir = tempfile.mkdtemp(dir=root)
        conf = cfg.ConfigOpts()
        self.store = glance_filesystem.Store(conf)
        conf([])
        for name, value in {"filesystem_store_datadir": self.datadir, **options}.items():
            conf.set_override(name, value, group="glance_store")
        self.store.configure()

    def add(self, path: str, fsync: bool = False) -> Stored:
        with open(path, "rb") as file:
            self.store.add("x", file, os.path.getsize(path), "sha512")
        stored = os.path.join(self.datadir, "x")
        if fsync:
            with open(stored, "rb") as file:
                os.fsync(file.fileno())
        return Stored(os.path.getsize(path), lambda: pieces_of_file(stored), lambda: os.unlink(stored))


class Ours:
    """storelib's driver in a directory of its own."""

    def __init__(self, root: str, **options: Any) -> None:
        self.store = open_store("file", filesystem_store_datadir=tempfile.mkdtemp(dir=root), **options)

    def add(self, path: str, algorithm: str = "sha512") -> Stored:
        return self._stored(self.store.add("x", path, hashing_algo=algorithm))

    def _stored(self, image: Any) -> Stored:
        return Stored(image.size, lambda: read_from_store(self.store, image.uri), lambda: self.store.delete(image.uri))

    def copy_from(self, other: Ours, stored: Any) -> Stored:
        digests = Digests(stored.checksum, stored.multihash)
        return self._stored(copy(other.store, stored.uri, self.store, "x", digests=digests))


def mostly_holes(path: str) -> None:
    block = os.urandom(MiB)
    with open(path, "wb") as file:
        for index in range(0, SIZE // MiB, 10):
            file.seek(index * MiB)
            file.write(block)
        file.truncate(SIZE)
    expect(path)


def read_from_store(store: Any, uri: str) -> Iterator[memoryview]:
    with store.get(uri).data as stream:
        yield from pieces_of(stream, bytearray(MiB))


def main() -> None:
    root = tempfile.mkdtemp(dir=workplace())
    try:
        with dense_image(SIZE) as source:
            run(root, source)
    finally:
        shutil.rmtree(root)


def run(root: str, source: str) -> None:
    sparse = os.path.join(root, "sparse")
    show_bounds()
    mostly_holes(sparse)
    peer, ours = Peer(root), Ours(root)
    without_md5 = Ours(root, md5_checksum=False)
    glance = "glance_store md5+sha512"
    compare(
        "add, md5+sha512, ours fsynced",
        SIZE,
        lambda: ours.add(source),
        lambda: peer.add(source),
        target=1.8,
        peer=glance,
    )
    compare(
        "add, md5+sha512, both fsynced",
        SIZE,
        lambda: ours.add(source),
        lambda: peer.add(source, fsync=True),
        target=2.0,
        peer=glance + " + fsync",
    )
    compare(
        "add, sha256 alone, ours fsynced",
        SIZE,
        lambda: without_md5.add(source, "sha256"),
        lambda: peer.add(source),
        target=3.5,
        peer=glance,
    )

    stored = ours.store.add("image", source)
    target = Ours(root)
    compare(
        "copy between stores, known digests, fsynced",
        SIZE,
        lambda: target.copy_from(ours, stored),
        lambda: copied_by_cp(source, os.path.join(root, "cp"), fsync=True),
        target=0.95,
        peer="cp --reflink=auto, fsync",
    )
    compare(
        "copy between stores, known digests, ours fsynced",
        SIZE,
        lambda: target.copy_from(ours, stored),
        lambda: copied_by_cp(source, os.path.join(root, "cp")),
        target=0.0,
        peer="cp --reflink=auto",
    )
    relaxed = Ours(root, filesystem_store_fsync=False)
    compare(
        "copy between stores, known digests, no fsync",
        SIZE,
        lambda: relaxed.copy_from(ours, stored),
        lambda: copied_by_cp(source, os.path.join(root, "cp")),
        target=0.9,
        peer="cp --reflink=auto",
    )

    by_hand = ours.store.locate(stored.uri).path
    compare(
        "get, readinto 1 MiB",
        SIZE,
        lambda: received(read_from_store(ours.store, stored.uri), SIZE),
        lambda: received(pieces_of_file(by_hand), SIZE),
        target=0.9,
        peer="readinto 1 MiB",
    )
    cold(ours, peer, source, stored)
    ours.store.delete(stored.uri)

    thin_peer = Peer(root, filesystem_thin_provisioning=True)
    thin = Ours(root, filesystem_thin_provisioning=True)
    thin_without_md5 = Ours(root, filesystem_thin_provisioning=True, md5_checksum=False)
    glance = "glance_store thin"
    compare(
        "thin add, 90 % holes, md5+sha512",
        SIZE,
        lambda: thin.add(sparse),
        lambda: thin_peer.add(sparse),
        target=4.5,
        peer=glance,
    )
    compare(
        "thin add, 90 % holes, sha256 alone",
        SIZE,
        lambda: thin_without_md5.add(sparse, "sha256"),
        lambda: thin_peer.add(sparse),
        target=10.0,
        peer=glance,
    )
    stored = thin.store.add("image", sparse)
    thin_target = Ours(root, filesystem_thin_provisioning=True)
    compare(
        "thin copy, 90 % holes, known digests",
        SIZE,
        lambda: thin_target.copy_from(thin, stored),
        lambda: thin_peer.add(sparse),
        target=30.0,
        peer=glance,
    )


def cold(ours: Ours, peer: Peer, source: str, stored: Any) -> None:
    """The same from the disk: nothing of what is read is in the system's memory when a side begins."""
    by_hand = ours.store.locate(stored.uri).path
    if not forget(source, by_hand):
        print("cold: the system keeps these files in memory, so nothing is measured", file=sys.stderr)
        return
    compare(
        "cold: add, md5+sha512, both fsynced",
        SIZE,
        lambda: ours.add(source),
        lambda: peer.add(source, fsync=True),
        target=1.0,
        peer="glance_store md5+sha512 + fsync",
        before=lambda: forget(source),
    )
    compare(
        "cold: get, readinto 1 MiB",
        SIZE,
        lambda: received(read_from_store(ours.store, stored.uri), SIZE),
        lambda: received(pieces_of_file(by_hand), SIZE),
        target=0.9,
        peer="readinto 1 MiB",
        before=lambda: forget(by_hand),
    )


def copied_by_cp(source: str, target: str, fsync: bool = False) -> Stored:
    subprocess.run(["cp", "--reflink=auto", source, target], check=True)
    for path in (target, os.path.dirname(target)) if fsync else ():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return Stored(os.path.getsize(source), lambda: pieces_of_file(target), lambda: os.unlink(target))


def show_bounds() -> None:
    """What bounds both sides on this machine: the digests' own speed, and glance_store's test for zeros."""
    block = bytes(MiB)
    for name in ("md5", "sha256", "sha512"):
        hasher = hashlib.new(name, usedforsecurity=False)
        show_rate(f"{name} of zeros, one core", lambda hasher=hasher: hasher.update(block), repeat=256)
    show_rate("any() over zeros, as glance_store looks for them", lambda: any(block), repeat=16)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""The cinder driver against glance_store's, on Cinder, Keystone and Ceph of its own. Run as root.

python benchmarks/cinder.py [--json] [--size MiB] [--sparse GiB]. Needs ``pip install glance_store[cinder]==5.7.0``
and what the functional tests of the driver need. Servers and clients share the cores of the machine.
Rows with "sha256 alone" are of a store without md5, which takes half of what hashing costs; glance_store always hashes
with md5 and the other algorithm.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Beside this file, which may be taken for Cinder's own package.
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path = [path for path in sys.path if os.path.abspath(path or ".") != HERE]
import os_brick.privileged  # noqa: E402
from glance_store import location as glance_location  # noqa: E402
from glance_store._drivers.cinder import store as glance_cinder  # noqa: E402
from glance_store.common import cinder_utils  # noqa: E402
from oslo_concurrency import lockutils  # noqa: E402
from oslo_config import cfg  # noqa: E402

sys.path += [HERE, os.path.join(os.path.dirname(HERE), "tests", "functional")]

from pairs import MiB, Stored, argument, compare, dense_image, expect, pieces_of, received, workplace  # noqa: E402
from servers.ceph import Cluster  # noqa: E402
from servers.cinder import Cinder  # noqa: E402
from servers.keystone import Keystone  # noqa: E402

from storelib import open_store  # noqa: E402
from storelib.drivers.cinder import CinderStore  # noqa: E402

SIZE = argument("--size", 2048) * MiB
SPARSE = argument("--sparse", 10) * 1024 * MiB
#: Of the sparse image, 8 MiB each, spread evenly.
PIECES, PIECE = 32, 8 * MiB
USER = {"user_name": "demo", "password": "demopass", "project_name": "demo"}


class Peer:
    """glance_store's driver. What it wants of sudo and of /etc/ceph is given to it, so that only its work is timed."""

    def __init__(self, cinder: Cinder) -> None:
        os_brick.privileged.default.set_client_mode(False)
        lockutils.set_defaults(str(cinder.directory))
        plain = cinder_utils.API.attachment_update

        def with_key(*arguments: Any, **options: Any) -> Any:
            attachment = plain(*arguments, **options)
            attachment.connection_info["keyring"] = cinder.keyring.read_text()
            return attachment

        cinder_utils.API.attachment_update = with_key
        self.context = SimpleNamespace(project_id="p", user_id="u", auth_token="t", service_catalog=[])
        self.names = (f"00000000-0000-4000-8000-{number:012}" for number in itertools.count())
        self.conf = cfg.ConfigOpts()
        self.store = glance_cinder.Store(self.conf)
        self.conf([])
        settings = {f"cinder_store_{name}": value for name, value in USER.items()}
        settings |= {"cinder_store_auth_address": cinder.keystone.url, "cinder_volume_type": "shared"}
        for name, value in settings.items():
            self.conf.set_override(name, value, group="glance_store")
        self.store.configure()
        self.store.configure_add()

    def keep(self, path: str, size: int) -> Any:
        with open(path, "rb") as file:
            uri = self.store.add(next(self.names), file, size, "sha512", context=self.context)[0]
        return glance_location.Location("cinder", glance_cinder.StoreLocation, self.conf, uri=uri)

    def add(self, path: str, size: int) -> Stored:
        location = self.keep(path, size)
        return Stored(
            os.path.getsize(path),
            lambda: self.store.get(location, context=self.context)[0],
            lambda: self.store.delete(location, context=self.context),
        )

    def read(self, location: Any, size: int) -> None:
        received(self.store.get(location, context=self.context)[0], size)


class Ours:
    """storelib's driver."""

    def __init__(self, cinder: Cinder, name: str = "cinder", **options: Any) -> None:
        self.names = (f"image-{number}" for number in itertools.count())
        self.store = open_store(
            CinderStore,
            name,
            **{f"cinder_store_{name}": value for name, value in USER.items()},
            cinder_store_auth_address=cinder.keystone.url,
            cinder_volume_type="shared",
            cinder_rbd_keyring=str(cinder.keyring),
            cinder_state_path=str(cinder.directory / f"holds-{name}"),
            **options,
        )

    def add(self, data: Any, hashing_algo: str = "sha512") -> Stored:
        image = self.store.add(next(self.names), data, hashing_algo=hashing_algo)
        return Stored(image.size, lambda: self.pieces(image.uri), lambda: self.store.delete(image.uri))

    def read(self, uri: str, size: int) -> None:
        received(self.pieces(uri), size)

    def pieces(self, uri: str) -> Iterator[memoryview]:
        with self.store.get(uri).data as stream:
            yield from pieces_of(stream, bytearray(4 * MiB))


def blocks(path: str) -> Iterator[bytes]:
    """A source of unknown size."""
    with open(path, "rb") as file:
        while block := file.read(4 * MiB):
            yield block


def mostly_holes(path: str) -> str:
    block = os.urandom(PIECE)
    with open(path, "wb") as file:
        for index in range(PIECES):
            file.seek(index * (SPARSE // PIECES))
            file.write(block)
        file.truncate(SPARSE)
    expect(path)
    return path


def main() -> None:
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=workplace())))
        for name in ("keystone", "cinder"):
            (root / name).mkdir()
        ceph = stack.enter_context(Cluster(root / "ceph"))
        keystone = stack.enter_context(Keystone(root / "keystone"))
        cinder = stack.enter_context(Cinder(root / "cinder", keystone, ceph))
        run(root, Ours(cinder), Ours(cinder, "quick", md5_checksum=False), Peer(cinder))


def run(root: Path, ours: Ours, quick: Ours, peer: Peer) -> None:
    if "--json" not in sys.argv:
        print(f"load average {os.getloadavg()[0]:.1f}")
    with dense_image(MiB) as small:
        compare(
            "add 1 MiB", MiB, lambda: ours.add(small), lambda: peer.add(small, MiB), target=1.0, peer="glance_store"
        )
        mine, theirs = ours.store.add("small", small).uri, peer.keep(small, MiB)
        compare(
            "get 1 MiB",
            MiB,
            lambda: ours.read(mine, MiB),
            lambda: peer.read(theirs, MiB),
            target=1.0,
            peer="glance_store",
        )
    with dense_image(SIZE) as large:
        what = f"{SIZE // MiB} MiB"
        compare(
            f"add {what}", SIZE, lambda: ours.add(large), lambda: peer.add(large, SIZE), target=1.5, peer="glance_store"
        )
        for how, add in (
            ("", lambda: ours.add(blocks(large))),
            (", sha256 alone", lambda: quick.add(blocks(large), "sha256")),
        ):
            compare(
                f"add {what} of unknown size{how}",
                SIZE,
                add,
                lambda: peer.add(large, 0),
                target=3.0,
                peer="glance_store, detached to grow",
                rounds=1,
            )
        mine, theirs = ours.store.add("large", large).uri, peer.keep(large, SIZE)
        compare(
            f"get {what}",
            SIZE,
            lambda: ours.read(mine, SIZE),
            lambda: peer.read(theirs, SIZE),
            target=1.3,
            peer="glance_store",
        )
    sparse = mostly_holes(str(root / "sparse"))
    for how, add in (
        ("", lambda: ours.add(sparse)),
        (", sha256 alone", lambda: quick.add(sparse, "sha256")),
    ):
        compare(
            f"add {SPARSE >> 30} GiB, 256 MiB of data{how}",
            SPARSE,
            add,
            lambda: peer.add(sparse, SPARSE),
            target=5.0,
            peer="glance_store",
            rounds=1,
        )


if __name__ == "__main__":
    main()

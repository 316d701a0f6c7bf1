# SPDX-License-Identifier: Apache-2.0
"""The GridFS driver against pymongo's own GridFS on the same mongod, and how much of the processor each side took.

Client and server share this machine's cores, so where both are busy all the time nothing can be faster than their sum;
the pairs "over a slow line" show what is gained where neither is the limit.

python benchmarks/gridfs.py [--json] [--size MiB]
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Beside this file is one named as pymongo's own package.
sys.path.append(sys.path.pop(0))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/functional"))

import gridfs
from pairs import MiB, Stored, argument, compare, expect_pieces, peak_growth, pieces_of, received, workplace
from servers.mongod import Mongod

from storelib.driver import Digests
from storelib.drivers.gridfs import GridfsStore
from storelib.registry import open_store
from storelib.testing.faults import FaultyProxy, Slow
from storelib.transfer import fan_out

SIZE = argument("--size", 512) * MiB
#: GiB that the server may keep in memory: enough not to be busy with making room.
CACHE = 2.0
#: On the slow line every 64 KiB of a connection take as many seconds.
SLOW = 0.0005
#: Digests that were computed before.
KNOWN = Digests(None, "00" * 64)
CleanUp = Callable[[], object]


class Source:
    """A file that costs nothing to read: one random block over and over."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._read = 0

    def read(self, size: int = -1) -> bytes:
        left, start = self._size - self._read, self._read % len(BLOCK)
        # All that is asked for, as files give it: pymongo takes less than that for the end.
        count = min(left, len(BLOCK), size if size >= 0 else left)
        self._read += count
        return TWICE[start : start + count]


class Hashed(Source):
    """The same as a caller reads it that needs both digests: one after the other, in the same thread."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._digests = [hashlib.md5(), hashlib.sha512()]

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        for digest in self._digests:
            digest.update(data)
        return data


BLOCK = os.urandom(8 * MiB)
TWICE = BLOCK * 2


class Peer:
    """pymongo's GridFS."""

    def __init__(self, client: Any) -> None:
        self._plain = gridfs.GridFS(client["theirs"])

    def put(self, source: Source) -> CleanUp:
        self._plain.put(source, _id="image")
        return self._stored("image")

    def get(self) -> None:
        stream = self._plain.get("image")
        received(iter(lambda: stream.read(MiB), b""), stream.length)

    def copy(self) -> CleanUp:
        self._plain.put(self._plain.get("image"), _id="copy")
        return self._stored("copy")

    def _stored(self, name: str) -> Stored:
        stream = self._plain.get(name)
        return Stored(stream.length, lambda: iter(lambda: stream.read(MiB), b""), lambda: self._plain.delete(name))


class Ours:
    """storelib's driver, in another database of the same server."""

    def __init__(self, uri: str) -> None:
        self.store = open_store(GridfsStore, "bench", mongodb_store_uri=uri, mongodb_store_db="ours")

    def add(self, size: int, digests: Digests | None = None) -> CleanUp:
        [stored] = fan_out([self.store], "image", Source(size), size, digests=digests)
        return self._stored(stored)

    def get(self) -> None:
        with self.store.get("gridfs://image").data as stream:
            received(pieces_of(stream, bytearray(MiB)), stream.size)

    def copy(self) -> CleanUp:
        return self._stored(self.store.copy("gridfs://image", "copy", digests=KNOWN))

    def _stored(self, image: Any) -> Stored:
        def pieces() -> Iterator[memoryview]:
            with self.store.get(image.uri).data as stream:
                yield from pieces_of(stream, bytearray(MiB))

        return Stored(image.size, pieces, lambda: self.store.delete(image.uri))


class Pairs:
    """Runs pairs on one server and tells what each side took of the processor."""

    def __init__(self, server: Mongod, client: Any) -> None:
        self._server = server
        self._client = client

    def run(
        self, name: str, size: int, ours: Callable[[], Any], theirs: Callable[[], Any], peer: str, target: float
    ) -> None:
        took: dict[str, list[tuple[float, float]]] = {"ours": [], peer: []}
        mine, other = self._metered(ours, took["ours"]), self._metered(theirs, took[peer])
        compare(name, size, mine, other, target=target, peer=peer)
        for side, runs in took.items():
            # The first was the warm-up.
            client, served = (
                sum(run[place] for run in runs[1:]) / len(runs[1:]) * 1024 * MiB / size for place in (0, 1)
            )
            say(f"    {side:42} processor s/GiB: client {client:5.2f}  server {served:5.2f}")

    def _metered(self, function: Callable[[], Any], took: list[tuple[float, float]]) -> Callable[[], CleanUp]:
        def call() -> CleanUp:
            client, served = client_seconds(), self._server_seconds()
            stored = function()
            took.append((client_seconds() - client, self._server_seconds() - served))
            return stored.then(self._settle) if isinstance(stored, Stored) else self._settle

        return call

    def _settle(self) -> None:
        """Let the server write down what it still has to."""
        self._client.admin.command("fsync")

    def _server_seconds(self) -> float:
        fields = Path(f"/proc/{self._server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def client_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def say(line: str) -> None:
    """For people only."""
    if "--json" not in sys.argv:
        print(line, flush=True)


def say_load() -> None:
    say(f"load average {' '.join(f'{load:.2f}' for load in os.getloadavg())} on {os.cpu_count()} cores")


def pass_on_slowly(port: int, pipe: Connection) -> None:
    """In a process of its own: a slow line to ``port``, until ``pipe`` is closed."""
    with FaultyProxy(("127.0.0.1", port)) as proxy:
        proxy.always(Slow(seconds=SLOW), Slow(seconds=SLOW, direction="up"))
        pipe.send(proxy.address[1])
        with contextlib.suppress(EOFError):
            pipe.recv()


@contextlib.contextmanager
def slow_line(port: int) -> Iterator[str]:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=pass_on_slowly, args=(port, there))
    process.start()
    there.close()
    try:
        yield f"mongodb://127.0.0.1:{here.recv()}/?directConnection=true"
    finally:
        here.close()
        process.join(30)


def main() -> None:
    root = tempfile.mkdtemp(dir=workplace())
    try:
        with Mongod(Path(root) / "mongod", cache=CACHE) as server, server.client() as client:
            say_load()
            pairs = Pairs(server, client)
            for size in (SIZE, SIZE // 4):
                source = Source(size)
                expect_pieces(iter(lambda source=source: source.read(), b""))
            side_by_side(pairs, server, client)
            over_a_slow_line(pairs, server)
            say_load()
    finally:
        shutil.rmtree(root)


def side_by_side(pairs: Pairs, server: Mongod, client: Any) -> None:
    peer, ours = Peer(client), Ours(server.uri)
    put, hashed = "gridfs.put", "gridfs.put, md5+sha512"
    pairs.run("add, known digests", SIZE, lambda: ours.add(SIZE, KNOWN), lambda: peer.put(Source(SIZE)), put, 2.0)
    pairs.run("add, md5+sha512", SIZE, lambda: ours.add(SIZE), lambda: peer.put(Hashed(SIZE)), hashed, 1.5)
    peer.put(Source(SIZE))
    ours.add(SIZE, KNOWN)
    pairs.run("get", SIZE, ours.get, peer.get, "gridfs.get", 1.2)
    pairs.run("copy", SIZE, ours.copy, peer.copy, "gridfs.put(gridfs.get)", 1.5)
    ours.store.delete("gridfs://image")
    growth = peak_growth(lambda: ours.add(SIZE))
    say(f"memory growth of this process: adding {growth / MiB:.0f} MiB, reading {peak_growth(ours.get) / MiB:.0f} MiB")
    client.drop_database("ours")
    client.drop_database("theirs")


def over_a_slow_line(pairs: Pairs, server: Mongod) -> None:
    from pymongo import MongoClient

    size = SIZE // 4
    with slow_line(server.port) as uri, MongoClient(uri) as client:
        peer, ours = Peer(client), Ours(uri)
        add, put = (lambda: ours.add(size), lambda: peer.put(Source(size)))
        pairs.run("add, md5+sha512, over a slow line", size, add, put, "gridfs.put", 2.0)
        add(), put()
        pairs.run("get, over a slow line", size, ours.get, peer.get, "gridfs.get", 2.0)


if __name__ == "__main__":
    main()

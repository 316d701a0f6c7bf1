# SPDX-License-Identifier: Apache-2.0
"""Peak growth of the resident set while images pass: bounded, whatever their size.

python benchmarks/memory.py [--json] [--size MiB]
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from pairs import MiB, argument, peak_growth, workplace
from sink import sink

from storelib import fan_out, open_store
from storelib.testing.memory import MemoryStore, MemoryWriter

SIZE = argument("--size", 2048) * MiB
LIMIT = 64 * MiB


class SlowWriter(MemoryWriter):
    """Takes 2 ms for each part and forgets it: a back end slower than the source that keeps nothing here."""

    def write(self, part: object) -> None:
        time.sleep(0.002)

    def commit(self, size: int, digests: object) -> object:
        return self.publish(b"")


class SlowStore(MemoryStore):
    def open_writer(self, image_id: str, size: int | None, context: object) -> SlowWriter:
        return SlowWriter(self, image_id)


def chunks() -> Iterator[bytes]:
    chunk = bytes(range(256)) * 256
    for _ in range(SIZE // len(chunk)):
        yield chunk


def show(name: str, function: Callable[[], object]) -> None:
    growth = peak_growth(function)
    if "--json" in sys.argv:
        print(json.dumps({"name": name, "growth_mib": growth / MiB, "reached": growth < LIMIT}), flush=True)
        return
    verdict = "ok" if growth < LIMIT else "ABOVE"
    print(f"{name:60} {growth / MiB:6.1f} MiB   limit {LIMIT // MiB} MiB  {verdict}", flush=True)


def over_the_wire(path: str) -> None:
    """Images of unknown size to servers that take less than the source gives: 20 ms away, 1 MiB on the way at most."""
    with open(path, "wb") as file:
        file.write(next(chunks()) * (16 * MiB // len(next(chunks()))))
    with sink(path, far=0.02) as port:
        server = f"http://127.0.0.1:{port}"
        s3 = {"s3_store_host": server, "s3_store_bucket": "x", "s3_store_access_key": "k", "s3_store_secret_key": "k"}
        swift = {"swift_store_auth_address": f"{server}/v3", "swift_store_user": "x:x", "swift_store_key": "k"}
        for store in (open_store("s3", **s3), open_store("swift", **swift)):
            store.add("first", b"")  # clients are imported and made at first use
            show(f"{store.name} add, unknown size, slow server", lambda store=store: store.add("x", chunks()))


def main() -> None:
    root = tempfile.mkdtemp(dir=workplace())
    try:
        stores = [
            open_store("file", name, filesystem_store_datadir=f"{root}/{name}", filesystem_store_shard_levels=0)
            for name in ("one", "two", "three")
        ]
        one = stores[0]
        show("filesystem add, known size", lambda: one.add("known", chunks(), SIZE))
        show("filesystem add, unknown size", lambda: one.add("unknown", chunks()))
        uri = f"file://{root}/one/known"
        show("filesystem add from a path", lambda: one.add("path", f"{root}/one/known"))
        show("filesystem get, iterated", lambda: sum(map(len, one.get(uri).data)))
        show("fan-out into three filesystem stores", lambda: fan_out(stores, "fan", chunks()))
        slow = {"memory_store_part_size": 8 * MiB}
        for concurrency in (1, 4, 16):
            store = open_store(SlowStore, "slow", memory_store_concurrency=concurrency, **slow)
            show(f"8 MiB parts, {concurrency} in flight, slow back end", lambda store=store: store.add("x", chunks()))
        over_the_wire(f"{root}/block")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Many transfers of one process at once: what they take in memory, with the budget that they share and without one.

python benchmarks/many.py [--count N] [--size MiB] [--budget MiB]

All bytes are compared by their digest. Without a budget is with one that no transfer meets.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from pairs import MiB, argument, peak_growth, workplace
from sink import sink

from storelib import open_store
from storelib.registry import Registry
from storelib.transfer.memory import MemoryBudget

COUNT = argument("--count", 200)
SIZE = argument("--size", 24) * MiB
BUDGET = argument("--budget", 256) * MiB
BLOCK = os.urandom(MiB)
DIGEST = f"sha512:{hashlib.sha512(BLOCK * (SIZE // MiB)).hexdigest()}"


class Source:
    """An image of SIZE bytes, a block at a time."""

    def __init__(self) -> None:
        self._left = SIZE

    def read(self, size: int) -> bytes:
        size = min(size, self._left, MiB)
        self._left -= size
        return BLOCK[:size]


def at_once(work: Callable[[int], None]) -> tuple[float, int, int]:
    """Seconds, bytes of growth and threads at most while ``work`` is done COUNT times at once."""
    failed: list[Exception] = []
    most = 0

    # Else the first are done before the last have begun.
    begin = threading.Barrier(COUNT)

    def one(number: int) -> None:
        try:
            begin.wait()
            work(number)
        except Exception as error:  # noqa: BLE001  (raised below)
            failed.append(error)

    def all_of_them() -> None:
        nonlocal most
        threads = [threading.Thread(target=one, args=(number,)) for number in range(COUNT)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            most = max(most, threading.active_count())
            time.sleep(0.05)

    began = time.monotonic()
    growth = peak_growth(all_of_them)
    if failed:
        raise failed[0]
    return time.monotonic() - began, growth, most


def show(what: str, store: Any, work: Callable[[int], None]) -> None:
    for limit in (BUDGET, 1 << 40):
        store.memory = MemoryBudget(limit)
        seconds, growth, threads = at_once(work)
        said = f"budget {limit // MiB} MiB" if limit == BUDGET else "without one"
        print(f"{what:44} {said:16} {growth / MiB:7.0f} MiB  {threads:4} threads  {seconds:6.1f} s", flush=True)


def main() -> None:
    root = tempfile.mkdtemp(dir=workplace())
    try:
        file = open_store("file", filesystem_store_datadir=root)
        Registry([file])

        def add(store: Any, number: int) -> None:
            stored = store.add(f"image-{number}-{threading.get_ident()}-{time.monotonic_ns()}", Source())
            assert f"sha512:{stored.multihash}" == DIGEST

        def read(store: Any, uri: str) -> None:
            with store.get(uri, verify=DIGEST).data as stream:
                while stream.read(64 * 1024):
                    pass

        show(f"{COUNT} adds of {SIZE // MiB} MiB to files", file, lambda number: add(file, number))
        path = f"{root}/source"
        with open(path, "wb") as out:
            for _ in range(SIZE // MiB):
                out.write(BLOCK)
        with sink(path, far=0.02) as port:
            keys = {"s3_store_access_key": "k", "s3_store_secret_key": "k"}
            s3 = open_store("s3", s3_store_host=f"http://127.0.0.1:{port}", s3_store_bucket="x", **keys)
            s3.add("first", b"")
            show(f"{COUNT} adds of {SIZE // MiB} MiB to S3, 20 ms away", s3, lambda number: add(s3, number))
            uri = f"s3+http://127.0.0.1:{port}/x/source"
            show(f"{COUNT} gets of {SIZE // MiB} MiB from S3, 20 ms away", s3, lambda number: read(s3, uri))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""How time and memory grow with the size of an image, with what is done at once, with distance, with what is there.

python benchmarks/growth.py [--json] [--full] [--size MiB]

Each line is one point of one curve: seconds, or seconds for each image or GiB, so that what grows as it should is flat.
``slope`` in the last line of a curve is the exponent of its growth, 0 where it is flat.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

from pairs import MiB, argument, peak_growth, workplace
from sink import SOURCE, sink

from storelib import fan_out, open_store
from storelib.testing import benchmark
from storelib.testing.benchmark import Case

FULL = "--full" in sys.argv
GiB = 1024 * MiB
SIZES = [4**power * MiB for power in range(8 if FULL else 6)]
AT_ONCE = [1, 4, 16, 64] if FULL else [1, 4, 16]
MILLISECONDS = [0, 5, 20, 80]
THERE = [100, 1000, 10_000, 100_000] if FULL else [100, 1000, 10_000]
STORES = [1, 2, 4, 8]
#: Bytes of an image that goes to several stores, or far away.
EACH = argument("--size", 64) * MiB


def curve(question: str, series: str, unit: str, points: Iterable[tuple[float, float, int | None]]) -> None:
    """Show each point as it comes: what it depends on, what it took, and bytes of memory."""
    seen = []
    for x, y, memory in points:
        seen.append((x, y))
        show(question=question, series=series, unit=unit, x=x, y=y, memory=memory)
    show(question=question, series=series, slope=_slope([(x, y) for x, y in seen if x > 0 and y > 0]))


def show(**record: Any) -> None:
    if "--json" in sys.argv:
        print(json.dumps(record), flush=True)
        return
    if "slope" in record:
        print(f"{record['question']:28} {record['series']:24} grows by the power of {record['slope']:.2f}", flush=True)
        return
    memory = "" if record["memory"] is None else f"  {record['memory'] / MiB:7.1f} MiB"
    x, y = f"{record['x']:10.0f}", f"{record['y']:10.4f} {record['unit']}"
    print(f"{record['question']:28} {record['series']:24} {x}  {y}{memory}", flush=True)


def _slope(points: list[tuple[float, float]]) -> float:
    """By least squares on logarithms."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    middle_x, middle_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - middle_x) ** 2 for x in xs)
    return sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys, strict=True)) / spread


def files(root: str, name: str) -> Any:
    return open_store("file", name, filesystem_store_datadir=f"{root}/{name}", filesystem_store_shard_levels=0)


def by_size(root: str) -> None:
    store = files(root, "sizes")
    # Small images are bound by what each costs, which is another curve.
    measured = [list(benchmark.run(store, [Case(size)], rounds=2)) for size in SIZES]
    for operation in ("add", "get"):
        points = [
            (size / MiB, 1024 / each.rate, each.memory)
            for size, found in zip(SIZES, measured, strict=True)
            for each in found
            if each.operation == operation
        ]
        curve("size of an image, MiB", f"{operation}, files", "s/GiB", points)


def by_number_at_once(root: str) -> None:
    store = files(root, "many")
    measured = [list(benchmark.run(store, [Case(16 * MiB, at_once=number)], rounds=2)) for number in AT_ONCE]
    for operation in ("add", "get"):
        points = [
            (number, 1024 / each.rate, each.memory)
            for number, found in zip(AT_ONCE, measured, strict=True)
            for each in found
            if each.operation == operation
        ]
        curve("images at once", f"{operation}, files", "s/GiB", points)


def by_distance(root: str) -> None:
    path = f"{root}/source"
    with open(path, "wb") as file:
        for _ in range(EACH // MiB):
            file.write(os.urandom(MiB))
    for series in ("add, S3", "get, S3"):
        curve("milliseconds away", series, "s", _far_away(path, series))


def _far_away(path: str, series: str) -> Iterable[tuple[float, float, int | None]]:
    numbers = itertools.count()
    keys = {"s3_store_access_key": "k", "s3_store_secret_key": "k", "s3_store_bucket": "x"}
    for milliseconds in MILLISECONDS:
        with sink(path, far=milliseconds / 1000) as port:
            store = open_store("s3", s3_store_host=f"http://127.0.0.1:{port}", **keys)
            store.add("first", b"")
            uri = f"s3+http://127.0.0.1:{port}/x/{SOURCE}"

            def add(store: Any = store) -> None:
                with open(path, "rb") as file:
                    store.add(f"image-{next(numbers)}-x", file, EACH)

            def get(store: Any = store, uri: str = uri) -> None:
                buffer = bytearray(MiB)
                with store.get(uri).data as stream:
                    got = 0
                    while count := stream.readinto(buffer):
                        got += count
                assert got == EACH

            yield milliseconds, *_timed(add if series.startswith("add") else get)


def by_stores(root: str) -> None:
    stores = [files(root, f"store-{number}") for number in range(max(STORES))]
    block = os.urandom(MiB)

    def points() -> Iterable[tuple[float, float, int | None]]:
        for number in STORES:
            seconds, memory = _timed(lambda number=number: _to_all(stores[:number], block))
            yield number, seconds / number, memory

    curve("stores fed by one read", "add, files", "s for each", points())


def _to_all(stores: list[Any], block: bytes) -> None:
    for store, result in zip(stores, fan_out(stores, "image", iter([block] * (EACH // MiB)), EACH), strict=True):
        if isinstance(result, Exception):
            raise result
        store.delete(result.uri)


def by_images_there(root: str) -> None:
    store = files(root, "full")
    done = 0
    rows: dict[str, list[tuple[float, float, int | None]]] = {}
    for number in THERE:
        for index in range(done, number):
            _put(root, index)
        done = number
        uri = store.add("wanted", b"x" * 4096).uri
        operations: dict[str, Callable[[], object]] = {
            "get": lambda uri=uri: store.get(uri).data.read(),
            "find_image": lambda: store.find_image("wanted"),
            "gc of one id": lambda: store.gc(0, "wanted"),
        }
        for name, function in operations.items():
            rows.setdefault(name, []).append((number, min(_timed(function)[0] for _ in range(5)), None))
        seconds, memory = _timed(lambda: sum(1 for _ in store.list_images()))
        rows.setdefault("list, for each", []).append((number, seconds / number, memory))
        store.delete(uri)
    for name, points in rows.items():
        curve("images in the store", f"{name}, files", "s", points)


def _put(root: str, index: int) -> None:
    """As glance_store would have written it; adding so many through the store would measure the disk."""
    with open(f"{root}/full/00000000-0000-4000-8000-{index:012}", "wb") as file:
        file.write(b"x")


def _timed(function: Callable[[], object]) -> tuple[float, int]:
    taken: list[float] = []

    def timed() -> None:
        begun = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begun)

    memory = peak_growth(timed)
    return taken[0], memory


def main() -> None:
    root = tempfile.mkdtemp(dir=workplace())
    try:
        for measure in (by_size, by_number_at_once, by_distance, by_stores, by_images_there):
            measure(root)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()

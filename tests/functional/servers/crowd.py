# SPDX-License-Identifier: Apache-2.0
"""A process with little memory and much to do: its first argument is a line of JSON, and so is what it prints.

``at_once`` adds of ``size`` bytes begin at the same time, then as many gets; every byte is compared by its digest. What
it holds afterwards is told beside what it held before, and the most that it ever held.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from storelib.driver import Digests
from storelib.registry import Registry, open_store
from storelib.transfer import copy, fan_out
from storelib.transfer.memory import MemoryBudget

MiB = 1 << 20
GiB = 1 << 30


def status(name: str) -> int:
    """Bytes, from proc(5)."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))


def held() -> dict[str, int]:
    """Descriptors and threads of this process."""
    return {"descriptors": len(os.listdir("/proc/self/fd")), "threads": threading.active_count()}


def image(number: int, size: int) -> Iterator[bytes]:
    """Another image for each number, in pieces that are no part of anything."""
    unit = random.Random(number).randbytes(64 * 1024 - 7)
    while size:
        yield unit[:size]
        size -= min(len(unit), size)


def digest_of(pieces: Iterable[bytes]) -> str:
    """The sha512, in hexadecimal."""
    hasher = hashlib.sha512()
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


def at_once(count: int, work: Callable[[int], object]) -> None:
    begin = threading.Barrier(count)

    def one(number: int) -> None:
        begin.wait()
        work(number)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(one, range(count)))


def crowd(store: Any, count: int, size: int) -> None:
    """Many adds, many gets, and deletes."""
    uris = [""] * count
    digests = [""] * count

    def add(number: int) -> None:
        stored = store.add(f"image-{number}", image(number, size), size if number % 2 else None)
        uris[number], digests[number] = stored.uri, stored.multihash

    def get(number: int) -> None:
        with store.get(uris[number], verify=f"sha512:{digests[number]}").data as stream:
            found = digest_of(iter(lambda: stream.read(100_000), b""))
        assert found == digests[number] == digest_of(image(number, size)), number

    at_once(count, add)
    at_once(count, get)
    at_once(count, lambda number: store.delete(uris[number]))


def sparse(store: Any, directory: str, size: int) -> None:
    """One image that is nearly all holes, with its digests known, through the store and back."""
    pieces = {0: b"begin", size // 3 + 4097: b"middle" * 50_000, size - 3: b"end"}
    source = open_store("file", "source", filesystem_store_datadir=f"{directory}/source")
    with open(f"{directory}/source/sparse", "wb") as file:
        file.truncate(size)
        for offset, piece in pieces.items():
            file.seek(offset)
            file.write(piece)
    # Hashing a tebibyte of zeros would be all that takes time here.
    known = Digests(None, "0" * 128)
    stored = copy(source, f"file://{directory}/source/sparse", store, "sparse", digests=known)
    assert stored.size == store.get_size(stored.uri) == size
    for offset, piece in pieces.items():
        begin = max(offset - 5, 0)
        expected = bytes(offset - begin) + piece
        with store.get(stored.uri, begin, len(expected) + 5).data as stream:
            assert stream.read() == expected + bytes(min(5, size - offset - len(piece))), offset
    with store.get(stored.uri).data as stream:
        data = sum(extent.length for extent in stream.extents() if extent.data)
        assert data < 64 * MiB, data
    store.delete(stored.uri)
    source.delete(f"file://{directory}/source/sparse")


def declared(store: Any, size: int) -> None:
    """An image that is said to be huge and is given up after its first bytes."""

    def source() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(MiB)
        raise KeyError("given up")

    with contextlib.suppress(KeyError):
        store.add("huge", source(), size)
        raise AssertionError("it was stored")
    assert store.find_image("huge") is None
    assert not list(store.find_garbage(0, "huge"))


def huge_file(store: Any, directory: str, size: int) -> None:
    """The same of a file, when the first part is on its way."""
    part = store.open_writer("huge", size, None).part_size(0, size)
    assert part > 512 * MiB
    with open(f"{directory}/huge", "wb") as file:
        for _ in range(part // MiB + 2):
            file.write(bytes(MiB))
        file.truncate(size)

    def progress(done: int, total: int | None) -> None:
        if done > part:
            raise KeyError("given up")

    with contextlib.suppress(KeyError):
        store.add("huge", f"{directory}/huge", progress=progress)
        raise AssertionError("it was stored")
    assert store.find_image("huge") is None
    assert not list(store.find_garbage(0, "huge"))


def spread(stores: list[Any], size: int) -> None:
    """One image for many stores, read once."""
    results = fan_out(stores, "spread", image(1, size), size)
    expected = digest_of(image(1, size))
    for store, stored in zip(stores, results, strict=True):
        assert stored.multihash == expected, stored
        with store.get(stored.uri, verify=f"sha512:{expected}").data as stream:
            assert sum(map(len, stream)) == size
        store.delete(stored.uri)


def main() -> None:
    wanted = json.loads(sys.argv[1])
    stores = [
        open_store(each["driver"], f"s{number}", **each["options"]) for number, each in enumerate(wanted["stores"])
    ]
    budget = MemoryBudget(wanted["budget"]) if "budget" in wanted else None
    registry = Registry(stores, memory=budget)
    store = stores[0]
    # What a client makes once: connections, threads of its own.
    for each in stores:
        each.delete(each.add("first", b"x" * 100_000).uri)
    before = held()
    if "count" in wanted:
        crowd(store, wanted["count"], wanted["size"])
    if "sparse" in wanted:
        sparse(store, wanted["directory"], wanted["sparse"])
    if "declared" in wanted:
        declared(store, wanted["declared"])
    if "huge file" in wanted:
        huge_file(store, wanted["directory"], wanted["huge file"])
    if "spread" in wanted:
        spread(stores, wanted["spread"])
    told = {
        "before": before,
        "after": held(),
        "budget": registry.memory.limit,
        "still held": registry.memory._total,
        "peak": status("VmHWM"),
        "images": [info.image_id for each in stores for info in each.list_images()],
        "garbage": [item.name for each in stores for item in each.find_garbage(0)],
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Small images, by the second: add, get, size and delete of 4 KiB to 1 MiB, against the client library alone.

python benchmarks/small.py [--json] [--only files|s3|gridfs] [--processor]

The other side computes md5 and sha512 too where it adds, since an image service needs them, and flushes files as
storelib does. S3 is a server that costs nothing and keeps nothing (sink.py), so that the client is what is measured;
that the same calls move the right bytes is what s3.py compares on radosgw.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).resolve().parent)
sys.path = [path for path in sys.path if os.path.abspath(path or ".") != HERE]
import boto3  # noqa: E402
import gridfs  # noqa: E402
from botocore.config import Config  # noqa: E402

sys.path += [HERE, str(Path(HERE).parent / "tests" / "functional")]
from pairs import MiB, argument, clock, compare_rates, expect_pieces, received, workplace  # noqa: E402
from servers.mongod import Mongod  # noqa: E402
from sink import SOURCE, sink  # noqa: E402

from storelib import open_store  # noqa: E402

SIZES = {"4 KiB": 4096, "64 KiB": 64 * 1024, "1 MiB": MiB}
#: Seconds that one measurement takes at least.
SECONDS = 0.5
ELSEWHERE = "the same calls moved the right bytes to and from radosgw"
#: (image's name or number) -> anything
Call = Callable[[str], Any]


def digests(data: bytes) -> tuple[str, str]:
    return hashlib.md5(data, usedforsecurity=False).hexdigest(), hashlib.sha512(data).hexdigest()


class Side:
    """Adds, reads, measures and deletes images of these bytes by name."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def add(self, name: str) -> Any:
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        raise NotImplementedError

    def size(self, name: str) -> int:
        raise NotImplementedError

    def delete(self, name: str) -> Any:
        raise NotImplementedError


class Ours(Side):
    def __init__(self, data: bytes, store: Any) -> None:
        super().__init__(data)
        self.store = store
        self.prefix = store.add("probe", b"").uri.removesuffix("probe")

    def add(self, name: str) -> Any:
        self.store.add(name, self.data)

    def read(self, name: str) -> bytes:
        with self.store.get(self.prefix + name).data as stream:
            return bytes(stream.read())

    def size(self, name: str) -> int:
        return int(self.store.get_size(self.prefix + name))

    def delete(self, name: str) -> Any:
        self.store.delete(self.prefix + name)


class Files(Side):
    """What a careful program does by hand: a temporary file, flushed, renamed, and its directory flushed."""

    def __init__(self, data: bytes, directory: str) -> None:
        super().__init__(data)
        self.directory = directory
        os.makedirs(directory, exist_ok=True)

    def add(self, name: str) -> Any:
        digests(self.data)
        path = os.path.join(self.directory, name)
        with open(f"{path}.part", "wb") as file:
            file.write(self.data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(f"{path}.part", path)
        descriptor = os.open(self.directory, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def read(self, name: str) -> bytes:
        return Path(self.directory, name).read_bytes()

    def size(self, name: str) -> int:
        return os.path.getsize(os.path.join(self.directory, name))

    def delete(self, name: str) -> Any:
        os.unlink(os.path.join(self.directory, name))


class Boto3(Side):
    def __init__(self, data: bytes, endpoint: str) -> None:
        super().__init__(data)
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
        settings = Config(s3={"payload_signing_enabled": False})
        self.client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=settings, **keys)

    def add(self, name: str) -> Any:
        digests(self.data)
        self.client.put_object(Bucket="x", Key=name, Body=self.data)

    def read(self, name: str) -> bytes:
        return bytes(self.client.get_object(Bucket="x", Key=name)["Body"].read())

    def size(self, name: str) -> int:
        return int(self.client.head_object(Bucket="x", Key=name)["ContentLength"])

    def delete(self, name: str) -> Any:
        self.client.delete_object(Bucket="x", Key=name)


class Gridfs(Side):
    def __init__(self, data: bytes, client: Any) -> None:
        super().__init__(data)
        self.files = gridfs.GridFS(client["theirs"])

    def add(self, name: str) -> Any:
        digests(self.data)
        self.files.put(self.data, _id=name)

    def read(self, name: str) -> bytes:
        return bytes(self.files.get(name).read())

    def size(self, name: str) -> int:
        return int(self.files.get(name).length)

    def delete(self, name: str) -> Any:
        self.files.delete(name)


def measure(where: str, what: str, ours: Side, theirs: Side, peer: str, there: str | None = None) -> None:
    """``there``: the name of an image that a server which keeps nothing has."""
    size = len(ours.data)
    verified = ELSEWHERE if there else "all bytes were read back"
    expect_pieces([ours.data])
    if not there:
        for side in (ours, theirs):
            side.add("kept")
    kept = there or "kept"
    operations: dict[str, Callable[[Side], float]] = {
        "add": lambda side: rate(side.add, None if there else side.delete),
        "get": lambda side: rate(lambda name: received([side.read(kept)], size)),
        "get_size": lambda side: rate(lambda name: side.size(kept)),
    }
    for operation, reach in operations.items():
        mine, other = functools.partial(reach, ours), functools.partial(reach, theirs)
        name = f"{where}, {what}: {operation}"
        # Beside what a file costs by hand, a library in Python is compared, not asked for a ratio.
        target = 0.0 if isinstance(theirs, Files) else 0.9
        compare_rates(name, mine, other, target=target, peer=peer, unit="/s", verified=verified)
    if not there:
        for side in (ours, theirs):
            received([side.read("kept")], size)
            side.delete("kept")


_numbers = itertools.count()


def rate(call: Call, delete: Call | None = None) -> float:
    """Calls in a second, one after the other; what was added is deleted afterwards, untimed."""
    names, begun, until = [], clock(), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        names.append(f"image-{next(_numbers)}-x")
        call(names[-1])
    reached = len(names) / (clock() - begun)
    for name in names if delete else ():
        delete(name)
    return reached


def files(what: str, data: bytes, root: str) -> None:
    store = open_store("file", filesystem_store_datadir=f"{root}/ours-{len(data)}")
    measure("files", what, Ours(data, store), Files(data, f"{root}/theirs-{len(data)}"), "write, fsync, rename")


def s3(what: str, data: bytes, root: str) -> None:
    path = f"{root}/source-{len(data)}"
    Path(path).write_bytes(data)
    with sink(path) as port:
        endpoint = f"http://127.0.0.1:{port}"
        keys = {"s3_store_access_key": "k", "s3_store_secret_key": "k", "s3_store_bucket": "x"}
        store = open_store("s3", s3_store_host=endpoint, **keys)
        measure("free S3", what, Ours(data, store), Boto3(data, endpoint), "boto3", there=SOURCE)


@contextlib.contextmanager
def mongo(root: str) -> Iterator[Callable[[str, bytes, str], None]]:
    with Mongod(Path(root) / "mongod", cache=1.0) as server, server.client() as client:

        def measured(what: str, data: bytes, root: str) -> None:
            database = f"ours{len(data)}"
            store = open_store("gridfs", mongodb_store_uri=server.uri, mongodb_store_db=database)
            measure("GridFS", what, Ours(data, store), Gridfs(data, client), "pymongo")

        yield measured


def main() -> None:
    wanted = argument("--only", "")
    root = tempfile.mkdtemp(dir=workplace())
    try:
        with contextlib.ExitStack() as stack:
            places = {"files": lambda: files, "s3": lambda: s3, "gridfs": lambda: stack.enter_context(mongo(root))}
            for name, place in places.items():
                if wanted in ("", name):
                    each = place()
                    for what, size in SIZES.items():
                        each(what, os.urandom(size), root)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()

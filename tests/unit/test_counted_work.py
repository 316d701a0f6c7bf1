# SPDX-License-Identifier: Apache-2.0
"""How much work an operation is, counted: ceilings that hold on any machine, where a time would not.

A change that raises one of these makes something slower for all, and says here why.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from typing import NamedTuple

import pytest
from object_store import ObjectStore
from s3_server import S3Server, open_at

MiB = 1024 * 1024

#: Runs in a process of its own, since /proc/self/io counts what all threads do, and functions of Python that call the
#: system are replaced by some that count. Prints what each operation took.
FILES = """
import fcntl, json, mmap, os, sys, threading, tracemalloc
from collections import Counter
from storelib import open_store
from storelib.driver import Digests

MiB = 1024 * 1024
place, direct = sys.argv[1], sys.argv[2] == "direct"
done = Counter()

def counted(owner, name, what):
    function = getattr(owner, name)

    def call(*arguments, **options):
        done[what] += 1
        return function(*arguments, **options)

    setattr(owner, name, call)

class Memory(mmap.mmap):
    def __new__(cls, descriptor, length, **options):
        done["mapped"] += length
        return super().__new__(cls, descriptor, length, **options)

mmap.mmap = Memory
counted(threading.Thread, "start", "threads")
CALLS = {
    "flushes": ["fsync", "fdatasync"],
    "looks": ["stat", "lstat", "fstat", "access", "statvfs"],
    "opens": ["open", "dup", "scandir", "listdir"],
    "changes": ["mkdir", "rmdir", "unlink", "remove", "rename", "replace", "link", "ftruncate", "fchmod"],
}
for what, names in CALLS.items():
    for name in names:
        counted(os, name, what)
counted(fcntl, "fcntl", "changes")

def counters():
    counts = dict(done)
    with open("/proc/self/io") as file:
        io = {name: int(value) for name, value in (line.split(":") for line in file)}
    names = {"reads": "syscr", "read": "rchar", "writes": "syscw", "written": "wchar"}
    return counts | {name: io[kernels] for name, kernels in names.items()}

def count(name, function):
    # The first one loads modules and looks at the file system. On a loaded machine threads that are behind make others
    # start more of them, or take more memory, now and then: what is least is what the operation needs.
    function()
    runs = []
    for _ in range(3):
        before = counters()
        function()
        runs.append({key: value - before.get(key, 0) for key, value in counters().items()})
    taken = {key: min(run.get(key, 0) for run in runs) for key in runs[-1]}
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    function()
    taken["allocated"] = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    print(json.dumps([name, taken]))

options = {"filesystem_store_datadir": place + "/images", "filesystem_thin_provisioning": True}
store = open_store("file", "files", filesystem_store_direct_io=direct, **options)
large, holes = place + "/large", place + "/holes"
with open(large, "wb") as file:
    file.write(os.urandom(32 * MiB))
with open(holes, "wb") as file:
    file.truncate(128 * MiB)
    file.seek(64 * MiB)
    file.write(os.urandom(MiB))
numbers = iter(range(1000))

def add(data, size=None):
    return store.add(f"image-{next(numbers)}", data, size).uri

def read(uri):
    buffer = bytearray(MiB)
    with store.get(uri).data as stream:
        while stream.readinto(buffer):
            pass

uri, small, whole = add(large), add(b"x" * 4096), add(b"x" * MiB)
known = Digests("0" * 32, "0" * 128, "sha512")
count("add a file", lambda: add(large))
count("add a stream", lambda: add(iter([b"x" * MiB] * 32)))
count("add holes", lambda: add(holes))
count("add 4 KiB", lambda: add(b"x" * 4096))
count("add 1 MiB of unknown size", lambda: add(iter([b"x" * MiB])))
count("get", lambda: read(uri))
count("get 4 KiB", lambda: store.get(small).data.read())
count("get 1 MiB", lambda: store.get(whole).data.read())
count("get a range", lambda: store.get(uri, 5 * MiB, 4096).data.read())
count("get_size", lambda: store.get_size(small))
count("stat", lambda: store.stat(small))
count("find_image", lambda: store.find_image("image-1"))
count("copy with known digests", lambda: store.copy(uri, f"image-{next(numbers)}", digests=known))
doomed = iter([add(b"x" * 4096) for _ in range(5)])
count("delete", lambda: store.delete(next(doomed)))
"""


# /proc/self/io, and a token.
SLACK = 1024
#: Bytes of the Python objects that an operation makes at a time.
OBJECTS = 128 * 1024


class Work(NamedTuple):
    """Of one operation at most: system calls that read and write, bytes that they move, threads that are started.

    ``looks`` are calls for what files are, ``changes`` for names, sizes, modes and flags. ``mapped`` are bytes of
    memory for the image, ``allocated`` those of Python objects at a time.
    """

    reads: int = 2
    read: int = SLACK
    writes: int = 0
    written: int = 0
    threads: int = 0
    flushes: int = 0
    looks: int = 1
    opens: int = 2
    changes: int = 0
    mapped: int = 0
    allocated: int = OBJECTS


#: Of an add: each flushes the file and the directory of its name.
ADDED = Work(threads=1, flushes=2, looks=8, opens=3, changes=4)
LARGE = ADDED._replace(writes=8, written=32 * MiB, threads=3, mapped=12 * MiB)
SMALL_READ = Work(reads=3, read=4096 + SLACK)
CEILINGS = {
    # A read more than there are blocks finds the end.
    "add a file": LARGE._replace(reads=36, read=32 * MiB + SLACK, looks=10, opens=4),
    # The stream itself allocates a MiB, and so does what reads images here.
    "add a stream": LARGE._replace(allocated=MiB + OBJECTS),
    # Of 128 MiB, one of which has data.
    "add holes": LARGE._replace(
        reads=5, read=MiB + SLACK, writes=2, written=4 * MiB, looks=10, opens=4, mapped=4 * MiB
    ),
    "add 4 KiB": ADDED._replace(writes=1, written=4096, mapped=4096),
    "add 1 MiB of unknown size": ADDED._replace(writes=1, written=MiB, mapped=4 * MiB, allocated=MiB + OBJECTS),
    "get": Work(reads=35, read=32 * MiB + SLACK, allocated=MiB + OBJECTS),
    "get 4 KiB": SMALL_READ,
    # What is returned, and nothing beside it.
    "get 1 MiB": Work(reads=3, read=MiB + SLACK, allocated=MiB + OBJECTS),
    "get a range": SMALL_READ,
    "get_size": Work(),
    "stat": Work(),
    "find_image": Work(),
    "copy with known digests": LARGE._replace(reads=36, read=32 * MiB + SLACK, threads=2, looks=10, opens=5),
    "delete": Work(flushes=1, looks=6, opens=3, changes=5),
}


@pytest.mark.parametrize("mode", ["direct", "buffered"])
def test_a_file_is_read_and_written_once_in_large_blocks(tmp_path, mode):
    ran = subprocess.run(
        [sys.executable, "-c", FILES, str(tmp_path), mode], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    taken = dict(map(json.loads, ran.stdout.splitlines()))
    assert set(taken) == set(CEILINGS)
    above = {
        (operation, what): (count, getattr(CEILINGS[operation], what))
        for operation, counts in taken.items()
        for what, count in counts.items()
        if count > getattr(CEILINGS[operation], what)
    }
    assert not above


#: Prints how many pages of memory are new while 64 MiB come from readers of readers, each with memory of its own.
READERS = """
import resource, sys
from storelib import open_store

MiB = 1024 * 1024

class Socket:
    left = 64 * MiB

    def read(self, size):
        size = min(size, self.left)
        self.left -= size
        return b"".join([bytes(64 * 1024)] * (size // (64 * 1024)))

class Copying:
    def __init__(self, file):
        self.file = file

    def read(self, size):
        return bytes(bytearray(self.file.read(size)))

store = open_store("file", filesystem_store_datadir=sys.argv[1])
for image in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    store.add(f"image-{image}", Copying(Socket()))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory of another libc")
def test_what_readers_give_is_read_into_memory_that_was_used_before(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", READERS, str(tmp_path)], capture_output=True, text=True, timeout=300, check=True
    )
    # Of 16 384 in the image; it was twice as many.
    assert int(ran.stdout) < 4096


class TestS3Requests:
    """Every one is a round trip of 20 ms or more to a server that is far away."""

    @pytest.fixture
    def server(self):
        with S3Server() as server:
            yield server

    @pytest.fixture
    def store(self, server):
        store = open_at(server, s3_store_large_object_chunk_size=5)
        # The first request learns what the server can do.
        store.add("first", b"image")
        return store

    @pytest.fixture
    def asked(self, server):
        """``asked(function)`` returns the methods of the requests that it makes."""

        def asked(function):
            before = len(server.requests)
            function()
            return [request.method for request in server.requests[before:]]

        return asked

    def test_a_small_image_is_one_request_each_way(self, store, asked):
        assert asked(lambda: store.add("small", b"x" * 4096)) == ["PUT"]
        [uri] = [info.uri for info in store.list_images() if info.image_id == "small"]
        assert asked(lambda: store.get(uri).data.read()) == ["GET"]
        assert asked(lambda: store.get(uri, 10, 10).data.read()) == ["GET"]
        assert asked(lambda: store.get_size(uri)) == ["HEAD"]
        assert asked(lambda: store.stat(uri)) == ["HEAD"]
        assert asked(lambda: store.find_image("small")) == ["HEAD"]

    def test_no_body_waits_until_it_is_welcome(self, store, server):
        store.add("small", b"x" * 4096)
        store.add("large", iter([os.urandom(MiB)] * 21))
        with_bodies = [request for request in server.requests if request.method == "PUT"]
        # That would be one more round trip for each part.
        assert len(with_bodies) == 7
        assert not [request for request in with_bodies if "expect" in request.headers]

    def test_a_delete_looks_first_whose_object_it_is(self, store, asked):
        uri = store.add("small", b"x").uri
        assert asked(lambda: store.delete(uri)) == ["HEAD", "DELETE"]

    @pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
    def test_a_large_image_is_its_parts_and_three_more(self, store, asked, known):
        blocks = [os.urandom(MiB)] * 21
        methods = asked(lambda: store.add("large", iter(blocks), 21 * MiB if known else None))
        # Begun, five parts; then whether nobody was faster is looked at, and it is completed.
        assert sorted(methods) == ["HEAD", "POST", "POST", *["PUT"] * 5]

    def test_a_listing_is_one_request_for_a_page(self, store, asked):
        for number in range(5):
            store.add(f"image-{number}", b"x")
        assert asked(lambda: list(store.list_images())) == ["GET"]


class TestSwiftRequests:
    @pytest.fixture
    def cloud(self):
        cloud = ObjectStore()
        with cloud.serve() as cloud.server:
            yield cloud

    @pytest.fixture
    def store(self, cloud):
        store = cloud.open(swift_store_large_object_size=5, swift_store_large_object_chunk_size=5)
        # The first request asks for a token and makes the container.
        store.add("first", b"image")
        return store

    @pytest.fixture
    def asked(self, cloud):
        """``asked(function)`` returns the methods of the requests that it makes."""

        def asked(function):
            before = len(cloud.server.requests)
            function()
            return [request.method for request in cloud.server.requests[before:]]

        return asked

    def test_a_small_image_is_one_request_but_for_an_add(self, store, asked):
        # Whether the id is taken, and whether it is this add's image that is there now.
        assert asked(lambda: store.add("small", b"x" * 4096)) == ["HEAD", "PUT", "HEAD"]
        uri = store.find_image("small").uri
        assert asked(lambda: store.get(uri).data.read()) == ["GET"]
        assert asked(lambda: store.get(uri, 10, 10).data.read()) == ["GET"]
        assert asked(lambda: store.get_size(uri)) == ["HEAD"]
        assert asked(lambda: store.stat(uri)) == ["HEAD"]
        assert asked(lambda: store.find_image("small")) == ["HEAD"]
        assert asked(lambda: store.delete(uri)) == ["HEAD", "DELETE"]

    @pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
    def test_a_large_image_is_its_segments_a_manifest_and_what_proves_them(self, store, asked, known):
        methods = asked(lambda: store.add("large", iter([os.urandom(MiB)] * 21), 21 * MiB if known else None))
        assert methods.count("PUT") == 6
        assert len(methods) <= 11

# SPDX-License-Identifier: Apache-2.0
"""The s3 driver against glance_store's, boto3, obstore, s3fs, and the programs rclone and restic, which Debian has.

python benchmarks/s3.py [--json] [--size MiB] [--only free|far|radosgw]

``free``: a server that costs nothing, so that the client is what is measured. ``far``: the same, 20 ms away, with at
most 1 MiB on the way in each connection. ``radosgw``: a real Ceph that shares the machine, from Debian's packages
ceph-mon, ceph-osd and radosgw.

Needs ``pip install glance_store==5.7.0 boto3 obstore s3fs``. restic keeps what it is given in pieces, encrypted, so it
is asked on radosgw alone; both programs are measured with their start.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import socket
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import obstore
import s3fs
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from glance_store import location as glance_location
from glance_store._drivers import s3 as glance_s3
from obstore.store import S3Store as ObstoreS3
from oslo_config import cfg
from pairs import (
    MiB,
    Stored,
    WrongBytes,
    argument,
    compare,
    dense_image,
    pieces_of,
    pieces_of_file,
    received,
    show_rate,
    verify,
    workplace,
)
from s3_programs import Rclone, Restic
from sink import SOURCE, KiB, sink

from storelib import fan_out, open_store
from storelib.driver import Digests

SIZE = argument("--size", 512) * MiB
KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
BUCKET = "images"
NO_CHECKSUMS = dict.fromkeys(("request_checksum_calculation", "response_checksum_validation"), "when_required")
KNOWN = Digests("0" * 32, "0" * 128)
#: The servers that are free or far away keep nothing.
ELSEWHERE = "the same calls moved the right bytes to and from radosgw"


class Server:
    """Where S3 is, and what a benchmark stored there, unless the server ``keeps`` nothing."""

    def __init__(self, endpoint: str, keys: dict[str, str] = KEYS, keeps: bool = False) -> None:
        self.keeps = keeps
        self.endpoint = endpoint
        self.keys = keys
        self.client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
        self.names = (f"image-{number}-x" for number in itertools.count())

    def stored(self, name: str) -> Callable[[], None]:
        def remove() -> None:
            self.client.delete_object(Bucket=BUCKET, Key=name)

        def pieces() -> Iterator[bytes]:
            yield from self.client.get_object(Bucket=BUCKET, Key=name)["Body"].iter_chunks(MiB)

        return Stored(SIZE, pieces, remove) if self.keeps else remove


class Ours:
    def __init__(self, server: Server, **options: Any) -> None:
        self.server = server
        self.store = open_store(
            "s3",
            **options,
            s3_store_host=server.endpoint,
            s3_store_bucket=BUCKET,
            s3_store_access_key=server.keys["aws_access_key_id"],
            s3_store_secret_key=server.keys["aws_secret_access_key"],
        )

    def add(self, path: str, size: int | None = SIZE) -> Callable[[], None]:
        with open(path, "rb") as file:
            self.store.add(name := next(self.server.names), file if size else Unsized(file), size)
        return self.server.stored(name)

    def add_without_digests(self, path: str) -> Callable[[], None]:
        with open(path, "rb") as file:
            [result] = fan_out([self.store], name := next(self.server.names), file, SIZE, digests=KNOWN)
        if isinstance(result, Exception):
            raise result
        return self.server.stored(name)

    def get(self, name: str) -> None:
        with self.store.get(f"s3+{self.server.endpoint}/{BUCKET}/{name}").data as data:
            received(pieces_of(data, bytearray(MiB)), SIZE)


class Unsized:
    """What comes from a client that does not say how much it sends."""

    def __init__(self, file: Any) -> None:
        self.read = file.read


class Glance:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.conf = cfg.ConfigOpts()
        self.store = glance_s3.Store(self.conf)
        self.conf([])
        options = {
            "s3_store_host": server.endpoint,
            "s3_store_bucket": BUCKET,
            "s3_store_access_key": server.keys["aws_access_key_id"],
            "s3_store_secret_key": server.keys["aws_secret_access_key"],
            "s3_store_bucket_url_format": "path",
            "s3_store_region_name": "us-east-1",
        }
        for name, value in options.items():
            self.conf.set_override(name, value, group="glance_store")
        self.store.configure()

    def add(self, path: str, size: int = SIZE) -> Callable[[], None]:
        with open(path, "rb") as file:
            self.store.add(name := next(self.server.names), file, size, "sha512")
        return self.server.stored(name)

    def get(self, name: str) -> None:
        specs = {"scheme": "s3", "bucket": BUCKET, "key": name, "s3serviceurl": self.server.endpoint}
        location = glance_location.Location("s3", glance_s3.StoreLocation, self.conf, store_specs=specs)
        chunks, _ = self.store.get(location)
        received(chunks, SIZE)


class Boto3:
    """With its defaults; or ``tuned``: no signature of the payload, larger parts and reads."""

    def __init__(self, server: Server, tuned: bool = False, **settings: Any) -> None:
        self.server = server
        self.transfer = TransferConfig()
        if tuned:
            self.transfer = TransferConfig(multipart_chunksize=16 * MiB, max_concurrency=4, io_chunksize=MiB)
            settings["s3"] = {"payload_signing_enabled": False}
        self.client = boto3.client(
            "s3", endpoint_url=server.endpoint, region_name="us-east-1", config=Config(**settings), **server.keys
        )

    def add(self, path: str) -> Callable[[], None]:
        with open(path, "rb") as file:
            self.client.upload_fileobj(file, BUCKET, name := next(self.server.names), Config=self.transfer)
        return self.server.stored(name)

    def one_stream(self, name: str) -> None:
        body = self.client.get_object(Bucket=BUCKET, Key=name)["Body"]
        received(body.iter_chunks(MiB), SIZE)

    def download_fileobj(self, name: str) -> None:
        with open(os.devnull, "wb") as file:
            self.client.download_fileobj(BUCKET, name, file, Config=self.transfer)

    def download_file(self, name: str) -> Stored:
        """The same into a file that can be compared."""
        path = os.path.join(workplace(), "download_file")
        self.client.download_file(BUCKET, name, path, Config=self.transfer)
        return Stored(SIZE, lambda: pieces_of_file(path), lambda: os.unlink(path))


class Obstore:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.store = ObstoreS3(
            BUCKET,
            endpoint=server.endpoint,
            region="us-east-1",
            access_key_id=server.keys["aws_access_key_id"],
            secret_access_key=server.keys["aws_secret_access_key"],
            unsigned_payload=True,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

    def add(self, path: str) -> Callable[[], None]:
        with open(path, "rb") as file:
            obstore.put(self.store, name := next(self.server.names), file)
        return self.server.stored(name)

    def get(self, name: str) -> None:
        chunks = obstore.get(self.store, name).stream(min_chunk_size=MiB)
        received(chunks, SIZE)


class S3fs:
    """fsspec's, with its defaults but for the listing of what it wrote, which nobody asked for."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.files = s3fs.S3FileSystem(
            key=server.keys["aws_access_key_id"],
            secret=server.keys["aws_secret_access_key"],
            endpoint_url=server.endpoint,
            client_kwargs={"region_name": "us-east-1"},
            use_listings_cache=False,
        )

    def add(self, path: str) -> Callable[[], None]:
        self.files.put_file(path, f"{BUCKET}/{(name := next(self.server.names))}")
        return self.server.stored(name)

    def get(self, name: str) -> None:
        # It reads ahead of a file that it is told to read in order.
        with self.files.open(f"{BUCKET}/{name}", "rb", block_size=8 * MiB, cache_type="readahead") as file:
            received(iter(partial(file.read, MiB), b""), SIZE)


class Bare:
    """The work of an add and nothing else: md5, sha512, and a CRC-32 of what is sent, each in a thread of its own.

    What an add cannot do in less: no look whether the id is taken, no parts, no retries, no response that is compared.
    """

    def __init__(self, port: int, path: str) -> None:
        self.port = port
        self.expected = hashlib.md5(usedforsecurity=False)
        self._hash(path, self.expected)

    def add(self, path: str) -> None:
        hashers = [hashlib.new(name, usedforsecurity=False) for name in ("md5", "sha512")]
        sent: list[int] = []
        threads = [threading.Thread(target=self._hash, args=(path, hasher)) for hasher in hashers]
        threads.append(threading.Thread(target=lambda: sent.append(self._send(path))))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if hashers[0].digest() != self.expected.digest() or sent != [SIZE]:
            raise WrongBytes("the bare add hashed or sent something else")

    def _hash(self, path: str, hasher: Any) -> None:
        for piece in _pieces(path, 256 * KiB):
            hasher.update(piece)

    def _send(self, path: str) -> int:
        request = f"PUT /{BUCKET}/bare?partNumber=1&uploadId=u HTTP/1.1\r\nHost: x\r\nContent-Length: {SIZE}\r\n\r\n"
        count = 0
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(request.encode())
            for piece in _pieces(path, 512 * KiB):
                zlib.crc32(piece)
                connection.sendall(piece)
                count += len(piece)
            connection.recv(KiB)
        return count


def _pieces(path: str, size: int) -> Iterator[memoryview]:
    with open(path, "rb", buffering=0) as file:
        view = memoryview(bytearray(size))
        while count := file.readinto(view):
            yield view[:count]


class Sides:
    """All that is compared, on one server."""

    def __init__(self, server: Server) -> None:
        self.ours, self.plain = Ours(server), Ours(server, s3_store_checksum_algorithm="none")
        self.glance, self.boto, self.rust = Glance(server), Boto3(server), Obstore(server)
        self.fsspec, self.rclone = S3fs(server), Rclone(server, BUCKET, SIZE)
        self.tuned, self.best = Boto3(server, tuned=True), Boto3(server, tuned=True, **NO_CHECKSUMS)

    def verify(self, path: str) -> None:
        """Each way of adding and reading that is measured, where it can be read back."""
        adding = (self.ours, self.glance, self.boto, self.tuned, self.best, self.rust, self.fsspec, self.rclone)
        verify(*(partial(side.add, path) for side in adding))
        verify(partial(self.ours.add, path, None), partial(self.glance.add, path, 0))
        verify(*(partial(side.add_without_digests, path) for side in (self.ours, self.plain)))
        reading = (self.ours, self.glance, self.rust, self.fsspec, self.rclone)
        verify(*(partial(side.get, SOURCE) for side in reading))
        verify(*(partial(read, SOURCE) for read in (self.best.one_stream, self.best.download_file)))


def free(path: str) -> None:
    with sink(path) as port:
        sides = Sides(Server(f"http://127.0.0.1:{port}"))
        ours, plain, glance, boto = sides.ours, sides.plain, sides.glance, sides.boto
        tuned, best, rust, bare = sides.tuned, sides.best, sides.rust, Bare(port, path)
        for name, mine, theirs, target, peer in [
            ("add md5+sha512", ours.add, bare.add, 0.87, "threads that hash, sum and send the file, no more"),
            # The bare threads reach 1.7 times as much as this at 512 MiB, and less than boto3, which hashes nothing.
            ("add md5+sha512", ours.add, glance.add, 1.5, "glance_store md5+sha512"),
            ("add md5+sha512", ours.add, boto.add, 0.0, "upload_fileobj, defaults, no digests"),
            ("add md5+sha512", ours.add, sides.rclone.add, 0.0, "rclone copyto, md5"),
            ("add md5+sha512", ours.add, sides.fsspec.add, 0.0, "s3fs put_file, no digests"),
            ("add known digests", ours.add_without_digests, glance.add, 3.0, "glance_store md5+sha512"),
            ("add known digests, crc32", ours.add_without_digests, tuned.add, 1.0, "upload_fileobj, best with crc32"),
            ("add known digests, no checksum", plain.add_without_digests, best.add, 1.0, "upload_fileobj, best"),
            ("add known digests, no checksum", plain.add_without_digests, rust.add, 0.95, "obstore put"),
        ]:
            # Runs of some hundredths of a second, and sides that differ by some hundredths: three rounds would tell
            # more of what else the machine does.
            rounds = 25 if name.endswith("no checksum") else 9 if theirs == bare.add else 3
            on_free(name, partial(mine, path), partial(theirs, path), target=target, peer=peer, rounds=rounds)
        for theirs, target, peer in [
            (best.one_stream, 1.0, "boto3, one stream, 1 MiB"),
            (glance.get, 1.3, "glance_store"),
            (boto.download_fileobj, 0.0, "download_fileobj, defaults"),
            (best.download_fileobj, 0.0, "download_fileobj, best"),
            (rust.get, 0.0, "obstore stream"),
            (sides.fsspec.get, 0.0, "s3fs, read ahead"),
        ]:
            # The system has one connection between two of its processes go at one speed or at twice that, as it comes.
            on_free("get", partial(ours.get, SOURCE), partial(theirs, SOURCE), target=target, peer=peer, rounds=9)


def on_free(name: str, mine: Callable[[], Any], theirs: Callable[[], Any], **options: Any) -> None:
    compare(f"free: {name}", SIZE, mine, theirs, verified=ELSEWHERE, **options)


def far(path: str) -> None:
    with sink(path, far=0.02) as port:
        server = Server(f"http://127.0.0.1:{port}")
        # As much memory as glance_store has on the way: ten parts of 10 MB.
        ours, wide, glance = Ours(server), Ours(server, transfer_window=96), Glance(server)
        for name, mine, theirs, target in [
            ("add, size unknown", lambda: ours.add(path, None), lambda: glance.add(path, 0), 4.0),
            ("add, size known", lambda: ours.add(path), lambda: glance.add(path), 0.0),
            ("add, size known, transfer_window 96 MiB", lambda: wide.add(path), lambda: glance.add(path), 1.0),
            ("get", lambda: ours.get(SOURCE), lambda: glance.get(SOURCE), 4.0),
        ]:
            compare(f"20 ms away: {name}", SIZE, mine, theirs, target=target, peer="glance_store", verified=ELSEWHERE)


def radosgw(path: str, server: Server) -> None:
    sides = Sides(server)
    ours, glance, best = sides.ours, sides.glance, sides.best
    restic = Restic(server, BUCKET, SIZE)
    kept = restic.add(path)
    for name, mine, theirs, target, peer in [
        ("add md5+sha512", lambda: ours.add(path), lambda: glance.add(path), 1.4, "glance_store md5+sha512"),
        ("add md5+sha512", lambda: ours.add(path), lambda: sides.rclone.add(path), 0.0, "rclone copyto, md5"),
        ("add md5+sha512", lambda: ours.add(path), lambda: restic.add(path), 0.0, "restic backup, sha256, encrypted"),
        ("get", lambda: ours.get(SOURCE), lambda: glance.get(SOURCE), 1.0, "glance_store"),
        ("get", lambda: ours.get(SOURCE), lambda: best.one_stream(SOURCE), 0.0, "boto3, one stream, 1 MiB"),
        ("get", lambda: ours.get(SOURCE), lambda: sides.rclone.get(SOURCE), 0.0, "rclone cat"),
        ("get", lambda: ours.get(SOURCE), lambda: kept.read_back(), 0.0, "restic dump"),
    ]:
        compare(f"radosgw: {name}", SIZE, mine, theirs, target=target, peer=peer)
    kept()


@contextlib.contextmanager
def real_server(path: str) -> Iterator[Server]:
    sys.path.append(str(Path(__file__).parents[1] / "tests/functional"))
    from servers import ceph

    with tempfile.TemporaryDirectory(prefix="storelib-bench-") as directory, ceph.radosgw(Path(directory)) as gateway:
        keys = {"aws_access_key_id": gateway.access_key, "aws_secret_access_key": gateway.secret_key}
        server = Server(gateway.s3_endpoint, keys, keeps=True)
        server.client.create_bucket(Bucket=BUCKET)
        server.client.upload_file(path, BUCKET, SOURCE)
        yield server


def show_bounds() -> None:
    """What bounds an add with digests: md5 and sha512 on a core each, with crc32 and sending beside them."""
    block = os.urandom(MiB)
    for name in ("md5", "sha512", "sha256"):
        show_rate(f"{name}, one core", lambda name=name: hashlib.new(name, block).digest(), 512)


def main() -> None:
    show_bounds()
    wanted = argument("--only", "")
    with dense_image(SIZE) as path:
        with real_server(path) as server:
            Sides(server).verify(path)
            if wanted in ("", "radosgw"):
                radosgw(path, server)
        for measure in (free, far):
            if wanted in ("", measure.__name__):
                measure(path)


if __name__ == "__main__":
    main()

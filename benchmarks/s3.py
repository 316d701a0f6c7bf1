# SPDX-License-Identifier: Apache-2.0
"""The s3 driver against glance_store's, boto3 and obstore. Needs ``pip install glance_store==5.7.0 boto3 obstore``.

python benchmarks/s3.py [--json] [--size MiB] [--only free|far|radosgw]

``free``: a server that costs nothing, so that the client is what is measured. ``far``: the same, 20 ms away, with at
most 1 MiB on the way in each connection. ``radosgw``: a real Ceph that shares the machine, from Debian's packages
ceph-mon, ceph-osd and radosgw.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import obstore
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from glance_store import location as glance_location
from glance_store._drivers import s3 as glance_s3
from obstore.store import S3Store as ObstoreS3
from oslo_config import cfg
from pairs import MiB, argument, compare, dense_image, show_rate
from sink import SOURCE, sink

from storelib import fan_out, open_store
from storelib.driver import Digests

SIZE = argument("--size", 512) * MiB
KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
BUCKET = "images"
NO_CHECKSUMS = dict.fromkeys(("request_checksum_calculation", "response_checksum_validation"), "when_required")
KNOWN = Digests("0" * 32, "0" * 128)


class Server:
    """Where S3 is, and how to get rid of what a benchmark stored there."""

    def __init__(self, endpoint: str, keys: dict[str, str] = KEYS) -> None:
        self.endpoint = endpoint
        self.keys = keys
        self.client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
        self.names = (f"image-{number}-x" for number in itertools.count())

    def removal(self, name: str) -> Callable[[], None]:
        return lambda: self.client.delete_object(Bucket=BUCKET, Key=name) and None


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
        return self.server.removal(name)

    def add_without_digests(self, path: str) -> Callable[[], None]:
        with open(path, "rb") as file:
            [result] = fan_out([self.store], name := next(self.server.names), file, SIZE, digests=KNOWN)
        if isinstance(result, Exception):
            raise result
        return self.server.removal(name)

    def get(self, name: str) -> None:
        with self.store.get(f"s3+{self.server.endpoint}/{BUCKET}/{name}").data as data:
            buffer = memoryview(bytearray(MiB))
            got = 0
            while count := data.readinto(buffer):
                got += count
        assert got == SIZE


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
        return self.server.removal(name)

    def get(self, name: str) -> None:
        specs = {"scheme": "s3", "bucket": BUCKET, "key": name, "s3serviceurl": self.server.endpoint}
        location = glance_location.Location("s3", glance_s3.StoreLocation, self.conf, store_specs=specs)
        chunks, _ = self.store.get(location)
        assert sum(len(chunk) for chunk in chunks) == SIZE


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
        return self.server.removal(name)

    def one_stream(self, name: str) -> None:
        body = self.client.get_object(Bucket=BUCKET, Key=name)["Body"]
        assert sum(len(chunk) for chunk in body.iter_chunks(MiB)) == SIZE

    def download_fileobj(self, name: str) -> None:
        with open(os.devnull, "wb") as file:
            self.client.download_fileobj(BUCKET, name, file, Config=self.transfer)


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
        return self.server.removal(name)

    def get(self, name: str) -> None:
        chunks = obstore.get(self.store, name).stream(min_chunk_size=MiB)
        assert sum(len(chunk) for chunk in chunks) == SIZE


def free(path: str) -> None:
    with sink(path) as port:
        server = Server(f"http://127.0.0.1:{port}")
        ours, plain = Ours(server), Ours(server, s3_store_checksum_algorithm="none")
        glance, boto, rust = Glance(server), Boto3(server), Obstore(server)
        tuned, best = Boto3(server, tuned=True), Boto3(server, tuned=True, **NO_CHECKSUMS)
        for name, mine, theirs, target, peer in [
            ("add md5+sha512", ours.add, glance.add, 1.8, "glance_store md5+sha512"),
            ("add md5+sha512", ours.add, boto.add, 1.0, "upload_fileobj, defaults"),
            ("add known digests", ours.add_without_digests, glance.add, 3.0, "glance_store md5+sha512"),
            ("add known digests, crc32", ours.add_without_digests, tuned.add, 1.0, "upload_fileobj, best with crc32"),
            ("add known digests, no checksum", plain.add_without_digests, best.add, 1.0, "upload_fileobj, best"),
            ("add known digests, no checksum", plain.add_without_digests, rust.add, 0.0, "obstore put"),
        ]:
            compare(f"free: {name}", SIZE, partial(mine, path), partial(theirs, path), target=target, peer=peer)
        for theirs, target, peer in [
            (best.one_stream, 1.0, "boto3, one stream, 1 MiB"),
            (glance.get, 1.3, "glance_store"),
            (boto.download_fileobj, 0.0, "download_fileobj, defaults"),
            (best.download_fileobj, 0.0, "download_fileobj, best"),
            (rust.get, 0.0, "obstore stream"),
        ]:
            compare("free: get", SIZE, partial(ours.get, SOURCE), partial(theirs, SOURCE), target=target, peer=peer)


def far(path: str) -> None:
    with sink(path, far=0.02) as port:
        server = Server(f"http://127.0.0.1:{port}")
        ours, glance = Ours(server), Glance(server)
        for name, mine, theirs, target in [
            ("add, size unknown", lambda: ours.add(path, None), lambda: glance.add(path, 0), 4.0),
            ("add, size known", lambda: ours.add(path), lambda: glance.add(path), 0.0),
            ("get", lambda: ours.get(SOURCE), lambda: glance.get(SOURCE), 4.0),
        ]:
            compare(f"20 ms away: {name}", SIZE, mine, theirs, target=target, peer="glance_store", rounds=3)


def radosgw(path: str) -> None:
    sys.path.append(str(Path(__file__).parents[1] / "tests/functional"))
    from servers import ceph

    with tempfile.TemporaryDirectory(prefix="storelib-bench-") as directory, ceph.radosgw(Path(directory)) as gateway:
        keys = {"aws_access_key_id": gateway.access_key, "aws_secret_access_key": gateway.secret_key}
        server = Server(gateway.s3_endpoint, keys)
        server.client.create_bucket(Bucket=BUCKET)
        server.client.upload_file(path, BUCKET, SOURCE)
        ours, glance, best = Ours(server), Glance(server), Boto3(server, tuned=True, **NO_CHECKSUMS)
        for name, mine, theirs, target, peer in [
            ("add md5+sha512", lambda: ours.add(path), lambda: glance.add(path), 1.4, "glance_store md5+sha512"),
            ("get", lambda: ours.get(SOURCE), lambda: glance.get(SOURCE), 1.0, "glance_store"),
            ("get", lambda: ours.get(SOURCE), lambda: best.one_stream(SOURCE), 0.0, "boto3, one stream, 1 MiB"),
        ]:
            compare(f"radosgw: {name}", SIZE, mine, theirs, target=target, peer=peer)


def show_bounds() -> None:
    """What bounds an add with digests: md5 and sha512 on a core each, with crc32 and sending beside them."""
    block = os.urandom(MiB)
    for name in ("md5", "sha512", "sha256"):
        show_rate(f"{name}, one core", lambda name=name: hashlib.new(name, block).digest(), 512)


def main() -> None:
    show_bounds()
    servers = {"free": free, "far": far, "radosgw": radosgw}
    wanted = argument("--only", "")
    with dense_image(SIZE) as path:
        for name, measure in servers.items():
            if wanted in ("", name):
                measure(path)


if __name__ == "__main__":
    main()

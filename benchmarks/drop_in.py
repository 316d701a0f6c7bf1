# SPDX-License-Identifier: Apache-2.0
"""The same Glance 33 on glance_store and on storelib in its place (storelib.compat), each under gunicorn.

python benchmarks/drop_in.py [--json] [--size MiB] [--rounds N] [--only TEXT]. Glance is installed into an environment
of its own at the first run. Both run beside each other and are asked in turn; S3 is a server that throws bytes away
(sink.py). A store that throws bytes away shows what Glance itself and gunicorn cost. The times of the processor are
those of Glance's process, which a busy machine changes less than what passes on a clock.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "tests" / "functional")]

from pairs import MiB, Pair, argument, dense_image, pieces_of_file, show, workplace  # noqa: E402
from servers.glance import Glance  # noqa: E402
from sink import sink  # noqa: E402

SIZE = argument("--size", 512) * MiB
ROUNDS = argument("--rounds", 3)
ONLY = argument("--only", "")
ADMIN = {
    "X-Roles": "admin,member,reader",
    "X-Tenant-Id": "project",
    "X-User-Id": "user",
    "X-Identity-Status": "Confirmed",
}
OCTETS = {"Content-Type": "application/octet-stream"}
DIGESTS = "Glance has the digests of the file"
#: Seconds that an import may take.
TIMEOUT = 300.0

# The first hashes as any store has to, md5 and the other algorithm in threads of their own, like storelib; the second
# does nothing at all, and shows what Glance and gunicorn cost. Both take as much at a time as storelib does.
_NOWHERE = """
import hashlib
import queue
import threading

from glance_store import capabilities, driver, exceptions, location


class StoreLocation(location.StoreLocation):
    def parse_uri(self, uri):
        self.uri = uri

    def get_uri(self):
        return self.uri


class Digest(threading.Thread):
    def __init__(self, algorithm):
        super().__init__()
        self.hasher = hashlib.new(algorithm, usedforsecurity=False)
        self.queue = queue.Queue(8)
        self.start()

    def run(self):
        while chunk := self.queue.get():
            self.hasher.update(chunk)

    def finish(self):
        self.queue.put(b"")
        self.join()
        return self.hasher.hexdigest()


class Store(driver.Store):
    _CAPABILITIES = capabilities.BitMasks.RW_ACCESS | capabilities.BitMasks.DRIVER_REUSABLE

    def get_schemes(self):
        return ("nowhere",)

    @driver.back_compat_add
    @capabilities.check
    def add(self, image_id, image_file, image_size, hashing_algo, context=None, verifier=None):
        size = 0
        digests = [Digest(name) for name in ("md5", hashing_algo)] if self.backend_group == "hashed" else []
        while chunk := image_file.read(1 << 20):
            size += len(chunk)
            for digest in digests:
                digest.queue.put(chunk)
        md5, multihash = [digest.finish() for digest in digests] or ("0" * 32, "0" * 128)
        return "nowhere://" + image_id, size, md5, multihash, {"store": self.backend_group}

    @capabilities.check
    def delete(self, location, context=None):
        pass
"""
_ENTRY_POINT = "[glance_store.drivers]\nnowhere = nowhere_driver:Store\n"


class Made(NamedTuple):
    """An image of one side."""

    side: Side
    image_id: str

    def check(self) -> None:
        """Compare what Glance knows of it with the file; a store that throws bytes away may give no digest."""
        found = self.side.ask("GET", f"/images/{self.image_id}")["os_hash_value"]
        if found not in (self.side.digest, "0" * 128):
            raise RuntimeError(f"{self.image_id} has another digest than the file that was sent")

    def remove(self) -> None:
        self.side.ask("DELETE", f"/images/{self.image_id}")


class Side:
    """One of the two; each image that it makes is removed by what made it, untimed."""

    def __init__(self, glance: Glance, digest: str) -> None:
        self.glance = glance
        self.digest = digest
        children = Path(f"/proc/{glance.pid}/task/{glance.pid}/children").read_text()
        self.worker = int(children.split()[0])

    def cpu(self) -> float:
        """Seconds of the processor that the working process has used."""
        fields = Path(f"/proc/{self.worker}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def growth(self, function: Callable[[], object]) -> int:
        """Bytes by which the working process grew at most meanwhile."""
        Path(f"/proc/{self.worker}/clear_refs").write_text("5")  # resets VmHWM, proc(5)
        before = self._memory("VmRSS")
        function()
        return self._memory("VmHWM") - before

    def _memory(self, field: str) -> int:
        lines = Path(f"/proc/{self.worker}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024

    def connection(self) -> contextlib.closing[http.client.HTTPConnection]:
        return contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.glance.port, timeout=TIMEOUT))

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        sent = {**ADMIN, **({"Content-Type": "application/json"} if body is not None else {}), **headers}
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.glance.port, timeout=TIMEOUT)
        ) as connection:
            connection.request(method, f"/v2{path}", None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            text = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {text[:500]!r}")
        return json.loads(text) if text else None

    def create(self) -> str:
        fields = {"name": "x", "disk_format": "raw", "container_format": "bare"}
        return str(self.ask("POST", "/images", fields)["id"])

    def send(self, path: str, target: str, *, sized: bool = True, **headers: str) -> None:
        """Send a file, past this process where its size is told."""
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.glance.port, timeout=TIMEOUT)
        ) as connection:
            connection.putrequest("PUT", f"/v2{target}")
            length = {"Content-Length": str(SIZE)} if sized else {"Transfer-Encoding": "chunked"}
            for name, value in {**ADMIN, **OCTETS, **length, **headers}.items():
                connection.putheader(name, value)
            connection.endheaders()
            with open(path, "rb") as file:
                if sized:
                    connection.sock.sendfile(file)
                else:
                    while data := file.read(64 * 1024):
                        connection.send(b"%x\r\n%b\r\n" % (len(data), data))
                    connection.send(b"0\r\n\r\n")
            response = connection.getresponse()
            text = response.read()
        if response.status != 204:
            log = (self.glance.directory / "glance-api.log").read_text()[-3000:]
            raise RuntimeError(f"PUT {target}: {response.status} {text[:500]!r}\n{log}")

    def upload(self, path: str, store: str, sized: bool = True) -> Made:
        image_id = self.create()
        self.send(path, f"/images/{image_id}/file", sized=sized, **{"X-Image-Meta-Store": store})
        return Made(self, image_id)

    def uploading(self, path: str, store: str, sized: bool) -> Callable[[], None]:
        return lambda: self.upload(path, store, sized).remove()

    def receive(self, image_id: str) -> None:
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.glance.port, timeout=TIMEOUT)
        ) as connection:
            connection.request("GET", f"/v2/images/{image_id}/file", headers=ADMIN)
            response = connection.getresponse()
            buffer, got = memoryview(bytearray(MiB)), 0
            while count := response.readinto(buffer):
                got += count
        if got != SIZE:
            raise RuntimeError(f"{got} bytes of {SIZE} came")

    def bring_in(self, path: str) -> Made:
        """Stage and import into two stores."""
        image_id = self.create()
        self.send(path, f"/images/{image_id}/stage")
        stores = {"method": {"name": "glance-direct"}, "stores": ["files", "more"]}
        self.ask("POST", f"/images/{image_id}/import", stores)
        deadline = time.monotonic() + TIMEOUT
        while any(task["status"] != "success" for task in self.ask("GET", f"/images/{image_id}/tasks")["tasks"]):
            if time.monotonic() > deadline:
                raise TimeoutError(image_id)
            time.sleep(0.02)
        return Made(self, image_id)


def compare(
    name: str, ours: Callable[[], Any], theirs: Callable[[], Any], sides: tuple[Side, Side], target: float
) -> None:
    """Both in turn: medians of the ratio on the clock, and of the processor's time of Glance itself."""
    if ONLY not in name:
        return
    seconds: tuple[list[float], list[float]] = ([], [])
    busy: tuple[list[float], list[float]] = ([], [])
    verified = ""
    for turn in range(ROUNDS + 1):
        for index in (0, 1) if turn % 2 else (1, 0):
            begun, used = time.perf_counter(), sides[index].cpu()
            made = (ours, theirs)[index]()
            if turn:
                seconds[index].append(time.perf_counter() - begun)
                busy[index].append(sides[index].cpu() - used)
            elif made is not None:
                made.check()
                verified = DIGESTS
            if made is not None:
                made.remove()
    peer = "glance_store" if sides[0] is not sides[1] else "thrown away"
    cores = [sum(used) / sum(passed) for used, passed in zip(busy, seconds, strict=True)]
    for what, measured, wanted in (("", seconds, target), (", processor", busy, 0.0)):
        rates = [statistics.median(SIZE / MiB / max(each, 0.01) for each in side) for side in measured]
        ratios = tuple(b / max(a, 0.01) for a, b in zip(*measured, strict=True))
        ratio = statistics.median(ratios)
        show(Pair(name + what, *rates, ratio, wanted, peer, "MiB/s", verified, ratios, *cores))


def measure(ours: Side, theirs: Side, path: str) -> None:
    sides = (ours, theirs)
    for name, store, sized, target in (
        ("upload to file", "files", True, 1.3),
        ("upload to file, size unknown", "files", False, 1.3),
        ("upload to S3", "objects", True, 1.0),
    ):
        each = [functools.partial(side.upload, path, store, sized) for side in sides]
        compare(name, each[0], each[1], sides, target)
    upload, hashed, nothing = (functools.partial(ours.upload, path, store) for store in ("files", "hashed", "nowhere"))
    compare("upload to file, of what is only hashed", upload, hashed, (ours, ours), 0.9)
    compare("upload to file, of what Glance reads", upload, nothing, (ours, ours), 0.0)
    known = [side.upload(path, "files") for side in sides]
    reading = [functools.partial(made.side.receive, made.image_id) for made in known]
    compare("download from file", reading[0], reading[1], sides, 1.0)
    for made in known:
        made.remove()
    compare("import into two stores", lambda: ours.bring_in(path), lambda: theirs.bring_in(path), sides, 1.0)
    for what, sized in (("memory of upload to S3", True), ("memory of upload to S3, size unknown", False)):
        if ONLY in what:
            grown = [side.growth(side.uploading(path, "objects", sized)) / MiB for side in sides]
            show(Pair(what, grown[0], grown[1], grown[1] / max(grown[0], 1), 1.0, "glance_store", "MiB"))


@contextlib.contextmanager
def running(directory: Path, port: int, digest: str, on_storelib: bool) -> Iterator[Side]:
    packages = directory / "packages"
    info = packages / "nowhere-1.dist-info"
    info.mkdir(parents=True)
    (packages / "nowhere_driver.py").write_text(_NOWHERE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nowhere\nVersion: 1\n")
    (info / "entry_points.txt").write_text(_ENTRY_POINT)
    s3 = {
        "s3_store_host": f"http://127.0.0.1:{port}",
        "s3_store_access_key": "key",
        "s3_store_secret_key": "secret",
        "s3_store_bucket": "images",
        "s3_store_bucket_url_format": "path",
        "s3_store_region_name": "us-east-1",
    }
    stores: dict[str, tuple[str, dict[str, object]]] = {
        "files": ("file", {"filesystem_store_datadir": directory / "files"}),
        "more": ("file", {"filesystem_store_datadir": directory / "more"}),
        "objects": ("s3", s3),
        "hashed": ("nowhere", {}),
        "nowhere": ("nowhere", {}),
    }
    with Glance(directory, stores, packages=packages) as glance:
        glance.start(on_storelib=on_storelib)
        yield Side(glance, digest)


def main() -> None:
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(dense_image(SIZE))
        port = stack.enter_context(sink(path))
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=workplace())))
        directories = [place / name for name in ("storelib", "glance_store")]
        for directory in directories:
            directory.mkdir()
        hasher = hashlib.sha512()
        for piece in pieces_of_file(path):
            hasher.update(piece)
        digest = hasher.hexdigest()
        ours, theirs = (
            stack.enter_context(running(directory, port, digest, directory.name == "storelib"))
            for directory in directories
        )
        measure(ours, theirs, path)


if __name__ == "__main__":
    main()

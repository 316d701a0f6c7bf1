# SPDX-License-Identifier: Apache-2.0
"""The image API against a real Glance 33, both under gunicorn behind one Keystone with files as their store, and nginx.

python benchmarks/api.py [--json] [--size MiB] [--workers N] [--threads N] [--mariadb]. Glance is installed into an
environment of its own at the first run. Both have as many processes and threads as the options say, one database each
(SQLite, or one MariaDB server), and serve the same clients in turn; clients and servers share the machine's cores.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "tests" / "functional")]

from glance import glance  # noqa: E402
from http_load import Load, run  # noqa: E402
from pairs import (  # noqa: E402
    MiB,
    argument,
    compare_rates,
    dense_image,
    pieces_of,
    received,
    warming_up,
    workplace,
)
from servers.keystone import Keystone  # noqa: E402
from servers.mariadb import MariaDB  # noqa: E402
from servers.nginx import free_ports  # noqa: E402
from servers.openstack import Processes  # noqa: E402

from storelib import open_store  # noqa: E402

SIZE = argument("--size", 512)
WORKERS, THREADS = argument("--workers", 1), argument("--threads", 8)
FEW = 100
#: Clients of small requests, fewer than threads.
CLIENTS = 4
SECONDS = 4.0
#: Slow clients of either kind: how many, bytes a second of each, and bytes that each pair of them may cost.
SLOW, SLOWLY, EACH = 32, 2 * MiB, 32 * MiB
#: MiB a second that a slow store gives.
RATE = 100
OCTETS = {"Content-Type": "application/octet-stream"}

_CONFIG = """
[storelib]
stores = files:file, web:http
default_store = files
[files]
filesystem_store_datadir = {directory}/images
[web]
http_allowed_networks = 127.0.0.0/8
http_allowed_ports =
[api]
auth_strategy = {auth}
show_multiple_locations = {locations}
{cache}
[database]
connection = {connection}
"""

_NGINX = """
daemon off;
worker_processes {workers};
{user}
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 256; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  default_type application/octet-stream;
  client_body_temp_path {directory}/temp; proxy_temp_path {directory}/temp; fastcgi_temp_path {directory}/temp;
  uwsgi_temp_path {directory}/temp; scgi_temp_path {directory}/temp;
  server {{ listen 127.0.0.1:{port}; root {www}; }}
}}
"""


#: Of small requests nothing is read but what says so.
STATUSES = "each response has status 2xx and the length it says"


class Api:
    """An image API, ours or Glance's, and a token for it."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.headers = {"X-Auth-Token": token}

    def create(self, **fields: Any) -> str:
        image = {"disk_format": "raw", "container_format": "bare", **fields}
        request = urllib.request.Request(f"{self.url}/v2/images", json.dumps(image).encode(), self.headers)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as response:
            return str(json.load(response)["id"])

    def locate(self, image_id: str, url: str, **digests: str) -> None:
        """Say that the data is at ``url``, and what its digests are."""
        value = {"url": url, "metadata": {}, **({"validation_data": digests} if digests else {})}
        patch = [{"op": "add", "path": "/locations/-", "value": value}]
        request = urllib.request.Request(
            f"{self.url}/v2/images/{image_id}", json.dumps(patch).encode(), self.headers, method="PATCH"
        )
        request.add_header("Content-Type", "application/openstack-images-v2.1-json-patch")
        urllib.request.urlopen(request).close()

    def delete(self, image_id: str) -> None:
        request = urllib.request.Request(f"{self.url}/v2/images/{image_id}", None, self.headers, method="DELETE")
        urllib.request.urlopen(request).close()

    def fill(self, data: str) -> list[str]:
        """Images as people have them: properties, tags, bytes."""
        ids = []
        for number in range(FEW):
            properties = {"os_distro": "debian", "os_version": "12", "hw_disk_bus": "virtio"}
            ids.append(self.create(name=f"image-{number}", tags=["one", "two"], **properties))
            self.upload(ids[-1], data)
        return ids

    def upload(self, image_id: str, path: str) -> Load:
        headers = {**self.headers, **OCTETS}
        return run(self.url, [f"/v2/images/{image_id}/file"], method="PUT", headers=headers, body=path)

    def compare(self, place: str, size: int) -> None:
        """Download it and compare the bytes, where this is a warm-up: the clients that are measured discard them."""
        if warming_up():
            with urllib.request.urlopen(urllib.request.Request(self.url + place, headers=self.headers)) as response:
                received(iter(lambda: response.read(MiB), b""), size)

    def get(self, paths: list[str], clients: int = 1, seconds: float | None = None) -> Load:
        return run(self.url, paths, headers=self.headers, clients=clients, seconds=seconds)


def main() -> None:
    with contextlib.ExitStack() as stack:
        root = Path(tempfile.mkdtemp(dir=workplace()))
        stack.callback(shutil.rmtree, root)
        directory = {name: root / name for name in ("keystone", "glance", "ours", "nginx", "cache", "slow")}
        for path in directory.values():
            path.mkdir()
        keystone = stack.enter_context(Keystone(directory["keystone"]))
        token = keystone.token("demo", "demo")[0]
        if "--mariadb" in sys.argv:
            server = stack.enter_context(MariaDB())
            connections = [server.new_database(), server.new_database()]
        else:
            connections = [f"sqlite:///{directory[name]}/images.sqlite" for name in ("ours", "glance")]
        url = stack.enter_context(storelib(directory["ours"], keystone, connections[0]))
        ours = Api(url, token)
        theirs = Api(
            stack.enter_context(glance(directory["glance"], keystone, connections[1], WORKERS, THREADS)), token
        )
        path = stack.enter_context(dense_image(SIZE * MiB))
        small_requests(ours, theirs, root)
        uploads(ours, theirs, path)
        web = stack.enter_context(nginx(directory["nginx"], os.path.dirname(path)))
        downloads(ours, theirs, path, web)
        cached_downloads(directory["cache"], path)
        slow_clients(directory["slow"], path, web)


def small_requests(ours: Api, theirs: Api, root: Path) -> None:
    data = root / "small"
    data.write_bytes(os.urandom(1024))
    images = [[f"/v2/images/{image_id}" for image_id in api.fill(str(data))] for api in (ours, theirs)]
    page = [f"/v2/images?limit={FEW}"]
    for name, target, mine, others in (
        ("show", 8.0, images[0], images[1]),
        (f"list of {FEW}", 12.0, page, page),
    ):
        compare_rates(
            f"{name}, {CLIENTS} clients",
            lambda mine=mine: ours.get(mine, CLIENTS, SECONDS).rate,
            lambda others=others: theirs.get(others, CLIENTS, SECONDS).rate,
            target=target,
            peer="Glance 33",
            unit="/s",
            verified=STATUSES,
        )


def uploads(ours: Api, theirs: Api, path: str) -> None:
    def upload(api: Api) -> float:
        image_id = api.create(name="large")
        load = api.upload(image_id, path)
        api.compare(f"/v2/images/{image_id}/file", SIZE * MiB)
        api.delete(image_id)
        return load.sent / MiB / load.seconds

    compare_rates("upload", lambda: upload(ours), lambda: upload(theirs), target=3.0, peer="Glance 33")
    with tempfile.TemporaryDirectory(dir=workplace()) as directory:
        store = open_store("file", filesystem_store_datadir=directory)

        def add() -> float:
            begun = time.perf_counter()
            uri = store.add("large", path).uri
            seconds = time.perf_counter() - begun
            with store.get(uri).data as stream:
                received(pieces_of(stream, bytearray(MiB)), SIZE * MiB)
            store.delete(uri)
            return SIZE / seconds

        compare_rates("upload", lambda: upload(ours), add, target=0.75, peer="the file driver's add")


def downloads(ours: Api, theirs: Api, path: str, web: str) -> None:
    places = {}
    for api in (ours, theirs):
        image_id = api.create(name="large")
        api.upload(image_id, path)
        places[api] = f"/v2/images/{image_id}/file"
    file = f"/{os.path.basename(path)}"
    for clients in (1, 32):
        each = max(1, 8 // clients)

        def download(api: Api, clients: int = clients, each: int = each) -> float:
            api.compare(places[api], SIZE * MiB)
            return mib(api.get([places[api]] * clients * each, clients))

        def fetch(clients: int = clients, each: int = each) -> float:
            Api(web, "").compare(file, SIZE * MiB)
            return mib(run(web, [file] * clients * each, clients=clients))

        name = f"download, {clients} client{'s' * (clients > 1)}"
        compare_rates(name, lambda: download(ours), lambda: download(theirs), target=5.0, peer="Glance 33")
        compare_rates(name, lambda: download(ours), fetch, target=1.0, peer="nginx, the same file", rounds=5)


def cached_downloads(directory: Path, path: str) -> None:
    """The image cache: what its first download costs beside a slow store, and later ones beside a local file."""
    digests = {"checksum": digest("md5", path), "os_hash_algo": "sha512", "os_hash_value": digest("sha512", path)}
    with contextlib.ExitStack() as stack:
        servers, places = [], []
        slow = stack.enter_context(slow_source(path))
        for name, cache in (("with", f"image_cache_dir = {directory}/cache"), ("without", "")):
            (directory / name).mkdir()
            connection = f"sqlite:///{directory}/{name}/images.sqlite"
            url = stack.enter_context(storelib(directory / name, None, connection, cache=cache))
            servers.append(Api(url, ""))
            remote, local = (servers[-1].create(name=each) for each in ("remote", "local"))
            servers[-1].locate(remote, slow, **digests)
            servers[-1].upload(local, path)
            places.append([f"/v2/images/{image_id}/file" for image_id in (remote, local)])
        cached, plain = servers

        def first(api: Api, place: str) -> float:
            if warming_up():
                api.compare(place, SIZE * MiB)
                if api is cached:
                    empty(cached)
            load = api.get([place])
            if api is cached:
                empty(cached)
            return mib(load)

        def again(api: Api, place: str, clients: int, each: int) -> float:
            api.compare(place, SIZE * MiB)
            return mib(api.get([place] * clients * each, clients))

        compare_rates(
            f"download that fills the cache, store of {RATE} MiB/s",
            lambda: first(cached, places[0][0]),
            lambda: first(plain, places[1][0]),
            target=0.9,
            peer="no cache",
            rounds=5,
        )
        fill(cached, places[0][0])
        for clients in (1, 32):
            each = max(1, 8 // clients)
            compare_rates(
                f"download from the cache, {clients} client{'s' * (clients > 1)}",
                lambda clients=clients, each=each: again(cached, places[0][0], clients, each),
                lambda clients=clients, each=each: again(plain, places[1][1], clients, each),
                target=0.95,
                peer="a local file, no cache",
            )


@contextlib.contextmanager
def slow_source(path: str) -> Iterator[str]:
    """The URL of the file at RATE."""
    command = [sys.executable, str(HERE / "slow_source.py"), path, str(RATE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/image"
        finally:
            process.terminate()


def digest(algorithm: str, path: str) -> str:
    found = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while block := file.read(MiB):
            found.update(block)
    return found.hexdigest()


def entries(api: Api) -> list[str]:
    with urllib.request.urlopen(f"{api.url}/v2/cache") as response:
        return [str(each["image_id"]) for each in json.load(response)["cached_images"]]


def fill(api: Api, place: str) -> None:
    api.get([place])
    while not entries(api):
        time.sleep(0.05)


def empty(api: Api) -> None:
    """Once what was downloaded has got there."""
    while not entries(api):
        time.sleep(0.05)
    urllib.request.urlopen(urllib.request.Request(f"{api.url}/v2/cache", method="DELETE")).close()


def mib(load: Load) -> float:
    return load.received / MiB / load.seconds


def slow_clients(directory: Path, path: str, web: str) -> None:
    """How much a server with threads for all of them grows while many slow clients upload and download at once.

    Half of the downloads are of a local file, the others of data that comes from another server.
    """
    small = Path(path).with_name("small")
    with open(path, "rb") as file:
        small.write_bytes(file.read(32 * MiB))
    with storelib(directory, None, f"sqlite:///{directory}/images.sqlite", 2 * SLOW + 8) as url:
        api = Api(url, "")
        local, remote = api.create(name="local"), api.create(name="remote")
        api.upload(local, str(small))
        api.locate(remote, f"{web}/small")
        sources = [f"/v2/images/{image_id}/file" for image_id in (local, remote)] * (SLOW // 2)
        targets = [f"/v2/images/{api.create(name='slow')}/file" for _ in range(SLOW)]
        loads: list[Callable[[], Load]] = [
            lambda: run(url, targets, method="PUT", headers=OCTETS, clients=SLOW, body=str(small), slowly=SLOWLY),
            lambda: run(url, sources, clients=SLOW, slowly=SLOWLY),
        ]
        before = peak = resident(directory)
        threads = [threading.Thread(target=load) for load in loads]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            peak = max(peak, resident(directory))
            time.sleep(0.1)
        for thread in threads:
            thread.join()
    growth, limit = (peak - before) / MiB, SLOW * EACH / MiB
    name = f"growth, {SLOW} slow uploads and {SLOW} slow downloads"
    if "--json" in sys.argv:
        print(json.dumps({"name": name, "growth_mib": growth, "reached": growth < limit}), flush=True)
        return
    verdict = "ok" if growth < limit else "ABOVE"
    print(f"{name:60} {growth:6.0f} MiB   limit {limit:.0f} MiB  {verdict}", flush=True)


def resident(directory: Path) -> int:
    """Bytes of the processes of the server in ``directory``."""
    total = 0
    for pid in (directory / "pids").read_text().split():
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in [pid, *children]:
            line = next(line for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines() if "Pss:" in line)
            total += int(line.split()[1]) * 1024
    return total


@contextlib.contextmanager
def storelib(
    directory: Path, keystone: Keystone | None, connection: str, threads: int = THREADS, cache: str = ""
) -> Iterator[str]:
    """The URL of a ``storelib serve``, without authentication where there is no Keystone."""
    config = directory / "storelib.ini"
    settings = {
        "directory": directory,
        "connection": connection,
        "auth": "keystone" if keystone else "noauth",
        # Documents of images differ between callers where locations are shown.
        "locations": keystone is None,
        "cache": cache,
    }
    config.write_text(_CONFIG.format(**settings) + (keystone.authtoken if keystone else ""))
    command = [sys.executable, "-c", "from storelib.cli.main import main; main()", "--format", "json"]
    command += ["--config", str(config)]
    if not connection.startswith("sqlite"):
        subprocess.run([*command, "db", "sync"], check=True, stdout=subprocess.DEVNULL)
    command += ["serve", "--bind", "127.0.0.1:0", "--workers", str(WORKERS), "--threads", str(threads)]
    with (directory / "serve.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 60)
        said = process.stdout.readline() if ready else ""
        if not said:
            raise RuntimeError((directory / "serve.log").read_text())
        (directory / "pids").write_text(str(process.pid))
        yield json.loads(said)["url"]
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def nginx(directory: Path, www: str) -> Iterator[str]:
    """The URL of an nginx that serves ``www`` by sendfile."""
    (port,) = free_ports(1)
    user = "user root;" if os.geteuid() == 0 else ""
    workers = os.cpu_count()
    (directory / "nginx.conf").write_text(
        _NGINX.format(directory=directory, port=port, www=www, user=user, workers=workers)
    )
    processes = Processes(directory)
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    processes.start("nginx", [program, "-c", directory / "nginx.conf", "-p", directory, "-e", directory / "error.log"])
    try:
        processes.wait_for(f"http://127.0.0.1:{port}/")
        yield f"http://127.0.0.1:{port}"
    finally:
        processes.stop()


if __name__ == "__main__":
    main()

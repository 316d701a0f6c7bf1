# SPDX-License-Identifier: Apache-2.0
"""The image cache of a host under ``storelib serve``: several processes, a slow store, kills, a full disk."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import signal
import threading
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from servers.api import TIMEOUT, Deployment, Server, wait_until
from servers.mounts import tmpfs

MIB = 1024 * 1024
DATA = bytes(range(256)) * 4 * 1024 * 6
EVERYTHING = 1 << 60

API = """
[web]
http_allowed_networks = 127.0.0.0/8
http_allowed_ports =
[api]
show_multiple_locations = true
image_cache_dir = {cache}
image_cache_max_size = {limit}
"""


class Source:
    """A slow store: a web server that counts whole images that are asked for, and holds bytes back from them."""

    def __init__(self) -> None:
        self.data = DATA
        self.reads = 0
        self.changed = threading.Condition()
        self.allowed = EVERYTHING
        source = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                source.send(self)

            def do_HEAD(self) -> None:
                source.send(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/image"

    def send(self, handler: BaseHTTPRequestHandler) -> None:
        data, first, last = self.data, 0, len(self.data) - 1
        asked = handler.headers.get("Range")
        if asked:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
        handler.send_response(206 if asked else 200)
        if asked:
            handler.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        handler.send_header("Content-Length", str(last + 1 - first))
        handler.send_header("Accept-Ranges", "bytes")
        handler.end_headers()
        if handler.command == "HEAD":
            return
        with self.changed:
            self.reads += first == 0 and last == len(data) - 1
        with contextlib.suppress(OSError):
            for position in range(first, last + 1, 64 * 1024):
                with self.changed:
                    self.changed.wait_for(lambda position=position: position < self.allowed, TIMEOUT)
                handler.wfile.write(data[position : min(position + 64 * 1024, last + 1)])

    def allow(self, count: int) -> None:
        with self.changed:
            self.allowed = count
            self.changed.notify_all()

    def close(self) -> None:
        self.allow(EVERYTHING)
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def source() -> Iterator[Source]:
    made = Source()
    yield made
    made.close()


@pytest.fixture
def deployment(tmp_path) -> Iterator[Deployment]:
    made = Deployment(tmp_path)
    configure(made, tmp_path / "cache")
    yield made
    made.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Deployment]:
    """A server that outlives the tests."""
    made = Deployment(tmp_path_factory.mktemp("served"))
    configure(made, made.directory / "cache")
    made.serve("--workers", "2")
    yield made
    made.close()


def configure(deployment: Deployment, cache: Path, limit: int = 4 * len(DATA)) -> None:
    text = deployment.config.read_text().replace("archive:file\n", "archive:file, web:http\n")
    deployment.config.write_text(text + API.format(cache=cache, limit=limit))


def located(server: Server, source: Source) -> str:
    """A new image whose data is at the source, with its digest."""
    image_id = str(server.request("POST", "/v2/images", {"disk_format": "raw", "container_format": "bare"})["id"])
    digests = {"checksum": hashlib.md5(DATA).hexdigest(), "os_hash_algo": "sha512"}
    digests["os_hash_value"] = hashlib.sha512(DATA).hexdigest()
    value = {"url": source.url, "metadata": {}, "validation_data": digests}
    patch = json.dumps([{"op": "add", "path": "/locations/-", "value": value}])
    kind = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
    assert ask(server, "PATCH", f"/v2/images/{image_id}", kind, patch)[0] == 200
    source.reads = 0
    return image_id


def ask(server: Server, method: str, path: str, headers: dict[str, str] | None = None, body: str | None = None):
    """Status, headers and body of one response."""
    connection = http.client.HTTPConnection(server.address, timeout=TIMEOUT)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def cached(server: Server) -> dict[str, int]:
    listed = json.loads(ask(server, "GET", "/v2/cache")[2])
    return {each["image_id"]: each["hits"] for each in listed["cached_images"]}


class Reader:
    """A download that was begun."""

    def __init__(self, server: Server, image_id: str) -> None:
        address = urllib.parse.urlsplit(server.url)
        self._connection = http.client.HTTPConnection(address.netloc, timeout=TIMEOUT)
        self._connection.request("GET", f"/v2/images/{image_id}/file")
        self._response = self._connection.getresponse()

    def read(self, count: int | None = None) -> bytes:
        return self._response.read(count)

    def leave(self) -> None:
        self._response.close()
        self._connection.close()


def unfinished(deployment: Deployment) -> list[str]:
    return [path.name for path in (deployment.directory / "cache" / "incomplete").iterdir()]


def test_readers_of_all_processes_are_served_by_one_read_of_the_store(served, source):
    server = served.servers[0]
    image_id = located(server, source)
    source.allow(MIB)
    with ThreadPoolExecutor(8) as pool:
        reading = [pool.submit(server.download, image_id) for _ in range(8)]
        wait_until(lambda: source.reads)
        source.allow(EVERYTHING)
        assert [each.result() for each in reading] == [DATA] * 8
    assert image_id in cached(server)
    source.data = b"gone"
    for _ in range(6):
        assert server.download(image_id) == DATA
    status, headers, body = ask(server, "GET", f"/v2/images/{image_id}/file", {"Range": "bytes=5-9"})
    assert (status, headers["Content-Range"], body) == (206, f"bytes 5-9/{len(DATA)}", DATA[5:10])
    assert source.reads == 1
    wait_until(lambda: cached(server)[image_id] == 7)
    # No other test of the server comes before.
    page = ask(server, "GET", "/metrics")[2].decode().splitlines()
    counts = {line.split()[0]: float(line.split()[1]) for line in page if line.startswith("storelib_api_cache")}
    assert counts["storelib_api_cache_hits_total"] == 7
    assert counts["storelib_api_cache_misses_total"] == 1
    assert counts["storelib_api_cache_followers_total"] == 7
    assert counts["storelib_api_cache_bytes_sent_total"] == 6 * len(DATA) + 5


def test_what_is_cut_by_a_kill_is_never_served_and_leaves_nothing(deployment, source):
    server = deployment.serve("--workers", "1")
    image_id = located(server, source)
    source.allow(len(DATA) - MIB)
    reader = Reader(server, image_id)
    assert reader.read(MIB) == DATA[:MIB]
    assert len(unfinished(deployment)) == 1
    server.kill()
    reader.leave()
    source.allow(EVERYTHING)
    server = deployment.serve("--workers", "1", "--grace", "0")
    wait_until(lambda: unfinished(deployment) == [])
    assert cached(server) == {}
    assert server.download(image_id) == DATA
    assert image_id in cached(server)
    other = located(server, source)
    source.allow(MIB)
    reader = Reader(server, other)
    assert reader.read(1000) == DATA[:1000]
    assert len(unfinished(deployment)) == 1
    reader.leave()
    server.process.send_signal(signal.SIGTERM)
    # A store that says something now and then, which a server that stops does not wait for.
    wait_until(lambda: source.allow(source.allowed + MIB // 4) or server.process.poll() is not None)
    assert server.process.returncode == 0
    assert unfinished(deployment) == []


def test_a_process_that_is_killed_while_others_read_what_it_fills_costs_them_nothing(deployment, source):
    first, second = deployment.serve("--workers", "1"), deployment.serve("--workers", "1")
    image_id = located(first, source)
    source.allow(len(DATA) - MIB)
    own, other = Reader(first, image_id), Reader(second, image_id)
    assert own.read(MIB) == other.read(MIB) == DATA[:MIB]
    first.kill()
    own.leave()
    source.allow(EVERYTHING)
    assert other.read() == DATA[MIB:]
    other.leave()
    assert second.download(image_id) == DATA
    wait_until(lambda: image_id in cached(second))


def test_wrong_bytes_of_the_store_are_cut_off_and_never_count(served, source):
    deployment, server = served, served.servers[0]
    image_id = located(server, source)
    source.data = DATA[:-1] + b"?"
    with pytest.raises(http.client.IncompleteRead):
        server.download(image_id)
    wait_until(lambda: unfinished(deployment) == [])
    assert image_id not in cached(server)
    source.data = DATA
    assert server.download(image_id) == DATA


def test_a_full_disk_costs_the_cache_and_no_download(tmp_path, source):
    made = Deployment(tmp_path)
    with tmpfs(tmp_path / "cache", 8 * MIB) as place:
        configure(made, place)
        try:
            server = made.serve("--workers", "2")
            image_id = located(server, source)
            source.allow(2 * MIB)
            reader = Reader(server, image_id)
            assert reader.read(MIB) == DATA[:MIB]
            with pytest.raises(OSError, match="No space"):
                (place / "foreign").write_bytes(bytes(8 * MIB))
            source.allow(EVERYTHING)
            assert reader.read() == DATA[MIB:]
            reader.leave()
            wait_until(lambda: unfinished(made) == [])
            # Now it is known before anything is written.
            assert server.download(image_id) == DATA
            assert cached(server) == {}
            (place / "foreign").unlink()
            assert server.download(image_id) == DATA
            wait_until(lambda: image_id in cached(server))
        finally:
            made.close()


def test_queued_images_are_fetched_by_servers_and_by_the_command(served, source):
    deployment, server = served, served.servers[0]
    queued, commanded = located(server, source), located(server, source)
    assert ask(server, "PUT", f"/v2/cache/{queued}")[0] == 202
    wait_until(lambda: queued in cached(server))
    assert deployment.run("cache", "prefetch", commanded).document == {"image": commanded, "outcome": "cached"}
    assert {queued, commanded} <= set(cached(server))
    assert {each["image"] for each in deployment.run("cache", "list").documents} == set(cached(server))
    assert source.reads == 2
    assert server.delete(queued) == 204
    assert queued not in cached(server)


def test_two_hosts_have_caches_of_their_own(tmp_path, source):
    """Two directories stand for two hosts: nothing else tells them apart."""
    hosts, servers = [], []
    try:
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            hosts.append(Deployment(tmp_path / name, f"sqlite:///{tmp_path}/images.sqlite"))
            configure(hosts[-1], tmp_path / name / "cache")
            servers.append(hosts[-1].serve("--workers", "1"))
        image_id = located(servers[0], source)
        assert servers[0].download(image_id) == DATA
        wait_until(lambda: image_id in cached(servers[0]))
        assert cached(servers[1]) == {}
        assert servers[1].download(image_id) == DATA
        wait_until(lambda: image_id in cached(servers[1]))
        assert source.reads == 2
        # By way of one host; the other finds out by itself every ten seconds, or when it is told to look.
        assert servers[0].delete(image_id) == 204
        hosts[1].run("cache", "prune")
        assert list((tmp_path / "other" / "cache" / "entries").iterdir()) == []
    finally:
        for host in hosts:
            host.close()

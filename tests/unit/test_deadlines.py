# SPDX-License-Identifier: Apache-2.0
"""No server keeps a question longer than transfer_timeout, however it goes about it; images may come slowly."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from object_store import ObjectStore
from recording import recording_store
from s3_server import open_at
from scripted_server import ScriptedServer, reply

from storelib.driver import ImageInfo
from storelib.drivers.http import HttpStore
from storelib.exceptions import RemoteServiceUnavailable, StoreError
from storelib.registry import open_store
from storelib.transfer.deadlines import Deadline, LazyEvent, pause, within
from storelib.transfer.retry import RetryPolicy

TIMEOUT = 0.3
#: Far more than it should take, far less than these servers would take.
SOON, FOR_EVER = 10.0, 60.0
OPTIONS = {"transfer_timeout": TIMEOUT, "transfer_retries": 4}


class Hostile:
    """Ways of never coming to an end, until ``stop``."""

    def __init__(self):
        self.stop = threading.Event()

    def drip(self, piece, seconds=0.05):
        end = time.monotonic() + FOR_EVER
        while time.monotonic() < end and not self.stop.wait(seconds):
            yield piece

    def silence(self, request):
        self.stop.wait(FOR_EVER)
        yield b""

    def slow_status(self, request):
        yield from self.drip(b"H")

    def slow_headers(self, request):
        yield b"HTTP/1.1 200 OK\r\nX-Padding: "
        yield from self.drip(b"x")

    def slow_body(self, request):
        yield b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
        yield from self.drip(b" ")

    def slow_chunks(self, request):
        yield b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nTransfer-Encoding: chunked\r\n\r\n"
        yield from self.drip(b"1\r\n \r\n")

    def slow_refusal(self, request):
        yield b"HTTP/1.1 403 Forbidden\r\nContent-Length: 100000\r\n\r\n"
        yield from self.drip(b" ")

    def interim(self, request):
        yield from self.drip(b"HTTP/1.1 102 Processing\r\n\r\n")

    def later(self, request):
        yield reply(503, {"Retry-After": "3600"})

    def busy(self, request):
        self.stop.wait(TIMEOUT / 2)
        yield reply(503)

    def elsewhere(self, request):
        self.stop.wait(TIMEOUT / 2)
        yield reply(307, {"Location": f"http://{request.headers['host']}{request.target}x"})


WAYS = [name for name in vars(Hostile) if name not in ("drip", "__init__") and not name.startswith("__")]


@pytest.fixture
def hostile():
    peer = Hostile()
    yield peer
    peer.stop.set()


def check(hostile, *questions):
    """All are asked at once; each ends in time, whichever way."""

    def ask(question):
        try:
            question()
        except StoreError:
            pass
        return time.monotonic()

    begun = time.monotonic()
    with ThreadPoolExecutor(len(questions)) as pool:
        asked = [pool.submit(ask, question) for question in questions]
        try:
            for each in asked:
                assert each.result(SOON) - begun < SOON
        finally:
            hostile.stop.set()


def questions(store, uri):
    yield lambda: store.get_size(uri)
    yield lambda: store.get(uri).data.close()
    if type(store) is HttpStore:
        return
    yield lambda: store.stat(uri)
    yield lambda: store.delete(uri)
    yield lambda: list(store.list_images())
    yield lambda: store.find_image("x")
    yield lambda: store.gc(0)


@pytest.mark.parametrize("way", WAYS)
def test_s3(hostile, way):
    with ScriptedServer(getattr(hostile, way)) as server:
        store = open_at(server, **OPTIONS)
        check(hostile, *questions(store, f"s3+http://127.0.0.1:{server.port}/images/x"))


@pytest.mark.parametrize("way", WAYS)
def test_http(hostile, way):
    with ScriptedServer(getattr(hostile, way)) as server:
        store = open_store(HttpStore, "web", http_allowed_networks=["127.0.0.0/8"], **OPTIONS)
        check(hostile, *questions(store, f"{server.url}/x"))


@pytest.mark.parametrize("asked", ["/auth/", "/v1/"])
@pytest.mark.parametrize("way", WAYS)
def test_swift(hostile, way, asked):
    remote = ObjectStore()
    with remote.serve():
        uri = remote.open().add("x", b"data").uri
        remote.instead = lambda request: getattr(hostile, way)(request) if request.target.startswith(asked) else None
        check(hostile, *questions(remote.open(**OPTIONS), uri))


def test_beginning_an_add(hostile):
    remote = ObjectStore()
    with remote.serve():
        remote.instead = lambda request: hostile.slow_headers(request) if request.target.startswith("/v1/") else None
        check(hostile, lambda: remote.open(**OPTIONS).add("x", b"data"))


def test_a_server_that_takes_no_connection_is_not_waited_for_again_and_again(hostile):
    policy, begun = RetryPolicy(retries=4, timeout=TIMEOUT), time.monotonic()
    waits = []

    def connect():
        waits.append(within(60.0))
        time.sleep(waits[-1])
        raise RemoteServiceUnavailable("no answer")

    with pytest.raises(RemoteServiceUnavailable):
        policy.ask(connect, lambda error, subject: None, "x")
    assert sum(waits) <= TIMEOUT
    assert time.monotonic() - begun < SOON


def test_the_first_attempt_counts():
    calls = []

    def slow():
        calls.append(time.sleep(TIMEOUT))
        raise RemoteServiceUnavailable("busy")

    with pytest.raises(RemoteServiceUnavailable):
        RetryPolicy(retries=4, timeout=TIMEOUT).call(slow, lambda error, subject: None, "x")
    assert len(calls) == 1


@pytest.mark.parametrize("encoding", ["Content-Length: 60\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"])
def test_an_image_may_come_byte_by_byte(hostile, encoding):
    data = bytes(range(60))

    def response(request):
        if request.method == "HEAD":
            yield reply(200, {"Content-Length": "60"})
            return
        yield f"HTTP/1.1 200 OK\r\n{encoding}".encode()
        for byte in data:
            time.sleep(1 / 30)
            yield bytes([byte]) if "Length" in encoding else b"1\r\n%c\r\n" % byte
        if "Length" not in encoding:
            yield b"0\r\n\r\n"

    with ScriptedServer(response) as server:
        # Of the two seconds that it takes.
        store = open_store(HttpStore, "web", http_allowed_networks=["127.0.0.0/8"], transfer_timeout=1.0)
        with store.get(f"{server.url}/x").data as stream:
            view = bytearray(60)
            filled = 0
            while filled < 60:
                filled += stream.readinto(memoryview(view)[filled:])
            assert view == data


def test_each_image_of_a_list_has_a_deadline_of_its_own():
    store = recording_store(timeout=TIMEOUT)
    left = []

    def images():
        for _ in range(3):
            left.append(within(None))
            time.sleep(TIMEOUT / 2)
            yield ImageInfo("memory://recording/x", 1)

    store.images = images
    assert len(list(store.list_images())) == 3
    assert min(left) > TIMEOUT * 0.3
    assert within(None) is None


def test_the_early_end_of_a_list_is_the_drivers_too():
    store = recording_store(timeout=TIMEOUT)
    ended = []

    def images():
        try:
            yield ImageInfo("memory://recording/x", 1)
            yield ImageInfo("memory://recording/y", 1)
        finally:
            ended.append(within(None))
            raise OSError("native")

    store.images = images
    store.map_error = lambda error, subject: StoreError(f"mapped: {subject}") if isinstance(error, OSError) else None
    listing = store.list_images()
    assert next(listing).uri == "memory://recording/x"
    with pytest.raises(StoreError, match=f"mapped: store {store.name}: listing images"):
        listing.close()
    assert ended[0] <= TIMEOUT


def test_progress_of_other_threads_counts():
    store = recording_store(timeout=TIMEOUT)

    def remove(location, context, deletion):
        store.for_each(lambda item: time.sleep(TIMEOUT / 2), range(3), "segments", concurrency=1)
        assert within(None) > 0

    store.remove = remove
    store.delete("memory://recording/x")


def test_a_deadline_ends_with_what_it_was_for():
    with Deadline(1), Deadline(60):
        assert within(30) <= 1
    assert within(30) == 30


class TestLazyEvent:
    """Does what ``threading.Event`` does."""

    def test_all_that_wait_go_on_once_it_is_set(self):
        event = LazyEvent()
        with ThreadPoolExecutor(4) as pool:
            waits = [pool.submit(event.wait, FOR_EVER) for _ in range(4)]
            assert not any(wait.done() for wait in waits)
            event.set()
            assert [wait.result(SOON) for wait in waits] == [True] * 4

    def test_what_is_set_is_not_waited_for(self):
        event = LazyEvent()
        event.set()
        started = time.monotonic()
        assert event.is_set()
        assert event.wait(FOR_EVER)
        pause(FOR_EVER, event)
        assert time.monotonic() - started < SOON

    def test_wait_ends_in_time_without_it(self):
        event = LazyEvent()
        assert not event.wait(0.01)
        assert not event.is_set()

    def test_none_waits_on_that_came_as_it_was_set(self):
        """Many times, as a wait that misses it does so only between two steps of one of them."""
        with ThreadPoolExecutor(1) as pool:
            for _ in range(2000):
                event = LazyEvent()
                wait = pool.submit(event.wait, SOON)
                event.set()
                assert wait.result()

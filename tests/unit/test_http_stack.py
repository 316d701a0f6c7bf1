# SPDX-License-Identifier: Apache-2.0
"""What all HTTP clients share: open responses, what headers hold, and what statuses and failures mean."""

import contextlib
import hashlib
import io
import itertools
import os
import random
import socket
import threading
import time

import pytest
from botocore import exceptions as botocore
from scripted_server import ScriptedServer, reply

from storelib.drivers.http import HttpStore
from storelib.exceptions import Forbidden, NotFound, RemoteServiceUnavailable
from storelib.registry import open_store
from storelib.transfer import deadlines
from storelib.transfer.contract import KiB, MiB
from storelib.transfer.deadlines import Deadline, while_wanted
from storelib.transfer.http import reading
from storelib.transfer.http.errors import caused_by, error_of_failure, error_of_status
from storelib.transfer.http.headers import ContentRange, content_range, posix_time, range_header, whole_number
from storelib.transfer.http.responses import WholeResponse


@pytest.fixture
def web():
    return open_store(HttpStore, "web", http_allowed_networks=["127.0.0.0/8"], transfer_retries=0)


# -- Open responses ---------------------------------------------------------------------------------------------------


def test_connection_is_kept_when_little_of_a_body_is_left(web):
    with ScriptedServer(lambda request: reply(200, {}, bytes(1000))) as server:
        for _ in range(3):
            with web.get(f"{server.url}/image").data as stream:
                stream.read(1)
        assert len(server.requests) == 3
        assert server.connections == 1


def test_connection_is_closed_when_much_of_a_body_is_left(web):
    with ScriptedServer(lambda request: reply(200, {}, bytes(1_000_000))) as server:
        for _ in range(2):
            with web.get(f"{server.url}/image").data as stream:
                stream.read(1)
        assert server.connections == 2


@pytest.mark.parametrize("does", ["closes", "reads"])
def test_nothing_of_a_body_is_lost_to_a_forked_child(web, does):
    data, forked = random.Random(1).randbytes(1_000_000), threading.Event()

    def answer(request):
        asked = request.headers.get("range")
        if asked is not None:
            first = int(asked.removeprefix("bytes=").partition("-")[0])
            where = f"bytes {first}-{len(data) - 1}/{len(data)}"
            return reply(206, {"ETag": '"1"', "Content-Range": where}, data[first:])
        return sent(reply(200, {"ETag": '"1"'}, data))

    def sent(whole):
        # So much of it that the child finds some more in the connection than has been read.
        yield whole[:-40_000]
        forked.wait(30)
        yield whole[-40_000:]

    with ScriptedServer(answer) as server, web.get(f"{server.url}/image").data as stream:
        found = b"".join(stream.read(5000) for _ in range(188))
        child = os.fork()
        if not child:
            status = 1
            try:
                if does == "closes":
                    stream.close()
                    status = 0
                else:
                    status = 0 if found + stream.read() == data else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        forked.set()
        found += stream.read()
        assert hashlib.sha256(found).digest() == hashlib.sha256(data).digest()


def test_rest_of_a_body_is_not_waited_for_long(web, monkeypatch):
    monkeypatch.setattr(reading, "_DRAINED_IN", 0.05)
    closed = threading.Event()

    def trickle(request):
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n"
        yield from itertools.takewhile(lambda byte: not closed.wait(0.01), itertools.repeat(b"x"))

    with ScriptedServer(trickle) as server:
        with web.get(f"{server.url}/image").data as stream:
            stream.read(1)
        closed.set()


class Records(io.BytesIO):
    """A socket whose bytes come 16 KiB at a time, as those of TLS do."""

    def makefile(self, mode):
        return io.BufferedReader(self)

    def gettimeout(self):
        return 30.0

    def readinto(self, buffer):
        return super().readinto(memoryview(buffer)[: 16 * KiB])

    recv_into = readinto


@pytest.mark.parametrize("wanted", [False, True], ids=["", "while wanted"])
def test_deadline_of_an_image_is_looked_at_for_each_block_not_for_each_record_of_tls(monkeypatch, wanted):
    body = random.Random(1).randbytes(MiB)
    looks = []
    monkeypatch.setattr(deadlines, "within", lambda seconds: looks.append(seconds) or seconds)
    monkeypatch.setattr(deadlines, "await_bytes", lambda sock, seconds: None)
    response = WholeResponse(Records(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body))
    response.begin()
    looks.clear()
    buffer = bytearray(MiB)
    with Deadline(60, stream=True), while_wanted(int) if wanted else contextlib.nullcontext():
        assert response.readinto(buffer) == MiB
    assert buffer == body
    assert (len(looks) <= 2) is not wanted


@pytest.mark.parametrize("rest", [1, 4000, 8191, 8192, 8193, 20_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_nothing_is_waited_for_after_the_end_of_a_body(rest, chunked):
    """What comes after the headers is read through a buffer, which is larger than what is left; the line stays open."""
    body = random.Random(1).randbytes(1000 + rest)
    length = b"Transfer-Encoding: chunked\r\n\r\n%x" if chunked else b"Content-Length: %d\r\n"
    head = b"HTTP/1.1 200 OK\r\n" + length % len(body) + b"\r\n"
    here, there = socket.socketpair()
    with here, there:
        here.settimeout(0.3)
        there.sendall(head + body[:1000])
        response = WholeResponse(here)
        response.begin()
        buffer = bytearray(len(body))
        view = memoryview(buffer)
        assert response.readinto(view[:1000]) == 1000
        there.sendall(body[1000:] + (b"\r\n0\r\n\r\n" if chunked else b""))
        with Deadline(60, stream=True):
            assert response.readinto(view[1000:]) == rest
        assert buffer == body


def test_body_that_is_cut_gives_what_came_of_it():
    response = WholeResponse(Records(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(50_000)))
    response.begin()
    assert [response.readinto(bytearray(100_000)) for _ in range(2)] == [50_000, 0]


def test_part_of_a_body_is_not_waited_for_until_it_is_whole():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(20_000))
        response = WholeResponse(ours)
        response.begin()
        ours.settimeout(10)
        assert response.read1(100_000)
        response.close()


# -- Headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("bytes 5-9/10", ContentRange(5, 10, 10)),
        ("Bytes 5-9/*", ContentRange(5, 10, None)),
        ("bytes */10", ContentRange(None, None, 10)),
        ("bytes 5-4/10", ContentRange()),
        ("bytes 5-10/10", ContentRange()),
        ("bytes 5-٩/10", ContentRange()),
        ("bytes " + "9" * 20 + "-9/10", ContentRange()),
        ("lines 5-9/10", ContentRange()),
        ("", ContentRange()),
        (None, ContentRange()),
    ],
)
def test_range_of_a_response(text, found):
    assert content_range(text) == found


@pytest.mark.parametrize(
    ("offset", "length", "wanted"),
    [(0, None, {}), (0, 5, "bytes=0-4"), (7, None, "bytes=7-"), (7, 5, "bytes=7-11"), (7, 0, "bytes=7-7")],
)
def test_range_of_a_request(offset, length, wanted):
    assert range_header(offset, length) == (wanted and {"Range": wanted})


@pytest.mark.parametrize(
    ("text", "number"),
    [("10", 10), (" 10 ", 10), ("-1", None), ("1_0", None), ("٣", None), ("9" * 20, None), (None, None)],
)
def test_number_in_a_header(text, number):
    assert whole_number(text) == number


# -- Statuses and failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [501, 505, 400, 418, 304])
def test_what_a_server_does_not_know_is_not_asked_again(status):
    found = error_of_status(status, {"Retry-After": "7"}, "image")
    assert type(found) is RemoteServiceUnavailable
    assert (found.transient, found.retry_after) == (False, None)


@pytest.mark.parametrize(("status", "kind"), [(401, Forbidden), (403, Forbidden), (451, Forbidden), (410, NotFound)])
def test_status_that_means_the_same_everywhere(status, kind):
    assert type(error_of_status(status, {}, "image")) is kind


def _with_cause(error, cause):
    error.__cause__ = cause
    return error


def _with_reason(error, reason):
    error.reason = reason
    return error


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        OSError("x", ConnectionResetError()),
        _with_cause(OSError("x"), ConnectionResetError()),
        _with_reason(OSError("x"), ConnectionResetError()),
        botocore.HTTPClientError(error=OSError("x", ConnectionResetError())),
    ],
)
def test_cause_is_found_however_a_library_wraps_it(error):
    assert caused_by(error, ConnectionResetError)
    assert "cut" in str(error_of_failure(error, "image", "option"))


@pytest.mark.parametrize(("status", "transient"), [(407, False), (403, False), (502, True), (429, True)])
@pytest.mark.parametrize("driver", ["http", "s3"])
def test_proxy_that_refuses_is_told_with_its_status_and_none_of_its_words(driver, status, transient):
    def response(request):
        return f"HTTP/1.1 {status} Secret Words\r\nContent-Length: 5\r\n\r\nwords".encode()

    with ScriptedServer(response) as proxy:
        options = {
            "http": {"http_proxy_information": {"https": proxy.url}},
            "s3": {
                "s3_store_host": "https://s3.example.org",
                "s3_store_bucket": "images",
                "s3_store_access_key": "access",
                "s3_store_secret_key": "secret",
                "s3_store_proxy": proxy.url,
            },
        }
        store = open_store(driver, transfer_retries=0, **options[driver])
        uri = {"http": "https://s3.example.org/images/id", "s3": "s3+https://s3.example.org/images/id"}[driver]
        with pytest.raises(RemoteServiceUnavailable, match=f"the proxy answered {status}$") as raised:
            store.get_size(uri)
        assert raised.value.transient is transient


def test_errors_that_wrap_each_other_come_to_an_end():
    one, other = OSError("x"), OSError("y")
    one.__cause__, other.__cause__ = other, one
    assert not caused_by(one, ConnectionResetError)


@pytest.mark.parametrize("zone", ["UTC", "IST-5:30", "EST5"])
@pytest.mark.parametrize(
    "date", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
def test_a_date_is_the_same_moment_in_every_time_zone(monkeypatch, zone, date):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert posix_time(date) == 784_111_777
    finally:
        monkeypatch.undo()
        time.tzset()

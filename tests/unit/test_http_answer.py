# SPDX-License-Identifier: Apache-2.0
"""What the http driver makes of headers, statuses and native errors."""

import email.utils
import http.client
import socket
import ssl
import time

import pytest
import urllib3

from storelib.drivers.http.errors import error_of_exception, error_of_status
from storelib.drivers.http.location import HttpLocation
from storelib.drivers.http.session import ImageResponse, Version
from storelib.exceptions import BadStoreUri, Forbidden, NotFound, RemoteServiceUnavailable

HERE = HttpLocation.parse("http://host/image")
OLD = "Mon, 01 Jan 2024 00:00:00 GMT"
NEXT_DAY = "Tue, 02 Jan 2024 00:00:00 GMT"


def answer(status, asked=None, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ImageResponse(urllib3.HTTPResponse(status=status, headers=named), HERE, asked)


def version(etag=None, modified=None, date=NEXT_DAY, size=10):
    headers = {"ETag": etag, "Last-Modified": modified, "Date": date}
    return Version.of({name: value for name, value in headers.items() if value}, size)


@pytest.mark.parametrize(
    ("first", "later", "same"),
    [
        (version('"a"'), version('"a"'), True),
        (version('"a"'), version('"a"', OLD), True),
        (version('"a"'), version('"b"'), False),
        (version('"a"'), version('W/"a"'), False),
        (version('"a"'), version(), False),
        (version('"a"', OLD), version(None, OLD), True),
        (version('"a"', size=10), version('"a"', size=11), False),
        (version('"a"', size=None), version('"a"', size=11), True),
        (version('W/"a"'), version('W/"a"'), True),
        (version('W/"a"', OLD), version('W/"a"', NEXT_DAY), False),
        (version(None, OLD), version(None, OLD), True),
        (version(None, OLD), version(None, NEXT_DAY), False),
        (version(None, OLD, date=OLD), version(None, OLD), False),
        (version(None, OLD, date=None), version(None, OLD), False),
        (version(None, "yesterday"), version(None, "yesterday"), False),
        (version(), version(), False),
    ],
)
def test_only_equal_validators_mean_the_same_bytes(first, later, same):
    assert first.same_as(later) is same


@pytest.mark.parametrize(
    ("first", "if_range"),
    [
        (version('"a"', OLD), '"a"'),
        (version('W/"a"', OLD), None),
        (version(None, OLD), OLD),
        (version(None, OLD, date=OLD), None),
        (version(), None),
    ],
)
def test_if_range_holds_strong_validators_only(first, if_range):
    assert first.if_range == if_range


@pytest.mark.parametrize(
    ("headers", "size"),
    [
        ({"Content_Length": "10"}, 10),
        ({"Content_Length": "10, 10"}, 10),
        ({"Content_Length": "0"}, 0),
        ({}, None),
        ({"Content_Length": "10", "Transfer_Encoding": "chunked"}, None),
    ],
)
def test_whole_image_tells_its_size(headers, size):
    assert answer(200, **headers).size == size


def test_range_tells_which_bytes_it_holds():
    found = answer(206, "bytes=5-", Content_Range="bytes 5-9/10")
    assert (found.start, found.stop, found.size) == (5, 10, 10)


def test_range_of_an_image_of_unknown_size_is_read():
    found = answer(206, "bytes=5-9", Content_Range="bytes 5-9/*")
    assert (found.start, found.stop, found.size) == (5, 10, None)


def test_refused_range_tells_the_size():
    assert answer(416, "bytes=50-", Content_Range="bytes */10").size == 10


@pytest.mark.parametrize(
    ("status", "asked", "headers"),
    [
        (200, None, {"Content_Length": "10, 010"}),
        (200, None, {"Content_Length": "-1"}),
        (200, None, {"Content_Length": "1_0"}),
        (200, None, {"Content_Length": "ten"}),
        (200, None, {"Content_Encoding": "gzip"}),
        (200, None, {"Transfer_Encoding": "gzip, chunked"}),
        (206, None, {"Content_Range": "bytes 0-9/10"}),
        (206, "bytes=5-", {}),
        (206, "bytes=5-", {"Content_Range": "bytes */10"}),
        (206, "bytes=5-", {"Content_Range": "bytes 0-9/10"}),
        (206, "bytes=5-6", {"Content_Range": "bytes 5-9/10"}),
        (206, "bytes=5-", {"Content_Range": "bytes 5-10/10"}),
        (206, "bytes=5-", {"Content_Range": "bytes 5-4/10"}),
        (206, "bytes=5-", {"Content_Range": "lines 5-9/10"}),
        (204, None, {}),
        (300, None, {}),
        (304, None, {}),
        (400, None, {}),
        (416, None, {}),
    ],
)
def test_answer_that_makes_no_sense_is_a_lasting_error(status, asked, headers):
    with pytest.raises(RemoteServiceUnavailable) as caught:
        answer(status, asked, **headers)
    assert not caught.value.transient


@pytest.mark.parametrize(
    ("status", "kind", "transient"),
    [
        (404, NotFound, False),
        (410, NotFound, False),
        (401, Forbidden, False),
        (403, Forbidden, False),
        (408, RemoteServiceUnavailable, True),
        (429, RemoteServiceUnavailable, True),
        (500, RemoteServiceUnavailable, True),
        (501, RemoteServiceUnavailable, False),
        (502, RemoteServiceUnavailable, True),
        (503, RemoteServiceUnavailable, True),
        (504, RemoteServiceUnavailable, True),
        (418, RemoteServiceUnavailable, False),
    ],
)
def test_status_has_its_error(status, kind, transient):
    error = error_of_status(status, {}, "image")
    assert (type(error), error.transient) == (kind, transient)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0", 0.0), (OLD, 0.0), ("-5", None), ("soon", None), ("", None), ("9" * 400, None), (None, None)],
)
def test_retry_after_is_read_as_seconds(value, seconds):
    headers = {} if value is None else {"Retry-After": value}
    assert error_of_status(503, headers, "image").retry_after == seconds


def test_retry_after_is_read_as_a_date():
    headers = {"Retry-After": email.utils.formatdate(time.time() + 100, usegmt=True)}
    assert error_of_status(503, headers, "image").retry_after == pytest.approx(100, abs=5)


NAMELESS = socket.gaierror(socket.EAI_NONAME, "unknown")
BUSY_DNS = socket.gaierror(socket.EAI_AGAIN, "later")
POOL = urllib3.HTTPConnectionPool("host")


@pytest.mark.parametrize(
    ("error", "kind", "transient"),
    [
        (ConnectionResetError(104, "reset"), RemoteServiceUnavailable, True),
        (ConnectionRefusedError(111, "refused"), RemoteServiceUnavailable, True),
        (TimeoutError("late"), RemoteServiceUnavailable, True),
        (OSError(113, "no route"), RemoteServiceUnavailable, True),
        (ssl.SSLError("bad record"), RemoteServiceUnavailable, True),
        (http.client.IncompleteRead(b"", 5), RemoteServiceUnavailable, True),
        (http.client.RemoteDisconnected("bye"), RemoteServiceUnavailable, True),
        (http.client.BadStatusLine("x"), RemoteServiceUnavailable, False),
        (http.client.LineTooLong("header"), RemoteServiceUnavailable, False),
        (urllib3.exceptions.SSLError(ssl.SSLCertVerificationError("no")), RemoteServiceUnavailable, False),
        (urllib3.exceptions.ProtocolError("x", http.client.BadStatusLine("x")), RemoteServiceUnavailable, False),
        (urllib3.exceptions.ProtocolError("x", ConnectionResetError()), RemoteServiceUnavailable, True),
        (urllib3.exceptions.ReadTimeoutError(POOL, "/", "late"), RemoteServiceUnavailable, True),
        (urllib3.exceptions.NameResolutionError("host", POOL, BUSY_DNS), RemoteServiceUnavailable, True),
        (urllib3.exceptions.ProxyError("x", OSError("tunnel")), RemoteServiceUnavailable, True),
        (urllib3.exceptions.InvalidHeader("two lengths"), RemoteServiceUnavailable, False),
        (urllib3.exceptions.LocationParseError("x"), BadStoreUri, False),
        (NAMELESS, RemoteServiceUnavailable, False),
        (BUSY_DNS, RemoteServiceUnavailable, True),
    ],
)
def test_native_error_has_its_error(error, kind, transient):
    found = error_of_exception(error, "image")
    assert (type(found), found.transient) == (kind, transient)


def test_error_that_is_not_of_the_network_is_not_swallowed():
    assert error_of_exception(KeyError("a bug"), "image") is None


def test_words_of_a_server_are_not_repeated():
    error = http.client.BadStatusLine("<script>secret</script>")
    assert "secret" not in str(error_of_exception(error, "image"))

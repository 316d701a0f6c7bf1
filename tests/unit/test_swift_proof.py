# SPDX-License-Identifier: Apache-2.0
"""What is not Swift's answer is never a success of the swift driver, never a Duplicate, and never removes anything."""

import gzip
import hashlib
import json

import pytest
from object_store import MARK, ObjectStore
from scripted_server import reply

from storelib.drivers.swift import errors, garbage
from storelib.drivers.swift.errors import TOKEN_HEADER
from storelib.drivers.swift.writer import SwiftWriter
from storelib.exceptions import (
    BadStoreConfiguration,
    Duplicate,
    NotFound,
    RemoteServiceUnavailable,
    StoreError,
)

KiB = 1024
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"
HTML = {"Content-Type": "text/html; charset=utf-8"}
# What stands between a client and its server, and what it answers to everything.
STRANGERS = {
    "page": lambda request: page(200, request),
    "created": lambda request: page(201, request),
    "accepted": lambda request: page(202, request),
    "page with an ETag": lambda request: page(200, request, ETag='"5f3e-61a2b"'),
    "no content": lambda request: reply(204),
    "reset content": lambda request: reply(205),
    "partial": lambda request: page(206, request, Content_Range="bytes 0-9/10"),
    "nothing": lambda request: reply(200),
    "transformed": lambda request: page(203, request),
    "JSON": lambda request: page(200, request, b'{"error": "denied"}', Content_Type="application/json"),
    "no list": lambda request: page(200, request, b"null", Content_Type="application/json"),
    "login nowhere": lambda request: reply(302, {"Location": "http://[portal"}),
    "login": lambda request: reply(302, {"Location": "http://portal.example.org/login"}),
}


def page(status, request, body=PAGE, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return reply(status, HTML | {"Content-Length": str(len(body))} | named, b"" if request.method == "HEAD" else body)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(SwiftWriter, "part_size", lambda self, number, size: 4 * KiB)


@pytest.fixture
def swift():
    remote = ObjectStore()
    with remote.serve() as server:
        remote.server = server
        yield remote


def between(swift, stranger, method, depth, query=""):
    """From now on ``stranger`` returns requests of that kind."""

    def instead(request):
        path, _, asked = request.target.partition("?")
        here = path.startswith("/v1/") and path.count("/") - 2 == depth
        return STRANGERS[stranger](request) if here and request.method == method and query in asked else None

    swift.instead = instead


def read(store, uri):
    with store.get(uri).data as stream:
        return stream.read()


def uri_of(store, image_id):
    return store.service.location_of(
        store.service.own_account(), store.service.layout.container_for(image_id), image_id
    ).uri


@pytest.mark.parametrize("own", [True, False], ids=["own containers", "one container"])
@pytest.mark.parametrize("size", [0, 10, 20 * KiB])
def test_object_store_of_these_tests_is_one(swift, own, size):
    store = swift.open(swift_store_container_per_image=own)
    stored = store.add("id", bytes(size))
    assert read(store, stored.uri) == bytes(size)
    assert [info.size for info in store.list_images()] == [size]
    with pytest.raises(Duplicate):
        store.add("id", b"other")
    store.delete(stored.uri)
    assert not [name for _, name in swift.kept if name]
    with pytest.raises(NotFound):
        store.get(stored.uri)


@pytest.mark.parametrize("own", [True, False], ids=["own containers", "one container"])
@pytest.mark.parametrize("size", [0, 10, 20 * KiB])
@pytest.mark.parametrize(
    ("method", "depth"), [("HEAD", 2), ("PUT", 2), ("PUT", 1), ("POST", 1), ("HEAD", 1)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("stranger", STRANGERS)
def test_add_is_no_success_and_no_duplicate(swift, stranger, method, depth, size, own):
    store = swift.open(swift_store_container_per_image=own)
    between(swift, stranger, method, depth)
    try:
        stored = store.add("id", bytes(size))
    except Duplicate:
        pytest.fail("there is no such image")
    except StoreError:
        return
    finally:
        swift.instead = lambda request: None
    # A request of that kind was not needed, or another one proved what it had left open.
    assert read(store, stored.uri) == bytes(size)


@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_stood_between_may_be_gone_the_next_time(swift, stranger):
    store = swift.open(transfer_retries=1)
    store.add("before", b"token and features are known after this")
    wrong = [STRANGERS[stranger]]
    swift.instead = lambda request: wrong.pop()(request) if wrong and request.method == "PUT" else None
    assert read(store, store.add("id", b"data").uri) == b"data"


@pytest.mark.parametrize("where", ["/auth/v1.0", "/info"])
@pytest.mark.parametrize(
    "wrong",
    [
        reply(302, {"Location": "http://[portal"}),
        reply(200, MARK, b"[" * 100_000),
        reply(200, MARK, b"9" * 10_000),
        reply(200, MARK, b"\xff"),
    ],
    ids=["nowhere", "deep", "long", "no text"],
)
def test_before_all_else_only_errors_of_the_store_are_raised(swift, where, wrong):
    store = swift.open()
    swift.instead = lambda request: wrong if request.target == where else None
    try:
        stored = store.add("id", b"data")
    except StoreError:
        assert not swift.names("glance")
        return
    assert where == "/info"
    assert read(store, stored.uri) == b"data"


@pytest.mark.parametrize("call", ["get", "get_size", "stat"])
@pytest.mark.parametrize("stranger", STRANGERS)
def test_nothing_else_is_an_image(swift, stranger, call):
    store = swift.open()
    uri = store.add("id", b"data").uri
    between(swift, stranger, "GET" if call == "get" else "HEAD", 2)
    with pytest.raises(RemoteServiceUnavailable):
        getattr(store, call)(uri)


@pytest.mark.parametrize("own", [True, False], ids=["own containers", "one container"])
@pytest.mark.parametrize("stranger", STRANGERS)
def test_nothing_else_deletes_an_image(swift, stranger, own):
    store = swift.open(swift_store_container_per_image=own)
    uri = store.add("id", b"data").uri
    between(swift, stranger, "DELETE", 2)
    with pytest.raises(RemoteServiceUnavailable):
        store.delete(uri)
    assert read(store, uri) == b"data"


@pytest.mark.parametrize("stranger", STRANGERS)
def test_nothing_else_is_a_listing(swift, stranger):
    store = swift.open()
    store.add("id", b"data")
    between(swift, stranger, "GET", 1)
    for call in (lambda: list(store.list_images()), lambda: store.gc(0)):
        with pytest.raises(RemoteServiceUnavailable):
            call()


ENTRY = {"name": "id", "bytes": 4, "hash": "h", "last_modified": "2026-11-20T17:11:38.123", "content_type": "x"}


@pytest.mark.parametrize(
    "wrong",
    [
        "text",
        {"a": 1},
        [1],
        [{}],
        [{"name": "id", "hash": "h"}],
        [{"name": "id", "bytes": 4}],
        [{"bytes": 4, "hash": "h"}],
        [ENTRY | {"name": None}],
        [ENTRY | {"name": ""}],
        [ENTRY | {"bytes": "4"}],
        [ENTRY | {"bytes": -4}],
        [ENTRY | {"bytes": True}],
        [ENTRY | {"hash": 7}],
        [ENTRY | {"last_modified": 7}],
        [ENTRY | {"content_type": None}],
        [{"subdir": 7}],
    ],
    ids=repr,
)
def test_listing_of_other_things_is_an_error(swift, wrong):
    store = swift.open()
    store.add("id", b"data")
    swift.instead = lambda request: (
        reply(200, MARK, json.dumps(wrong).encode()) if request.method == "GET" and "format" in request.target else None
    )
    with pytest.raises(RemoteServiceUnavailable):
        list(store.list_images())


def test_listing_with_folders_that_were_not_asked_for_is_an_error(swift):
    store = swift.open()
    uri = store.add("id", bytes(20 * KiB)).uri
    folders = reply(200, MARK, b'[{"subdir": "id/"}]')
    swift.instead = lambda request: (
        folders
        if request.method == "GET" and "format" in request.target and "delimiter" not in request.target
        else None
    )
    with pytest.raises(RemoteServiceUnavailable, match="no listing"):
        store.delete(uri)


def test_server_that_sends_the_same_page_again_is_not_asked_for_ever(swift):
    store = swift.open()
    store.add("id", b"data")
    again = reply(200, MARK, json.dumps([ENTRY]).encode())
    swift.instead = lambda request: again if request.method == "GET" and "format" in request.target else None
    with pytest.raises(RemoteServiceUnavailable, match="again"):
        list(store.list_images())


def test_what_does_not_tell_its_age_is_not_old(swift):
    store = swift.open()
    store.add("id", b"data")
    swift.kept["glance", f"id/{'0' * 16}/00000000"] = {}, b"of somebody else"
    assert store.gc(0) == []


@pytest.mark.parametrize("stranger", ["missing", "nowhere"])
def test_garbage_is_not_what_only_a_stranger_does_not_find(swift, stranger):
    """A page for missing pages hides the manifest; its segments are not removed for that."""
    STRANGERS.setdefault("missing", lambda request: page(404, request))
    STRANGERS.setdefault("nowhere", lambda request: reply(404))
    store = swift.open()
    stored = store.add("id", bytes(20 * KiB))
    other = swift.open()
    between(swift, stranger, "HEAD", 2)
    dead = garbage.Dead("glance", "id/", "glance", swift.kept["glance", "id"][0][TOKEN_HEADER.lower()])
    with pytest.raises(RemoteServiceUnavailable):
        garbage.discard(other.service, other.service.own_account(), dead, "id")
    swift.instead = lambda request: None
    assert read(store, stored.uri) == bytes(20 * KiB)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": "bytes 5-9/10"},
        {"Content-Range": "bytes 0-9/5"},
        {"Content-Range": "bytes 9-0/10"},
        {"Content-Range": "bytes */10"},
        {"Content-Range": "lines 0-3/10"},
        {},
    ],
    ids=repr,
)
def test_other_part_than_was_asked_for_is_an_error(swift, headers):
    store = swift.open()
    uri = store.add("id", b"0123456789").uri
    swift.instead = lambda request: (
        reply(206, MARK | headers | {"ETag": "0" * 32}, b"56789") if request.method == "GET" else None
    )
    for span in ((2, 5), (0, None)):
        with pytest.raises(RemoteServiceUnavailable):
            store.get(uri, *span)


@pytest.mark.parametrize("name", ["Content-Length", "X-Timestamp", "Last-Modified", "X-Account-Bytes-Used"])
@pytest.mark.parametrize("value", ["", "-1", "1, 2", "ten", "1e999", "NaN", "9" * 5000])
def test_headers_that_make_no_sense_are_no_error_of_python(swift, name, value):
    store = swift.open()
    uri = store.add("id", b"data").uri
    swift.instead = lambda request: (
        reply(200, MARK | {"Content-Length": "4", "ETag": "0" * 32, name: value}) if request.method == "HEAD" else None
    )
    for call in (lambda: store.get_size(uri), lambda: store.stat(uri)):
        try:
            call()
        except StoreError:
            assert name == "Content-Length"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        PAGE,
        b"[]",
        b'{"Response Status": "200 OK", "Errors": [["/c/s", "403 Forbidden"]]}',
        b'{"Response Status": "400 Bad Request", "Errors": []}',
        b'{"Errors": []}',
        b'{"Number Deleted": 3, "Response Status": "200 OK"}',
    ],
)
def test_bulk_delete_that_failed_is_an_error_whatever_its_status(swift, body):
    store = swift.open()
    uri = store.add("id", b"data").uri
    swift.kept["glance", "id"][0]["X-Static-Large-Object"] = "True"
    swift.instead = lambda request: reply(200, MARK, body) if request.method == "DELETE" else None
    with pytest.raises(RemoteServiceUnavailable):
        store.delete(uri)


@pytest.mark.parametrize("status", ["200 OK", "201 Created"])
def test_bulk_delete_without_errors_went_well(status):
    assert errors.nothing_failed(json.dumps({"Errors": [], "Response Status": status}).encode())


def test_encoding_that_a_proxy_made_is_no_image(swift):
    """Nor is one asked for. What others keep encoded is read so."""
    data = bytes(4096)

    def squeeze(request):
        if request.method != "GET" or not request.target.endswith("/id"):
            return None
        return reply(200, {**told, **MARK, "Content-Encoding": "gzip"}, gzip.compress(data))

    store = swift.open()
    uri = store.add("id", data).uri
    assert read(store, uri) == data
    assert {request.headers.get("accept-encoding") for request in swift.server.requests} == {"identity"}
    told = {**swift.kept["glance", "id"][0], "ETag": hashlib.md5(data).hexdigest()}
    swift.instead = squeeze
    for call in (lambda: read(store, uri), lambda: store.copy(uri, "copy")):
        with pytest.raises(RemoteServiceUnavailable, match="encoding"):
            call()
    assert swift.names("glance") == ["id"]
    told = {"ETag": told["ETag"]}
    assert gzip.decompress(read(store, uri)) == data


def test_object_that_a_later_one_has_replaced_is_not_this_adds(swift):
    """202 to the PUT of an object: Swift has one with a later time stamp and keeps that."""
    store = swift.open(swift_store_container_per_image=True)

    def instead(request):
        if request.method == "PUT" and request.target.endswith("/glance_id/id"):
            swift.kept["glance_id", "id"] = {}, b"of somebody else"
            return reply(202, MARK | {"ETag": "8d777f385d3dfec8815d20f7496026dc"})
        return None

    swift.instead = instead
    with pytest.raises(Duplicate):
        store.add("id", b"data")
    assert swift.kept["glance_id", "id"][1] == b"of somebody else"


def test_image_that_swift_took_and_does_not_have_is_no_duplicate(swift):
    store = swift.open()
    store.add("before", b"the container is there after this")
    swift.instead = lambda request: (
        reply(201, MARK | {"ETag": "8d777f385d3dfec8815d20f7496026dc"}) if request.method == "PUT" else None
    )
    with pytest.raises(RemoteServiceUnavailable, match="does not have it"):
        store.add("id", b"data")


def test_page_instead_of_what_the_service_can_do_is_not_remembered(swift):
    store = swift.open()
    swift.instead = lambda request: page(200, request) if request.target == "/info" else None
    assert not store.service.features(store.service.own_account()).conditional
    swift.instead = lambda request: None
    assert store.service.features(store.service.own_account()).conditional


@pytest.mark.parametrize("stranger", STRANGERS)
def test_token_of_nobody_is_an_error(swift, stranger):
    store = swift.open()
    swift.instead = lambda request: STRANGERS[stranger](request) if "/auth/" in request.target else None
    with pytest.raises((RemoteServiceUnavailable, BadStoreConfiguration)):
        store.add("id", b"data")

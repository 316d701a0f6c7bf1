# SPDX-License-Identifier: Apache-2.0
"""The http driver against servers that say wrong or unusual things, and what exactly it asks them."""

import socket
import types

import pytest
from scripted_server import ScriptedServer, reply

from storelib.drivers.http import HttpStore
from storelib.exceptions import BadStoreUri, Forbidden, RemoteServiceUnavailable, StoreError
from storelib.registry import open_store

IMAGE = bytes(range(256)) * 40
PAGE = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"
HTML = {"Content-Type": "text/html; charset=utf-8"}


def web(**options):
    return open_store(HttpStore, "web", **{"http_allowed_networks": ["127.0.0.0/8"], "transfer_retries": 0} | options)


def read(store, uri, offset=0, length=None):
    with store.get(uri, offset, length).data as stream:
        return stream.read()


def image(request, headers=()):
    """An answer with the image, or the range of it that was asked for."""
    start, mark, end = request.headers.get("range", "").removeprefix("bytes=").partition("-")
    span = slice(int(start or 0), int(end) + 1 if end else len(IMAGE))
    body = IMAGE[span]
    about = {"ETag": '"v1"', "Content-Length": str(len(body)), **dict(headers)}
    if mark:
        about["Content-Range"] = f"bytes {span.start}-{span.start + len(body) - 1}/{len(IMAGE)}"
    return reply(206 if mark else 200, about, b"" if request.method == "HEAD" else body)


# -- What is asked ----------------------------------------------------------------------------------------------------

PATHS = [
    "/a/../b",
    "/a/./b/.",
    "//twice//",
    "/%2e%2E/x",
    "/a%2Fb%2fc",
    "/a+b%20c%2B",
    "/%7Euser/~user",
    "/p|i^p`e{}\"<>",
    "/[1]",
    "/%zz/%/100%",
    "/%e4%E4",
    "/;p=1;q",
    "/x?a=%2F&b=+&c=%2b&d=[]&&e",
    "/x?",
    "/x?X-Amz-Signature=%ab%AB&u=http://h/../y",
    "/:@!$&'()*,;=",
    "/a:b",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("call", ["get", "get_size", "range"])
def test_path_goes_out_as_it_is_written(path, call):
    with ScriptedServer(image) as server:
        store, uri = web(), f"{server.url}{path}"
        if call == "get_size":
            assert store.get_size(uri) == len(IMAGE)
        else:
            assert read(store, uri, *((5, 10) if call == "range" else ())) == (
                IMAGE[5:15] if call == "range" else IMAGE
            )
        assert {request.target for request in server.requests} == {path}
        assert {request.headers["host"] for request in server.requests} == {f"127.0.0.1:{server.port}"}
        assert not [name for name in server.requests[0].headers if "storelib" in name]


@pytest.mark.parametrize("path", PATHS)
def test_path_goes_out_as_it_is_written_to_a_proxy_too(path):
    with ScriptedServer(image) as server:
        store = web(http_proxy_information={"http": server.url})
        assert read(store, f"http://images.example.org:81{path}") == IMAGE
        [request] = server.requests
        assert request.target == f"http://images.example.org:81{path}"
        assert request.headers["host"] == "images.example.org:81"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("form", ["{server}{path}", "{path}"])
def test_redirect_is_followed_as_it_is_written(path, form):
    if form == "{path}" and path.startswith("//"):
        path = "/once" + path

    def response(request):
        if request.target != "/start":
            return image(request)
        return reply(302, {"Location": form.format(server=server.url, path=path)})

    with ScriptedServer(response) as server:
        assert read(web(), f"{server.url}/start") == IMAGE
        assert [request.target for request in server.requests] == ["/start", path]


@pytest.mark.parametrize(("sent", "asked"), [("/caf\xc3\xa9", "/caf%C3%A9"), ("/caf\xe9", "/caf%C3%A9")])
def test_redirect_with_bytes_that_are_not_ascii_is_followed(sent, asked):
    with ScriptedServer(
        lambda request: image(request) if request.target == asked else reply(301, {"Location": sent})
    ) as server:
        assert read(web(), f"{server.url}/start") == IMAGE


# -- Redirects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1[",
        "http://[127.0.0.1",
        "http://[::1",
        "//[",
        "http://[v1.x]/",
        "http://",
        "http:///x",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:-1/",
        "http://127.0.0.1:1x/",
        "http://a b/",
        "http://%00/",
        "http://" + "a" * 70 + "..example/",
        "https:",
        "javascript:alert(1)",
        "data:,x",
        "file:///etc/passwd",
        "http://\xe9\xff/",
        "http://user:password@/x",
        "\\\\127.0.0.1\\x",
    ],
)
def test_redirect_to_nowhere_is_one_error(target):
    with ScriptedServer(lambda request: reply(302, {"Location": target})) as server:
        for call in (web().get, web().get_size, web().stat):
            with pytest.raises((Forbidden, RemoteServiceUnavailable, BadStoreUri)) as caught:
                call(f"{server.url}/image")
            assert "password@" not in str(caught.value)


@pytest.mark.parametrize("step", ["", "/image", "?again", "/image#x", "{server}/image"])
def test_redirects_that_never_end_are_one_error(step):
    server = ScriptedServer(lambda request: reply(307, {"Location": step.format(server=server.url)}))
    with server, pytest.raises(RemoteServiceUnavailable, match="http_max_redirects"):
        web(http_max_redirects=3).get(f"{server.url}/image")
    assert len(server.requests) == 4


# -- Encodings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "aws-chunked",
        "AWS-Chunked",
        "identity",
        "none",
        "",
        "binary",
        "aws-chunked,identity",
        "identity, , none",
        "utf-8",
    ],
)
def test_names_of_no_encoding_are_read(name):
    with ScriptedServer(lambda request: image(request, {"Content-Encoding": name})) as server:
        store, uri = web(), f"{server.url}/image"
        assert read(store, uri) == IMAGE
        assert read(store, uri, 10, 100) == IMAGE[10:110]
        assert store.get_size(uri) == len(IMAGE)


@pytest.mark.parametrize("name", ["gzip", "aws-chunked, gzip", "br", "deflate", "zstd", "identity,x-gzip", "compress"])
def test_encodings_are_errors(name):
    with ScriptedServer(lambda request: image(request, {"Content-Encoding": name})) as server:
        store, uri = web(), f"{server.url}/image"
        for call in (lambda: read(store, uri), lambda: read(store, uri, 10, 100), lambda: store.get_size(uri)):
            with pytest.raises(RemoteServiceUnavailable, match="encoding"):
                call()


# -- Pages and other answers that are no image ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [PAGE, b"<html>x", b"\xef\xbb\xbf<!doctype HTML>", b"<?xml version='1.0'?><html/>", b"<!-- x --><html>"],
)
@pytest.mark.parametrize("framing", ["length", "chunked", "until the end"])
def test_page_is_no_image(body, framing):
    def response(request):
        if request.target == "/image":
            return reply(302, {"Location": "/login"})
        if request.method == "HEAD":
            return reply(200, HTML | {"Content-Length": str(len(body))})
        if framing == "length":
            return reply(200, HTML, body)
        start = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
        if framing == "chunked":
            return f"{start}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        return (part for part in (f"{start}Connection: close\r\n\r\n".encode() + body, b""))

    with ScriptedServer(response) as server:
        store, uri = web(http_read_timeout=2.0), f"{server.url}/image"
        for call in (store.get, store.get_size, store.stat):
            with pytest.raises(RemoteServiceUnavailable, match="web page"):
                call(uri)


@pytest.mark.parametrize("data", [IMAGE, b"", b"<", b"QFI\xfb", b"<htm"])
def test_image_that_its_server_takes_for_a_page_is_read(data):
    def response(request):
        return reply(200, HTML | {"Content-Length": str(len(data))}, b"" if request.method == "HEAD" else data)

    with ScriptedServer(response) as server:
        assert read(web(), f"{server.url}/image") == data
        assert web().get_size(f"{server.url}/image") == len(data)


@pytest.mark.parametrize(
    "wrong",
    [
        reply(204),
        reply(205),
        reply(203, {}, IMAGE),
        reply(206, {"Content-Range": f"bytes 0-{len(IMAGE) - 1}/{len(IMAGE)}"}, IMAGE),
        reply(206, {}, IMAGE),
        reply(226, {}, IMAGE),
        reply(200, {"Content-Length": "-5"}),
        reply(200, {"Content-Length": "5, 6"}, b"12345"),
        reply(200, {"Content-Length": "+5"}, b"12345"),
        reply(200, {"Content-Length": "5 5"}, b"12345"),
        reply(200, {"Content-Length": "0x5"}, b"12345"),
        reply(200, {"Content-Length": "9" * 30}, b"12345"),
        reply(200, {"Content-Length": "9" * 5000}, b"12345"),
        reply(200, {"Transfer-Encoding": "gzip, chunked"}, b"12345"),
        reply(999),
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70000 + b"\r\n\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
    ],
    ids=lambda wrong: wrong[:60].decode("latin-1"),
)
def test_answer_that_makes_no_sense_is_one_error(wrong):
    with ScriptedServer(lambda request: [wrong, b""]) as server, pytest.raises(RemoteServiceUnavailable):
        read(web(http_read_timeout=2.0), f"{server.url}/image")


@pytest.mark.parametrize(
    "told",
    [
        "bytes 0-9/100",
        "bytes 5-9/3",
        "bytes 9-5/100",
        "bytes */100",
        "bytes 5-99999/100",
        "pages 5-9/100",
        "",
        "5-9/100",
    ],
)
def test_range_that_lies_is_one_error(told):
    server = ScriptedServer(lambda request: reply(206, {"Content-Range": told}, b"56789"))
    with server, pytest.raises(RemoteServiceUnavailable):
        read(web(), f"{server.url}/image", 5, 5)


def test_length_beyond_what_comes_is_a_cut_image():
    huge = reply(200, {"Content-Length": str(10**18)}, b"12345")
    with ScriptedServer(lambda request: [huge, b""]) as server:
        stream = web(http_read_timeout=0.3).get(f"{server.url}/image").data
        with stream, pytest.raises(StoreError):
            stream.read(10)


# -- Time -------------------------------------------------------------------------------------------------------------


def test_transfer_timeout_bounds_what_the_clients_wait():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        store = web(transfer_timeout=0.2)
        with pytest.raises(RemoteServiceUnavailable, match="in time"):
            store.get(f"http://127.0.0.1:{deaf.getsockname()[1]}/image")


def test_image_of_unknown_length_may_take_any_time_while_it_comes(monkeypatch):
    """Its bytes are progress also while they are counted."""
    from storelib.transfer import deadlines
    from storelib.transfer.http.reading import Body

    def response(request):
        if request.method == "HEAD":
            return reply(405)
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)

    def slow(self, view):
        count = plain(self, view)
        now[0] += 200
        return count

    data, now, plain = bytes(5 * 256 * 1024), [0.0], Body.read_into
    monkeypatch.setattr(Body, "read_into", slow)
    monkeypatch.setattr(deadlines, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    with ScriptedServer(response) as server:
        assert read(web(transfer_timeout=300), f"{server.url}/image") == data
    assert now[0] > 1000


def test_addresses_of_one_name_share_the_time_to_connect(monkeypatch):
    """Ten that do not answer take no longer than one."""
    from storelib.drivers.http import session

    waits = []

    def connect(address, timeout, **options):
        waits.append(timeout)
        now[0] += timeout
        raise TimeoutError

    now = [1000.0]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{number}", 80)) for number in range(1, 11)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: found)
    monkeypatch.setattr(session.urllib3_connection, "create_connection", connect)
    monkeypatch.setattr(session, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    with pytest.raises(RemoteServiceUnavailable):
        web(http_connect_timeout=3.0).get("http://many.example.org/image")
    assert sum(waits) == pytest.approx(3.0)

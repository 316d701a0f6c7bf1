# SPDX-License-Identifier: Apache-2.0
"""HttpStore against a real nginx: ranges, resuming, redirects, who may be asked, TLS, proxies, every kind of fault."""

import contextlib
import hashlib
import logging
import os
import socket
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
import urllib3
from servers.nginx import Nginx

from storelib.capabilities import Capability
from storelib.drivers.http import HttpStore
from storelib.exceptions import (
    BadStoreUri,
    Forbidden,
    ImageChanged,
    IncompleteRead,
    NotFound,
    RemoteServiceUnavailable,
    StoreAddDisabled,
    StoreDeleteNotSupported,
    StoreError,
)
from storelib.registry import open_store
from storelib.testing.conformance import BackendAccess, ReadOnlyConformance

KiB, MiB = 1024, 1024 * 1024
IMAGE = b"".join(hashlib.sha256(str(number).encode()).digest() for number in range(32 * KiB)) + b"end"
LOOPBACK = ["127.0.0.0/8", "::1"]


@pytest.fixture(scope="module")
def nginx(tmp_path_factory):
    with Nginx(tmp_path_factory.mktemp("nginx")) as server:
        server.put("image", IMAGE)
        server.put("empty", b"")
        yield server


@pytest.fixture
def server(nginx):
    nginx.requests()
    return nginx


def open_http(**options):
    return open_store(HttpStore, **{"http_allowed_networks": LOOPBACK, "transfer_retries": 2} | options)


@pytest.fixture
def store(server):
    return open_http(https_ca_certificates_file=str(server.certificate))


@pytest.fixture
def key(request):
    """A name of this test for the server's counter."""
    return request.node.name


def read(store, url, offset=0, length=None):
    with store.get(url, offset, length).data as stream:
        return stream.read()


@contextlib.contextmanager
def answering(*responses):
    """A server that sends the n-th of these to its n-th client, whatever that says; gives its port and its clients."""
    clients = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with listener:
            for response in responses:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client, contextlib.suppress(ConnectionError):
                    clients.append(client.recv(65536))
                    client.sendall(response)

    thread = threading.Thread(target=serve)
    port = listener.getsockname()[1]
    thread.start()
    try:
        yield port, clients
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()


class Folder(BackendAccess):
    """nginx's files, by image id."""

    def __init__(self, server):
        self.server = server

    def plant(self, image_id, data):
        return self.server.put(image_id, data)

    def read(self, image_id):
        path = self.server.www / image_id
        return path.read_bytes() if path.exists() else None

    def residue(self, prefix):
        return {path.name for path in self.server.www.iterdir() if path.name.startswith(prefix)}


class TestHttpConformance(ReadOnlyConformance):
    capabilities = Capability.READ | Capability.RANGE | Capability.STAT
    # What the path of a URL means, ".." in it as well, is the server's affair: there is no place to climb out of.
    not_applicable = frozenset({"test_neighbour_of_the_place_is_not_the_place"})

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, nginx):
        return open_http(http_allowed_hosts=["127.0.0.1"], http_allowed_ports=[nginx.port])

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, nginx):
        return Folder(nginx)


# -- Reading --------------------------------------------------------------------------------------------------


def test_image_comes_whole(store, server):
    assert read(store, server.url("/image")) == IMAGE


def test_image_comes_whole_over_tls(store, server):
    assert read(store, server.tls_url("/image")) == IMAGE


def test_size_is_known_before_reading(store, server):
    data, size = store.get(server.url("/image"))
    data.close()
    assert size == len(IMAGE)


def test_reading_takes_one_request(store, server):
    read(store, server.url("/image"))
    assert [request.method for request in server.requests()] == ["GET"]


def test_get_size_sends_no_body(store, server):
    assert store.get_size(server.url("/image")) == len(IMAGE)
    assert [request.method for request in server.requests()] == ["HEAD"]


@pytest.mark.parametrize("path", ["/empty", "/images?file=empty", "/images?file=empty&framing=chunked&ranges=no"])
def test_empty_image_is_read(store, server, path):
    assert read(store, server.url(path)) == b""


def test_size_of_an_empty_image_is_zero(store, server):
    assert store.get_size(server.url("/empty")) == 0


RANGES = [
    (0, 0),
    (0, 1),
    (0, None),
    (1, None),
    (1000, 5000),
    (len(IMAGE) - 1, 1),
    (len(IMAGE) - 1, 100),
    (len(IMAGE), None),
    (len(IMAGE), 0),
    (len(IMAGE) + 1, 5),
    (5, 0),
    (0, len(IMAGE) + 5),
]


@pytest.mark.parametrize("path", ["/image", "/no-ranges/image", "/images?file=image&framing=chunked&ranges=no"])
@pytest.mark.parametrize(("offset", "length"), RANGES)
def test_range_is_the_slice(store, server, path, offset, length):
    expected = IMAGE[offset:] if length is None else IMAGE[offset : offset + length]
    assert read(store, server.url(path), offset, length) == expected


@pytest.mark.parametrize(("offset", "length"), RANGES)
def test_range_of_an_empty_image_is_empty(store, server, offset, length):
    assert read(store, server.url("/empty"), offset, length) == b""


def test_range_is_all_that_is_asked_for(store, server):
    read(store, server.url("/image"), 1000, 5000)
    assert [request.range for request in server.requests()] == ["bytes=1000-5999"]


def test_stream_can_seek(store, server):
    with store.get(server.url("/image")).data as stream:
        head = stream.read(100)
        stream.seek(500_000)
        middle = stream.read(100)
        stream.seek(0)
        assert (head, middle, stream.read(100)) == (IMAGE[:100], IMAGE[500_000:500_100], IMAGE[:100])


def test_version_is_told_by_stat(store, server):
    info = store.stat(server.url("/images", file="image", modified="old"))
    assert (info.size, info.version, info.modified) == (len(IMAGE), '"v1"', 0.0)


@pytest.mark.parametrize("head", [400, 403, 405, 501])
def test_size_is_asked_with_get_where_head_is_refused(store, server, key, head):
    assert store.get_size(server.url("/images", file="image", head=head, key=key)) == len(IMAGE)


def test_size_is_the_total_of_a_range_where_head_does_not_tell(store, server):
    assert store.get_size(server.url("/images", file="image", framing="chunked")) == len(IMAGE)


@pytest.mark.parametrize("path", ["/images", "/images-without-chunks"])
def test_size_nobody_tells_is_refused_rather_than_guessed(store, server, path):
    with pytest.raises(StoreError, match="does not tell the size"):
        store.get_size(server.url(path, file="image", framing="chunked", ranges="no"))


@pytest.mark.parametrize("path", ["/images", "/images-without-chunks"])
@pytest.mark.parametrize("etag", ["strong", "none"])
def test_image_of_unknown_length_comes_whole(store, server, path, etag):
    url = server.url(path, file="image", framing="chunked", ranges="no", etag=etag)
    data, size = store.get(url)
    with data:
        assert (data.read(), size) == (IMAGE, len(IMAGE))


def test_image_of_unknown_length_that_grows_is_noticed(store):
    shorter, longer = (b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * length for length in (1000, 1001))
    silent = b"HTTP/1.0 200 OK\r\n\r\n"
    with (
        answering(shorter, silent, silent, shorter, longer) as (port, _),
        pytest.raises(ImageChanged, match="grown"),
    ):
        read(store, f"http://127.0.0.1:{port}/")


def test_image_of_unknown_length_that_shrinks_is_noticed(store):
    longer, shorter = (b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * length for length in (1001, 1000))
    silent = b"HTTP/1.0 200 OK\r\n\r\n"
    with (
        answering(longer, silent, silent, longer, shorter) as (port, _),
        pytest.raises(IncompleteRead),
    ):
        read(store, f"http://127.0.0.1:{port}/")


def test_server_that_answers_one_request_at_a_time_may_tell_the_length_to_head_only(store):
    data = bytes(24 * MiB)  # more than a connection takes before it is read
    image = b"HTTP/1.0 200 OK\r\n\r\n" + data
    length = f"HTTP/1.0 200 OK\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    with answering(image, length, image) as (port, _):
        assert read(store, f"http://127.0.0.1:{port}/") == data


def test_nothing_can_be_added(store):
    with pytest.raises(StoreAddDisabled):
        store.add("id", b"data")


def test_nothing_can_be_deleted(store, server):
    with pytest.raises(StoreDeleteNotSupported):
        store.delete(server.url("/image"))


def test_no_encoding_is_asked_for(store, server):
    assert read(store, server.url("/gzip/image")) == IMAGE


def test_encoded_image_is_an_error(store, server):
    with pytest.raises(RemoteServiceUnavailable, match="encoding"):
        read(store, server.url("/images", file="image", encoding="gzip"))


def test_connections_are_used_again(store, server):
    for _ in range(5):
        read(store, server.url("/image"))
        store.get_size(server.url("/image"))
    assert len({request.connection for request in server.requests()}) == 1


def test_many_threads_read_at_once(store, server):
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda _: read(store, server.url("/image")), range(40)))
    assert all(image == IMAGE for image in images)


def test_dropped_stream_closes_its_connection(store, server):
    store.get(server.url("/image"))
    assert read(store, server.url("/image")) == IMAGE


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_has_connections_of_its_own(store, server):
    read(store, server.url("/image"))
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os._exit(0 if read(store, server.url("/image")) == IMAGE else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    read(store, server.url("/image"))
    parents, childs, parents_again = [request.connection for request in server.requests()]
    assert parents == parents_again != childs


# -- Going on after a cut -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "validators",
    [
        {"etag": "strong"},
        {"etag": "weak"},
        {"etag": "none", "modified": "old"},
        {"etag": "weak", "modified": "old"},
    ],
)
@pytest.mark.parametrize("ranges", ["yes", "silent", "no"])
def test_cut_image_comes_whole(store, server, key, validators, ranges):
    url = server.url("/images", file="image", cut=300_000, ranges=ranges, key=key, **validators)
    assert read(store, url) == IMAGE


@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_image_cut_several_times_comes_whole(store, server, key, framing):
    url = server.url("/images", file="image", cut=300_000, cuts=3, framing=framing, key=key)
    assert read(store, url) == IMAGE


def test_cut_range_comes_whole(store, server, key):
    url = server.url("/images", file="image", cut=300_000, key=key)
    assert read(store, url, 100_000, 600_000) == IMAGE[100_000:700_000]


def test_reading_goes_on_at_the_byte_where_it_stopped(store, server, key):
    read(store, server.url("/images", file="image", cut=300_000, key=key))
    first, second = server.requests()
    assert (first.range, second.range, second.if_range) == ("", "bytes=300000-", '"v1"')


def test_weak_etag_is_not_put_into_if_range(store, server, key):
    read(store, server.url("/images", file="image", etag="weak", cut=300_000, key=key))
    assert server.requests()[-1].if_range == ""


@pytest.mark.parametrize("ranges", ["yes", "no"])
def test_changed_image_is_an_error_not_a_mix(store, server, key, ranges):
    url = server.url("/images", file="image", etag="changing", cut=300_000, ranges=ranges, key=key)
    with pytest.raises(ImageChanged):
        read(store, url)


def test_file_replaced_between_cut_and_resume_is_an_error(store, server):
    url = server.put("replaced", b"a" * 8 * MiB)
    with store.get(url).data as stream:
        stream.read(MiB)
        server.put("replaced", b"b" * 9 * MiB)
        stream.seek(5 * MiB)
        with pytest.raises(ImageChanged):
            stream.read()


@pytest.mark.parametrize("modified", ["none", "now"])
def test_cut_image_without_a_version_is_an_error_not_a_mix(store, server, key, modified):
    url = server.url("/images", file="image", etag="none", modified=modified, cut=300_000, key=key)
    with pytest.raises(IncompleteRead, match="neither ETag"):
        read(store, url)


def test_cut_before_the_first_byte_needs_no_version(store, server, key):
    assert read(store, server.url("/images", file="image", etag="none", cut=0, key=key)) == IMAGE


def test_image_that_is_always_cut_is_an_error(store, server, key):
    with pytest.raises(StoreError) as caught:
        read(store, server.url("/images", file="image", cut=0, cuts=1000, key=key))
    assert caught.value.transient


def test_stalled_image_comes_whole(server, key):
    store = open_http(http_read_timeout=0.3)
    assert read(store, server.url("/images", file="image", stall=300_000, key=key)) == IMAGE


# -- Ranges side by side --------------------------------------------------------------------------------------


@pytest.fixture
def parallel(server):
    return open_http(http_download_concurrency=3, http_download_part_size=64 * KiB)


def test_image_from_far_away_comes_in_ranges(parallel, server, key):
    assert read(parallel, server.url("/images", file="image", delay=0.02, key=key)) == IMAGE
    assert {request.range for request in server.requests()} > {"bytes=65536-131071", "bytes=131072-196607"}


def test_range_from_far_away_comes_in_ranges(parallel, server, key):
    url = server.url("/images", file="image", delay=0.02, key=key)
    assert read(parallel, url, 1000, 500_000) == IMAGE[1000:501_000]


def test_ranges_side_by_side_never_pass_the_limit(parallel, server, key):
    read(parallel, server.url("/images", file="image", delay=0.02, key=key))
    # One more: the first answer's connection is closed when its part was read.
    assert len({request.connection for request in server.requests()}) <= 4


def test_cut_ranges_come_whole(parallel, server, key):
    url = server.url("/images", file="image", delay=0.01, cut=10_000, cuts=5, key=key)
    assert read(parallel, url) == IMAGE


def test_ranges_of_a_changed_image_are_an_error_not_a_mix(parallel, server, key):
    with pytest.raises(ImageChanged):
        read(parallel, server.url("/images", file="image", delay=0.02, etag="changing", key=key))


def test_image_from_nearby_comes_in_one_answer(parallel, server):
    def comes_in_one():
        server.requests()
        read(parallel, server.url("/image"))
        return len(server.requests()) == 1

    # Where all else waits for a busy machine, even this server seems far away, now and then.
    assert any(comes_in_one() for _ in range(20))


@pytest.mark.parametrize("query", [{"ranges": "no"}, {"ranges": "silent"}, {"etag": "none"}])
def test_server_that_does_not_offer_ranges_is_not_asked_for_them(parallel, server, key, query):
    assert read(parallel, server.url("/images", file="image", delay=0.02, key=key, **query)) == IMAGE
    assert len(server.requests()) == 1


def test_seeking_in_ranges_leaves_no_connections_behind(server, key):
    server.put("large", IMAGE * 16)
    store = open_http(http_download_concurrency=3, http_download_part_size=2 * MiB)
    before = len(os.listdir("/proc/self/fd"))
    with store.get(server.url("/images", file="large", delay=0.02, key=key)).data as stream:
        for offset in range(0, 10 * MiB, MiB):
            stream.seek(offset)
            stream.read(10)
        assert len(os.listdir("/proc/self/fd")) <= before + 2 * 3


# -- Redirects ------------------------------------------------------------------------------------------------


def moved(to):
    return f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()


def redirect(code, to):
    return f"/redirect?code={code}&to={quote(to, safe='')}"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("to", ["image", "/image?x=1", "{base}/image", "{other}/image"])
def test_redirect_is_followed(store, server, code, to):
    target = to.format(base=server.url(""), other=server.other_url(""))
    assert read(store, server.url(redirect(code, target))) == IMAGE


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_size_is_asked_behind_redirects(store, server, code):
    assert store.get_size(server.url(redirect(code, "/image"))) == len(IMAGE)


def test_redirect_to_https_is_followed(store, server):
    assert read(store, server.url(redirect(302, server.tls_url("/image")))) == IMAGE


@pytest.mark.parametrize("code", [300, 304, 305, 306])
def test_other_3xx_are_errors(store, server, code):
    with pytest.raises(RemoteServiceUnavailable):
        read(store, server.url(redirect(code, "/image")))


def test_redirect_from_https_to_http_is_refused(store, server):
    with pytest.raises(Forbidden, match="https to http"):
        read(store, server.tls_url(redirect(302, server.url("/image"))))


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x", "http://h:x/"])
def test_redirect_to_anything_but_http_is_refused(store, server, to):
    with pytest.raises(Forbidden):
        read(store, server.url(redirect(302, to)))


def test_redirect_without_target_is_an_error(store):
    response = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"
    with answering(response) as (port, _), pytest.raises(RemoteServiceUnavailable, match="without saying where"):
        read(store, f"http://127.0.0.1:{port}/")


def test_redirects_in_a_circle_end(store, server):
    circle = "/redirect?code=302"  # to itself
    with pytest.raises(RemoteServiceUnavailable, match="http_max_redirects"):
        read(store, server.url(circle))
    assert len(server.requests()) == 6


def test_limit_of_redirects_is_an_option(server):
    store = open_http(http_max_redirects=0)
    with pytest.raises(RemoteServiceUnavailable, match="http_max_redirects"):
        read(store, server.url(redirect(302, "/image")))


def test_redirect_target_is_remembered_while_one_image_is_read(store, server, key):
    target = server.url("/images", file="image", cut=300_000, key=key)
    assert read(store, server.url(redirect(302, target))) == IMAGE
    assert [request.target.partition("?")[0] for request in server.requests()] == ["/redirect", "/images", "/images"]


def test_redirect_is_asked_again_when_its_target_is_gone(store, server):
    target = server.put("moving", IMAGE * 8)
    with store.get(server.url(redirect(302, target))).data as stream:
        stream.read(1000)
        os.rename(server.www / "moving", server.www / "moved")
        stream.seek(5 * MiB)
        with pytest.raises(NotFound):
            stream.read(1000)
    assert [request.target.partition("?")[0] for request in server.requests()][-2:] == ["/redirect", "/moving"]


def test_redirect_is_asked_again_when_its_mirror_has_gone(store, server):
    head = f'HTTP/1.1 200 OK\r\nETag: "v1"\r\nContent-Length: {len(IMAGE)}\r\n\r\n'
    other_mirror = server.url("/images", file="image")
    with (
        answering(head.encode() + IMAGE[:1000]) as (mirror, _),
        answering(moved(f"http://127.0.0.1:{mirror}/"), moved(other_mirror)) as (port, _),
    ):
        assert read(store, f"http://127.0.0.1:{port}/") == IMAGE


# -- Credentials ----------------------------------------------------------------------------------------------

PRIVATE = "http://jane:p%40%3Ass%2Fw%20rd@"


def private(url):
    return url.replace("http://", PRIVATE)


def test_credentials_of_an_old_uri_are_used(store, server):
    assert read(store, private(server.url("/private/image"))) == IMAGE


@pytest.mark.parametrize("user", ["", "jane:wrong@", "eve@"])
def test_missing_or_wrong_credentials_are_forbidden(store, server, user):
    with pytest.raises(Forbidden):
        read(store, server.url("/private/image").replace("http://", f"http://{user}"))


def test_credentials_follow_a_redirect_within_the_origin(store, server):
    assert read(store, private(server.url(redirect(302, "/private/image")))) == IMAGE


def test_credentials_are_dropped_by_a_redirect_to_another_origin(store, server):
    assert read(store, private(server.url(redirect(302, server.other_url("/image"))))) == IMAGE
    first, second = server.requests()
    assert first.authorization
    assert not second.authorization


def test_dropped_credentials_do_not_come_back(store, server):
    back = server.other_url(redirect(302, server.url("/image")))
    assert read(store, private(server.url(redirect(302, back)))) == IMAGE
    assert [bool(request.authorization) for request in server.requests()] == [True, False, False]


def test_credentials_written_into_a_redirect_are_not_used(store, server):
    read(store, server.url(redirect(302, private(server.url("/image")))))
    assert not server.requests()[-1].authorization


def test_netrc_is_not_read(store, server, tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login jane password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    read(store, server.url("/image"))
    assert not server.requests()[-1].authorization


@pytest.mark.parametrize("path", ["/private/nowhere", "/images?status=500", "/images?status=418"])
def test_credentials_are_in_no_error_and_no_log(store, server, path, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(StoreError) as caught:
        read(store, private(server.url(path)))
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "p%40" not in shown
    assert "p@:ss" not in shown


# -- Who may be asked -----------------------------------------------------------------------------------------


@pytest.fixture
def strict(server):
    """As an operator gets it who sets nothing."""
    return open_store(HttpStore, transfer_retries=0)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "017700000001", "localhost", "LOCALHOST", "0", "0.0.0.0"]
)
def test_loopback_is_refused_however_it_is_written(strict, server, host):
    with pytest.raises(Forbidden, match="http_allowed_networks"):
        read(strict, f"http://{host}:{server.port}/image")
    assert server.requests() == []


@pytest.mark.parametrize("host", ["[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]"])
def test_loopback_is_refused_in_ipv6_too(strict, server, host):
    with pytest.raises(Forbidden):
        read(strict, f"http://{host}:{server.port}/image")
    assert server.requests() == []


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "10.0.0.1", "192.168.0.1", "[fe80::1]", "[fd00::1]", "224.0.0.1"]
)
def test_networks_that_are_not_public_are_refused(strict, address):
    with pytest.raises(Forbidden):
        strict.get_size(f"http://{address}/latest/meta-data")


def test_refused_address_is_not_even_connected_to(strict):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(Forbidden):
            read(strict, f"http://localhost:{listener.getsockname()[1]}/")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_refusal_does_not_tell_what_a_name_resolves_to(strict, server, caplog):
    with pytest.raises(Forbidden) as caught:
        read(strict, f"http://localhost:{server.port}/image")
    assert "127.0.0.1" not in str(caught.value)
    assert "127.0.0.1" in caplog.text


@pytest.mark.parametrize(
    "to", ["http://127.0.0.2:{port}/image", "http://2130706434:{port}/image", "//127.0.0.2:{port}/"]
)
def test_redirect_to_a_network_that_is_not_allowed_is_refused(server, to):
    store = open_http(http_allowed_networks=["127.0.0.1"])
    with pytest.raises(Forbidden, match="http_allowed_networks"):
        read(store, server.url(redirect(302, to.format(port=server.port))))


def test_name_is_resolved_once_and_the_judged_address_connected_to(server, monkeypatch):
    """A name server that answers differently the second time gains nothing."""
    responses = iter(["127.0.0.1", "127.0.0.2", "127.0.0.2"])
    resolve = socket.getaddrinfo

    def rebinding(host, *args, **kwargs):
        return resolve(next(responses) if host == "rebind.example" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    store = open_http(http_allowed_networks=["127.0.0.1"])
    assert store.get_size(f"http://rebind.example:{server.port}/image") == len(IMAGE)
    assert next(responses) == "127.0.0.2"


def test_name_with_several_addresses_leads_only_to_allowed_ones(server, monkeypatch):
    resolve = socket.getaddrinfo

    def several(host, *args, **kwargs):
        hosts = ["127.0.0.2", "127.0.0.1"] if host == "several.example" else [host]
        return [found for each in hosts for found in resolve(each, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", several)
    store = open_http(http_allowed_networks=["127.0.0.1"])
    assert store.get_size(f"http://several.example:{server.port}/image") == len(IMAGE)


def test_disallowed_network_is_refused(server):
    store = open_http(http_disallowed_networks=["127.0.0.1"])
    with pytest.raises(Forbidden, match="http_disallowed_networks"):
        read(store, server.url("/image"))


def test_host_lists_hold_for_redirects(server):
    store = open_http(http_disallowed_hosts=["localhost"])
    with pytest.raises(Forbidden, match="http_disallowed_hosts"):
        read(store, server.url(redirect(302, f"http://localhost:{server.port}/image")))


def test_port_lists_hold_for_redirects(server):
    store = open_http(http_allowed_ports=[server.port])
    with pytest.raises(Forbidden, match="http_allowed_ports"):
        read(store, server.url(redirect(302, server.other_url("/image"))))


def test_url_outside_the_lists_is_not_of_this_store(server):
    store = open_http(http_disallowed_ports=[server.port])
    with pytest.raises(BadStoreUri):
        read(store, server.url("/image"))


# -- TLS and proxies ------------------------------------------------------------------------------------------


def test_certificate_is_verified_by_default(server):
    with pytest.raises(RemoteServiceUnavailable, match="https_ca_certificates_file") as caught:
        read(open_http(), server.tls_url("/image"))
    assert not caught.value.transient


def test_name_in_the_certificate_is_verified(store, server):
    with pytest.raises(RemoteServiceUnavailable, match="certificate"):
        read(store, server.tls_url("/image").replace("localhost", "127.0.0.1"))


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_environment_does_not_override_the_ca_file(server, variable, monkeypatch):
    monkeypatch.setenv(variable, "/etc/ssl/certs/ca-certificates.crt")
    store = open_http(https_ca_certificates_file=str(server.certificate))
    assert read(store, server.tls_url("/image")) == IMAGE


def test_verification_can_be_switched_off(server):
    store = open_http(https_insecure=True)
    with pytest.warns(urllib3.exceptions.InsecureRequestWarning):
        assert read(store, server.tls_url("/image")) == IMAGE


def test_https_to_a_server_without_it_is_an_error(store, server):
    with pytest.raises(RemoteServiceUnavailable):
        read(store, server.url("/image").replace("http:", "https:"))


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_proxies_of_the_environment_are_not_used(store, server, variable, monkeypatch):
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    assert read(store, server.url("/image")) == IMAGE


def test_proxy_is_used_and_resolves_names(server):
    store = open_store(HttpStore, http_proxy_information={"http": f"127.0.0.1:{server.proxy_port}"})
    assert read(store, "http://images.invalid/image") == IMAGE
    assert [request.host for request in server.requests()] == ["images.invalid"] * 2  # at the proxy and behind it


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "169.254.169.254"])
def test_proxy_is_not_asked_for_addresses_that_are_refused(server, host):
    store = open_store(HttpStore, http_proxy_information={"http": f"127.0.0.1:{server.proxy_port}"})
    with pytest.raises(Forbidden):
        read(store, f"http://{host}/image")
    assert server.requests() == []


def test_host_lists_hold_with_a_proxy(server):
    proxy = {"http": f"127.0.0.1:{server.proxy_port}"}
    store = open_store(HttpStore, http_proxy_information=proxy, http_allowed_hosts=["images.invalid"])
    with pytest.raises(BadStoreUri):
        read(store, "http://other.invalid/image")


def test_proxy_gets_its_credentials():
    with answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") as (port, clients):
        store = open_store(HttpStore, http_proxy_information={"http": f"http://jane:p%40ss@127.0.0.1:{port}"})
        with pytest.raises(NotFound):
            read(store, "http://images.invalid/image")
    assert b"Proxy-Authorization: Basic amFuZTpwQHNz" in clients[0].replace(b"proxy-a", b"Proxy-A")


def test_https_goes_through_a_tunnel():
    with answering(b"HTTP/1.1 403 Forbidden\r\n\r\n") as (port, clients):
        store = open_store(HttpStore, http_proxy_information={"https": f"127.0.0.1:{port}"}, transfer_retries=0)
        with pytest.raises(RemoteServiceUnavailable):
            read(store, "https://images.invalid/image")
    assert clients[0].startswith(b"CONNECT images.invalid:443 ")


# -- Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RemoteServiceUnavailable),
        (401, Forbidden),
        (403, Forbidden),
        (404, NotFound),
        (410, NotFound),
        (418, RemoteServiceUnavailable),
        (500, RemoteServiceUnavailable),
        (503, RemoteServiceUnavailable),
    ],
)
@pytest.mark.parametrize("ask", [read, HttpStore.get_size], ids=["get", "get_size"])
def test_status_has_its_error(server, key, status, kind, ask):
    store = open_http(transfer_retries=0)
    with pytest.raises(kind) as caught:
        ask(store, server.url("/images", file="image", status=status, key=key))
    assert "secret words" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_transient_error_is_tried_again(store, server, key, status):
    assert read(store, server.url("/images", file="image", status=status, fails=2, key=key)) == IMAGE


def test_lasting_error_is_not_tried_again(store, server):
    with pytest.raises(NotFound):
        read(store, server.url("/nowhere"))
    assert len(server.requests()) == 1


def test_retry_after_is_passed_on(server, key):
    store = open_http(transfer_retries=0)
    with pytest.raises(RemoteServiceUnavailable) as caught:
        read(store, server.url("/images", file="image", status=503, retry_after=17, key=key))
    assert (caught.value.transient, caught.value.retry_after) == (True, 17.0)


def test_missing_image_behind_a_redirect_is_not_found(store, server):
    with pytest.raises(NotFound):
        read(store, server.url(redirect(302, "/nowhere")))


def test_server_that_is_not_there_is_unavailable():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RemoteServiceUnavailable, match="refused") as caught:
        read(open_http(transfer_retries=0), f"http://127.0.0.1:{port}/image")
    assert caught.value.transient


def test_name_that_does_not_exist_is_unavailable(store, monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(RemoteServiceUnavailable, match="does not resolve"):
        read(store, "http://images.invalid/image")


def test_name_that_cannot_be_is_refused(store):
    with pytest.raises(BadStoreUri):
        read(store, f"http://{'a' * 64}.example/image")


def test_server_that_says_nothing_is_given_up_in_time():
    store = open_http(http_read_timeout=0.2, transfer_retries=0)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(RemoteServiceUnavailable, match="in time"),
    ):
        read(store, f"http://127.0.0.1:{listener.getsockname()[1]}/")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff\x16\x03garbage\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2 secret words\r\n",
        b"HTTP/1.1 abc secret words\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: secret words\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        # More than swiftclient lets http.client take in this process.
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nsecret words\r\n",
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-4/5\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
def test_garbage_is_an_error_and_not_repeated(answer):
    with answering(*[answer] * 3) as (port, _), pytest.raises(StoreError) as caught:
        read(open_http(transfer_retries=0), f"http://127.0.0.1:{port}/")
    assert "secret words" not in str(caught.value)


@pytest.mark.parametrize("method", ["get", "get_size"])
def test_headers_cut_in_mid_number_do_not_tell_of_a_shorter_image(method):
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 19"
    with answering(*[response] * 3) as (port, _), pytest.raises(RemoteServiceUnavailable):
        getattr(open_http(transfer_retries=0), method)(f"http://127.0.0.1:{port}/")


def test_other_range_than_asked_is_an_error(store):
    response = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-4/5\r\nContent-Length: 5\r\n\r\nhello"
    with answering(response) as (port, _), pytest.raises(RemoteServiceUnavailable, match="another range"):
        read(store, f"http://127.0.0.1:{port}/", 2)

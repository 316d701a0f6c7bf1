# SPDX-License-Identifier: Apache-2.0
"""Interim answers are never taken for the final one, by none of the clients: any number, late, twice, unasked."""

import threading

import pytest
import urllib3
from s3_server import open_at
from scripted_server import ScriptedServer, reply

from storelib.cli.image.client import Api
from storelib.cli.image.connection import Endpoint, Options, find
from storelib.drivers.http import HttpStore
from storelib.drivers.s3 import bucket as s3_bucket
from storelib.drivers.swift.service import Body, Connections
from storelib.exceptions import Forbidden, RemoteServiceUnavailable, StorageWriteDenied, StoreError
from storelib.registry import open_store
from storelib.transfer.http.responses import MOST_INTERIM

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload; as=style\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
INTERIM = {
    "early hints": HINTS,
    "processing": PROCESSING,
    "continue that nobody waits for": CONTINUE,
    "of an unknown kind": b"HTTP/1.1 199\r\nX: y\r\n\r\n",
    "several": CONTINUE + HINTS + PROCESSING + HINTS + CONTINUE,
    "a hundred": HINTS * 100,
}
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
MiB = 1024 * 1024


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """For a welcome that does not come."""
    plain = urllib3.util.wait_for_read
    monkeypatch.setattr(urllib3.util, "wait_for_read", lambda sock, seconds: plain(sock, min(seconds, 0.05)))
    monkeypatch.setattr(s3_bucket, "_WAIT_FOR_WELCOME", 0.05)


def s3_at(server, **options):
    return open_at(server, **{"s3_store_bucket_url_format": "path", "md5_checksum": False} | options)


def bucket(request):
    """A server that takes everything and keeps nothing."""
    if request.method == "POST" and "uploads" in request.target:
        return reply(200, {}, b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
    if request.method == "POST":
        return reply(
            200, {}, b"<CompleteMultipartUploadResult><ETag>&quot;e&quot;</ETag></CompleteMultipartUploadResult>"
        )
    if request.method == "PUT":
        return reply(200, {"ETag": '"e"'})
    return reply(404)


DENIED = reply(403, {}, b"<Error><Code>AccessDenied</Code></Error>")


@pytest.mark.parametrize("interim", INTERIM)
@pytest.mark.parametrize("size", [5, MiB], ids=["without asking", "asking whether it is welcome"])
def test_refusal_after_interim_answers_is_a_refusal(interim, size):
    with ScriptedServer(lambda request: INTERIM[interim] + DENIED) as server:
        with pytest.raises(StorageWriteDenied):
            s3_at(server).add("id", bytes(size))
        assert len(server.requests[0].body) == size


@pytest.mark.parametrize("interim", INTERIM)
@pytest.mark.parametrize("size", [5, MiB, 9 * MiB], ids=["small", "one part", "several parts"])
def test_interim_answers_before_the_body_are_no_reason_to_send_none(interim, size):
    with ScriptedServer(bucket, early=lambda request: INTERIM[interim]) as server:
        s3_at(server).add("id", bytes(size))
        assert sum(len(request.body) for request in server.requests if request.method == "PUT") == size


def test_refusal_before_the_body_is_heard_after_interim_answers():
    server = ScriptedServer(lambda request: b"", early=lambda request: HINTS + DENIED)
    with server, pytest.raises(StorageWriteDenied):
        s3_at(server).add("id", bytes(MiB))


def test_continue_in_the_middle_of_the_body_and_twice():
    """A server that was slow to say so, of which the client has given up to wait."""
    sending = threading.Event()

    def early(request):
        if request.method == "PUT":
            sending.wait(0.2)
            yield CONTINUE[:9]
            yield CONTINUE[9:] + CONTINUE
            yield HINTS

    with ScriptedServer(bucket, early=early) as server:
        s3_at(server, s3_store_thread_pools=1).add("id", bytes(MiB))
        assert [len(request.body) for request in server.requests] == [MiB]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("interim", INTERIM)
def test_s3_reads_the_answer_after_them(interim, method):
    headers = {"ETag": '"e"', "Last-Modified": "Fri, 20 Nov 2026 17:11:38 GMT"}
    body = b"data" if method == "GET" else b""
    with ScriptedServer(
        lambda request: INTERIM[interim] + reply(200, headers | {"Content-Length": "4"}, body)
    ) as server:
        store = s3_at(server)
        uri = store.bucket.location("id").uri
        if method == "HEAD":
            assert store.get_size(uri) == 4
        else:
            with store.get(uri).data as stream:
                assert stream.read() == b"data"


@pytest.mark.parametrize("interim", INTERIM)
def test_http_reads_the_answer_after_them(interim):
    with ScriptedServer(lambda request: INTERIM[interim] + reply(200, {}, b"data")) as server:
        store = open_store(HttpStore, "web", http_allowed_networks=["127.0.0.0/8"], transfer_retries=0)
        with store.get(f"{server.url}/image").data as stream:
            assert stream.read() == b"data"
    with ScriptedServer(lambda request: INTERIM[interim] + reply(403)) as server, pytest.raises(Forbidden):
        store.get(f"{server.url}/image")


@pytest.mark.parametrize("interim", INTERIM)
def test_http_through_a_proxy_reads_the_answer_after_them(interim):
    with ScriptedServer(lambda request: INTERIM[interim] + reply(200, {}, b"data")) as server:
        store = open_store(HttpStore, "web", http_proxy_information={"http": server.url}, transfer_retries=0)
        with store.get("http://images.example.org/image").data as stream:
            assert stream.read() == b"data"


@pytest.fixture
def connections():
    class Settings:
        swift_store_cacert = None
        swift_store_auth_insecure = False
        swift_store_connect_timeout = swift_store_read_timeout = transfer_timeout = 5.0

    return Connections(Settings())


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE"])
@pytest.mark.parametrize("interim", INTERIM)
def test_swift_reads_the_answer_after_them(connections, interim, method):
    with ScriptedServer(lambda request: INTERIM[interim] + reply(403, {"Content-Length": "0"})) as server:
        with connections.send(method, f"{server.url}/v1/a", {}, Body(memoryview(b"data"))) as response:
            assert response.status_code == 403
        with connections.session().request(method, f"{server.url}/v3", data=b"data") as response:
            assert response.status_code == 403


@pytest.mark.parametrize("interim", INTERIM)
def test_client_of_the_image_api_reads_the_answer_after_them(interim):
    with ScriptedServer(lambda request: INTERIM[interim] + reply(403)) as server, pytest.raises(Forbidden):
        Api(Endpoint(server.url, lambda renew: {})).send("PUT", "/v2/images/id/file", body=b"data")


def test_client_of_the_image_api_hears_keystone_after_them():
    token = reply(201, {"X-Subject-Token": "t", "Content-Type": "application/json"}, b'{"token": {"catalog": []}}')
    with ScriptedServer(lambda request: HINTS + token) as server:
        environ = {"OS_AUTH_URL": f"{server.url}/v3", "OS_USERNAME": "u", "OS_PASSWORD": "p", "OS_USER_DOMAIN_ID": "d"}
        endpoint = find(Options(url=server.url), environ)
        assert endpoint.identity(False) == {"X-Auth-Token": "t"}


@pytest.mark.parametrize("wrong", [SWITCHING, HINTS + SWITCHING, HINTS * (MOST_INTERIM + 1)])
@pytest.mark.parametrize("before", [True, False], ids=["before the body", "after it"])
def test_answers_that_lead_nowhere_are_an_error(connections, wrong, before):
    everything = {"early": lambda request: wrong} if before else {}
    with ScriptedServer(lambda request: wrong + reply(200, {"ETag": '"e"'}, b"data"), **everything) as server:
        store = s3_at(server)
        with pytest.raises(RemoteServiceUnavailable):
            store.add("id", bytes(MiB))
        with pytest.raises(RemoteServiceUnavailable):
            store.get(store.bucket.location("id").uri)
        web = open_store(HttpStore, "web", http_allowed_networks=["127.0.0.0/8"], transfer_retries=0)
        with pytest.raises(StoreError):
            web.get(f"{server.url}/image")
        with pytest.raises(OSError, match=r".*"):
            connections.send("GET", f"{server.url}/v1/a", {})

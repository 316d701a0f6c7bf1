# SPDX-License-Identifier: Apache-2.0
"""Configuring an S3 store: nothing is asked of any server."""

import base64
import contextlib
import http.client
import importlib.util
import socket
import subprocess
import sys
import threading

import pytest

from storelib.capabilities import Capability
from storelib.drivers.s3 import S3Store
from storelib.exceptions import (
    BadStoreConfiguration,
    BadStoreUri,
    MissingDependency,
    OperationNotSupported,
    RemoteServiceUnavailable,
    StorageFull,
)
from storelib.registry import open_store
from storelib.transfer.contract import MiB

REQUIRED = {"s3_store_host": "s3.example.org", "s3_store_bucket": "images"}
KEYS = {"s3_store_access_key": "ACCESS-KEY", "s3_store_secret_key": "SECRET-KEY"}
CUSTOMER_KEY = base64.b64encode(bytes(32)).decode()


def open_s3(**options):
    return open_store(S3Store, "cold", **REQUIRED | KEYS | options)


def test_https_is_the_default():
    assert open_s3().bucket.location("id").uri == "s3+https://s3.example.org/images/id"


@pytest.mark.parametrize(
    ("host", "uri"),
    [
        ("s3.example.org:8080", "s3+https://s3.example.org:8080/images/id"),
        ("https://s3.example.org", "s3+https://s3.example.org/images/id"),
        ("https://s3.example.org:443/", "s3+https://s3.example.org/images/id"),
        ("http://S3.example.org:7480", "s3+http://s3.example.org:7480/images/id"),
        ("http://[::1]:7480", "s3+http://[::1]:7480/images/id"),
    ],
)
def test_host_says_how_it_is_reached(host, uri):
    assert open_s3(s3_store_host=host).bucket.location("id").uri == uri


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"s3_store_host": None}, "s3_store_host"),
        ({"s3_store_host": ""}, "s3_store_host"),
        ({"s3_store_host": "ftp://host"}, "s3_store_host"),
        ({"s3_store_host": "user:SECRET-KEY@host"}, "s3_store_host"),
        ({"s3_store_host": "host/path"}, "s3_store_host"),
        ({"s3_store_host": "host:99999"}, "s3_store_host"),
        ({"s3_store_bucket": None}, "s3_store_bucket"),
        ({"s3_store_bucket": "a/b"}, "s3_store"),
        ({"s3_store_bucket": "", "s3_store_host": "https://host/below/a/path"}, "s3_store_bucket"),
        ({"s3_store_key_prefix": "../"}, "s3_store_key_prefix"),
        ({"s3_store_secret_key": None}, "s3_store_secret_key"),
        ({"s3_store_access_key": None}, "s3_store_secret_key"),
        ({"s3_store_access_key": None, "s3_store_secret_key": None, "s3_store_session_token": "x"}, "session_token"),
        ({"s3_store_cacert": "/nonexistent"}, "s3_store_cacert"),
        ({"s3_store_proxy": "proxy:3128"}, "s3_store_proxy"),
        ({"s3_store_customer_key": "short"}, "s3_store_customer_key"),
    ],
)
def test_option_that_cannot_be_is_named(options, named):
    with pytest.raises(BadStoreConfiguration, match=named) as caught:
        open_s3(**options)
    assert "SECRET-KEY" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"s3_store_encryption": "customer"},
        {"s3_store_customer_key": CUSTOMER_KEY},
        {"s3_store_kms_key_id": "key", "s3_store_encryption": "AES256"},
    ],
)
def test_options_that_only_writing_needs_leave_a_store_that_reads(options, caplog):
    store = open_s3(**options)
    assert Capability.ADD not in store.capabilities
    assert Capability.READ in store.capabilities
    assert CUSTOMER_KEY not in caplog.text


def test_no_url_is_signed_for_images_that_are_read_with_a_key_of_their_own():
    options = {"s3_store_encryption": "customer", "s3_store_customer_key": CUSTOMER_KEY}
    assert Capability.PRESIGN in open_s3().capabilities
    store = open_s3(**options)
    assert Capability.PRESIGN not in store.capabilities
    with pytest.raises(OperationNotSupported):
        store.presign(store.bucket.location("image").uri, 60)


@pytest.mark.parametrize(
    ("uri", "owned"),
    [
        ("s3+https://s3.example.org/images/pre/id", True),
        ("s3://s3.example.org/images/pre/id", True),
        ("s3+http://s3.example.org/images/pre/id", True),
        ("s3+https://s3.example.org:443/images/pre/id", True),
        ("s3://s3.example.org:443/images/pre/id", True),
        ("s3://OTHER:KEYS@s3.example.org/images/pre/id", True),
        ("s3://s3.example.org/images/pre/deeper/id", True),
        ("s3://s3.example.org:8080/images/pre/id", False),
        ("s3://s3.example.org/images/prefix/id", False),
        ("s3://s3.example.org/images/id", False),
        ("s3://s3.example.org/other/pre/id", False),
        ("s3://s3.example.net/images/pre/id", False),
    ],
)
def test_store_owns_what_is_below_its_prefix(uri, owned):
    store = open_s3(s3_store_key_prefix="pre/")
    if owned:
        assert store.locate(uri).bucket == "images"
        assert store.uri_of(uri) == f"s3+https://s3.example.org/{uri.partition('.org')[2].partition('/')[2]}"
        return
    with pytest.raises(BadStoreUri):
        store.locate(uri)


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("s3.eu-central-1.amazonaws.com", "eu-central-1"),
        ("s3-us-west-2.amazonaws.com", "us-west-2"),
        ("s3.dualstack.ap-south-1.amazonaws.com", "ap-south-1"),
        ("s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("s3.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("s3.amazonaws.com", "us-east-1"),
        ("s3.example.org", "us-east-1"),
    ],
)
def test_region_is_in_the_name_of_an_amazon_host(host, region):
    assert open_s3(s3_store_host=host).bucket.region == region
    assert open_s3(s3_store_host=host, s3_store_region_name="elsewhere").bucket.region == "elsewhere"


@pytest.mark.parametrize(
    ("mode", "put", "complete"), [("auto", True, False), ("on", True, True), ("off", False, False)]
)
def test_conditions_are_used_where_they_are_known_to_work(mode, put, complete):
    store = open_s3(s3_store_conditional_writes=mode)
    assert (store.bucket.conditional_put, store.bucket.conditional_complete) == (put, complete)
    assert (Capability.ATOMIC_ADD in store.capabilities) == complete


def test_read_only_store_promises_nothing_about_adding():
    store = open_s3(s3_store_conditional_writes="on", read_only=True)
    assert not store.capabilities & (Capability.ADD | Capability.ATOMIC_ADD)


def test_no_secret_is_shown():
    store = open_s3(s3_store_session_token="TOKEN-KEY", s3_store_proxy="http://user:PROXY-KEY@proxy:1")
    shown = repr(store) + str(store) + repr(store.bucket) + repr(store.bucket.client())
    assert "-KEY" not in shown
    assert {option.name for option in S3Store.options if option.secret} == {
        "s3_store_access_key",
        "s3_store_secret_key",
        "s3_store_session_token",
        "s3_store_proxy",
        "s3_store_customer_key",
    }


def test_missing_package_is_named(monkeypatch):
    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "botocore" else plain(name))
    with pytest.raises(MissingDependency, match=r"pip install 'storelib\[s3\]'"):
        open_s3()


def test_missing_checksum_package_leaves_a_store_that_reads(monkeypatch):
    monkeypatch.setitem(sys.modules, "awscrt", None)
    store = open_s3(s3_store_checksum_algorithm="crc64nvme")
    assert Capability.ADD not in store.capabilities
    assert "pip install botocore[crt]" in store.add_disabled


def test_configuring_imports_no_client():
    program = (
        "import sys\n"
        "from storelib.registry import open_store\n"
        "open_store('s3', s3_store_host='host', s3_store_bucket='bucket')\n"
        "assert not {'boto3', 'botocore'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_settings_reach_the_client(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy-of-the-environment:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OF-THE-ENVIRONMENT")
    client = open_s3(
        s3_store_bucket_url_format="path",
        s3_store_thread_pools=50,
        s3_store_connect_timeout=3.0,
        s3_store_read_timeout=7.0,
    ).bucket.client()
    config = client.meta.config
    assert client.meta.endpoint_url == "https://s3.example.org"
    assert (config.connect_timeout, config.read_timeout, config.max_pool_connections) == (3.0, 7.0, 50)
    assert config.retries["total_max_attempts"] == 1
    assert config.s3 == {"addressing_style": "path", "payload_signing_enabled": False}
    assert config.proxies == {}
    assert client._request_signer._credentials.access_key == "ACCESS-KEY"


def test_credentials_come_from_the_environment_where_none_are_configured(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OF-THE-ENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "too")
    store = open_s3(s3_store_access_key=None, s3_store_secret_key=None)
    assert store.bucket.client()._request_signer._credentials.access_key == "OF-THE-ENVIRONMENT"


def test_profile_that_does_not_exist_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    store = open_s3(s3_store_profile="nobody", s3_store_access_key=None, s3_store_secret_key=None)
    with pytest.raises(BadStoreConfiguration, match="s3_store_profile"):
        store.get_size(store.bucket.location("id").uri)


def test_credentials_of_a_profile_are_used(monkeypatch, tmp_path):
    (tmp_path / "credentials").write_text("[images]\naws_access_key_id = OF-THE-PROFILE\naws_secret_access_key = x\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    store = open_s3(s3_store_profile="images", s3_store_access_key=None, s3_store_secret_key=None)
    assert store.bucket.client()._request_signer._credentials.access_key == "OF-THE-PROFILE"


# -- Answers that were cut ------------------------------------------------------------------------------------

HEADERS = (
    b'HTTP/1.1 200 OK\r\nETag: "e"\r\nLast-Modified: Fri, 20 Nov 2026 17:11:38 GMT\r\nContent-Length: 196609\r\n\r\n'
)


@contextlib.contextmanager
def answering(answer):
    """A server that sends these bytes to each client; returns its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with listener, contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client:
                    client.recv(65536)
                    client.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@contextlib.contextmanager
def answering_early(answer):
    """A server that answers the first headers and then neither reads nor closes; gives its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    clients = []

    def serve():
        with contextlib.suppress(OSError):
            clients.append(listener.accept()[0])
            clients[0].recv(4096)
            clients[0].sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join()
        for opened in (listener, *clients):
            opened.close()


def near(port):
    options = {"s3_store_bucket_url_format": "path", "s3_store_read_timeout": 5.0, "transfer_retries": 0}
    return open_s3(s3_store_host=f"http://127.0.0.1:{port}", **options)


def test_size_is_that_of_a_whole_answer():
    with answering(HEADERS) as port:
        store = near(port)
        assert store.get_size(store.bucket.location("id").uri) == 196609


@pytest.mark.parametrize("length", range(17, len(HEADERS) - 2, 7))
def test_headers_that_were_cut_are_no_answer(length):
    with answering(HEADERS[:length]) as port:
        store = near(port)
        with pytest.raises(RemoteServiceUnavailable):
            store.get_size(store.bucket.location("id").uri)


@pytest.mark.parametrize("early", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"], ids=["at once", "while the body is sent"])
def test_answer_that_comes_before_the_body_was_sent_is_heard(early):
    body = b"<Error><Code>QuotaExceeded</Code></Error>"
    response = b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with answering_early(early + response) as port, pytest.raises(StorageFull):
        near(port).add("id", bytes(8 * MiB))


def test_library_takes_headers_that_were_cut_for_whole():
    # Once this fails, connections.WholeResponse has done its duty.
    with answering(HEADERS[: HEADERS.index(b"609")]) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("HEAD", "/")
        with connection.getresponse() as response:
            assert response.headers["Content-Length"] == "196"
        connection.close()

# SPDX-License-Identifier: Apache-2.0
"""Servers that are not as Amazon's: what they refuse, demand or redirect, and where they are."""

import hashlib
import os

import pytest
from s3_server import S3Server, error, open_at
from scripted_server import reply

from storelib.capabilities import Capability
from storelib.drivers.s3 import S3Store
from storelib.exceptions import (
    BadStoreConfiguration,
    BadStoreUri,
    Duplicate,
    Forbidden,
    OperationNotSupported,
    StoreError,
)
from storelib.registry import open_store

MiB = 1024 * 1024
LARGE = hashlib.shake_128(b"large").digest(9 * MiB)


def read(store, uri):
    with store.get(uri).data as stream:
        return stream.read()


# -- Conditions and checksums ---------------------------------------------------------------------------------


def refusing(*names, status=501, code="NotImplemented", message=""):
    def instead(operation, request):
        return error(status, code, message) if any(name in request.headers for name in names) else None

    return instead


CRC = ("x-amz-checksum-crc32", "x-amz-checksum-algorithm", "x-amz-checksum-type")
NEWER = {
    "If-None-Match": refusing("if-none-match"),
    "If-None-Match, with a hint": refusing("if-none-match", message="A header: If-None-Match"),
    "If-None-Match, as a bad request": refusing("if-none-match", status=400, code="InvalidArgument"),
    "checksums": refusing(*CRC, status=400, code="InvalidRequest"),
    "checksums, with a hint": refusing(*CRC, status=400, code="InvalidRequest", message="x-amz-checksum-crc32?"),
    "checksums, as not implemented": refusing(*CRC),
    "checksums of any kind": refusing(*CRC, "content-md5", status=400, code="BadRequest"),
    "all of them": refusing(*CRC, "if-none-match"),
}


@pytest.mark.parametrize("data", [b"data", LARGE], ids=["one piece", "parts"])
@pytest.mark.parametrize("what", NEWER)
def test_server_that_refuses_newer_headers_is_written_to_without(what, data):
    with S3Server(NEWER[what]) as server:
        store = open_at(server)
        assert read(store, store.add("id", data).uri) == data
        with pytest.raises(Duplicate):
            store.add("id", data)
        store.add("next", b"data")
        asked = len(server.requests)
        store.delete(store.add("one more", b"data").uri)
        assert len(server.requests) <= asked + 4, "it has learnt"
        store.check()
        assert store.capabilities & Capability.ATOMIC_ADD == Capability(0) or "If-None" not in what
        assert set(server.objects) == {"id", "next"}
        assert not server.uploads


@pytest.mark.parametrize("data", [b"data", LARGE], ids=["one piece", "parts"])
def test_server_that_demands_content_md5_gets_it(data):
    def instead(operation, request):
        missing = operation in ("put", "part") and "content-md5" not in request.headers
        return error(400, "InvalidRequest", "Content-MD5 HTTP header is required") if missing else None

    with S3Server(instead) as server:
        store = open_at(server)
        assert read(store, store.add("id", data).uri) == data
        store.check()


@pytest.mark.parametrize(
    ("options", "refused", "named"),
    [
        ({"s3_store_conditional_writes": "on"}, ["if-none-match"], "s3_store_conditional_writes"),
        ({"s3_store_checksum_algorithm": "crc32"}, CRC, "s3_store_checksum_algorithm"),
        ({"s3_store_storage_class": "COLD"}, ["x-amz-storage-class"], "s3_store_storage_class"),
        ({"s3_store_encryption": "AES256"}, ["x-amz-server-side-encryption"], "s3_store_encryption"),
    ],
)
def test_option_that_the_server_refuses_is_named(options, refused, named):
    message = f"A header you provided implies functionality that is not implemented: {refused[0]}"
    with S3Server(refusing(*refused, message=message)) as server:
        store = open_at(server, **options)
        for call in (lambda: store.add("id", b"data"), lambda: store.add("id", LARGE)):
            with pytest.raises(OperationNotSupported, match=named):
                call()
        with pytest.raises(StoreError, match=named):
            store.check()
        assert (server.objects, server.uploads) == ({}, {})


@pytest.mark.parametrize("refusal", [reply(400), reply(501), error(400, "SomethingElse")])
@pytest.mark.parametrize("operation", ["head", "create_bucket"])
def test_refusal_of_a_request_without_newer_headers_teaches_nothing(operation, refusal):
    """As where a token has expired just when an id is looked for."""

    def instead(asked, request):
        if (operation, asked) == ("create_bucket", "create") and server.operations.count(operation) < 2:
            return error(404, "NoSuchBucket")
        return refusal if asked == operation and server.operations.count(operation) == 1 else None

    with S3Server(instead) as server:
        store = open_at(server, s3_store_create_bucket_on_put=True)
        with pytest.raises(StoreError):
            store.add("id", LARGE)
        store.add("id", LARGE)
        parts = [request.headers for request in server.requests if "partNumber" in request.target]
        assert all("x-amz-checksum-crc32" in headers for headers in parts)
        assert server.operations[-1] == "complete"
        assert server.requests[-1].headers["if-none-match"] == "*"


def test_refusal_of_what_nothing_helps_is_told_as_it_came():
    with S3Server(refusing("authorization", status=400, code="SomethingElse")) as server:
        with pytest.raises(StoreError, match="SomethingElse"):
            open_at(server).add("id", b"data")
        assert len(server.requests) < 8


# -- Checking -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        ("list", "s3:ListBucket"),
        ("put", "s3:PutObject.*read_only"),
        ("get", "s3:GetObject"),
        ("head", "s3:GetObject"),
        ("delete", "s3:DeleteObject.*read_only"),
        ("list_uploads", "s3:ListBucketMultipartUploads"),
        ("create", "s3:PutObject"),
        ("part", "s3:PutObject"),
        ("complete", "s3:PutObject"),
        ("abort", "s3:AbortMultipartUpload"),
    ],
)
def test_check_names_what_is_not_allowed(operation, named):
    # Uploads end with an abort only where their completion is refused.
    server = S3Server(lambda asked, request: error(403, "AccessDenied") if asked == operation else None)
    with server, pytest.raises(StoreError, match=named):
        open_at(server).check()


def test_check_leaves_nothing_and_is_short_the_next_time():
    with S3Server() as server:
        store = open_at(server)
        store.check()
        assert (server.objects, server.uploads) == ({}, {})
        assert {"put", "get", "head", "delete", "create", "part", "complete", "list_uploads"} <= set(server.operations)
        done = len(server.operations)
        store.check()
        assert server.operations[done:] == ["list"]


def test_check_of_a_store_that_only_reads_writes_nothing():
    with S3Server() as server:
        open_at(server, read_only=True).check()
        assert server.operations == ["list"]


# -- Where it is ----------------------------------------------------------------------------------------------


def test_endpoint_below_a_path():
    with S3Server(base="/storage/v1") as server:
        store = open_at(server, s3_store_host=f"{server.url}/storage/v1/", s3_store_key_prefix="pre/")
        small, large = store.add("small image", b"data").uri, store.add("large", LARGE).uri
        assert small == f"s3+http://127.0.0.1:{server.port}/storage/v1/images/pre/small%20image"
        assert (read(store, small), read(store, large)) == (b"data", LARGE)
        assert set(server.objects) == {"pre/small image", "pre/large"}
        assert {info.uri for info in store.list_images()} == {small, large}
        assert store.stat(small).image_id == "small image"
        for foreign in (small.replace("storage/", ""), small.replace("v1/", ""), small.replace("images/", "other/")):
            with pytest.raises(BadStoreUri):
                store.get(foreign)
        store.check()
        store.delete(small)
        store.delete(large)
        assert not server.objects


def test_uri_without_bucket_or_key_below_a_path_is_of_no_store():
    with S3Server(base="/storage/s3") as server:
        store = open_at(server, s3_store_host=f"{server.url}/storage/s3")
        for rest in ("/id", "images/", "images", "images//"):
            with pytest.raises(BadStoreUri):
                store.get_size(f"s3+{server.url}/storage/s3/{rest}")
        assert not server.requests


@pytest.mark.parametrize("host", ["https://host/a?b", "https://host/../a", "https://host/a//b", "https://host/a b"])
def test_path_that_cannot_be_is_named(host):
    with pytest.raises(BadStoreConfiguration, match="s3_store_host"):
        open_store(S3Store, "cold", s3_store_host=host, s3_store_bucket="images")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_to_https_is_one_error(status):
    with S3Server() as server:
        store = open_at(server)
        uri = store.add("id", b"data").uri
        secure = {"Location": f"https://127.0.0.1:{server.port}/images/id"}
        server.instead = lambda operation, request: reply(status, secure)
        for call in (
            lambda: store.get(uri),
            lambda: store.get_size(uri),
            lambda: store.add("other", b"data"),
            lambda: store.add("other", LARGE),
            lambda: store.delete(uri),
            lambda: list(store.list_images()),
            store.check,
        ):
            before = len(server.requests)
            with pytest.raises(BadStoreConfiguration, match="begin s3_store_host with https://"):
                call()
            assert len(server.requests) <= before + 2


@pytest.mark.parametrize(
    ("host", "bucket", "wanted"),
    [
        ("s3.eu-central-1.amazonaws.com", "images", "images.s3.eu-central-1.amazonaws.com"),
        ("s3.amazonaws.com", "images", "images.s3.amazonaws.com"),
        ("s3.dualstack.us-west-2.amazonaws.com", "images", "images.s3.dualstack.us-west-2.amazonaws.com"),
        ("s3.cn-north-1.amazonaws.com.cn", "images", "images.s3.cn-north-1.amazonaws.com.cn"),
        ("s3.amazonaws.com", "my.images", "s3.amazonaws.com"),
        ("oss-cn-hangzhou.aliyuncs.com", "images", "images.oss-cn-hangzhou.aliyuncs.com"),
        ("s3.example.org", "images", "s3.example.org"),
        ("s3.notamazonaws.com", "images", "s3.notamazonaws.com"),
    ],
)
def test_bucket_is_in_the_name_of_hosts_that_want_it_there(host, bucket, wanted):
    with S3Server(lambda operation, request: error(404, "NoSuchKey")) as server:
        store = open_at(server, s3_store_host=f"http://{host}", s3_store_bucket=bucket, s3_store_proxy=server.url)
        with pytest.raises(StoreError):
            store.get(store.bucket.location("id").uri)
        assert server.requests[0].headers["host"] == wanted


@pytest.mark.parametrize("data", [b"data", LARGE], ids=["one piece", "parts"])
@pytest.mark.parametrize(
    "refusal",
    [
        error(403, "SecondLevelDomainForbidden"),
        reply(301, {}, b"<Error><Code>PermanentRedirect</Code><Endpoint>images.s3.example.org</Endpoint></Error>"),
    ],
)
def test_server_that_refuses_a_bucket_in_the_path_is_asked_by_name(refusal, data):
    class Virtual(S3Server):
        def _answer_one(self, request):
            if not request.headers["host"].startswith("images."):
                return refusal
            return super()._answer_one(
                request._replace(target=request.target.replace("example.org/", "example.org/b/"))
            )

    with Virtual(base="http://images.s3.example.org") as server:
        store = open_at(server, s3_store_host="http://s3.example.org", s3_store_proxy=server.url)
        stored = store.add("id", data)
        assert stored.uri == "s3+http://s3.example.org/images/id"
        assert read(store, stored.uri) == data
        assert [request.headers["host"] for request in server.requests].count("s3.example.org") == 1


@pytest.mark.parametrize("operation", ["put", "head", "create"])
def test_region_that_the_server_names_is_signed_for(operation):
    def instead(asked, request):
        if "/eu-west-7/s3/" in request.headers["authorization"]:
            return None
        region = {"x-amz-bucket-region": "eu-west-7"}
        body = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-7</Region></Error>"
        return reply(400, region) if asked == "head" else reply(400, region, body)

    with S3Server(instead) as server:
        server.objects["old"] = (b"old", {})
        store = open_at(server)
        if operation == "head":
            assert store.get_size(store.bucket.location("old").uri) == 3
        else:
            assert read(store, store.add("id", b"data" if operation == "put" else LARGE).uri)
        wrong = open_at(server, s3_store_region_name="us-west-1")
        with pytest.raises(BadStoreConfiguration, match="s3_store_region_name"):
            wrong.get_size(store.bucket.location("old").uri)


# -- The environment ------------------------------------------------------------------------------------------


@pytest.fixture
def foreign_environment(monkeypatch, tmp_path):
    """Of a user of other AWS tools elsewhere."""
    (tmp_path / "config").write_text(
        "[default]\nregion = nowhere-1\nendpoint_url = http://127.0.0.1:9\nca_bundle = /nonexistent\n"
        "s3 =\n  addressing_style = virtual\n  use_accelerate_endpoint = true\n  payload_signing_enabled = true\n"
        "  use_dualstack_endpoint = true\n"
    )
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = FOREIGN\naws_secret_access_key = x\n")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[default]\nca_bundle = /nonexistent\n[broken\n")
    for name, value in {
        "HOME": str(tmp_path),
        "AWS_PROFILE": "nobody",
        "AWS_DEFAULT_PROFILE": "nobody",
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "FOREIGN",
        "AWS_SECRET_ACCESS_KEY": "foreign",
        "AWS_SESSION_TOKEN": "FOREIGN-TOKEN",
        "AWS_DEFAULT_REGION": "nowhere-1",
        "AWS_REGION": "nowhere-1",
        "AWS_CA_BUNDLE": "/nonexistent",
        "REQUESTS_CA_BUNDLE": "/nonexistent",
        "AWS_DATA_PATH": "/nonexistent",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_USE_DUALSTACK_ENDPOINT": "true",
        "AWS_MAX_ATTEMPTS": "50",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_supported",
        "AWS_AUTH_SCHEME_PREFERENCE": "sigv4a",
        "AWS_DEFAULTS_MODE": "mobile",
        "AWS_SDK_UA_APP_ID": "FOREIGN",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)


def test_store_with_keys_of_its_own_takes_nothing_from_the_environment(foreign_environment):
    with S3Server() as server:
        store = open_at(server)
        assert read(store, store.add("id", LARGE).uri) == LARGE
        for request in server.requests:
            assert "/us-east-1/s3/" in request.headers["authorization"]
            assert "Credential=access/" in request.headers["authorization"]
            assert "FOREIGN" not in str(request.headers)
            assert request.target.startswith("/images/id")


def test_certificates_of_the_environment_are_not_those_of_a_store_with_keys(foreign_environment):
    store = open_store(
        S3Store,
        "cold",
        s3_store_host="https://127.0.0.1:9",
        s3_store_bucket="images",
        s3_store_access_key="a",
        s3_store_secret_key="s",
        transfer_retries=0,
    )
    # With a file of certificates that is not there, this would not be about the connection.
    with pytest.raises(StoreError, match="refused or cut|in time"):
        store.get_size(store.bucket.location("id").uri)


def test_profile_of_the_environment_is_used_without_keys(foreign_environment, monkeypatch):
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.delenv("AWS_DEFAULT_PROFILE")
    monkeypatch.delenv("AWS_DATA_PATH")
    with S3Server() as server:
        store = open_at(server, s3_store_access_key=None, s3_store_secret_key=None)
        store.add("id", b"data")
        assert "Credential=FOREIGN/" in server.requests[0].headers["authorization"]
    assert os.environ["AWS_ACCESS_KEY_ID"] == "FOREIGN"


# -- Time -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["get", "get_size", "delete", "list", "add"])
def test_no_request_waits_longer_than_a_transfer_may(what):
    with S3Server() as server:
        store = open_at(server, s3_store_read_timeout=60.0, transfer_timeout=0.3)
        uri = store.bucket.location("id").uri
        server.instead = lambda operation, request: b""
        hang = {
            "get": lambda: store.get(uri),
            "get_size": lambda: store.get_size(uri),
            "delete": lambda: store.delete(uri),
            "list": lambda: list(store.list_images()),
            "add": lambda: store.add("id", b"data"),
        }[what]
        with pytest.raises(StoreError):
            hang()
    config = store.bucket.client().meta.config
    assert (config.read_timeout, config.connect_timeout) == (0.3, 0.3)


# -- Parts of one size ----------------------------------------------------------------------------------------


def test_parts_are_of_one_size_where_the_server_wants_that():
    r2 = open_store(S3Store, "r2", s3_store_host="account.r2.cloudflarestorage.com", s3_store_bucket="images")
    usual = open_store(S3Store, "usual", s3_store_host="s3.example.org", s3_store_bucket="images")
    told = open_store(
        S3Store, "told", s3_store_host="s3.example.org", s3_store_bucket="images", s3_store_equal_parts="on"
    )
    sizes = {
        store.name: {store.open_writer("id", None, None).part_size(number, None) for number in (0, 999, 1000, 9999)}
        for store in (r2, usual, told)
        if setattr(store, "bucket", store.bucket) is None
    }
    assert (sizes["r2"], sizes["told"], len(sizes["usual"])) == ({8 * MiB}, {8 * MiB}, 3)


def test_server_that_refuses_parts_of_several_sizes_gets_them_of_one_from_then_on(monkeypatch):
    monkeypatch.setattr("storelib.drivers.s3.writer.STEP", 1)

    def instead(operation, request):
        lengths = [len(parts) for _, _, all_parts in server.uploads.values() for parts in all_parts.values()]
        return error(400, "InvalidPart") if operation == "complete" and len(set(lengths[:-1])) > 1 else None

    data = bytes(30 * MiB)
    with S3Server(instead) as server:
        store = open_at(server, s3_store_large_object_chunk_size=5, s3_store_thread_pools=1)
        with pytest.raises(OperationNotSupported, match="s3_store_equal_parts"):
            store.add("id", iter([data]))
        assert (server.objects, server.uploads) == ({}, {})
        store.add("id", iter([data]))
        assert len(server.objects["id"][0]) == len(data)


def test_forbidden_names_the_permission():
    server = S3Server(lambda operation, request: error(403, "AccessDenied"))
    with server, pytest.raises(Forbidden, match="s3:ListBucket"):
        list(open_at(server).list_images())


def test_gc_of_one_id_and_looking_for_it_cost_the_same_among_few_images_and_many():
    asked = []
    for count in (3, 300):
        with S3Server() as server:
            store = open_at(server)
            for number in range(count):
                server.objects[f"image-{number}"] = b"data", {}
                server.uploads[f"other-{number}"] = f"image-{number}", {}, {}
            server.uploads["dead"] = "dead", {}, {1: b"data"}
            assert [item.image_id for item in store.gc(0, "dead")] == ["dead"]
            assert store.find_image("dead") is None
            asked.append(server.operations)
            assert len(server.uploads) == count
    assert asked[0] == asked[1]


@pytest.mark.parametrize("algorithm", ["SHA512", "Sha3-256"])
def test_the_recorded_digest_is_known_again_however_its_algorithm_was_spelled(algorithm):
    with S3Server() as server:
        store = open_at(server)
        stored = store.add("image", b"bytes", hashing_algo=algorithm)
        with store.get(stored.uri, verify=True).data as stream:
            assert stream.verified_with == (algorithm.lower(), stored.multihash)

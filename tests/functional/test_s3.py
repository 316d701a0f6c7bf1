# SPDX-License-Identifier: Apache-2.0
"""S3Store against a real radosgw and against a server that knows every feature, with faults on the wire between."""

import base64
import contextlib
import functools
import gc
import hashlib
import itertools
import os
import socket
import threading
import time
import urllib.error
import urllib.request
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from servers.ceph import radosgw
from servers.localstack import Localstack
from servers.nginx import free_ports, make_certificate

from storelib.capabilities import Capability
from storelib.driver import Digests
from storelib.drivers.s3 import S3Store, bucket, writer
from storelib.drivers.s3.reader import S3Reader
from storelib.exceptions import (
    BadStoreConfiguration,
    BadStoreUri,
    Duplicate,
    Forbidden,
    ImageChanged,
    IncompleteRead,
    Invalid,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StorageWriteDenied,
    StoreError,
)
from storelib.registry import open_store
from storelib.testing.conformance import BackendAccess, FaultyLine, StoreConformance
from storelib.testing.conformance.networking import everything
from storelib.testing.faults import Cut, FaultyProxy, Reset, Slow, Stall
from storelib.transfer import fan_out, store_upload
from storelib.transfer.http import reading
from storelib.transfer.source import FileAgain

KiB, MiB = 1024, 1024 * 1024
#: radosgw is told to take parts as small as this.
SMALL = 64 * KiB
ALL = (
    Capability.READ
    | Capability.RANGE
    | Capability.ADD
    | Capability.DELETE
    | Capability.ACLS
    | Capability.LIST
    | Capability.STAT
    | Capability.GC
    | Capability.CHECK
    | Capability.COPY
    | Capability.PRESIGN
)


class SmallParts(S3Store):
    """For a server that takes them: writers that may be asked for small parts."""

    def open_writer(self, image_id, size, context):
        writer = super().open_writer(image_id, size, context)
        writer.smallest_part = SMALL
        return writer


class InTurns(S3Store):
    """For a server that looks for the object and completes an upload in two steps, where Amazon does it in one."""

    turn = threading.Lock()

    def open_writer(self, image_id, size, context):
        writer = super().open_writer(image_id, size, context)
        plain = writer.commit

        def commit(*arguments):
            with self.turn:
                return plain(*arguments)

        writer.commit = commit
        return writer


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with radosgw(tmp_path_factory.mktemp("ceph"), rgw_multipart_min_part_size=1) as server:
        for user in ("one", "two"):
            server.add_user(user)
        server.access = Bucket(server.s3_endpoint, server)
        server.access.client.create_bucket(Bucket="images")
        server.direct = open_rados(server)
        yield server


@pytest.fixture(scope="module")
def localstack(tmp_path_factory):
    with Localstack(tmp_path_factory.mktemp("localstack")) as server:
        server.access = Bucket(server.endpoint, server)
        server.access.client.create_bucket(Bucket="images")
        yield server


def options_of(endpoint, server, **options):
    return {
        "s3_store_host": endpoint,
        "s3_store_access_key": server.access_key,
        "s3_store_secret_key": server.secret_key,
        "s3_store_bucket": "images",
        "s3_store_create_bucket_on_put": True,
        "s3_store_bucket_url_format": "path",
        "transfer_retries": 2,
    } | options


def open_rados(gateway, endpoint=None, **options):
    return open_store(SmallParts, "rados", **options_of(endpoint or gateway.s3_endpoint, gateway, **options))


def open_local(localstack, endpoint=None, driver=S3Store, **options):
    return open_store(driver, "local", **options_of(endpoint or localstack.endpoint, localstack, **options))


class Bucket(BackendAccess):
    """The bucket through a client of the tests' own."""

    def __init__(self, endpoint, server, bucket="images", prefix=""):
        import botocore.session
        from botocore.config import Config

        self.client = botocore.session.Session().create_client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
            config=Config(s3={"addressing_style": "path"}, proxies={}),
        )
        self.bucket = bucket
        self.prefix = prefix

    def read(self, image_id):
        try:
            response = self.client.get_object(Bucket=self.bucket, Key=self.prefix + image_id)
        except self.client.exceptions.NoSuchKey:
            return None
        with response["Body"] as body:
            return body.read()

    def residue(self, prefix):
        place = {"Bucket": self.bucket, "Prefix": self.prefix + prefix}
        objects = self.client.list_objects_v2(**place).get("Contents", ())
        uploads = self.client.list_multipart_uploads(**place).get("Uploads", ())
        return {found["Key"] for found in objects} | {f"{found['Key']} {found['UploadId']}" for found in uploads}


IMPATIENT = {"s3_store_thread_pools": 3, "s3_store_read_timeout": 0.5}
CONFORMANCE = {"s3_store_bucket": "conformance", "s3_store_key_prefix": "images/"}


class TestRadosgwConformance(StoreConformance):
    capabilities = ALL
    sequences = 3

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, gateway):
        store = open_rados(gateway, **CONFORMANCE)
        # It honours If-None-Match in a PUT, and ignores it when an upload is completed.
        store.check()
        return store

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, gateway):
        return Bucket(gateway.s3_endpoint, gateway, "conformance", "images/")

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, gateway):
        numbers = itertools.count()
        return lambda **options: open_rados(gateway, s3_store_bucket=f"new-{next(numbers)}", **options)

    @pytest.fixture(scope="class", params=["s3_store_access_key", "s3_store_secret_key"])
    @classmethod
    def denied_store(cls, gateway, request):
        return open_rados(gateway, **CONFORMANCE, **{request.param: "wrong-and-secret"})

    @pytest.fixture(scope="class")
    @classmethod
    def unreachable_store(cls, gateway):
        return open_rados(gateway, "http://127.0.0.1:{}".format(*free_ports(1)), transfer_retries=1, **CONFORMANCE)

    @pytest.fixture(scope="class")
    @classmethod
    def untrusted_store(cls, gateway):
        return open_rados(gateway, gateway.https_endpoint, **CONFORMANCE)

    @pytest.fixture(scope="class")
    @classmethod
    def faulty_line(cls, gateway):
        with FaultyProxy(("127.0.0.1", gateway.port)) as proxy:
            endpoint = "http://{}:{}".format(*proxy.address)
            yield FaultyLine(proxy, functools.partial(open_rados, gateway, endpoint, **IMPATIENT, **CONFORMANCE))


class TestLocalstackConformance(StoreConformance):
    capabilities = ALL | Capability.ATOMIC_ADD
    # Pages of a thousand are looked at with radosgw.
    many_images = 30
    sequences = 4
    sample = True
    # Grantees must be canonical ids of Amazon's form there, and signed URLs are verified against one pair of keys
    # only: see test_grantees and test_presigned_url_on_a_server_with_known_keys.
    not_applicable = frozenset({"test_acls", "test_presign", "test_presigned_url_expires"})

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, localstack):
        store = open_local(localstack, driver=InTurns, s3_store_bucket="conformance")
        store.check()
        return store

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, localstack):
        return Bucket(localstack.endpoint, localstack, "conformance")


# -- Requests -------------------------------------------------------------------------------------------------


@pytest.fixture
def rados(gateway):
    return open_rados(gateway)


@pytest.fixture
def local(localstack):
    return open_local(localstack, s3_store_conditional_writes="on")


@pytest.fixture
def image_id(request):
    """An id of this test's own."""
    return f"{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}-image"


@contextlib.contextmanager
def requests_of(store):
    """The names of the operations asked of the server meanwhile."""
    names = []

    def note(model, **_):
        names.append(model.name)

    events = store.bucket.client().meta.events
    events.register("before-call.s3", note)
    yield names
    events.unregister("before-call.s3", note)


def read(store, uri, offset=0, length=None):
    with store.get(uri, offset, length).data as stream:
        return stream.read()


def bytes_of(size, seed=""):
    return hashlib.shake_128(f"{size} {seed}".encode()).digest(size)


def in_small_parts(store):
    """The store, whose images go in parts of 64 KiB."""
    plain = store.open_writer

    def open_writer(image_id, size, context):
        writer = plain(image_id, size, context)
        writer.part_size = lambda number, size: SMALL
        return writer

    store.open_writer = open_writer
    return store


IMAGE = bytes_of(3 * SMALL + 1)
LARGE = bytes_of(11 * MiB)


def test_small_image_is_one_request(rados, image_id):
    with requests_of(rados) as names:
        rados.add(image_id, b"small")
    assert names == ["PutObject"]


def test_image_of_one_part_is_one_request(local, image_id):
    with requests_of(local) as names:
        local.add(image_id, bytes_of(8 * MiB))
    assert names == ["PutObject"]


def test_large_image_is_completed_without_a_look_where_the_server_looks(local, image_id):
    with requests_of(local) as names:
        local.add(image_id, LARGE)
    assert names == ["CreateMultipartUpload", "UploadPart", "UploadPart", "CompleteMultipartUpload"]


def test_large_image_is_looked_for_once_where_the_server_does_not(rados, image_id):
    with requests_of(rados) as names:
        rados.add(image_id, LARGE)
    assert names == ["CreateMultipartUpload", "UploadPart", "UploadPart", "HeadObject", "CompleteMultipartUpload"]


@pytest.mark.parametrize("size", [0, 1, 11 * MiB])
def test_reading_takes_one_request(local, image_id, size):
    data = bytes_of(size)
    uri = local.add(image_id, data).uri
    with requests_of(local) as names:
        # Several ranges side by side when the machine is busy and the answer came late.
        assert read(local, uri) == data
    assert set(names) == {"GetObject"}
    assert size > 4 * MiB or len(names) == 1


@pytest.mark.parametrize(("offset", "length"), [(5, None), (5, 100), (0, 1), (10, 0)])
def test_reading_a_range_takes_one_request(rados, image_id, offset, length):
    data = bytes_of(1000)
    uri = rados.add(image_id, data).uri
    with requests_of(rados) as names:
        assert read(rados, uri, offset, length) == (data[offset:] if length is None else data[offset:][:length])
    assert names == ["GetObject"]


def test_requests_of_the_rest(rados, image_id):
    stored = rados.add(image_id, b"some bytes")
    with requests_of(rados) as names:
        rados.get_size(stored.uri)
        rados.stat(stored.uri)
        rados.presign(stored.uri, 60)
        list(rados.list_images())
        rados.copy(stored.uri, f"{image_id}-2", digests=Digests(stored.checksum, stored.multihash))
        rados.delete(stored.uri)
    assert names == [
        "HeadObject",
        "HeadObject",
        "ListObjectsV2",
        *("HeadObject", "HeadObject", "CopyObject", "HeadObject"),
        *("HeadObject", "DeleteObject"),
    ]


def test_eight_adds_share_one_client(gateway, monkeypatch):
    made = []
    plain = bucket.Bucket._new
    monkeypatch.setattr(bucket.Bucket, "_new", lambda client: made.append(client) or plain(client))
    store = in_small_parts(open_rados(gateway))
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda number: store.add(f"shared-client-{number}", IMAGE), range(8)))
    assert len(made) == 1
    assert all(read(store, stored.uri) == IMAGE for stored in results)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_has_a_client_of_its_own(rados, image_id):
    uri = rados.add(image_id, IMAGE).uri
    parents = rados.bucket.client()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os._exit(0 if read(rados, uri) == IMAGE and rados.bucket.client() is not parents else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert rados.bucket.client() is parents
    assert read(rados, uri) == IMAGE


# -- What goes wrong ------------------------------------------------------------------------------------------


def test_another_users_image_is_forbidden(gateway, rados, image_id):
    uri = rados.add(image_id, b"data").uri
    key, secret = gateway.add_user("stranger")
    store = open_rados(gateway, s3_store_access_key=key, s3_store_secret_key=secret)
    with pytest.raises(Forbidden):
        read(store, uri)
    with pytest.raises(StorageWriteDenied):
        store.add("strangers-image", b"data")


def test_missing_bucket_is_named(gateway):
    store = open_rados(gateway, s3_store_bucket="nowhere", s3_store_create_bucket_on_put=False)
    uri = store.bucket.location("image").uri
    for name, call in everything(in_small_parts(store), uri, "new", IMAGE).items():
        if name in ("get_size", "stat", "delete", "copy"):
            # They begin with a HEAD, whose answer does not say what is missing.
            with pytest.raises(NotFound):
                call()
        else:
            with pytest.raises(BadStoreConfiguration, match="s3_store_bucket"):
                call()


@pytest.mark.parametrize("data", [b"small", IMAGE], ids=["in one piece", "in parts"])
def test_bucket_is_made_when_needed(gateway, data):
    store = in_small_parts(open_rados(gateway, s3_store_bucket=f"made-{len(data)}"))
    assert list(store.list_images()) == []
    with pytest.raises(NotFound):
        read(store, store.bucket.location("image").uri)
    assert read(store, store.add("image", data).uri) == data


def test_bucket_is_made_in_its_region(localstack):
    store = open_local(localstack, s3_store_bucket="regional", s3_store_region_name="eu-west-1")
    store.add("image", b"data")
    place = localstack.access.client.get_bucket_location(Bucket="regional")
    assert place["LocationConstraint"] == "eu-west-1"


def test_server_that_hangs(gateway, image_id):
    with FaultyProxy(("127.0.0.1", gateway.port)) as proxy:
        proxy.always(Stall())
        options = {"s3_store_read_timeout": 0.3, "transfer_retries": 0}
        store = open_rados(gateway, "http://{}:{}".format(*proxy.address), **options)
        with pytest.raises(RemoteServiceUnavailable, match="in time"):
            store.get(store.bucket.location("image").uri)


def test_full_store_is_reported(gateway, image_id):
    key, secret = gateway.add_user("frugal")
    gateway.admin("quota", "set", "--quota-scope=user", "--uid=frugal", "--max-size=300K")
    gateway.admin("quota", "enable", "--quota-scope=user", "--uid=frugal")
    store = open_rados(gateway, s3_store_bucket="frugal", s3_store_access_key=key, s3_store_secret_key=secret)
    store.add("fits", b"data")
    with pytest.raises(StorageFull):
        store.add(image_id, bytes_of(MiB))
    assert [info.image_id for info in store.list_images()] == ["fits"]
    assert not list(store.find_garbage(0))


def test_image_that_is_replaced_while_it_is_read_is_noticed(rados, gateway, image_id, monkeypatch):
    uri = rados.add(image_id, LARGE).uri
    with rados.get(uri).data as stream:
        stream.read(10)
        stream.seek(9 * MiB)
        gateway.access.client.put_object(Bucket="images", Key=image_id, Body=LARGE[::-1])
        with pytest.raises(ImageChanged):
            stream.read(10)


# -- TLS ------------------------------------------------------------------------------------------------------


@pytest.fixture
def misleading(monkeypatch, tmp_path):
    """An environment that names other certificates than those that are needed."""
    empty = tmp_path / "other.pem"
    make_certificate(empty, tmp_path / "other-key.pem")
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(empty))
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def test_configured_certificates_go_before_the_environment(gateway, image_id, misleading):
    store = in_small_parts(open_rados(gateway, gateway.https_endpoint, s3_store_cacert=str(gateway.certificate)))
    stored = store.add(image_id, IMAGE)
    assert stored.uri.startswith("s3+https://localhost:")
    assert read(store, stored.uri) == IMAGE


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_insecure_goes_before_the_environment(gateway, image_id, misleading):
    store = open_rados(gateway, gateway.https_endpoint, s3_store_insecure=True)
    assert read(store, store.add(image_id, b"data").uri) == b"data"


class Tunnels:
    """An HTTP proxy for https: opens tunnels (RFC 9110, 9.3.6) and remembers to where."""

    def __init__(self):
        self.asked = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._open, args=(client,), daemon=True).start()

    def _open(self, client):
        head = b""
        with client, contextlib.suppress(ConnectionError):
            while not head.endswith(b"\r\n\r\n"):
                if not (byte := client.recv(1)):
                    return
                head += byte
            method, target, _ = head.decode().split(" ", 2)
            self.asked.append((method, target))
            host, _, port = target.rpartition(":")
            with socket.create_connection((host, int(port))) as server:
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                responses = threading.Thread(target=self._pass_on, args=(server, client), daemon=True)
                responses.start()
                self._pass_on(client, server)
                responses.join()

    @staticmethod
    def _pass_on(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def test_https_goes_through_a_tunnel_of_the_proxy(gateway, image_id):
    with contextlib.closing(Tunnels()) as proxy:
        options = {"s3_store_proxy": proxy.url, "s3_store_cacert": str(gateway.certificate)}
        store = in_small_parts(open_rados(gateway, gateway.https_endpoint, **options))
        assert read(store, store.add(image_id, IMAGE).uri) == IMAGE
        assert set(proxy.asked) == {("CONNECT", f"localhost:{gateway.tls_port}")}


def test_http_is_asked_of_the_proxy_itself(gateway, image_id):
    # Nobody knows that host; radosgw takes the whole URL that a proxy gets for its own.
    proxy = f"http://somebody:secret@127.0.0.1:{gateway.port}"
    options = {"s3_store_proxy": proxy, "s3_store_bucket_url_format": "path"}
    store = in_small_parts(open_rados(gateway, "http://images.invalid", **options))
    assert read(store, store.add(image_id, IMAGE).uri) == IMAGE


# -- Keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["deep/er/", "odd ü%2F+?#&=/", "no-slash-", "/", "a//b/"])
def test_prefix_is_part_of_every_key(gateway, rados, prefix):
    store = in_small_parts(open_rados(gateway, s3_store_key_prefix=prefix, s3_store_bucket="prefixes"))
    small, large = store.add("small image", b"data"), store.add("läßt", IMAGE)
    access = Bucket(gateway.s3_endpoint, gateway, "prefixes", prefix)
    assert access.read("small image") == b"data"
    assert read(store, large.uri) == IMAGE
    listed = {info.image_id: info.uri for info in store.list_images()}
    assert listed == {"small image": small.uri, "läßt": large.uri}
    other = open_rados(gateway, s3_store_key_prefix="other/", s3_store_bucket="prefixes")
    assert not list(other.list_images())
    with pytest.raises(BadStoreUri):
        other.get(small.uri)


def test_key_with_slashes_is_read(gateway, rados):
    gateway.access.client.put_object(Bucket="images", Key="some/old image/1", Body=b"old")
    uri = f"{rados.bucket.location('x').uri[:-1]}some/old%20image/1"
    assert read(rados, uri) == b"old"
    assert rados.stat(uri).image_id is None
    assert not [info for info in rados.list_images() if "old image" in info.uri]


@pytest.mark.parametrize("old", ["s3", "s3+http", "s3+https"])
def test_uri_of_any_scheme_is_the_same_image(rados, image_id, old):
    uri = rados.add(image_id, b"data").uri
    assert read(rados, uri.replace("s3+http", old)) == b"data"


def test_credentials_in_an_old_uri_are_not_used(rados, image_id):
    uri = rados.add(image_id, b"data").uri
    old = uri.replace("://", "://SOMEBODYELSE:sec/ret@")
    assert read(rados, old) == b"data"


# -- Parts ----------------------------------------------------------------------------------------------------


def test_a_thousand_parts(gateway, rados, image_id):
    data = bytes_of(1100 * 4 * KiB + 7)
    plain = rados.open_writer

    def open_writer(*arguments):
        writer = plain(*arguments)
        writer.part_size = lambda number, size: 4 * KiB
        return writer

    rados.open_writer = open_writer
    stored = rados.add(image_id, iter([data]))
    assert read(rados, stored.uri) == data
    assert rados.stat(stored.uri).version.endswith('-1101"')


@pytest.mark.parametrize("size", [5 * MiB, 8 * MiB - 1, 8 * MiB, 8 * MiB + 1, 16 * MiB, 16 * MiB + 1])
@pytest.mark.parametrize("declared", ["known", "unknown"])
def test_part_boundaries(local, image_id, size, declared):
    data = bytes_of(size)
    stored = local.add(image_id, iter([data]), size if declared == "known" else None)
    assert (stored.size, read(local, stored.uri) == data) == (size, True)
    local.delete(stored.uri)


def store_of_small_parts(request, where, **options):
    """With parts of 5 MiB; radosgw over http or https, or LocalStack."""
    options |= {"s3_store_large_object_chunk_size": 5, "s3_store_thread_pools": 2}
    if where == "localstack":
        return open_local(request.getfixturevalue("localstack"), **options)
    server = request.getfixturevalue("gateway")
    secure = {"s3_store_cacert": str(server.certificate)} if where == "https" else {}
    endpoint = server.https_endpoint if where == "https" else server.s3_endpoint
    return open_store(S3Store, "large", **options_of(endpoint, server, **options, **secure))


@pytest.mark.parametrize("where", ["localstack", "http", "https"])
def test_a_file_is_not_read_where_nothing_but_the_server_looks_at_it(request, tmp_path, image_id, where, monkeypatch):
    store = store_of_small_parts(request, where, s3_store_checksum_algorithm="none")
    path, data = tmp_path / "image", bytes_of(13 * MiB + 5)
    path.write_bytes(data)
    digests = Digests(hashlib.md5(data).hexdigest(), hashlib.sha512(data).hexdigest())
    sent, plain = [], FileAgain.send
    monkeypatch.setattr(FileAgain, "send", lambda *given: sent.append(plain(*given)) or sent[-1])
    [stored] = fan_out([store], image_id, path, digests=digests)
    assert read(store, stored.uri) == data
    # TLS has to have them in memory.
    assert sum(sent) == (0 if where == "https" else len(data))


@pytest.mark.parametrize("where", ["localstack", "http", "https"])
def test_large_parts_of_a_file_are_sent_from_it(request, tmp_path, image_id, where, monkeypatch):
    monkeypatch.setattr(store_upload, "LARGE", 4 * MiB)
    store = store_of_small_parts(request, where)
    path, data, sent = tmp_path / "image", bytes_of(13 * MiB + 5), []
    path.write_bytes(data)
    plain = writer.S3Writer.write_large
    monkeypatch.setattr(
        writer.S3Writer, "write_large", lambda self, number, file: sent.append(len(file)) or plain(self, number, file)
    )
    stored = store.add(image_id, path)
    assert sorted(sent) == [3 * MiB + 5, 5 * MiB, 5 * MiB]
    assert read(store, stored.uri) == data
    assert stored.multihash == hashlib.sha512(data).hexdigest()


# -- One of several adds --------------------------------------------------------------------------------------


def test_check_finds_out_what_the_server_honours(gateway, localstack):
    rados, local = open_rados(gateway), open_local(localstack)
    assert Capability.ATOMIC_ADD not in rados.capabilities | local.capabilities
    assert "not atomic" in rados.check().detail
    assert "not atomic" not in local.check().detail
    assert (rados.bucket.conditional_put, rados.bucket.conditional_complete) == (True, False)
    assert Capability.ATOMIC_ADD not in rados.capabilities
    assert Capability.ATOMIC_ADD in local.capabilities
    with requests_of(local) as names:
        local.check()
    assert names == ["ListObjectsV2"]


def test_check_leaves_nothing(gateway):
    store = open_rados(gateway, s3_store_bucket="checked")
    store.check()
    assert not Bucket(gateway.s3_endpoint, gateway, "checked").residue("")


def test_promise_that_the_server_does_not_keep_is_found(gateway):
    store = open_rados(gateway, s3_store_conditional_writes="on")
    assert Capability.ATOMIC_ADD in store.capabilities
    with pytest.raises(BadStoreConfiguration, match="s3_store_conditional_writes"):
        store.check()


def test_without_conditions_a_look_protects_what_is_there(gateway, image_id):
    store = in_small_parts(open_rados(gateway, s3_store_conditional_writes="off"))
    with requests_of(store) as names:
        uri = store.add(image_id, b"first").uri
    assert names == ["HeadObject", "PutObject"]
    for data in (b"second", IMAGE):
        with pytest.raises(Duplicate):
            store.add(image_id, data)
    assert read(store, uri) == b"first"


def test_failed_add_brings_no_older_version_to_light(localstack, image_id):
    store = open_local(localstack, s3_store_bucket="versions", transfer_retries=0)
    store.delete(store.add(image_id, b"older").uri)
    client = localstack.access.client
    client.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    store.delete(store.add(image_id, b"old").uri)
    plain = store.open_writer

    def open_writer(*arguments):
        writer = plain(*arguments)
        put = writer.put

        def lose(*of_put):
            put(*of_put)
            raise RemoteServiceUnavailable("on purpose")

        writer.put = lose
        return writer

    store.open_writer = open_writer
    with pytest.raises(RemoteServiceUnavailable):
        store.add(image_id, b"new")
    with pytest.raises(NotFound):
        read(store, store.bucket.location(image_id).uri)
    versions = client.list_object_versions(Bucket="versions", Prefix=image_id)["Versions"]
    assert len(versions) == 1, "the version of the failed add is still there"


# -- Collecting -----------------------------------------------------------------------------------------------


def dead_upload(client, key, bucket="garbage"):
    upload_id = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    client.upload_part(Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=1, Body=b"part")
    return upload_id


def test_gc_keeps_to_what_is_this_stores(gateway):
    store = open_rados(gateway, s3_store_bucket="garbage", s3_store_key_prefix="images/")
    store.add("image", b"data")
    access = Bucket(gateway.s3_endpoint, gateway, "garbage")
    for key in ("images/mine", "images/deeper/not-mine", "not-mine", "images"):
        dead_upload(access.client, key)
    assert [(item.image_id, item.size) for item in store.gc(0)] == [("mine", 4)]
    assert {name.partition(" ")[0] for name in access.residue("")} == {
        "images/image",
        "images/deeper/not-mine",
        "not-mine",
        "images",
    }


def test_gc_leaves_an_old_upload_with_a_young_part(gateway):
    store = open_rados(gateway, s3_store_bucket="garbage", s3_store_key_prefix="young/")
    store.add("image", b"data")
    client = gateway.access.client
    upload_id = dead_upload(client, "young/mine")
    time.sleep(1.2)
    client.upload_part(Bucket="garbage", Key="young/mine", UploadId=upload_id, PartNumber=2, Body=b"young part")
    assert not store.gc(1.0)
    [found] = store.find_garbage(0)
    client.upload_part(Bucket="garbage", Key="young/mine", UploadId=upload_id, PartNumber=3, Body=b"younger part")
    assert not store.discard(found), "something happened in it since it was found"
    assert store.gc(0)


@pytest.mark.parametrize("server", ["gateway", "localstack"])
@pytest.mark.parametrize("when", ["while it sends", "before it completes"])
def test_add_whose_upload_another_store_object_removes_fails(server, request, image_id, when):
    server = request.getfixturevalue(server)
    opened = {"images": None}

    def fresh():
        if server is request.getfixturevalue("gateway"):
            return open_rados(server)
        return open_local(server, s3_store_conditional_writes="on")

    store, other = fresh(), fresh()
    plain = store.bucket.call

    def call(operation, **parameters):
        if operation == "complete_multipart_upload" and when == "before it completes":
            opened["images"] = other.gc(0, image_id)
        return plain(operation, **parameters)

    def source():
        yield LARGE[: 9 * MiB]
        if when == "while it sends":
            while not opened["images"]:
                opened["images"] = other.gc(0, image_id)
        yield LARGE[9 * MiB :]

    store.bucket.call = call
    with pytest.raises(StoreError, match="removed while it was under way"):
        store.add(image_id, source())
    assert [item.image_id for item in opened["images"]] == [image_id]
    assert not server.access.residue(image_id)


# -- Integrity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["none", "md5", "crc32", "sha1", "sha256"])
def test_every_checksum_algorithm(localstack, gateway, image_id, algorithm):
    for store in (
        open_local(localstack, s3_store_checksum_algorithm=algorithm),
        in_small_parts(open_rados(gateway, s3_store_checksum_algorithm=algorithm)),
    ):
        for data in (b"small", LARGE if store.name == "local" else IMAGE):
            stored = store.add(image_id, data)
            assert read(store, stored.uri) == data
            store.delete(stored.uri)


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["in one piece", "in parts"])
def test_server_keeps_the_checksum_of_the_whole(local, localstack, image_id, data):
    local.add(image_id, data)
    client = localstack.access.client
    head = client.head_object(Bucket="images", Key=image_id, ChecksumMode="ENABLED")
    expected = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    assert (head["ChecksumCRC32"], head["ChecksumType"]) == (expected, "FULL_OBJECT")


def test_bytes_that_are_not_those_stored_are_noticed(local, image_id, monkeypatch):
    uri = local.add(image_id, LARGE).uri
    plain = reading.Body.read_into

    def damage(body, view):
        count = plain(body, view)
        if body.position > 10 * MiB:
            view[0] ^= 1
        return count

    monkeypatch.setattr(reading.Body, "read_into", damage)
    with pytest.raises(IncompleteRead, match="CRC32"), local.get(uri).data as stream:
        stream.read()


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["in one piece", "in parts"])
@pytest.mark.parametrize("algorithm", ["crc32", "md5"])
def test_part_that_was_damaged_on_its_way_is_refused(localstack, image_id, data, algorithm):
    store = open_local(localstack, s3_store_checksum_algorithm=algorithm, transfer_retries=1)
    plain = store.bucket.checksums.of_part
    store.bucket.checksums.of_part = lambda data, known=None, value=None: plain(memoryview(b"what was sent"))
    with pytest.raises(RemoteServiceUnavailable, match="damaged"):
        store.add(image_id, data)
    assert not localstack.access.residue(image_id)


@pytest.mark.parametrize("data", [b"small", IMAGE], ids=["in one piece", "in parts"])
@pytest.mark.parametrize("times", [1, 100], ids=["once", "always"])
def test_server_that_ignores_checksums_is_caught_by_its_etags(gateway, image_id, data, times):
    """radosgw stores what comes, whatever its crc32 should be; Content-MD5 it verifies."""
    store = in_small_parts(open_rados(gateway))
    plain, left = store.bucket.call, times

    def damage(operation, **parameters):
        nonlocal left
        if operation in ("put_object", "upload_part") and left:
            left -= 1
            body = parameters["Body"]
            damaged = bytearray(body if isinstance(body, bytes) else body.read())
            damaged[0] ^= 1
            parameters["Body"] = bytes(damaged)
        return plain(operation, **parameters)

    store.bucket.call = damage
    if times == 1:
        assert read(store, store.add(image_id, data).uri) == data
        return
    with pytest.raises(RemoteServiceUnavailable, match="damaged"):
        store.add(image_id, data)
    assert not gateway.access.residue(image_id)


# -- Encryption, storage class --------------------------------------------------------------------------------

CUSTOMER_KEY = base64.b64encode(bytes(range(32))).decode()


def test_images_encrypted_with_the_customers_key(localstack, image_id):
    key = {"s3_store_encryption": "customer", "s3_store_customer_key": CUSTOMER_KEY}
    store = open_local(localstack, s3_store_bucket="sealed", **key)
    store.check()
    for data in (b"small", LARGE):
        stored = store.add(image_id, data)
        copy = store.copy(stored.uri, f"{image_id}-copy", digests=Digests(stored.checksum, stored.multihash))
        assert read(store, stored.uri) == read(store, copy.uri) == data
        assert read(store, stored.uri, 2, 2) == data[2:4]
        assert store.get_size(stored.uri) == len(data)
        with pytest.raises(StoreError):
            read(open_local(localstack, s3_store_bucket="sealed"), stored.uri)
        store.delete(stored.uri)
        store.delete(copy.uri)
    assert CUSTOMER_KEY not in repr(store)


def test_images_encrypted_with_the_customers_key_on_radosgw(gateway, image_id):
    key = {"s3_store_encryption": "customer", "s3_store_customer_key": CUSTOMER_KEY}
    certificates = {"s3_store_cacert": str(gateway.certificate)}
    store = in_small_parts(open_rados(gateway, gateway.https_endpoint, **key, **certificates))
    uri = store.add(image_id, IMAGE).uri
    assert read(store, uri) == IMAGE
    assert read(store, uri, SMALL - 1, 2) == IMAGE[SMALL - 1 : SMALL + 1]
    with pytest.raises(StoreError):
        read(open_rados(gateway, gateway.https_endpoint, **certificates), uri)


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["in one piece", "in parts"])
def test_storage_class_and_encryption_are_asked_for(localstack, image_id, data):
    settings = {"s3_store_storage_class": "STANDARD_IA", "s3_store_encryption": "AES256"}
    open_local(localstack, **settings).add(image_id, data)
    head = localstack.access.client.head_object(Bucket="images", Key=image_id)
    assert (head["StorageClass"], head["ServerSideEncryption"]) == ("STANDARD_IA", "AES256")


# -- Access, copies, presigned URLs ---------------------------------------------------------------------------


def test_acls_let_others_read(gateway, rados, image_id):
    uri = rados.add(image_id, b"data").uri
    key, secret = gateway.add_user(f"reader-{image_id}")
    other = open_rados(gateway, s3_store_access_key=key, s3_store_secret_key=secret)
    anonymous = f"{gateway.s3_endpoint}/images/{image_id}"

    def readable():
        responses = []
        for attempt in (lambda: read(other, uri), lambda: urllib.request.urlopen(anonymous, timeout=10).close()):
            try:
                attempt()
                responses.append(True)
            except (Forbidden, urllib.error.HTTPError) as error:
                error = getattr(error, "close", lambda: None)()
                responses.append(False)
        return responses

    assert readable() == [False, False]
    rados.set_acls(uri, read_tenants=[f"reader-{image_id}"])
    assert readable() == [True, False]
    rados.set_acls(uri, public=True)
    assert readable() == [True, True]
    rados.set_acls(uri)
    assert readable() == [False, False]
    assert read(rados, uri) == b"data"


def test_grantees(local, localstack, image_id):
    uri = local.add(image_id, b"data").uri
    one, two = ("79a59df900b949e55d96a1e698fbacedfd6e09d98eacf8f8d5218e7cd47ef2be", "ab" * 32)
    local.set_acls(uri, public=True, read_tenants=[one], write_tenants=[two])
    acl = localstack.access.client.get_object_acl(Bucket="images", Key=image_id)
    grants = {grant["Grantee"].get("ID", "everybody"): grant["Permission"] for grant in acl["Grants"]}
    assert grants == {
        acl["Owner"]["ID"]: "FULL_CONTROL",
        one: "READ",
        "everybody": "READ",
        two: "FULL_CONTROL",
    }


@pytest.mark.parametrize("server", ["rados", "local"])
def test_copy_in_parts(server, request, image_id, monkeypatch):
    store = request.getfixturevalue(server)
    monkeypatch.setattr(writer, "LARGEST_COPY", 5 * MiB)
    monkeypatch.setattr(writer, "COPY_PART", 5 * MiB)
    stored = store.add(image_id, LARGE)
    done = []
    with requests_of(store) as names:
        copy = store.copy(
            stored.uri,
            f"{image_id}-copy",
            digests=Digests(stored.checksum, stored.multihash),
            progress=lambda at, total: done.append((at, total)),
        )
    assert names.count("UploadPartCopy") == 3
    assert done[0] == (0, len(LARGE))
    assert done[-1] == (len(LARGE), len(LARGE))
    assert read(store, copy.uri) == LARGE
    with pytest.raises(Duplicate):
        store.copy(stored.uri, f"{image_id}-copy", digests=Digests(stored.checksum, stored.multihash))


@pytest.mark.parametrize("server", ["rados", "local"])
def test_cancelled_copy_leaves_nothing(server, request, image_id, monkeypatch):
    store = request.getfixturevalue(server)
    access = Bucket(
        store.bucket.client().meta.endpoint_url, request.getfixturevalue({"rados": "gateway"}.get(server, "localstack"))
    )
    monkeypatch.setattr(writer, "LARGEST_COPY", 5 * MiB)
    monkeypatch.setattr(writer, "COPY_PART", 5 * MiB)
    stored = store.add(image_id, LARGE)

    def progress(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.copy(stored.uri, f"copy-{image_id}", digests=Digests(None, stored.multihash), progress=progress)
    assert not access.residue(f"copy-{image_id}")


def test_presigned_url_on_a_server_with_known_keys(localstack, image_id):
    # Signed URLs it verifies, with this one pair of keys.
    store = open_local(localstack, s3_store_access_key="test", s3_store_secret_key="test")
    uri = store.add(image_id, b"data").uri
    with urllib.request.urlopen(store.presign(uri, 60), timeout=10) as response:
        assert response.read() == b"data"


@pytest.mark.parametrize("expires", [0, -1, 8 * 24 * 3600])
def test_presigned_url_is_valid_for_a_week_at_most(rados, expires):
    with pytest.raises(Invalid, match="seconds"):
        rados.presign(rados.bucket.location("image").uri, expires)


# -- Faults on the wire ---------------------------------------------------------------------------------------


@pytest.fixture
def proxy(gateway):
    with FaultyProxy(("127.0.0.1", gateway.port)) as proxy:
        yield proxy


def through(proxy, gateway, **options):
    """A store with no connection yet that reaches radosgw through the proxy."""
    options = {"s3_store_thread_pools": 1, "s3_store_read_timeout": 1.0} | options
    return in_small_parts(open_rados(gateway, "http://{}:{}".format(*proxy.address), **options))


#: Bytes that pass before the fault: in the headers, inside of parts, and about where each part begins.
PLACES = [300, 700, *(SMALL * part + extra for part in range(4) for extra in (900, 2200, SMALL // 2))]


@pytest.mark.parametrize("side_by_side", [False, True], ids=["one stream", "ranges"])
@pytest.mark.parametrize("fault", [Cut, Reset])
def test_download_survives_one_fault(gateway, proxy, rados, image_id, monkeypatch, fault, side_by_side):
    uri = in_small_parts(rados).add(image_id, IMAGE).uri
    path = uri.rpartition("/")[2]
    if side_by_side:
        monkeypatch.setattr(S3Reader, "part_size", SMALL)
        monkeypatch.setattr(reading, "QUICK", 0.0)
    else:
        monkeypatch.setattr(reading, "QUICK", 60.0)
    for after in PLACES:
        store = through(proxy, gateway, s3_store_thread_pools=3)
        proxy.plan(fault(after=after, direction="down"), connections=2)
        assert read(store, f"{store.bucket.location('x').uri[:-1]}{path}") == IMAGE
        proxy.forget()


@pytest.mark.parametrize("fault", [Cut(after=6 * MiB, direction="up"), Reset(after=300, direction="down")])
def test_upload_to_the_other_server_survives_one_fault(localstack, image_id, fault):
    with FaultyProxy(("127.0.0.1", localstack.port)) as proxy:
        proxy.plan(fault, connections=2)
        store = open_local(
            localstack,
            "http://{}:{}".format(*proxy.address),
            s3_store_conditional_writes="on",
            s3_store_read_timeout=5.0,
        )
        store.add(image_id, LARGE)
        assert localstack.access.read(image_id) == LARGE
        assert localstack.access.residue(image_id) == {image_id}


def test_dropped_store_frees_its_client(gateway, image_id):
    store = open_rados(gateway)
    uri = store.add(image_id, b"data").uri
    clients = [weakref.ref(store.bucket), weakref.ref(store.bucket.client())]
    store.delete(uri)
    del store
    gc.collect()
    assert [client() for client in clients] == [None, None]


def test_far_server_is_read_in_ranges_side_by_side(gateway, rados, image_id):
    uri = rados.add(image_id, bytes_of(20 * MiB)).uri
    with FaultyProxy(("127.0.0.1", gateway.port)) as proxy:
        proxy.always(Slow(seconds=0.02, chunk=MiB))
        store = open_rados(gateway, "http://{}:{}".format(*proxy.address))
        with requests_of(store) as names:
            data = read(store, f"{store.bucket.location('x').uri[:-1]}{image_id}")
    assert data == bytes_of(20 * MiB)
    assert names == ["GetObject"] * 5
    assert uri

# SPDX-License-Identifier: Apache-2.0
"""The swift driver against real servers: OpenStack Swift with tempauth and with Keystone, and radosgw."""

import contextlib
import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from servers.ceph import radosgw
from servers.keystone import Keystone
from servers.nginx import free_ports
from servers.swift import KEY, OTHER_KEY, OTHER_USER, USER, Swift

from storelib.capabilities import Capability
from storelib.driver import Digests
from storelib.drivers.swift import SwiftStore, garbage
from storelib.drivers.swift.service import Connections
from storelib.drivers.swift.writer import SwiftWriter
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
from storelib.testing.conformance import (
    Adding,
    BackendAccess,
    Calling,
    Capable,
    Copying,
    Failing,
    FaultyLine,
    Keeping,
    Modelled,
    Naming,
    Networking,
    NetworkingWhenAdding,
    Reading,
    StoreConformance,
    model,
)
from storelib.testing.faults import Cut, FaultyProxy, Reset, Stall

KiB, MiB = 1024, 1024 * 1024
PART = 64 * KiB
#: Lines of a manifest that radosgw takes here; its default is 1000.
MOST = 40
IMAGE = hashlib.shake_128(b"image").digest(5 * PART + 77)
PLAIN = (
    Capability.READ
    | Capability.RANGE
    | Capability.ADD
    | Capability.DELETE
    | Capability.LIST
    | Capability.STAT
    | Capability.GC
    | Capability.CHECK
    | Capability.COPY
)
OWN = PLAIN | Capability.ATOMIC_ADD | Capability.ACLS


MULTI = OWN & ~(Capability.LIST | Capability.GC)


@pytest.fixture(scope="module", autouse=True)
def _short():
    """Five back ends share the made-up sequences of calls of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "SEQUENCES", 3)
        yield


@pytest.fixture(scope="module")
def swift(tmp_path_factory):
    with Swift(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture(scope="module")
def keystone(tmp_path_factory):
    with Keystone(tmp_path_factory.mktemp("keystone")) as server:
        yield server


@pytest.fixture(scope="module")
def cloud(keystone, tmp_path_factory):
    """Swift with Keystone's tokens, and in its catalog."""
    with Swift(tmp_path_factory.mktemp("swift"), keystone.url) as server:
        keystone.add_endpoints(
            "object-store",
            Elsewhere="http://127.0.0.1:9/v1/AUTH_%(project_id)s",
            RegionOne=f"{server.url}/v1/AUTH_%(project_id)s",
        )
        yield server


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with radosgw(tmp_path_factory.mktemp("ceph"), rgw_max_slo_entries=MOST) as server:
        yield server


def open_swift(server, **options):
    """A store that authenticates with version 1."""
    settings = {
        "swift_store_auth_version": "1",
        "swift_store_auth_address": server.auth_url,
        "swift_store_user": USER,
        "swift_store_key": KEY,
        "swift_store_create_container_on_put": True,
        "transfer_timeout": 60.0,
    }
    return open_store(SwiftStore, **settings | options)


class Account:
    """An account as any user with a token sees it; nothing of the driver is used."""

    def __init__(self, url, token):
        self.url = url
        self.token = token

    @classmethod
    def of(cls, auth_url, user, key):
        request = urllib.request.Request(auth_url, headers={"X-Auth-User": user, "X-Auth-Key": key})
        with urllib.request.urlopen(request, timeout=30) as response:
            return cls(response.headers["X-Storage-Url"], response.headers["X-Auth-Token"])

    def call(self, method, *names, query="", data=None, **headers):
        path = "".join("/" + urllib.parse.quote(name, safe="") for name in names)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"{self.url}{path}{query}", data, {"X-Auth-Token": self.token, **named})
        request.method = method
        return urllib.request.urlopen(request, timeout=30)

    def get(self, *names, query=""):
        """The body, None if there is nothing."""
        try:
            with self.call("GET", *names, query=query) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def head(self, *names):
        with self.call("HEAD", *names) as response:
            return response.headers

    def names(self, *container, prefix=""):
        """All names in a container, or of containers."""
        found, marker = [], ""
        while True:
            query = urllib.parse.urlencode({"format": "json", "prefix": prefix, "marker": marker})
            page = json.loads(self.get(*container, query=f"?{query}") or b"[]")
            if not page:
                return found
            found += [entry["name"] for entry in page]
            marker = found[-1]


class Access(BackendAccess):
    """The account behind the driver's back."""

    def __init__(self, account, container="glance", own=False):
        self.account = account
        self.container = container
        self.own = own

    def container_of(self, image_id):
        if not self.own:
            return self.container
        name = f"{self.container}_{image_id}"
        return (
            name if len(name.encode()) <= 255 else f"{self.container}_{hashlib.sha256(image_id.encode()).hexdigest()}"
        )

    def read(self, image_id):
        return self.account.get(self.container_of(image_id), image_id)

    def residue(self, prefix):
        start = f"{self.container}_{prefix}" if self.own else self.container
        containers = self.account.names(prefix=start)
        return {
            f"{container}/{name}"
            for container in containers
            for name in ["", *self.account.names(container)]
            if name.startswith(prefix) or (not name and container.startswith(f"{self.container}_{prefix}"))
        }


class TestConformance(StoreConformance):
    """One container, tempauth."""

    many_images = 30
    capabilities = PLAIN

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, swift):
        return open_swift(swift)

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, swift):
        return Access(Account.of(swift.auth_url, USER, KEY))

    @pytest.fixture(
        scope="class",
        params=[{"swift_store_key": "hunter2-wrong"}, {"swift_store_user": "test:nobody"}],
        ids=["key", "user"],
    )
    @classmethod
    def denied_store(cls, swift, request):
        return open_swift(swift, **request.param)

    @pytest.fixture(scope="class")
    @classmethod
    def unreachable_store(cls, swift):
        address = "http://127.0.0.1:{}/auth/v1.0".format(*free_ports(1))
        return open_swift(swift, swift_store_auth_address=address, transfer_retries=0)

    @pytest.fixture(scope="class")
    @classmethod
    def faulty_line(cls, swift):
        with FaultyProxy(("127.0.0.1", swift.ports["proxy"])) as proxy:
            address = "http://{}:{}/auth/v1.0".format(*proxy.address)

            def behind(**options):
                settings = {"swift_store_auth_address": address, "swift_store_read_timeout": 0.4}
                return open_swift(swift, **settings | options)

            yield FaultyLine(proxy, behind)


class TestConformanceWithContainers(StoreConformance):
    """A container for each image, Keystone, an account from a reference file, a second storage policy."""

    many_images = 30
    # Of what does not depend on tokens and containers TestConformance has more.
    sample = True
    capabilities = OWN
    # The class after this has it; here each look at the list would be a request for each image.
    not_applicable = frozenset({"test_store_behaves_like_a_dict"})

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, cloud, keystone, tmp_path_factory):
        return open_reference(
            keystone, tmp_path_factory, swift_store_container_per_image=True, swift_store_storage_policy="silver"
        )

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, cloud, keystone):
        return Access(account_of(cloud, keystone, "demo"), own=True)


class TestConformanceOfTenants(
    NetworkingWhenAdding, Networking, Modelled, Capable, Naming, Copying, Keeping, Calling, Failing, Reading, Adding
):
    """Each user's images in the user's own account. How they are published there, and all that follows from it, is
    what TestConformanceWithContainers has."""

    capabilities = MULTI
    sample = True

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, cloud, keystone):
        return open_store(
            type("ForDemo", (AsUser,), {"request": context_of(keystone, "demo")}),
            **multi_tenant(keystone, swift_store_use_trusts=False),
        )

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, cloud, keystone):
        return Access(account_of(cloud, keystone, "demo"), "tenants", own=True)


class TestConformanceOfRadosgw(StoreConformance):
    """Ceph's, with segments in a container of their own and images in several."""

    many_images = 30
    sample = True
    capabilities = PLAIN

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, gateway):
        return open_gateway(gateway)

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, gateway):
        return Access(Account.of(gateway.swift_auth_url, gateway.swift_user, gateway.swift_key))


def open_gateway(gateway, **options):
    settings = {
        "swift_store_auth_version": "1",
        "swift_store_auth_address": gateway.swift_auth_url,
        "swift_store_user": gateway.swift_user,
        "swift_store_key": gateway.swift_key,
        "swift_store_create_container_on_put": True,
        "swift_store_segment_container": "segments",
    }
    return open_store(SwiftStore, **settings | options)


def open_reference(keystone, tmp_path_factory, **options):
    """A store of project demo, by a reference file."""
    file = tmp_path_factory.mktemp("references") / "swift.conf"
    file.write_text(f"[demo]\nauth_address = {keystone.url}\nuser = demo:demo\nkey = 'demopass'\n")
    settings = {
        "swift_store_config_file": str(file),
        "default_swift_reference": "demo",
        "swift_store_region": "RegionOne",
        "swift_store_create_container_on_put": True,
    }
    return open_store(SwiftStore, **settings | options)


def multi_tenant(keystone, **options):
    settings = {
        "swift_store_multi_tenant": True,
        "swift_store_auth_address": keystone.url,
        "swift_store_user": "service:images",
        "swift_store_key": "imagespass",
        "swift_store_container": "tenants",
        "swift_store_region": "RegionOne",
    }
    return settings | options


def context_of(keystone, name):
    """What a request of that user brings along."""
    token, about = keystone.token(name, name)
    return types.SimpleNamespace(
        auth_token=token,
        project_id=about["project"]["id"],
        user_id=about["user"]["id"],
        service_catalog=about["catalog"],
    )


def account_of(cloud, keystone, name):
    token, about = keystone.token(name, name)
    return Account(f"{cloud.url}/v1/AUTH_{about['project']['id']}", token)


class AsUser(SwiftStore):
    """A store whose callers all come with one request."""

    request = None

    def configure_get(self):
        super().configure_get()
        account_of, own_account = self.service.account_of, self.service.own_account
        self.service.account_of = lambda location, context: account_of(location, context or self.request)
        self.service.own_account = lambda context=None: own_account(context or self.request)

    def remove(self, location, context, deletion):
        super().remove(location, self.request, deletion)

    def add(self, *arguments, context=None, **options):
        return super().add(*arguments, context=context or self.request, **options)

    def get(self, location, offset=0, length=None, context=None, **options):
        return super().get(location, offset, length, context or self.request, **options)

    def get_size(self, location, context=None):
        return super().get_size(location, context or self.request)

    def stat(self, location, context=None):
        return super().stat(location, context or self.request)

    def delete(self, location, context=None):
        return super().delete(location, context or self.request)

    def copy(self, *arguments, context=None, **options):
        return super().copy(*arguments, context=context or self.request, **options)

    def set_acls(self, *arguments, context=None, **options):
        return super().set_acls(*arguments, context=context or self.request, **options)

    def open_writer(self, image_id, size, context):
        return super().open_writer(image_id, size, context or self.request)

    def server_side_copy(self, source, image_id, context):
        return super().server_side_copy(source, image_id, context or self.request)


# -- What driver tests share ------------------------------------------------------------------------------------------


@pytest.fixture
def account(swift):
    return Account.of(swift.auth_url, USER, KEY)


@pytest.fixture
def container(request, account):
    """A container of this test alone."""
    name = f"test-{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
    account.call("PUT", name)
    return name


@pytest.fixture
def store(swift, container):
    return open_swift(swift, swift_store_container=container)


@pytest.fixture
def small_parts(monkeypatch):
    """Segments far smaller than the options allow."""
    monkeypatch.setattr(SwiftWriter, "part_size", lambda self, number, size: PART)


def chunks(data, size=PART):
    for start in range(0, len(data), size):
        yield data[start : start + size]


def read(store, uri, offset=0, length=None, **options):
    with store.get(uri, offset, length, **options).data as stream:
        return stream.read()


def segments_of(account, container, image_id):
    return [name for name in account.names(container) if name.startswith(f"{image_id}/")]


@contextlib.contextmanager
def counted(monkeypatch):
    """Every request that is sent meanwhile, as method and path."""
    sent = []
    plain = Connections.send

    def send(self, method, url, *arguments, **options):
        sent.append(f"{method} {urllib.parse.urlsplit(url).path}")
        return plain(self, method, url, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Connections, "send", send)
        yield sent


# -- Segments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [PART, PART + 1, 2 * PART - 1, 2 * PART, 2 * PART + 1, 3 * PART])
@pytest.mark.parametrize("declared", [True, False])
def test_image_is_cut_where_segments_end(store, account, container, small_parts, size, declared):
    data = IMAGE[:size]
    stored = store.add("x", chunks(data, 10_000), size if declared else None)
    lengths = [int(account.head(container, name)["Content-Length"]) for name in segments_of(account, container, "x")]
    assert lengths == ([PART] * (size // PART) + ([size % PART] if size % PART else []) if size > PART else [])
    assert account.get(container, "x") == data
    assert read(store, stored.uri) == data


def test_large_image_is_a_static_manifest(store, account, container, small_parts):
    store.add("x", IMAGE)
    assert account.head(container, "x")["X-Static-Large-Object"] == "True"
    manifest = json.loads(account.get(container, "x", query="?multipart-manifest=get"))
    assert [entry["bytes"] for entry in manifest] == [PART] * 5 + [77]
    assert [entry["hash"] for entry in manifest] == [hashlib.md5(part).hexdigest() for part in chunks(IMAGE)]


def test_segments_of_two_adds_have_nothing_in_common(store, account, container, small_parts):
    store.delete(store.add("x", IMAGE).uri)
    first = set(segments_of(account, container, "x"))
    store.add("x", IMAGE)
    assert not first & set(segments_of(account, container, "x"))


def test_segments_go_to_the_container_for_them(swift, account, container, small_parts):
    store = open_swift(swift, swift_store_container=container, swift_store_segment_container=f"{container}_parts")
    stored = store.add("x", IMAGE)
    assert account.names(container) == ["x"]
    assert len(account.names(f"{container}_parts")) == 6
    assert read(store, stored.uri) == IMAGE
    store.delete(stored.uri)
    assert account.names(f"{container}_parts") == []


def test_more_segments_than_a_manifest_holds(swift, account, container, small_parts):
    url = swift.another_proxy(manifest=10)
    store = open_swift(swift, swift_store_container=container, swift_store_auth_address=f"{url}/auth/v1.0")
    data = hashlib.shake_128(b"long").digest(33 * PART + 5)
    stored = store.add("x", chunks(data, MiB))
    assert len(json.loads(account.get(container, "x", query="?multipart-manifest=get"))) == 4
    assert read(store, stored.uri) == data
    assert read(store, stored.uri, 9 * PART, 2 * PART) == data[9 * PART : 11 * PART]
    copy = store.copy(stored.uri, "y", digests=Digests(stored.checksum, stored.multihash))
    assert read(store, copy.uri) == data
    store.delete(copy.uri)
    assert store.gc(0) == []
    store.delete(stored.uri)
    assert account.names(container) == []


def test_as_many_segments_as_a_manifest_of_radosgw_holds_and_one_more(gateway, monkeypatch):
    monkeypatch.setattr(SwiftWriter, "part_size", lambda self, number, size: 4 * KiB)
    store = open_gateway(gateway)
    account = Account.of(gateway.swift_auth_url, gateway.swift_user, gateway.swift_key)
    for count in (MOST, MOST + 1):
        data = hashlib.shake_128(b"long").digest(count * 4 * KiB)
        stored = store.add("many", chunks(data, MiB))
        # The second is one more than the server says that a manifest holds, so it is a dynamic one.
        assert ("X-Object-Manifest" in account.head("glance", "many")) is (count > MOST)
        assert read(store, stored.uri) == data
        store.delete(stored.uri)
    assert segments_of(account, "segments", "many") == []


@pytest.fixture(scope="module")
def old_url(swift):
    """A proxy that knows dynamic large objects only."""
    return swift.another_proxy(large="dlo")


# A page of a listing has 100 entries, and Swift looks at no more to find size and ranges.
@pytest.mark.parametrize("count", [20, 120])
def test_without_static_manifests_images_are_dynamic(swift, old_url, account, container, small_parts, count):
    store = open_swift(swift, swift_store_container=container, swift_store_auth_address=f"{old_url}/auth/v1.0")
    data = hashlib.shake_128(b"many").digest(count * PART + 1)
    stored = store.add("x", chunks(data, MiB))
    headers = account.head(container, "x")
    assert urllib.parse.unquote(headers["X-Object-Manifest"]).startswith(f"{container}/x/")
    assert store.get_size(stored.uri) == len(data)
    assert [info.size for info in store.list_images()] == [len(data)]
    assert read(store, stored.uri) == data
    assert read(store, stored.uri, (count - 1) * PART, 2 * PART) == data[(count - 1) * PART :]
    assert store.gc(0) == []
    store.delete(stored.uri)
    assert account.names(container) == []


def test_segments_are_deleted_page_after_page(store, account, container, monkeypatch):
    monkeypatch.setattr(SwiftWriter, "part_size", lambda self, number, size: 4 * KiB)
    stored = store.add("x", bytes(230 * 4 * KiB))
    assert len(account.names(container)) == 231
    store.delete(stored.uri)
    assert account.names(container) == []


def test_damaged_segment_is_sent_again(store, small_parts, monkeypatch):
    plain = SwiftWriter._check_etag
    failed = []

    def check(response, body):
        if not failed:
            failed.append(body)
            raise RemoteServiceUnavailable("on purpose")
        plain(response, body)

    monkeypatch.setattr(SwiftWriter, "_check_etag", staticmethod(check))
    assert read(store, store.add("x", IMAGE).uri) == IMAGE


def test_damage_on_the_way_is_noticed(store, small_parts, monkeypatch):
    from storelib.drivers.swift.service import Body

    plain = Body.read

    def damaged(self, size=-1):
        piece = plain(self, size)
        return bytes(len(piece)) if len(self) == PART else piece

    monkeypatch.setattr(Body, "read", damaged)
    store.retry_policy = type(store.retry_policy)(retries=1, timeout=5)
    with pytest.raises(RemoteServiceUnavailable, match="other bytes"):
        store.add("x", IMAGE)
    assert list(store.list_images()) == []


@pytest.mark.parametrize("number", [0, 2])
def test_segment_that_vanished_is_an_error_not_a_short_image(store, account, container, small_parts, number):
    stored = store.add("x", IMAGE)
    account.call("DELETE", container, segments_of(account, container, "x")[number])
    with pytest.raises(IncompleteRead):
        read(store, stored.uri)
    store.delete(stored.uri)
    assert account.names(container) == []


# -- Requests ---------------------------------------------------------------------------------------------------------


def test_small_image_takes_three_requests(store, container, monkeypatch):
    store.add("before", b"token and features are known after this")
    with counted(monkeypatch) as sent:
        store.add("x", b"data")
    assert [line.partition(" ")[0] for line in sent] == ["HEAD", "PUT", "HEAD"]


def test_get_takes_one_request(store, monkeypatch):
    uri = store.add("x", b"data").uri
    with counted(monkeypatch) as sent:
        read(store, uri)
        read(store, uri, 1, 2)
    assert [line.partition(" ")[0] for line in sent] == ["GET", "GET"]


def test_eight_adds_share_one_token(store, monkeypatch):
    with counted(monkeypatch) as sent, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.add(f"x{number}", b"data"), range(8)))
    assert len([line for line in sent if "/auth/" in line]) == 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_has_connections_of_its_own(store, small_parts):
    uri = store.add("x", IMAGE).uri
    parents = store.service.connections
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os._exit(0 if read(store, uri) == IMAGE and store.service.connections is not parents else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.service.connections is parents
    assert read(store, uri) == IMAGE


def test_far_away_ranges_are_read_side_by_side(swift, store, container, monkeypatch):
    monkeypatch.setattr("storelib.transfer.http.reading.QUICK", 0.0)
    far = open_swift(swift, swift_store_container=container, swift_store_download_part_size=1)
    data = hashlib.shake_128(b"far").digest(5 * MiB + 3)
    uri = store.add("x", data).uri
    with counted(monkeypatch) as sent:
        assert read(far, uri) == data
        assert read(far, uri, MiB + 5, 3 * MiB) == data[MiB + 5 : 4 * MiB + 5]
    assert len(sent) > 6


# -- Tokens -----------------------------------------------------------------------------------------------------------


def test_token_that_is_refused_in_mid_upload_is_renewed(swift, store, small_parts):
    def source():
        for number, chunk in enumerate(chunks(IMAGE)):
            if number in (2, 4):
                swift.forget_tokens()
            yield chunk

    assert read(store, store.add("x", source()).uri) == IMAGE


def test_token_that_is_refused_in_mid_download_is_renewed(swift, store, small_parts):
    uri = store.add("x", IMAGE).uri
    with store.get(uri).data as stream:
        assert stream.read(10) == IMAGE[:10]
        swift.forget_tokens()
        stream.seek(3 * PART)
        assert stream.read() == IMAGE[3 * PART :]


def test_token_is_renewed_before_it_expires(swift, account, container, small_parts, monkeypatch):
    url = swift.another_proxy(token_life=1)
    store = open_swift(swift, swift_store_container=container, swift_store_auth_address=f"{url}/auth/v1.0")

    def source():
        for chunk in chunks(IMAGE):
            time.sleep(0.4)
            yield chunk

    swift.forget_tokens()
    with counted(monkeypatch) as sent:
        stored = store.add("x", source())
    assert len([line for line in sent if "/auth/" in line]) > 1
    assert read(store, stored.uri) == IMAGE
    # The server would give what is left of that token to others.
    swift.forget_tokens()


def test_wrong_password_for_keystone_is_forbidden(keystone, cloud):
    settings = {"swift_store_auth_address": keystone.url, "swift_store_user": "demo:demo"}
    store = open_store(SwiftStore, swift_store_key="hunter2-wrong", **settings)
    with pytest.raises(Forbidden) as caught:
        store.add("x", b"data")
    assert "hunter2" not in str(caught.value)


def test_user_without_rights_is_denied(swift, container):
    store = open_swift(
        swift, swift_store_user="test:reader", swift_store_key="reader-key", swift_store_container=container
    )
    with pytest.raises((StorageWriteDenied, Forbidden)):
        store.add("x", b"data")


def test_no_token_is_logged(swift, store, small_parts, caplog):
    caplog.set_level(logging.DEBUG, logger="")
    read(store, store.add("x", IMAGE).uri)
    token = store.service.own_account().identity.access().token
    assert token
    for secret in (token[7:19], KEY):
        assert secret not in caplog.text


# -- Containers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, len(IMAGE)])
def test_missing_container_is_a_mistake_in_the_configuration(swift, account, small_parts, size):
    store = open_swift(swift, swift_store_container="no-such-one", swift_store_create_container_on_put=False)
    with pytest.raises(BadStoreConfiguration, match="swift_store_create_container_on_put"):
        store.add("x", IMAGE[:size])
    with pytest.raises(BadStoreConfiguration, match="no-such-one"):
        store.check()
    assert list(store.list_images()) == []
    with pytest.raises(NotFound):
        store.get(f"swift+http://{swift.auth_url[7:]}/no-such-one/x")


@pytest.fixture
def limited(swift, account, container):
    """Of a user who may use one container and nothing else of the account."""
    account.call("POST", container, X_Container_Read="test:reader", X_Container_Write="test:reader")
    reader = {"swift_store_user": "test:reader", "swift_store_key": "reader-key"}
    return lambda **options: open_swift(swift, **{"swift_store_container": container} | reader | options)


def test_user_of_one_container_is_served(limited, account, container, small_parts):
    store = limited()
    assert "may not ask" in store.check().detail
    uris = [store.add("x", IMAGE).uri, store.add("y", b"small").uri]
    assert [read(store, uri) for uri in uris] == [IMAGE, b"small"]
    assert {info.uri for info in store.list_images()} == set(uris)
    account.call("PUT", container, f"dead/{'0' * 16}/00000000", data=b"")
    assert [item.image_id for item in store.gc(0)] == ["dead"]
    for uri in uris:
        store.delete(uri)
    assert account.names(container) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"swift_store_container": "not-there"}, "not-there"),
        ({"swift_store_segment_container": "not-there"}, "not-there"),
        ({"swift_store_container_per_image": True}, "swift_store_container_per_image"),
    ],
)
def test_container_that_the_user_may_not_make_is_named_by_add_and_check(limited, small_parts, options, named):
    store = limited(**options)
    for call in (store.check, lambda: store.add("x", IMAGE)):
        with pytest.raises((StorageWriteDenied, Forbidden), match=named):
            call()


def test_user_who_may_only_read_is_told_by_check(swift, account, container, limited):
    account.call("POST", container, X_Container_Write="test:tester")
    with pytest.raises(StorageWriteDenied):
        limited().check()
    assert limited(read_only=True).check()


def test_check_leaves_nothing(store, account, container):
    assert store.check()
    assert account.names(container) == []


@pytest.mark.parametrize("policy", ["silver", "gold"])
def test_segments_are_stored_as_their_images_are(swift, account, container, small_parts, policy):
    """Whatever the option says that new containers of images are made of."""
    name = f"{container}_{policy}"
    account.call("PUT", name, X_Storage_Policy=policy)
    store = open_swift(
        swift,
        swift_store_container=name,
        swift_store_segment_container=f"{name}_parts",
        swift_store_storage_policy="silver" if policy == "gold" else None,
    )
    store.add("x", IMAGE)
    assert account.head(f"{name}_parts")["X-Storage-Policy"] == policy


def test_missing_container_is_made_of_the_policy_wanted(swift, account, small_parts):
    store = open_swift(swift, swift_store_container="made", swift_store_storage_policy="silver")
    store.add("x", IMAGE)
    assert account.head("made")["X-Storage-Policy"] == "silver"


@pytest.mark.parametrize(
    "name", ["with space", "B\u00fccher \u65e5\u672c", "100%25", "a?b#c", "quo'te\"", "dots..", ".hidden"]
)
def test_odd_container_works(swift, account, small_parts, name):
    store = open_swift(swift, swift_store_container=name)
    stored = store.add("an id/".rstrip("/") + " % \u00e9", IMAGE)
    assert account.get(name, "an id % \u00e9") == IMAGE
    assert read(store, stored.uri) == IMAGE
    assert [info.uri for info in store.list_images()] == [stored.uri]
    store.delete(stored.uri)
    assert account.names(name) == []


def test_seed_spreads_images(swift, account, small_parts):
    store = open_swift(swift, swift_store_container="spread", swift_store_multiple_containers_seed=2)
    uris = {store.add(image_id, IMAGE).uri for image_id in ("Ab-1", "cd-2")}
    assert {"spread_ab", "spread_cd"} <= set(account.names(prefix="spread"))
    assert {info.uri for info in store.list_images()} == uris


@pytest.mark.parametrize("size", [PART, len(IMAGE)])
def test_exceeded_quota_is_a_full_store(store, account, container, small_parts, size):
    account.call("POST", container, X_Container_Meta_Quota_Bytes=str(PART // 2))
    with pytest.raises(StorageFull):
        store.add("x", IMAGE[:size])
    assert account.names(container) == []


def test_check_tells_the_quota(swift, cloud, keystone, tmp_path_factory):
    admin = Account(f"{cloud.url}/v1/AUTH_{keystone.projects['alt_demo']}", keystone.token("images", "service")[0])
    admin.call("POST", X_Account_Meta_Quota_Bytes="1000000")
    settings = {"swift_store_auth_address": keystone.url, "swift_store_region": "RegionOne"}
    store = open_store(
        SwiftStore,
        swift_store_user="alt_demo",
        swift_store_key="alt_demopass",
        swift_store_project_id=keystone.projects["alt_demo"],
        swift_store_create_container_on_put=True,
        **settings,
    )
    store.add("x", bytes(1000))
    assert store.check().total == 1_000_000


def test_images_expire_with_their_segments(swift, account, container, small_parts):
    store = open_swift(swift, swift_store_container=container, swift_store_delete_after=3600)
    store.add("x", IMAGE)
    store.add("y", b"small")
    expiry = {account.head(container, name)["X-Delete-At"] for name in account.names(container)}
    assert all(3500 < int(at) - time.time() < 3700 for at in expiry)


# -- Images of other programs -----------------------------------------------------------------------------------------


def test_old_dynamic_image_is_read_listed_and_deleted(store, account, container):
    for number, part in enumerate(chunks(IMAGE, PART), 1):
        account.call("PUT", container, f"old-{number:05}", data=part)
    account.call("PUT", container, "old", data=b"", X_Object_Manifest=f"{container}/old-")
    account.call("PUT", container, "older", data=b"another")
    [image, other] = sorted(store.list_images(), key=lambda info: -info.size)
    assert (image.image_id, image.size) == ("old", len(IMAGE))
    assert other.image_id == "older"
    assert read(store, image.uri, PART - 5, 10) == IMAGE[PART - 5 : PART + 5]
    store.delete(image.uri)
    assert account.names(container) == ["older"]


def test_static_image_of_another_program_is_deleted_with_its_segments(store, account, container):
    account.call("PUT", f"{container}_other")
    entries = []
    for number, part in enumerate(chunks(IMAGE, PART)):
        account.call("PUT", f"{container}_other", f"s{number}", data=part)
        entries.append({"path": f"/{container}_other/s{number}"})
    account.call("PUT", container, "x", query="?multipart-manifest=put", data=json.dumps(entries).encode())
    [image] = store.list_images()
    assert image.size == len(IMAGE)
    assert read(store, image.uri) == IMAGE
    store.delete(image.uri)
    assert account.names(container) == account.names(f"{container}_other") == []


def test_image_replaced_while_it_is_read_is_noticed(store, account, container, small_parts):
    uri = store.add("x", IMAGE).uri
    with store.get(uri).data as stream:
        stream.read(1)
        account.call("PUT", container, "x", data=IMAGE[::-1])
        stream.seek(3 * PART)
        with pytest.raises(ImageChanged):
            stream.read()


# -- Copies, sharing, temporary URLs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 10, len(IMAGE)])
def test_copy_is_made_by_the_server(store, account, container, small_parts, monkeypatch, size):
    original = store.add("x", IMAGE[:size])
    sent = []
    plain = Connections.send

    def send(self, method, url, headers, body=b"", extra_timeout=0.0):
        sent.append(len(body) if headers.get("Content-Type") == "application/octet-stream" else 0)
        return plain(self, method, url, headers, body, extra_timeout)

    monkeypatch.setattr(Connections, "send", send)
    copy = store.copy(original.uri, "y", digests=Digests(original.checksum, original.multihash))
    assert sum(sent) == 0
    store.delete(original.uri)
    with store.get(copy.uri).data as stream:
        assert stream.digest == ("sha512", original.multihash)
    assert read(store, copy.uri) == IMAGE[:size]
    assert store.gc(0) == []
    store.delete(copy.uri)
    assert account.names(container) == []


def test_temporary_url_works_for_a_while(swift, account, container, small_parts):
    account.call("POST", X_Account_Meta_Temp_URL_Key="swordfish")
    store = open_swift(swift, swift_store_container=container, swift_store_temp_url_key="swordfish")
    uri = store.add("an % image", IMAGE).uri
    with urllib.request.urlopen(store.presign(uri, 60), timeout=30) as response:
        assert response.read() == IMAGE
    soon = store.presign(uri, 1)
    time.sleep(2.1)
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(soon, timeout=30)
    for seconds in (-5, 0, float("nan"), float("inf")):
        with pytest.raises(Invalid):
            store.presign(uri, seconds)


def test_access_control_lists_open_and_close_an_images_container(swift, account, small_parts):
    store = open_swift(swift, swift_store_container="shared", swift_store_container_per_image=True)
    uri = store.add("x", IMAGE).uri
    stranger = Account(account.url, Account.of(swift.auth_url, OTHER_USER, OTHER_KEY).token)

    def may_read():
        try:
            return stranger.get("shared_x", "x") == IMAGE
        except urllib.error.HTTPError:
            return False

    assert not may_read()
    for lists in ({"public": True}, {"read_tenants": ["other"]}):
        store.set_acls(uri, **lists)
        assert may_read()
        store.set_acls(uri)
        assert not may_read()
    store.set_acls(uri, write_tenants=["other"])
    stranger.call("PUT", "shared_x", "y", data=b"")
    with pytest.raises(Invalid):
        store.set_acls(uri, read_tenants=["other,.r:*"])


# -- Keystone and tenants ---------------------------------------------------------------------------------------------


def test_application_credential(keystone, cloud):
    token, about = keystone.token("demo", "demo")
    body = json.dumps({"application_credential": {"name": "storelib"}}).encode()
    request = urllib.request.Request(f"{keystone.url}/users/{about['user']['id']}/application_credentials", body)
    request.headers = {"X-Auth-Token": token, "Content-Type": "application/json"}
    with urllib.request.urlopen(request, timeout=30) as response:
        made = json.load(response)["application_credential"]
    store = open_store(
        SwiftStore,
        swift_store_auth_address=keystone.url,
        swift_store_application_credential_id=made["id"],
        swift_store_application_credential_secret=made["secret"],
        swift_store_region="RegionOne",
        swift_store_create_container_on_put=True,
    )
    assert read(store, store.add("by application", b"data").uri) == b"data"


def test_endpoint_of_the_options_goes_before_the_catalogs(keystone, cloud, tmp_path_factory):
    endpoint = f"{cloud.url}/v1/AUTH_%(project_id)s"
    store = open_reference(keystone, tmp_path_factory, swift_store_region=None, swift_store_endpoint=endpoint)
    assert read(store, store.add("by endpoint", b"data").uri) == b"data"


def test_region_that_is_not_there_is_a_mistake(keystone, cloud, tmp_path_factory):
    store = open_reference(keystone, tmp_path_factory, swift_store_region="Nowhere")
    with pytest.raises(BadStoreConfiguration, match="swift_store_region"):
        store.add("x", b"data")


def test_revoked_token_of_keystone_is_renewed(keystone, cloud, tmp_path_factory, small_parts):
    store = open_reference(keystone, tmp_path_factory)

    def source():
        for number, chunk in enumerate(chunks(IMAGE)):
            if number == 3:
                keystone.revoke(store.service.own_account().identity.access().token)
                cloud.forget_tokens()
            yield chunk

    assert read(store, store.add("revoked", source()).uri) == IMAGE


@pytest.fixture
def tenants(keystone, cloud):
    return open_store(SwiftStore, **multi_tenant(keystone, swift_store_admin_tenants=[keystone.projects["service"]]))


def test_images_of_tenants_are_in_their_own_accounts(tenants, keystone, cloud, small_parts):
    for name in ("demo", "alt_demo"):
        stored = tenants.add("mine", IMAGE, context=context_of(keystone, name))
        assert keystone.projects[name] in stored.uri
        assert account_of(cloud, keystone, name).get("tenants_mine", "mine") == IMAGE
        tenants.delete(stored.uri, context=context_of(keystone, name))


def test_shared_image_is_read_by_another_tenant(tenants, keystone, cloud, small_parts):
    owner, other = context_of(keystone, "demo"), context_of(keystone, "alt_demo")
    uri = tenants.add("shared", IMAGE, context=owner).uri
    with pytest.raises(Forbidden):
        read(tenants, uri, context=other)
    tenants.set_acls(uri, read_tenants=[other.project_id], context=owner)
    assert read(tenants, uri, context=other) == IMAGE
    with pytest.raises(Forbidden):
        tenants.delete(uri, context=other)
    tenants.set_acls(uri, context=owner)
    with pytest.raises(Forbidden):
        read(tenants, uri, context=other)
    tenants.set_acls(uri, public=True, context=owner)
    assert read(tenants, uri, context=other) == IMAGE
    tenants.delete(uri, context=owner)


def test_service_reads_and_deletes_without_a_request(tenants, keystone, cloud, small_parts):
    uri = tenants.add("abandoned", IMAGE, context=context_of(keystone, "demo")).uri
    assert read(tenants, uri) == IMAGE
    tenants.delete(uri)
    assert not [name for name in account_of(cloud, keystone, "demo").names() if name == "tenants_abandoned"]


def test_tokens_stay_with_the_service_they_are_for(tenants, keystone):
    with pytest.raises(BadStoreUri):
        tenants.get("swift+http://127.0.0.1:9/v1/AUTH_x/tenants_x/x", context=context_of(keystone, "demo"))


def trusts(keystone):
    return keystone.call("GET", "/OS-TRUST/trusts")["trusts"]


def test_upload_goes_on_with_a_trust_when_the_requests_token_is_gone(tenants, keystone, cloud, small_parts):
    context = context_of(keystone, "demo")
    during = []

    def source():
        for number, chunk in enumerate(chunks(IMAGE)):
            if number == 4:
                during.extend(trusts(keystone))
                keystone.revoke(context.auth_token)
                cloud.forget_tokens()
            yield chunk

    uri = tenants.add("trusted", source(), context=context).uri
    assert len(during) == 1
    assert trusts(keystone) == []
    again = context_of(keystone, "demo")
    assert read(tenants, uri, context=again) == IMAGE
    tenants.delete(uri, context=again)


def test_download_goes_on_with_a_trust_until_the_stream_is_closed(keystone, cloud):
    store = open_store(SwiftStore, **multi_tenant(keystone, swift_store_download_part_size=1))
    context = context_of(keystone, "demo")
    data = hashlib.shake_128(b"long").digest(3 * MiB)
    uri = store.add("trusted", data, context=context).uri
    with store.get(uri, context=context).data as stream:
        stream.read(1)
        assert len(trusts(keystone)) == 1
        keystone.revoke(context.auth_token)
        cloud.forget_tokens()
        stream.seek(2 * MiB)
        assert stream.read() == data[2 * MiB :]
    assert trusts(keystone) == []
    store.delete(uri, context=context_of(keystone, "demo"))


def test_upload_revokes_its_trust(tenants, keystone, cloud, small_parts):
    context = context_of(keystone, "demo")
    uri = tenants.add("revoked", IMAGE, context=context).uri
    assert trusts(keystone) == []
    tenants.delete(uri, context=context)


def test_failed_upload_revokes_its_trust(tenants, keystone, cloud, small_parts):
    def source():
        yield from chunks(IMAGE)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tenants.add("failed", source(), context=context_of(keystone, "demo"))
    assert trusts(keystone) == []


def test_without_trusts_a_token_that_is_gone_is_forbidden(keystone, cloud, small_parts):
    store = open_store(SwiftStore, **multi_tenant(keystone, swift_store_use_trusts=False))
    context = context_of(keystone, "demo")

    def source():
        for number, chunk in enumerate(chunks(IMAGE)):
            if number == 3:
                keystone.revoke(context.auth_token)
                cloud.forget_tokens()
            yield chunk

    with pytest.raises((Forbidden, StorageWriteDenied)):
        store.add("gone", source(), context=context)


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_certificates_are_verified(gateway, monkeypatch):
    # What many machines set must not undo the options.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(gateway.certificate))
    address = {"swift_store_auth_address": f"{gateway.https_endpoint}/auth/1.0"}
    with pytest.raises(RemoteServiceUnavailable, match="swift_store_cacert") as caught:
        open_gateway(gateway, **address).add("x", b"data")
    assert not caught.value.transient
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/hostname")
    for options in ({"swift_store_cacert": str(gateway.certificate)}, {"swift_store_auth_insecure": True}):
        store = open_gateway(gateway, **address, **options)
        stored = store.add("over tls", IMAGE)
        assert read(store, stored.uri) == IMAGE
        store.delete(stored.uri)


# -- Faults on the wire -----------------------------------------------------------------------------------------------


@pytest.fixture
def faulty(swift):
    with FaultyProxy(("127.0.0.1", swift.ports["proxy"])) as proxy:
        yield proxy


@pytest.fixture
def shaky(swift, faulty, container):
    """A store behind the proxy that waits only briefly."""
    host, port = faulty.address
    store = open_swift(
        swift,
        swift_store_container=container,
        swift_store_auth_address=f"http://{host}:{port}/auth/v1.0",
        swift_store_read_timeout=0.4,
        transfer_retries=8,
    )
    store.check()
    return store


FAULTS = [Cut, Reset, Stall]


@pytest.mark.parametrize("fault", FAULTS)
def test_answer_that_is_lost_is_no_failure(shaky, faulty, account, container, small_parts, fault):
    """The image was published, but nobody heard of it."""
    drop_connections(shaky)
    plain = SwiftWriter.publish_segments
    tries = []

    def publish(self, segments, size):
        if not tries:
            drop_connections(shaky)
            # After the answer to the HEAD before.
            faulty.plan(fault(PART // 128))
        tries.append(1)
        plain(self, segments, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SwiftWriter, "publish_segments", publish)
        shaky.add("x", IMAGE)
    assert account.get(container, "x") == IMAGE
    assert shaky.gc(0) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_server_that_always_fails_leaves_nothing(swift, shaky, faulty, account, container, small_parts, fault):
    shaky.retry_policy = type(shaky.retry_policy)(retries=1, timeout=5.0)

    def source():
        yield IMAGE[: 3 * PART]
        drop_connections(shaky)
        faulty.always(fault(PART // 2, "up"))
        yield IMAGE[3 * PART :]

    with pytest.raises(StoreError) as caught:
        shaky.add("x", source())
    assert isinstance(caught.value, RemoteServiceUnavailable)
    faulty.always()
    drop_connections(shaky)
    shaky.gc(0)
    assert account.names(container) == []


def drop_connections(store):
    """The next request makes a new connection, which suffers what is planned."""
    store.service.connections._client.request_session.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_own_container_whose_answer_was_lost_is_no_duplicate(swift, shaky, faulty, account, small_parts, fault):
    host, port = faulty.address
    store = open_swift(
        swift,
        swift_store_container=f"lost{fault.__name__}",
        swift_store_container_per_image=True,
        swift_store_auth_address=f"http://{host}:{port}/auth/v1.0",
        swift_store_read_timeout=0.4,
        transfer_retries=8,
    )
    store.check()
    plain = SwiftWriter.claim
    tries = []

    def claim(self):
        if not tries:
            drop_connections(store)
            faulty.plan(fault(5))
        tries.append(1)
        plain(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SwiftWriter, "claim", claim)
        uri = store.add("x", IMAGE).uri
    assert len(tries) > 1
    assert account.get(f"lost{fault.__name__}_x", "x") == IMAGE
    store.delete(uri)


def test_failed_copy_leaves_nothing(store, account, container, small_parts, monkeypatch):
    stored = store.add("x", IMAGE)
    before = account.names(container)

    def fail(self, segments, size):
        raise StorageFull("on purpose")

    monkeypatch.setattr(SwiftWriter, "publish_segments", fail)
    with pytest.raises(StorageFull):
        store.copy(stored.uri, "y", digests=Digests(stored.checksum, stored.multihash))
    assert account.names(container) == before


# -- Racing -----------------------------------------------------------------------------------------------------------


def test_one_of_eight_racers_makes_the_container(swift, account, small_parts):
    store = open_swift(swift, swift_store_container="raced", swift_store_container_per_image=True)
    start = threading.Barrier(8)

    def add(number):
        start.wait(10)
        try:
            return store.add("x", bytes([number]) * (3 * PART))
        except Duplicate:
            return None

    with ThreadPoolExecutor(8) as pool:
        [winner] = [stored for stored in pool.map(add, range(8)) if stored]
    assert hashlib.sha512(account.get("raced_x", "x")).hexdigest() == winner.multihash
    assert len(account.names("raced_x")) == 4


# -- gc and adds under way of others ----------------------------------------------------------------------------------

_GC = """
import json, sys
from storelib.drivers.swift import SwiftStore
from storelib.registry import open_store
print(len(open_store(SwiftStore, **json.loads(sys.argv[1])).gc(0, "living")))
"""


def gc_of_another_process(options):
    command = [sys.executable, "-c", _GC, json.dumps(options)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def gc_of_another_store(options):
    return len(open_store(SwiftStore, **options).gc(0, "living"))


@pytest.fixture(params=["swift", "own containers", "dynamic", "radosgw"])
def living(request, small_parts):
    """A store, and the options for another one of the same place."""
    if request.param == "radosgw":
        store = open_gateway(request.getfixturevalue("gateway"))
    else:
        swift = request.getfixturevalue("swift")
        options = {"swift_store_container": f"living{request.param[:3]}"}
        if request.param == "dynamic":
            options["swift_store_auth_address"] = f"{request.getfixturevalue('old_url')}/auth/v1.0"
        store = open_swift(swift, swift_store_container_per_image=request.param == "own containers", **options)
    names = ("auth_version", "auth_address", "user", "key", "container", "container_per_image", "segment_container")
    return store, {f"swift_store_{name}": getattr(store.conf, f"swift_store_{name}") for name in names}


@pytest.mark.parametrize("when", ["between segments", "before the manifest", "before it is published"])
def test_add_that_gc_of_another_store_removed_fails(living, monkeypatch, when):
    """It may be removed, for Swift has no locks, but it never succeeds without its data."""
    store, options = living
    removed = []
    step = {"before the manifest": "publish_segments", "before it is published": "_publish"}.get(when)

    def source():
        for number, chunk in enumerate(chunks(IMAGE)):
            deadline = time.monotonic() + 30
            # The first segments are on their way.
            while number == 5 and not step and not removed and time.monotonic() < deadline:
                removed.extend([1] * gc_of_another_store(options))
            yield chunk

    if step:
        plain = getattr(SwiftWriter, step)
        another = when == "before the manifest" and store.conf.swift_store_container == "livingswi"
        collect = gc_of_another_process if another else gc_of_another_store

        def collected(self, *arguments, **more):
            removed.extend([1] * (collect(options) if not removed else 0))
            return plain(self, *arguments, **more)

        monkeypatch.setattr(SwiftWriter, step, collected)
    with pytest.raises(StoreError) as caught:
        store.add("living", source())
    assert removed
    assert not isinstance(caught.value, Duplicate | NotFound)
    assert store.gc(0, "living") == []


def test_of_an_add_and_a_gc_at_the_same_time_one_sees_the_other(living, monkeypatch):
    """The gc found an add dead, which publishes its image just then."""
    store, options = living
    found, published = threading.Event(), threading.Event()
    plain_publish, plain_mark = SwiftWriter._publish, garbage._mark

    def mark(*arguments):
        done = plain_mark(*arguments)
        found.set()
        assert published.wait(30)
        return done

    def publish(self, *arguments, **more):
        other.start()
        assert found.wait(30)
        plain_publish(self, *arguments, **more)
        published.set()

    with ThreadPoolExecutor(1) as pool:
        results = []
        other = threading.Thread(target=lambda: results.append(gc_of_another_store(options)))
        monkeypatch.setattr(garbage, "_mark", mark)
        monkeypatch.setattr(SwiftWriter, "_publish", publish)
        adding = pool.submit(store.add, "living", IMAGE)
        error = adding.exception(30)
    other.join(30)
    monkeypatch.undo()
    assert results == [0]
    if error is None:
        stored = adding.result()
        assert read(store, stored.uri) == IMAGE
        store.delete(stored.uri)
    else:
        assert isinstance(error, StoreError)
        assert not isinstance(error, Duplicate | NotFound)
    assert store.gc(0, "living") == []


# -- Digests ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["swift", "radosgw"])
def any_store(request, small_parts):
    """Of each kind of server, with an account behind its back and the container."""
    if request.param == "radosgw":
        gateway = request.getfixturevalue("gateway")
        return (
            open_gateway(gateway),
            Account.of(gateway.swift_auth_url, gateway.swift_user, gateway.swift_key),
            "glance",
        )
    return tuple(request.getfixturevalue(name) for name in ("store", "account", "container"))


def digest_of(store, uri, offset=0, length=None):
    reader = store.open_reader(store.locate(uri), offset, length, None)
    try:
        return reader.digest
    finally:
        reader.close()


@pytest.mark.parametrize("size", [0, 10, len(IMAGE)])
def test_digest_of_an_image_is_recorded_with_it(any_store, size, monkeypatch):
    store, _, _ = any_store
    stored = store.add("digest", IMAGE[:size], hashing_algo="sha256")
    with counted(monkeypatch) as sent:
        assert digest_of(store, stored.uri) == ("sha256", hashlib.sha256(IMAGE[:size]).hexdigest())
        assert digest_of(store, stored.uri, 0, 5) == ("sha256", hashlib.sha256(IMAGE[:size]).hexdigest())
    assert len(sent) == 2 or not size
    store.delete(stored.uri)


def test_digest_of_an_old_image_is_its_etag_unless_it_is_a_manifest(any_store):
    store, account, container = any_store
    account.call("PUT", container, "old", data=IMAGE)
    account.call("PUT", container, "oldpart-1", data=IMAGE)
    account.call("PUT", container, "dynamic", data=b"", X_Object_Manifest=f"{container}/oldpart-")
    entries = [{"path": f"/{container}/oldpart-1", "size_bytes": len(IMAGE), "etag": hashlib.md5(IMAGE).hexdigest()}]
    account.call("PUT", container, "static", query="?multipart-manifest=put", data=json.dumps(entries).encode())
    base = store.service.location_of(store.service.own_account(), container, "old").uri.removesuffix("old")
    assert digest_of(store, f"{base}old") == ("md5", hashlib.md5(IMAGE).hexdigest())
    assert digest_of(store, f"{base}dynamic") is None
    assert digest_of(store, f"{base}static") is None
    for name in ("old", "oldpart-1", "dynamic", "static"):
        account.call("DELETE", container, name)

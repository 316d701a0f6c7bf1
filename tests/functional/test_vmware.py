# SPDX-License-Identifier: Apache-2.0
"""The vmware driver against the vCenter simulator of govmomi, which is as strict about sessions as a real vCenter."""

import contextlib
import functools
import gc
import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

import pytest
from pyVmomi import vim
from servers.mounts import tmpfs
from servers.vcenter import FIRST, NESTED, PLAIN, SECOND, Vcenter

from storelib.capabilities import Capability
from storelib.driver import Digests
from storelib.drivers.vmware import VmwareStore, publication
from storelib.drivers.vmware import vcenter as backend
from storelib.drivers.vmware.errors import HttpError
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
    StoreError,
    TransferTimeout,
)
from storelib.registry import open_store
from storelib.testing.conformance import BackendAccess, StoreConformance
from storelib.testing.faults import Cut, Far, FaultyProxy, Reset, Stall
from storelib.transfer.http.server import FileUpload

KiB, MiB = 1024, 1024 * 1024
#: Refused at the end only: no question before the body has told so.
EMPTY = b""
SMALL = hashlib.shake_128(b"small").digest(300_000)
#: Sent as a stream.
LARGE = hashlib.shake_128(b"large").digest(9 * MiB + 77)
#: Of thumbprints.
ALGORITHMS = ("sha1", "sha256", "sha512")
ODD = "/nested/Größe + 50% #1"
SEVERAL = (f"{NESTED}:{FIRST}:9", f"{PLAIN}:{SECOND}", f"{PLAIN}:{FIRST}")
ALL = (
    Capability.READ
    | Capability.RANGE
    | Capability.ADD
    | Capability.DELETE
    | Capability.ATOMIC_ADD
    | Capability.LIST
    | Capability.STAT
    | Capability.GC
    | Capability.CHECK
    | Capability.COPY
)


@pytest.fixture(scope="module")
def vcenter(tmp_path_factory):
    with Vcenter(tmp_path_factory.mktemp("vcenter")) as server:
        yield server


def open_vmware(server, *datastores, port=None, **options):
    settings = {
        "vmware_server_host": "localhost",
        "vmware_server_port": port or server.port,
        "vmware_server_username": server.user,
        "vmware_server_password": server.password,
        "vmware_ca_file": str(server.certificate),
        "vmware_datastores": list(datastores or (f"{PLAIN}:{FIRST}",)),
        "transfer_timeout": 60.0,
    }
    return open_store(VmwareStore, **settings | options)


class Access(BackendAccess):
    """The files of the datastores, behind vCenter's back."""

    def __init__(self, store, directories):
        self.store = store
        self.directories = directories

    def read(self, image_id):
        for directory in self.directories:
            if (directory / image_id).is_file():
                return (directory / image_id).read_bytes()
        return None

    def plant(self, image_id, data):
        self.directories[-1].mkdir(parents=True, exist_ok=True)
        (self.directories[-1] / image_id).write_bytes(data)
        return self.store.datastores.location(self.store.datastores.targets[-1], image_id).uri

    def residue(self, prefix):
        return {
            str(path.relative_to(directory))
            for directory in self.directories
            for path in directory.rglob("*")
            if path.is_file() and path.name.startswith(prefix)
        }


class TestOneDatastore(StoreConformance):
    """Everything the suite promises."""

    capabilities = ALL
    many_images = 300
    sequences = 3

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, vcenter):
        return open_vmware(vcenter)

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, vcenter, store):
        return Access(store, [vcenter.datastores[PLAIN, FIRST] / "openstack_glance"])


class TestSeveralDatacenters(StoreConformance):
    """Two datacenters, one in a folder, three datastores, a directory of odd names; images lie in the one with most
    weight, unless they were planted in another."""

    capabilities = ALL
    many_images = 50
    sequences = 2
    sample = True

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, vcenter):
        return open_vmware(vcenter, *SEVERAL, vmware_store_image_dir=ODD)

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, vcenter, store):
        roots = (vcenter.datastores[place] for place in (("DC1", FIRST), (PLAIN, SECOND), (PLAIN, FIRST)))
        return Access(store, [root / ODD.strip("/") for root in roots])


@pytest.fixture
def image_id(request):
    return hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:32]


@pytest.fixture(scope="module")
def store(vcenter):
    return open_vmware(vcenter)


@pytest.fixture(scope="module")
def access(vcenter, store):
    return Access(store, [vcenter.datastores[PLAIN, FIRST] / "openstack_glance"])


@pytest.fixture
def proxy(vcenter):
    with FaultyProxy(vcenter.address) as proxy:
        yield proxy


def through(vcenter, proxy, **options):
    """A store with no connection yet that reaches the vCenter through the proxy."""
    return open_vmware(vcenter, port=proxy.address[1], **{"vmware_read_timeout": 1.0} | options)


def read(store, uri, *arguments):
    with store.get(uri, *arguments).data as stream:
        return stream.read()


def copy(store, image_id, uri):
    """By the server, since the digests are given."""
    return store.copy(uri, image_id, digests=Digests(None, "ab"))


def in_between(data, at, step):
    """A source that takes a step in its middle."""
    yield data[:at]
    step()
    yield data[at:]


# -- Sessions ---------------------------------------------------------------------------------------------------


def test_empty_image_is_sent_again_where_the_session_has_ended(vcenter, store, image_id, monkeypatch):
    """The server refuses it when all was said: no question before the body has told so."""
    plain, revoked = FileUpload.begin, []

    def begin(self):
        if not revoked:
            revoked.append(vcenter.control("revoke"))
        plain(self)

    monkeypatch.setattr(FileUpload, "begin", begin)
    assert store.get_size(store.add(image_id, b"").uri) == 0


def test_session_that_was_ended_is_made_anew_for_each_question(vcenter, store, image_id):
    uri = store.add(image_id, SMALL).uri
    for ask in (
        store.get_size,
        store.stat,
        lambda uri: read(store, uri),
        lambda uri: list(store.list_images()),
        lambda uri: store.gc(3600),
        lambda uri: store.add(f"{image_id}-2", SMALL),
        functools.partial(copy, store, f"{image_id}-3"),
        store.delete,
    ):
        vcenter.control("revoke")
        ask(uri)


@pytest.mark.parametrize("size", [None, len(LARGE)], ids=["unknown", "known"])
def test_session_revoked_while_an_image_is_sent_is_made_anew_to_publish_it(vcenter, store, image_id, size):
    stored = store.add(image_id, in_between(LARGE, 5 * MiB, lambda: vcenter.control("revoke")), size)
    assert read(store, stored.uri) == LARGE


def test_session_revoked_before_the_move_is_made_anew(vcenter, store, image_id, monkeypatch):
    plain = publication.Publication.publish

    def publish(self):
        vcenter.control("revoke")
        return plain(self)

    monkeypatch.setattr(publication.Publication, "publish", publish)
    for number, data in enumerate((SMALL, LARGE)):
        assert read(store, store.add(f"{image_id}{number}", data).uri) == data


def test_transfer_that_ends_with_its_session_is_no_success(vcenter, store, access, image_id):
    """The server answers 401 in the middle of the body."""
    with pytest.raises(RemoteServiceUnavailable, match="session|connection"):
        store.add(image_id, in_between(LARGE, 5 * MiB, lambda: vcenter.control("revoke", cut="yes")))
    assert not access.residue(image_id)


def test_read_whose_session_ends_in_its_middle_goes_on(vcenter, store, image_id):
    uri = store.add(image_id, LARGE).uri
    with store.get(uri).data as stream:
        first = stream.read(MiB)
        vcenter.control("revoke", cut="yes")
        assert first + stream.read() == LARGE


@pytest.mark.parametrize("data", ["SMALL", "LARGE"])
def test_put_that_is_refused_for_want_of_a_session_is_sent_again(vcenter, store, image_id, data):
    data = globals()[data]
    vcenter.control("refuse", method="PUT", status=401, count=1)
    assert read(store, store.add(image_id, data).uri) == data


def test_session_is_kept_alive_by_a_long_put(vcenter, store, image_id, monkeypatch):
    monkeypatch.setattr(backend, "_KEEP_ALIVE", 0.0)
    seen = []

    def note():
        gc.collect()
        time.sleep(0.05)
        vcenter.control("requests")

    def source():
        yield from in_between(LARGE, 5 * MiB, note)
        time.sleep(0.05)
        seen.extend(line.split("\t")[1] for line in vcenter.control("requests").splitlines())

    store.add(image_id, source())
    assert "POST" in seen


def test_error_page_is_never_an_image(vcenter, store, image_id):
    uri = store.add(image_id, LARGE).uri
    for status, error in ((401, Forbidden), (403, Forbidden), (200, StoreError), (302, StoreError)):
        vcenter.control("refuse", method="GET", status=status, count=9)
        with pytest.raises(error) as caught:
            read(open_vmware(vcenter, transfer_retries=0), uri)
        assert "log in" not in str(caught.value)
    vcenter.control("refuse", method="HEAD", status=200, count=1)
    assert store.get_size(uri) == len(LARGE)
    vcenter.control("refuse", method="GET", count=0, status=0)
    assert read(store, uri) == LARGE


def test_image_is_not_there_only_where_its_datastore_says_so(vcenter, image_id):
    """A proxy that has lost its vCenter says of every image that there is none."""
    store = open_vmware(vcenter, transfer_retries=0)
    uri = store.add(image_id, SMALL).uri
    vcenter.control("refuse", method="GET", status=404, count=1)
    with pytest.raises(RemoteServiceUnavailable) as caught:
        read(store, uri)
    assert caught.value.transient
    vcenter.control("refuse", method="HEAD", status=404, count=1)
    assert store.get_size(uri) == len(SMALL)
    store.delete(uri)
    for ask in (store.get, store.get_size):
        with pytest.raises(NotFound):
            ask(uri)


def test_error_page_in_the_middle_is_no_part_of_an_image(vcenter, image_id, proxy):
    store = through(vcenter, proxy, vmware_download_concurrency=1)
    uri = store.add(image_id, LARGE).uri
    with store.get(uri).data as stream:
        first = stream.read(MiB)
        stream.seek(3 * MiB)
        vcenter.control("refuse", method="GET", status=200, count=1)
        assert stream.read(10) == LARGE[3 * MiB : 3 * MiB + 10]
    assert first == LARGE[:MiB]


@pytest.mark.parametrize("data", ["EMPTY", "SMALL", "LARGE"])
@pytest.mark.parametrize("status", [200, 403, 503])
def test_error_page_is_never_success(vcenter, access, image_id, data, status):
    """Whatever a proxy answers to a PUT, there is a whole image afterwards, or an error and nothing."""
    store = open_vmware(vcenter, transfer_retries=0)
    vcenter.control("refuse", method="PUT", status=status, count=1)
    with pytest.raises(StoreError):
        store.add(image_id, globals()[data])
    assert not access.residue(image_id)


@pytest.mark.parametrize("status", [200, 302, 403, 404, 500, 503])
def test_error_page_is_no_answer_to_a_call(vcenter, status):
    """Neither before the login nor after it; what passes is asked for again."""
    for logged_in in (False, True):
        store = open_vmware(vcenter, transfer_retries=0)
        if logged_in:
            store.check()
        gc.collect()  # other stores say goodbye
        vcenter.control("refuse", method="POST", status=status, count=1)
        with pytest.raises(Forbidden if status == 403 else RemoteServiceUnavailable):
            list(store.list_images())
        store.check()


def test_call_that_is_answered_by_a_login_page_of_status_401_is_made_in_a_new_session(vcenter, store):
    gc.collect()
    vcenter.control("refuse", method="POST", status=401, count=1)
    assert store.check().free


def test_one_session_serves_all_threads_and_is_ended_with_the_store(vcenter, image_id):
    gc.collect()
    before = int(vcenter.control("sessions"))
    store = open_vmware(vcenter)
    uri = store.add(image_id, SMALL).uri
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(store.get_size, [uri] * 40)) == {len(SMALL)}
    assert int(vcenter.control("sessions")) == before + 1
    del store
    gc.collect()
    assert int(vcenter.control("sessions")) == before


def test_session_that_is_only_doubted_is_ended(vcenter, image_id):
    store = open_vmware(vcenter)
    uri = store.add(image_id, SMALL).uri
    gc.collect()
    before = int(vcenter.control("sessions"))
    vcenter.control("refuse", method="HEAD", status=401, count=1)
    assert store.get_size(uri) == len(SMALL)
    assert int(vcenter.control("sessions")) == before


def test_wrong_password_is_refused_and_not_shown(vcenter):
    store = open_vmware(vcenter, vmware_server_password="hunter22")
    with pytest.raises(Forbidden, match="vmware_server_password") as caught:
        store.check()
    assert "hunter22" not in str(caught.value)


# -- Trust ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hostile_environment(monkeypatch, tmp_path):
    """Variables that many machines set; here they name a file without any certificate."""
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(empty))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "nowhere" / "keys"))


@pytest.mark.usefixtures("hostile_environment")
@pytest.mark.parametrize("how", ["vmware_ca_file", *ALGORITHMS, "vmware_insecure"])
def test_server_is_trusted_as_the_options_say(vcenter, image_id, how):
    options = {
        "vmware_ca_file": {},
        "vmware_insecure": {"vmware_ca_file": None, "vmware_insecure": True},
        **{name: {"vmware_ca_file": None, "vmware_thumbprint": vcenter.thumbprint(name)} for name in ALGORITHMS},
    }
    store = open_vmware(vcenter, **options[how])
    uri = store.add(image_id, SMALL).uri
    assert read(store, uri) == SMALL


@pytest.mark.parametrize(("thumbprint", "insecure"), [(None, False), ("00" * 32, False), ("00" * 32, True)])
def test_server_with_another_certificate_learns_nothing(vcenter, monkeypatch, thumbprint, insecure):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    store = open_vmware(vcenter, vmware_ca_file=None, vmware_thumbprint=thumbprint, vmware_insecure=insecure)
    gc.collect()  # other stores say goodbye
    vcenter.control("requests")
    with pytest.raises(RemoteServiceUnavailable, match="not trusted.*vmware_thumbprint") as caught:
        store.check()
    assert not caught.value.transient
    assert not vcenter.control("requests")


def test_certificate_is_of_one_host(vcenter):
    with pytest.raises(RemoteServiceUnavailable, match="not trusted"):
        open_vmware(vcenter, vmware_server_host="127.0.0.1").check()


def test_ipv6_address_and_port_are_in_the_uri(tmp_path):
    with Vcenter(tmp_path / "vcenter", host="::1") as server:
        pinned = {"vmware_ca_file": None, "vmware_thumbprint": server.thumbprint("sha256")}
        for host, port in (("::1", server.port), ("[::1]", server.port), (f"[::1]:{server.port}", 443)):
            store = open_vmware(server, vmware_server_host=host, vmware_server_port=port, **pinned)
            uri = store.add(f"image-{len(host)}", SMALL).uri
            assert uri.startswith(f"vsphere://[::1]:{server.port}/folder/openstack_glance/image-")
            assert read(store, uri) == SMALL


def test_names_of_datacenters_and_datastores_are_encoded(tmp_path):
    with Vcenter(tmp_path / "vcenter", renamed=("Süd & Ost#1", "Größe + 50%")) as server:
        store = open_vmware(server, "/Süd & Ost#1/:Größe + 50%:3")
        uri = store.add("odd", LARGE).uri
        assert uri.endswith("?dcPath=S%C3%BCd%20%26%20Ost%231&dsName=Gr%C3%B6%C3%9Fe%20%2B%2050%25")
        assert read(store, uri) == LARGE
        assert read(store, uri.replace("%20", "+")) == LARGE
        assert [info.uri for info in store.list_images()] == [uri]


# -- Datastores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datastore", [f"{PLAIN}:nowhere", f"nowhere:{FIRST}", f"{PLAIN}/vm:{FIRST}", f"DC1:{FIRST}"])
def test_datastore_that_is_not_there_is_a_mistake_of_the_configuration(vcenter, datastore):
    store = open_vmware(vcenter, datastore)
    for ask in (store.check, lambda: store.add("image", b""), lambda: list(store.list_images())):
        with pytest.raises(BadStoreConfiguration, match="vmware_datastores"):
            ask()


def test_copy_whose_end_is_not_told_is_no_duplicate(store, access, image_id, monkeypatch):
    """A proxy that has lost its vCenter answers a call with 404, which is not about the file."""
    uri = store.add(image_id, SMALL).uri
    plain = backend.Datastores._run

    def run(self, start, target, allowance=0.0):
        result = plain(self, start, target, allowance)
        if allowance:
            raise HttpError("POST", 404)
        return result

    monkeypatch.setattr(backend.Datastores, "_run", run)
    with pytest.raises(RemoteServiceUnavailable):
        copy(store, f"{image_id}-2", uri)
    assert access.residue(image_id) == {image_id}


def test_datastore_that_was_mounted_anew_is_found_again(vcenter, image_id, monkeypatch):
    """It is another object to vCenter."""
    monkeypatch.setattr(backend, "FRESH", 0.0)
    store = open_vmware(vcenter)
    [target] = store.datastores.targets
    gone = backend.Handles(*(type(each)("gone", each._stub) for each in store.datastores.handles(target)))
    for ask in (lambda: store.add(image_id, SMALL), store.check):
        store.datastores._handles[target] = gone
        ask()


def test_datastore_with_most_weight_is_taken_unless_it_is_in_maintenance(vcenter, image_id, monkeypatch):
    monkeypatch.setattr(backend, "FRESH", 0.0)
    store = open_vmware(vcenter, f"{PLAIN}:{FIRST}:1", f"{NESTED}:{SECOND}:7", f"{PLAIN}:{SECOND}:5")
    assert store.add(f"{image_id}-1", SMALL).uri.endswith("?dcPath=F0%2FDC1&dsName=LocalDS_1")
    with vcenter.maintenance(NESTED, SECOND):
        assert store.add(f"{image_id}-2", SMALL).uri.endswith("?dcPath=DC0&dsName=LocalDS_1")
        assert "in maintenance: datastore LocalDS_1 of F0/DC1" in store.check().detail
        # What is there can be read, and is not added again elsewhere.
        assert read(store, store.find_image(f"{image_id}-1").uri) == SMALL
        with pytest.raises(Duplicate):
            store.add(f"{image_id}-1", SMALL)
    assert store.add(f"{image_id}-3", SMALL).uri.endswith("?dcPath=F0%2FDC1&dsName=LocalDS_1")


def test_store_whose_only_datastore_is_in_maintenance_cannot_add(vcenter, image_id):
    store = open_vmware(vcenter, f"{PLAIN}:{SECOND}")
    with vcenter.maintenance(PLAIN, SECOND), pytest.raises(RemoteServiceUnavailable, match="maintenance"):
        store.add(image_id, SMALL)


@pytest.mark.parametrize("data", [b"", SMALL], ids=["refused at the end", "refused at the beginning"])
def test_add_that_failed_has_the_next_one_ask_for_room(vcenter, image_id, data):
    """The datastore it chose may be full, away or in maintenance by now."""
    store = open_vmware(vcenter, f"{NESTED}:{SECOND}:7", f"{PLAIN}:{SECOND}:5", transfer_retries=0)
    store.check()
    with vcenter.maintenance(NESTED, SECOND):
        vcenter.control("refuse", method="PUT", status=503, count=1)
        with pytest.raises(RemoteServiceUnavailable):
            store.add(image_id, data)
        assert store.add(image_id, data).uri.endswith("?dcPath=DC0&dsName=LocalDS_1")


def test_room_is_asked_for_once_for_many_adds(vcenter, image_id):
    store = open_vmware(vcenter)
    store.add(f"{image_id}-0", SMALL)
    gc.collect()
    vcenter.control("requests")
    store.add(f"{image_id}-1", SMALL)
    calls = [line.split("\t")[1] for line in vcenter.control("requests").splitlines()]
    # The id is looked for; bytes; size; move: each task is started and looked at.
    assert calls == ["HEAD", "PUT", "POST", "POST", "POST", "POST"]


@pytest.fixture(scope="module")
def small_datastore(vcenter):
    """A datastore with room for 8 MiB."""
    place = (PLAIN, SECOND)
    with tmpfs(vcenter.datastores[place], 8 * MiB) as root:
        store = open_vmware(vcenter, ":".join(place))
        # A real vCenter looks by itself now and then.
        store.datastores.rooms(refresh=True)
        yield store, root


def test_image_without_room_is_refused_before_it_is_read(small_datastore, image_id):
    store, root = small_datastore
    touched = []

    def source():
        touched.append(True)
        yield b""

    with pytest.raises(StorageFull):
        store.add(image_id, source(), 9 * MiB)
    assert not touched
    assert not list(root.rglob("*.*"))


def test_image_of_unknown_size_goes_where_room_is(vcenter, small_datastore, image_id):
    store = open_vmware(vcenter, f"{PLAIN}:{SECOND}:9", f"{PLAIN}:{FIRST}:1")
    assert read(store, store.add(image_id, iter([LARGE])).uri) == LARGE


@pytest.mark.parametrize("known", [True, False])
def test_datastore_that_gets_full_is_reported_and_left_as_it_was(small_datastore, image_id, known):
    """The simulator answers with success all the same."""
    store, root = small_datastore
    filler = root / "filler"

    def source():
        yield LARGE[: 2 * MiB]
        filler.write_bytes(bytes(4 * MiB))
        yield LARGE[2 * MiB : 7 * MiB]

    with pytest.raises(StorageFull):
        store.add(image_id, source(), 7 * MiB if known else None)
    assert [path for path in root.rglob("*") if path.is_file()] == [filler]
    filler.unlink()
    uri = store.add(image_id, LARGE[: 7 * MiB]).uri
    with pytest.raises(StorageFull):
        copy(store, f"{image_id}-2", uri)
    store.delete(uri)


def test_adds_racing_in_two_datastores_leave_one_image(vcenter, image_id, monkeypatch):
    """Each chooses another datastore, and both have published before either looks."""
    monkeypatch.setattr(publication, "_WITHDRAWAL", 20.0)
    places = f"{PLAIN}:{FIRST}", f"{NESTED}:{FIRST}"
    both = threading.Barrier(2)
    plain = publication.Publication._move

    def move(self):
        both.wait(20)
        plain(self)
        both.wait(20)

    monkeypatch.setattr(publication.Publication, "_move", move)

    def add(favourite):
        store = open_vmware(vcenter, *(f"{place}:{9 if place == favourite else 1}" for place in places))
        with contextlib.suppress(Duplicate):
            return store.add(image_id, favourite.encode())
        return None

    with ThreadPoolExecutor(2) as pool:
        stored = [each for each in pool.map(add, places) if each is not None]
    assert len(stored) == 1
    reader = open_vmware(vcenter, *places)
    assert [info.uri for info in reader.list_images() if info.image_id == image_id] == [stored[0].uri]
    assert hashlib.sha512(read(reader, stored[0].uri)).hexdigest() == stored[0].multihash


def test_add_that_comes_late_in_another_datastore_is_a_duplicate(vcenter, image_id, monkeypatch):
    """It looked before the other published, and published itself."""
    monkeypatch.setattr(publication, "_WITHDRAWAL", 0.2)
    places = f"{PLAIN}:{FIRST}", f"{NESTED}:{FIRST}"
    first = open_vmware(vcenter, f"{places[0]}:9", places[1])
    second = open_vmware(vcenter, places[0], f"{places[1]}:9")
    plain = publication.Publication._move

    def move(self):
        monkeypatch.setattr(publication.Publication, "_move", plain)
        second.add(image_id, b"second")
        plain(self)

    monkeypatch.setattr(publication.Publication, "_move", move)
    with pytest.raises(Duplicate):
        first.add(image_id, b"first")
    [info] = [info for info in first.list_images() if info.image_id == image_id]
    assert read(first, info.uri) == b"second"


# -- Files ------------------------------------------------------------------------------------------------------


def test_folder_is_no_image(vcenter, store, access, image_id):
    folder = access.directories[0] / image_id
    folder.mkdir(parents=True)
    (folder / "disk").write_bytes(b"of somebody else")
    uri = store.datastores.location(store.datastores.targets[0], image_id).uri
    for call in (store.get, store.get_size, store.stat, store.delete, functools.partial(copy, store, "copy")):
        with pytest.raises(StoreError):
            call(uri)
    assert store.find_image(image_id) is None
    with pytest.raises(StoreError):
        store.add(image_id, SMALL)
    assert (folder / "disk").read_bytes() == b"of somebody else"


def test_what_is_under_way_is_no_image(store):
    uri = store.datastores.location(store.datastores.targets[0], publication.UPLOADS).uri
    with pytest.raises(StoreError):
        store.delete(uri)
    with pytest.raises(Invalid):
        store.add(publication.UPLOADS, SMALL)


@pytest.mark.parametrize("directory", ["/", "/ blank/inner"])
def test_blank_at_the_beginning_of_a_path_is_part_of_it(vcenter, image_id, directory):
    store = open_vmware(vcenter, vmware_store_image_dir=directory)
    uri = store.add(f" {image_id}", SMALL).uri
    assert read(store, uri) == SMALL
    assert store.find_image(f" {image_id}").uri == uri
    store.delete(uri)
    assert store.find_image(image_id) is None


@pytest.mark.parametrize("image_id", ["[ab]", "a?c*", "back\\slash", "trailing "])
def test_names_that_are_patterns_are_names(store, image_id):
    for name in (image_id, "abc", "a"):
        store.add(name, name.encode())
    assert store.find_image(image_id).size == len(image_id.encode())
    for name in (image_id, "abc", "a"):
        store.delete(store.find_image(name).uri)


def test_name_that_no_file_can_have_is_not_there(store):
    uri = store.datastores.location(store.datastores.targets[0], "a\ufffe").uri
    assert store.find_image("a\ufffe") is None
    for call in (store.get, store.get_size, store.stat, store.delete):
        with pytest.raises(NotFound):
            call(uri)


def test_leftover_of_a_long_id_is_found_as_far_as_it_is_known(vcenter, store):
    image_id = "l" * 250
    writer = store.open_writer(image_id, None, None)
    writer.reserve(0)
    writer.close()
    other = open_vmware(vcenter)
    assert not other.gc(0, prefix=image_id[:240])
    del writer
    gc.collect()
    [found] = other.gc(0, prefix=image_id[:200])
    assert found.image_id is None


def test_leftover_whose_time_is_not_told_is_only_old_enough_for_gc_of_all(vcenter, image_id, monkeypatch):
    plain = backend._file

    def timeless(info):
        info.modification = None
        return plain(info)

    monkeypatch.setattr(backend, "_file", timeless)
    store = open_vmware(vcenter)
    writer = store.open_writer(image_id, None, None)
    writer.reserve(0)
    writer.close()
    other = open_vmware(vcenter)
    assert not other.gc(1, prefix=image_id)
    del writer
    assert len(other.gc(0, prefix=image_id)) == 1


def test_what_was_sent_before_keeps_no_image_from_being_published(store, access, image_id, proxy, vcenter, monkeypatch):
    plain = backend.Datastores.delete

    def delete(self, target, names):
        if publication.UPLOADS in names:
            raise vim.fault.FileLocked()
        plain(self, target, names)

    monkeypatch.setattr(backend.Datastores, "delete", delete)
    proxy.plan(Reset(after=100_000, direction="up"))
    uri = through(vcenter, proxy).add(image_id, SMALL).uri
    assert access.read(image_id) == SMALL
    monkeypatch.undo()
    gc.collect()
    assert len(store.gc(0, prefix=image_id)) == 1
    assert uri


def test_failed_add_is_removed_once_the_datastore_is_no_longer_busy(store, access, image_id, monkeypatch):
    plain, failures = backend.Datastores.delete, [vim.fault.TaskInProgress()]

    def delete(self, target, names):
        if failures:
            raise failures.pop()
        plain(self, target, names)

    monkeypatch.setattr(backend.Datastores, "delete", delete)
    with pytest.raises(ZeroDivisionError):
        store.add(image_id, in_between(LARGE, 5 * MiB, lambda: 1 / 0))
    assert not failures
    assert not access.residue(image_id)


def test_images_may_lie_at_the_top_of_a_datastore(vcenter):
    store = open_vmware(vcenter, f"{NESTED}:{SECOND}", vmware_store_image_dir="/")
    uri = store.add("top", LARGE).uri
    assert uri.endswith(f":{vcenter.port}/folder/top?dcPath=F0%2FDC1&dsName=LocalDS_1")
    assert read(store, uri, 5 * MiB, 10) == LARGE[5 * MiB : 5 * MiB + 10]
    assert "top" in [info.image_id for info in store.list_images()]
    assert not store.gc(0)
    store.delete(uri)


def test_directory_that_was_removed_is_made_again(vcenter, store, access, image_id):
    uri = store.add(f"{image_id}-1", SMALL).uri
    uploads = access.directories[0] / publication.UPLOADS
    uploads.rmdir()
    assert read(store, store.add(f"{image_id}-2", SMALL).uri) == SMALL
    uploads.rmdir()
    assert read(store, copy(store, f"{image_id}-3", uri).uri) == SMALL
    uploads.rmdir()
    # A vCenter may tell it so.
    vcenter.control("refuse", method="PUT", status=404, count=1)
    assert read(store, store.add(f"{image_id}-4", LARGE).uri) == LARGE


def test_image_that_is_replaced_while_it_is_read_is_noticed(store, access, image_id):
    uri = store.add(image_id, LARGE).uri
    with store.get(uri).data as stream:
        stream.read(10)
        access.plant(image_id, LARGE[::-1])
        stream.seek(3 * MiB)
        with pytest.raises(ImageChanged):
            stream.read(10)


def test_young_image_is_not_taken_up_again_where_times_have_no_fractions(store, access, image_id):
    uri = store.add(image_id, LARGE).uri
    # It is young however long this takes: its time is a minute from now.
    whole_seconds = int(time.time()) + 60
    os.utime(access.directories[0] / image_id, (whole_seconds, whole_seconds))
    with store.get(uri).data as stream:
        assert stream.read(10) == LARGE[:10]
        stream.seek(3 * MiB)
        with pytest.raises(IncompleteRead):
            stream.read(10)
    assert read(store, uri) == LARGE


@pytest.fixture
def same_time(monkeypatch):
    """Times have no fractions, and all that is written is written in one second."""
    plain = backend._file

    def coarse(info):
        info.modification = datetime(2026, 1, 1, tzinfo=timezone.utc)
        return plain(info)

    monkeypatch.setattr(backend, "_file", coarse)


def overtake(monkeypatch, other, image_id, data):
    """The next request to move a file gets lost, and meanwhile another add publishes the image."""
    plain = backend.Datastores.move

    def move(self, target, source, names):
        monkeypatch.setattr(backend.Datastores, "move", plain)
        other.add(image_id, data)
        raise ConnectionResetError

    monkeypatch.setattr(backend.Datastores, "move", move)


@pytest.mark.usefixtures("same_time")
@pytest.mark.parametrize(("retries", "error"), [(0, RemoteServiceUnavailable), (1, Duplicate)])
def test_image_of_another_add_is_told_from_its_own_by_what_was_moved(
    vcenter, store, access, image_id, monkeypatch, retries, error
):
    overtake(monkeypatch, store, image_id, SMALL[::-1])
    with pytest.raises(error):
        open_vmware(vcenter, transfer_retries=retries).add(image_id, SMALL)
    assert access.read(image_id) == SMALL[::-1]
    assert access.residue(image_id) == {image_id}


@pytest.mark.usefixtures("same_time")
def test_image_of_another_add_stays_where_taking_back_is_done_again(vcenter, store, access, image_id, monkeypatch):
    """The answer to the removal of the temporary file gets lost, so that nothing is left to tell them by."""
    overtake(monkeypatch, store, image_id, SMALL[::-1])
    plain, failures = backend.Datastores.delete, [ConnectionResetError()]

    def delete(self, target, names):
        plain(self, target, names)
        if failures:
            raise failures.pop()

    monkeypatch.setattr(backend.Datastores, "delete", delete)
    with pytest.raises(Duplicate):
        open_vmware(vcenter).add(image_id, SMALL)
    assert not failures
    assert access.read(image_id) == SMALL[::-1]


def test_image_of_a_moment_ago_is_read_with_one_request(vcenter, store, image_id):
    uri = store.add(image_id, SMALL).uri
    time.sleep(2.05)
    gc.collect()
    vcenter.control("requests")
    assert read(store, uri) == SMALL
    assert len(vcenter.control("requests").splitlines()) == 1


def test_task_that_never_ends_is_given_up(vcenter, image_id, monkeypatch):
    store = open_vmware(vcenter, transfer_timeout=0.5, transfer_retries=0)
    uri = store.add(image_id, SMALL).uri
    plain, cancelled = backend.Session.properties, []
    monkeypatch.setattr(backend.Session, "_cancel", lambda self, task: cancelled.append(task))

    def properties(self, objects, *paths):
        told = plain(self, objects, *paths)
        delete = paths == backend._OF_TASK and told[0]["info.state"] == "success" and not told[0].get("info.result")
        return [{"info.state": "running"}] if delete else told

    monkeypatch.setattr(backend.Session, "properties", properties)
    with pytest.raises((TransferTimeout, RemoteServiceUnavailable)):
        store.delete(uri)


def test_uri_of_another_place_is_refused(vcenter, store, image_id):
    uri = store.add(image_id, SMALL).uri
    for old, new in (
        ("localhost", "otherhost"),
        (f":{vcenter.port}", ""),
        ("openstack_glance", "openstack_glance/inner"),
        ("openstack_glance", "OpenStack_Glance"),
        ("DC0", "F0%2FDC1"),
        ("LocalDS_0", "LocalDS_1"),
    ):
        with pytest.raises(BadStoreUri):
            store.get(uri.replace(old, new))


def test_uri_of_glance_store_is_read(vcenter, store, access):
    """It quotes nothing in the path, and spaces in the query as a form does."""
    access.plant("old image", SMALL)
    uri = f"vsphere://localhost:{vcenter.port}/folder/openstack_glance/old image?dcPath=DC0&dsName=LocalDS_0"
    assert read(store, uri) == SMALL


# -- Wire faults ------------------------------------------------------------------------------------------------

#: Bytes that pass on the first connection before the fault: in the handshake, in questions, inside of the bytes.
PLACES = [0, 2000, 4000, 8000, 12_000, 100_000, 5_000_000]


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize(("kind", "data"), [(Cut, "SMALL"), (Reset, "SMALL"), (Reset, "LARGE")])
@pytest.mark.parametrize("after", PLACES)
def test_add_over_a_bad_line_is_whole_or_nothing(vcenter, access, proxy, image_id, direction, kind, after, data):
    data = globals()[data]
    if after >= len(data) or (direction == "down" and after > 12_000):
        after = 900 + after % 5000
    proxy.plan(kind(after=after, direction=direction))
    store = through(vcenter, proxy)
    try:
        stored = store.add(image_id, data)
    except StoreError:
        # What was cut was sent by a stream, which cannot be taken up again.
        assert data is LARGE
        assert access.read(image_id) is None
        open_vmware(vcenter).gc(0, prefix=image_id)
        assert not access.residue(image_id)
        return
    assert access.read(image_id) == data
    assert stored.multihash == hashlib.sha512(data).hexdigest()
    assert access.residue(image_id) == {image_id}


@pytest.mark.parametrize("kind", [Cut, Reset])
@pytest.mark.parametrize("after", [0, 2000, 4000, 100_000, 3_000_000])
def test_read_over_a_bad_line_goes_on(vcenter, store, proxy, image_id, kind, after):
    uri = store.add(image_id, LARGE).uri.replace(f":{vcenter.port}", f":{proxy.address[1]}")
    proxy.plan(kind(after=after))
    assert read(through(vcenter, proxy), uri) == LARGE


@pytest.mark.parametrize(("seconds", "side_by_side"), [(0.0, 1), (0.01, 4)])
def test_image_from_far_away_is_read_in_ranges(vcenter, store, access, proxy, image_id, seconds, side_by_side):
    """From a vCenter nearby it is one stream."""
    data = hashlib.shake_128(b"far").digest(40 * MiB)
    uri = store.add(image_id, data).uri.replace(f":{vcenter.port}", f":{proxy.address[1]}")
    # Of one that was added just now, the datastore would be asked as well.
    os.utime(access.directories[0] / image_id, (1_700_000_000, 1_700_000_000))
    if seconds:
        proxy.always(Far(seconds=seconds))
    reader = through(vcenter, proxy)
    reader.get_size(uri)
    if not seconds:
        # However busy this machine is.
        reader.datastores.session.latency = 0.001
    before = proxy.connections
    assert read(reader, uri) == data
    # One was there already. The first answer is for all of the image, so that its connection is of no more use.
    assert proxy.connections - before in (side_by_side - 1, side_by_side)


def test_vcenter_that_hangs_is_given_up(vcenter, proxy):
    proxy.always(Stall())
    store = through(vcenter, proxy, vmware_read_timeout=0.2, vmware_connect_timeout=0.2, transfer_retries=0)
    with pytest.raises(RemoteServiceUnavailable, match="in time"):
        store.check()


@pytest.mark.parametrize("data", ["SMALL", "LARGE"])
def test_vcenter_that_takes_no_more_is_given_up(vcenter, access, proxy, image_id, data):
    proxy.plan(Stall(after=200_000, direction="up"))
    store = through(vcenter, proxy, vmware_read_timeout=0.3, transfer_retries=0)
    with pytest.raises(StoreError):
        store.add(image_id, globals()[data])
    assert access.read(image_id) is None


def test_dead_vcenter_is_reported(vcenter):
    with pytest.raises(RemoteServiceUnavailable, match="refused or cut"):
        open_vmware(vcenter, port=1, transfer_retries=0).check()

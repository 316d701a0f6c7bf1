# SPDX-License-Identifier: Apache-2.0
"""CinderStore against real services: Cinder with volumes in Ceph, and Keystone."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import types
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor

import cinder_project
import pytest
from servers.ceph import Cluster
from servers.cinder import POOL, Cinder
from servers.glance_library import Library, LibraryError
from servers.keystone import Keystone
from servers.rabbitmq import RabbitMQ

from storelib.capabilities import Capability
from storelib.driver import Digests, Part
from storelib.drivers.cinder import CinderStore, publication, service
from storelib.exceptions import (
    BadStoreConfiguration,
    Duplicate,
    Forbidden,
    HasSnapshot,
    InUseByStore,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StoreError,
)
from storelib.registry import open_store
from storelib.testing.conformance import StoreConformance
from storelib.testing.faults import Cut, FaultyProxy, Reset

rados, rbd = (pytest.importorskip(name, reason=f"needs Debian's python3-{name}") for name in ("rados", "rbd"))

KiB, MiB, GiB = 1024, 1024**2, 1024**3
ALL = (
    Capability.READ
    | Capability.RANGE
    | Capability.ADD
    | Capability.DELETE
    | Capability.SPARSE
    | Capability.LIST
    | Capability.STAT
    | Capability.GC
    | Capability.CHECK
    | Capability.COPY
)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Ceph and Keystone; each waits more for itself than it works."""
    directories = [tmp_path_factory.mktemp(name) for name in ("ceph", "keystone")]
    # A writer that died is believed to be alive for these seconds, 30 by default.
    waiting = Cluster(directories[0], osd_client_watch_timeout=5), Keystone(directories[1])
    with contextlib.ExitStack() as stack:
        with ThreadPoolExecutor(2) as pool:
            started = list(pool.map(stack.enter_context, waiting))
        yield started


@pytest.fixture(scope="module")
def ceph(servers):
    return servers[0]


@pytest.fixture(scope="module")
def keystone(servers):
    return servers[1]


@pytest.fixture(scope="module")
def cinder(tmp_path_factory, keystone, ceph):
    with Cinder(tmp_path_factory.mktemp("cinder"), keystone, ceph) as server:
        yield server


def open_cinder_options(cinder):
    """A store as the user ``demo``, who is nothing special."""
    return {
        "cinder_store_auth_address": cinder.keystone.url,
        "cinder_store_user_name": "demo",
        "cinder_store_password": "demopass",
        "cinder_store_project_name": "demo",
        "cinder_os_region_name": cinder.region,
        "cinder_volume_type": "shared",
        "cinder_state_path": str(cinder.directory / "holds"),
        "cinder_rbd_keyring": str(cinder.keyring),
        "transfer_timeout": 60.0,
    }


def open_cinder(cinder, name="cinder", **options):
    return open_store(CinderStore, name, **open_cinder_options(cinder) | options)


class Project(cinder_project.Project):
    """The project ``demo`` and the pool behind it."""

    def __init__(self, cinder):
        super().__init__(cinder)
        self.rados = rados.Rados(conffile=str(cinder.ceph.conf_file), rados_id="admin")
        self.rados.connect()
        self.ioctx = self.rados.open_ioctx(POOL)

    def contents(self, volume, size):
        with rbd.Image(self.ioctx, f"volume-{volume}", read_only=True) as image:
            return image.read(0, size) if size else b""


class TestConformance(StoreConformance):
    capabilities = ALL
    # An image that is being read is attached, and Cinder refuses to delete it; see test_image_that_is_read_stays.
    not_applicable = frozenset(
        {"test_image_replaced_while_it_is_read", "test_stream_of_a_replaced_image_does_not_change_over"}
    )
    # Each is a volume that is made, attached and detached.
    sample = True
    many_images = 6
    sequences = 1

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, cinder):
        with pytest.MonkeyPatch.context() as patch:
            # Each look at a volume keeps Cinder from what is waited for.
            patch.setattr(service, "_FIRST_LOOK", 0.2)
            yield open_cinder(cinder)

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, cinder):
        return Project(cinder)


@pytest.fixture(scope="module")
def project(cinder):
    return Project(cinder)


@pytest.fixture(scope="module")
def store(cinder):
    return open_cinder(cinder)


@pytest.fixture
def image_id(request):
    return request.node.name


IMAGE = b"".join(os.urandom(MiB) for _ in range(9)) + b"end"


def read(store, uri, **options):
    with store.get(uri, **options).data as stream:
        return stream.read()


def digests_of(stored):
    return Digests(stored.checksum, stored.multihash)


def volume_of(uri):
    return uri.rpartition("/")[2]


def assert_gone(project, image_id):
    """Nothing is left, a moment later at the latest: an abort asks for the removal and does not wait for it."""
    deadline = time.monotonic() + 20
    while project.residue(image_id):
        assert time.monotonic() < deadline, f"left behind: {project.residue(image_id)}"
        time.sleep(0.1)


@contextlib.contextmanager
def attached_by_somebody(project, uri):
    """A volume is attached the way Nova does it."""
    wanted = {"attachment": {"volume_uuid": volume_of(uri), "mode": "ro"}}
    attachment = project.call("POST", "/attachments", wanted)["attachment"]["id"]
    connector = {"host": "elsewhere", "ip": "192.0.2.1", "platform": "x86_64", "os_type": "linux", "multipath": False}
    project.call("PUT", f"/attachments/{attachment}", {"attachment": {"connector": connector}})
    project.call("POST", f"/attachments/{attachment}/action", {"os-complete": None})
    try:
        yield
    finally:
        project.call("DELETE", f"/attachments/{attachment}")


# -- What is in Cinder --------------------------------------------------------------------------------------------


def test_volume_says_which_image_it_is(store, project, image_id):
    stored = store.add(image_id, IMAGE)
    [volume] = project.volumes(image_id)
    assert stored.uri == f"cinder://cinder/{volume['id']}"
    assert (volume["size"], volume["status"], volume["name"]) == (1, "available", f"image-{image_id}")
    metadata = volume["metadata"]
    assert metadata["readonly"] == "True"
    assert (metadata["glance_image_id"], metadata["image_size"]) == (image_id, str(len(IMAGE)))
    assert metadata["storelib_digest"] == f"sha512:{stored.multihash}"
    assert not project.attachments()
    assert not os.listdir(holds_of(store)), "a transfer that is over is noted as if it were not"
    assert read(store, f"cinder://{volume['id']}") == IMAGE
    store.delete(stored.uri)
    assert not project.volumes(image_id)


def holds_of(store):
    return store.service.user(None).holds._directory


def test_volume_that_is_no_image_is_left_alone(cinder, store, project):
    volume = project.call("POST", "/volumes", {"volume": {"size": 1, "name": "somebody's disk"}})["volume"]["id"]
    for call in (store.get, store.get_size, store.stat, store.delete):
        with pytest.raises(NotFound):
            call(f"cinder://{volume}")
    assert volume not in {info.version for info in store.list_images()}
    assert not [item for item in store.gc(0) if volume in item.name]
    wait_for(lambda: project.call("GET", f"/volumes/{volume}")["volume"]["status"] == "available")
    project.call("DELETE", f"/volumes/{volume}")


def test_image_of_glance_store_is_read_and_deleted(store, project, image_id):
    uri = store.add(image_id, IMAGE).uri
    theirs = {"glance_image_id": image_id, "image_size": str(len(IMAGE)), "image_owner": "somebody"}
    project.call("PUT", f"/volumes/{volume_of(uri)}/metadata", {"metadata": theirs})
    assert read(store, uri) == IMAGE
    assert image_id in {info.image_id for info in store.list_images()}
    with pytest.raises(Duplicate):
        store.add(image_id, b"data")
    assert not store.gc(0, prefix=image_id)
    store.delete(uri)


def test_images_of_two_users_are_apart(cinder, store, image_id):
    """Each store has a session and credentials of its own."""
    names = {"cinder_store_user_name": "alt_demo", "cinder_store_project_name": "alt_demo"}
    other = open_cinder(cinder, "other", **names, cinder_store_password="alt_demopass")
    ours, theirs = store.add(image_id, b"ours").uri, other.add(image_id, b"theirs").uri
    assert (read(store, ours), read(other, theirs)) == (b"ours", b"theirs")
    for there, uri in ((other, ours), (store, theirs)):
        with pytest.raises(NotFound):
            there.get(f"cinder://{volume_of(uri)}")
    assert {info.uri for info in other.list_images()} == {theirs}
    other.delete(theirs)
    store.delete(ours)


@pytest.mark.parametrize("wrong", ["cinder_store_password", "cinder_store_user_name", "cinder_store_project_name"])
def test_wrong_credentials(cinder, image_id, wrong):
    store = open_cinder(cinder, **{wrong: "wrong"})
    with pytest.raises(Forbidden, match="cinder_store_user_name"):
        store.add(image_id, b"data")


def test_wrong_region_names_the_option(cinder):
    with pytest.raises(BadStoreConfiguration, match="cinder_os_region_name"):
        open_cinder(cinder, cinder_os_region_name="Nowhere").check()


def test_application_credential_is_enough(cinder, image_id):
    keystone = cinder.keystone
    token, _ = keystone.token("demo", "demo")
    wanted = {"application_credential": {"name": "storelib"}}
    made = keystone.call(
        "POST", f"/users/{keystone.users['demo']}/application_credentials", wanted, X_Auth_Token=token
    )["application_credential"]
    store = open_cinder(
        cinder,
        **dict.fromkeys(("cinder_store_user_name", "cinder_store_password", "cinder_store_project_name")),
        cinder_store_application_credential_id=made["id"],
        cinder_store_application_credential_secret=made["secret"],
    )
    uri = store.add(image_id, b"data").uri
    assert read(store, uri) == b"data"
    store.delete(uri)


# -- The user of a request ------------------------------------------------------------------------------------------


NOBODY = dict.fromkeys(f"cinder_store_{name}" for name in ("auth_address", "user_name", "password", "project_name"))


def request_of(cinder, user="demo"):
    token, known = cinder.keystone.token(user, user)
    return types.SimpleNamespace(auth_token=token, project_id=known["project"]["id"], service_catalog=known["catalog"])


def test_each_request_uses_its_own_token(cinder, project, image_id):
    store = open_cinder(cinder, **NOBODY)
    context = request_of(cinder)
    stored = store.add(image_id, IMAGE, context=context)
    assert project.residue(image_id)
    assert read(store, stored.uri, context=context) == IMAGE
    copied = store.copy(stored.uri, f"{image_id}-copy", digests=digests_of(stored), context=context)
    other = request_of(cinder, "alt_demo")
    with pytest.raises(NotFound):
        store.get_size(stored.uri, context=other)
    with pytest.raises(Forbidden, match="token"):
        store.get_size(stored.uri)
    for uri in (stored.uri, copied.uri):
        store.delete(uri, context=context)
    assert not project.residue(image_id)


def test_token_of_a_request_that_ends_in_mid_add_ends_the_add(cinder, project, image_id):
    store = open_cinder(cinder, **NOBODY)
    context = request_of(cinder)
    begun = threading.Event()

    def source():
        yield IMAGE
        begun.wait(10)
        revoke(cinder, context.auth_token)
        yield IMAGE

    with seen(service.Api, "complete", begun), pytest.raises(Forbidden):
        store.add(image_id, source(), context=context)
    # It could not be removed without a token; one of the store's own user may do it.
    assert project.residue(image_id)
    assert [item.image_id for item in open_cinder(cinder).gc(0, prefix=image_id)] == [image_id]
    assert not project.residue(image_id)
    assert not project.attachments()


def revoke(cinder, token):
    """A token is worth nothing any more, and Cinder has forgotten that it was."""
    cinder.keystone.revoke(token)
    cinder.forget_tokens()


@contextlib.contextmanager
def seen(owner, name, event):
    """``event`` is set once a method has returned."""
    plain = getattr(owner, name)

    def method(*arguments):
        found = plain(*arguments)
        event.set()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, method)
        yield


def test_token_of_the_store_that_ends_in_mid_add_is_renewed(cinder, project, image_id):
    store = open_cinder(cinder)

    def source():
        yield IMAGE
        revoke(cinder, session.get_token())
        yield IMAGE

    session = store.service.user(None).api._client.session
    before = session.get_token()
    stored = store.add(image_id, source())
    assert session.get_token() != before
    assert read(store, stored.uri) == IMAGE * 2
    store.delete(stored.uri)


# -- Sizes and holes ------------------------------------------------------------------------------------------------


def test_volume_grows_while_it_is_attached(store, project, image_id):
    writer = store.open_writer(image_id, None, None)
    block = memoryview(IMAGE)[: 64 * KiB]
    rooms, attachments = [], set()
    for end in (1, GiB + 64 * KiB, 3 * GiB + 64 * KiB):
        rooms.append(writer.reserve(end))
        writer.write(Part(len(rooms), max(end - 64 * KiB, 0), block))
        attachments |= {each["id"] for each in project.attachments()}
    assert rooms == [GiB, 2 * GiB, 4 * GiB]
    assert len(attachments) == 1
    uri = writer.commit(3 * GiB + 64 * KiB, Digests(None, "unknown")).location.uri
    writer.close()
    assert store.get_size(uri) == 3 * GiB + 64 * KiB
    assert project.volumes(image_id)[0]["size"] == 4
    for offset in (0, GiB, 3 * GiB):
        with store.get(uri, offset, 64 * KiB).data as stream:
            assert stream.read() == block
    store.delete(uri)


def test_growing_stops_where_the_quota_allows_only_what_is_needed(cinder, project, image_id):
    with quota(cinder, "demo", project, gigabytes=3):
        writer = open_cinder(cinder).open_writer(image_id, None, None)
        assert [writer.reserve(end) for end in (1, GiB + 1, 2 * GiB + 1)] == [GiB, 2 * GiB, 3 * GiB]
        writer.abort()
        writer.close()
    assert_gone(project, image_id)


@contextlib.contextmanager
def quota(cinder, name, project, **limits):
    """Limits of a project, beyond what it has now."""
    used = sum(volume["size"] for volume in project.volumes())
    path = f"/os-quota-sets/{cinder.keystone.projects[name]}"
    cinder.call("PUT", path, {"quota_set": {key: value + used for key, value in limits.items()}})
    try:
        yield
    finally:
        cinder.call("DELETE", path)


def test_used_up_quota_is_a_full_store(cinder, store, project, image_id, tmp_path):
    with quota(cinder, "demo", project, gigabytes=1):
        with pytest.raises(StorageFull, match="quota"):
            store.add(image_id, sparse_file(tmp_path / "image", GiB + 1, [0]))
        health = store.check()
        assert (health.free, health.total - health.free) == (GiB, sum(v["size"] for v in project.volumes()) * GiB)

        def source():
            yield IMAGE
            yield from [bytes(MiB)] * 1024

        with pytest.raises(StorageFull, match="quota"):
            store.add(image_id, source())
    assert_gone(project, image_id)


def sparse_file(path, size, places):
    with path.open("wb") as file:
        for place in places:
            file.seek(place)
            file.write(IMAGE[:MiB])
        file.truncate(size)
    return path


def test_holes_are_neither_stored_nor_read(store, project, image_id, tmp_path):
    size, places = GiB + 5 * MiB, [5 * MiB, 700 * MiB + 64 * KiB]
    stored = store.add(image_id, sparse_file(tmp_path / "image", size, places))
    with rbd.Image(project.ioctx, f"volume-{volume_of(stored.uri)}", read_only=True) as image:
        used = []
        image.diff_iterate(0, size, None, lambda offset, length, exists: used.append(length))
    assert sum(used) <= 4 * 4 * MiB
    with store.get(stored.uri).data as stream:
        extents = list(stream.extents())
    assert sum(extent.length for extent in extents) == size
    assert sum(extent.length for extent in extents if extent.data) <= 4 * 4 * MiB
    with store.get(stored.uri, places[1], MiB).data as stream:
        assert stream.read() == IMAGE[:MiB]
    store.delete(stored.uri)


def test_without_thin_provisioning_zeros_are_written(cinder, image_id):
    store = open_cinder(cinder, cinder_thin_provisioning=False)
    assert Capability.SPARSE not in store.capabilities
    uri = store.add(image_id, bytes(8 * MiB)).uri
    with store.get(uri).data as stream:
        assert all(extent.data for extent in stream.extents())
    store.delete(uri)


# -- What Cinder refuses ----------------------------------------------------------------------------------------------


def test_missing_volume_type(cinder, project, image_id):
    store = open_cinder(cinder, cinder_volume_type="nowhere")
    for call in (lambda: store.add(image_id, b"data"), store.check):
        with pytest.raises(BadStoreConfiguration, match="cinder_volume_type") as caught:
            call()
        assert "'nowhere'" in str(caught.value)
    assert not project.residue(image_id)


def test_image_that_is_read_stays(store, project, image_id):
    uri = store.add(image_id, IMAGE).uri
    with store.get(uri).data as stream:
        assert stream.read(10) == IMAGE[:10]
        [attachment] = project.attachments(volume_of(uri))
        assert project.call("GET", f"/attachments/{attachment['id']}")["attachment"]["attach_mode"] == "ro"
        with pytest.raises(InUseByStore, match="in-use"):
            store.delete(uri)
        assert stream.read() == IMAGE[10:]
    assert not project.attachments(volume_of(uri))
    store.delete(uri)
    with pytest.raises(NotFound):
        store.delete(uri)


def test_readers_of_one_image_share_an_attachment(cinder, project, image_id):
    """So that volumes which only one host can attach have many readers in a process all the same."""
    store = open_cinder(cinder, cinder_volume_type="single")
    uri = store.add(image_id, IMAGE).uri
    streams = [store.get(uri).data for _ in range(3)]
    assert len(project.attachments(volume_of(uri))) == 1
    for stream in streams:
        with stream:
            assert stream.read() == IMAGE
    assert not project.attachments(volume_of(uri))
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: read(store, uri), range(8))) == {IMAGE}
    assert not project.attachments(volume_of(uri))
    store.delete(uri)


def test_volume_that_somebody_else_has_attached(cinder, project, image_id):
    store = open_cinder(cinder, cinder_volume_type="single", transfer_retries=1)
    uri = store.add(image_id, b"data").uri
    with attached_by_somebody(project, uri):
        with pytest.raises(RemoteServiceUnavailable, match="multiattach"):
            store.get(uri)
        with pytest.raises(InUseByStore):
            store.delete(uri)
    assert read(store, uri) == b"data"
    store.delete(uri)


def test_volume_of_a_shared_type_is_read_beside_others(store, project, image_id):
    uri = store.add(image_id, b"data").uri
    with attached_by_somebody(project, uri):
        assert read(store, uri) == b"data"
        with pytest.raises(InUseByStore):
            store.delete(uri)
    store.delete(uri)


def set_state(cinder, uri, status):
    cinder.call("POST", f"/volumes/{volume_of(uri)}/action", {"os-reset_status": {"status": status}})


def test_volume_in_error_is_not_attached(cinder, store, project, image_id):
    uri = store.add(image_id, b"data").uri
    set_state(cinder, uri, "error")
    with pytest.raises(StoreError, match="it is error"):
        store.get(uri)
    assert not project.attachments(volume_of(uri))
    store.delete(uri)


def test_volume_that_is_never_made(cinder, project, image_id, monkeypatch):
    store, patient = open_cinder(cinder, cinder_state_transition_timeout=1), open_cinder(cinder)
    plain = service.Api.create

    def create(self, *arguments):
        found = plain(self, *arguments)
        patient.service.user(None).api.wait(found, lambda volume: volume.status == "available", "making")
        set_state(cinder, found.id, "creating")
        return found

    monkeypatch.setattr(service.Api, "create", create)
    with pytest.raises(RemoteServiceUnavailable, match="is cinder-volume running"):
        store.add(image_id, b"data")
    [volume] = project.volumes(image_id)
    assert not patient.gc(0, prefix=image_id), "Cinder deletes no volume that is being made"
    set_state(cinder, volume["id"], "available")
    assert [item.image_id for item in patient.gc(0, prefix=image_id)] == [image_id]
    assert not project.residue(image_id)


def test_snapshot_of_somebody_else(store, project, image_id):
    uri = store.add(image_id, b"data").uri
    snapshot = project.call("POST", "/snapshots", {"snapshot": {"volume_id": volume_of(uri)}})["snapshot"]["id"]
    with pytest.raises(HasSnapshot):
        store.delete(uri)
    assert read(store, uri) == b"data"
    wait_for(lambda: project.call("GET", f"/snapshots/{snapshot}")["snapshot"]["status"] == "available")
    project.call("DELETE", f"/snapshots/{snapshot}")
    wait_for(lambda: not project.call("GET", "/snapshots")["snapshots"])
    store.delete(uri)


def wait_for(true, seconds=30):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited for in vain"
        time.sleep(0.1)


def test_copy_is_a_clone_and_outlives_its_original(store, project, image_id):
    stored = store.add(image_id, IMAGE)
    copied = store.copy(stored.uri, f"{image_id}-copy", digests=digests_of(stored))
    with rbd.Image(project.ioctx, f"volume-{volume_of(copied.uri)}", read_only=True) as image:
        assert image.parent_info()[1] == f"volume-{volume_of(stored.uri)}"
    store.delete(stored.uri)
    assert read(store, copied.uri) == IMAGE
    store.delete(copied.uri)
    assert not project.residue(image_id)


# -- Adds of the same id ------------------------------------------------------------------------------------------


def test_add_that_died_just_before_its_end_does_not_win(store, project, image_id, monkeypatch):
    """It is pending for ever: who comes later neither overtakes it nor waits for ever, and gc makes room."""
    monkeypatch.setattr(publication, "_WITHDRAWAL", 0.3)
    writer = store.open_writer(image_id, 4, None)
    writer.reserve(4)
    shelf = store.shelf
    monkeypatch.setattr(shelf, "_await_others", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.commit(4, Digests(None, "x"))
    monkeypatch.undo()
    monkeypatch.setattr(publication, "_WITHDRAWAL", 0.3)
    del writer
    with pytest.raises(StoreError, match="is being added|stands still"):
        store.add(image_id, b"data")
    assert len(project.volumes(image_id)) <= 2
    assert store.gc(0, prefix=image_id)
    assert_gone(project, image_id)
    store.delete(store.add(image_id, b"data").uri)


# -- Processes that die -------------------------------------------------------------------------------------------


def run(cinder, script, *arguments, **options):
    """A process of its own that has ``store``."""
    opening = f"""
    import os, sys, time
    from storelib.drivers.cinder import CinderStore
    from storelib.registry import open_store
    store = open_store(CinderStore, "cinder", **{open_cinder_options(cinder)!r})
    """
    source = textwrap.dedent(opening) + textwrap.dedent(script)
    return subprocess.Popen([sys.executable, "-c", source, *arguments], stdout=subprocess.PIPE, text=True, **options)


def killed(process, last):
    """Kill a process once it says ``last``."""
    assert process.stdout.readline() == f"{last}\n"
    process.kill()
    process.wait(30)
    process.stdout.close()


READING = """
stream = store.get(sys.argv[1]).data
stream.read(1)
print("reading", flush=True)
time.sleep(60)
"""
WRITING = """
def source():
    yield os.urandom(9 << 20)
    print("writing", flush=True)
    time.sleep(60)
store.add(sys.argv[1], source())
"""


def test_attachment_of_a_killed_reader_is_ended_by_gc(cinder, store, project, image_id):
    uri = store.add(image_id, IMAGE).uri
    process = run(cinder, READING, uri)
    assert process.stdout.readline() == "reading\n"
    assert not store.gc(0, prefix=image_id), "a living reader was disturbed"
    process.kill()
    process.wait(30)
    process.stdout.close()
    assert project.attachments(volume_of(uri))
    assert not store.gc(3600, prefix=image_id)
    assert not store.gc(0, prefix="something else")
    assert [item.image_id for item in store.gc(0, prefix=image_id)] == [image_id]
    assert not project.attachments(volume_of(uri))
    assert not store.gc(0, prefix=image_id)
    assert read(store, uri) == IMAGE
    store.delete(uri)


def test_attachment_of_a_killed_reader_keeps_nobody_from_deleting(cinder, store, project, image_id):
    uri = store.add(image_id, IMAGE).uri
    killed(run(cinder, READING, uri), "reading")
    store.delete(uri)
    assert not project.residue(image_id)
    assert not os.listdir(holds_of(store))


def test_volume_of_a_killed_writer_is_removed_by_gc(cinder, store, project, image_id):
    process = run(cinder, WRITING, image_id)
    assert process.stdout.readline() == "writing\n"
    wait_for(lambda: project.attachments())
    assert not store.gc(0, prefix=image_id), "a living writer was disturbed"
    process.kill()
    process.wait(30)
    process.stdout.close()
    # For some seconds Ceph takes the process for alive.
    wait_for(lambda: store.gc(0, prefix=image_id))
    assert not project.residue(image_id)
    assert not project.attachments()
    assert not os.listdir(holds_of(store))


def test_volume_that_another_host_writes_is_left_to_it(cinder, store, project, image_id, tmp_path):
    elsewhere = open_cinder(cinder, cinder_state_path=str(tmp_path))
    writer = elsewhere.open_writer(image_id, 4, None)
    writer.reserve(4)
    assert not store.gc(0, prefix=image_id)
    uri = writer.commit(4, Digests(None, "x")).location.uri
    writer.close()
    store.delete(uri)


def test_user_without_privileges_adds_and_reads(cinder, store, image_id):
    """No root, no kernel module: librbd and network are enough."""
    assert read(store, store.add(f"{image_id}-before", b"all modules are loaded").uri)
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        keyring = os.path.join(place, "keyring")
        shutil.copy(cinder.keyring, keyring)
        if os.geteuid() == 0:
            for path in (place, keyring):
                os.chown(path, NOBODY_ID, NOBODY_ID)

        def work():
            options = {"cinder_rbd_keyring": keyring, "cinder_state_path": os.path.join(place, "state")}
            own = open_cinder(cinder, **options)
            uri = own.add(image_id, IMAGE).uri
            assert read(own, uri) == IMAGE
            own.delete(uri)

        assert in_child(work, NOBODY_ID) == 0
    store.delete(store.find_image(f"{image_id}-before").uri)


#: The user who owns nothing.
NOBODY_ID = 65534


def in_child(work, user):
    """The exit status of a child that does something as another user, who is not root in any case."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of threads; none is in a transfer now
        child = os.fork()
    if not child:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            assert os.geteuid() != 0
            work()
            status = 0
        except BaseException:  # noqa: BLE001  (the status says it)
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# -- The wire -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxy(cinder):
    with FaultyProxy(("127.0.0.1", cinder.port)) as between:
        yield between


@pytest.fixture(scope="module")
def far(cinder, proxy):
    """The store behind the proxy."""
    host, port = proxy.address
    return open_cinder(cinder, cinder_endpoint_template=f"http://{host}:{port}/v3")


@contextlib.contextmanager
def losing(store, number):
    """The answer to the ``number``-th request from now on is lost on the way; the list fills with all of them."""
    user = store.service.user(None).api
    plain = user._send
    asked = []

    def send(method, path, *arguments):
        asked.append(path)
        response = plain(method, path, *arguments)
        if len(asked) == number:
            raise ConnectionResetError
        return response

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user, "_send", send)
        yield asked


def test_add_survives_any_lost_answer(cinder, store, project, image_id):
    """Each request of an add is answered, and the answer lost: the volume is made once all the same, and published."""
    with losing(store, 0) as asked:
        store.delete(store.add(image_id, b"data").uri)

    def add(number):
        own = open_cinder(cinder)
        with losing(own, number):
            stored = own.add(f"{image_id}-{number}", b"data")
        assert read(own, stored.uri) == b"data"
        assert len(project.volumes(f"{image_id}-{number}")) == 1
        own.delete(stored.uri)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(10, len(asked) - 2)))
        # Prefixes of those above.
        list(pool.map(add, range(1, 10)))
    assert not project.residue(image_id)
    assert not project.attachments()


def test_read_survives_any_lost_answer(store, project, image_id):
    uri = store.add(image_id, IMAGE).uri
    with losing(store, 0) as asked:
        read(store, uri)
    for number in range(1, len(asked) + 1):
        with losing(store, number):
            assert read(store, uri) == IMAGE
    store.gc(0, prefix=image_id)
    assert not project.attachments(volume_of(uri))
    store.delete(uri)


@pytest.mark.parametrize("fault", [Cut, Reset], ids=["cut", "reset"])
def test_add_through_a_bad_line(proxy, far, store, project, image_id, fault):
    """Connections end in the middle of requests and answers: an add succeeds, or leaves nothing."""
    for number, after in enumerate([0, 100, 700, 2000, 5000]):
        # Idle connections are made anew, one for each fault.
        far.service.user(None).api._client.session.session.close()
        proxy.plan(fault(after))
        proxy.plan(fault(after, "up"))
        name = f"{image_id}-{number}"
        try:
            uri = far.add(name, b"data").uri
        except StoreError:
            assert_gone(project, name)
        else:
            assert read(store, uri) == b"data"
            store.delete(uri)
    assert not project.residue(image_id)


# -- cinder-volume is away ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parted(tmp_path_factory, keystone, ceph, cinder):
    """Cinder in three processes over a message broker."""
    with (
        RabbitMQ(tmp_path_factory.mktemp("rabbitmq")) as broker,
        Cinder(
            tmp_path_factory.mktemp("parted"), keystone, ceph, broker=broker.url, region="Parted", rpc_timeout=5
        ) as server,
    ):
        yield server


WAYS = ["stopped", "killed"]


def hasty_cinder(parted):
    """One that gives up soon, before the others have time to come back; what is to succeed takes another."""
    return open_cinder(parted, cinder_state_transition_timeout=2, transfer_retries=0)


@pytest.mark.parametrize("way", WAYS)
def test_add_goes_on_when_the_service_comes_back(parted, image_id, way):
    """It is away when the volume has to be grown."""
    store, project = open_cinder(parted), Project(parted)
    writer = store.open_writer(image_id, None, None)
    writer.reserve(1)
    writer.write(Part(0, 0, memoryview(b"data")))
    with ThreadPoolExecutor(1) as pool:
        with getattr(parted, way)("volume"):
            grown = pool.submit(writer.reserve, GiB + 1)
            time.sleep(1)
            assert not grown.done()
        assert grown.result(60) == 2 * GiB
    uri = writer.commit(4, Digests(None, "x")).location.uri
    writer.close()
    assert read(store, uri) == b"data"
    store.delete(uri)
    assert not project.residue(image_id)


@pytest.mark.parametrize("way", WAYS)
def test_add_fails_in_time_while_the_service_is_away(parted, image_id, way):
    hasty, store, project = hasty_cinder(parted), open_cinder(parted), Project(parted)
    with getattr(parted, way)("volume"):
        with pytest.raises(RemoteServiceUnavailable, match="is cinder-volume running"):
            hasty.add(image_id, b"data")
        assert [volume["status"] for volume in project.volumes(image_id)] == ["creating"]
    wait_for(lambda: [volume["status"] for volume in project.volumes(image_id)] == ["available"], 60)
    assert [item.image_id for item in store.gc(0, prefix=image_id)] == [image_id]
    assert not project.residue(image_id)


def test_read_and_delete_fail_in_time_while_the_service_is_away(parted, image_id):
    hasty, store = hasty_cinder(parted), open_cinder(parted)
    uri = store.add(image_id, b"data").uri
    with parted.stopped("volume"), pytest.raises(RemoteServiceUnavailable):
        hasty.get(uri)
    wait_for(lambda: not Project(parted).attachments(volume_of(uri)) or store.gc(0, prefix=image_id))
    assert read(store, uri) == b"data"
    with parted.stopped("volume"), pytest.raises(RemoteServiceUnavailable, match="is cinder-volume running"):
        hasty.delete(uri)
    wait_for(lambda: not Project(parted).residue(image_id))


# -- Beside glance_store -----------------------------------------------------------------------------------------------

# What glance_store wants of sudo, and of /etc/ceph.
GIVEN = """
import os_brick.privileged
from glance_store.common import cinder_utils
os_brick.privileged.default.set_client_mode(False)
plain = cinder_utils.API.attachment_update
def with_key(*arguments, **named):
    attachment = plain(*arguments, **named)
    attachment.connection_info["keyring"] = open({keyring!r}).read()
    return attachment
cinder_utils.API.attachment_update = with_key
"""


@pytest.mark.parametrize("named", [True, False])
def test_volumes_of_glance_store_and_of_storelib_are_the_other_s_too(cinder, tmp_path, named):
    """Both with one configuration file; what one does not know in it, it does not see."""
    options = open_cinder_options(cinder) | {"cinder_os_region_name": cinder.region}
    context = {"project_id": "p", "user_id": "u", "auth_token": "t", "service_catalog": [], "roles": []}
    data = os.urandom(5_000_001)
    (tmp_path / "image").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    stores = {"volumes": ("cinder", options)}
    given = GIVEN.format(keyring=str(cinder.keyring))
    with (
        Library(tmp_path, stores, on_storelib=False, named=named, first=given) as theirs,
        Library(tmp_path, stores, on_storelib=True, named=named) as ours,
    ):
        store = "volumes" if named else "cinder"
        for writer, reader in ((theirs, ours), (ours, theirs)):
            added = writer.add(store, str(uuid.uuid4()), tmp_path / "image", len(data), context)
            uri = added[0]
            assert added[1:4] == [len(data), hashlib.md5(data).hexdigest(), digest]
            assert uri.startswith("cinder://volumes/" if named else "cinder://")
            assert uri.count("/") == (3 if named else 2)
            for library in (writer, reader):
                assert library.get(store, uri, context=context) == [digest, len(data), len(data)]
                assert library.size(store, uri, context=context) == len(data)
                part = hashlib.sha256(data[1_000_000:1_000_100]).hexdigest()
                assert library.get(store, uri, 1_000_000, 100, context=context)[:2] == [part, 100]
                if named:
                    assert library.prefix(store) == "cinder://volumes"
            reader.delete(store, uri, context=context)
            with pytest.raises(LibraryError):
                ours.get(store, uri, context=context)

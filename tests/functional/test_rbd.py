# SPDX-License-Identifier: Apache-2.0
"""RbdStore against a real one-node Ceph: what the suite promises, and what only a cluster can do to an image."""

import contextlib
import gc
import itertools
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from servers.ceph import Cluster

from storelib.capabilities import Capability
from storelib.driver import Digests, Part
from storelib.drivers.rbd import RbdStore, cluster, publication, writer
from storelib.exceptions import (
    BadStoreConfiguration,
    BadStoreUri,
    Duplicate,
    Forbidden,
    HasSnapshot,
    ImageChanged,
    InUseByStore,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StoreError,
    TransferTimeout,
)
from storelib.librbd import images
from storelib.librbd.cluster import Cluster as Connector
from storelib.librbd.cluster import Settings
from storelib.librbd.errors import Advice
from storelib.registry import open_store
from storelib.testing.conformance import BackendAccess, StoreConformance
from storelib.transfer import copy

rados, rbd = (pytest.importorskip(name, reason=f"needs Debian's python3-{name}") for name in ("rados", "rbd"))

KiB, MiB = 1024, 1024 * 1024
ALL = (
    Capability.READ
    | Capability.RANGE
    | Capability.ADD
    | Capability.DELETE
    | Capability.ATOMIC_ADD
    | Capability.SPARSE
    | Capability.LIST
    | Capability.STAT
    | Capability.GC
    | Capability.CHECK
    | Capability.COPY
)


@pytest.fixture(scope="module")
def ceph(tmp_path_factory):
    # A writer that died is believed to be alive for these seconds, 30 by default.
    with Cluster(tmp_path_factory.mktemp("ceph"), osd_client_watch_timeout=8) as cluster:
        for pool in ("images", "conformance"):
            cluster.add_pool(pool)
        yield cluster


def open_rbd(ceph, **options):
    """A store as client.admin, with timeouts that a test can wait for."""
    options = {
        "rbd_store_ceph_conf": str(ceph.conf_file),
        "rados_osd_op_timeout": 20,
        "transfer_retries": 2,
    } | options
    return open_store(RbdStore, "rbd", **options)


class Pool(BackendAccess):
    """A pool through a connection of the tests' own."""

    def __init__(self, ceph, pool="images", namespace=""):
        self.rados = rados.Rados(conffile=str(ceph.conf_file), conf={"rados_osd_op_timeout": "30"})
        self.rados.connect()
        self.ioctx = self.rados.open_ioctx(pool)
        self.ioctx.set_namespace(namespace)
        self.prefix = f"rbd://{ceph.fsid}/{pool}/{namespace + '/' if namespace else ''}"

    def open(self, name):
        return rbd.Image(self.ioctx, name)

    def names(self):
        return set(rbd.RBD().list(self.ioctx))

    def trash(self):
        return {entry["name"] for entry in rbd.RBD().trash_list(self.ioctx)}

    def read(self, image_id):
        try:
            with self.open(image_id) as image:
                image.set_snap("snap")
                return image.read(0, image.size()) if image.size() else b""
        except rbd.ImageNotFound:
            return None

    def residue(self, prefix):
        return {name for name in self.names() | self.trash() if name.startswith(prefix)}


class TestConformance(StoreConformance):
    capabilities = ALL
    # Ceph lists a pool at once.
    many_images = 30
    sequences = 4

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, ceph):
        return open_rbd(ceph, rbd_store_pool="conformance")

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, ceph):
        return Pool(ceph, "conformance")

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, ceph):
        numbers = itertools.count()

        def opened(**options):
            pool = f"new{next(numbers)}"
            ceph.add_pool(pool)
            return open_rbd(ceph, rbd_store_pool=pool, **options)

        return opened

    @pytest.fixture(scope="class")
    @classmethod
    def denied_store(cls, ceph, tmp_path_factory):
        keyring = tmp_path_factory.mktemp("keys") / "keyring"
        keyring.write_text("[client.admin]\n\tkey = AQAAAABgAAAAEAAAAAAAAAAAAAAAAAAAAAAAAA==\n")
        return open_rbd(ceph, rbd_store_pool="conformance", rbd_store_keyring=str(keyring))


@pytest.fixture(scope="module")
def pool(ceph):
    return Pool(ceph)


@pytest.fixture
def store(ceph):
    return open_rbd(ceph)


@pytest.fixture
def image_id(request):
    return request.node.name.partition("[")[0] + request.node.name.partition("[")[2].rstrip("]")


IMAGE = b"".join(os.urandom(MiB) for _ in range(9)) + b"end"


def read(store, uri):
    with store.get(uri).data as stream:
        return stream.read()


def digests_of(stored):
    return Digests(stored.checksum, stored.multihash)


def run(ceph, script, *arguments, **options):
    """A process of its own that has ``store``."""
    opening = f"""
    import gc, os, sys, time
    from storelib.drivers.rbd import RbdStore
    from storelib.registry import open_store
    store = open_store(RbdStore, "rbd", rbd_store_ceph_conf={str(ceph.conf_file)!r}, rados_osd_op_timeout=20)
    """
    source = textwrap.dedent(opening) + textwrap.dedent(script)
    return subprocess.Popen([sys.executable, "-c", source, *arguments], stdout=subprocess.PIPE, text=True, **options)


@contextlib.contextmanager
def stopped(ceph):
    """The OSD does not answer meanwhile."""
    os.kill(ceph.osd_pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(ceph.osd_pid, signal.SIGCONT)


# -- Users and places -----------------------------------------------------------------------------------------


def as_user(ceph, name, osd, **options):
    """A store whose user has these capabilities."""
    key = ceph.add_user(f"client.{name}", mon="profile rbd", osd=osd)
    keyring = ceph.directory / f"{name}.keyring"
    keyring.write_text(f"[client.{name}]\n\tkey = {key}\n")
    return open_rbd(ceph, rbd_store_user=name, rbd_store_keyring=str(keyring), **options)


def test_profile_rbd_on_the_pool_is_all_a_user_needs(ceph, image_id):
    store = as_user(ceph, "glance", "profile rbd pool=images")
    stored = store.add(image_id, IMAGE)
    assert read(store, stored.uri) == IMAGE
    assert image_id in {info.image_id for info in store.list_images()}
    copied = store.copy(stored.uri, f"{image_id}-copy", digests=digests_of(stored))
    store.delete(stored.uri)
    assert read(store, copied.uri) == IMAGE
    store.delete(copied.uri)
    assert "images" in store.check().detail
    store.gc(0, prefix=image_id)


def test_user_who_may_only_read(ceph, store, pool, image_id):
    uri = store.add(image_id, b"data").uri
    reader = as_user(ceph, "reader", "profile rbd-read-only pool=images")
    assert read(reader, uri) == b"data"
    for call in (lambda: reader.add(f"{image_id}-new", b"data"), lambda: reader.delete(uri)):
        with pytest.raises(Forbidden, match="profile rbd"):
            call()
    assert read(store, uri) == b"data"
    assert pool.residue(image_id) == {image_id}


def test_user_of_another_pool(ceph, store, image_id):
    uri = store.add(image_id, b"data").uri
    other = as_user(ceph, "other", "profile rbd pool=conformance")
    for call in (lambda: read(other, uri), lambda: other.add(f"{image_id}-new", b"data"), other.check):
        with pytest.raises(Forbidden):
            call()


def test_wrong_key(ceph, image_id, tmp_path):
    keyring = tmp_path / "keyring"
    keyring.write_text("[client.admin]\n\tkey = AQAAAABgAAAAEAAAAAAAAAAAAAAAAAAAAAAAAA==\n")
    store = open_rbd(ceph, rbd_store_keyring=str(keyring))
    with pytest.raises(Forbidden, match="rbd_store_keyring"):
        store.add(image_id, b"data")
    with pytest.raises(Forbidden, match="rbd_store_keyring"):
        store.check()


def test_unknown_user(ceph):
    with pytest.raises(Forbidden, match="rbd_store_user"):
        open_rbd(ceph, rbd_store_user="nobody").check()


@pytest.mark.parametrize("option", ["rbd_store_ceph_conf", "rbd_store_keyring"])
def test_file_that_is_not_there(ceph, option):
    with pytest.raises(BadStoreConfiguration, match=f"{option}: /nowhere cannot be read"):
        open_rbd(ceph, **{option: "/nowhere"})


def test_missing_pool(ceph, image_id):
    store = open_rbd(ceph, rbd_store_pool="nowhere")
    for call in (lambda: store.add(image_id, b"data"), lambda: read(store, f"rbd://{image_id}"), store.check):
        with pytest.raises(BadStoreConfiguration, match="rbd_store_pool"):
            call()


@pytest.mark.parametrize("option", ["rbd_store_data_pool", "rbd_store_namespace"])
def test_missing_data_pool_or_namespace(ceph, pool, image_id, option):
    store = open_rbd(ceph, **{option: "nowhere"})
    with pytest.raises(BadStoreConfiguration, match=option):
        store.add(image_id, b"data")
    assert not pool.residue(image_id)


def test_bytes_go_to_the_data_pool(ceph, pool, image_id):
    store = open_rbd(ceph, rbd_store_data_pool="conformance")
    stored = store.add(image_id, IMAGE)
    copied = store.copy(stored.uri, f"{image_id}-copy", digests=digests_of(stored))
    assert read(store, copied.uri) == IMAGE
    with pool.open(image_id) as image:
        assert image.data_pool_id() == pool.rados.pool_lookup("conformance")


def test_other_places_are_refused(ceph, store, image_id):
    uri = store.add(image_id, b"data").uri
    other_fsid = uri.replace(ceph.fsid, "00000000-1111-2222-3333-444444444444")
    for foreign in (other_fsid, uri.replace("/images/", "/conformance/"), uri.replace("/images/", "/images/space/")):
        for call in (store.get, store.get_size, store.stat, store.delete):
            with pytest.raises(BadStoreUri):
                call(foreign)
    assert read(store, uri) == b"data"


def test_short_uri(store, image_id):
    uri = store.add(image_id, b"data").uri
    assert read(store, f"rbd://{image_id}") == b"data"
    assert store.stat(f"rbd://{image_id}").uri == uri
    assert store.uri_of(f"rbd://{image_id}") == uri


def test_details_have_the_clusters_fsid(ceph, store):
    assert store.details() == {"fsid": ceph.fsid}


def test_namespace(ceph, store, image_id):
    ceph.run("rbd", "namespace", "create", "--pool", "images", "--namespace", "tenant")
    inside, access = open_rbd(ceph, rbd_store_namespace="tenant"), Pool(ceph, "images", "tenant")
    stored = inside.add(image_id, b"inside")
    assert stored.uri == f"rbd://{ceph.fsid}/images/tenant/{image_id}/snap"
    outside = store.add(image_id, b"outside").uri
    assert (read(inside, stored.uri), read(store, outside)) == (b"inside", b"outside")
    assert access.names() == {image_id}
    with pytest.raises(BadStoreUri):
        inside.get(outside)
    with pytest.raises(BadStoreUri):
        store.get(stored.uri)
    copied = inside.copy(stored.uri, f"{image_id}-copy", digests=digests_of(stored))
    assert read(inside, copied.uri) == b"inside"
    inside.delete(copied.uri)
    inside.delete(stored.uri)
    assert not access.names()


def test_check_knows_no_room_without_a_manager(ceph, store, pool):
    before = pool.names() | pool.trash()
    health = store.check()
    assert ceph.fsid in health.detail
    assert (health.free, health.total) == (None, None)
    assert pool.names() | pool.trash() == before


@pytest.mark.parametrize("option", ["rbd_store_data_pool", "rbd_store_namespace"])
def test_check_names_what_adds_would_miss(ceph, option):
    with pytest.raises(BadStoreConfiguration, match=option):
        open_rbd(ceph, **{option: "nowhere"}).check()


def test_check_of_a_user_who_may_only_read(ceph):
    """It works where the store says that it is only read."""
    caps = "profile rbd-read-only pool=images"
    with pytest.raises(Forbidden, match="rbd_store_user.*profile rbd.*read_only"):
        as_user(ceph, "looker", caps).check()
    assert "images" in as_user(ceph, "looker", caps, read_only=True).check().detail


def settings_of(ceph, key):
    """Plain values only, as a service tells where a volume is that it has attached: no file of Ceph's."""
    with rados.Rados(conffile=str(ceph.conf_file)) as known:
        hosts = re.findall(r"127\.0\.0\.1:\d+", known.conf_get("mon_host"))
    return Settings("images", conf_file=None, mon_hosts=tuple(hosts), cluster_name="ceph", user="admin", key=key)


def test_volume_is_written_and_read_by_plain_values(ceph, pool, image_id):
    key = ceph.command("auth", "get-key", "client.admin").strip()
    connection = Connector(settings_of(ceph, key), "volume", Advice()).get()
    rbd.RBD().create(pool.ioctx, image_id, 16 * MiB, old_format=False)
    with connection.open(image_id) as image:
        images.write(image, 8 * MiB, memoryview(IMAGE)[:MiB])
        images.Flusher("volume").flush(image)
    buffer = bytearray(2 * MiB)
    with connection.open(image_id, read_only=True) as image:
        assert images.read_into(image, 8 * MiB - MiB, memoryview(buffer)) == 2 * MiB
        assert images.exact_runs(image, 0, 16 * MiB) == [images.Run(8 * MiB, 9 * MiB)]
    assert bytes(buffer) == bytes(MiB) + IMAGE[:MiB]


def test_key_that_is_refused_is_not_told(ceph):
    key = "AQ" + "A" * 36 + "=="
    with pytest.raises(StoreError, match="^volume: ") as raised:
        Connector(settings_of(ceph, key), "volume", Advice()).get()
    assert key not in str(raised.value)


def test_connection_without_a_pool_is_closed(ceph):
    def attempt():
        with pytest.raises(BadStoreConfiguration, match="rbd_store_pool"):
            open_rbd(ceph, rbd_store_pool="nowhere").check()

    attempt()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        attempt()
    # A connection has a dozen.
    assert len(os.listdir("/proc/self/fd")) < before + 12


def test_stream_outlives_its_store_which_then_closes_its_connection(ceph, store, image_id):
    uri = store.add(image_id, IMAGE).uri
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with open_rbd(ceph).get(uri).data as stream:
            gc.collect()
            assert stream.read(5) == IMAGE[:5]
        del stream
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/fd")) >= before + 12 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) < before + 12


def test_process_that_drops_stores_as_it_ends_ends_in_order(ceph, store, image_id):
    uri = store.add(image_id, b"data").uri
    script = """
    stores = [store, *(RbdStore("rbd", store.conf) for _ in range(7))]
    for each in stores:
        each.configure()
    print(*(each.get_size(sys.argv[1]) for each in stores), flush=True)
    del store, each
    stores.clear()
    """
    processes = [run(ceph, script, uri, stderr=subprocess.STDOUT) for _ in range(4)]
    told = [process.communicate(timeout=60)[0] for process in processes]
    assert told == ["4 4 4 4 4 4 4 4\n"] * 4
    # Ceph's own threads would end it by a signal.
    assert [process.returncode for process in processes] == [0] * 4


def test_no_question_takes_longer_than_transfers(ceph):
    handle = open_rbd(ceph, transfer_timeout=2.5).cluster.get().rados
    for name in ("client_mount_timeout", "rados_osd_op_timeout", "rados_mon_op_timeout"):
        assert float(handle.conf_get(name)) == 3


# -- Sizes and holes ------------------------------------------------------------------------------------------


def test_unknown_size_grows_in_few_steps_and_is_trimmed(store, pool, image_id, monkeypatch):
    monkeypatch.setattr(writer, "FIRST_ROOM", MiB)
    rooms = []
    plain = writer.RbdWriter.reserve
    monkeypatch.setattr(writer.RbdWriter, "reserve", lambda self, end: rooms.append(plain(self, end)) or rooms[-1])
    uri = store.add(image_id, iter([bytes([number]) * MiB for number in range(1, 40)])).uri
    assert rooms == [4 * MiB, 8 * MiB, 16 * MiB, 32 * MiB, 64 * MiB]
    with pool.open(image_id) as image:
        assert image.size() == 39 * MiB
    assert store.get_size(uri) == 39 * MiB


def test_known_size_is_made_at_once(store, pool, image_id, monkeypatch):
    monkeypatch.setattr(writer.RbdWriter, "commit", lambda self, size, digests: sizes.append(self._image.size()))
    sizes = []
    with contextlib.suppress(StoreError):
        store.add(image_id, IMAGE, len(IMAGE))
    assert sizes == [len(IMAGE)]


def sparse_file(path, size, places):
    with path.open("wb") as file:
        for place in places:
            file.seek(place)
            file.write(IMAGE[:MiB])
        file.truncate(size)
    return path


def test_holes_are_neither_stored_nor_read(ceph, store, pool, image_id, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "SPAN", 256 * MiB)
    size, places = 375 * MiB, [5 * MiB, 250 * MiB + 64 * KiB]
    stored = store.add(image_id, sparse_file(tmp_path / "image", size, places))
    with pool.open(image_id) as image:
        used = []
        image.diff_iterate(0, size, None, lambda offset, length, exists: used.append(length))
    assert sum(used) <= 4 * 8 * MiB

    asked = []
    plain = store.open_reader

    def open_reader(*arguments):
        reader = plain(*arguments)
        image_read = reader._image.read
        reader._image.read = lambda offset, length: asked.append(length) or image_read(offset, length)
        return reader

    store.open_reader = open_reader
    buffer = bytearray(4 * MiB)
    done = 0
    with store.get(stored.uri).data as stream:
        while count := stream.readinto(buffer):
            done += count
    assert done == size
    assert sum(asked) <= 4 * 8 * MiB

    asked.clear()
    target = open_rbd(ceph, rbd_store_pool="conformance")
    moved = copy(store, stored.uri, target, image_id, digests=digests_of(stored))
    assert sum(asked) <= 8 * 8 * MiB
    with target.get(moved.uri, places[1], MiB).data as stream:
        assert stream.read() == IMAGE[:MiB]
    with target.get(moved.uri).data as stream:
        holes = [extent for extent in stream.extents() if not extent.data]
    assert sum(extent.length for extent in holes) >= size - 3 * 8 * MiB
    target.delete(moved.uri)


def test_without_thin_provisioning_zeros_are_written(ceph, pool, image_id):
    store = open_rbd(ceph, rbd_thin_provisioning=False)
    assert Capability.SPARSE not in store.capabilities
    uri = store.add(image_id, bytes(16 * MiB)).uri
    with store.get(uri).data as stream:
        assert all(extent.data for extent in stream.extents())
        assert stream.read() == bytes(16 * MiB)


# -- Copies, clones, snapshots, users of an image -----------------------------------------------------------------


def parent_of(pool, image_id):
    with pool.open(image_id) as image:
        try:
            return image.parent_id()
        except rbd.ImageNotFound:
            return None


def test_copy_is_a_clone_or_not(ceph, store, pool, image_id):
    stored = store.add(image_id, IMAGE)
    store.copy(stored.uri, f"{image_id}-clone", digests=digests_of(stored))
    deep_store = open_rbd(ceph, rbd_store_copy_mode="deep")
    assert Capability.COPY not in deep_store.capabilities
    deep = deep_store.copy(stored.uri, f"{image_id}-deep", digests=digests_of(stored))
    assert parent_of(pool, f"{image_id}-clone")
    assert not parent_of(pool, f"{image_id}-deep")
    assert read(store, deep.uri) == IMAGE


@pytest.mark.parametrize("clone_format", ["1", "2"])
def test_deleted_original_of_a_clone_waits_in_the_trash(ceph, pool, image_id, clone_format):
    store = open_rbd(ceph, rbd_store_clone_format=clone_format)
    stored = store.add(image_id, IMAGE)
    copied = store.copy(stored.uri, f"{image_id}-clone", digests=digests_of(stored))
    store.delete(stored.uri)
    assert pool.trash() == {image_id}
    assert read(store, copied.uri) == IMAGE
    with pytest.raises(NotFound):
        store.get_size(stored.uri)
    assert not store.gc(0, prefix=image_id)
    store.delete(copied.uri)
    assert [item.image_id for item in store.gc(0, prefix=image_id)] == [image_id]
    assert not pool.residue(image_id)


def test_original_of_a_clone_is_kept_where_it_must_not_be_deleted(ceph, image_id):
    store = open_rbd(ceph, rbd_store_delete_in_use="refuse")
    stored = store.add(image_id, IMAGE)
    copied = store.copy(stored.uri, f"{image_id}-clone", digests=digests_of(stored))
    with pytest.raises(InUseByStore, match="rbd_store_delete_in_use"):
        store.delete(stored.uri)
    assert read(store, stored.uri) == IMAGE
    assert not store.gc(0, prefix=image_id)
    store.delete(copied.uri)
    store.delete(stored.uri)


def test_consumer_clones_from_what_the_uri_says(ceph, store, image_id):
    fsid, pool, image, snapshot = store.add(image_id, IMAGE).uri.removeprefix("rbd://").split("/")
    assert fsid == ceph.fsid
    volume = f"{pool}/{image_id}-volume"
    ceph.run("rbd", "clone", f"{pool}/{image}@{snapshot}", volume)
    with pytest.raises(InUseByStore):
        open_rbd(ceph, rbd_store_delete_in_use="refuse").delete(f"rbd://{image}")
    ceph.run("rbd", "export", volume, str(ceph.directory / "volume"))
    assert (ceph.directory / "volume").read_bytes() == IMAGE


def test_snapshot_of_somebody_else(store, pool, image_id):
    uri = store.add(image_id, IMAGE).uri
    with pool.open(image_id) as image:
        image.create_snap("backup")
    with pytest.raises(HasSnapshot, match="backup"):
        store.delete(uri)
    assert read(store, uri) == IMAGE
    clone = store.copy(uri, f"{image_id}-clone", digests=Digests(None, "unknown"))
    with pytest.raises(HasSnapshot, match="backup"):
        store.delete(uri)
    store.delete(clone.uri)
    with pool.open(image_id) as image:
        image.remove_snap("backup")
    store.delete(uri)
    assert not pool.residue(image_id)


def test_image_that_somebody_has_open(store, pool, image_id):
    uri = store.add(image_id, IMAGE).uri
    with pool.open(image_id) as image:
        with pytest.raises(InUseByStore):
            store.delete(uri)
        assert image.is_protected_snap("snap")
    assert read(store, uri) == IMAGE
    store.delete(uri)


def test_image_opened_while_it_is_being_deleted_is_put_back(store, pool, image_id, monkeypatch):
    uri = store.add(image_id, IMAGE).uri
    opened = []
    plain = publication.unseal
    monkeypatch.setattr(publication, "unseal", lambda *a: plain(*a) or opened.append(pool.open(image_id)))
    with pytest.raises(InUseByStore):
        store.delete(uri)
    opened[0].close()
    assert read(store, uri) == IMAGE
    with pool.open(image_id) as image:
        assert image.is_protected_snap("snap")
        assert publication.mark(image, publication.DELETING) is None


def test_image_of_glance_store_is_read_and_deleted(store, pool, image_id):
    rbd.RBD().create(pool.ioctx, image_id, 4 * MiB, order=23, old_format=False)
    with pool.open(image_id) as image:
        image.write(IMAGE[:MiB], MiB)
        with pytest.raises(NotFound):
            store.get(f"rbd://{image_id}")
        assert image_id not in {info.image_id for info in store.list_images()}
        image.create_snap("snap")
        image.protect_snap("snap")
    uri = f"rbd://{store.cluster.fsid}/images/{image_id}/snap"
    assert read(store, uri) == bytes(MiB) + IMAGE[:MiB] + bytes(2 * MiB)
    with pytest.raises(Duplicate):
        store.add(image_id, b"data")
    store.delete(uri)
    assert not pool.residue(image_id)


def test_image_deleted_while_it_is_read_is_no_image_of_zeros(store, image_id):
    uri = store.add(image_id, IMAGE * 4).uri
    with store.get(uri).data as stream:
        assert stream.read(10) == IMAGE[:10]
        store.delete(uri)
        stream.seek(30 * MiB)
        with pytest.raises(ImageChanged, match="deleted"):
            stream.read()


# -- Among many images ----------------------------------------------------------------------------------------


def requests_of(monkeypatch, function):
    """How often ``function()`` asks Ceph to open or list something, and for names."""
    from storelib.librbd import directory
    from storelib.librbd.cluster import Connection

    asked, page, opened = [], directory._page, Connection.open

    def paging(*arguments):
        asked.append(arguments[2:])
        return page(*arguments)

    def opening(self, name, *arguments, **options):
        asked.append(name)
        return opened(self, name, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(directory, "_page", paging)
        patch.setattr(Connection, "open", opening)
        function()
    return asked


def test_gc_of_one_id_looks_at_no_other_image(ceph, monkeypatch, image_id):
    asked = []
    for count in (2, 30):
        namespace = f"many-{count}"
        rbd.RBD().namespace_create(Pool(ceph).ioctx, namespace)
        there = Pool(ceph, namespace=namespace)
        for number in range(count):
            rbd.RBD().create(there.ioctx, f"other-{number}", 4 * MiB)
        store = open_rbd(ceph, rbd_store_namespace=namespace)
        store.add("dead-not", IMAGE)
        rbd.RBD().create(there.ioctx, publication.new_name("dead")[0], 4 * MiB)

        def collect(store=store):
            store.gc(0, "dead")
            assert store.find_image("dead") is None

        asked.append([each if isinstance(each, tuple) else "open" for each in requests_of(monkeypatch, collect)])
    assert asked[0] == asked[1]


def test_names_of_a_pool_are_found_by_how_they_begin(ceph, monkeypatch):
    from storelib.librbd import directory

    rbd.RBD().namespace_create(Pool(ceph).ioctx, "names")
    there = Pool(ceph, namespace="names")
    connection = open_rbd(ceph, rbd_store_namespace="names").cluster.get()
    assert list(directory.names(connection, "")) == []
    made = sorted(["a", "b-1", "b-10", "b-2", "b", "bé", "c"])
    for name in made:
        rbd.RBD().create(there.ioctx, name, MiB)
    monkeypatch.setattr(directory, "_PAGE", 2)
    assert sorted(directory.names(connection, "")) == made
    assert set(directory.names(connection, "b-1")) == {"b-1", "b-10"}
    for name in made:
        with there.open(name) as image:
            assert directory.id_at(connection, name) == image.id()
    assert directory.id_at(connection, "b-") is None


# -- Adds that are alive, and gc of others --------------------------------------------------------------------


def gc_of_others(ceph, image_id, by):
    """gc(0) of a second store object, here or in another process; returns how much it removed."""
    if by == "object":
        return len(open_rbd(ceph).gc(0, prefix=image_id))
    process = run(ceph, "print(len(store.gc(0, prefix=sys.argv[1])))", image_id)
    return int(process.communicate(timeout=60)[0])


#: A function in the middle of an add, and whether gc comes after it.
PHASES = {
    "made": (writer.RbdWriter, "_open", False),
    "marked": (writer.RbdWriter, "_open", True),
    "written": (writer.RbdWriter, "write", True),
    "before the snapshot": (writer.RbdWriter, "publish", False),
    "after the snapshot": (writer.RbdWriter, "_seal", True),
    "before the rename": (publication, "publish", False),
    "after the rename": (publication, "look_at", False),
}


@pytest.mark.parametrize("by", ["object", "process"])
@pytest.mark.parametrize("phase", PHASES)
def test_gc_of_others_spares_adds_under_way(ceph, store, pool, image_id, monkeypatch, phase, by):
    image_id = image_id.replace(" ", "-")
    owner, name, after = PHASES[phase]
    plain = getattr(owner, name)
    removed = []

    def step(*arguments, **options):
        response = plain(*arguments, **options) if after else None
        if not removed:
            removed.append(0)
            removed[0] = gc_of_others(ceph, image_id, by)
        return response if after else plain(*arguments, **options)

    monkeypatch.setattr(owner, name, step)
    assert read(store, store.add(image_id, IMAGE).uri) == IMAGE
    assert removed == [0]
    assert pool.residue(image_id) == {image_id}


def test_gc_of_others_spares_a_copy_under_way(ceph, store, pool, image_id, monkeypatch):
    """A clone begins with the marks of its original."""
    stored = store.add(image_id, IMAGE)
    plain = writer.RbdWriter._open
    removed = []

    def method(self, *arguments):
        removed.append(gc_of_others(ceph, image_id, "object"))
        return plain(self, *arguments)

    monkeypatch.setattr(writer.RbdWriter, "_open", method)
    copied = store.copy(stored.uri, f"{image_id}-copy", digests=digests_of(stored))
    assert removed == [0]
    assert read(store, copied.uri) == IMAGE


def at_publication(monkeypatch, action):
    plain = publication.publish
    monkeypatch.setattr(publication, "publish", lambda *a, **options: [action(*a), plain(*a, **options)][1])


def test_add_whose_snapshot_is_removed_fails(store, pool, image_id, monkeypatch):
    def remove_snapshot(connection, name, *rest):
        with pool.open(name) as image:
            image.unprotect_snap("snap")
            image.remove_snap("snap")

    at_publication(monkeypatch, remove_snapshot)
    with pytest.raises(StoreError, match="snapshot of what was written"):
        store.add(image_id, IMAGE)
    assert not pool.residue(image_id)


@pytest.mark.parametrize("other", [False, True])
def test_add_whose_image_is_moved_away_fails(store, pool, image_id, monkeypatch, other):
    def rename(connection, name, *rest):
        rbd.RBD().rename(pool.ioctx, name, f"{image_id}-elsewhere")
        if other:
            rbd.RBD().create(pool.ioctx, image_id, MiB, old_format=False)

    at_publication(monkeypatch, rename)
    with pytest.raises(Duplicate if other else StoreError, match="exists" if other else "another client removed"):
        store.add(image_id, IMAGE)
    assert pool.residue(image_id) == {f"{image_id}-elsewhere", *([image_id] if other else [])}


def test_clones_and_copies_of_others_are_no_garbage(store, pool, image_id):
    """They inherit the marks of the image, even those of one whose deletion was begun."""
    store.add(image_id, IMAGE)
    with pool.open(image_id) as image:
        for number, mark in enumerate([None, "1", str(image.id())]):
            if mark is not None:
                image.metadata_set(publication.DELETING, mark)
            rbd.RBD().clone(pool.ioctx, image_id, "snap", pool.ioctx, f"{image_id}-clone{number}")
            image.copy(pool.ioctx, f"{image_id}-copy{number}")
            rbd.RBD().clone(pool.ioctx, image_id, "snap", pool.ioctx, f"{image_id}-trash{number}")
            rbd.RBD().trash_move(pool.ioctx, f"{image_id}-trash{number}")
    before = pool.residue(image_id)
    assert len(before) == 10
    assert not store.gc(0, prefix=image_id)
    assert pool.residue(image_id) == before
    with pytest.raises(NotFound):
        store.delete(f"rbd://{image_id}-copy2")
    assert pool.residue(image_id) == before


# -- Answers that are lost on the way -------------------------------------------------------------------------


class Repeating:
    """An object of the bindings whose calls, some of them, arrive twice, as when Ceph sends a request again."""

    def __init__(self, wrapped, *names):
        self._wrapped = wrapped
        self._names = names

    def __getattr__(self, name):
        plain = getattr(self._wrapped, name)
        if name not in self._names:
            return plain

        def twice(*arguments, **options):
            plain(*arguments, **options)
            return plain(*arguments, **options)

        return twice


def test_steps_that_arrive_twice_are_no_refusals(store, pool, image_id):
    rbd.RBD().create(pool.ioctx, image_id, MiB, old_format=False)
    with pool.open(image_id) as image:
        repeating = Repeating(image, "create_snap", "protect_snap", "unprotect_snap", "remove_snap")
        publication.seal(repeating, protect=True)
        assert image.is_protected_snap("snap")
        publication.unseal(repeating)
        assert not cluster.snapshots(image)


@pytest.mark.parametrize("name", ["create", "rename", "remove", "trash_move"])
def test_requests_that_arrive_twice_are_no_refusals(store, pool, image_id, monkeypatch, name):
    plain = rbd.RBD
    monkeypatch.setattr(rbd, "RBD", lambda: Repeating(plain(), name))
    stored = store.add(image_id, IMAGE)
    assert read(store, stored.uri) == IMAGE
    assert pool.residue(image_id) == {image_id}
    if name == "trash_move":
        store.copy(stored.uri, f"copy-of-{image_id}", digests=digests_of(stored))
    store.delete(stored.uri)
    assert image_id not in pool.names()
    monkeypatch.undo()
    with pytest.raises(NotFound):
        store.delete(stored.uri)


def test_flush_that_failed_fails_the_add(store, pool, image_id, monkeypatch):
    """However often it is asked again: what was not written may have been forgotten."""
    plain, asked = writer.RbdWriter._open, []

    class Failing(Repeating):
        def flush(self):
            asked.append(1)
            if len(asked) == 1:
                raise rbd.OSError("flush", errno=5)

    def opened(self, *arguments):
        plain(self, *arguments)
        self._image = Failing(self._image)

    monkeypatch.setattr(writer.RbdWriter, "_open", opened)
    with pytest.raises(StoreError, match="flushed"):
        store.add(image_id, IMAGE)
    assert asked == [1]
    assert not pool.residue(image_id)


def test_image_that_cannot_be_marked_is_closed_again(store, pool, image_id, monkeypatch):
    def fail(image, token):
        raise rbd.OSError("metadata", errno=22)

    monkeypatch.setattr(publication, "set_token", fail)
    with pytest.raises(StoreError):
        store.add(image_id, IMAGE)
    assert not pool.residue(image_id)


# -- Digests --------------------------------------------------------------------------------------------------


def digest_of(store, uri):
    opened = store.open_reader(store.locate(uri), 0, None, None)
    try:
        return opened.digest
    finally:
        opened.close()


def test_digest_is_recorded_with_the_image(store, image_id):
    stored = store.add(image_id, IMAGE, hashing_algo="sha256")
    assert digest_of(store, stored.uri) == ("sha256", stored.multihash)
    copied = store.copy(stored.uri, f"{image_id}-copy", digests=Digests(None, stored.multihash, "sha256"))
    assert digest_of(store, copied.uri) == ("sha256", stored.multihash)


def test_digest_that_a_clone_inherited_is_not_its_own(store, pool, image_id):
    stored = store.add(image_id, IMAGE)
    rbd.RBD().clone(pool.ioctx, image_id, "snap", pool.ioctx, f"{image_id}-clone")
    with pool.open(f"{image_id}-clone") as image:
        image.write(b"other bytes", 0)
        image.create_snap("snap")
    assert digest_of(store, f"rbd://{image_id}-clone") is None
    assert digest_of(store, stored.uri) is not None


# -- What crashes leave ---------------------------------------------------------------------------------------


def test_killed_writer_leaves_what_gc_removes(ceph, store, pool, image_id):
    script = """
    def source():
        yield os.urandom(20 << 20)
        print("half", flush=True)
        time.sleep(60)
    store.add(sys.argv[1], source())
    """
    process = run(ceph, script, image_id)
    assert process.stdout.readline() == "half\n"
    assert not store.gc(0, prefix=image_id), "a writer at work was disturbed"
    process.kill()
    process.wait(30)
    process.stdout.close()
    assert pool.residue(image_id)
    deadline = time.monotonic() + 40
    while not (found := store.gc(0, prefix=image_id)) and time.monotonic() < deadline:
        time.sleep(1)
    assert [item.image_id for item in found] == [image_id]
    assert not pool.residue(image_id)
    store.delete(store.add(image_id, b"again").uri)


def half_renamed(store, pool, image_id):
    """A writer that has taken the id and not yet the entry in the pool's directory."""
    writer = store.open_writer(image_id, len(IMAGE), None)
    writer.reserve(len(IMAGE))
    writer.write(Part(0, 0, memoryview(IMAGE)))
    publication.seal(writer._image, True)
    writer.close()
    [name] = pool.residue(image_id)
    pool.ioctx.write_full(f"rbd_id.{image_id}", pool.ioctx.read(f"rbd_id.{name}"))
    return writer


def test_rename_that_was_interrupted_is_finished_by_the_next_attempt(store, pool, image_id):
    writer = half_renamed(store, pool, image_id)
    publication.publish(store.cluster.get(), writer._names[-1], image_id, writer._rbd_id)
    assert pool.residue(image_id) == {image_id}
    assert pool.read(image_id) == IMAGE
    store.delete(f"rbd://{image_id}")
    assert not pool.residue(image_id)


def test_rename_that_was_interrupted_for_good_is_garbage(store, pool, image_id):
    half_renamed(store, pool, image_id)
    gc.collect()
    [found] = store.gc(0, prefix=image_id)
    assert found.image_id == image_id
    assert not pool.residue(image_id)
    store.delete(store.add(image_id, b"again").uri)


def test_image_made_in_part_is_garbage(store, pool, image_id):
    name, _ = publication.new_name(image_id)
    rbd.RBD().create(pool.ioctx, name, MiB, old_format=False)
    with pool.open(name) as image:
        header = f"rbd_header.{image.id()}"
    pool.ioctx.remove_object(header)
    assert not store.gc(3600, prefix=image_id)
    assert [item.name for item in store.gc(0, prefix=image_id)] == [name]
    assert not pool.residue(image_id)


@pytest.mark.parametrize("part", ["header", "whole", "entry"])
def test_gc_reports_only_what_it_removed_itself(ceph, store, pool, image_id, part):
    name, token = publication.new_name(image_id)
    rbd.RBD().create(pool.ioctx, name, MiB, old_format=False)
    with pool.open(name) as image:
        publication.set_token(image, token)
        header = f"rbd_header.{image.id()}"
    if part != "whole":
        pool.ioctx.remove_object(header)
    if part == "entry":
        pool.ioctx.remove_object(f"rbd_id.{name}")
    [seen] = store.find_garbage(0, image_id)
    assert [item.name for item in open_rbd(ceph).gc(0, prefix=image_id)] == [name]
    assert store.discard(seen) is False
    assert not pool.residue(image_id)


def test_image_deleted_in_part_is_garbage(store, pool, image_id):
    uri = store.add(image_id, IMAGE).uri
    with pool.open(image_id) as image:
        image.metadata_set(publication.DELETING, "1")
        image.unprotect_snap("snap")
        image.remove_snap("snap")
    with pytest.raises(NotFound):
        store.get(uri)
    assert image_id not in {info.image_id for info in store.list_images()}
    assert [item.name for item in store.gc(0, prefix=image_id)] == [image_id]
    assert not pool.residue(image_id)


def test_image_removed_in_part_is_removed_by_the_next_delete(store, pool, image_id):
    uri = store.add(image_id, b"data").uri
    with pool.open(image_id) as image:
        header = f"rbd_header.{image.id()}"
    pool.ioctx.remove_object(header)
    with pytest.raises(NotFound):
        store.get(uri)
    store.delete(uri)
    assert not pool.residue(image_id)
    with pytest.raises(NotFound):
        store.delete(uri)
    assert read(store, store.add(image_id, b"again").uri) == b"again"


def test_delete_whose_answer_is_lost_spares_what_was_added_since(store, pool, image_id, monkeypatch):
    uri = store.add(image_id, b"data").uri
    plain, failing = rbd.RBD, [1]

    class Losing(Repeating):
        def remove(self, *arguments):
            self._wrapped.remove(*arguments)
            if failing:
                failing.clear()
                store.add(image_id, b"of somebody else")
                raise rbd.OSError("remove", errno=110)

    monkeypatch.setattr(rbd, "RBD", lambda: Losing(plain()))
    store.delete(uri)
    assert not failing
    assert read(store, uri) == b"of somebody else"


def test_disks_of_others_are_no_garbage(store, pool, image_id):
    for name in (image_id, f"{image_id}-trash"):
        rbd.RBD().create(pool.ioctx, name, MiB, old_format=False)
    rbd.RBD().trash_move(pool.ioctx, f"{image_id}-trash")
    assert not list(store.find_garbage(0, image_id))


def test_id_like_a_temporary_name_is_an_image(store, pool, image_id):
    name, _ = publication.new_name(image_id)
    uri = store.add(name, b"data").uri
    assert not store.gc(0, prefix=image_id)
    assert [info.uri for info in store.list_images() if info.image_id == name] == [uri]
    assert read(store, uri) == b"data"


# -- Processes ------------------------------------------------------------------------------------------------


def test_of_processes_racing_for_one_id_one_wins(ceph, store, pool, image_id):
    script = """
    def source():
        yield sys.argv[2].encode() * 100_000
        print("ready", flush=True)
        sys.stdin.readline()
    try:
        print(store.add(sys.argv[1], source()).uri)
    except Exception as error:
        print(type(error).__name__)
    """
    racers = [run(ceph, script, image_id, str(number), stdin=subprocess.PIPE) for number in range(3)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outcomes = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    winner = outcomes.index(f"rbd://{ceph.fsid}/images/{image_id}/snap")
    assert sorted(outcomes)[:2] == ["Duplicate", "Duplicate"]
    assert pool.read(image_id) == str(winner).encode() * 100_000
    assert pool.residue(image_id) == {image_id}


def test_child_adds_and_ends_like_any_process(ceph, store, image_id):
    uri = store.add(image_id, IMAGE).uri
    script = """
    stream = store.get(sys.argv[1]).data
    stream.read(10)
    child = os.fork()
    if not child:
        stream = None
        gc.collect()
        added = store.add(sys.argv[2], b"from the child")
        assert store.get_size(sys.argv[1]) == int(sys.argv[3])
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert len(stream.read()) == int(sys.argv[3]) - 10
    print("parent", flush=True)
    """
    process = run(ceph, script, uri, f"{image_id}-child", str(len(IMAGE)))
    assert process.communicate(timeout=60)[0] == "parent\n"
    assert process.returncode == 0
    assert read(store, f"rbd://{image_id}-child") == b"from the child"


def test_forked_children_are_different_clients(ceph, store, image_id):
    """Or all of them would be shut out with the first that dies."""
    script = """
    store.cluster.get()
    def addresses():
        there, here = os.pipe()
        if not os.fork():
            os.write(here, store.cluster.get().rados.get_addrs().encode())
            os._exit(0)
        os.close(here)
        return os.read(there, 1000).decode()
    print(len({addresses() for _ in range(3)}))
    """
    assert run(ceph, script).communicate(timeout=60)[0] == "3\n"


def test_process_ends_with_a_stream_left_open(ceph, store, image_id):
    uri = store.add(image_id, IMAGE * 4).uri
    process = run(ceph, "stream = store.get(sys.argv[1]).data; stream.read(10)", uri)
    assert process.wait(60) == 0
    process.stdout.close()


# -- Trouble in the cluster -----------------------------------------------------------------------------------


def test_client_that_was_shut_out_connects_again(ceph, store, image_id):
    uri = store.add(image_id, IMAGE).uri
    address = store.cluster.get().rados.get_addrs()
    ceph.command("osd", "blocklist", "add", address.rpartition(":v1:")[2] if "v1:" in address else address)
    assert read(store, uri) == IMAGE


def interrupted(ceph, seconds, after):
    """A progress callback that stops the OSD, once, and lets it go on after that many seconds."""
    timers = []

    def progress(done, total):
        if done >= after and not timers:
            os.kill(ceph.osd_pid, signal.SIGSTOP)
            timers.append(threading.Timer(seconds, os.kill, (ceph.osd_pid, signal.SIGCONT)))
            timers[0].start()

    return progress


def test_add_goes_on_when_the_osd_comes_back(ceph, pool, image_id):
    store = open_rbd(ceph, rados_osd_op_timeout=1, transfer_retries=10)
    stored = store.add(image_id, IMAGE * 8, progress=interrupted(ceph, 2.0, 20 * MiB))
    assert pool.read(image_id) == IMAGE * 8
    assert stored.size == 8 * len(IMAGE)
    assert pool.residue(image_id) == {image_id}


def test_commit_goes_on_when_the_osd_comes_back(ceph, pool, image_id):
    store = open_rbd(ceph, rados_osd_op_timeout=1, transfer_retries=10)
    store.add(image_id, IMAGE, progress=interrupted(ceph, 2.0, len(IMAGE)))
    assert pool.read(image_id) == IMAGE


def test_read_goes_on_when_the_osd_comes_back(ceph, image_id):
    store = open_rbd(ceph, rados_osd_op_timeout=1, transfer_retries=10)
    uri = store.add(image_id, IMAGE * 8).uri
    with store.get(uri).data as stream:
        first = stream.read(MiB)
        interrupted(ceph, 2.0, 0)(0, None)
        assert first + stream.read() == IMAGE * 8


def test_add_to_an_osd_that_does_not_come_back_ends_in_time(ceph, store, pool, image_id):
    impatient = open_rbd(ceph, rados_osd_op_timeout=1, transfer_retries=0, transfer_timeout=20)

    def source():
        yield IMAGE
        stop.enter_context(stopped(ceph))
        yield IMAGE * 4

    started = time.monotonic()
    with contextlib.ExitStack() as stop:
        with pytest.raises(TransferTimeout):
            impatient.add(image_id, source())
        assert time.monotonic() - started < 30
        with pytest.raises(TransferTimeout):
            impatient.get(f"rbd://{image_id}")
    assert pool.read(image_id) is None
    remove_leftovers(store, pool, image_id)


def remove_leftovers(store, pool, image_id):
    """gc until nothing is left: calls that hung have to return, and the writer they kept open has to go."""
    deadline = time.monotonic() + 40
    while pool.residue(image_id) and time.monotonic() < deadline:
        gc.collect()
        store.gc(0, prefix=image_id)
        time.sleep(0.5)
    assert not pool.residue(image_id)


def test_full_pool(ceph, store, pool, image_id):
    uri = store.add(f"{image_id}-before", IMAGE).uri
    impatient = as_user(ceph, "filler", "profile rbd pool=images", rados_osd_op_timeout=1)
    with ceph.full():
        with pytest.raises(StorageFull, match="images"):
            impatient.add(image_id, IMAGE)
        assert read(impatient, uri) == IMAGE
        assert "full" in impatient.check().detail
        impatient.delete(uri)
    remove_leftovers(store, pool, image_id)
    store.delete(store.add(image_id, b"again").uri)


def test_no_cluster_at_all(tmp_path):
    conf = tmp_path / "ceph.conf"
    conf.write_text("[global]\nmon_host = 127.0.0.1:1\n")
    keyring = tmp_path / "keyring"
    keyring.write_text("[client.admin]\n\tkey = AQAAAABgAAAAEAAAAAAAAAAAAAAAAAAAAAAAAA==\n")
    store = open_store(
        RbdStore,
        "rbd",
        rbd_store_ceph_conf=str(conf),
        rbd_store_keyring=str(keyring),
        rados_connect_timeout=1,
        transfer_retries=0,
    )
    started = time.monotonic()
    with pytest.raises(RemoteServiceUnavailable):
        store.check()
    assert time.monotonic() - started < 20

# SPDX-License-Identifier: Apache-2.0
"""The filesystem driver on real file systems: ext4 or whatever the checkout is on, tmpfs, xfs, read-only mounts."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from servers.counting import calls_of
from servers.mounts import mounted_read_only, tmpfs, xfs

from storelib.capabilities import Capability
from storelib.driver import Digests
from storelib.drivers.filesystem.location import ASIDE, own_names
from storelib.exceptions import (
    BadStoreConfiguration,
    BadStoreUri,
    Duplicate,
    Forbidden,
    IncompleteRead,
    Invalid,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StorageWriteDenied,
    StoreAddDisabled,
    StoreError,
    TransferTimeout,
)
from storelib.registry import open_store
from storelib.testing.threads import started_threads
from storelib.transfer import Extent, GivenFile, MiB, copy
from storelib.transfer.upload import add

DATA = os.urandom(5 * MiB + 123)


def file_store(path, **options):
    return open_store("file", filesystem_store_datadir=str(path), **options)


@pytest.fixture
def datadir(tmp_path):
    return tmp_path / "images"


@pytest.fixture(params=["auto", "part"])
def store(request, datadir):
    return file_store(datadir, filesystem_store_staging=request.param)


def everything_in(path):
    return sorted(os.path.join(where, name) for where, _, names in os.walk(path) for name in names)


# -- Publishing -------------------------------------------------------------------------------------------------


def test_an_image_is_a_file_of_its_own_name_and_nothing_else_is_there(store, datadir):
    stored = store.add("some image", DATA)
    assert stored.uri == f"file://{datadir}/some%20image"
    assert everything_in(datadir) == [f"{datadir}/some image"]
    assert (datadir / "some image").read_bytes() == DATA


def test_nothing_has_the_images_name_while_it_is_being_written(store, datadir):
    seen = []

    def source():
        for start in range(0, len(DATA), MiB):
            yield DATA[start : start + MiB]
            seen.append((datadir / "x").exists())
            with pytest.raises(NotFound):
                store.get_size(f"file://{datadir}/x")
            assert list(store.list_images()) == []

    store.add("x", source())
    assert seen
    assert not any(seen)


def test_exactly_one_of_eight_racing_adds_succeeds(store, datadir):
    barrier = threading.Barrier(8)

    def add(number):
        def source():
            barrier.wait(10)
            yield bytes([number]) * MiB

        try:
            store.add("x", source())
        except Duplicate:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        [winner] = [result for result in pool.map(add, range(8)) if result is not None]
    assert (datadir / "x").read_bytes() == bytes([winner]) * MiB
    assert everything_in(datadir) == [f"{datadir}/x"]


def test_racing_adds_into_several_directories_have_one_winner_too(tmp_path):
    store = open_store("file", filesystem_store_datadirs=[f"{tmp_path}/a", f"{tmp_path}/b"])
    barrier = threading.Barrier(8)
    opened = store._open_writer
    # Spread the racers over the directories, whatever their free space.
    turns = iter(store.datadirs.all * 4)

    def open_writer(image_id, size):
        writer = opened(image_id, size)
        return type(writer)(store.datadirs, next(turns).path, image_id)

    store._open_writer = open_writer

    def add(number):
        try:
            store.add("x", (barrier.wait(10) * 0 or bytes([number]) * MiB for _ in "a"))
        except Duplicate:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(add, range(8))) == 1
    assert len(everything_in(tmp_path)) == 1


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_an_id_in_use_at_any_depth_of_subdirectories_is_a_duplicate(datadir, levels):
    file_store(datadir, filesystem_store_shard_levels=levels).add("x", b"old")
    for other in range(3):
        with pytest.raises(Duplicate):
            file_store(datadir, filesystem_store_shard_levels=other).add("x", b"new")


def test_kill_9_in_mid_add_leaves_the_id_free_and_gc_reclaims_the_room(store, datadir):
    program = f"""
import sys, time
from storelib.registry import open_store
store = open_store("file", filesystem_store_datadir={str(datadir)!r},
                   filesystem_store_staging={store.conf.filesystem_store_staging!r})
def source():
    for _ in range(20):
        yield bytes([7]) * (1 << 20)
    print("half way", flush=True)
    time.sleep(60)
store.add("x", source())
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"half way\n"
    assert store.gc(0) == []  # a live writer's file is not garbage
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    with pytest.raises(NotFound):
        store.get_size(f"file://{datadir}/x")
    removed = store.gc(0, prefix="x")
    assert [item.image_id for item in removed] == (["x"] if store.conf.filesystem_store_staging == "part" else [])
    assert everything_in(datadir) == []
    store.add("x", DATA)
    assert (datadir / "x").read_bytes() == DATA


def test_gc_goes_by_age_and_prefix(datadir):
    store = file_store(datadir, filesystem_store_staging="part")
    for image_id in ("mine-1", "yours-1"):
        writer = store.start_writer(image_id, None, None)
        writer.reserve(MiB)
        writer.close()  # as if its process were gone
    assert store.gc(3600) == []
    assert [item.image_id for item in store.gc(0, prefix="mine-")] == ["mine-1"]
    assert [item.image_id for item in store.find_garbage(0)] == ["yours-1"]


def dead_add(store, image_id):
    writer = store.start_writer(image_id, None, None)
    writer.reserve(4096)
    writer.close()


@pytest.mark.parametrize("levels", [0, 2])
def test_gc_of_one_id_costs_the_same_among_few_images_and_many(tmp_path, levels):
    options = {"filesystem_store_staging": "part", "filesystem_store_shard_levels": levels}
    calls = []
    for count in (3, 300):
        store = file_store(tmp_path / str(count), **options)
        location = store.locate(store.add("image-0", b"x").uri).path
        for number in range(1, count):
            os.link(location, os.path.join(os.path.dirname(location), f"image-{number}"))
        dead_add(store, "dead")

        def collect(store=store):
            assert [item.image_id for item in store.gc(0, "dead")] == ["dead"]
            assert store.find_image("dead") is None

        calls.append(sum(calls_of(collect).values()))
        assert len(list(store.list_images())) == count
    # The loops of other threads that are waited for differ a little; one call for each image would be 297 more.
    assert calls[1] < calls[0] + 100


def test_gc_finds_what_lies_beside_images_and_the_room_for_what_lies_aside_goes_with_the_last(datadir):
    store = file_store(datadir, filesystem_store_staging="part")
    aside = datadir / ASIDE
    for image_id in ("one", "two"):
        dead_add(store, image_id)
    assert [own.partition("\x01")[0] for own in os.listdir(aside)] == [".part"] * 2
    assert os.listdir(datadir) == [ASIDE]
    # Adds of another version leave them where the image would be.
    beside = datadir / own_names("part", "0123456789abcdef", "three")[0]
    beside.write_bytes(b"")
    assert [item.image_id for item in store.gc(0, "one")] == ["one"]
    assert list(store.list_images()) == []
    assert sorted(item.image_id for item in store.gc(0)) == ["three", "two"]
    assert os.listdir(datadir) == []
    # So it does after adds and deletes.
    store.delete(store.add("x", DATA).uri)
    assert os.listdir(datadir) == []


def test_an_image_cannot_be_called_like_the_directory_of_what_lies_aside(store, datadir):
    with pytest.raises(Invalid, match="choose another id"):
        store.add(ASIDE, DATA)
    assert store.find_image(ASIDE) is None


@pytest.mark.parametrize("what", ["file", "link", "denied"])
def test_where_nothing_can_lie_aside_it_lies_beside_the_images(tmp_path, datadir, what, monkeypatch):
    store = file_store(datadir, filesystem_store_staging="part")
    aside = datadir / ASIDE
    if what == "file":
        aside.write_bytes(b"")
    elif what == "link":
        (tmp_path / "elsewhere").mkdir()
        aside.symlink_to(tmp_path / "elsewhere")
    else:
        monkeypatch.setattr(os, "access", lambda *args, **kwargs: False)
    uri = store.add("x", DATA).uri
    assert store.get(uri).data.read() == DATA
    dead_add(store, "dead")
    assert [item.image_id for item in store.gc(0, "dead")] == ["dead"]
    store.delete(uri)
    assert store.check()
    assert everything_in(datadir) == ([str(aside)] if what == "file" else [])


def test_an_id_that_looks_like_a_part_file_is_an_image(datadir):
    store = file_store(datadir)
    stored = store.add(".part-0123456789abcdef-x", DATA)
    assert store.gc(0) == []
    assert [info.uri for info in store.list_images()] == [stored.uri]


def test_file_and_directory_are_flushed_before_the_add_succeeds(datadir, monkeypatch):
    flushed = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd))
    file_store(datadir).add("x", DATA)
    assert len(flushed) == 2
    assert flushed[1] == str(datadir)
    flushed.clear()
    file_store(datadir, filesystem_store_fsync=False).add("y", DATA)
    assert flushed == []


@pytest.mark.parametrize("chunk", [1, 64 * 1024, 3 * MiB])
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 65536, 65537, 3 * MiB, 5 * MiB + 123])
def test_every_length_round_trips_with_and_without_direct_io(datadir, chunk, direct, length):
    store = file_store(datadir, filesystem_store_chunk_size=chunk, filesystem_store_direct_io=direct)
    stored = store.add("x", iter([DATA[:length]]))
    assert (datadir / "x").read_bytes() == DATA[:length]
    assert stored.multihash == hashlib.sha512(DATA[:length]).hexdigest()
    # Nothing stays allocated beyond the image.
    assert os.stat(datadir / "x").st_blocks * 512 <= length + 8192


# -- Confinement ------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    path = tmp_path / "outside"
    path.write_bytes(b"secret")
    return path


def all_reads(store, uri):
    return [
        lambda: store.get(uri),
        lambda: store.get_size(uri),
        lambda: store.stat(uri),
        lambda: store.delete(uri),
    ]


@pytest.mark.parametrize(
    "tail",
    ["../outside", "%2e%2e/outside", "x/../../outside", "..%2Foutside", "%00", "x%00y", ".part%010123456789abcdef%01x"],
)
def test_uris_that_lead_out_of_the_data_directory_are_refused(store, datadir, outside, tail):
    for read in all_reads(store, f"file://{datadir}/{tail}"):
        with pytest.raises(BadStoreUri):
            read()
    assert outside.read_bytes() == b"secret"


def test_a_directory_written_with_two_slashes_is_the_one_with_one(tmp_path):
    (tmp_path / "metadata.json").write_text(json.dumps([{"id": "nfs1", "mountpoint": f"/{tmp_path}"}]))
    for options in (
        {"filesystem_store_datadir": f"/{tmp_path}/a"},
        {"filesystem_store_datadirs": [f"/{tmp_path}/b:1"]},
    ):
        store = open_store("file", filesystem_store_metadata_file=f"{tmp_path}/metadata.json", **options)
        added = store.add("id", b"data")
        assert added.metadata["id"] == "nfs1"
        assert [info.uri for info in store.list_images()] == [added.uri]
        assert store.get_size(added.uri) == 4
        store.delete(added.uri)


def test_a_directory_that_only_begins_alike_is_another_place(store, datadir):
    os.makedirs(f"{datadir}2")
    with open(f"{datadir}2/x", "w") as file:
        file.write("other")
    for read in all_reads(store, f"file://{datadir}2/x"):
        with pytest.raises(BadStoreUri, match="does not belong to store file"):
            read()


def test_symbolic_links_are_not_followed(store, datadir, outside):
    (datadir / "link").symlink_to(outside)
    (datadir / "sub").symlink_to(outside.parent)
    for uri in (f"file://{datadir}/link", f"file://{datadir}/sub/outside"):
        for read in all_reads(store, uri):
            with pytest.raises((Forbidden, NotFound)):
                read()
    assert outside.read_bytes() == b"secret"
    assert [info.image_id for info in store.list_images()] == []


def test_an_id_that_is_a_symbolic_link_is_a_duplicate_and_not_written_through(store, datadir, outside):
    (datadir / "x").symlink_to(outside)
    with pytest.raises(Duplicate):
        store.add("x", DATA)
    assert outside.read_bytes() == b"secret"


def test_fifos_devices_and_directories_are_refused_at_once(store, datadir):
    os.mkfifo(datadir / "fifo")
    (datadir / "directory").mkdir()
    names = ["fifo", "directory"]
    if os.geteuid() == 0:
        os.mknod(datadir / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
        names.append("zero")
    for name in names:
        for read in all_reads(store, f"file://{datadir}/{name}"):
            with pytest.raises(NotFound if name == "directory" else Forbidden):
                read()


# -- Errors of the file system ----------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("options", [{}, {"filesystem_thin_provisioning": True}, {"filesystem_store_fsync": False}])
def test_a_full_disk_is_storage_full_and_leaves_nothing(tmp_path, known, options):
    with tmpfs(tmp_path / "small", 8 * MiB) as path:
        store = file_store(path, **options)
        store.add("kept", DATA)
        with pytest.raises(StorageFull):
            store.add("x", iter([DATA, DATA]), 2 * len(DATA) if known else None)
        assert everything_in(path) == [f"{path}/kept"]
        store.delete(f"file://{path}/kept")
        store.add("x", DATA)


def test_a_read_only_directory_makes_the_store_read_only(tmp_path, caplog):
    origin = tmp_path / "images"
    uri = file_store(origin).add("x", DATA).uri
    with mounted_read_only(origin):
        store = file_store(origin)
        assert Capability.ADD not in store.capabilities
        assert "may not write" in caplog.text
        assert store.get(uri).data.read() == DATA
        with pytest.raises(StoreAddDisabled, match="may not write"):
            store.add("y", DATA)


def test_a_directory_that_becomes_read_only_denies_writing_and_deleting(tmp_path):
    origin = tmp_path / "images"
    store = file_store(origin)
    uri = store.add("x", DATA).uri
    with mounted_read_only(origin):
        with pytest.raises(StorageWriteDenied):
            store.add("y", DATA)
        with pytest.raises(Forbidden):
            store.delete(uri)
        with pytest.raises(StorageWriteDenied):
            store.check()


@pytest.mark.parametrize(
    ("call", "look"), [("scandir", lambda store: store.list_images()), ("stat", lambda store: store.gc(0, "x"))]
)
def test_a_directory_that_an_add_makes_while_another_thread_looks_was_empty(store, datadir, monkeypatch, call, look):
    datadir.rmdir()
    store.configure()
    real = getattr(os, call)

    def late(path, *arguments, **options):
        if path != str(datadir):
            return real(path, *arguments, **options)
        monkeypatch.undo()
        try:
            return real(path)
        finally:
            store.add("image", b"x")

    monkeypatch.setattr(os, call, late)
    assert list(look(store)) == []
    assert [item.image_id for item in store.list_images()] == ["image"]


def test_a_data_directory_that_vanished_is_a_clear_error(store, datadir):
    datadir.rmdir()
    with pytest.raises(RemoteServiceUnavailable, match="is the data directory there"):
        store.add("x", DATA)
    with pytest.raises(RemoteServiceUnavailable):
        store.check()


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EFBIG, StorageFull),
        (errno.EACCES, StorageWriteDenied),
        (errno.EPERM, StorageWriteDenied),
        (errno.EROFS, StorageWriteDenied),
        (errno.EIO, StoreError),
        (errno.ENODEV, StoreError),
    ],
)
def test_every_errno_of_a_write_has_its_error(datadir, monkeypatch, number, error):
    def pwrite(*args):
        raise OSError(number, os.strerror(number))

    store = file_store(datadir)
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(StoreError) as caught:
        store.add("x", DATA)
    assert type(caught.value) is error
    assert os.strerror(number) in str(caught.value)
    assert everything_in(datadir) == []


def test_a_transient_errno_is_tried_again(datadir, monkeypatch):
    pwrite = os.pwrite
    failures = [OSError(errno.ESTALE, "stale"), OSError(errno.EAGAIN, "again")]

    def flaky(*args):
        if failures:
            raise failures.pop()
        return pwrite(*args)

    store = file_store(datadir)
    monkeypatch.setattr(os, "pwrite", flaky)
    store.add("x", DATA)
    assert (datadir / "x").read_bytes() == DATA


def test_an_error_of_the_source_is_not_one_of_the_store(store, datadir):
    def source():
        yield DATA
        raise PermissionError(errno.EACCES, "the source's own")

    with pytest.raises(PermissionError, match="the source's own"):
        store.add("x", source())
    assert everything_in(datadir) == []


def test_a_flush_of_the_directory_that_fails_takes_the_image_back(datadir, monkeypatch):
    fsync = os.fsync

    def failing(fd):
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EIO, "io")
        fsync(fd)

    store = file_store(datadir)
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StoreError):
        store.add("x", DATA)
    assert everything_in(datadir) == []


def test_an_image_that_shrinks_while_it_is_read_is_an_incomplete_read(store, datadir):
    stream = store.get(store.add("x", DATA).uri).data
    stream.read(MiB)
    os.truncate(datadir / "x", 2 * MiB)
    with stream, pytest.raises(IncompleteRead, match="shrank"):
        stream.read()


def test_an_image_deleted_while_it_is_read_is_read_to_its_end(store):
    uri = store.add("x", DATA).uri
    with store.get(uri).data as stream:
        store.delete(uri)
        assert stream.read() == DATA


def test_calls_that_hang_time_out_and_do_not_pile_up(datadir, monkeypatch):
    uri = file_store(datadir).add("x", DATA).uri
    store = file_store(datadir, filesystem_store_timeout=0.5, filesystem_store_thread_pool_size=3)
    assert store.get(uri).data.read() == DATA
    hang = threading.Event()
    opened = os.open
    monkeypatch.setattr(os, "open", lambda *args, **kwargs: hang.wait(20) and opened(*args, **kwargs))
    try:
        with started_threads() as started:
            for _ in range(6):
                with pytest.raises(TransferTimeout):
                    store.get_size(uri)
        assert len([thread for thread in started if thread.is_alive()]) <= 3
    finally:
        hang.set()
        monkeypatch.undo()
    time.sleep(0.3)
    assert store.get_size(uri) == len(DATA)


# -- Several directories, sharding, permissions, metadata -------------------------------------------------------


def test_the_directory_of_highest_priority_with_room_is_filled_first(tmp_path):
    with tmpfs(tmp_path / "small", 4 * MiB) as small:
        store = open_store("file", filesystem_store_datadirs=[f"{tmp_path}/big", f"{small}:200"])
        assert store.add("little", b"x").uri == f"file://{small}/little"
        assert store.add("large", DATA).uri == f"file://{tmp_path}/big/large"
        assert {info.image_id for info in store.list_images()} == {"little", "large"}


def test_among_equals_the_directory_with_most_free_space_is_chosen(tmp_path):
    with tmpfs(tmp_path / "small", 4 * MiB) as small, tmpfs(tmp_path / "large", 16 * MiB) as large:
        store = open_store("file", filesystem_store_datadirs=[str(small), str(large)])
        assert store.add("x", b"x").uri == f"file://{large}/x"


def test_an_id_in_another_directory_is_a_duplicate(tmp_path):
    file_store(tmp_path / "a").add("x", b"old")
    store = open_store("file", filesystem_store_datadirs=[f"{tmp_path}/a:1", f"{tmp_path}/b:2"])
    with pytest.raises(Duplicate):
        store.add("x", b"new")


def test_shards_spread_images_over_subdirectories_and_all_is_found(datadir):
    store = file_store(datadir, filesystem_store_shard_levels=2)
    digest = hashlib.sha256(b"x").hexdigest()
    uri = store.add("x", DATA).uri
    assert uri == f"file://{datadir}/{digest[:2]}/{digest[2:4]}/x"
    flat = file_store(datadir).add("flat", DATA).uri
    assert {info.uri for info in store.list_images()} == {uri, flat}
    assert store.get(uri).data.read() == store.get(flat).data.read() == DATA
    store.delete(uri)
    store.delete(flat)
    assert list(store.list_images()) == []


@pytest.mark.parametrize(("perm", "mode"), [(640, 0o640), (600, 0o600), (444, 0o444)])
def test_file_permissions_are_as_configured(datadir, perm, mode):
    file_store(datadir, filesystem_store_file_perm=perm).add("x", DATA)
    assert stat.S_IMODE(os.stat(datadir / "x").st_mode) == mode


@pytest.mark.parametrize("perm", [888, 40, 77777])
def test_unusable_permissions_disable_adding(datadir, perm):
    store = file_store(datadir, filesystem_store_file_perm=perm)
    assert Capability.ADD not in store.capabilities
    assert f"filesystem_store_file_perm = {perm}" in store.add_disabled


def test_the_metadata_file_gives_the_location_its_metadata(tmp_path):
    entries = [{"id": "other", "mountpoint": f"{tmp_path}/im"}, {"id": "nfs1", "mountpoint": f"{tmp_path}/images"}]
    (tmp_path / "metadata.json").write_text(json.dumps(entries))
    store = file_store(tmp_path / "images", filesystem_store_metadata_file=f"{tmp_path}/metadata.json")
    first = store.add("x", b"x").metadata
    assert first == {"id": "nfs1", "mountpoint": f"{tmp_path}/images", "store": "file"}
    first["id"] = "changed"
    assert store.add("y", b"y").metadata["id"] == "nfs1"


@pytest.mark.parametrize("content", ["", "[1]", '{"id": "x"}', '{"id": 1, "mountpoint": "/"}', "{"])
def test_an_unusable_metadata_file_disables_adding(tmp_path, content):
    (tmp_path / "metadata.json").write_text(content)
    store = file_store(tmp_path / "images", filesystem_store_metadata_file=f"{tmp_path}/metadata.json")
    assert "filesystem_store_metadata_file" in store.add_disabled


@pytest.mark.parametrize("entries", [["/a", "/a:7"], ["/a:high"], [""], [":1"]])
def test_unusable_data_directories_are_a_configuration_error(entries):
    with pytest.raises(BadStoreConfiguration, match="filesystem_store_datadirs"):
        open_store("file", filesystem_store_datadirs=entries)


def test_one_directory_and_several_exclude_each_other():
    with pytest.raises(BadStoreConfiguration, match=r"filesystem_store_datadir = '/a'.*either"):
        open_store("file", filesystem_store_datadir="/a", filesystem_store_datadirs=["/b"])


# -- Holes, clones, descriptors ---------------------------------------------------------------------------------


def test_thin_provisioning_writes_holes_and_reads_them_back(datadir):
    store = file_store(datadir, filesystem_thin_provisioning=True)
    data = DATA[:MiB] + bytes(64 * MiB) + DATA[:MiB] + bytes(MiB)
    stored = store.add("x", iter([data]))
    assert os.stat(datadir / "x").st_blocks * 512 <= 3 * MiB
    stream = store.get(stored.uri).data
    assert [extent for extent in stream.extents() if not extent.data] == [
        Extent(MiB, 64 * MiB, False),
        Extent(66 * MiB, MiB, False),
    ]
    assert stream.read() == data
    assert stored.multihash == hashlib.sha512(data).hexdigest()


def test_without_thin_provisioning_every_byte_has_its_room(datadir):
    store = file_store(datadir)
    store.add("x", bytes(8 * MiB))
    assert os.stat(datadir / "x").st_blocks * 512 >= 8 * MiB


def test_a_copy_between_stores_keeps_holes(tmp_path):
    origin = file_store(tmp_path / "a", filesystem_thin_provisioning=True)
    target = file_store(tmp_path / "b", filesystem_thin_provisioning=True)
    data = DATA + bytes(64 * MiB) + DATA
    stored = origin.add("x", data)
    for image_id, digests in (("hashed", None), ("known", Digests(stored.checksum, stored.multihash))):
        result = copy(origin, stored.uri, target, image_id, digests=digests)
        assert result.multihash == stored.multihash
        assert target.get(result.uri).data.read() == data
        assert os.stat(tmp_path / "b" / image_id).st_blocks * 512 < 16 * MiB


@pytest.mark.parametrize("known", [True, False])
def test_on_a_file_system_with_reflinks_a_copy_shares_its_blocks(tmp_path, known):
    data = os.urandom(64 * MiB)
    with xfs(tmp_path, 512 * MiB) as path:
        origin, target = file_store(path / "a"), file_store(path / "b")
        stored = origin.add("x", data)
        free = os.statvfs(path)
        digests = Digests(stored.checksum, stored.multihash) if known else None
        result = copy(origin, stored.uri, target, "y", digests=digests)
        assert result[1:4] == stored[1:4]
        assert target.get(result.uri).data.read() == data
        used = (free.f_bfree - os.statvfs(path).f_bfree) * free.f_frsize
        assert used < 8 * MiB
        assert Capability.COPY in target.capabilities


def test_with_buffered_writes_a_copy_with_known_digests_is_the_kernels(tmp_path, monkeypatch):
    origin = file_store(tmp_path / "a")
    target = file_store(tmp_path / "b", filesystem_store_direct_io=False)
    stored = origin.add("x", DATA)
    monkeypatch.setattr(os, "pwrite", lambda *args: pytest.fail("bytes passed through"))
    result = copy(origin, stored.uri, target, "y", digests=Digests(stored.checksum, stored.multihash))
    assert target.get(result.uri).data.read() == DATA


def test_a_local_source_that_shrinks_under_a_kernel_copy_is_an_error(tmp_path):
    origin = file_store(tmp_path / "a")
    target = file_store(tmp_path / "b", filesystem_store_direct_io=False)
    stored = origin.add("x", DATA)
    stream = origin.get(stored.uri).data
    os.truncate(tmp_path / "a" / "x", MiB)
    with stream, pytest.raises(StoreError):
        target.add("y", stream)
    assert everything_in(tmp_path / "b") == []


def test_the_descriptor_stands_at_the_range_for_sendfile(store):
    uri = store.add("x", DATA).uri
    with store.get(uri, MiB, 100).data as stream:
        assert os.read(stream.fileno(), stream.size) == DATA[MiB : MiB + 100]


def test_stat_list_and_check_tell_what_is_there(store, datadir):
    stored = store.add("x", DATA)
    info = store.stat(stored.uri)
    assert (info.uri, info.size, info.image_id) == (stored.uri, len(DATA), "x")
    assert abs(info.modified - time.time()) < 60
    assert list(store.list_images()) == [info]
    health = store.check()
    assert 0 < health.free <= health.total


# -- Files that are given away ----------------------------------------------------------------------------------


def given(path, mode=0o600):
    path.write_bytes(DATA)
    path.chmod(mode)
    return GivenFile(str(path))


def test_a_file_that_is_given_away_becomes_the_image_and_keeps_its_own_name(store, datadir, tmp_path):
    stored = add(store, "x", given(tmp_path / "file"))
    assert (stored.size, stored.checksum) == (len(DATA), hashlib.md5(DATA).hexdigest())
    assert os.path.samefile(datadir / "x", tmp_path / "file")
    assert everything_in(datadir) == [f"{datadir}/x"]
    store.delete(stored.uri)
    assert (tmp_path / "file").read_bytes() == DATA
    again = add(store, "x", given(tmp_path / "file"), digests=Digests(stored.checksum, stored.multihash))
    assert again == stored
    (tmp_path / "file").unlink()
    assert store.get(stored.uri).data.read() == DATA


def test_it_gets_the_mode_that_images_have(datadir, tmp_path):
    add(file_store(datadir, filesystem_store_file_perm=640), "x", given(tmp_path / "file"))
    assert stat.S_IMODE((datadir / "x").stat().st_mode) == 0o640


def test_a_path_is_not_given_away(store, datadir, tmp_path):
    store.add("x", given(tmp_path / "file").path)
    assert not os.path.samefile(datadir / "x", tmp_path / "file")


def test_an_add_that_fails_leaves_the_file_and_the_image_that_is_there(store, datadir, tmp_path):
    store.add("x", b"old")
    with pytest.raises(Duplicate):
        add(store, "x", given(tmp_path / "file"))
    assert ((tmp_path / "file").read_bytes(), (datadir / "x").read_bytes()) == (DATA, b"old")

    def refuse(digests):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        add(store, "y", GivenFile(str(tmp_path / "file")), check=refuse)
    assert ((tmp_path / "file").read_bytes(), everything_in(datadir)) == (DATA, [f"{datadir}/x"])


def test_a_file_on_another_file_system_is_copied(store, datadir, tmp_path):
    with tmpfs(tmp_path / "other", 20 * MiB):
        add(store, "x", given(tmp_path / "other" / "file"))
        assert not os.path.samefile(datadir / "x", tmp_path / "other" / "file")
    assert (datadir / "x").read_bytes() == DATA


def test_its_blocks_are_shared_where_that_can_be(tmp_path):
    with xfs(tmp_path, 512 * MiB) as path:
        file = given(path / "file")
        for name in "ab":
            add(file_store(path / name), "x", file)
            assert not os.path.samefile(path / name / "x", file.path)
            assert (path / name / "x").read_bytes() == DATA

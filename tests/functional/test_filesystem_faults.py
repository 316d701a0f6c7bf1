# SPDX-License-Identifier: Apache-2.0
"""The filesystem driver on file systems that lack things, lie, hang or fail, by a real FUSE mount wherever it can."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from servers.faulty_fuse import faulty_mount
from servers.mounts import tmpfs

from storelib import system_calls
from storelib.capabilities import Capability
from storelib.driver import Digests
from storelib.drivers.filesystem import publication
from storelib.drivers.filesystem.location import ASIDE, own_names
from storelib.exceptions import (
    BadStoreUri,
    Duplicate,
    Forbidden,
    InUseByStore,
    Invalid,
    NotFound,
    StorageFull,
    StorageWriteDenied,
    StoreError,
    TransferTimeout,
)
from storelib.registry import open_store
from storelib.transfer import MiB, copy, retry

DATA = os.urandom(MiB + 123)
#: More than goes out in one piece.
LARGE = DATA * 5
NUMBERS = itertools.count()
RELAXED = {"filesystem_store_fsync": False}


@pytest.fixture(scope="module")
def mounted(tmp_path_factory):
    with faulty_mount(tmp_path_factory.mktemp("fuse")) as mount:
        yield mount


@pytest.fixture
def mount(mounted):
    yield mounted
    mounted.clear()


def file_store(path, **options):
    return open_store("file", filesystem_store_datadir=str(path), **options)


@pytest.fixture
def datadir(mount):
    """A data directory of the test's own on the FUSE mount."""
    return mount.path / f"images-{next(NUMBERS)}"


@pytest.fixture
def store(datadir):
    return file_store(datadir, transfer_retries=1)


def names(path):
    """Which files are there, those aside that FUSE itself keeps for a moment."""
    return sorted(name for _, _, files in os.walk(path) for name in files if not name.startswith(".fuse_hidden"))


def open_files(path):
    """Descriptors of this process below ``path``."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/self/fd/{number}")
            found += [target] if target.startswith(str(path)) else []
    return found


def failing(monkeypatch, name, number, *, when=lambda *args, **kwargs: True, times=1):
    """Let ``os.<name>`` fail that often with that errno."""
    real, left = getattr(os, name), [times]

    def wrapper(*args, **kwargs):
        if left[0] and when(*args, **kwargs):
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, wrapper)


# -- File systems that lack things ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["EPERM", "EOPNOTSUPP", "ENOSYS", "EMLINK"])
def test_without_hard_links_an_image_is_published_all_the_same(mount, datadir, store, number):
    mount.fault("link", number)
    stored = store.add("x", DATA)
    with pytest.raises(Duplicate):
        store.add("x", b"other")
    assert names(datadir) == ["x"]
    assert store.get(stored.uri).data.read() == DATA
    assert "bytes free" in store.check().detail
    assert Capability.ATOMIC_ADD in store.capabilities
    store.delete(stored.uri)
    assert names(datadir) == []


def race(store, number=6):
    barrier = threading.Barrier(number)

    def add(racer):
        def source():
            barrier.wait(10)
            yield bytes([racer]) * 100_000

        try:
            store.add("x", source())
        except Duplicate:
            return None
        return racer

    with ThreadPoolExecutor(number) as pool:
        return [racer for racer in pool.map(add, range(number)) if racer is not None]


def test_without_hard_links_one_of_racing_adds_succeeds(mount, datadir):
    mount.fault("link", "EPERM")
    [winner] = race(file_store(datadir))
    assert (datadir / "x").read_bytes() == bytes([winner]) * 100_000
    assert names(datadir) == ["x"]


@pytest.mark.parametrize("staging", ["auto", "part"])
def test_where_only_renameat2_keeps_from_overwriting_it_is_used(tmp_path, monkeypatch, staging):
    store = file_store(tmp_path / "images", filesystem_store_staging=staging)
    failing(monkeypatch, "link", errno.EPERM, times=-1)
    renamed = []
    rename = system_calls.rename_without_overwriting
    monkeypatch.setattr(system_calls, "rename_without_overwriting", lambda *args: renamed.append(args) or rename(*args))
    monkeypatch.setattr(publication, "claim", lambda *args: pytest.fail("a claim where none is needed"))
    [winner] = race(store)
    assert renamed
    assert (tmp_path / "images" / "x").read_bytes() == bytes([winner]) * 100_000
    sparse = file_store(tmp_path / "thin", filesystem_store_staging=staging, filesystem_thin_provisioning=True)
    image = b"x" * 70_000 + bytes(8 * MiB) + b"y" * 70_000
    assert sparse.get(sparse.add("sparse", image).uri).data.read() == image
    assert os.stat(tmp_path / "thin" / "sparse").st_blocks * 512 < MiB
    assert names(tmp_path) == ["sparse", "x"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_where_a_sandbox_forbids_renameat2_a_claim_is_used(tmp_path, monkeypatch, number):
    def refused(*args):
        raise OSError(number, os.strerror(number))

    store = file_store(tmp_path)
    failing(monkeypatch, "link", errno.EPERM, times=-1)
    monkeypatch.setattr(system_calls, "rename_without_overwriting", refused)
    stored = store.add("x", DATA)
    with pytest.raises(Duplicate):
        store.add("x", b"other")
    store.delete(stored.uri)
    assert names(tmp_path) == []


def test_without_any_way_to_exclude_others_the_store_says_so(mount, datadir, monkeypatch):
    store = file_store(datadir)
    mount.fault("link", "EPERM")
    failing(monkeypatch, "open", errno.EINVAL, when=lambda path, flags, *args, **kwargs: flags & os.O_EXCL, times=-1)
    stored = store.add("x", DATA)
    assert store.get(stored.uri).data.read() == DATA
    assert Capability.ATOMIC_ADD not in store.capabilities
    assert "several may succeed" in store.check().detail


def test_a_claim_of_a_dead_add_is_removed_by_gc_and_never_by_others(mount, datadir):
    store = file_store(datadir, transfer_retries=0)
    mount.fault("link", "EPERM")
    directory = os.open(datadir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with publication.claim(directory, "x"):
            with pytest.raises(StoreError, match="being published") as caught:
                store.add("x", DATA)
            assert caught.value.transient
            assert file_store(datadir).gc(0) == []
        claim = own_names("claim", publication.id_token("x"), "x")[0]
        (datadir / claim).write_bytes(b"dead")
    finally:
        os.close(directory)
    with pytest.raises(StoreError, match="gc removes"):
        store.add("x", DATA)
    assert list(store.list_images()) == []
    assert [item.image_id for item in store.gc(0)] == ["x"]
    store.add("x", DATA)


def test_a_file_system_without_control_characters_in_names_works(mount, datadir, store):
    mount.quirk("names")
    mount.fault("link", "EPERM")
    stored = store.add("x", DATA)
    store.check()
    writer = store.start_writer("dead", None, None)
    writer.reserve(4096)
    writer.close()
    assert [info.image_id for info in store.list_images()] == ["x"]
    assert [item.image_id for item in store.gc(0)] == ["dead"]
    store.delete(stored.uri)
    assert names(datadir) == []


def test_directories_that_cannot_be_flushed_are_not(mount, datadir):
    store = file_store(datadir, filesystem_store_shard_levels=1)
    for number in ("EINVAL", "EOPNOTSUPP", "EBADF", "ENOTTY"):
        mount.fault("fsyncdir", number)
        stored = store.add(number, DATA)
        store.delete(stored.uri)
        store.check()
    assert names(datadir) == []


@pytest.mark.parametrize("fault", ["zeros", "ENOSYS"])
def test_no_block_of_none_free_is_unknown_and_not_full(mount, datadir, store, fault):
    mount.quirk("statfs") if fault == "zeros" else mount.fault("statfs", fault)
    store.add("x", DATA, len(DATA))
    health = store.check()
    assert (health.free, health.total) == (None, None)
    assert "unknown" in health.detail


def test_a_full_file_system_is_still_full(tmp_path):
    with tmpfs(tmp_path / "small", MiB) as path:
        store = file_store(path)
        with pytest.raises(StorageFull, match="no room"):
            store.add("x", bytes(2 * MiB))


def test_where_proc_is_missing_part_files_are_used(tmp_path):
    program = """
import sys
from storelib.registry import open_store
store = open_store("file", filesystem_store_datadir=sys.argv[1])
stored = store.add("x", b"data")
assert store.get(stored.uri).data.read() == b"data"
store.check()
"""
    command = 'mount -t tmpfs none /proc && exec "$0" -c "$1" "$2"'
    subprocess.run(
        ["unshare", "--mount", "sh", "-c", command, sys.executable, program, str(tmp_path / "images")], check=True
    )
    assert names(tmp_path) == ["x"]


def test_several_directories_without_locks_have_unique_ids_too(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    store = open_store("file", filesystem_store_datadirs=[f"{tmp_path}/a", f"{tmp_path}/b"])
    assert len(race(store)) == 1
    assert names(tmp_path) == ["x"]


def test_a_copy_into_a_named_file_that_fails_publishes_nothing(tmp_path, monkeypatch):
    """Where an unnamed file turns out to get no name."""
    store = file_store(tmp_path, transfer_retries=2)
    failing(monkeypatch, "link", errno.EPERM, times=-1)
    failing(monkeypatch, "preadv", errno.ESTALE)
    with pytest.raises(StoreError, match="could not be copied"):
        store.add("x", DATA)
    assert names(tmp_path) == []
    store.add("x", DATA)
    assert (tmp_path / "x").read_bytes() == DATA


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_direct_writes_that_are_refused_go_through_the_page_cache(tmp_path, monkeypatch, number):
    def direct(file, *args):
        return fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT

    store = file_store(tmp_path)
    failing(monkeypatch, "pwrite", number, when=direct, times=-1)
    store.add("x", DATA)
    assert (tmp_path / "x").read_bytes() == DATA


def test_a_write_that_takes_nothing_is_an_error_and_no_endless_loop(tmp_path, monkeypatch):
    store = file_store(tmp_path)
    monkeypatch.setattr(os, "pwrite", lambda *args: 0)
    with pytest.raises(StoreError, match="no more bytes"):
        store.add("x", DATA)


# -- Answers that are lost --------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["EEXIST", "EIO", "ETIMEDOUT"])
@pytest.mark.parametrize("inodes", [False, True])
def test_a_link_that_was_made_and_denied_is_the_adds_own(mount, datadir, store, error, inodes):
    if inodes:
        mount.quirk("inodes")
    mount.fault("link", error, after=True, times=1)
    stored = store.add("x", DATA)
    assert store.get(stored.uri).data.read() == DATA
    assert names(datadir) == ["x"]


@pytest.mark.parametrize("error", ["ENOENT", "EEXIST", "EIO"])
def test_a_rename_that_was_made_and_denied_is_the_adds_own(mount, datadir, store, error):
    mount.fault("link", "EPERM")
    mount.fault("rename", error, after=True, times=1)
    stored = store.add("x", DATA)
    assert store.get(stored.uri).data.read() == DATA


def test_what_is_known_of_an_image_stays_where_inode_numbers_change(mount, datadir, store):
    mount.quirk("inodes")
    uri = store.add("x", DATA).uri
    assert store.stat(uri) == store.stat(uri) == next(store.list_images())
    store.check()


@pytest.mark.parametrize("number", [errno.EINTR, errno.EHOSTUNREACH, errno.ECONNRESET, errno.ENETUNREACH])
@pytest.mark.parametrize("call", ["pwrite", "link", "fstat", "ftruncate"])
def test_what_passes_is_tried_again(tmp_path, monkeypatch, call, number):
    store = file_store(tmp_path, transfer_retries=1)
    failing(monkeypatch, call, number)
    stored = store.add("x", DATA)
    assert store.get(stored.uri).data.read() == DATA
    assert names(tmp_path) == ["x"]


def test_an_allocation_that_a_signal_interrupts_goes_on(tmp_path, monkeypatch):
    class Libc:
        calls = 0

        def fallocate64(self, *args):
            self.calls += 1
            ctypes.set_errno(errno.EINTR)
            return -1 if self.calls == 1 else 0

    libc = Libc()
    monkeypatch.setattr(system_calls, "_libc", lambda: libc)
    # An image of one part needs no room made.
    data = DATA * (5 * MiB // len(DATA))
    file_store(tmp_path, transfer_retries=0).add("x", data, len(data))
    assert libc.calls > 1
    assert (tmp_path / "x").read_bytes() == data


def test_an_unnamed_file_whose_link_was_denied_though_made_is_an_image(tmp_path, monkeypatch):
    link = os.link

    def lying(*args, **kwargs):
        link(*args, **kwargs)
        raise FileExistsError(errno.EEXIST, "retransmitted")

    store = file_store(tmp_path / "images")
    monkeypatch.setattr(os, "link", lying)
    assert store.get(store.add("x", DATA).uri).data.read() == DATA


@pytest.mark.parametrize("inodes", [False, True])
def test_abort_removes_its_own_image_and_nobody_elses(mount, datadir, store, inodes):
    if inodes:
        mount.quirk("inodes")
    mount.fault("fsyncdir", "EIO")
    with pytest.raises(StoreError):
        store.add("x", DATA)
    assert names(datadir) == []
    mount.clear()
    # Another add wins the id while this one is under way.
    writer = store.start_writer("y", len(DATA), None)
    writer.reserve(len(DATA))
    os.pwrite(writer.file, DATA, 0)
    file_store(datadir).add("y", DATA)
    with pytest.raises(Duplicate):
        writer.commit(len(DATA), Digests(None, ""))
    writer.abort()
    writer.close()
    assert names(datadir) == ["y"]
    assert (datadir / "y").read_bytes() == DATA


def test_an_id_that_is_a_directory_there_is_invalid_and_no_duplicate(store, datadir):
    (datadir / "x").mkdir()
    with pytest.raises(Invalid, match="directory of that name"):
        store.add("x", DATA)


def test_an_image_that_may_be_visible_is_not_written_again(tmp_path, monkeypatch):
    """A small one goes out in one call, which is made again after a transient error."""
    store = file_store(tmp_path)
    link = os.link

    def lying(*args, **kwargs):
        link(*args, **kwargs)
        monkeypatch.setattr(os, "pwrite", lambda *args: pytest.fail("written again"))
        monkeypatch.setattr(os, "ftruncate", lambda *args: pytest.fail("cut again"))
        monkeypatch.setattr(os, "fstat", lambda *args: failing_call(errno.ESTALE))
        monkeypatch.setattr(os, "link", link)
        threading.Timer(0.1, lambda: monkeypatch.setattr(os, "fstat", fstat)).start()
        raise OSError(errno.ETIMEDOUT, "lost")

    fstat = os.fstat
    monkeypatch.setattr(os, "link", lying)
    stored = store.add("x", DATA)
    assert store.get(stored.uri).data.read() == DATA


# -- Calls that come back late ----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["unlink", "rename"])
def test_a_delete_that_comes_back_late_spares_a_newer_image(mount, datadir, call):
    """The call hangs on its way to the server while another client replaces the image."""
    uri = file_store(datadir).add("x", b"old").uri
    slow = file_store(datadir, filesystem_store_timeout=0.3)
    with mount.hang(call):
        with pytest.raises(TransferTimeout):
            slow.delete(uri)
        # The other client, behind this kernel's back.
        below = mount.below / datadir.name
        (below / "x").unlink(missing_ok=True)
        (below / "x").write_bytes(b"new image")
    wait_for(lambda: not [name for name in names(below) if name != "x"])
    assert (below / "x").read_bytes() == b"new image"


def test_an_open_that_comes_back_late_deletes_nothing(tmp_path, monkeypatch):
    uri = file_store(tmp_path).add("x", b"old").uri
    slow = file_store(tmp_path, filesystem_store_timeout=0.2)
    hang, real = threading.Event(), os.open
    monkeypatch.setattr(os, "open", lambda *args, **kwargs: hang.wait(20) and real(*args, **kwargs))
    with pytest.raises(TransferTimeout):
        slow.delete(uri)
    monkeypatch.undo()
    other = file_store(tmp_path)
    other.delete(uri)
    other.add("x", b"new image")
    hang.set()
    wait_for(lambda: not [t for t in threading.enumerate() if t.name == "storelib-guard"])
    assert other.get(uri).data.read() == b"new image"


def test_an_image_moved_aside_by_a_dead_process_gets_its_name_back_from_gc(tmp_path):
    store = file_store(tmp_path)
    old, new = publication.Identity(3, 1), b"new image"
    (tmp_path / own_names("gone", "01234567" + old.token, "x")[0]).write_bytes(new)
    assert store.gc(0) == []
    assert store.get(f"file://{tmp_path}/x").data.read() == new
    # The one that was to be removed is.
    stored = store.add("y", b"old")
    met = publication.Identity.of(os.stat(tmp_path / "y"))
    os.rename(tmp_path / "y", tmp_path / own_names("gone", "01234567" + met.token, "y")[0])
    with pytest.raises(NotFound):
        store.get(stored.uri)
    assert [item.image_id for item in store.gc(0)] == ["y"]
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_what_a_killed_delete_moved_aside_is_removed_or_gets_its_name_back_wherever_it_was(tmp_path, levels):
    """In a process of its own that dies as it is about to unlink."""
    store = file_store(tmp_path, filesystem_store_shard_levels=levels)
    uri = store.add("x", DATA).uri
    code = f"""
import os
from storelib.drivers.filesystem import publication
from storelib.registry import open_store
publication._unlink = lambda *args: os._exit(3)
open_store("file", filesystem_store_datadir={str(tmp_path)!r}).delete({uri!r})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 3
    [gone] = (tmp_path / ASIDE).iterdir()
    with pytest.raises(NotFound):
        store.get(uri)
    [found] = store.find_garbage(0, "x")
    assert (found.image_id, found.name) == ("x", str(gone))
    # Another image, that had the name by the time the kernel did what it was told.
    gone.write_bytes(b"a newer image")
    assert store.gc(0, "x") == []
    assert store.get(uri).data.read() == b"a newer image"
    assert not (tmp_path / ASIDE).exists()


def test_a_delete_that_fails_leaves_the_image(mount, datadir, store):
    uri = store.add("x", DATA).uri
    mount.fault("unlink", "EIO", times=1)
    with pytest.raises(StoreError):
        store.delete(uri)
    assert store.get(uri).data.read() == DATA
    store.delete(uri)
    assert names(datadir) == []


def test_a_delete_interrupted_when_it_was_carried_out_tells_of_no_image_to_put_back(tmp_path, monkeypatch, caplog):
    store = file_store(tmp_path)
    uri = store.add("x", DATA).uri
    unlink = os.unlink

    def interrupted(*args, **kwargs):
        unlink(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.delete(uri)
    assert names(tmp_path) == []
    assert not caplog.records


def test_a_delete_whose_flush_failed_is_an_error_however_often_it_is_tried(mount, datadir):
    store = file_store(datadir)
    uri = store.add("x", DATA).uri
    mount.fault("fsyncdir", "ETIMEDOUT", times=1)
    with pytest.raises(StoreError, match="power loss"):
        store.delete(uri)
    assert names(datadir) == []


@pytest.mark.parametrize("number", ["EBUSY", "ETXTBSY"])
def test_an_image_in_use_on_its_server_is_in_use(mount, datadir, store, number):
    uri = store.add("x", DATA).uri
    for call in ("unlink", "rename"):
        mount.fault(call, number)
        with pytest.raises(InUseByStore):
            store.delete(uri)
    mount.clear()
    assert store.get(uri).data.read() == DATA


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT", "ENAMETOOLONG"])
def test_where_an_image_cannot_be_renamed_it_can_be_deleted(mount, datadir, store, number):
    uri = store.add("x", DATA).uri
    mount.fault("rename", number)
    store.delete(uri)
    assert names(datadir) == []


@pytest.mark.parametrize("number", ["ENOENT", "EIO", "EACCES", "ESTALE"])
def test_a_delete_carried_out_and_denied_is_done(mount, datadir, store, number):
    for call in ("rename", "unlink"):
        uri = store.add(call, DATA).uri
        mount.fault(call, number, after=True, times=1)
        store.delete(uri)
    assert names(datadir) == []


@pytest.mark.parametrize("number", ["EIO", "EACCES"])
def test_a_delete_carried_out_and_denied_is_done_where_names_cannot_be_moved(mount, datadir, store, number):
    uri = store.add("x", DATA).uri
    mount.fault("rename", "EPERM")
    mount.fault("unlink", number, after=True, times=1)
    store.delete(uri)
    assert names(datadir) == []


@pytest.mark.parametrize("added_again", [False, True])
def test_a_delete_that_is_tried_again_spares_a_newer_image(tmp_path, monkeypatch, added_again):
    """The server does it, then says nothing for a while, in which another client adds the id again."""
    store, other = (open_store("file", filesystem_store_datadir=tmp_path) for _ in range(2))
    uri = store.add("image", b"old").uri
    plain = os.stat

    def away(name, *arguments, **options):
        if name == "image" and not options.get("follow_symlinks", True):
            return plain(name, *arguments, **options)
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    def rename(*arguments, **options):
        monkeypatch.undo()
        os.rename(*arguments, **options)
        monkeypatch.setattr(os, "stat", away)
        monkeypatch.setattr(retry, "pause", pause)
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    def pause(*_):
        monkeypatch.undo()
        if added_again:
            other.add("image", b"new")

    monkeypatch.setattr(os, "rename", rename)
    store.delete(uri)
    assert (tmp_path / "image").exists() == added_again
    if added_again:
        assert (tmp_path / "image").read_bytes() == b"new"


def test_a_hung_listing_that_comes_back_crashes_nothing(mount, datadir):
    file_store(datadir).add("x", DATA)
    program = """
import sys, time
from storelib.exceptions import TransferTimeout
from storelib.registry import open_store
store = open_store("file", filesystem_store_datadir=sys.argv[1], filesystem_store_timeout=0.5)
for _ in range(3):
    try:
        list(store.list_images())
    except TransferTimeout:
        print("timeout", flush=True)
sys.stdin.readline()
while True:
    try:
        print([info.image_id for info in store.list_images()])
        break
    except TransferTimeout:
        time.sleep(0.1)
"""
    with mount.hang("readdir"):
        child = subprocess.Popen(
            [sys.executable, "-X", "dev", "-c", program, str(datadir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert [child.stdout.readline() for _ in range(3)] == ["timeout\n"] * 3
    output, errors = child.communicate("go\n", timeout=60)
    assert (child.returncode, output, errors) == (0, "['x']\n", "")


@pytest.mark.parametrize("call", ["open", "getattr"])
def test_a_file_opened_too_late_is_closed(mount, datadir, call):
    uri = file_store(datadir).add("x", DATA).uri
    store = file_store(datadir, filesystem_store_timeout=0.2)
    with mount.hang(call), pytest.raises(TransferTimeout):
        store.get(uri)
    wait_for(lambda: not open_files(datadir))


def test_closing_is_bounded_and_never_closes_under_a_read(mount, datadir, monkeypatch):
    uri = file_store(datadir).add("x", DATA).uri
    store = file_store(datadir, filesystem_store_timeout=1.0, transfer_retries=0)
    stream = store.get(uri).data
    hang, pread = threading.Event(), os.pread
    monkeypatch.setattr(os, "pread", lambda *args: hang.wait(20) and pread(*args))
    with pytest.raises(TransferTimeout):
        stream.read(1)
    stream.close()
    assert len(open_files(datadir)) == 1
    hang.set()
    wait_for(lambda: not open_files(datadir))
    monkeypatch.undo()
    stream = store.get(uri).data
    with mount.hang("flush"), pytest.raises(TransferTimeout):
        stream.close()
    wait_for(lambda: not open_files(datadir))


def test_gc_is_bounded_too(mount, datadir):
    patient, store = file_store(datadir), file_store(datadir, filesystem_store_timeout=0.3)
    writer = patient.start_writer("dead", None, None)
    writer.reserve(4096)
    writer.close()
    with mount.hang("open"), pytest.raises(TransferTimeout):
        store.gc(0)
    assert [item.image_id for item in patient.gc(0)] == ["dead"]


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# -- Errors of close, fsync and unlink --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, RELAXED])
@pytest.mark.parametrize(("number", "error"), [("EDQUOT", StorageFull), ("ENOSPC", StorageFull), ("EIO", StoreError)])
def test_what_close_reports_fails_the_add(mount, datadir, number, error, options):
    mount.fault("flush", number)
    store = file_store(datadir, **options)
    with pytest.raises(error, match="nothing was stored"):
        store.add("x", DATA)
    mount.clear()
    assert names(datadir) == []
    assert open_files(datadir) == []
    store.add("x", DATA)


def test_no_descriptor_is_closed_twice_after_a_close_that_failed(tmp_path, monkeypatch):
    store = file_store(tmp_path, **RELAXED)
    close, closed, mine = os.close, [], []

    def closing(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        close(descriptor)
        if path.startswith(str(tmp_path)):
            closed.append(descriptor)
            # The number is another file's at once.
            mine.append(os.open("/dev/null", os.O_RDONLY))
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "close", closing)
    with pytest.raises(StoreError):
        store.add("x", DATA)
    monkeypatch.undo()
    gc.collect()
    assert closed
    for descriptor in mine:
        os.close(descriptor)  # EBADF if storelib closed it
    assert open_files(tmp_path) == []
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", ["EIO", "ETIMEDOUT", "ENOSPC"])
@pytest.mark.parametrize("call", ["fsync", "fsyncdir"])
def test_a_flush_that_failed_is_never_tried_again_and_believed(mount, datadir, call, number):
    mount.fault(call, number, times=1)
    store = file_store(datadir)
    with pytest.raises(StoreError, match="flushing it"):
        store.add("x", DATA)
    assert names(datadir) == []
    store.add("x", DATA)


def test_a_subdirectory_whose_flush_failed_is_flushed_by_the_next_add(mount, datadir, monkeypatch):
    store = file_store(datadir, filesystem_store_shard_levels=1)
    fsync, flushed = os.fsync, []
    mount.fault("fsyncdir", "EIO", times=1)
    with pytest.raises(StoreError):
        store.add("x", DATA)
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd))
    store.add("x", DATA)
    assert str(datadir) in flushed
    flushed.clear()
    store.delete(store.find_image("x").uri)
    store.add("x", DATA)
    assert str(datadir) not in flushed
    # Made by another process, which may have died before it was flushed.
    file_store(datadir, filesystem_store_shard_levels=1).add("x2", DATA)
    assert str(datadir) in flushed


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE])
def test_no_descriptor_leaks_on_another_try(tmp_path, monkeypatch, number):
    store = file_store(tmp_path)
    failing(monkeypatch, "open", number, when=lambda path, *args, **kwargs: path == ".", times=2)
    store.add("x", DATA)
    assert open_files(tmp_path) == []


def test_a_reader_whose_fstat_fails_leaves_nothing_open(tmp_path, monkeypatch):
    store = file_store(tmp_path)
    uri = store.add("x", DATA).uri
    failing(monkeypatch, "fstat", errno.EIO, times=-1)
    for call in (store.get, store.get_size, store.stat):
        with pytest.raises(StoreError):
            call(uri)
    monkeypatch.undo()
    assert open_files(tmp_path) == []


def test_closing_a_stream_and_looking_for_holes_raise_errors_of_the_store(tmp_path, monkeypatch):
    store = file_store(tmp_path, filesystem_thin_provisioning=True)
    uri = store.add("x", DATA + bytes(8 * MiB) + DATA).uri
    stream = store.get(uri).data
    extents = stream.extents()
    failing(monkeypatch, "lseek", errno.EIO)
    with pytest.raises(StoreError, match="Input/output"):
        list(extents)
    close = os.close
    monkeypatch.setattr(os, "close", lambda fd: close(fd) or failing_call(errno.EIO))
    with pytest.raises(StoreError, match="Input/output"):
        stream.close()
    stream.close()
    monkeypatch.undo()
    assert open_files(tmp_path) == []


def failing_call(number):
    raise OSError(number, os.strerror(number))


# -- Copies in the kernel ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [RELAXED, {"filesystem_store_direct_io": False}, {}])
def test_copies_between_file_systems_are_read_where_the_kernel_does_not_copy(mount, datadir, tmp_path, options):
    with tmpfs(tmp_path / "ram", 16 * MiB) as ram:
        stores = [file_store(path, **options) for path in (ram, tmp_path / "disk", datadir)]
        stored = stores[0].add("first", DATA)
        for number, (origin, target) in enumerate(itertools.permutations(stores, 2)):
            uri = stored.uri if origin is stores[0] else origin.add(f"origin-{number}", DATA).uri
            digests = Digests(stored.checksum, stored.multihash)
            result = copy(origin, uri, target, f"copy-{number}", digests=digests)
            assert target.get(result.uri).data.read() == DATA


@pytest.mark.parametrize("number", ["EXDEV", "EOPNOTSUPP", "EINVAL", "ENOSYS", "EPERM", "ETXTBSY", "EIO", "EBADF"])
@pytest.mark.parametrize("first", [0, 70_000])
def test_whatever_the_kernel_says_to_a_copy_the_rest_is_read(tmp_path, monkeypatch, number, first):
    origin, target = file_store(tmp_path / "a"), file_store(tmp_path / "b", **RELAXED)
    stored = origin.add("x", DATA)
    real, answers = os.copy_file_range, [first] if first else []

    def copy_file_range(source, into, count, *offsets):
        if answers:
            return real(source, into, answers.pop(), *offsets)
        raise OSError(getattr(errno, number), number)

    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    result = copy(origin, stored.uri, target, "y", digests=Digests(stored.checksum, stored.multihash))
    assert target.get(result.uri).data.read() == DATA


def test_a_kernel_copy_that_answers_nothing_is_continued_by_reading(tmp_path, monkeypatch):
    origin, target = file_store(tmp_path / "a"), file_store(tmp_path / "b", **RELAXED)
    stored = origin.add("x", DATA)
    monkeypatch.setattr(os, "copy_file_range", lambda *args: 0)
    result = copy(origin, stored.uri, target, "y", digests=Digests(stored.checksum, stored.multihash))
    assert target.get(result.uri).data.read() == DATA


def test_a_kernel_copy_without_room_is_storage_full(tmp_path, monkeypatch):
    origin, target = file_store(tmp_path / "a"), file_store(tmp_path / "b", **RELAXED)
    stored = origin.add("x", DATA)
    failing(monkeypatch, "copy_file_range", errno.EDQUOT)
    with pytest.raises(StorageFull):
        copy(origin, stored.uri, target, "y", digests=Digests(stored.checksum, stored.multihash))
    assert names(tmp_path) == ["x"]


# -- gc and living adds -----------------------------------------------------------------------------------------


def test_gc_of_another_process_spares_a_living_add(mount, datadir, store):
    collect = "import sys; from storelib.registry import open_store; print(open_store('file', "
    collect += "filesystem_store_datadir=sys.argv[1]).gc(0))"

    def source():
        yield LARGE
        assert file_store(datadir).gc(0) == []
        assert subprocess.check_output([sys.executable, "-c", collect, str(datadir)]) == b"[]\n"
        yield DATA

    stored = store.add("x", source())
    assert store.get(stored.uri).data.read() == LARGE + DATA


def test_gc_between_the_making_of_a_part_file_and_its_lock_does_no_harm(tmp_path, monkeypatch):
    store = file_store(tmp_path, filesystem_store_staging="part")
    other = file_store(tmp_path)
    removed, lock = [], publication.lock

    def late_lock(file):
        if not removed:
            removed.extend(other.gc(0))
        return lock(file)

    monkeypatch.setattr(publication, "lock", late_lock)
    stored = store.add("x", DATA)
    assert [item.image_id for item in removed] == ["x"]
    assert store.get(stored.uri).data.read() == DATA
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_an_add_whose_file_gc_took_fails(tmp_path, monkeypatch, number, links):
    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    if not links:
        failing(monkeypatch, "link", errno.EPERM, times=-1)
    store = file_store(tmp_path, filesystem_store_staging="part")

    def source():
        yield LARGE
        assert file_store(tmp_path).gc(3600) == []
        assert [item.image_id for item in file_store(tmp_path).gc(0)] == ["x"]
        yield DATA

    with pytest.raises(StoreError, match="a gc removed it"):
        store.add("x", source())
    assert names(tmp_path) == []
    with pytest.raises(NotFound):
        store.get(f"file://{tmp_path}/x")


def test_kill_9_while_publishing_by_a_claim_leaves_what_gc_removes(mount, datadir):
    mount.fault("link", "EPERM")
    program = """
import os, sys, time
from storelib.registry import open_store
store = open_store("file", filesystem_store_datadir=sys.argv[1])
os.rename = lambda *args, **kwargs: print("claimed", flush=True) or time.sleep(60)
store.add("x", b"data")
"""
    child = subprocess.Popen([sys.executable, "-c", program, str(datadir)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"claimed\n"
    store = file_store(datadir)
    assert store.gc(0) == []
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert list(store.list_images()) == []
    assert [item.image_id for item in store.gc(0)] == ["x", "x"]
    store.add("x", DATA)
    assert names(datadir) == ["x"]


# -- check() ----------------------------------------------------------------------------------------------------


def test_a_directory_that_cannot_be_listed_is_not_healthy(mount, datadir, store):
    mount.fault("readdir", "EACCES")
    with pytest.raises(Forbidden, match="filesystem_store_datadir"):
        store.check()
    with pytest.raises(Forbidden, match="cannot be listed"):
        list(store.list_images())
    mount.clear()
    assert names(datadir) == []


@pytest.mark.parametrize("read_only", [True, False])
def test_a_directory_without_read_permission_is_not_healthy(tmp_path, read_only):
    program = """
import sys
from storelib.exceptions import Forbidden, StorageWriteDenied
from storelib.registry import open_store
store = open_store("file", filesystem_store_datadir=sys.argv[1], read_only=sys.argv[2] == "True")
try:
    store.check()
except (Forbidden, StorageWriteDenied) as error:
    assert "filesystem_store_datadir" in str(error), error
    print("refused")
"""
    images = tmp_path / "images"
    images.mkdir()
    os.chmod(images, 0o300)
    # root without the right to read everything.
    without = "-dac_override,-dac_read_search"
    drop = ["setpriv", f"--bounding-set={without}", f"--inh-caps={without}"] if os.geteuid() == 0 else []
    arguments = [*drop, sys.executable, "-c", program, str(images), str(read_only)]
    assert subprocess.check_output(arguments) == b"refused\n"


@pytest.mark.parametrize(
    ("call", "number", "option"),
    [("fsync", "EINVAL", "filesystem_store_fsync = false"), ("chmod", "EPERM", "filesystem_store_file_perm = 0")],
)
def test_check_names_the_option_that_would_help(mount, datadir, call, number, option):
    store = file_store(datadir, filesystem_store_file_perm=640)
    mount.fault(call, number)
    with pytest.raises(StoreError, match=f"with option {option} it works"):
        store.check()
    mount.clear()
    assert names(datadir) == []
    store.check()
    assert names(datadir) == []


@pytest.mark.parametrize("call", ["create", "write", "read", "readdir", "unlink", "open"])
def test_check_finds_whatever_does_not_work(mount, datadir, store, call):
    mount.fault(call, "EIO")
    with pytest.raises(StoreError):
        store.check()


def test_check_names_the_directory_when_writing_is_denied(mount, datadir, store):
    mount.fault("create", "EACCES")
    with pytest.raises(StorageWriteDenied, match="filesystem_store_datadir"):
        store.check()


def test_check_of_a_store_that_only_reads_lists_and_reads(mount, datadir):
    file_store(datadir).add("x", DATA)
    store = file_store(datadir, read_only=True)
    store.check()
    for call in ("read", "readdir"):
        # FUSE keeps what was read.
        os.posix_fadvise(descriptor := os.open(datadir / "x", os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        mount.fault(call, "EIO")
        with pytest.raises(StoreError):
            store.check()
        mount.clear()


# -- Names ------------------------------------------------------------------------------------------------------

FOREIGN = [
    ".nfs000000000123456700000001",
    ".fuse_hidden0000000800000001",
    ".__afs1A2B",
    ".__smb00000001",
    ".DS_Store",
    "._image",
    ".~lock.image.iso#",
    ".#image",
    ".image.swp",
    ".goutputstream-1X2Y3Z",
    ".syncthing.image.tmp",
    ".storelib-part-0123456789abcdef-x",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_temporary_names_of_other_programs_are_no_images_and_no_ids(tmp_path, name):
    store = file_store(tmp_path)
    (tmp_path / name).write_bytes(b"not an image")
    assert list(store.list_images()) == []
    assert store.find_image(name) is None
    with pytest.raises(Invalid, match="choose another id"):
        store.add(name, b"data")
    assert (tmp_path / name).read_bytes() == b"not an image"


@pytest.mark.parametrize("image_id", [".x", ".nfs", ".nfsroot", ".hidden.qcow2", ".part-1", "a.swp", "_x", "x~", ".sw"])
def test_legal_ids_with_a_leading_dot_round_trip_and_are_listed(tmp_path, image_id):
    store = file_store(tmp_path)
    stored = store.add(image_id, DATA)
    assert [info.image_id for info in store.list_images()] == [image_id]
    assert store.find_image(image_id).uri == stored.uri
    assert store.get(stored.uri).data.read() == DATA
    store.delete(stored.uri)


def test_files_of_our_own_cannot_be_read_as_images(tmp_path):
    store = file_store(tmp_path)
    for kind in ("part", "claim", "gone"):
        for name in own_names(kind, "0123456789abcdef", "x"):
            (tmp_path / name).write_bytes(b"x")
            with pytest.raises(BadStoreUri):
                store.get(f"file://{tmp_path}/" + name.replace("\x01", "%01"))


def test_ids_of_the_longest_length_are_added_deleted_and_collected(mount, datadir, store):
    image_id = "é" * 127 + "x"
    uri = store.add(image_id, DATA).uri
    store.delete(uri)
    writer = store.start_writer(image_id, None, None)
    writer.reserve(4096)
    writer.close()
    assert len(store.gc(0, prefix="é")) == 1
    assert names(datadir) == []

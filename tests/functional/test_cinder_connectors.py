# SPDX-License-Identifier: Apache-2.0
"""CinderStore on volumes that are not in Ceph: files on NFS, and block devices that os-brick connects.

Cinder, its NFS driver, os-brick and the loop devices are real; NFS itself, which the kernels of test machines lack, is
a bind mount. Mounts and devices need root.
"""

import hashlib
import os
import subprocess
import sys
import textwrap
import time

import cinder_project
import pytest
from servers.cinder import Cinder
from servers.keystone import Keystone

from storelib.capabilities import Capability
from storelib.driver import Digests, Part
from storelib.drivers.cinder import CinderStore, service
from storelib.exceptions import BadStoreConfiguration, OperationNotSupported, RemoteServiceUnavailable
from storelib.registry import open_store
from storelib.testing.conformance import Adding, Capable, Collecting, Holes, Reading

pytest.importorskip("os_brick", reason="needs storelib[brick]")
if os.geteuid() != 0:
    pytest.skip("mounts and loop devices need root", allow_module_level=True)

KiB, MiB, GiB = 1024, 1024**2, 1024**3
IMAGE = b"".join(os.urandom(MiB) for _ in range(9)) + b"end"


@pytest.fixture(scope="module")
def cinder(tmp_path_factory):
    root = tmp_path_factory.mktemp("cinder")
    (root / "keystone").mkdir()
    (root / "cinder").mkdir()
    with (
        Keystone(root / "keystone") as keystone,
        Cinder(root / "cinder", keystone, backends=("nfs", "loop")) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("PATH", f"{server.programs}:{os.environ['PATH']}")
        # Each look at a volume keeps Cinder from what is waited for.
        patch.setattr(service, "_FIRST_LOOK", 0.2)
        yield server


def options_of(cinder, kind, **more):
    return {
        "cinder_store_auth_address": cinder.keystone.url,
        "cinder_store_user_name": "demo",
        "cinder_store_password": "demopass",
        "cinder_store_project_name": "demo",
        "cinder_volume_type": kind,
        "cinder_state_path": str(cinder.directory / "holds"),
        "cinder_mount_point_base": str(cinder.directory / "mounts here"),
        "transfer_timeout": 60.0,
    } | more


def open_cinder(cinder, kind, name=None, **more):
    return open_store(CinderStore, name or kind, **options_of(cinder, kind, **more))


class Project(cinder_project.Project):
    """The project ``demo``, and the files behind its volumes."""

    def __init__(self, cinder, kind):
        super().__init__(cinder)
        self.kind = kind

    def path(self, volume):
        directory = self.cinder.directory
        return directory / "loops" / volume if self.kind == "loop" else self.cinder.share / f"volume-{volume}"

    def contents(self, volume, size):
        with self.path(volume).open("rb") as file:
            return file.read(size)


class TestNfs(Capable, Collecting, Holes, Reading):
    """Files on a share; each is attached by one process at a time. What is written as to any disk, TestLoop tries."""

    capabilities = CinderStore.capabilities
    sample = True

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, cinder):
        return open_cinder(cinder, "nfs")

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, cinder):
        return Project(cinder, "nfs")


class TestLoop(Holes, Adding):
    """Block devices that hold what was there before, where nothing is written."""

    capabilities = CinderStore.capabilities & ~Capability.SPARSE
    sample = True

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, cinder):
        return open_cinder(cinder, "loop", cinder_thin_provisioning=False)

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, cinder):
        return Project(cinder, "loop")


@pytest.fixture(params=["nfs", "loop"])
def kind(request):
    return request.param


@pytest.fixture
def store(cinder, kind):
    return open_cinder(cinder, kind)


@pytest.fixture
def project(cinder, kind):
    return Project(cinder, kind)


@pytest.fixture
def image_id(request):
    return request.node.name


def read(store, uri, *where):
    with store.get(uri, *where).data as stream:
        return stream.read()


def volume_of(uri):
    return uri.rpartition("/")[2]


def mounts(cinder):
    """What is mounted for images now."""
    base = str(cinder.directory / "mounts here").replace(" ", r"\040")
    with open("/proc/self/mounts") as file:
        return [line.split()[1] for line in file if line.split()[1].startswith(base)]


def run(cinder, kind, script, *arguments):
    """A process of its own that has ``store``."""
    opening = f"""
    import os, sys, threading, time
    from storelib.drivers.cinder import CinderStore
    from storelib.registry import open_store
    store = open_store(CinderStore, {kind!r}, **{options_of(cinder, kind)!r})
    """
    source = textwrap.dedent(opening) + textwrap.dedent(script)
    command = [sys.executable, "-W", "ignore", "-c", source, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def until(process, line):
    assert process.stdout.readline() == f"{line}\n"


def end(process, *, kill=False):
    """End a process, which waits for a line, or kill it."""
    if kill:
        process.kill()
    process.communicate("go on\n", 60)
    assert process.returncode == (-9 if kill else 0)


def wait_for(true):
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "waited for in vain"
        time.sleep(0.1)


READING = """
with store.get(sys.argv[1]).data as stream:
    stream.read(1)
    print("reading", flush=True)
    sys.stdin.readline()
"""
WRITING = """
def source():
    yield os.urandom(9 << 20)
    print("writing", flush=True)
    sys.stdin.readline()
store.add(sys.argv[1], source())
"""


# -- NFS ------------------------------------------------------------------------------------------------------------


def test_share_is_mounted_once_and_only_while_it_is_used(cinder, image_id):
    one, other = (open_cinder(cinder, "nfs", name) for name in ("one", "other"))
    uris = [store.add(image_id, IMAGE).uri for store in (one, other)]
    assert mounts(cinder) == []
    with one.get(uris[0]).data as first:
        [mount] = mounts(cinder)
        share = f"127.0.0.1:{cinder.share}"
        assert mount.endswith(f"/nfs/{hashlib.sha256(share.encode()).hexdigest()}")
        with other.get(uris[1]).data as second:
            assert mounts(cinder) == [mount]
            assert second.read() == IMAGE
        assert mounts(cinder) == [mount]
        assert first.read() == IMAGE
    assert mounts(cinder) == []
    one.delete(uris[0])
    other.delete(uris[1])


def test_processes_share_a_mount_and_the_last_one_unmounts_it(cinder, image_id):
    store = open_cinder(cinder, "nfs")
    ours, theirs = (store.add(f"{image_id}-{name}", IMAGE).uri for name in ("ours", "theirs"))
    process = run(cinder, "nfs", READING, theirs)
    until(process, "reading")
    [mount] = mounts(cinder)
    assert read(store, ours) == IMAGE
    assert mounts(cinder) == [mount]
    end(process)
    assert mounts(cinder) == []
    store.delete(ours)
    store.delete(theirs)


def test_mount_of_a_killed_process_is_used_by_the_next_one_and_unmounted(cinder, image_id):
    store = open_cinder(cinder, "nfs")
    ours, theirs = (store.add(f"{image_id}-{name}", IMAGE).uri for name in ("ours", "theirs"))
    process = run(cinder, "nfs", READING, theirs)
    until(process, "reading")
    end(process, kill=True)
    assert len(mounts(cinder)) == 1
    assert read(store, ours) == IMAGE
    assert mounts(cinder) == []
    for uri in (ours, theirs):
        store.delete(uri)


def test_options_of_a_share_are_those_of_the_mount(cinder):
    """The server, or the kernel, refuses them."""
    connectors = open_cinder(cinder, "nfs").service.connectors
    info = {"driver_volume_type": "nfs", "export": f"127.0.0.1:{cinder.share}", "name": "x", "options": "-o vers=9"}
    with pytest.raises(RemoteServiceUnavailable, match="could not be mounted"):
        connectors.connect(info, "", print)
    assert mounts(cinder) == []


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "."])
def test_name_that_leads_out_of_the_share_is_none(cinder, name):
    connectors = open_cinder(cinder, "nfs").service.connectors
    info = {"driver_volume_type": "nfs", "export": f"127.0.0.1:{cinder.share}", "name": name}
    with pytest.raises(RemoteServiceUnavailable, match="where on NFS"):
        connectors.connect(info, "", print)


def test_volumes_that_are_not_raw_are_refused(cinder):
    connectors = open_cinder(cinder, "nfs").service.connectors
    info = {"driver_volume_type": "nfs", "export": f"127.0.0.1:{cinder.share}", "name": "x", "format": "qcow2"}
    with pytest.raises(OperationNotSupported, match="qcow2"):
        connectors.connect(info, "", print)
    assert mounts(cinder) == []


def test_directory_for_mounts_that_is_none_names_the_option(cinder, image_id, tmp_path):
    wrong = tmp_path / "file"
    wrong.touch()
    store = open_cinder(cinder, "nfs", cinder_mount_point_base=str(wrong))
    with pytest.raises(BadStoreConfiguration, match="cinder_mount_point_base"):
        store.add(image_id, IMAGE)
    store.gc(0, prefix=image_id)


def test_holes_of_a_file_take_no_room(cinder, image_id, tmp_path):
    store, project = open_cinder(cinder, "nfs"), Project(cinder, "nfs")
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.seek(700 * MiB)
        file.write(IMAGE)
    uri = store.add(image_id, str(path)).uri
    assert project.path(volume_of(uri)).stat().st_blocks * 512 < 16 * MiB
    with store.get(uri).data as stream:
        assert sum(extent.length for extent in stream.extents() if extent.data) < 16 * MiB
    store.delete(uri)


def test_processes_that_are_not_root_use_the_helper(cinder, image_id, tmp_path, monkeypatch):
    helper, log = tmp_path / "helper", tmp_path / "log"
    helper.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec "$@"\n')
    helper.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    store = open_cinder(cinder, "nfs", cinder_root_helper=str(helper))
    store.delete(store.add(image_id, IMAGE).uri)
    lines = log.read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["mount", "umount"]
    assert "vers=4.2" in lines[0]


def test_process_that_is_not_root_needs_a_helper(cinder, image_id, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    store = open_cinder(cinder, "nfs", rootwrap_config=str(tmp_path / "nowhere"))
    with pytest.raises(BadStoreConfiguration, match="rootwrap_config"):
        store.add(image_id, IMAGE)
    monkeypatch.undo()
    assert not Project(cinder, "nfs").attachments()


# -- Devices --------------------------------------------------------------------------------------------------------


def test_os_brick_is_imported_for_devices_only_and_leaves_threads_alone(cinder, image_id):
    nfs, loop = (open_cinder(cinder, kind).add(f"{image_id}-{kind}", IMAGE).uri for kind in ("nfs", "loop"))
    script = """
    plain = threading.Thread, threading.Thread.start, time.sleep
    store.get(sys.argv[1]).data.close()
    assert not {"os_brick", "oslo_service", "eventlet"} & set(sys.modules)
    other = open_store(CinderStore, "loop", **{**options, "cinder_volume_type": "loop"})
    with other.get(sys.argv[2]).data as stream:
        assert len(stream.read()) > 9 << 20
    from oslo_service import backend
    assert backend.get_backend_type() is backend.BackendType.THREADING
    assert plain == (threading.Thread, threading.Thread.start, time.sleep)
    import eventlet.patcher
    assert not eventlet.patcher.already_patched
    """
    end(run(cinder, "nfs", f"options = {options_of(cinder, 'nfs')!r}" + textwrap.dedent(script), nfs, loop))
    for kind, uri in (("nfs", nfs), ("loop", loop)):
        open_cinder(cinder, kind).delete(uri)


@pytest.fixture
def disconnected(monkeypatch):
    """What os-brick was asked to disconnect in this process: device and whether it is to use force."""
    from os_brick.initiator.connectors import local

    calls = []

    def disconnect(self, info, device, force=False, ignore_errors=False):
        calls.append((info["device_path"], device and device["path"], force))

    monkeypatch.setattr(local.LocalConnector, "disconnect_volume", disconnect)
    return calls


def test_device_is_disconnected_by_the_last_process_of_the_host(cinder, image_id, disconnected):
    store = open_cinder(cinder, "loop")
    uri = store.add(image_id, IMAGE).uri
    assert len(disconnected) == 1
    process = run(cinder, "loop", READING, uri)
    until(process, "reading")
    assert read(store, uri) == IMAGE
    assert len(disconnected) == 1, "another process reads from it"
    end(process)
    assert read(store, uri) == IMAGE
    assert len(disconnected) == 2
    store.delete(uri)


def test_device_of_a_killed_process_is_disconnected_by_gc(cinder, image_id, disconnected):
    store = open_cinder(cinder, "loop")
    uri = store.add(image_id, IMAGE).uri
    process = run(cinder, "loop", READING, uri)
    until(process, "reading")
    disconnected.clear()
    assert not store.gc(0, prefix=image_id), "a living reader was disturbed"
    end(process, kill=True)
    assert len(store.gc(0, prefix=image_id)) == 1
    [(device, known, force)] = disconnected
    assert device == known
    assert force
    assert read(store, uri) == IMAGE
    store.delete(uri)


def test_zeros_are_written_where_a_device_holds_something_else(cinder, image_id, tmp_path):
    """The first image of a store object, too, which does not know yet what its volumes are."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.seek(5 * MiB)
        file.write(IMAGE)
        file.truncate(30 * MiB)
    for source in (str(path), lambda: iter([bytes(5 * MiB), IMAGE, bytes(16 * MiB - 3)])):
        store = open_cinder(cinder, "loop")
        uri = store.add(image_id, source() if callable(source) else source).uri
        assert read(store, uri) == path.read_bytes()
        store.delete(uri)


@pytest.mark.parametrize("attached", [False, True], ids=["detached", "attached"])
def test_device_grows(cinder, image_id, attached):
    store, project = open_cinder(cinder, "loop", cinder_do_extend_attached=attached), Project(cinder, "loop")
    writer = store.open_writer(image_id, None, None)
    attachments = set()
    for number, end_ in enumerate((64 * KiB, GiB + 64 * KiB)):
        assert writer.reserve(end_) == (number + 1) * GiB
        writer.write(Part(number, end_ - 64 * KiB, memoryview(IMAGE)[: 64 * KiB]))
        attachments |= {each["id"] for each in project.attachments()}
    assert len(attachments) == (1 if attached else 2)
    uri = writer.commit(GiB + 64 * KiB, Digests(None, "unknown")).location.uri
    writer.close()
    for offset in (0, GiB):
        assert read(store, uri, offset, 64 * KiB) == IMAGE[: 64 * KiB]
    store.delete(uri)


# -- Both -----------------------------------------------------------------------------------------------------------


def test_file_grows_while_it_is_detached(cinder, image_id):
    store, project = open_cinder(cinder, "nfs"), Project(cinder, "nfs")
    writer = store.open_writer(image_id, None, None)
    assert [writer.reserve(end_) for end_ in (1, GiB + 1)] == [GiB, 2 * GiB]
    writer.write(Part(0, GiB, memoryview(IMAGE)))
    uri = writer.commit(GiB + len(IMAGE), Digests(None, "unknown")).location.uri
    writer.close()
    assert read(store, uri, GiB) == IMAGE
    assert not project.attachments()
    store.delete(uri)
    assert mounts(cinder) == []


def test_image_in_a_format_of_its_own_stays_what_it_is(store, kind, image_id, tmp_path):
    """Cinder looks into its volumes on NFS, and could take the image for the volume."""
    path = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1G"], check=True)
    uri = store.add(image_id, str(path)).uri
    assert read(store, uri) == path.read_bytes()
    store.delete(uri)


def test_volume_of_a_killed_writer_is_removed_by_gc(cinder, store, project, kind, image_id):
    process = run(cinder, kind, WRITING, image_id)
    until(process, "writing")
    assert not store.gc(0, prefix=image_id), "a living writer was disturbed"
    end(process, kill=True)
    assert [item.image_id for item in store.gc(0, prefix=image_id)] == [image_id]
    assert not project.residue(image_id)
    assert not project.attachments()
    assert mounts(cinder) == []


def test_failed_add_leaves_neither_mount_nor_device(cinder, store, project, image_id):
    def source():
        yield IMAGE
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="broke"):
        store.add(image_id, source())
    wait_for(lambda: not project.residue(image_id))
    assert not project.attachments()
    assert mounts(cinder) == []
    assert [name for name in os.listdir(cinder.directory / "holds") if len(name) == 32] == []

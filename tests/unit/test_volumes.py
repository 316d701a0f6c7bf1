# SPDX-License-Identifier: Apache-2.0
"""How volumes come to this host, as far as that needs neither Cinder nor root: who has what, files, and os-brick."""

import errno
import os
import socket
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from cinder_user import OTHER, VOLUME

from storelib.drivers.cinder import CinderStore
from storelib.exceptions import (
    BadStoreConfiguration,
    MissingDependency,
    OperationNotSupported,
    RemoteServiceUnavailable,
    StorageFull,
    StoreError,
    TransferTimeout,
)
from storelib.registry import open_store
from storelib.transfer.retry import mapped
from storelib.volumes import disks, root_helper, usage
from storelib.volumes.attachments import SharedAttachments
from storelib.volumes.connectors import Unknown
from storelib.volumes.disks import FileDisk
from storelib.volumes.holds import Holds, Note
from storelib.volumes.usage import Usage

ISCSI = {
    "driver_volume_type": "iscsi",
    "target_portal": "192.0.2.7:3260",
    "target_iqn": "iqn.2010-10.org.openstack:volume",
    "target_lun": 1,
    "auth_method": "CHAP",
    "auth_username": "images",
    "auth_password": "hunter2",
}


def cinder(tmp_path, **options):
    options = {"cinder_state_path": str(tmp_path / "state"), "cinder_root_helper": ""} | options
    return open_store(CinderStore, "fast", **options)


# -- Who uses what of this host -------------------------------------------------------------------------------------


@pytest.fixture
def made():
    return []


def of(tmp_path, timeout=5.0):
    return Usage(str(tmp_path), "ab" * 16, timeout)


def begin(tmp_path, made):
    return of(tmp_path).begin(lambda: made.append("made"))[0]


def end(tmp_path, made, use):
    of(tmp_path).end(use, lambda: made.append("undone"))


def test_last_use_undoes_what_was_made(tmp_path, made):
    one, other = begin(tmp_path, made), begin(tmp_path, made)
    end(tmp_path, made, one)
    assert "undone" not in made
    end(tmp_path, made, other)
    assert made == ["made", "made", "undone"]
    assert [name for name in os.listdir(tmp_path) if name.endswith(".users")] == []


def test_use_of_a_killed_process_is_none(tmp_path, made):
    here, there = socket.socketpair()
    child = os.fork()
    if not child:
        _ = begin(tmp_path, made)
        there.send(b"x")
        there.recv(1)
        os._exit(1)
    with here, there:
        here.recv(1)
        end(tmp_path, made, None)
        assert made == [], "it is alive"
        os.kill(child, 9)
        os.waitpid(child, 0)
    end(tmp_path, made, None)
    assert made == ["undone"]


def test_use_of_the_parent_does_not_live_in_a_child(tmp_path, made):
    use = begin(tmp_path, made)
    here, there = socket.socketpair()
    child = os.fork()
    if not child:
        here.close()
        there.send(b"x")
        there.recv(1)
        os._exit(0)
    there.close()
    try:
        here.recv(1)
        # As at a sudden end, which unlocks nothing by itself.
        os.close(use._descriptor)
        use._descriptor = None
        end(tmp_path, made, None)
    finally:
        here.close()
        os.waitpid(child, 0)
    assert made == ["made", "undone"]


def test_what_could_not_be_made_is_used_by_nobody(tmp_path, made):
    with pytest.raises(ZeroDivisionError):
        of(tmp_path).begin(lambda: 1 / 0)
    end(tmp_path, made, begin(tmp_path, made))
    assert made == ["made", "undone"]


def test_turn_is_waited_for_and_not_for_ever(tmp_path, made):
    entered, leave = threading.Event(), threading.Event()

    def make():
        entered.set()
        leave.wait(10)

    thread = threading.Thread(target=lambda: of(tmp_path).begin(make))
    thread.start()
    entered.wait(10)
    with pytest.raises(TransferTimeout, match="another process"):
        of(tmp_path, timeout=0.1).begin(lambda: made.append("made"))
    leave.set()
    use = begin(tmp_path, made)
    thread.join()
    end(tmp_path, made, use)
    assert made == ["made", "undone"]


# -- Files and devices ------------------------------------------------------------------------------------------------


def disk(path, read_only=False, store_root=None):
    return FileDisk(str(path), "volume v", store_root, read_only=read_only)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "volume"
    path.write_bytes(bytes(1 << 20))
    return path


def test_disk_reads_what_it_wrote(path):
    one = disk(path)
    one.write(5, memoryview(b"data"))
    one.flush()
    buffer = bytearray(4)
    assert disk(path, read_only=True).read_into(5, memoryview(buffer)) == 4
    assert (buffer, one.size()) == (b"data", 1 << 20)
    one.close()
    one.close()
    with pytest.raises(StoreError, match="closed"):
        one.write(0, memoryview(b"x"))


@pytest.mark.parametrize(
    ("code", "error"), [("ENOSPC", StorageFull), ("EDQUOT", StorageFull), ("EIO", RemoteServiceUnavailable)]
)
def test_errors_of_the_kernel_are_told(path, monkeypatch, code, error):
    number = getattr(errno, code)

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    one = disk(path)
    monkeypatch.setattr(os, "pwrite", fail)
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(error, match="volume v"):
        one.write(0, memoryview(b"x"))
    with pytest.raises(error, match="volume v"):
        one.read_into(0, memoryview(bytearray(1)))


def test_flush_that_failed_is_never_believed_again(path, monkeypatch):
    one = disk(path)

    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(StoreError, match="could not be flushed"):
            one.flush()
    with pytest.raises(StoreError, match="could not be flushed"):
        one.flush()


def test_size_that_comes_late_is_waited_for(path, monkeypatch):
    one = disk(path)
    sizes = iter([1, 1, 5])
    monkeypatch.setattr(one, "size", lambda: next(sizes))
    monkeypatch.setattr(disks, "_LOOK", 0)
    assert one.await_size(5) == 5
    monkeypatch.undo()
    monkeypatch.setattr(disks, "_GROWING", 0)
    assert one.await_size(2 << 20) == 1 << 20


class RecordedRoot:
    def __init__(self):
        self.commands = []

    def run(self, *command):
        self.commands.append(command)


def test_file_of_somebody_else_is_ours_for_a_moment(path, monkeypatch):
    plain, refused = os.open, []

    def refuse_once(*arguments):
        if not refused:
            refused.append(arguments)
            raise PermissionError(errno.EACCES, "Permission denied")
        return plain(*arguments)

    helper = RecordedRoot()
    monkeypatch.setattr(os, "open", refuse_once)
    disk(path, store_root=helper).close()
    owner = path.stat().st_uid
    assert helper.commands == [("chown", str(os.geteuid()), str(path)), ("chown", str(owner), str(path))]


# -- Root -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "options", "helper"),
    [
        (0, {"cinder_root_helper": "sudo"}, ""),
        (1000, {"cinder_root_helper": "sudo"}, "sudo"),
        (1000, {"cinder_root_helper": None}, "sudo glance-rootwrap {}"),
    ],
)
def test_helper_is_the_operators(tmp_path, monkeypatch, user, options, helper):
    monkeypatch.setattr(os, "geteuid", lambda: user)
    rootwrap = tmp_path / "rootwrap.conf"
    rootwrap.touch()
    store = cinder(tmp_path, rootwrap_config=str(rootwrap), **options)
    assert store.service.connectors.root.helper == helper.format(rootwrap)


def test_command_that_cannot_be_run_names_the_option(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BadStoreConfiguration, match=r"cinder_root_helper.*nowhere"):
        cinder(tmp_path, cinder_root_helper="/nowhere/sudo").service.connectors.root.run("true")


def test_command_that_fails_or_hangs(tmp_path):
    with pytest.raises(root_helper.CommandFailed):
        cinder(tmp_path).service.connectors.root.run("false")
    with pytest.raises(TransferTimeout):
        cinder(tmp_path, transfer_timeout=0.1).service.connectors.root.run("sleep", "60")


# -- os-brick -------------------------------------------------------------------------------------------------------


class Connector:
    """What os-brick's factory makes, recorded."""

    def __init__(self, path):
        self.path = path
        self.calls = []

    def connect_volume(self, info):
        self.calls.append(("connect", info["target_lun"]))
        return {"type": "block", "path": str(self.path), "scsi_wwn": "3600"}

    def disconnect_volume(self, info, device, force=False, ignore_errors=False):
        self.calls.append(("disconnect", device and device["path"], force, ignore_errors))

    def extend_volume(self, info):
        self.calls.append(("extend", info["target_lun"]))


@pytest.fixture
def connector(path, monkeypatch):
    brick = pytest.importorskip("os_brick.initiator.connector")
    made = Connector(path)
    made.factory = []

    def factory(*arguments, **options):
        made.factory.append((arguments, options))
        return made

    monkeypatch.setattr(brick.InitiatorConnector, "factory", factory)
    return made


def test_device_is_told_of_before_it_is_there_and_after(tmp_path, path, connector, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    connectors = cinder(tmp_path, cinder_root_helper="sudo wrap", cinder_use_multipath=True).service.connectors
    notes = []
    with pytest.raises(Unknown):
        connectors.connect(ISCSI, VOLUME, notes.append)
    assert not notes
    connectors.tell_more()
    connection = connectors.connect(ISCSI, VOLUME, notes.append)
    assert [("path" in note, str(path) in note, "hunter2" in note) for note in notes] == [
        (True, False, False),
        (True, True, False),
    ]
    [((kind, helper), options)] = connector.factory
    assert (kind, helper, options["use_multipath"]) == ("iscsi", "sudo wrap", True)
    assert options["conn"]["data"]["auth_password"] == "hunter2"
    assert not connection.reads_zeros
    connection.open(read_only=True).close()
    connection.rescan()
    connection.disconnect()
    connection.disconnect()
    assert connector.calls == [("connect", 1), ("extend", 1), ("disconnect", str(path), False, False)]
    # What its process would have done.
    connectors.disconnect_dead(notes[0], VOLUME, ISCSI)
    connectors.disconnect_dead(notes[1], VOLUME, ISCSI)
    connectors.disconnect_dead(notes[1], VOLUME, None)
    connectors.disconnect_dead("", VOLUME, ISCSI)
    assert connector.calls[3:] == [("disconnect", None, True, True), ("disconnect", str(path), True, True)]


@pytest.mark.parametrize("attached", [False, True])
def test_device_grows_while_it_is_attached_if_the_operator_says_so(tmp_path, connector, attached):
    connectors = cinder(tmp_path, cinder_do_extend_attached=attached).service.connectors
    connectors.tell_more()
    assert connectors.connect(ISCSI, VOLUME, print).grows is attached


def test_connector_of_this_host_says_what_os_brick_knows(tmp_path, monkeypatch):
    brick = pytest.importorskip("os_brick.initiator.connector")
    asked = []

    def known(helper, address, multipath, enforce, host=None):
        asked.append((helper, multipath, enforce))
        return {"host": host, "initiator": "iqn.1993-08.org.debian:01:x", "multipath": multipath}

    monkeypatch.setattr(brick, "get_connector_properties", known)
    connectors = cinder(tmp_path, cinder_use_multipath=True, cinder_enforce_multipath=True).service.connectors
    assert "initiator" not in connectors.properties("ro")
    assert not asked, "volumes in Ceph need none of it"
    connectors.tell_more()
    found = connectors.properties("ro")
    assert (found["initiator"], found["mode"], found["mountpoint"]) == ("iqn.1993-08.org.debian:01:x", "ro", "storelib")
    assert connectors.properties("rw")["initiator"] == found["initiator"]
    assert asked == [("", True, True)], "it takes a dozen commands"


def test_errors_of_os_brick_tell_no_credentials(tmp_path):
    """The real connector: there is no iSCSI here."""
    pytest.importorskip("os_brick.initiator.connector")
    store = cinder(tmp_path)
    store.service.connectors.tell_more()
    with pytest.raises(RemoteServiceUnavailable, match="could not be connected") as caught:
        mapped(lambda: store.service.connectors.connect(ISCSI, VOLUME, print), store.map_error, "image")
    assert "hunter2" not in str(caught.value)


def test_kind_that_os_brick_does_not_know_is_refused(tmp_path):
    pytest.importorskip("os_brick.initiator.connector")
    store = cinder(tmp_path)
    store.service.connectors.tell_more()
    info = {"driver_volume_type": "carrier pigeon"}
    with pytest.raises(OperationNotSupported):
        mapped(lambda: store.service.connectors.connect(info, VOLUME, print), store.map_error, "image")


def test_without_os_brick_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "os_brick.initiator.connector", None)
    store = cinder(tmp_path)
    store.service.connectors.tell_more()
    with pytest.raises(MissingDependency, match=r"storelib\[brick\]"):
        store.service.connectors.connect(ISCSI, VOLUME, print)


def test_thread_that_meets_the_first_device_comes_to_an_end(tmp_path):
    """Eventlet, below os-brick, takes the thread that imports it for the main one; and os-brick replaces time.sleep."""
    script = f"""
import threading, time
from storelib.drivers.cinder import CinderStore
from storelib.registry import open_store
store = open_store(CinderStore, "fast", cinder_state_path={str(tmp_path)!r}, cinder_root_helper="")
connectors = store.service.connectors
connectors.tell_more()
sleep = time.sleep
thread = threading.Thread(target=connectors.properties, args=("rw",), daemon=True)
thread.start()
thread.join(60)
assert not thread.is_alive()
assert time.sleep is sleep
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)


def test_turns_are_few_files(tmp_path):
    for number in range(600):
        name = f"{number:032x}"[::-1]
        use, _ = Usage(str(tmp_path), name, 1.0).begin(lambda: None)
        Usage(str(tmp_path), name, 1.0).end(use, lambda: None)
    assert len(os.listdir(tmp_path)) <= 256


def test_use_is_over_once_it_is_let_go_of(tmp_path, made):
    use = begin(tmp_path, made)
    del use
    end(tmp_path, made, None)
    assert made == ["made", "undone"]


def test_names_are_no_paths():
    assert usage.Usage("/x", "ab", 1.0)._users == "/x/ab.users"


# -- Holds ----------------------------------------------------------------------------------------------------------


def test_hold_is_alive_until_it_is_let_go(tmp_path):
    holds = Holds(str(tmp_path / "state"))
    assert list(holds.dead()) == []
    hold = holds.take()
    hold.note(Note(VOLUME, OTHER, "id"))
    assert Holds(str(tmp_path / "state")).is_alive(hold.token)
    assert list(holds.dead()) == []
    token = hold.token
    del hold
    assert holds.is_alive(token) is False
    assert [found for found, _ in holds.dead()] == [token]
    assert holds.notes(token) == [Note(VOLUME, OTHER, "id")]
    holds.forget(token)
    assert holds.is_alive(token) is None


def test_released_hold_leaves_nothing(tmp_path):
    holds = Holds(str(tmp_path))
    hold = holds.take()
    hold.release()
    hold.release()
    assert os.listdir(tmp_path) == []


def test_hold_of_the_parent_does_not_live_in_a_child(tmp_path):
    holds = Holds(str(tmp_path))
    hold = holds.take()
    hold.note(Note(VOLUME, OTHER, "id"))
    there, here = socket.socketpair()
    child = os.fork()
    if not child:
        here.close()
        there.send(b"I am")
        there.recv(1)
        os._exit(0)
    there.close()
    try:
        here.recv(4)
        hold.drop()
        assert holds.is_alive(hold.token) is False
    finally:
        here.close()
        os.waitpid(child, 0)


def test_hold_without_an_attachment_leaves_nothing(tmp_path):
    hold = Holds(str(tmp_path)).take()
    assert len(os.listdir(tmp_path)) == 1
    del hold
    assert os.listdir(tmp_path) == []


def test_note_that_was_cut_short_is_none(tmp_path):
    holds = Holds(str(tmp_path))
    hold = holds.take()
    hold.note(Note(VOLUME, OTHER, "id"))
    with open(tmp_path / hold.token, "a") as file:
        file.write('["half')
    assert holds.notes(hold.token) == [Note(VOLUME, OTHER, "id")]


@pytest.mark.parametrize("token", ["", "../../etc/passwd", "x" * 32, "0" * 31])
def test_token_of_somebody_else_is_no_path(tmp_path, token):
    assert Holds(str(tmp_path)).is_alive(token) is None


def test_state_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadStoreConfiguration, match="cinder_state_path"):
        Holds(str(tmp_path / "file" / "x")).take()


@pytest.mark.parametrize("what", ["a file", "another user's"])
def test_state_path_that_cannot_be_read_is_named(tmp_path, monkeypatch, what):
    directory = tmp_path / "state"
    if what == "a file":
        directory.touch()
    else:
        monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(BadStoreConfiguration, match="cinder_state_path.*cannot be read"):
        list(Holds(str(directory)).dead())


def refuse(*arguments, **options):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_hold_of_another_user_is_none_of_ours_to_judge(tmp_path, monkeypatch):
    """Root has tried something out in a directory of the service's."""
    holds = Holds(str(tmp_path))
    ours, roots = holds.take(), holds.take()
    for hold in (ours, roots):
        hold.note(Note(VOLUME, OTHER, "id"))
        hold.drop()
    plain = open

    def opened(path, *arguments, **options):
        return refuse() if str(path).endswith(roots.token) else plain(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", opened)
    assert [token for token, _ in holds.dead()] == [ours.token]
    assert holds.is_alive(roots.token) is None
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(BadStoreConfiguration, match="cinder_state_path.*cannot be read"):
        holds.is_alive(roots.token)


def test_hold_that_cannot_be_removed_is_let_go_and_its_disk_named(tmp_path, monkeypatch):
    """The disk became read-only: what was read was read."""
    holds = Holds(str(tmp_path))
    hold = holds.take()
    with monkeypatch.context() as broken:
        broken.setattr(os, "unlink", refuse)
        hold.release()
        assert holds.is_alive(hold.token) is False
        with pytest.raises(BadStoreConfiguration, match="cinder_state_path.*cannot be written to"):
            holds.forget(hold.token)


def test_hold_that_cannot_be_locked_leaves_no_file(tmp_path, monkeypatch):
    """As on a share without locks, each time."""
    monkeypatch.setattr("storelib.volumes.holds.fcntl.flock", refuse)
    with pytest.raises(BadStoreConfiguration, match="cinder_state_path"):
        Holds(str(tmp_path)).take()
    assert os.listdir(tmp_path) == []


def test_notes_may_be_anything_after_a_crash(tmp_path):
    holds = Holds(str(tmp_path))
    hold = holds.take()
    (tmp_path / hold.token).write_bytes(b"\0\0\xff\xfe\n[]\n")
    hold.note(Note(VOLUME, OTHER, "id"))
    assert holds.notes(hold.token) == [Note(VOLUME, OTHER, "id")]


class BlockStorageOfOne:
    """Cinder with one volume that can be attached once at a time, as its API says."""

    def __init__(self):
        self.attached = []
        self.made = 0
        self.detaching, self.may_detach = threading.Event(), threading.Event()
        self.status = None

    def volume(self, volume_id):
        status = self.status or ("in-use" if self.attached else "available")
        return types.SimpleNamespace(status=status, multiattach=False)

    def reserve(self, volume_id, mode):
        if self.attached or self.status:
            raise Refused
        self.made += 1
        self.attached.append(f"attachment-{self.made}")
        return self.attached[-1]

    def connect(self, attachment_id, connector):
        return {}

    def complete(self, attachment_id):
        pass

    def attachments(self, volume_id):
        return []

    def detach(self, attachment_id):
        self.detaching.set()
        assert self.may_detach.wait(30)
        self.attached.remove(attachment_id)

    def status_of(self, error):
        return 400 if isinstance(error, Refused) else None


class Refused(Exception):
    """A volume that is attached cannot be reserved."""


def process_of(storage, tmp_path):
    """The attachments of a process."""
    connection = types.SimpleNamespace(disconnect=lambda: None)
    connectors = types.SimpleNamespace(
        properties=lambda mode: {}, connect=lambda *given: connection, can_tell_more=False, tell_more=lambda: None
    )
    return SharedAttachments(storage, Holds(str(tmp_path / "holds")), connectors)


@pytest.fixture
def shared(tmp_path):
    """The attachments of a process, and the Cinder that they are of."""
    storage = BlockStorageOfOne()
    return process_of(storage, tmp_path), storage


def test_reader_that_comes_while_the_last_one_detaches_waits_for_it(shared):
    attachments, storage = shared
    first = attachments.acquire("volume", "image")
    with ThreadPoolExecutor(2) as pool:
        leaving = pool.submit(attachments.release, first)
        assert storage.detaching.wait(30)
        coming = pool.submit(attachments.acquire, "volume", "image")
        assert not wait([coming], 0.2).done
        storage.may_detach.set()
        leaving.result(30)
        second = coming.result(30)
    assert storage.made == 2
    attachments.release(first)
    assert len(storage.attached) == 1
    attachments.release(second)
    assert not storage.attached
    assert not attachments._shared


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("in-use", "multiattach"),
        ("available", "available now"),
        ("error", "cannot be attached"),
        ("backing-up", "when that is over"),
    ],
)
def test_volume_that_cinder_does_not_attach_may_be_tried_again_unless_it_is_broken(shared, status, error):
    attachments, storage = shared
    storage.status = status
    with pytest.raises(StoreError, match=error) as raised:
        attachments.acquire("volume", "image")
    assert isinstance(raised.value, RemoteServiceUnavailable) == (status != "error")
    assert not attachments._shared


class BlockStorageOfMany(BlockStorageOfOne):
    """Cinder with a volume that several can have, of whom one at a time can come, as its API says."""

    def __init__(self):
        super().__init__()
        self._lock = threading.Lock()
        self.may_detach.set()

    def volume(self, volume_id):
        return types.SimpleNamespace(status=self.status or "available", multiattach=True)

    def reserve(self, volume_id, mode):
        with self._lock:
            if self.status not in (None, "in-use"):
                raise Refused
            self.status = "reserved"
            self.made += 1
            self.attached.append(f"attachment-{self.made}")
            return self.attached[-1]

    def connect(self, attachment_id, connector):
        self.status = "attaching"
        time.sleep(0.02)
        return {}

    def complete(self, attachment_id):
        self.status = "in-use"


def test_those_who_begin_to_read_an_image_at_once_wait_for_their_turn(tmp_path):
    storage = BlockStorageOfMany()
    with ThreadPoolExecutor(12) as pool:
        coming = [pool.submit(process_of(storage, tmp_path).acquire, "volume", "image") for _ in range(12)]
        taken = [each.result(60) for each in coming]
    assert len(taken) == len(storage.attached) == 12


def test_volume_that_somebody_dead_has_reserved_is_waited_for_and_given_up(shared, monkeypatch):
    attachments, storage = shared
    monkeypatch.setattr("storelib.volumes.attachments._TURN", 0.3)
    storage.status = "reserved"
    with pytest.raises(RemoteServiceUnavailable, match="stays reserved.*gc") as raised:
        attachments.acquire("volume", "image")
    assert not raised.value.transient, "each further try would wait as long"


def test_those_who_wait_for_an_attachment_that_fails_get_its_error(shared):
    attachments, storage = shared
    asked, may_fail, tries = threading.Event(), threading.Event(), []

    def connect(attachment_id, connector):
        tries.append(attachment_id)
        asked.set()
        assert may_fail.wait(30)
        raise RemoteServiceUnavailable("cinder-volume is away")

    storage.connect = connect
    storage.may_detach.set()
    with ThreadPoolExecutor(4) as pool:
        coming = [pool.submit(attachments.acquire, "volume", "image")]
        assert asked.wait(30)
        coming += [pool.submit(attachments.acquire, "volume", "image") for _ in range(3)]
        while attachments._shared["volume"].users < 4:
            time.sleep(0.01)
        may_fail.set()
        for each in coming:
            with pytest.raises(RemoteServiceUnavailable, match="cinder-volume is away"):
                each.result(30)
    assert len(tries) == 1
    assert not storage.attached
    assert not attachments._shared


@pytest.mark.parametrize("written", [0, 1])
def test_attachment_that_cannot_be_noted_is_not_made_or_ended(shared, tmp_path, monkeypatch, written):
    """A full disk: an attachment that was not noted keeps the image from ever being deleted."""
    attachments, storage = shared
    storage.may_detach.set()
    plain, left = os.write, [written]

    def write(descriptor, data):
        if not left[0]:
            return plain(descriptor, data[:5])
        left[0] -= 1
        return plain(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(BadStoreConfiguration, match="cinder_state_path.*No space left"):
        attachments.acquire("volume", "image")
    assert storage.made == written
    assert not storage.attached
    assert os.listdir(tmp_path / "holds") == []


@pytest.mark.parametrize("refused", [True, False])
def test_what_was_asked_for_is_noted_until_it_was_refused(shared, tmp_path, refused):
    """Of a request without an answer Cinder may make an attachment later, or may not tell now what it has made."""
    attachments, storage = shared

    def reserve(volume_id, mode):
        [token] = os.listdir(tmp_path / "holds")
        assert Holds(str(tmp_path / "holds")).notes(token) == [Note("volume", "", "image")]
        raise Refused if refused else RemoteServiceUnavailable("no answer")

    def attachments_of(volume_id):
        raise RemoteServiceUnavailable("no answer either")

    storage.reserve, storage.attachments, storage.status = reserve, attachments_of, "error"
    with pytest.raises(StoreError):
        attachments.acquire("volume", "image")
    assert bool(os.listdir(tmp_path / "holds")) is not refused


def test_device_that_cannot_be_noted_is_disconnected(tmp_path, connector):
    connectors = cinder(tmp_path).service.connectors
    connectors.tell_more()
    notes = []

    def note(device):
        notes.append(device)
        if len(notes) == 2:
            raise BadStoreConfiguration("the disk is full")

    with pytest.raises(BadStoreConfiguration):
        connectors.connect(ISCSI, VOLUME, note)
    assert [call[0] for call in connector.calls] == ["connect", "disconnect"]

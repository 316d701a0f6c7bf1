# SPDX-License-Identifier: Apache-2.0
"""SheepdogStore through ``dog``: the stand-in of servers/dog.py, or a real cluster where there is one."""

import contextlib
import hashlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers.dog import Sheepdog, stand_in_only
from servers.nginx import free_ports

from storelib.capabilities import Capability
from storelib.driver import Digests, Part
from storelib.drivers.sheepdog import SheepdogStore, writer
from storelib.drivers.sheepdog.errors import CommandCut, CommandFailed
from storelib.exceptions import (
    BadStoreUri,
    Duplicate,
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

KiB, MiB = 1024, 1024 * 1024


def open_sheepdog(cluster, **options):
    return open_store(SheepdogStore, "sheep", **cluster.options | {"transfer_retries": 2} | options)


class Access(BackendAccess):
    """The cluster through commands of the tests' own."""

    def __init__(self, cluster):
        self.cluster = cluster

    def read(self, image_id):
        name = name_of(image_id)
        if (name, "", False) not in self.cluster.names():
            return None
        code, data, complaint = self.cluster.run("read", name)
        assert code == 0, complaint
        return data

    def plant(self, image_id, data):
        name = name_of(image_id)
        assert self.cluster.run("create", name, str(len(data)))[0] == 0
        assert self.cluster.run("write", name, data=data)[0] == 0
        return open_sheepdog(self.cluster).cluster.location(name).uri

    def residue(self, prefix):
        return {" ".join(map(str, each)) for each in self.cluster.names() if f"/{prefix}" in f"/{each[0]} /{each[1]}"}


def name_of(image_id):
    return "/" + image_id[1:] if image_id[:1] == "-" else image_id


class TestConformance(StoreConformance):
    # ``dog`` lists all there is at once.
    many_images = 30
    sequences = 4
    capabilities = (
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

    def foreign_uris(self, bench, uri):
        place, _, name = uri.rpartition(":")
        address, _, port = place.rpartition(":")
        return [f"{address}:{int(port) % 65535 + 1}:{name}", f"{address}x:{port}:{name}"]

    @pytest.fixture(scope="class")
    @classmethod
    def cluster(cls, tmp_path_factory):
        with Sheepdog(tmp_path_factory.mktemp("cluster") / "sheep") as cluster:
            yield cluster

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, cluster):
        return open_sheepdog(cluster)

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, cluster):
        return Access(cluster)

    @pytest.fixture(scope="class")
    @classmethod
    def unreachable_store(cls, cluster):
        return open_sheepdog(cluster, sheepdog_store_port=free_ports(1)[0], transfer_retries=0)


# -- The stand-in itself: what was recorded from a real cluster -----------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Sheepdog(tmp_path_factory.mktemp("cluster") / "sheep") as cluster:
        yield cluster


@pytest.fixture
def image_id():
    """An id of this test's own."""
    return f"{secrets.token_hex(6)}-image"


@pytest.fixture
def vdi(cluster, image_id):
    """A vdi of 10 bytes."""
    assert cluster.run("create", image_id, "10") == (0, b"", "")
    assert cluster.run("write", image_id, data=b"0123456789") == (0, b"", "")
    return image_id


def list_line(cluster, name):
    [line] = cluster.run("list", "-r", name)[1].decode().splitlines()
    return line


def size_in_list(cluster, name):
    return int(list_line(cluster, name).split(" ")[3])


@pytest.mark.parametrize(("size", "count"), [("0", 0), ("1", 1), ("4097", 4097), ("3K", 3072), ("2m", 2 * MiB)])
def test_dog_creates_vdis_of_any_size(cluster, image_id, size, count):
    assert cluster.run("create", f"{image_id}", size) == (0, b"", "")
    assert size_in_list(cluster, image_id) == count


@pytest.mark.parametrize(("size", "code"), [("4T", 0), ("5T", 64), ("-1", 64), ("many", 64)])
def test_dog_creates_vdis_of_4_tib_at_most(cluster, image_id, size, code):
    assert cluster.run("create", image_id, size)[0] == code
    cluster.run("delete", image_id)


def test_dog_creates_no_vdi_twice(cluster, vdi):
    code, _, complaint = cluster.run("create", vdi, "1")
    assert code == 1
    assert "VDI exists already" in complaint


def test_one_of_four_creates_succeeds(cluster, image_id):
    with ThreadPoolExecutor(4) as pool:
        codes = [each[0] for each in pool.map(lambda _: cluster.run("create", image_id, "1"), range(4))]
    assert sorted(codes) == [0, 1, 1, 1]


@pytest.mark.parametrize("length", [255, 256, 300])
def test_dog_cuts_names_after_255_bytes_without_a_word(cluster, image_id, length):
    name = image_id.ljust(length, "x")
    assert cluster.run("create", name, "0") == (0, b"", "")
    assert (name[:255], "", False) in cluster.names()
    assert cluster.run("create", name, "0")[0] == 1
    assert cluster.run("delete", name)[0] == 0
    assert (name[:255], "", False) not in cluster.names()


def test_dog_cuts_tags_after_255_bytes_without_a_word(cluster, vdi):
    tag = "t" * 300
    assert cluster.run("snapshot", "-s", tag, vdi)[0] == 0
    assert (vdi, tag[:255], True) in cluster.names()


@pytest.mark.parametrize("again", ["create", "clone"])
def test_attributes_outlive_their_vdi(cluster, vdi, again):
    cluster.run("snapshot", "-s", "tag", vdi)
    name = f"{vdi}-attributes"
    for value in ("one", "two"):
        command = ["create", name, "1"] if again == "create" else ["clone", "-s", "tag", vdi, name]
        assert cluster.run(*command)[0] == 0
        assert cluster.run("setattr", "-x", name, "key", value)[0] == (0 if value == "one" else 3)
        assert cluster.run("getattr", name, "key") == (0, b"one", "")
        assert cluster.run("setattr", name, "other", value)[0] == 0
        assert cluster.run("setattr", "-d", name, "other")[0] == 0
        cluster.run("delete", name)
        assert cluster.run("getattr", name, "key")[0] == 5
    cluster.run("create", name, "1")
    assert cluster.run("getattr", name, "other")[0] == 5
    cluster.run("setattr", "-d", name, "key")


def test_snapshots_and_clones_begin_without_attributes(cluster, vdi):
    cluster.run("setattr", vdi, "key", "value")
    cluster.run("snapshot", "-s", "tag", vdi)
    assert cluster.run("getattr", vdi, "key")[0] == 5
    cluster.run("clone", "-s", "tag", vdi, f"{vdi}-clone")
    assert cluster.run("getattr", f"{vdi}-clone", "key")[0] == 5


def test_dog_lists_ten_fields(cluster, vdi):
    flag, name, number, size, used, shared, created, vid, copies, tag, shift = list_line(cluster, vdi).split(" ")
    assert (flag, name, size, shared, tag) == ("=", vdi, "10", "0", "")
    assert abs(int(created) - time.time()) < 60
    assert int(used) == 1 << int(shift)
    assert number == "0"
    assert int(vid, 16)
    assert copies


def test_dog_lists_spaces_with_a_backslash(cluster, image_id):
    cluster.run("create", f"{image_id} two words", "1")
    assert cluster.run("list", "-r", f"{image_id} two words")[1].startswith(f"= {image_id}\\ two\\ words 0 1 ".encode())


def test_dog_flags_snapshots_and_clones(cluster, vdi):
    assert cluster.run("snapshot", "-s", "tag", vdi)[0] == 0
    assert cluster.run("clone", "-s", "tag", vdi, f"{vdi}-clone")[0] == 0
    flags = {line.partition(" ")[0] for line in cluster.run("list", "-r", vdi)[1].decode().splitlines()}
    assert flags == {"s", "="}
    assert list_line(cluster, f"{vdi}-clone").startswith("c ")
    numbers = {line.split(" ")[2] for line in cluster.run("list", "-r", vdi)[1].decode().splitlines()}
    assert numbers == {"0", "1"}


def test_clone_lives_on_without_its_snapshot(cluster, vdi):
    cluster.run("snapshot", "-s", "tag", vdi)
    cluster.run("clone", "-s", "tag", vdi, f"{vdi}-clone")
    cluster.run("delete", "-s", "tag", vdi)
    cluster.run("delete", vdi)
    assert not cluster.run("list", "-r", vdi)[1]
    assert cluster.run("read", f"{vdi}-clone")[1] == b"0123456789"


def test_snapshot_does_not_change(cluster, vdi):
    cluster.run("snapshot", "-s", "tag", vdi)
    cluster.run("write", vdi, "0", "3", data=b"new")
    assert cluster.run("read", "-s", "tag", vdi)[1] == b"0123456789"
    assert cluster.run("read", vdi)[1] == b"new3456789"


def test_clone_to_a_name_that_exists_fails(cluster, vdi):
    cluster.run("create", f"{vdi}-there", "1")
    cluster.run("snapshot", "-s", "tag", vdi)
    code, _, complaint = cluster.run("clone", "-s", "tag", vdi, f"{vdi}-there")
    assert (code, "VDI exists already" in complaint) == (1, True)
    assert size_in_list(cluster, f"{vdi}-there") == 1


MISSING = {
    "list -r NAME": (0, b""),
    "delete NAME": (0, b""),
    "read NAME": (1, b""),
    "write NAME": (1, b""),
    "resize NAME 1": (1, b""),
    "snapshot -s tag NAME": (1, b""),
    "clone -s tag NAME other": (1, b""),
    "getattr NAME key": (5, b""),
    "setattr NAME key value": (5, b""),
}


@pytest.mark.parametrize("command", MISSING)
def test_exit_codes_for_a_missing_vdi(cluster, image_id, command):
    code, output, complaint = cluster.run(*command.replace("NAME", image_id).split())
    assert (code, output) == MISSING[command]
    assert "list" in command or "found" in complaint


def test_exit_codes_for_missing_tags_and_attributes(cluster, vdi):
    cluster.run("setattr", vdi, "key", "value")
    assert cluster.run("clone", "-s", "no-such-tag", vdi, f"{vdi}-clone")[0] == 1
    assert cluster.run("getattr", vdi, "other")[0] == 5
    assert cluster.run("getattr", vdi, "key") == (0, b"value", "")
    assert cluster.run("setattr", "-x", vdi, "key", "value")[0] == 3
    assert cluster.run("setattr", "-d", vdi, "key")[0] == 0
    assert cluster.run("getattr", vdi, "key")[0] == 5


def test_dog_makes_vdis_larger_only(cluster, vdi):
    assert cluster.run("resize", vdi, "20")[0] == 0
    assert cluster.run("resize", vdi, "20")[0] == 0
    assert cluster.run("resize", vdi, "19")[0] == 64
    assert cluster.run("read", vdi)[1] == b"0123456789" + bytes(10)


def test_short_input_is_filled_up_with_zeros_silently(cluster, vdi):
    assert cluster.run("write", vdi, "0", "8", data=b"abc") == (0, b"", "")
    assert cluster.run("read", vdi)[1] == b"abc\0\0\0\0\x0089"


def test_long_input_is_cut_silently(cluster, vdi):
    assert cluster.run("write", vdi, data=b"abcdefghijklmnop") == (0, b"", "")
    assert cluster.run("read", vdi)[1] == b"abcdefghij"


def test_reads_past_the_end_are_clipped(cluster, vdi):
    assert cluster.run("read", vdi, "8", "100") == (0, b"89", "")
    assert cluster.run("read", vdi, "10", "100") == (0, b"", "")
    assert cluster.run("read", vdi, "11", "1")[0] == 1
    assert cluster.run("write", vdi, "11", "1", data=b"x")[0] == 1


def test_vdi_that_is_deleted_while_it_is_read_comes_short_with_exit_code_1(cluster, image_id):
    cluster.run("create", image_id, "12M")
    cluster.run("write", image_id, data=bytes_of(12 * MiB))
    where = ("-a", cluster.address, "-p", str(cluster.port))
    with subprocess.Popen([cluster.command, "vdi", "read", *where, image_id], stdout=subprocess.PIPE) as running:
        first = running.stdout.read(1)
        cluster.run("delete", image_id)
        rest = running.stdout.read()
    assert len(first + rest) < 12 * MiB
    assert running.returncode == 1


@pytest.mark.parametrize(
    "arguments", [(), ("unknown",), ("create", "name"), ("read",), ("list", "-q"), ("clone", "a", "b")]
)
def test_wrong_usage_ends_with_64(cluster, arguments):
    assert subprocess.run([cluster.command, "vdi", *arguments], capture_output=True).returncode == 64


@pytest.mark.parametrize(("where", "code"), [(("-p", "0"), 64), (("-p", "x"), 64), (("-a", "256.256.256.256"), 1)])
def test_exit_codes_for_wrong_addresses(cluster, where, code):
    done = subprocess.run([cluster.command, "vdi", "list", *where], capture_output=True)
    assert done.returncode == code


@stand_in_only
def test_exit_codes_where_no_daemon_is(cluster, vdi):
    cluster.switch("dead")
    try:
        assert cluster.run("list", "-r")[0] == 2
        assert cluster.run("read", vdi)[0] == 1
        assert cluster.run("delete", vdi)[0] == 0
        assert cluster.run("create", "name")[0] == 2
        assert cluster.run("create", "name", "1")[0] == 1
    finally:
        cluster.switch("dead", on=False)
    assert cluster.run("read", vdi)[1] == b"0123456789"


@stand_in_only
def test_dog_hangs_while_the_daemon_is_stopped(cluster, vdi):
    cluster.switch("stopped")
    where = ("-a", cluster.address, "-p", str(cluster.port))
    with subprocess.Popen([cluster.command, "vdi", "read", *where, vdi], stdout=subprocess.PIPE) as running:
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(0.5)
        cluster.switch("stopped", on=False)
        assert running.communicate(timeout=10)[0] == b"0123456789"


# -- Commands -------------------------------------------------------------------------------------------------


@pytest.fixture
def store(cluster):
    return open_sheepdog(cluster)


def read(store, uri, offset=0, length=None):
    with store.get(uri, offset, length).data as stream:
        return stream.read()


def bytes_of(size, seed=""):
    return hashlib.shake_128(f"{size} {seed}".encode()).digest(size)


def leftovers(cluster, image_id):
    """Everything in the cluster that has to do with this id but the image itself."""
    return [each for each in cluster.names() if image_id in f"{each[0]} {each[1]}" and each != (image_id, "", False)]


@contextlib.contextmanager
def switched(cluster, name):
    cluster.switch(name)
    try:
        yield
    finally:
        cluster.switch(name, on=False)


def in_small_parts(store, size=64 * KiB):
    """The store, whose images go and come in such parts."""
    plain_writer, plain_reader = store.open_writer, store.open_reader

    def open_writer(*arguments):
        made = plain_writer(*arguments)
        made.part_size = lambda number, known: size
        return made

    def open_reader(*arguments):
        made = plain_reader(*arguments)
        made.part_size = size
        return made

    store.open_writer, store.open_reader = open_writer, open_reader
    return store


def on_demand(cluster):
    """A store that reads no part before it is wanted."""
    return in_small_parts(open_sheepdog(cluster, sheepdog_store_concurrency=1))


def before(store, verb, action, times=1):
    """Do something just before each of the first commands with this verb; whether they run then is up to it."""
    plain, left = store.cluster.dog.call, [times]

    def call(name, *arguments, **options):
        if name == verb and left[0]:
            left[0] -= 1
            action()
        return plain(name, *arguments, **options)

    store.cluster.dog.call = call


def after(store, verb, action):
    """Do something just after the first command with this verb."""
    plain, left = store.cluster.dog.call, [1]

    def call(name, *arguments, **options):
        response = plain(name, *arguments, **options)
        if name == verb and left[0]:
            left[0] -= 1
            action()
        return response

    store.cluster.dog.call = call


@stand_in_only
@pytest.mark.parametrize(("address", "shown"), [("::1", "[::1]"), ("sheep.example.org", "sheep.example.org")])
def test_every_command_names_the_daemon(tmp_path, address, shown):
    cluster = Sheepdog(tmp_path / "sheep", address=address, port=7001)
    store = open_sheepdog(cluster)
    uri = store.add("image", b"some bytes").uri
    assert uri == f"sheepdog://{shown}:7001:image"
    assert read(store, uri) == b"some bytes"
    assert [info.uri for info in store.list_images()] == [uri]
    store.delete(uri)
    assert {tuple(call[2:6]) for call in cluster.calls()} == {("-a", address, "-p", "7001")}


@stand_in_only
def test_collie_is_used_where_there_is_no_dog(tmp_path, monkeypatch):
    cluster = Sheepdog(tmp_path / "sheep", name="collie")
    monkeypatch.setenv("PATH", str(Path(cluster.command).parent))
    store = open_store(SheepdogStore, "sheep")
    assert read(store, store.add("image", b"some bytes").uri) == b"some bytes"


@stand_in_only
def test_small_image_takes_these_commands(tmp_path):
    cluster = Sheepdog(tmp_path / "sheep")
    store = open_sheepdog(cluster, sheepdog_store_copies="2")
    store.add("image", b"some bytes", 10)
    temporary = cluster.calls()[1][-2]
    assert temporary.startswith("storelib/")
    [claim] = [call[-1] for call in cluster.calls() if call[1] == "setattr"]
    assert claim.split(" ")[0] == temporary.split("/")[1]
    assert claim.split(" ")[-1] == hashlib.sha512(b"some bytes").hexdigest()
    assert [[call[1], *call[6:]] for call in cluster.calls()] == [
        ["list", "-r", "image"],
        ["create", "-c", "2", temporary, "10"],
        ["write", temporary, "0", "10"],
        ["snapshot", "-s", "storelib", temporary],
        ["list", "-r", temporary],
        ["clone", "-s", "storelib", temporary, "image"],
        ["list", "-r", "image"],
        ["setattr", "-x", "image", "storelib-token", claim],
        ["delete", "-s", "storelib", temporary],
        ["delete", temporary],
        ["list", "-r", temporary],
    ]
    assert list_line(cluster, "image").split(" ")[8] == "2"


@stand_in_only
def test_reading_in_small_steps_takes_one_command(tmp_path):
    cluster = Sheepdog(tmp_path / "sheep")
    store = open_sheepdog(cluster)
    data = bytes_of(3 * MiB)
    uri = store.add("image", data).uri
    cluster.forget_calls()
    with store.get(uri).data as stream:
        steps = iter(lambda: stream.read(10_000), b"")
        assert b"".join(steps) == data
    assert [call[1] for call in cluster.calls()] == ["list", "getattr", "read", "getattr", "list"]


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("size", [0, 1, 4 * MiB - 1, 4 * MiB, 4 * MiB + 1, 8 * MiB, 8 * MiB + 1, 17 * MiB + 3])
def test_vdi_has_exactly_the_size_of_the_image(cluster, store, image_id, size, declared):
    data = bytes_of(size)
    pieces = (data[at : at + 100_000] for at in range(0, size, 100_000))
    stored = store.add(image_id, pieces, size if declared else None)
    assert size_in_list(cluster, image_id) == size
    assert cluster.run("read", image_id)[1] == data
    assert read(store, stored.uri) == data
    assert not leftovers(cluster, image_id)
    store.delete(stored.uri)


@stand_in_only
@pytest.mark.parametrize("shift", [20, 22, 25])
def test_objects_of_any_size_are_written_whole(tmp_path, shift):
    """Parts that share an object, and runs of data in one, are written one after the other."""
    store = in_small_parts(open_sheepdog(Sheepdog(tmp_path / "sheep", shift=shift)), MiB)
    holes = b"".join(bytes_of(70_000, str(at)) + bytes(130_000) for at in range(100))
    stored = store.add("image", holes)
    assert read(store, stored.uri) == holes


def test_holes_are_not_written(cluster, store, image_id):
    data = bytes_of(MiB) + bytes(64 * MiB) + bytes_of(MiB)
    stored = store.add(image_id, data)
    line = list_line(cluster, image_id).split(" ")
    assert int(line[4]) + int(line[5]) <= 16 * MiB
    assert read(store, stored.uri) == data
    store.delete(stored.uri)


# -- What others made -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["sheepdog://{}", "sheepdog://{address}:{port}:{}"])
def test_image_of_glance_store_is_read_and_deleted(cluster, store, image_id, form):
    Access(cluster).plant(image_id, b"planted")
    uri = form.format(image_id, address=cluster.address, port=cluster.port)
    assert read(store, uri) == b"planted"
    assert store.get_size(uri) == 7
    assert [info.size for info in store.list_images() if info.image_id == image_id] == [7]
    store.delete(uri)
    assert not cluster.run("list", "-r", image_id)[1]


def test_image_of_glance_store_is_not_overwritten(cluster, store, image_id):
    Access(cluster).plant(image_id, b"planted")
    with pytest.raises(Duplicate):
        store.add(image_id, b"another")
    assert cluster.run("read", image_id)[1] == b"planted"


def test_volumes_that_no_id_leads_to_are_not_listed(cluster, store, image_id):
    for name in (f"{image_id}/container", f"{image_id}/container/object", os.fsdecode(image_id.encode() + b"\xff")):
        cluster.run("create", name, "1")
    assert not [info for info in store.list_images() if image_id in info.uri]
    assert not store.gc(0, prefix=image_id)


def test_snapshot_of_an_image_is_not_the_image(cluster, store, image_id):
    uri = store.add(image_id, b"some bytes").uri
    cluster.run("snapshot", "-s", "somebody's", image_id)
    assert read(store, uri) == b"some bytes"
    assert len([info for info in store.list_images() if info.image_id == image_id]) == 1
    store.delete(uri)
    with pytest.raises(NotFound):
        store.get(uri)
    assert cluster.run("read", "-s", "somebody's", image_id)[1] == b"some bytes"
    assert store.add(image_id, b"again").size == 5


# -- Names that are used again -------------------------------------------------------------------------------


def delete_by_storelib(cluster, store, image_id):
    store.delete(f"sheepdog://{image_id}")


def delete_by_dog(cluster, store, image_id):
    cluster.run("delete", image_id)


DELETIONS = [delete_by_storelib, delete_by_dog]


@pytest.mark.parametrize("delete", DELETIONS)
def test_id_that_was_deleted_can_be_added_again(cluster, store, image_id, delete):
    """What the earlier image's add noted is still there."""
    for number in range(3):
        data = bytes_of(1000, str(number))
        assert read(store, store.add(image_id, data).uri) == data
        with pytest.raises(Duplicate):
            store.add(image_id, data)
        delete(cluster, store, image_id)
        with pytest.raises(NotFound):
            store.get(f"sheepdog://{image_id}")
    assert not leftovers(cluster, image_id)


@stand_in_only
@pytest.mark.parametrize("delete", DELETIONS)
@pytest.mark.parametrize("verb", ["list", "create", "write", "snapshot", "clone", "setattr", "getattr", "delete"])
def test_answer_lost_on_the_way_to_a_name_that_was_used_is_no_refusal(cluster, store, image_id, verb, delete):
    store.add(image_id, b"some bytes")
    delete(cluster, store, image_id)
    cluster.switch(f"lose-{verb}")
    assert read(store, store.add(image_id, b"some bytes").uri) == b"some bytes"
    cluster.switch(f"lose-{verb}", on=False)
    assert not leftovers(cluster, image_id)


@stand_in_only
@pytest.mark.parametrize("delete", DELETIONS)
@pytest.mark.parametrize("verb", ["clone", "setattr"])
def test_failed_add_of_a_name_that_was_used_takes_back_what_it_published(cluster, image_id, verb, delete):
    store = open_sheepdog(cluster, transfer_retries=0)
    store.add(image_id, b"some bytes")
    delete(cluster, store, image_id)
    cluster.switch(f"lose-{verb}")
    with pytest.raises(RemoteServiceUnavailable):
        store.add(image_id, b"some bytes")
    assert not cluster.run("list", "-r", image_id)[1]
    assert not leftovers(cluster, image_id)


@pytest.mark.parametrize("delete", DELETIONS)
def test_image_of_glance_store_under_a_name_that_was_used(cluster, store, image_id, delete):
    store.add(image_id, bytes_of(5 * MiB))
    delete(cluster, store, image_id)
    uri = Access(cluster).plant(image_id, b"planted")
    assert read(store, uri) == b"planted"
    with pytest.raises(Duplicate):
        store.add(image_id, b"planted")
    assert cluster.run("read", image_id)[1] == b"planted"
    store.delete(uri)
    assert not cluster.run("list", "-r", image_id)[1]


def test_image_replaced_by_somebody_else_is_an_error(cluster, store, image_id):
    """Dog leaves the note of the first image's add with the second image."""
    uri = store.add(image_id, bytes_of(600 * KiB, "one")).uri
    with on_demand(cluster).get(uri).data as stream:
        stream.read(10)
        cluster.run("delete", image_id)
        Access(cluster).plant(image_id, bytes_of(700 * KiB, "other"))
        with pytest.raises(ImageChanged):
            stream.read()


def test_add_whose_image_was_replaced_leaves_the_other_alone(cluster, store, image_id):
    made = store.open_writer(image_id, None, None)
    made.reserve(10)
    made.write(Part(0, 0, memoryview(b"some bytes")))
    made.commit(10, Digests(None, hashlib.sha512(b"some bytes").hexdigest()))
    store.delete(f"sheepdog://{image_id}")
    open_sheepdog(cluster).add(image_id, b"some bytes")
    made.abort()
    assert cluster.run("read", image_id)[1] == b"some bytes"


def test_id_of_the_longest_name_and_one_that_begins_alike(cluster, store, image_id):
    """Dog would cut longer names, and take one for the other."""
    long_id = image_id.ljust(255, "x")
    uri = store.add(long_id, b"some bytes").uri
    assert read(store, uri) == b"some bytes"
    assert not [each for each in cluster.names() if len(os.fsencode(each[0])) > 255 or len(os.fsencode(each[1])) > 255]
    copy = store.copy(uri, long_id[:254], digests=Digests(None, hashlib.sha512(b"some bytes").hexdigest()))
    assert read(store, copy.uri) == b"some bytes"
    for refused in (f"sheepdog://{long_id}y", uri + "y"):
        with pytest.raises(BadStoreUri):
            store.get(refused)
    with pytest.raises(Invalid):
        store.add(f"{long_id}y", b"some bytes")
    assert read(store, uri) == b"some bytes"
    store.delete(copy.uri)
    store.delete(uri)
    assert not leftovers(cluster, image_id)


def digest_of(store, uri):
    return store.open_reader(store.locate(uri), 0, None, None).digest


def test_digest_is_recorded_with_the_image_and_no_other(cluster, store, image_id):
    stored = store.add(image_id, b"some bytes", hashing_algo="sha256")
    digest = ("sha256", hashlib.sha256(b"some bytes").hexdigest())
    assert digest_of(store, stored.uri) == digest
    copy = store.copy(stored.uri, f"{image_id}-copy", digests=Digests(None, digest[1], "sha256"))
    assert digest_of(store, copy.uri) == digest_of(store, stored.uri) == digest
    cluster.run("delete", image_id)
    Access(cluster).plant(image_id, b"planted")
    assert digest_of(store, stored.uri) is None


# -- Adds that are alive and gc of others --------------------------------------------------------------------


def other_gc(cluster, image_id, by):
    """gc(0) of a second store object, here or in another process; returns how much it removed."""
    if by == "object":
        return len(open_sheepdog(cluster).gc(0, prefix=image_id))
    root = str(Path(__file__).parents[2])
    arguments = [root, cluster.command, cluster.address, str(cluster.port), image_id]
    return int(subprocess.run([sys.executable, "-c", GC, *arguments], capture_output=True, check=True).stdout)


GC = """
import sys
sys.path.insert(0, sys.argv[1])
from storelib.drivers.sheepdog import SheepdogStore
from storelib.registry import open_store
store = open_store(SheepdogStore, "sheep", sheepdog_store_command=sys.argv[2], sheepdog_store_address=sys.argv[3],
                   sheepdog_store_port=int(sys.argv[4]))
print(len(store.gc(0, prefix=sys.argv[5])))
"""


def check_add_whose_parts_go(cluster, store, image_id, data):
    """It fails, and nothing is left of it; or gc had come too late, and the image is whole."""
    with pytest.raises(StoreError) as caught:
        store.add(image_id, iter(data))
    assert not isinstance(caught.value, (NotFound, Duplicate))
    assert not caught.value.transient
    assert not cluster.run("list", "-r", image_id)[1]
    assert not leftovers(cluster, image_id)
    assert store.add(image_id, b"again").size == 5


@pytest.mark.parametrize(
    ("phase", "size", "by"),
    [
        *((phase, size, "object") for phase in ("create", "snapshot", "clone") for size in (0, 10, 300 * KiB)),
        ("write", 10, "object"),
        ("write", 300 * KiB, "object"),
        *((phase, 10, "process") for phase in ("create", "write", "snapshot", "clone")),
    ],
)
def test_add_whose_parts_gc_of_others_removes_fails(cluster, image_id, phase, size, by):
    store = in_small_parts(open_sheepdog(cluster))
    removed = []
    after(store, phase, lambda: removed.append(other_gc(cluster, image_id, by)))
    if phase == "clone":
        assert read(store, store.add(image_id, iter([bytes_of(size)])).uri) == bytes_of(size)
        assert not leftovers(cluster, image_id)
    else:
        check_add_whose_parts_go(cluster, store, image_id, [bytes_of(size)])
    assert removed == [1]


@stand_in_only
@pytest.mark.parametrize("phase", ["write", "snapshot"])
def test_add_whose_parts_are_deleted_by_half_fails(cluster, image_id, phase):
    """The objects are gone and the vdi is still there; new ones can be written, and all of it can be cloned."""
    store = in_small_parts(open_sheepdog(cluster))
    with ThreadPoolExecutor(1) as pool:
        collecting = []

        def collect():
            cluster.switch("deleting")
            collecting.append(pool.submit(other_gc, cluster, image_id, "object"))
            while not [vdi for vdi in store.cluster.vdis() if image_id in vdi.name and not vdi.stored]:
                time.sleep(0.01)

        after(store, phase, collect)
        before(store, "delete", lambda: cluster.switch("deleting", on=False))
        check_add_whose_parts_go(cluster, store, image_id, [bytes_of(300 * KiB)])
        collecting[0].result()


@stand_in_only
def test_copy_whose_snapshot_is_deleted_by_half_fails(cluster, store, image_id):
    original = store.add(image_id, bytes_of(300 * KiB))
    with ThreadPoolExecutor(1) as pool:
        collecting = []

        def collect():
            cluster.run("create", f"{image_id}-other", "1")
            cluster.switch("deleting")
            collecting.append(pool.submit(other_gc, cluster, f"{image_id}-copy", "object"))
            while not [vdi for vdi in store.cluster.vdis(image_id) if vdi.snapshot and not vdi.stored]:
                time.sleep(0.01)

        after(store, "snapshot", collect)
        before(store, "delete", lambda: cluster.switch("deleting", on=False))
        with pytest.raises(StoreError):
            store.copy(original.uri, f"{image_id}-copy", digests=digests_of(original))
        collecting[0].result()
    assert not cluster.run("list", "-r", f"{image_id}-copy")[1]
    assert read(store, original.uri) == bytes_of(300 * KiB)


# -- Silent hazards -------------------------------------------------------------------------------------------


def test_write_that_is_cut_is_an_error(store, vdi):
    with pytest.raises(CommandCut, match="left 6 bytes unread"):
        store.cluster.dog.call("write", vdi, "0", "16", data=memoryview(b"abcdefghijklmnop"))


def test_vdi_of_the_wrong_size_is_never_published(cluster, store, image_id):
    """It was made shorter or longer than the image: nothing that dog says would tell."""
    plain = store.open_writer

    def open_writer(*arguments):
        made = plain(*arguments)
        made.reserve = lambda end: type(made).reserve(made, end - 1) + 1
        return made

    store.open_writer = open_writer
    with pytest.raises(StoreError):
        store.add(image_id, b"some bytes", 10)
    assert not cluster.run("list", "-r", image_id)[1]
    assert not leftovers(cluster, image_id)


def test_stream_that_ends_early_is_an_error(cluster, store, image_id):
    """A vdi that is deleted is cut off; whether its last bytes had been on their way is chance."""
    data = bytes_of(6 * MiB)
    uri = store.add(image_id, data).uri
    with store.get(uri).data as stream:
        assert stream.read(1) == data[:1]
        cluster.run("delete", image_id)
        with pytest.raises(NotFound):
            stream.read()


def test_read_that_is_clipped_is_an_error(store, image_id):
    uri = store.add(image_id, b"some bytes").uri
    plain = store.cluster.existing
    store.cluster.existing = lambda location: plain(location)._replace(size=20)
    with store.get(uri).data as stream, pytest.raises(IncompleteRead):
        stream.read()


def test_vdi_of_another_size_than_the_image_is_not_published(cluster, store, image_id):
    made = store.open_writer(image_id, None, None)
    made.reserve(11)
    made.write(Part(0, 0, memoryview(b"some bytes")))
    with pytest.raises(StoreError, match="11 bytes instead of 10"):
        made.commit(10, Digests(None, hashlib.sha512(b"some bytes").hexdigest()))
    made.abort()
    assert not cluster.run("list", "-r", image_id)[1]


def test_image_that_became_shorter_is_an_error(cluster, store, image_id):
    data = bytes_of(900 * KiB)
    uri = store.add(image_id, data).uri
    with on_demand(cluster).get(uri).data as stream:
        assert stream.read(10) == data[:10]
        store.delete(uri)
        store.add(image_id, data[: 100 * KiB])
        with pytest.raises(ImageChanged):
            stream.read()


def test_image_that_was_replaced_is_an_error(cluster, store, image_id):
    """The other has the same name, size, and even vid; parts of both would make an image that never was."""
    uri = store.add(image_id, bytes_of(600 * KiB, "one")).uri
    with on_demand(cluster).get(uri).data as stream:
        stream.read(10)
        store.delete(uri)
        store.add(image_id, bytes_of(600 * KiB, "other"))
        with pytest.raises(ImageChanged):
            stream.read()


def test_image_of_glance_store_that_was_replaced_is_an_error(cluster, store, image_id):
    uri = Access(cluster).plant(image_id, bytes_of(600 * KiB, "one"))
    with on_demand(cluster).get(uri).data as stream:
        stream.read(10)
        cluster.run("delete", image_id)
        Access(cluster).plant(image_id, bytes_of(700 * KiB, "other"))
        with pytest.raises(ImageChanged):
            stream.read()


def test_deleting_what_is_not_there_is_not_found(store, image_id):
    with pytest.raises(NotFound):
        store.delete(f"sheepdog://{image_id}")


@stand_in_only
def test_delete_that_did_nothing_is_an_error(cluster, image_id):
    """Without a daemon ``dog vdi delete`` ends with 0."""
    store = open_sheepdog(cluster, transfer_retries=0)
    uri = store.add(image_id, b"some bytes").uri
    before(store, "delete", lambda: cluster.switch("dead"))
    plain = store.cluster.find
    store.cluster.find = lambda name: [cluster.switch("dead", on=False), plain(name)][1]
    with pytest.raises(RemoteServiceUnavailable, match="still there.*failed to connect"):
        store.delete(uri)
    assert cluster.run("read", image_id)[1] == b"some bytes"


@stand_in_only
def test_image_deleted_by_half_is_no_image_of_zeros(cluster, image_id):
    """Dog takes away the data, then the name; one that is killed in between leaves a vdi that reads as zeros."""
    store = open_sheepdog(cluster)
    uri = store.add(image_id, b"some bytes").uri
    with switched(cluster, "deleting"), pytest.raises(TransferTimeout):
        open_sheepdog(cluster, sheepdog_store_timeout=2).delete(uri)
    assert cluster.run("read", image_id)[1] == bytes(10)
    with pytest.raises(NotFound, match="not deleted to the end"):
        store.get(uri)
    store.delete(uri)
    assert store.add(image_id, b"again").size == 5


@stand_in_only
@pytest.mark.parametrize("by", ["storelib", "somebody"])
def test_zeros_of_an_image_that_is_being_deleted_are_an_error(cluster, store, image_id, by):
    data = bytes_of(3 * MiB)
    uri = store.add(image_id, data).uri if by == "storelib" else Access(cluster).plant(image_id, data)
    with store.get(uri).data as stream, switched(cluster, "deleting"):
        deleting = threading.Thread(target=lambda: cluster.run("delete", image_id))
        deleting.start()
        while list_line(cluster, image_id).split(" ")[4:6] != ["0", "0"]:
            time.sleep(0.01)
        with pytest.raises(ImageChanged):
            stream.read()
        cluster.switch("deleting", on=False)
        deleting.join()


def test_readers_of_an_image_that_is_deleted_get_it_whole_or_an_error(cluster, store, image_id):
    data = bytes_of(9 * MiB)
    uri = store.add(image_id, data).uri
    start = threading.Barrier(5)

    def get():
        with in_small_parts(open_sheepdog(cluster), MiB).get(uri).data as stream:
            first = stream.read(1)
            start.wait()
            try:
                return first + stream.read()
            except StoreError as error:
                return error

    with ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(get) for _ in range(4)]
        start.wait()
        store.delete(uri)
        results = [each.result() for each in reading]
    assert all(isinstance(each, StoreError) or each == data for each in results)


# -- Daemons that are stopped or not there --------------------------------------------------------------------

OPERATIONS = {
    "get": lambda store, uri: read(store, uri),
    "get_size": lambda store, uri: store.get_size(uri),
    "stat": lambda store, uri: store.stat(uri),
    "list": lambda store, uri: list(store.list_images()),
    "add": lambda store, uri: store.add("never-added", b"some bytes"),
    "delete": lambda store, uri: store.delete(uri),
    "copy": lambda store, uri: store.copy(uri, "never-copied", digests=Digests(None, "0" * 128)),
    "gc": lambda store, uri: store.gc(0),
    "check": lambda store, uri: store.check(),
}


def children():
    """Processes that this one started."""
    listing = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid=,comm="], capture_output=True, text=True)
    return [line.split() for line in listing.stdout.splitlines() if line.split()[1] != "ps"]


@stand_in_only
@pytest.mark.parametrize("operation", OPERATIONS)
def test_stopped_daemon_is_a_timeout_and_leaves_no_process(cluster, image_id, operation):
    uri = open_sheepdog(cluster).add(image_id, b"some bytes").uri
    store = open_sheepdog(cluster, sheepdog_store_timeout=0.4)
    older = children()
    started = time.monotonic()
    with switched(cluster, "stopped"), pytest.raises(TransferTimeout, match="sheepdog_store_timeout"):
        OPERATIONS[operation](store, uri)
    assert time.monotonic() - started < 20
    assert [each for each in children() if each not in older] == []


@stand_in_only
@pytest.mark.parametrize("operation", OPERATIONS)
def test_daemon_that_is_not_there_is_unavailable(cluster, image_id, operation):
    uri = open_sheepdog(cluster).add(image_id, b"some bytes").uri
    store = open_sheepdog(cluster, transfer_retries=0)
    with switched(cluster, "dead"), pytest.raises(RemoteServiceUnavailable, match="failed to connect") as caught:
        OPERATIONS[operation](store, uri)
    assert caught.value.transient
    assert "\n" not in str(caught.value)


def source_that(action, data):
    """The data in pieces, with ``action`` in the middle."""
    yield data[: len(data) // 2]
    action()
    yield data[len(data) // 2 :]


@stand_in_only
@pytest.mark.parametrize("switch", ["stopped", "dead"])
def test_add_goes_on_when_the_daemon_comes_back(cluster, image_id, switch):
    store = in_small_parts(open_sheepdog(cluster, transfer_retries=50))
    data = bytes_of(700 * KiB)
    back = threading.Timer(1.0, lambda: cluster.switch(switch, on=False))

    def go_away():
        cluster.switch(switch)
        back.start()

    stored = store.add(image_id, source_that(go_away, data))
    back.join()
    assert read(store, stored.uri) == data
    assert not leftovers(cluster, image_id)


@stand_in_only
@pytest.mark.parametrize("switch", ["stopped", "dead"])
def test_get_goes_on_when_the_daemon_comes_back(cluster, image_id, switch):
    store = open_sheepdog(cluster, transfer_retries=50)
    data = bytes_of(700 * KiB)
    uri = store.add(image_id, data).uri
    with in_small_parts(store).get(uri).data as stream:
        first = stream.read(100)
        back = threading.Timer(1.0, lambda: cluster.switch(switch, on=False))
        cluster.switch(switch)
        back.start()
        assert first + stream.read() == data
        back.join()


@stand_in_only
@pytest.mark.parametrize(("switch", "error"), [("stopped", TransferTimeout), ("dead", RemoteServiceUnavailable)])
def test_add_that_lost_its_daemon_publishes_nothing(cluster, image_id, switch, error):
    store = in_small_parts(open_sheepdog(cluster, transfer_retries=1, sheepdog_store_timeout=2))
    with pytest.raises(error):
        store.add(image_id, source_that(lambda: cluster.switch(switch), bytes_of(700 * KiB)))
    cluster.switch(switch, on=False)
    assert not cluster.run("list", "-r", image_id)[1]
    # What could not be removed then, gc removes now.
    assert {item.image_id for item in open_sheepdog(cluster).gc(0, prefix=image_id)} == {image_id}
    assert not leftovers(cluster, image_id)


@stand_in_only
def test_cluster_without_room_is_storage_full(cluster, store, image_id):
    with switched(cluster, "full"), pytest.raises(StorageFull, match="no space for new objects"):
        store.add(image_id, b"some bytes")
    assert not leftovers(cluster, image_id)


def test_image_too_large_for_a_vdi_is_storage_full(cluster, store, image_id):
    with pytest.raises(StorageFull):
        in_small_parts(store).add(image_id, iter([bytes_of(100 * KiB)]), 5 << 40)
    assert not leftovers(cluster, image_id)


@stand_in_only
def test_check_does_what_adds_do(cluster, store):
    before_it = cluster.names()
    cluster.forget_calls()
    assert "answers" in store.check().detail
    assert cluster.names() == before_it
    used = {call[1] for call in cluster.calls()}
    assert used == {"list", "create", "write", "snapshot", "clone", "setattr", "getattr", "read", "delete"}
    with switched(cluster, "full"), pytest.raises(StorageFull):
        store.check()
    assert cluster.names() == before_it


@stand_in_only
@pytest.mark.parametrize(("switch", "options"), [("dead", {}), ("lose-create", {"sheepdog_store_copies": "2"})])
def test_check_names_the_options_that_may_help(cluster, switch, options):
    store = open_sheepdog(cluster, transfer_retries=0, **options)
    words = ["sheepdog_store_address", "sheepdog_store_port", *options]
    with switched(cluster, switch), pytest.raises(RemoteServiceUnavailable, match=", ".join(words) + "$"):
        store.check()
    store.gc(0, prefix="storelib-check-")


@stand_in_only
def test_gc_of_one_id_is_one_list(cluster, store, image_id):
    store.add(f"{image_id}-other", b"data")
    cluster.forget_calls()
    assert store.gc(0, prefix=f"{image_id}-dead") == []
    assert [call[1] for call in cluster.calls()] == ["list"]


@stand_in_only
def test_check_of_a_store_that_is_read_only_writes_nothing(cluster):
    store = open_sheepdog(cluster, read_only=True)
    cluster.forget_calls()
    with switched(cluster, "full"):
        store.check()
    assert {call[1] for call in cluster.calls()} == {"list"}


@stand_in_only
def test_command_is_given_no_more_time_than_transfers(cluster, image_id):
    store = open_sheepdog(cluster, transfer_timeout=0.4)
    started = time.monotonic()
    with switched(cluster, "stopped"), pytest.raises(TransferTimeout):
        store.get_size(f"sheepdog://{image_id}")
    assert time.monotonic() - started < 10


# -- Lost answers ---------------------------------------------------------------------------------------------


@stand_in_only
@pytest.mark.parametrize("size", [10, 300 * KiB])
@pytest.mark.parametrize("verb", ["list", "create", "write", "resize", "snapshot", "clone", "setattr", "delete"])
def test_step_whose_answer_was_lost_is_done_again_without_harm(cluster, image_id, verb, size):
    store = in_small_parts(open_sheepdog(cluster))
    data = bytes_of(size)
    cluster.switch(f"lose-{verb}")
    stored = store.add(image_id, iter([data]))
    assert read(store, stored.uri) == data
    assert not leftovers(cluster, image_id)
    cluster.switch(f"lose-{verb}", on=False)
    with pytest.raises(Duplicate):
        store.add(image_id, data)


@stand_in_only
@pytest.mark.parametrize("verb", ["list", "getattr", "setattr", "delete"])
def test_delete_whose_answer_was_lost_is_done_again_without_harm(cluster, store, image_id, verb):
    uri = store.add(image_id, b"some bytes").uri
    cluster.switch(f"lose-{verb}")
    store.delete(uri)
    cluster.switch(f"lose-{verb}", on=False)
    assert not cluster.run("list", "-r", image_id)[1]


def test_delete_whose_listing_was_lost_spares_what_came_after(cluster, store, image_id):
    """The delete is done, and in the same second the id is added again: vdis have names only."""
    uri = store.add(image_id, b"some bytes").uri
    other = open_sheepdog(cluster)

    def lose():
        other.add(image_id, b"some words")
        raise CommandFailed(("list",), 1, "failed to connect to 127.0.0.1:7000: Connection refused")

    after(store, "delete", lambda: before(store, "list", lose))
    store.delete(uri)
    assert read(other, uri) == b"some words"


def test_delete_that_was_not_made_and_not_listed_is_made_again(cluster, store, image_id):
    uri = store.add(image_id, b"some bytes").uri
    plain, deletes = store.cluster.dog.call, []

    def lose():
        raise CommandFailed(("list",), 1, "failed to connect to 127.0.0.1:7000: Connection refused")

    def call(name, *arguments, **options):
        if name == "delete" and not deletes:
            deletes.append(name)
            before(store, "list", lose)
            return b"", ""
        return plain(name, *arguments, **options)

    store.cluster.dog.call = call
    store.delete(uri)
    assert deletes
    assert not cluster.run("list", "-r", image_id)[1]


def lost(store, cluster, others=b"", token=None):
    """The first clone's answer is lost; before that another client had made an image of the name."""

    def lose():
        if others:
            name = store.dog_name
            Access(cluster).plant(name, others)
            if token:
                cluster.run("setattr", name, "storelib-token", token)
        raise CommandFailed(("clone",), 1, "failed to connect to 127.0.0.1:7000: Connection refused")

    before(store, "clone", lose)


@pytest.mark.parametrize(("others", "token"), [(b"other bytes", None), (b"some bytes", "f" * 16), (b"", None)])
def test_image_of_somebody_else_is_not_taken_for_ones_own(cluster, store, image_id, others, token):
    store.dog_name = image_id
    lost(store, cluster, others, token)
    if not others:
        assert read(store, store.add(image_id, b"some bytes").uri) == b"some bytes"
        return
    with pytest.raises(Duplicate):
        store.add(image_id, b"some bytes")
    assert cluster.run("read", image_id)[1] == others
    assert not leftovers(cluster, image_id)


@stand_in_only
def test_add_that_fails_after_its_clone_was_made_takes_it_back(cluster, image_id):
    store = open_sheepdog(cluster, transfer_retries=0)
    cluster.switch("lose-clone")
    with pytest.raises(RemoteServiceUnavailable):
        store.add(image_id, b"some bytes")
    assert not cluster.run("list", "-r", image_id)[1]
    assert not leftovers(cluster, image_id)


def test_commit_is_taken_back_in_as_many_attempts_as_it_takes(cluster, store, image_id):
    made = store.open_writer(image_id, None, None)
    made.reserve(10)
    made.write(Part(0, 0, memoryview(b"some bytes")))
    made.commit(10, Digests(None, hashlib.sha512(b"some bytes").hexdigest()))

    def fail():
        raise CommandFailed(("delete",), 1, "failed to connect to 127.0.0.1:7000: Connection refused")

    before(store, "delete", fail)
    with pytest.raises(CommandFailed):
        made.abort()
    made.abort()
    assert not cluster.run("list", "-r", image_id)[1]
    made.abort()


@stand_in_only
def test_image_is_stored_even_if_its_leftovers_cannot_be_removed(cluster, image_id):
    store = open_sheepdog(cluster, transfer_retries=0)
    before(store, "delete", lambda: cluster.switch("dead"))
    stored = store.add(image_id, b"some bytes")
    cluster.switch("dead", on=False)
    assert read(store, stored.uri) == b"some bytes"
    assert {item.image_id for item in store.gc(0, prefix=image_id)} == {image_id}
    assert read(store, stored.uri) == b"some bytes"
    assert not leftovers(cluster, image_id)


# -- Processes ------------------------------------------------------------------------------------------------

CHILD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from storelib.drivers.sheepdog import SheepdogStore
from storelib.exceptions import Duplicate
from storelib.registry import open_store

command, address, port, image_id, mode = sys.argv[2:]
store = open_store(SheepdogStore, "sheep", sheepdog_store_command=command, sheepdog_store_address=address,
                   sheepdog_store_port=int(port), sheepdog_store_chunk_size=1)
seed = sys.stdin.readline().encode()

def source():
    for number in range(5):
        yield (seed * (1 << 20))[: 1 << 20]
        if mode == "slow":
            print("going", flush=True)
            time.sleep(0.5)

try:
    print(store.add(image_id, source()).multihash, flush=True)
except Duplicate:
    print("Duplicate", flush=True)
"""


def start_child(cluster, image_id, mode):
    root = str(Path(__file__).parents[2])
    arguments = [root, cluster.command, cluster.address, str(cluster.port), image_id, mode]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_leftovers_of_a_killed_process_are_collected(cluster, store, image_id):
    with start_child(cluster, image_id, "slow") as child:
        child.stdin.write("seed\n")
        child.stdin.flush()
        for _ in range(3):
            assert child.stdout.readline() == "going\n"
        child.send_signal(signal.SIGKILL)
    assert leftovers(cluster, image_id)
    assert not cluster.run("list", "-r", image_id)[1]
    assert not store.gc(3600, prefix=image_id)
    [garbage] = store.gc(0, prefix=image_id)
    assert garbage.image_id == image_id
    assert garbage.size > 0
    assert not leftovers(cluster, image_id)


def test_one_of_several_processes_wins(cluster, store, image_id):
    racers = [start_child(cluster, image_id, "fast") for _ in range(3)]
    for number, racer in enumerate(racers):
        racer.stdin.write(f"racer {number}\n")
        racer.stdin.flush()
    responses = sorted(racer.communicate(timeout=60)[0].strip() for racer in racers)
    assert responses[1:] == ["Duplicate", "Duplicate"] or responses[:2] == ["Duplicate", "Duplicate"]
    won = next(response for response in responses if response != "Duplicate")
    assert hashlib.sha512(cluster.run("read", image_id)[1]).hexdigest() == won
    assert not leftovers(cluster, image_id)


def test_many_adds_at_once(cluster, store, image_id):
    def add(number):
        data = bytes_of(100 * KiB + number)
        return read(store, store.add(f"{image_id}-{number}", data).uri) == data

    with ThreadPoolExecutor(24) as pool:
        assert all(pool.map(add, range(24)))
    assert len([info for info in store.list_images() if (info.image_id or "").startswith(image_id)]) == 24
    assert not [each for each in leftovers(cluster, image_id) if each[0].startswith("storelib/")]


# -- Looking after leftovers ----------------------------------------------------------------------------------


def crash(store, image_id):
    """What an add leaves that dies after its first part."""
    made = store.open_writer(image_id, None, None)
    made.reserve(10)
    made.write(Part(0, 0, memoryview(b"some bytes")))


def test_leftover_of_an_id_too_long_for_its_name_is_collected(cluster, store, image_id):
    long_id = image_id.ljust(254, "x") + "y"
    crash(store, long_id)
    assert not store.gc(0, prefix="another")
    [garbage] = store.gc(0, prefix=image_id)
    assert garbage.image_id is None
    assert not leftovers(cluster, image_id)


@pytest.mark.parametrize("until", ["snapshot", "clone"])
def test_leftovers_of_each_step_are_collected_and_images_stay(cluster, store, image_id, until):
    crash(store, image_id)
    [(name, _, _)] = leftovers(cluster, image_id)
    cluster.run("snapshot", "-s", "storelib", name)
    if until == "clone":
        cluster.run("clone", "-s", "storelib", name, image_id)
    [garbage] = store.gc(0, prefix=image_id)
    assert garbage.name == name
    assert not leftovers(cluster, image_id)
    if until == "clone":
        assert read(store, f"sheepdog://{image_id}") == b"some bytes"


def test_add_notes_that_it_is_alive(cluster, store, image_id, monkeypatch):
    """The cluster knows when a vdi was made, not when it was written to."""
    monkeypatch.setattr(writer, "TOUCH", -1)
    crash(store, image_id)
    [(name, _, _)] = leftovers(cluster, image_id)
    touched = cluster.run("getattr", name, "storelib-touched")[1]
    assert abs(int(touched) - time.time()) < 60
    cluster.run("setattr", name, "storelib-touched", str(int(time.time()) + 3600))
    assert not list(store.find_garbage(0, image_id))
    cluster.run("setattr", name, "storelib-touched", "0")
    assert store.gc(0, prefix=image_id)


def test_add_under_way_is_no_leftover(store, image_id):
    found = []

    def source():
        yield bytes_of(100 * KiB)
        time.sleep(0.3)
        found.extend(store.find_garbage(0, image_id))
        yield b"the end"

    in_small_parts(store).add(image_id, source())
    assert not found


def test_leftover_that_was_touched_since_it_was_found_stays(cluster, store, image_id):
    crash(store, image_id)
    [garbage] = store.find_garbage(0, image_id)
    cluster.run("setattr", garbage.name, "storelib-touched", str(int(time.time()) + 3600))
    assert not store.discard(garbage)
    cluster.run("setattr", "-d", garbage.name, "storelib-touched")
    assert store.discard(garbage)
    assert not store.discard(garbage)


# -- Copies ---------------------------------------------------------------------------------------------------


def digests_of(stored):
    return Digests(stored.checksum, stored.multihash)


def test_copy_leaves_its_source_as_it_was(cluster, store, image_id):
    original = store.add(image_id, bytes_of(5 * MiB))
    token = cluster.run("getattr", image_id, "storelib-token")[1].split(b" ")[0]
    copy = store.copy(original.uri, f"{image_id}-copy", digests=digests_of(original))
    assert token
    assert cluster.run("getattr", image_id, "storelib-token")[1].split(b" ")[0] == token
    assert [each for each in cluster.names() if each[0].startswith((image_id, "storelib/"))] == [
        (image_id, "", False),
        (f"{image_id}-copy", "", False),
    ] or not leftovers(cluster, f"{image_id}-copy")
    store.delete(original.uri)
    assert read(store, copy.uri) == bytes_of(5 * MiB)


def test_readers_of_the_source_of_a_copy_go_on(store, image_id):
    data = bytes_of(300 * KiB) + bytes(300 * KiB) + bytes_of(300 * KiB)
    original = store.add(image_id, data)
    with in_small_parts(store).get(original.uri).data as stream:
        first = stream.read(100)
        store.copy(original.uri, f"{image_id}-copy", digests=digests_of(original))
        assert first + stream.read() == data


def test_readers_of_the_source_of_a_copy_wait_for_its_token(cluster, image_id):
    """Between the snapshot and the next command nothing tells the image from another."""
    store = open_sheepdog(cluster, transfer_retries=50)
    data = bytes_of(900 * KiB)
    original = store.add(image_id, data)
    with in_small_parts(open_sheepdog(cluster, transfer_retries=50)).get(original.uri).data as stream:
        first = stream.read(100)
        with ThreadPoolExecutor(1) as pool:
            reading = []

            def read_now():
                reading.append(pool.submit(stream.read))
                time.sleep(0.5)

            before(store, "setattr", read_now)
            store.copy(original.uri, f"{image_id}-copy", digests=digests_of(original))
            assert first + reading[0].result() == data


@stand_in_only
@pytest.mark.parametrize("verb", ["list", "getattr", "snapshot", "clone", "setattr", "delete"])
def test_copy_that_loses_an_answer_succeeds(cluster, store, image_id, verb):
    original = store.add(image_id, b"some bytes")
    cluster.switch(f"lose-{verb}")
    copy = store.copy(original.uri, f"{image_id}-copy", digests=digests_of(original))
    cluster.switch(f"lose-{verb}", on=False)
    assert read(store, copy.uri) == read(store, original.uri) == b"some bytes"
    assert not [each for each in cluster.names() if each[0] == image_id and each[2]]


def test_snapshot_that_a_dead_copy_left_is_collected(cluster, store, image_id):
    uri = store.add(image_id, b"some bytes").uri
    tag = f"storelib/0123456789abcdef/{image_id} copy 22"
    cluster.run("snapshot", "-s", tag, image_id)
    [garbage] = store.gc(0, prefix=f"{image_id} copy")
    assert garbage.image_id == f"{image_id} copy 22"
    assert (image_id, tag, True) not in cluster.names()
    assert read(store, uri) == b"some bytes"


def test_cancelled_copy_leaves_nothing(cluster, store, image_id):
    original = store.add(image_id, b"some bytes")

    def cancel(done, total):
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.copy(original.uri, f"{image_id}-copy", digests=digests_of(original), progress=cancel)
    assert not cluster.run("list", "-r", f"{image_id}-copy")[1]
    assert not [each for each in cluster.names() if each[0] == image_id and each[2]]

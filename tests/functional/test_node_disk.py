# SPDX-License-Identifier: Apache-2.0
"""What agents do on the disks of nodes: budgets, pinned images, full disks, nova's cache, and nodes that mean harm."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import subprocess
import sys
import time

import pytest
from servers import mounts
from servers.node import Node, wait_until
from servers.preload_api import Authority, Known, Preload, PreloadApi

from storelib.node import certificates
from storelib.node.engine import Address, Part
from storelib.node.options import Settings
from storelib.node.swarm import Swarm

MiB = 1024 * 1024
IDS = [f"6f9e0a5c-5a5f-4c9c-9d0b-5d3b2a4f000{number}" for number in range(4)]
DATA = [random.Random(number).randbytes(2 * MiB + 100 + number) for number in range(4)]
#: Room for two of them.
TWO = "budget = 5M"


@pytest.fixture
def api():
    with PreloadApi() as server:
        yield server


@pytest.fixture
def nodes(tmp_path):
    """Makes nodes; their agents are killed at the end."""
    made = []

    def make(api, number, directory=tmp_path, **options):
        made.append(Node(directory, number, api.url, "let me in", **options))
        return made[-1]

    yield make
    for node in made:
        node.kill()
        # Shown where a test failed.
        sys.stdout.write(f"{node.name}: {node.log()}")


def want(api, *numbers, **more):
    for number in numbers:
        api.jobs.append(Preload(f"p{number}", IDS[number], DATA[number], dict(more)))


def await_ready(api, *numbers, name="n1"):
    wait_until(lambda: all(api.state(name, f"p{number}") == "ready" for number in numbers))


def no_longer_want(api, node, *numbers):
    api.jobs[:] = [job for job in api.jobs if int(job.id[1:]) not in numbers]
    left = len(api.jobs)
    wait_until(lambda: len(api.node(node.name).said["states"]) == left)


def touch(node, number, ago):
    """Have an image look as if it was used so many seconds ago."""
    os.utime(node.path(IDS[number]), (time.time() - ago, time.time() - ago))


def test_the_least_recently_used_image_makes_room(api, nodes):
    node = nodes(api, 1, more=TWO).start()
    want(api, 0, 1)
    await_ready(api, 0, 1)
    no_longer_want(api, node, 0, 1)
    touch(node, 0, 100)
    touch(node, 1, 200)

    want(api, 2)
    await_ready(api, 2)

    assert node.has(IDS[0], DATA[0])
    assert node.has(IDS[2], DATA[2])
    assert not any(IDS[1] in name for name in node.files())


@pytest.mark.parametrize("by", ["configuration", "job"])
def test_pinned_images_never_make_room(api, nodes, by):
    pinned = f"\npinned = {IDS[0]}, {IDS[1]}" if by == "configuration" else ""
    node = nodes(api, 1, more=TWO + pinned).start()
    want(api, 0, 1, pinned=by == "job")
    await_ready(api, 0, 1)
    if by == "configuration":
        no_longer_want(api, node, 0, 1)

    want(api, 2)
    wait_until(lambda: api.state("n1", "p2") == "failed")

    assert "no room" in api.reason("n1", "p2")
    assert node.has(IDS[0], DATA[0])
    assert node.has(IDS[1], DATA[1])
    assert not any(IDS[2] in name for name in os.listdir(node.target))


def test_an_image_is_pinned_as_long_as_one_job_says_so(api, nodes):
    node = nodes(api, 1, more=TWO).start()
    want(api, 0, pinned=True)
    want(api, 1)
    # Another job for the same image, that does not.
    api.jobs.append(Preload("p9", IDS[0], DATA[0]))
    await_ready(api, 0, 1, 9)
    touch(node, 0, 1000)

    want(api, 2)
    await_ready(api, 2)
    assert node.has(IDS[0], DATA[0])
    assert not node.path(IDS[1]).exists()

    no_longer_want(api, node, 0, 1, 9)
    assert node.has(IDS[0], DATA[0])
    want(api, 3)
    await_ready(api, 3)
    assert not node.path(IDS[0]).exists()
    assert node.has(IDS[2], DATA[2])


def test_an_image_that_made_room_although_a_job_wants_it_is_not_fetched_again_and_again(api, nodes):
    node = nodes(api, 1, more=TWO).start()
    want(api, 0, 1)
    await_ready(api, 0, 1)
    touch(node, 1, 1000)

    want(api, 2)
    await_ready(api, 2)

    wait_until(lambda: api.state("n1", "p1") == "failed")
    assert "make room" in api.reason("n1", "p1")
    sent = api.bytes_sent
    beats = api.node("n1").said["time"]
    wait_until(lambda: api.node("n1").said["time"] > beats + 2)
    assert api.bytes_sent == sent
    assert node.has(IDS[0], DATA[0])


def test_a_full_disk_fails_the_image_and_nothing_else(api, nodes, tmp_path):
    with mounts.tmpfs(tmp_path / "small", 4 * MiB) as small:
        node = nodes(api, 1, directory=small).start()
        # Another program's file comes when the room was counted.
        api.sources = 0
        want(api, 0)
        wait_until(lambda: api.state("n1", "p0") == "fetching")
        other = small / "other"
        other.write_bytes(bytes(5 * MiB // 2))
        api.sources = 1
        wait_until(lambda: api.state("n1", "p0") == "failed")
        assert not node.path(IDS[0]).exists()

        other.unlink()
        await_ready(api, 0)

        assert node.has(IDS[0], DATA[0])
        node.stop()


def test_an_image_that_cannot_fit_is_not_begun(api, nodes):
    node = nodes(api, 1, more="budget = 1M").start()
    want(api, 0)

    wait_until(lambda: api.state("n1", "p0") == "failed")

    assert "no room" in api.reason("n1", "p0")
    assert api.bytes_sent == 0
    assert node.stop() == 0


def test_nova_finds_a_raw_disk_where_it_looks(api, nodes, tmp_path):
    (tmp_path / "disk.raw").write_bytes(DATA[0] + bytes(MiB - 100))
    command = ["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"]
    subprocess.run(command, cwd=tmp_path, check=True)
    raw = (tmp_path / "disk.raw").read_bytes()
    more = f"layout = nova\nconvert_to_raw = true\nowner = {os.getuid()}:12345\nmode = 0640"
    node = nodes(api, 1, more=more, target="_base").start()
    qcow2 = (tmp_path / "disk.qcow2").read_bytes()
    api.jobs.append(Preload("p0", IDS[0], qcow2, {"disk_format": "qcow2", "virtual_size": len(raw)}))

    await_ready(api, 0)

    assert node.has(IDS[0], raw)
    status = node.path(IDS[0]).stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o640, os.getuid(), 12345)
    # The qcow2 is what others are served.
    other = nodes(api, 2, more="layout = nova", target="_base")
    api.sources = 0
    other.start()
    wait_until(lambda: other.has(IDS[0], qcow2))

    api.drop.append(IDS[0])
    api.jobs.clear()
    wait_until(lambda: not node.files() and not other.files())


def test_a_file_on_which_an_instance_stands_stays(api, nodes):
    node = nodes(api, 1, more="layout = nova", target="_base").start()
    want(api, 0)
    await_ready(api, 0)
    instance = node.directory / "instance-1"
    instance.mkdir()
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(node.path(IDS[0])), "-F", "raw", "disk"]
    subprocess.run(command, cwd=instance, check=True)

    api.drop.append(IDS[0])
    api.jobs.clear()
    wait_until(lambda: not os.listdir(node.directory / "state" / "images"))

    assert node.has(IDS[0], DATA[0])


def test_a_file_that_nova_made_itself_stays(api, nodes):
    node = nodes(api, 1, more="layout = nova", target="_base")
    node.target.mkdir()
    node.path(IDS[0]).write_bytes(b"nova's")
    node.start()
    want(api, 0)
    await_ready(api, 0)
    assert node.path(IDS[0]).read_bytes() == b"nova's"

    api.drop.append(IDS[0])
    api.jobs.clear()
    wait_until(lambda: not os.listdir(node.directory / "state" / "images"))

    assert node.path(IDS[0]).read_bytes() == b"nova's"


def test_nova_does_not_clean_a_pinned_image_away(api, nodes):
    node = nodes(api, 1, more=f"layout = nova\npinned = {IDS[0]}", target="_base").start()
    want(api, 0, 1)
    await_ready(api, 0, 1)
    touch(node, 0, 86400)
    touch(node, 1, 86400)

    wait_until(lambda: node.path(IDS[0]).stat().st_mtime > time.time() - 3600)

    assert node.path(IDS[1]).stat().st_mtime < time.time() - 80000
    # What its cleaner did remove comes again from what is on disk, as long as a job wants it.
    sent = api.bytes_sent
    node.path(IDS[1]).unlink()
    wait_until(lambda: node.has(IDS[1], DATA[1]))
    assert api.bytes_sent == sent


def test_an_image_that_was_removed_and_that_nobody_wants_is_forgotten(api, nodes):
    node = nodes(api, 1).start()
    want(api, 0)
    await_ready(api, 0)
    no_longer_want(api, node, 0)

    node.path(IDS[0]).unlink()

    wait_until(lambda: not node.files())
    wait_until(lambda: api.node("n1").said["holds"] == [])


def test_a_published_image_has_no_second_copy_on_disk(api, nodes):
    node = nodes(api, 1).start()
    want(api, 0)
    await_ready(api, 0)

    assert node.path(IDS[0]).stat().st_nlink == 2
    assert api.node("n1").said["used"] < 3 * MiB


def test_what_a_kill_left_of_no_image_is_removed(api, nodes):
    node = nodes(api, 1)
    left = node.directory / "state" / "images" / IDS[3]
    left.mkdir(parents=True)
    (left / "data").write_bytes(b"half")

    node.start()

    wait_until(lambda: not left.exists())


@pytest.fixture
def swarms(tmp_path):
    """Makes peers that are no agents, each at an address of its own; ``data`` is what they say they have."""
    made = []

    def make(job, number, authority, data):
        place = tmp_path / f"peer{number}"
        place.mkdir()
        (place / "data").write_bytes(data or bytes(len(job.data)))
        host = f"127.0.2.{number}"
        node = Node(tmp_path / "others", 200 + number, "http://127.0.0.1:1")
        values = {field.name: None for field in dataclasses.fields(Settings)}
        values |= {"bind": host, "port": node.port, "down_limit": 0, "up_limit": 0}
        swarm = Swarm(Settings(**values))
        made.append(swarm)
        key = certificates.new_key()
        certificate = authority.certificate(certificates.request(key, "peer", job.image))
        have = [bool(data)] * job.pieces.count
        swarm.add(Part(job.id, job.torrent, place / "data", have, key, certificate))
        return swarm, Address(host, node.port)

    yield make
    for swarm in made:
        swarm.close()


def test_a_peer_that_sends_wrong_parts_is_banned_and_reported(api, nodes, swarms):
    want(api, 0)
    job, api.sources = api.jobs[0], 0
    _, place = swarms(job, 1, job.authority, b"wrong" + DATA[0][5:])
    said = {"address": place.host, "port": place.port, "states": []}
    api.nodes["evil"] = Known("evil", "evil", "", said)
    node = nodes(api, 1).start()

    wait_until(lambda: api.bad_peers)
    assert api.bad_peers[0] == {"preload": "p0", "address": place.host, "port": place.port}
    assert not node.path(IDS[0]).exists()

    api.sources = 2
    wait_until(lambda: node.has(IDS[0], DATA[0]))


def test_a_stranger_gets_nothing(api, nodes, swarms):
    want(api, 0)
    job = api.jobs[0]
    node = nodes(api, 1).start()
    await_ready(api, 0)
    stranger, _ = swarms(job, 1, Authority(), None)
    friend, _ = swarms(job, 2, job.authority, None)

    def friend_has_all():
        for swarm in (stranger, friend):
            swarm.poll()
            swarm.meet("p0", [Address(node.host, node.port)])
        return friend.progress("p0").done == len(DATA[0])

    wait_until(friend_has_all)

    assert stranger.progress("p0").done == 0


def test_the_directories_have_to_be_in_one_file_system(api, nodes, tmp_path):
    with mounts.tmpfs(tmp_path / "other", MiB) as other:
        node = nodes(api, 1)
        node.configure("let me in", directory=str(node.directory), target="../other")
        shutil.rmtree(node.target, ignore_errors=True)
        del other

        node.start(await_it=False)

        assert node.wait() == 2
        assert "file system" in node.log()

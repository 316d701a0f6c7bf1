# SPDX-License-Identifier: Apache-2.0
"""Agents as real processes, against a server that speaks their protocol and can lie as the image API never does."""

from __future__ import annotations

import random
import sys
import time

import pytest
from servers.node import Node, wait_until
from servers.preload_api import Preload, PreloadApi

MiB = 1024 * 1024
IMAGE, OTHER = "6f9e0a5c-5a5f-4c9c-9d0b-5d3b2a4f0001", "6f9e0a5c-5a5f-4c9c-9d0b-5d3b2a4f0002"
#: Random bytes, then zeros, then an end that fills no piece.
DATA = random.Random(1).randbytes(3 * MiB) + bytes(4 * MiB) + b"the end"
MORE_DATA = random.Random(2).randbytes(2 * MiB + 5)


@pytest.fixture
def api():
    with PreloadApi() as server:
        yield server


@pytest.fixture
def nodes(tmp_path):
    """Makes nodes; their agents are killed at the end."""
    made = []

    def make(api, number, **options):
        made.append(Node(tmp_path, number, api.url, "let me in", **options))
        return made[-1]

    yield make
    for node in made:
        node.kill()
        # Shown where a test failed.
        sys.stdout.write(f"{node.name}: {node.log()}")


def start(nodes, **options):
    """Start their agents at once."""
    for node in nodes:
        node.start(await_it=False, **options)
    for node in nodes:
        node.await_start()
    return nodes


def all_have(nodes, image=IMAGE, data=DATA):
    return all(node.has(image, data) for node in nodes)


def test_nodes_fetch_an_image_from_each_other(api, nodes):
    api.jobs.append(Preload("p1", IMAGE, DATA))
    started = start([nodes(api, number) for number in (1, 2, 3, 4)])

    wait_until(lambda: all_have(started))

    wait_until(lambda: all(api.state(node.name, "p1") == "ready" for node in started))
    # The zeros came from nowhere, and at least one node had nothing from the API.
    assert api.bytes_sent < 3 * 4 * MiB
    # libtorrent joins two pieces beside each other now and then.
    assert api.largest_range <= 2 * MiB
    for node in started:
        # Of what comes between two looks nobody knows for certain from whom, but all of it is counted.
        told = api.node(node.name).state("p1")
        assert told["from_source"] + told["from_peers"] >= 3 * MiB
        assert node.path(IMAGE).stat().st_blocks * 512 < 4 * MiB
        assert api.node(node.name).said["holds"] == [IMAGE]


def test_a_node_without_libtorrent_fetches_from_the_api_alone_and_says_so(api, nodes):
    api.jobs.append(Preload("p1", IMAGE, DATA))
    node = nodes(api, 1).start(libtorrent=False)

    wait_until(lambda: node.has(IMAGE, DATA))
    wait_until(lambda: api.state("n1", "p1") == "ready")

    assert api.bytes_sent == 3 * MiB + len(b"the end")
    assert api.largest_range == MiB
    assert api.node("n1").said["port"] == 0
    assert "libtorrent is not installed" in node.log()
    assert api.node("n1").state("p1")["from_source"] == api.bytes_sent


def test_a_node_without_libtorrent_waits_for_its_turn(api, nodes):
    api.sources = 0
    api.jobs += [Preload("p1", IMAGE, DATA), Preload("p2", OTHER, MORE_DATA)]
    node = nodes(api, 1).start(libtorrent=False)
    wait_until(lambda: api.state("n1", "p1") == api.state("n1", "p2") == "fetching")
    assert api.bytes_sent == 0
    assert "libtorrent is not installed" in api.reason("n1", "p1")

    api.sources = 1

    wait_until(lambda: node.has(IMAGE, DATA) and node.has(OTHER, MORE_DATA))


def test_a_node_whose_clock_is_wrong_fetches_from_the_api_alone(api, nodes):
    api.off_by, api.sources = 86400.0, 0
    api.jobs.append(Preload("p1", IMAGE, DATA))
    node = nodes(api, 1).start()
    wait_until(lambda: "clock is wrong" in (api.reason("n1", "p1") or ""))
    assert api.node("n1").said["port"] == 0

    api.sources = 1
    wait_until(lambda: node.has(IMAGE, DATA))

    # Once it is right, the node helps others.
    api.off_by, api.sources = 0.0, 0
    wait_until(lambda: api.node("n1").said["port"] == node.port)
    other = nodes(api, 2).start()
    wait_until(lambda: other.has(IMAGE, DATA))
    wait_until(lambda: api.state("n2", "p1") == "ready")
    assert api.node("n2").state("p1")["from_peers"] >= 3 * MiB


@pytest.mark.parametrize("trouble", ["wrong", "lacks"])
@pytest.mark.parametrize("libtorrent", [True, False])
def test_a_part_that_its_source_has_wrong_or_lacks_keeps_no_other_away(api, nodes, libtorrent, trouble):
    job = Preload("p1", IMAGE, DATA, trouble=trouble)
    api.jobs.append(job)
    node = nodes(api, 1).start(libtorrent=libtorrent)

    if trouble == "wrong":
        wait_until(lambda: "the source sends wrong bytes" in (api.reason("n1", "p1") or ""))
    wait_until(lambda: api.node("n1").state("p1").get("done", 0) >= len(DATA) - MiB)
    assert not node.path(IMAGE).exists()

    job.trouble = ""
    wait_until(lambda: node.has(IMAGE, DATA))


def test_a_source_that_once_sent_wrong_bytes_is_that_of_other_images(api, nodes):
    """What libtorrent bans for one torrent is not banned for all."""
    api.jobs += [Preload("p1", IMAGE, DATA, trouble="wrong")]
    node = nodes(api, 1).start()
    wait_until(lambda: "the source sends wrong bytes" in (api.reason("n1", "p1") or ""))
    beats = api.node("n1").said["time"]
    wait_until(lambda: api.node("n1").said["time"] > beats + 1)

    api.jobs.append(Preload("p2", OTHER, MORE_DATA))

    wait_until(lambda: node.has(OTHER, MORE_DATA))
    assert not api.bad_peers
    # While it waits to try the wrong part again.
    assert node.stop() == 0


def test_an_image_with_another_digest_than_was_recorded_is_never_published(api, nodes):
    api.jobs.append(Preload("p1", IMAGE, DATA, {"os_hash_value": "0" * 64}))
    node = nodes(api, 1).start()

    wait_until(lambda: api.state("n1", "p1") == "failed")

    assert "sha256" in api.reason("n1", "p1")
    assert not node.path(IMAGE).exists()


def test_a_disk_that_would_make_a_hypervisor_open_other_files_is_never_published(api, nodes):
    text = b"# Disk DescriptorFile\nversion=1\n" + bytes(MiB)
    api.jobs.append(Preload("p1", IMAGE, text, {"disk_format": "qcow2"}))
    node = nodes(api, 1).start()

    wait_until(lambda: api.state("n1", "p1") == "failed")

    assert "not safe" in api.reason("n1", "p1")
    assert not node.path(IMAGE).exists()


def test_an_empty_image_is_published_too(api, nodes):
    api.jobs.append(Preload("p1", IMAGE, b""))
    node = nodes(api, 1).start()

    wait_until(lambda: api.state("n1", "p1") == "ready")

    assert node.has(IMAGE, b"")


def test_nodes_go_on_with_each_other_while_the_api_is_away(api, nodes):
    api.jobs.append(Preload("p1", IMAGE, DATA))
    first = nodes(api, 1).start()
    wait_until(lambda: api.state("n1", "p1") == "ready")
    api.sources = 0
    # Slow enough to be in the middle of it.
    second = nodes(api, 2, more=f"down_limit = {MiB // 2}").start()
    wait_until(lambda: api.node("n2").state("p1").get("from_peers", 0) > 0)

    api.stop()
    wait_until(lambda: second.has(IMAGE, DATA))

    # One that starts meanwhile knows its jobs from its disk, and the others go on with it.
    first.kill()
    first.path(IMAGE).unlink()
    first.start()
    wait_until(lambda: first.has(IMAGE, DATA))
    api.start()
    api.nodes["id-1"].said = {}
    wait_until(lambda: api.state("n1", "p1") == api.state("n2", "p1") == "ready")


def test_a_killed_agent_goes_on_with_what_is_on_its_disk(api, nodes):
    api.jobs.append(Preload("p1", IMAGE, DATA))
    node = nodes(api, 1, more=f"down_limit = {MiB // 2}").start()
    wait_until(lambda: api.node("n1").state("p1").get("done", 0) >= 6 * MiB)

    node.kill()
    assert not node.path(IMAGE).exists()
    sent = api.bytes_sent
    node.configure(more="")
    node.start()

    wait_until(lambda: node.has(IMAGE, DATA))
    # Of 5 MiB, and what HTTP adds.
    assert api.bytes_sent - sent <= 2 * MiB + 64 * 1024


def test_an_image_that_is_to_be_dropped_leaves_nothing(api, nodes):
    job, other = Preload("p1", IMAGE, DATA), Preload("p2", OTHER, MORE_DATA)
    api.jobs += [job, other]
    ready = nodes(api, 1).start()
    wait_until(lambda: api.state("n1", "p1") == api.state("n1", "p2") == "ready")
    api.sources = 0
    half = nodes(api, 2, more=f"down_limit = {MiB // 4}").start()
    wait_until(lambda: api.node("n2").state("p1").get("from_peers", 0) > 0)

    api.jobs.remove(job)
    api.drop.append(IMAGE)

    for node in (ready, half):
        wait_until(lambda node=node: not any(IMAGE in name or "p1" in name for name in node.files()))
    wait_until(lambda: half.has(OTHER, MORE_DATA))
    assert ready.has(OTHER, MORE_DATA)


def test_a_cancelled_job_leaves_images_that_are_ready_and_nothing_of_others(api, nodes):
    api.jobs.append(Preload("p1", IMAGE, DATA))
    ready = nodes(api, 1).start()
    wait_until(lambda: api.state("n1", "p1") == "ready")
    # Else it may have all from the API before it meets the other one.
    api.sources = 0
    half = nodes(api, 2, more=f"down_limit = {MiB // 4}").start()
    wait_until(lambda: api.node("n2").state("p1").get("from_peers", 0) > 0)

    api.jobs.clear()

    wait_until(lambda: not half.files())
    assert ready.has(IMAGE, DATA)
    wait_until(lambda: api.node("n1").said["states"] == [])
    assert api.node("n1").said["holds"] == [IMAGE]


def test_an_agent_stops_when_it_is_told_to(api, nodes):
    api.jobs.append(Preload("p1", IMAGE, DATA))
    node = nodes(api, 1, more=f"down_limit = {MiB // 4}").start()
    wait_until(lambda: api.state("n1", "p1") == "fetching")

    assert node.stop() == 0

    node.configure()
    node.start()
    wait_until(lambda: node.has(IMAGE, DATA))


def test_a_name_cannot_be_taken_over(api, nodes, tmp_path):
    nodes(api, 1).start()
    stranger = Node(tmp_path / "elsewhere", 1, api.url, "let me in")

    stranger.start(await_it=False)

    assert stranger.wait() == 6
    stranger.kill()
    assert "cannot be taken over" in stranger.log()


def test_a_node_that_was_removed_takes_part_in_nothing_and_keeps_what_it_has(api, nodes):
    api.jobs.append(Preload("p1", IMAGE, DATA))
    node = nodes(api, 1).start()
    wait_until(lambda: api.state("n1", "p1") == "ready")
    api.refuses = True
    wait_until(lambda: "refuses" in node.log())
    assert node.has(IMAGE, DATA)

    api.refuses = False
    api.sources = 0
    other = nodes(api, 2).start()
    wait_until(lambda: other.has(IMAGE, DATA))


def test_a_node_that_is_refused_asks_no_more_often_than_else(api, nodes):
    api.interval, api.sources = 2.0, 0
    api.jobs.append(Preload("p1", IMAGE, DATA))
    [node] = start([nodes(api, 1)])
    wait_until(lambda: api.state("n1", "p1") == "fetching")

    # It has something to tell that it cannot: it does not fetch any more.
    api.refuses = True
    before = api.heartbeats
    wait_until(lambda: "refuses" in node.log())
    time.sleep(4.0)

    # At most one at once, and each two seconds; it may do so ten times in a second.
    assert api.heartbeats - before <= 5
    assert node.stop() == 0


def test_a_draining_node_fetches_nothing_new_and_helps_others(api, nodes):
    api.jobs.append(Preload("p1", IMAGE, DATA))
    node = nodes(api, 1).start()
    wait_until(lambda: api.state("n1", "p1") == "ready")
    api.draining = True
    wait_until(lambda: api.node("n1").said["time"])
    api.jobs.append(Preload("p2", OTHER, MORE_DATA))

    wait_until(lambda: api.state("n1", "p2") == "queued")
    before = api.node("n1").said["time"]
    wait_until(lambda: api.node("n1").said["time"] > before + 1)

    assert api.state("n1", "p2") == "queued"
    api.draining = False
    wait_until(lambda: node.has(OTHER, MORE_DATA))


def test_without_an_authority_nothing_is_exchanged(api, nodes):
    api.jobs += [Preload("p1", IMAGE, DATA), Preload("p2", IMAGE, DATA)]
    for job in api.jobs:
        job.authority.pem = None
    node = nodes(api, 1).start()

    wait_until(lambda: api.state("n1", "p1") == api.state("n1", "p2") == "ready")

    assert node.has(IMAGE, DATA)
    del api.jobs[0]
    wait_until(lambda: len(api.node("n1").said["states"]) == 1)
    assert api.state("n1", "p2") == "ready"


def test_two_jobs_may_want_the_same_image(api, nodes):
    api.jobs += [Preload("p1", IMAGE, DATA), Preload("p2", IMAGE, DATA)]
    node = nodes(api, 1).start()

    wait_until(lambda: api.state("n1", "p1") == api.state("n1", "p2") == "ready")
    del api.jobs[0]
    wait_until(lambda: len(api.node("n1").said["states"]) == 1)

    assert node.has(IMAGE, DATA)
    api.sources = 0
    other = nodes(api, 2).start()
    wait_until(lambda: other.has(IMAGE, DATA))

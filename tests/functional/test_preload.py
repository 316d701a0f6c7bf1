# SPDX-License-Identifier: Apache-2.0
"""Eight agents on an image API with a file and an S3 store: images come to all of them, whatever fails meanwhile.

Every node is looked at in the end: its bytes are those of the image, and nothing else is left on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import random
import re
import signal
import socket
import sys
from types import SimpleNamespace

import pytest
from servers.api import INI, Deployment, Server
from servers.ceph import radosgw
from servers.node import Node, wait_until

from storelib.node import certificates
from storelib.node.engine import Address, Part
from storelib.node.options import Settings
from storelib.node.swarm import Swarm

MiB = 1024 * 1024
MORE = """
[preload]
enabled = true
interval = 0.4
idle_interval = 0.4
web_seeds = 2
[objects]
s3_store_host = {gateway.s3_endpoint}
s3_store_access_key = {gateway.access_key}
s3_store_secret_key = {gateway.secret_key}
s3_store_bucket = images
s3_store_create_bucket_on_put = true
s3_store_bucket_url_format = path
"""
GROUP = "rack"
SMALL, LARGE = 2 * MiB + 77, 9 * MiB + 1


def random_bytes(size):
    return random.randbytes(size)


class Rack:
    """The API and eight nodes."""

    def __init__(self, directory, gateway):
        ini = INI.replace("archive:file", "archive:file, objects:s3") + MORE.replace("{gateway.", "{gateway_")
        for name in ("s3_endpoint", "access_key", "secret_key"):
            ini = ini.replace(f"{{gateway_{name}}}", str(getattr(gateway, name)))
        self.directory = directory
        self.deployment = Deployment(directory, ini=ini)
        self.server = self.serve("127.0.0.1:0")
        self.nodes = [self.make(number) for number in range(1, 9)]
        self.start(self.nodes)

    def serve(self, bind):
        return self.deployment.serve("--workers", "2", "--threads", "16", "--bind", bind)

    @contextlib.contextmanager
    def another(self, line):
        """Another process of the API, with one more line in ``[preload]``; the second thing lists what was asked of it:
        pairs of a path and a status.
        """
        config, log = self.directory / "another.ini", self.directory / "access.log"
        config.write_text(self.deployment.config.read_text().replace("[preload]", f"[preload]\n{line}"))
        log.unlink(missing_ok=True)
        place = SimpleNamespace(config=config, directory=self.directory)
        server = Server(place, ("--workers", "1", "--threads", "16", "--access-log", str(log)))
        try:
            server.wait_until_listening()
            yield server, lambda: re.findall(r'"GET (\S+) [^"]+" (\d+)', log.read_text())
        finally:
            server.kill()

    def make(self, number, more="", group=GROUP, token=None, url=None):
        wanted = {"group": group, "expires_in": 3600, "uses": 1}
        token = token or self.ask("POST", "/v2/nodes/enrolments", wanted)["token"]
        return Node(self.directory, number, url or self.server.url, token, more)

    def start(self, nodes, **options):
        for node in nodes:
            node.start(await_it=False, **options)
        for node in nodes:
            node.await_start()

    def close(self):
        for node in self.nodes:
            node.kill()
        self.deployment.close()

    def revive(self):
        """Have the API again if a test killed it and ended before it started another one."""
        if self.server.process.poll() is not None:
            self.server = self.serve(self.server.address)

    def logs(self):
        """What the API and each node said until now."""
        return {"API": self.deployment.log(), **{node.name: node.log() for node in self.nodes}}

    def show(self, before):
        """Write what was said since then, and how far nodes are: pytest shows it if the test failed."""
        write = sys.stdout.write
        for name, said in self.logs().items():
            write(f"{name}: {said[len(before.get(name, '')) :][-5000:]}\n")
        for preload in self.active():
            write(f"preload of {preload['image']}: {self.states(preload['id'])}\n")
        for node in self.nodes:
            write(f"{node.name} has {node.files()}\n")

    def active(self):
        return self.ask("GET", "/v2/preloads?status=active")["preloads"]

    def clear(self):
        """Have no more images, preloads and rules, and all agents at work, whatever a test left."""
        for group in self.ask("GET", "/v2/preloads/groups")["groups"]:
            self.ask("DELETE", f"/v2/preloads/groups/{group['name']}")
        for preload in self.active():
            # It may be over by now.
            self.ask("DELETE", f"/v2/preloads/{preload['id']}", expected=(204, 409))
        for image in self.ask("GET", "/v2/images")["images"]:
            self.server.delete(image["id"])
        for node in self.nodes:
            if node.process.is_alive():
                node.signal(signal.SIGCONT)
            else:
                node.start()
        wait_until(lambda: not any(node.files() for node in self.nodes))

    def ask(self, method, path, document=None, headers=None, expected=(200, 201, 202, 204)):
        connection = http.client.HTTPConnection(self.server.address, timeout=60)
        with contextlib.closing(connection):
            body = document if isinstance(document, bytes) else json.dumps(document) if document is not None else None
            kind = "application/octet-stream" if isinstance(document, bytes) else "application/json"
            connection.request(method, path, body, {"Content-Type": kind, **(headers or {})})
            response = connection.getresponse()
            data = response.read()
            assert response.status in expected, (response.status, data)
            return json.loads(data) if data else {}

    def image(self, data, store="fast", **more):
        """The id of an active image with this data."""
        formats = {"name": "an image", "disk_format": "raw", "container_format": "bare"}
        image = self.ask("POST", "/v2/images", formats | more)["id"]
        self.ask("PUT", f"/v2/images/{image}/file", data, {"X-Image-Meta-Store": store})
        assert self.ask("GET", f"/v2/images/{image}")["stores"] == store
        return image

    @contextlib.contextmanager
    def held(self, image):
        """Meanwhile nobody gets more than the first half of an image: all are in the middle of it."""
        stored = self.deployment.directory / "fast" / image
        data = stored.read_bytes()
        os.truncate(stored, len(data) // 2)
        try:
            yield
        finally:
            if stored.exists():
                stored.write_bytes(data)

    def preload(self, *images, **target):
        """The ids of preloads of images, for the rack if nothing else is said."""
        found = self.ask("POST", "/v2/preloads", {"images": images, **(target or {"group": GROUP})})
        return [preload["id"] for preload in found["preloads"]]

    def states(self, preload):
        return {each["node"]: each for each in self.ask("GET", f"/v2/preloads/{preload}")["states"]}

    def beats(self, node):
        """When a node was seen the last time, in seconds."""
        return self.ask("GET", f"/v2/nodes/{node.id}")["seen_at"]

    def all_ready(self, preload, nodes):
        states = self.states(preload)
        return all(states.get(node.name, {}).get("state") == "ready" for node in nodes)

    def all_have(self, image, data, nodes=None):
        return all(node.has(image, data) for node in nodes or self.nodes)

    def await_all(self, preload, image, data, nodes=None):
        nodes = nodes or self.nodes
        wait_until(lambda: self.all_ready(preload, nodes))
        assert self.all_have(image, data, nodes)

    def in_the_middle(self, preload, node):
        """Whether a node has some of an image, and not all."""
        state = self.states(preload).get(node.name, {})
        return state.get("state") == "fetching" and state["from_source"] + state["from_peers"] > 0

    def await_clean(self, *images, nodes=None):
        """Until nothing of images is left on nodes."""
        for node in nodes or self.nodes:
            wait_until(lambda node=node: not any(image in name for name in node.files() for image in images))


@pytest.fixture(scope="module")
def rack(tmp_path_factory):
    with radosgw(tmp_path_factory.mktemp("ceph")) as gateway:
        rack = Rack(tmp_path_factory.mktemp("rack"), gateway)
        yield rack
        rack.close()


@pytest.fixture(autouse=True)
def each_alone(rack):
    """Each test has a rack without anything of the others."""
    before = rack.logs()
    yield
    rack.revive()
    rack.show(before)
    rack.clear()


@pytest.fixture
def extra(rack):
    """Makes more nodes, which are removed at the end."""
    made = []

    def make(number, **options):
        made.append(rack.make(number, **options))
        rack.nodes.append(made[-1])
        return made[-1]

    yield make
    for node in made:
        node.kill()
        rack.nodes.remove(node)
        rack.ask("DELETE", f"/v2/nodes/{node.id}")
        sys.stdout.write(f"{node.name}: {node.log()}")


class Impostor:
    """A peer that is no agent: it speaks to the API as one, and to nodes as it likes."""

    def __init__(self, rack, number, data):
        self.rack, self.data = rack, data
        self.host = f"127.0.2.{number}"
        with socket.socket() as free:
            free.bind((self.host, 0))
            self.port = free.getsockname()[1]
        self.directory = rack.directory / f"impostor{number}"
        self.directory.mkdir()
        (self.directory / "data").write_bytes(data)
        values = {field.name: None for field in dataclasses.fields(Settings)}
        self.swarm = Swarm(Settings(**values | {"bind": self.host, "port": self.port, "down_limit": 0, "up_limit": 0}))
        self.key = certificates.new_key()

    def enrol(self, name):
        self.token = self.rack.ask("POST", "/v2/nodes/enrolments", {"group": GROUP, "expires_in": 60})["token"]
        document = {"name": name, "group": GROUP, "token": self.token, "address": self.host, "port": self.port}
        self.node = self.rack.ask("POST", "/v2/nodes", document | {"version": "1"})

    def beat(self, preload=None, **state):
        """The job that the API tells it."""
        states = [{"preload": preload, "done": 0, **state}] if preload else []
        document = {"address": self.host, "port": self.port, "states": states}
        secret = {"X-Node-Secret": self.node["secret"]}

        def told():
            response = self.rack.ask("POST", f"/v2/nodes/{self.node['id']}/heartbeat", document, secret, (200, 429))
            found.extend(response.get("jobs", ()))
            return found

        found = []
        wait_until(told)
        return found[0]

    def torrent(self, preload):
        connection = http.client.HTTPConnection(self.rack.server.address, timeout=60)
        with contextlib.closing(connection):
            path = f"/v2/nodes/{self.node['id']}/preloads/{preload}/torrent"
            connection.request("GET", path, headers={"X-Node-Secret": self.node["secret"]})
            return connection.getresponse().read()

    def take_part(self, preload, torrent, certificate, complete):
        have = [complete] * -(-len(self.data) // MiB)
        self.swarm.add(Part(preload, torrent, self.directory / "data", have, self.key, certificate))

    def close(self):
        self.swarm.close()
        self.rack.ask("DELETE", f"/v2/nodes/{self.node['id']}")


@pytest.fixture
def impostor(rack):
    made = []

    def make(number, data):
        made.append(Impostor(rack, number, data))
        made[-1].enrol(f"impostor{number}")
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("store", ["fast", "objects"])
def test_all_nodes_have_an_image(rack, store):
    data = random_bytes(SMALL)
    image = rack.image(data, store)

    [preload] = rack.preload(image)

    rack.await_all(preload, image, data)
    found = rack.ask("GET", f"/v2/preloads/{preload}")
    assert found["from_peers"] > 0
    assert found["from_source"] + found["from_peers"] >= 8 * SMALL
    rack.server.delete(image)
    rack.await_clean(image)


def test_two_images_come_at_once_and_holes_stay_holes(rack):
    sparse, other = random_bytes(MiB) + bytes(30 * MiB) + b"end", random_bytes(SMALL)
    images = [rack.image(sparse), rack.image(other)]

    preloads = rack.preload(*images)

    rack.await_all(preloads[0], images[0], sparse)
    rack.await_all(preloads[1], images[1], other)
    for node in rack.nodes:
        assert node.path(images[0]).stat().st_blocks * 512 < 3 * MiB
    assert rack.ask("GET", f"/v2/preloads/{preloads[0]}")["from_source"] < 8 * (MiB + 4096)
    for image in images:
        rack.server.delete(image)
    rack.await_clean(*images)


def test_a_killed_and_a_frozen_agent_keep_no_other_from_it(rack):
    data = random_bytes(LARGE)
    image = rack.image(data)
    killed, frozen, *others = rack.nodes
    with rack.held(image):
        [preload] = rack.preload(image)
        wait_until(lambda: rack.in_the_middle(preload, killed) and rack.in_the_middle(preload, frozen))
        killed.kill()
        frozen.signal(signal.SIGSTOP)

    try:
        rack.await_all(preload, image, data, others)
        assert not killed.path(image).exists()
    finally:
        frozen.signal(signal.SIGCONT)
    killed.start()

    rack.await_all(preload, image, data)
    rack.server.delete(image)
    rack.await_clean(image)


def test_the_api_may_be_killed_in_the_middle(rack):
    data = random_bytes(LARGE)
    image = rack.image(data)
    with rack.held(image):
        [preload] = rack.preload(image)
        wait_until(lambda: rack.in_the_middle(preload, rack.nodes[0]))
        address = rack.server.address
        rack.server.kill()

    for node in rack.nodes:
        assert node.process.is_alive()
    rack.server = rack.serve(address)

    rack.await_all(preload, image, data)
    rack.server.delete(image)
    rack.await_clean(image)


@pytest.mark.parametrize("how", ["delete", "deactivate", "cancel"])
def test_what_ends_in_the_middle_leaves_nothing(rack, how):
    image = rack.image(random_bytes(LARGE))
    with rack.held(image):
        [preload] = rack.preload(image)
        wait_until(lambda: any(rack.in_the_middle(preload, node) for node in rack.nodes))

        if how == "delete":
            rack.server.delete(image)
        elif how == "deactivate":
            rack.ask("POST", f"/v2/images/{image}/actions/deactivate")
        else:
            rack.ask("DELETE", f"/v2/preloads/{preload}")

        rack.await_clean(image)


def test_an_image_that_was_deactivated_is_on_no_node(rack):
    data = random_bytes(SMALL)
    image = rack.image(data)
    [preload] = rack.preload(image)
    rack.await_all(preload, image, data)

    rack.ask("POST", f"/v2/images/{image}/actions/deactivate")

    rack.await_clean(image)
    rack.server.delete(image)


def test_a_source_that_sends_wrong_bytes_harms_nobody(rack):
    data = random_bytes(SMALL)
    image = rack.image(data)
    stored = rack.deployment.directory / "fast" / image
    stored.write_bytes(b"wrong" + data[5:])
    [preload] = rack.preload(image)

    # All but the wrong piece.
    wait_until(lambda: any(state["done"] >= SMALL - MiB for state in rack.states(preload).values()))
    assert not any(node.path(image).exists() for node in rack.nodes)

    stored.write_bytes(data)
    rack.await_all(preload, image, data)
    assert not any("is banned" in node.log() for node in rack.nodes)
    rack.server.delete(image)
    rack.await_clean(image)


def test_a_node_that_joins_gets_what_its_group_is_to_have(rack, extra):
    data = random_bytes(SMALL)
    image = rack.image(data)
    [preload] = rack.preload(image)
    rack.await_all(preload, image, data)

    node = extra(21).start()

    wait_until(lambda: node.has(image, data))
    rack.server.delete(image)
    rack.await_clean(image)


def test_a_group_keeps_its_images(rack, extra):
    named, meant, other = random_bytes(SMALL), random_bytes(SMALL), random_bytes(SMALL)
    images = [rack.image(named), rack.image(meant, preload="yes"), rack.image(other, preload="no")]
    rack.ask("PUT", "/v2/preloads/groups/late", {"images": images[:1], "properties": {"preload": "yes"}})
    node = extra(25, group="late").start()

    wait_until(lambda: node.has(images[0], named) and node.has(images[1], meant))
    # One that has the property becomes active only now.
    images.append(rack.image(other, preload="yes"))
    wait_until(lambda: node.has(images[3], other))

    assert not node.path(images[2]).exists()
    rack.ask("DELETE", "/v2/preloads/groups/late")
    for image in images:
        rack.server.delete(image)
    rack.await_clean(*images)


def test_administrators_need_only_the_command(rack, extra):
    def run(*arguments):
        response = rack.deployment.run("preload", *arguments, server=rack.server)
        assert response.code == 0, response.err
        return response.documents

    data = random_bytes(SMALL)
    image = rack.image(data)
    [enrolled] = run("enrol", "--group", "command")
    node = extra(26, token=enrolled["token"]).start()

    [started] = run("start", image, "--group", "command")

    wait_until(lambda: node.has(image, data))
    wait_until(lambda: [(each["node"], each["state"]) for each in run("status")] == [(node.name, "ready")])
    assert "command" in {each["group"] for each in run("nodes")}
    run("cancel", started["id"])
    assert node.has(image, data)
    rack.server.delete(image)
    rack.await_clean(image)


def test_a_node_without_libtorrent_gets_its_images_too(rack, extra):
    data = random_bytes(SMALL)
    image = rack.image(data)
    node = extra(22).start(libtorrent=False)
    [preload] = rack.preload(image)

    rack.await_all(preload, image, data)

    state = rack.states(preload)[node.name]
    assert (state["from_source"], state["from_peers"]) == (SMALL, 0)
    assert "libtorrent" in node.log()
    rack.server.delete(image)
    rack.await_clean(image)


def test_a_node_whose_clock_is_wrong_gets_its_images_from_the_api_alone(rack, extra):
    data = random_bytes(SMALL)
    image = rack.image(data)
    node = extra(31).start(ahead=86400.0)
    wait_until(lambda: rack.ask("GET", f"/v2/nodes/{node.id}")["port"] == 0)
    assert 86000 < rack.ask("GET", f"/v2/nodes/{node.id}")["clock_ahead"] < 87000

    [preload] = rack.preload(image)

    rack.await_all(preload, image, data)
    state = rack.states(preload)[node.name]
    assert (state["from_source"], state["from_peers"]) == (SMALL, 0)
    assert "the clock differs by 864" in node.log()
    rack.server.delete(image)
    rack.await_clean(image)


def test_what_nothing_wants_any_more_stays_until_there_is_no_room(rack, extra):
    """When a preload is cancelled, and when a group keeps an image no longer."""
    data = {name: random_bytes(SMALL) for name in ("kept", "cancelled", "third", "fourth")}
    images = {name: rack.image(each) for name, each in data.items()}
    node = extra(32, group="narrow", more="budget = 5M").start()

    def has(*names):
        return all(node.has(images[name], data[name]) for name in names)

    def preload(name):
        [found] = rack.preload(images[name], group="narrow")
        rack.await_all(found, images[name], data[name], [node])
        return found

    rack.ask("PUT", "/v2/preloads/groups/narrow", {"images": [images["kept"]]})
    wait_until(lambda: has("kept"))
    rack.ask("DELETE", f"/v2/preloads/{preload('cancelled')}")
    seen = rack.beats(node)
    wait_until(lambda: rack.beats(node) > seen)
    assert has("kept", "cancelled")

    # That of the group stays.
    preload("third")
    assert has("kept", "third")
    assert not node.path(images["cancelled"]).exists()

    rack.ask("DELETE", "/v2/preloads/groups/narrow")
    wait_until(lambda: not any(each["image"] == images["kept"] for each in rack.active()))
    assert has("kept", "third")
    preload("fourth")
    assert has("third", "fourth")
    assert not node.path(images["kept"]).exists()


@pytest.mark.parametrize(("to", "number"), [("the store", 27), ("another API", 29)])
def test_the_api_may_send_nodes_elsewhere_for_the_bytes(rack, extra, to, number):
    """To a store with a signed URL, or to another process of the API: by libtorrent, and without it."""
    data = random_bytes(SMALL)
    image = rack.image(data, "objects")
    line = "redirect_to_stores = true" if to == "the store" else f"source_urls = {rack.server.url}"
    with rack.another(line) as (server, asked):
        by_libtorrent = extra(number, group="one", url=server.url).start()
        directly = extra(number + 1, group="two", url=server.url).start(libtorrent=False)
        for node, group in ((by_libtorrent, "one"), (directly, "two")):
            [preload] = rack.preload(image, group=group)
            rack.await_all(preload, image, data, [node])
            assert rack.states(preload)[node.name]["from_source"] >= SMALL
        found = [status for path, status in asked() if "/sources/" in path]
        assert set(found) == {"302"}
        assert len(found) >= 1 + 3
        assert not any("/sources/" in path and "***" not in path for path, _ in asked())
        rack.server.delete(image)
        rack.await_clean(image)


def test_a_draining_node_fetches_nothing_new(rack, extra):
    data = random_bytes(SMALL)
    node = extra(23).start()
    rack.ask("POST", f"/v2/nodes/{node.id}/drain")
    image = rack.image(data)
    [preload] = rack.preload(image)

    others = [each for each in rack.nodes if each is not node]
    rack.await_all(preload, image, data, others)
    assert not node.path(image).exists()

    rack.ask("DELETE", f"/v2/nodes/{node.id}/drain")
    wait_until(lambda: node.has(image, data))
    rack.server.delete(image)
    rack.await_clean(image)


def test_a_full_disk_concerns_one_node(rack, extra):
    data = random_bytes(SMALL)
    image = rack.image(data)
    node = extra(24).start(largest=MiB)
    [preload] = rack.preload(image)

    wait_until(lambda: rack.states(preload).get(node.name, {}).get("state") == "failed")

    assert "full" in rack.states(preload)[node.name]["reason"]
    rack.await_all(preload, image, data, [each for each in rack.nodes if each is not node])
    node.kill()
    node.start()
    rack.await_all(preload, image, data)
    rack.server.delete(image)
    rack.await_clean(image)


def test_a_node_that_sends_wrong_parts_is_banned_and_harms_nobody(rack, impostor):
    data = random_bytes(SMALL)
    image = rack.image(data)
    evil = impostor(1, bytes(SMALL))
    # Half of the image is nowhere else meanwhile, so it is asked for that.
    with rack.held(image):
        for node in rack.nodes:
            node.signal(signal.SIGSTOP)
        try:
            [preload] = rack.preload(image)
            job = evil.beat()
            torrent = evil.torrent(preload)
            certificate = evil.beat(
                preload, state="ready", wanted_csr=certificates.request(evil.key, "impostor1", job["image"])
            )["certificate"]
            evil.take_part(preload, torrent, certificate, complete=True)
        finally:
            for node in rack.nodes:
                node.signal(signal.SIGCONT)
        banned = f"at {evil.host} port {evil.port} sent wrong bytes"
        wait_until(lambda: any(banned in node.log() for node in rack.nodes))

    rack.await_all(preload, image, data)
    rack.server.delete(image)
    rack.await_clean(image)


def test_who_has_no_certificate_of_the_job_gets_nothing(rack, impostor):
    data = random_bytes(SMALL)
    image, other = rack.image(data), rack.image(random_bytes(SMALL))
    stranger, friend = impostor(2, bytes(SMALL)), impostor(3, bytes(SMALL))
    [preload] = rack.preload(image)
    rack.await_all(preload, image, data)
    [another] = rack.preload(other, nodes=["impostor2"])
    torrent = friend.torrent(preload)
    # One that the API gave, but for another job.
    wanted = certificates.request(stranger.key, "impostor2", image)
    found = stranger.beat(another, state="queued", wanted_csr=wanted)
    stranger.take_part(preload, torrent, found["certificate"] or "", complete=False)
    wanted = certificates.request(friend.key, "impostor3", image)
    friend.take_part(preload, torrent, friend.beat(preload, state="queued", wanted_csr=wanted)["certificate"], False)
    places = [Address(node.host, node.port) for node in rack.nodes]

    def friend_has_all():
        for each in (stranger, friend):
            each.swarm.poll()
            each.swarm.meet(preload, places)
        return friend.swarm.progress(preload).done == SMALL

    wait_until(friend_has_all)

    assert stranger.swarm.progress(preload).done == 0
    path = f"/v2/nodes/{friend.node['id']}/preloads/{preload}/torrent"
    for headers in ({}, {"X-Node-Secret": stranger.node["secret"]}):
        rack.ask("GET", path, None, headers, expected=(401, 404))
    rack.ask("GET", f"/v2/preloads/sources/{'x' * 43}/{image}", expected=(401, 404))
    for each in (image, other):
        rack.server.delete(each)
        rack.await_clean(each)


def test_nothing_is_left_at_last(rack):
    for node in rack.nodes:
        assert node.files() == []
        assert sorted(os.listdir(node.directory / "state")) == [
            *("identity.json", "images", "jobs.json", "lock", "torrents"),
        ]

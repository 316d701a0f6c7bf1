# SPDX-License-Identifier: Apache-2.0
"""A node in a cloud: it enrols as a service user of Keystone, and RabbitMQ wakes it."""

from __future__ import annotations

import contextlib
import random
import time
import urllib.error

import pytest
from servers.api import Deployment
from servers.keystone import Keystone
from servers.node import Node, wait_until
from servers.rabbitmq import RabbitMQ

DATA = random.Random(5).randbytes(2 * 1024 * 1024 + 5)
#: Longer than any test takes: what comes before came by a message.
NEVER = 3600
INI = """
[storelib]
stores = fast:file
default_store = fast
[fast]
filesystem_store_datadir = {directory}/fast
[database]
connection = {connection}
sqlite_synchronous = false
[api]
auth_strategy = keystone
[preload]
enabled = true
interval = {interval}
idle_interval = {interval}
{keystone.authtoken}
[DEFAULT]
transport_url = {broker.url}
"""
KEYSTONE = """
[keystone]
auth_type = password
auth_url = {keystone.url}
username = {user}
password = {password}
project_name = {project}
user_domain_id = default
project_domain_id = default
"""


class Cloud:
    """The API with Keystone and RabbitMQ, and its nodes."""

    def __init__(self, directory, keystone, broker):
        self.directory, self.keystone, self.broker = directory, keystone, broker
        names = {"keystone": keystone, "broker": broker, "interval": NEVER}
        # Deployment fills in the rest.
        ini = INI.format(directory="{directory}", connection="{connection}", **names)
        self.deployment = Deployment(directory, ini=ini)
        self.url = self.deployment.serve("--workers", "1", "--threads", "8").url
        self.nodes = []
        # One that is a service, and no administrator.
        user = {"name": "compute", "domain_id": "default", "password": "computepass"}
        keystone.users["compute"] = keystone.call("POST", "/users", {"user": user})["user"]["id"]
        keystone.grant("compute", "service", "service")

    def node(self, number, user="compute", password=None, project="service", group="racks"):
        who = {"user": user, "password": password or f"{user}pass", "project": project}
        more = f"enrol_with_keystone = true\n{f'group = {group}' if group else ''}\n"
        more += KEYSTONE.format(keystone=self.keystone, **who)
        more += f"[DEFAULT]\ntransport_url = {self.broker.url}\n"
        self.nodes.append(Node(self.directory, number, self.url, more=more))
        return self.nodes[-1]

    def ask(self, method, path, body=None, **headers):
        return self.keystone.call_service(method, self.url + path, body, **headers)

    def preload(self):
        """An image that the nodes of the group are to have."""
        image = self.image()
        self.ask("POST", "/v2/preloads", {"images": [image], "group": "racks"})
        return image

    def wake_until(self, node, done):
        """Have messages sent until then."""
        deadline = time.monotonic() + 90

        while not done():
            assert time.monotonic() < deadline, node.log()
            # Each of them is something new for the node.
            self.ask("POST", f"/v2/nodes/{node.id}/drain")
            self.ask("DELETE", f"/v2/nodes/{node.id}/drain")
            with contextlib.suppress(AssertionError):
                wait_until(done, 5.0)

    def image(self):
        image = self.ask("POST", "/v2/images", {"name": "one", "disk_format": "raw", "container_format": "bare"})["id"]
        self.keystone.upload(f"{self.url}/v2/images/{image}/file", DATA)
        return image

    def registered(self):
        return {node["name"]: node for node in self.ask("GET", "/v2/nodes")["nodes"]}

    def close(self):
        for node in self.nodes:
            node.kill()
        self.deployment.close()


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    with contextlib.ExitStack() as stack:
        keystone = stack.enter_context(Keystone(tmp_path_factory.mktemp("keystone")))
        broker = stack.enter_context(RabbitMQ(tmp_path_factory.mktemp("rabbitmq")))
        cloud = Cloud(tmp_path_factory.mktemp("cloud"), keystone, broker)
        stack.callback(cloud.close)
        yield cloud


def test_a_service_user_enrols_a_node_and_messages_wake_it(cloud):
    node = cloud.node(1).start()
    found = cloud.registered()[node.name]
    assert (found["id"], found["group"], found["address"]) == (node.id, "racks", node.host)
    # From now on it hears of nothing but by messages, as soon as it listens.
    wait_until(lambda: cloud.registered()[node.name]["seen_at"])
    image = cloud.preload()
    # The first message may come before it listens.
    cloud.wake_until(node, lambda: node.has(image, DATA))

    # Now one is enough, though the API refuses heartbeats that come too fast, and what one told comes again.
    other = cloud.preload()
    wait_until(lambda: node.has(other, DATA))
    assert "guest:guest" not in node.log() + cloud.deployment.log()
    assert "computepass" not in node.log() + cloud.deployment.log()


def test_an_enrolled_node_needs_keystone_no_more(cloud):
    node = cloud.node(2).start()
    assert node.stop() == 0
    text = node.config.read_text()
    node.config.write_text(text.replace("enrol_with_keystone = true", "").partition("[keystone]")[0])

    first = node.id
    node.start()

    assert node.id == first
    wait_until(lambda: node.process.is_alive() and cloud.registered()[node.name]["seen_at"])


@pytest.mark.parametrize(
    ("number", "who", "said"),
    [
        (3, {"password": "wrong"}, "Keystone refuses the user"),
        (4, {"user": "demo", "project": "demo"}, "the image API refuses: 403 "),
        (5, {"project": "demo"}, "Keystone refuses the user"),
        (6, {"group": ""}, "'group' must be the name of a group"),
    ],
    ids=["wrong password", "no service", "a project that it is not in", "no group"],
)
def test_no_other_user_enrols_one(cloud, number, who, said):
    node = cloud.node(number, **who).start(await_it=False)
    assert node.wait() not in (0, None)
    assert said in node.log()
    assert node.name not in cloud.registered()
    assert not (node.directory / "state" / "identity.json").exists()
    assert "computepass" not in node.log()


def test_a_service_user_cannot_take_a_name_over(cloud):
    node = cloud.node(7).start()
    again = Node(cloud.directory / "again", 7, cloud.url)
    again.config.write_text(node.config.read_text().replace(str(node.directory), str(again.directory)))
    cloud.nodes.append(again)

    again.start(await_it=False)

    assert again.wait() not in (0, None)
    assert "cannot be taken over" in again.log()
    assert cloud.registered()[node.name]["id"] == node.id


def test_a_token_of_keystone_is_no_secret_of_a_node(cloud):
    node = cloud.node(8).start()
    token, _ = cloud.keystone.token("compute", "service")
    for headers in ({"X_Auth_Token": token}, {"X_Auth_Token": token, "X_Node_Secret": token}):
        with pytest.raises(urllib.error.HTTPError) as caught:
            cloud.ask("POST", f"/v2/nodes/{node.id}/heartbeat", {"address": "127.0.0.1", "port": 1}, **headers)
        assert caught.value.code in (401, 404)
        caught.value.close()


def test_messages_come_again_when_the_broker_was_away(cloud, tmp_path_factory):
    node = cloud.node(9).start()
    again = RabbitMQ(tmp_path_factory.mktemp("again"))
    again.port, again.url = cloud.broker.port, cloud.broker.url
    cloud.broker.__exit__()

    # Nobody waits for it.
    began = time.monotonic()
    image = cloud.preload()
    assert time.monotonic() - began < 30

    with again:
        cloud.wake_until(node, lambda: node.has(image, DATA))

# SPDX-License-Identifier: Apache-2.0
"""An agent waits for nobody who sends a byte now and then: its loop would stand still, and SIGTERM be for nothing."""

from __future__ import annotations

import socket
import threading

import pytest
from scripted_server import ScriptedServer

from storelib.exceptions import RemoteServiceUnavailable
from storelib.node import api as module
from storelib.node import identity, options
from storelib.node.api import Api

INI = """
[node]
api_url = http://127.0.0.1:1
enrol_with_keystone = true
state_dir = {directory}/state
target_dir = {directory}/images
[keystone]
auth_type = password
auth_url = http://127.0.0.1:{port}/v3
username = nova
password = hunter2
project_name = service
user_domain_id = default
project_domain_id = default
"""
REQUESTS = {
    "a heartbeat": lambda api: api.heartbeat("node", "secret", {}),
    "a registration": lambda api: api.register({}, {}),
    "a torrent": lambda api: api.torrent("/torrent", "secret"),
    "a part": lambda api: api.read("/source", 0, 1000),
}


@pytest.fixture
def ended():
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("what", REQUESTS)
def test_a_response_that_comes_byte_by_byte_is_not_waited_for(monkeypatch, ended, what):
    monkeypatch.setattr(module, "WHOLE", 0.05)
    body = b"{" + b" " * 998 + b"}"

    def trickle(request):
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
        for at in range(len(body)):
            ended.wait(0.01)
            yield body[at : at + 1]

    with ScriptedServer(trickle) as server:
        api = Api(server.url)
        with pytest.raises(RemoteServiceUnavailable):
            REQUESTS[what](api)
        ended.set()
        api.close()


def test_a_keystone_that_says_nothing_is_not_waited_for(monkeypatch, tmp_path):
    monkeypatch.setattr(identity, "READ", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = tmp_path / "node.ini"
        (tmp_path / "state").mkdir()
        config.write_text(INI.format(port=silent.getsockname()[1], directory=tmp_path))
        settings, conf = options.load(config)
        with pytest.raises(RemoteServiceUnavailable, match=r"\[keystone\]: Keystone does not answer: ConnectTimeout"):
            identity.enrol(settings, conf, Api(settings.api_url), "127.0.0.1", 9293)

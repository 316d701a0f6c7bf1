# SPDX-License-Identifier: Apache-2.0
"""The image API waits for no Keystone that sends a byte now and then: each request would hold a thread for ever."""

from __future__ import annotations

import threading

import falcon.testing
import pytest
from empty_database import make_empty_database
from scripted_server import ScriptedServer

import storelib.config
from storelib.api import create_app

INI = """
[storelib]
stores = memory
[database]
connection = sqlite:///{directory}/images.sqlite
[api]
auth_strategy = keystone
[keystone_authtoken]
auth_type = password
auth_url = {url}
username = glance
password = hunter2
project_name = service
user_domain_id = default
project_domain_id = default
http_request_max_retries = 0
"""


# Older releases of oslo.cache import what says that it will go away, eventlet where it is installed.
@pytest.mark.filterwarnings("ignore")
def test_a_keystone_that_answers_byte_by_byte_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("storelib.api.middleware.identity.KEYSTONE", 0.3)
    answered, ended = threading.Event(), threading.Event()

    def trickle(request):
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
        for _ in range(1000):
            ended.wait(0.02)
            yield b" "
        answered.set()

    make_empty_database(tmp_path / "images.sqlite")
    with ScriptedServer(trickle) as server:
        path = tmp_path / "storelib.ini"
        path.write_text(INI.format(directory=tmp_path, url=server.url))
        app = create_app(storelib.config.load_file(path))
        response = falcon.testing.TestClient(app).simulate_get("/v2/images", headers={"X-Auth-Token": "token"})
        waited = answered.is_set()
        ended.set()
        app.close()
    assert response.status_code == 503
    assert not waited

# SPDX-License-Identifier: Apache-2.0
"""What becomes of a token with which a node enrols, which counts once."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest

from storelib.exceptions import BadStoreConfiguration, RemoteServiceUnavailable
from storelib.node import identity, options
from storelib.node.api import Api

INI = """
[node]
api_url = http://127.0.0.1:9
name = n1
enrolment_token = t
state_dir = state
target_dir = images
"""


@pytest.fixture
def enrol(tmp_path, monkeypatch):
    asked = []

    def register(api, document, headers):
        asked.append(headers["X-Node-Secret"])
        if enrol.lost:
            raise RemoteServiceUnavailable("the image API does not answer")
        return {"id": "1", "name": document["name"], "secret": headers["X-Node-Secret"]}

    monkeypatch.setattr(Api, "register", register)
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "node.ini").write_text(INI)
    settings, conf = options.load(tmp_path / "node.ini")
    api = Api(settings.api_url)

    def enrol():
        return identity.enrol(settings, conf, api, "192.0.2.1", 9293)

    enrol.asked, enrol.state, enrol.lost = asked, tmp_path / "state", False
    yield enrol
    api.close()


def test_a_node_is_known_from_its_file(enrol):
    found = enrol()

    assert identity.load(enrol.state) == found == identity.Identity("1", "n1", *enrol.asked)
    assert os.listdir(enrol.state) == ["identity.json"]
    assert json.loads((enrol.state / "identity.json").read_bytes()) == dataclasses.asdict(found)
    assert (enrol.state / "identity.json").stat().st_mode & 0o777 == 0o600


def test_a_token_is_not_used_up_where_nothing_can_be_kept(enrol, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(BadStoreConfiguration, match=r"state_dir: .*No space left on device"):
        enrol()

    assert enrol.asked == []


def test_after_a_lost_answer_the_node_is_still_the_same(enrol):
    enrol.lost = True
    with pytest.raises(RemoteServiceUnavailable):
        enrol()
    enrol.lost = False

    assert enrol().secret == enrol.asked[0] == enrol.asked[1]
    assert len(enrol.asked[0]) > 40


@pytest.mark.parametrize("answer", [{}, {"id": "1", "name": "n1"}, {"id": "1", "name": None, "secret": "s"}])
def test_an_answer_that_names_no_node_is_asked_for_again(enrol, monkeypatch, answer):
    with monkeypatch.context() as patch:
        patch.setattr(Api, "register", lambda *given: answer)
        with pytest.raises(RemoteServiceUnavailable, match="does not say who the node is"):
            enrol()
    assert identity.load(enrol.state) is None
    assert enrol() == identity.load(enrol.state)


def test_what_is_left_of_another_attempt_is_in_nobodys_way(enrol):
    (enrol.state / "identity.json.new").write_bytes(b"half of it")

    assert enrol() == identity.load(enrol.state)


def test_a_file_that_may_be_whole_is_not_to_be_removed(tmp_path):
    (tmp_path / "identity.json").mkdir()
    with pytest.raises(BadStoreConfiguration, match="identity.json cannot be read: Is a directory$"):
        identity.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"id": 5, "name": "n1", "secret": "s"}', '{"id": "1", "name": "n1", "secret": "\\n"}'],
)
def test_a_file_that_is_damaged_is_named(tmp_path, text):
    (tmp_path / "identity.json").write_text(text)
    with pytest.raises(BadStoreConfiguration, match="identity.json is damaged; remove it"):
        identity.load(tmp_path)


def test_a_keystone_that_does_not_answer_is_waited_for_as_the_api_is(tmp_path):
    (tmp_path / "node.ini").write_text(
        INI.replace("enrolment_token = t", "enrol_with_keystone = true")
        + "[keystone]\nauth_type = password\nauth_url = http://127.0.0.1:9/v3\nusername = u\npassword = secret\n"
    )
    settings, conf = options.load(tmp_path / "node.ini")
    api = Api(settings.api_url)
    with pytest.raises(RemoteServiceUnavailable, match="Keystone does not answer"):
        identity.enrol(settings, conf, api, "192.0.2.1", 9293)
    api.close()

# SPDX-License-Identifier: Apache-2.0
"""The file of an agent, and what is wrong with it."""

from __future__ import annotations

import socket

import pytest

from storelib.exceptions import BadStoreConfiguration
from storelib.node import options
from storelib.node.api import Api

LEAST = "api_url = https://images.example:9292/\ntarget_dir = images\n"


@pytest.fixture
def load(tmp_path):
    def read(text):
        file = tmp_path / "node.ini"
        file.write_text(f"[node]\n{text}")
        return options.load(file)[0]

    return read


def test_little_has_to_be_said(load, tmp_path):
    settings = load(LEAST)

    assert settings.api_url == "https://images.example:9292"
    assert settings.name == socket.gethostname()
    assert settings.target_dir == tmp_path / "images"
    assert (settings.mode, settings.budget, settings.reserve) == (0o644, 0, 1 << 30)


def test_sizes_may_have_units(load):
    settings = load(f"{LEAST}budget = 1.5 TiB\nup_limit = 80M\n")

    assert (settings.budget, settings.up_limit) == (3 << 39, 80 << 20)


def test_the_token_may_be_in_a_file_that_is_gone_later(load, tmp_path):
    (tmp_path / "token").write_text("secret\n")

    settings = load(f"{LEAST}enrolment_token_file = token\n")

    assert settings.enrolment_token == "secret"
    assert "secret" not in repr(settings)
    (tmp_path / "token").unlink()
    assert load(f"{LEAST}enrolment_token_file = token\n").enrolment_token is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("target_dir = images", "api_url has to be set"),
        ("api_url = https://images.example", "target_dir has to be set"),
        ("api_url = images.example\ntarget_dir = images", "begin with http"),
        ("api_url = https://images.example:99999\ntarget_dir = images", "a port from 1"),
        ("api_url = https://[images.example\ntarget_dir = images", "name a host"),
        ("api_url = https:///v2\ntarget_dir = images", "name a host"),
        (f"{LEAST}layout = libvirt", "layout"),
        (f"{LEAST}mode = rw", "mode"),
        (f"{LEAST}mode = 4755", "mode"),
        (f"{LEAST}budget = much", "expected bytes, such as 512"),
        (f"{LEAST}budgets = 1G", "did you mean budget"),
        (f"{LEAST}[Node]\nbudgets = 1G", "did you mean budget"),
        (f"{LEAST}port = 0", "port"),
        (f"{LEAST}state_dir = images", "target_dir cannot be in state_dir"),
        (f"{LEAST}state_dir = images/../.", "target_dir cannot be in state_dir"),
    ],
)
def test_what_cannot_be_is_named(load, text, why):
    with pytest.raises(BadStoreConfiguration, match=why):
        load(text)


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_authorities_that_cannot_be_had_are_named(load, tmp_path, text):
    if text is not None:
        (tmp_path / "ca.pem").write_text(text)
    settings = load(f"{LEAST}ca_file = ca.pem\n")

    with pytest.raises(BadStoreConfiguration, match=r"ca_file = .*/ca.pem cannot be used: \S+"):
        Api(settings.api_url, settings.ca_file)

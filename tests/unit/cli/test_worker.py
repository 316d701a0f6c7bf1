# SPDX-License-Identifier: Apache-2.0
"""storelib worker: what it refuses before it waits for anything. What it does is the functional tests'."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def configured(places):
    """Write more lines into storelib.ini, which names a database."""

    def write(text: str = "") -> None:
        with (places / "storelib.ini").open("a") as file:
            file.write(f"[database]\nconnection = sqlite:///{places}/images.sqlite\n{text}")

    return write


def test_without_a_bus_there_are_no_workers(storelib, configured):
    configured()
    response = storelib("worker")
    assert (response.code, "transport_url" in response.err) == (2, True)


def test_oslo_messaging_is_asked_for_by_its_extra(storelib, configured, monkeypatch):
    configured("[DEFAULT]\ntransport_url = fake://\n")
    monkeypatch.setitem(sys.modules, "oslo_messaging", None)
    response = storelib("worker")
    assert (response.code, "storelib[notifications]" in response.err) == (2, True)


def test_the_api_works_where_it_is_not_installed(configured, places, monkeypatch):
    """A file may name a bus for other programs."""
    from storelib.api.service.bus import bus_from
    from storelib.config import load_file

    configured("[DEFAULT]\ntransport_url = fake://\n")
    monkeypatch.setitem(sys.modules, "oslo_messaging", None)
    assert bus_from(load_file(places / "storelib.ini")) is None

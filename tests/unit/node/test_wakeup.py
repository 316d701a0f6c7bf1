# SPDX-License-Identifier: Apache-2.0
"""The message that wakes nodes."""

from __future__ import annotations

import sys
import threading

import pytest
from oslo_config import cfg

from storelib.config import read_file
from storelib.exceptions import MissingDependency
from storelib.messaging import NODES, Messages
from storelib.node import wakeup


@pytest.fixture
def configured(tmp_path):
    def read(text):
        conf = cfg.ConfigOpts()
        file = tmp_path / "node.ini"
        file.write_text(text)
        read_file(conf, file)
        return conf

    return read


def test_without_a_bus_nothing_listens(configured, monkeypatch):
    monkeypatch.setitem(sys.modules, "oslo_messaging", None)

    wakeup.listen(configured("[node]\n"), "n1", pytest.fail)


def test_a_bus_needs_its_package(configured, monkeypatch):
    monkeypatch.setitem(sys.modules, "oslo_messaging", None)

    with pytest.raises(MissingDependency, match=r"storelib\[notifications\]"):
        wakeup.listen(configured("[DEFAULT]\ntransport_url = fake://\n"), "n1", pytest.fail)


def test_the_message_of_the_api_wakes_a_node(configured):
    conf = configured("[DEFAULT]\ntransport_url = fake://\n")
    woken = threading.Event()
    wakeup.listen(conf, "n1", woken.set)
    wake = Messages(conf, NODES).sender()

    # The first ones may come before it listens.
    for _ in range(300):
        wake()
        if woken.wait(0.1):
            break

    assert woken.is_set()

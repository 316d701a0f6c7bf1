# SPDX-License-Identifier: Apache-2.0
"""When an agent asks the image API."""

from __future__ import annotations

import math
import threading

import lone_agent
import pytest

from storelib.exceptions import RemoteServiceUnavailable
from storelib.node import agent
from storelib.node.api import Api

#: Seconds: longer than any test takes.
NEVER = 3600.0


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Have an agent run until its heartbeats were answered so: with a document, or an error."""
    load = lone_agent.enrolled(tmp_path, monkeypatch)
    monkeypatch.setattr(agent, "INTERVAL", NEVER)
    monkeypatch.setattr(agent, "SOONEST", 0.01)
    monkeypatch.setattr(agent, "TICK", 0.01)
    asked = []

    def run(*responses):
        stop, left = threading.Event(), list(responses)

        def heartbeat(api, node_id, secret, document):
            asked.append(node_id)
            response = left.pop(0)
            if not left:
                stop.set()
            if isinstance(response, Exception):
                raise response
            return response

        monkeypatch.setattr(Api, "heartbeat", heartbeat)
        made = load()
        late = threading.Timer(30, stop.set)
        late.start()
        try:
            made.enrol(stop)
            made.run(stop)
        finally:
            late.cancel()
            made.close()
        return len(asked)

    return run


def test_a_heartbeat_that_came_too_fast_is_sent_again_when_the_api_says(run):
    refused = RemoteServiceUnavailable("the image API refuses: 429", retry_after=0.05)
    assert run(refused, refused, {"interval": NEVER}) == 3


@pytest.mark.parametrize("interval", [math.inf, math.nan, -1.0, 0, "soon", None])
def test_an_interval_that_is_none_changes_nothing(run, interval):
    assert run({"interval": 0.02}, {"interval": interval}, {"interval": interval}, {"interval": NEVER}) == 4


def test_a_node_asks_again_within_a_day_whatever_it_is_told(run, monkeypatch):
    monkeypatch.setattr(agent, "LATEST", 0.02)
    assert run({"interval": 1e300}, {"interval": 10**400}, {"interval": NEVER}) == 3

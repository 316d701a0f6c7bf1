# SPDX-License-Identifier: Apache-2.0
"""What the API decides for many nodes, also in the simulation of benchmarks/preload_plan.py, which calls the same."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from storelib.api.db.preload_records import Node, Peer, Place
from storelib.api.service.preload import plan

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from preload_plan import MiB, Simulation, chart

NODE = Node("me", "me", "g", "a", 6881, "", None, None, None, None, False, 0, 0)
MOMENT = 1_000_000_000


@pytest.fixture(scope="module")
def outcome():
    return Simulation(plan.Limits(), 200).run()


def test_all_are_ready_in_little_more_than_the_time_of_one(outcome):
    assert outcome.ready[-1][1] == 200
    assert outcome.ratio <= 1.5


def test_the_api_sends_an_image_twice_at_most(outcome):
    assert outcome.from_source <= 2 * 2048 * MiB


def test_few_nodes_read_from_the_api_at_a_time(outcome):
    assert outcome.most_places <= plan.Limits().web_seeds


def test_heartbeats_of_many_nodes_are_as_many_as_the_options_say():
    limits = plan.Limits(heartbeats_per_second=20.0)
    assert plan.interval(limits, 10, busy=True) == limits.interval
    assert plan.interval(limits, 1000, busy=True) == plan.interval(limits, 1000, busy=False) == 50.0
    found = Simulation(limits, 400).run()
    assert sum(found.heartbeats) / found.seconds <= 20.0 * 1.2


def test_a_place_lasts_longer_than_the_time_between_heartbeats():
    for nodes in (1, 100, 100_000):
        limits = plan.Limits()
        assert plan.expiry(limits, nodes, 0) > plan.interval(limits, nodes, busy=True) * plan.SECOND


def test_a_node_keeps_its_place_and_takes_no_second_one():
    there = [Place("p", number, "me" if number == 1 else "", 5, MOMENT if number == 1 else 0) for number in range(4)]
    assert plan.places(plan.Limits(), NODE, ["p"], there, MOMENT, random.Random(1)) == [there[1]]


def test_places_of_one_node_are_few():
    wanted = [f"p{number}" for number in range(50)]
    there = [Place(each, number, "", 0, 0) for each in wanted for number in range(4)]
    found = plan.places(plan.Limits(), NODE, wanted, there, MOMENT, random.Random(1))
    assert len(found) == plan.MOST_PLACES
    assert all(place.place < 3 for place in found)


def test_a_node_is_told_of_a_few_others_and_never_of_itself():
    peers = [Peer(f"n{number}", "a", 1, "ready" if number < 40 else "fetching") for number in range(1000)]
    peers.append(Peer("me", "a", 1, "fetching"))
    limits = plan.Limits()
    found = plan.some(limits, peers, "me", random.Random(1))
    assert len(found) == len({peer.node_id for peer in found}) == limits.peers
    assert "me" not in {peer.node_id for peer in found}
    assert {"ready", "fetching"} == {peer.state for peer in found}


def test_who_was_found_wrong_by_several_is_told_of_no_more():
    peers = [Peer("good", "a", 1, "ready", 1), Peer("bad", "a", 2, "ready", 2)]
    assert [peer.node_id for peer in plan.told_of(plan.Limits(), peers)] == ["good"]


def test_the_picture_has_a_line_for_each(outcome):
    assert chart([outcome, outcome]).count("<polyline") == 2

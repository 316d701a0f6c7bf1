# SPDX-License-Identifier: Apache-2.0
"""Who gets what when images are distributed: how often nodes ask, who reads from the API, who is told of whom.

Functions of records and of the time, which is in microseconds since 1970, and of nothing else: the simulation of
thousands of nodes in ``benchmarks/`` calls the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from storelib.api.db.preload_records import Node, Peer, Place, Work

SECOND = 1_000_000
#: Heartbeats that a node may miss before it is thought to be away.
MISSED = 3
#: Seconds without a new byte after which a node may read from the API although others have the image, and after which
#: another one may in its place.
STALLED = 60
#: Seconds that the clocks of two hosts may differ.
CLOCKS = 3600
#: Seconds for which a place is granted, even where so many nodes ask that they do it seldom.
LONGEST_HELD = 3600
#: Places from which one node reads at a time, of all its images.
MOST_PLACES = 4
#: How much faster than it was told to a node may send heartbeats, and the seconds between two in any case: whatever
#: changes on a node is told soon.
FASTER, SOONEST = 10, 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """``[preload]``, in seconds where it is about time."""

    interval: float = 5.0
    idle_interval: float = 30.0
    heartbeats_per_second: float = 100.0
    web_seeds: int = 3
    peers: int = 30
    ticket_lifetime: float = 60.0
    ban_reports: int = 2


def interval(limits: Limits, nodes: int, *, busy: bool) -> float:
    """Seconds until the next heartbeat of one of so many nodes, that has something to do or not."""
    return max(limits.interval if busy else limits.idle_interval, nodes / limits.heartbeats_per_second)


def longest(limits: Limits, nodes: int) -> float:
    """Seconds after its last heartbeat for which a node of so many is thought to be there."""
    return MISSED * interval(limits, nodes, busy=False)


def gap(limits: Limits) -> int:
    """Microseconds between two heartbeats of a node at least."""
    return int(min(SOONEST, limits.interval / FASTER) * SECOND)


def is_too_soon(seen_at: int, now: int, gap: int) -> bool:
    """Whether a node that was seen then may not be heard again yet.

    One that was seen in the future was not: the clock was set back, or is behind that of another process.
    """
    return now - gap < seen_at <= now + gap


def is_busy(work: Iterable[Work]) -> bool:
    """Whether there is something to do for a node."""
    return any(each.state != "ready" for each in work)


def told_of(limits: Limits, peers: Iterable[Peer]) -> list[Peer]:
    """The peers that others are told of: those that few have found with wrong parts."""
    return [peer for peer in peers if peer.reports < limits.ban_reports]


def seeds(peers: Iterable[Peer], node_id: str) -> int:
    """How many others have all of an image."""
    return sum(peer.state == "ready" and peer.node_id != node_id for peer in peers)


def wants_source(node: Node, work: Work, complete: int, now: int) -> bool:
    """Whether a node is to read an image from the API while ``complete`` others have all of it.

    Those that take part in the exchange read from it until one has all of it, and when they come no further; those
    that do not have no other source.
    """
    if node.draining or not work.image.size or work.state in ("ready", "failed"):
        return False
    if not node.port:
        return True
    return work.has_pieces and (not complete or _is_apart(work.moved_at, now))


def has_stalled(work: Work, place: Place, now: int) -> bool:
    """Whether a node gets nothing although it may read from the API: its place is for others then.

    It may not reach the store that it is sent to, or wait for room; all other nodes wait for those that read.
    """
    return _is_apart(work.moved_at, now) and _is_apart(place.granted_at, now)


def _is_apart(moment: int, now: int) -> bool:
    """Whether it is longer ago than nodes may stand still, or far in the future: then the clock was set back."""
    return not now - STALLED * SECOND <= moment <= now + CLOCKS * SECOND


def places(
    limits: Limits, node: Node, wanted: Sequence[str], there: Sequence[Place], now: int, chance: random.Random
) -> list[Place]:
    """The places that a node keeps or tries to take to read these preloads from the API, one for each at most.

    It reads a preload through to the end from the place that it has. Nodes that exchange nothing have the last place of
    each preload to themselves, one after another.
    """
    of: dict[str, list[Place]] = {preload_id: [] for preload_id in wanted}
    for place in there:
        if place.preload_id in of:
            of[place.preload_id].append(place)
    found = []
    # Of what the node had, and has no more, they are not known: it asks again soon.
    for each in filter(None, of.values()):
        mine = [place for place in each if place.node_id == node.id and place.expires_at >= now]
        free = [place for place in _allowed(node, each) if not _is_held(limits, place, now)]
        if mine:
            found.append(mine[0])
        elif free:
            found.append(chance.choice(free))
    held = [place for place in found if place.node_id == node.id and place.expires_at >= now]
    return (held + [place for place in found if place not in held])[:MOST_PLACES]


def places_for(limits: Limits) -> int:
    """How many places a preload has."""
    return limits.web_seeds + 1


def expiry(limits: Limits, nodes: int, now: int) -> int:
    """Until when a place is a node's that has sent a heartbeat now."""
    return now + int(max(limits.ticket_lifetime, MISSED * interval(limits, nodes, busy=True)) * SECOND)


def some(limits: Limits, peers: Sequence[Peer], node_id: str, chance: random.Random) -> list[Peer]:
    """The peers that a node is told of: some of those that have all of it, and some of the others."""
    others = [peer for peer in peers if peer.node_id != node_id]
    if len(others) <= limits.peers:
        return others
    complete = [peer for peer in others if peer.state == "ready"]
    first = chance.sample(complete, min(len(complete), limits.peers // 2))
    chosen = {peer.node_id for peer in first}
    rest = [peer for peer in others if peer.node_id not in chosen]
    return first + chance.sample(rest, limits.peers - len(first))


def is_over(totals: Mapping[str, int]) -> bool:
    """Whether all nodes have an image, by their states."""
    return bool(totals) and set(totals) == {"ready"}


def _is_held(limits: Limits, place: Place, now: int) -> bool:
    """Whether a place is some node's. One that is for longer than any was granted before a clock was set back, and its
    node, if it is still there, has it corrected with its next heartbeat.
    """
    return now <= place.expires_at <= now + int(max(2 * limits.ticket_lifetime, LONGEST_HELD) * SECOND)


def _allowed(node: Node, there: Sequence[Place]) -> list[Place]:
    last = max(place.place for place in there)
    return [place for place in there if (place.place == last) is not bool(node.port)]

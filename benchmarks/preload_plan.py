# SPDX-License-Identifier: Apache-2.0
"""A simulation of thousands of nodes that get one image by the API's own decisions, and what heartbeats cost the API.

python benchmarks/preload_plan.py [--json] [--chart docs/preload.svg]. Which node reads from the API, who is told of
whom and how often nodes ask is decided by ``storelib.api.service.preload.plan``, as in the API. The transfer is a
model: a node sends and receives at its rate at most, what nobody has read from the API yet nobody has, and what is
offered is shared among the nodes that fetch. Times are in seconds; the ratio is the time of all to that of one alone.

What a heartbeat costs is measured, in time of one core: the service of the API over SQLite, without HTTP.
"""

from __future__ import annotations

import heapq
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storelib.api.db.preload_records import ImageFacts, Node, Peer, Place, Work
from storelib.api.service.preload import plan

HERE = Path(__file__).resolve().parent
MiB = 1024 * 1024
#: Of a node's rate that the exchange of parts makes use of, as 16 real agents did.
EFFICIENCY = 0.9
#: Seconds between two steps of the model, and for which the API believes what it knows of peers.
STEP, BELIEVED = 0.5, 2.0


@dataclass
class Member:
    """One node. ``done`` is in bytes; ``next`` when it asks again."""

    node: Node
    done: float = 0.0
    source: bool = False
    knows: bool = False
    ready_at: float | None = None
    moved_at: float = 0.0


@dataclass
class Outcome:
    """What became of it; ``ready`` is how many nodes were ready at which time."""

    nodes: int
    alone: float
    seconds: float
    from_source: float
    heartbeats: list[int] = field(default_factory=list)
    most_places: int = 0
    ready: list[tuple[float, int]] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The time of all to that of one."""
        return self.seconds / self.alone


class Simulation:
    """``count`` nodes with ``rate`` bytes per second each, the API with as much for each place; all woken at once."""

    def __init__(self, limits: plan.Limits, count: int, size: int = 2048 * MiB, rate: float = 50.0 * MiB) -> None:
        self.limits, self.size, self.rate = limits, size, rate
        self.chance = random.Random(count)
        self.image = ImageFacts("i", "o", "public", "active", False, False, size, size, "raw", "bare", "sha512", "x")
        blank = (None, None, None, None, False, 0, 0)
        self.members = [Member(Node(f"n{number}", f"n{number}", "g", "a", 6881, "", *blank)) for number in range(count)]
        self.places = [Place("p", number, "", 0, 0) for number in range(plan.places_for(limits))]
        self.injected = 0.0
        self.peers: Sequence[Peer] = ()
        self.known_at = -BELIEVED

    def run(self, until: float = 3600.0) -> Outcome:
        """Until all are ready; raises RuntimeError if they are not by then."""
        found = Outcome(len(self.members), self.size / self.rate, 0.0, 0.0)
        # A message wakes all, who ask within the time between two heartbeats at most.
        first = plan.interval(self.limits, len(self.members), busy=True)
        due = [(self.chance.uniform(0, first), number) for number in range(len(self.members))]
        heapq.heapify(due)
        now, ready = 0.0, 0
        while ready < len(self.members):
            if now > until:
                raise RuntimeError(f"{len(self.members) - ready} nodes are not ready after {until} seconds")
            asked = 0
            while due and due[0][0] <= now:
                _, number = heapq.heappop(due)
                heapq.heappush(due, (now + self.heartbeat(self.members[number], now), number))
                asked += 1
            found.heartbeats.append(asked)
            found.most_places = max(
                found.most_places, sum(member.source for member in self.members if member.done < self.size)
            )
            now += STEP
            ready += self.transfer(now)
            found.ready.append((now, ready))
        found.seconds, found.from_source = now, self.injected
        return found

    def heartbeat(self, member: Member, now: float) -> float:
        """What the API does for one, in the same order; returns the seconds until the next one."""
        moment = int(now * plan.SECOND) + 1
        state: Any = "ready" if member.ready_at is not None else "fetching" if member.done else "queued"
        work = Work(
            "p", False, "", state, int(member.done), 0, 0, None, int(member.moved_at * plan.SECOND), True, self.image
        )
        if now - self.known_at >= BELIEVED:
            self.known_at = now
            there = (
                Peer(each.node.id, "a", 6881, "ready" if each.ready_at is not None else "fetching")
                for each in self.members
                if each.knows
            )
            self.peers = sorted(there, key=lambda peer: peer.state != "ready")[:1000]
        complete = plan.seeds(self.peers, member.node.id)
        wanted = ["p"] if plan.wants_source(member.node, work, complete, moment) else []
        holds = any(place.node_id == member.node.id and place.expires_at >= moment for place in self.places)
        if holds and state != "ready":
            wanted = ["p"]
        claims = plan.places(self.limits, member.node, wanted, self.places, moment, self.chance)
        for place in claims:
            expires = plan.expiry(self.limits, len(self.members), moment)
            self.places[place.place] = place._replace(node_id=member.node.id, granted_at=moment, expires_at=expires)
        if not claims and holds:
            self.places = [
                place._replace(node_id="", expires_at=0) if place.node_id == member.node.id else place
                for place in self.places
            ]
        member.source = bool(claims)
        if state != "ready":
            plan.some(self.limits, self.peers, member.node.id, self.chance)
        member.knows = True
        return plan.interval(self.limits, len(self.members), busy=plan.is_busy([work]))

    def transfer(self, now: float) -> int:
        """One step of the model; returns how many became ready."""
        fetching = [member for member in self.members if member.knows and member.ready_at is None]
        reading = sum(member.source for member in fetching)
        full = self.rate * STEP
        by_peers = sum(full * EFFICIENCY for member in self.members if member.done)
        # Who reads from the API gets parts from the others, too, from each as much as it offers.
        read = full * reading * full / (full + by_peers / max(len(fetching), 1))
        self.injected += read
        offered = read + by_peers
        # Parts that were read by different nodes are different ones, until all have been read.
        there = min(self.injected, self.size)
        wanting = [member for member in fetching if member.source or member.done < there]
        share = min(full, offered / len(wanting)) if wanting else 0.0
        ready = 0
        for member in wanting:
            before = member.done
            member.done = min(member.done + share, there)
            if member.done > before:
                member.moved_at = now
            if member.done >= self.size:
                member.ready_at = now
                ready += 1
        return ready


def measure(count: int = 300) -> dict[str, float]:
    """Heartbeats for each second of one core, with so many nodes over SQLite, and statements for each heartbeat."""
    sys.path.append(str(HERE.parent / "tests" / "unit" / "api"))
    from deployment import Deployment
    from preload_nodes import SECTIONS, FakeNode, preload
    from sqlalchemy import event

    with tempfile.TemporaryDirectory() as directory:
        api = Deployment(Path(directory), SECTIONS)
        try:
            image = api.alice.active(b"x" * 5 * MiB)
            nodes = [FakeNode(api, f"n{number}") for number in range(count)]
            [one] = preload(api, image)
            statements: list[str] = []
            event.listen(
                api.repository.database.engine, "before_cursor_execute", lambda *given: statements.append(given[2])
            )
            agents, found = api.service.preload.agents, {}
            for what, state, done in (
                ("fetching", "fetching", MiB),
                ("ready", "ready", 5 * MiB),
                ("idle", "ready", 5 * MiB),
            ):
                said = {
                    "address": "192.0.2.7",
                    "port": 6881,
                    "states": [{"preload": one, "state": state, "done": done}],
                }
                del statements[:]
                begun = time.process_time()
                for node in nodes:
                    agents.heartbeat(node.id, node.secret, said)
                seconds = time.process_time() - begun
                found[f"{what}_per_second"] = count / seconds
                found[f"{what}_statements"] = len(statements) / count
        finally:
            api.close()
    return found


def chart(outcomes: Sequence[Outcome]) -> str:
    """A picture of how many nodes are ready when, as SVG."""
    width, height, left, top = 640, 300, 60, 20
    longest = max(outcome.seconds for outcome in outcomes)
    colours = ("#2a6f97", "#c8553d", "#588157")

    def x(seconds: float) -> float:
        return left + seconds / longest * (width - left - 20)

    def y(part: float) -> float:
        return top + (1 - part) * (height - top - 50)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for part in (0, 0.25, 0.5, 0.75, 1):
        lines.append(f'<path d="M{left} {y(part):.1f}H{width - 20}" stroke="#dddddd"/>')
        lines.append(f'<text x="{left - 8}" y="{y(part) + 4:.1f}" text-anchor="end">{part:.0%}</text>')
    alone = outcomes[0].alone
    lines.append(f'<path d="M{x(alone):.1f} {y(0):.1f}V{y(1):.1f}" stroke="#888888" stroke-dasharray="4 3"/>')
    lines.append(
        f'<text x="{x(alone) - 4:.1f}" y="{y(0.05):.1f}" text-anchor="end" fill="#555555">one node alone</text>'
    )
    for outcome, colour in zip(outcomes, colours, strict=False):
        points = " ".join(f"{x(when):.1f},{y(ready / outcome.nodes):.1f}" for when, ready in [(0.0, 0), *outcome.ready])
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for number, (outcome, colour) in enumerate(zip(outcomes, colours, strict=False)):
        at = left + 10, y(0.92) + 16 * number
        lines.append(
            f'<text x="{at[0]}" y="{at[1]:.1f}" fill="{colour}">{outcome.nodes} nodes: {outcome.ratio:.2f} times</text>'
        )
    for seconds in range(0, int(longest) + 1, 10):
        lines.append(f'<text x="{x(seconds):.1f}" y="{height - 30}" text-anchor="middle">{seconds}</text>')
    lines.append(f'<text x="{width / 2}" y="{height - 10}" text-anchor="middle">seconds</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> None:
    """Simulate 100, 1 000 and 10 000 nodes, measure heartbeats, and print what was found."""
    outcomes = [
        Simulation(plan.Limits(), 100).run(),
        Simulation(plan.Limits(), 1000).run(),
        Simulation(plan.Limits(heartbeats_per_second=1000.0), 10_000).run(),
    ]
    if "--chart" in sys.argv:
        Path(sys.argv[sys.argv.index("--chart") + 1]).write_text(chart(outcomes))
    rows = [
        {
            "nodes": outcome.nodes,
            "seconds": outcome.seconds,
            "ratio": round(outcome.ratio, 2),
            "from_source": round(outcome.from_source / (2048 * MiB), 2),
            "places": outcome.most_places,
            "heartbeats_per_second": round(sum(outcome.heartbeats) / outcome.seconds),
        }
        for outcome in outcomes
    ]
    measured = {name: round(value, 1) for name, value in measure().items()}
    if "--json" in sys.argv:
        print(json.dumps({"simulated": rows, "measured": measured}))
        return
    for row in rows:
        print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.items()))
    for name, value in measured.items():
        print(f"{name.replace('_', ' ')}: {value}")


if __name__ == "__main__":
    main()

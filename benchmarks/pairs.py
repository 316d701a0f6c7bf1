# SPDX-License-Identifier: Apache-2.0
"""Paired measurements: both sides run in turn, in this process, and only their ratio is compared.

A noisy machine changes both sides of a pair; the ratio of neighbours moves far less than either.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

T = TypeVar("T", int, str)

MiB = 1024 * 1024


@dataclass(frozen=True)
class Pair:
    """The outcome of one comparison; rates in ``unit``."""

    name: str
    ours: float
    theirs: float
    ratio: float
    target: float
    peer: str
    unit: str = "MiB/s"

    @property
    def reached(self) -> bool:
        return self.ratio >= self.target


def compare(
    name: str,
    size: int,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    target: float,
    peer: str,
    rounds: int = 3,
) -> Pair:
    """Run both ``rounds`` times after a warm-up, alternating which goes first; answers the median ratio.

    What a side answers, if anything, is called afterwards, untimed, to remove what it made.
    """

    def rate(function: Callable[[], Any]) -> Callable[[], float]:
        return lambda: size / MiB / _seconds(function)

    return compare_rates(name, rate(ours), rate(theirs), target=target, peer=peer, rounds=rounds)


def compare_rates(
    name: str,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    *,
    target: float,
    peer: str,
    rounds: int = 3,
    unit: str = "MiB/s",
) -> Pair:
    """The same of functions that measure themselves and answer how much they did in a second."""
    theirs(), ours()
    our_rates: list[float] = []
    their_rates: list[float] = []
    for index in range(rounds):
        order = [(ours, our_rates), (theirs, their_rates)]
        for function, rates in order if index % 2 else reversed(order):
            rates.append(function())
    ratio = statistics.median(ours / theirs for ours, theirs in zip(our_rates, their_rates, strict=True))
    pair = Pair(name, statistics.median(our_rates), statistics.median(their_rates), ratio, target, peer, unit)
    show(pair)
    return pair


def _seconds(function: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    clean_up = function()
    elapsed = time.perf_counter() - begun
    if clean_up is not None:
        clean_up()
    return elapsed


def show(pair: Pair) -> None:
    """One line for people, or one JSON object with ``--json``."""
    if "--json" in sys.argv:
        print(json.dumps({**asdict(pair), "reached": pair.reached}), flush=True)
        return
    verdict = "ok" if pair.reached else "BELOW"
    print(
        f"{pair.name:46} ours {pair.ours:8.0f} {pair.unit}  {pair.peer:32} {pair.theirs:8.0f} {pair.unit}  "
        f"ratio {pair.ratio:6.2f}  target {pair.target:5.2f}  {verdict}",
        flush=True,
    )


def show_rate(name: str, function: Callable[[], object], repeat: int) -> None:
    """How many MiB a second ``function`` handles, taking one each time; for people only."""
    begun = time.perf_counter()
    for _ in range(repeat):
        function()
    if "--json" not in sys.argv:
        print(f"{name:46}      {repeat / (time.perf_counter() - begun):8.0f} MiB/s", flush=True)


def peak_growth(function: Callable[[], object]) -> int:
    """Bytes by which the resident set of this process grew at most while ``function`` ran."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets VmHWM, proc(5)
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) * 1024


def workplace() -> str:
    """Where the files of a benchmark go: a real disk, not a tmpfs. ``BENCH_DIR`` overrides it."""
    path = os.environ.get("BENCH_DIR") or os.path.join(os.path.dirname(os.path.abspath(__file__)), ".work")
    os.makedirs(path, exist_ok=True)
    return path


def argument(name: str, default: T) -> T:
    """What follows ``name`` on the command line, as what the default is."""
    return type(default)(sys.argv[sys.argv.index(name) + 1]) if name in sys.argv else default


@contextlib.contextmanager
def dense_image(size: int) -> Iterator[str]:
    """The path of a file of ``size`` bytes, none of whose blocks equals its neighbours."""
    block = os.urandom(MiB)
    with tempfile.TemporaryDirectory(dir=workplace()) as directory:
        path = os.path.join(directory, "image")
        with open(path, "wb") as file:
            for index in range(size // MiB):
                turn = index % 255 + 1
                file.write(block[turn:] + block[:turn])
        yield path

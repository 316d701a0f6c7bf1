# SPDX-License-Identifier: Apache-2.0
"""Paired measurements: both sides run in turn, in this process, and only their ratio is compared.

A noisy machine changes both sides of a pair; the ratio of neighbours moves far less than either.

In the warm-up, before anything is measured, what each side stored is read back and what it read is hashed: there is no
ratio of work that was not done right.

With ``--processor`` time is that of the processor, of this process and of programs that it waits for, servers left out:
how much of one core the client takes, which other work on the machine hardly changes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

T = TypeVar("T", int, str)

MiB = 1024 * 1024
PROCESSOR = "--processor" in sys.argv
READ_BACK = "all bytes were read back"


@dataclass(frozen=True)
class Pair:
    """The outcome of one comparison; rates in ``unit``, medians.

    ``ratios`` are those of each pair, ``cores`` how many the whole machine kept busy meanwhile, servers included: where
    these are all that there are, no other program could be faster with as much to do.
    """

    name: str
    ours: float
    theirs: float
    ratio: float
    target: float
    peer: str
    unit: str = "MiB/s"
    #: How it is known that both did what they had to.
    verified: str = ""
    ratios: tuple[float, ...] = ()
    cores: float = 0.0
    their_cores: float = 0.0

    @property
    def reached(self) -> bool:
        return self.ratio >= self.target


class Stored:
    """What a side returns that stored something: ``pieces`` read it back, and a call removes it."""

    def __init__(self, size: int, pieces: Callable[[], Iterable[Any]], remove: Callable[[], object]) -> None:
        self.size = size
        self._pieces = pieces
        self._remove = remove

    def __call__(self) -> None:
        self._remove()

    def then(self, more: Callable[[], object]) -> Stored:
        """The same, with ``more`` to do after it is removed."""
        return Stored(self.size, self._pieces, lambda: (self._remove(), more()))

    def read_back(self) -> None:
        received(self._pieces(), self.size)


class WrongBytes(Exception):
    """A side stored or read something else than it was given."""


class _Checks:
    """What the images of this process are, by size, and how many were compared with that in this warm-up."""

    def __init__(self) -> None:
        self.digests: dict[int, set[bytes]] = {}
        self.warming_up = False
        self.done = 0


_checks = _Checks()


def warming_up() -> bool:
    """Whether what is done now is not measured, but compared."""
    return _checks.warming_up


def expect(path: str) -> None:
    """Images of this file's size may have its bytes."""
    expect_pieces(pieces_of_file(path))


def expect_pieces(pieces: Iterable[Any]) -> None:
    """Images of so many bytes may be these."""
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
    _checks.digests.setdefault(size, set()).add(digest.digest())


def received(pieces: Iterable[Any], size: int) -> None:
    """Take in what a side reads. Its size always counts; in a warm-up all its bytes are compared, too."""
    digest = hashlib.sha256() if _checks.warming_up else None
    got = 0
    for piece in pieces:
        got += len(piece)
        if digest is not None:
            digest.update(piece)
    if got != size:
        raise WrongBytes(f"{got} bytes instead of {size}")
    if digest is not None:
        if digest.digest() not in _checks.digests[size]:
            raise WrongBytes(f"other bytes, of the {size} that there are")
        _checks.done += 1


def pieces_of(stream: Any, buffer: bytearray | memoryview) -> Iterator[memoryview]:
    """What ``readinto`` gives until the end."""
    view = memoryview(buffer)
    while count := stream.readinto(view):
        yield view[:count]


def pieces_of_file(path: str) -> Iterator[memoryview]:
    with open(path, "rb", buffering=0) as file:
        yield from pieces_of(file, bytearray(MiB))


def compare(
    name: str,
    size: int,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    target: float,
    peer: str,
    rounds: int = 3,
    verified: str = "",
    before: Callable[[], object] | None = None,
) -> Pair:
    """Run both ``rounds`` times after a warm-up, alternating which goes first; returns the median ratio.

    What a side returns, if anything, is called afterwards, untimed, to remove what it made; a Stored is read back
    before. ``verified`` says how it is known otherwise that both sides do what they have to. ``before`` is called
    before each run, untimed.
    """

    def rate(function: Callable[[], Any]) -> Callable[[], float]:
        def measured() -> float:
            if before is not None:
                before()
            return size / MiB / _seconds(function)

        return measured

    return compare_rates(name, rate(ours), rate(theirs), target=target, peer=peer, rounds=rounds, verified=verified)


def compare_rates(
    name: str,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    *,
    target: float,
    peer: str,
    rounds: int = 3,
    unit: str = "MiB/s",
    verified: str = "",
) -> Pair:
    """The same of functions that measure themselves and return how much they did in a second."""
    compared = all([_warm_up(theirs), _warm_up(ours)])
    if not (verified or compared):
        raise WrongBytes(f"{name}: nothing of what both sides did was compared")
    our_rates: list[tuple[float, float]] = []
    their_rates: list[tuple[float, float]] = []
    for index in range(rounds):
        order = [(ours, our_rates), (theirs, their_rates)]
        for function, rates in order if index % 2 else reversed(order):
            rates.append(_with_busy_cores(function))
    ratios = tuple(ours / theirs for (ours, _), (theirs, _) in zip(our_rates, their_rates, strict=True))
    (our_rate, cores), (their_rate, their_cores) = _medians(our_rates), _medians(their_rates)
    ratio = statistics.median(ratios)
    how = verified or READ_BACK
    unit = f"{unit} of a core" if PROCESSOR else unit
    pair = Pair(name, our_rate, their_rate, ratio, target, peer, unit, how, ratios, cores, their_cores)
    show(pair)
    return pair


def verify(*functions: Callable[[], Any]) -> None:
    """Do each once as a warm-up does, and nothing else; raises WrongBytes."""
    for function in functions:
        if not _warm_up(lambda function=function: _seconds(function)):  # type: ignore[misc]
            raise WrongBytes("nothing was compared")


def clock() -> float:
    """Seconds since some time, or of the processor."""
    if not PROCESSOR:
        return time.perf_counter()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _warm_up(function: Callable[[], float]) -> bool:
    """Whether bytes were compared."""
    _checks.done, _checks.warming_up = 0, True
    try:
        function()
    finally:
        _checks.warming_up = False
    return bool(_checks.done)


def _medians(rates: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(rate for rate, _ in rates), statistics.median(cores for _, cores in rates)


def _with_busy_cores(function: Callable[[], float]) -> tuple[float, float]:
    busy, begun = _busy_seconds(), time.perf_counter()
    rate = function()
    return rate, (_busy_seconds() - busy) / (time.perf_counter() - begun)


def _busy_seconds() -> float:
    """Of all cores together, in user and kernel mode and in interrupts (proc(5), /proc/stat)."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _, _, irq, softirq = map(int, file.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _seconds(function: Callable[[], Any]) -> float:
    begun = clock()
    clean_up = function()
    elapsed = max(clock() - begun, 1e-6)
    if _checks.warming_up and isinstance(clean_up, Stored):
        clean_up.read_back()
    if clean_up is not None:
        clean_up()
    return elapsed


def show(pair: Pair) -> None:
    """One line for people, or one JSON object with ``--json``."""
    if "--json" in sys.argv:
        print(json.dumps({**asdict(pair), "reached": pair.reached}), flush=True)
        return
    verdict = "ok" if pair.reached else "BELOW"
    ratios = pair.ratios or (pair.ratio,)
    pairwise = f"{pair.ratio:6.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    print(
        f"{pair.name:46} ours {pair.ours:8.0f} {pair.unit} on {pair.cores:.1f} cores  "
        f"{pair.peer:32} {pair.theirs:8.0f} {pair.unit} on {pair.their_cores:.1f}  "
        f"ratio {pairwise}  target {pair.target:5.2f}  {verdict}",
        flush=True,
    )


def forget(*paths: str) -> bool:
    """Have the system forget what it keeps of these files in memory; returns whether it did, which it need not."""
    return all(map(_forget, paths))


def _forget(path: str) -> bool:
    with open(path, "rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        size = os.path.getsize(path)
        places = {0, size // 3, size // 2, max(size - 1, 0)}
        return not any(_is_in_memory(file.fileno(), place) for place in places)


def _is_in_memory(descriptor: int, offset: int) -> bool:
    """Whether a byte can be read without asking the disk; where that cannot be told, it is taken for so."""
    try:
        return bool(os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT))
    except BlockingIOError:
        return False
    except OSError:
        return True


def show_rate(name: str, function: Callable[[], object], repeat: int) -> None:
    """How many MiB a second ``function`` handles, taking one each time; for people only."""
    begun = clock()
    for _ in range(repeat):
        function()
    if "--json" not in sys.argv:
        unit = "MiB/s of a core" if PROCESSOR else "MiB/s"
        print(f"{name:46}      {repeat / (clock() - begun):8.0f} {unit}", flush=True)


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
    _check_options()
    if name not in sys.argv:
        return default
    try:
        return type(default)(sys.argv[sys.argv.index(name) + 1])
    except (IndexError, ValueError):
        raise SystemExit(f"{name} needs {'a whole number' if isinstance(default, int) else 'a value'}") from None


@functools.cache
def _check_options() -> None:
    """What a program says of itself names its options: ``--help`` shows it, and no other option is one."""
    main = sys.modules["__main__"]
    if os.path.dirname(os.path.abspath(getattr(main, "__file__", None) or "")) != os.path.dirname(__file__):
        # It is not one of these programs that runs, but a test of them.
        return
    said = (main.__doc__ or "").strip()
    if "--help" in sys.argv or "-h" in sys.argv:
        print(said)
        raise SystemExit
    known = {"--json", "--processor", *re.findall("--[a-z-]+", said)}
    for before, word in itertools.pairwise(sys.argv):
        if word.startswith("-") and word not in known:
            raise SystemExit(f"There is no option {word}.\n\n{said}")
        if not word.startswith("-") and not before.startswith("-"):
            raise SystemExit(f"What is {word} for?\n\n{said}")


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
        expect(path)
        yield path

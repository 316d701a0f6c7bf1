# SPDX-License-Identifier: Apache-2.0
"""What the programs in benchmarks/ stand on: there is no ratio of work that was not done right."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DATA = bytes(range(256)) * 16


@pytest.fixture
def pairs(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "pairs", raising=False)
    import pairs

    yield pairs
    sys.modules.pop("pairs", None)


@pytest.fixture
def compare(pairs, capsys):
    pairs.expect_pieces([DATA])

    def compare(ours, theirs, **options):
        return pairs.compare("work", len(DATA), ours, theirs, target=0.0, peer="another", **options)

    return compare


def stored(pairs, data, removed=None):
    return lambda: pairs.Stored(len(DATA), lambda: [data], lambda: removed is None or removed.append(1))


def test_what_was_stored_is_read_back_before_it_is_measured_and_always_removed(pairs, compare):
    removed = []
    pair = compare(stored(pairs, DATA, removed), stored(pairs, DATA), rounds=2)
    assert (len(pair.ratios), len(removed), pair.verified) == (2, 3, pairs.READ_BACK)
    assert min(pair.ratios) <= pair.ratio <= max(pair.ratios)
    assert 0 <= pair.cores


@pytest.mark.parametrize("side", ["ours", "theirs"])
@pytest.mark.parametrize("wrong", [DATA[:-1], DATA + b"x", DATA[::-1], b""], ids=["short", "long", "other", "none"])
def test_a_side_that_did_something_else_gets_no_ratio(pairs, compare, side, wrong):
    sides = {"ours": stored(pairs, DATA), "theirs": stored(pairs, DATA), side: stored(pairs, wrong)}
    with pytest.raises(pairs.WrongBytes):
        compare(sides["ours"], sides["theirs"])


def test_a_side_of_which_nothing_can_be_compared_gets_no_ratio(pairs, compare):
    with pytest.raises(pairs.WrongBytes, match="work: nothing of what both sides did was compared"):
        compare(stored(pairs, DATA), lambda: None)
    assert compare(lambda: None, lambda: None, verified="elsewhere").verified == "elsewhere"


def test_what_is_read_is_hashed_in_the_warm_up_and_counted_always(pairs, compare):
    runs = []

    def read():
        runs.append(pairs.warming_up())
        # After the warm-up only the size is looked at.
        pairs.received([DATA if runs[-1] else DATA[::-1]], len(DATA))

    compare(read, read, rounds=1)
    assert runs == [True, True, False, False]
    with pytest.raises(pairs.WrongBytes, match="4095 bytes instead of 4096"):
        pairs.received([DATA[1:]], len(DATA))


@pytest.fixture
def run(monkeypatch, pairs):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import run

    yield run
    sys.modules.pop("run", None)


def test_every_program_of_make_bench_is_there(run):
    assert [program.name for program in run.PROGRAMS if not (BENCHMARKS / f"{program.name}.py").exists()] == []


def test_a_run_that_is_terminated_ends_its_program(run, monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.setattr(run, "check_disk", lambda: None)

    def measure(program, result):
        with run.started([sys.executable, "-c", PROGRAM, "usual"], sys.stderr, dict(os.environ), 600) as process:
            servers.append(int(process.stdout.readline()))
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    servers = []
    monkeypatch.setattr(run, "measure", measure)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            run.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    deadline = time.monotonic() + 30
    while is_running(servers[0]):
        assert time.monotonic() < deadline
        time.sleep(0.01)


#: Starts a server, and ends it when it is interrupted, or is deaf to that.
PROGRAM = """
import signal, subprocess, sys, time
server = subprocess.Popen(["sleep", "600"])
if sys.argv[1] == "deaf":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
else:
    signal.signal(signal.SIGINT, signal.default_int_handler)
print(server.pid, flush=True)
try:
    time.sleep(600)
finally:
    server.kill()
    server.wait()
    print("ended its server", flush=True)
"""


def is_running(pid):
    """Whether the process is there, and not only waited for by init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("why", ["it took too long", "somebody interrupts all"])
@pytest.mark.parametrize("kind", ["usual", "deaf"])
def test_a_program_that_is_ended_early_leaves_no_server(run, monkeypatch, kind, why):
    monkeypatch.setattr(run, "GRACE", 30.0 if kind == "usual" else 0.2)
    # Python needs a while to start on a busy machine.
    timeout = 5 if why == "it took too long" else 600
    with (
        contextlib.suppress(KeyboardInterrupt),
        run.started([sys.executable, "-c", PROGRAM, kind], sys.stderr, dict(os.environ), timeout) as process,
    ):
        server = int(process.stdout.readline())
        if why == "somebody interrupts all":
            raise KeyboardInterrupt
        assert process.stdout.read() == ("" if kind == "deaf" else "ended its server\n")
    assert process.returncode != 0
    deadline = time.monotonic() + 30
    while is_running(server):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_comes_before_each_run_is_no_part_of_it(pairs):
    told = []

    def side(name):
        def run():
            told.append(name)
            pairs.received([b"x" * pairs.MiB], pairs.MiB)

        return run

    pairs.expect_pieces([b"x" * pairs.MiB])
    pairs.compare(
        "", pairs.MiB, side("ours"), side("theirs"), target=0, peer="", rounds=2, before=lambda: told.append("before")
    )
    assert told[::2] == ["before"] * 6
    assert sorted(told[1::2]) == ["ours"] * 3 + ["theirs"] * 3


def test_a_file_that_only_memory_has_cannot_be_forgotten(pairs):
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(b"x" * 4096)
        file.flush()
        assert not pairs.forget(file.name)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("memory.py --help", 0, "python benchmarks/memory.py [--json] [--size MiB]"),
        ("memory.py --sise 1", 1, "There is no option --sise.\n\n"),
        ("memory.py --size", 1, "--size needs a whole number"),
        ("memory.py --size 1G", 1, "--size needs a whole number"),
        ("run.py -h", 0, "make bench"),
        ("run.py --olny s3", 1, "There is no option --olny."),
        ("run.py s3", 1, "What is s3 for?"),
        ("run.py --only", 1, "--only needs a value"),
        ("run.py --only nothing", 1, "there is no benchmark nothing; known are: filesystem"),
    ],
)
def test_nothing_is_measured_that_was_not_asked_for(words, status, said):
    program, *arguments = words.split()
    command = [sys.executable, str(BENCHMARKS / program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_every_option_that_is_read_is_named(path):
    source = path.read_text()
    read = re.findall(r'(?<!_)argument\("(--[a-z-]+)"|"(--[a-z-]+)" (?:not )?in sys.argv', source)
    named = {"--help", "--json", "--processor", *re.findall("--[a-z-]+", ast.get_docstring(ast.parse(source)) or "")}
    assert not {one or other for one, other in read} - named

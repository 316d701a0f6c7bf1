# SPDX-License-Identifier: Apache-2.0
"""Running commands that misbehave: small shell scripts in place of ``dog``."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from storelib.driver import Part
from storelib.drivers.sheepdog.cluster import Dog
from storelib.drivers.sheepdog.errors import CommandCut, CommandFailed, CommandHung
from storelib.drivers.sheepdog.reader import has_zeros
from storelib.drivers.sheepdog.writer import Objects

KiB, MiB = 1024, 1024 * 1024


@pytest.fixture
def script(tmp_path):
    def make(text, timeout=10.0, address="127.0.0.1", port=7000):
        path = tmp_path / "dog"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return Dog(str(path), address, port, timeout)

    return make


def runs(pid):
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(true):
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "sheep.example.org"])
def test_arguments_arrive_as_they_are(script, address):
    dog = script("printf '%s\\n' \"$@\"", address=address, port=7001)
    odd = ["$(id)", "`id`", "a b", "'\"", "*", "\\", "ü", ";"]
    output, _ = dog.call("list", *odd)
    assert output.decode().splitlines() == ["vdi", "list", "-a", address, "-p", "7001", *odd]


def test_output_is_read_as_it_comes(script, tmp_path):
    # It goes on only when what it said first has arrived.
    with script(f"echo first; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; echo second").start("list") as running:
        pieces = running.pieces()
        assert next(pieces) == b"first\n"
        (tmp_path / "go").touch()
        assert b"".join(pieces) == b"second\n"
        assert running.finish() == ""


def test_output_that_stops_is_given_up(script):
    with pytest.raises(CommandHung), script("echo first; sleep 60", timeout=0.5).start("list") as running:
        list(running.pieces())


def test_language_of_the_caller_does_not_matter(script, monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert script('printf %s "$LC_ALL"').call("list")[0] == b"C"


def test_output_of_any_length_is_taken(script):
    assert script("head -c 3000000 /dev/zero").call("list")[0] == bytes(3_000_000)


def test_complaints_of_any_length_do_no_harm(script):
    dog = script("head -c 3000000 /dev/zero | tr '\\0' x >&2; echo done; exit 7")
    with pytest.raises(CommandFailed, match=r"exit code 7"):
        dog.call("list")


def test_complaint_of_a_command_that_succeeded_is_answered(script):
    assert script("echo oh >&2; echo out").call("delete") == (b"out\n", "oh\n")


def test_all_data_goes_in(script):
    data = memoryview(os.urandom(3 * MiB + 5))
    with script(f"head -c {len(data)}").start("write", takes_data=True) as running:
        received = bytearray(len(data))
        feeding = threading.Thread(target=running.send, args=[data])
        feeding.start()
        assert running.read_into(memoryview(received)) == len(data)
        feeding.join()
        assert running.finish() == ""
    assert received == data


@pytest.mark.parametrize("left", [1, 1000, 2 * MiB])
def test_data_that_is_left_unread_is_an_error(script, left):
    data = memoryview(bytes(3 * MiB))
    with pytest.raises(CommandCut):
        script(f"head -c {len(data) - left} >/dev/null").call("write", data=data)


def test_command_that_fails_while_it_is_fed_says_why(script):
    with pytest.raises(CommandFailed, match=r"no more \(exit code 1\)"):
        script("head -c 10 >/dev/null; echo no more >&2; exit 1").call("write", data=memoryview(bytes(3 * MiB)))


def test_input_does_not_end_before_the_command_does(script, tmp_path):
    """At the end of too little data dog writes zeros: a command that is killed in the middle must not see one."""
    dog = script(f"cat >/dev/null; touch {tmp_path}/ended", timeout=0.3)
    with pytest.raises(CommandHung):
        dog.call("write", data=memoryview(b"some of the data"))
    time.sleep(0.3)
    assert not (tmp_path / "ended").exists()


def test_more_output_than_asked_for_is_an_error(script):
    with script("printf 12345").start("read") as running:
        assert running.read_into(memoryview(bytearray(4))) == 4
        with pytest.raises(CommandCut, match="more bytes"):
            running.finish()


def test_less_output_than_asked_for_is_told(script):
    with script("printf 12345").start("read") as running:
        assert running.read_into(memoryview(bytearray(8))) == 5


@pytest.mark.parametrize(
    "text", ["sleep 60", "exec >&-; sleep 60", "exec 2>&-; sleep 60", "exec >&- 2>&-; sleep 60", "echo; sleep 60"]
)
def test_command_that_hangs_is_killed_with_all_it_started(script, tmp_path, text):
    dog = script(f"echo $$ > {tmp_path}/pid; {text}", timeout=1.0)
    started = time.monotonic()
    with pytest.raises(CommandHung):
        dog.call("list")
    assert time.monotonic() - started < 30
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    eventually(lambda: not [each for each in members(pid) if runs(each)])


def members(group):
    """The processes of a group."""
    listing = subprocess.run(["ps", "-eo", "pgid=,pid="], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pgid, pid in map(str.split, listing.splitlines()) if int(pgid) == group]


def test_slow_command_that_moves_is_not_killed(script):
    output, _ = script("for each in 1 2 3 4 5 6; do echo $each; sleep 0.4; done", timeout=2.0).call("list")
    assert output == b"1\n2\n3\n4\n5\n6\n"


def test_command_that_is_killed_by_somebody_is_an_error(script):
    with pytest.raises(CommandFailed, match="killed by signal 9"):
        script("kill -9 $$").call("list")


def test_interrupted_caller_leaves_no_process(script, tmp_path):
    dog = script(f"echo $$ > {tmp_path}/pid; echo; exec sleep 60")

    def read():
        with dog.start("read") as running:
            running.read_into(memoryview(bytearray(1)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_signal_for_the_caller_is_not_one_for_the_command(script):
    with script("echo $$; read line; echo survived").start("write", takes_data=True) as running:
        line = bytearray(16)
        count = os.readv(running._stdout.fileno(), [line])
        pid = int(bytes(line[:count]))
        assert os.getpgid(pid) == pid != os.getpgid(0)
        os.kill(pid, signal.SIGCONT)
        running.send(memoryview(b"go on\n"))
        assert running.read_all() == b"survived\n"


def test_program_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        Dog(str(tmp_path / "dog"), "127.0.0.1", 7000, 1.0).call("list")


def test_no_descriptor_is_left_open(script):
    dog = script("cat")
    dog.call("list")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        dog.call("list")
        with dog.start("read"):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


# -- Objects --------------------------------------------------------------------------------------------------


def part(offset, length):
    return Part(0, offset, memoryview(bytes(length)))


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (part(0, 4 * MiB), part(4 * MiB, 1), True),
        (part(0, 4 * MiB + 1), part(4 * MiB + 1, 1), False),
        (part(0, 1), part(4 * MiB - 1, 1), False),
        (part(3 * MiB, 8 * MiB), part(9 * MiB, 8 * MiB), False),
        (part(0, 8 * MiB), part(8 * MiB, 8 * MiB), True),
    ],
)
def test_parts_of_one_object_wait_for_each_other(one, other, together):
    objects = Objects(4 * MiB)
    entered = threading.Event()

    def enter():
        with objects.of(other):
            entered.set()

    thread = threading.Thread(target=enter)
    with objects.of(one):
        thread.start()
        assert entered.wait(5 if together else 0.2) == together
    thread.join()
    assert entered.is_set()


@pytest.mark.parametrize(
    ("data", "offset", "found"),
    [
        (b"", 0, False),
        (b"\0", 0, True),
        (b"a", 0, False),
        (bytes(100) + b"a", 0, False),
        (b"a" + bytes(2 * MiB), 0, True),
        (b"a" + bytes(MiB - 2) + b"a", 0, False),
        (b"a" + bytes(10), MiB - 1, True),
        (b"a" * (MiB + 1) + bytes(MiB - 1), 0, False),
        (b"a" * (MiB + 1) + bytes(MiB - 1) + b"\0", 0, True),
    ],
)
def test_zeros_that_may_be_a_missing_object_are_seen(data, offset, found):
    assert has_zeros(memoryview(data), offset) == found

# SPDX-License-Identifier: Apache-2.0
"""What holds for every command: configuration, formats, errors, signals, start-up."""

from __future__ import annotations

import fcntl
import io
import os
import pwd
import signal
import subprocess
import sys
import termios
import time

import pytest

from storelib.cli import exits
from storelib.cli.output import Output, size_text
from storelib.exceptions import BadStoreUri, ImageChanged, MissingDependency, StoreError, TransferTimeout
from storelib.node import agent
from storelib.testing import live

COMMAND = [sys.executable, "-m", "storelib"]


def test_the_version_is_told(storelib):
    assert storelib("--version").out.startswith(b"storelib ")


def test_the_help_has_the_exit_codes(storelib):
    assert b"   3  there is no such image\n" in storelib("--help").out


@pytest.mark.parametrize("arguments", [["frob"], ["get"], ["--format", "xml", "stores"], ["ls", "--frob"]])
def test_wrong_usage_is_code_2_in_one_line(storelib, arguments):
    response = storelib(*arguments)
    assert (response.code, response.out, response.err.count("\n")) == (2, b"", 1)


def test_shared_options_may_stand_before_and_after_the_command(storelib):
    assert storelib("--format", "json", "stores").out == storelib("stores", "--format", "json").out


def test_the_configuration_can_be_named(storelib, places):
    (places / "storelib.ini").rename(places / "other.ini")
    assert storelib("--config", "other.ini", "ls").code == 0


def test_the_configuration_can_be_named_in_the_environment(storelib, places, monkeypatch):
    (places / "storelib.ini").rename(places / "other.ini")
    monkeypatch.setenv("STORELIB_CONFIG", str(places / "other.ini"))
    assert storelib("ls").code == 0


def test_the_configuration_of_the_user_is_found(storelib, places, monkeypatch):
    (places / "storelib").mkdir()
    (places / "storelib.ini").rename(places / "storelib" / "storelib.ini")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(places))
    assert storelib("ls").code == 0


def test_who_has_no_home_has_the_other_places(storelib, places, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    # As for the users that containers run as.
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert storelib("ls").code == 0
    (places / "storelib.ini").unlink()
    assert "looked for storelib.ini, /etc/storelib/storelib.ini;" in storelib("ls").err


def test_without_a_configuration_the_places_are_named(storelib, places, monkeypatch):
    (places / "storelib.ini").unlink()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(places / "none"))
    response = storelib("ls")
    assert response.code == 2
    assert "storelib config sample" in response.err


def test_a_mistake_in_the_configuration_is_code_2_in_one_line(storelib, places):
    (places / "storelib.ini").write_text("[storelib]\nstores = fast:flie\n")
    response = storelib("ls")
    assert (response.code, response.err.count("\n")) == (2, 1)
    assert "did you mean file?" in response.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadStoreUri("x"), 2),
        (MissingDependency("x"), 2),
        (TransferTimeout("x"), 7),
        (ImageChanged("x"), 9),
        (StoreError("x"), 1),
        (OSError("x"), 1),
    ],
)
def test_errors_have_the_code_of_their_kind(error, code):
    assert exits.code_of(error) == code


def test_every_error_of_storelib_has_a_line_in_the_table():
    assert all(code in range(1, 10) for code, _, _ in exits.TABLE)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_completion_for(storelib, shell):
    assert b"_STORELIB_COMPLETE" in storelib("completion", shell).out


def test_stores_are_completed(places):
    environment = {
        **os.environ,
        "_STORELIB_COMPLETE": "bash_complete",
        "COMP_WORDS": "storelib ls a",
        "COMP_CWORD": "2",
    }
    response = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=False, cwd=places)
    assert response.stdout == "plain,archive\n"


@pytest.mark.parametrize("code", [0, 1])
def test_conformance_ends_with_the_code_of_the_suite(storelib, monkeypatch, code):
    seen = []

    def run(store, keep_part_size):
        seen.append((store.name, keep_part_size))
        return code

    monkeypatch.setattr(live, "run", run)
    assert storelib("conformance", "--config", "storelib.ini", "--store", "archive", "--keep-part-size").code == code
    assert seen == [("archive", True)]


def test_a_name_that_the_terminal_cannot_show_is_escaped(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    Output("plain").one({"id": "ä"})
    sys.stdout.seek(0)
    assert sys.stdout.read() == "id: \\xe4\n"


@pytest.mark.parametrize(
    ("size", "text"), [(None, "?"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes_are_told_for_people(size, text):
    assert size_text(size) == text


# -- As a process -----------------------------------------------------------------------------------------------------


def _unread(reader: int) -> int:
    """Bytes waiting in a pipe."""
    return int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), sys.byteorder)


def imported(*arguments: str) -> set[str]:
    """The packages that the command has imported when it ends."""
    code = (
        "import sys\nfrom storelib.cli.main import run\nsys.argv[0] = 'storelib'\n"
        f"run({list(arguments)!r})\nprint(*(name.partition('.')[0] for name in sys.modules), file=sys.stderr)"
    )
    response = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(response.stderr.split())


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_starting_loads_nothing_heavy(argument):
    assert not imported(argument) & {"oslo_config", "stevedore", "rich", "requests"}


def test_a_pipe_that_breaks_is_quiet(places):
    (places / "fast").mkdir()
    (places / "fast" / "one").write_bytes(bytes(4 << 20))
    reader, writer = os.pipe()
    command = subprocess.Popen(
        [*COMMAND, "get", f"file://{places}/fast/one"], cwd=places, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    _, said = command.communicate(timeout=60)
    assert said == b""


def test_a_pipe_that_breaks_before_the_end_is_quiet(places):
    reader, writer = os.pipe()
    os.close(reader)
    response = subprocess.run([*COMMAND, "stores"], cwd=places, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (response.returncode, response.stderr) == (1, b"")


def test_output_that_finds_no_room_is_a_failure(places):
    with open("/dev/full", "wb") as full:
        response = subprocess.run([*COMMAND, "stores"], cwd=places, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (response.returncode, response.stderr) == (1, b"storelib: No space left on device\n")


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", ">&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_or_full_changes_nothing_else(places, closed):
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "stat", f"file://{places}/fast/x"]
    response = subprocess.run(command, cwd=places, capture_output=True, check=False)
    assert (response.returncode, response.stdout, response.stderr.count(b"\n")) == (3, b"", "2>" not in closed)


def test_results_that_stdout_is_closed_for_are_a_failure(places):
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "stores"]
    response = subprocess.run(command, cwd=places, capture_output=True, check=False)
    assert (response.returncode, response.stderr) == (1, b"storelib: Bad file descriptor\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_add_that_is_interrupted_leaves_nothing(places, number, code):
    reader, writer = os.pipe()
    command = subprocess.Popen(
        [*COMMAND, "add", "-", "--id", "one"],
        cwd=places,
        stdin=reader,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background with SIGINT ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    os.write(writer, bytes(60_000))
    deadline = time.monotonic() + 30
    while _unread(reader) and time.monotonic() < deadline:
        time.sleep(0.05)
    # The command has taken all of that and waits for more.
    command.send_signal(number)
    _, said = command.communicate(timeout=60)
    os.close(writer)
    os.close(reader)
    assert command.returncode == code
    assert "Traceback" not in said
    assert not (places / "fast").exists() or not os.listdir(places / "fast")


@pytest.fixture
def signals():
    """Have the signals that end a process do afterwards what they did before."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("before", "ends"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_an_agent_ends_with_its_terminal_but_under_nohup(storelib, places, monkeypatch, signals, before, ends):
    (places / "storelib.ini").write_text(f"[node]\napi_url = http://127.0.0.1:9\ntarget_dir = {places}/images\n")
    ended = []

    class Agent:
        def __init__(self, settings, conf):
            pass

        def enrol(self, stop):
            os.kill(os.getpid(), signal.SIGHUP)
            ended.append(stop.is_set())

        def close(self):
            pass

    monkeypatch.setattr(agent, "Agent", Agent)
    signal.signal(signal.SIGHUP, before)
    assert storelib("node").code == 0
    assert ended == [ends]


@pytest.mark.parametrize("words", [[], ["metadefs"], ["cache"], ["db"], ["config"], ["image"], ["image", "member"]])
def test_a_group_alone_prints_its_help_as_it_is(storelib, words):
    alone = storelib(*words)
    asked = storelib(*words, "--help")
    assert (alone.code, asked.code) == (2, 0)
    assert (alone.err + alone.out.decode()).strip() == asked.out.decode().strip()
    assert "\n  -h, --help" in asked.out.decode()

# SPDX-License-Identifier: Apache-2.0
"""`make test` runs what failed twice more: what passes both times is named, and nothing else is forgiven."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

#: Fails in those of its runs, counted from 1, that are named; `count` is a file of the test's own.
FAILING = """
from pathlib import Path
count = Path(__file__).with_name("count")

def test_steady():
    pass

def test_unsteady():
    with count.open("a") as file:
        file.write(".")
    assert len(count.read_text()) not in {failing}
"""
ENDING = "import os\ndef test_it():\n    os._exit(9)\n"
#: Other tests in each process.
DIFFERING = """
import os, pytest

@pytest.mark.parametrize("process", [os.getpid()])
def test_it(process):
    pass
"""
INTERRUPTED = "def test_it():\n    raise KeyboardInterrupt\n"


def run(tmp_path, test, *options):
    """The script in a checkout of one test, with nothing of this run's settings and no plug-in but the one it needs."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(Path(__file__).parents[2] / ".ci/tests", tmp_path / ".ci")
    (tmp_path / "test_it.py").write_text(test)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    clean = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_ADDOPTS")}
    command = [str(tmp_path / ".ci/tests"), sys.executable, ".cache/tests", *options]
    plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin"}
    return subprocess.run(command, env=clean | plugins, capture_output=True, text=True)


def runs(tmp_path):
    return len((tmp_path / "count").read_text())


def test_what_passes_runs_once(tmp_path):
    done = run(tmp_path, FAILING.format(failing=set()))
    assert done.returncode == 0
    assert "2 passed" in done.stdout
    assert "alone" not in done.stdout
    assert runs(tmp_path) == 1


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two"])
def test_what_failed_once_is_named(tmp_path, options):
    done = run(tmp_path, FAILING.format(failing={1}), *options)
    assert done.returncode == 0, done.stdout
    assert "assert 1 not in {1}" in done.stdout
    assert done.stdout.endswith("-- unsteady: failed among others, passed twice alone\ntest_it.py::test_unsteady\n")
    assert runs(tmp_path) == 3


@pytest.mark.parametrize("failing", [{1, 2}, {1, 3}])
def test_what_fails_again_fails_the_run(tmp_path, failing):
    done = run(tmp_path, FAILING.format(failing=failing))
    assert done.returncode == 1
    assert "unsteady:" not in done.stdout
    assert runs(tmp_path) == max(failing)


def test_process_that_ended_in_a_test_is_a_failure_of_that_test(tmp_path):
    done = run(tmp_path, ENDING, "-n", "2")
    assert done.returncode == 9
    assert "crashed while running 'test_it.py::test_it'" in done.stdout


@pytest.mark.parametrize(("test", "status"), [(INTERRUPTED, 2), ("def broken(:\n", 2), ("", 5)])
def test_other_ends_are_not_forgiven(tmp_path, test, status):
    done = run(tmp_path, test)
    assert done.returncode == status
    assert "alone" not in done.stdout


def test_processes_that_find_other_tests_are_not_asked_again(tmp_path):
    done = run(tmp_path, DIFFERING, "-n", "2")
    assert done.returncode == 1
    assert "Different tests were collected" in done.stdout
    assert "alone" not in done.stdout

# SPDX-License-Identifier: Apache-2.0
"""What conftest.py sees to: in CI nothing may be skipped, and the run says what was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKIPPED_TEST = "import pytest\ndef test_it():\n    pytest.skip('no server')\n"
SKIPPED_FILE = "import pytest\npytest.skip('no server', allow_module_level=True)\n"
SKIPPED_BY_MARK = "import pytest\n@pytest.mark.skipif(True, reason='no server')\ndef test_it():\n    pass\n"
EXPECTED_TO_FAIL = "import pytest\n@pytest.mark.xfail\ndef test_it():\n    assert False\n"


def run(tmp_path, test, *options, **environment):
    """pytest on one file beside a copy of conftest.py, with nothing of this run's settings."""
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(test)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    clean = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_ADDOPTS")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=tmp_path, env=clean | environment, capture_output=True, text=True)


@pytest.mark.parametrize("test", [SKIPPED_TEST, SKIPPED_FILE, SKIPPED_BY_MARK])
def test_skip_fails_in_ci_and_says_why(tmp_path, test):
    done = run(tmp_path, test, CI="true")
    assert done.returncode != 0
    assert "skipped, which CI does not allow: Skipped: no server" in done.stdout


def test_option_is_as_strict_as_ci(tmp_path):
    assert run(tmp_path, SKIPPED_TEST, "--no-skips").returncode == 1


@pytest.mark.parametrize("test", [SKIPPED_TEST, SKIPPED_BY_MARK])
def test_skip_is_allowed_elsewhere(tmp_path, test):
    assert run(tmp_path, test).returncode == 0


def test_expected_failure_is_no_skip(tmp_path):
    assert run(tmp_path, EXPECTED_TO_FAIL, CI="true").returncode == 0


def test_what_is_no_unicode_may_be_printed_where_several_processes_run_tests(tmp_path):
    test = "import logging\ndef test_it():\n    logging.getLogger().error('a file called \\udcff')\n"
    assert "1 passed" in run(tmp_path, test, "-n", "1").stdout

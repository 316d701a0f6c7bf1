# SPDX-License-Identifier: Apache-2.0
"""The picture of the house in CONTRIBUTING.md is drawn from the code as it is."""

from __future__ import annotations

import pathlib
import subprocess
import sys

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "structure.py"


def test_the_picture_is_as_the_code():
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_file_that_contributing_names_is_there():
    text = (SCRIPT.parents[1] / "CONTRIBUTING.md").read_text()
    table = text.partition("## Where would I change")[2].partition("## Habits")[0]
    named = [piece for piece in table.split("`")[1::2] if piece.startswith(("storelib/", "tests/"))]
    assert len(named) > 10
    assert [name for name in named if not (SCRIPT.parents[1] / name).exists()] == []

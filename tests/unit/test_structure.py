# SPDX-License-Identifier: Apache-2.0
"""The picture of the house in CONTRIBUTING.md is drawn from the code as it is."""

from __future__ import annotations

import graphlib
import pathlib
import runpy
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "structure.py"
DRIVERS = sorted(path.parent for path in (SCRIPT.parents[1] / "storelib" / "drivers").glob("*/__init__.py"))
#: What a driver's folder has, beside one file for the back-end object, named for what that is: bucket, cluster ...
PLAN = {"store", "publication", "writer", "reader", "errors", "location", "options", "garbage"}


def test_the_picture_is_as_the_code():
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_file_that_contributing_names_is_there():
    text = (SCRIPT.parents[1] / "CONTRIBUTING.md").read_text()
    table = text.partition("## Where would I change")[2].partition("## Habits")[0]
    named = [piece for piece in table.split("`")[1::2] if piece.startswith(("storelib/", "tests/"))]
    assert len(named) > 10
    assert [name for name in named if not (SCRIPT.parents[1] / name).exists()] == []


def test_no_module_imports_one_that_needs_it():
    """Types and lazy imports count; import-linter holds the layers, and this what stands beside each other."""
    structure = runpy.run_path(str(SCRIPT))
    known = structure["modules"]()

    def module_of(name):
        return name if name in known else module_of(name.rpartition(".")[0])

    needs = {name: {module_of(found) for found in structure["imports"](path)} - {name} for name, path in known.items()}
    # Raises CycleError, which names the modules.
    assert list(graphlib.TopologicalSorter(needs).static_order())


@pytest.mark.parametrize("folder", DRIVERS, ids=lambda folder: folder.name)
def test_every_driver_is_on_one_plan(folder):
    found = {path.name for path in folder.iterdir()} - {"__init__.py", "__pycache__"}
    assert len(found) <= 9
    [back_end] = found - {f"{name}.py" for name in PLAN}
    assert back_end.endswith(".py")

# SPDX-License-Identifier: Apache-2.0
"""What ``import glance_store`` finds where storelib takes its place, each in an interpreter of its own."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import types
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[3] / "packaging" / "storelib-glance-store"
LINE = (PACKAGE / "storelib-glance-store.pth").read_text()


PROGRAM = """
import sys

def main():
    import glance_store
    print(glance_store.__name__, sys.argv)
"""


def run(code, **environment):
    """What a new interpreter prints for ``code`` once it has read the line of the package, as it does at its start."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), **environment}
    environment.pop("STORELIB_GLANCE_STORE", None) if "STORELIB_GLANCE_STORE" not in environment else None
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{LINE}\n{code}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def switched(code):
    return run(code, STORELIB_GLANCE_STORE="1")


def test_without_the_variable_nothing_is_imported():
    assert run("import sys; print([name for name in sys.modules if name.startswith(('storelib', 'oslo'))])") == "[]"


@pytest.mark.parametrize("value", ["", " ", "0", "false", "No", "OFF"])
def test_a_variable_that_says_no_changes_nothing(value):
    """As an operator who goes back writes it into a unit file."""
    code = "import sys; print([name for name in sys.modules if name.startswith('storelib')])"
    assert run(code, STORELIB_GLANCE_STORE=value) == "[]"


@pytest.mark.parametrize("value", ["yes", "True", "on"])
def test_a_variable_that_says_yes_switches(value):
    assert run("import sys; print('storelib.compat.finder' in sys.modules)", STORELIB_GLANCE_STORE=value) == "True"


def test_with_it_only_the_finder_is():
    code = (
        "import sys; print('storelib.compat.finder' in sys.modules,"
        " any(name.startswith(('oslo', 'storelib.driver', 'storelib.compat.glance_store')) for name in sys.modules))"
    )
    assert switched(code) == "True False"


@pytest.mark.parametrize(
    "name",
    [
        *("backend", "multi_backend", "driver", "exceptions", "location", "capabilities", "i18n", "common.utils"),
        *("_drivers.filesystem", "_drivers.rbd", "_drivers.cinder", "_drivers.swift", "_drivers.s3", "_drivers.http"),
        "_drivers.vmware_datastore",
    ],
)
def test_a_module_is_one_object_under_both_names(name):
    code = (
        f"import glance_store.{name}, storelib.compat.glance_store.{name}, sys\n"
        f"print(sys.modules['glance_store.{name}'] is sys.modules['storelib.compat.glance_store.{name}'])"
    )
    assert switched(code) == "True"


def test_what_is_a_package_is_known_before_it_is_imported():
    code = (
        "from importlib.util import find_spec\n"
        "print(*(bool(find_spec(name).submodule_search_locations) for name in ('glance_store', 'glance_store.i18n')))"
    )
    assert switched(code) == "True False"


def test_attributes_of_the_package_are_those_that_callers_know():
    code = (
        "import glance_store\n"
        "from glance_store import backend, exceptions, location, driver, capabilities\n"
        "print(glance_store.NotFound is exceptions.NotFound, glance_store.check_location_metadata is"
        " backend.check_location_metadata, glance_store.location is location,"
        " glance_store.TimeoutError is exceptions.TimeoutError, glance_store.Store is driver.Store)"
    )
    assert switched(code) == "True True True True True"


def test_a_patch_by_name_is_seen_under_the_other_name():
    code = (
        "from unittest import mock\n"
        "with mock.patch('glance_store.backend.get_store_from_scheme') as patched:\n"
        "    import storelib.compat.glance_store.backend as backend\n"
        "    print(backend.get_store_from_scheme is patched)"
    )
    assert switched(code) == "True"


def test_exceptions_can_be_pickled():
    code = (
        "import glance_store, pickle\n"
        "again = pickle.loads(pickle.dumps(glance_store.NotFound(image='7')))\n"
        "print(type(again) is glance_store.NotFound, again)"
    )
    assert switched(code) == "True Image 7 not found"


def test_a_submodule_that_does_not_exist_is_missing_as_ever():
    code = (
        "import importlib.util, glance_store\n"
        "try:\n    import glance_store.nothing\n"
        "except ModuleNotFoundError as error:\n    print(error.name, importlib.util.find_spec('glance_store.nothing'))"
    )
    assert switched(code) == "glance_store.nothing None"


def test_the_real_one_that_is_imported_already_is_not_replaced():
    code = (
        "import sys, types\n"
        "sys.modules['glance_store'] = types.ModuleType('glance_store')\n"
        "from storelib.compat import finder\n"
        "try:\n    finder.install()\n"
        "except RuntimeError as error:\n    print(error)"
    )
    assert "imported already" in run(code)


def test_the_line_is_in_a_source_distribution_too(monkeypatch):
    """Of which distributions make their packages. Not every environment has setuptools."""

    class BuildPy:
        def get_source_files(self):
            return ["storelib_glance_store.py"]

    told = {}
    module = types.ModuleType("setuptools.command.build_py")
    module.build_py = BuildPy
    monkeypatch.setitem(sys.modules, "setuptools", types.SimpleNamespace(setup=told.update))
    monkeypatch.setitem(sys.modules, "setuptools.command", types.ModuleType("setuptools.command"))
    monkeypatch.setitem(sys.modules, "setuptools.command.build_py", module)
    runpy.run_path(str(PACKAGE / "setup.py"))
    files = told["cmdclass"]["build_py"]().get_source_files()
    assert files == ["storelib_glance_store.py", "storelib-glance-store.pth"]


def test_a_command_runs_on_storelib(tmp_path):
    """A console script of any package, found by its name."""
    (tmp_path / "program.py").write_text(PROGRAM)
    info = tmp_path / "program-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: program\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[console_scripts]\nglance-thing = program:main\n")

    def run_command(*arguments):
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "storelib.compat", *arguments],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    done = run_command("glance-thing", "--x")
    assert done.stdout.strip() == "storelib.compat.glance_store ['glance-thing', '--x']", done.stderr
    missing = run_command("no-such")
    assert missing.returncode == 2
    assert "no command 'no-such' is installed" in missing.stderr

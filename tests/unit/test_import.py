# SPDX-License-Identifier: Apache-2.0
"""What ``import storelib`` brings with it, and what it offers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import storelib

# Whatever is neither storelib's own nor the standard library's.
FOREIGN = """
import sys
before = set(sys.modules)
import storelib
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names)), sorted(name for name in sys.modules if name.startswith("storelib.")))
"""


def test_importing_loads_no_driver_and_no_third_party_library():
    response = subprocess.run([sys.executable, "-c", FOREIGN], capture_output=True, text=True, check=True)
    assert response.stdout.strip() == "['storelib'] ['storelib._version']"


@pytest.mark.parametrize("name", storelib.__all__)
def test_every_public_name_is_there(name):
    assert getattr(storelib, name) is not None


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(storelib.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported - {"annotations", "import_module", "TYPE_CHECKING", "Any"} == set(storelib.__all__)


def test_all_errors_are_public():
    from storelib import exceptions

    errors = {name for name, value in vars(exceptions).items() if isinstance(value, type)}
    assert errors <= set(storelib.__all__)


def test_dir_lists_the_public_names():
    assert set(storelib.__all__) <= set(dir(storelib))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = storelib.nothing


def test_names_of_modules_are_not_mistaken_for_functions():
    from storelib import backend

    assert backend.__name__ == "storelib.backend"

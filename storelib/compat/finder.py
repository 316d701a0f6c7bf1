# SPDX-License-Identifier: Apache-2.0
"""Makes ``import glance_store`` find ``storelib.compat.glance_store``: the same module objects under a second name.

The real package may stay installed. Installing the finder imports nothing; the modules come when they are asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

NAME = "glance_store"
TARGET = "storelib.compat.glance_store"


class _Alias(Loader):
    """Gives the module of another name."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._target)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # It has been executed; only what the second import put into it is taken back.
        module.__spec__ = self._spec


class Finder(MetaPathFinder):
    """Finds ``glance_store`` and its submodules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module of this name here; None where there is none, which then does not exist at all."""
        if fullname != NAME and not fullname.startswith(f"{NAME}."):
            return None
        name = TARGET + fullname[len(NAME) :]
        found = importlib.util.find_spec(name)
        if found is None:
            return None
        spec = ModuleSpec(fullname, _Alias(name), origin=found.origin)
        # A package is known as one before it is imported, too.
        spec.submodule_search_locations = found.submodule_search_locations
        return spec


def install() -> None:
    """Put the finder before all others; may be repeated. Raises RuntimeError once the real glance_store is imported."""
    loaded = sys.modules.get(NAME)
    if loaded is not None and loaded.__name__ != TARGET:
        raise RuntimeError("glance_store is imported already: install storelib's finder before that")
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())

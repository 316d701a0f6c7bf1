# SPDX-License-Identifier: Apache-2.0
"""For authors of drivers: MemoryStore, the conformance suite and peers that misbehave on purpose.

Names are imported when first used: the suite needs pytest, the rest does not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storelib.testing.conformance import BackendAccess, ReadOnlyConformance, StoreConformance
    from storelib.testing.faults import FaultyProxy
    from storelib.testing.memory import MemoryStore

_HOMES = {
    "FaultyProxy": "faults",
    "MemoryStore": "memory",
    "ReadOnlyConformance": "conformance",
    "BackendAccess": "conformance",
    "StoreConformance": "conformance",
}

__all__ = ["BackendAccess", "FaultyProxy", "MemoryStore", "ReadOnlyConformance", "StoreConformance"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

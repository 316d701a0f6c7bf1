# SPDX-License-Identifier: Apache-2.0
"""pytest plugin: readable assertions in the conformance suite, and no tests of what a store does not promise.

It is loaded wherever storelib is installed next to pytest, so it imports nothing of storelib and does nothing to
tests that are not of the suite.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

pytest.register_assert_rewrite("storelib.testing.conformance")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect promises that the author of a driver says do not apply to it."""
    other = [item for item in items if not _applies(item)]
    if other:
        config.hook.pytest_deselected(items=other)
        items[:] = [item for item in items if item not in other]


def _applies(item: pytest.Item) -> bool:
    """By the class's ``capabilities``, ``not_applicable``, fixtures and ``sample``; see the suite's ``promises``."""
    function: Any = getattr(item, "function", None)
    owner: Any = getattr(item, "cls", None)
    if function is None or not hasattr(owner, "storelib_promises"):
        return True
    if function.__name__ in owner.not_applicable:
        return False
    expected, marks = owner.capabilities, vars(function)
    if not hasattr(owner, marks.get("storelib_wants", "capabilities")):
        return False
    if owner.sample and not _in_sample(item, marks.get("storelib_sampled")):
        return False
    if expected is None:
        return True
    return (
        marks.get("storelib_needs", expected) in expected
        and not marks.get("storelib_lacks", expected ^ expected) & expected
    )


def _in_sample(item: Any, chosen: Callable[..., bool] | None) -> bool:
    """Whether a test with these parameters is one of those that are enough for a sample."""
    if chosen is None:
        return True
    names, parameters = inspect.signature(chosen).parameters, item.callspec.params
    return bool(chosen(**{name: parameters[name] for name in names}))

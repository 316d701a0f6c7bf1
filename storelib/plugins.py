# SPDX-License-Identifier: Apache-2.0
"""Finds the installed drivers (entry points ``storelib.drivers``); nothing else looks for them.

A driver is imported when it is first asked for, and its client library only when it is first used.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from typing import Any, cast

from storelib.driver import Store
from storelib.exceptions import BadStoreConfiguration

NAMESPACE = "storelib.drivers"
LOG = logging.getLogger(__name__)


def driver_names() -> list[str]:
    """The names of all installed drivers, sorted; imports none of them."""
    return list(_installed())


@functools.cache
def _installed() -> tuple[str, ...]:
    # Python reads the metadata of all that is installed, 40 ms with all extras, and asked for several times at a start.
    return tuple(sorted({entry.name for entry in importlib.metadata.entry_points(group=NAMESPACE)}))


@functools.cache
def driver_class(name: str) -> type[Store[Any]]:
    """The Store class of the driver called ``name``.

    Raises BadStoreConfiguration when there is no such driver or it cannot be imported.
    """
    from stevedore import driver

    if name not in driver_names():
        raise BadStoreConfiguration(f"there is no driver {name!r}; installed are: {', '.join(driver_names())}")
    try:
        found = cast("type[Store[Any]]", driver.DriverManager(NAMESPACE, name).driver)
    except Exception as error:
        raise BadStoreConfiguration(f"driver {name!r} cannot be loaded: {error}") from error
    return found


def driver_classes() -> dict[str, type[Store[Any]]]:
    """All drivers that can be imported, by name; one that cannot is logged and left out."""
    classes = {}
    for name in driver_names():
        try:
            classes[name] = driver_class(name)
        except BadStoreConfiguration as error:
            LOG.warning("%s", error)
    return classes

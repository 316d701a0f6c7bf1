# SPDX-License-Identifier: Apache-2.0
"""Finds the installed drivers (entry points ``storelib.drivers``); nothing else looks for them.

A driver is imported when it is first asked for, and its client library only when it is first used.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import re
from collections.abc import Callable
from typing import Any

from oslo_config import cfg

from storelib.capabilities import Capability
from storelib.driver import STORE_OPTIONS, Store, StoreLocation
from storelib.exceptions import BadStoreConfiguration

# RFC 3986, 3.1
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
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
        found: object = driver.DriverManager(NAMESPACE, name).driver
    except Exception as error:
        raise BadStoreConfiguration(f"driver {name!r} cannot be loaded: {error}") from error
    return checked_class(found)


def checked_class(driver: object) -> type[Store[Any]]:
    """``driver``, if it is a class that declares what ``Store`` asks for; raises BadStoreConfiguration."""
    if not isinstance(driver, type) or not issubclass(driver, Store):
        shown = driver.__name__ if isinstance(driver, type) else f"an object of the type {type(driver).__name__}"
        raise BadStoreConfiguration(f"a driver is a subclass of Store, or the name of one, not {shown}")
    if missing := getattr(driver, "__abstractmethods__", ()):
        raise BadStoreConfiguration(f"driver {driver.__name__} lacks {', '.join(sorted(missing))}")
    schemes, options = getattr(driver, "schemes", ()), driver.options
    location_class = getattr(driver, "location_class", None)
    if not schemes or not _all_of(schemes, lambda item: isinstance(item, str) and _SCHEME.fullmatch(item)):
        raise _declares(driver, "schemes", "a tuple of schemes as URIs begin with, such as ('file',)", schemes)
    if not _all_of(options, lambda item: isinstance(item, cfg.Opt)):
        raise _declares(driver, "options", "a tuple of options of oslo.config", options)
    if twice := {option.dest for option in options} & {option.dest for option in STORE_OPTIONS}:
        raise BadStoreConfiguration(
            f"driver {driver.__name__}: every store has an option {min(twice)}; call it otherwise"
        )
    if not isinstance(location_class, type) or not issubclass(location_class, StoreLocation):
        raise _declares(driver, "location_class", "a subclass of StoreLocation", location_class)
    if not isinstance(driver.capabilities, Capability):
        raise _declares(driver, "capabilities", "of the type Capability, joined with |", driver.capabilities)
    return driver


def _all_of(declared: object, sound: Callable[[Any], object]) -> bool:
    return isinstance(declared, (tuple, list)) and all(map(sound, declared))


def _declares(driver: type[Store[Any]], name: str, what: str, found: object) -> BadStoreConfiguration:
    return BadStoreConfiguration(f"driver {driver.__name__}: {name} must be {what}, not {found!r:.80}")


def driver_classes() -> dict[str, type[Store[Any]]]:
    """All drivers that can be imported, by name; one that cannot is logged, once, and left out."""
    classes = {}
    for name in driver_names():
        try:
            classes[name] = driver_class(name)
        except BadStoreConfiguration as error:
            _warn(str(error))
    return classes


@functools.cache
def _warn(message: str) -> None:
    """A command asks for all drivers several times, and most of them for the driver of somebody else."""
    LOG.warning("%s", message)

# SPDX-License-Identifier: Apache-2.0
"""Switches a program from glance_store to storelib, by the environment variable STORELIB_GLANCE_STORE, and back."""

from __future__ import annotations

import importlib.metadata
from typing import Any


def install() -> None:
    """Have ``import glance_store`` find storelib.compat.glance_store from now on."""
    from storelib.compat import finder

    finder.install()


def list_opts() -> list[tuple[str, list[Any]]]:
    """Every option of stores without names, for oslo-config-generator; none where glance_store tells them, too."""
    if _has_glance_store():
        return []
    from storelib.compat.glance_store import backend

    return backend._list_opts()


def list_config_opts() -> list[tuple[str, list[Any]]]:
    """The same of stores with names."""
    if _has_glance_store():
        return []
    from storelib.compat.glance_store import multi_backend

    return multi_backend._list_config_opts()


def _has_glance_store() -> bool:
    try:
        importlib.metadata.distribution("glance_store")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True

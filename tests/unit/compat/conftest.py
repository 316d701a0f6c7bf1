# SPDX-License-Identifier: Apache-2.0
"""What the tests of the shim share: it keeps its state in modules, as glance_store does."""

import pytest
from oslo_config import cfg

from storelib.compat.glance_store import backend, driver, location, multi_backend


@pytest.fixture(autouse=True)
def maps(monkeypatch):
    """The tables of stores belong to the modules."""
    monkeypatch.setattr(location, "SCHEME_TO_CLS_MAP", {})
    monkeypatch.setattr(location, "SCHEME_TO_CLS_BACKEND_MAP", {})
    monkeypatch.setattr(multi_backend, "_RESERVED_STORES", {})


@pytest.fixture
def conf(monkeypatch):
    """A configuration of a program of its own, and the global one of these functions."""
    found = cfg.ConfigOpts()
    found(args=[], default_config_files=[], default_config_dirs=[])
    for module in (backend, multi_backend, location, driver):
        monkeypatch.setattr(module, "CONF", found)
    return found

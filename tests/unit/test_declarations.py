# SPDX-License-Identifier: Apache-2.0
"""What a driver's class declares wrongly is named when the driver is loaded, not where it is stumbled over."""

from __future__ import annotations

import pytest
from oslo_config import cfg

from storelib.capabilities import Capability
from storelib.driver import Store
from storelib.exceptions import BadStoreConfiguration, StoreError
from storelib.plugins import checked_class
from storelib.registry import open_store
from storelib.testing.memory import MemoryStore


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        # A comma is missing.
        ({"schemes": ("mine")}, "schemes must be a tuple of schemes .*, not 'mine'"),
        ({"schemes": ()}, "schemes must be"),
        ({"schemes": (7,)}, "schemes must be"),
        ({"schemes": ("my_images",)}, "schemes must be"),
        ({"options": cfg.StrOpt("mine")}, "options must be a tuple of options of oslo.config, not"),
        ({"options": ("mine",)}, "options must be"),
        ({"options": (cfg.IntOpt("weight"),)}, "every store has an option weight; call it otherwise"),
        ({"location_class": None}, "location_class must be a subclass of StoreLocation, not None"),
        ({"location_class": str}, "location_class must be"),
        ({"capabilities": {Capability.READ}}, r"capabilities must be of the type Capability, joined with \|, not"),
        ({"capabilities": None}, "capabilities must be"),
    ],
)
def test_a_wrong_declaration_is_named(declared, message):
    with pytest.raises(BadStoreConfiguration, match=f"driver Mine: {message}"):
        open_store(type("Mine", (MemoryStore,), declared))


def test_methods_that_are_missing_are_named():
    declared = {name: getattr(MemoryStore, name) for name in ("schemes", "options", "location_class", "open_reader")}
    with pytest.raises(BadStoreConfiguration, match="driver Mine lacks owns"):
        open_store(type("Mine", (Store,), declared))


@pytest.mark.parametrize("entry", [None, dict, MemoryStore.configure])
def test_an_entry_point_of_something_else_is_named(entry):
    with pytest.raises(BadStoreConfiguration, match="a driver is a subclass of Store, or the name of one, not"):
        checked_class(entry)


@pytest.mark.parametrize("gave", [True, ValueError("none of ours"), StoreError])
def test_what_map_error_gives_is_an_error_of_storelib(gave):
    class Mine(MemoryStore):
        def measure(self, location, context):
            return 1 / 0

        def map_error(self, error, subject):
            return gave

    with pytest.raises(StoreError, match="the driver is at fault: map_error gave an object of .* ZeroDivision"):
        open_store(Mine).get_size("memory://memory/x")

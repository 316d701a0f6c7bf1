# SPDX-License-Identifier: Apache-2.0
"""What an installed storelib promises to others: entry points, a complete sample, a typed package."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from importlib.resources import files

import pytest

from storelib import config, plugins
from storelib.driver import STORE_OPTIONS, Store
from storelib.plugins import driver_classes, driver_names

ENTRY_POINTS = importlib.metadata.distribution("storelib").entry_points


@pytest.mark.parametrize("entry", ENTRY_POINTS, ids=lambda entry: f"{entry.group}-{entry.name}")
def test_entry_point_resolves(entry):
    assert entry.load()


@pytest.mark.parametrize("name", driver_names())
def test_every_driver_is_a_store_with_schemes(name):
    driver = driver_classes()[name]
    assert issubclass(driver, Store)
    assert driver.schemes


def test_driver_that_cannot_be_loaded_is_told_of_once(monkeypatch, caplog):
    """All drivers are asked for several times by each command, whose user may need none of those that are broken."""
    monkeypatch.setattr(plugins, "driver_names", lambda: ["file", "of-somebody-else"])
    assert [*driver_classes()] == [*driver_classes()] == ["file"]
    assert len([record for record in caplog.records if record.name == "storelib.plugins"]) == 1


def test_sample_configuration_has_every_option():
    sample = subprocess.run(
        [sys.executable, "-m", "oslo_config.generator", "--namespace", "storelib"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    options = [*STORE_OPTIONS, config.STORES, config.DEFAULT_STORE]
    options += [option for driver in driver_classes().values() for option in driver.options]
    missing = [option.name for option in options if f"\n#{option.name} =" not in sample]
    assert "[storelib]" in sample
    assert not missing


def test_package_is_marked_as_typed():
    assert files("storelib").joinpath("py.typed").is_file()


def test_extras_are_of_what_there_is():
    """What an extra of a driver that does not exist brings, such as eventlet, would be there for nothing."""
    extras = set(importlib.metadata.metadata("storelib").get_all("Provides-Extra") or ())
    others = {
        "api",
        "client",
        "postgresql",
        "mysql",
        "notifications",
        "node",
        "blake3",
        "brick",
        "castellan",
        "zstd",
        "test",
        "dev",
        "parallel",
        "docs",
        "all",
    }
    assert extras - others <= set(driver_names())

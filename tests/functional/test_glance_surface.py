# SPDX-License-Identifier: Apache-2.0
"""Every option and every public name of glance_store 5.7.0, asked of the real one, is there with storelib, too."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from oslo_config import cfg
from servers.glance import PACKAGE, SWITCHED, install

from storelib.compat import options
from storelib.compat.glance_store import backend
from storelib.plugins import driver_class

# What the classes of its drivers and its own lists say.
_OPTIONS = """
import json, sys, warnings
warnings.simplefilter("ignore")
from glance_store import backend, driver, multi_backend
found = {"": [*backend._STORE_OPTS, *multi_backend._STORE_OPTS, *driver._MULTI_BACKEND_OPTS]}
for name in json.loads(sys.argv[1]):
    found[name] = backend._load_store(None, name, invoke_load=False).OPTIONS
print(json.dumps({name: [
    {"name": option.dest, "default": option.default, "secret": bool(option.secret), "multi": bool(option.multi),
     "old": [each.name for each in option.deprecated_opts or ()]} for option in options
] for name, options in found.items()}))
"""

# Names without an underscore that a module itself defines, with those of the members of its classes.
_NAMES = """
import importlib, inspect, json, sys, warnings
warnings.simplefilter("ignore")
def members(kind):
    return sorted(name for name in dir(kind) if not name.startswith("_"))
def parameters(function):
    return [name for name, each in inspect.signature(function).parameters.items()]
found = {}
for name in json.loads(sys.argv[1]):
    module = importlib.import_module("glance_store" + name)
    home = module.__name__.partition(".")[0]
    found[name] = {}
    for key, value in vars(module).items():
        if key.startswith("_") or inspect.ismodule(value):
            continue
        if inspect.isclass(value) and value.__module__.startswith(home):
            bases = [each.__name__ for each in value.__mro__[1:-1]]
            found[name][key] = {"members": members(value), "bases": bases}
        elif inspect.isfunction(value) and value.__module__.startswith(home):
            found[name][key] = {"parameters": parameters(value)}
print(json.dumps(found))
"""
MODULES = (
    *("", ".backend", ".multi_backend", ".driver", ".exceptions", ".location", ".capabilities", ".i18n"),
    *(".common.utils", ".common.cinder_utils", ".common.fs_mount"),
)


def ask(code: str, argument: object, **environment: str) -> Any:
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", *SWITCHED)}
    done = subprocess.run(
        [install() / "python", "-c", code, json.dumps(argument)],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def theirs() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = ask(_OPTIONS, sorted(options.KNOWN))
    return found


@pytest.mark.parametrize("driver", sorted(options.KNOWN))
def test_every_option_is_honoured_or_said_to_have_no_effect(
    theirs: dict[str, list[dict[str, Any]]], driver: str
) -> None:
    """The guide lists those without an effect, see tests/unit/compat."""
    names = [option["name"] for option in theirs[driver]]
    assert list(options.KNOWN[driver]) == names
    ours = {option.dest: option for option in options.known_options(driver)}
    native = {option.dest for option in driver_class(driver).options}
    for option in theirs[driver]:
        name = option["name"]
        assert (name in native) != (name in options.IGNORED), name
        assert ours[name].secret or not option["secret"], name
        assert ours[name].multi == option["multi"], name
        assert {each.name for each in ours[name].deprecated_opts} >= set(option["old"]), name
        if option["default"] is not None and not option["multi"]:
            # A file that says it may stay.
            text = option["default"]
            text = ",".join(f"{key}:{value}" for key, value in text.items()) if isinstance(text, dict) else text
            ours[name].type(",".join(text) if isinstance(text, list) else str(text))


def test_options_of_all_stores(theirs: dict[str, list[dict[str, Any]]]) -> None:
    """``stores`` and the like."""
    from storelib.compat.glance_store import multi_backend

    ours = [*backend._STORE_OPTS, *multi_backend._STORE_OPTS, *multi_backend._STORE_CFG_OPTS]
    assert [(each.dest, each.default) for each in ours] == [(each["name"], each["default"]) for each in theirs[""]]


def test_every_public_name_is_here() -> None:
    theirs, ours = ask(_NAMES, MODULES), ask(_NAMES, MODULES, **SWITCHED)
    missing: list[str] = []
    for module, names in theirs.items():
        for name, told in names.items():
            found = ours[module].get(name)
            if found is None:
                missing.append(f"{module}.{name}")
                continue
            gone = set(told.get("members", ())) - set(found.get("members", ()))
            missing += [f"{module}.{name}.{member}" for member in gone]
            assert set(told.get("bases", ())) <= set(found.get("bases", ())), (module, name)
            if "parameters" in told and told["parameters"] != found["parameters"]:
                missing.append(f"{module}.{name}({', '.join(told['parameters'])})")
    assert missing == []


def sample(python: Path | str, namespace: str, **environment: str) -> dict[str, list[str]]:
    """The names of the options in a sample file, by group."""
    code = "import sys, warnings; warnings.simplefilter('ignore'); from oslo_config import generator; generator.main()"
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", *SWITCHED)}
    done = subprocess.run(
        [python, "-c", code, "--namespace", namespace],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[str]] = {}
    group = ""
    for line in done.stdout.splitlines():
        if section := re.fullmatch(r"\[(.+)\]", line):
            group = section[1]
        elif option := re.match(r"#?(\w+) = ", line + " "):
            found.setdefault(group, []).append(option[1])
    return found


def test_sample_files_have_every_option_once_whichever_packages_are_installed(tmp_path: Path) -> None:
    """Both, with storelib and without it; and storelib's alone."""
    info = tmp_path / "storelib_glance_store-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: storelib-glance-store\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[oslo.config.opts]\nglance.store = storelib_glance_store:list_opts\n"
        "glance.multi_store = storelib_glance_store:list_config_opts\n"
    )
    alone = os.pathsep.join((str(tmp_path), str(PACKAGE)))
    programs = install()
    both = sample(programs / "python", "glance.store")
    assert both.keys() == {"glance_store"}
    for found in (
        both,
        sample(programs / "python", "glance.store", **SWITCHED),
        sample(sys.executable, "glance.store", PYTHONPATH=alone),
    ):
        assert sorted(set(found["glance_store"])) == sorted(both["glance_store"])
        assert len(found["glance_store"]) == len(both["glance_store"])
    several = [
        sample(programs / "python", "glance.multi_store", **SWITCHED),
        sample(sys.executable, "glance.multi_store", PYTHONPATH=alone),
    ]
    assert several[0] == several[1]
    for driver, names in options.KNOWN.items():
        assert several[0][driver] == ["store_description", "weight", *names]


def test_the_names_of_a_sample_are_those_of_a_configuration() -> None:
    conf = cfg.ConfigOpts()
    backend.register_opts(conf)
    assert all(name in conf.glance_store for names in options.KNOWN.values() for name in names)

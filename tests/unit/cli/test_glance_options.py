# SPDX-License-Identifier: Apache-2.0
"""Every option of Glance is the same here, has another name, or is named as ignored: in what ``config migrate`` writes
and in the table of the operator's guide."""

from __future__ import annotations

import fnmatch
import logging
import re
from pathlib import Path

import pytest

from storelib.api import config, import_options
from storelib.api.db import config as database
from storelib.api.glance_options import API, BUS, LIBRARIES, fate, table
from storelib.api.unknown_options import warn_of_unknown_options
from storelib.config import load_file, read_settings

#: By group.
GLANCE: dict[str, list[str]] = {}
for line in Path(__file__).with_name("glance_options.txt").read_text().splitlines():
    if line.startswith("["):
        names = GLANCE.setdefault(line[1:-1], [])
    elif not line.startswith("#"):
        names.append(line)

EVERY = [(group, name) for group, names in GLANCE.items() for name in names]


def test_the_list_is_long():
    assert len(EVERY) > 400
    assert {"DEFAULT", "image_format", "import_filtering_opts", "oslo_limit", "cors", "barbican"} <= GLANCE.keys()


def test_there_is_a_word_on_every_option():
    assert [option for option in EVERY if not (fate(*option).group or fate(*option).why)] == []


def test_what_is_said_to_be_here_is():
    here = {
        API: {option.dest for option in config.OPTIONS},
        database.GROUP: {option.dest for option in database.OPTIONS},
        "storelib": {"stores"},
        **{group: {option.dest for option in options} for group, options in import_options.GROUPS.items()},
    }
    for option in EVERY:
        found = fate(*option)
        if (
            found.group
            and found.group not in LIBRARIES
            and not found.group.startswith(BUS)
            and found.group != "DEFAULT"
        ):
            assert found.name in here[found.group], option


@pytest.mark.parametrize("option", [("DEFAULT", "image_size_capp"), ("image_format", "disk_format"), ("nothing", "x")])
def test_what_glance_does_not_have_is_not_known(option):
    assert fate(*option) == (None, "", "")


def test_migration_carries_each_option_or_says_why_not(storelib, places):
    lines = ["[glance_store]", "stores = file"]
    for group, names in GLANCE.items():
        lines += [f"[{group}]", *(f"{name} = {VALUES.get(name, '1')}" for name in names)]
    (places / "glance-api.conf").write_text("\n".join(lines))
    assert storelib("config", "migrate", "glance-api.conf", "-o", "new.ini").code == 0
    text = (places / "new.ini").read_text().splitlines()
    live = {(setting.group, setting.key) for setting in read_settings("new.ini")}
    for group, name in EVERY:
        ours = fate(group, name)
        carried = ours.group is not None and (ours.group, ours.name) in live
        at = [number for number, line in enumerate(text) if line.startswith(f"# {name} = ")]
        assert carried or (group, name) in SPECIAL or at, (group, name)
        assert all("storelib has no such option" not in text[number - 1] for number in at), (group, name)


def test_what_older_tasks_convert_to_does_not_become_the_format_of_all_imports(storelib, places):
    lines = ["[glance_store]", "stores = file", "[image_conversion]", "output_format = raw"]
    lines += ["[taskflow_executor]", "conversion_format = qcow2"]
    (places / "glance-api.conf").write_text("\n".join(lines))
    assert storelib("config", "migrate", "glance-api.conf", "-o", "new.ini").code == 0
    formats = [setting.value for setting in read_settings("new.ini") if setting.key == "output_format"]
    assert formats == ["raw"]


#: Carried as something else: a list of stores, a way to authenticate.
SPECIAL = {("DEFAULT", "enabled_backends"), ("paste_deploy", "flavor")}
VALUES = {
    "driver": "messagingv2",
    "disk_formats": "[raw,qcow2]",
    "container_formats": "[bare]",
    "enabled_import_methods": "[web-download]",
    "enabled_backends": "fast:file",
    "flavor": "keystone+cachemanagement",
    "property_protection_rule_format": "roles",
    "hashing_algorithm": "sha512",
    "node_staging_uri": "file:///srv/staging",
    "conversion_format": "raw",
    "output_format": "raw",
    "connection": "sqlite:////srv/x.sqlite",
}


def test_the_table_has_every_option():
    rows = [re.findall("``(.+?)``", names) for names, _ in table()]
    listed = [(group.strip("[]"), pattern) for group, *names in rows for pattern in names or ["*"]]
    for option in EVERY:
        assert any(all(map(fnmatch.fnmatchcase, option, each)) for each in listed), option


def test_an_option_of_glance_in_our_file_is_explained(tmp_path, caplog):
    path = tmp_path / "storelib.ini"
    path.write_text(
        "[storelib]\nstores = mem:memory\n[DEFAULT]\nuser_storage_quota = 1GB\nbind_port = 9292\n[wsgi]\na = b\n"
    )
    conf = load_file(path)
    config.register_opts(conf)
    with caplog.at_level(logging.WARNING):
        warn_of_unknown_options(conf)
    assert "user_storage_quota" in caplog.text
    assert "here: [api] user_storage_quota" in caplog.text
    assert "here: say it to storelib serve: --bind HOST:PORT" in caplog.text

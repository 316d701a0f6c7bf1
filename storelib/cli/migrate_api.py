# SPDX-License-Identifier: Apache-2.0
"""What in a configuration of Glance concerns the image API, as storelib's ``[api]`` and what stands beside it.

An operator who had Keystone in front of the images keeps it: no service with authentication becomes one without.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from oslo_config import cfg

from storelib.config import Setting, convert
from storelib.exceptions import BadStoreConfiguration
from storelib.option_types import LocalPath

MARK = "# migrate: "

_NO_MESSAGES = "storelib sends notifications only where Glance did, by [oslo_messaging_notifications] driver"
_NO_CACHE = "Glance's pipeline ([paste_deploy] flavor) had no cache; with this option storelib has one"


class _Found(NamedTuple):
    """What of the old file becomes what in the new one, and what does not."""

    api: list[tuple[Setting, str]]
    kept: list[Setting]
    bus: list[Setting]
    database: list[Setting]
    rest: list[tuple[Setting, str]]


def api_lines(settings: Sequence[Setting], staged: Sequence[Setting]) -> Iterator[str]:
    """The groups of the image API for the settings of Glance that are not its stores'.

    ``staged`` is the directory of the store for staged data, which Glance has beside several others.
    """
    from storelib.api.config import GROUP, OPTIONS
    from storelib.api.glance_options import BUS

    api = {option.dest: option for option in OPTIONS}
    notifies = any(
        setting.group == f"{BUS}notifications" and setting.key == "driver" and setting.value not in ("", "noop")
        for setting in settings
    )
    found = _sorted(settings)
    complete = any(setting.group in _WHOLE for setting in settings)
    head = [*_authentication(settings), *_notifications(notifies), *_staging(settings, staged, complete)]
    head += [*_caching(settings), *(_untold(settings) if complete else ())]
    if head or found.api:
        yield from ("", f"[{GROUP}]", *head)
        for setting, name in found.api:
            yield from assignment(setting._replace(key=name, value=_unbounded(setting.value)), api[name])
    if found.database:
        yield from ("", "[database]", f"{MARK}storelib needs a database of its own, not Glance's: create an empty one;")
        yield f"{MARK}storelib db import-glance takes what is in Glance's"
        for setting in found.database:
            yield from assignment(setting, ANY)
    kept = [*found.kept, *(found.bus if notifies else ()), *(_unsaid(settings) if complete else ())]
    for group, inside in _by_group(_with_policies(kept)):
        yield from ("", f"[{group}]")
        for setting in inside:
            yield from assignment(setting, ANY)
    rest = [*found.rest, *((setting, _NO_MESSAGES) for setting in (() if notifies else found.bus))]
    reasons = dict(rest)
    for group, inside in _by_group(reasons):
        yield from ("", f"# [{group}]")
        for setting in inside:
            yield from remark(setting, reasons[setting] or "storelib has no such option")


#: Stands for options of libraries, of which only the libraries know what they take.
ANY = cfg.StrOpt("any")


def _sorted(settings: Sequence[Setting]) -> _Found:
    from storelib.api.db.config import GROUP as DATABASE
    from storelib.api.glance_options import API, BUS, BUS_OPTIONS, fate

    found = _Found([], [], [], [], [])
    cached = bool(_CACHING & set(_flavor(settings)))
    for setting in settings:
        group, key = setting.group, setting.key
        ours = fate(group, key)
        if (group, key) in _HANDLED:
            continue
        if key == "image_cache_dir" and not cached:
            found.rest.append((setting, _NO_CACHE))
        elif why := _OLD_RULES.get(key) if group == "oslo_policy" and not _is_on(setting.value) else None:
            found.rest.append((setting, why))
        elif ours.group == API:
            found.api.append((setting, ours.name))
        elif ours.group is None:
            found.rest.append((setting, ours.why))
        elif group.startswith(BUS) or key in BUS_OPTIONS:
            found.bus.append(setting)
        elif ours.group == DATABASE:
            found.database.append(setting)
        else:
            found.kept.append(setting._replace(group=ours.group, key=ours.name))
    return found


#: What Glance did where these options were off.
_OLD_RULES = {
    "enforce_new_defaults": "users without the role reader, or member, could do much; here they may do nothing unless "
    "rules in the policy file say so",
    "enforce_scope": "tokens of the system and of domains were as good as those of projects; here they are none",
}
#: Groups of a file that is Glance's, and not only about stores.
_WHOLE = {"database", "keystone_authtoken", "paste_deploy"}
#: What Glance looks for in the directory of its file, where nothing else is said.
_POLICIES = {"policy_file": ("policy.yaml", "policy.json"), "policy_dirs": ("policy.d",)}
#: What the paste file says that Glance brings; storelib reads none.
_HEALTH = {"backends": "disable_by_file", "disable_by_file_path": "/etc/glance/healthcheck_disable"}
#: Parts of a pipeline that have nothing to do with who asks.
_CACHING = {"caching", "cachemanagement"}
_HANDLED = {("DEFAULT", "enabled_backends"), ("paste_deploy", "flavor"), ("DEFAULT", "node_staging_uri")}


def _authentication(settings: Sequence[Setting]) -> Iterator[str]:
    """By the pipeline of Glance's paste file; Keystone wherever it is mentioned or the pipeline is unknown."""
    parts = _flavor(settings)
    section = any(setting.group == "keystone_authtoken" for setting in settings)
    others = [part for part in parts if part not in ("keystone", *_CACHING)]
    if not (section or parts):
        return
    if not section and "keystone" not in parts and not others:
        yield f"{MARK}Glance asked for no tokens; without --allow-noauth-anywhere storelib serves so on loopback only"
        yield "auth_strategy = noauth"
        return
    if others or "keystone" not in parts:
        yield f"{MARK}[paste_deploy] flavor was {'+'.join(parts)!r}; to be safe, storelib asks for tokens of Keystone"
    if not section:
        yield f"{MARK}the file has no [keystone_authtoken]; storelib needs it to check tokens"
    yield "auth_strategy = keystone"


def _flavor(settings: Sequence[Setting]) -> list[str]:
    """The parts of Glance's pipeline."""
    flavor = next((s.value.strip() for s in reversed(settings) if (s.group, s.key) == ("paste_deploy", "flavor")), "")
    return [part for part in flavor.split("+") if part]


def _caching(settings: Sequence[Setting]) -> Iterator[str]:
    parts = _flavor(settings)
    if "caching" in parts and "cachemanagement" not in parts:
        yield "image_cache_management = false"


def _notifications(notifies: bool) -> Iterator[str]:
    if notifies:
        yield "notifications = true"


def _staging(settings: Iterable[Setting], staged: Sequence[Setting], complete: bool) -> Iterator[str]:
    given = [setting for setting in settings if (setting.group, setting.key) == ("DEFAULT", "node_staging_uri")]
    if staged and (staged[-1].file or (complete and not given)):
        if not staged[-1].file:
            yield "# The default of Glance; storelib has none."
        yield from assignment(staged[-1]._replace(key="staging_dir"), ANY)
        return
    for setting in given:
        url = urlsplit(setting.value)
        if url.scheme == "file" and url.path:
            yield from assignment(setting._replace(key="staging_dir", value=unquote(url.path)), ANY)
        else:
            yield from remark(setting, "staged data is kept in a local directory, staging_dir")
    if complete and not given:
        yield f"{MARK}Glance staged in /tmp/staging, where others may be first; without a directory nothing is staged"
        yield "# staging_dir = /tmp/staging"


def _untold(settings: Sequence[Setting]) -> Iterator[str]:
    """What is otherwise here, or beside the old file, where that says nothing of it."""
    methods = [each.value for each in settings if (each.group, each.key) == ("DEFAULT", "enabled_import_methods")]
    if not methods or "download" in methods[-1]:
        yield f"{MARK}imports read from addresses that are not public only where import_allowed_networks names them"
    if schema := _beside(settings, ["schema-image.json"]):
        yield f"property_schema_file = {_written(schema)}"


def _unsaid(settings: Iterable[Setting]) -> Iterator[Setting]:
    """What is not in the file and holds in Glance all the same."""
    said = {(setting.group, setting.key) for setting in settings}
    for key, names in _POLICIES.items():
        if ("oslo_policy", key) not in said and (found := _beside(settings, names)):
            yield Setting("", 0, "oslo_policy", key, found)
    if not any(group == "healthcheck" and key in (*_HEALTH, "disable_by_file_paths") for group, key in said):
        yield from (Setting("", 0, "healthcheck", key, value) for key, value in _HEALTH.items())


def _with_policies(settings: Iterable[Setting]) -> Iterator[Setting]:
    """The same with the policy files that are beside the old file, and are not looked for from the new one."""
    for setting in settings:
        relative = setting.group == "oslo_policy" and setting.key in _POLICIES
        found = _beside([setting], [setting.value]) if relative else None
        yield setting._replace(value=found) if found else setting


def _beside(settings: Iterable[Setting], names: Sequence[str]) -> str | None:
    """The first of these files that is in the directory of one with ``settings``."""
    places = dict.fromkeys(Path(setting.file).absolute().parent for setting in settings if setting.file)
    return next((str(place / name) for name in names for place in places if (place / name).exists()), None)


def _unbounded(value: str) -> str:
    """Glance writes lists in brackets, too."""
    bounded = re.fullmatch(r"\s*\[(.*)\]\s*", value, re.DOTALL)
    return bounded[1] if bounded else value


def _is_on(value: str) -> bool:
    return value.strip().lower() in ("true", "1", "on", "yes")


def _by_group(settings: Iterable[Setting]) -> Iterator[tuple[str, list[Setting]]]:
    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(setting.group, []).append(setting)
    yield from groups.items()


def assignment(setting: Setting, option: cfg.Opt | None) -> Iterator[str]:
    """The option in the new file, or a remark with the reason why it cannot be there."""
    problem = _problem(setting.value, option)
    if problem:
        yield from remark(setting, problem)
    else:
        name = option.dest if option and option is not ANY else setting.key
        local = option is not None and isinstance(option.type, LocalPath)
        found = _beside([setting], [setting.value]) if local else None
        yield f"{name} = {_written(found or setting.value)}"


def remark(setting: Setting, why: str) -> Iterator[str]:
    """The option as a comment."""
    yield f"{MARK}{why}"
    yield from (f"# {line}" for line in f"{setting.key} = {_written(setting.value)}".splitlines())


def _problem(value: str, option: cfg.Opt | None) -> str | None:
    if option is None:
        return "no driver of these stores has such an option"
    if "$" in value.replace("$$", ""):
        return "this refers to another option; write out what it stands for"
    try:
        convert("", option, value)
    except BadStoreConfiguration:
        return "this value is not valid"
    return None


def _written(value: str) -> str:
    """As the ini parser reads it back: it strips blanks and one pair of quotes."""
    quoted: Any = value and value[0] == value[-1] and value[0] in "'\""
    if quoted or value != value.strip():
        value = f'"{value}"'
    return value.replace("\n", "\n    ")

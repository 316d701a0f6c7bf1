# SPDX-License-Identifier: Apache-2.0
"""What in a configuration of Glance concerns the image API, as storelib's ``[api]`` and what stands beside it.

An operator who had Keystone in front of the images keeps it: no service with authentication becomes one without.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from oslo_config import cfg

from storelib.config import Setting, convert
from storelib.exceptions import BadStoreConfiguration

MARK = "# migrate: "

#: Options with the same name and meaning, by their group in Glance.
SAME = {
    "DEFAULT": (
        *("user_storage_quota", "image_size_cap", "image_member_quota", "image_property_quota", "image_tag_quota"),
        *("image_location_quota", "limit_param_default", "api_limit_max", "show_image_direct_url"),
        *("show_multiple_locations", "do_secure_hash", "http_retries", "hashing_algorithm", "public_endpoint"),
        *("allow_additional_image_properties", "property_protection_file", "property_protection_rule_format"),
        *("allow_anonymous_access", "max_request_id_length", "enabled_import_methods"),
    ),
    "image_format": (
        *("container_formats", "disk_formats", "require_image_format_match", "gpt_safety_checks_nonfatal"),
    ),
    "oslo_messaging_notifications": ("disabled_notifications",),
}
#: Options with another name in ``[api]``.
RENAMED = {
    ("DEFAULT", "disabled_notifications"): "disabled_notifications",
    ("DEFAULT", "default_publisher_id"): "notification_publisher_id",
    ("taskflow_executor", "max_workers"): "import_workers",
    **{
        ("import_filtering_opts", f"{kind}_{what}"): f"import_{kind}_{what}"
        for kind in ("allowed", "disallowed")
        for what in ("schemes", "hosts", "ports")
    },
}
#: Groups that libraries read here as they do there.
KEPT = ("keystone_authtoken", "oslo_policy", "oslo_middleware", "healthcheck")
#: Options of oslo.db that storelib has under the same name.
DATABASE = ("connection", "max_pool_size", "max_overflow", "pool_timeout", "connection_recycle_time")
#: Groups and options of the message bus; kept where notifications are sent.
BUS = "oslo_messaging_"
BUS_OPTIONS = ("transport_url", "control_exchange")
#: What else has to be said about an option that has no counterpart.
WHY = {
    "bind_host": "say it to storelib serve: --bind HOST:PORT",
    "bind_port": "say it to storelib serve: --bind HOST:PORT",
    "workers": "say it to storelib serve: --workers N",
    "cert_file": "say it to storelib serve: --certfile FILE",
    "key_file": "say it to storelib serve: --keyfile FILE",
    "debug": "say it to storelib: --verbose",
    "log_file": "storelib writes its log to stderr",
    "log_dir": "storelib writes its log to stderr",
    "use_keystone_limits": "limits in Keystone are not asked for; the quotas of [api] hold",
    "image_import_plugins": "imports have no plug-ins",
}


class _Found(NamedTuple):
    """What of the old file becomes what in the new one, and what does not."""

    api: list[tuple[Setting, str]]
    kept: list[Setting]
    bus: list[Setting]
    database: list[Setting]
    rest: list[Setting]


def api_lines(settings: Sequence[Setting]) -> Iterator[str]:
    """The groups of the image API for the settings of Glance that are not its stores'."""
    from storelib.api.config import GROUP, OPTIONS

    api = {option.dest: option for option in OPTIONS}
    notifies = any(
        setting.group == f"{BUS}notifications" and setting.key == "driver" and setting.value not in ("", "noop")
        for setting in settings
    )
    found = _sorted(settings)
    head = [*_authentication(settings), *_notifications(notifies), *_staging(settings)]
    if head or found.api:
        yield from ("", f"[{GROUP}]", *head)
        for setting, name in found.api:
            yield from assignment(setting._replace(key=name, value=_unbounded(setting.value)), api[name])
    if found.database:
        yield from ("", "[database]", f"{MARK}storelib needs a database of its own, not Glance's: create an empty one")
        for setting in found.database:
            yield from assignment(setting, ANY)
    for group, inside in _by_group([*found.kept, *(found.bus if notifies else ())]):
        yield from ("", f"[{group}]")
        for setting in inside:
            yield from assignment(setting, ANY)
    rest = [*found.rest, *(() if notifies else found.bus)]
    for group, inside in _by_group(rest):
        yield from ("", f"# [{group}]")
        for setting in inside:
            yield from remark(setting, WHY.get(setting.key, "storelib has no such option"))


#: Stands for options of libraries, of which only the libraries know what they take.
ANY = cfg.StrOpt("any")


def _sorted(settings: Iterable[Setting]) -> _Found:
    found = _Found([], [], [], [], [])
    for setting in settings:
        group, key = setting.group, setting.key
        name = key if key in SAME.get(group, ()) else RENAMED.get((group, key))
        if name:
            found.api.append((setting, name))
        elif group in KEPT:
            found.kept.append(setting)
        elif group.startswith(BUS) or (group == "DEFAULT" and key in BUS_OPTIONS):
            found.bus.append(setting)
        elif group == "database" and key in DATABASE:
            found.database.append(setting)
        elif (group, key) not in _HANDLED:
            found.rest.append(setting)
    return found


#: Parts of a pipeline that have nothing to do with who asks.
_WITHOUT_USERS = ("caching", "cachemanagement")
_HANDLED = {("DEFAULT", "enabled_backends"), ("paste_deploy", "flavor"), ("DEFAULT", "node_staging_uri")}


def _authentication(settings: Sequence[Setting]) -> Iterator[str]:
    """By the pipeline of Glance's paste file; Keystone wherever it is mentioned or the pipeline is unknown."""
    flavor = next((s.value.strip() for s in reversed(settings) if (s.group, s.key) == ("paste_deploy", "flavor")), "")
    parts = [part for part in flavor.split("+") if part]
    section = any(setting.group == "keystone_authtoken" for setting in settings)
    others = [part for part in parts if part not in ("keystone", *_WITHOUT_USERS)]
    if not (section or parts):
        return
    for part in parts:
        if part in _WITHOUT_USERS:
            yield f"{MARK}the part {part!r} of [paste_deploy] flavor has no counterpart"
    if not section and "keystone" not in parts and not others:
        yield f"{MARK}Glance asked for no tokens; without --allow-noauth-anywhere storelib serves so on loopback only"
        yield "auth_strategy = noauth"
        return
    if others or "keystone" not in parts:
        yield f"{MARK}[paste_deploy] flavor was {flavor!r}; to be safe, storelib asks for tokens of Keystone"
    if not section:
        yield f"{MARK}the file has no [keystone_authtoken]; storelib needs it to check tokens"
    yield "auth_strategy = keystone"


def _notifications(notifies: bool) -> Iterator[str]:
    if notifies:
        yield "notifications = true"


def _staging(settings: Iterable[Setting]) -> Iterator[str]:
    for setting in settings:
        if (setting.group, setting.key) == ("DEFAULT", "node_staging_uri"):
            url = urlsplit(setting.value)
            if url.scheme == "file" and url.path:
                yield from assignment(setting._replace(key="staging_dir", value=unquote(url.path)), ANY)
            else:
                yield from remark(setting, "staged data is kept in a local directory, staging_dir")


def _unbounded(value: str) -> str:
    """Glance writes lists in brackets, too."""
    bounded = re.fullmatch(r"\s*\[(.*)\]\s*", value, re.DOTALL)
    return bounded[1] if bounded else value


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
        yield f"{name} = {_written(setting.value)}"


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

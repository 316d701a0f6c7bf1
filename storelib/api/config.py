# SPDX-License-Identifier: Apache-2.0
"""The options of the image API: group ``[api]``. Those of the database are ``db/``'s; names are Glance's where the
meaning is the same.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from types import SimpleNamespace

from oslo_config import cfg, types

from storelib.config import OptionReader, Setting, did_you_mean, option_names
from storelib.exceptions import BadStoreConfiguration
from storelib.option_types import LocalPath
from storelib.transfer.contract import MiB

LOG = logging.getLogger(__name__)

#: The group of what concerns the API.
GROUP = "api"

CONTAINER_FORMATS = ["ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed"]
DISK_FORMATS = ["ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "ploop", "iso", "gpt", "luks"]
IMPORT_METHODS = ("glance-direct", "web-download", "copy-image")

_AUTH_STRATEGY = cfg.StrOpt(
    "auth_strategy",
    default="noauth",
    choices=[
        ("noauth", "Every caller is an administrator; for loopback addresses and tests"),
        ("http_basic", "User names and bcrypt passwords from [oslo_middleware] http_basic_auth_user_file"),
        ("keystone", "Keystone tokens, checked as [keystone_authtoken] says"),
    ],
    help="How requests are authenticated. Has to be set where a file has sections about authentication.",
)
#: Sections that are read by libraries, not all of them when the service starts.
_OTHERS = ("oslo_", "keystone_authtoken", "profiler", "cors", "os_glance_")
#: Options in [DEFAULT] of oslo.messaging and oslo.log.
_OTHERS_DEFAULTS = (
    *("transport_url", "control_exchange", "executor_thread_pool_size", "rpc_"),
    *("debug", "log", "use_syslog", "use_stderr", "use_json", "use_journal", "syslog_", "default_log_levels"),
    *("instance_format", "instance_uuid_format", "rate_limit_", "publish_errors", "watch_log_file", "fatal_"),
)

OPTIONS: Sequence[cfg.Opt] = (
    # -- who may do what
    _AUTH_STRATEGY,
    cfg.BoolOpt(
        "allow_anonymous_access",
        default=False,
        help="With keystone: let requests without a token read what is public. Without it they get 401.",
    ),
    cfg.ListOpt(
        "http_basic_admins",
        default=["admin"],
        help="With http_basic: the users with the role admin. Every user has the roles member and reader, in a "
        "project of the same name.",
    ),
    cfg.Opt(
        "property_protection_file",
        type=LocalPath(),
        help="INI file of regular expressions for names of custom properties and the roles or policies that may "
        "create, read, update and delete them. Not set: callers who may change an image may change them.",
    ),
    cfg.StrOpt(
        "property_protection_rule_format",
        default="roles",
        choices=["roles", "policies"],
        help="What the values in property_protection_file are.",
    ),
    cfg.IntOpt(
        "max_request_id_length", default=64, min=0, help="Characters of an X-Openstack-Request-ID that are accepted."
    ),
    # -- what images may be
    cfg.ListOpt("container_formats", default=CONTAINER_FORMATS, help="Values of container_format that are accepted."),
    cfg.ListOpt("disk_formats", default=DISK_FORMATS, help="Values of disk_format that are accepted."),
    cfg.BoolOpt(
        "allow_additional_image_properties",
        default=True,
        help="Accept properties that no schema names. Off, only those of property_schema_file and storelib's own.",
    ),
    cfg.Opt(
        "property_schema_file",
        type=LocalPath(),
        help="JSON schema of the operator's own image properties, {name: {...}} or {properties: {...}}; the latter may "
        "have a list, required, of those that every new image must have.",
    ),
    cfg.StrOpt("hashing_algorithm", default="sha512", help="Algorithm of os_hash_value: one of hashlib, or blake3."),
    cfg.BoolOpt(
        "require_image_format_match",
        default=True,
        help="Refuse data that is not of the image's disk_format, for container_format bare.",
    ),
    cfg.ListOpt(
        "gpt_safety_checks_nonfatal",
        default=[],
        help="Safety checks of partition tables that may fail, by the names of oslo.utils (for example mbr).",
    ),
    # -- how much
    cfg.IntOpt("image_size_cap", default=1024**4, min=1, help="Bytes of the largest image that is accepted."),
    cfg.StrOpt(
        "user_storage_quota",
        default="0",
        regex=r"^\d+(B|KB|MB|GB|TB)?$",
        help="Bytes all images of one project may have together, with an optional unit B, KB, MB, GB or TB (powers "
        "of 1024). 0: no limit.",
    ),
    cfg.IntOpt("image_member_quota", default=128, help="Members of one image; negative: no limit."),
    cfg.IntOpt("image_property_quota", default=128, help="Custom properties of one image; negative: no limit."),
    cfg.IntOpt("image_tag_quota", default=128, help="Tags of one image; negative: no limit."),
    cfg.IntOpt("image_location_quota", default=10, help="Locations of one image; negative: no limit."),
    cfg.IntOpt("limit_param_default", default=25, min=1, help="Images in one response to a list request."),
    cfg.IntOpt("api_limit_max", default=1000, min=1, help="Entries in one response at most, whatever is asked for."),
    # -- where
    cfg.StrOpt(
        "public_endpoint",
        help="URL under which clients reach the API, for links in the list of versions. Not set: the request's own.",
    ),
    cfg.BoolOpt(
        "show_image_direct_url", default=False, help="Show where the data is as direct_url. It may tell secrets."
    ),
    cfg.BoolOpt(
        "show_multiple_locations",
        default=False,
        help="Show all places of the data as locations, and let clients change them; in stores other than the web only "
        "administrators and services.",
    ),
    cfg.BoolOpt("do_secure_hash", default=True, help="Hash the data of locations that clients add."),
    cfg.IntOpt("http_retries", default=3, min=0, help="Times that hashing of a new location is tried again."),
    # -- import
    cfg.ListOpt(
        "enabled_import_methods",
        item_type=types.String(choices=list(IMPORT_METHODS)),
        default=list(IMPORT_METHODS),
        help="How images may be imported. glance-direct needs staging_dir.",
    ),
    cfg.Opt(
        "staging_dir",
        type=LocalPath(),
        help="Directory for data that is staged before it is imported into the stores. All processes of the API must "
        "share it. Not set: no glance-direct.",
    ),
    cfg.ListOpt("import_allowed_schemes", default=["http", "https"], help="URL schemes web-download accepts."),
    cfg.ListOpt("import_disallowed_schemes", default=[], help="URL schemes it never accepts, even if also allowed."),
    cfg.ListOpt("import_allowed_hosts", default=[], help="Hosts web-download may read from; empty: all."),
    cfg.ListOpt("import_disallowed_hosts", default=[], help="Hosts it never reads from, even if also allowed."),
    cfg.ListOpt(
        "import_allowed_ports",
        item_type=types.Port(),
        default=[80, 443],
        help="Ports web-download may connect to; empty: all.",
    ),
    cfg.ListOpt(
        "import_disallowed_ports",
        item_type=types.Port(),
        default=[],
        help="Ports it never connects to, even if also allowed.",
    ),
    cfg.ListOpt(
        "import_allowed_networks",
        default=[],
        help="Networks web-download may connect to although their addresses are not public.",
    ),
    cfg.ListOpt("import_disallowed_networks", default=[], help="Networks it never connects to."),
    cfg.FloatOpt("import_timeout", default=60.0, min=0.1, help="Seconds a remote server may be silent."),
    cfg.IntOpt("import_workers", default=4, min=1, help="Imports and hashings under way in one process at most."),
    # -- around it
    cfg.FloatOpt(
        "lease_timeout",
        default=30.0,
        min=1.0,
        help="Seconds after which a process that does not renew its lease counts as dead, and the others undo its "
        "uploads. The same for all processes of the API.",
    ),
    cfg.BoolOpt("metrics", default=True, help="Serve /metrics in the text format of Prometheus."),
    cfg.BoolOpt(
        "notifications",
        default=False,
        help="Send notifications by oslo.messaging, as [oslo_messaging_notifications] says.",
    ),
    cfg.StrOpt("notification_publisher_id", default="image.localhost", help="Who notifications come from."),
    cfg.ListOpt(
        "disabled_notifications",
        default=[],
        help="Notifications that are not sent, as a type (image.create) or a group of them (image).",
    ),
)

_UNITS = {"": 1, "B": 1, "KB": 1024, "MB": MiB, "GB": 1024 * MiB, "TB": 1024 * 1024 * MiB}


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register ``[api]``; may be repeated, also after ``conf`` was parsed."""
    conf.register_group(cfg.OptGroup(GROUP, help="The image API."))
    conf.register_opts(OPTIONS, group=GROUP)


def read_options(conf: cfg.ConfigOpts) -> SimpleNamespace:
    """The values of ``[api]``, paths made absolute.

    Raises BadStoreConfiguration for a misspelled or wrong option: at the start, not at some request. And for sections
    about authentication without ``auth_strategy``: a service that was to ask for tokens must not serve callers without.
    """
    reader = OptionReader(conf)
    values = {option.dest: reader.value(GROUP, option) for option in OPTIONS}
    names = option_names(OPTIONS)
    for setting in reader.settings:
        if setting.group.lower() == GROUP and setting.key not in names:
            hint = did_you_mean(setting.key, names)
            raise BadStoreConfiguration(f"{setting}: there is no such option{hint}")
        meant = _authentication(setting)
        if meant and not reader.is_set(GROUP, _AUTH_STRATEGY):
            raise BadStoreConfiguration(
                f"{setting} is about authentication, but [{GROUP}] auth_strategy is not set, and without it "
                f"everybody is an administrator; set auth_strategy = {meant}, or noauth if that is meant"
            )
    return SimpleNamespace(**values)


def warn_of_unread(conf: cfg.ConfigOpts) -> None:
    """Log each section and option in the files that nothing here reads: a misspelled one is not in force.

    ``conf`` is one whose users have registered what they read. Sections of oslo's libraries and of Keystone's
    middleware, which read them later, are theirs.
    """
    groups = {name.lower(): group for name, group in conf._groups.items()}
    names = {section: option_names(each["opt"] for each in group._opts.values()) for section, group in groups.items()}
    names["default"] = option_names(each["opt"] for each in conf._opts.values())
    sections: set[str] = set()
    for setting in OptionReader(conf).settings:
        section = setting.group.lower()
        if section.startswith(_OTHERS) or (section == "default" and setting.key.startswith(_OTHERS_DEFAULTS)):
            continue
        if section in names:
            if setting.key not in names[section]:
                LOG.warning("nothing reads %s%s", setting, did_you_mean(setting.key, names[section]))
        elif section not in sections:
            sections.add(section)
            place = f"the section [{setting.group}] ({setting.place})"
            LOG.warning("nothing reads %s%s", place, did_you_mean(setting.group, groups))


def _authentication(setting: Setting) -> str | None:
    """The auth_strategy that was meant; None where nothing is said about that."""
    section = setting.group.lower()
    if section == "keystone_authtoken" or (section == "paste_deploy" and "keystone" in setting.value.lower()):
        return "keystone"
    if section == "oslo_middleware" and setting.key == "http_basic_auth_user_file":
        return "http_basic"
    return None


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """The options of ``[api]``, for oslo-config-generator."""
    return [(cfg.OptGroup(GROUP, help="The image API."), [copy.deepcopy(option) for option in OPTIONS])]


def size_in_bytes(text: str) -> int:
    """``"5GB"`` as a number of bytes."""
    digits = text.rstrip("BKMGT")
    return int(digits) * _UNITS[text[len(digits) :]]

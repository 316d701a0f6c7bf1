# SPDX-License-Identifier: Apache-2.0
"""The options of the image API: group ``[api]``. Those of the database are ``db/``'s; names are Glance's where the
meaning is the same.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from oslo_config import cfg, types

from storelib.api import import_options, preload_options
from storelib.config import OptionReader, Setting, did_you_mean, option_names
from storelib.exceptions import BadStoreConfiguration
from storelib.option_types import LONGEST, LocalPath, Names, Network, Url
from storelib.transfer.contract import MiB

#: The group of what concerns the API.
GROUP = "api"

CONTAINER_FORMATS = ["ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed"]
DISK_FORMATS = ["ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "ploop", "iso", "gpt", "luks"]
#: What storelib knows, by the option that says what is accepted.
FORMATS = {"container_formats": CONTAINER_FORMATS, "disk_formats": DISK_FORMATS}
#: Where operators have formats of their own, those are names like the known ones.
_FORMAT = types.String(regex=r"\A[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z")
IMPORT_METHODS = ("glance-direct", "web-download", "copy-image", "glance-download")

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


def _list(name: str, *, item_type: types.ConfigType | None = None, **more: Any) -> cfg.Opt:
    return cfg.Opt(name, type=Names(item_type), **more)


OPTIONS: Sequence[cfg.Opt] = (
    # -- who may do what
    _AUTH_STRATEGY,
    cfg.BoolOpt(
        "allow_anonymous_access",
        default=False,
        help="With keystone: let requests without a token read what is public. Without it they get 401.",
    ),
    _list(
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
    _list(
        "container_formats",
        item_type=_FORMAT,
        default=CONTAINER_FORMATS,
        help="Values of container_format that are accepted; also names of your own.",
    ),
    _list(
        "disk_formats",
        item_type=_FORMAT,
        default=DISK_FORMATS,
        help="Values of disk_format that are accepted; also names of your own, whose data must not be of a format that "
        "storelib recognises.",
    ),
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
    _list(
        "gpt_safety_checks_nonfatal",
        default=[],
        help="Safety checks of partition tables that may fail, by the names of oslo.utils (for example mbr).",
    ),
    cfg.Opt(
        "signature_certificates_dir",
        type=LocalPath(),
        help="Directory with the certificates of signed images as <img_signature_certificate_uuid>.pem, where no "
        "[key_manager] is configured, which goes before.",
    ),
    _list(
        "default_trusted_certificate_ids",
        default=[],
        help="Certificates that may have issued those of signed images, by their ids there. Empty: every certificate "
        "that is there is trusted.",
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
    cfg.BoolOpt(
        "use_keystone_limits",
        default=False,
        help="Ask Keystone, as [oslo_limit] says, for the project's limits image_size_total and image_stage_total "
        "(MiB), image_count_total and image_count_uploading. The quotas here hold as well.",
    ),
    cfg.FloatOpt(
        "keystone_limits_cache_time",
        default=0.0,
        min=0.0,
        max=300.0,
        help="Seconds for which limits of Keystone are cached. 0: each request that creates an image "
        "or adds data asks.",
    ),
    cfg.IntOpt("image_member_quota", default=128, help="Members of one image; negative: no limit."),
    cfg.IntOpt("image_property_quota", default=128, help="Custom properties of one image; negative: no limit."),
    cfg.IntOpt("image_tag_quota", default=128, help="Tags of one image; negative: no limit."),
    cfg.IntOpt("image_location_quota", default=10, help="Locations of one image; negative: no limit."),
    cfg.IntOpt("limit_param_default", default=25, min=1, help="Images in one response to a list request."),
    cfg.IntOpt("api_limit_max", default=1000, min=1, help="Entries in one response at most, whatever is asked for."),
    # -- where
    cfg.Opt(
        "public_endpoint",
        type=Url(),
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
    _list(
        "enabled_import_methods",
        item_type=types.String(choices=list(IMPORT_METHODS)),
        default=list(IMPORT_METHODS[:3]),
        help="How images may be imported. glance-direct needs staging_dir, glance-download auth_strategy = keystone.",
    ),
    cfg.Opt(
        "staging_dir",
        type=LocalPath(),
        help="Directory for data that is staged before it is imported into the stores. All processes of the API and "
        "its workers share it, or reach each other by worker_self_reference_url. Not set: no glance-direct.",
    ),
    cfg.Opt(
        "worker_self_reference_url",
        type=Url(),
        help="URL of this host's API for the other hosts, which fetch from there what is staged here. Not set: they "
        "share staging_dir.",
    ),
    _list("import_allowed_schemes", default=["http", "https"], help="URL schemes web-download accepts."),
    _list("import_disallowed_schemes", default=[], help="URL schemes it never accepts, even if also allowed."),
    _list("import_allowed_hosts", default=[], help="Hosts web-download may read from; empty: all."),
    _list("import_disallowed_hosts", default=[], help="Hosts it never reads from, even if also allowed."),
    _list(
        "import_allowed_ports",
        item_type=types.Port(),
        default=[80, 443],
        help="Ports web-download may connect to; empty: all.",
    ),
    _list(
        "import_disallowed_ports",
        item_type=types.Port(),
        default=[],
        help="Ports it never connects to, even if also allowed.",
    ),
    _list(
        "import_allowed_networks",
        item_type=Network(),
        default=[],
        help="Networks web-download may connect to although their addresses are not public.",
    ),
    _list("import_disallowed_networks", item_type=Network(), default=[], help="Networks it never connects to."),
    cfg.FloatOpt("import_timeout", default=60.0, min=0.1, help="Seconds a remote server may be silent."),
    cfg.IntOpt(
        "import_workers",
        default=4,
        min=1,
        help="Imports, copies and hashings under way in one process. Others wait, and projects take turns; a project "
        "that has none under way begins one beside them, so there may be up to twice as many.",
    ),
    cfg.FloatOpt(
        "import_time_limit",
        default=86400.0,
        min=0.0,
        help="Seconds that one import, copy or hashing may take, however it moves on; 0: no limit.",
    ),
    cfg.IntOpt(
        "import_decompression_ratio",
        default=250,
        min=1,
        help="Times its packed size, and 64 MiB more, that data may have when image_decompression unpacks it.",
    ),
    cfg.FloatOpt(
        "import_conversion_time",
        default=3600.0,
        min=1.0,
        help="Seconds of wall-clock time, and of processor time, that image_conversion may take for an image.",
    ),
    # -- cache
    cfg.Opt(
        "image_cache_dir",
        type=LocalPath(),
        help="Directory on this host in which the data of images is kept that clients download, in front of slow "
        "stores; all processes of the host share it. Not set: no cache.",
    ),
    cfg.IntOpt(
        "image_cache_max_size",
        default=10 * 1024 * MiB,
        min=0,
        help="Bytes of all images in the cache together. The ones used least recently make room for others.",
    ),
    _list(
        "image_cache_stores",
        default=[],
        help="Stores whose images are cached, those whose data is slow to read; empty: all.",
    ),
    cfg.IntOpt(
        "image_cache_stall_time",
        default=86400,
        min=0,
        help="Seconds without a new byte after which an image that is being cached is dropped.",
    ),
    cfg.IntOpt(
        "cache_prefetcher_interval",
        default=300,
        min=1,
        help="Seconds after which it is tried again to cache queued images that could not be read.",
    ),
    cfg.BoolOpt(
        "image_cache_management",
        default=True,
        help="Serve the older paths cached_images and queued_images beside /v2/cache.",
    ),
    # -- around it
    cfg.FloatOpt(
        "lease_timeout",
        default=30.0,
        min=1.0,
        max=LONGEST,
        help="Seconds after which a process that does not renew its lease counts as dead, if it is not back within a "
        "third of it, and the others undo its uploads. The same for all processes of the API.",
    ),
    cfg.BoolOpt(
        "delayed_delete",
        default=False,
        help="Keep the data of deleted images, and of locations that were taken away, for scrub_time; storelib scrub "
        "--restore gives such an image back.",
    ),
    cfg.IntOpt(
        "scrub_time",
        default=0,
        min=0,
        max=LONGEST,
        help="With delayed_delete: seconds for which the data stays.",
    ),
    cfg.IntOpt(
        "wakeup_time",
        default=300,
        min=1,
        max=LONGEST,
        help="Seconds between two looks for data whose time is over.",
    ),
    cfg.FloatOpt(
        "audit_interval",
        default=0.0,
        min=0.0,
        max=LONGEST,
        help="Seconds after which the data of all images is read again and compared with its digests, in the "
        "background of one process of all; 0: never.",
    ),
    cfg.IntOpt("audit_rate", default=32 * MiB, min=0, help="Bytes per second that this reads at most; 0: no limit."),
    cfg.FloatOpt(
        "purge_after",
        default=0.0,
        min=0.0,
        max=LONGEST,
        help="Seconds after which images that were deleted are forgotten, with their properties, tags and members, in "
        "the background of one process of all; 0: never, but by storelib db purge.",
    ),
    cfg.FloatOpt("purge_rate", default=20.0, min=0.0, help="Images per second that this forgets; 0: no limit."),
    cfg.BoolOpt("metrics", default=True, help="Serve /metrics in the text format of Prometheus."),
    cfg.BoolOpt(
        "notifications",
        default=False,
        help="Send notifications by oslo.messaging, as [oslo_messaging_notifications] says.",
    ),
    cfg.StrOpt("notification_publisher_id", default="image.localhost", help="Publisher id of the notifications."),
    _list(
        "disabled_notifications",
        default=[],
        help="Notifications that are not sent, as a type (image.create) or a group of them (image, task).",
    ),
)

#: Groups beside ``[api]``, by name.
GROUPS: Mapping[str, Sequence[cfg.Opt]] = {**import_options.GROUPS, **preload_options.GROUPS}
_UNITS = {"": 1, "B": 1, "KB": 1024, "MB": MiB, "GB": 1024 * MiB, "TB": 1024 * 1024 * MiB}


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register ``[api]`` and the groups beside it; may be repeated, also after ``conf`` was parsed."""
    conf.register_group(cfg.OptGroup(GROUP, help="The image API."))
    conf.register_opts(OPTIONS, group=GROUP)
    for group, options in GROUPS.items():
        conf.register_opts(options, group=group)


def read_options(conf: cfg.ConfigOpts) -> SimpleNamespace:
    """The values of ``[api]``, paths made absolute, and in an attribute for each group those beside it.

    Raises BadStoreConfiguration for a misspelled or wrong option: at the start, not at some request. And for sections
    about authentication without ``auth_strategy``: a service that was to ask for tokens must not serve callers without.
    """
    reader = OptionReader(conf)
    values = {option.dest: reader.value(GROUP, option) for option in OPTIONS}
    for group, options in GROUPS.items():
        values[group] = SimpleNamespace(**{option.dest: reader.value(group, option) for option in options})
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


def _authentication(setting: Setting) -> str | None:
    """The auth_strategy that was meant; None where nothing is said about that."""
    section = setting.group.lower()
    if section == "keystone_authtoken" or (section == "paste_deploy" and "keystone" in setting.value.lower()):
        return "keystone"
    if section == "oslo_middleware" and setting.key == "http_basic_auth_user_file":
        return "http_basic"
    return None


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """The options of ``[api]`` and the groups beside it, for oslo-config-generator."""
    found = [(cfg.OptGroup(GROUP, help="The image API."), [copy.deepcopy(option) for option in OPTIONS])]
    for group, options in GROUPS.items():
        found.append((cfg.OptGroup(group), [copy.deepcopy(option) for option in options]))
    return found


def size_in_bytes(text: str) -> int:
    """``"5GB"`` as a number of bytes."""
    digits = text.rstrip("BKMGT")
    return int(digits) * _UNITS[text[len(digits) :]]

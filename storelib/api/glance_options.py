# SPDX-License-Identifier: Apache-2.0
"""What became of the options that operators of Glance have in their files: the same here, another name, or nothing.

One source for ``storelib config migrate``, for the warnings about options that nothing reads, and for the table in the
operator's guide. The options of stores are the drivers'.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from oslo_config import cfg

from storelib.api import config, import_options
from storelib.api.db import config as database

#: In the [api] group here, whatever group Glance has them in.
API = config.GROUP


class Fate(NamedTuple):
    """Where an option is here; ``group`` is None where it has no counterpart. ``why`` is for people to read."""

    group: str | None
    name: str = ""
    why: str = ""

    def __str__(self) -> str:
        return f"[{self.group}] {self.name}" if self.group else self.why


#: Groups of libraries that read them here as they do there.
LIBRARIES: Mapping[str, str] = {
    "keystone_authtoken": "keystonemiddleware",
    "oslo_policy": "oslo.policy",
    "oslo_limit": "keystoneauth, as oslo.limit does",
    "oslo_middleware": "oslo.middleware",
    "healthcheck": "oslo.middleware",
    "cors": "oslo.middleware",
    "key_manager": "castellan",
    "barbican": "castellan",
    "barbican_service_user": "castellan",
    "vault": "castellan",
}
#: Groups of oslo.messaging, which are read for notifications and workers; so are BUS_OPTIONS of [DEFAULT].
BUS = "oslo_messaging_"
BUS_OPTIONS = (
    *("transport_url", "control_exchange", "executor_thread_pool_size", "rpc_thread_pool_size"),
    *("rpc_response_timeout", "rpc_ping_enabled"),
)

_OF_GLANCE = ("DEFAULT", "image_format", "oslo_messaging_notifications")
_RENAMED: Mapping[tuple[str, str], tuple[str, str]] = {
    ("DEFAULT", "default_publisher_id"): (API, "notification_publisher_id"),
    ("DEFAULT", "task_time_to_live"): ("task", "task_time_to_live"),
    ("DEFAULT", "node_staging_uri"): (API, "staging_dir"),
    ("DEFAULT", "enabled_backends"): ("storelib", "stores"),
    ("paste_deploy", "flavor"): (API, "auth_strategy"),
    ("taskflow_executor", "max_workers"): (API, "import_workers"),
    **{
        ("import_filtering_opts", f"{kind}_{what}"): (API, f"import_{kind}_{what}")
        for kind in ("allowed", "disallowed")
        for what in ("schemes", "hosts", "ports")
    },
}
_LOG = "storelib writes its log to stderr, for the service manager to keep; --verbose has more of it"
_SERVE = "the server is storelib's own: say it to storelib serve"
_CACHE = "what the cache holds is told by its files, and listed in the database of storelib"
_REGISTRY = "there is no registry"
#: Options without a counterpart, by group and a pattern of names.
_IGNORED: Mapping[tuple[str, str], str] = {
    ("DEFAULT", "bind_host"): "say it to storelib serve: --bind HOST:PORT",
    ("DEFAULT", "bind_port"): "say it to storelib serve: --bind HOST:PORT",
    ("DEFAULT", "workers"): "say it to storelib serve: --workers N",
    ("DEFAULT", "cert_file"): "say it to storelib serve: --certfile FILE",
    ("DEFAULT", "key_file"): "say it to storelib serve: --keyfile FILE",
    ("DEFAULT", "ca_file"): "certificates of clients are not asked for; let a proxy do that",
    **dict.fromkeys(
        (
            ("DEFAULT", name)
            for name in (
                *("backlog", "tcp_keepidle", "client_socket_timeout", "http_keepalive", "max_header_line"),
                *("max_request_line", "daemon", "await-child", "respawn", "pid-file"),
            )
        ),
        _SERVE,
    ),
    ("DEFAULT", "secure_proxy_ssl_header"): "say [oslo_middleware] enable_proxy_headers_parsing",
    ("DEFAULT", "debug"): "say it to storelib: --verbose",
    ("DEFAULT", "verbose"): "say it to storelib: --verbose",
    **dict.fromkeys(
        (
            ("DEFAULT", name)
            for name in (
                *("log_*", "logfile", "logdir", "logging_*", "default_log_levels", "use_stderr", "use_syslog*"),
                *("use_journal", "use_json", "use_eventlog", "syslog_*", "watch_log_file", "publish_errors"),
                *("instance_format", "instance_uuid_format", "fatal_deprecations", "rate_limit_*", "max_logfile_*"),
                "capture-output",
            )
        ),
        _LOG,
    ),
    ("DEFAULT", "pydev_worker_debug_*"): "there is no debugger to connect to",
    ("DEFAULT", "digest_algorithm"): "a signature says itself what it was made with",
    ("DEFAULT", "metadata_encryption_key"): "storelib db import-glance takes it; here locations are kept as they are",
    ("DEFAULT", "image_cache_driver"): _CACHE,
    ("DEFAULT", "image_cache_sqlite_db"): _CACHE,
    ("DEFAULT", "scrub_pool_size"): "the servers delete what is to be deleted, each process one after the other",
    ("DEFAULT", "restore"): "say it to storelib scrub: --restore IMAGE",
    ("DEFAULT", "enable_v1_*"): "both versions of the API are served",
    ("DEFAULT", "enable_v2_*"): "both versions of the API are served",
    ("DEFAULT", "registry_*"): _REGISTRY,
    ("DEFAULT", "data_api"): _REGISTRY,
    ("DEFAULT", "send_identity_headers"): _REGISTRY,
    ("DEFAULT", "use_user_token"): _REGISTRY,
    ("DEFAULT", "admin_*"): "rules of [oslo_policy] policy_file say who an administrator is",
    ("DEFAULT", "owner_is_tenant"): "images belong to projects",
    ("DEFAULT", "location_strategy"): "data is read from the store with the largest weight first",
    ("DEFAULT", "lock_path"): "no locks are kept in files",
    ("DEFAULT", "metadata_source_path"): "say it to storelib metadefs load",
    ("image_format", "vmdk_allowed_types"): "accepted is every VMDK that is one file with a header, and no other",
    ("image_import_opts", "max_parallel_stores"): "data is read once for all stores, which are filled together",
    ("location_strategy", "*"): "data is read from the store with the largest weight first",
    ("store_type_location_strategy", "*"): "data is read from the store with the largest weight first",
    ("task", "task_executor"): "there is one way to execute tasks",
    ("task", "work_dir"): "what is converted is kept in [api] staging_dir meanwhile",
    ("taskflow_executor", "conversion_format"): "it was for imports by POST /v2/tasks only: say [image_conversion] "
    "output_format, and image_conversion in image_import_plugins, for all imports",
    ("taskflow_executor", "engine_mode"): "[api] import_workers says how many imports go on at once",
    ("paste_deploy", "config_file"): "what is around the API is said by the options of each part",
    ("wsgi", "*"): "[api] import_workers says how many imports go on at once; no interpreter is started for them",
    ("profiler", "*"): "requests are not traced by osprofiler; /metrics has their times",
    ("oslo_concurrency", "*"): "no locks are kept in files",
    ("oslo_reports", "*"): "there are no reports of a running server; see /metrics and its log",
    ("database", "backend"): "there is one",
    ("database", "*slave_connection"): "all questions go to one database",
    ("database", "synchronous_reader"): "all questions go to one database",
    ("database", "asyncio_connection"): "the same database serves everything",
    ("database", "connection_parameters"): "write them into the URL of connection",
    ("database", "connection_*"): "statements are not logged",
    ("database", "mysql_*"): "storelib sets what it needs for itself",
    ("database", "db_*"): "what a lost connection or a deadlock ended is tried again for 15 seconds",
    ("database", "*retr*"): "what a lost connection or a deadlock ended is tried again for 15 seconds",
    ("database", "use_db_reconnect"): "what a lost connection or a deadlock ended is tried again for 15 seconds",
    ("privsep*", "*"): "cinder_root_helper and rootwrap_config say how os-brick gets to be root",
    ("os_brick", "*"): "os-brick's locks are below cinder_state_path",
}


def fate(group: str, name: str) -> Fate:
    """What became of an option of Glance's; one that Glance does not have has neither counterpart nor reason."""
    group = "DEFAULT" if group.upper() == "DEFAULT" else group.lower()
    name = name.replace("-", "_")
    if (group, name) in _RENAMED:
        return Fate(*_RENAMED[group, name])
    if name in _names(import_options.GROUPS.get(group, ())):
        return Fate(group, name)
    if group in _OF_GLANCE and name in _names(config.OPTIONS):
        return Fate(API, name)
    if group == database.GROUP and name in _names(database.OPTIONS):
        return Fate(group, name)
    if group in LIBRARIES or group.startswith(BUS) or (group == "DEFAULT" and name in BUS_OPTIONS):
        return Fate(group, name)
    for (of_group, pattern), why in _IGNORED.items():
        if fnmatch.fnmatchcase(group, of_group) and fnmatch.fnmatchcase(name, pattern.replace("-", "_")):
            return Fate(None, why=why)
    return Fate(None)


def table() -> Iterator[tuple[str, str]]:
    """Glance's options and what they are here, for people to read; those with the same name and group are together."""
    for group in sorted(LIBRARIES):
        yield f"``[{group}]``", f"the same, read by {LIBRARIES[group]}"
    yield f"``[{BUS}*]``", "the same, read by oslo.messaging for ``[api] notifications`` and ``storelib worker``"
    yield _listed("DEFAULT", BUS_OPTIONS), "the same, for ``[api] notifications`` and ``storelib worker``"
    for group, options in import_options.GROUPS.items():
        yield _listed(group, sorted(_names(options))), "the same"
    yield _listed(database.GROUP, sorted(_names(database.OPTIONS))), "the same, for a database of storelib's own"
    for group, names in _IN_API.items():
        more = [name for of_group, name in _IGNORED if of_group == group and fate(group, name).group == API]
        yield _listed(group, sorted([*names, *more])), f"the same in ``[{API}]``"
    for (group, name), (ours, called) in _RENAMED.items():
        yield _listed(group, [name]), f"``[{ours}] {called}``"
    reasons: dict[tuple[str, str], list[str]] = {}
    for (group, pattern), why in _IGNORED.items():
        if not pattern.isidentifier() or fate(group, pattern).group is None:
            reasons.setdefault((group, why), []).append(pattern)
    for (group, why), patterns in reasons.items():
        yield _listed(group, patterns), "ignored: " + re.sub("(--[a-z]+)", r"``\1``", why)


#: Options of Glance that have the same name in ``[api]``, for the table.
_IN_API: Mapping[str, tuple[str, ...]] = {
    "DEFAULT": (
        *("allow_additional_image_properties", "allow_anonymous_access", "api_limit_max", "cache_prefetcher_interval"),
        *("delayed_delete", "scrub_time", "wakeup_time"),
        *("disabled_notifications", "do_secure_hash", "enabled_import_methods", "hashing_algorithm", "http_retries"),
        *("image_cache_dir", "image_cache_max_size", "image_cache_stall_time", "image_location_quota"),
        *("image_member_quota", "image_property_quota", "image_size_cap", "image_tag_quota", "limit_param_default"),
        *("max_request_id_length", "property_protection_file", "property_protection_rule_format", "public_endpoint"),
        *("show_image_direct_url", "show_multiple_locations", "use_keystone_limits", "user_storage_quota"),
        *("container_formats", "disk_formats", "worker_self_reference_url"),
    ),
    "image_format": ("container_formats", "disk_formats", "gpt_safety_checks_nonfatal", "require_image_format_match"),
}


def _listed(group: str, names: Iterable[str]) -> str:
    return f"``[{group}]`` " + ", ".join(f"``{name}``" for name in names)


def _names(options: Iterable[cfg.Opt]) -> set[str]:
    return {option.dest for option in options}

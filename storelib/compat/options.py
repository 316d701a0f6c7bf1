# SPDX-License-Identifier: Apache-2.0
"""The options of glance_store: those that storelib has too, those that mean nothing here, and their old defaults."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from oslo_config import cfg

from storelib.driver import STORE_OPTIONS
from storelib.plugins import driver_class
from storelib.transfer.contract import KiB, MiB

#: What an operator of glance_store knows of each driver; sample files list these, and others of storelib work too.
KNOWN: Mapping[str, tuple[str, ...]] = {
    "cinder": (
        *("cinder_catalog_info", "cinder_endpoint_template", "cinder_os_region_name", "cinder_ca_certificates_file"),
        *("cinder_http_retries", "cinder_state_transition_timeout", "cinder_api_insecure"),
        *("cinder_store_auth_address", "cinder_store_user_name", "cinder_store_user_domain_name"),
        *("cinder_store_password", "cinder_store_application_credential_id"),
        *("cinder_store_application_credential_secret", "cinder_store_project_name"),
        *("cinder_store_project_domain_name", "rootwrap_config", "cinder_volume_type", "cinder_enforce_multipath"),
        *("cinder_use_multipath", "cinder_mount_point_base", "cinder_do_extend_attached"),
        "cinder_attachment_retry_attempts",
    ),
    "file": (
        *("filesystem_store_datadir", "filesystem_store_datadirs", "filesystem_store_metadata_file"),
        *("filesystem_store_file_perm", "filesystem_store_chunk_size", "filesystem_thin_provisioning"),
        *("filesystem_store_timeout", "filesystem_store_thread_pool_size", "filesystem_store_threadpool_threshold"),
    ),
    "http": ("https_ca_certificates_file", "https_insecure", "http_proxy_information"),
    "rbd": (
        *("rbd_store_chunk_size", "rbd_store_pool", "rbd_store_user", "rbd_store_ceph_conf"),
        *("rados_connect_timeout", "rbd_thin_provisioning"),
    ),
    "s3": (
        *("s3_store_host", "s3_store_region_name", "s3_store_access_key", "s3_store_secret_key", "s3_store_bucket"),
        *("s3_store_create_bucket_on_put", "s3_store_bucket_url_format", "s3_store_large_object_size"),
        *("s3_store_large_object_chunk_size", "s3_store_thread_pools", "s3_store_cacert"),
        *("s3_store_enable_data_integrity_protection", "s3_store_request_checksum_calculation"),
        "s3_store_response_checksum_validation",
    ),
    "swift": (
        *("swift_store_auth_insecure", "swift_store_cacert", "swift_store_region", "swift_store_endpoint"),
        *("swift_store_endpoint_type", "swift_store_service_type", "swift_store_container"),
        *("swift_store_large_object_size", "swift_store_large_object_chunk_size"),
        *("swift_store_create_container_on_put", "swift_store_multi_tenant", "swift_store_multiple_containers_seed"),
        *("swift_store_admin_tenants", "swift_store_ssl_compression", "swift_store_retry_get_count"),
        *("swift_store_expire_soon_interval", "swift_store_use_trusts", "swift_buffer_on_upload"),
        *("default_swift_reference", "swift_store_auth_version", "swift_store_auth_address", "swift_store_user"),
        *("swift_store_key", "swift_store_application_credential_id", "swift_store_application_credential_secret"),
        *("swift_store_project_name", "swift_store_project_id", "swift_store_config_file", "swift_upload_buffer_dir"),
    ),
    "vmware": (
        *("vmware_server_host", "vmware_server_username", "vmware_server_password", "vmware_api_retry_count"),
        *("vmware_task_poll_interval", "vmware_store_image_dir", "vmware_insecure", "vmware_ca_file"),
        "vmware_datastores",
    ),
}

#: Options that took values which storelib has no use for: the widest there are, cut to what a driver takes.
WIDER: Mapping[str, tuple[cfg.Opt, int]] = {
    "filesystem_store_chunk_size": (
        cfg.IntOpt("filesystem_store_chunk_size", default=64 * KiB, min=1, help="Bytes per read and write."),
        64 * MiB,
    ),
    "s3_store_thread_pools": (
        cfg.IntOpt("s3_store_thread_pools", default=10, min=1, help="Parts of one image in flight at most."),
        64,
    ),
}

#: Old defaults that are where the images are.
OLD_DEFAULTS: Mapping[str, Any] = {"filesystem_store_datadir": "/var/lib/glance/images"}


def _ignored(kind: Callable[..., cfg.Opt], name: str, default: Any, why: str) -> cfg.Opt:
    return kind(name, default=default, help=f"Read and ignored by storelib: {why}")


#: What storelib has no use for; a file that sets one works as if it did not.
IGNORED: Mapping[str, cfg.Opt] = {
    option.dest: option
    for option in (
        _ignored(cfg.IntOpt, "cinder_http_retries", 3, "transfer_retries counts for every store."),
        _ignored(cfg.IntOpt, "cinder_attachment_retry_attempts", 5, "transfer_retries counts for every store."),
        _ignored(cfg.IntOpt, "filesystem_store_threadpool_threshold", 75, "no pool of threads is kept."),
        _ignored(cfg.IntOpt, "s3_store_large_object_size", 100, "what fits in one part is one PUT."),
        _ignored(cfg.BoolOpt, "s3_store_enable_data_integrity_protection", False, "parts are always protected."),
        _ignored(
            cfg.StrOpt, "s3_store_request_checksum_calculation", "when_required", "s3_store_checksum_algorithm says."
        ),
        _ignored(
            cfg.StrOpt, "s3_store_response_checksum_validation", "when_required", "s3_store_verify_checksum says."
        ),
        _ignored(cfg.BoolOpt, "swift_store_ssl_compression", True, "TLS has no compression any more."),
        _ignored(cfg.IntOpt, "swift_store_retry_get_count", 0, "transfer_retries counts for every store."),
        _ignored(cfg.BoolOpt, "swift_buffer_on_upload", False, "segments are sent again from memory."),
        _ignored(cfg.StrOpt, "swift_upload_buffer_dir", None, "nothing is buffered on disk."),
        _ignored(cfg.IntOpt, "vmware_api_retry_count", 10, "transfer_retries counts for every store."),
    )
}


#: Of every store beside its driver's own; glance_store has weight and description of named stores only.
COMMON = tuple(option for option in STORE_OPTIONS if option.dest not in ("weight", "description"))


def known_options(driver: str) -> list[cfg.Opt]:
    """The options of a driver that glance_store has, in its order, with their defaults in storelib."""
    ours = {option.dest: option for option in driver_class(driver).options}
    return [_with_old_default(ours[name]) if name in ours else copy.copy(IGNORED[name]) for name in KNOWN[driver]]


def all_options(driver: str) -> list[cfg.Opt]:
    """Those, and what storelib's driver and every store of storelib have besides."""
    known = known_options(driver)
    names = {option.dest for option in known}
    return [*known, *(option for option in driver_class(driver).options if option.dest not in names), *COMMON]


def _with_old_default(option: cfg.Opt) -> cfg.Opt:
    if option.dest in WIDER:
        return WIDER[option.dest][0]
    if option.dest not in OLD_DEFAULTS:
        return option
    own = copy.copy(option)
    own.default = OLD_DEFAULTS[option.dest]
    return own


class Given(NamedTuple):
    """The values that a configuration gives the options of one store."""

    conf: Any
    groups: Sequence[str]

    def values(self, options: Iterable[cfg.Opt]) -> dict[str, Any]:
        """What is set, by name; an old default where nothing is, and nothing of what is ignored."""
        found: dict[str, Any] = {}
        for option in options:
            if option.dest in IGNORED:
                continue
            value = self._set(option)
            if value is None:
                value = OLD_DEFAULTS.get(option.dest)
            if value is not None:
                found[option.dest] = min(value, WIDER[option.dest][1]) if option.dest in WIDER else value
        # Several directories are instead of one; glance_store takes that only where the one is said to be empty.
        empty = not found.get("filesystem_store_datadir") or self._set_nowhere("filesystem_store_datadir")
        if found.get("filesystem_store_datadirs") and empty:
            found.pop("filesystem_store_datadir", None)
        return found

    def _set(self, option: cfg.Opt) -> Any:
        for group in self.groups:
            if self._is_set(option.dest, group):
                value = self.conf[group][option.dest]
                if value is not None:
                    return value
        return None

    def _is_set(self, name: str, group: str) -> bool:
        try:
            location = self.conf.get_location(name, group=group)
        except (cfg.NoSuchOptError, cfg.NoSuchGroupError) as error:
            if getattr(error, "opt_name", name) != name:
                # It is there, and its value refers to another one.
                raise
            return False
        if location is None:
            return False
        # The default of a place is None in the group of a named store, unless that is one of the service's own.
        own_place = name in OLD_DEFAULTS and len(self.groups) > 1 and group == self.groups[0]
        return own_place or location.location is not cfg.Locations.opt_default

    def _set_nowhere(self, name: str) -> bool:
        return not any(self._is_set(name, group) and self.conf[group][name] is not None for group in self.groups)

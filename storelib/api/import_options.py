# SPDX-License-Identifier: Apache-2.0
"""The options of imports and tasks, in Glance's own groups and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oslo_config import cfg

from storelib.option_types import Names

GROUPS: Mapping[str, Sequence[cfg.Opt]] = {
    "glance_download_properties": (
        cfg.Opt(
            "extra_properties",
            type=Names(),
            default=["hw_", "trait:", "os_distro", "os_secure_boot", "os_type"],
            help="Beginnings of the names of properties that glance-download takes over from the image it imports.",
        ),
    ),
    "image_import_opts": (
        cfg.Opt(
            "image_import_plugins",
            type=Names(),
            default=[],
            help="What happens to images between their source and the stores, in this order: names of plug-ins, as "
            "[image_decompression, image_conversion]. Our own: no_op, inject_image_metadata, image_decompression and "
            "image_conversion. Not for copy-image.",
        ),
    ),
    "inject_metadata_properties": (
        cfg.ListOpt(
            "ignore_user_roles",
            default=["admin"],
            help="Roles of callers in whose images inject_image_metadata sets nothing.",
        ),
        cfg.DictOpt("inject", default={}, help="Properties that inject_image_metadata sets, as name:value,name:value."),
    ),
    "image_conversion": (
        cfg.StrOpt(
            "output_format",
            default="raw",
            choices=["raw", "qcow2", "vmdk"],
            help="The disk_format that image_conversion makes of all disks but ISO images.",
        ),
    ),
    "task": (
        cfg.IntOpt(
            "task_time_to_live",
            default=48,
            min=1,
            help="Hours after its end for which a task is kept, whether its image still is there or not.",
        ),
    ),
}

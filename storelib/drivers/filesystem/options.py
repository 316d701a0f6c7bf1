# SPDX-License-Identifier: Apache-2.0
"""The options of filesystem stores; names are glance_store's where the meaning is the same."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

from storelib.drivers.filesystem.paths import DEEPEST_SHARD
from storelib.option_types import LocalPath
from storelib.transfer.contract import MiB

DEFAULT_DATADIR = "/var/lib/storelib/images"

OPTIONS: Sequence[cfg.Opt] = (
    cfg.Opt(
        "filesystem_store_datadir",
        type=LocalPath(),
        default=DEFAULT_DATADIR,
        help="Directory that holds the images. Made if it is missing.",
    ),
    cfg.MultiOpt(
        "filesystem_store_datadirs",
        item_type=LocalPath(),
        help="Several directories instead of one, each as path[:priority] (default priority 0). A new image goes "
        "to the highest priority with room for it, among equals to the one with most free space.",
    ),
    cfg.Opt(
        "filesystem_store_metadata_file",
        type=LocalPath(),
        help="JSON file, an object or a list of objects with 'id' and 'mountpoint': the object whose mountpoint "
        "an image lies under is returned as its location metadata.",
    ),
    cfg.IntOpt(
        "filesystem_store_file_perm",
        default=0,
        help="Permissions of image files in octal digits, for example 640; 0 leaves them to the umask.",
    ),
    cfg.IntOpt(
        "filesystem_store_chunk_size",
        default=4 * MiB,
        min=1,
        max=64 * MiB,
        help="Bytes per write, rounded up to 64 KiB.",
    ),
    cfg.BoolOpt(
        "filesystem_thin_provisioning",
        default=False,
        help="Leave runs of zeros out of the file as holes instead of allocating room for them.",
    ),
    cfg.BoolOpt(
        "filesystem_store_fsync",
        default=True,
        help="Flush file and directory to stable storage before an add succeeds. Off, a power loss soon "
        "after an add may lose the image, or leave it with zeros.",
    ),
    cfg.BoolOpt(
        "filesystem_store_direct_io",
        default=True,
        help="Write past the page cache where the file system can, which leaves the processor to the digests. "
        "Only with filesystem_store_fsync.",
    ),
    cfg.IntOpt(
        "filesystem_store_shard_levels",
        default=0,
        min=0,
        max=DEEPEST_SHARD,
        help="Levels of subdirectories (256 each) to spread new images over. Images already there stay readable.",
    ),
    cfg.StrOpt(
        "filesystem_store_staging",
        default="auto",
        choices=[
            ("auto", "unnamed files where the file system has them, else part files"),
            ("part", "always part files"),
        ],
        help="What an image is while it is being written.",
    ),
    cfg.FloatOpt(
        "filesystem_store_timeout",
        default=0.0,
        min=0.0,
        help="Seconds after which a call into the file system that does not return (a dead NFS server) "
        "is given up; 0 for never.",
    ),
    cfg.IntOpt(
        "filesystem_store_thread_pool_size",
        default=10,
        min=1,
        help="Calls given up in that way which may hang at once; further calls fail immediately.",
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""The options of filesystem stores, and what they say; names are glance_store's where the meaning is the same."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oslo_config import cfg

from storelib import exceptions
from storelib.drivers.filesystem.location import DEEPEST_SHARD
from storelib.exceptions import BadStoreConfiguration
from storelib.option_types import LONGEST, LocalPath
from storelib.transfer.contract import MiB, Options
from storelib.transfer.source import GRAIN

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
        max=LONGEST,
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


@dataclass(frozen=True)
class WriteSettings:
    """How files are written."""

    #: Bytes per write, a multiple of ``GRAIN``.
    chunk: int
    shard_levels: int
    #: Runs of zeros are left out.
    sparse: bool
    #: What was written is flushed to stable storage, and written past the page cache.
    fsync: bool
    direct: bool
    #: Files have no name before they are whole, where the file system has that.
    unnamed: bool
    #: Permissions; None leaves them to the umask.
    mode: int | None = None

    @classmethod
    def of(cls, conf: Options) -> WriteSettings:
        """The options of a store but its permissions, which may not be valid."""
        return cls(
            chunk=-(-conf.filesystem_store_chunk_size // GRAIN) * GRAIN,
            shard_levels=conf.filesystem_store_shard_levels,
            sparse=conf.filesystem_thin_provisioning,
            fsync=conf.filesystem_store_fsync,
            direct=conf.filesystem_store_fsync and conf.filesystem_store_direct_io,
            unnamed=conf.filesystem_store_staging == "auto",
        )


def misconfigured(store_name: str, option: str, what: str, value: object) -> BadStoreConfiguration:
    """The error of an option that cannot be; ``what`` says what is wrong with ``value``."""
    return exceptions.misconfigured(store_name, f"{option} = {value!r}", what)


def file_mode(conf: Options, store_name: str) -> int | None:
    """The permissions of image files; None where the umask decides."""
    option, value = "filesystem_store_file_perm", conf.filesystem_store_file_perm
    if value <= 0:
        return None
    try:
        mode = int(str(value), 8)
    except ValueError:
        raise misconfigured(store_name, option, "octal digits, for example 640", value) from None
    if not mode & stat.S_IRUSR or mode > 0o7777:
        raise misconfigured(store_name, option, "the owner must be able to read", value)
    return mode


def read_metadata(conf: Options, store_name: str) -> list[Mapping[str, Any]]:
    """The objects in the metadata file, none without such a file."""
    option, path = "filesystem_store_metadata_file", conf.filesystem_store_metadata_file
    if not path:
        return []
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise misconfigured(store_name, option, f"cannot be read as JSON: {error}", path) from error
    entries = content if isinstance(content, list) else [content]
    for entry in entries:
        texts = isinstance(entry, dict) and [entry.get(key) for key in ("id", "mountpoint")]
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise misconfigured(store_name, option, "every object has the strings 'id' and 'mountpoint'", path)
    return entries

# SPDX-License-Identifier: Apache-2.0
"""The options of SheepdogStore; the first three are glance_store's."""

from __future__ import annotations

from oslo_config import cfg

OPTIONS = (
    cfg.HostAddressOpt(
        "sheepdog_store_address",
        default="127.0.0.1",
        help="Address of the sheep daemon that dog talks to; part of the URIs of images.",
    ),
    cfg.PortOpt("sheepdog_store_port", default=7000, min=1, help="Port of that daemon."),
    cfg.IntOpt(
        "sheepdog_store_chunk_size",
        default=8,
        min=1,
        max=1024,
        help="MiB that one command reads or writes. Best a multiple of the cluster's object size (4 MiB unless it was "
        "formatted otherwise). A transfer holds up to transfer_window or two chunks, whichever is more.",
    ),
    cfg.StrOpt(
        "sheepdog_store_command",
        help="The dog command, with or without its path. By default dog or, where only that is found, collie.",
    ),
    cfg.FloatOpt(
        "sheepdog_store_timeout",
        default=60.0,
        min=0.1,
        help="Seconds without any progress after which a command is killed; transfer_timeout if that is less. Listing "
        "a cluster of very many vdis, or deleting a very large one, may need more.",
    ),
    cfg.StrOpt(
        "sheepdog_store_copies",
        default="",
        regex=r"^(?:[1-9][0-9]?(?::[1-9][0-9]?)?)?$",
        help="Redundancy of new images as dog takes it: a number of copies, or data:parity for erasure coding. "
        "Empty: that of the cluster.",
    ),
    cfg.IntOpt(
        "sheepdog_store_concurrency",
        default=4,
        min=1,
        max=64,
        help="Commands that read or write parts of one image side by side, at most.",
    ),
)

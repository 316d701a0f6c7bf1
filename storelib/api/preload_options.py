# SPDX-License-Identifier: Apache-2.0
"""The options of pre-loading images to nodes: group ``[preload]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oslo_config import cfg

GROUPS: Mapping[str, Sequence[cfg.Opt]] = {
    "preload": (
        cfg.BoolOpt("enabled", default=False, help="Distribute images to nodes before instances there need them."),
        cfg.FloatOpt(
            "interval",
            default=5.0,
            min=0.1,
            help="Seconds between two heartbeats of a node that has something to do. It is longer where there are so "
            "many nodes that heartbeats_per_second would be exceeded.",
        ),
        cfg.FloatOpt(
            "idle_interval",
            default=30.0,
            min=0.1,
            help="Seconds between two heartbeats of a node that has all it needs.",
        ),
        cfg.FloatOpt(
            "heartbeats_per_second",
            default=100.0,
            min=1.0,
            help="Heartbeats that all nodes together are to send in a second, to all processes of the API.",
        ),
        cfg.IntOpt(
            "web_seeds",
            default=3,
            min=1,
            max=64,
            help="Nodes that get one image from the API at a time; all others get it from them.",
        ),
        cfg.IntOpt("peers", default=30, min=1, max=200, help="Other nodes that a node is told of for one image."),
        cfg.FloatOpt(
            "ticket_lifetime",
            default=60.0,
            min=1.0,
            help="Seconds after the last heartbeat of a node for which it may read an image from the API.",
        ),
        cfg.BoolOpt(
            "redirect_to_stores",
            default=False,
            help="Send the nodes that read an image from the API to its store, with a signed URL, where that makes "
            "such: S3, and Swift with a key for temporary URLs. Nodes must reach it, and trust its certificate.",
        ),
        cfg.FloatOpt(
            "redirect_lifetime",
            default=300.0,
            min=1.0,
            max=604800.0,
            help="Seconds for which a signed URL is valid. Nodes ask for a new one in time.",
        ),
        cfg.ListOpt(
            "source_urls",
            default=[],
            help="URLs of other processes of this API, without version, to one of which each node is sent that reads "
            "an image: they have the same database and stores, and this option not set.",
        ),
        cfg.IntOpt(
            "certificate_hours",
            default=24,
            min=1,
            help="Hours for which a node's certificate of one image is valid; it asks for another in time.",
        ),
        cfg.IntOpt(
            "ban_reports",
            default=2,
            min=1,
            help="Nodes that must report a peer for wrong parts of an image before the others are not told of it any "
            "more. A node that found them wrong keeps away from that peer at once.",
        ),
        cfg.IntOpt(
            "up_limit", default=0, min=0, help="Bytes per second that a node sends to others at most; 0: its own limit."
        ),
        cfg.IntOpt(
            "down_limit", default=0, min=0, help="Bytes per second that a node fetches at most; 0: its own limit."
        ),
        cfg.StrOpt(
            "encryption_key",
            secret=True,
            help="Any text, the same for all processes of the API, that encrypts the private keys of preloads in the "
            "database. Not set: they are not encrypted.",
        ),
        cfg.IntOpt(
            "keep_hours", default=168, min=1, help="Hours for which the results of a preload that is over are kept."
        ),
    ),
}

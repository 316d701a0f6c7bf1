# SPDX-License-Identifier: Apache-2.0
"""The tables of pre-loading: nodes, what they are to have, how far they are, and who may read from the API for that."""

from __future__ import annotations

import sqlalchemy as sa

from storelib.api.db.schema import BY_KEY, Name, Text, metadata

#: Groups of nodes for which something is said; a node may be in one that is not here.
node_groups = sa.Table(
    "node_groups",
    metadata,
    sa.Column("name", Name(255), primary_key=True),
    # What it keeps and may have, in JSON.
    sa.Column("document", Text, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    **BY_KEY,
)

nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("id", Name(36), primary_key=True),
    sa.Column("name", Name(255), nullable=False),
    sa.Column("group_name", Name(255), nullable=False),
    # Of the node's secret, in hexadecimal.
    sa.Column("secret_digest", Name(64), nullable=False),
    sa.Column("address", Name(255), nullable=False),
    # 0: it exchanges nothing with others.
    sa.Column("port", sa.Integer, nullable=False),
    sa.Column("version", Name(64), nullable=False),
    sa.Column("free", sa.BigInteger),
    sa.Column("used", sa.BigInteger),
    sa.Column("budget", sa.BigInteger),
    # By how much its clock is ahead.
    sa.Column("skew", sa.BigInteger),
    sa.Column("draining", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    # Its last heartbeat; 0: there was none.
    sa.Column("seen_at", sa.BigInteger, nullable=False),
    sa.Index("ix_nodes_name", "name", unique=True),
    sa.Index("ix_nodes_group", "group_name", "name"),
    sa.Index("ix_nodes_seen_at", "seen_at"),
    **BY_KEY,
)

#: Tokens with which nodes enrol, by their digests.
node_enrolments = sa.Table(
    "node_enrolments",
    metadata,
    sa.Column("token_digest", Name(64), primary_key=True),
    sa.Column("group_name", Name(255), nullable=False),
    sa.Column("uses", sa.Integer, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    **BY_KEY,
)

#: One image for some nodes.
preloads = sa.Table(
    "preloads",
    metadata,
    sa.Column("id", Name(36), primary_key=True),
    # No foreign key: it is told what became of it after the image is gone.
    sa.Column("image_id", Name(36), nullable=False),
    # Not set: not for a group.
    sa.Column("group_name", Name(255)),
    sa.Column("everyone", sa.Boolean, nullable=False),
    sa.Column("pinned", sa.Boolean, nullable=False),
    # "request", or "rule" of the group.
    sa.Column("origin", Name(16), nullable=False),
    # active, cancelled or ended.
    sa.Column("status", Name(16), nullable=False),
    sa.Column("project_id", Name(255)),
    sa.Column("authority", Text, nullable=False),
    # The authority's private key, sealed.
    sa.Column("authority_key", Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("ended_at", sa.BigInteger),
    sa.Index("ix_preloads_status", "status", "created_at", "id"),
    sa.Index("ix_preloads_image", "image_id"),
    sa.Index("ix_preloads_group", "group_name"),
    sa.Index("ix_preloads_ended_at", "ended_at"),
    **BY_KEY,
)


def _of(column: str, key: str) -> sa.Column[str]:
    return sa.Column(column, Name(36), sa.ForeignKey(key, ondelete="CASCADE"), primary_key=True, nullable=False)


#: How far a node is with a preload.
preload_nodes = sa.Table(
    "preload_nodes",
    metadata,
    _of("node_id", "nodes.id"),
    _of("preload_id", "preloads.id"),
    sa.Column("state", Name(16), nullable=False),
    sa.Column("done", sa.BigInteger, nullable=False),
    sa.Column("from_source", sa.BigInteger, nullable=False),
    sa.Column("from_peers", sa.BigInteger, nullable=False),
    sa.Column("reason", Name(255)),
    # When it last came forward.
    sa.Column("moved_at", sa.BigInteger, nullable=False),
    sa.Index("ix_preload_nodes_preload", "preload_id", "state"),
    **BY_KEY,
)

#: The places from which nodes read a preload from the API; of each, one node at a time.
preload_sources = sa.Table(
    "preload_sources",
    metadata,
    _of("preload_id", "preloads.id"),
    sa.Column("place", sa.Integer, primary_key=True, autoincrement=False, nullable=False),
    # No foreign key: a place that nobody holds any more is free when its time is over.
    sa.Column("node_id", Name(36), nullable=False),
    # Of the ticket, in hexadecimal.
    sa.Column("ticket_digest", Name(64), nullable=False),
    sa.Column("granted_at", sa.BigInteger, nullable=False),
    # 0: it is free.
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Index("ix_preload_sources_ticket", "ticket_digest"),
    **BY_KEY,
)

#: Who found wrong parts of a preload with whom.
preload_reports = sa.Table(
    "preload_reports",
    metadata,
    _of("preload_id", "preloads.id"),
    _of("node_id", "nodes.id"),
    sa.Column("reporter_id", Name(36), primary_key=True, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Index("ix_preload_reports_node", "node_id"),
    **BY_KEY,
)

#: The digests of an image's pieces, of so many bytes that one row of every database holds them.
image_pieces = sa.Table(
    "image_pieces",
    metadata,
    sa.Column("image_id", Name(36), sa.ForeignKey("images.id", ondelete="CASCADE"), primary_key=True, nullable=False),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False, nullable=False),
    sa.Column("layer", sa.LargeBinary, nullable=False),
    **BY_KEY,
)

#: Whether an image's pieces are known.
piece_layers = sa.Table(
    "piece_layers",
    metadata,
    sa.Column("image_id", Name(36), sa.ForeignKey("images.id", ondelete="CASCADE"), primary_key=True, nullable=False),
    # ready, or failed.
    sa.Column("state", Name(16), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("message", Name(255), nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    **BY_KEY,
)

# SPDX-License-Identifier: Apache-2.0
"""Nodes, and the images that are distributed to them. Older versions do not look at these tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from storelib.api.db.migrations.indexes import create_index, create_table
from storelib.api.db.schema import Name, Text

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_BY_KEY: dict[str, Any] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB", "sqlite_with_rowid": False}


def _of(column: str, key: str) -> sa.Column[str]:
    return sa.Column(column, Name(36), sa.ForeignKey(key, ondelete="CASCADE"), primary_key=True, nullable=False)


def upgrade() -> None:
    """All tables of pre-loading."""
    create_table(
        "node_groups",
        sa.Column("name", Name(255), primary_key=True),
        sa.Column("document", Text, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        **_BY_KEY,
    )
    create_table(
        "nodes",
        sa.Column("id", Name(36), primary_key=True),
        sa.Column("name", Name(255), nullable=False),
        sa.Column("group_name", Name(255), nullable=False),
        sa.Column("secret_digest", Name(64), nullable=False),
        sa.Column("address", Name(255), nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("version", Name(64), nullable=False),
        sa.Column("free", sa.BigInteger),
        sa.Column("used", sa.BigInteger),
        sa.Column("budget", sa.BigInteger),
        sa.Column("skew", sa.BigInteger),
        sa.Column("draining", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        **_BY_KEY,
    )
    create_index("ix_nodes_name", "nodes", ["name"], unique=True)
    create_index("ix_nodes_group", "nodes", ["group_name", "name"])
    create_index("ix_nodes_seen_at", "nodes", ["seen_at"])
    create_table(
        "node_enrolments",
        sa.Column("token_digest", Name(64), primary_key=True),
        sa.Column("group_name", Name(255), nullable=False),
        sa.Column("uses", sa.Integer, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        **_BY_KEY,
    )
    create_table(
        "preloads",
        sa.Column("id", Name(36), primary_key=True),
        sa.Column("image_id", Name(36), nullable=False),
        sa.Column("group_name", Name(255)),
        sa.Column("everyone", sa.Boolean, nullable=False),
        sa.Column("pinned", sa.Boolean, nullable=False),
        sa.Column("origin", Name(16), nullable=False),
        sa.Column("status", Name(16), nullable=False),
        sa.Column("project_id", Name(255)),
        sa.Column("authority", Text, nullable=False),
        sa.Column("authority_key", Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        **_BY_KEY,
    )
    create_index("ix_preloads_status", "preloads", ["status", "created_at", "id"])
    create_index("ix_preloads_image", "preloads", ["image_id"])
    create_index("ix_preloads_group", "preloads", ["group_name"])
    create_index("ix_preloads_ended_at", "preloads", ["ended_at"])
    create_table(
        "preload_nodes",
        _of("node_id", "nodes.id"),
        _of("preload_id", "preloads.id"),
        sa.Column("state", Name(16), nullable=False),
        sa.Column("done", sa.BigInteger, nullable=False),
        sa.Column("from_source", sa.BigInteger, nullable=False),
        sa.Column("from_peers", sa.BigInteger, nullable=False),
        sa.Column("reason", Name(255)),
        sa.Column("moved_at", sa.BigInteger, nullable=False),
        **_BY_KEY,
    )
    create_index("ix_preload_nodes_preload", "preload_nodes", ["preload_id", "state"])
    create_table(
        "preload_sources",
        _of("preload_id", "preloads.id"),
        sa.Column("place", sa.Integer, primary_key=True, autoincrement=False, nullable=False),
        sa.Column("node_id", Name(36), nullable=False),
        sa.Column("ticket_digest", Name(64), nullable=False),
        sa.Column("granted_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        **_BY_KEY,
    )
    create_index("ix_preload_sources_ticket", "preload_sources", ["ticket_digest"])
    create_table(
        "preload_reports",
        _of("preload_id", "preloads.id"),
        _of("node_id", "nodes.id"),
        sa.Column("reporter_id", Name(36), primary_key=True, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        **_BY_KEY,
    )
    create_index("ix_preload_reports_node", "preload_reports", ["node_id"])
    create_table(
        "image_pieces",
        sa.Column(
            "image_id", Name(36), sa.ForeignKey("images.id", ondelete="CASCADE"), primary_key=True, nullable=False
        ),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False, nullable=False),
        sa.Column("layer", sa.LargeBinary, nullable=False),
        **_BY_KEY,
    )
    create_table(
        "piece_layers",
        sa.Column(
            "image_id", Name(36), sa.ForeignKey("images.id", ondelete="CASCADE"), primary_key=True, nullable=False
        ),
        sa.Column("state", Name(16), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("message", Name(255), nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        **_BY_KEY,
    )

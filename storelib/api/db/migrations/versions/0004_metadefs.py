# SPDX-License-Identifier: Apache-2.0
"""Metadata definitions. Older versions do not look at these tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from storelib.api.db.migrations.indexes import create_index, create_table
from storelib.api.db.schema import Name, Serial, Text

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_OPTIONS: dict[str, Any] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}
_BY_KEY: dict[str, Any] = {**_OPTIONS, "sqlite_with_rowid": False}


def upgrade() -> None:
    """Namespaces, what is in them, and the resource types they are about."""
    create_table(
        "metadef_namespaces",
        sa.Column("id", Serial, primary_key=True, autoincrement=True),
        sa.Column("namespace", Name(80), nullable=False),
        sa.Column("display_name", Name(80)),
        sa.Column("description", Text),
        sa.Column("visibility", Name(32), nullable=False),
        sa.Column("protected", sa.Boolean, nullable=False),
        sa.Column("owner", Name(255)),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
        **_OPTIONS,
    )
    create_index("ix_metadef_namespaces_namespace", "metadef_namespaces", ["namespace"], unique=True)
    create_table(
        "metadef_resource_types",
        sa.Column("name", Name(80), primary_key=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        **_BY_KEY,
    )
    create_table(
        "metadef_associations",
        sa.Column("namespace_id", Serial, _namespace(), primary_key=True),
        sa.Column("resource_type", Name(80), primary_key=True),
        sa.Column("prefix", Name(80)),
        sa.Column("properties_target", Name(80)),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        **_BY_KEY,
    )
    create_index("ix_metadef_associations_type", "metadef_associations", ["resource_type", "namespace_id"])
    create_table(
        "metadef_definitions",
        sa.Column("namespace_id", Serial, _namespace(), primary_key=True),
        sa.Column("kind", Name(16), primary_key=True),
        sa.Column("name", Name(80), primary_key=True),
        sa.Column("document", Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        **_BY_KEY,
    )


def _namespace() -> sa.ForeignKey:
    return sa.ForeignKey("metadef_namespaces.id", ondelete="CASCADE")

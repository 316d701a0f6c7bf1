# SPDX-License-Identifier: Apache-2.0
"""What was taken from the catalogue of another service. Older versions take nothing, and never look."""

from __future__ import annotations

import sqlalchemy as sa

from storelib.api.db.migrations.indexes import create_index, create_table
from storelib.api.db.schema import Name

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A table of what was imported."""
    create_table(
        "imported",
        sa.Column("kind", Name(16), primary_key=True),
        sa.Column("key", Name(80), primary_key=True),
        sa.Column("source", Name(255), nullable=False),
        sa.Column("digest", Name(64), nullable=False),
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
        sqlite_with_rowid=False,
    )
    create_index("ix_imported_source", "imported", ["source", "kind", "key"])

# SPDX-License-Identifier: Apache-2.0
"""How far work over all images has come. Older versions do not look at this table."""

from __future__ import annotations

import sqlalchemy as sa

from storelib.api.db.migrations.indexes import create_table
from storelib.api.db.schema import Name, Text

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One row for each kind of round."""
    create_table(
        "rounds",
        sa.Column("name", Name(64), primary_key=True),
        sa.Column("process_id", Name(36)),
        sa.Column("position", Name(36), nullable=False),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("finished_at", sa.BigInteger),
        sa.Column("counts", Text, nullable=False),
        sa.Column("last", Text, nullable=False),
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
        sqlite_with_rowid=False,
    )

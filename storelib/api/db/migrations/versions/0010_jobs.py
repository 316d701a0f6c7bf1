# SPDX-License-Identifier: Apache-2.0
"""Work in the background that any process may do. Older versions do what they are asked to themselves, as ever.

One that takes over what a dead process left undoes it, where a newer one would have it begun again.
"""

from __future__ import annotations

import sqlalchemy as sa

from storelib.api.db.migrations.indexes import add_column, create_index, create_table
from storelib.api.db.schema import Name, Text

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A table of jobs, and what processes there are that take them."""
    add_column("processes", sa.Column("role", Name(16), nullable=False, server_default=""))
    create_table(
        "jobs",
        sa.Column(
            "image_id",
            Name(36),
            sa.ForeignKey("uploads.image_id", ondelete="CASCADE"),
            primary_key=True,
            nullable=False,
        ),
        sa.Column("kind", Name(32), nullable=False),
        sa.Column("document", Text, nullable=False),
        sa.Column("owner", Name(255), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("attempts", sa.Integer, nullable=False),
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
        sqlite_with_rowid=False,
    )
    create_index("ix_jobs_started_at", "jobs", ["started_at", "created_at"])

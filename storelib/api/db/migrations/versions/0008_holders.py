# SPDX-License-Identifier: Apache-2.0
"""Rows that are held while the total of an owner grows. Older versions hold none, and compare as they ever did."""

from __future__ import annotations

import sqlalchemy as sa

from storelib.api.db.migrations.indexes import create_table
from storelib.api.db.schema import Name

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One table, empty until owners have a quota."""
    create_table(
        "holders",
        sa.Column("owner", Name(255), primary_key=True),
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
        sqlite_with_rowid=False,
    )

# SPDX-License-Identifier: Apache-2.0
"""Sums of what owners have in stores, made when they are first asked for; and indexes for members and purges.

Older versions know nothing of the sums: what they change is found by when it changed.
"""

from __future__ import annotations

import sqlalchemy as sa

from storelib.api.db.migrations.indexes import add_column, add_index, create_table
from storelib.api.db.schema import Name

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What is there already, after an interruption on MySQL, stays."""
    for name in ("stored", "counted_at"):
        add_column("holders", sa.Column(name, sa.BigInteger))
    create_table(
        "stored_bytes",
        sa.Column("image_id", Name(36), primary_key=True),
        sa.Column("owner", Name(255), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
        sqlite_with_rowid=False,
    )
    add_index("ix_stored_bytes_owner", "stored_bytes", ["owner"])
    add_index("ix_image_members_image", "image_members", ["image_id", "created_at", "member"])
    add_index("ix_images_deleted_at", "images", ["deleted_at"])

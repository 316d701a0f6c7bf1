# SPDX-License-Identifier: Apache-2.0
"""What the image caches of hosts hold, and what they are to fetch. Older versions do not look at these tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from storelib.api.db.migrations.indexes import create_index, create_table
from storelib.api.db.schema import Name

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_BY_KEY: dict[str, Any] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB", "sqlite_with_rowid": False}


def upgrade() -> None:
    """One table for the files that are there, one for those that are asked for."""
    create_table(
        "cached_images",
        sa.Column("node", Name(36), primary_key=True),
        sa.Column("image_id", Name(36), primary_key=True),
        sa.Column("host", Name(255), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("hits", sa.BigInteger, nullable=False),
        sa.Column("cached_at", sa.BigInteger, nullable=False),
        sa.Column("used_at", sa.BigInteger, nullable=False),
        **_BY_KEY,
    )
    create_index("ix_cached_images_image", "cached_images", ["image_id"])
    create_table(
        "cache_queue",
        sa.Column("node", Name(36), primary_key=True),
        sa.Column("image_id", Name(36), primary_key=True),
        sa.Column("queued_at", sa.BigInteger, nullable=False),
        **_BY_KEY,
    )

# SPDX-License-Identifier: Apache-2.0
"""Indexes for orders within a status, and within what is hidden. Older versions go on without them."""

from __future__ import annotations

from storelib.api.db.migrations.indexes import add_index

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What is there already, after an interruption on MySQL, stays."""
    for column, key in (("status", "size"), ("status", "created_at"), ("os_hidden", "created_at")):
        add_index(f"ix_images_{column}_{key}", "images", ["deleted", column, key, "id"])

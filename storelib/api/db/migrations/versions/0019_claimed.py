# SPDX-License-Identifier: Apache-2.0
"""An index of the processes that delete data, for what is left by those that died. Older versions go on without it."""

from __future__ import annotations

from storelib.api.db.migrations.indexes import add_index

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What is there already, after an interruption on MySQL, stays."""
    add_index("ix_image_locations_claimed", "image_locations", ["claimed_by"])

# SPDX-License-Identifier: Apache-2.0
"""An index of the URIs of locations, for whether several images have the same data. Older versions go on without it."""

from __future__ import annotations

from storelib.api.db.migrations.indexes import add_index

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What is there already, after an interruption on MySQL, stays."""
    add_index("ix_image_locations_uri", "image_locations", ["uri"], prefix=255)

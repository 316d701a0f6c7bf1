# SPDX-License-Identifier: Apache-2.0
"""Who is deleting the data at a location, so that no two do it and none does it late.

What an older version deletes meanwhile is not claimed, and is treated as it was before.
"""

from __future__ import annotations

import sqlalchemy as sa

from storelib.api.db.migrations.indexes import add_column
from storelib.api.db.schema import Name

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The process that deletes the data at a location, and the token of its claim."""
    add_column("image_locations", sa.Column("claimed_by", Name(36)))
    add_column("image_locations", sa.Column("claim", Name(36)))

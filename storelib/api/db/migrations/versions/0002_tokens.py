# SPDX-License-Identifier: Apache-2.0
"""A token for each upload, and a clock that nobody sets for each process.

What an older version inserts meanwhile gets an empty token and no such clock, and is treated as it was before.
"""

from __future__ import annotations

import sqlalchemy as sa

from storelib.api.db.migrations.indexes import add_column
from storelib.api.db.schema import Name

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A token for each upload, and the boot and clock of each process."""
    add_column("uploads", sa.Column("token", Name(36), nullable=False, server_default=""))
    add_column("processes", sa.Column("boot", Name(128)))
    add_column("processes", sa.Column("ticks", sa.BigInteger))

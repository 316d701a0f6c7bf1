# SPDX-License-Identifier: Apache-2.0
"""An index of what lists look at in images that they have the ids of, on SQLite. Older versions go on without it."""

from __future__ import annotations

from alembic import op

from storelib.api.db.migrations.indexes import add_index

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_LOOKED_AT = (
    *("id", "deleted", "visibility", "owner", "os_hidden", "protected", "status", "created_at", "updated_at", "size"),
    *("virtual_size", "min_disk", "min_ram", "disk_format", "container_format", "name"),
)


def upgrade() -> None:
    """Where there are images already, ``migrate.sync`` makes it behind the migration."""
    if op.get_bind().dialect.name == "sqlite":
        add_index("ix_images_looked_at", "images", _LOOKED_AT)

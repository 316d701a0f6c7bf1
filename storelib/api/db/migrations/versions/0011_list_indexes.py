# SPDX-License-Identifier: Apache-2.0
"""Indexes for every order and filter of lists. Older versions go on without them."""

from __future__ import annotations

from storelib.api.db.migrations.indexes import add_index

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_SORTED = ("updated_at", "size", "status", "disk_format", "container_format")
_FILTERED = (
    *("checksum", "os_hash_value", "os_hash_algo", "virtual_size", "min_disk", "min_ram", "protected", "os_hidden"),
)


def upgrade() -> None:
    """What is there already, after an interruption on MySQL, stays."""
    for column in ("disk_format", "container_format", *_FILTERED):
        add_index(f"ix_images_{column}", "images", ["deleted", column, "id"])
    for prefix in ("owner", "visibility"):
        for column in _SORTED:
            add_index(f"ix_images_{prefix}_{column}", "images", [prefix, "deleted", column, "id"])
        add_index(f"ix_images_{prefix}_id", "images", [prefix, "deleted", "id"])

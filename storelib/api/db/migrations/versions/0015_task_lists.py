# SPDX-License-Identifier: Apache-2.0
"""Indexes for every order and filter of lists of tasks. Older versions go on without them."""

from __future__ import annotations

from storelib.api.db.migrations.indexes import add_index

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What is there already, after an interruption on MySQL, stays."""
    add_index("ix_tasks_type", "tasks", ["type", "id"])
    for column in ("status", "type"):
        add_index(f"ix_tasks_{column}_created_at", "tasks", [column, "created_at", "id"])
    for name, column in (("owner", "owner"), ("user", "user_id"), ("request", "request_id")):
        add_index(f"ix_tasks_{name}", "tasks", [column, "created_at", "id"])

# SPDX-License-Identifier: Apache-2.0
"""A table of tasks, which outlive their images; those that ended move there from the properties of their images.

What an older version begins meanwhile is done and told with its image, but is no task here.
"""

from __future__ import annotations

import datetime
import json
import time
from typing import Any

import sqlalchemy as sa
from alembic import op

from storelib.api.db.migrations.indexes import create_index, create_table
from storelib.api.db.schema import Name, Text

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_OPTIONS: dict[str, Any] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB", "sqlite_with_rowid": False}
_BATCH = 1000
#: Microseconds that the tasks which are there are kept.
_KEPT = 48 * 3600 * 1_000_000
_OLD = ["record", "id", "created_at", "status", "type", "updated_at"]
_properties = sa.table("image_properties", *(sa.column(name) for name in ("image_id", "name", "value")))
c = _properties.c


def upgrade() -> None:
    """Make the table, and move what ended, a batch at a time."""
    tasks = create_table(
        "tasks",
        sa.Column("id", Name(36), primary_key=True),
        sa.Column("type", Name(32), nullable=False),
        sa.Column("status", Name(32), nullable=False),
        sa.Column("owner", Name(255)),
        sa.Column("image_id", Name(36)),
        sa.Column("user_id", Name(255)),
        sa.Column("request_id", Name(255)),
        sa.Column("input", Text, nullable=False),
        sa.Column("result", Text),
        sa.Column("message", Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        **_OPTIONS,
    )
    for name, columns in (
        ("image", ["image_id", "created_at"]),
        ("created_at", ["created_at", "id"]),
        ("updated_at", ["updated_at", "id"]),
        ("status", ["status", "id"]),
        ("expires_at", ["expires_at", "id"]),
    ):
        create_index(f"ix_tasks_{name}", "tasks", columns)
    connection, after = op.get_bind(), ""
    records = sa.select(c.image_id, c.value).where(c.name == "os_glance_task_record").order_by(c.image_id).limit(_BATCH)
    while rows := connection.execute(records.where(c.image_id > after)).all():
        found = {row.image_id: json.loads(row.value) for row in rows}
        ended = {image: task for image, task in found.items() if task["status"] in ("success", "failure")}
        if ended:
            connection.execute(tasks.insert(), [_row(image, task) for image, task in ended.items()])
            old = [f"os_glance_task_{name}" for name in _OLD]
            connection.execute(_properties.delete().where(c.image_id.in_(sorted(ended)), c.name.in_(old)))
        after = rows[-1].image_id


def _row(image_id: str, task: dict[str, Any]) -> dict[str, Any]:
    texts = {name: task.get(name) for name in ("id", "type", "status", "owner", "user_id", "request_id")}
    times = {name: _microseconds(task[name]) for name in ("created_at", "updated_at")}
    return {
        **texts,
        **times,
        "image_id": image_id,
        "input": json.dumps(task.get("input") or {}),
        "result": None,
        "message": task.get("message") or "",
        "expires_at": time.time_ns() // 1000 + _KEPT,
    }


def _microseconds(text: str) -> int:
    moment = datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.timezone.utc)
    return int(moment.timestamp()) * 1_000_000

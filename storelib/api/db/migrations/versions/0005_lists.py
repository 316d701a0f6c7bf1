# SPDX-License-Identifier: Apache-2.0
"""What lists walk along: the images shared with a project, and tasks by a property for each key of their lists.

What an older version begins meanwhile is done and told with its image, but in no list of tasks.
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

from storelib.api.db.migrations.indexes import add_index

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_BATCH = 1000
_properties = sa.table("image_properties", *(sa.column(name) for name in ("image_id", "name", "value", "head")))
c = _properties.c


def upgrade() -> None:
    """Make the index, and the keys of the tasks there are, a batch at a time."""
    add_index("ix_image_members_member_image", "image_members", ["member", "image_id"])
    connection, after = op.get_bind(), ""
    records = sa.select(c.image_id, c.value).where(c.name == "os_glance_task_record").order_by(c.image_id).limit(_BATCH)
    while rows := connection.execute(records.where(c.image_id > after)).all():
        connection.execute(_properties.insert(), [key for row in rows for key in _keys(row.image_id, row.value)])
        after = rows[-1].image_id
    connection.execute(_properties.delete().where(c.name == "os_glance_task_kind"))


def _keys(image_id: str, record: str) -> list[dict[str, str]]:
    task = json.loads(record)
    found = {
        f"os_glance_task_{key}": f"{task[key]} {task['id']}" for key in ("created_at", "status", "type", "updated_at")
    }
    return [{"image_id": image_id, "name": name, "value": text, "head": text[:64]} for name, text in found.items()]

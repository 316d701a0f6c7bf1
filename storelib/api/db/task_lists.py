# SPDX-License-Identifier: Apache-2.0
"""Finds one page of tasks, in a time that depends on the page and not on how many tasks there are.

As with images there are two ways. What a filter leaves is sorted, if it is little; or the tasks are walked along an
index in the order of the list. Each filter has an index in the order in which tasks began, which is how most lists are
sorted: there the two are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db.records import TaskQuery
from storelib.api.db.rows import check_text, now
from storelib.api.db.schema import tasks
from storelib.api.errors import BadRequest, InvalidMarker

#: So many tasks are sorted, rather than walking along an index until enough of them came by.
FEW = 5_000
#: What a list can be sorted by, and the index in that order.
ORDERS = {
    "created_at": "ix_tasks_created_at",
    "expires_at": "ix_tasks_expires_at",
    "id": "PRIMARY",
    "status": "ix_tasks_status",
    "type": "ix_tasks_type",
    "updated_at": "ix_tasks_updated_at",
}
#: The columns of filters, and the index that begins with each.
FILTERS = {
    "id": "PRIMARY",
    "request_id": "ix_tasks_request",
    "image_id": "ix_tasks_image",
    "owner": "ix_tasks_owner",
    "user_id": "ix_tasks_user",
    "status": "ix_tasks_status_created_at",
    "type": "ix_tasks_type_created_at",
}
#: In ``expires_at``: it does not, for now.
NEVER = 0


def page(connection: Connection, query: TaskQuery) -> Sequence[Any]:
    """The rows of one page and, if there are more, of the task behind it.

    Raises BadRequest for an order that does not exist, InvalidMarker for a marker that is no task.
    """
    if query.sort_key not in ORDERS:
        raise BadRequest(f"a sort key must be one of {', '.join(ORDERS)}, not {query.sort_key!r}")
    if query.sort_dir not in ("asc", "desc"):
        raise BadRequest(f"a sort direction must be one of asc, desc, not {query.sort_dir!r}")
    wanted = _wanted(query)
    columns = [tasks.c[name] for name in dict.fromkeys((query.sort_key, "id"))]
    ascending = query.sort_dir == "asc"
    conditions = [is_kept(), *(tasks.c[name] == value for name, value in wanted.items())]
    if query.marker is not None:
        conditions.append(_behind(connection, query.marker, columns, ascending))
    if query.limit == 0:
        return ()
    order = [column.asc() if ascending else column.desc() for column in columns]
    index = _index(connection, query.sort_key, wanted)
    found = _hinted(sa.select(tasks), index).where(*conditions).order_by(*order).limit(query.limit + 1)
    return connection.execute(found).mappings().all()


def is_kept() -> sa.ColumnElement[bool]:
    """Whether the time of a task is not over."""
    return (tasks.c.expires_at == NEVER) | (tasks.c.expires_at > now())


def _wanted(query: TaskQuery) -> dict[str, str]:
    """The value of each column that a filter names."""
    asked = {
        "id": query.task_id,
        "request_id": query.request_id,
        "image_id": query.image_id,
        "owner": query.owner,
        "user_id": query.user_id,
        "status": query.status,
        "type": query.kind,
    }
    wanted = {name: value for name, value in asked.items() if value is not None}
    for name, value in wanted.items():
        check_text(f"the {name} of a task", value, 65535)
    return wanted


def _index(connection: Connection, key: str, wanted: dict[str, str]) -> str:
    """The index that the page is found by."""
    if "id" in wanted or not wanted:
        return ORDERS["id" if wanted else key]
    if len(wanted) == 1:
        [name] = wanted
        if key == "created_at":
            return FILTERS[name]
        if (name, key) in (("status", "id"), ("type", "id"), ("status", "status"), ("type", "type")):
            return ORDERS[name]
    counts = {name: _count(name, value) for name, value in wanted.items()}
    found = dict(zip(counts, connection.execute(sa.select(*counts.values())).one(), strict=True))
    least = min(found, key=found.__getitem__)
    return FILTERS[least] if found[least] <= FEW or key == "created_at" else ORDERS[key]


def _count(name: str, value: str) -> sa.ScalarSelect[Any]:
    """How many tasks a filter leaves, counted to one more than FEW."""
    found = _hinted(sa.select(tasks.c.id).where(tasks.c[name] == value), FILTERS[name]).limit(FEW + 1)
    return sa.select(sa.func.count()).select_from(found.subquery()).scalar_subquery()


def _hinted(select: sa.Select[Any], index: str) -> sa.Select[Any]:
    """PostgreSQL has no hints, and knows from its statistics which values are common."""
    for server in ("mysql", "mariadb"):
        select = select.with_hint(tasks, f"FORCE INDEX ({index})", server)
    # Rows are in the order of their ids, there is no other index of them.
    return select if index == "PRIMARY" else select.with_hint(tasks, f"INDEXED BY {index}", "sqlite")


def _behind(
    connection: Connection, task_id: str, columns: Sequence[sa.Column[Any]], ascending: bool
) -> sa.ColumnElement[bool]:
    """What comes behind a task, even when it was forgotten a moment ago."""
    check_text("marker", task_id, 65535)
    marker = connection.execute(sa.select(*columns).where(tasks.c.id == task_id)).one_or_none()
    if marker is None:
        raise InvalidMarker(f"marker {task_id} is no task")
    later = sa.false()
    same = sa.true()
    for column, value in zip(columns, marker, strict=True):
        later = later | (same & (column > value if ascending else column < value))
        same = same & (column == value)
    # What bounds the range of an index, which no database sees in the other.
    return sa.and_(columns[0] >= marker[0] if ascending else columns[0] <= marker[0], later)

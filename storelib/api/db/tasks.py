# SPDX-License-Identifier: Apache-2.0
"""The tasks of images: what is or was done to one in the background, kept in properties that clients cannot set.

A task is a JSON record, and one property for each key of a list: the key's value with the task's id behind it. That is
short enough for the index of properties to know all of it, so a page in any order is one range of that index.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db.listing import having
from storelib.api.db.records import Task, TaskPage, TaskQuery
from storelib.api.db.rows import check_text
from storelib.api.db.schema import HEAD, image_properties, images
from storelib.api.db.table import Table, reads
from storelib.api.errors import BadRequest, InvalidMarker, ResourceNotFound

_RECORD, _ID = "os_glance_task_record", "os_glance_task_id"
_KEYS = {key: f"os_glance_task_{key}" for key in ("created_at", "status", "type", "updated_at")}
#: The properties that a task consists of.
TASK_PROPERTIES = frozenset({_RECORD, _ID, *_KEYS.values()})
# No task expires, so its id decides.
_ORDERS = {**_KEYS, "id": _ID, "expires_at": _ID}

_key, _record = image_properties.alias(), image_properties.alias()
_OF_TASK = (
    sa.select(_record.c.value)
    .select_from(_key)
    .join(images, images.c.id == _key.c.image_id)
    .join(_record, (_record.c.image_id == _key.c.image_id) & (_record.c.name == _RECORD))
    # MariaDB would rather read and sort all tasks than walk along the keys backwards.
    .prefix_with("STRAIGHT_JOIN", dialect="mysql")
    .prefix_with("STRAIGHT_JOIN", dialect="mariadb")
)


def to_properties(task: Task) -> dict[str, str]:
    """The properties of an image by which its task is kept and found."""
    keys = {name: f"{task[key]} {task['id']}" for key, name in _KEYS.items()}
    return {_RECORD: json.dumps(task), _ID: task["id"], **keys}


def from_properties(properties: Mapping[str, str | None]) -> Task | None:
    """The task that an image's properties tell of; None if there never was one."""
    return _to_task(properties.get(_RECORD))


class Tasks(Table):
    """The latest task of each image that is not deleted."""

    @reads
    def get(self, connection: Connection, task_id: str) -> Task:
        """The task with this id; raises ResourceNotFound."""
        check_text("the id of a task", task_id, 65535)
        found = _OF_TASK.where(*_is_key(_ID, task_id), images.c.deleted == sa.false())
        task = _to_task(connection.execute(found).scalar())
        if task is None:
            raise ResourceNotFound(f"there is no task {task_id}")
        return task

    @reads
    def list(self, connection: Connection, query: TaskQuery) -> TaskPage:
        """One page of tasks in the order of a key and their ids.

        Raises BadRequest for an order that does not exist, InvalidMarker for a marker that is no task.
        """
        if query.sort_key not in _ORDERS:
            raise BadRequest(f"a sort key must be one of {', '.join(sorted(_ORDERS))}, not {query.sort_key!r}")
        if query.sort_dir not in ("asc", "desc"):
            raise BadRequest(f"a sort direction must be one of asc, desc, not {query.sort_dir!r}")
        name, ascending = _ORDERS[query.sort_key], query.sort_dir == "asc"
        conditions = [_key.c.name == name, images.c.deleted == sa.false(), *_filters(connection, query)]
        if query.marker is not None:
            place = _place(connection, query.marker, name)
            conditions.append(_key.c.head > place if ascending else _key.c.head < place)
        if query.limit == 0:
            return TaskPage((), False)
        order = _key.c.head.asc() if ascending else _key.c.head.desc()
        rows = connection.execute(_OF_TASK.where(*conditions).order_by(order).limit(query.limit + 1)).scalars().all()
        return TaskPage(tuple(json.loads(record) for record in rows[: query.limit]), len(rows) > query.limit)


def _filters(connection: Connection, query: TaskQuery) -> Iterator[sa.ColumnElement[bool]]:
    c = image_properties.c
    for key, value in (("type", query.kind), ("status", query.status)):
        if value is not None:
            check_text(f"the {key} of a task", value, 65535)
            # Behind the value is a space, and the task's id; "!" is the character after the space.
            yield having(
                connection, image_properties, c.name == _KEYS[key], c.head >= f"{value} ", c.head < f"{value}!"
            )


def _place(connection: Connection, task_id: str, name: str) -> str:
    """What the marker has for the key called ``name``, even when its image was deleted since."""
    check_text("marker", task_id, 65535)
    marker = image_properties.alias()
    found = connection.execute(
        sa.select(marker.c.head)
        .join(_key, _key.c.image_id == marker.c.image_id)
        .where(marker.c.name == name, *_is_key(_ID, task_id))
    ).scalar()
    if found is None:
        raise InvalidMarker(f"marker {task_id} is no task")
    return str(found)


def _is_key(name: str, value: str) -> list[sa.ColumnElement[bool]]:
    return [_key.c.name == name, _key.c.head == value[:HEAD], _key.c.value == value]


def _to_task(record: str | None) -> Task | None:
    task: Task | None = json.loads(record) if record else None
    return task

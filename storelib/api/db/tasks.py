# SPDX-License-Identifier: Apache-2.0
"""The table of tasks: what is or was done in the background, kept for a time after it ended, with or without its image.

What a task says in its image's properties changes in the same transaction as the task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db import clocks
from storelib.api.db.image_row import lock
from storelib.api.db.images import change_properties
from storelib.api.db.records import Task, TaskEnd, TaskPage, TaskQuery, TaskStatus
from storelib.api.db.rows import check_long_text, check_text, load_object, now, to_time
from storelib.api.db.schema import tasks, uploads
from storelib.api.db.table import Table, reads, writes
from storelib.api.db.task_lists import NEVER, is_kept, page
from storelib.api.errors import ImageNotFound, ResourceNotFound

#: Properties in which older versions kept the tasks of an image.
OLD_PROPERTIES = frozenset(
    f"os_glance_task_{name}" for name in ("record", "id", "created_at", "status", "type", "updated_at")
)
#: Tasks of one image that are told at most.
OF_IMAGE = 100
_UNFINISHED = ("pending", "processing")


class NewTask(NamedTuple):
    """A task that begins. ``given`` is what it was asked to do, in JSON."""

    id: str
    kind: str
    given: Mapping[str, Any]
    image_id: str | None = None
    owner: str | None = None
    user_id: str | None = None
    request_id: str | None = None


class Tasks(Table):
    """Every task that did not end longer ago than tasks are kept."""

    @writes
    def begin(
        self, connection: Connection, task: NewTask, values: Mapping[str, str | None], remove: Sequence[str] = ()
    ) -> Task:
        """Record a pending task; ``values`` are set in the properties of its image, if it has one, those of ``remove``
        go.

        Raises ImageNotFound, and BadRequest for what does not fit.
        """
        given = json.dumps(dict(task.given), ensure_ascii=False)
        check_long_text("the input of a task", given)
        for name, value, length in (("the project", task.owner, 255), ("the user", task.user_id, 255)):
            check_text(name, value, length)
        if task.image_id is not None:
            change_properties(connection, task.image_id, values, remove)
        moment = now()
        row = {
            "id": task.id,
            "type": task.kind,
            "status": "pending",
            "owner": task.owner,
            "image_id": task.image_id,
            "user_id": task.user_id,
            "request_id": task.request_id,
            "input": given,
            "result": None,
            "message": "",
            "created_at": moment,
            "updated_at": moment,
            "expires_at": NEVER,
        }
        connection.execute(tasks.insert(), row)
        return _to_task(row)

    @writes
    def progress(self, connection: Connection, task_id: str, message: str, image_id: str | None = None) -> None:
        """Say how far a task is, unless it ended; and of which image it is, once it has made one."""
        values: dict[str, Any] = {"status": "processing", "message": message, "updated_at": now()}
        if image_id is not None:
            values["image_id"] = image_id
        c = tasks.c
        connection.execute(tasks.update().where(c.id == task_id, c.status.in_(_UNFINISHED)).values(**values))

    @writes
    def end(
        self,
        connection: Connection,
        ended: TaskEnd | None,
        image_id: str | None = None,
        properties: Mapping[str, str | None] | None = None,
    ) -> None:
        """End a task, and change properties of its image, where None removes one, if the image is there."""
        if image_id is not None and properties:
            try:
                lock(connection, image_id)
            except ImageNotFound:
                pass
            else:
                gone = [name for name, value in properties.items() if value is None]
                kept = {name: value for name, value in properties.items() if value is not None}
                change_properties(connection, image_id, kept, gone)
        if ended is not None:
            end(connection, ended)

    @reads
    def get(self, connection: Connection, task_id: str) -> Task:
        """The task with this id; raises ResourceNotFound."""
        check_text("the id of a task", task_id, 65535)
        row = connection.execute(sa.select(tasks).where(tasks.c.id == task_id, is_kept())).mappings().one_or_none()
        if row is None:
            raise ResourceNotFound(f"there is no task {task_id}")
        return _to_task(row)

    @reads
    def of_image(self, connection: Connection, image_id: str) -> Sequence[Task]:
        """The latest tasks of an image, which may be gone, the latest first."""
        c = tasks.c
        found = sa.select(tasks).where(c.image_id == image_id, is_kept()).order_by(c.created_at.desc(), c.id.desc())
        return [_to_task(row) for row in connection.execute(found.limit(OF_IMAGE)).mappings()]

    @reads
    def unfinished(self, connection: Connection, image_id: str) -> Task | None:
        """The task that is at work on an image; None if there is none."""
        c = tasks.c
        found = sa.select(tasks).where(c.image_id == image_id, c.status.in_(_UNFINISHED))
        row = connection.execute(found.order_by(c.created_at.desc()).limit(1)).mappings().one_or_none()
        return None if row is None else _to_task(row)

    @reads
    def list(self, connection: Connection, query: TaskQuery) -> TaskPage:
        """One page of tasks in the order of a key and their ids.

        Raises BadRequest for an order that does not exist, InvalidMarker for a marker that is no task.
        """
        rows = page(connection, query)
        return TaskPage(tuple(_to_task(row) for row in rows[: query.limit]), len(rows) > query.limit)

    @writes
    def purge(self, connection: Connection) -> int:
        """Forget the tasks whose time is over; returns how many there were."""
        return connection.execute(tasks.delete().where(~is_kept())).rowcount

    @writes
    def fail_abandoned(self, connection: Connection, age: float, message: str, kept: float) -> int:
        """End the tasks that did not change for ``age`` seconds and of whose image no data is written."""
        c, moment = tasks.c, now()
        at_work = sa.exists().where(uploads.c.image_id == c.image_id)
        apart, known = int(age * 1_000_000), clocks.read(connection)
        # None changed in the future: the clock was set back.
        old = sa.or_(c.updated_at < known.earliest - apart, c.updated_at > known.latest + apart)
        values = {"status": "failure", "message": message, "expires_at": moment + int(kept * 1_000_000)}
        found = tasks.update().where(c.status.in_(_UNFINISHED), old, ~at_work)
        return connection.execute(found.values(**values, updated_at=moment)).rowcount


def end(connection: Connection, ended: TaskEnd) -> None:
    """``Tasks.end`` as a part of another transaction. A task that ended stays as it is."""
    moment = now()
    values: dict[str, Any] = {"status": ended.status, "message": ended.message, "updated_at": moment}
    values["result"] = None if ended.result is None else json.dumps(dict(ended.result))
    # 0 means never.
    values["expires_at"] = max(moment + int(ended.kept * 1_000_000), 1)
    c = tasks.c
    connection.execute(tasks.update().where(c.id == ended.task_id, c.status.in_(_UNFINISHED)).values(**values))


def _to_task(row: Any) -> Task:
    status: TaskStatus = row["status"]
    return Task(
        id=row["id"],
        kind=row["type"],
        status=status,
        owner=row["owner"],
        image_id=row["image_id"],
        user_id=row["user_id"],
        request_id=row["request_id"],
        given=load_object(row["input"]),
        result=None if row["result"] is None else load_object(row["result"]),
        message=row["message"],
        created_at=to_time(row["created_at"]),
        updated_at=to_time(row["updated_at"]),
        expires_at=None if row["expires_at"] == NEVER else to_time(row["expires_at"]),
    )

# SPDX-License-Identifier: Apache-2.0
"""Tasks of a Glance database that have ended, as rows of this one. What is at work ends in that Glance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from storelib.api.db.rows import check_long_text, check_text, now
from storelib.api.db.schema import tasks as table
from storelib.api.errors import BadRequest
from storelib.api.glance_import.source import Source, is_living
from storelib.api.glance_import.values import (
    Refused,
    dumped,
    json_object,
    moment,
    needed_moment,
    needed_text,
    one_of,
    text,
)

_BATCH = 100
_TASK = (
    *("id", "type", "status", "owner", "expires_at", "image_id", "request_id", "user_id"),
    *("created_at", "updated_at"),
)
_UNFINISHED = ("pending", "processing")
_ENDED = ("success", "failure")
_LENGTHS = {"id": 36, "type": 32, "owner": 255, "image_id": 36, "user_id": 255, "request_id": 255}


def tasks(source: Source) -> Iterator[list[dict[str, Any] | tuple[str, Refused]]]:
    """Every task that is not forgotten yet, in batches: as a row, or its id and why it cannot be taken."""
    if not source.has("tasks"):
        return
    after: Any = ""
    while rows := source.rows("tasks", _TASK, sa.column("id") > after, is_living(), limit=_BATCH):
        of_these = sa.column("task_id").in_([row.id for row in rows])
        names = ("task_id", "input", "result", "message")
        told = {each.task_id: each for each in source.rows("task_info", names, of_these, order=())}
        yield [made for row in rows if (made := _taken(row, told.get(row.id))) is not None]
        after = rows[-1].id


def _taken(row: Any, told: Any) -> dict[str, Any] | tuple[str, Refused] | None:
    """None for one whose time is over."""
    try:
        expires = moment("expires_at", row.expires_at)
        if expires is not None and expires <= now():
            return None
        return _row(row, told, expires)
    except Refused as refused:
        return str(row.id), refused
    except BadRequest as error:
        return str(row.id), Refused(str(error))


def _row(row: Any, told: Any, expires: int | None) -> dict[str, Any]:
    if row.status in _UNFINISHED:
        raise Refused(f"it is {row.status}: Glance is at it")
    result = json_object("its result", told.result) if told is not None and told.result is not None else None
    created = needed_moment("created_at", row.created_at)
    made: dict[str, Any] = {
        "id": needed_text("the id", row.id),
        "type": needed_text("the type", row.type),
        "status": one_of("the status", row.status, _ENDED),
        **{name: text(name, getattr(row, name)) for name in ("owner", "image_id", "user_id", "request_id")},
        "input": dumped("its input", json_object("its input", told.input if told is not None else None)),
        "result": dumped("its result", result) if result else None,
        "message": text("its message", told.message if told is not None else None) or "",
        "created_at": created,
        "updated_at": moment("updated_at", row.updated_at) or created,
        "expires_at": expires or 0,
    }
    for name, length in _LENGTHS.items():
        check_text(name, made[name], length)
    for name in ("input", "result", "message"):
        check_long_text(name, made[name])
    return {column.name: made[column.name] for column in table.c}

# SPDX-License-Identifier: Apache-2.0
"""SQL for uploads under way: each belongs to an API process, and each process renews a lease by the database's clock.

The row of an upload appears with the status that says data is being written, and goes with it. While it is there,
somebody is responsible for the data in the stores: the process it names, or whoever finds that one's lease run out.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db import images as image_rows
from storelib.api.db import locations
from storelib.api.db.records import Image, NewLocation, Process, Status, Upload
from storelib.api.db.rows import changeable, check_long_text, check_text, load, now, to_time
from storelib.api.db.schema import Now, images, processes, uploads
from storelib.api.db.statuses import ALLOWED, GONE, check_transitions
from storelib.api.errors import ImageNotFound, StatusConflict, UploadLost

_PROCESSES = sa.select(processes.c.id, processes.c.host, processes.c.pid, processes.c.started_at, processes.c.seen_at)
_UPLOADS = sa.select(
    uploads.c.image_id,
    uploads.c.process_id,
    uploads.c.status,
    uploads.c.restore,
    uploads.c.stores,
    uploads.c.started_at,
)


def join(connection: Connection, host: str, pid: int) -> Process:
    """A new lease."""
    check_text("the host", host, 255)
    moment = connection.execute(sa.select(Now())).scalar_one()
    process_id = str(uuid.uuid4())
    values = {"id": process_id, "host": host, "pid": pid, "started_at": moment, "seen_at": moment}
    connection.execute(processes.insert(), values)
    return Process(process_id, host, pid, to_time(moment), to_time(moment))


def heartbeat(connection: Connection, process_id: str) -> bool:
    """Renew it."""
    renewed = processes.update().where(processes.c.id == process_id).values(seen_at=Now())
    return connection.execute(renewed).rowcount == 1


def leave(connection: Connection, process_id: str) -> None:
    """Give it up."""
    connection.execute(processes.delete().where(processes.c.id == process_id))


def members(connection: Connection) -> list[Process]:
    """All leases."""
    rows = connection.execute(_PROCESSES.order_by(processes.c.started_at, processes.c.id))
    return [Process(row[0], row[1], row[2], to_time(row[3]), to_time(row[4])) for row in rows]


def begin(
    connection: Connection,
    image_id: str,
    process_id: str,
    from_: Collection[Status],
    to: Status | None,
    stores: Sequence[str],
    values: Mapping[str, Any],
) -> Image:
    """Status and row."""
    if to is not None:
        check_transitions(from_, to)
    changed = changeable(values)
    if connection.execute(sa.select(processes.c.id).where(processes.c.id == process_id)).one_or_none() is None:
        raise UploadLost("this process has no lease any more")
    before = image_rows.lock(connection, image_id)
    if before not in from_:
        raise StatusConflict(f"image {image_id} is {before} and takes no data", status=before)
    status = before if to is None else to
    # What was staged is gone when an import of it is given up.
    restore = before if before == status or before in ALLOWED[status] else "queued"
    row = {"image_id": image_id, "process_id": process_id, "status": status, "restore": restore}
    row["stores"] = _stores(stores)
    if of(connection, image_id) is not None:
        raise StatusConflict(f"image {image_id} is being written already", status=before)
    connection.execute(uploads.insert(), {**row, "started_at": now()})
    image_rows.touch(connection, image_id, {**changed, "status": status})
    return load(connection, image_id)


def begin_deletion(connection: Connection, image_id: str, process_id: str, from_: Collection[Status]) -> Image:
    """Status and row; not the row where a copy to another store has one, or the process no lease."""
    before = image_rows.lock(connection, image_id)
    if before not in from_:
        raise StatusConflict(f"image {image_id} is {before} and cannot be deleted so", status=before)
    image = image_rows.transition(connection, image_id, (before,), "pending_delete", None, {})
    leased = connection.execute(sa.select(processes.c.id).where(processes.c.id == process_id)).one_or_none()
    if leased is not None and of(connection, image_id) is None:
        row = {"image_id": image_id, "process_id": process_id, "status": "pending_delete", "restore": before}
        connection.execute(uploads.insert(), {**row, "stores": _stores(()), "started_at": now()})
    return image


def advance(
    connection: Connection, image_id: str, process_id: str, to: Status | None, stores: Sequence[str] | None
) -> None:
    """The same upload, further on."""
    mine = _mine(connection, image_id, process_id)
    values: dict[str, Any] = {}
    if stores is not None:
        values["stores"] = _stores(stores)
    if to is not None and to != mine.status:
        check_transitions((mine.status,), to)
        if not image_rows.touch(connection, image_id, {"status": to}, images.c.status == mine.status):
            raise _lost(image_id)
        values["status"] = to
    if values:
        connection.execute(uploads.update().where(uploads.c.image_id == image_id).values(**values))


def finish(
    connection: Connection,
    image_id: str,
    process_id: str,
    to: Status | None,
    new_locations: Sequence[NewLocation],
    properties: Mapping[str, str | None],
    values: Mapping[str, Any],
) -> Image:
    """Status, values, locations, properties, and the row goes."""
    mine = _mine(connection, image_id, process_id)
    changed = changeable(values)
    expected = images.c.status == mine.status
    if to is None:
        expected = images.c.status.not_in(GONE)
    elif to != mine.status:
        if to not in ALLOWED[mine.status]:
            raise ValueError(f"an image never goes from {mine.status} to {to}")
        changed = {**image_rows.values_with_status(to), **changed}
    if not image_rows.touch(connection, image_id, changed, expected):
        raise _lost(image_id)
    if new_locations:
        locations.append(connection, image_id, new_locations, None)
    if properties:
        gone = [name for name, value in properties.items() if value is None]
        kept = {name: value for name, value in properties.items() if value is not None}
        image_rows.set_properties(connection, image_id, kept, gone)
    forget(connection, image_id, process_id)
    return load(connection, image_id, deleted=True)


def forget(connection: Connection, image_id: str, process_id: str) -> None:
    """The row goes, if it is this process's."""
    connection.execute(uploads.delete().where(uploads.c.image_id == image_id, uploads.c.process_id == process_id))


def of(connection: Connection, image_id: str) -> Upload | None:
    """Of one image."""
    row = connection.execute(_UPLOADS.where(uploads.c.image_id == image_id)).one_or_none()
    return None if row is None else _upload(row)


def by(connection: Connection, process_id: str) -> list[Upload]:
    """Of one process."""
    rows = connection.execute(_UPLOADS.where(uploads.c.process_id == process_id).order_by(uploads.c.image_id))
    return [_upload(row) for row in rows]


def take_over(connection: Connection, process_id: str, ttl: float) -> list[Upload]:
    """Those of the dead."""
    alive_since = Now() - int(ttl * 1_000_000)
    alive = sa.select(processes.c.id).where(processes.c.seen_at >= alive_since)
    left = _UPLOADS.where(uploads.c.process_id != process_id, uploads.c.process_id.not_in(alive))
    taken = []
    for row in connection.execute(left.order_by(uploads.c.image_id)).all():
        # Another taker may have been faster.
        mine = uploads.update().where(uploads.c.image_id == row.image_id, uploads.c.process_id == row.process_id)
        if connection.execute(mine.values(process_id=process_id)).rowcount:
            taken.append(dataclasses.replace(_upload(row), process_id=process_id))
    dead = processes.c.seen_at < alive_since
    connection.execute(processes.delete().where(dead, processes.c.id != process_id))
    return taken


def _mine(connection: Connection, image_id: str, process_id: str) -> Upload:
    try:
        image_rows.lock(connection, image_id)
    except ImageNotFound as error:
        raise _lost(image_id) from error
    upload = of(connection, image_id)
    if upload is None or upload.process_id != process_id:
        raise _lost(image_id)
    return upload


def _lost(image_id: str) -> UploadLost:
    return UploadLost(f"image {image_id} was deleted meanwhile, or another process took over its upload")


def _stores(stores: Sequence[str]) -> str:
    text = json.dumps(list(stores), separators=(",", ":"))
    check_long_text("the stores", text)
    return text


def _upload(row: Any) -> Upload:
    return Upload(row[0], row[1], row[2], row[3], tuple(json.loads(row[4])), to_time(row[5]))

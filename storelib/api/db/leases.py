# SPDX-License-Identifier: Apache-2.0
"""SQL for uploads under way: each belongs to an API process, and each process renews a lease by the database's clock.

The row of an upload appears with the status that says data is being written, and goes with it. While it is there,
somebody is responsible for the data in the stores: the process it names, or whoever finds that one's lease run out.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db import images as image_rows
from storelib.api.db import locations
from storelib.api.db.records import Image, NewLocation, Process, Status, Ticket, Upload
from storelib.api.db.rows import changeable, check_long_text, check_text, load, now, to_time
from storelib.api.db.schema import Now, images, processes, uploads
from storelib.api.db.statuses import ALLOWED, GONE, check_transitions
from storelib.api.errors import ImageNotFound, StatusConflict, UploadLost

_PROCESSES = sa.select(
    processes.c.id,
    processes.c.host,
    processes.c.pid,
    processes.c.started_at,
    processes.c.seen_at,
    processes.c.boot,
    processes.c.ticks,
)
_UPLOADS = sa.select(
    uploads.c.image_id,
    uploads.c.process_id,
    uploads.c.status,
    uploads.c.restore,
    uploads.c.stores,
    uploads.c.started_at,
    uploads.c.token,
)


def this_boot() -> str | None:
    """This boot of this machine, as far as one clock is counted from it; None where that is not known."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
    except OSError:
        return None
    try:
        # Containers of one machine may count from different moments (time_namespaces(7)).
        return f"{boot} {os.readlink('/proc/self/ns/time')}"[:128]
    except OSError:
        return boot


def ticks() -> int:
    """Microseconds since the boot, also those the machine slept; nobody sets this clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(clock) // 1000


def join(connection: Connection, host: str, pid: int) -> Process:
    """A new lease."""
    check_text("the host", host, 255)
    moment = connection.execute(sa.select(Now())).scalar_one()
    process_id = str(uuid.uuid4())
    values = {"id": process_id, "host": host, "pid": pid, "started_at": moment, "seen_at": moment}
    boot, seen = this_boot(), ticks()
    connection.execute(processes.insert(), {**values, "boot": boot, "ticks": seen})
    return Process(process_id, host, pid, to_time(moment), to_time(moment), boot, seen)


def heartbeat(connection: Connection, process_id: str) -> bool:
    """Renew it."""
    renewed = (
        processes.update().where(processes.c.id == process_id).values(seen_at=Now(), boot=this_boot(), ticks=ticks())
    )
    return connection.execute(renewed).rowcount == 1


def leave(connection: Connection, process_id: str) -> None:
    """Give it up."""
    connection.execute(processes.delete().where(processes.c.id == process_id))


def members(connection: Connection) -> list[Process]:
    """All leases."""
    rows = connection.execute(_PROCESSES.order_by(processes.c.started_at, processes.c.id))
    return [Process(row[0], row[1], row[2], to_time(row[3]), to_time(row[4]), row[5], row[6]) for row in rows]


def begin(
    connection: Connection,
    image_id: str,
    process_id: str,
    from_: Collection[Status],
    to: Status | None,
    stores: Sequence[str],
    token: str | None,
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
    connection.execute(uploads.insert(), {**row, "started_at": now(), "token": token or new_token()})
    image_rows.update_and_bump(connection, image_id, {**changed, "status": status})
    return load(connection, image_id)


def begin_deletion(
    connection: Connection, image_id: str, process_id: str, from_: Collection[Status], token: str | None
) -> Image:
    """Status and row; not the row where a copy to another store has one, or the process no lease."""
    before = image_rows.lock(connection, image_id)
    if before not in from_:
        raise StatusConflict(f"image {image_id} is {before} and cannot be deleted so", status=before)
    image = image_rows.transition(connection, image_id, (before,), "pending_delete", None, {})
    leased = connection.execute(sa.select(processes.c.id).where(processes.c.id == process_id)).one_or_none()
    if leased is not None and of(connection, image_id) is None:
        row = {"image_id": image_id, "process_id": process_id, "status": "pending_delete", "restore": before}
        row |= {"stores": _stores(()), "token": token or new_token()}
        connection.execute(uploads.insert(), {**row, "started_at": now()})
    return image


def claim(connection: Connection, ticket: Ticket, process_id: str, token: str | None) -> Upload | None:
    """The row gets another token, if it still is this one's, so that nobody who knew the old one ends it."""
    taken = {"process_id": process_id, "token": token or new_token()}
    if connection.execute(uploads.update().where(*_is(*ticket)).values(**taken)).rowcount != 1:
        return None
    found = of(connection, ticket.image_id)
    # Whoever came later has it.
    return found if found is not None and found.token == taken["token"] else None


def advance(
    connection: Connection,
    image_id: str,
    process_id: str,
    to: Status | None,
    stores: Sequence[str] | None,
    token: str | None,
) -> None:
    """The same upload, further on."""
    mine = _mine(connection, image_id, process_id, token)
    values: dict[str, Any] = {}
    if stores is not None:
        values["stores"] = _stores(stores)
    if to is not None and to != mine.status:
        check_transitions((mine.status,), to)
        if not image_rows.update_and_bump(connection, image_id, {"status": to}, images.c.status == mine.status):
            raise _lost(image_id)
        values["status"] = to
    if values and not connection.execute(uploads.update().where(*_is(*mine.ticket)).values(**values)).rowcount:
        raise _lost(image_id)


def finish(
    connection: Connection,
    image_id: str,
    process_id: str,
    to: Status | None,
    new_locations: Sequence[NewLocation],
    properties: Mapping[str, str | None],
    token: str | None,
    values: Mapping[str, Any],
) -> Image:
    """Status, values, locations, properties, and the row goes."""
    mine = _mine(connection, image_id, process_id, token)
    if not connection.execute(uploads.delete().where(*_is(*mine.ticket))).rowcount:
        raise _lost(image_id)
    changed = changeable(values)
    expected = images.c.status == mine.status
    if to is None:
        expected = images.c.status.not_in(GONE)
    elif to != mine.status:
        if to not in ALLOWED[mine.status]:
            raise ValueError(f"an image never goes from {mine.status} to {to}")
        changed = {**image_rows.values_with_status(to), **changed}
    if not image_rows.update_and_bump(connection, image_id, changed, expected):
        raise _lost(image_id)
    if new_locations:
        locations.append(connection, image_id, new_locations, None)
    if properties:
        gone = [name for name, value in properties.items() if value is None]
        kept = {name: value for name, value in properties.items() if value is not None}
        image_rows.set_properties(connection, image_id, kept, gone)
    return load(connection, image_id, deleted=True)


def forget(connection: Connection, image_id: str, process_id: str, token: str | None) -> None:
    """The row goes, if it is this upload's."""
    connection.execute(uploads.delete().where(*_is(image_id, process_id, token)))


def of(connection: Connection, image_id: str) -> Upload | None:
    """Of one image."""
    row = connection.execute(_UPLOADS.where(uploads.c.image_id == image_id)).one_or_none()
    return None if row is None else _upload(row)


def by(connection: Connection, process_id: str) -> list[Upload]:
    """Of one process."""
    rows = connection.execute(_UPLOADS.where(uploads.c.process_id == process_id).order_by(uploads.c.image_id))
    return [_upload(row) for row in rows]


def take_over(connection: Connection, process_id: str, ttl: float, token: str | None) -> list[Upload]:
    """Those of the dead."""
    living = _living(connection, int(ttl * 1_000_000))
    alive = sa.select(processes.c.id).where(living)
    left = _UPLOADS.where(uploads.c.process_id != process_id, uploads.c.process_id.not_in(alive))
    taken = []
    token = token or new_token()
    for row in connection.execute(left.order_by(uploads.c.image_id)).all():
        # Another taker may have been faster.
        left_by = _is(row.image_id, row.process_id, row.token)
        if connection.execute(uploads.update().where(*left_by).values(process_id=process_id, token=token)).rowcount:
            taken.append(dataclasses.replace(_upload(row), process_id=process_id, token=token))
    connection.execute(processes.delete().where(~living, processes.c.id != process_id))
    return taken


def new_token() -> str:
    """One that nobody else has."""
    return str(uuid.uuid4())


def _living(connection: Connection, ttl: int) -> sa.ColumnElement[bool]:
    """By the server's clock, which is one for all. SQLite has none but its user's, which may be set at any time."""
    c = processes.c
    seen = c.seen_at >= Now() - ttl
    boot = this_boot()
    if connection.dialect.name != "sqlite" or boot is None:
        return seen
    # Other machines that share the file, and older versions, are told by the time of day as ever.
    here = sa.func.coalesce(c.boot, "") == boot
    return sa.or_(sa.and_(here, sa.func.coalesce(c.ticks, 0) >= ticks() - ttl), sa.and_(~here, seen))


def _is(image_id: str, process_id: str, token: str | None) -> list[sa.ColumnElement[bool]]:
    found = [uploads.c.image_id == image_id, uploads.c.process_id == process_id]
    return found if token is None else [*found, uploads.c.token == token]


def _mine(connection: Connection, image_id: str, process_id: str, token: str | None) -> Upload:
    try:
        image_rows.lock(connection, image_id)
    except ImageNotFound as error:
        raise _lost(image_id) from error
    upload = of(connection, image_id)
    if upload is None or upload.process_id != process_id or token not in (None, upload.token):
        raise _lost(image_id)
    return upload


def _lost(image_id: str) -> UploadLost:
    return UploadLost(f"image {image_id} was deleted meanwhile, or another process took over its upload")


def _stores(stores: Sequence[str]) -> str:
    text = json.dumps(list(stores), separators=(",", ":"))
    check_long_text("the stores", text)
    return text


def _upload(row: Any) -> Upload:
    return Upload(row[0], row[1], row[2], row[3], tuple(json.loads(row[4])), to_time(row[5]), row[6])

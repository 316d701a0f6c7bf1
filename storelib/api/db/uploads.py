# SPDX-License-Identifier: Apache-2.0
"""The table of uploads under way, each of them one API process's.

The row of an upload appears with the status that says data is being written, and goes with it. While it is there,
a process is responsible for the data in the stores: the one it names, or the one that finds its lease run out.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db import holdings
from storelib.api.db import locations as location_rows
from storelib.api.db.image_row import lock, update_and_bump, values_with_status
from storelib.api.db.images import change_properties, change_status, note_status
from storelib.api.db.processes import has_lease, living, renew_future
from storelib.api.db.records import Image, ImageLocation, NewLocation, Status, TaskEnd, Ticket, Upload
from storelib.api.db.rows import changeable, check_long_text, load, now, to_time
from storelib.api.db.schema import images, processes, uploads
from storelib.api.db.statuses import ALLOWED, GONE, check_transitions
from storelib.api.db.table import Table, reads, writes
from storelib.api.db.tasks import end as end_task
from storelib.api.errors import ImageNotFound, StatusConflict, StillDeleting, UploadLost

NOTHING: Mapping[str, str | None] = MappingProxyType({})

_UPLOADS = sa.select(
    uploads.c.image_id,
    uploads.c.process_id,
    uploads.c.status,
    uploads.c.restore,
    uploads.c.stores,
    uploads.c.started_at,
    uploads.c.token,
)


class Uploads(Table):
    """Which process writes the data of which image, so that a living one finds and undoes what a dead one left."""

    @writes
    def begin(
        self,
        connection: Connection,
        /,
        image_id: str,
        process_id: str,
        *,
        from_: Collection[Status] = frozenset[Status]({"queued"}),
        to: Status | None = "saving",
        stores: Sequence[str] = (),
        token: str | None = None,
        stores_of: Callable[[ImageLocation], Collection[str]] = lambda location: (),
        **values: Any,
    ) -> Image:
        """``Images.transition`` to saving, uploading or importing, and note who is writing to which stores.

        ``to`` None keeps the status: an active image is copied to another store. Raises what ``transition`` raises,
        StatusConflict also if its data is being written already, and UploadLost if the process has no lease. ``token``
        tells this upload from all others of the image; what ends it gives it again. Raises StillDeleting while data of
        the image is to be deleted in one of the ``stores``, which ``stores_of`` tells of a location: the new data goes
        to the same place, and deleting the one would take the other.
        """
        if to is not None:
            check_transitions(from_, to)
        changed = changeable(values)
        if not has_lease(connection, process_id):
            raise UploadLost("this process has no lease any more")
        before = lock(connection, image_id)
        if before not in from_:
            raise StatusConflict(f"image {image_id} is {before} and takes no data", status=before)
        if _get(connection, image_id) is not None:
            raise StatusConflict(f"image {image_id} is being written already", status=before)
        for location in location_rows.list_pending(connection, image_id) if stores else ():
            if busy := {*stores}.intersection(stores_of(location)):
                raise StillDeleting(f"store {min(busy)} still deletes what it had of image {image_id}; try again later")
        status = before if to is None else to
        # What was staged is gone when an import of it is given up.
        restore = before if before == status or before in ALLOWED[status] else "queued"
        noted = {"status": status, "restore": restore, "stores": _stores(stores)}
        _insert(connection, image_id, process_id, token, **noted)
        update_and_bump(connection, image_id, {**changed, "status": status})
        return load(connection, image_id)

    @writes
    def begin_deletion(
        self,
        connection: Connection,
        image_id: str,
        process_id: str,
        *,
        from_: Collection[Status],
        token: str | None = None,
    ) -> Image:
        """``Images.transition`` to pending_delete, and note who deletes the data, as an upload with that status.

        A ``transition`` from pending_delete ends it. Where a copy is being written, whose end is then this one's, too,
        or where the process has no lease, only the status before is noted, in the image. Raises ImageNotFound,
        StatusConflict.
        """
        before = lock(connection, image_id)
        if before not in from_:
            raise StatusConflict(f"image {image_id} is {before} and cannot be deleted so", status=before)
        image = change_status(connection, image_id, (before,), "pending_delete")
        if has_lease(connection, process_id) and _get(connection, image_id) is None:
            noted = {"status": "pending_delete", "restore": before, "stores": _stores(())}
            _insert(connection, image_id, process_id, token, **noted)
        else:
            note_status(connection, image_id, before)
        return image

    @writes
    def finish(
        self,
        connection: Connection,
        /,
        image_id: str,
        process_id: str,
        *,
        to: Status | None = "active",
        locations: Sequence[NewLocation] = (),
        left: Sequence[NewLocation] = (),
        properties: Mapping[str, str | None] = NOTHING,
        token: str | None = None,
        task: TaskEnd | None = None,
        go_on: bool = False,
        most: int | None = None,
        **values: Any,
    ) -> Image:
        """End the upload: status, values and more locations at once. ``to`` queued or killed gives it up.

        ``properties`` are set, or removed where they are None, and ``task`` ends, at the same time. With ``go_on`` the
        process stays responsible for what is done to the image in its new status, and has to ``finish`` that, too.
        ``left`` is data that could not be removed, which the next deletion of what is pending goes on with.

        ``to`` None, or the status it has, ends it without a change of status. Raises UploadLost if the image was
        deleted or the upload was taken over: then the caller removes the data and calls ``forget``. Raises
        QuotaExceeded, and ends nothing, if the owner would hold more than ``most`` bytes in all.
        """
        mine = _mine(connection, image_id, process_id, token)
        ending: Any = uploads.update().values(status=to, restore=to) if go_on else uploads.delete()
        if not connection.execute(ending.where(*_is(*mine.ticket))).rowcount:
            raise _lost(image_id)
        changed = changeable(values)
        expected = images.c.status == mine.status
        if to is None:
            expected = images.c.status.not_in(GONE)
        elif to != mine.status:
            if to not in ALLOWED[mine.status]:
                raise ValueError(f"an image never goes from {mine.status} to {to}")
            changed = {**values_with_status(to), **changed}
        if not update_and_bump(connection, image_id, changed, expected):
            raise _lost(image_id)
        if locations:
            location_rows.append(connection, image_id, locations)
        location_rows.leave(connection, image_id, left)
        if properties:
            gone = [name for name, value in properties.items() if value is None]
            kept = {name: value for name, value in properties.items() if value is not None}
            change_properties(connection, image_id, kept, gone)
        if task is not None:
            end_task(connection, task)
        holdings.check(connection, image_id, most)
        return load(connection, image_id, deleted=True)

    @writes
    def forget(
        self,
        connection: Connection,
        image_id: str,
        process_id: str,
        *,
        token: str | None = None,
        left: Sequence[NewLocation] = (),
    ) -> None:
        """End an upload without touching the image; its data must be gone, but for what is ``left`` as by ``finish``.

        Nothing happens if it is not this one's. The upload of an image that was deleted meanwhile stays until then, so
        that a crash in between is cleaned up.
        """
        if connection.execute(uploads.delete().where(*_is(image_id, process_id, token))).rowcount:
            location_rows.leave(connection, image_id, left)

    @writes
    def claim(
        self, connection: Connection, ticket: Ticket, process_id: str, *, token: str | None = None
    ) -> Upload | None:
        """Make this upload one of ``process_id`` with a new token (``token``), before it is undone; None if it is over.

        As long as its row is there, nobody else begins to write the image's data, and nobody who knew the old token
        ends it.
        """
        taken = {"process_id": process_id, "token": token or new_token()}
        if connection.execute(uploads.update().where(*_is(*ticket)).values(**taken)).rowcount != 1:
            return None
        found = _get(connection, ticket.image_id)
        # Another taker may have been faster.
        return found if found is not None and found.token == taken["token"] else None

    @writes
    def take_over(
        self,
        connection: Connection,
        process_id: str,
        ttl: float,
        *,
        dead: Collection[str] | None = None,
        token: str | None = None,
    ) -> Sequence[Upload]:
        """Make the uploads of processes not seen for ``ttl`` seconds this one's; each is given to one taker only.

        Of those that have not left only the ``dead``, if they are told.
        The caller removes what they left in ``stores`` under the image's id, then ends each with
        ``finish(..., to=upload.restore)``, or after UploadLost with ``forget``. Should it die over that, they are
        taken over again. One that is pending_delete is a deletion, to be gone on with. All get ``token``, by which
        ``list_for`` tells them if the outcome is unknown.
        """
        renew_future(connection, int(ttl * 1_000_000))
        alive = living(connection, int(ttl * 1_000_000))
        if dead is not None:
            alive = sa.or_(alive, processes.c.id.not_in(dead))
        left = _UPLOADS.where(
            uploads.c.process_id != process_id, uploads.c.process_id.not_in(sa.select(processes.c.id).where(alive))
        )
        taken = []
        token = token or new_token()
        for row in connection.execute(left.order_by(uploads.c.image_id)).all():
            # Another taker may have been faster.
            left_by = _is(row.image_id, row.process_id, row.token)
            if connection.execute(uploads.update().where(*left_by).values(process_id=process_id, token=token)).rowcount:
                taken.append(dataclasses.replace(_upload(row), process_id=process_id, token=token))
        connection.execute(processes.delete().where(~alive, processes.c.id != process_id))
        return taken

    @reads
    def get(self, connection: Connection, image_id: str) -> Upload | None:
        """The upload or deletion of this image that is under way; None if there is none."""
        return _get(connection, image_id)

    @reads
    def is_wanted(self, connection: Connection, ticket: Ticket) -> bool:
        """Whether this upload is under way and its image was not deleted since."""
        mine = sa.select(images.c.status).join(uploads, uploads.c.image_id == images.c.id).where(*_is(*ticket))
        status = connection.execute(mine).scalar()
        return status is not None and status not in GONE

    @reads
    def list_for(self, connection: Connection, process_id: str) -> Sequence[Upload]:
        """The uploads that a process began or has taken over, by image id."""
        rows = connection.execute(_UPLOADS.where(uploads.c.process_id == process_id).order_by(uploads.c.image_id))
        return [_upload(row) for row in rows]


def new_token() -> str:
    """A token that no other upload has."""
    return str(uuid.uuid4())


def _get(connection: Connection, image_id: str) -> Upload | None:
    row = connection.execute(_UPLOADS.where(uploads.c.image_id == image_id)).one_or_none()
    return None if row is None else _upload(row)


def _insert(connection: Connection, image_id: str, process_id: str, token: str | None, **values: Any) -> None:
    row = {"image_id": image_id, "process_id": process_id, "token": token or new_token(), "started_at": now()}
    connection.execute(uploads.insert(), {**row, **values})


def _is(image_id: str, process_id: str, token: str | None) -> list[sa.ColumnElement[bool]]:
    found = [uploads.c.image_id == image_id, uploads.c.process_id == process_id]
    return found if token is None else [*found, uploads.c.token == token]


def _mine(connection: Connection, image_id: str, process_id: str, token: str | None) -> Upload:
    try:
        lock(connection, image_id)
    except ImageNotFound as error:
        raise _lost(image_id) from error
    upload = _get(connection, image_id)
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

# SPDX-License-Identifier: Apache-2.0
"""The table of jobs: work on uploads that waits for a process to take it, or is done by the one that has the upload.

A job is there as long as its upload, and ending that ends both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db.processes import has_lease
from storelib.api.db.records import Job, Ticket
from storelib.api.db.rows import check_long_text, check_text, now
from storelib.api.db.schema import jobs, uploads
from storelib.api.db.table import Table, reads, writes
from storelib.api.errors import UploadLost

_c = jobs.c
_WAITS = _c.started_at.is_(None)


class Jobs(Table):
    """Which work waits, and how often it was begun."""

    @writes
    def put(
        self, connection: Connection, ticket: Ticket, kind: str, document: Mapping[str, Any], owner: str | None
    ) -> None:
        """Have some process go on with this upload; ``document`` is what it has to know.

        Raises UploadLost if it is not under way any more, BadRequest for a document that is too long.
        """
        text = json.dumps(dict(document), separators=(",", ":"))
        check_long_text("a request", text)
        check_text("the owner", owner, 255)
        _hold(connection, ticket)
        values = {"kind": kind, "document": text, "owner": owner or "", "created_at": now(), "attempts": 0}
        connection.execute(jobs.insert(), {"image_id": ticket.image_id, **values})

    @writes
    def take(self, connection: Connection, process_id: str, *, token: str, owners_at_rest: bool = False) -> Job | None:
        """Make the next waiting job, and its upload, one of this process; None if there is none.

        The owner for whom the least is being done comes first, of equals the one that waits longest. ``owners_at_rest``
        takes jobs only of those for whom nothing is being done. Raises UploadLost if the process has no lease.
        """
        if not has_lease(connection, process_id):
            raise UploadLost("this process has no lease any more")
        while (row := connection.execute(_next(owners_at_rest)).one_or_none()) is not None:
            # Others may be at the same one; its upload is held first, as by processes that end it.
            held = sa.select(uploads.c.token).where(uploads.c.image_id == row.image_id).with_for_update()
            if connection.execute(held).first() is None:
                continue
            begun = jobs.update().where(_c.image_id == row.image_id, _WAITS)
            if not connection.execute(begun.values(started_at=now(), attempts=_c.attempts + 1)).rowcount:
                continue
            mine = uploads.update().where(uploads.c.image_id == row.image_id)
            connection.execute(mine.values(process_id=process_id, token=token))
            ticket = Ticket(row.image_id, process_id, token)
            return Job(ticket, row.kind, json.loads(row.document), row.owner, row.attempts + 1)
        return None

    @writes
    def put_back(self, connection: Connection, ticket: Ticket, attempts: int) -> bool:
        """Have the job of this upload wait again; False where there is none, or it was begun ``attempts`` times.

        Raises UploadLost if the upload is not this one any more.
        """
        _hold(connection, ticket)
        again = jobs.update().where(_c.image_id == ticket.image_id, _c.attempts < attempts)
        return connection.execute(again.values(started_at=None)).rowcount == 1

    @reads
    def exists(self, connection: Connection, image_id: str) -> bool:
        """Whether there is one for the upload of this image."""
        return connection.execute(sa.select(_c.image_id).where(_c.image_id == image_id)).first() is not None

    @reads
    def count_waiting(self, connection: Connection) -> int:
        """How many jobs wait for a process."""
        return int(connection.execute(sa.select(sa.func.count()).select_from(jobs).where(_WAITS)).scalar_one())


def _next(owners_at_rest: bool) -> sa.Select[Any]:
    busy = (
        sa.select(_c.owner, sa.func.count().label("count")).where(_c.started_at.is_not(None)).group_by(_c.owner)
    ).subquery()
    count = sa.func.coalesce(busy.c.count, 0)
    found = sa.select(jobs).outerjoin(busy, busy.c.owner == _c.owner).where(_WAITS)
    if owners_at_rest:
        found = found.where(count == 0)
    return found.order_by(count, _c.created_at, _c.image_id).limit(1)


def _hold(connection: Connection, ticket: Ticket) -> None:
    mine = (uploads.c.process_id == ticket.process_id, uploads.c.token == ticket.token)
    held = sa.select(uploads.c.token).where(uploads.c.image_id == ticket.image_id, *mine).with_for_update()
    if connection.execute(held).first() is None:
        raise UploadLost(f"image {ticket.image_id}: another process has taken over what was done to it")

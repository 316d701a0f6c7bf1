# SPDX-License-Identifier: Apache-2.0
"""The table of rounds: work over all images that comes again and again, by one process at a time.

Its row says who is at it and how far, so that another goes on where a dead one stopped.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db import clocks
from storelib.api.db.processes import living
from storelib.api.db.records import Round
from storelib.api.db.rows import now, to_time
from storelib.api.db.schema import processes, rounds
from storelib.api.db.table import Table, reads, writes

c = rounds.c
#: Microseconds that the clocks of two hosts may differ.
CLOCKS = 60_000_000


class Rounds(Table):
    """How far each kind of round has come."""

    def claim(self, name: str, process_id: str, ttl: float, interval: float) -> Round | None:
        """Begin a round that is due ``interval`` seconds after the last one began, or go on with one that stopped.

        None while it is not due, or a process seen within ``ttl`` seconds is at it.
        """
        if self.get(name) is None:
            # Another process may be faster.
            with contextlib.suppress(sa.exc.IntegrityError):
                self._make(name)
        return self._claim(name, process_id, ttl, interval)

    @writes
    def _make(self, connection: Connection, name: str) -> None:
        connection.execute(rounds.insert(), {"name": name, "position": "", "counts": "{}", "last": "{}"})

    @writes
    def _claim(self, connection: Connection, name: str, process_id: str, ttl: float, interval: float) -> Round | None:
        alive = sa.select(processes.c.id).where(living(connection, int(ttl * 1_000_000)))
        free = sa.or_(c.process_id.is_(None), c.process_id == process_id, c.process_id.not_in(alive))
        moment, latest = now(), clocks.read(connection).latest
        stopped = c.started_at.is_not(None) & (c.finished_at.is_(None) | (c.finished_at < c.started_at))
        apart = int(interval * 1_000_000)
        # None began in the future: the clock was set back.
        ahead = c.started_at > latest + max(apart, CLOCKS)
        due = sa.or_(stopped, c.started_at.is_(None), c.started_at <= moment - apart, ahead)
        mine = rounds.update().where(c.name == name, free, due).values(process_id=process_id)
        if not connection.execute(mine).rowcount:
            return None
        fresh = rounds.update().where(c.name == name, ~sa.func.coalesce(stopped, sa.false()))
        # Or else it would look as if it had ended as soon as it began.
        ended = sa.case((c.finished_at >= moment, moment - 1), else_=c.finished_at)
        connection.execute(fresh.values(started_at=moment, finished_at=ended, position="", counts="{}"))
        return _get(connection, name)

    @writes
    def note(self, connection: Connection, name: str, process_id: str, position: str, counts: dict[str, Any]) -> bool:
        """How far this process has come. False: another has taken over."""
        mine = rounds.update().where(c.name == name, c.process_id == process_id)
        return connection.execute(mine.values(position=position, counts=json.dumps(counts))).rowcount == 1

    @writes
    def finish(self, connection: Connection, name: str, process_id: str, counts: dict[str, Any]) -> None:
        """The round has come to its end."""
        mine = rounds.update().where(c.name == name, c.process_id == process_id)
        text, moment = json.dumps(counts), now()
        # Where the clock was set back meanwhile it would look as if it had stopped, and be gone on with for ever.
        ended = sa.case((c.started_at > moment, c.started_at), else_=moment)
        values = {"process_id": None, "position": "", "finished_at": ended, "counts": text, "last": text}
        connection.execute(mine.values(**values))

    @writes
    def leave(self, connection: Connection, name: str, process_id: str) -> None:
        """This process goes; another may go on at once."""
        connection.execute(rounds.update().where(c.name == name, c.process_id == process_id).values(process_id=None))

    @reads
    def get(self, connection: Connection, name: str) -> Round | None:
        """How far it has come; None if there never was one."""
        return _get(connection, name)


def _get(connection: Connection, name: str) -> Round | None:
    row = connection.execute(sa.select(rounds).where(c.name == name)).one_or_none()
    if row is None:
        return None
    started, finished = (
        to_time(moment) if moment is not None else None for moment in (row.started_at, row.finished_at)
    )
    return Round(name, row.position, started, finished, json.loads(row.counts), json.loads(row.last))

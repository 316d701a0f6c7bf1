# SPDX-License-Identifier: Apache-2.0
"""The table of API processes: each renews a lease by the database's clock, so that a dead one is known as such."""

from __future__ import annotations

import datetime
import os
import time
import uuid
from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db import clocks
from storelib.api.db.records import Process
from storelib.api.db.rows import check_text, to_time
from storelib.api.db.schema import Now, processes
from storelib.api.db.table import Table, reads, writes

_PROCESSES = sa.select(
    processes.c.id,
    processes.c.host,
    processes.c.pid,
    processes.c.started_at,
    processes.c.seen_at,
    processes.c.boot,
    processes.c.ticks,
)


class Processes(Table):
    """The leases of the API processes on this database."""

    @writes
    def join(self, connection: Connection, host: str, pid: int, role: str = "") -> Process:
        """Announce an API process; it has to call ``heartbeat`` more often than the ``ttl`` others are patient for.

        ``role`` is ``worker`` for one that takes jobs.
        """
        check_text("the host", host, 255)
        moment = connection.execute(sa.select(Now())).scalar_one()
        process_id = str(uuid.uuid4())
        values = {"id": process_id, "host": host, "pid": pid, "started_at": moment, "seen_at": moment}
        boot, seen = this_boot(), ticks()
        connection.execute(processes.insert(), {**values, "boot": boot, "ticks": seen, "role": role})
        return Process(process_id, host, pid, to_time(moment), to_time(moment), boot, seen)

    @writes
    def heartbeat(self, connection: Connection, process_id: str) -> bool:
        """Renew the lease. False: it was given up for dead; its uploads belong to others, join again."""
        mine = processes.update().where(processes.c.id == process_id)
        return connection.execute(mine.values(seen_at=Now(), boot=this_boot(), ticks=ticks())).rowcount == 1

    @writes
    def leave(self, connection: Connection, process_id: str) -> None:
        """A clean end; the unfinished uploads of the process, if any, can be taken over at once."""
        connection.execute(processes.delete().where(processes.c.id == process_id))

    @reads
    def has_workers(self, connection: Connection, ttl: float) -> bool:
        """Whether there are workers whose lease was renewed within ``ttl`` seconds."""
        alive = living(connection, int(ttl * 1_000_000))
        found = sa.select(processes.c.id).where(processes.c.role == "worker", alive).limit(1)
        return connection.execute(found).first() is not None

    @reads
    def clocks(self, connection: Connection) -> tuple[datetime.datetime, datetime.datetime]:
        """This moment by the clock that is behind, this host's or the database's, and by the one that is ahead."""
        earliest, latest = clocks.read(connection)
        return to_time(earliest), to_time(latest)

    @reads
    def silent(self, connection: Connection, ttl: float) -> Mapping[str, tuple[int, int | None]]:
        """Those whose lease was not renewed within ``ttl`` seconds, each with what changes when it is."""
        found = sa.select(processes.c.id, processes.c.seen_at, processes.c.ticks)
        rows = connection.execute(found.where(~living(connection, int(ttl * 1_000_000))))
        return {row.id: (row.seen_at, row.ticks) for row in rows}

    @reads
    def list(self, connection: Connection) -> Sequence[Process]:
        """All that joined and neither left nor were given up, oldest first."""
        rows = connection.execute(_PROCESSES.order_by(processes.c.started_at, processes.c.id))
        return [Process(row[0], row[1], row[2], to_time(row[3]), to_time(row[4]), row[5], row[6]) for row in rows]


def has_lease(connection: Connection, process_id: str) -> bool:
    """Whether the process joined, and neither left nor was given up since."""
    return connection.execute(sa.select(processes.c.id).where(processes.c.id == process_id)).one_or_none() is not None


def living(connection: Connection, ttl: int) -> sa.ColumnElement[bool]:
    """The leases renewed within ``ttl`` microseconds, by the server's clock, which is one for all.

    SQLite has none but its user's, which may be set at any time.
    """
    c = processes.c
    seen = c.seen_at >= Now() - ttl
    boot = this_boot()
    if connection.dialect.name != "sqlite" or boot is None:
        return seen
    # Other machines that share the file, and older versions, are told by the time of day as ever.
    here = sa.func.coalesce(c.boot, "") == boot
    return sa.or_(sa.and_(here, sa.func.coalesce(c.ticks, 0) >= ticks() - ttl), sa.and_(~here, seen))


def renew_future(connection: Connection, ttl: int) -> None:
    """Have leases end in time that were renewed while the server's clock was ahead: a dead one would last as long as it
    was. Those that live renew theirs.
    """
    connection.execute(processes.update().where(processes.c.seen_at > Now() + ttl).values(seen_at=Now()))


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

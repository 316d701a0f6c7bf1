# SPDX-License-Identifier: Apache-2.0
"""The table of what was imported: which entry came from which catalogue, and how it was then.

What is not here as it was then was changed here since, and is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db.imported.entry import Entries, Entry, Row, insert_all
from storelib.api.db.imported.images import ImageEntries
from storelib.api.db.imported.namespaces import NamespaceEntries, know_types
from storelib.api.db.schema import imported, tasks
from storelib.api.db.table import Table, reads, writes
from storelib.api.errors import Conflict

Kind = Literal["image", "namespace"]
#: new: it was not here. changed: changed there since it was taken. same: as when it was taken. deleted: deleted there,
#: so here, too. kept: changed here since it was taken. absent: deleted here. foreign: here, but not from there.
Outcome = Literal["new", "changed", "same", "deleted", "kept", "absent", "foreign"]

c = imported.c
_ENTRIES: Mapping[Kind, Entries] = {"image": ImageEntries(), "namespace": NamespaceEntries()}
_T = TypeVar("_T")


class Imported(Table):
    """Entries of the catalogue that is called ``source``."""

    @reads
    def compare(self, connection: Connection, kind: Kind, source: str, entries: Sequence[Entry]) -> list[Outcome]:
        """What ``put`` would do with these entries."""
        return _compare(connection, kind, source, entries, lock=False)

    @writes
    def put(self, connection: Connection, kind: Kind, source: str, entries: Sequence[Entry]) -> list[Outcome]:
        """Make entries that are not here, and bring up to date those that are as they were when they were taken.

        Returns what became of each. Raises Conflict where another process makes the same ones at this moment.
        """
        outcomes = _compare(connection, kind, source, entries, lock=True)
        new, changed = (
            [entry for entry, outcome in zip(entries, outcomes, strict=True) if outcome == wanted]
            for wanted in ("new", "changed")
        )
        _without_rivals(lambda: _ENTRIES[kind].insert(connection, new))
        _ENTRIES[kind].replace(connection, changed)
        _forget(connection, kind, [entry.key for entry in changed])
        rows = [
            {"kind": kind, "key": entry.key, "source": source, "digest": entry.digest} for entry in (*new, *changed)
        ]
        _without_rivals(lambda: insert_all(connection, imported, rows))
        return outcomes

    @reads
    def keys(self, connection: Connection, kind: Kind, source: str, after: str, limit: int) -> Sequence[str]:
        """What was taken from there, in the order of keys, behind one of them."""
        mine = sa.select(c.key).where(c.source == source, c.kind == kind, c.key > after)
        return connection.execute(mine.order_by(c.key).limit(limit)).scalars().all()

    @reads
    def compare_gone(self, connection: Connection, kind: Kind, keys: Collection[str]) -> dict[str, Outcome]:
        """What ``remove`` would do with these keys."""
        return _compare_gone(connection, kind, keys)

    @writes
    def remove(self, connection: Connection, kind: Kind, keys: Collection[str]) -> dict[str, Outcome]:
        """Delete entries that are gone there, unless they were changed here; returns what became of each.

        What is deleted here already is forgotten.
        """
        _ENTRIES[kind].present(connection, keys, lock=True)
        outcomes = _compare_gone(connection, kind, keys)
        _ENTRIES[kind].delete(connection, [key for key, outcome in outcomes.items() if outcome == "deleted"])
        _forget(connection, kind, [key for key in keys if outcomes[key] != "kept"])
        return outcomes

    @writes
    def put_resource_types(self, connection: Connection, rows: Sequence[Row]) -> int:
        """Make the types of resources that there are not yet, with their times; returns how many."""
        return know_types(connection, rows)

    @reads
    def new_tasks(self, connection: Connection, ids: Collection[str]) -> set[str]:
        """Which of these are the ids of no task here."""
        return set(ids) - set(connection.execute(sa.select(tasks.c.id).where(tasks.c.id.in_(ids))).scalars())

    @writes
    def put_tasks(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Record tasks that have ended; raises Conflict."""
        _without_rivals(lambda: insert_all(connection, tasks, rows))


def _compare(connection: Connection, kind: Kind, source: str, entries: Sequence[Entry], *, lock: bool) -> list[Outcome]:
    keys = [entry.key for entry in entries]
    present = _ENTRIES[kind].present(connection, keys, lock=lock)
    rows = connection.execute(sa.select(c.key, c.source, c.digest).where(c.kind == kind, c.key.in_(keys)))
    taken = {key: (origin, digest) for key, origin, digest in rows}
    other = [entry.key for entry in entries if taken.get(entry.key) not in (None, (source, entry.digest))]
    here = _ENTRIES[kind].digests(connection, other) if other else {}

    def outcome(entry: Entry) -> Outcome:
        known = taken.get(entry.key)
        if known is None:
            return "foreign" if entry.key in present else "new"
        if known[0] != source:
            return "foreign"
        if known[1] == entry.digest:
            return "same"
        if entry.key not in here:
            return "absent"
        return "changed" if here[entry.key] == known[1] else "kept"

    return [outcome(entry) for entry in entries]


def _compare_gone(connection: Connection, kind: Kind, keys: Collection[str]) -> dict[str, Outcome]:
    rows = connection.execute(sa.select(c.key, c.digest).where(c.kind == kind, c.key.in_(keys)))
    taken = {row.key: row.digest for row in rows}
    here = _ENTRIES[kind].digests(connection, keys)
    return {key: "same" if key not in here else "deleted" if here[key] == taken.get(key) else "kept" for key in keys}


def _forget(connection: Connection, kind: Kind, keys: Collection[str]) -> None:
    if keys:
        connection.execute(imported.delete().where(c.kind == kind, c.key.in_(keys)))


def _without_rivals(work: Callable[[], Any]) -> None:
    try:
        work()
    except sa.exc.IntegrityError as error:
        raise Conflict("another process makes the same entries at this moment; run it again") from error

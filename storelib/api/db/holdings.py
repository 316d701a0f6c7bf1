# SPDX-License-Identifier: Apache-2.0
"""How many bytes an owner holds in all, in stores and staged.

What adds to them is checked in its own transaction, and of one owner such transactions wait for each other, so that
racing uploads cannot all fit into the same room.

What is staged is few images. What is in stores is kept as a sum, with what of it each image is (``stored_bytes``): then
only images that changed since the sum was made are looked at. Every change of an image moves its ``updated_at``, by
older versions too, so no other code has to know of the sum. A transaction may be committed some time after the
moment that it wrote there, and by another host's clock, which is why what changed LATE before is looked at again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from storelib.api.db.rows import now
from storelib.api.db.schema import holders, image_locations, image_properties, images, stored_bytes
from storelib.api.db.statuses import GONE
from storelib.api.errors import QuotaExceeded

#: Microseconds by which a change may be seen later than it says: no transaction is open so long, and clocks of hosts
#: differ by less.
LATE = 15 * 60 * 1_000_000
# Changes that are looked at each time until the sum is brought up to now, and changes that are more than all of it.
_FEW, _MANY = 200, 5_000

#: The property of an image with the bytes that stay staged for it after an import that failed, when it has no size.
KEPT = "os_glance_stage_size"

c, s, h, p = images.c, stored_bytes.c, holders.c, image_properties.c
_PLACES = (
    sa.select(sa.func.count())
    .where(image_locations.c.image_id == c.id, image_locations.c.pending_since.is_(None))
    .scalar_subquery()
)
#: What one image is of what its owner holds in stores.
_STORED: sa.ColumnElement[Any] = sa.case(
    (sa.or_(c.deleted == sa.true(), c.status.in_(GONE)), 0), else_=sa.func.coalesce(c.size, 0) * _PLACES
)


def staged(connection: Connection, owner: str | None) -> int:
    """Bytes that this owner has staged."""
    mine = (c.owner == owner, c.deleted == sa.false())
    first = sa.select(sa.func.sum(c.size)).where(*mine, c.status.in_(["uploading", "importing"])).scalar_subquery()
    kept = sa.select(sa.func.sum(sa.cast(p.value, sa.BigInteger))).join(images, c.id == p.image_id)
    again = kept.where(p.name == KEPT, *mine, c.status.in_(["queued", "importing"])).scalar_subquery()
    row = connection.execute(sa.select(first, again)).one()
    return int(row[0] or 0) + int(row[1] or 0)


def stored(connection: Connection, owner: str | None) -> int:
    """Bytes that this owner has in stores, size times places, all looked at."""
    return int(connection.execute(sa.select(sa.func.sum(_STORED)).where(*_of(owner))).scalar() or 0)


def stored_by_sum(connection: Connection, owner: str | None) -> int | None:
    """``stored``, by the sum that is kept; None where it is better made, or brought up to now, before (``count``)."""
    if (found := _sum(connection, owner)) is None:
        return None
    total, since = found
    changed = _changed(connection, owner, since)
    if len(changed) > _FEW:
        return None
    return total + sum(int(row.bytes) - _counted(row, owner) for row in changed)


def check(connection: Connection, image_id: str, most: int | None) -> None:
    """Raise QuotaExceeded if the owner of this image holds more than ``most`` bytes now; None is no limit.

    Called behind the statements that add something, in their transaction.
    """
    if most is None:
        return
    owner = connection.execute(sa.select(c.owner).where(c.id == image_id)).scalar()
    if count(connection, owner) + staged(connection, owner) > most:
        raise QuotaExceeded(f"the project may store {most} bytes, and this is more than is left of them")


def count(connection: Connection, owner: str | None) -> int:
    """``stored``, in a transaction that writes: the sum is made if there is none, or brought up to now."""
    _wait_for_turn(connection, owner or "")
    moment = now()
    found = _sum(connection, owner)
    if found is None:
        total = _count_all(connection, owner)
    else:
        total, since = found
        changed = [row for row in _changed(connection, owner, since) if row.bytes != _counted(row, owner)]
        if len(changed) > _MANY:
            total = _count_all(connection, owner)
        else:
            total += sum(int(row.bytes) - _counted(row, owner) for row in changed)
            _forget(connection, (row for row in changed if row.owner not in (None, owner or "")))
            _note(connection, owner, changed)
    connection.execute(holders.update().where(h.owner == (owner or "")).values(stored=total, counted_at=moment))
    return total


def recount(connection: Connection, owner: str | None) -> tuple[int, int]:
    """Make the sum of an owner anew; returns what it said, and what it is. The two differ only by a mistake."""
    count(connection, owner)
    found = _compared(connection, owner)
    connection.execute(holders.update().where(h.owner == (owner or "")).values(stored=None))
    count(connection, owner)
    return found


def owners(connection: Connection) -> list[str | None]:
    """The owners of which a sum is kept."""
    found = sa.select(h.owner).where(h.stored.is_not(None)).order_by(h.owner)
    return [owner or None for owner in connection.execute(found).scalars()]


def begin_anew(connection: Connection, of: Collection[str | None]) -> None:
    """Images of these owners were made or changed without saying when: their sums are made again when they are needed.

    Called behind the statements that do it.
    """
    if not of:
        return
    # Most have no sum. Held in one order, so that two that hold several do not wait for each other.
    known = sa.select(h.owner).where(h.owner.in_({each or "" for each in of})).order_by(h.owner).with_for_update()
    if kept := connection.execute(known).scalars().all():
        connection.execute(holders.update().where(h.owner.in_(kept)).values(stored=None))


def forget(connection: Connection, image_ids: Collection[str], owners: Collection[str | None] = ()) -> None:
    """These images are going to be nobody's, or another's: they are no part of a sum any more.

    ``owners``: whose they were, if a sum that is being made may count them still.
    """
    found = sa.select(s.image_id, s.owner, s.bytes.label("before")).where(s.image_id.in_(image_ids))
    for owner in sorted({owner or "" for owner in owners} | {row.owner for row in connection.execute(found)}):
        _wait_for_turn(connection, owner)
    _forget(connection, connection.execute(found).all())


def _of(owner: str | None) -> list[sa.ColumnElement[bool]]:
    # Said in a way that lets an index be used in which the flag stands between.
    return [c.owner == owner, c.deleted.in_([False, True])]


def _sum(connection: Connection, owner: str | None) -> tuple[int, int] | None:
    """The sum there is, and since when changes are not in it."""
    row = connection.execute(sa.select(h.stored, h.counted_at).where(h.owner == (owner or ""))).one_or_none()
    if row is None or row.stored is None or row.counted_at is None:
        return None
    # A clock that was set back.
    return row.stored, min(row.counted_at, now()) - LATE


def _compared(connection: Connection, owner: str | None) -> tuple[int, int]:
    """What an owner holds by the sum that was just made, and by all images: in one statement, as others go on."""
    found = _sum(connection, owner)
    assert found is not None  # noqa: S101  (the caller made it)
    total, since = found
    counted = sa.case((s.owner == (owner or ""), s.bytes), else_=0)
    changed = sa.func.sum(sa.case((c.updated_at >= since, _STORED - counted), else_=0))
    both = sa.select(changed, sa.func.sum(_STORED)).select_from(images.outerjoin(stored_bytes, s.image_id == c.id))
    row = connection.execute(both.where(*_of(owner))).one()
    return total + int(row[0] or 0), int(row[1] or 0)


def _changed(connection: Connection, owner: str | None, since: int) -> list[Any]:
    """(image_id, bytes, owner, before) of what changed: what it is, and as whose and how much it was counted."""
    found = sa.select(c.id.label("image_id"), _STORED.label("bytes"), s.owner, s.bytes.label("before"))
    found = found.select_from(images.outerjoin(stored_bytes, s.image_id == c.id))
    return list(connection.execute(found.where(*_of(owner), c.updated_at >= since)).all())


def _counted(row: Any, owner: str | None) -> int:
    return int(row.before) if row.owner == (owner or "") else 0


def _note(connection: Connection, owner: str | None, changed: Collection[Any]) -> None:
    if not changed:
        return
    connection.execute(stored_bytes.delete().where(s.image_id.in_([row.image_id for row in changed])))
    rows = [{"image_id": row.image_id, "owner": owner or "", "bytes": row.bytes} for row in changed if row.bytes]
    if rows:
        connection.execute(stored_bytes.insert(), rows)


def _count_all(connection: Connection, owner: str | None) -> int:
    connection.execute(stored_bytes.delete().where(s.owner == (owner or "")))
    # What an older version made this owner's is still a part of another's sum.
    moved = sa.select(s.image_id, s.owner, s.bytes.label("before")).join(images, c.id == s.image_id)
    _forget(connection, connection.execute(moved.where(c.owner == owner)).all())
    mine = sa.select(c.id, sa.literal(owner or "").label("owner"), _STORED.label("bytes")).where(*_of(owner))
    # No row for what is nothing.
    counted = mine.subquery()
    connection.execute(
        stored_bytes.insert().from_select(["image_id", "owner", "bytes"], sa.select(counted).where(counted.c.bytes > 0))
    )
    return int(connection.execute(sa.select(sa.func.sum(s.bytes)).where(s.owner == (owner or ""))).scalar() or 0)


def _forget(connection: Connection, rows: Iterable[Any]) -> None:
    """Take images out of the sums of the owners as whose they were counted."""
    lost: dict[str, int] = {}
    ids = []
    for row in rows:
        ids.append(row.image_id)
        lost[row.owner] = lost.get(row.owner, 0) + int(row.before)
    if not ids:
        return
    for owner, size in sorted(lost.items()):
        connection.execute(holders.update().where(h.owner == owner).values(stored=h.stored - size))
    connection.execute(stored_bytes.delete().where(s.image_id.in_(ids)))


def _wait_for_turn(connection: Connection, owner: str) -> None:
    kind = connection.dialect.name
    new: Any = holders.insert().prefix_with("IGNORE", dialect="mysql").prefix_with("IGNORE", dialect="mariadb")
    if kind == "postgresql":
        new = postgresql.insert(holders).on_conflict_do_nothing()
    elif kind == "sqlite":
        # Of writing transactions there is one at a time.
        new = holders.insert().prefix_with("OR IGNORE")
    mine = sa.select(h.owner).where(h.owner == owner).with_for_update()
    if connection.execute(mine).first() is not None:
        return
    connection.execute(new, {"owner": owner})
    connection.execute(mine)

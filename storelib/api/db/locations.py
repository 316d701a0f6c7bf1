# SPDX-License-Identifier: Apache-2.0
"""The table of locations: where the data of images is.

A location is first made pending_delete, and forgotten when its data is gone. A leftover begins like that: data that an
upload which failed could not remove. The locations are a part of the image, so its version grows with them. The
functions beside the table are for transactions that hold the row of the image already.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db import clocks
from storelib.api.db.image_row import bump_version, lock
from storelib.api.db.records import Image, ImageLocation, NewLocation, Status
from storelib.api.db.rows import from_time, load_object, location_row, now
from storelib.api.db.schema import image_locations, processes
from storelib.api.db.table import Table, reads, writes
from storelib.api.errors import AlreadyExists, Conflict, LocationNotFound

c = image_locations.c
#: When a leftover became pending: before everything else, for none of the reasons to keep other data holds for it.
_LEFT = 0
_SELECT = sa.select(c.image_id, c.id, c.uri, c.metadata, c.pending_since)
_ACTIVE = c.pending_since.is_(None)
_PENDING = c.pending_since.is_not(None)
#: Being deleted by a process that is not known to be dead: the rows of those go when their work is taken over.
_CLAIMED = c.claimed_by.in_(sa.select(processes.c.id))


class Locations(Table):
    """Where the data of images is, and what of it is still to be deleted."""

    @writes
    def drop(self, connection: Connection, image_id: str, location_id: int) -> ImageLocation:
        """Make an active location pending_delete: nobody reads it any more and its data may be deleted.

        Raises ImageNotFound, LocationNotFound, and Conflict when it is the last. Of racers exactly one succeeds.
        """
        bump_version(connection, image_id)
        rows = connection.execute(_SELECT.where(c.image_id == image_id, _ACTIVE)).all()
        found = [_pair(row)[1] for row in rows if row.id == location_id]
        if not found:
            raise _no_location(image_id, location_id)
        if len(rows) == 1:
            raise Conflict(f"location {location_id} is the last one of image {image_id}")
        _make_pending(connection, image_id, c.id == location_id)
        return ImageLocation(found[0].uri, found[0].metadata, location_id, "pending_delete")

    @writes
    def restore(self, connection: Connection, image_id: str, location_id: int) -> None:
        """The data could not be deleted (in use): make a pending_delete location active again, behind the others.

        Raises ImageNotFound, LocationNotFound.
        """
        bump_version(connection, image_id)
        last = connection.execute(sa.select(sa.func.max(c.position)).where(c.image_id == image_id)).scalar()
        back = image_locations.update().where(c.id == location_id, c.image_id == image_id, _PENDING)
        back = back.values(pending_since=None, claimed_by=None, claim=None, position=(last or 0) + 1)
        if not connection.execute(back).rowcount:
            raise _no_location(image_id, location_id)

    @writes
    def claim(
        self,
        connection: Connection,
        image_id: str,
        location_id: int,
        process_id: str,
        token: str,
        unsure: Collection[str] = (),
    ) -> bool:
        """Say that ``process_id`` is about to delete the data at a pending_delete location; returns whether it may.

        It may not while another claim of a process that lives is there, unless its token is among ``unsure``: those of
        which the process does not know whether it gave them up. As long as a claim is there, no data comes to be at
        that URI as the image's.
        """
        free = sa.or_(c.claim.is_(None), c.claim.in_(unsure), ~_CLAIMED)
        claimed = image_locations.update().where(c.id == location_id, c.image_id == image_id, _PENDING, free)
        return connection.execute(claimed.values(claimed_by=process_id, claim=token)).rowcount == 1

    @reads
    def is_claimed(self, connection: Connection, image_id: str, location_id: int, token: str) -> bool:
        """Whether the claim with this token holds: no other process, which took this one for dead, has one since."""
        mine = sa.select(c.id).where(c.id == location_id, c.image_id == image_id, c.claim == token)
        return connection.execute(mine).first() is not None

    @writes
    def release(self, connection: Connection, image_id: str, location_id: int, token: str) -> None:
        """The data was not deleted: give the claim with this token up."""
        mine = image_locations.update().where(c.id == location_id, c.image_id == image_id, c.claim == token)
        connection.execute(mine.values(claimed_by=None, claim=None))

    @writes
    def forget(self, connection: Connection, image_id: str, location_id: int, token: str | None = None) -> None:
        """The data is gone: remove the row of a pending_delete location. Nothing happens if it is gone already.

        With a ``token`` only under that claim.
        """
        mine = [] if token is None else [c.claim == token]
        connection.execute(image_locations.delete().where(c.id == location_id, c.image_id == image_id, _PENDING, *mine))

    @reads
    def shared(self, connection: Connection) -> Collection[str]:
        """The URIs that several images have; looks at every location."""
        several = sa.func.count(sa.distinct(c.image_id)) > 1
        return set(connection.execute(sa.select(c.uri).where(_ACTIVE).group_by(c.uri).having(several)).scalars())

    @reads
    def is_shared(self, connection: Connection, uri: str, image_id: str) -> bool:
        """Whether another image has a location with this URI."""
        others = sa.select(c.id).where(c.uri == uri, c.image_id != image_id, _ACTIVE).limit(1)
        return connection.execute(others).first() is not None

    @writes
    def respell(self, connection: Connection, image_id: str, location: ImageLocation, uri: str) -> None:
        """Give an active location another URI of the same place; where the image has that already, once is enough.

        Nothing happens if the location is not as it was. Raises ImageNotFound.
        """
        lock(connection, image_id)
        mine = (c.id == location.id, c.image_id == image_id, c.uri == location.uri, _ACTIVE)
        if connection.execute(sa.select(c.id).where(*mine)).first() is None:
            return
        bump_version(connection, image_id)
        twice = sa.select(c.id).where(c.image_id == image_id, c.uri == uri, _ACTIVE)
        if connection.execute(twice).first() is not None:
            connection.execute(image_locations.delete().where(*mine))
        else:
            connection.execute(image_locations.update().where(*mine).values(uri=uri))

    @writes
    def detach(self, connection: Connection, image_id: str, location_id: int) -> None:
        """Take an active location from an image without deleting the data, which is another image's, too.

        Raises ImageNotFound, LocationNotFound.
        """
        bump_version(connection, image_id)
        mine = image_locations.delete().where(c.id == location_id, c.image_id == image_id, _ACTIVE)
        if not connection.execute(mine).rowcount:
            raise _no_location(image_id, location_id)

    @reads
    def pending_for(self, connection: Connection, image_id: str) -> Sequence[ImageLocation]:
        """The locations of one image whose data is still to be deleted."""
        return list_pending(connection, image_id)

    def pending(self, before: datetime.datetime | None = None, batch: int = 500) -> Iterator[tuple[str, ImageLocation]]:
        """(image id, location) of everything to be deleted, made pending before this time: what a scrubber works on.

        Read in batches, each in a transaction of its own.
        """
        moment = now() if before is None else from_time(before)
        after = 0
        while found := self._pending_after(moment, after, batch):
            yield from found
            after = found[-1][1].id

    @reads
    def claimed_by_dead(self, connection: Connection) -> Sequence[tuple[str, ImageLocation]]:
        """(image id, location) of what a process was deleting that is known to be dead.

        Its claim may come to be after others took its work over: PostgreSQL goes on with what it was sent.
        """
        # SQLite uses no index for IS NOT NULL.
        return [_pair(row) for row in connection.execute(_SELECT.where(c.claimed_by > "", ~_CLAIMED, _PENDING))]

    @writes
    def bring_back(self, connection: Connection, apart: float) -> None:
        """Have what became pending more than ``apart`` seconds in the future become so by now: a clock was ahead.

        The last of it now, all others as much earlier as they were.
        """
        last = connection.execute(sa.select(sa.func.max(c.pending_since))).scalar()
        if last is None or last <= now() + int(apart * 1_000_000):
            return
        moment = clocks.read(connection).latest
        ahead = image_locations.update().where(c.pending_since > moment + int(apart * 1_000_000))
        connection.execute(ahead.values(pending_since=c.pending_since - (last - moment)))

    @reads
    def _pending_after(
        self, connection: Connection, before: int, after: int, batch: int
    ) -> Sequence[tuple[str, ImageLocation]]:
        selected = _SELECT.where(c.pending_since < before, c.id > after).order_by(c.id).limit(batch)
        return [_pair(row) for row in connection.execute(selected)]


def insert(connection: Connection, image_id: str, location: NewLocation, position: int) -> ImageLocation:
    """Add a location. What is at that URI now is the image's again, and not to be deleted any more.

    Raises Conflict while its data is being deleted.
    """
    same = (c.image_id == image_id, c.uri == location.uri, _PENDING)
    if connection.execute(sa.select(c.id).where(*same, _CLAIMED)).first() is not None:
        raise Conflict(f"the data of image {image_id} at this place is being deleted; try again")
    connection.execute(image_locations.delete().where(*same))
    done = connection.execute(image_locations.insert(), location_row(image_id, location, position))
    key: Any = done.inserted_primary_key
    return ImageLocation(location.uri, dict(location.metadata), key[0])


def leave(connection: Connection, image_id: str, left: Sequence[NewLocation]) -> None:
    """Note leftovers, which are deleted later; one without a URI is somewhere in the store it names, if at all."""
    for location in left:
        connection.execute(image_locations.insert(), {**location_row(image_id, location, 0), "pending_since": _LEFT})


def list_pending(connection: Connection, image_id: str) -> list[ImageLocation]:
    """The locations of one image whose data is still to be deleted."""
    selected = _SELECT.where(c.image_id == image_id, _PENDING).order_by(c.position, c.id)
    return [_pair(row)[1] for row in connection.execute(selected)]


def list_for(connection: Connection, image_ids: Sequence[str]) -> list[tuple[str, ImageLocation]]:
    """(image id, location) for all locations of these images, pending ones too, by image and position."""
    if not image_ids:
        return []
    selected = _SELECT.where(c.image_id.in_(image_ids)).order_by(c.image_id, c.position, c.id)
    return [_pair(row) for row in connection.execute(selected)]


def replace(connection: Connection, image: Image, wanted: Sequence[NewLocation]) -> None:
    """Exactly these, in this order; what is missing becomes pending_delete."""
    had = {location.id: location for location in image.locations}
    kept = {location.id for location in wanted if isinstance(location, ImageLocation)}
    if unknown := kept - had.keys():
        raise LocationNotFound(f"image {image.id} has no location {min(unknown)}")
    uris = [location.uri for location in wanted]
    if len(set(uris)) < len(uris):
        raise AlreadyExists(f"image {image.id} cannot have the same location twice")
    if gone := sorted(had.keys() - kept):
        _make_pending(connection, image.id, c.id.in_(gone))
    for position, location in enumerate(wanted):
        if not isinstance(location, ImageLocation):
            insert(connection, image.id, location, position)
            continue
        changed = location_row(image.id, location, position)
        connection.execute(image_locations.update().where(c.id == location.id).values(**changed))


def append(connection: Connection, image_id: str, new: Sequence[NewLocation]) -> None:
    """Add locations behind the last; raises AlreadyExists if the image has one of the URIs."""
    rows = connection.execute(sa.select(c.uri, c.position).where(c.image_id == image_id, _ACTIVE)).all()
    uris = {row.uri for row in rows}
    position = max((row.position for row in rows), default=-1)
    for location in new:
        if location.uri in uris:
            raise AlreadyExists(f"image {image_id} has this location already")
        uris.add(location.uri)
        position += 1
        insert(connection, image_id, location, position)


def follow_status(connection: Connection, image_id: str, from_: Collection[Status], to: Status) -> None:
    """Make the locations pending_delete with the image, or active again when it comes back from that."""
    if to in ("pending_delete", "deleted"):
        _make_pending(connection, image_id, sa.true())
    elif "pending_delete" in from_:
        _revive(connection, image_id)


def revive(connection: Connection, image_id: str) -> int:
    """Make the locations active again that became pending_delete with the image; returns how many.

    None where one of them is being deleted.
    """
    busy = sa.select(c.id).where(c.image_id == image_id, c.claim.is_not(None), _CLAIMED)
    if connection.execute(busy).first() is not None:
        return 0
    return _revive(connection, image_id)


def _revive(connection: Connection, image_id: str) -> int:
    # Those that became pending together, with the image; one that was dropped before stays so.
    ever = (c.image_id == image_id, c.pending_since > _LEFT)
    since = connection.execute(sa.select(sa.func.max(c.pending_since)).where(*ever)).scalar()
    revived = image_locations.update().where(c.image_id == image_id, c.pending_since == since)
    return connection.execute(revived.values(pending_since=None, claimed_by=None, claim=None)).rowcount


def _make_pending(connection: Connection, image_id: str, which: sa.ColumnElement[bool]) -> None:
    connection.execute(
        image_locations.update().where(c.image_id == image_id, _ACTIVE, which).values(pending_since=now())
    )


def _pair(row: Any) -> tuple[str, ImageLocation]:
    status: Any = {None: "active", _LEFT: "leftover"}.get(row.pending_since, "pending_delete")
    return row.image_id, ImageLocation(row.uri, load_object(row.metadata), row.id, status)


def _no_location(image_id: str, location_id: int) -> LocationNotFound:
    return LocationNotFound(f"image {image_id} has no location {location_id}")

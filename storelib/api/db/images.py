# SPDX-License-Identifier: Apache-2.0
"""The table of images with their properties and tags: creating, changing what was read, going from status to status."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db import holdings, locations
from storelib.api.db.engine import Database
from storelib.api.db.image_cache import ImageCache
from storelib.api.db.image_row import bump_version, check_room, find, lock, update_and_bump, values_with_status
from storelib.api.db.listing import list_page
from storelib.api.db.records import AuditRow, Changes, Image, ImageLocation, NewImage, Page, Query, Status, Usage
from storelib.api.db.rows import (
    changeable,
    check_columns,
    check_text,
    columns_of,
    from_time,
    load,
    now,
    property_rows,
    tag_rows,
    to_image,
)
from storelib.api.db.schema import (
    cache_queue,
    cached_images,
    image_locations,
    image_properties,
    image_tags,
    images,
    uploads,
)
from storelib.api.db.statuses import ALLOWED, GONE, UPLOADING, check_transitions
from storelib.api.db.table import Table, reads, writes
from storelib.api.errors import (
    AlreadyExists,
    Conflict,
    ImageNotFound,
    StaleImage,
    StatusConflict,
    TagNotFound,
)

#: A property that says what an image was before it became pending_delete, where no upload says it.
STATUS_BEFORE = "os_glance_status_before"

_NEW = tuple(field.name for field in fields(NewImage) if field.name in images.c)

_INSERT = images.insert()
_INSERT_PROPERTIES = image_properties.insert()
_INSERT_TAGS = image_tags.insert()
_LOCATIONS_LEFT = sa.exists().where(image_locations.c.image_id == images.c.id)
_SOFT_DELETED = (images.c.deleted == sa.true(), images.c.status == "pending_delete")
_UPLOAD_LEFT = sa.exists().where(uploads.c.image_id == images.c.id)
_AUDITED = sa.select(*(images.c[name] for name in AuditRow._fields if name != "locations"))


class Images(Table):
    """Images with all that belongs to them."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._known = ImageCache()

    @writes
    def create(self, connection: Connection, image: NewImage, *, most: int | None = None) -> Image:
        """Record an image; raises AlreadyExists if the id was ever used (deleted images keep theirs until purged).

        Raises QuotaExceeded if its owner would hold more than ``most`` bytes in all.
        """
        moment = now()
        values: dict[str, Any] = {name: getattr(image, name) for name in _NEW}
        check_columns(values)
        properties, tags = property_rows(image.id, image.properties), tag_rows(image.id, image.tags)
        values.update(created_at=moment, updated_at=moment, deleted_at=None, deleted=False, version=1)
        try:
            connection.execute(_INSERT, values)
        except sa.exc.IntegrityError as error:
            raise AlreadyExists(f"image {image.id} exists already") from error
        if properties:
            connection.execute(_INSERT_PROPERTIES, properties)
        if tags:
            connection.execute(_INSERT_TAGS, tags)
        recorded = [
            locations.insert(connection, image.id, location, position)
            for position, location in enumerate(image.locations)
        ]
        holdings.check(connection, image.id, most)
        return to_image(columns_of(values), dict(image.properties), image.tags, recorded)

    @reads
    def get(self, connection: Connection, image_id: str, *, deleted: bool = False) -> Image:
        """The image, a deleted one only with ``deleted``; raises ImageNotFound."""
        return load(connection, image_id, deleted=deleted, known=self._known)

    @reads
    def list(self, connection: Connection, query: Query) -> Page:
        """One page of what the query's caller may see. Raises InvalidMarker, and BadRequest for bad values."""
        return list_page(connection, query, self._known)

    @writes
    def update(self, connection: Connection, image: Image, changes: Changes, *, most: int | None = None) -> Image:
        """Apply ``changes`` if nobody changed the image since it was read, else StaleImage: read again and repeat.

        Raises QuotaExceeded if its owner would hold more than ``most`` bytes in all.
        Raises ImageNotFound when it was deleted, StatusConflict when ``changes.status`` is not allowed from here.
        """
        values = changeable(changes.values)
        if changes.status is not None and changes.status != image.status:
            if changes.status not in ALLOWED[image.status]:
                raise StatusConflict(
                    f"image {image.id} is {image.status} and cannot become {changes.status}", status=image.status
                )
            values = {**values_with_status(changes.status), **values}
        if not update_and_bump(connection, image.id, values, images.c.version == image.version):
            find(connection, image.id)
            raise StaleImage(f"image {image.id} was changed by another request")
        if values.get("owner", image.owner) != image.owner:
            holdings.forget(connection, [image.id], [image.owner])
        if changes.properties is not None:
            rows = property_rows(image.id, changes.properties)
            _put_properties(
                connection,
                image.id,
                [row for row in rows if image.properties.get(row["name"], row) != row["value"]],
                image.properties.keys() - changes.properties.keys(),
            )
        if changes.tags is not None:
            _put_tags(connection, image.id, changes.tags - set(image.tags), set(image.tags) - changes.tags)
        if changes.status is not None and changes.status != image.status:
            locations.follow_status(connection, image.id, (image.status,), changes.status)
        if changes.locations is not None:
            locations.replace(connection, image, changes.locations)
        holdings.check(connection, image.id, most)
        return load(connection, image.id, deleted=True)

    @writes
    def transition(
        self,
        connection: Connection,
        /,
        image_id: str,
        *,
        from_: Collection[Status],
        to: Status,
        **values: Any,
    ) -> Image:
        """Set the status to ``to`` if it is one of ``from_``; of racers exactly one succeeds. ``values`` as in Changes.

        To pending_delete and deleted: the active locations become pending_delete too, and stay so until
        ``Locations.forget``; from pending_delete back to active or deactivated they come back. To deleted: deleted and
        deleted_at are set. To queued: size, checksum, hash, virtual_size are cleared unless given.
        Raises ImageNotFound, StatusConflict (with the status it has); ValueError for a transition that the table in
        ``statuses`` does not have, or pending_delete among other statuses in ``from_``.
        """
        return change_status(connection, image_id, from_, to, values)

    @writes
    def soft_delete(self, connection: Connection, image_id: str, *, from_: Collection[Status]) -> Image:
        """Delete the image, whose data stays for a time: pending_delete and deleted. Its locations are pending_delete.

        Raises ImageNotFound, StatusConflict.
        """
        before = lock(connection, image_id)
        change_status(connection, image_id, from_, "pending_delete")
        note_status(connection, image_id, before)
        gone = images.update().where(images.c.id == image_id).values(deleted=True, deleted_at=now())
        connection.execute(gone)
        return load(connection, image_id, deleted=True)

    @writes
    def restore(self, connection: Connection, image_id: str) -> Image:
        """Make an image what it was before that, active or deactivated, with what is left of its data.

        Raises ImageNotFound for any other, Conflict where none of its data is left or some is being deleted.
        """
        back = images.update().where(images.c.id == image_id, *_SOFT_DELETED)
        c = image_properties.c
        noted = sa.select(c.value).where(c.image_id == image_id, c.name == STATUS_BEFORE)
        before = connection.execute(noted).scalar() or "active"
        values = {"status": before, "deleted": False, "deleted_at": None, "version": images.c.version + 1}
        if not connection.execute(back.values(**values, updated_at=now())).rowcount:
            raise ImageNotFound(f"there is no deleted image {image_id} whose data is kept")
        if not locations.revive(connection, image_id):
            raise Conflict(f"the data of image {image_id} is gone, or being deleted")
        note_status(connection, image_id, "active")
        return load(connection, image_id)

    @writes
    def finish_soft_deletes(self, connection: Connection, limit: int = 1000) -> int:
        """Make up to ``limit`` soft-deleted images deleted whose data is gone; returns how many."""
        ids = connection.execute(sa.select(images.c.id).where(*_SOFT_DELETED, ~_LOCATIONS_LEFT).limit(limit)).scalars()
        gone = list(ids)
        if gone:
            connection.execute(images.update().where(images.c.id.in_(gone), *_SOFT_DELETED).values(status="deleted"))
        return len(gone)

    @writes
    def add_tag(self, connection: Connection, image_id: str, tag: str, *, limit: int | None = None) -> None:
        """Tag the image; nothing happens if it has the tag. Raises ImageNotFound, LimitExceeded beyond ``limit``.

        Tags and single properties need no version: adding one cannot undo another's change.
        """
        check_text("a tag", tag, 255)
        bump_version(connection, image_id)
        c = image_tags.c
        if connection.execute(sa.select(c.tag).where(c.image_id == image_id, c.tag == tag)).first() is not None:
            return
        check_room(connection, image_tags, image_id, limit, "tags")
        connection.execute(_INSERT_TAGS, {"image_id": image_id, "tag": tag})

    @writes
    def remove_tag(self, connection: Connection, image_id: str, tag: str) -> None:
        """Take a tag from the image; raises ImageNotFound, TagNotFound."""
        check_text("a tag", tag, 65535)
        bump_version(connection, image_id)
        c = image_tags.c
        if not connection.execute(image_tags.delete().where(c.image_id == image_id, c.tag == tag)).rowcount:
            raise TagNotFound(f"image {image_id} has no tag {tag}")

    @writes
    def set_properties(
        self,
        connection: Connection,
        image_id: str,
        values: Mapping[str, str | None],
        remove: Collection[str] = (),
    ) -> None:
        """Set and remove single properties whatever else changes; raises ImageNotFound."""
        change_properties(connection, image_id, values, remove)

    @reads
    def count(self, connection: Connection, owner: str | None) -> int:
        """How many images the owner has that are not deleted, pending_delete or killed."""
        c = images.c
        # With the flag, which an index has behind the owner.
        counted = sa.select(sa.func.count()).where(c.owner == owner, c.deleted == sa.false(), c.status.not_in(GONE))
        return int(connection.execute(counted.select_from(images)).scalar_one())

    def held(self, owner: str | None) -> int:
        """Bytes that the owner has in stores and has staged."""
        return self.stored(owner) + self.staged(owner)

    def stored(self, owner: str | None) -> int:
        """Bytes that the owner has in stores: size times active locations. By a sum that is kept, and made here."""
        found = self._stored_by_sum(owner)
        return self._count_stored(owner) if found is None else found

    @reads
    def staged(self, connection: Connection, owner: str | None) -> int:
        """Bytes that the owner has staged."""
        return holdings.staged(connection, owner)

    @reads
    def uploading(self, connection: Connection, owner: str | None) -> int:
        """How many images of the owner get data now."""
        c = images.c
        mine = (c.owner == owner, c.deleted == sa.false(), c.status.in_(UPLOADING))
        return int(connection.execute(sa.select(sa.func.count()).select_from(images).where(*mine)).scalar_one())

    @reads
    def _stored_by_sum(self, connection: Connection, owner: str | None) -> int | None:
        return holdings.stored_by_sum(connection, owner)

    @writes
    def _count_stored(self, connection: Connection, owner: str | None) -> int:
        return holdings.count(connection, owner)

    @reads
    def owners_with_sums(self, connection: Connection) -> Sequence[str | None]:
        """The owners of whom it is kept how many bytes they have in stores."""
        return holdings.owners(connection)

    @writes
    def recount(self, connection: Connection, owner: str | None) -> tuple[int, int]:
        """Make the sum of an owner's bytes in stores anew; returns what it said before and what it is.

        They differ only by a mistake, of this or another program.
        """
        return holdings.recount(connection, owner)

    def usage(self, owner: str | None) -> Usage:
        """What the owner holds."""
        return Usage(self.stored(owner), self.staged(owner), self.count(owner), self.uploading(owner))

    @writes
    def purge(self, connection: Connection, before: datetime.datetime, limit: int = 1000) -> int:
        """Remove for good up to ``limit`` rows of images deleted before this time that have no location left.

        Returns how many; what belongs to them goes with them. One that is still being written stays.
        """
        c = images.c
        ids = connection.execute(
            sa.select(c.id)
            .where(c.deleted == sa.true(), c.deleted_at < from_time(before), ~_LOCATIONS_LEFT, ~_UPLOAD_LEFT)
            .order_by(c.deleted_at)
            .limit(limit)
        ).scalars()
        gone = list(ids)
        if gone:
            holdings.forget(connection, gone)
            connection.execute(images.delete().where(c.id.in_(gone)))
            # Hosts that are there tell of their caches themselves; those that were taken away do not.
            connection.execute(cached_images.delete().where(cached_images.c.image_id.in_(gone)))
            connection.execute(cache_queue.delete().where(cache_queue.c.image_id.in_(gone)))
        return len(gone)

    def in_statuses(self, statuses: Collection[Status], batch: int = 500) -> Iterator[str]:
        """The ids of all images in these statuses, read in batches (start-up recovery: pending_delete)."""
        after = ""
        while found := self._ids_after(statuses, after, batch):
            yield from found
            after = found[-1]

    @reads
    def _ids_after(self, connection: Connection, statuses: Collection[Status], after: str, batch: int) -> Sequence[str]:
        c = images.c
        selected = sa.select(c.id).where(
            c.deleted.in_(sorted({status == "deleted" for status in statuses})),
            c.status.in_(sorted(statuses)),
            c.id > after,
        )
        return connection.execute(selected.order_by(c.id).limit(batch)).scalars().all()

    def audit(self, batch: int = 1000, *, after: str = "") -> Iterator[AuditRow]:
        """Every image that is not deleted, or still has locations, in the order of ids, in bounded memory.

        Only those behind the id ``after``.
        """
        while found := self._audit_after(after, batch):
            yield from found
            after = found[-1].id

    @reads
    def _audit_after(self, connection: Connection, after: str, batch: int) -> Sequence[AuditRow]:
        wanted = (images.c.deleted == sa.false()) | _LOCATIONS_LEFT
        rows = connection.execute(_AUDITED.where(images.c.id > after, wanted).order_by(images.c.id).limit(batch)).all()
        found: dict[str, list[ImageLocation]] = {}
        for image_id, location in locations.list_for(connection, [row.id for row in rows]):
            found.setdefault(image_id, []).append(location)
        return [AuditRow._make((*row, tuple(found.get(row.id, ())))) for row in rows]


def change_status(
    connection: Connection,
    image_id: str,
    from_: Collection[Status],
    to: Status,
    values: Mapping[str, Any] = MappingProxyType({}),
) -> Image:
    """``Images.transition`` as a part of another transaction."""
    check_transitions(from_, to)
    values = {**values_with_status(to), **changeable(values)}
    if not update_and_bump(connection, image_id, values, images.c.status.in_(sorted(from_))):
        status = lock(connection, image_id)
        if status not in from_:
            raise StatusConflict(f"image {image_id} is {status} and cannot become {to}", status=status)
        # It came into this status between the two statements; now that it is held, it stays in it.
        update_and_bump(connection, image_id, values)
    locations.follow_status(connection, image_id, from_, to)
    if "pending_delete" in from_:
        # The deletion is done; a copy that is still being written keeps its row.
        connection.execute(uploads.delete().where(uploads.c.image_id == image_id, uploads.c.status == "pending_delete"))
    return load(connection, image_id, deleted=True)


def note_status(connection: Connection, image_id: str, status: Status) -> None:
    """Note what an image is to be when it is no longer pending_delete; nothing is noted of one that was active."""
    noted = {} if status == "active" else {STATUS_BEFORE: status}
    _put_properties(connection, image_id, property_rows(image_id, noted), {STATUS_BEFORE})


def change_properties(
    connection: Connection, image_id: str, values: Mapping[str, str | None], remove: Collection[str]
) -> None:
    """``Images.set_properties`` as a part of another transaction."""
    rows = property_rows(image_id, values)
    bump_version(connection, image_id)
    _put_properties(connection, image_id, rows, set(remove) - values.keys())


def _put_properties(connection: Connection, image_id: str, rows: list[dict[str, Any]], remove: Collection[str]) -> None:
    gone = sorted({*remove, *(row["name"] for row in rows)})
    if gone:
        c = image_properties.c
        connection.execute(image_properties.delete().where(c.image_id == image_id, c.name.in_(gone)))
    if rows:
        connection.execute(_INSERT_PROPERTIES, rows)


def _put_tags(connection: Connection, image_id: str, add: Iterable[str], remove: Collection[str]) -> None:
    rows = tag_rows(image_id, sorted(add))
    if remove:
        c = image_tags.c
        connection.execute(image_tags.delete().where(c.image_id == image_id, c.tag.in_(sorted(remove))))
    if rows:
        connection.execute(_INSERT_TAGS, rows)

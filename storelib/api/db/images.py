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

from storelib.api.db import locations
from storelib.api.db.engine import Database
from storelib.api.db.image_cache import ImageCache
from storelib.api.db.image_row import bump_version, find, lock, update_and_bump, values_with_status
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
from storelib.api.db.schema import image_locations, image_properties, image_tags, images, uploads
from storelib.api.db.statuses import ALLOWED, GONE, UPLOADING, check_transitions
from storelib.api.db.table import Table, reads, writes
from storelib.api.errors import AlreadyExists, LimitExceeded, StaleImage, StatusConflict, TagNotFound

_NEW = tuple(field.name for field in fields(NewImage) if field.name in images.c)

_INSERT = images.insert()
_INSERT_PROPERTIES = image_properties.insert()
_INSERT_TAGS = image_tags.insert()
_LOCATIONS_LEFT = sa.exists().where(image_locations.c.image_id == images.c.id)
_UPLOAD_LEFT = sa.exists().where(uploads.c.image_id == images.c.id)
_AUDITED = sa.select(*(images.c[name] for name in AuditRow._fields if name != "locations"))


class Images(Table):
    """Images with all that belongs to them."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._known = ImageCache()

    @writes
    def create(self, connection: Connection, image: NewImage) -> Image:
        """Record an image; raises AlreadyExists if the id was ever used (deleted images keep theirs until purged)."""
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
    def update(self, connection: Connection, image: Image, changes: Changes) -> Image:
        """Apply ``changes`` if nobody changed the image since it was read, else StaleImage: read again and repeat.

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
    def add_tag(self, connection: Connection, image_id: str, tag: str, *, limit: int | None = None) -> None:
        """Tag the image; nothing happens if it has the tag. Raises ImageNotFound, LimitExceeded beyond ``limit``.

        Tags and single properties need no version: adding one cannot undo another's change.
        """
        check_text("a tag", tag, 255)
        bump_version(connection, image_id)
        tags = set(connection.execute(sa.select(image_tags.c.tag).where(image_tags.c.image_id == image_id)).scalars())
        if tag in tags:
            return
        if limit is not None and len(tags) >= limit:
            raise LimitExceeded(f"image {image_id} has {len(tags)} tags already; the limit is {limit}")
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

    @reads
    def usage(self, connection: Connection, owner: str | None, *, without: str | None = None) -> Usage:
        """What the owner holds, one image (``without``) left out if asked."""
        c = images.c
        mine: list[sa.ColumnElement[bool]] = [c.owner == owner, c.deleted == sa.false()]
        if without is not None:
            mine.append(c.id != without)

        def scalar(selected: Any) -> int:
            return int(connection.execute(selected).scalar_one() or 0)

        stored = (
            sa.select(sa.func.sum(c.size))
            .select_from(images.join(image_locations, image_locations.c.image_id == c.id))
            .where(*mine, c.status.not_in(GONE), image_locations.c.pending_since.is_(None))
        )
        count = sa.select(sa.func.count()).select_from(images)
        return Usage(
            total_size=scalar(stored),
            stage_size=scalar(sa.select(sa.func.sum(c.size)).where(*mine, c.status.in_(["uploading", "importing"]))),
            images=scalar(count.where(*mine, c.status.not_in(GONE))),
            uploading=scalar(count.where(*mine, c.status.in_(UPLOADING))),
        )

    @writes
    def purge(self, connection: Connection, before: datetime.datetime, limit: int = 1000) -> int:
        """Remove for good up to ``limit`` rows of images deleted before this time that have no location left.

        Returns how many; what belongs to them goes with them. One that is still being written stays.
        """
        c = images.c
        ids = connection.execute(
            sa.select(c.id)
            .where(c.deleted == sa.true(), c.deleted_at < from_time(before), ~_LOCATIONS_LEFT, ~_UPLOAD_LEFT)
            .limit(limit)
        ).scalars()
        gone = list(ids)
        if gone:
            connection.execute(images.delete().where(c.id.in_(gone)))
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

    def audit(self, batch: int = 1000) -> Iterator[AuditRow]:
        """Every image that is not deleted, or still has locations, in the order of ids, in bounded memory."""
        after = ""
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

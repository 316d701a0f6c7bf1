# SPDX-License-Identifier: Apache-2.0
"""SQL for images with their properties and tags: creating, changing what was read, going from status to status."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db import locations
from storelib.api.db.records import AuditRow, Changes, Image, ImageLocation, NewImage, NewLocation, Status, Usage
from storelib.api.db.rows import (
    changeable,
    check_columns,
    check_text,
    columns_of,
    load,
    no_image,
    now,
    property_rows,
    tag_rows,
    to_image,
)
from storelib.api.db.schema import image_locations, image_properties, image_tags, images, uploads
from storelib.api.db.statuses import ALLOWED, GONE, UPLOADING, check_transitions
from storelib.api.errors import AlreadyExists, LimitExceeded, StaleImage, StatusConflict, TagNotFound

_NEW = tuple(field.name for field in fields(NewImage) if field.name in images.c)
#: What describes data, and goes when there is none.
_OF_DATA = ("size", "virtual_size", "checksum", "os_hash_algo", "os_hash_value")

_INSERT = images.insert()
_INSERT_PROPERTIES = image_properties.insert()
_INSERT_TAGS = image_tags.insert()
_STATUS = sa.select(images.c.status, images.c.deleted, images.c.version).where(images.c.id == sa.bindparam("image_id"))
_LOCKED_STATUS = _STATUS.with_for_update()


def create(connection: Connection, image: NewImage) -> Image:
    """Insert all of it."""
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
        locations.insert(connection, image.id, location, position) for position, location in enumerate(image.locations)
    ]
    return to_image(columns_of(values), dict(image.properties), image.tags, recorded)


def update(connection: Connection, image: Image, changes: Changes) -> Image:
    """Change it if it still is what was read."""
    values = changeable(changes.values)
    if changes.status is not None and changes.status != image.status:
        if changes.status not in ALLOWED[image.status]:
            raise StatusConflict(
                f"image {image.id} is {image.status} and cannot become {changes.status}", status=image.status
            )
        values = {**values_with_status(changes.status), **values}
    if not update_and_bump(connection, image.id, values, images.c.version == image.version):
        _find(connection, image.id)
        raise StaleImage(f"image {image.id} was changed by somebody else")
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


def transition(
    connection: Connection, image_id: str, from_: Collection[Status], to: Status, version: int | None, values: Any
) -> Image:
    """Set the status once."""
    check_transitions(from_, to)
    values = {**values_with_status(to), **changeable(values)}
    conditions: list[sa.ColumnElement[bool]] = [images.c.status.in_(sorted(from_))]
    if version is not None:
        conditions.append(images.c.version == version)
    if not update_and_bump(connection, image_id, values, *conditions):
        status = lock(connection, image_id)
        if status not in from_:
            raise StatusConflict(f"image {image_id} is {status} and cannot become {to}", status=status)
        if version is not None:
            raise StaleImage(f"image {image_id} was changed by somebody else")
        # It came into this status between the two statements; now that it is held, it stays in it.
        update_and_bump(connection, image_id, values)
    locations.follow_status(connection, image_id, from_, to)
    if "pending_delete" in from_:
        # Whoever deleted it is done; a copy that is still being written keeps its row.
        connection.execute(uploads.delete().where(uploads.c.image_id == image_id, uploads.c.status == "pending_delete"))
    return load(connection, image_id, deleted=True)


def values_with_status(to: Status) -> dict[str, Any]:
    """What changes with the status."""
    values: dict[str, Any] = {"status": to}
    if to == "queued":
        values.update(dict.fromkeys(_OF_DATA))
    if to == "deleted":
        values.update(deleted=True, deleted_at=now())
    return values


def update_and_bump(
    connection: Connection, image_id: str, values: Mapping[str, Any], *conditions: sa.ColumnElement[bool]
) -> bool:
    """Change the row if the conditions hold, with a new version, and hold it until the end of the transaction."""
    statement = (
        images.update()
        .where(images.c.id == image_id, images.c.deleted == sa.false(), *conditions)
        .values(**values, version=images.c.version + 1, updated_at=now())
    )
    return connection.execute(statement).rowcount == 1


def bump_version(connection: Connection, image_id: str) -> None:
    """``update_and_bump`` alone; raises ImageNotFound."""
    if not update_and_bump(connection, image_id, {}):
        raise no_image(image_id)


def lock(connection: Connection, image_id: str) -> Status:
    """Hold the row as it is; answers the status, raises ImageNotFound."""
    return _status(connection, image_id, _LOCKED_STATUS)


def _find(connection: Connection, image_id: str) -> Status:
    return _status(connection, image_id, _STATUS)


def _status(connection: Connection, image_id: str, statement: sa.Select[Any]) -> Status:
    row = connection.execute(statement, {"image_id": image_id}).one_or_none()
    if row is None or row.deleted:
        raise no_image(image_id)
    status: Status = row.status
    return status


# -- properties and tags


def set_properties(
    connection: Connection, image_id: str, values: Mapping[str, str | None], remove: Iterable[str]
) -> None:
    """Some of them."""
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


def add_tag(connection: Connection, image_id: str, tag: str, limit: int | None) -> None:
    """One more."""
    check_text("a tag", tag, 255)
    bump_version(connection, image_id)
    tags = set(connection.execute(sa.select(image_tags.c.tag).where(image_tags.c.image_id == image_id)).scalars())
    if tag in tags:
        return
    if limit is not None and len(tags) >= limit:
        raise LimitExceeded(f"image {image_id} has {len(tags)} tags already; the limit is {limit}")
    connection.execute(_INSERT_TAGS, {"image_id": image_id, "tag": tag})


def remove_tag(connection: Connection, image_id: str, tag: str) -> None:
    """One less."""
    check_text("a tag", tag, 65535)
    bump_version(connection, image_id)
    c = image_tags.c
    if not connection.execute(image_tags.delete().where(c.image_id == image_id, c.tag == tag)).rowcount:
        raise TagNotFound(f"image {image_id} has no tag {tag}")


# -- locations, which are a part of the image: its version grows with them


def append_location(connection: Connection, image_id: str, location: NewLocation, limit: int | None) -> ImageLocation:
    """Behind the last, of an image that has data."""
    status = lock(connection, image_id)
    if status not in ("active", "deactivated"):
        raise StatusConflict(f"image {image_id} is {status} and gets no further location", status=status)
    update_and_bump(connection, image_id, {})
    return locations.append(connection, image_id, [location], limit)[0]


def drop_location(connection: Connection, image_id: str, location_id: int, keep_last: bool) -> ImageLocation:
    """Active to pending."""
    bump_version(connection, image_id)
    return locations.drop(connection, image_id, location_id, keep_last)


def restore_location(connection: Connection, image_id: str, location_id: int) -> None:
    """Pending to active."""
    bump_version(connection, image_id)
    locations.restore(connection, image_id, location_id)


def update_location(connection: Connection, image_id: str, location_id: int, metadata: Mapping[str, Any]) -> None:
    """Other metadata."""
    bump_version(connection, image_id)
    locations.set_metadata(connection, image_id, location_id, metadata)


# -- how much, and everything


def image_count(connection: Connection, owner: str | None) -> int:
    """Images that count."""
    c = images.c
    # With the flag, which an index has behind the owner.
    counted = sa.select(sa.func.count()).where(c.owner == owner, c.deleted == sa.false(), c.status.not_in(GONE))
    return int(connection.execute(counted.select_from(images)).scalar_one())


def usage(connection: Connection, owner: str | None, without: str | None) -> Usage:
    """All four numbers."""
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


_LOCATIONS_LEFT = sa.exists().where(image_locations.c.image_id == images.c.id)
_UPLOAD_LEFT = sa.exists().where(uploads.c.image_id == images.c.id)


def purge(connection: Connection, before: int, limit: int) -> int:
    """Remove deleted rows that nothing has to be done about any more; what belongs to them goes with them."""
    c = images.c
    ids = connection.execute(
        sa.select(c.id)
        .where(c.deleted == sa.true(), c.deleted_at < before, ~_LOCATIONS_LEFT, ~_UPLOAD_LEFT)
        .limit(limit)
    ).scalars()
    gone = list(ids)
    if gone:
        connection.execute(images.delete().where(c.id.in_(gone)))
    return len(gone)


def ids_in(connection: Connection, statuses: Collection[Status], after: str, batch: int) -> list[str]:
    """The next ids in these statuses."""
    c = images.c
    selected = sa.select(c.id).where(
        c.deleted.in_(sorted({status == "deleted" for status in statuses})),
        c.status.in_(sorted(statuses)),
        c.id > after,
    )
    return list(connection.execute(selected.order_by(c.id).limit(batch)).scalars())


_AUDITED = sa.select(*(images.c[name] for name in AuditRow._fields if name != "locations"))


def audited(connection: Connection, after: str, batch: int) -> list[AuditRow]:
    """The next rows of an audit."""
    wanted = (images.c.deleted == sa.false()) | _LOCATIONS_LEFT
    rows = connection.execute(_AUDITED.where(images.c.id > after, wanted).order_by(images.c.id).limit(batch)).all()
    found: dict[str, list[ImageLocation]] = {}
    for image_id, location in locations.of(connection, [row.id for row in rows]):
        found.setdefault(image_id, []).append(location)
    return [AuditRow._make((*row, tuple(found.get(row.id, ())))) for row in rows]

# SPDX-License-Identifier: Apache-2.0
"""The row of one image inside a transaction: held as it is, changed, or only given its next version.

What belongs to an image (properties, tags, locations, its upload) is changed only while its row is held.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db.records import Status
from storelib.api.db.rows import no_image, now
from storelib.api.db.schema import images
from storelib.api.errors import LimitExceeded

#: What describes data, and goes when there is none.
_OF_DATA = ("size", "virtual_size", "checksum", "os_hash_algo", "os_hash_value")
_STATUS = sa.select(images.c.status, images.c.deleted, images.c.version).where(images.c.id == sa.bindparam("image_id"))
_LOCKED_STATUS = _STATUS.with_for_update()


def lock(connection: Connection, image_id: str) -> Status:
    """Hold the row as it is until the end of the transaction; returns the status, raises ImageNotFound."""
    return _status(connection, image_id, _LOCKED_STATUS)


def find(connection: Connection, image_id: str) -> Status:
    """The status, without holding the row; raises ImageNotFound."""
    return _status(connection, image_id, _STATUS)


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
    """Give the image its next version and hold its row until the end of the transaction; raises ImageNotFound."""
    if not update_and_bump(connection, image_id, {}):
        raise no_image(image_id)


def check_room(connection: Connection, table: sa.Table, image_id: str, limit: int | None, what: str) -> None:
    """Raise LimitExceeded if the image, whose row is held, has ``limit`` rows in this table; None is no limit.

    No more of them are looked at than that.
    """
    if limit is None:
        return
    some = sa.select(table.c.image_id).where(table.c.image_id == image_id).limit(limit).subquery()
    count = connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one()
    if count >= limit:
        raise LimitExceeded(f"image {image_id} has {count} {what} already; the limit is {limit}")


def values_with_status(to: Status) -> dict[str, Any]:
    """The columns that change when the status becomes ``to``."""
    values: dict[str, Any] = {"status": to}
    if to == "queued":
        values.update(dict.fromkeys(_OF_DATA))
    if to == "deleted":
        values.update(deleted=True, deleted_at=now())
    return values


def _status(connection: Connection, image_id: str, statement: sa.Select[Any]) -> Status:
    row = connection.execute(statement, {"image_id": image_id}).one_or_none()
    if row is None or row.deleted:
        raise no_image(image_id)
    status: Status = row.status
    return status

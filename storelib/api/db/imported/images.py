# SPDX-License-Identifier: Apache-2.0
"""Images of another service's catalogue in the tables of images and of what belongs to them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db import holdings
from storelib.api.db.imported.entry import Entries, Entry, Row, insert_all
from storelib.api.db.rows import check_columns, check_long_text, check_text, now, property_rows, tag_rows
from storelib.api.db.schema import image_locations, image_members, image_properties, image_tags, images, uploads

#: The row of an image, without what is counted here.
COLUMNS = tuple(column.name for column in images.c if column.name != "version")
LOCATION = ("uri", "metadata", "pending_since")
MEMBER = ("member", "status", "can_share", "created_at", "updated_at")

_CHILDREN = (image_properties, image_tags, image_locations, image_members)


@dataclass(frozen=True)
class ImageEntry(Entry):
    """An image: the columns of its row, and the rows of what belongs to it, without its id.

    ``tags`` and ``members`` are sorted, ``locations`` in their order, with those that are to be deleted.
    """

    row: Row
    properties: Mapping[str, str | None]
    tags: Sequence[str]
    locations: Sequence[Row]
    members: Sequence[Row]

    @property
    def key(self) -> str:
        """The image's id."""
        return str(self.row["id"])

    @property
    def content(self) -> Any:
        """All but the number of its version, which is counted here."""
        return [self.row, self.properties, self.tags, self.locations, self.members]

    def check(self) -> None:
        """Raise BadRequest for what is too long, too large, or no text."""
        check_columns(self.row)
        property_rows(self.key, self.properties)
        tag_rows(self.key, self.tags)
        for location in self.locations:
            check_long_text("a location", location["uri"])
            check_long_text("the metadata of a location", location["metadata"])
        for member in self.members:
            check_text("a member", member["member"], 255)


class ImageEntries(Entries):
    """Images by their ids."""

    def present(self, connection: Connection, keys: Collection[str], *, lock: bool) -> set[str]:
        """Which of these ids there are."""
        select = sa.select(images.c.id).where(images.c.id.in_(keys))
        # In one order, so that two that hold several do not wait for each other.
        return set(connection.execute(select.order_by(images.c.id).with_for_update() if lock else select).scalars())

    def digests(self, connection: Connection, keys: Collection[str]) -> dict[str, str]:
        """What these images are; one whose data is being written or deleted is like no other."""
        wanted = sa.select(*(images.c[name] for name in COLUMNS))
        wanted = wanted.where(images.c.id.in_(keys), images.c.status != "deleted")
        rows = {row["id"]: dict(row) for row in connection.execute(wanted).mappings()}
        if not rows:
            return {}
        ids = list(rows)
        busy = set(connection.execute(sa.select(uploads.c.image_id).where(uploads.c.image_id.in_(ids))).scalars())
        p, t, at, m = (table.c for table in _CHILDREN)
        properties = _grouped(connection, sa.select(p.image_id, p.name, p.value).where(p.image_id.in_(ids)))
        tags = _grouped(connection, sa.select(t.image_id, t.tag).where(t.image_id.in_(ids)))
        places = sa.select(at.image_id, *(at[name] for name in LOCATION)).where(at.image_id.in_(ids))
        locations = _grouped(connection, places.order_by(at.position, at.id))
        memberships = sa.select(m.image_id, *(m[name] for name in MEMBER)).where(m.image_id.in_(ids))
        members = _grouped(connection, memberships)
        return {
            key: ""
            if key in busy
            else ImageEntry(
                row,
                dict(properties.get(key, ())),
                sorted(tag for (tag,) in tags.get(key, ())),
                [dict(zip(LOCATION, values, strict=True)) for values in locations.get(key, ())],
                [dict(zip(MEMBER, values, strict=True)) for values in sorted(members.get(key, ()))],
            ).digest
            for key, row in rows.items()
        }

    def insert(self, connection: Connection, entries: Sequence[ImageEntry]) -> None:
        """Make images with all that belongs to them."""
        insert_all(connection, images, [{**entry.row, "version": 1} for entry in entries])
        holdings.begin_anew(connection, {entry.row["owner"] for entry in entries})
        _insert_children(connection, entries)

    def replace(self, connection: Connection, entries: Sequence[ImageEntry]) -> None:
        """Make the images like these, each with its next version."""
        for table in _CHILDREN:
            connection.execute(table.delete().where(table.c.image_id.in_([entry.key for entry in entries])))
        for entry in entries:
            row = {**entry.row, "version": images.c.version + 1}
            connection.execute(images.update().where(images.c.id == entry.key).values(**row))
        # Their times are of the other service, and tell nothing of when they came to be what they are here.
        holdings.forget(connection, [entry.key for entry in entries])
        holdings.begin_anew(connection, {entry.row["owner"] for entry in entries})
        _insert_children(connection, entries)

    def delete(self, connection: Connection, keys: Collection[str]) -> None:
        """Make the images deleted ones without data."""
        moment = now()
        values = {"status": "deleted", "deleted": True, "deleted_at": moment, "updated_at": moment}
        gone = images.update().where(images.c.id.in_(keys))
        connection.execute(gone.values(**values, version=images.c.version + 1))
        connection.execute(image_locations.delete().where(image_locations.c.image_id.in_(keys)))


def _grouped(connection: Connection, select: Any) -> dict[str, list[tuple[Any, ...]]]:
    """Rows by their first column, without it."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for key, *values in connection.execute(select):
        found.setdefault(key, []).append(tuple(values))
    return found


def _insert_children(connection: Connection, entries: Sequence[ImageEntry]) -> None:
    insert_all(
        connection, image_properties, [row for each in entries for row in property_rows(each.key, each.properties)]
    )
    insert_all(connection, image_tags, [row for each in entries for row in tag_rows(each.key, each.tags)])
    insert_all(
        connection,
        image_locations,
        [
            {"image_id": each.key, "position": position, **location}
            for each in entries
            for position, location in enumerate(each.locations)
        ],
    )
    insert_all(
        connection, image_members, [{"image_id": each.key, **member} for each in entries for member in each.members]
    )

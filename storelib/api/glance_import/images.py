# SPDX-License-Identifier: Apache-2.0
"""Images of a Glance database as entries for this one, in the order of their ids, in bounded memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, get_args

import sqlalchemy as sa

from storelib.api.db.imported import ImageEntry
from storelib.api.db.records import MemberStatus, Visibility
from storelib.api.db.statuses import UPLOADING, WITH_DATA
from storelib.api.errors import BadRequest
from storelib.api.glance_import.locations import Places
from storelib.api.glance_import.source import Source, is_living, is_pending
from storelib.api.glance_import.values import (
    Refused,
    flag,
    moment,
    needed_moment,
    needed_text,
    number,
    one_of,
    some_text,
    text,
)

#: Images read at once, unless their properties have more characters in all.
BATCH = 500
LARGEST_BATCH = 8 * 1024 * 1024

_IMAGE = (
    *("id", "name", "status", "visibility", "owner", "size", "virtual_size", "checksum", "os_hash_algo"),
    *("os_hash_value", "disk_format", "container_format", "min_disk", "min_ram", "protected", "os_hidden"),
    *("created_at", "updated_at", "deleted_at", "deleted"),
)
_LOCATION = ("id", "image_id", "value", "meta_data", "status", "deleted_at")
_MEMBER = ("id", "image_id", "member", "status", "can_share", "created_at", "updated_at")

#: What Glance keeps in properties for itself: which task, and which host, has the image at this moment.
_OF_GLANCE = frozenset({"os_glance_import_task", "os_glance_stage_host", "os_glance_hash_op_host"})
_SETTLED = ("queued", "active", "deactivated", "killed", "pending_delete")


def is_here() -> sa.ColumnElement[bool]:
    """Of images of Glance: those that are not deleted, or whose data is still to be."""
    return sa.or_(is_living(), is_pending())


def images(source: Source, places: Places) -> Iterator[list[ImageEntry | tuple[str, Refused]]]:
    """Every image in batches: as an entry, or its id and why it cannot be taken."""
    after: Any = ""
    while rows := source.rows("images", _IMAGE, sa.column("id") > after, is_here(), limit=BATCH):
        for batch in _batches(source, rows):
            yield _entries(source, places, batch)
        after = rows[-1].id


def missing(source: Source, ids: Collection[str]) -> list[str]:
    """Which of these ids no image of Glance has any more."""
    there = {row.id for row in source.rows("images", ("id",), sa.column("id").in_(ids), is_here())}
    return [image_id for image_id in ids if image_id not in there]


def _batches(source: Source, rows: Sequence[Any]) -> Iterator[list[Any]]:
    """Parts of these rows that have not too many characters together, at least one row in each."""
    lengths = source.lengths("image_properties", "value", "image_id", [row.id for row in rows])
    batch: list[Any] = []
    total = 0
    for row in rows:
        length = lengths.get(row.id, 0)
        if batch and total + length > LARGEST_BATCH:
            yield batch
            batch, total = [], 0
        batch.append(row)
        total += length
    yield batch


def _entries(source: Source, places: Places, rows: Sequence[Any]) -> list[ImageEntry | tuple[str, Refused]]:
    ids = [row.id for row in rows]
    of_these = sa.column("image_id").in_(ids)
    properties = _grouped(source.rows("image_properties", ("image_id", "name", "value"), of_these, is_living()))
    tags = _grouped(source.rows("image_tags", ("image_id", "value"), of_these, is_living()))
    members = _grouped(source.rows("image_members", _MEMBER, of_these, is_living()))
    kept = sa.or_(sa.and_(is_living(), sa.column("status") == "active"), is_pending())
    locations = _grouped(source.rows("image_locations", _LOCATION, of_these, kept))

    def entry(row: Any) -> ImageEntry | tuple[str, Refused]:
        try:
            made = ImageEntry(
                _row(row),
                _properties(properties.get(row.id, ())),
                sorted({some_text("a tag", tag.value) for tag in tags.get(row.id, ())}),
                places.rows(locations.get(row.id, ())),
                _members(members.get(row.id, ())),
            )
            _check_data(made)
            made.check()
        except Refused as refused:
            return str(row.id), refused
        except BadRequest as error:
            return str(row.id), Refused(str(error))
        return made

    return [entry(row) for row in rows]


def _grouped(rows: Sequence[Any]) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = {}
    for row in rows:
        found.setdefault(row.image_id, []).append(row)
    return found


def _row(row: Any) -> dict[str, Any]:
    if row.status in UPLOADING:
        raise Refused(f"it is {row.status}: its data is on its way; run this again when it is there")
    created = needed_moment("created_at", row.created_at)
    deleted = flag("deleted", row.deleted)
    return {
        "id": needed_text("the id", row.id),
        "status": one_of("the status", row.status, _SETTLED),
        "visibility": one_of("the visibility", row.visibility, get_args(Visibility)),
        **{
            name: text(name, getattr(row, name))
            for name in (
                *("name", "owner", "checksum", "os_hash_algo", "os_hash_value"),
                *("disk_format", "container_format"),
            )
        },
        **{name: number(name, getattr(row, name)) for name in ("size", "virtual_size")},
        **{name: number(name, getattr(row, name)) or 0 for name in ("min_disk", "min_ram")},
        **{name: flag(name, getattr(row, name)) for name in ("protected", "os_hidden")},
        "created_at": created,
        "updated_at": moment("updated_at", row.updated_at) or created,
        "deleted_at": moment("deleted_at", row.deleted_at) if deleted else None,
        "deleted": deleted,
    }


def _properties(rows: Sequence[Any]) -> Mapping[str, str | None]:
    found = {needed_text("the name of a property", row.name): row.value for row in rows}
    return {name: text(f"property {name}", found[name]) for name in sorted(found) if name not in _OF_GLANCE}


def _members(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """By their names. There may be several rows of one member, of which Glance goes by the first."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = needed_text("a member", row.member)
        created = needed_moment(f"created_at of member {name}", row.created_at)
        found.setdefault(
            name,
            {
                "member": name,
                "status": one_of(f"the status of member {name}", row.status, get_args(MemberStatus)),
                "can_share": flag(f"can_share of member {name}", row.can_share),
                "created_at": created,
                "updated_at": moment(f"updated_at of member {name}", row.updated_at) or created,
            },
        )
    return [found[name] for name in sorted(found)]


def _check_data(image: ImageEntry) -> None:
    status = image.row["status"]
    active = [location for location in image.locations if location["pending_since"] is None]
    # One of version 1 that is said to have no bytes is active without data.
    if status in WITH_DATA and not active and image.row["size"] != 0:
        raise Refused(f"it is {status} and has no location, so nobody can read it")
    if status not in WITH_DATA and active:
        raise Refused(f"it is {status} and has a location all the same")

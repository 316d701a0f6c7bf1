# SPDX-License-Identifier: Apache-2.0
"""Rows into records and values into rows: times, limits of columns, and reading whole images in two statements."""

from __future__ import annotations

import datetime
import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db.image_cache import ImageCache
from storelib.api.db.records import Image, ImageLocation, NewLocation
from storelib.api.db.schema import (
    HEAD,
    TEXT_BYTES,
    Name,
    image_locations,
    image_properties,
    image_tags,
    images,
    length_of,
)
from storelib.api.errors import BadRequest, ImageNotFound
from storelib.times import with_zone

LOG = logging.getLogger(__name__)

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_MICROSECOND = datetime.timedelta(microseconds=1)
_BIGGEST = 2**63 - 1

#: What Changes.values and the values of a transition may hold.
CHANGEABLE = frozenset(
    {
        "name",
        "owner",
        "visibility",
        "size",
        "virtual_size",
        "checksum",
        "os_hash_algo",
        "os_hash_value",
        "disk_format",
        "container_format",
        "min_disk",
        "min_ram",
        "protected",
        "os_hidden",
    }
)

_LENGTHS: dict[str, int] = {column.name: length_of(column.type) for column in images.c if isinstance(column.type, Name)}
_COLUMNS = tuple(images.c[name] for name in Image.__slots__ if name in images.c)
SELECT_IMAGES = sa.select(*_COLUMNS)
_SELECT_ONE = SELECT_IMAGES.where(images.c.id == sa.bindparam("image_id"))
_CREATED, _UPDATED, _DELETED = (
    [column.name for column in _COLUMNS].index(name) for name in ("created_at", "updated_at", "deleted_at")
)
_IS_PROPERTY, _IS_TAG, _IS_LOCATION = range(3)
#: Characters of properties, tags and locations that the images of one page have at most, if it has several.
LARGEST_PAGE = 16 * 1024 * 1024
#: Properties that few images have more of.
_MANY = 128


def now() -> int:
    """This moment in microseconds since 1970, which is how the tables keep times."""
    return time.time_ns() // 1000


def to_time(microseconds: int) -> datetime.datetime:
    """The time in UTC that is so many microseconds after 1970."""
    return _EPOCH + datetime.timedelta(microseconds=microseconds)


def from_time(moment: datetime.datetime) -> int:
    """Microseconds since 1970; a time without a zone is UTC."""
    return (with_zone(moment) - _EPOCH) // _MICROSECOND


def check_text(what: str, text: str | None, length: int) -> None:
    """Raise BadRequest for what one of the databases would refuse, cut or change."""
    if text is None:
        return
    if len(text) > length:
        raise BadRequest(f"{what} is longer than {length} characters")
    if "\0" in text:
        raise BadRequest(f"{what} has a NUL character in it")
    if not text.isascii():
        _check_encodable(what, text)


def check_long_text(what: str, text: str | None) -> None:
    """``check_text`` for columns of type Text, whose limit is in bytes."""
    if text is None:
        return
    check_text(what, text, TEXT_BYTES)
    if len(text) * 4 > TEXT_BYTES and len(text.encode()) > TEXT_BYTES:
        raise BadRequest(f"{what} is longer than {TEXT_BYTES} bytes")


def check_number(what: str, number: int | None) -> None:
    """Raise BadRequest for what does not fit a BIGINT."""
    if number is not None and not -_BIGGEST - 1 <= number <= _BIGGEST:
        raise BadRequest(f"{what} is too large a number: {number}")


def _check_encodable(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"{what} is no valid Unicode text") from None


def check_columns(values: Mapping[str, Any]) -> None:
    """Check values of the images table; raises BadRequest naming the column."""
    for name, value in values.items():
        if isinstance(value, str):
            check_text(name, value, _LENGTHS[name])
        elif isinstance(value, int):
            check_number(name, value)


def changeable(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` if they may be changed, checked; anything else is a mistake of the program: ValueError."""
    unknown = values.keys() - CHANGEABLE
    if unknown:
        raise ValueError(f"not to be changed here: {', '.join(sorted(unknown))}")
    check_columns(values)
    return dict(values)


def property_rows(image_id: str, properties: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """Rows for image_properties; raises BadRequest for a name or value that does not fit."""
    for name, value in properties.items():
        check_text("the name of a property", name, 255)
        check_long_text(f"property {name}", value)
    return [
        {"image_id": image_id, "name": name, "value": value, "head": None if value is None else value[:HEAD]}
        for name, value in properties.items()
    ]


def tag_rows(image_id: str, tags: Iterable[str]) -> list[dict[str, Any]]:
    """Rows for image_tags; raises BadRequest for a tag that does not fit."""
    rows = []
    for tag in tags:
        check_text("a tag", tag, 255)
        rows.append({"image_id": image_id, "tag": tag})
    return rows


def location_row(image_id: str, location: NewLocation, position: int) -> dict[str, Any]:
    """A row for image_locations; raises BadRequest for a URI or metadata that do not fit."""
    check_long_text("a location", location.uri)
    metadata = dump_metadata(location.metadata)
    return {"image_id": image_id, "position": position, "uri": location.uri, "metadata": metadata}


def dump_metadata(metadata: Mapping[str, Any]) -> str:
    """A location's metadata as JSON; raises BadRequest."""
    try:
        text = json.dumps(dict(metadata), separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadRequest(f"the metadata of a location is not JSON: {error}") from error
    check_long_text("the metadata of a location", text)
    return text


def load_object(text: str) -> dict[str, Any]:
    """An object that was kept as JSON. One that another program spoiled is empty, so that the rest can be shown."""
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        LOG.error("the database has what is no JSON: %s", error)
        return {}
    return found if isinstance(found, dict) else {}


def _select_children(where: Any, most: Any = None) -> Any:
    """Rows (image_id, kind, key, value, number, position, pending_since, missing) of all three tables.

    With ``most``, what has more characters is left out, and ``missing`` is how many they are.
    """
    none: Any = sa.literal_column("0")
    text = sa.cast(sa.null(), sa.Text())
    number = sa.cast(sa.null(), sa.BigInteger())
    p, t, at = image_properties.c, image_tags.c, image_locations.c
    value, metadata, of_value, of_metadata = p.value, at.metadata, none, none
    if most is not None:
        value, of_value = _unless_long(p.value, most)
        metadata, of_metadata = _unless_long(at.metadata, most)
    return sa.union_all(
        sa.select(p.image_id, _kind(_IS_PROPERTY), p.name, value, none, none, number, of_value).where(
            where(p.image_id)
        ),
        sa.select(t.image_id, _kind(_IS_TAG), t.tag, text, none, none, number, none).where(where(t.image_id)),
        sa.select(
            at.image_id, _kind(_IS_LOCATION), at.uri, metadata, at.id, at.position, at.pending_since, of_metadata
        ).where(where(at.image_id)),
    )


def _kind(kind: int) -> Any:
    return sa.literal_column(str(kind))


def _unless_long(column: Any, most: Any) -> tuple[Any, Any]:
    """The text, or the characters that it has if these are too many."""
    length = sa.func.length(column)
    return sa.case((length > most, sa.null()), else_=column), sa.case((length > most, length), else_=sa.literal(0))


def _among(column: Any) -> Any:
    return column.in_(sa.bindparam("image_ids", expanding=True))


_CHILDREN_OF_ONE = _select_children(lambda column: column == sa.bindparam("image_id"))
_CHILDREN_OF_MANY = _select_children(_among)
_SHORT_CHILDREN_OF_MANY = _select_children(_among, sa.bindparam("most", type_=sa.Integer()))


def load(connection: Connection, image_id: str, *, deleted: bool = False, known: ImageCache | None = None) -> Image:
    """One image with all that belongs to it; raises ImageNotFound. ``known`` is for transactions that only read."""
    parameters = {"image_id": image_id}
    row = connection.execute(_SELECT_ONE, parameters).one_or_none()
    if row is None or (row.deleted and not deleted):
        raise no_image(image_id)
    if known is not None and (image := known.find(row)) is not None:
        return image
    [image] = _images([row], connection.execute(_CHILDREN_OF_ONE, parameters).all())
    if known is not None:
        known.add(row, image)
    return image


def complete(connection: Connection, rows: Sequence[Any], known: ImageCache) -> tuple[Image, ...]:
    """Images of SELECT_IMAGES with all that belongs to them, in the same order, with at most one more statement.

    Images with long texts take two; and of all only the first that have LARGEST_PAGE characters together, at least one.
    """
    found = {row[0]: known.find(row) for row in rows}
    missing = [row for row in rows if found[row[0]] is None]
    if missing:
        # What is read at once is no more than that either.
        wanted = {"image_ids": [row[0] for row in missing], "most": LARGEST_PAGE // (_MANY * len(missing))}
        children = connection.execute(_SHORT_CHILDREN_OF_MANY, wanted).all()
        missing = missing[: _count_fitting(missing, children)]
        fitting = {row[0] for row in missing}
        if any(child[-1] for child in children if child[0] in fitting):
            children = connection.execute(_CHILDREN_OF_MANY, {"image_ids": sorted(fitting)}).all()
        for row, image in zip(missing, _images(missing, children), strict=True):
            known.add(row, image)
            found[row[0]] = image
    return tuple(itertools.takewhile(lambda image: image is not None, found.values()))  # type: ignore[arg-type]


def _count_fitting(rows: Sequence[Any], children: Sequence[Any]) -> int:
    """How many of the first of these rows make no page that is too large."""
    lengths: Counter[str] = Counter()
    for image_id, _, key, value, _, _, _, left_out in children:
        lengths[image_id] += len(key) + len(value or "") + left_out
    totals = itertools.accumulate(lengths[row[0]] for row in rows)
    return max(sum(1 for total in totals if total <= LARGEST_PAGE), 1)


def _images(rows: Sequence[Any], children: Sequence[Any]) -> list[Image]:
    properties: dict[str, dict[str, str | None]] = {}
    tags: dict[str, list[str]] = {}
    locations: dict[str, list[tuple[int, ImageLocation]]] = {}
    for image_id, kind, key, value, number, position, pending_since, _ in children:
        if kind == _IS_PROPERTY:
            properties.setdefault(image_id, {})[key] = value
        elif kind == _IS_TAG:
            tags.setdefault(image_id, []).append(key)
        elif pending_since is None:
            location = ImageLocation(key, load_object(value), number)
            locations.setdefault(image_id, []).append((position, location))
    return [
        to_image(
            row,
            properties.get(row[0], {}),
            tags.get(row[0], ()),
            [location for _, location in sorted(locations.get(row[0], ()), key=_first)],
        )
        for row in rows
    ]


def _first(pair: tuple[int, ImageLocation]) -> tuple[int, int]:
    return pair[0], pair[1].id


def to_image(
    row: Sequence[Any],
    properties: Mapping[str, str | None],
    tags: Collection[str],
    locations: Iterable[ImageLocation],
) -> Image:
    """An image from the columns of SELECT_IMAGES and what belongs to it."""
    values: list[Any] = list(row)
    values[_CREATED] = to_time(values[_CREATED])
    values[_UPDATED] = to_time(values[_UPDATED])
    if values[_DELETED] is not None:
        values[_DELETED] = to_time(values[_DELETED])
    values += properties, tuple(sorted(tags)), tuple(locations)
    return Image(*values)


def columns_of(values: Mapping[str, Any]) -> list[Any]:
    """Values of the images table in the order of SELECT_IMAGES."""
    return [values[column.name] for column in _COLUMNS]


def no_image(image_id: str) -> ImageNotFound:
    """The exception to be raised where there is no such image, or it is deleted."""
    return ImageNotFound(f"there is no image {image_id}")

# SPDX-License-Identifier: Apache-2.0
"""One page of a list, in a time that depends on the page and not on how many images there are.

What a caller may see is a few sets (own images, public ones, those shared with the caller), each a range of an index in
the list's order: a page is the first of each, merged. What follows a marker is a few ranges too: with keys a, b and id,
first those with the marker's a and b and a later id, then those with its a and a later b, then those with a later a.
Each is asked only while the page has room. That is right for mixed directions and for values that are not set, and
walks an index on all databases; a comparison of rows, (a, b, id) > (...), is one question instead of several where the
database walks an index for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db.image_cache import ImageCache
from storelib.api.db.records import Page, Query, SortKey, TimeFilter
from storelib.api.db.rows import SELECT_IMAGES, check_number, check_text, complete, from_time
from storelib.api.db.schema import HEAD, image_members, image_properties, image_tags, images
from storelib.api.errors import BadRequest, InvalidMarker

_SORTABLE = frozenset({"name", "status", "container_format", "disk_format", "size", "id", "created_at", "updated_at"})
_RANGES = frozenset({"size", "virtual_size", "min_disk", "min_ram"})
_SECOND = 1_000_000
#: So many images are named one by one in a statement.
_FEW = 500
# MySQL reads everything from the start of the index for a comparison of rows.
_ROW_COMPARISON = frozenset({"sqlite", "postgresql"})

#: Properties and tags of one question, each of which is a subquery; and values of one filter.
MOST_FILTERS = 100
MOST_VALUES = 10_000

_Condition = sa.ColumnElement[bool]


def list_page(connection: Connection, query: Query, known: ImageCache) -> Page:
    """One page of what the caller of ``query`` may see; raises InvalidMarker, BadRequest."""
    _check_size(query)
    keys = _keys(query)
    sets = [each for each in _visible(connection, query) if not isinstance(each, sa.False_)]
    filters = _filters(connection, query)
    limit = query.limit
    if limit is not None and limit < 0:
        raise BadRequest(f"limit is negative: {limit}")
    if limit == 0 or not sets:
        return Page((), False)
    rows: list[Any] = []
    for following in _ranges_after_marker(connection, query, keys):
        room = None if limit is None else limit + 1 - len(rows)
        rows += connection.execute(_statement(connection, sets, [*filters, *following], keys, room)).all()
        if limit is not None and len(rows) > limit:
            break
    more = limit is not None and len(rows) > limit
    return Page(complete(connection, rows[:limit], known), more)


def _check_size(query: Query) -> None:
    """Raise BadRequest for more filters than a database answers in bounded time, or at all."""
    if len(query.properties) + len(query.tags) > MOST_FILTERS:
        raise BadRequest(f"a list may be filtered by {MOST_FILTERS} properties and tags")
    for field in ("ids", "names", "statuses", "disk_formats", "container_formats"):
        if len(getattr(query, field) or ()) > MOST_VALUES:
            raise BadRequest(f"a filter may name {MOST_VALUES} values")


def _keys(query: Query) -> list[SortKey]:
    keys: list[SortKey] = []
    for key in query.sort:
        if key.key not in _SORTABLE or key.direction not in ("asc", "desc"):
            raise BadRequest(f"cannot sort by {key.key}:{key.direction}")
        if key.key not in {earlier.key for earlier in keys}:
            keys.append(key)
        if key.key == "id":
            return keys  # nothing is left to be decided
    return [*keys, SortKey("id", keys[-1].direction if keys else "desc")]


# -- which images


def _visible(connection: Connection, query: Query) -> list[_Condition]:
    """The sets that make up what the caller may see; they may overlap."""
    wanted = query.visibility
    project = query.caller.project
    if query.caller.is_admin:
        if wanted is None:
            return [(images.c.visibility != "community") | (images.c.owner == project)]
        return [images.c.visibility == wanted if wanted != "all" else sa.true()]
    sets: list[_Condition] = []
    if project is not None:
        own = images.c.owner == project
        sets.append(own if wanted in (None, "all") else own & (images.c.visibility == wanted))
    if wanted in ("public", "all", None):
        sets.append(images.c.visibility == "public")
    if wanted in ("community", "all"):
        sets.append(images.c.visibility == "community")
    if project is not None and wanted in ("shared", "all", None):
        sets.append(_shared_with(connection, project, query.member_status))
    return sets


def _shared_with(connection: Connection, project: str, status: str) -> _Condition:
    c = image_members.c
    theirs = [c.member == project] if status == "all" else [c.member == project, c.status == status]
    return (images.c.visibility == "shared") & having(connection, image_members, *theirs)


def having(
    connection: Connection, table: sa.Table, *conditions: _Condition, image_id: sa.ColumnElement[str] = images.c.id
) -> _Condition:
    """Images with such a row. If these are few they are named, else each image of the list is looked at in turn.

    Which of the two is fast differs by thousands, and no database knows it for every value. ``image_id`` is the column
    of the list that has an image's id.
    """
    matching = sa.select(table.c.image_id).where(*conditions)
    few = connection.execute(matching.limit(_FEW + 1)).scalars().all()
    if not few:
        return sa.false()
    if len(few) <= _FEW:
        return image_id.in_(few)
    return matching.where(table.c.image_id == image_id).exists()


def _filters(connection: Connection, query: Query) -> list[_Condition]:
    c = images.c
    conditions: list[_Condition] = []
    if query.deleted is None:
        # Said in a way that lets an index that starts with it be used.
        conditions.append(c.deleted.in_([False, True]))
    else:
        conditions.append(c.deleted == query.deleted)
    one_of: list[tuple[str, tuple[str, ...] | None]] = [
        ("id", query.ids),
        ("name", query.names),
        ("status", query.statuses),
        ("disk_format", query.disk_formats),
        ("container_format", query.container_formats),
    ]
    for name, values in one_of:
        if values is not None:
            for value in values:
                check_text(name, value, 65535)
            conditions.append(c[name] == values[0] if len(values) == 1 else c[name].in_(values))
    equal: list[tuple[str, str | bool | None]] = [
        ("owner", query.owner),
        ("checksum", query.checksum),
        ("os_hash_algo", query.os_hash_algo),
        ("os_hash_value", query.os_hash_value),
        ("protected", query.protected),
        ("os_hidden", query.os_hidden),
    ]
    for name, wanted in equal:
        if isinstance(wanted, str):
            check_text(name, wanted, 65535)
        if wanted is not None:
            conditions.append(c[name] == wanted)
    if query.is_public is not None:
        conditions.append(c.visibility == "public" if query.is_public else c.visibility != "public")
    conditions += _number_filters(query)
    for each in query.times:
        conditions += _time_filter(each)
    if query.changes_since is not None:
        conditions.append(c.updated_at >= from_time(query.changes_since))
    conditions += _tag_filters(connection, query)
    conditions += _property_filters(connection, query)
    return conditions


def _number_filters(query: Query) -> Iterator[_Condition]:
    for field, minimum, maximum in query.ranges:
        if field not in _RANGES:
            raise BadRequest(f"there is no range of {field}")
        check_number(field, minimum)
        check_number(field, maximum)
        if minimum is not None:
            yield images.c[field] >= minimum
        if maximum is not None:
            yield images.c[field] <= maximum


def _time_filter(wanted: TimeFilter) -> list[_Condition]:
    if wanted.field not in ("created_at", "updated_at"):
        raise BadRequest(f"there is no time {wanted.field}")
    column = images.c[wanted.field]
    exact = from_time(wanted.value)
    # What is compared is the time in whole seconds, which is what clients see: floor(column) against the value.
    second = exact // _SECOND * _SECOND
    following = second + _SECOND
    at_or_after = second if exact == second else following
    within = (column >= second) & (column < following) if exact == second else sa.false()
    match wanted.operator:
        case "gt":
            return [column >= following]
        case "gte":
            return [column >= at_or_after]
        case "lt":
            return [column < at_or_after]
        case "lte":
            return [column < following]
        case "eq":
            return [within]
        case "neq":
            return [sa.not_(within)]
    raise BadRequest(f"there is no operator {wanted.operator} for times")


def _tag_filters(connection: Connection, query: Query) -> Iterator[_Condition]:
    for tag in sorted(query.tags):
        check_text("a tag", tag, 65535)
        yield having(connection, image_tags, image_tags.c.tag == tag)


def _property_filters(connection: Connection, query: Query) -> Iterator[_Condition]:
    c = image_properties.c
    for name, value in sorted(query.properties.items()):
        check_text("the name of a property", name, 65535)
        check_text(f"property {name}", value, 65535)
        same = c.name == name, c.head == value[:HEAD], c.value == value
        yield having(connection, image_properties, *same)


# -- in which order, and from where


def _statement(
    connection: Connection, sets: list[_Condition], conditions: list[_Condition], keys: list[SortKey], limit: int | None
) -> sa.Select[Any]:
    nulls = connection.dialect.name == "postgresql"
    order = [_ordered(key, nulls) for key in keys]
    if len(sets) == 1:
        return SELECT_IMAGES.where(sets[0], *conditions).order_by(*order).limit(limit)
    ids = [
        sa.select(sa.select(images.c.id).where(each, *conditions).order_by(*order).limit(limit).subquery().c.id)
        for each in sets
    ]
    merged = sa.union(*ids).subquery()
    return SELECT_IMAGES.join(merged, merged.c.id == images.c.id).order_by(*order).limit(limit)


def _ordered(key: SortKey, explicit_nulls: bool) -> sa.ColumnElement[Any]:
    column = images.c[key.key]
    ordered = column.asc() if key.direction == "asc" else column.desc()
    if not explicit_nulls or not column.nullable:
        return ordered
    # PostgreSQL alone sorts what is not set last.
    return ordered.nulls_first() if key.direction == "asc" else ordered.nulls_last()


def _ranges_after_marker(connection: Connection, query: Query, keys: list[SortKey]) -> Iterator[list[_Condition]]:
    if query.marker is None:
        yield []
        return
    marker = _marker(connection, query)
    end = len(keys)
    whole = _start_of_row_comparison(connection, keys)
    if whole < end - 1:
        columns = sa.tuple_(*(images.c[key.key] for key in keys[whole:]))
        values = sa.tuple_(*(sa.bindparam(None, marker[key.key], images.c[key.key].type) for key in keys[whole:]))
        later = columns > values if keys[whole].direction == "asc" else columns < values
        yield [*_same(marker, keys[:whole]), later]
        end = whole
    for index in reversed(range(end)):
        for later in _later(marker, keys[index]):
            yield [*_same(marker, keys[:index]), later]


def _start_of_row_comparison(connection: Connection, keys: list[SortKey]) -> int:
    """The first of the keys that can be compared as one row: to the end one direction, and always set."""
    start = len(keys) - 1
    if connection.dialect.name in _ROW_COMPARISON:
        while start and keys[start - 1].direction == keys[-1].direction and not images.c[keys[start - 1].key].nullable:
            start -= 1
    return start


def _same(marker: dict[str, Any], keys: list[SortKey]) -> list[_Condition]:
    # Comparing with None is IS NULL.
    return [images.c[key.key] == marker[key.key] for key in keys]


def _later(marker: dict[str, Any], key: SortKey) -> Iterator[_Condition]:
    column, value = images.c[key.key], marker[key.key]
    if key.direction == "asc":
        yield column.is_not(None) if value is None else column > value
    elif value is not None:
        yield column < value
        if column.nullable:
            yield column.is_(None)


_MARKER = sa.select(*(images.c[name] for name in sorted(_SORTABLE | {"owner", "visibility"}))).where(
    images.c.id == sa.bindparam("image_id")
)


def _marker(connection: Connection, query: Query) -> dict[str, Any]:
    check_text("marker", query.marker, 65535)
    row = connection.execute(_MARKER, {"image_id": query.marker}).one_or_none()
    if row is None or not _may_see(connection, query, row):
        raise InvalidMarker(f"marker {query.marker} is no image")
    return dict(row._mapping)


def _may_see(connection: Connection, query: Query, row: Any) -> bool:
    project, is_admin = query.caller
    if is_admin or row.visibility in ("public", "community") or (project is not None and row.owner == project):
        return True
    if project is None or row.visibility != "shared":
        return False
    shared = sa.exists().where(image_members.c.image_id == row.id, image_members.c.member == project)
    return bool(connection.execute(sa.select(shared)).scalar())

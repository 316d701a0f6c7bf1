# SPDX-License-Identifier: Apache-2.0
"""One page of a list, in a time that depends on the page and not on how many images there are.

What a caller may see is a few sets (own images, public ones, those shared with the caller): a page is the first of
each, merged. What follows a marker is a few parts: with keys a, b and id, first those with the marker's a and b and a
later id, then those with its a and a later b, then those with a later a. Each is asked only while the page has room.
That is right for mixed directions and for values that are not set, and walks an index on all databases. How the first
of each set are found is in search.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db import ways
from storelib.api.db.filters import Column, Filter, filters_of, one_of, visible
from storelib.api.db.image_cache import ImageCache
from storelib.api.db.records import Page, Query, SortKey
from storelib.api.db.rows import check_text, complete
from storelib.api.db.schema import SORTED_BY, image_members, images
from storelib.api.db.search import Search
from storelib.api.db.ways import Part
from storelib.api.errors import BadRequest, InvalidMarker

_SORTABLE = frozenset(SORTED_BY)
#: Properties and tags of one question, each of which is a subquery; and values of one filter.
MOST_FILTERS = 100
MOST_VALUES = 10_000
#: Values that are gone through one after the other where a list is sorted by them: each takes some statements.
_MOST_IN_TURN = 20


def list_page(connection: Connection, query: Query, known: ImageCache) -> Page:
    """One page of what the caller of ``query`` may see, a short one of large images.

    Raises InvalidMarker, BadRequest.
    """
    _check_size(query)
    filters = filters_of(query)
    keys = _undecided(_keys(query), filters)
    limit = query.limit
    if limit is not None and limit < 0:
        raise BadRequest(f"limit is negative: {limit}")
    if limit == 0:
        return Page((), False)
    search = Search(connection, visible(query), filters, limit)
    marker = None if query.marker is None else _marker(connection, query)
    kind = connection.dialect.name
    values = one_of(query).get(keys[0].key, ())
    sorted_by = [each for each in filters if isinstance(each, Column) and each.name == keys[0].key != "id"]
    # The others have the images of several values in order. PostgreSQL would come by all that are before these.
    in_turn = kind == "postgresql" and 1 < len(values) <= _MOST_IN_TURN
    if in_turn and any(map(search.leaves_many, sorted_by)):
        others = [each for each in filters if each not in sorted_by]
        search = Search(connection, visible(query), others, limit)
        parts = _parts_by_value(kind, marker, keys, values)
    else:
        parts = _parts(kind, marker, keys)
    rows: list[Any] = []
    for part in parts:
        rows += search.first(part, None if limit is None else limit + 1 - len(rows))
        if limit is not None and len(rows) > limit:
            break
    page = complete(connection, rows[:limit], known)
    return Page(page, len(page) < len(rows))


def _check_size(query: Query) -> None:
    """Raise BadRequest for more filters than a database can handle in bounded time, or at all."""
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


def _undecided(keys: list[SortKey], filters: Sequence[Filter]) -> list[SortKey]:
    """Without the keys of which all images of the list have the same value; MariaDB would sort by them all the same."""
    fixed = {each.name for each in filters if isinstance(each, Column) and each.exact}
    return [key for key in keys if key.key == "id" or key.key not in fixed]


# -- from where


def _parts_by_value(
    kind: str, marker: dict[str, Any] | None, keys: list[SortKey], values: Iterable[str]
) -> Iterator[Part]:
    """What comes behind the marker, if there is one, of each of these values of the first key in turn."""
    first, *others = keys
    last = None if marker is None else marker[first.key]
    # All databases compare these columns byte by byte, in UTF-8, which is the order of Python, too.
    for value in sorted(set(values), reverse=first.direction == "desc"):
        same = (_same(first.key, value),)
        if marker is not None and value == last:
            yield from _parts(kind, marker, others, same)
        elif marker is None or _comes_behind(value, last, first.direction):
            yield Part(same, tuple(others))


def _comes_behind(value: str, last: str | None, direction: str) -> bool:
    """Whether it comes behind ``last`` in a list; what is not set comes before all else where they ascend."""
    if last is None:
        return direction == "asc"
    return value > last if direction == "asc" else value < last


def _parts(
    kind: str, marker: dict[str, Any] | None, keys: list[SortKey], of: tuple[Column, ...] = ()
) -> Iterator[Part]:
    """What comes behind the marker, if there is one, of the images for which ``of`` holds."""
    if marker is None:
        yield Part(of, tuple(keys))
        return
    for index in reversed(range(len(keys))):
        same = (*of, *(_same(key.key, marker[key.key]) for key in keys[:index]))
        left = tuple(keys[index:])
        if len(left) == 1 and _is_one_row(kind, keys, marker):
            continue  # together with the key before it
        if len(left) == 2 and _is_one_row(kind, keys, marker):
            names = [key.key for key in left]
            operator = ">" if left[0].direction == "asc" else "<"
            later = ways.row_comparison(kind, names, [marker[name] for name in names], operator)
            yield Part((*same, Column(later, names[0], usual=True)), left)
            if left[0].direction == "desc" and images.c[names[0]].nullable:
                yield Part((*same, _same(names[0], None)), left[1:])
            continue
        yield from _later(marker[keys[index].key], same, left)


def _is_one_row(kind: str, keys: list[SortKey], marker: dict[str, Any]) -> bool:
    """Whether the last two keys are compared as one row, which is one question instead of two."""
    # MySQL reads everything from the start of the index for a comparison of rows.
    in_one = kind in ("sqlite", "postgresql") and len(keys) > 1 and keys[-1].direction == keys[-2].direction
    return in_one and marker[keys[-2].key] is not None


def _same(name: str, value: Any) -> Column:
    # Comparing with None is IS NULL.
    return Column(images.c[name] == value, name, exact=True, unset=value is None)


def _later(value: Any, same: tuple[Column, ...], keys: tuple[SortKey, ...]) -> Iterator[Part]:
    """What comes behind a value in the order of the first of these keys; what is not set comes before all else."""
    name, column = keys[0].key, images.c[keys[0].key]
    if keys[0].direction == "asc":
        later = column.is_not(None) if value is None else column > value
        yield Part((*same, Column(later, name, usual=True)), keys)
    elif value is not None:
        yield Part((*same, Column(column < value, name, usual=True)), keys)
        if column.nullable:
            yield Part((*same, _same(name, None)), keys[1:])


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

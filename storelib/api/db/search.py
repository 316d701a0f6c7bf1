# SPDX-License-Identifier: Apache-2.0
"""Finds the first images of a list, in a time that depends on the page and not on how many images there are.

Each set of images that a caller may see is gone through in a way of its own (choosing.py); the first of all sets are
merged. A walk along an index is begun where it may be fast, ends after so many steps, and goes on in stages: to the end
of a tenth of the steps, of all of them, and then, where it has still met too little, it is given up for the filter that
leaves the least. What was gone through in one stage is not gone through again in the next.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db import ways
from storelib.api.db.choosing import Choice, Way, longest_walk
from storelib.api.db.filters import Column, Filter, Visible
from storelib.api.db.records import SortKey
from storelib.api.db.row_order import behind, in_order, is_behind, merged, until
from storelib.api.db.rows import SELECT_IMAGES
from storelib.api.db.schema import images
from storelib.api.db.ways import Part


class Search:
    """Some sets of images and filters, in one transaction, for a page of ``limit``."""

    def __init__(
        self, connection: Connection, sets: Sequence[Visible], filters: Sequence[Filter], limit: int | None
    ) -> None:
        self._connection = connection
        self._kind = connection.dialect.name
        self._choice = Choice(connection, sets, filters, limit)
        # Columns of which only what is set passes a filter.
        self._set = {each.name for each in filters if isinstance(each, Column)}

    def leaves_many(self, wanted: Column) -> bool:
        """Whether a filter that an index tells leaves many images of some set."""
        return self._choice.leaves_many(wanted)

    def first(self, part: Part, limit: int | None) -> list[Any]:
        """The first rows of SELECT_IMAGES of a part of the list, at most ``limit``."""
        if any(each.unset and each.name in self._set for each in part.filters):
            return []
        chosen = self._choice.short_ways(part)
        if all(way.beginning or way.small for way in chosen):
            # What is sorted is sorted by all keys at once.
            return self._run(chosen, part, limit)
        rows: list[Any] = []
        for each in _by_null(part, self._set):
            left = None if limit is None else limit - len(rows)
            rows += self._first_by_each_key(each, left)
            if limit is not None and len(rows) >= limit:
                break
        return rows

    def _first_by_each_key(self, part: Part, limit: int | None) -> list[Any]:
        """By the first key alone; and those with the same value as the last one found, by the other keys.

        So an index for each key is enough.
        """
        key, *others = part.keys
        one_order = all(other.key == "id" and other.direction == key.direction for other in others)
        if one_order or limit is None:
            return self._first_by_one_key(part, part, limit)[0]
        by_key = Part(part.filters, (key, SortKey("id", key.direction)))
        found, by_all_keys = self._first_by_one_key(by_key, part, limit)
        if by_all_keys or len(found) < limit:
            return in_order(found, part.keys)
        last = getattr(found[-1], key.key)
        before = [row for row in found if getattr(row, key.key) != last]
        same = Column(images.c[key.key] == last, key.key, exact=True)
        level = Part((*part.filters, same), tuple(others))
        return in_order(before, part.keys) + self.first(level, limit - len(before))

    def _first_by_one_key(self, part: Part, whole: Part, limit: int | None) -> tuple[list[Any], bool]:
        """The first by the keys of ``part``, or by all those of ``whole`` where nothing is walked along for them.

        And whether they are the first by all keys.
        """
        chosen = self._choice.short_ways(part)
        if limit is None or not any(way.long for way in chosen):
            by_all_keys = all(way.is_sorted_whole for way in chosen)
            return self._run(chosen, whole if by_all_keys else part, limit), by_all_keys
        steps = longest_walk(limit)
        going = self._bounded(chosen, part, steps // 10)
        rows = self._run(going, part, limit)
        gone: list[Way] = []
        for further in (self._further, self._given_up):
            if _is_all(rows, going, part, limit):
                break
            gone += (way._replace(start=None) for way in going if way.end is None)
            going = further([way for way in going if way.end is not None], rows, part, steps, limit)
            every = [*gone, *(way._replace(start=None) for way in going)]
            if part is not whole and all(way.is_sorted_whole for way in every):
                return self._run(every, whole, limit), True
            rows = merged([*rows, *self._run(going, part, limit)], part.keys, limit)
        return rows, False

    # -- stages of walks

    def _further(self, walks: Sequence[Way], rows: Sequence[Any], part: Part, steps: int, limit: int) -> list[Way]:
        """Walks of ``steps`` more, or better ways where little was met so far."""
        longer = self._bounded([walk._replace(start=walk.end) for walk in walks], part, steps)
        chosen: list[Way] = []
        for walk, on in zip(walks, longer, strict=True):
            met = sum(not is_behind(row, walk.end, part.keys) for row in rows)
            better = self._choice.better_than(on, part, steps, limit) if met * 10 < limit else None
            chosen.append(better or on)
        return chosen

    def _given_up(self, walks: Sequence[Way], rows: Sequence[Any], part: Part, steps: int, limit: int) -> list[Way]:
        """From the filter that leaves the least, however much; a walk without end only where no index helps."""
        chosen = self._choice.any_ways([walk.visible for walk in walks], part)
        return [way if way.beginning else way._replace(start=walk.end) for way, walk in zip(chosen, walks, strict=True)]

    def _bounded(self, chosen: Sequence[Way], part: Part, steps: int) -> list[Way]:
        """The same ways with an end of each long walk, so many steps from the beginning of its set."""
        bounded: list[Way] = []
        key = part.keys[0].key
        selected = sa.select(*part.columns)
        for way in chosen:
            end = None
            if way.long:
                _, on_key, _ = ways.along(way.visible, self._choice.filters(way.visible, part), key)
                walk = ways.walk(self._kind, selected, way.visible, on_key, part).limit(1).offset(steps)
                end = self._connection.execute(walk).one_or_none()
            bounded.append(way._replace(end=end))
        return bounded

    # -- statements

    def _run(self, chosen: Sequence[Way], part: Part, limit: int | None) -> list[Any]:
        if not chosen:
            return []
        if len(chosen) == 1 and not chosen[0].beginning:
            return list(self._connection.execute(self._walk(SELECT_IMAGES, chosen[0], part, limit)).all())
        each = [sa.select(self._ids(way, part, limit).subquery().c.id) for way in chosen]
        found = (sa.union(*each) if len(each) > 1 else each[0]).subquery()
        statement = SELECT_IMAGES.join(found, found.c.id == images.c.id).order_by(*ways.order(self._kind, part.keys))
        return list(self._connection.execute(statement.limit(limit)).all())

    def _ids(self, way: Way, part: Part, limit: int | None) -> sa.Select[Any]:
        if not way.beginning:
            return self._walk(sa.select(images.c.id), way, part, limit)
        filters = self._choice.rarest_first(way.visible, part)
        return ways.begin(self._kind, way.visible, way.beginning, filters, part, limit)

    def _walk(self, select: sa.Select[Any], way: Way, part: Part, limit: int | None) -> sa.Select[Any]:
        filters = self._choice.rarest_first(way.visible, part)
        bounds = [] if way.start is None else [behind(way.start, part.keys, self._kind)]
        bounds += [] if way.end is None else [until(way.end, part.keys, self._kind)]
        return ways.walk(self._kind, select, way.visible, filters, part, bounds).limit(limit)


def _by_null(part: Part, known: Collection[str]) -> Iterator[Part]:
    """The part in several, where keys may be not set: that comes first, and databases sort it in different ways.

    The columns of ``known`` are set in all of it.
    """
    key = part.keys[0]
    column = images.c[key.key]
    if not column.nullable or key.key in known or any(each.name == key.key for each in part.filters):
        yield part
        return
    unset = Part((*part.filters, Column(column.is_(None), key.key, exact=True, unset=True)), part.keys[1:])
    rest = Part((*part.filters, Column(column.is_not(None), key.key, usual=True)), part.keys)
    if key.direction == "desc":
        yield rest
    yield from _by_null(unset, known)
    if key.direction == "asc":
        yield rest


def _is_all(rows: Sequence[Any], gone: Iterable[Way], part: Part, limit: int) -> bool:
    """Whether these are the first, though some ways were not gone to their ends."""
    ends = [way.end for way in gone if way.end is not None]
    return not ends or (len(rows) >= limit and not any(is_behind(rows[-1], end, part.keys) for end in ends))

# SPDX-License-Identifier: Apache-2.0
"""Finds the first images of a list, in a time that depends on the page and not on how many images there are.

Each set of images that a caller may see is gone through in one of two ways. It is walked along an index in the order of
the list, until the page is full: right where many of the images that come by are wanted. Or one begins with what a
filter leaves and sorts that: right where it is little. Which of the two is fast differs by thousands, and no database
knows it for every value, so that what filters leave is counted first, up to a limit. Where none of them leaves little,
a sample of what one leaves tells whether a walk would meet any of it: filters may leave much each and nothing together,
or only images that stand at the other end of the list. A walk that has gone far for nothing all the same is given up
for the filter that leaves the least.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db import ways
from storelib.api.db.filters import Column, Condition, Filter, Rows, Visible
from storelib.api.db.records import SortKey
from storelib.api.db.rows import SELECT_IMAGES
from storelib.api.db.schema import images
from storelib.api.db.ways import Part

#: So many images are sorted, rather than walking along an index until enough of them came by.
FEW = 5_000
#: Images that a walk looks at, for each image of the page, and for the shortest page.
WALK, SHORTEST_WALK = 400, 10_000
#: What filters leave is counted so far where a walk was given up.
MANY = 100_000
#: Images of a filter that are looked at before a walk.
SAMPLE = 400
#: What a filter leaves is sorted if it is so many at most and none of its sample is where the walk would go; and it is
#: intersected with others rather than looked for among them if it is more.
SOME = 20_000


class Way(NamedTuple):
    """How one set is gone through: from what filters leave together, or for none by walking."""

    visible: Visible
    beginning: tuple[Filter, ...] = ()
    #: A walk that may look at very many images; and one of a set that is FEW at most.
    long: bool = False
    small: bool = False
    #: What was gone through before, and where a walk is given up.
    start: Any = None
    end: Any = None

    @property
    def ends_soon(self) -> bool:
        """Whether all that is to be gone through is little, and may be sorted in any order."""
        return bool(self.beginning) or self.small or (self.long and self.end is None)


class Search:
    """Some sets of images and filters, in one transaction."""

    def __init__(self, connection: Connection, sets: Sequence[Visible], filters: Sequence[Filter]) -> None:
        self._connection = connection
        self._kind = connection.dialect.name
        self._sets = sets
        self._filters = tuple(filters)
        self._counts: dict[tuple[object, ...], int] = {}
        # Of how many images of a sample a filter holds.
        self._passed: dict[Filter, int] = {}

    def first(self, part: Part, limit: int | None) -> list[Any]:
        """The first rows of SELECT_IMAGES of a part of the list, at most ``limit``."""
        begun = self._short_ways(part)
        if all(way.beginning or way.small for way in begun):
            # What is sorted is sorted by all keys at once.
            return self._run(begun, part, limit)
        rows: list[Any] = []
        for each in _by_null(part):
            left = None if limit is None else limit - len(rows)
            rows += self._first_of_many_keys(each, left)
            if limit is not None and len(rows) >= limit:
                break
        return rows

    def _first_of_many_keys(self, part: Part, limit: int | None) -> list[Any]:
        """By the first key alone; and those with the same value as the last one found, by the other keys.

        So an index for each key is enough.
        """
        key, *others = part.keys
        alike = all(other.key == "id" and other.direction == key.direction for other in others)
        if alike or limit is None:
            return self._rows(part, part, limit)[0]
        found, in_order = self._rows(Part(part.filters, (key, SortKey("id", key.direction))), part, limit)
        if in_order or len(found) < limit:
            return _in_order(found, part.keys)
        last = getattr(found[-1], key.key)
        before = [row for row in found if getattr(row, key.key) != last]
        same = Column(images.c[key.key] == last, key.key, exact=True)
        return _in_order(before, part.keys) + self.first(
            Part((*part.filters, same), tuple(others)), limit - len(before)
        )

    def _rows(self, part: Part, whole: Part, limit: int | None) -> tuple[list[Any], bool]:
        """The first by the keys of ``part``, or by all those of ``whole`` where nothing is walked along for them.

        And whether they are the first by all keys.
        """
        chosen = self._short_ways(part)
        if limit is None or not any(way.long for way in chosen):
            in_order = all(way.ends_soon for way in chosen)
            return self._run(chosen, whole if in_order else part, limit), in_order
        steps = max(WALK * limit, SHORTEST_WALK)
        near = self._bounded(chosen, part, steps // 10)
        rows = self._run(near, part, limit)
        if _is_all(rows, near, part, limit):
            return rows, False
        # What was gone through is not gone through again.
        short = [way for way in near if way.end is None]
        left = [way for way in near if way.end is not None]
        far = self._bounded([way._replace(start=way.end) for way in left], part, steps)
        far = [
            (self._instead(end, part, steps, limit) if _met(rows, way, part) * 10 < limit else None) or end
            for way, end in zip(left, far, strict=True)
        ]
        if part is not whole and all(way.ends_soon for way in (*short, *far)):
            return self._run([*short, *(way._replace(start=None) for way in far)], whole, limit), True
        rows = _merged([*rows, *self._run(far, part, limit)], part, limit)
        if _is_all(rows, far, part, limit):
            return rows, False
        short += (way._replace(start=None) for way in far if way.end is None)
        left = [way for way in far if way.end is not None]
        given_up = self._any_ways([way.visible for way in left], part)
        if part is not whole and all(way.ends_soon for way in (*short, *given_up)):
            return self._run([*short, *given_up], whole, limit), True
        given_up = [
            way if way.beginning else way._replace(start=end.end) for way, end in zip(given_up, left, strict=True)
        ]
        return _merged([*rows, *self._run(given_up, part, limit)], part, limit), False

    # -- which way

    def _short_ways(self, part: Part) -> list[Way]:
        """For each set from a filter that leaves few, or a walk; none where nothing is left."""
        chosen: list[Way] = []
        asked = [(visible, self._narrowing(visible, part)) for visible in self._sets]
        # Of several keys each is another walk, but what is small is sorted.
        several = len({key.key for key in part.keys} - {"id"}) > 1
        wholes = {visible for visible, found in asked if visible.prefix and (found or several)}
        self._count(((visible, each) for visible, found in asked for each in found), FEW, wholes)
        for visible, found in asked:
            counts = {each: self._counts[_key(visible, each)] for each in found}
            least = min(found, key=lambda each: counts[each], default=None)
            if least is not None and counts[least] <= FEW:
                chosen += [Way(visible, (least,))] if counts[least] else []
            else:
                small = visible in wholes and self._counts[_key(visible, None)] <= FEW
                chosen.append(Way(visible, long=least is not None and not small, small=small))
        return chosen

    def _any_ways(self, sets: Sequence[Visible], part: Part) -> list[Way]:
        """For each set from the filter that leaves the least, however much that is; a walk where no index helps."""
        # What nearly all images have is looked at only where there is nothing else.
        asked = [
            (visible, self._narrowing(visible, part, all_of=True) or self._narrowing(visible, part, usual=True))
            for visible in sets
        ]
        counts = self._count_anew(((visible, each) for visible, found in asked for each in found), MANY)
        return [Way(visible, self._least(visible, found, counts)) for visible, found in asked]

    def _least(
        self, visible: Visible, found: Sequence[Filter], counts: Mapping[tuple[object, ...], int]
    ) -> tuple[Filter, ...]:
        """What to begin with: the filter that leaves the least, or several of which each leaves much."""
        least = min(found, key=lambda each: counts[_key(visible, each)], default=None)
        if least is None:
            return ()
        together = self._together(least, found) if counts[_key(visible, least)] > SOME else ()
        return together if self._kind in ways.MERGING and len(together) > 1 else (least,)

    def _together(self, least: Filter, found: Sequence[Filter]) -> tuple[Filter, ...]:
        """What to intersect with one filter, which costs what all of them have: those that leave out the most of it.

        Not more than are needed to leave a twentieth.
        """
        chosen, passed = [least], 1.0
        for each in sorted((each for each in found if each is not least), key=lambda each: self._passed.get(each, 0)):
            of_sample = self._passed.get(each, 0)
            if passed > 1 / 20 and of_sample <= SAMPLE // 4:
                chosen.append(each)
                passed *= of_sample / SAMPLE if each in self._passed else 1
        return _exact(chosen)

    def _narrowing(self, visible: Visible, part: Part, *, all_of: bool = False, usual: bool = False) -> list[Filter]:
        """The filters that a set may be begun with: not what is walked along, but with ``all_of``."""
        filters = self._all(visible, part)
        _, _, beside = ways.along(visible, filters, part.keys[0].key)
        return [
            each
            for each in (filters if all_of or usual else beside)
            if isinstance(each, Rows)
            or (each.name != visible.prefix and (usual or not each.usual) and ways.lookup(visible, each) is not None)
        ]

    def _all(self, visible: Visible, part: Part) -> list[Filter]:
        return [*visible.filters, *self._filters, *part.filters]

    def _count(self, asked: Iterable[tuple[Visible, Filter]], most: int, wholes: Iterable[Visible]) -> None:
        """Count what is not yet known of what filters leave, and of whole sets."""
        every: list[tuple[Visible, Filter | None]] = [*asked, *((visible, None) for visible in wholes)]
        unknown = [(visible, each) for visible, each in every if _key(visible, each) not in self._counts]
        self._counts.update(self._count_anew(unknown, most))

    def _count_anew(self, asked: Iterable[tuple[Visible, Filter | None]], most: int) -> dict[tuple[object, ...], int]:
        """How many images filters leave, counted in one statement up to ``most``."""
        statements = {_key(visible, each): ways.count(self._kind, visible, each, most) for visible, each in asked}
        if not statements:
            return {}
        found = self._connection.execute(sa.select(*statements.values())).one()
        return dict(zip(statements, found, strict=True))

    def _bounded(self, chosen: Sequence[Way], part: Part, steps: int) -> list[Way]:
        """The same ways with an end of each long walk, so many steps from the beginning of its set."""
        bounded: list[Way] = []
        key = part.keys[0].key
        selected = sa.select(*(images.c[name] for name in dict.fromkeys((key, "id"))))
        for way in chosen:
            end = None
            if way.long:
                _, answered, _ = ways.along(way.visible, self._all(way.visible, part), key)
                walk = ways.walk(self._kind, selected, way.visible, answered, part).limit(1).offset(steps)
                end = self._connection.execute(walk).one_or_none()
            bounded.append(way._replace(end=end))
        return bounded

    def _instead(self, way: Way, part: Part, steps: int, limit: int) -> Way | None:
        """A better way than a walk that met little and is not likely to meet enough before its end; None if it is."""
        if way.end is None:
            return None
        visible, found = way.visible, self._narrowing(way.visible, part)
        counts = self._count_anew(((visible, each) for each in found), SOME)
        least = min(found, key=lambda each: counts[_key(visible, each)])
        count = counts[_key(visible, least)]
        # What is no more than the walk would go through.
        few = count <= min(steps, SOME)
        if not _exact([least]):
            # The first of a range are no sample of it.
            return Way(visible, (least,)) if few else None
        until = _until(way.end, part.keys, self._kind)
        together = _exact(each for each in self._narrowing(visible, part, all_of=True) if each is not least)
        sample = ways.sample(self._kind, visible, least, self._all(visible, part), until, SAMPLE, together)
        there, on_the_way, *passing = self._connection.execute(sample).one()
        self._passed.update(zip(together, passing, strict=True))
        together = self._together(least, (least, *together))
        if few and on_the_way * count >= limit * SAMPLE:
            return None
        cheap = not few or all(counts.get(_key(visible, each), SOME + 1) <= SOME for each in together)
        if self._kind in ways.MERGING and len(together) > 1 and there <= SAMPLE // 10 and cheap:
            return Way(visible, together)
        if count <= SOME:
            return None if on_the_way and not few else Way(visible, (least,))
        return None if there else self._any_ways([visible], part)[0]

    # -- on the way

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
        filters = self._all(way.visible, part)
        return ways.begin(self._kind, way.visible, way.beginning, filters, part, limit)

    def _walk(self, select: sa.Select[Any], way: Way, part: Part, limit: int | None) -> sa.Select[Any]:
        filters = self._all(way.visible, part)
        bounds = [] if way.start is None else [_behind(way.start, part.keys, self._kind)]
        bounds += [] if way.end is None else [_until(way.end, part.keys, self._kind)]
        return ways.walk(self._kind, select, way.visible, filters, part, bounds).limit(limit)


def _by_null(part: Part) -> Iterator[Part]:
    """The part in several, where keys may be not set: that comes first, and databases sort it in different ways."""
    key = part.keys[0]
    column = images.c[key.key]
    if not column.nullable or any(each.name == key.key for each in part.filters):
        yield part
        return
    unset = Part((*part.filters, Column(column.is_(None), key.key, exact=True)), part.keys[1:])
    rest = Part((*part.filters, Column(column.is_not(None), key.key, usual=True)), part.keys)
    if key.direction == "desc":
        yield rest
    yield from _by_null(unset)
    if key.direction == "asc":
        yield rest


def _key(visible: Visible, each: Filter | None) -> tuple[object, ...]:
    """The same for several sets where what a filter leaves is not counted for each."""
    if isinstance(each, Rows):
        return (each,)
    found = ways.lookup(visible, each) if each is not None else None
    return (visible.deleted, each) if found is not None and found.left else (visible, each)


def _in_order(rows: list[Any], keys: Sequence[SortKey]) -> list[Any]:
    for key in reversed(keys):
        rows = sorted(rows, key=lambda row: _place(getattr(row, key.key)), reverse=key.direction == "desc")
    return rows


def _merged(rows: list[Any], part: Part, limit: int) -> list[Any]:
    """The first of rows that were found in several steps."""
    return _in_order(list({row.id: row for row in rows}.values()), part.keys)[:limit]


def _place(value: Any) -> tuple[bool, Any]:
    return (value is not None, value)


def _is_all(rows: Sequence[Any], gone: Iterable[Way], part: Part, limit: int) -> bool:
    """Whether these are the first, though some ways were not gone to their ends."""
    ends = [way.end for way in gone if way.end is not None]
    return not ends or (len(rows) >= limit and not any(_is_behind(rows[-1], end, part.keys) for end in ends))


def _met(rows: Iterable[Any], way: Way, part: Part) -> int:
    """How many rows were found before the end of a walk."""
    return sum(not _is_behind(row, way.end, part.keys) for row in rows)


def _exact(found: Iterable[Filter]) -> tuple[Filter, ...]:
    """The filters that leave images in the order of their ids."""
    return tuple(each for each in found if isinstance(each, Rows) or each.exact)


def _is_behind(row: Any, end: Any, keys: Sequence[SortKey]) -> bool:
    at, last = (tuple(getattr(each, key.key) for key in keys) for each in (row, end))
    return at > last if keys[0].direction == "asc" else at < last


def _until(end: Any, keys: Sequence[SortKey], kind: str) -> Condition:
    """What is not behind an end of a walk."""
    return _compared(end, keys, kind, "<=" if keys[0].direction == "asc" else ">=")


def _behind(end: Any, keys: Sequence[SortKey], kind: str) -> Condition:
    return _compared(end, keys, kind, ">" if keys[0].direction == "asc" else "<")


def _compared(end: Any, keys: Sequence[SortKey], kind: str, operator: str) -> Condition:
    names = [key.key for key in keys]
    values = [getattr(end, name) for name in names]
    if len(names) == 1:
        compared: Condition = images.c.id.op(operator, is_comparison=True)(values[0])
        return compared
    return ways.row_comparison(kind, names, values, operator)

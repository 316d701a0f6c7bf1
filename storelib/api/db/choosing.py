# SPDX-License-Identifier: Apache-2.0
"""Chooses how each set of images is gone through for a page of a list.

A set is either walked along an index in the order of the list, until the page is full: right where many of the images
on the way are wanted. Or what one filter leaves, or several together, is looked up and sorted: right where that is
little. Which of the two is fast differs by thousands, and no database knows it for every value. So what filters leave
is counted first, up to a limit. Where none of them leaves little, a sample of what one leaves tells whether a walk
would meet any of it: filters may leave much each and nothing together, or only images at the other end of the list.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db import ways
from storelib.api.db.filters import Column, Filter, Rows, Visible
from storelib.api.db.row_order import until
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

#: What is counted: a filter with its set or, where the set makes no difference, without it.
_Key = tuple[object, ...]


class Way(NamedTuple):
    """How one set is gone through: from what the filters of ``beginning`` leave together, or without any by a walk."""

    visible: Visible
    beginning: tuple[Filter, ...] = ()
    #: A walk that may look at very many images; and one of a set that is FEW at most.
    long: bool = False
    small: bool = False
    #: Rows of the list: where an earlier walk ended, after which this one goes on, and where it is given up.
    start: Any = None
    end: Any = None

    @property
    def is_sorted_whole(self) -> bool:
        """Whether all that is to be gone through is little, and may be sorted in any order."""
        return bool(self.beginning) or self.small or (self.long and self.end is None)


def longest_walk(limit: int) -> int:
    """How many images a walk looks at for a page of ``limit`` before it is given up."""
    return max(WALK * limit, SHORTEST_WALK)


def few(limit: int | None) -> int:
    """How many images are sorted for a page of ``limit``, rather than walking along an index.

    A walk looks at the more the longer the page is: the two are as fast as each other where what is sorted grows with
    its root.
    """
    return FEW * max(1, math.isqrt((limit or 0) // 50))


class Choice:
    """The ways through some sets of images for which filters hold, to a page of ``limit``, in one transaction."""

    def __init__(
        self, connection: Connection, sets: Sequence[Visible], filters: Sequence[Filter], limit: int | None
    ) -> None:
        self._connection = connection
        self._few = few(limit)
        self._kind = connection.dialect.name
        self._sets = sets
        self._filters = tuple(filters)
        self._counts: dict[_Key, int] = {}
        # Of how many images of a sample a filter holds; and those that samples are of, which left the least.
        self._passed: dict[Filter, int] = {}
        self._sampled: set[Filter] = set()
        # What is known exactly: of filters that leave SOME at most.
        self._some: dict[_Key, int] = {}

    def filters(self, visible: Visible, part: Part) -> list[Filter]:
        """All that hold for the images of a set in a part of the list."""
        return [*visible.filters, *self._filters, *part.filters]

    def rarest_first(self, visible: Visible, part: Part) -> list[Filter]:
        """The same, as far as it is known, with those first that leave the least."""
        return sorted(
            self.filters(visible, part), key=lambda each: (each not in self._sampled, self._passed.get(each, SAMPLE))
        )

    def short_ways(self, part: Part) -> list[Way]:
        """For each set from a filter that leaves few, or a walk; none where nothing is left."""
        chosen: list[Way] = []
        asked = [(visible, self._selective(visible, part)) for visible in self._sets]
        # Of several keys each is another walk, but what is small is sorted.
        several = len({key.key for key in part.keys} - {"id"}) > 1
        wholes = {visible for visible, found in asked if visible.prefix and (found or several)}
        self._count(((visible, each) for visible, found in asked for each in found), self._few, wholes)
        for visible, found in asked:
            counts = {each: self._counts[_key(visible, each)] for each in found}
            least = min(found, key=lambda each: counts[each], default=None)
            small = visible in wholes and self._counts[_key(visible, None)] <= FEW
            if least is not None and counts[least] <= (FEW if small else self._few):
                chosen += [Way(visible, (least,))] if counts[least] else []
            else:
                chosen.append(Way(visible, long=least is not None and not small, small=small))
        return chosen

    def leaves_many(self, wanted: Column) -> bool:
        """Whether a filter that an index tells leaves more than FEW of some set."""
        counts = self._count_anew(((visible, wanted) for visible in self._sets), FEW)
        return any(count > FEW for count in counts.values())

    def better_than(self, walk: Way, part: Part, steps: int, limit: int) -> Way | None:
        """A better way than a walk of ``steps`` that is not likely to meet ``limit`` images; None if it is the best."""
        if walk.end is None:
            return None
        visible, found = walk.visible, self._selective(walk.visible, part)
        counts = self._count_anew(((visible, each) for each in found), SOME)
        self._some.update((key, count) for key, count in counts.items() if count <= SOME)
        least = min(found, key=lambda each: counts[_key(visible, each)])
        count = counts[_key(visible, least)]
        # What is no more than the walk would go through.
        few = count <= min(steps, SOME)
        if not _exact([least]):
            # The first of a range are no sample of it.
            return Way(visible, (least,)) if few else None
        together = _exact(each for each in self._selective(visible, part, all_of=True) if each is not least)
        near = until(walk.end, part.keys, self._kind)
        sample = ways.sample(self._kind, visible, least, self.filters(visible, part), near, SAMPLE, together)
        # Of the sample: for how many all filters hold, how many of these the walk would meet, and each filter alone.
        wanted, met, *passing = self._connection.execute(sample).one()
        self._passed.update(zip(together, passing, strict=True))
        self._sampled.add(least)
        together = self._together(least, (least, *together))
        if few and met * count >= limit * SAMPLE:
            return None
        cheap = not few or all(counts.get(_key(visible, each), SOME + 1) <= SOME for each in together)
        if self._kind in ways.MERGING and len(together) > 1 and wanted <= SAMPLE // 10 and cheap:
            return Way(visible, together)
        if count <= SOME:
            return None if met and not few else Way(visible, (least,))
        return None if wanted else self.any_ways([visible], part)[0]

    def any_ways(self, sets: Sequence[Visible], part: Part) -> list[Way]:
        """For each set from the filter that leaves the least, however much that is; a walk where no index helps."""
        # What nearly all images have is looked at only where there is nothing else.
        asked = [
            (visible, self._selective(visible, part, all_of=True) or self._selective(visible, part, usual=True))
            for visible in sets
        ]
        # What is alone, or known to be no more than SOME, need not be counted.
        asked = [
            (visible, [each for each in found if _key(visible, each) in self._some] or found)
            for visible, found in asked
        ]
        several = [(visible, each) for visible, found in asked if len(found) > 1 for each in found]
        unknown = (one for one in several if _key(*one) not in self._some)
        counts = {**self._some, **self._count_anew(unknown, MANY)}
        return [Way(visible, self._least(visible, found, counts)) for visible, found in asked]

    def _least(self, visible: Visible, found: Sequence[Filter], counts: Mapping[_Key, int]) -> tuple[Filter, ...]:
        """What to begin with: the filter that leaves the least, or several of which each leaves much."""
        if len(found) < 2:
            return tuple(found)
        least = min(found, key=lambda each: counts[_key(visible, each)])
        together = self._together(least, found) if counts[_key(visible, least)] > SOME else ()
        return together if self._kind in ways.MERGING and len(together) > 1 else (least,)

    def _together(self, least: Filter, found: Sequence[Filter]) -> tuple[Filter, ...]:
        """What to intersect with one filter, which costs what all of them have: those that leave out the most of it.

        Not more than are needed to leave a twentieth.
        """
        chosen, share = [least], 1.0
        for each in sorted((each for each in found if each is not least), key=lambda each: self._passed.get(each, 0)):
            of_sample = self._passed.get(each, 0)
            if share > 1 / 20 and of_sample <= SAMPLE // 4:
                chosen.append(each)
                share *= of_sample / SAMPLE if each in self._passed else 1
        return _exact(chosen)

    def _selective(self, visible: Visible, part: Part, *, all_of: bool = False, usual: bool = False) -> list[Filter]:
        """The filters that a set may be begun with: an index finds what they leave.

        Without those that the walk is along, unless ``all_of``; with ``usual`` also those that nearly all images pass.
        """
        filters = self.filters(visible, part)
        _, _, beside = ways.along(visible, filters, part.keys[0].key)
        return [
            each
            for each in (filters if all_of or usual else beside)
            if isinstance(each, Rows)
            or (each.name != visible.prefix and (usual or not each.usual) and ways.lookup(visible, each) is not None)
        ]

    def _count(self, asked: Iterable[tuple[Visible, Filter]], most: int, wholes: Iterable[Visible]) -> None:
        """Count what is not yet known of what filters leave, and of whole sets."""
        every: list[tuple[Visible, Filter | None]] = [*asked, *((visible, None) for visible in wholes)]
        unknown = [(visible, each) for visible, each in every if _key(visible, each) not in self._counts]
        self._counts.update(self._count_anew(unknown, most))

    def _count_anew(self, asked: Iterable[tuple[Visible, Filter | None]], most: int) -> dict[_Key, int]:
        """How many images filters leave, counted in one statement up to ``most``."""
        statements = {_key(visible, each): ways.count(self._kind, visible, each, most) for visible, each in asked}
        if not statements:
            return {}
        found = self._connection.execute(sa.select(*statements.values())).one()
        return dict(zip(statements, found, strict=True))


def _key(visible: Visible, each: Filter | None) -> _Key:
    """The same for several sets where what a filter leaves is not counted for each."""
    if isinstance(each, Rows):
        return (each,)
    found = ways.lookup(visible, each) if each is not None else None
    return (visible.deleted, each) if found is not None and found.left else (visible, each)


def _exact(found: Iterable[Filter]) -> tuple[Filter, ...]:
    """The filters that leave images in the order of their ids."""
    return tuple(each for each in found if isinstance(each, Rows) or each.exact)

# SPDX-License-Identifier: Apache-2.0
"""The statements that go through one set of images: along an index in the list's order, or from what a filter leaves.

The databases are made to go the way that is chosen: MariaDB and SQLite by hints, SQLite also by conditions that it uses
no index for (a + before them), PostgreSQL by common table expressions that it evaluates by themselves.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.util import ClauseAdapter

from storelib.api.db.filters import Column, Condition, Filter, Rows, Visible
from storelib.api.db.records import SortKey
from storelib.api.db.schema import ORDERS, images

#: Databases that intersect what filters leave without looking for each of one in the other, which on MySQL and MariaDB
#: is faster than the table of all of it that they make for this.
MERGING = frozenset({"sqlite", "postgresql"})
#: These two join 61 tables at most.
_MOST_JOINED = 20
_Any = sa.ColumnElement[Any]


class Part(NamedTuple):
    """A part of a list: the conditions that make it one, and the keys that are left to sort it by."""

    filters: tuple[Column, ...]
    keys: tuple[SortKey, ...]

    @property
    def columns(self) -> list[_Any]:
        """The id and the keys, which tell where in the list an image is."""
        return [images.c[name] for name in dict.fromkeys(("id", *(key.key for key in self.keys)))]


class Lookup(NamedTuple):
    """An index of the images with the conditions that it covers, and those of a set that it does not."""

    name: str
    covered: list[Condition]
    left: list[Condition]


class Looked(FunctionElement[Any]):
    """A condition or a column that is looked at, and not looked up in an index."""

    inherit_cache = True


@compiles(Looked)
def _looked(element: Looked, compiler: Any, **options: Any) -> str:
    return f"({compiler.process(element.clauses, **options)})"


@compiles(Looked, "sqlite")
def _looked_sqlite(element: Looked, compiler: Any, **options: Any) -> str:
    return f"+({compiler.process(element.clauses, **options)})"


def lookup(visible: Visible, column: Column) -> Lookup | None:
    """How those of a set are found that have this value, or are in this range; None: by no index."""
    name, (*prefix, deleted) = column.name, visible.within
    if name == "id":
        return Lookup("PRIMARY", [column.holds], visible.within)
    if name in ("owner", "visibility"):
        return Lookup(f"ix_images_{name}_id", [column.holds, deleted], prefix)
    if visible.prefix and _index(visible.prefix, name) in ORDERS:
        return Lookup(_index(visible.prefix, name), [*visible.within, column.holds], [])
    return Lookup(_index("", name), [deleted, column.holds], prefix) if _index("", name) in ORDERS else None


def along(visible: Visible, filters: Sequence[Filter], key: str) -> tuple[Lookup, list[Column], list[Filter]]:
    """The index that has a set in the order of a key, the filters that it covers, and the others."""
    on_key = [each for each in filters if isinstance(each, Column) and each.name == key]
    exact = [each for each in filters if isinstance(each, Column) and each.exact and each.name]
    # An index of what nearly all have, that they are not hidden, is as good as none.
    exact.sort(key=lambda each: each.usual)
    found = Lookup(_index(visible.prefix, key), visible.within, [])
    # The images of one value, or of two, may be in this order in an index of theirs.
    for name, covered_too in _in_order(visible, exact, key):
        if name in ORDERS:
            found, on_key = Lookup(name, visible.within, []), [*on_key, *covered_too]
            break
    else:
        if key == "id" and not visible.prefix:
            found = Lookup("PRIMARY", [], visible.within)
    covered = [*found.covered, *(each.holds for each in on_key)]
    others = [each for each in filters if not any(each is other for other in on_key)]
    return Lookup(found.name, covered, found.left), on_key, others


def _in_order(visible: Visible, exact: Sequence[Column], key: str) -> Iterator[tuple[str, tuple[Column, ...]]]:
    """The names of indexes, if there are any, that have the images of one value, or of two, in the order of a key."""
    if key != "id":
        yield from ((_index(each.name, key), (each,)) for each in exact if not visible.prefix)
        return
    if not visible.prefix:
        yield from ((_index(one.name, two.name), (one, two)) for one, two in itertools.permutations(exact, 2))
    yield from ((_index(visible.prefix, each.name), (each,)) for each in exact)


def count(kind: str, visible: Visible, wanted: Filter | None, most: int) -> sa.ScalarSelect[Any]:
    """How many one filter leaves of a set, or for None how many it is: counted to one more than ``most``.

    Without what no index tells.
    """
    exact = True
    if isinstance(wanted, Rows):
        ids, key = wanted.ids(), wanted.table.c.image_id
    else:
        found = _found_by(visible, wanted) if wanted is not None else along(visible, (), "id")[0]
        ids, key = _hinted(sa.select(images.c.id).where(*found.covered), found.name), images.c.id
        exact = wanted is None or wanted.exact
    if kind == "postgresql" and exact:
        # It might read a large table from its beginning, hoping to come across enough of them.
        ids = ids.order_by(*_unset_first([wanted], "asc"), key)
    # Ids would make the table larger that MariaDB makes of them.
    rows: sa.Select[Any] = ids.with_only_columns(sa.literal_column("1").label("one"))
    counted = sa.select(sa.func.count()).select_from(rows.limit(most + 1).subquery())
    return counted.scalar_subquery()


def walk(
    kind: str,
    select: sa.Select[Any],
    visible: Visible,
    filters: Sequence[Filter],
    part: Part,
    end: Iterable[Condition] = (),
) -> sa.Select[Any]:
    """``select`` of the images in order, for which all filters hold and that are not behind ``end``."""
    found, on_key, others = along(visible, filters, part.keys[0].key)
    probed = _probed(kind, visible, others)
    if probed:
        walked = _hinted(sa.select(*part.columns).where(*found.covered, *end), found.name).subquery()
        read = [_looked_at(each, images.c.id) for each in others if each not in probed]
        select = _with_ids(select, visible, walked, probed).where(*found.left, *read)
        return select.order_by(*(_directed(kind, walked.c[key.key], key) for key in part.keys))
    looked = [Looked(each) for each in found.left] + [_looked_at(each, images.c.id) for each in others]
    if kind == "sqlite" and not found.left:
        looked = _looked_at_in_turn(others)
    select = select.where(*found.covered, *end, *looked)
    if kind == "postgresql":
        select = select.order_by(*_unset_first(on_key, part.keys[0].direction))
    return _hinted(select.order_by(*order(kind, part.keys)), found.name)


def _probed(kind: str, visible: Visible, filters: Iterable[Filter]) -> list[Filter]:
    """On MariaDB: the filters whose indexes are asked for one image after the other, before that is read.

    It keeps images by their ids: out of a million, one takes 4 us to read, an entry of the index that is walked along
    0.2, and one that is looked for in another 1 to 2.
    """
    if kind in MERGING:
        return []
    return [each for each in filters if isinstance(each, Rows) or _is_probed(visible, each)][:_MOST_JOINED]


def _is_probed(visible: Visible, column: Column) -> bool:
    return column.exact and not column.usual and column.name != "id" and lookup(visible, column) is not None


def _entries_of(visible: Visible, each: Filter) -> tuple[sa.Table, str, Sequence[Condition]]:
    if isinstance(each, Rows):
        return each.table, each.index, each.found
    by = _found_by(visible, each)
    return images, by.name, by.covered


def _looked_at_in_turn(filters: Sequence[Filter]) -> list[Condition]:
    """On SQLite: it reads the image first, for what nearly all have, and then looks for other rows, which few have."""
    rows = [each for each in filters if isinstance(each, Rows)]
    usual = [each for each in filters if isinstance(each, Column)]
    if not rows or not usual or not all(each.usual for each in usual):
        return [_looked_at(each, images.c.id) for each in filters]
    has = sa.and_(*(each.has(images.c.id) for each in rows))
    return [Looked(sa.case((has, sa.and_(*(each.holds for each in usual)))))]


def begin(
    kind: str,
    visible: Visible,
    beginning: Sequence[Filter],
    filters: Sequence[Filter],
    part: Part,
    limit: int | None,
) -> sa.Select[Any]:
    """The ids of the first images for which all filters hold, of which those of ``beginning`` leave few together.

    If these are several, each is Rows or exact, and the database is one of MERGING.
    """
    others = [each for each in filters if not any(each is other for other in beginning)]
    if kind == "postgresql":
        return _evaluated_apart(visible, beginning, others, part, limit)
    first, probed = beginning[0], _probed(kind, visible, others)
    rows = [each for each in others if isinstance(each, Rows) and each not in probed]
    columns = [each for each in others if isinstance(each, Column) and each not in probed]
    if isinstance(first, Column) and len(beginning) == 1 and len(columns) == len(others):
        by = _found_by(visible, first)
        looked = [*map(Looked, by.left), *(_looked_at(each, images.c.id) for each in others)]
        found = _hinted(sa.select(images.c.id).where(*by.covered, *looked), by.name)
    else:
        begun = _ids(visible, beginning)
        found = _with_ids(sa.select(images.c.id), visible, begun, probed)
        # Other rows are looked up before the image is.
        found = found.where(*(Looked(each.has(begun.c.image_id)) for each in rows))
        found = found.where(*(Looked(each) for each in visible.within), *(Looked(each.holds) for each in columns))
    return found.order_by(*order(kind, part.keys, Looked)).limit(limit)


def sample(
    kind: str,
    visible: Visible,
    wanted: Filter,
    filters: Sequence[Filter],
    near: Condition,
    size: int,
    each: Sequence[Filter],
) -> sa.Select[Any]:
    """Of so many images that one filter leaves: for how many all filters hold, and how many of these are ``near``.

    And for how many of them each of some other filters holds. ``wanted`` is Rows, or exact.
    """
    ids = _ids_of(visible, wanted)
    if kind == "postgresql":
        ids = ids.order_by(*_unset_first([wanted], "asc"), ids.selected_columns[0])
    begun = ids.limit(size).subquery()
    holding = [_looked_at(other, begun.c.image_id) for other in filters if other is not wanted]
    every = sa.and_(*visible.within, *holding)
    counted = [every, sa.and_(every, near), *(_looked_at(one, begun.c.image_id) for one in each)]
    counts: list[_Any] = [sa.func.count(sa.case((one, 1))) for one in counted]
    return _with_ids(sa.select(*counts), visible, begun)


def _ids(visible: Visible, beginning: Sequence[Filter]) -> sa.Subquery:
    """The ids of the images that all of these leave."""
    each = [_ids_of(visible, one) for one in beginning]
    if len(each) == 1:
        return each[0].subquery()
    # SQLite merges the indexes in the order of the ids; but it drops an order without a limit.
    return sa.intersect(*each).order_by("image_id").limit(sys.maxsize).subquery()


def _ids_of(visible: Visible, wanted: Filter) -> sa.Select[tuple[str]]:
    if isinstance(wanted, Rows):
        return wanted.ids()
    by = _found_by(visible, wanted)
    return _hinted(sa.select(images.c.id.label("image_id")).where(*by.covered), by.name)


def _found_by(visible: Visible, wanted: Column) -> Lookup:
    found = lookup(visible, wanted)
    if found is None:
        raise ValueError("no index tells that")
    return found


def _with_ids(
    select: sa.Select[Any], visible: Visible, begun: sa.Subquery, probed: Iterable[Filter] = ()
) -> sa.Select[Any]:
    """``select`` of the images with these ids, in their order, that the indexes of some filters have.

    Such an index has an image once at most. To ask it by a subquery would take half as long again.
    """
    image_id, *_ = begun.c
    joined: sa.FromClause = begun
    for each in probed:
        table, index, conditions = _entries_of(visible, each)
        entries = table.alias()
        found = map(ClauseAdapter(entries).traverse, conditions)
        key = entries.c.id if table is images else entries.c.image_id
        joined = joined.join(entries, sa.and_(*found, key == image_id))
        select = _hinted(select, index, entries)
    select = select.select_from(joined.join(images, images.c.id == Looked(image_id)))
    select = select.with_hint(images, "INDEXED BY ix_images_looked_at", "sqlite")
    for server in ("mysql", "mariadb"):
        select = select.prefix_with("STRAIGHT_JOIN", dialect=server)
        # Or each of its indexes is asked for a better way, which takes 1 ms.
        select = select.with_hint(images, "FORCE INDEX (PRIMARY)", server)
    return select


def order(kind: str, keys: Sequence[SortKey], column: Callable[[_Any], _Any] = lambda column: column) -> list[_Any]:
    """What a statement is ordered by."""
    return [_directed(kind, column(images.c[key.key]), key) for key in keys]


def row_comparison(kind: str, names: Sequence[str], values: Sequence[Any], operator: str) -> Condition:
    """Two columns, compared as one row with two values that are set: ``operator`` is >, >=, < or <=.

    The second is the id.
    """
    (first, second), (one, two) = (images.c[name] for name in names), values
    if kind in ("sqlite", "postgresql"):
        pairs = zip(names, values, strict=True)
        row = sa.tuple_(*(sa.bindparam(None, value, images.c[name].type) for name, value in pairs))
        # PostgreSQL judges by the first column how many these are: by < as if none were level there, which all may be.
        widened = kind == "postgresql" and not operator.endswith("=")
        used = f"{operator}=" if widened else operator
        compared: Condition = sa.tuple_(first, second).op(used, is_comparison=True)(row)
        return sa.and_(compared, second != two) if widened else compared
    # MySQL reads everything from the start of the index for a comparison of rows.
    beyond: Condition = first > one if operator.startswith(">") else first < one
    level: Condition = second.op(operator, is_comparison=True)(two)
    either: Condition = beyond | ((first == one) & level)
    return either


def _directed(kind: str, column: _Any, key: SortKey) -> _Any:
    directed = column.asc() if key.direction == "asc" else column.desc()
    if kind != "postgresql" or not images.c[key.key].nullable:
        return directed
    # PostgreSQL alone sorts what is not set last, and its indexes are made so that they can be walked in this order.
    return directed.nulls_first() if key.direction == "asc" else directed.nulls_last()


def _unset_first(filters: Iterable[Filter | None], direction: str) -> list[_Any]:
    """What is ordered by on PostgreSQL before all else: columns that have one value, which it knows but of NULL.

    Without them it takes no index with such a column for one in the order of what follows it there.
    """
    exact = [images.c[each.name] for each in filters if isinstance(each, Column) and each.exact]
    columns = [column for column in exact if column.nullable]
    return [column.asc().nulls_first() if direction == "asc" else column.desc().nulls_last() for column in columns]


def _evaluated_apart(
    visible: Visible, beginning: Sequence[Filter], others: Sequence[Filter], part: Part, limit: int | None
) -> sa.Select[Any]:
    found = sa.select(*part.columns)
    first, *more = sorted(beginning, key=lambda each: isinstance(each, Column))
    if isinstance(first, Rows) and not more and all(isinstance(each, Rows) or each.usual for each in others):
        begun = _one_by_one(found, visible, first, others).cte().prefix_with("MATERIALIZED")
    else:
        begun = _together(found, visible, first, more, others).cte().prefix_with("MATERIALIZED")
    by = [_directed("postgresql", begun.c[key.key], key) for key in part.keys]
    return sa.select(begun.c.id).order_by(*by).limit(limit)


def _one_by_one(select: sa.Select[Any], visible: Visible, first: Rows, others: Sequence[Filter]) -> sa.Select[Any]:
    """``select`` of the images of some rows, each looked up by its id when it has the other rows.

    For some thousand, PostgreSQL would rather read all images, by three processes at once. Where a filter of another
    kind holds, an index for that may leave less: it chooses by itself.
    """
    rows = first.ids().subquery()
    columns = (each.holds for each in others if isinstance(each, Column))
    image = select.where(images.c.id == rows.c.image_id, *visible.within, *columns).limit(1).lateral()
    has = (each.has(rows.c.image_id) for each in others if isinstance(each, Rows))
    return sa.select(image).select_from(rows.join(image, sa.true())).where(*has)


def _together(
    select: sa.Select[Any], visible: Visible, first: Filter, more: Sequence[Filter], others: Sequence[Filter]
) -> sa.Select[Any]:
    """``select`` of the images for which the first and all others hold."""
    if isinstance(first, Rows):
        rows = first.ids().subquery()
        select = select.join_from(rows, images, images.c.id == rows.c.image_id)
    else:
        select = select.where(first.holds)
    # Of many it chooses how they are intersected. Few are looked up: it might take a common value for a rare one.
    together = [each.holds if isinstance(each, Column) else images.c.id.in_(each.ids()) for each in more]
    looked = [_looked_at(each, images.c.id) for each in others]
    return select.where(*visible.within, *together, *looked)


def _looked_at(each: Filter, image_id: sa.ColumnElement[str]) -> Condition:
    return Looked(each.holds if isinstance(each, Column) else each.has(image_id))


def _hinted(select: sa.Select[Any], index: str, table: sa.FromClause = images) -> sa.Select[Any]:
    for server in ("mysql", "mariadb"):
        select = select.with_hint(table, f"FORCE INDEX ({index})", server)
    # Without statistics, all indexes that begin with the same column are the same to it, and sorting costs nothing.
    known = "sqlite_autoindex_images_1" if index == "PRIMARY" else index
    return select.with_hint(table, f"INDEXED BY {known}", "sqlite")


def _index(prefix: str, column: str) -> str:
    return f"ix_images_{prefix}_{column}" if prefix else f"ix_images_{column}"

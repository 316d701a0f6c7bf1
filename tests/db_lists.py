# SPDX-License-Identifier: Apache-2.0
"""How lists are found, on every database: by which index, and which way just below and just above each limit.

Times are asserted nowhere: plans are, which indexes a database says that it walks along, and what it has to sort.
"""

from __future__ import annotations

import datetime
import itertools
import random
import re

import db_model
import pytest
import sqlalchemy as sa
from db_contract import ids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storelib.api.db import Repository, choosing
from storelib.api.db.engine import Database
from storelib.api.db.listing import MOST_FILTERS
from storelib.api.db.records import Caller, Member, Query, Range, SortKey, TimeFilter
from storelib.api.db.rows import to_time
from storelib.api.db.schema import SORTED_BY, image_members, image_properties, image_tags, images

PROJECTS = ("me", "other", None)
VISIBILITIES = ("public", "private", "shared", "community")
TEXT = st.sampled_from(["", "a", "A", "a ", "b", "ä", "\U0001f600", "\uffff", "aa"])
NUMBER = st.sampled_from([0, 1, 2, 2**40])
TAG = st.sampled_from(["x", "y", "X"])
SORTS = st.lists(st.builds(SortKey, st.sampled_from(SORTED_BY), st.sampled_from(["asc", "desc"])), max_size=3).map(
    tuple
)
FIRST = 1_600_000_000_000_000


def one_of(*values):
    return st.none() | st.lists(st.sampled_from(values), max_size=2).map(tuple)


def times(moments):
    """Filters around the times of images, whole seconds and parts of them."""
    near = st.sampled_from(moments or [datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)])
    value = st.builds(lambda moment, whole: moment.replace(microsecond=0) if whole else moment, near, st.booleans())
    operators = st.sampled_from(["gt", "gte", "lt", "lte", "eq", "neq"])
    return st.builds(TimeFilter, st.sampled_from(["created_at", "updated_at"]), operators, value)


def queries(images):
    """Any list of these images."""
    usually_none = st.none() | st.none()
    moments = [image.updated_at for image in images]
    ranges = st.builds(Range, st.sampled_from(["size", "min_ram"]), st.none() | NUMBER, st.none() | NUMBER)
    return st.builds(
        Query,
        caller=st.builds(Caller, st.sampled_from([*PROJECTS, "third"]), st.booleans()),
        sort=SORTS,
        ids=usually_none | st.lists(st.sampled_from([image.id for image in images] or ["x"]), max_size=3).map(tuple),
        names=usually_none | st.lists(TEXT, max_size=2).map(tuple),
        statuses=one_of("queued", "active", "saving", "deleted"),
        disk_formats=one_of("raw", "qcow2"),
        container_formats=one_of("bare", "ovf"),
        visibility=st.sampled_from([None, "all", *VISIBILITIES]),
        is_public=usually_none | st.booleans(),
        member_status=st.sampled_from(["pending", "accepted", "rejected", "all"]),
        owner=usually_none | st.sampled_from(["me", "other"]),
        protected=usually_none | st.booleans(),
        os_hidden=usually_none | st.booleans(),
        checksum=usually_none | st.sampled_from(["c1", "c3"]),
        tags=st.frozensets(TAG, max_size=2),
        properties=st.just({}) | st.dictionaries(st.sampled_from(["p", "q"]), TEXT, max_size=2),
        ranges=st.just(()) | st.tuples(ranges),
        times=st.just(()) | st.tuples(times(moments)),
        changes_since=usually_none | st.sampled_from(moments or [None]),
        deleted=st.sampled_from([False, None, True]),
    )


#: Each filter of a list, alone, and some with another.
EVERY_FILTER: tuple[dict[str, object], ...] = (
    {},
    {"statuses": ("active",)},
    {"statuses": ("queued", "killed")},
    {"names": ("image-7",)},
    {"disk_formats": ("raw",)},
    {"container_formats": ("ovf",)},
    {"visibility": "shared"},
    {"visibility": "all", "member_status": "all"},
    {"is_public": False},
    {"owner": "other"},
    {"protected": True},
    {"os_hidden": True},
    {"os_hidden": False},
    {"checksum": "c1"},
    {"os_hash_algo": "sha512"},
    {"os_hash_value": "nothing"},
    {"tags": frozenset({"many"})},
    {"tags": frozenset({"left", "right"})},
    {"properties": {"p": "a"}},
    {"tags": frozenset({"left"}), "properties": {"p": "a"}},
    {"tags": frozenset({"left"}), "statuses": ("active",)},
    {"ranges": (Range("size", 3, None),)},
    {"ranges": (Range("virtual_size", None, 3),)},
    {"ranges": (Range("min_disk", 1, 5), Range("min_ram", 1, 1))},
    {"times": (TimeFilter("created_at", "gt", to_time(FIRST)), TimeFilter("updated_at", "lt", to_time(FIRST)))},
    {"changes_since": to_time(FIRST), "deleted": None},
)


class Limited:
    """Tests that change what is few and how far a walk goes."""

    @pytest.fixture(scope="class")
    @classmethod
    def limits(cls):
        """Sets them; they are as they were when the tests of the class are over."""
        names = ("FEW", "WALK", "SHORTEST_WALK", "SOME", "SAMPLE")
        before = {name: getattr(choosing, name) for name in names}

        def change(few: int, steps: int, some: int = before["SOME"], sample: int = before["SAMPLE"]) -> None:
            for name, value in zip(names, (few, 1, steps, some, sample), strict=True):
                setattr(choosing, name, value)

        yield change
        for name, value in before.items():
            setattr(choosing, name, value)


class RandomListContract(Limited):
    """Subclasses have a fixture ``database`` of a migrated, empty database, for the whole class."""

    @pytest.fixture(scope="class")
    @classmethod
    def filled(cls, database):
        """(repository, all images, all members) of a small catalogue in which much is equal or not set."""
        chance = random.Random(15)
        rows = [_random_row(chance, number) for number in range(60)]
        tags = [(row["id"], tag) for row in rows for tag in chance.sample(["x", "y", "X"], chance.randrange(4))]
        texts = ["", "a", "A", "a ", "b", "ä", "\U0001f600", "\uffff", "aa", None, "a" * 64, "a" * 63, "a" * 65]
        values = [(row["id"], name, chance.choice(texts)) for row in rows for name in ("p", "q")]
        statuses = ["pending", "accepted", "rejected"]
        shares = [(row["id"], "me", chance.choice(statuses)) for row in rows if chance.randrange(2)]

        def insert(connection):
            connection.execute(images.insert(), rows)
            connection.execute(image_tags.insert(), [{"image_id": key, "tag": tag} for key, tag in tags])
            properties = [
                {"image_id": key, "name": name, "value": value, "head": None if value is None else value[:64]}
                for key, name, value in values
            ]
            connection.execute(image_properties.insert(), properties)
            connection.execute(image_members.insert(), [_share(*share) for share in shares])

        database.write(insert)
        repository = Repository(database)
        members = [Member(key, member, status, False, to_time(0), to_time(0)) for key, member, status in shares]
        return repository, [repository.images.get(row["id"], deleted=True) for row in rows], members

    @settings(
        max_examples=80,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(
        data=st.data(),
        few=st.sampled_from([0, 2, 5000]),
        steps=st.sampled_from([1, 4, 20, 10_000]),
        some=st.sampled_from([0, 4, 20_000]),
        sample=st.sampled_from([1, 10]),
    )
    def test_any_list_is_that_of_a_plain_comparison(self, filled, limits, data, few, steps, some, sample):
        repository, all_images, members = filled
        query = data.draw(queries(all_images))
        limits(few, steps, some, sample)
        wanted = db_model.expected(all_images, members, query)
        assert ids(repository.images.list(query)) == wanted
        limit = data.draw(st.integers(1, 7))
        page, marker = wanted[:limit], data.draw(st.sampled_from([None, *wanted]))
        if marker is not None:
            page = wanted[wanted.index(marker) + 1 :][:limit]
        found = repository.images.list(query.__class__(**{**_fields(query), "limit": limit, "marker": marker}))
        assert ids(found) == page
        assert found.more == (bool(page) and page[-1] != wanted[-1])

    # What hypothesis might not meet in so few examples.
    def test_values_as_long_as_the_index_has_them_are_told_from_longer_ones(self, filled, limits):
        repository, all_images, members = filled
        for few, length in itertools.product((0, 5000), (62, 63, 64, 65, 66)):
            limits(few, 1)
            query = Query(Caller(None, is_admin=True), properties={"p": "a" * length}, deleted=None, visibility="all")
            assert ids(repository.images.list(query)) == db_model.expected(all_images, members, query)


class PlanContract(Limited):
    """Subclasses have a fixture ``database`` of a migrated, empty database, for the whole class."""

    @pytest.fixture(scope="class")
    @classmethod
    def filled(cls, database):
        """More images than are few: one tag and membership of as many as are few, others of one more."""
        rows = [_plain_row(number) for number in range(choosing.FEW + 200)]
        keys = [row["id"] for row in rows]
        tags = [*(("few", key) for key in keys[: choosing.FEW]), *(("many", key) for key in keys[: choosing.FEW + 1])]
        tags += [("rare", key) for key in keys[::700]]
        # Each is much, and no image has both.
        tags += [(("left", "right")[number % 2], key) for number, key in enumerate(keys)]

        def insert(connection):
            connection.execute(images.insert(), rows)
            connection.execute(image_tags.insert(), [{"image_id": key, "tag": tag} for tag, key in tags])
            shares = [_share(key, "few", "accepted") for key in keys[: choosing.FEW]]
            shares += [_share(key, "many", "accepted") for key in keys[: choosing.FEW + 1]]
            connection.execute(image_members.insert(), shares)

        database.write(insert)
        with database.engine.connect() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            if database.kind == "postgresql":
                connection.exec_driver_sql("VACUUM ANALYZE")
            elif database.kind != "sqlite":
                connection.exec_driver_sql("ANALYZE TABLE images, image_tags, image_members").all()
        return database

    @pytest.mark.parametrize("key", SORTED_BY)
    @pytest.mark.parametrize("direction", ["asc", "desc"])
    @pytest.mark.parametrize(
        ("caller", "prefix", "more"),
        [
            (Caller(None, is_admin=True), "", {}),
            (Caller("me"), "owner", {"visibility": "private"}),
            (Caller(None), "visibility", {}),
            (Caller("someone", is_admin=True), "owner", {"owner": "me"}),
            (Caller("someone", is_admin=True), "visibility", {"visibility": "shared"}),
        ],
        ids=["admin", "owner", "public", "admin of an owner", "admin of a visibility"],
    )
    def test_every_order_is_walked_along_its_index(self, filled, key, direction, caller, prefix, more):
        index = f"ix_images_{prefix}_{key}" if prefix else f"ix_images_{key}"
        # What is not hidden is in order there, too.
        index = {"ix_images_id": "ix_images_os_hidden", "ix_images_created_at": "ix_images_os_hidden_created_at"}.get(
            index, index
        )
        if more.get("visibility") == "private":
            more = {}  # the first of its sets
        query = Query(caller, sort=(SortKey(key, direction),), limit=25, os_hidden=False, **more)
        plans = plans_of(filled, query)
        if filled.kind == "postgresql":
            # It chooses by itself, and of so few images another index may serve as well: what counts is the order.
            plans = [plan for plan in plans if re.search(r"Index\b.* using (ix_images_|images_pkey)", plan)]
            assert plans
        else:
            plans = [plan for plan in plans if index in plan]
            assert plans
        if not (caller.project == "me" and not caller.is_admin):
            # What is put together from several sets is sorted, which are not many rows.
            assert not any(_sorts(plan) for plan in plans), plans

    @pytest.mark.parametrize(
        ("column", "more"),
        [
            ("status", {"statuses": ("queued",)}),
            ("name", {"names": ("nobody",)}),
            ("disk_format", {"disk_formats": ("iso",)}),
            ("container_format", {"container_formats": ("ovf",)}),
            ("size", {"ranges": (Range("size", 1 << 60, None),)}),
            ("virtual_size", {"ranges": (Range("virtual_size", 5, 5),)}),
            ("min_disk", {"ranges": (Range("min_disk", 1000, None),)}),
            ("min_ram", {"ranges": (Range("min_ram", 1000, None),)}),
            ("checksum", {"checksum": "nothing"}),
            ("os_hash_value", {"os_hash_value": "nothing"}),
            ("os_hash_algo", {"os_hash_algo": "nothing"}),
            ("protected", {"protected": True}),
            ("os_hidden", {"os_hidden": True}),
            ("updated_at", {"times": (TimeFilter("updated_at", "gt", to_time(4_000_000_000_000_000)),)}),
        ],
    )
    def test_what_a_filter_leaves_is_found_by_its_index(self, filled, column, more):
        query = Query(Caller(None, is_admin=True), limit=25, sort=(SortKey("created_at", "desc"),), **more)
        [counting, *_] = plans_of(filled, query)
        assert f"ix_images_{column}" in counting

    @pytest.mark.parametrize(("tag", "begun"), [("few", True), ("many", False), ("rare", True)])
    def test_a_tag_of_few_is_begun_with_and_one_of_more_is_looked_for(self, filled, tag, begun):
        query = Query(Caller(None, is_admin=True), limit=25, tags=frozenset({tag}))
        statements = statements_of(filled, query)
        assert [_begins(statement) for statement in statements if _reads_page(statement)] == [begun]

    def test_rows_are_looked_for_in_the_index_of_the_filter(self, filled):
        if filled.kind == "postgresql":
            return  # it has all of these rows in either index, and takes one by itself
        query = Query(Caller("many"), limit=25, visibility="shared", tags=frozenset({"many"}))
        found = zip(statements_of(filled, query), plans_of(filled, query), strict=True)
        walks = [plan for statement, plan in found if _reads_page(statement) and not _begins(statement)]
        assert walks
        for table, index in (("image_tags", "ix_image_tags_tag"), ("image_members", "ix_image_members_member")):
            looked = [line for plan in walks for line in plan.splitlines() if re.search(rf"\b{table}(_\d+)? ", line)]
            assert looked
            assert all(index in line and "PRIMARY," not in line for line in looked), looked

    @pytest.mark.parametrize(("project", "begun"), [("few", True), ("many", False)])
    def test_shares_of_few_are_begun_with_and_more_are_looked_for(self, filled, project, begun):
        query = Query(Caller(project), limit=25, visibility="shared")
        found = Repository(filled).images.list(query)
        assert len(found.images) == 25
        statements = [each for each in statements_of(filled, query) if _reads_page(each)]
        assert [_begins(statement) for statement in statements] == [begun]

    def test_a_walk_that_meets_too_little_is_given_up(self, filled, limits):
        admin, page = Caller(None, is_admin=True), {"limit": 25, "tags": frozenset({"many"})}
        oldest = Query(admin, sort=(SortKey("created_at", "asc"),), **page)
        newest = Query(admin, sort=(SortKey("created_at", "desc"),), **page)
        few = choosing.FEW
        # The newest 199 images have no such tag, and of its sample none is among the newest 150.
        for steps, latest, earliest in ((150, [False, True], [False, False]), (400, [False, False], [False])):
            limits(few, steps)
            assert _pages_of(filled, newest) == latest
            assert _pages_of(filled, oldest) == earliest
            assert ids(Repository(filled).images.list(newest)) == [
                _plain_row(number)["id"] for number in range(choosing.FEW, choosing.FEW - 25, -1)
            ]

    def test_what_leaves_much_each_and_nothing_together_is_intersected(self, filled, limits):
        limits(100, 1000, some=200)
        query = Query(Caller(None, is_admin=True), limit=25, tags=frozenset({"left", "right"}))
        walk, begun = (each for each in statements_of(filled, query) if _reads_page(each))
        assert re.search(r"image_tags(_\d+)?\.image_id = ", walk)
        # Where nothing is merged, what has one of them is looked at, and whether it has the other.
        assert _begins(begun) or "STRAIGHT_JOIN" in begun
        if filled.kind == "sqlite":
            assert "MERGE (INTERSECT)" in plans_of(filled, query)[-1]
        both = Query(Caller(None, is_admin=True), limit=3, tags=frozenset({"left", "many"}))
        assert len(Repository(filled).images.list(both).images) == 3

    def test_what_is_little_each_and_nothing_together_is_intersected_too(self, filled, limits):
        query = Query(Caller(None, is_admin=True), limit=25, tags=frozenset({"left", "right"}))
        # As many have each of both.
        counting = sa.select(sa.func.count()).where(image_tags.c.tag == "left")
        count = filled.read(lambda connection: connection.execute(counting).scalar())
        # Where the other is as little, intersecting costs little.
        for steps, some, intersected in ((count, count, True), (count, count - 1, True), (count - 1, count, True)):
            limits(100, steps, some=some)
            if filled.kind == "sqlite":
                assert ("INTERSECT" in statements_of(filled, query)[-1]) == intersected

    @pytest.mark.parametrize("direction", ["asc", "desc"])
    def test_what_all_have_is_not_sorted_by(self, filled, direction):
        sort = (SortKey("disk_format", direction), SortKey("size", direction))
        for marker in (None, _plain_row(2001)["id"]):
            query = Query(Caller(None, is_admin=True), sort=sort, limit=5, disk_formats=("raw",), marker=marker)
            assert len(Repository(filled).images.list(query).images) == 5
            pages = [each for each in statements_of(filled, query) if _reads_page(each)]
            assert all("disk_format" not in each.rpartition("ORDER BY")[2] for each in pages)
            assert all("disk_format IS NOT NULL" not in each for each in pages)

    def test_a_set_that_was_gone_through_is_not_gone_through_again(self, filled, limits):
        limits(1800, 60, some=100, sample=1)
        # Of the public images, which are fewer than are few, and of the shared ones, of which none comes by.
        query = Query(Caller("many"), limit=25, tags=frozenset({"many"}), sort=(SortKey("created_at", "desc"),))
        first, *later = (values for statement, values in _sent(filled, query) if _reads_page(statement))
        assert "public" in _values(first)
        assert later
        assert not any("public" in _values(values) for values in later)

    @pytest.mark.parametrize(
        ("key", "more"),
        [
            ("size", {"statuses": ("queued",)}),
            ("created_at", {"statuses": ("killed",)}),
            ("created_at", {"os_hidden": True}),
        ],
    )
    @pytest.mark.parametrize("direction", ["asc", "desc"])
    def test_orders_within_a_status_and_within_what_is_hidden_are_walked_along(self, filled, key, direction, more):
        name = "status" if "statuses" in more else "os_hidden"
        query = Query(Caller(None, is_admin=True), sort=(SortKey(key, direction),), limit=25, **more)
        found = list(zip(statements_of(filled, query), plans_of(filled, query), strict=True))
        # What is not set has an order of its own: that of the ids.
        plans = [plan for statement, plan in found if f"ORDER BY images.{key}" in statement and _reads_page(statement)]
        assert plans
        for plan in plans:
            assert f"ix_images_{name}_{key}" in plan
            assert not _sorts(plan), plan

    @pytest.mark.parametrize("direction", ["asc", "desc"])
    def test_what_is_not_set_is_walked_along_its_own_index(self, filled, direction):
        query = Query(Caller(None), sort=(SortKey("name", direction),), limit=5000)
        found = list(zip(statements_of(filled, query), plans_of(filled, query), strict=True))
        plans = [plan for statement, plan in found if "name IS NULL" in statement and _reads_page(statement)]
        assert plans
        # Of none PostgreSQL may take the index of all images as well.
        assert all(re.search("ix_images_(visibility_)?name", plan) for plan in plans), plans

    @pytest.mark.parametrize("direction", ["asc", "desc"])
    def test_behind_an_image_with_a_value_that_all_have_its_set_is_walked_along(self, filled, direction):
        marker = _plain_row(2000)["id"]
        query = Query(Caller(None), sort=(SortKey("status", direction),), limit=25, marker=marker)
        found = list(zip(statements_of(filled, query), plans_of(filled, query), strict=True))
        plans = [plan for statement, plan in found if _reads_page(statement)]
        assert plans
        # PostgreSQL takes any index with few rows in its range, if it finds that many in none.
        assert any("ix_images_visibility_status" in plan for plan in plans), plans

    def test_what_is_sorted_is_sorted_by_all_keys_at_once(self, filled):
        sort = tuple(SortKey(key, "asc") for key in ("container_format", "disk_format", "name"))
        query = Query(Caller(None, is_admin=True), sort=sort, limit=25, tags=frozenset({"rare"}))
        assert _pages_of(filled, query) == [True]

    def test_nothing_of_the_caller_is_looked_at_for_another_owner(self, filled):
        for tag in ("rare", "left"):
            query = Query(Caller("me"), owner="other", limit=25, tags=frozenset({tag}))
            assert not any("me" in _values(parameters) for _, parameters in _sent(filled, query) if "member" not in _)

    @pytest.mark.parametrize("caller", [Caller(None, is_admin=True), Caller("me"), Caller("few"), Caller(None)])
    @pytest.mark.parametrize(
        "sort", [(), (SortKey("name", "asc"),), (SortKey("size", "desc"), SortKey("status", "asc"))]
    )
    def test_no_table_is_read_as_a_whole(self, filled, caller, sort, limits):
        limits(100, 1000, some=200)
        for more in EVERY_FILTER:
            for plan in plans_of(filled, Query(caller, sort=sort, limit=25, **more)):
                assert not _reads_all(filled.kind, plan), (more, plan)

    @pytest.mark.parametrize("more", [{"tags": frozenset({"many"})}, {"disk_formats": ("qcow2",)}])
    def test_an_image_is_read_when_the_indexes_of_all_filters_have_it(self, filled, more, limits):
        if filled.kind in ("sqlite", "postgresql"):
            return  # they keep images in the order in which these were made, so that a walk by age reads what is near
        limits(100, 1000)
        query = Query(Caller(None, is_admin=True), limit=25, sort=(SortKey("created_at", "desc"),), **more)
        found = zip(statements_of(filled, query), plans_of(filled, query), strict=True)
        plans = [plan for statement, plan in found if _reads_page(statement)]
        assert plans
        for plan in plans:
            walked, asked, read = plan.splitlines()
            assert "ix_images_created_at" in walked
            assert all("Using index" in line for line in (walked, asked))
            assert "eq_ref PRIMARY" in read
            assert not _sorts(plan)

    @pytest.mark.parametrize("few", [0, 5000])
    def test_more_tags_may_be_asked_for_than_a_database_joins(self, filled, limits, few):
        tags = [f"{few}-{number}" for number in range(MOST_FILTERS)]
        key = _plain_row(few)["id"]
        rows = [{"image_id": key, "tag": tag} for tag in tags]
        filled.write(lambda connection: connection.execute(image_tags.insert(), rows))
        limits(few, 1000)
        query = Query(Caller(None, is_admin=True), limit=25, tags=frozenset(tags))
        assert ids(Repository(filled).images.list(query)) == [key]


def _pages_of(database: Database, query: Query) -> list[bool]:
    """Of each statement that finds images of a page, whether it begins with what a filter leaves."""
    return [_begins(statement) for statement in statements_of(database, query) if _reads_page(statement)]


def _values(parameters: object) -> list[object]:
    return list(parameters.values()) if isinstance(parameters, dict) else list(parameters)  # type: ignore[call-overload]


#: Of what is read for a list, all of one of these tables.
_TABLES = "images|image_tags|image_properties|image_members"


def _reads_all(kind: str, plan: str) -> bool:
    if kind == "sqlite":
        return re.search(rf"SCAN ({_TABLES})(?! USING)", plan) is not None
    if kind == "postgresql":
        return re.search(rf"Seq Scan on ({_TABLES})", plan) is not None
    # Of an empty table it says one row.
    return re.search(rf" ({_TABLES})(_\d+)? ALL (\S+ ){{4}}(?!1 )", plan) is not None


def plans_of(database: Database, query: Query, *, freely: bool = False) -> list[str]:
    """How the database goes about each statement of a list; ``freely``: reading whole tables where it likes that."""
    how = "EXPLAIN QUERY PLAN " if database.kind == "sqlite" else "EXPLAIN "
    found = []
    with database.engine.connect() as connection:
        if database.kind == "postgresql" and not freely:
            # A small table is read whole and sorted, though it could be walked along: what counts is whether it can.
            # For this transaction only, which is undone: to connect anew takes longer than what is asked here.
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            connection.exec_driver_sql("SET LOCAL enable_sort = off")
            connection.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
        for statement, parameters in _sent(database, query):
            rows = connection.exec_driver_sql(how + statement, parameters).all()
            found.append("\n".join(" ".join(map(str, row)) for row in rows))
        connection.rollback()
    return found


def statements_of(database: Database, query: Query) -> list[str]:
    return [statement for statement, _ in _sent(database, query)]


def _sent(database: Database, query: Query) -> list[tuple[str, object]]:
    sent: list[tuple[str, object]] = []

    def note(connection, cursor, statement, parameters, *more):
        sent.append((statement, parameters))

    sa.event.listen(database.engine, "before_cursor_execute", note)
    try:
        Repository(database).images.list(query)
    finally:
        sa.event.remove(database.engine, "before_cursor_execute", note)
    return [each for each in sent if "FROM images" in each[0] or "JOIN images" in each[0] or "image_tags" in each[0]]


def _reads_page(statement: str) -> bool:
    """Whether a statement finds the images of a page: not what counts, and not what belongs to images."""
    return "ORDER BY" in statement and "count(" not in statement and "images.version" in statement


def _begins(statement: str) -> bool:
    """Whether it begins with rows of another table, rather than looking for them with each image."""
    if "STRAIGHT_JOIN" in statement:
        return re.search(r"FROM \(SELECT image_(tags|properties|members)\.image_id", statement) is not None
    return "IS NOT NULL" not in statement


def _sorts(plan: str) -> bool:
    return any(word in plan for word in ("TEMP B-TREE", "filesort", "Sort"))


def _random_row(chance: random.Random, number: int) -> dict[str, object]:
    texts = [None, "", "a", "A", "a ", "b", "ä", "\U0001f600", "\uffff", "aa"]
    status = chance.choice(["queued", "active", "active", "killed"])
    deleted = chance.randrange(5) == 0
    return {
        **_plain_row(number),
        "id": f"{chance.getrandbits(64):016x}",
        "owner": chance.choice(PROJECTS),
        "name": chance.choice(texts),
        "status": "deleted" if deleted else status,
        "visibility": chance.choice(VISIBILITIES),
        "size": chance.choice([None, 0, 1, 2, 2**40]),
        "disk_format": chance.choice([None, "raw", "qcow2"]),
        "container_format": chance.choice([None, "bare", "ovf"]),
        "min_ram": chance.choice([0, 1, 2]),
        "protected": bool(chance.randrange(2)),
        "os_hidden": chance.randrange(4) == 0,
        "checksum": chance.choice([None, "c1", "c2"]),
        "created_at": FIRST + chance.randrange(5) * 500_000,
        "updated_at": FIRST + chance.randrange(8) * 500_000,
        "deleted": deleted,
    }


def _plain_row(number: int) -> dict[str, object]:
    return {
        "id": f"{number * 2654435761 % 4294967296:08x}-{number}",
        "name": f"image-{number % 1000}",
        "status": "active",
        "visibility": "public" if number % 3 == 2 else "shared",
        "owner": "me" if number % 2 else "other",
        "size": number,
        "disk_format": "raw" if number % 4 else "qcow2",
        "container_format": "bare",
        "min_disk": 0,
        "min_ram": 0,
        "protected": False,
        "os_hidden": False,
        "created_at": FIRST + number * 1_000_000,
        "updated_at": FIRST + number * 1_000_000,
        "deleted": False,
        "version": 1,
    }


def _share(key: object, member: str, status: str) -> dict[str, object]:
    return {"image_id": key, "member": member, "status": status, "can_share": False, "created_at": 0, "updated_at": 0}


def _fields(query: Query) -> dict[str, object]:
    return {name: getattr(query, name) for name in query.__slots__}

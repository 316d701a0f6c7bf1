# SPDX-License-Identifier: Apache-2.0
"""What lists take out of four times as many images, in SQLite's own steps: times would depend on the machine."""

from __future__ import annotations

import dataclasses
import itertools

import db_lists
import pytest
import sqlalchemy as sa

from storelib.api.db import Repository, choosing, holdings
from storelib.api.db.engine import Database
from storelib.api.db.migrate import sync
from storelib.api.db.records import Caller, Query, Range, SortKey, TaskQuery
from storelib.api.db.schema import (
    SORTED_BY,
    image_locations,
    image_members,
    image_properties,
    image_tags,
    images,
    tasks,
)

FEW, MANY = 1000, 4000
CALLERS = {
    "administrator": Caller(None, is_admin=True),
    "owner": Caller("me"),
    "member": Caller("guest"),
    "nobody": Caller(None),
}
FILTERS = [
    *({"statuses": (status,)} for status in ("active", "queued", "nothing")),
    *({"names": (name,)} for name in ("image-7", "nothing")),
    *({"disk_formats": (name,)} for name in ("raw", "qcow2", "nothing")),
    *({"visibility": name} for name in ("public", "shared", "private")),
    *({"owner": name} for name in ("me", "other", "nobody")),
    *({"protected": flag} for flag in (True, False)),
    *({"os_hidden": flag} for flag in (True, False)),
    *({"tags": frozenset({tag})} for tag in ("common", "old", "rare", "nothing")),
    # Each of half of the images, and no image has both.
    {"tags": frozenset({"left", "right"})},
    {"properties": {"distro": "ubuntu"}, "tags": frozenset({"left"})},
    {"properties": {"distro": "nothing"}},
    {"checksum": "nothing"},
]
TASKS = [
    {},
    {"status": "processing"},
    {"status": "success"},
    {"status": "success", "kind": "api_image_import", "owner": "nobody"},
    {"owner": "me"},
    {"owner": "nobody"},
    {"kind": "location_import"},
    {"request_id": "nothing"},
    {"user_id": "nothing", "status": "success"},
]


def made(directory, count: int) -> Database:
    """So many images, where what few have is as many in each: the oldest ones or spread."""
    path = directory / f"{count}.sqlite"
    sync(f"sqlite:///{path}")
    database = Database(f"sqlite:///{path}", sqlite_synchronous=False)
    rows = [
        {
            **db_lists._plain_row(number),
            "status": "queued" if number % 3 == 1 else "active",
            "size": None if number % 3 == 1 else number,
            "os_hidden": number < count // 4,
            "protected": number % 50 == 0,
        }
        for number in range(count)
    ]
    keys = [row["id"] for row in rows]
    tags = [("common", key) for key in keys[::2]] + [("old", key) for key in keys[:60]]
    tags += [("rare", key) for key in keys[:: count // 20]]
    tags += [(("left", "right")[number % 2], key) for number, key in enumerate(keys)]
    times = {"created_at": 1, "expires_at": 0}

    def insert(connection):
        connection.execute(images.insert(), rows)
        connection.execute(image_tags.insert(), [{"image_id": key, "tag": tag} for tag, key in tags])
        locations = [{"image_id": key, "position": 0, "uri": f"x://{key}", "metadata": "{}"} for key in keys]
        connection.execute(image_locations.insert(), locations)
        properties = [{"image_id": key, "name": "distro", "value": "ubuntu", "head": "ubuntu"} for key in keys]
        connection.execute(image_properties.insert(), properties)
        connection.execute(
            image_members.insert(), [db_lists._share(key, "guest", "accepted") for key in keys[:: count // 30]]
        )
        jobs = [
            {
                "id": key,
                "type": "api_image_import",
                "status": "success" if number % (count // 40) else "processing",
                "owner": "me" if number % (count // 40) == 1 else "other",
                "input": "{}",
                "message": "",
                "updated_at": number,
                **times,
            }
            for number, key in enumerate(keys)
        ]
        connection.execute(tasks.insert(), jobs)

    database.write(insert)
    return database


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """``steps(ask)`` returns the steps, in fifties, of ``ask(repository)`` out of few and out of many."""
    directory = tmp_path_factory.mktemp("work")
    databases = [made(directory, count) for count in (FEW, MANY)]
    counted = [0]

    def count() -> int:
        counted[0] += 1
        return 0

    for database in databases:
        database.close()
        sa.event.listen(database.engine, "connect", lambda connection, _: connection.set_progress_handler(count, 50))

    def steps(ask):
        found = []
        for database in databases:
            ask(Repository(database))
            counted[0] = 0
            ask(Repository(database))
            found.append(counted[0])
        return found

    yield steps
    for database in databases:
        database.close()


@pytest.fixture
def small(monkeypatch):
    """All limits are small beside the few images."""
    for name, value in {"FEW": 100, "WALK": 1, "SHORTEST_WALK": 200, "SOME": 150, "SAMPLE": 20, "MANY": 200}.items():
        monkeypatch.setattr(choosing, name, value)
    monkeypatch.setattr("storelib.api.db.task_lists.FEW", 100)


def is_flat(few: int, many: int) -> bool:
    # Deeper indexes, and some rows more or less; what grows with the images takes four times as much.
    return many <= 1.5 * few + 100


@pytest.mark.usefixtures("small")
class TestWork:
    @pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS)
    @pytest.mark.parametrize("direction", ["asc", "desc"])
    def test_every_order_takes_as_much_out_of_many_as_out_of_few(self, steps, caller, direction):
        for key in SORTED_BY:
            query = Query(caller, sort=(SortKey(key, direction),), limit=10)
            few, many = steps(lambda repository, query=query: repository.images.list(query))
            assert few
            assert is_flat(few, many), (key, few, many)

    @pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS)
    def test_every_filter_takes_as_much_out_of_many_as_out_of_few(self, steps, caller):
        for more in FILTERS:
            query = Query(caller, limit=10, **more)
            few, many = steps(lambda repository, query=query: repository.images.list(query))
            if len(more.get("tags", ())) + len(more.get("properties", ())) > 1:
                # What has to be gone through is all of what one filter leaves, but only in its index.
                assert many <= 5 * few, (more, few, many)
            else:
                assert is_flat(few, many), (more, few, many)

    @pytest.mark.parametrize("direction", ["asc", "desc"])
    def test_what_is_queued_is_sorted_by_size_with_as_much(self, steps, direction):
        query = Query(CALLERS["administrator"], sort=(SortKey("size", direction),), statuses=("queued",), limit=10)
        few, many = steps(lambda repository: repository.images.list(query))
        assert is_flat(few, many), (few, many)

    @pytest.mark.parametrize("direction", ["asc", "desc"])
    def test_what_is_of_some_size_is_sorted_by_it_with_as_much(self, steps, direction):
        ranges = (Range("size", 2, None),)
        query = Query(CALLERS["administrator"], sort=(SortKey("size", direction),), ranges=ranges, limit=10)
        few, many = steps(lambda repository: repository.images.list(query))
        assert is_flat(few, many), (few, many)

    @pytest.mark.parametrize("direction", ["asc", "desc"])
    def test_what_is_active_is_sorted_by_size_with_as_much(self, steps, direction):
        query = Query(CALLERS["administrator"], sort=(SortKey("size", direction),), statuses=("active",), limit=10)
        few, many = steps(lambda repository: repository.images.list(query))
        assert is_flat(few, many), (few, many)

    def test_for_a_long_page_more_is_sorted_than_for_a_short_one(self, steps, monkeypatch):
        # The tag has 60 of the images, the oldest.
        monkeypatch.setattr(choosing, "FEW", 20)
        query = Query(CALLERS["administrator"], tags=frozenset({"old"}))
        short, long = (
            steps(lambda repository, limit=limit: repository.images.list(dataclasses.replace(query, limit=limit)))
            for limit in (100, 500)
        )
        assert long[1] < short[1]

    def test_lists_of_tasks_take_as_much_out_of_many_as_out_of_few(self, steps):
        for more, key, direction in itertools.product(TASKS, ("created_at", "updated_at", "id"), ("asc", "desc")):
            query = TaskQuery(**more, sort_key=key, sort_dir=direction, limit=10)
            few, many = steps(lambda repository, query=query: repository.tasks.list(query))
            assert is_flat(few, many), (more, key, direction, few, many)


def test_who_else_has_a_location_takes_as_much_out_of_many_as_out_of_few(steps):
    few, many = steps(lambda repository: repository.locations.is_shared("x://nothing", "another"))
    assert is_flat(few, many), (few, many)


def test_a_quota_is_checked_with_as_much_for_an_owner_of_many_images_as_of_few(steps):
    image = db_lists._plain_row(1)["id"]

    def check(repository):
        repository.database.write(lambda connection: holdings.check(connection, image, 1 << 60))

    # The first time in each the sum is made.
    steps(check)
    few, many = steps(check)
    assert is_flat(few, many), (few, many)
    # What that would be without: all images of the owner.
    few, many = steps(lambda repository: repository.database.read(lambda connection: holdings.stored(connection, "me")))
    assert not is_flat(few, many), (few, many)

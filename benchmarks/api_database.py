# SPDX-License-Identifier: Apache-2.0
"""The image API's database: what one image costs, and a page of 100 out of many images against one out of a hundred.

python benchmarks/api_database.py [--images 1000000] [--sqlite] [--postgresql] [--mariadb]

Each is a database of its own in a temporary directory, SQLite if none is named. Exits with 1 when a page out of many
takes more than twice the time of one out of a hundred.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "functional"))

import sqlalchemy as sa
from servers.mariadb import MariaDB
from servers.postgresql import PostgreSQL

from storelib.api.db import Repository
from storelib.api.db.engine import Database
from storelib.api.db.migrate import sync
from storelib.api.db.records import Caller, NewImage, NewLocation, Query, SortKey
from storelib.api.db.schema import (
    HEAD,
    image_locations,
    image_members,
    image_properties,
    image_tags,
    images,
    metadata,
)

FEW = 100
BATCH = 5000
PROJECT = "project-0"
ADMIN = Caller(None, is_admin=True)
MEMBER = Caller(PROJECT)
NAMES = (SortKey("name", "asc"),)
SHARED = {f"image-{number}" for number in range(80, FEW)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=1_000_000, help="how many are many")
    for name in DATABASES:
        parser.add_argument(f"--{name}", action="append_const", const=name, dest="databases")
    arguments = parser.parse_args()
    slow = 0
    for name in arguments.databases or ["sqlite"]:
        with DATABASES[name]() as url:
            slow |= measure(url, arguments.images)
    return slow


@contextlib.contextmanager
def sqlite() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="storelib-benchmark-") as directory:
        yield f"sqlite:///{directory}/images.sqlite"


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    with PostgreSQL() as server:
        yield server.new_database()


@contextlib.contextmanager
def mariadb() -> Iterator[str]:
    with MariaDB() as server:
        yield server.new_database()


DATABASES = {"sqlite": sqlite, "postgresql": postgresql, "mariadb": mariadb}


def measure(url: str, many: int) -> int:
    """Print both tables for one database; returns 1 if a page is too slow."""
    sync(url)
    # What a commit costs is the disk's affair.
    database = Database(url, sqlite_synchronous=False)
    repository = Repository(database)
    print(f"{database.kind}: one image")
    for name, rate in single(repository):
        print(f"  {name:<44}{rate:>9.0f} /s")
    few, how_many_few = {}, {}
    clear(database)
    fill(database, FEW)
    for name, query in queries(repository):
        few[name], how_many_few[name] = fastest(lambda query=query: Repository(database).images.list(query))
    started = time.perf_counter()
    filler = Database(url, sqlite_synchronous=False)
    if filler.kind == "sqlite":
        # Random ids into ten indexes: without room for them every row costs reads.
        sa.event.listen(
            filler.engine, "connect", lambda connection, _: connection.execute("PRAGMA cache_size = -500000")
        )
    fill(filler, many - FEW)
    settle(filler)
    filler.close()
    print(f"{database.kind}: a page of {FEW}, filled with {many} in {time.perf_counter() - started:.0f} s")
    print(f"  {'':<44}{'of ' + str(FEW):>12}{'of ' + str(many):>12}{'ratio':>8}")
    slow = 0
    for name, query in queries(repository):
        took, found = fastest(lambda query=query: Repository(database).images.list(query))
        # A shorter page is compared by what one image of it takes, but never as more than the whole.
        before = few[name] * max(1.0, found / max(1, how_many_few[name]))
        ratio = took / before
        slow |= ratio > 2
        print(f"  {name:<44}{before * 1e3:>9.2f} ms{took * 1e3:>9.2f} ms{ratio:>8.2f}  ({found} images)")
    database.close()
    return slow


def single(repository: Repository) -> Iterator[tuple[str, float]]:
    def create() -> str:
        return repository.images.create(NewImage(str(uuid.uuid4()), owner=PROJECT, name="image")).id

    def create_and_get() -> None:
        repository.images.get(create())

    def create_full() -> str:
        properties = {f"key{number}": "value" for number in range(5)}
        location = NewLocation("file:///srv/images/1", {"store": "fast"})
        image = NewImage(str(uuid.uuid4()), PROJECT, "image", "active", properties=properties, locations=(location,))
        return repository.images.create(image).id

    full = create_full()
    yield "create", rate(create)
    yield "create and get", rate(create_and_get)
    yield "create with 5 properties and a location", rate(create_full)
    yield "get that", rate(lambda: repository.images.get(full))


def queries(repository: Repository) -> Iterator[tuple[str, Query]]:
    """What is asked of both; markers are from the middle, so pages behind them are as long as in the large one."""
    yield "admin, newest", Query(ADMIN, limit=FEW)
    yield "admin, newest, behind a marker", Query(ADMIN, limit=FEW, marker=middle(repository, ADMIN))
    yield "admin, by name", Query(ADMIN, limit=FEW, sort=NAMES)
    yield "admin, by name, behind a marker", Query(ADMIN, limit=FEW, sort=NAMES, marker=middle(repository, ADMIN))
    yield "admin, by size, largest", Query(ADMIN, limit=FEW, sort=(SortKey("size", "desc"),))
    yield "admin, one status", Query(ADMIN, limit=FEW, statuses=("active",))
    yield "member, newest", Query(MEMBER, limit=FEW)
    yield "member, newest, behind a marker", Query(MEMBER, limit=FEW, marker=middle(repository, MEMBER))
    yield "member, by name", Query(MEMBER, limit=FEW, sort=NAMES)
    yield "member, one tag", Query(MEMBER, limit=FEW, tags=frozenset({"common"}))
    yield "member, one rare property", Query(MEMBER, limit=FEW, properties={"number": "7"})
    yield "member, one name", Query(MEMBER, limit=FEW, names=("image-7",))


def middle(repository: Repository, caller: Caller) -> str:
    half = len(repository.images.list(Query(caller, limit=FEW)).images) // 2
    return repository.images.list(Query(caller, limit=half)).images[-1].id


def clear(database: Database) -> None:
    def delete(connection: sa.Connection) -> None:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())

    database.write(delete)


def fill(database: Database, count: int) -> None:
    """Images of 500 projects, one in 200 public, all with a location, a tag and two properties."""
    chance = random.Random(count)
    for start in range(0, count, BATCH):
        rows = [image_row(chance, start + number) for number in range(min(BATCH, count - start))]
        database.write(lambda connection, rows=rows: insert(connection, rows))


def image_row(chance: random.Random, number: int) -> dict[str, object]:
    moment = time.time_ns() // 1000
    return {
        "id": str(uuid.UUID(int=chance.getrandbits(128), version=4)),
        "name": f"image-{number}",
        "status": "active" if number % 10 else "queued",
        # The member whose lists are measured sees all of the small database: own, public and shared images.
        "visibility": "public" if number % 200 == 0 or 60 <= number < 80 else "shared",
        "owner": PROJECT if number < 60 else f"project-{1 + number % 500}",
        "size": chance.randrange(1 << 34),
        "min_disk": 0,
        "min_ram": 0,
        "protected": False,
        "os_hidden": False,
        "created_at": moment,
        "updated_at": moment,
        "deleted": False,
        "version": 1,
    }


def insert(connection: sa.Connection, rows: list[dict[str, object]]) -> None:
    ids = [row["id"] for row in rows]
    connection.execute(images.insert(), rows)
    properties = [
        {"image_id": image_id, "name": name, "value": value, "head": value[:HEAD]}
        for image_id, row in zip(ids, rows, strict=True)
        for name, value in (("number", str(row["name"]).partition("-")[2]), ("os_distro", "ubuntu"))
    ]
    connection.execute(image_properties.insert(), properties)
    connection.execute(image_tags.insert(), [{"image_id": image_id, "tag": "common"} for image_id in ids])
    locations = [
        {"image_id": image_id, "position": 0, "uri": f"file:///srv/images/{image_id}", "metadata": '{"store":"fast"}'}
        for image_id in ids
    ]
    connection.execute(image_locations.insert(), locations)
    member = {"member": PROJECT, "status": "accepted", "can_share": False, "created_at": 0, "updated_at": 0}
    shared = [{"image_id": row["id"], **member} for row in rows if row["name"] in SHARED]
    if shared:
        connection.execute(image_members.insert(), shared)


def settle(database: Database) -> None:
    """What a server does by itself after a while."""
    if database.kind in ("mysql", "mariadb"):
        for table in metadata.tables:
            database.write(lambda connection, table=table: connection.exec_driver_sql(f"ANALYZE TABLE {table}").all())
    elif database.kind == "postgresql":
        database.write(lambda connection: connection.exec_driver_sql("ANALYZE"))


def rate(work: Callable[[], object], seconds: float = 2.0) -> float:
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        work()
        count += 1
    return count / passed


def fastest(work: Callable[[], object]) -> tuple[float, int]:
    """Seconds of the fastest of many calls, as others use the machine too, and how many images one responses.

    Each call is that of a repository that remembers nothing.
    """
    page = work()
    times = []
    deadline = time.perf_counter() + 2.0
    while len(times) < 5 or (time.perf_counter() < deadline and len(times) < 200):
        started = time.perf_counter()
        page = work()
        times.append(time.perf_counter() - started)
    return min(times), len(page.images)  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Every form of a list of the image API out of a thousand images and out of very many, and which forms are slow.

python benchmarks/lists.py [--images 1000000] [--sqlite] [--postgresql] [--mariadb] [--only TEXT] [--worst 20]

The images are made first, a million of them in a few minutes and 5 GiB of the temporary directory. Each form is a query
string of /v2/images or /v1/images, asked for by users of five kinds; beside them other lists. What is measured is what
the database and its rows take; a form is slow that takes more than three times as long out of many, and over 20 ms.
Exits with 1 if there are such forms. With --cpu it is the time that processors worked on it, here and in the server's
session (Linux), which does not grow with what else the machine does.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from api_database import DATABASES
from lists_data import CACHE, fill, image_id

from storelib.api.db import Repository
from storelib.api.db.engine import Database
from storelib.api.db.metadefs import NamespaceQuery
from storelib.api.db.migrate import sync
from storelib.api.db.records import Caller, Query, TaskQuery
from storelib.api.v2.query import parse

FEW, LIMIT, RATIO, ENOUGH = 1000, 25, 3.0, 0.020
USERS = {
    "admin": Caller("nobody", is_admin=True),
    "big owner": Caller("owner-big"),
    "small owner": Caller("owner-small"),
    "member of some": Caller("member-some"),
    "member of many": Caller("member-many"),
    "nobody": Caller("nobody"),
}
SORTED_BY = ("created_at", "updated_at", "name", "size", "status", "disk_format", "container_format", "id")
#: A value that many have, one that few have, one that nobody has.
FILTERS = (
    *("status=active", "status=queued", "status=killed", "status=nothing"),
    *("name=ubuntu-22.04", "name=image-77", "name=nothing", "name=in:image-70,image-80,image-90"),
    *("disk_format=raw", "disk_format=vmdk", "disk_format=nothing", "container_format=ovf", "container_format=nothing"),
    *("size_min=1000000000", "size_min=17179869183", "size=1", "virtual_size=1", "virtual_size_min=34359738367"),
    *("min_disk=10", "min_disk_min=50", "min_ram=512", "min_ram_min=5000", "protected=true", "os_hidden=true"),
    *("checksum=nothing", "os_hash_value=nothing", "os_hash_algo=sha512", "os_hash_algo=nothing"),
    *("owner=owner-20k", "owner=owner-6k", "owner=nothing", "visibility=public", "visibility=private"),
    *("visibility=community", "visibility=shared", "member_status=pending", "member_status=all", "visibility=all"),
    *("tag=common", "tag=left", "tag=old", "tag=older", "tag=rare", "tag=nothing", "tag=left&tag=right"),
    *("os_distro=ubuntu", "os_distro=debian", "os_distro=nothing", "build=77", "team=team-7", "team=team-7&tag=common"),
    *("os_distro=ubuntu&architecture=aarch64", "hw_disk_bus=scsi&os_distro=debian"),
    *("created_at=gt:2019-01-01T00:00:00Z", "created_at=lt:2017-07-20T00:00:00Z", "updated_at=gt:2030-01-01T00:00:00Z"),
)
#: What is combined with each other.
PAIRED = (
    *("status=queued", "status=killed", "name=ubuntu-22.04", "disk_format=vmdk", "container_format=ovf"),
    *("size_min=17000000000", "min_disk=10", "protected=true", "os_hidden=true", "visibility=public", "owner=owner-6k"),
    *("tag=left", "tag=older", "os_distro=debian", "created_at=lt:2017-07-20T00:00:00Z", "tag=rare"),
)
SORTS = (
    *(f"sort={key}:{direction}" for key in SORTED_BY for direction in ("asc", "desc")),
    *("sort=status:asc,name:desc", "sort=disk_format,size:asc", "sort=container_format:asc,disk_format:desc,name:asc"),
    *("sort=name:asc,created_at:desc", "sort=size:desc,id:asc"),
)
#: Filters by what is sorted by, or that have to do with it, and long pages.
COMBINED = (
    *("size_min=1&sort=size:asc", "size_max=16000000000&sort=size:desc", "status=active&sort=size:asc"),
    *("name=in:ubuntu-22.04,image-80&sort=name:asc", "disk_format=in:raw,vmdk&sort=disk_format:asc"),
    *("status=in:queued,killed&sort=status:asc,size:desc", "disk_format=in:raw,vmdk&sort=disk_format:asc&limit=1000"),
    *("status=active&sort=size:asc&limit=1000", "status=active&sort=status:asc,size:asc&limit=1000"),
    *("tag=older&limit=1000", "os_distro=debian&limit=1000", "protected=true&limit=1000", "os_hidden=true&limit=1000"),
    *("protected=true&sort=name:asc&limit=1000", "tag=older&sort=name:asc,size:desc&limit=1000"),
    *("size_max=1000000000&sort=id:asc&limit=1000", "sort=disk_format:asc,size:asc&limit=1000"),
)
SORTED_FILTERS = ("status=queued", "os_distro=debian", "tag=old", "tag=left", "disk_format=raw", "os_hidden=true")


class Form(NamedTuple):
    """A list, by a name, and what asks for it."""

    name: str
    ask: Callable[[Repository], Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=1_000_000, help="how many are many")
    parser.add_argument("--worst", type=int, default=20, help="how many of the slowest forms are shown")
    parser.add_argument("--only", default="", help="forms with this text in their name")
    parser.add_argument("--cpu", action="store_true", help="the time of processors, which others do not disturb")
    parser.add_argument("--few-url", help="a database that was filled with a thousand images before")
    parser.add_argument("--many-url", help="a database that was filled with many images before")
    for name in DATABASES:
        parser.add_argument(f"--{name}", action="append_const", const=name, dest="databases")
    arguments = parser.parse_args()
    if arguments.few_url and arguments.many_url:
        return compare(arguments.few_url, arguments.many_url, arguments)
    slow = 0
    for name in arguments.databases or ["sqlite"]:
        with contextlib.ExitStack() as stack:
            few, many = (stack.enter_context(DATABASES[name]()) for _ in range(2))
            make(few, FEW)
            make(many, arguments.images)
            slow |= compare(few, many, arguments)
    return slow


def make(url: str, count: int) -> None:
    sync(url)
    database = Database(url, sqlite_synchronous=False, statement_timeout=None)
    started = time.perf_counter()
    fill(database, count)
    print(f"{database.kind}: {count} images made in {time.perf_counter() - started:.0f} s", flush=True)
    database.close()


def compare(few_url: str, many_url: str, arguments: argparse.Namespace) -> int:
    """Print the slowest forms of one kind of database; returns 1 if any is slow."""
    few, many = (measure(url, arguments.only, cpu=arguments.cpu) for url in (few_url, many_url))
    for name in many:
        # Out of few images there may be one page only.
        few.setdefault(name, few.get(name.removesuffix(" page 100"), ENOUGH))
    slow = {name for name, took in many.items() if took > ENOUGH and took > RATIO * few[name]}
    kind = few_url.partition(":")[0]
    print(f"{kind}: {len(many)} forms, {len(slow)} slow; the slowest out of many")
    print(f"  {'':<72}{'of ' + str(FEW):>12}{'of many':>12}{'ratio':>8}")
    for name in sorted(many, key=lambda name: (name in slow, many[name]), reverse=True)[: arguments.worst]:
        note = " slow" if name in slow else ""
        print(f"  {name:<72}{few[name] * 1e3:>9.2f} ms{many[name] * 1e3:>9.2f} ms{many[name] / few[name]:>8.1f}{note}")
    return int(bool(slow))


def measure(url: str, only: str, *, cpu: bool = False) -> dict[str, float]:
    # One session.
    database = Database(url, statement_timeout=None, pool_size=1, max_overflow=0)
    clock = Clock(database).cpu if cpu else time.perf_counter
    found = {form.name: seconds(form, database, clock) for form in forms(database) if only in form.name}
    database.close()
    return found


def seconds(form: Form, database: Database, clock: Callable[[], float]) -> float:
    """The fastest of some calls, as others use the machine too; each by a repository that remembers nothing."""
    times: list[float] = []
    while len(times) < 4 and (len(times) < 2 or sum(times) < 0.5):
        started = clock()
        form.ask(Repository(database))
        times.append(clock() - started)
    return min(times)


class Clock:
    """Seconds that processors worked for this thread and, on a server on this machine, for its session."""

    SESSION = {  # noqa: RUF012
        "postgresql": "SELECT pg_backend_pid()",
        "mysql": "SELECT tid FROM information_schema.processlist WHERE id = connection_id()",
    }

    def __init__(self, database: Database) -> None:
        self._path: Path | None = None
        if database.kind != "sqlite":
            with database.engine.connect() as connection:
                session = connection.exec_driver_sql(self.SESSION[database.kind]).scalar()
                [self._path] = Path("/proc").glob(f"[0-9]*/task/{session}/schedstat")

    def cpu(self) -> float:
        there = 0 if self._path is None else int(self._path.read_text().split()[0])
        return time.thread_time() + there / 1e9


def forms(database: Database) -> Iterator[Form]:
    """All that are measured."""
    queries = ["", *FILTERS, *SORTS, *(f"{sort}&{each}" for each in SORTED_FILTERS for sort in SORTS)]
    queries += ["&".join(pair) for pair in itertools.combinations(PAIRED, 2)]
    queries += COMBINED
    for user, caller in USERS.items():
        for text in queries:
            yield images_form(user, caller, text)
        for text in ("", *SORTS, "tag=common", "os_distro=ubuntu", "status=active"):
            if (marker := hundredth(database, caller, text)) is not None:
                yield images_form(user, caller, f"{text}&marker={marker}", f"{text} page 100")
        yield images_form(user, caller, "limit=1000")
        for name, changes in V1.items():
            query = replace(parsed(caller, ""), member_status="all", **changes)
            yield Form(f"{user}: v1 {name}", lambda tables, query=query: tables.images.list(query))
        yield Form(
            f"{user}: v1 shared-images of many",
            lambda tables, caller=caller: tables.members.shared_with("member-many", caller, limit=LIMIT),
        )
    yield from other_forms(database)


V1: dict[str, dict[str, Any]] = {
    "list": {},
    "deleted": {"deleted": True},
    "living and deleted": {"deleted": None},
    "not public": {"is_public": False},
    "public": {"is_public": True},
}


def other_forms(database: Database) -> Iterator[Form]:
    one = image_id(1)
    yield Form("members of an image", lambda tables: tables.members.list_for(one, limit=LIMIT))
    after = Repository(database).members.list_for(one, limit=900)[-1]
    yield Form("members of an image, behind 900", lambda tables: tables.members.list_for(one, after=after, limit=LIMIT))
    orders = [
        TaskQuery(sort_key=key, sort_dir=direction, limit=LIMIT)
        for key in ("created_at", "updated_at", "id", "status", "type", "expires_at")
        for direction in ("asc", "desc")
    ]
    orders += [
        TaskQuery(status="processing", limit=LIMIT),
        TaskQuery(status="pending", limit=LIMIT),
        TaskQuery(kind="api_image_import", limit=LIMIT),
        TaskQuery(kind="import", limit=LIMIT),
        TaskQuery(owner="owner-7", limit=LIMIT),
        TaskQuery(owner="nobody", limit=LIMIT),
    ]
    for query in orders:
        text = " ".join(f"{name}={value}" for name, value in query._asdict().items() if value is not None)
        yield Form(f"tasks {text}", lambda tables, query=query: tables.tasks.list(query))
    yield Form("tasks of an image", lambda tables: tables.tasks.of_image(image_id(10)))
    for key in ("namespace", "created_at", "updated_at"):
        query = NamespaceQuery("owner-big", sort_key=key, limit=LIMIT)
        yield Form(f"metadefs by {key}", lambda tables, query=query: tables.metadefs.page(query))
    yield Form("locations that are pending", lambda tables: next(iter(tables.locations.pending())))
    yield Form("a batch of an audit", lambda tables: next(iter(tables.images.audit(LIMIT))))
    yield Form("images being saved", lambda tables: next(tables.images.in_statuses(["saving"], LIMIT), None))
    yield Form("hosts with an image", lambda tables: tables.cached.hosts_with(image_id(50)))
    yield Form("what a cache has to fetch", lambda tables: tables.cached.queued(CACHE))


def images_form(user: str, caller: Caller, text: str, name: str | None = None) -> Form:
    query = parsed(caller, text)
    return Form(f"{user}: {text if name is None else name}", lambda tables: tables.images.list(query))


def parsed(caller: Caller, text: str) -> Query:
    return replace(parse(parse_qsl(text), default_limit=LIMIT, largest_limit=1000), caller=caller)


def hundredth(database: Database, caller: Caller, text: str) -> str | None:
    """The last image of the page before the hundredth, or of the last full one; None if there is only one."""
    query = replace(parsed(caller, text), limit=99 * LIMIT)
    found = Repository(database).images.list(query).images
    return found[-LIMIT].id if len(found) > LIMIT else None


if __name__ == "__main__":
    sys.exit(main())

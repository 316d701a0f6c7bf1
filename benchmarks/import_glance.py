# SPDX-License-Identifier: Apache-2.0
"""``storelib db import-glance`` with many images: seconds, processor seconds and memory of each run.

python benchmarks/import_glance.py [--images 100000] [--deleted 100000] [--sqlite] [--mariadb] [--postgresql]

The tables are those that Glance 33 makes; their rows follow from their numbers: eight properties, two tags and one
location for each image, members for each tenth, and images that are deleted, as no Glance ever forgets them. Taken is
all of it, then nothing new, then what changed in each hundredth, and all of it into another database by a command that
is killed twice on its way. Exits with 1 if that is not the same in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pairs import MiB, workplace

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "functional"))

from servers.glance import install
from servers.mariadb import MariaDB
from servers.postgresql import PostgreSQL

#: Images whose rows are made at once.
BATCH = 5_000
BEGINNING = datetime.datetime(2017, 7, 14, 2, 40)
SERVERS = {"postgresql": PostgreSQL, "mariadb": MariaDB}
#: Where the images would be; nothing is read there.
DATADIR = Path(tempfile.gettempdir()) / "images-of-glance"
#: An odd number: none of the first 2**32 ids comes twice, and they are in no order.
SPREAD = 2_654_435_769
INI = """
[storelib]
stores = fast:file, slow:file
default_store = fast
[fast]
filesystem_store_datadir = {datadir}/fast
[slow]
filesystem_store_datadir = {datadir}/slow
[database]
connection = {connection}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=100_000, help="how many Glance has")
    parser.add_argument("--deleted", type=int, default=100_000, help="how many it had")
    for name in ("sqlite", *SERVERS):
        parser.add_argument(f"--{name}", action="append_const", const=name, dest="databases")
    arguments = parser.parse_args()
    failures = 0
    for name in arguments.databases or ["sqlite"]:
        with tempfile.TemporaryDirectory(dir=workplace()) as directory, databases(name, Path(directory)) as urls:
            print(f"{name}, {arguments.images} images:", flush=True)
            failures += not measure(Path(directory), urls, arguments.images, arguments.deleted)
    return min(failures, 1)


@contextlib.contextmanager
def databases(name: str, directory: Path) -> Iterator[list[str]]:
    """Three of them: that of Glance and two to take it to."""
    if name == "sqlite":
        yield [f"sqlite:///{directory}/{each}.sqlite" for each in range(3)]
        return
    with SERVERS[name]() as server:
        yield [server.new_database() for _ in range(3)]


def measure(directory: Path, urls: list[str], count: int, deleted: int) -> bool:
    """Whether the interrupted import has the same in the end."""
    source, target, other = urls
    begin = time.perf_counter()
    make_glance(directory, source, count, deleted)
    print(f"  made in {time.perf_counter() - begin:.0f} s")
    first, second = (Storelib(directory, name, url, source) for name, url in (("first", target), ("second", other)))
    taken = first.take("all", count)
    first.take("nothing new", count)
    change_some(source, count)
    first.take("a hundredth changed", count)
    for share in (3, 2):
        second.interrupted(taken / share)
    second.take("the rest", count)
    same = taken_images(target) == taken_images(other)
    print(f"  {'the same' if same else 'NOT the same'} in both")
    return same


class Storelib:
    """A database of the image API, and the command."""

    def __init__(self, directory: Path, name: str, url: str, source: str) -> None:
        self._config = directory / f"{name}.ini"
        self._config.write_text(INI.format(datadir=DATADIR, connection=url.replace("%", "%%")))
        self._command = [str(Path(sys.executable).with_name("storelib")), "--config", str(self._config), "db"]
        self._source = source
        subprocess.run([*self._command, "sync"], check=True, stdout=subprocess.DEVNULL)

    def take(self, what: str, count: int) -> float:
        """The seconds that it took."""
        begin = time.perf_counter()
        process = self._start()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begin
        if process.returncode:
            raise SystemExit(f"the import failed with {process.returncode}")
        busy = used.ru_utime + used.ru_stime
        print(
            f"  {what}: {seconds:.1f} s, {count / seconds:.0f} images/s, processor {busy:.1f} s, "
            f"at most {used.ru_maxrss * 1024 // MiB} MiB",
            flush=True,
        )
        return seconds

    def interrupted(self, seconds: float) -> None:
        """Killed after some time."""
        process = self._start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.kill()
        process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "STORELIB_GLANCE_DATABASE": self._source}
        return subprocess.Popen(
            [*self._command, "import-glance"], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )


# -- A catalogue of Glance ---------------------------------------------------------------------------------------------


def make_glance(directory: Path, url: str, count: int, deleted: int) -> None:
    """Glance's own tables, with ``count`` images and some deleted ones between them."""
    programs = install()
    config = directory / "glance.conf"
    config.write_text(f"[database]\nconnection = {with_driver(url)}\n")
    subprocess.run([programs / "glance-manage", "--config-file", config, "db", "sync"], check=True, capture_output=True)
    with connected(url) as connection:
        tables = sa.MetaData()
        tables.reflect(connection, only=list(ROWS))
        for first in range(0, count + deleted, BATCH):
            numbers = range(first, min(first + BATCH, count + deleted))
            for name, made in ROWS.items():
                found = [row for number in numbers for row in made(number, count)]
                connection.execute(tables.tables[name].insert(), found)
            connection.commit()


def image_id(number: int) -> str:
    spread = number * SPREAD % 2**32
    return f"{spread:08x}-{spread % 65521:04x}-4000-8000-{number:012x}"


def image_rows(number: int, count: int) -> Iterator[dict[str, Any]]:
    is_deleted = number >= count
    yield {
        "id": image_id(number),
        "name": f"image {number}",
        "size": number * 4096,
        "status": "deleted" if is_deleted else "active",
        "visibility": ("private", "shared", "public", "community")[number % 4],
        "owner": f"{number % 1000:032x}",
        "disk_format": "qcow2",
        "container_format": "bare",
        "checksum": f"{number:032x}",
        "os_hash_algo": "sha512",
        "os_hash_value": f"{number:0128x}",
        "min_disk": 10,
        "min_ram": 512,
        "protected": False,
        "os_hidden": False,
        **times(number, is_deleted),
    }


def property_rows(number: int, count: int) -> Iterator[dict[str, Any]]:
    for each in range(8):
        values = {"name": f"property_{each}", "value": f"value {number % 97} of {each}"}
        yield {"image_id": image_id(number), **values, **times(number, number >= count)}


def tag_rows(number: int, count: int) -> Iterator[dict[str, Any]]:
    for value in ("all", f"tag {number % 500}"):
        yield {"image_id": image_id(number), "value": value, **times(number, number >= count)}


def location_rows(number: int, count: int) -> Iterator[dict[str, Any]]:
    is_deleted, store = number >= count, ("fast", "slow")[number % 2]
    yield {
        "image_id": image_id(number),
        # Where no store is: each image names one here that is called otherwise there.
        "value": f"file://{DATADIR}/{store}/{image_id(number)}",
        "meta_data": f'{{"store": "{store}"}}',
        "status": "deleted" if is_deleted else "active",
        **times(number, is_deleted),
    }


def member_rows(number: int, count: int) -> Iterator[dict[str, Any]]:
    for each in range(3 if number % 10 == 0 else 0):
        values = {"member": f"{(number + each) % 1000:032x}", "status": "accepted", "can_share": False}
        yield {"image_id": image_id(number), **values, **times(number, number >= count)}


def times(number: int, is_deleted: bool) -> dict[str, Any]:
    moment = BEGINNING + datetime.timedelta(seconds=number * 100)
    return {
        "created_at": moment,
        "updated_at": moment,
        "deleted_at": moment if is_deleted else None,
        "deleted": is_deleted,
    }


#: In an order in which each refers only to what is there.
ROWS: dict[str, Callable[[int, int], Iterator[dict[str, Any]]]] = {
    "images": image_rows,
    "image_properties": property_rows,
    "image_tags": tag_rows,
    "image_locations": location_rows,
    "image_members": member_rows,
}


def change_some(url: str, count: int) -> None:
    """In each hundredth image a property is another, one in a thousand is deleted."""
    moment = BEGINNING + datetime.timedelta(days=5000)
    with connected(url) as connection:
        tables = sa.MetaData()
        tables.reflect(connection, only=list(ROWS))
        images, properties = tables.tables["images"], tables.tables["image_properties"]
        for number in range(0, count, 100):
            properties_of = (properties.c.image_id == image_id(number), properties.c.name == "property_1")
            connection.execute(properties.update().where(*properties_of).values(value="changed"))
            values = {"updated_at": moment}
            if number % 1000 == 0:
                values |= {"status": "deleted", "deleted": True, "deleted_at": moment}
            connection.execute(images.update().where(images.c.id == image_id(number)).values(**values))
        connection.commit()


def taken_images(url: str) -> list[tuple[str, str]]:
    """What was taken and is not deleted: each image, and the digest of all that belongs to it."""
    images = sa.table("images", sa.column("id"), sa.column("deleted", sa.Boolean))
    imported = sa.table("imported", sa.column("key"), sa.column("digest"))
    found = sa.select(imported.c.key, imported.c.digest).join(images, images.c.id == imported.c.key)
    with connected(url) as connection:
        return sorted((key, digest) for key, digest in connection.execute(found.where(images.c.deleted == sa.false())))


def with_driver(url: str) -> str:
    """As SQLAlchemy and oslo.db want it."""
    return url.replace("mysql://", "mysql+pymysql://").replace("postgresql://", "postgresql+psycopg://")


@contextlib.contextmanager
def connected(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(with_driver(url))
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


if __name__ == "__main__":
    sys.exit(main())

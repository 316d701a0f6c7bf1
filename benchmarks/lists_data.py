# SPDX-License-Identifier: Apache-2.0
"""Images as a large cloud has them, made by the database itself in a few minutes: for benchmarks/lists.py.

Every row follows from its number, so that two databases of one size have the same images.
"""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa

from storelib.api.db.engine import Database
from storelib.api.db.migrate import sync
from storelib.api.db.schema import indexes_of, metadata

#: Numbers of images that one statement makes.
BATCH = 50_000
#: Tables whose indexes are made when all rows are there, which is several times faster.
INDEXED_LATER = ("images", "image_properties", "image_tags", "image_members")
DAY = 86_400_000_000
#: Microseconds since 1970 when the first image was made, and between one and the next.
FIRST, STEP = 1_500_000_000_000_000, 120_000_000
#: Members of the image that has the most.
MOST_MEMBERS = 10_000
CACHE = "cache-of-the-benchmark"
# Each spreads the numbers in its own way. Smaller ones would tie what they choose to the last digits of the number.
_FACTORS = (
    *(1103515245, 1664525019, 2069547741, 1347758131, 1214013637, 1069069073, 1597334677, 1747796405, 1812433253),
    *(1948271279, 1662089911),
)


def fill(database: Database, count: int) -> None:
    """Make so many images in an empty database, with properties, tags, members, locations, tasks, caches."""
    indexes = [index for name in INDEXED_LATER for index in indexes_of(metadata.tables[name], database.kind)]
    with database.engine.connect() as connection:
        _prepare(connection)
        for index in indexes:
            index.drop(connection, checkfirst=True)
        connection.commit()
        for first in range(0, count, BATCH):
            # SQLite's write-ahead log grows with a transaction.
            _numbers(connection, first, min(BATCH, count - first))
            for statement in _statements(database.kind, count):
                # Their drivers put values in place of a single %.
                connection.exec_driver_sql(statement if database.kind == "sqlite" else statement.replace("%", "%%"))
            connection.commit()
        connection.exec_driver_sql("DROP TABLE benchmark_numbers")
        connection.commit()
        if database.kind not in ("sqlite", "postgresql"):
            for index in indexes:
                index.create(connection)
    # Which indexes are missing is seen, and how they have to be made on PostgreSQL.
    sync(database.url)
    settle(database)


def settle(database: Database) -> None:
    """What a server does by itself after a while; nothing on SQLite, which does nothing by itself."""
    if database.kind == "sqlite":
        return
    with database.engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        if database.kind == "postgresql":
            connection.exec_driver_sql("VACUUM ANALYZE")
            return
        for table in metadata.tables:
            connection.exec_driver_sql(f"ANALYZE TABLE {table}").all()


def _prepare(connection: sa.Connection) -> None:
    kind = connection.dialect.name
    if kind == "sqlite":
        connection.exec_driver_sql("PRAGMA cache_size = -300000")
    elif kind == "postgresql":
        connection.exec_driver_sql("SET synchronous_commit = off")
        connection.exec_driver_sql("SET maintenance_work_mem = '256MB'")
    else:
        # What a server for so many images has; 128 MiB is the default.
        connection.exec_driver_sql("SET GLOBAL innodb_buffer_pool_size = 2147483648")
        connection.exec_driver_sql("SET SESSION sql_mode = 'PIPES_AS_CONCAT', foreign_key_checks = 0")
    connection.exec_driver_sql("DROP TABLE IF EXISTS benchmark_numbers")
    connection.exec_driver_sql("CREATE TABLE benchmark_numbers (n BIGINT PRIMARY KEY)")


def _numbers(connection: sa.Connection, first: int, count: int) -> None:
    connection.exec_driver_sql("DELETE FROM benchmark_numbers")
    for start in range(first, first + count, 1000):
        numbers = ",".join(f"({number})" for number in range(start, min(start + 1000, first + count)))
        connection.exec_driver_sql(f"INSERT INTO benchmark_numbers VALUES {numbers}")


def _statements(kind: str, count: int) -> Iterator[str]:
    """What makes all that belongs to the numbers in the table, of ``count`` images in all."""
    image_id = _image_id(kind, "n")
    yield _insert("images", _image(kind, count))
    for name, value, where in _properties():
        yield _insert(
            "image_properties",
            {"image_id": image_id, "name": f"'{name}'", "value": value, "head": f"substr({value}, 1, 64)"},
            where,
        )
    for tag, where in _tags(count):
        yield _insert("image_tags", {"image_id": image_id, "tag": tag}, where)
    for member, where in _members(count):
        status = f"CASE {_spread(5, 10)} WHEN 0 THEN 'pending' WHEN 1 THEN 'rejected' ELSE 'accepted' END"
        if member.startswith("'member-"):
            status = "'accepted'"
        yield _insert(
            "image_members",
            {
                "image_id": image_id,
                "member": member,
                "status": status,
                "can_share": _flag(kind, "n % 50 = 0"),
                "created_at": f"{FIRST} + n * {STEP}",
                "updated_at": f"{FIRST} + n * {STEP}",
            },
            where,
        )
    most = max(count // MOST_MEMBERS, 1)
    one = {"image_id": _image_id(kind, "1"), "member": "'many-' || n", "status": "'pending'"}
    times = {"created_at": f"{FIRST} + n", "updated_at": f"{FIRST} + n"}
    yield _insert("image_members", {**one, "can_share": _flag(kind, "n < 0"), **times}, f"n % {most} = 0")
    for position, where in ((0, f"{_HAS_DATA} OR (({_DELETED}) AND n % 50 = 0)"), (1, f"{_HAS_DATA} AND n % 20 = 0")):
        location = {
            "image_id": image_id,
            "position": str(position),
            "uri": f"'s3://bucket-{position}/' || {image_id}",
            "metadata": '\'{"store":"fast"}\'',
            "pending_since": f"CASE WHEN {_DELETED} THEN {FIRST} + n * {STEP} END",
        }
        yield _insert("image_locations", location, where)
    yield _insert("tasks", _task(kind), "n % 10 = 0")
    yield _insert("metadef_namespaces", _namespace(kind), "n % 500 = 0")
    cached = {"node": f"'{CACHE}'", "image_id": image_id, "host": "'host'", "size": "1000", "hits": "n % 7"}
    yield _insert("cached_images", {**cached, "cached_at": str(FIRST), "used_at": f"{FIRST} + n"}, "n % 50 = 0")


_DELETED = "(n * 1103515245 % 2147483647) % 100 < 5"
_STATUS = "(n * 1664525 % 2147483647) % 1000"
_HAS_DATA = f"(NOT ({_DELETED}) AND ({_STATUS} < 885))"


def _spread(way: int, size: int) -> str:
    """A number below ``size`` that follows from n and looks like chance."""
    return f"((n * {_FACTORS[way]} % 2147483647) % {size})"


def _image(kind: str, count: int) -> dict[str, str]:
    has_data = f"CASE WHEN {_HAS_DATA} THEN"
    size = f"{_spread(2, 2147483647)} * 8"
    text = f"replace({_image_id(kind, 'n')}, '-', '')"
    small = max(count // 40, 2)
    owner = (
        f"CASE WHEN n % {small} = 3 % {small} THEN 'owner-small' WHEN {_spread(3, 1000)} < 189 THEN 'owner-big' "
        f"WHEN {_spread(3, 1000)} < 209 THEN 'owner-20k' WHEN {_spread(3, 1000)} < 215 THEN 'owner-6k' "
        f"ELSE 'owner-' || {_spread(4, 3000)} END"
    )
    visibility = (
        f"CASE WHEN {_spread(5, 1000)} < 5 THEN 'public' WHEN {_spread(5, 1000)} < 10 THEN 'community' "
        f"WHEN {_spread(5, 1000)} < 200 THEN 'private' ELSE 'shared' END"
    )
    statuses = {870: "active", 885: "deactivated", 960: "queued", 975: "saving", 985: "importing", 995: "uploading"}
    status = " ".join(f"WHEN {_STATUS} < {top} THEN '{name}'" for top, name in statuses.items())
    return {
        "id": _image_id(kind, "n"),
        "name": f"CASE WHEN {_spread(6, 100)} < 5 THEN 'ubuntu-22.04' "
        f"WHEN {_spread(6, 100)} < 99 THEN 'image-' || n END",
        "status": f"CASE WHEN {_DELETED} THEN 'deleted' {status} ELSE 'killed' END",
        "visibility": visibility,
        "owner": owner,
        "size": f"{has_data} {size} END",
        "virtual_size": f"{has_data} {size} * 2 END",
        "checksum": f"{has_data} {text} END",
        "os_hash_algo": f"{has_data} 'sha512' END",
        "os_hash_value": f"{has_data} {text} || {text} || {text} || {text} END",
        "disk_format": f"CASE WHEN {_spread(7, 100)} < 60 THEN 'qcow2' WHEN {_spread(7, 100)} < 85 THEN 'raw' "
        f"WHEN {_spread(7, 100)} < 95 THEN 'iso' WHEN {_spread(7, 100)} < 98 THEN 'vmdk' END",
        "container_format": f"CASE WHEN {_spread(8, 100)} < 96 THEN 'bare' WHEN {_spread(8, 100)} < 98 THEN 'ovf' END",
        "min_disk": f"{_spread(9, 5)} * 10",
        "min_ram": f"{_spread(10, 4)} * 512",
        "protected": _flag(kind, f"{_spread(9, 1000)} < 20"),
        "os_hidden": _flag(kind, f"{_spread(10, 1000)} < 10"),
        "created_at": f"{FIRST} + n * {STEP}",
        "updated_at": f"{FIRST} + n * {STEP} + {_spread(4, 2147483647)} * 1000",
        "deleted_at": f"CASE WHEN {_DELETED} THEN {FIRST} + n * {STEP} + {DAY} END",
        "deleted": _flag(kind, _DELETED),
        "version": "1",
    }


def _properties() -> Iterator[tuple[str, str, str]]:
    """Name, value, which images: five each."""
    distro = f"CASE {_spread(0, 10)} WHEN 0 THEN 'debian' WHEN 1 THEN 'fedora' WHEN 2 THEN 'rocky' ELSE 'ubuntu' END"
    yield "os_distro", distro, "n >= 0"
    # Never together with ubuntu.
    arm = f"CASE WHEN {_spread(0, 10)} = 1 THEN 'aarch64' ELSE 'x86_64' END"
    yield "architecture", arm, "n >= 0"
    yield "build", "'' || n", "n >= 0"
    yield "hw_disk_bus", f"CASE WHEN {_spread(1, 20)} = 0 THEN 'scsi' ELSE 'virtio' END", "n >= 0"
    yield "team", f"'team-' || {_spread(2, 1000)}", "n % 100 <> 0"
    yield (
        "description",
        "'An image that somebody said much of, which makes its value longer than an index has it: ' || n",
        ("n % 100 = 0"),
    )


def _tags(count: int) -> Iterator[tuple[str, str]]:
    yield "'common'", f"{_spread(3, 10)} < 2"
    # No image has both.
    yield "'left'", "n % 10 = 1"
    yield "'right'", "n % 10 = 2"
    yield "'old'", "n < 700"
    yield "'older'", "n < 6000"
    yield "'rare'", f"n % {max(count // 1000, 2)} = 1"
    yield f"'kind-' || {_spread(6, 1000)}", "n % 2 = 0"


def _members(count: int) -> Iterator[tuple[str, str]]:
    """A few projects with many shares, and two of three thousand for each shared image."""
    shared = f"{_spread(5, 1000)} >= 200"
    yield "'member-few'", f"n % {max(count // 574, 2)} = 0"
    yield "'member-some'", f"n % {max(count // 2632, 2)} = 1"
    yield "'member-many'", "n % 10 = 4"
    yield f"'project-' || {_spread(0, 1500)}", shared
    yield f"'project-' || (1500 + {_spread(1, 1500)})", f"{shared} AND n % 20 <> 0"


def _task(kind: str) -> dict[str, str]:
    return {
        "id": _image_id(kind, "n"),
        "type": "'api_image_import'",
        "status": "CASE WHEN n % 1000 = 0 THEN 'processing' WHEN n % 70 = 0 THEN 'failure' ELSE 'success' END",
        "owner": f"'owner-' || {_spread(4, 3000)}",
        "image_id": _image_id(kind, "n"),
        "input": "'{}'",
        "message": "''",
        "created_at": f"{FIRST} + n * {STEP}",
        "updated_at": f"{FIRST} + n * {STEP}",
        "expires_at": "0",
    }


def _namespace(kind: str) -> dict[str, str]:
    return {
        "namespace": "'namespace-' || n",
        "visibility": "CASE WHEN n % 1000 = 0 THEN 'public' ELSE 'private' END",
        "protected": _flag(kind, "n < 0"),
        "owner": "CASE WHEN n % 5000 = 0 THEN 'owner-big' ELSE 'owner-' || n END",
        "created_at": f"{FIRST} + n * {STEP}",
        "updated_at": f"{FIRST} + n * {STEP}",
    }


def _insert(table: str, values: dict[str, str], where: str = "n >= 0") -> str:
    quoted = ", ".join(values)
    return f"INSERT INTO {table} ({quoted}) SELECT {', '.join(values.values())} FROM benchmark_numbers WHERE {where}"


def _flag(kind: str, condition: str) -> str:
    return f"({condition})" if kind == "postgresql" else f"CASE WHEN {condition} THEN 1 ELSE 0 END"


def _image_id(kind: str, number: str) -> str:
    """An id in no order of the numbers."""
    scattered = f"(({number}) * 2654435761 % 4294967296)"
    if kind == "sqlite":
        return f"printf('%08x-0000-4000-8000-%012x', {scattered}, {number})"
    if kind == "postgresql":
        head, tail = f"to_hex({scattered}::bigint)", f"to_hex(({number})::bigint)"
    else:
        head, tail = f"lower(hex({scattered}))", f"lower(hex({number}))"
    return f"lpad({head}, 8, '0') || '-0000-4000-8000-' || lpad({tail}, 12, '0')"


def image_id(number: int) -> str:
    """The id of an image by its number."""
    return f"{number * 2654435761 % 4294967296:08x}-0000-4000-8000-{number:012x}"

# SPDX-License-Identifier: Apache-2.0
"""Brings a database to the tables of this storelib, and refuses one that is not there.

Alembic runs the files in ``migrations/versions``. A process that migrates holds a lock of the database, so that
processes starting together do it once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import URL, Connection

from storelib.api.db.engine import LOCK_TIMEOUT, VERSION_TABLE, Database, sqlite_path
from storelib.api.db.schema import SORTED_BY, images, indexes_of, metadata
from storelib.api.errors import BadDatabase, DatabaseUnavailable, SchemaOutOfDate

# Any number that other programs are unlikely to lock with.
_LOCK = 5_739_201_774
_LOCKING = {
    "postgresql": ("SELECT pg_try_advisory_lock(:lock)", "SELECT pg_advisory_unlock(:lock)"),
    "mysql": ("SELECT GET_LOCK(:lock, 0)", "SELECT RELEASE_LOCK(:lock)"),
}
#: Seconds between two looks at whether another process is done.
_PAUSE = 0.05
_UNSET_FIRST = frozenset(name for name in SORTED_BY if images.c[name].nullable)
_WHOLE_INDEXES = """
SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indisvalid AND pg_table_is_visible(c.oid)
"""


class Version(NamedTuple):
    """The revision of the tables, None before the first, and the one this storelib needs."""

    current: str | None
    head: str


def sync(url: str | URL) -> Version:
    """Bring the tables to the newest revision; returns what was found there. Raises BadDatabase, DatabaseUnavailable.

    Servers of the revision before may go on meanwhile. A crash in the middle leaves SQLite and PostgreSQL at one of the
    revisions, to go on from; MySQL does not undo changes of tables, but the next run makes only what is missing (the
    very first revision excepted).
    """
    # Changing large tables takes its time.
    database = Database(url, statement_timeout=None)
    try:
        return _sync(database)
    finally:
        database.close()


def version(url: str | URL) -> Version:
    """The revision that is there and the one this storelib needs; changes nothing. Raises DatabaseUnavailable."""
    database = Database(url)
    try:
        if _absent(database):
            return Version(None, _script().get_current_head() or "")
        return database.read(_version)
    finally:
        database.close()


def check(database: Database) -> None:
    """Raise SchemaOutOfDate unless the tables are what this storelib needs."""
    if _absent(database):
        raise SchemaOutOfDate(f"{database} does not exist; run: storelib db sync")
    current, head = database.read(_version)
    if current == head:
        # Its lists name their indexes.
        if database.kind == "sqlite" and database.read(_missing_on_sqlite):
            raise SchemaOutOfDate(f"{database} has not all indexes that this storelib needs; run: storelib db sync")
        return
    if current is None:
        raise SchemaOutOfDate(f"{database} has no tables of storelib; run: storelib db sync")
    if current not in {script.revision for script in _script().walk_revisions()}:
        raise SchemaOutOfDate(
            f"{database} is at revision {current}, which this storelib does not know: a newer one made it"
        )
    raise SchemaOutOfDate(f"{database} is at revision {current}, this storelib needs {head}; run: storelib db sync")


def prepare(database: Database) -> None:
    """What a start needs: an absent or empty SQLite database is made, then all are checked."""
    if database.kind == "sqlite" and (_absent(database) or database.read(_is_empty)):
        sync(database.url)
    check(database)


def _sync(database: Database, target: str = "head") -> Version:
    """To the revision ``target``, each in a transaction of its own: what one locks is not locked while others work.

    All in one on SQLite, where one that writes locks everything anyway, but for the indexes of tables with rows: each
    of those takes seconds for a million images, for which others wait.
    """
    path = sqlite_path(database.url)
    if path is not None:
        _make_file(path)
    script = _script()
    last = script.get_revision(target).revision
    with _alone(database) as connection:
        if connection is None:
            found = database.write(lambda connection: _go_on(connection, database, script, last, None))
            if last == script.get_current_head():
                _build_indexes_in_turn(database)
            return found
        found = now = database.write(lambda connection: _go_on(connection, database, script, last, 1))
        while now.current != last:
            now = database.write(lambda connection: _go_on(connection, database, script, last, 1))
        if database.kind == "postgresql" and last == script.get_current_head():
            _build_indexes(connection)
    return found


def _go_on(
    connection: Connection, database: Database, script: ScriptDirectory, last: str, count: int | None
) -> Version:
    """Go ``count`` revisions on, or all; returns the one that was there, and the one that this is to end with."""
    before = _version(connection).current
    if before is None:
        _refuse_foreign_tables(connection, database)
    steps = script._upgrade_revs(last, before or "base") if before != last else []
    if steps:
        options = {
            "version_table": VERSION_TABLE,
            "fn": lambda revision, context: steps[:count],
            "script": script,
        }
        context = MigrationContext.configure(connection, opts=options)
        with Operations.context(context):
            context.run_migrations()
    # MySQL commits with each change of a table anyway; the others do all of a revision or nothing here.
    connection.commit()
    return Version(before, last)


def _build_indexes(connection: Connection) -> None:
    """Make the described indexes that are missing, or were never completed, while others write to their tables."""
    quote = connection.dialect.identifier_preparer.quote
    for table, index in _missing_indexes(connection, set(connection.execute(sa.text(_WHOLE_INDEXES)).scalars())):
        name, kind = str(index.name), "UNIQUE INDEX" if index.unique else "INDEX"
        # Lists have what is not set before everything else, where PostgreSQL sorts it last.
        columns = [
            f"{quote(column.name)} NULLS FIRST"
            if table == "images" and column.name in _UNSET_FIRST
            else quote(column.name)
            for column in index.columns
        ]
        method = index.dialect_options["postgresql"]["using"] or "btree"
        place = f"{quote(table)} USING {method} ({', '.join(columns)})"
        connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {quote(name)}")
        connection.exec_driver_sql(f"CREATE {kind} CONCURRENTLY {quote(name)} ON {place}")


def _build_indexes_in_turn(database: Database) -> None:
    """Make the described indexes that are missing, each in a transaction of its own: others write in between."""
    for _, index in database.read(_missing_on_sqlite):
        # Another process may be doing the same.
        database.write(functools.partial(index.create, checkfirst=True))


def _missing_on_sqlite(connection: Connection) -> list[tuple[str, sa.Index]]:
    names = connection.execute(sa.text("SELECT name FROM sqlite_master WHERE type = 'index'")).scalars()
    return _missing_indexes(connection, set(names))


def _missing_indexes(connection: Connection, whole: set[str]) -> list[tuple[str, sa.Index]]:
    """The described indexes that are not among these, of columns that are there, each with the name of its table."""
    kind = connection.dialect.name
    described = {str(index.name) for table in metadata.sorted_tables for index in indexes_of(table, kind)}
    if described <= whole:
        return []
    inspector = sa.inspect(connection)
    tables = set(inspector.get_table_names())
    missing: list[tuple[str, sa.Index]] = []
    for table in metadata.sorted_tables:
        there = {column["name"] for column in inspector.get_columns(table.name)} if table.name in tables else set()
        for index in sorted(indexes_of(table, kind), key=lambda index: str(index.name)):
            if str(index.name) not in whole and there.issuperset(column.name for column in index.columns):
                missing.append((table.name, index))
    return missing


@functools.cache
def _script() -> ScriptDirectory:
    # Imports all revisions when first asked for one, which each start does several times.
    config = Config()
    config.set_main_option("script_location", "storelib.api.db:migrations")
    return ScriptDirectory.from_config(config)


def _version(connection: Connection) -> Version:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return Version(context.get_current_revision(), _script().get_current_head() or "")


def _is_empty(connection: Connection) -> bool:
    return not sa.inspect(connection).get_table_names()


def _absent(database: Database) -> bool:
    path = sqlite_path(database.url)
    return path is not None and not path.exists()


def _make_file(path: Path) -> None:
    """An empty file that only its owner reads, as rows may hold what others must not know.

    One that is there is never opened: closing it would drop the locks of SQLite's own descriptors here (fcntl(2)).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise BadDatabase(f"[database] connection: cannot write {path}: {path.parent} is not a directory") from None
    except OSError as error:
        raise BadDatabase(f"[database] connection: cannot write {path}: {error.strerror}") from error


def _refuse_foreign_tables(connection: Connection, database: Database) -> None:
    ours = set(metadata.tables) & set(sa.inspect(connection).get_table_names())
    if ours:
        raise BadDatabase(
            f"{database} has tables of another program or of a broken migration: {', '.join(sorted(ours))}; "
            "give storelib a database of its own"
        )


@contextlib.contextmanager
def _alone(database: Database) -> Iterator[Connection | None]:
    """A connection outside of transactions that holds the lock of migrations; None for SQLite, which needs none.

    It is waited for outside of transactions, too: an index that is built beside others is complete only when all
    transactions that began before are over.
    """
    if database.kind == "sqlite":
        yield None
        return
    lock: dict[str, Any] = {"lock": _LOCK if database.kind == "postgresql" else "storelib_migration"}
    take, drop = _LOCKING["postgresql" if database.kind == "postgresql" else "mysql"]
    engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
    deadline = time.monotonic() + LOCK_TIMEOUT * 20
    with database.naming_failures(), engine.connect() as connection:
        while not connection.execute(sa.text(take), lock).scalar():
            if time.monotonic() > deadline:
                raise DatabaseUnavailable("another process has been migrating the database for too long")
            time.sleep(_PAUSE)
        try:
            yield connection
        finally:
            connection.execute(sa.text(drop), lock)

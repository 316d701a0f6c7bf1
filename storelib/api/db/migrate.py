# SPDX-License-Identifier: Apache-2.0
"""Brings a database to the tables of this storelib, and refuses one that is not there.

Alembic runs the files in ``migrations/versions``. A process that migrates holds a lock of the database, so that
processes starting together do it once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import URL, Connection

from storelib.api.db.engine import LOCK_TIMEOUT, Database, sqlite_path
from storelib.api.db.schema import metadata
from storelib.api.errors import BadDatabase, DatabaseUnavailable, SchemaOutOfDate

#: Not Alembic's default name, which other programs use in a database they may share.
VERSION_TABLE = "storelib_version"
# Any number that other programs are unlikely to lock with.
_LOCK = 5_739_201_774


class Version(NamedTuple):
    """The revision of the tables, None before the first, and the one this storelib needs."""

    current: str | None
    head: str


def sync(url: str | URL) -> Version:
    """Bring the tables to the newest revision; returns what was found there. Raises BadDatabase, DatabaseUnavailable.

    A crash in the middle leaves SQLite and PostgreSQL as they were; MySQL does not undo changes of tables.
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
        raise SchemaOutOfDate(f"{database!r} does not exist; run: storelib db sync")
    current, head = database.read(_version)
    if current == head:
        return
    if current is None:
        raise SchemaOutOfDate(f"{database!r} has no tables of storelib; run: storelib db sync")
    if current not in {script.revision for script in _script().walk_revisions()}:
        raise SchemaOutOfDate(
            f"{database!r} is at revision {current}, which this storelib does not know: a newer one made it"
        )
    raise SchemaOutOfDate(f"{database!r} is at revision {current}, this storelib needs {head}; run: storelib db sync")


def prepare(database: Database) -> None:
    """What a start needs: an absent or empty SQLite database is made, then all are checked."""
    if database.kind == "sqlite" and (_absent(database) or database.read(_is_empty)):
        sync(database.url)
    check(database)


def _sync(database: Database) -> Version:
    path = sqlite_path(database.url)
    if path is not None:
        _make_file(path)
    script = _script()

    def upgrade(connection: Connection) -> Version:
        with _locked(connection):
            before = _version(connection)
            if before.current is None:
                _refuse_foreign_tables(connection, database)
            context = MigrationContext.configure(
                connection,
                opts={
                    "version_table": VERSION_TABLE,
                    "fn": lambda revision, context: script._upgrade_revs("head", revision),
                    "script": script,
                },
            )
            with Operations.context(context):
                context.run_migrations()
            # MySQL commits with each change of a table anyway; the others do all or nothing here.
            connection.commit()
        return before

    return database.write(upgrade)


def _script() -> ScriptDirectory:
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
            f"{database!r} has tables of another program or of a broken migration: {', '.join(sorted(ours))}; "
            "give storelib a database of its own"
        )


@contextlib.contextmanager
def _locked(connection: Connection) -> Iterator[None]:
    kind: Any = connection.dialect.name
    if kind == "postgresql":
        # Ends with the transaction.
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        yield
    elif kind in ("mysql", "mariadb"):
        name = {"lock": "storelib_migration", "patience": int(LOCK_TIMEOUT * 20)}
        if connection.execute(sa.text("SELECT GET_LOCK(:lock, :patience)"), name).scalar() != 1:
            raise DatabaseUnavailable("another process has been migrating the database for too long")
        try:
            yield
        finally:
            connection.execute(sa.text("SELECT RELEASE_LOCK(:lock)"), name)
    else:
        # SQLite: BEGIN IMMEDIATE is the lock.
        yield

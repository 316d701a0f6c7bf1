# SPDX-License-Identifier: Apache-2.0
"""Reads the tables of a Glance database: nothing is written there, and every statement sees the same moment.

Columns that a Glance of some releases ago does not have yet are not set. Values come as the database's driver has them.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine

from storelib.api.db.engine import LOCK_TIMEOUT, reason_of, shown
from storelib.api.errors import BadDatabase, DatabaseUnavailable
from storelib.extras import needs

#: What oslo.db and SQLAlchemy take out of the URL before the driver sees it, and what is always set here.
_NOT_THE_DRIVER_S = ("charset", "plugin")
_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
_DRIVERS |= dict.fromkeys(("mysql", "mariadb"), "mysql+pymysql")
_EXTRA = {"psycopg": "postgresql", "pymysql": "mysql"}
_CONNECT_TIMEOUT = 10
_BEGIN = {
    "sqlite": ("BEGIN",),
    "mysql": (
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
    ),
}
#: What tells the tables of a Glance from others; visibility came with Ocata.
_NEEDED = {
    "images": ("id", "status", "visibility", "deleted"),
    "image_locations": ("image_id", "value", "status"),
    "image_properties": ("image_id", "name", "value"),
    "image_tags": ("image_id", "value"),
    "image_members": ("image_id", "member", "status"),
}


class Source:
    """``with Source(url) as source``: the tables of one Glance, in one transaction that only reads.

    Raises BadDatabase for a URL that is none, and for tables that are not Glance's; DatabaseUnavailable.
    """

    def __init__(self, url: str) -> None:
        self._url = _parse(url)
        self._engine = _engine(self._url)
        self._connection: Connection | None = None
        self._columns: dict[str, frozenset[str]] = {}

    def __repr__(self) -> str:
        return f"Source({shown(self._url)!r})"

    def __enter__(self) -> Source:
        with self._naming_failures():
            self._connection = self._engine.connect()
        try:
            self._check()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the transaction and close the connection."""
        if self._connection is not None:
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                self._connection.close()
            self._connection = None
        self._engine.dispose()

    @property
    def name(self) -> str:
        """The server and the database, or the file: without user and password."""
        url = self._url
        place = f"{url.host}:{url.port}" if url.port else url.host or ""
        return f"{place}/{url.database}" if place else str(url.database)

    def has(self, table: str) -> bool:
        """Whether there is such a table."""
        return bool(self._names(table))

    def count(self, table: str, *where: Any) -> int:
        """How many rows there are."""
        [[found]] = self._execute(sa.select(sa.func.count()).select_from(sa.table(table)).where(*where))
        return int(found)

    def rows(
        self, table: str, names: Sequence[str], *where: Any, order: Sequence[str] = ("id",), limit: int | None = None
    ) -> Sequence[Any]:
        """Rows with these columns, of which those that are not there are None."""
        known = self._names(table)
        columns = [sa.column(name) if name in known else sa.null().label(name) for name in names]
        found: Any = sa.select(*columns).select_from(sa.table(table)).where(*where)
        return self._execute(found.order_by(*(sa.column(name) for name in order)).limit(limit))

    def lengths(self, table: str, column: str, key: str, keys: Collection[str]) -> dict[str, int]:
        """Characters of a column in all the rows of each key."""
        total = sa.func.sum(sa.func.length(sa.column(column)))
        found: Any = sa.select(sa.column(key), total).select_from(sa.table(table))
        found = found.where(sa.column(key).in_(keys)).group_by(sa.column(key))
        return {name: int(length or 0) for name, length in self._execute(found)}

    def _check(self) -> None:
        for table, columns in _NEEDED.items():
            if not self.has(table):
                raise BadDatabase(f"{shown(self._url)} is no database of Glance: it has no table {table}")
            if missing := sorted(set(columns) - self._names(table)):
                raise BadDatabase(
                    f"{shown(self._url)} is no database of Glance, or of one before Ocata: {table} has no {missing[0]}"
                )

    def _names(self, table: str) -> frozenset[str]:
        if table not in self._columns:
            with self._naming_failures():
                inspector = sa.inspect(self._open)
                there = inspector.has_table(table)
                columns = inspector.get_columns(table) if there else ()
            self._columns[table] = frozenset(column["name"] for column in columns)
        return self._columns[table]

    def _execute(self, statement: Any) -> Sequence[Any]:
        with self._naming_failures():
            return self._open.execute(statement).all()

    @property
    def _open(self) -> Connection:
        if self._connection is None:
            raise RuntimeError("the source is closed")
        return self._connection

    @contextlib.contextmanager
    def _naming_failures(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            if type(error) is sa.exc.DatabaseError:
                raise BadDatabase(f"{shown(self._url)}: {reason_of(error)}") from error
            raise DatabaseUnavailable(f"{shown(self._url)}: {reason_of(error)}") from error


def is_living() -> sa.ColumnElement[bool]:
    """Of rows of Glance: those that are not deleted."""
    return sa.column("deleted", sa.Boolean) == sa.false()


def is_pending() -> sa.ColumnElement[bool]:
    """Of images and locations: whose data is still to be deleted. Glance calls these deleted, too."""
    return sa.column("status") == "pending_delete"


def _parse(url: str) -> URL:
    try:
        parsed = sa.make_url(url)
        driver = _DRIVERS[parsed.get_backend_name()]
    except (sa.exc.ArgumentError, ValueError):
        # What SQLAlchemy says would show the whole of it.
        raise BadDatabase(
            "the URL of Glance's database is none such as mysql+pymysql://user:password@host/glance or sqlite:////path"
        ) from None
    except KeyError:
        raise BadDatabase("Glance's database is read from SQLite, PostgreSQL, MySQL and MariaDB only") from None
    if driver == "sqlite" and not parsed.database:
        raise BadDatabase("the URL of Glance's SQLite database names no file")
    return parsed.set(drivername=driver).difference_update_query(_NOT_THE_DRIVER_S)


def _engine(url: URL) -> Engine:
    kind = url.get_backend_name()
    # Values may be secrets; they belong in no message and no log.
    options: dict[str, Any] = {"hide_parameters": True, "poolclass": sa.pool.NullPool}
    if kind == "sqlite":
        options["creator"] = lambda: _open_file(str(url.database))
    elif kind == "postgresql":
        options["isolation_level"] = "REPEATABLE READ"
        options["connect_args"] = {"connect_timeout": _CONNECT_TIMEOUT}
        # Between two statements, what was read is written elsewhere.
        options["connect_args"]["options"] = "-c idle_in_transaction_session_timeout=0 -c statement_timeout=0"
    else:
        options["connect_args"] = {"connect_timeout": _CONNECT_TIMEOUT, "charset": "utf8mb4"}
    try:
        engine = sa.create_engine(url, **options)
    except ImportError as error:
        driver = url.get_driver_name()
        raise BadDatabase(needs(shown(url), _EXTRA.get(driver, "api"), driver)) from error
    if kind != "postgresql":
        event.listen(engine, "begin", lambda connection: _begin(connection, _BEGIN[kind]))
    return engine.execution_options(postgresql_readonly=True) if kind == "postgresql" else engine


def _begin(connection: Connection, statements: Sequence[str]) -> None:
    for statement in statements:
        connection.exec_driver_sql(statement)


def _open_file(path: str) -> sqlite3.Connection:
    place = path if path.startswith("file:") else f"file:{quote(path)}?mode=ro"
    connection = sqlite3.connect(place, uri=True, timeout=LOCK_TIMEOUT, isolation_level=None)
    connection.execute("PRAGMA query_only = ON")
    # A text that is none is one entry's fault, not that of all.
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    return connection

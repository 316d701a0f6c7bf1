# SPDX-License-Identifier: Apache-2.0
"""Opens a database and runs transactions on it: the pool, what each kind of server needs, and the only retries.

What a server says when a connection is lost or two transactions collide is known here and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
import tenacity
from oslo_config import cfg
from sqlalchemy import event
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler
from sqlalchemy.engine import URL, Connection, Engine

from storelib.api.db.config import read_options
from storelib.api.errors import BadDatabase, BadRequest, DatabaseUnavailable, OutcomeUnknown
from storelib.extras import needs

_T = TypeVar("_T")

#: Seconds that a lost connection or a collision is retried; SQLite waits as long for its lock.
LOCK_TIMEOUT = 15.0
#: The table of the revision. Not Alembic's default name, which other programs use in a database they may share.
VERSION_TABLE = "storelib_version"
#: Seconds that connecting, and one statement, may take.
_CONNECT_TIMEOUT = 10
_STATEMENT_TIMEOUT = 60
_DRIVERS = {
    "sqlite": "sqlite+pysqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}
_EXTRA = {"psycopg": "postgresql", "pymysql": "mysql"}
# PostgreSQL: serialization failure, deadlock, lock not available, and the server going down or coming up.
_SQLSTATES = frozenset({"40001", "40P01", "55P03", "57P01", "57P02", "57P03"})
# MySQL: deadlock, lock wait timeout, MariaDB's "record has changed since last read", server shutdown.
_MYSQL_CODES = frozenset({1213, 1205, 1020, 1053})
# The server only reads, as one that another has taken over from; a node of Galera that has lost the others.
_USELESS = frozenset({"25006", 1290, 1792, 1836, 1047})
# PostgreSQL: the user may not do that.
_NO_PRIVILEGE = "42501"
_WRITE = "storelib_write"


class Database:
    """One database: ``read`` and ``write`` run a function in a transaction of its own.

    Connections are made at first use and made anew in a forked child. Closing is ``close``; a closed one may be used
    again and connects again.
    """

    def __init__(
        self,
        url: str | URL,
        *,
        pool_size: int = 16,
        max_overflow: int = 16,
        pool_timeout: float = 30.0,
        recycle: int = 3600,
        sqlite_synchronous: bool = True,
        statement_timeout: int | None = _STATEMENT_TIMEOUT,
    ) -> None:
        self.url = parse_url(url)
        kind = self.kind = self.url.get_backend_name()
        is_sqlite = kind == "sqlite"
        # Connections are not tried before they are used: the loss of one shows at its first statement, and the whole
        # transaction is repeated. Asking each time would cost as much as reading an image.
        options: dict[str, Any] = {
            "pool_size": pool_size,
            "max_overflow": max_overflow,
            "pool_timeout": pool_timeout,
            "pool_recycle": recycle,
            "poolclass": sa.pool.QueuePool,
            "pool_use_lifo": True,
            # Values may be secrets (locations); they belong in no message and no log.
            "hide_parameters": True,
            "connect_args": _connect_args(self.url, statement_timeout),
        }
        try:
            self.engine = sa.create_engine(self.url, **options)
        except ImportError as error:
            extra = _EXTRA.get(self.url.get_driver_name(), "api")
            raise BadDatabase(needs(shown(self.url), extra, self.url.get_driver_name())) from error
        self._writes = self.engine.execution_options(**{_WRITE: True})
        event.listen(self.engine, "handle_error", _leave_useless_server)
        if is_sqlite:
            _prepare_sqlite(self.engine, sqlite_synchronous)
        elif kind == "postgresql":
            _prepare_postgresql(self.engine)
        else:
            _prepare_mysql(self.engine)
        # Threads of one process queue here, in turn; SQLite's own waiting is a poll that may starve one of them.
        self._turn: contextlib.AbstractContextManager[object] = (
            threading.Lock() if is_sqlite else contextlib.nullcontext()
        )
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_succeed_later),
            wait=tenacity.wait_random_exponential(multiplier=0.01, max=1),
            stop=tenacity.stop_after_delay(LOCK_TIMEOUT),
            reraise=True,
        )
        _open.add(self)

    def __repr__(self) -> str:
        return f"Database({shown(self.url)!r})"

    def __str__(self) -> str:
        return shown(self.url)

    def read(self, work: Callable[[Connection], _T]) -> _T:
        """Return what ``work`` finds; every statement in it sees the same moment. It may be run again.

        Raises DatabaseUnavailable, BadRequest for a value that the database refuses.
        """
        with self.naming_failures():
            try:
                return self._read(work)
            except sa.exc.DBAPIError as error:
                if not _may_succeed_later(error):
                    raise
            result: _T = self._retrying(self._read, work)
            return result

    def write(self, work: Callable[[Connection], _T]) -> _T:
        """Return what ``work`` does, after its commit. It may be run again, after a rollback.

        Raises DatabaseUnavailable, OutcomeUnknown when the connection was lost at the commit, BadRequest for a value
        that the database refuses.
        """
        with self.naming_failures():
            try:
                return self._write(work)
            except sa.exc.DBAPIError as error:
                if not _may_succeed_later(error):
                    raise
            result: _T = self._retrying(self._write, work)
            return result

    def close(self) -> None:
        """Close the connections that are in no transaction; the next transaction connects again."""
        self.engine.dispose()

    def _read(self, work: Callable[[Connection], _T]) -> _T:
        with self.engine.connect() as connection:
            return work(connection)

    def _write(self, work: Callable[[Connection], _T]) -> _T:
        with self._turn, self._writes.connect() as connection:
            result = work(connection)
            try:
                connection.commit()
            except sa.exc.DBAPIError as error:
                if error.connection_invalidated:
                    raise OutcomeUnknown(f"{shown(self.url)} was lost at the commit") from error
                raise
            return result

    @contextlib.contextmanager
    def naming_failures(self) -> Iterator[None]:
        """Around statements: what the database's driver raises is raised as ``read`` does."""
        try:
            yield
        except sa.exc.DataError as error:
            raise BadRequest(f"the database refuses a value: {reason_of(error)}") from error
        except (sa.exc.OperationalError, sa.exc.InterfaceError) as error:
            raise DatabaseUnavailable(f"{shown(self.url)}: {reason_of(error)}") from error
        except sa.exc.TimeoutError as error:
            raise DatabaseUnavailable(
                f"{shown(self.url)}: no connection became free in time; see [database] max_pool_size"
            ) from error
        except sa.exc.DBAPIError as error:
            if error.connection_invalidated:
                raise DatabaseUnavailable(f"{shown(self.url)}: {reason_of(error)}") from error
            if type(error) is sa.exc.DatabaseError or _code_of(error.orig) == _NO_PRIVILEGE:
                raise BadDatabase(f"{shown(self.url)}: {reason_of(error)}") from error
            raise

    def _forget_connections(self) -> None:
        # They are the parent's. Closing SQLite's here could take its locks away, so nobody may collect them.
        _inherited.append(self.engine.pool)
        self.engine.dispose(close=False)
        if self.kind == "sqlite":
            self._turn = threading.Lock()


_open: weakref.WeakSet[Database] = weakref.WeakSet()
_inherited: list[object] = []


def _after_fork() -> None:
    for database in list(_open):
        database._forget_connections()


os.register_at_fork(after_in_child=_after_fork)


def from_conf(conf: cfg.ConfigOpts) -> Database:
    """The database that ``[database]`` names; raises BadDatabase, BadStoreConfiguration. Connects to nothing yet."""
    group = read_options(conf)
    return Database(
        group.connection,
        pool_size=group.max_pool_size,
        max_overflow=group.max_overflow,
        pool_timeout=group.pool_timeout,
        recycle=group.connection_recycle_time,
        sqlite_synchronous=group.sqlite_synchronous,
    )


def parse_url(url: str | URL) -> URL:
    """The URL with the driver that is used for it; raises BadDatabase, without showing a password."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        # What SQLAlchemy says would show the whole of it.
        raise BadDatabase(
            "[database] connection is not a URL such as sqlite:////path or postgresql://user:password@host/name"
        ) from None
    backend, _, driver = parsed.drivername.partition("+")
    name = _DRIVERS.get(backend)
    if name is None or driver not in ("", name.partition("+")[2]):
        known = ", ".join(sorted({*_DRIVERS, *_DRIVERS.values()}))
        raise BadDatabase(f"[database] connection: {parsed.drivername!r} is none of {known}")
    parsed = parsed.set(drivername=name)
    if parsed.get_backend_name() == "sqlite" and _in_memory(parsed):
        raise BadDatabase("[database] connection: SQLite needs a file, threads and processes cannot share a memory")
    return parsed


def sqlite_path(url: URL) -> Path | None:
    """The file of an SQLite database; None for other databases, and where SQLite itself reads a URI."""
    database = url.database
    if url.get_backend_name() != "sqlite" or database is None or database.startswith("file:"):
        return None
    return Path(database)


def _in_memory(url: URL) -> bool:
    return url.database in (None, "", ":memory:", "file::memory:") or url.query.get("mode") == "memory"


def shown(url: URL) -> str:
    """The URL for messages, without its password and options."""
    return url.set(query={}).render_as_string(hide_password=True)


def _connect_args(url: URL, statement_timeout: int | None) -> dict[str, Any]:
    kind = url.get_backend_name()
    if kind == "sqlite":
        return {"timeout": LOCK_TIMEOUT}
    defaults: dict[str, Any]
    if kind == "postgresql":
        defaults = {"connect_timeout": _CONNECT_TIMEOUT, "tcp_user_timeout": _STATEMENT_TIMEOUT * 1000}
        # What it compiles for a list takes longer than the list: 65 of 530 ms in one that is read for very long.
        settings = ["jit=off"]
        if statement_timeout is not None:
            settings += [f"statement_timeout={statement_timeout}s", f"lock_timeout={statement_timeout // 2}s"]
            settings += [f"idle_in_transaction_session_timeout={statement_timeout}s"]
        defaults["options"] = " ".join(f"-c {setting}" for setting in settings)
    else:
        defaults = {"connect_timeout": _CONNECT_TIMEOUT, "charset": "utf8mb4"}
        if statement_timeout is not None:
            defaults.update(read_timeout=statement_timeout, write_timeout=statement_timeout)
    return {name: value for name, value in defaults.items() if name not in url.query}


class _CompilerWithHints(SQLiteCompiler):
    """Writes hints behind the names of tables, as the compilers of other databases do: INDEXED BY."""

    def get_from_hint_text(self, table: Any, text: str | None) -> str | None:
        return text


def _prepare_sqlite(engine: Engine, synchronous: bool) -> None:
    engine.dialect.statement_compiler = _CompilerWithHints

    @event.listens_for(engine, "connect")
    def on_connect(connection: sqlite3.Connection, record: object) -> None:
        # Transactions are begun below, in the mode they need.
        connection.isolation_level = None
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA synchronous = {'FULL' if synchronous else 'NORMAL'}")
            _use_wal(connection)
        except sqlite3.Error:
            connection.close()
            raise

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        # A transaction that reads first and writes later fails at once when another wrote between.
        driver: Any = connection.connection.driver_connection
        try:
            driver.execute("BEGIN IMMEDIATE" if _is_write(connection) else "BEGIN")
        except sqlite3.Error as error:
            raise sa.exc.OperationalError("BEGIN", None, error) from error


# A read of several statements sees one moment. What a write reads after waiting for a row must be what the other
# transaction left, not what was there before.


def _prepare_postgresql(engine: Engine) -> None:
    from psycopg import IsolationLevel

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        # Goes out with psycopg's own BEGIN; SQLAlchemy's option for it costs more than the statement.
        driver: Any = connection.connection.driver_connection
        level = IsolationLevel.READ_COMMITTED if _is_write(connection) else IsolationLevel.REPEATABLE_READ
        if driver.isolation_level != level:
            driver.isolation_level = level


def _prepare_mysql(engine: Engine) -> None:
    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        if _is_write(connection):
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")


def _is_write(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get(_WRITE))


def _use_wal(connection: sqlite3.Connection) -> None:
    """The mode stays in the file, so one that has tables of another program is left as it is."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and VERSION_TABLE not in tables:
        return
    # Changing the mode does not wait for locks as everything else does.
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _may_succeed_later(error: BaseException) -> bool:
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    original = error.orig
    if isinstance(original, sqlite3.Error):
        return False  # it has waited for the lock already
    code = _code_of(original)
    if isinstance(code, str):
        return code in _SQLSTATES
    if isinstance(code, int):
        # 2002 to 2013: no connection, or lost.
        return code in _MYSQL_CODES or 2002 <= code <= 2013
    # psycopg has no code when it cannot connect.
    return isinstance(error, sa.exc.OperationalError)


def _leave_useless_server(context: sa.engine.ExceptionContext) -> None:
    """As if the connection was lost: a new one may lead to the server that took over."""
    if _code_of(context.original_exception) in _USELESS:
        context.is_disconnect = True


def _code_of(error: BaseException | None) -> str | int | None:
    """What the database's driver calls an error: PostgreSQL's SQLSTATE, MySQL's number."""
    code = error.args[0] if error is not None and error.args else None
    if isinstance(code, int):
        # PyMySQL may tell an SQLSTATE, too, which is the same for many errors.
        return code
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else None


def reason_of(error: sa.exc.DBAPIError) -> str:
    """The first line of what the database's driver says, which has no values in it."""
    return str(error.orig).strip().partition("\n")[0]

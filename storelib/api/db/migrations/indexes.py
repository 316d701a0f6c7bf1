# SPDX-License-Identifier: Apache-2.0
"""Indexes of tables that are in use while they are made, and what is there of a migration that was interrupted."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

# Seconds that an index is waited with for others, and that they have in between; and how often.
_WAIT, _PAUSE, _ATTEMPTS = 2, 0.5, 60
# Lock wait timeout, deadlock.
_BUSY = frozenset({1205, 1213})


def add_index(name: str, table: str, columns: Sequence[str], *, prefix: int | None = None) -> None:
    """Index a table that exists already, and is described so in ``schema.py``.

    PostgreSQL would keep all writers waiting, and SQLite all others until the whole migration is done, so that
    ``migrate.sync`` builds it there behind the migration. MySQL and MariaDB build it beside writers; as they
    commit each, one that is there is of a migration that was interrupted. There it has ``prefix`` characters of a text.
    """
    connection = op.get_bind()
    kind = connection.dialect.name
    if kind == "postgresql":
        return
    first = sa.select(sa.literal(1)).select_from(sa.table(table)).limit(1)
    if kind == "sqlite" and connection.execute(first).first() is not None:
        return
    if name in {index["name"] for index in sa.inspect(connection).get_indexes(table)}:
        return
    if kind == "sqlite":
        op.create_index(name, table, list(columns))
    else:
        _add_between_others(connection, name, table, columns, prefix)


def _add_between_others(
    connection: sa.Connection, name: str, table: str, columns: Sequence[str], prefix: int | None
) -> None:
    """Make the index on MySQL or MariaDB, which needs a moment without others' transactions at its beginning and end.

    All others wait for it while it waits for one of them; and MariaDB does not notice when that one waits for it, too.
    So it does not wait long, and begins again a little later.
    """
    connection.execute(sa.text(f"SET SESSION lock_wait_timeout = {_WAIT}, innodb_lock_wait_timeout = {_WAIT}"))
    for attempt in itertools.count(1):
        try:
            op.create_index(name, table, list(columns), mysql_length=prefix, mariadb_length=prefix)
            return
        except sa.exc.OperationalError as error:
            code = error.orig.args[0] if error.orig is not None and error.orig.args else None
            if code not in _BUSY or attempt == _ATTEMPTS:
                raise
        time.sleep(_PAUSE)


def create_table(name: str, *items: sa.schema.SchemaItem, **options: Any) -> sa.Table:
    """Make a new table, but where it is there already, after an interruption on MySQL; returns it."""
    if is_there(name):
        return sa.Table(name, sa.MetaData(), *items)
    return op.create_table(name, *items, **options)


def create_index(name: str, table: str, columns: Sequence[str], *, unique: bool = False) -> None:
    """Index a new table, which nobody uses yet, but where that is done already."""
    if name not in {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}:
        op.create_index(name, table, list(columns), unique=unique)


def add_column(table: str, column: sa.Column[Any]) -> None:
    """Add a column, but where it is there already."""
    if not is_there(table, column.name):
        op.add_column(table, column)


def is_there(table: str, column: str | None = None) -> bool:
    """Whether there is such a table, and such a column of it."""
    inspector = sa.inspect(op.get_bind())
    if column is None:
        return inspector.has_table(table)
    return column in {found["name"] for found in inspector.get_columns(table)}

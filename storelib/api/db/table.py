# SPDX-License-Identifier: Apache-2.0
"""What the tables of the repository stand on: methods that are one short transaction each.

A method of a table is written with the connection of its transaction as its first argument, which the decorator fills
in: ``@reads`` runs it where every statement sees the same moment, ``@writes`` commits behind it. It may be run again
when the database lost the connection or two transactions collided, so its arguments are values, never iterators.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy.engine import Connection

from storelib.api.db.engine import Database


class Table:
    """One subject of a database: the statements about it, and what they promise."""

    def __init__(self, database: Database) -> None:
        self._database = database


_P = ParamSpec("_P")
_T = TypeVar("_T")
_AnyTable = TypeVar("_AnyTable", bound=Table)


def reads(method: Callable[Concatenate[_AnyTable, Connection, _P], _T]) -> Callable[Concatenate[_AnyTable, _P], _T]:
    """Run the method in a transaction that only reads; raises what ``Database.read`` raises."""

    @functools.wraps(method)
    def run(self: _AnyTable, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._database.read(lambda connection: method(self, connection, *args, **kwargs))

    return run


def writes(method: Callable[Concatenate[_AnyTable, Connection, _P], _T]) -> Callable[Concatenate[_AnyTable, _P], _T]:
    """Run the method in a transaction that is committed; raises what ``Database.write`` raises."""

    @functools.wraps(method)
    def run(self: _AnyTable, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._database.write(lambda connection: method(self, connection, *args, **kwargs))

    return run

# SPDX-License-Identifier: Apache-2.0
"""The order of a list: of rows that were read, and as a condition for those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storelib.api.db import ways
from storelib.api.db.filters import Condition
from storelib.api.db.records import SortKey
from storelib.api.db.schema import images


def in_order(rows: list[Any], keys: Sequence[SortKey]) -> list[Any]:
    """Rows sorted by several keys; what is not set comes first in ascending order."""
    for key in reversed(keys):
        rows = sorted(rows, key=lambda row: _comparable(getattr(row, key.key)), reverse=key.direction == "desc")
    return rows


def merged(rows: list[Any], keys: Sequence[SortKey], limit: int) -> list[Any]:
    """The first of rows that were found in several steps, each once."""
    return in_order(list({row.id: row for row in rows}.values()), keys)[:limit]


def is_behind(row: Any, end: Any, keys: Sequence[SortKey]) -> bool:
    """Whether a row comes after another, by keys that have one direction and are set."""
    at, last = (tuple(getattr(each, key.key) for key in keys) for each in (row, end))
    return at > last if keys[0].direction == "asc" else at < last


def until(end: Any, keys: Sequence[SortKey], kind: str) -> Condition:
    """Images up to a row and with it, in the SQL of the database ``kind``."""
    return _compared(end, keys, kind, "<=" if keys[0].direction == "asc" else ">=")


def behind(end: Any, keys: Sequence[SortKey], kind: str) -> Condition:
    """Images after a row."""
    return _compared(end, keys, kind, ">" if keys[0].direction == "asc" else "<")


def _comparable(value: Any) -> tuple[bool, Any]:
    return (value is not None, value)


def _compared(end: Any, keys: Sequence[SortKey], kind: str, operator: str) -> Condition:
    names = [key.key for key in keys]
    values = [getattr(end, name) for name in names]
    if len(names) == 1:
        compared: Condition = images.c.id.op(operator, is_comparison=True)(values[0])
        return compared
    return ways.row_comparison(kind, names, values, operator)

# SPDX-License-Identifier: Apache-2.0
"""An entry of a catalogue with all that belongs to it, and what there is to be done with entries in the tables here."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

Row = Mapping[str, Any]


class Entry(ABC):
    """One entry; two of the same ``digest`` are the same in everything."""

    @property
    @abstractmethod
    def key(self) -> str:
        """What tells it from others of its kind."""

    @property
    @abstractmethod
    def content(self) -> Any:
        """All of it, in what JSON can have."""

    @abstractmethod
    def check(self) -> None:
        """Raise BadRequest or LimitExceeded for what does not fit into the tables."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content."""
        text = json.dumps(self.content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class Entries(ABC):
    """The entries of one kind in the tables here; every method is a part of a transaction."""

    @abstractmethod
    def present(self, connection: Connection, keys: Collection[str], *, lock: bool) -> set[str]:
        """Which of these are here, deleted ones too; with ``lock`` they are held until the end of the transaction."""

    @abstractmethod
    def digests(self, connection: Connection, keys: Collection[str]) -> dict[str, str]:
        """Of these what they are now; without deleted ones. One that is being worked on has the digest of none."""

    @abstractmethod
    def insert(self, connection: Connection, entries: Sequence[Any]) -> None:
        """Make entries that are not here."""

    @abstractmethod
    def replace(self, connection: Connection, entries: Sequence[Any]) -> None:
        """Make entries that are here like these."""

    @abstractmethod
    def delete(self, connection: Connection, keys: Collection[str]) -> None:
        """Delete entries, but no data of images: that is gone, or not ours."""


def insert_all(connection: Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Insert rows, if there are any."""
    if rows:
        connection.execute(table.insert(), [dict(row) for row in rows])

# SPDX-License-Identifier: Apache-2.0
"""The clocks by which times in the tables are judged: this host's and the database's, either of which may be wrong.

Nothing is old, and nothing is in the future, unless it is by both. SQLite has no clock but this host's.
"""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db.rows import now
from storelib.api.db.schema import Now


class Clocks(NamedTuple):
    """The one that is behind, and the one that is ahead, in microseconds since 1970."""

    earliest: int
    latest: int


def read(connection: Connection) -> Clocks:
    """What the clocks of this machine and of the database's show now."""
    here = now()
    there = here if connection.dialect.name == "sqlite" else connection.execute(sa.select(Now())).scalar_one()
    return Clocks(min(here, there), max(here, there))

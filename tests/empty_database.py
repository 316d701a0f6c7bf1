# SPDX-License-Identifier: Apache-2.0
"""SQLite databases with all tables and no rows: migrated once in a process, then copied.

That migrations make them is for the tests of migrations to say; for all others it would be half of their time.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from storelib.api.db.migrate import sync


def make_empty_database(path: Path) -> None:
    """What `storelib db sync` makes of a file that is absent, which ``path`` has to be."""
    path.touch(0o600, exist_ok=False)
    path.write_bytes(_migrated())


@functools.cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory(prefix="storelib-test-") as directory:
        path = Path(directory, "images.sqlite")
        sync(f"sqlite:///{path}")
        assert [each.name for each in path.parent.iterdir()] == [path.name], "SQLite has not all in one file"
        return path.read_bytes()

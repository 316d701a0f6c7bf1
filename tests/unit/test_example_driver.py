# SPDX-License-Identifier: Apache-2.0
"""The example driver of "Writing a driver" keeps every promise. The guide shows this file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "examples"))

# [conformance]
import sqlite3
from contextlib import closing

from sqlite_store import SqliteStore

from storelib import open_store
from storelib.testing.conformance import BackendAccess, StoreConformance


class SqliteAccess(BackendAccess):
    """Looks into the file without the driver."""

    def __init__(self, file):
        self.file = file

    def read(self, image_id):
        """The bytes of an image."""
        with closing(sqlite3.connect(self.file)) as db:
            found = db.execute("SELECT token FROM images WHERE id = ?", (image_id,)).fetchone()
            rows = db.execute("SELECT data FROM parts WHERE token = ? ORDER BY start", found or ("",)).fetchall()
        return b"".join(data for (data,) in rows) if found else None

    def residue(self, prefix):
        """Tokens of images, of uploads, and of parts that belong to neither."""
        with closing(sqlite3.connect(self.file)) as db:
            known = dict(db.execute("SELECT token, id FROM images UNION SELECT token, id FROM uploads"))
            tokens = {token for (token,) in db.execute("SELECT token FROM parts")} | known.keys()
        return {token for token in tokens if known.get(token, prefix).startswith(prefix)}


class TestSqliteStore(StoreConformance):
    """One class, all promises."""

    capabilities = SqliteStore.capabilities

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, tmp_path_factory):
        """A store on a file of its own."""
        return open_store(SqliteStore, sqlite_store_file=tmp_path_factory.mktemp("sqlite") / "images.db")

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, tmp_path_factory):
        """A file that is not there yet."""
        new = tmp_path_factory.mktemp
        return lambda **options: open_store(SqliteStore, sqlite_store_file=new("new") / "images.db", **options)

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, store):
        """The same file."""
        return SqliteAccess(store.file)

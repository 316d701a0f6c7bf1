# SPDX-License-Identifier: Apache-2.0
"""The repository on SQLite; the same promises on servers are in tests/functional/test_api_database.py."""

import pytest
from db_contract import RepositoryContract
from empty_database import make_empty_database

from storelib.api.db.engine import Database
from storelib.api.db.migrate import prepare


class TestSqlite(RepositoryContract):
    @pytest.fixture
    def database(self, tmp_path):
        make_empty_database(tmp_path / "images.sqlite")
        # Nothing here is about power failures.
        database = Database(f"sqlite:///{tmp_path}/images.sqlite", sqlite_synchronous=False)
        prepare(database)
        yield database
        database.close()

# SPDX-License-Identifier: Apache-2.0
"""Each migration from the schema before, with data in it, while clients of that schema go on: for all databases.

What an older version does is done by the tables as they were, read from the database before it is upgraded: it knows no
column or table that came later.
"""

from __future__ import annotations

import threading
import uuid
from typing import Any

import pytest
import sqlalchemy as sa

from storelib.api.db import Repository
from storelib.api.db.engine import Database
from storelib.api.db.migrate import VERSION_TABLE, _script, _sync, check
from storelib.api.db.schema import indexes_of, metadata
from storelib.api.errors import SchemaOutOfDate

_ALL = [script.revision for script in reversed(list(_script().walk_revisions()))]
#: Every revision but the first, the oldest one first, and the one before each.
REVISIONS = _ALL[1:]
BEFORE = dict(zip(REVISIONS, _ALL, strict=False))
ROWS = 3


class Interrupted(Exception):
    """The end of a process that migrates."""


class OldClient:
    """A program that knows the tables as they are now, and goes on with them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.tables = sa.MetaData()
        self.tables.reflect(database.engine)
        self.tables.remove(self.tables.tables[VERSION_TABLE])
        self.count = 0

    def fill(self, rows: int = ROWS) -> dict[str, list[dict[str, Any]]]:
        """So many new rows in every table; returns them."""
        made: dict[str, list[dict[str, Any]]] = {}

        def insert(connection: sa.Connection) -> None:
            made.clear()
            for table in self.tables.sorted_tables:
                for number in range(rows):
                    row = self._row(table, {name: of[number] for name, of in made.items() if name != table.name})
                    done = connection.execute(table.insert(), row)
                    keys = dict(
                        zip((column.name for column in table.primary_key), done.inserted_primary_key, strict=True)
                    )
                    made.setdefault(table.name, []).append({**row, **keys})

        self.database.write(insert)
        return made

    def _row(self, table: sa.Table, parents: dict[str, dict[str, Any]]) -> dict[str, Any]:
        row = {}
        for column in table.columns:
            if column.foreign_keys:
                [key] = column.foreign_keys
                row[column.name] = parents[key.column.table.name][key.column.name]
            elif not self._counts_itself(table, column):
                row[column.name] = self._value(column)
        return row

    @staticmethod
    def _counts_itself(table: sa.Table, column: sa.Column[Any]) -> bool:
        return column.primary_key and len(table.primary_key) == 1 and not isinstance(column.type, sa.String)

    def _value(self, column: sa.Column[Any]) -> Any:
        self.count += 1
        if isinstance(column.type, sa.Text) or (isinstance(column.type, sa.String) and column.type.length is None):
            return "{}"
        if isinstance(column.type, sa.String):
            return str(uuid.uuid4())[: column.type.length]
        if isinstance(column.type, sa.LargeBinary):
            return bytes([self.count % 256])
        # A flag is 0 or 1 in some, and nobody compares the others.
        return self.count % 2 == 1 if isinstance(column.type, sa.Boolean) else self.count % 2

    def find(self, name: str, row: dict[str, Any]) -> dict[str, Any] | None:
        """The row with this one's key, as it is now."""
        table = self.tables.tables[name]
        keys = [column == row[column.name] for column in table.primary_key]
        found = self.database.read(lambda connection: connection.execute(sa.select(table).where(*keys)).one_or_none())
        return None if found is None else dict(found._mapping)

    def change(self, name: str, row: dict[str, Any]) -> dict[str, Any]:
        """Write every column of a row that is no part of a key; returns what it is then."""
        table = self.tables.tables[name]
        fixed = {column.name for column in table.primary_key} | {
            column.name for column in table.columns if column.foreign_keys
        }
        values = {column.name: self._value(column) for column in table.columns if column.name not in fixed}
        if values:
            keys = [column == row[column.name] for column in table.primary_key]
            done = self.database.write(
                lambda connection: connection.execute(table.update().where(*keys).values(**values)).rowcount
            )
            assert done == 1, f"{name}: the row is not there"
        return {**row, **values}

    def delete(self, made: dict[str, list[dict[str, Any]]]) -> None:
        def delete(connection: sa.Connection) -> None:
            for table in reversed(self.tables.sorted_tables):
                for row in made.get(table.name, ()):
                    keys = [column == row[column.name] for column in table.primary_key]
                    connection.execute(table.delete().where(*keys))

        self.database.write(delete)


class MigrationContract:
    """Subclasses have a fixture ``url`` of an empty database."""

    @pytest.fixture
    def before(self, url, revision):
        """A database of the revision before, and a client of it."""
        database = Database(url)
        _sync(database, BEFORE[revision])
        yield OldClient(database)
        database.close()

    @pytest.mark.parametrize("revision", REVISIONS)
    def test_clients_of_the_revision_before_go_on(self, before, revision):
        made = before.fill()
        stop, troubles, rounds = threading.Event(), [], []

        def work() -> None:
            try:
                while not stop.is_set():
                    own = before.fill(1)
                    for name, rows in own.items():
                        before.change(name, rows[0])
                    before.delete(own)
                    rounds.append(own)
            except BaseException as error:
                troubles.append(error)
                raise

        worker = threading.Thread(target=work)
        worker.start()
        try:
            migrating = Database(before.database.url, statement_timeout=None)
            assert _sync(migrating, revision).current is not None
            migrating.close()
            after = len(rounds)
            while len(rounds) < after + 2 and worker.is_alive():
                stop.wait(0.01)
        finally:
            stop.set()
            worker.join()
        assert troubles == []
        # Nothing that was there is lost, and all of it can be changed and deleted.
        for name, rows in made.items():
            for row in rows:
                found = before.find(name, row)
                assert found is not None, name
                assert {column: found[column] for column in row} == row, name
                changed = before.change(name, row)
                assert before.find(name, row) == found | changed
        before.delete(made)
        assert all(before.find(name, rows[0]) is None for name, rows in made.items())

    @pytest.mark.parametrize("revision", [REVISIONS[-1]])
    def test_what_the_revision_before_wrote_is_read_by_this_one(self, before, revision):
        made = before.fill()
        _sync(before.database)
        check(before.database)
        late = before.fill()
        repository = Repository(before.database)
        for row in (*made["images"], *late["images"]):
            assert repository.images.get(row["id"], deleted=True).name == row["name"]
        assert len(list(repository.images.audit())) == 2 * ROWS

    @pytest.mark.parametrize("revision", REVISIONS[:1])
    def test_the_indexes_are_there_in_the_end(self, before, revision):
        before.fill()
        _sync(before.database)
        inspector = sa.inspect(before.database.engine)
        for table in metadata.sorted_tables:
            found = {index["name"] for index in inspector.get_indexes(table.name)}
            assert found == {index.name for index in indexes_of(table, before.database.kind)}, table.name

    def test_one_that_is_interrupted_behind_changes_of_tables_comes_to_its_end(self, url):
        database = Database(url)
        _sync(database, "0001")
        done: list[str] = []

        def interrupt(connection, cursor, statement, *more):
            if statement.lstrip().startswith(("CREATE", "ALTER")):
                done.append(statement)
                # Behind every other, as each time takes a moment.
                if len(done) % 2:
                    raise Interrupted

        if database.kind not in ("sqlite", "postgresql"):
            # The others undo what was not whole.
            sa.event.listen(database.engine, "after_cursor_execute", interrupt)
        interrupted = True
        while interrupted:
            try:
                _sync(database)
                interrupted = False
            except Interrupted:
                assert len(done) == len(set(done)), done[-1]
        check(database)
        inspector = sa.inspect(database.engine)
        for table in metadata.sorted_tables:
            assert {column["name"] for column in inspector.get_columns(table.name)} == set(table.columns.keys())
            found = {index["name"] for index in inspector.get_indexes(table.name)}
            assert found == {index.name for index in indexes_of(table, database.kind)}, table.name
        assert bool(done) == (database.kind not in ("sqlite", "postgresql"))
        database.close()

    def test_a_migration_that_was_interrupted_is_gone_on_with(self, url):
        database = Database(url)
        _sync(database, "0010")
        OldClient(database).fill()
        if database.kind not in ("sqlite", "postgresql"):
            # The others undo what was not whole.
            for statement in (
                "CREATE INDEX ix_images_checksum ON images (deleted, checksum, id)",
                "ALTER TABLE holders ADD COLUMN stored BIGINT",
            ):
                database.write(lambda connection, text=statement: connection.exec_driver_sql(text))
        _sync(database)
        if database.kind == "sqlite":
            # Behind the migration, before all indexes were there.
            database.write(lambda connection: connection.exec_driver_sql("DROP INDEX ix_images_owner_size"))
            with pytest.raises(SchemaOutOfDate, match="indexes"):
                check(database)
            _sync(database)
        check(database)
        found = {index["name"] for index in sa.inspect(database.engine).get_indexes("images")}
        assert found == {index.name for index in indexes_of(metadata.tables["images"], database.kind)}
        database.close()

# SPDX-License-Identifier: Apache-2.0
"""The image API's repository on real servers: every promise it keeps on SQLite, and what only servers can do to it."""

import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa
from db_contract import ADMIN, ME, RepositoryContract, ids, make, make_active
from db_lists import PlanContract, RandomListContract, plans_of, statements_of
from db_migrations import MigrationContract, OldClient
from servers.mariadb import MariaDB
from servers.postgresql import PostgreSQL

from storelib.api.db import Repository, holdings
from storelib.api.db.engine import Database
from storelib.api.db.migrate import Version, _sync, check, prepare, sync, version
from storelib.api.db.records import NewLocation, Query, SortKey
from storelib.api.db.schema import images, metadata
from storelib.api.errors import BadDatabase, DatabaseUnavailable, OutcomeUnknown, SchemaOutOfDate


@pytest.fixture(scope="module")
def postgresql():
    with PostgreSQL() as server:
        yield server


@pytest.fixture(scope="module")
def mariadb():
    with MariaDB() as server:
        yield server


@pytest.fixture(scope="module")
def postgresql_database(postgresql):
    yield from _migrated(postgresql)


@pytest.fixture(scope="module")
def mariadb_database(mariadb):
    yield from _migrated(mariadb)


def _migrated(server):
    url = server.new_database()
    sync(url)
    database = Database(url)
    yield database
    database.close()


class ServerContract(RepositoryContract):
    """What holds on servers beyond what holds everywhere; subclasses have fixtures ``server`` and ``opened``."""

    @pytest.fixture
    def database(self, opened):
        with opened.engine.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
        return opened

    def test_an_empty_database_is_refused_until_it_is_migrated(self, server):
        url = server.new_database()
        database = Database(url)
        with pytest.raises(SchemaOutOfDate, match="storelib db sync"):
            prepare(database)
        assert version(url).current is None
        assert sync(url) == Version(None, version(url).head)
        check(database)
        database.close()

    def test_processes_that_migrate_together_do_it_once(self, server):
        url = server.new_database()
        with ThreadPoolExecutor(3) as pool:
            found = [each.current for each in pool.map(sync, [url] * 3)]
        assert sorted(found, key=str) == [version(url).head] * 2 + [None]

    def test_tables_of_another_program_are_left_alone(self, server):
        url = server.new_database()
        database = Database(url)
        database.write(lambda connection: connection.execute(sa.text("CREATE TABLE images (id INT)")))
        with pytest.raises(BadDatabase, match="another program"):
            sync(url)
        database.close()

    def test_a_newer_database_is_refused(self, server):
        url = server.new_database()
        sync(url)
        database = Database(url)
        database.write(lambda connection: connection.execute(sa.text("UPDATE storelib_version SET version_num = '9'")))
        with pytest.raises(SchemaOutOfDate, match="newer"):
            check(database)
        database.close()

    def test_what_others_change_while_a_sum_is_made_anew_is_no_mistake_in_it(self, server, repository, monkeypatch):
        image = make_active(repository, NewLocation("file:///fast", {"store": "fast"}), size=10)
        count = holdings.count

        def beside_others(connection, owner):
            counted = count(connection, owner)
            if counted:
                with ThreadPoolExecutor(1) as pool:
                    pool.submit(repository.images.soft_delete, image.id, from_={"active"}).result(60)
            return counted

        monkeypatch.setattr(holdings, "count", beside_others)
        before, now = repository.images.recount("me")
        assert before == now
        assert repository.images.stored("me") == 0

    def test_a_transition_meets_an_image_that_comes_into_its_status_meanwhile(self, server, repository, database):
        image = make(repository)
        process = repository.processes.join("here", 1)
        repository.uploads.begin(image.id, process.id)
        met = []

        def finish_behind_it(connection, cursor, statement, parameters, context, executemany):
            if not met and statement.startswith("UPDATE images") and not cursor.rowcount:
                met.append(repository.uploads.finish(image.id, process.id, size=1))

        sa.event.listen(database.engine, "after_cursor_execute", finish_behind_it)
        try:
            done = repository.images.transition(image.id, from_=("active",), to="deactivated")
        finally:
            sa.event.remove(database.engine, "after_cursor_execute", finish_behind_it)
        assert [image.status for image in met] == ["active"]
        assert done.status == "deactivated"

    def test_lost_connections_are_made_anew(self, server, repository):
        image = make(repository)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(repository.images.get, [image.id] * 8))
        assert server.kill_connections() > 0
        assert repository.images.get(image.id) == image
        server.kill_connections()
        repository.images.add_tag(image.id, "t")
        assert repository.images.get(image.id).tags == ("t",)

    def test_a_connection_lost_in_a_transaction_repeats_it(self, server, repository, database):
        image = make(repository)
        tries = []

        def work(connection):
            connection.execute(sa.update(images).where(images.c.id == image.id).values(name="x"))
            tries.append(1)
            if len(tries) == 1:
                server.kill_connections()
            connection.execute(sa.update(images).where(images.c.id == image.id).values(min_ram=len(tries)))

        database.write(work)
        assert len(tries) == 2
        assert repository.images.get(image.id).min_ram == 2

    def test_a_connection_lost_at_the_commit_is_reported_not_repeated(self, server, repository, database):
        image = make(repository)
        tries = []

        def work(connection):
            connection.execute(sa.update(images).where(images.c.id == image.id).values(name="x"))
            tries.append(1)
            server.kill_connections()

        with pytest.raises(OutcomeUnknown):
            database.write(work)
        assert len(tries) == 1

    def test_a_deadlock_is_repeated(self, repository, database):
        one, two = make(repository), make(repository)
        meet = threading.Barrier(2)
        tries = []

        def work(connection, order):
            for number, image in enumerate(order):
                connection.execute(
                    sa.update(images).where(images.c.id == image.id).values(min_ram=images.c.min_ram + 1)
                )
                tries.append(image.id)
                if number == 0 and len(tries) <= 2:
                    meet.wait(30)

        orders = [(one, two), (two, one)]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda order: database.write(lambda connection: work(connection, order)), orders))
        assert len(tries) > 4
        assert [repository.images.get(image.id).min_ram for image in (one, two)] == [2, 2]

    def test_a_row_that_another_holds_for_long_is_waited_for_again(self, repository, database):
        image = make(repository)
        tries = []
        with database.engine.begin() as holder:
            holder.execute(sa.update(images).where(images.c.id == image.id).values(name="held"))

            def work(connection):
                tries.append(1)
                connection.execute(sa.text(self.IMPATIENT))
                if len(tries) == 2:
                    holder.rollback()
                connection.execute(sa.update(images).where(images.c.id == image.id).values(min_ram=len(tries)))

            database.write(work)
        assert repository.images.get(image.id).min_ram == 2

    def test_a_server_that_only_reads_is_asked_again(self, repository, database):
        image = make(repository)
        tries = []

        def work(connection):
            tries.append(1)
            if len(tries) == 1:
                connection.execute(sa.text(self.READS_ONLY))
            connection.execute(sa.update(images).where(images.c.id == image.id).values(min_ram=len(tries)))

        database.write(work)
        assert repository.images.get(image.id).min_ram == 2

    def test_a_restarted_server_is_waited_for(self, server, repository):
        image = make(repository)
        server.stop()
        with ThreadPoolExecutor(1) as pool:
            response = pool.submit(repository.images.get, image.id)
            server.start()
            assert response.result(60) == image

    def test_a_server_that_stays_away_is_unavailable(self, server, monkeypatch):
        url = sa.make_url(server.new_database()).set(port=1)
        database = Database(url)
        database._retrying.stop = lambda state: state.attempt_number >= 2
        with pytest.raises(DatabaseUnavailable) as caught:
            Repository(database).images.get("x")
        assert url.password not in str(caught.value)
        database.close()

    def test_a_forked_child_makes_its_own_connections(self, repository):
        made = [make(repository).id for _ in range(5)]
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=_read_and_exit, args=(repository, made)) for _ in range(3)]
        for child in children:
            child.start()
        for _ in range(50):
            assert sorted(ids(repository.images.list(Query(ME)))) == sorted(made)
        for child in children:
            child.join(60)
            assert child.exitcode == 0
        assert sorted(ids(repository.images.list(Query(ADMIN)))) == sorted(made)

    def test_an_upload_taken_over_meanwhile_is_not_taken_again(self, repository, database):
        image, dead = make(repository), repository.processes.join("host", 1)
        slow, fast = repository.processes.join("host", 2), repository.processes.join("host", 3)
        repository.uploads.begin(image.id, dead.id)
        repository.processes.leave(dead.id)
        taken = []

        def overtake(connection, cursor, statement, *_) -> None:
            if statement.startswith("UPDATE uploads") and not taken:
                taken.append(None)
                with ThreadPoolExecutor(1) as pool:
                    taken[0] = pool.submit(repository.uploads.take_over, fast.id, ttl=60).result(30)

        sa.event.listen(database.engine, "before_cursor_execute", overtake)
        try:
            assert repository.uploads.take_over(slow.id, ttl=60) == []
        finally:
            sa.event.remove(database.engine, "before_cursor_execute", overtake)
        assert [each.image_id for each in taken[0]] == [image.id]
        assert repository.uploads.get(image.id).process_id == fast.id

    def test_a_write_sees_what_others_have_committed(self, repository, database):
        image = make(repository, name="before")

        def work(connection):
            name = sa.select(images.c.name).where(images.c.id == image.id)
            first = connection.execute(name).scalar_one()
            with ThreadPoolExecutor(1) as pool:
                pool.submit(repository.images.transition, image.id, from_={"queued"}, to="saving", name="after").result(
                    30
                )
            return first, connection.execute(name).scalar_one()

        assert database.write(work) == ("before", "after")

    def test_a_read_sees_one_moment(self, repository, database):
        image = make(repository, name="before")

        def work(connection):
            first = connection.execute(sa.select(images.c.name).where(images.c.id == image.id)).scalar_one()
            with ThreadPoolExecutor(1) as pool:
                pool.submit(repository.images.transition, image.id, from_={"queued"}, to="saving", name="after").result(
                    30
                )
            return first, connection.execute(sa.select(images.c.name).where(images.c.id == image.id)).scalar_one()

        assert database.read(work) == ("before", "before")


def _read_and_exit(repository, made) -> None:
    for _ in range(50):
        assert sorted(ids(repository.images.list(Query(ME)))) == sorted(made)
    # Nothing of the parent's is cleaned up here.
    os._exit(0)


class TestPostgreSQL(ServerContract):
    IMPATIENT = "SET LOCAL lock_timeout = 100"
    READS_ONLY = "SET TRANSACTION READ ONLY"

    @pytest.fixture
    def server(self, postgresql):
        return postgresql

    @pytest.fixture
    def opened(self, postgresql_database):
        return postgresql_database

    def test_nothing_is_compiled_for_a_statement(self, database):
        # Which takes longer than what it is for, also where no limit is set.
        assert database.read(lambda connection: connection.exec_driver_sql("SHOW jit").scalar()) == "off"

    def test_missing_rights_are_named(self, server):
        server.execute("CREATE ROLE nobody LOGIN PASSWORD 'x'")
        with pytest.raises(BadDatabase, match="permission denied"):
            sync(sa.make_url(server.new_database()).set(username="nobody", password="x"))


class TestMariaDB(ServerContract):
    IMPATIENT = "SET innodb_lock_wait_timeout = 1"
    # As with --read-only, which does not hold for the user of the tests.
    READS_ONLY = "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1290"

    @pytest.fixture
    def server(self, mariadb):
        return mariadb

    @pytest.fixture
    def opened(self, mariadb_database):
        return mariadb_database


class TestPostgreSQLMigrations(MigrationContract):
    @pytest.fixture
    def url(self, postgresql):
        return postgresql.new_database()

    def test_an_index_is_built_while_others_write(self, url):
        database = Database(url)
        _sync(database, "0004")
        client = OldClient(database)
        client.fill()
        statements = []
        migrating = Database(url, statement_timeout=None)

        def note(connection, cursor, statement, *more):
            statements.append(statement)

        sa.event.listen(migrating.engine, "before_cursor_execute", note)
        with database.engine.connect() as writing:
            # A transaction that has written to the table, and is not over.
            writing.execute(client.tables.tables["image_members"].update().values(status="accepted"))
            migrator = threading.Thread(target=_sync, args=(migrating,))
            migrator.start()
            _wait_until(lambda: any("INDEX CONCURRENTLY" in each and "CREATE" in each for each in statements))
            # Others write meanwhile, and are not kept waiting by the index.
            client.change("image_members", client.fill(1)["image_members"][0])
            writing.rollback()
        migrator.join()
        assert "ix_image_members_member_image" in {
            index["name"] for index in sa.inspect(database.engine).get_indexes("image_members")
        }
        migrating.close()
        database.close()

    def test_an_index_that_was_never_completed_is_made_anew(self, url):
        sync(url)
        database = Database(url)
        spoil = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_image_tags_tag'::regclass"
        database.write(lambda connection: connection.execute(sa.text(spoil)))
        sync(url)
        valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_image_tags_tag'::regclass"
        assert database.read(lambda connection: connection.execute(sa.text(valid)).scalar()) is True
        database.close()


class TestMariaDBMigrations(MigrationContract):
    @pytest.fixture
    def url(self, mariadb):
        return mariadb.new_database()


def _wait_until(done):
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


def _opened(server):
    url = server.new_database()
    sync(url)
    database = Database(url)
    yield database
    database.close()


class OnPostgreSQL:
    @pytest.fixture(scope="class")
    @classmethod
    def database(cls, postgresql):
        yield from _opened(postgresql)


class OnMariaDB:
    @pytest.fixture(scope="class")
    @classmethod
    def database(cls, mariadb):
        yield from _opened(mariadb)


class TestListsOfPostgreSQL(OnPostgreSQL, RandomListContract):
    pass


class TestListsOfMariaDB(OnMariaDB, RandomListContract):
    pass


class TestPlansOfPostgreSQL(OnPostgreSQL, PlanContract):
    def test_images_of_some_thousand_rows_are_looked_up_by_their_ids(self, filled):
        query = Query(ADMIN, tags=frozenset({"few"}), limit=25)
        plans = plans_of(filled, query, freely=True)
        assert any("images_pkey" in plan for plan in plans)
        assert not any("Seq Scan on images" in plan for plan in plans), plans

    @pytest.mark.parametrize("direction", ["asc", "desc"])
    def test_values_that_are_sorted_by_are_gone_through_in_turn(self, filled, limits, direction):
        """As one condition for all of them is only looked at, with each image that comes before them in an index."""
        limits(100, 60)
        sort = (SortKey("disk_format", direction), SortKey("size", direction))
        query = Query(ADMIN, sort=sort, limit=10_000, disk_formats=("raw", "qcow2", "vmdk"))
        pages = [statement for statement in statements_of(filled, query) if "images.version" in statement]
        assert pages
        assert not any("disk_format IN" in page for page in pages)
        found = Repository(filled).images.list(query).images
        expected = sorted(found, key=lambda image: (image.disk_format, image.size), reverse=direction == "desc")
        assert [image.id for image in found] == [image.id for image in expected]
        assert {image.disk_format for image in found} == {"raw", "qcow2"}
        # Behind an image of the second value there is none of the first.
        behind = Repository(filled).images.list(replace(query, marker=found[-2].id)).images
        assert behind == found[-1:]


class TestPlansOfMariaDB(OnMariaDB, PlanContract):
    pass

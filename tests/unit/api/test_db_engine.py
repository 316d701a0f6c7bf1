# SPDX-License-Identifier: Apache-2.0
"""Opening databases: SQLite without any set-up, what URLs may say, and what no message may show."""

import json
import logging
import multiprocessing
import os
import sqlite3
import stat
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from db_contract import make, new_id
from db_migrations import MigrationContract
from oslo_config import cfg

from storelib.api.db import Repository, open_repository
from storelib.api.db.config import list_opts, register_opts
from storelib.api.db.engine import Database, _may_succeed_later, from_conf, parse_url
from storelib.api.db.migrate import Version, check, prepare, sync, version
from storelib.api.db.records import ImageLocation, NewImage, NewLocation, TaskQuery
from storelib.api.db.schema import images, metadata
from storelib.api.errors import BadDatabase, DatabaseUnavailable, ImageNotFound, SchemaOutOfDate


def configured(url: str, **options) -> cfg.ConfigOpts:
    conf = cfg.ConfigOpts()
    register_opts(conf)
    for name, value in {"connection": url, **options}.items():
        conf.set_override(name, value, "database")
    return conf


@pytest.fixture
def repository(tmp_path):
    repository = open_repository(configured(f"sqlite:///{tmp_path}/images.sqlite"))
    yield repository
    repository.close()


FIRST_TABLES = {
    *("images", "image_properties", "image_tags", "image_members", "image_locations", "processes", "uploads"),
}


def later_tables_dropped(*kept):
    """Back to the tables of the first revision, and those whose names begin so, without what came with later ones."""
    names = [table.name for table in reversed(metadata.sorted_tables) if table.name not in FIRST_TABLES]
    dropped = [f"DROP TABLE {name}" for name in names if not name.startswith(kept)]
    # What came with the table of jobs.
    return [*dropped, "ALTER TABLE processes DROP COLUMN role"]


class TestSqliteWithoutSetUp:
    @pytest.mark.parametrize(
        "url",
        [
            "sqlite:///{path}",
            "sqlite+pysqlite:///{path}",
            "sqlite:///file:{path}?uri=true",
            "sqlite:///file:{path}?mode=rwc&uri=true",
        ],
    )
    @pytest.mark.parametrize("state", ["absent", "empty"])
    def test_an_absent_or_empty_database_is_made(self, tmp_path, url, state):
        path = tmp_path / "images.sqlite"
        if state == "empty":
            path.touch()
        repository = open_repository(configured(url.format(path=path)))
        image = make(repository)
        repository.close()
        again = open_repository(configured(f"sqlite:///{path}"))
        assert again.images.get(image.id) == image
        again.close()

    def test_its_directories_are_made(self, tmp_path):
        open_repository(configured(f"sqlite:///{tmp_path}/a/b/images.sqlite")).close()
        assert (tmp_path / "a/b/images.sqlite").exists()

    def test_only_its_owner_reads_it(self, tmp_path):
        path = tmp_path / "images.sqlite"
        repository = open_repository(configured(f"sqlite:///{path}"))
        make(repository)
        for each in tmp_path.iterdir():
            assert stat.S_IMODE(each.stat().st_mode) == 0o600, each.name
        repository.close()

    def test_a_path_that_cannot_be_written_is_named(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(BadDatabase, match="file/images.sqlite"):
            open_repository(configured(f"sqlite:///{tmp_path}/file/images.sqlite"))

    def test_a_file_that_is_no_database_is_left_alone(self, tmp_path):
        path = tmp_path / "images.sqlite"
        path.write_bytes(b"something else" * 100)
        with pytest.raises(BadDatabase, match="not a database"):
            open_repository(configured(f"sqlite:///{path}"))
        assert path.read_bytes() == b"something else" * 100

    def test_tables_of_another_program_are_left_alone(self, tmp_path):
        path = tmp_path / "images.sqlite"
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE images (id TEXT)")
        connection.close()
        before = path.read_bytes()
        with pytest.raises(SchemaOutOfDate, match="no tables of storelib"):
            open_repository(configured(f"sqlite:///{path}"))
        with pytest.raises(BadDatabase, match="another program"):
            sync(f"sqlite:///{path}")
        # Nor in another mode, which would stay.
        assert path.read_bytes() == before

    def test_processes_that_start_together_make_it_once_and_share_it(self, tmp_path):
        code = (
            "import os, sys, time\n"
            "from oslo_config import cfg\n"
            "from storelib.api.db import config, open_repository\n"
            "conf = cfg.ConfigOpts(); conf([]); config.register_opts(conf)\n"
            "for url in sys.argv[1:]:\n"
            "    conf.set_override('connection', url, 'database')\n"
            "    print('ready', flush=True); sys.stdin.read(1)\n"
            "    repository = open_repository(conf); repository.processes.join('host', 1); time.sleep(0.2)\n"
            "    print('made', flush=True); sys.stdin.read(1)\n"
            "    # SQLite deletes its log when it believes that nobody else has the database open.\n"
            "    opened = os.scandir('/proc/self/fd')\n"
            "    files = [os.readlink(entry.path) for entry in opened if os.path.islink(entry.path)]\n"
            "    seen = len(repository.processes.list()); repository.close()\n"
            "    if seen != 3 or any('images.sqlite' in file and '(deleted)' in file for file in files): sys.exit(1)\n"
        )
        # Several attempts, since it is a race.
        urls = [f"sqlite:///{tmp_path}/{attempt}/images.sqlite" for attempt in range(4)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started = [subprocess.Popen([sys.executable, "-c", code, *urls], **pipes) for _ in range(3)]
        for said in [b"ready\n", b"made\n"] * len(urls):
            for process in started:
                assert process.stdout.readline() == said
            for process in started:
                process.stdin.write(b"x")
                process.stdin.flush()
        for process in started:
            _, errors = process.communicate(timeout=60)
            assert (process.returncode, errors) == (0, b"")
        for url in urls:
            assert version(url).current == version(url).head

    def test_tables_of_the_revision_before_are_brought_on_with_what_is_under_way(self, tmp_path):
        url = f"sqlite:///{tmp_path}/images.sqlite"
        sync(url)
        database = Database(url)
        repository = Repository(database)
        image, process = make(repository), repository.processes.join("host", 1)
        repository.uploads.begin(image.id, process.id)
        for old in (
            *later_tables_dropped(),
            "DROP INDEX ix_image_members_member_image",
            "DROP INDEX ix_image_locations_claimed",
            "ALTER TABLE image_locations DROP COLUMN claimed_by",
            "ALTER TABLE image_locations DROP COLUMN claim",
            "ALTER TABLE uploads DROP COLUMN token",
            "ALTER TABLE processes DROP COLUMN boot",
            "ALTER TABLE processes DROP COLUMN ticks",
            "UPDATE storelib_version SET version_num = '0001'",
        ):
            database.write(lambda connection, old=old: connection.execute(sa.text(old)))
        database.close()
        with pytest.raises(SchemaOutOfDate):
            check(database)
        assert sync(url).current == "0001"
        check(database)
        assert repository.uploads.get(image.id).token == ""
        assert repository.processes.list()[0].boot is None
        assert repository.uploads.finish(image.id, process.id, token="").status == "active"
        repository.close()

    def test_tasks_of_older_revisions_are_listed(self, tmp_path):
        """Those that ended: of others an older version, which still runs, tells the end in the image."""
        url = f"sqlite:///{tmp_path}/images.sqlite"
        sync(url)
        database = Database(url)
        repository = Repository(database)
        made = {}
        for status in ("success", "failure", "processing"):
            task = {"id": str(uuid.uuid4()), "type": "api_image_import", "status": status, "input": {"stores": ["x"]}}
            task |= {"created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-02T00:00:00Z", "message": "why"}
            task |= {"owner": "me", "user_id": "I", "request_id": "req-1", "self": "/v2", "expires_at": None}
            old = {"record": json.dumps(task), "id": task["id"], "kind": "any"}
            made[status] = make(repository, properties={f"os_glance_task_{name}": old[name] for name in old}), task
        make(repository)
        for old in (
            *later_tables_dropped("metadef"),
            "DROP INDEX ix_image_members_member_image",
            "UPDATE storelib_version SET version_num = '0004'",
        ):
            database.write(lambda connection, old=old: connection.execute(sa.text(old)))
        assert sync(url).current == "0004"
        for key in ("created_at", "updated_at", "status", "type", "id"):
            found = {task.id for task in repository.tasks.list(TaskQuery(sort_key=key)).tasks}
            assert found == {made["success"][1]["id"], made["failure"][1]["id"]}, key
        image, task = made["failure"]
        assert repository.images.get(image.id).properties == {}
        [found] = repository.tasks.of_image(image.id)
        assert (found.kind, found.status, found.message) == ("api_image_import", "failure", "why")
        assert (found.owner, found.user_id, found.request_id) == ("me", "I", "req-1")
        assert found.given == {"stores": ["x"]}
        assert (found.created_at.isoformat(), found.updated_at.day) == ("2026-01-01T00:00:00+00:00", 2)
        assert "os_glance_task_record" in repository.images.get(made["processing"][0].id).properties
        repository.close()

    def test_asking_for_the_version_makes_nothing(self, tmp_path):
        url = f"sqlite:///{tmp_path}/images.sqlite"
        head = version(url).head
        assert version(url) == Version(None, head)
        database = Database(url)
        with pytest.raises(SchemaOutOfDate, match="storelib db sync"):
            check(database)
        assert list(tmp_path.iterdir()) == []
        assert sync(url) == Version(None, head)
        check(database)
        database.close()

    def test_a_newer_database_is_refused(self, tmp_path):
        url = f"sqlite:///{tmp_path}/images.sqlite"
        sync(url)
        database = Database(url)
        database.write(lambda connection: connection.execute(sa.text("UPDATE storelib_version SET version_num = '9'")))
        with pytest.raises(SchemaOutOfDate, match="newer"):
            prepare(database)
        database.close()


class TestSqlite:
    def test_it_writes_ahead_and_keeps_references_and_commits(self, repository):
        def pragmas(connection):
            names = ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
            return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

        assert repository.database.read(pragmas) == ["wal", 1, 2, 15000]

    def test_readers_see_one_moment_and_do_not_wait_for_writers(self, repository):
        image = make(repository, name="before")

        def work(connection):
            name = sa.select(images.c.name).where(images.c.id == image.id)
            first = connection.execute(name).scalar_one()
            with ThreadPoolExecutor(1) as pool:
                pool.submit(repository.images.transition, image.id, from_={"queued"}, to="saving", name="after").result(
                    30
                )
            return first, connection.execute(name).scalar_one()

        assert repository.database.read(work) == ("before", "before")
        assert repository.images.get(image.id).name == "after"

    def test_writers_wait_for_another_process(self, repository, tmp_path):
        image = make(repository)
        other = sqlite3.connect(tmp_path / "images.sqlite", isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(repository.images.add_tag, image.id, "t")
            assert repository.images.get(image.id).tags == ()
            other.execute("COMMIT")
            waiting.result(30)
        other.close()
        assert repository.images.get(image.id).tags == ("t",)

    def test_a_failure_rolls_everything_back(self, repository):
        image = make(repository)

        def work(connection):
            connection.execute(images.update().values(name="x"))
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            repository.database.write(work)
        assert repository.images.get(image.id) == image

    def test_a_forked_child_makes_its_own_connections(self, repository):
        image = make(repository)
        children = [
            multiprocessing.get_context("fork").Process(target=tag_and_exit, args=(repository, image.id, n))
            for n in range(3)
        ]
        for child in children:
            child.start()
        for number in range(20):
            repository.images.add_tag(image.id, f"parent-{number}")
        for child in children:
            child.join(60)
            assert child.exitcode == 0
        assert len(repository.images.get(image.id).tags) == 80

    def test_a_closed_repository_opens_again(self, repository):
        image = make(repository)
        repository.close()
        assert repository.images.get(image.id) == image

    def test_a_full_pool_says_which_option(self, tmp_path):
        conf = configured(f"sqlite:///{tmp_path}/i.sqlite", max_pool_size=1, max_overflow=0, pool_timeout=0.1)
        repository = open_repository(conf)
        with pytest.raises(DatabaseUnavailable, match="max_pool_size"):
            repository.database.read(lambda connection: repository.images.get(new_id()))
        with pytest.raises(ImageNotFound):
            repository.images.get(new_id())
        repository.close()

    def test_a_database_that_cannot_be_opened_is_unavailable(self, repository, tmp_path):
        repository.close()
        for name in ("images.sqlite", "images.sqlite-wal", "images.sqlite-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / "images.sqlite").mkdir()
        with pytest.raises(DatabaseUnavailable, match="unable to open"):
            repository.images.get(new_id())


class TestServersThatCannot:
    """Errors of servers by their codes, raised where a statement would be run."""

    @staticmethod
    def opened(tmp_path, error: Exception, times: int) -> tuple[Database, list[object]]:
        database = Database(f"sqlite:///{tmp_path}/i.sqlite")
        database._retrying.stop = lambda state: state.attempt_number >= 3
        connections: list[object] = []

        @sa.event.listens_for(database.engine, "do_execute")
        def refuse(cursor, statement, parameters, context):
            connections.append(cursor.connection)
            if len(connections) <= times:
                raise error

        return database, connections

    @staticmethod
    def with_state(error: Exception, state: str) -> Exception:
        error.sqlstate = state
        return error

    @pytest.mark.parametrize("number", [1213, 1205, 1020, 1053, 2013])
    def test_a_collision_on_mysql_is_known_by_its_number(self, number):
        # SQLSTATE says of most of them that it was some error.
        error = self.with_state(Exception(number, "refused"), "HY000")
        assert _may_succeed_later(sa.exc.OperationalError("UPDATE", None, error))

    @pytest.mark.parametrize("code", [1290, 1792, 1836, 1047, "25006"])
    def test_one_that_only_reads_is_left_for_the_one_that_took_over(self, tmp_path, code):
        said = (code,) if isinstance(code, int) else ()
        error = self.with_state(sqlite3.InternalError(*said, "refused"), str(code))
        database, connections = self.opened(tmp_path, error, times=1)
        assert database.write(lambda connection: connection.scalar(sa.text("SELECT 7"))) == 7
        assert connections[0] is not connections[1]
        database.close()

    def test_one_that_only_reads_for_long_is_unavailable(self, tmp_path):
        database, _ = self.opened(tmp_path, self.with_state(sqlite3.InternalError("refused"), "25006"), times=10)
        with pytest.raises(DatabaseUnavailable, match="refused"):
            database.write(lambda connection: connection.execute(sa.text("SELECT 7")))
        database.close()

    def test_missing_rights_are_named(self, tmp_path):
        error = self.with_state(sqlite3.ProgrammingError("refused"), "42501")
        database, connections = self.opened(tmp_path, error, times=10)
        with pytest.raises(BadDatabase, match="refused"):
            database.read(lambda connection: connection.execute(sa.text("SELECT 7")))
        assert len(connections) == 1
        database.close()


def tag_and_exit(repository: Repository, image_id: str, number: int) -> None:
    for tag in range(20):
        repository.images.add_tag(image_id, f"child-{number}-{tag}")
    # Nothing of the parent's is cleaned up here.
    os._exit(0)


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "driver"),
        [
            ("sqlite:////srv/a", "sqlite+pysqlite"),
            ("postgresql://u:p@h/n", "postgresql+psycopg"),
            ("postgres://u:p@h/n", "postgresql+psycopg"),
            ("postgresql+psycopg://u:p@h/n", "postgresql+psycopg"),
            ("mysql://u:p@h/n", "mysql+pymysql"),
            ("mysql+pymysql://u:p@h/n", "mysql+pymysql"),
            ("mariadb://u:p@h/n", "mariadb+pymysql"),
        ],
    )
    def test_every_url_gets_its_driver(self, url, driver):
        assert parse_url(url).drivername == driver

    @pytest.mark.parametrize(
        "url", ["", "images.sqlite", "oracle://u:secret@h/n", "mysql+mysqldb://u:secret@h/n", "//u:secret@h"]
    )
    def test_other_urls_are_refused_without_showing_them(self, url):
        with pytest.raises(BadDatabase) as caught:
            parse_url(url)
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"])
    def test_a_memory_nobody_can_share_is_refused(self, url):
        with pytest.raises(BadDatabase, match="file"):
            parse_url(url)

    def test_no_password_is_shown(self):
        database = Database("postgresql://jane:secret@127.0.0.1:1/images")
        database._retrying.stop = lambda state: True
        with pytest.raises(DatabaseUnavailable) as caught:
            Repository(database).images.get(new_id())
        assert "secret" not in f"{caught.value}{database!r}"
        assert "jane" in repr(database)
        database.close()

    def test_a_missing_driver_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pymysql", None)
        with pytest.raises(BadDatabase, match=r"pip install 'storelib\[mysql\]'"):
            Database("mysql://u:secret@h/n")

    def test_options_reach_the_pool(self, tmp_path):
        url = f"sqlite:///{tmp_path}/images.sqlite"
        database = from_conf(configured(url, max_pool_size=3, max_overflow=2, pool_timeout=1.5))
        assert (database.engine.pool.size(), database.engine.pool._max_overflow, database.engine.pool.timeout()) == (
            3,
            2,
            1.5,
        )
        database.close()

    def test_options_are_listed_and_registered_again(self):
        conf = cfg.ConfigOpts()
        register_opts(conf)
        register_opts(conf)
        ((group, options),) = list_opts()
        assert group == "database"
        assert "connection" in {option.name for option in options}


class TestSecrets:
    URI = "swift+https://user:secret@host/container/object"

    def test_locations_do_not_show_credentials(self):
        for location in (NewLocation(self.URI), ImageLocation(self.URI, {}, 7)):
            assert "secret" not in repr(location)
            assert "host" in repr(location)
        assert "7" in repr(ImageLocation(self.URI, {}, 7))

    def test_no_error_of_the_database_shows_values(self, repository, caplog):
        caplog.set_level(logging.DEBUG)
        repository.database.write(lambda connection: connection.exec_driver_sql("DROP TABLE image_locations"))
        image = NewImage(new_id(), status="active", locations=(NewLocation(self.URI),))
        with pytest.raises(DatabaseUnavailable) as caught:
            repository.images.create(image)
        assert "secret" not in f"{caught.value}{caught.value.__cause__}{caplog.text}"


class TestMigrations(MigrationContract):
    @pytest.fixture
    def url(self, tmp_path):
        return f"sqlite:///{tmp_path}/images.sqlite"

# SPDX-License-Identifier: Apache-2.0
"""storelib db: sync, version and check on SQLite; other servers are the functional tests'."""

from __future__ import annotations

import sqlite3
import uuid

import pytest

from storelib.api.db import Repository
from storelib.api.db.engine import Database
from storelib.api.db.records import NewImage, NewLocation
from storelib.api.db.schema import holders
from storelib.api.errors import ImageNotFound


@pytest.fixture
def database(places):
    """The file that storelib.ini names, not there yet."""
    path = places / "images.sqlite"
    with (places / "storelib.ini").open("a") as file:
        file.write(f"[database]\nconnection = sqlite:///{path}\n")
    return path


def test_sync_makes_the_tables_and_tells_the_revisions(storelib, database):
    first = storelib("db", "sync", "--format", "json").document
    assert (first["before"], first["now"]) == (None, storelib("db", "version", "--format", "json").document["needed"])
    assert database.exists()


def test_sync_may_be_repeated(storelib, database):
    storelib("db", "sync")
    again = storelib("db", "sync", "--format", "json").document
    assert again["before"] == again["now"]


def test_version_makes_nothing(storelib, database):
    assert storelib("db", "version", "--format", "json").document["current"] is None
    assert not database.exists()


def test_check_says_what_to_run(storelib, database):
    response = storelib("db", "check")
    assert (response.code, f"{database} does not exist; run: storelib db sync" in response.err) == (2, True)
    assert not database.exists()


def test_check_is_content_after_sync(storelib, database):
    storelib("db", "sync")
    assert storelib("db", "check").code == 0


def test_tables_of_another_program_are_left_alone(storelib, database):
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE images (a)")
    connection.close()
    response = storelib("db", "sync")
    assert (response.code, "a database of its own" in response.err) == (2, True)


def test_a_password_is_never_told(storelib, places):
    with (places / "storelib.ini").open("a") as file:
        file.write("[database]\nconnection = oracle://me:secret@127.0.0.1/images\n")
    response = storelib("db", "version", "--verbose")
    assert (response.code, "secret" in response.err) == (2, False)


class TestPurge:
    @pytest.fixture
    def repository(self, storelib, database):
        storelib("db", "sync")
        repository = Repository(Database(f"sqlite:///{database}"))
        yield repository
        repository.close()

    @staticmethod
    def deleted(repository, **values):
        image = repository.images.create(NewImage(str(uuid.uuid4()), owner="me", **values))
        repository.images.transition(image.id, from_={"queued"}, to="deleted")
        return image.id

    def test_images_that_were_deleted_long_ago_are_forgotten(self, storelib, repository, monkeypatch):
        monkeypatch.setattr("storelib.cli.db._BATCH", 2)
        gone = [self.deleted(repository, properties={"a": "b"}, tags=frozenset("t")) for _ in range(5)]
        living = repository.images.create(NewImage(str(uuid.uuid4()), owner="me"))
        for age in ("1d", "999999999w"):
            assert storelib("db", "purge", "--older-than", age, "--format", "json").document == {"purged": 0}
        purge = ("db", "purge", "--older-than", "0s", "--pause", "0", "--format", "json")
        assert storelib(*purge).document == {"purged": 5}
        assert storelib(*purge).document == {"purged": 0}
        for image_id in gone:
            with pytest.raises(ImageNotFound):
                repository.images.get(image_id, deleted=True)
        assert repository.images.get(living.id) == living

    def test_images_whose_data_is_yet_to_be_deleted_stay(self, storelib, repository):
        place = NewLocation("memory://x/y", {})
        image_id = self.deleted(repository, locations=(place,))
        assert storelib("db", "purge", "--older-than", "0s", "--format", "json").document == {"purged": 0}
        assert repository.images.get(image_id, deleted=True).deleted

    def test_sums_are_counted_anew_and_mistakes_told(self, storelib, repository):
        image = NewImage(
            str(uuid.uuid4()), owner="me", status="active", size=7, locations=(NewLocation("memory://x/y"),)
        )
        repository.images.create(image)
        assert repository.images.stored("me") == 7
        recount = ("db", "recount", "--format", "json")
        assert storelib(*recount).document == {"owners": 1, "wrong": 0}
        spoil = holders.update().values(stored=holders.c.stored + 1)
        repository.database.write(lambda connection: connection.execute(spoil))
        response = storelib("db", "recount")
        assert (response.code, b"owner me: 8 bytes were on record, 7 are there" in response.out) == (1, True)
        assert storelib(*recount).document == {"owners": 1, "wrong": 0}

    def test_tables_of_another_version_are_left_alone(self, storelib, database):
        response = storelib("db", "purge")
        assert (response.code, "storelib db sync" in response.err) == (2, True)

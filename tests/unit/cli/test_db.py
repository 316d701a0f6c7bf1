# SPDX-License-Identifier: Apache-2.0
"""storelib db: sync, version and check on SQLite; other servers are the functional tests'."""

from __future__ import annotations

import sqlite3

import pytest


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
    answer = storelib("db", "check")
    assert (answer.code, "storelib db sync" in answer.err) == (2, True)
    assert not database.exists()


def test_check_is_content_after_sync(storelib, database):
    storelib("db", "sync")
    assert storelib("db", "check").code == 0


def test_tables_of_another_program_are_left_alone(storelib, database):
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE images (a)")
    connection.close()
    answer = storelib("db", "sync")
    assert (answer.code, "a database of its own" in answer.err) == (2, True)


def test_a_password_is_never_told(storelib, places):
    with (places / "storelib.ini").open("a") as file:
        file.write("[database]\nconnection = oracle://me:secret@127.0.0.1/images\n")
    answer = storelib("db", "version", "--verbose")
    assert (answer.code, "secret" in answer.err) == (2, False)

# SPDX-License-Identifier: Apache-2.0
"""storelib db import-glance on an SQLite database with Glance's tables; a real Glance is the functional tests'."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sqlite3

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from empty_database import make_empty_database
from sqlalchemy import event
from sqlalchemy.engine import Engine

from storelib.api.db import Repository
from storelib.api.db.engine import Database
from storelib.api.db.records import Changes

TABLES = """
CREATE TABLE images (
    id VARCHAR(36) PRIMARY KEY, name VARCHAR(255), disk_format VARCHAR(20), container_format VARCHAR(20), size INTEGER,
    virtual_size INTEGER, status VARCHAR(30), visibility VARCHAR(9) DEFAULT 'shared', checksum VARCHAR(32),
    os_hash_algo VARCHAR(64), os_hash_value VARCHAR(128), min_disk INTEGER DEFAULT 0, min_ram INTEGER DEFAULT 0,
    owner VARCHAR(255), protected BOOLEAN DEFAULT 0, os_hidden BOOLEAN DEFAULT 0,
    created_at DATETIME DEFAULT '2020-01-02 03:04:05.678901', updated_at DATETIME, deleted_at DATETIME,
    deleted BOOLEAN DEFAULT 0);
CREATE TABLE image_properties (
    id INTEGER PRIMARY KEY, image_id VARCHAR(36), name VARCHAR(255), value TEXT, deleted BOOLEAN DEFAULT 0);
CREATE TABLE image_tags (id INTEGER PRIMARY KEY, image_id VARCHAR(36), value VARCHAR(255), deleted BOOLEAN DEFAULT 0);
CREATE TABLE image_locations (
    id INTEGER PRIMARY KEY, image_id VARCHAR(36), value TEXT, meta_data TEXT DEFAULT '{}',
    status VARCHAR(30) DEFAULT 'active', deleted_at DATETIME, deleted BOOLEAN DEFAULT 0);
CREATE TABLE image_members (
    id INTEGER PRIMARY KEY, image_id VARCHAR(36), member VARCHAR(255), can_share BOOLEAN DEFAULT 0,
    status VARCHAR(20) DEFAULT 'pending', created_at DATETIME DEFAULT '2021-01-01 00:00:00', updated_at DATETIME,
    deleted BOOLEAN DEFAULT 0);
CREATE TABLE tasks (
    id VARCHAR(36) PRIMARY KEY, type VARCHAR(30), status VARCHAR(30), owner VARCHAR(255), expires_at DATETIME,
    image_id VARCHAR(36), created_at DATETIME DEFAULT '2021-01-01 00:00:00', updated_at DATETIME,
    deleted BOOLEAN DEFAULT 0);
CREATE TABLE task_info (task_id VARCHAR(36), input TEXT, result TEXT, message TEXT);
CREATE TABLE metadef_namespaces (
    id INTEGER PRIMARY KEY, namespace VARCHAR(80), display_name VARCHAR(80), description TEXT, visibility VARCHAR(32),
    protected BOOLEAN, owner VARCHAR(255), created_at DATETIME DEFAULT '2021-01-01 00:00:00', updated_at DATETIME);
CREATE TABLE metadef_resource_types (
    id INTEGER PRIMARY KEY, name VARCHAR(80), created_at DATETIME DEFAULT '2021-01-01 00:00:00', updated_at DATETIME);
CREATE TABLE metadef_namespace_resource_types (
    resource_type_id INTEGER, namespace_id INTEGER, properties_target VARCHAR(80), prefix VARCHAR(80),
    created_at DATETIME DEFAULT '2021-01-01 00:00:00', updated_at DATETIME);
CREATE TABLE metadef_objects (
    id INTEGER PRIMARY KEY, namespace_id INTEGER, name VARCHAR(80), description TEXT, required TEXT, json_schema TEXT,
    created_at DATETIME DEFAULT '2021-01-01 00:00:00', updated_at DATETIME);
CREATE TABLE metadef_properties (
    id INTEGER PRIMARY KEY, namespace_id INTEGER, name VARCHAR(80), json_schema TEXT,
    created_at DATETIME DEFAULT '2021-01-01 00:00:00', updated_at DATETIME);
CREATE TABLE metadef_tags (
    id INTEGER PRIMARY KEY, namespace_id INTEGER, name VARCHAR(80),
    created_at DATETIME DEFAULT '2021-01-01 00:00:00', updated_at DATETIME);
"""
KEY = "0123456789abcdef"


class Catalogue:
    """The database of a Glance."""

    def __init__(self, path) -> None:
        self.path = path
        self.run(*(statement for statement in TABLES.split(";") if statement.strip()))

    def run(self, *statements: str) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    def add(self, table: str, **values: object) -> None:
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(values.values()))
            connection.commit()

    def image(self, image_id: str, uri: str | None = None, **values: object) -> str:
        """An active image whose data is at ``uri``."""
        self.add("images", **{"id": image_id, "status": "active", "size": 4, **values})
        if uri is not None:
            self.add("image_locations", image_id=image_id, value=uri, meta_data='{"store": "fast"}')
        return image_id

    def namespace(self, number: int, name: str) -> None:
        self.add("metadef_namespaces", id=number, namespace=name, visibility="public", owner="admin")


@pytest.fixture
def glance(tmp_path):
    return Catalogue(tmp_path / "glance.db")


@pytest.fixture
def database(places):
    path = places / "images.sqlite"
    make_empty_database(path)
    with (places / "storelib.ini").open("a") as file:
        file.write(f"[database]\nconnection = sqlite:///{path}\nsqlite_synchronous = false\n")
    repository = Repository(Database(f"sqlite:///{path}"))
    yield repository
    repository.close()


@pytest.fixture
def take(storelib, glance, database):
    """Runs the import; what it told of entries, and how many of each kind came to what."""

    def run(*options: object, code: int = 0, url: str | None = None):
        response = storelib("db", "import-glance", url or f"sqlite:///{glance.path}", *options, "--format", "json")
        assert response.code == code, response.err
        counts = {each.pop("kind"): each for each in response.documents if "id" not in each}
        return [each for each in response.documents if "id" in each], counts

    return run


@pytest.fixture
def stored(places):
    """``stored("name")`` puts four bytes into the store fast, and returns their URI."""
    (places / "fast").mkdir(exist_ok=True)

    def put(name: str) -> str:
        (places / "fast" / name).write_bytes(b"data")
        return f"file://{places}/fast/{name}"

    return put


def encrypt(text: str, key: str = KEY) -> str:
    """As glance.common.crypt does."""
    vector = bytes(range(16))
    data = text.encode() + b"\0"
    data += b"\xff" * (-len(data) % 16)
    encryptor = Cipher(algorithms.AES(key.encode()), modes.CBC(vector)).encryptor()
    return base64.urlsafe_b64encode(vector + encryptor.update(data) + encryptor.finalize()).decode()


def test_an_image_comes_with_all_that_belongs_to_it(take, glance, database, stored, storelib):
    uri = stored("one")
    values = {"name": "Ümläut", "owner": "me", "visibility": "public", "checksum": "c" * 32, "os_hash_algo": "sha512"}
    values |= {"os_hash_value": "d" * 128, "min_disk": 3, "min_ram": 5, "protected": 1, "os_hidden": 1}
    values |= {"disk_format": "raw", "container_format": "bare", "virtual_size": 9}
    glance.image("one", uri, updated_at="2022-02-03 04:05:06", **values)
    for name, value, deleted in (("a", "1", 0), ("b", None, 0), ("gone", "x", 1), ("os_glance_import_task", "t", 0)):
        glance.add("image_properties", image_id="one", name=name, value=value, deleted=deleted)
    for tag, deleted in (("t", 0), ("s", 0), ("t", 0), ("", 0), ("gone", 1)):
        glance.add("image_tags", image_id="one", value=tag, deleted=deleted)
    glance.add("image_members", image_id="one", member="you", status="accepted", can_share=1)
    glance.add("image_members", image_id="one", member="you", status="rejected")
    glance.add("image_members", image_id="one", member="gone", deleted=1)
    told, counts = take()
    assert (told, counts["image"]["new"]) == ([], 1)
    image = database.images.get("one")
    for name, value in values.items():
        assert getattr(image, name) == value, name
    assert (image.status, image.size, image.tags) == ("active", 4, ("", "s", "t"))
    assert image.properties == {"a": "1", "b": None}
    assert image.created_at.isoformat() == "2020-01-02T03:04:05.678901+00:00"
    assert image.updated_at.isoformat() == "2022-02-03T04:05:06+00:00"
    assert [(each.uri, each.metadata) for each in image.locations] == [(uri, {"store": "fast"})]
    [member] = database.members.list_for("one")
    assert (member.member, member.status, member.can_share) == ("you", "accepted", True)
    assert storelib("audit", "--deep").code == 9  # the digests above are not those of the data
    assert storelib("audit").code == 0


def test_nothing_is_written_into_the_database_of_glance(take, glance, stored):
    glance.image("one", stored("one"))
    before = glance.path.read_bytes()
    take()
    assert glance.path.read_bytes() == before
    assert sorted(path.name for path in glance.path.parent.glob("glance*")) == ["glance.db"]


def refusals(glance, stored):
    """(id, words of the reason) of images that cannot be taken, each put into the database."""
    for status in ("saving", "uploading", "importing"):
        glance.image(status, status=status)
        yield status, f"it is {status}"
    glance.image("odd-status", stored("odd-status"), status="strange")
    yield "odd-status", "strange"
    glance.image("odd-visibility", stored("odd-visibility"), visibility="secret")
    yield "odd-visibility", "visibility"
    glance.image("nowhere", None)
    yield "nowhere", "no location"
    glance.image("elsewhere", "file:///somewhere/else")
    yield "elsewhere", "no configured store"
    glance.image("no-store", "rbd://me:secret@fsid/pool/image/snap")
    yield "no-store", "no configured store"
    glance.image("queued-with-data", stored("q"), status="queued")
    yield "queued-with-data", "queued"
    glance.image("long-name", stored("long-name"), name="n" * 256)
    yield "long-name", "name is longer than 255"
    glance.image("nul", stored("nul"), name="a\0b")
    yield "nul", "NUL"
    glance.image("no-unicode", stored("no-unicode"))
    glance.run("UPDATE images SET name = CAST(x'ff61' AS TEXT) WHERE id = 'no-unicode'")
    yield "no-unicode", "no valid Unicode"
    glance.image("size", stored("size"), size=-1)
    yield "size", "size"
    glance.image("huge", stored("huge"), size="much")
    yield "huge", "size"
    glance.image("time", stored("time"), created_at="yesterday")
    yield "time", "created_at"
    glance.image("no-time", stored("no-time"), created_at=None)
    yield "no-time", "created_at"
    for number, metadata in enumerate(("{", "[1]", '"x"')):
        glance.image(f"metadata-{number}")
        glance.add("image_locations", image_id=f"metadata-{number}", value=stored(f"m{number}"), meta_data=metadata)
        yield f"metadata-{number}", "metadata of a location"
    glance.image("property", stored("property"))
    glance.add("image_properties", image_id="property", name="n", value="v" * 65536)
    yield "property", "property n"
    glance.image("property-name", stored("property-name"))
    glance.add("image_properties", image_id="property-name", name="n" * 256, value="v")
    yield "property-name", "name of a property"
    glance.image("tag", stored("tag"))
    glance.add("image_tags", image_id="tag", value="t" * 256)
    yield "tag", "a tag"
    glance.image("member", stored("member"))
    glance.add("image_members", image_id="member", member="m", status="perhaps")
    yield "member", "status of member m"
    glance.image("encrypted", encrypt(stored("encrypted"), "fedcba9876543210"))
    yield "encrypted", "metadata_encryption_key"


def test_what_cannot_be_taken_is_named_and_the_rest_is_taken(take, glance, database, stored):
    expected = dict(refusals(glance, stored))
    glance.image("good", stored("good"))
    for options in ((), ("--metadata-encryption-key", KEY)):
        told, counts = take(*options, code=9)
        assert {each["id"] for each in told} == expected.keys()
        for each in told:
            assert (each["kind"], each["state"]) == ("image", "refused")
            assert expected[each["id"]] in each["detail"], each
            assert "secret@" not in each["detail"]
        assert counts["image"]["refused"] == len(expected)
    assert [row.id for row in database.images.audit()] == ["good"]


def test_images_of_other_statuses(take, glance, database, stored, storelib):
    for status in ("queued", "killed"):
        glance.image(status, status=status, size=None)
    glance.image("deactivated", stored("deactivated"), status="deactivated")
    glance.image("empty-of-v1", size=0)
    glance.image("deleted", deleted=1, deleted_at="2022-01-01 00:00:00", status="deleted")
    told, counts = take()
    assert (told, counts["image"]["new"]) == ([], 4)
    assert {row.id: row.status for row in database.images.audit()} == {
        "queued": "queued",
        "killed": "killed",
        "deactivated": "deactivated",
        "empty-of-v1": "active",
    }
    assert storelib("audit").code == 0


def test_data_that_glance_has_yet_to_delete_is_deleted_here(take, glance, database, stored, storelib, places):
    gone = {"deleted": 1, "deleted_at": "2022-01-01 00:00:00"}
    glance.image("buried", status="pending_delete", **gone)
    glance.add("image_locations", image_id="buried", value=stored("buried"), status="pending_delete", **gone)
    glance.image("moved", stored("kept"))
    glance.add("image_locations", image_id="moved", value=stored("dropped"), status="pending_delete", **gone)
    glance.add("image_locations", image_id="moved", value="file:///long/gone", status="deleted", **gone)
    assert take()[1]["image"]["new"] == 2
    assert database.images.get("buried", deleted=True).deleted
    assert len(database.images.get("moved").locations) == 1
    assert storelib("audit").code == 0
    assert take()[1]["image"]["same"] == 2
    assert storelib("scrub").code == 0
    assert [path.name for path in (places / "fast").iterdir()] == ["kept"]
    assert take()[1]["image"]["same"] == 2


def test_locations_come_as_their_store_writes_them(take, glance, database, stored):
    """Or the data of two images would not be known for the same when one of them is deleted."""
    uri = stored("data")
    for name, spelled in (("one", uri), ("other", uri.replace("file://", "file://localhost"))):
        glance.image(name, spelled)
    take()
    assert [database.images.get(name).locations[0].uri for name in ("one", "other")] == [uri, uri]


def test_locations_are_decrypted_and_find_their_store(take, glance, database, stored, places):
    (places / "archive").mkdir()
    (places / "archive" / "other").write_bytes(b"data")
    other = f"file://{places}/archive/other"
    uris = {"one": stored("one"), "two": stored("two")}
    glance.image("one", encrypt(uris["one"]))
    glance.image("two", uris["two"])
    glance.image("renamed")
    # Glance knew another store, or had but one, which has no name.
    glance.add("image_locations", image_id="renamed", value=encrypt(other), meta_data='{"store": "old", "a": 1}')
    glance.add("image_locations", image_id="renamed", value=encrypt(stored("three")), meta_data=None)
    assert take("--metadata-encryption-key", KEY)[0] == []
    assert [database.images.get(name).locations[0].uri for name in uris] == list(uris.values())
    assert [(each.uri, each.metadata) for each in database.images.get("renamed").locations] == [
        (other, {"store": "archive", "a": 1}),
        (stored("three"), {"store": "fast"}),
    ]


def test_a_second_run_takes_only_what_changed_there(take, glance, database, stored):
    for name in ("same", "changed", "removed", "purged"):
        glance.image(name, stored(name), name=name)
    take()
    versions = {row.id: database.images.get(row.id).version for row in database.images.audit()}
    glance.run(
        "UPDATE images SET name = 'new', updated_at = '2023-01-01 00:00:00' WHERE id = 'changed'",
        "UPDATE images SET status = 'deleted', deleted = 1 WHERE id = 'removed'",
        "DELETE FROM images WHERE id = 'purged'",
    )
    glance.add("image_tags", image_id="changed", value="t")
    glance.image("new", stored("new"))
    told, counts = take()
    assert {each["id"]: each["state"] for each in told} == {"removed": "deleted", "purged": "deleted"}
    states = {name: counts["image"][name] for name in ("new", "changed", "deleted", "same", "kept", "refused")}
    assert states == {"new": 1, "changed": 1, "deleted": 2, "same": 1, "kept": 0, "refused": 0}
    image = database.images.get("changed")
    assert (image.name, image.tags, image.version) == ("new", ("t",), versions["changed"] + 1)
    assert database.images.get("same").version == versions["same"]
    removed = database.images.get("removed", deleted=True)
    assert (removed.status, removed.locations) == ("deleted", ())
    # Glance deleted the data, or will; here it is no one's.
    assert not list(database.locations.pending())
    assert take()[1]["image"]["same"] == 3


def test_what_was_changed_or_deleted_here_stays_so(take, glance, database, stored):
    for name in ("changed", "deleted", "both", "member", "untouched"):
        glance.image(name, stored(name), name=name)
    take()
    for name in ("changed", "both"):
        database.images.update(database.images.get(name), Changes({"name": "mine"}))
    database.members.add("member", "you")
    database.images.transition("deleted", from_={"active"}, to="deleted")
    assert take()[1]["image"]["same"] == 5
    glance.run(
        "UPDATE images SET name = 'theirs'",
        "UPDATE images SET status = 'deleted', deleted = 1 WHERE id = 'both'",
    )
    for _ in range(2):
        told, counts = take()
        assert {each["id"]: each["state"] for each in told} == dict.fromkeys(
            ("changed", "deleted", "both", "member"), "kept"
        )
    assert counts["image"]["kept"] == 4
    assert database.images.get("untouched").name == "theirs"
    assert [database.images.get(name).name for name in ("changed", "both", "member")] == ["mine", "mine", "member"]
    assert database.images.get("deleted", deleted=True).deleted


def test_what_did_not_come_from_there_is_neither_overwritten_nor_deleted(take, glance, database, stored):
    glance.image("one", stored("one"))
    take("--source", "north")
    told, _ = take("--source", "south", code=9)
    assert [(each["id"], each["state"]) for each in told] == [("one", "refused")]
    glance.run("DELETE FROM images")
    assert take("--source", "south")[0] == []
    assert not database.images.get("one").deleted
    assert take("--source", "north")[0][0]["state"] == "deleted"


def test_a_dry_run_tells_the_same_and_changes_nothing(take, glance, database, stored):
    glance.image("one", stored("one"))
    glance.image("bad", "file:///elsewhere")
    glance.namespace(1, "OS::One")
    glance.add("tasks", id="t", type="import", status="success", owner="me")
    told, counts = take("--dry-run", code=9)
    assert list(database.images.audit()) == []
    real = take(code=9)
    for each in (*counts.values(), *real[1].values()):
        del each["dry_run"]
    assert (told, counts) == real
    glance.run("DELETE FROM images", "DELETE FROM metadef_namespaces")
    told, counts = take("--dry-run")
    assert {each["id"] for each in told} == {"one", "OS::One"}
    assert not database.images.get("one").deleted
    assert database.metadefs.get("OS::One")


def test_many_images_come_in_batches(take, glance, database, stored, monkeypatch):
    monkeypatch.setattr("storelib.api.glance_import.images.BATCH", 3)
    monkeypatch.setattr("storelib.api.glance_import.images.LARGEST_BATCH", 10)
    monkeypatch.setattr("storelib.api.glance_import.work._BATCH", 2)
    monkeypatch.setattr("storelib.api.glance_import.tasks._BATCH", 2)
    for number in range(8):
        glance.image(f"i{number}", stored(f"i{number}"))
        glance.add("image_properties", image_id=f"i{number}", name="p", value="x" * number * 2)
        glance.add("tasks", id=f"t{number}", type="import", status="success", owner="me")
    counts = take()[1]
    assert (counts["image"]["new"], counts["task"]["new"]) == (8, 8)
    assert [database.images.get(f"i{number}").properties["p"] for number in range(8)] == [
        "x" * number * 2 for number in range(8)
    ]
    glance.run("DELETE FROM images WHERE id != 'i5'")
    assert take()[1]["image"]["deleted"] == 7


def test_images_of_many_owners_cost_no_more_than_those_of_one(take, glance, stored):
    statements: list[str] = []

    def note(*given: object) -> None:
        statements.append(str(given[2]))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        for number in range(9):
            glance.image(f"i{number}", stored(f"i{number}"), owner=f"owner {number}")
        take()
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    # None of them has a sum of what it stores yet.
    assert len([text for text in statements if "holders" in text]) == 1


def test_definitions_come_with_all_that_is_in_them(take, glance, database):
    glance.namespace(1, "OS::One")
    glance.add("metadef_resource_types", id=1, name="OS::Glance::Image")
    glance.add("metadef_resource_types", id=2, name="OS::Unused")
    glance.add("metadef_namespace_resource_types", namespace_id=1, resource_type_id=1, prefix="hw_")
    schema = {"name": "p", "title": "P", "type": "integer", "default": 3, "description": None}
    glance.add("metadef_properties", namespace_id=1, name="p", json_schema=json.dumps(schema))
    document = json.dumps({"p": schema})
    glance.add("metadef_objects", namespace_id=1, name="o", description="d", required="p,q", json_schema=document)
    glance.add("metadef_tags", namespace_id=1, name="t")
    assert take()[1]["namespace"]["new"] == 1
    found = database.metadefs.get("OS::One")
    assert (found.visibility, found.owner, found.protected) == ("public", "admin", False)
    contents = database.metadefs.contents(found.id)
    shown = {"title": "P", "type": "integer", "default": "3"}
    assert [(each.name, each.document) for each in contents["property"]] == [("p", shown)]
    expected = {"description": "d", "required": ["p", "q"], "properties": {"p": {"name": "p", **shown}}}
    assert [(each.name, each.document) for each in contents["object"]] == [("o", expected)]
    assert [each.name for each in contents["tag"]] == ["t"]
    [association] = database.metadefs.associations([found.id])[found.id]
    assert (association.name, association.prefix) == ("OS::Glance::Image", "hw_")
    assert [each.name for each in database.metadefs.resource_types()] == ["OS::Glance::Image", "OS::Unused"]


def test_definitions_are_brought_up_to_date_too(take, glance, database):
    for number, name in enumerate(("same", "changed", "gone", "mine", "bad", "both")):
        glance.namespace(number, name)
        if name != "bad":
            glance.add("metadef_tags", namespace_id=number, name="t")
    glance.add("metadef_properties", namespace_id=4, name="p", json_schema="{")
    told, counts = take(code=9)
    assert [(each["kind"], each["id"]) for each in told] == [("namespace", "bad")]
    database.metadefs.clear(database.metadefs.get("mine").id, "tag")
    database.metadefs.delete(database.metadefs.get("both").id)
    glance.run(
        "UPDATE metadef_namespaces SET description = 'new' WHERE namespace IN ('changed', 'mine', 'both')",
        "DELETE FROM metadef_namespaces WHERE namespace = 'gone'",
    )
    told, counts = take(code=9)
    assert {each["id"]: each["state"] for each in told} == {
        "gone": "deleted",
        "mine": "kept",
        "both": "kept",
        "bad": "refused",
    }
    assert {name: counts["namespace"][name] for name in ("new", "changed", "same")} == {
        "new": 0,
        "changed": 1,
        "same": 1,
    }
    changed = database.metadefs.get("changed")
    assert (changed.description, len(database.metadefs.definitions(changed.id, "tag"))) == ("new", 1)
    assert database.metadefs.get("mine").description is None


def test_tasks_that_ended_come_and_others_are_named(take, glance, database):
    glance.add("tasks", id="done", type="api_image_import", status="success", owner="me", image_id="i")
    glance.add("task_info", task_id="done", input='{"a": 1}', result='{"image_id": "i"}', message="ok")
    glance.add("tasks", id="failed", type="import", status="failure", owner="me", expires_at="2999-01-01 00:00:00")
    glance.add("tasks", id="over", type="import", status="failure", owner="me", expires_at="2001-01-01 00:00:00")
    glance.add("tasks", id="deleted", type="import", status="failure", owner="me", deleted=1)
    glance.add("tasks", id="at-work", type="import", status="processing", owner="me")
    glance.add("tasks", id="bad", type="import", status="success", owner="me")
    glance.add("task_info", task_id="bad", input="{")
    told, counts = take(code=9)
    assert {each["id"] for each in told} == {"at-work", "bad"}
    assert counts["task"]["new"] == 2
    task = database.tasks.get("done")
    assert (task.given, task.result, task.message, task.image_id) == ({"a": 1}, {"image_id": "i"}, "ok", "i")
    assert database.tasks.get("failed").expires_at.year == 2999
    assert take(code=9)[1]["task"]["same"] == 2


def test_the_tables_of_older_releases(take, glance, database, stored):
    """Before Wallaby, Rocky and Juno."""
    for table, column in (("images", "os_hidden"), ("images", "os_hash_algo"), ("images", "os_hash_value")):
        glance.run(f"ALTER TABLE {table} DROP COLUMN {column}")
    glance.run("ALTER TABLE tasks DROP COLUMN image_id", "DROP TABLE metadef_tags", "DROP TABLE metadef_namespaces")
    glance.image("one", stored("one"))
    glance.add("tasks", id="done", type="import", status="success", owner="me")
    assert take()[0] == []
    image = database.images.get("one")
    assert (image.os_hidden, image.os_hash_algo) == (False, None)


def test_the_url_may_come_from_glance_s_configuration(storelib, glance, database, stored, places):
    glance.image("one", encrypt(stored("one")))
    config = places / "glance-api.conf"
    config.write_text(f"[DEFAULT]\nmetadata_encryption_key = {KEY}\n[database]\nconnection = sqlite:///{glance.path}\n")
    assert storelib("db", "import-glance", "--glance-config", config).code == 0
    assert database.images.get("one").locations
    config.write_text("[DEFAULT]\n")
    assert "[database] connection" in storelib("db", "import-glance", "--glance-config", config).err
    assert storelib("db", "import-glance").code == 2


def test_a_dollar_that_is_doubled_is_one(storelib, glance, database, stored, places, monkeypatch):
    """oslo.config takes ``$`` for the beginning of the name of an option, so it is doubled in passwords and keys."""
    monkeypatch.setenv("OS_DATABASE__CONNECTION", f"sqlite:///{places}/images.sqlite")
    key = "0123456789abcd$f"
    glance.image("one", encrypt(stored("one"), key))
    os.rename(glance.path, glance.path.with_name("gl$nce.db"))
    written = str(glance.path.with_name("gl$$nce.db"))
    (places / "database.conf").write_text(f"[database]\nconnection = sqlite:///{written}\n")
    (places / "glance-api.conf").write_text(f"[DEFAULT]\nmetadata_encryption_key = {key.replace('$', '$$')}\n")
    files = ("--glance-config", places / "glance-api.conf", "--glance-config", places / "database.conf")
    response = storelib("db", "import-glance", *files)
    assert response.code == 0, response.err
    assert database.images.get("one").locations


def test_a_reference_that_cannot_be_followed_is_told_without_the_password(storelib, database, places):
    config = places / "glance-api.conf"
    config.write_text("[database]\nconnection = mysql://me:secret$word@127.0.0.1/glance\n")
    response = storelib("db", "import-glance", "--glance-config", config, "--verbose")
    assert (response.code, "'$$'" in response.err, "secret" in response.err) == (2, True, False), response.err


@pytest.mark.parametrize("table", ["image_properties", "image_tags", "image_members", "image_locations"])
def test_a_table_that_is_missing_is_named(take, glance, storelib, database, table):
    glance.run(f"DROP TABLE {table}")
    response = storelib("db", "import-glance", f"sqlite:///{glance.path}")
    assert (response.code, f"no database of Glance: it has no table {table}" in response.err) == (2, True), response.err


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("nonsense", 2, "none such as"),
        ("oracle://me:secret@127.0.0.1/glance", 2, "SQLite, PostgreSQL"),
        ("mysql+pymysql://me:secret@127.0.0.1:1/glance?charset=utf8&plugin=dbcounter", 7, "***@127.0.0.1:1"),
        ("postgresql+psycopg2://me:secret@127.0.0.1:1/glance", 7, "***@127.0.0.1:1"),
        ("sqlite:////does/not/exist", 7, "unable to open"),
        ("sqlite://", 2, "names no file"),
        ("sqlite:///storelib.ini", 2, "not a database"),
    ],
)
def test_a_wrong_url_is_told_without_its_password(storelib, database, url, code, words):
    response = storelib("db", "import-glance", url, "--verbose")
    assert (response.code, words in response.err, "secret" in response.err) == (code, True, False), response.err


def test_other_tables_are_not_taken_for_glance_s(take, glance, storelib, database, places):
    response = storelib("db", "import-glance", f"sqlite:///{places}/images.sqlite")
    assert (response.code, "no database of Glance" in response.err) == (2, True)


@pytest.mark.parametrize("key", ["short", "x" * 17])
def test_a_key_that_is_none_is_refused(storelib, glance, database, key):
    response = storelib("db", "import-glance", f"sqlite:///{glance.path}", "--metadata-encryption-key", key)
    assert (response.code, "16, 24 or 32" in response.err, key in response.err) == (2, True, False)


def test_people_see_a_table_and_the_counts(storelib, glance, database, stored):
    glance.image("one", stored("one"))
    glance.image("bad", "file:///elsewhere")
    response = storelib("db", "import-glance", f"sqlite:///{glance.path}", "--dry-run")
    assert response.code == 9
    out = response.out.decode()
    for word in ("bad", "refused", "nothing was changed"):
        assert word in out
    assert "1 could not be taken" in response.err


def test_every_page_of_a_long_run_is_of_one_moment(take, glance, database, stored, monkeypatch):
    """What is added while it runs comes with the next run."""
    monkeypatch.setattr("storelib.api.glance_import.images.BATCH", 1)
    glance.run("PRAGMA journal_mode = WAL")
    for name in ("a", "b"):
        glance.image(name, stored(name))
    from storelib.api.glance_import import images

    entries = images._entries

    def meanwhile(*arguments):
        if os.environ.get("STORELIB_TEST_ONCE") is None:
            monkeypatch.setenv("STORELIB_TEST_ONCE", "1")
            glance.image("c", stored("c"))
        return entries(*arguments)

    monkeypatch.setattr(images, "_entries", meanwhile)
    assert take()[1]["image"]["new"] == 2
    assert take()[1]["image"]["new"] == 1

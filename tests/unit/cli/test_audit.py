# SPDX-License-Identifier: Apache-2.0
"""storelib audit: every kind of disagreement is planted and named, and none where there is none."""

from __future__ import annotations

import hashlib
import os
import uuid
import warnings

import pytest
from empty_database import make_empty_database

with warnings.catch_warnings():
    # WebOb, which oslo.middleware stands on, still imports cgi.
    warnings.simplefilter("ignore", DeprecationWarning)
    import webob  # noqa: F401

import storelib.config
from storelib import open_store
from storelib.api.auditing import KINDS, Audit
from storelib.api.db import Repository, open_repository
from storelib.api.db.records import NewImage, NewLocation
from storelib.api.service.tasks import STAGED
from storelib.exceptions import IncompleteRead, RemoteServiceUnavailable
from storelib.registry import Registry

DATA = b"what an image is made of " * 100
OTHER = b"WHAT AN IMAGE IS MADE OF " * 100

INI = """
[storelib]
stores = fast:file, slow:file, mem:memory
default_store = fast
transfer_retries = 0
[fast]
filesystem_store_datadir = {directory}/fast
[slow]
filesystem_store_datadir = {directory}/slow
[database]
connection = sqlite:///{directory}/images.sqlite
sqlite_synchronous = false
[api]
staging_dir = {directory}/staging
"""


class Place:
    """A directory with a database and two stores, where things can be planted."""

    def __init__(self, directory) -> None:
        self.directory = directory
        self.config = directory / "my.ini"
        self.config.write_text(INI.format(directory=directory))
        make_empty_database(directory / "images.sqlite")
        conf = storelib.config.load_file(self.config)
        self.registry = Registry.from_conf(conf)
        self.repository: Repository = open_repository(conf)

    def close(self) -> None:
        self.repository.close()

    def image(self, data: bytes = DATA, *, stores=("fast",), **fields) -> str:
        """The id of an active image with its data in these stores."""
        image_id = str(uuid.uuid4())
        stored = [self.registry[name].add(image_id, data) for name in stores]
        known = {
            "status": "active",
            "size": len(data),
            "checksum": stored[0].checksum if stored else None,
            "os_hash_algo": "sha512",
            "os_hash_value": hashlib.sha512(data).hexdigest(),
            "locations": tuple(NewLocation(item.uri, item.metadata) for item in stored),
        }
        self.repository.images.create(NewImage(image_id, **{**known, **fields}))
        return image_id

    def path(self, image_id: str, store: str = "fast"):
        return self.directory / store / image_id

    def findings(self, **options):
        audit = Audit(self.repository, self.registry, **options)
        return [(found.kind, found.image_id, found.store) for found in audit.run()]


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.close()


# -- agreement --------------------------------------------------------------------------------------------------------


def test_an_empty_deployment_agrees(place):
    assert place.findings(deep=True) == []


def test_images_with_their_data_agree(place):
    place.image()
    place.image(b"", stores=("slow",))
    place.image(stores=("fast", "slow"))
    place.repository.images.create(NewImage(str(uuid.uuid4())))
    assert place.findings(deep=True, older_than=0) == []


def test_data_that_is_still_to_be_deleted_agrees(place):
    image_id = place.image()
    place.repository.images.transition(image_id, from_=("active",), to="deleted")
    audit = Audit(place.repository, place.registry, deep=True)
    assert list(audit.run()) == []
    assert audit.counts.pending == 1


def test_an_upload_under_way_agrees(place):
    process = place.repository.processes.join("here", os.getpid())
    image_id = str(uuid.uuid4())
    place.repository.images.create(NewImage(image_id))
    place.repository.uploads.begin(image_id, process.id, stores=["fast"])
    # Published, and the database does not know yet.
    place.registry["fast"].add(image_id, DATA)
    assert place.findings(deep=True, older_than=0) == []


def test_a_uri_in_another_spelling_agrees(place):
    image_id = str(uuid.uuid4())
    uri = place.registry["mem"].add(image_id, DATA).uri
    escaped = uri[:-1] + f"%{ord(uri[-1]):02x}"
    place.image(stores=(), locations=(NewLocation(escaped, {"store": "mem"}),))
    assert place.findings(deep=True) == []


def test_an_image_that_came_between_listing_and_reading_agrees(place, monkeypatch):
    listed = place.registry["fast"].list_images

    def list_then_add():
        yield from listed()
        place.image()

    monkeypatch.setattr(place.registry["fast"], "list_images", list_then_add)
    assert place.findings() == []
    assert len(list(listed())) == 1


def test_an_image_that_was_deleted_between_listing_and_reading_agrees(place, monkeypatch):
    image_id = place.image()
    everything = list(place.registry["fast"].list_images())

    def list_and_delete():
        place.registry["fast"].delete(everything[0].uri)
        place.repository.images.transition(image_id, from_=("active",), to="deleted")
        [location] = place.repository.locations.pending_for(image_id)
        place.repository.locations.forget(image_id, location.id)
        return iter(everything)

    monkeypatch.setattr(place.registry["fast"], "list_images", list_and_delete)
    assert place.findings() == []


# -- disagreement -----------------------------------------------------------------------------------------------------


def test_a_row_without_data(place):
    image_id = place.image()
    place.path(image_id).unlink()
    assert place.findings() == [("missing", image_id, "fast")]


def test_a_row_whose_second_copy_is_gone(place):
    image_id = place.image(stores=("fast", "slow"))
    place.path(image_id, "slow").unlink()
    assert place.findings() == [("missing", image_id, "slow")]


def test_data_without_a_row(place):
    place.registry["slow"].add("nobody", DATA)
    assert place.findings() == [("orphan", "nobody", "slow")]


def test_data_of_an_image_that_has_it_elsewhere(place):
    image_id = place.image()
    place.registry["slow"].add(image_id, DATA)
    assert place.findings() == [("orphan", image_id, "slow")]


def test_data_of_an_image_that_waits_for_data(place):
    image_id = str(uuid.uuid4())
    place.repository.images.create(NewImage(image_id))
    place.registry["fast"].add(image_id, DATA)
    assert place.findings() == [("orphan", image_id, "fast")]


@pytest.mark.parametrize("data", [DATA + b"!", DATA[:-1], b""])
def test_data_of_another_size(place, data):
    image_id = place.image()
    place.path(image_id).write_bytes(data)
    assert place.findings() == [("size", image_id, "fast")]


def test_an_image_without_a_size(place):
    image_id = place.image(size=None)
    assert place.findings() == [("size", image_id, "fast")]


def test_other_data_of_the_same_size_is_found_by_reading(place):
    image_id = place.image()
    place.path(image_id).write_bytes(OTHER)
    assert place.findings() == []
    assert place.findings(deep=True) == [("digest", image_id, "fast"), ("digest", image_id, "fast")]


@pytest.mark.parametrize("wrong", [{"checksum": "0" * 32}, {"os_hash_value": "0" * 128}])
def test_a_digest_in_the_database_that_is_wrong(place, wrong):
    image_id = place.image(**wrong)
    assert place.findings(deep=True) == [("digest", image_id, "fast")]


def test_a_store_that_does_not_answer(place, monkeypatch):
    def fail(*_):
        raise RemoteServiceUnavailable("gone fishing")

    image_id = place.image()
    monkeypatch.setattr(place.registry["fast"], "images", fail)
    monkeypatch.setattr(place.registry["fast"], "measure", fail)
    found = place.findings()
    assert found == [("unchecked", None, "fast"), ("unchecked", image_id, "fast")]


def test_what_was_listed_before_a_place_that_is_away_counts(place, monkeypatch):
    place.registry["fast"].add("nobody", DATA)
    images = place.registry["fast"].images

    def list_then_fail():
        yield from images()
        raise RemoteServiceUnavailable("the other directory is away")

    monkeypatch.setattr(place.registry["fast"], "images", list_then_fail)
    assert place.findings() == [("unchecked", None, "fast"), ("orphan", "nobody", "fast")]


def test_data_that_is_cut_while_it_is_read(place, monkeypatch):
    image_id = place.image()

    def fail(*_):
        raise IncompleteRead("cut")

    monkeypatch.setattr(place.registry["fast"], "open_reader", fail)
    assert place.findings(deep=True) == [("unreadable", image_id, "fast")]


def test_a_location_in_no_store(place):
    image_id = place.image(locations=(NewLocation("file:///elsewhere/one"),))
    assert ("nowhere", image_id, None) in place.findings()


def test_an_image_without_bytes_needs_no_location(place):
    place.image(stores=(), data=b"")
    assert place.findings() == []


def test_an_active_image_without_a_location(place):
    image_id = place.image(stores=())
    assert place.findings() == [("nowhere", image_id, None)]


def test_an_image_that_waits_for_nobody(place):
    image_id = place.image(stores=(), status="saving")
    assert place.findings() == [("stuck", image_id, None)]


def test_two_images_with_the_same_data(place):
    first = place.image()
    second = place.image(stores=(), locations=place.repository.images.get(first).locations)
    assert place.findings() == [("shared", max(first, second), "fast")]


def test_what_a_failed_add_left_behind(place):
    place.image()
    # As the file driver calls what it writes where files need a name from the beginning.
    (place.directory / "fast" / ".part\x010123456789abcdef\x01half").write_bytes(DATA)
    assert place.findings() == []
    assert place.findings(older_than=0) == [("leftover", "half", "fast")]


def test_more_rows_than_one_batch(place):
    location = (NewLocation("memory://mem/nothing", {"store": "mem"}),)
    ids = sorted(place.image(b"", stores=(), locations=location) for _ in range(1001))
    assert place.findings() == [("missing", image_id, "mem") for image_id in ids]


@pytest.fixture
def staging(place):
    return open_store("file", "staging", filesystem_store_datadir=str(place.directory / "staging"))


def test_staged_data_that_no_image_waits_for(place, staging):
    staging.add("nobody", DATA)
    assert place.findings(staging=staging) == [("staged", "nobody", "(staging)")]


def test_an_image_whose_staged_data_is_gone(place, staging):
    image_id = place.image(stores=(), status="uploading")
    assert place.findings(staging=staging) == [("staged", image_id, "(staging)")]


def test_staged_data_of_an_image_that_waits_for_it(place, staging):
    image_id = place.image(stores=(), status="uploading")
    staging.add(image_id, DATA)
    assert place.findings(staging=staging) == []


def test_staged_data_that_waits_for_another_import(place, staging):
    image_id = place.image(stores=(), status="queued")
    stored = staging.add(image_id, DATA)
    place.repository.images.set_properties(image_id, {STAGED: stored.uri})
    assert place.findings(staging=staging) == []


def test_every_kind_there_is_is_named_beside_all_others(place, staging, monkeypatch):
    def fail(*_):
        raise RemoteServiceUnavailable("gone fishing")

    def cut(location, *more):
        if location.path == str(place.path(unreadable)):
            raise IncompleteRead("cut")
        return open_reader(location, *more)

    place.image()
    missing, size, digest, unreadable, first = (place.image() for _ in range(5))
    place.path(missing).unlink()
    place.path(size).write_bytes(DATA + b"!")
    place.path(digest).write_bytes(OTHER)
    second = place.image(stores=(), locations=place.repository.images.get(first).locations)
    nowhere, stuck = place.image(stores=()), place.image(stores=(), status="importing")
    place.registry["slow"].add("orphan", DATA)
    staging.add("staged", DATA)
    (place.directory / "fast" / ".part\x010123456789abcdef\x01half").write_bytes(DATA)
    open_reader = place.registry["fast"].open_reader
    monkeypatch.setattr(place.registry["fast"], "open_reader", cut)
    monkeypatch.setattr(place.registry["mem"], "images", fail)
    planted = [
        ("missing", missing, "fast"),
        ("orphan", "orphan", "slow"),
        ("size", size, "fast"),
        ("digest", digest, "fast"),
        ("digest", digest, "fast"),
        ("unreadable", unreadable, "fast"),
        ("unchecked", None, "mem"),
        ("nowhere", nowhere, None),
        ("stuck", stuck, None),
        ("shared", max(first, second), "fast"),
        ("staged", "staged", "(staging)"),
        ("leftover", "half", "fast"),
    ]
    assert {kind for kind, _, _ in planted} == set(KINDS)
    found = place.findings(staging=staging, deep=True, older_than=0)
    assert sorted(found, key=str) == sorted(planted, key=str)


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_ends_with_0_when_all_agree(place, storelib):
    place.image()
    response = storelib("audit", "--config", place.config, "--deep")
    assert (response.code, response.err) == (0, "")
    assert b"database and stores agree: 1 images with 1 locations" in response.out


def test_the_command_names_what_disagrees_and_ends_with_9(place, storelib):
    image_id = place.image()
    place.path(image_id).unlink()
    response = storelib("audit", "--config", place.config, "--format", "json")
    assert response.code == 9
    assert response.document == {
        "kind": "missing",
        "image": image_id,
        "store": "fast",
        "uri": f"file://{place.path(image_id)}",
        "detail": "there is no data at this location",
    }
    assert response.err.startswith("storelib: 1 disagreement; looked at 1 images")


def test_the_command_makes_no_database(place, storelib):
    for path in place.directory.glob("images.sqlite*"):
        path.unlink()
    response = storelib("audit", "--config", place.config)
    assert (response.code, "storelib db sync" in response.err) == (2, True)
    assert not (place.directory / "images.sqlite").exists()


def test_a_disabled_store_is_named(place, storelib):
    without_bucket = place.config.read_text().replace("slow:file", "slow:s3")
    place.config.write_text(without_bucket.replace(f"[slow]\nfilesystem_store_datadir = {place.directory}/slow", ""))
    response = storelib("audit", "--config", place.config, "--format", "json")
    assert response.code == 9
    assert [(found["kind"], found["store"]) for found in response.documents] == [("unchecked", "slow")]

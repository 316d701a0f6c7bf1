# SPDX-License-Identifier: Apache-2.0
"""GridfsStore without a server: options, what they lead to, and documents of other clients."""

import datetime
import importlib.util

import pytest
from bson import Int64, ObjectId

from storelib.capabilities import Capability
from storelib.driver import Digests
from storelib.drivers.gridfs import GridfsLocation, GridfsStore, bucket
from storelib.drivers.gridfs.publication import published
from storelib.drivers.gridfs.writer import GridfsWriter
from storelib.exceptions import BadStoreConfiguration, MissingDependency, StoreError
from storelib.registry import open_store
from storelib.testing.threads import started_threads

SECRET = "p%40ss-w0rd"
NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)


def open_grid(**options):
    return open_store(GridfsStore, "grid", **{"mongodb_store_uri": "mongodb://host/images"} | options)


def client_of(**options):
    return open_grid(**options).bucket.get()


# -- Options --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "nodes"),
    [
        ("host", [("host", 27017)]),
        ("host:1234", [("host", 1234)]),
        ("10.0.0.1", [("10.0.0.1", 27017)]),
        ("[2001:db8::1]:1234", [("2001:db8::1", 1234)]),
        ("one,two:1234", [("one", 27017), ("two", 1234)]),
        ("mongodb://user:p%40ss@host", [("host", 27017)]),
    ],
)
def test_forms_of_the_uri(uri, nodes):
    client = client_of(mongodb_store_uri=uri, mongodb_store_db="images")
    assert sorted(client._topology_settings.seeds) == sorted(nodes)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("mongodb_store_uri", ""),
        ("mongodb_store_uri", f"mongodb://user:{SECRET}@host:port/images"),
        ("mongodb_store_uri", f"mongodb://user:{SECRET}@@host/images"),
        ("mongodb_store_uri", f"mongodb://user:{SECRET}@host/images?w=majority&w"),
        ("mongodb_store_uri", f"http://user:{SECRET}@host/images"),
        ("mongodb_store_db", "a b"),
        ("mongodb_store_db", "a.b"),
        ("mongodb_store_db", "x" * 64),
        ("mongodb_store_bucket", ""),
        ("mongodb_store_bucket", "$x"),
        ("mongodb_store_bucket", "system.x"),
        ("mongodb_store_bucket", ".x"),
        ("mongodb_store_tls_ca_file", "/not/there"),
        ("mongodb_store_tls_certificate_key_file", "/not/there"),
        ("mongodb_store_write_concern", "0"),
        ("mongodb_store_write_concern", "00"),
    ],
)
def test_bad_option_is_named_and_no_secret_shown(option, value):
    with pytest.raises(BadStoreConfiguration, match=option) as caught:
        open_grid(**{option: value})
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_tls_switched_off_and_described_is_refused(tmp_path):
    (tmp_path / "ca").touch()
    with pytest.raises(BadStoreConfiguration, match="mongodb_store_tls"):
        open_grid(mongodb_store_tls=False, mongodb_store_tls_ca_file=str(tmp_path / "ca"))


def test_chunk_size_that_fits_no_page_makes_the_store_read_only():
    store = open_grid(mongodb_store_chunk_size=255)
    assert "mongodb_store_chunk_size" in store.add_disabled
    assert Capability.ADD not in store.capabilities


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://host/images?w=0",
        "host/images?W=0",
        "mongodb+srv://host.example.org/images?w=1&w=0",
        "mongodb://user:a@host/images?ssl=true&w=00",
        "mongodb+srv://host.example.org/images?w=0",
    ],
)
def test_writes_without_an_answer_are_refused(uri):
    with pytest.raises(BadStoreConfiguration, match=r"mongodb_store_uri.*w=0"):
        open_grid(mongodb_store_uri=uri)


def test_write_concern_of_the_option_counts_more_than_that_of_the_uri():
    store = open_grid(mongodb_store_uri="mongodb://host/images?w=0", mongodb_store_write_concern="1")
    assert store.bucket.files_at_primary.write_concern.document["w"] == 1


def test_no_request_takes_longer_than_a_transfer_may_stand_still():
    options = client_of(transfer_timeout=2.0).options
    limits = options.pool_options
    assert (limits.socket_timeout, limits.connect_timeout, limits.wait_queue_timeout) == (2.0, 2.0, 2.0)
    assert options.server_selection_timeout == 2.0
    assert open_grid(transfer_timeout=2.0).bucket.files_at_primary.write_concern.document["wtimeout"] <= 2000


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "images"),
        ({"mongodb_store_db": "other"}, "other"),
        ({"mongodb_store_uri": "mongodb://host/db?w=1"}, "db"),
        ({"mongodb_store_uri": "mongodb+srv://cluster.example.org/db?w=1"}, "db"),
    ],
)
def test_database_is_the_option_or_the_one_in_the_uri(options, name):
    assert open_grid(**options).bucket.database_name == name


def test_database_must_be_known():
    with pytest.raises(BadStoreConfiguration, match="mongodb_store_db"):
        open_grid(mongodb_store_uri="mongodb://host")


def test_missing_package_is_one_sentence(monkeypatch):
    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pymongo" else plain(name))
    with pytest.raises(MissingDependency, match=r"pip install 'storelib\[gridfs\]'"):
        open_grid()


def test_configuring_starts_no_thread_and_no_client():
    with started_threads() as started:
        store = open_grid()
    assert store.bucket._client is None
    assert not started


def test_credentials_are_in_no_repr():
    store = open_grid(mongodb_store_uri=f"mongodb://user:{SECRET}@host/images")
    store.bucket.get()
    assert SECRET not in f"{store!r} {store.bucket!r} {store.bucket.get()!r}"


def test_the_client_does_not_retry_and_gives_up_in_time():
    options = client_of(mongodb_store_socket_timeout=7.0, mongodb_store_connect_timeout=3.0).options
    assert not options.retry_writes
    assert not options.retry_reads
    assert (options.pool_options.socket_timeout, options.pool_options.connect_timeout) == (7.0, 3.0)
    assert options.pool_options.wait_queue_timeout == 7.0
    assert options.server_selection_timeout == 10.0


@pytest.mark.parametrize(
    ("options", "concern"),
    [
        ({}, {"w": "majority", "wtimeout": 54000}),
        ({"mongodb_store_write_concern": "2"}, {"w": 2, "wtimeout": 54000}),
        ({"mongodb_store_write_concern": "two-rooms"}, {"w": "two-rooms", "wtimeout": 54000}),
        ({"mongodb_store_uri": "host/images?w=1&wtimeoutMS=5"}, {"w": 1, "wtimeout": 5}),
        ({"mongodb_store_uri": "host/images?w=1", "mongodb_store_write_concern": "3"}, {"w": 3, "wtimeout": 54000}),
        ({"mongodb_store_journal": True}, {"w": "majority", "wtimeout": 54000, "j": True}),
    ],
)
def test_write_concern(options, concern):
    client = open_grid(**options).bucket
    assert client.chunks_at_primary.write_concern.document == concern
    assert client.files_at_primary.write_concern.document == {**concern, "j": True}


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, "Primary"),
        ({"mongodb_store_uri": "host/images?readPreference=nearest"}, "Nearest"),
        ({"mongodb_store_read_preference": "secondaryPreferred"}, "SecondaryPreferred"),
    ],
)
def test_read_preference_is_for_reading_only(options, mode):
    client = open_grid(**options).bucket
    assert type(client.chunks.read_preference).__name__.lstrip("_") == mode
    assert type(client.chunks_at_primary.read_preference).__name__ == "Primary"


def test_any_image_may_be_in_any_store():
    assert open_grid().owns(GridfsLocation("image"))


@pytest.mark.parametrize(("kib", "part"), [(4, 4096), (256, 4096), (1024, 4096), (3000, 3000), (5000, 5000)])
def test_parts_are_whole_chunks_of_about_four_mib(kib, part):
    writer = GridfsWriter(open_grid(mongodb_store_chunk_size=kib).bucket, "image")
    size = writer.part_size(0, None)
    assert size == part * 1024
    assert size % (kib * 1024) == 0


# -- Documents ------------------------------------------------------------------------------------------------


def test_published_document_is_a_gridfs_file():
    document = published(1, "image", 1000, 256, Digests("md", "sha", "sha256"), NOW)
    assert document == {
        "_id": 1,
        "length": 1000,
        "chunkSize": 256,
        "uploadDate": NOW,
        "filename": "image",
        "md5": "md",
        "metadata": {"storelib": {"image": "image"}, "md5": "md", "sha256": "sha"},
    }
    stored = bucket.understood(document)
    assert (stored.image_id, stored.size, stored.chunks) == ("image", 1000, 4)
    assert stored.metadata == {"md5": "md", "sha256": "sha"}


@pytest.mark.parametrize(
    ("document", "known"),
    [
        ({"md5": "md", "metadata": {"storelib": {"image": "i"}, "md5": "md", "sha256": "sha"}}, ("sha256", "sha")),
        ({"metadata": {"blake3": "b", "owner": "somebody"}}, ("blake3", "b")),
        ({"md5": "md"}, ("md5", "md")),
        ({"metadata": {"owner": "somebody"}}, None),
    ],
)
def test_the_multihash_is_the_digest_that_was_recorded_else_the_md5(document, known):
    stored = bucket.understood({"_id": 1, "length": 5, "chunkSize": 4, **document})
    assert bucket.digest_of(stored) == known


def test_without_md5_none_is_written():
    assert "md5" not in str(published(1, "image", 0, 256, Digests(None, "sha"), NOW))


@pytest.mark.parametrize("files_id", ["image", ObjectId("00" * 12)])
@pytest.mark.parametrize("length", [0, 5, 5.0, Int64(5)])
def test_documents_of_other_clients_are_understood(files_id, length):
    stored = bucket.understood({"_id": files_id, "length": length, "chunkSize": 4.0, "metadata": "anything"})
    assert (stored.image_id, stored.size, stored.modified) == (str(files_id), length, None)
    assert type(stored.size) is int


@pytest.mark.parametrize("length", [None, "5", -1, 0.5, True, float("nan"), float("inf")])
def test_document_without_a_size_is_refused(length):
    for document in ({"length": length, "chunkSize": 1}, {"length": 1, "chunkSize": length}):
        with pytest.raises(StoreError):
            bucket.understood({"_id": "image", **document})


def test_file_that_no_uri_can_name_has_no_id():
    assert bucket.image_id_of({"_id": 7}) is None


@pytest.mark.parametrize(("size", "chunks"), [(0, 0), (1, 1), (256, 1), (257, 2)])
def test_number_of_chunks(size, chunks):
    assert bucket.count_chunks(size, 256) == chunks

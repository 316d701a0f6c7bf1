# SPDX-License-Identifier: Apache-2.0
"""GridfsStore against a real mongod: the whole contract, crashes, users, TLS, replica sets, other clients, faults."""

import contextlib
import datetime
import functools
import hashlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import pymongo
import pymongo.monitoring
import pytest
from bson import ObjectId
from servers.mongod import Mongod
from servers.nginx import free_ports

from storelib.capabilities import Capability
from storelib.driver import Digests, Part
from storelib.drivers.gridfs import GridfsStore, bucket
from storelib.drivers.gridfs.bucket import PAGE
from storelib.drivers.gridfs.publication import Publication
from storelib.exceptions import (
    BadStoreConfiguration,
    DigestMismatch,
    Duplicate,
    Forbidden,
    IncompleteRead,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StorageWriteDenied,
    StoreError,
    TransferTimeout,
)
from storelib.registry import open_store
from storelib.testing.conformance import BackendAccess, FaultyLine, StoreConformance
from storelib.testing.conformance.networking import everything
from storelib.testing.faults import Cut, FaultyProxy, Reset

KiB, MiB = 1024, 1024 * 1024
#: Of one chunk, so that small images have several.
SMALL = 64 * KiB
ALL = (
    Capability.READ
    | Capability.RANGE
    | Capability.ADD
    | Capability.DELETE
    | Capability.ATOMIC_ADD
    | Capability.LIST
    | Capability.STAT
    | Capability.GC
    | Capability.CHECK
    | Capability.COPY
)


@pytest.fixture(scope="module", autouse=True)
def quick_clients():
    """Clients look soon whether a server that failed is there again: half a second each would be most of all faults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pymongo.common.MIN_HEARTBEAT_INTERVAL", 0.05)
        yield


@pytest.fixture(scope="module")
def mongod(tmp_path_factory):
    with Mongod(tmp_path_factory.mktemp("mongod")) as server:
        server.raw = server.client()
        yield server
        server.raw.close()


def open_grid(server, uri=None, **options):
    """A store on ``server``, impatient and with small chunks."""
    defaults = {
        "mongodb_store_uri": uri or server.uri,
        "mongodb_store_db": "images",
        "mongodb_store_chunk_size": SMALL // KiB,
        "mongodb_store_server_selection_timeout": 2.0,
        "mongodb_store_socket_timeout": 10.0,
        "transfer_retries": 2,
    }
    return open_store(GridfsStore, "grid", **defaults | options)


def behind(proxy, server, **options):
    """A store with no connection yet that reaches the server through the proxy."""
    uri = "mongodb://{}:{}/?directConnection=true".format(*proxy.address)
    timeouts = {"mongodb_store_server_selection_timeout": 1.0, "mongodb_store_socket_timeout": 0.4}
    timeouts["mongodb_store_connect_timeout"] = 0.4
    return open_grid(server, uri, **timeouts | options)


class Bucket(BackendAccess):
    """The bucket through a client of the tests' own."""

    def __init__(self, client, database="images", bucket="fs"):
        self.files = client[database][f"{bucket}.files"]
        self.chunks = client[database][f"{bucket}.chunks"]

    def read(self, image_id):
        import gridfs

        try:
            bucket = gridfs.GridFSBucket(self.files.database, self.files.name.removesuffix(".files"))
            with bucket.open_download_stream_by_name(image_id) as stream:
                return stream.read()
        except gridfs.NoFile:
            return None

    def residue(self, prefix):
        files = {document["_id"]: document for document in self.files.find()}
        orphans = {f"chunks of {files_id}" for files_id in self.chunks.distinct("files_id") if files_id not in files}
        named = {files_id: self._id_of(document) for files_id, document in files.items()}
        return {f"{name} {files_id}" for files_id, name in named.items() if name.startswith(prefix)} | orphans

    def _id_of(self, document):
        ours = document.get("metadata", {}).get("storelib", {"image": str(document["_id"])})
        return ours.get("image") or ours["pending"]


class TestConformance(StoreConformance):
    capabilities = ALL
    # MongoDB answers 101 documents first, then as many as fit in 16 MiB.
    many_images = 150
    # Its URIs name no place, so any well-formed one may be of this store.
    not_applicable = frozenset({"test_foreign_uri_is_refused"})

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, mongod):
        return open_grid(mongod, mongodb_store_db="conformance")

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, mongod):
        return Bucket(mongod.raw, "conformance")

    @pytest.fixture(scope="class")
    @classmethod
    def denied_store(cls, guarded):
        store = open_guarded(guarded, guarded.uri_of("writer", "wrong-secret"))
        assert "wrong-secret" not in repr(store.bucket) + str(vars(store.bucket).keys())
        return store

    @pytest.fixture(scope="class")
    @classmethod
    def untrusted_store(cls, guarded):
        return open_grid(
            guarded, guarded.writer_uri, mongodb_store_tls=True, mongodb_store_server_selection_timeout=0.5
        )

    @pytest.fixture(scope="class")
    @classmethod
    def unreachable_store(cls, mongod):
        uri = "mongodb://127.0.0.1:{}/".format(*free_ports(1))
        return open_grid(mongod, uri, mongodb_store_server_selection_timeout=0.3, transfer_retries=0)

    @pytest.fixture(scope="class")
    @classmethod
    def faulty_line(cls, mongod):
        with FaultyProxy(("127.0.0.1", mongod.port)) as proxy:
            # One of the connections is the monitor's, which asks little.
            yield FaultyLine(
                proxy, functools.partial(behind, proxy, mongod, mongodb_store_db="conformance"), connections=3
            )


# -- Small things ---------------------------------------------------------------------------------------------


@pytest.fixture
def store(mongod):
    return open_grid(mongod)


@pytest.fixture
def access(mongod):
    return Bucket(mongod.raw)


@pytest.fixture
def image_id(request):
    """An id of this test's own."""
    return f"{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}-image"


def read(store, uri, offset=0, length=None):
    with store.get(uri, offset, length).data as stream:
        return stream.read()


def bytes_of(size, seed=""):
    return hashlib.shake_128(f"{size} {seed}".encode()).digest(size)


def in_small_parts(store):
    """The store, whose images go in parts of one chunk."""
    plain = store.open_writer

    def open_writer(image_id, size, context):
        writer = plain(image_id, size, context)
        writer.part_size = lambda number, size: writer.chunk_size
        return writer

    store.open_writer = open_writer
    return store


def uri_of(image_id):
    return GridfsStore.location_class(image_id).uri


def assert_whole_or_nothing(store, access, direct, image_id, data):
    """An add gave a correct image, or left nothing that gc does not find; returns the error in that case."""
    try:
        stored = store.add(image_id, data)
    except StoreError as error:
        assert access.read(image_id) is None
        direct.gc(0)
        assert not access.residue(image_id)
        return error
    assert access.read(image_id) == data
    assert stored.multihash == hashlib.sha512(data).hexdigest()
    assert len(access.residue(image_id)) == 1
    direct.delete(stored.uri)
    return None


IMAGE = bytes_of(3 * SMALL + 1)
#: Of several requests of 4 MiB.
LARGE = bytes_of(11 * MiB + 1)


def test_image_of_several_requests_comes_back(store, image_id):
    assert read(store, store.add(image_id, LARGE).uri) == LARGE


@pytest.mark.parametrize("size", [None, len(LARGE)])
def test_size_may_be_unknown(store, image_id, size):
    stored = store.add(image_id, iter([LARGE[:7], LARGE[7:]]), size)
    assert (stored.size, store.get_size(stored.uri)) == (len(LARGE), len(LARGE))


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 1), (SMALL - 1, 2), (SMALL, SMALL), (5, 3 * SMALL), (4 * MiB - 1, 5 * MiB), (len(LARGE) - 1, None), (10, 0)],
)
def test_ranges(store, access, offset, length):
    if access.read("ranges") is None:
        store.add("ranges", LARGE)
    end = None if length is None else offset + length
    assert read(store, uri_of("ranges"), offset, length) == LARGE[offset:end]


def test_small_reads_fetch_each_chunk_once(mongod, store, image_id):
    uri = store.add(image_id, IMAGE).uri
    profiled = mongod.raw["images"]
    profiled.command("profile", 2)
    try:
        with store.get(uri).data as stream:
            assert b"".join(iter(lambda: stream.read(1000), b"")) == IMAGE
    finally:
        profiled.command("profile", 0)
    asked = profiled["system.profile"].count_documents({"ns": "images.fs.chunks", "op": "query"})
    profiled.drop_collection("system.profile")
    assert asked == 4


@pytest.mark.parametrize("name", ["a b", "ü/.."[:1], "100%", "a?b#c", "a:b@c", "$where", "{}", "00" * 12, "x" * 255])
def test_odd_ids(store, access, name):
    stored = store.add(name, IMAGE)
    assert read(store, stored.uri) == IMAGE
    assert access.read(name) == IMAGE
    store.delete(stored.uri)
    with pytest.raises(NotFound):
        store.get(stored.uri)


def test_check_tells_role_and_room(store):
    health = store.check()
    assert health.detail == "database images on a single server can be read and written"
    assert 0 < health.free < health.total


def test_stat_tells_the_digests(store, image_id):
    stored = store.add(image_id, IMAGE, hashing_algo="sha256")
    info = store.stat(stored.uri)
    assert info.metadata == {"md5": stored.checksum, "sha256": stored.multihash}


def test_what_is_read_is_compared_with_the_digest_that_was_recorded(mongod, store, image_id):
    stored = store.add(image_id, IMAGE)
    assert store.get(stored.uri, verify=True).data.read() == IMAGE
    files_id = mongod.raw["images"]["fs.files"].find_one({"filename": image_id})["_id"]
    chunk = {"files_id": files_id, "n": 0}
    data = mongod.raw["images"]["fs.chunks"].find_one(chunk)["data"]
    mongod.raw["images"]["fs.chunks"].update_one(chunk, {"$set": {"data": bytes([data[0] ^ 1]) + data[1:]}})
    with pytest.raises(DigestMismatch):
        store.get(stored.uri, verify=True).data.read()


def test_no_data_is_read_to_find_garbage(mongod, image_id):
    store = open_grid(mongod, mongodb_store_db="profiled")
    store.add(image_id, LARGE)
    profiled = mongod.raw["profiled"]
    profiled.command("profile", 2)
    try:
        assert not list(store.find_garbage(0))
    finally:
        profiled.command("profile", 0)
    [looked] = list(profiled["system.profile"].find({"ns": "profiled.fs.chunks"}))
    # One jump in the index of chunks and one look-up of a file, for 170 chunks.
    assert looked["planSummary"].startswith("DISTINCT_SCAN")
    assert looked["docsExamined"] == 1


def examined(database, ask):
    """Keys and documents that the server looks at, and documents it sends, in all that ``ask`` asks of it."""
    database["system.profile"].drop()
    database.command("profile", 2)
    try:
        ask()
    finally:
        database.command("profile", 0)
    told = list(database["system.profile"].find({"op": {"$in": ["query", "command", "getmore", "remove", "update"]}}))
    return sum(each.get("docsExamined", 0) + each.get("keysExamined", 0) for each in told), told


def fill(database, store, count):
    """Add one image, and ``count`` more documents like its own, each with a chunk."""
    stored = store.add("first", b"x")
    [document] = database["fs.files"].find({"filename": "first"})
    ids = [ObjectId() for _ in range(count)]
    database["fs.files"].insert_many(
        {**document, "_id": each, "filename": f"more-{n}", "metadata": {"storelib": {"image": f"more-{n}"}}}
        for n, each in enumerate(ids)
    )
    database["fs.chunks"].insert_many({"files_id": each, "n": 0, "data": b"x"} for each in ids)
    return stored


def test_gc_of_one_id_looks_at_no_other_image(mongod):
    costs = []
    for count in (3, 300):
        database, store = mongod.raw[f"counted-{count}"], open_grid(mongod, mongodb_store_db=f"counted-{count}")
        fill(database, store, count)
        writer = store.start_writer("dead", None, None)
        writer.reserve(4096)
        writer.write(Part(0, 0, memoryview(b"x")))
        # What glance_store leaves has the image's id itself.
        database["fs.chunks"].insert_one({"files_id": "dead", "n": 0, "data": b"x"})

        def collect(count=count):
            other = open_grid(mongod, mongodb_store_db=f"counted-{count}")
            assert {item.image_id for item in other.gc(0, "dead")} == {"dead"}
            assert other.find_image("dead") is None

        costs.append(examined(database, collect)[0])
        writer.close()
    assert costs[0] == costs[1]


def test_a_listing_comes_in_bounded_pages(mongod):
    database, store = mongod.raw["paged"], open_grid(mongod, mongodb_store_db="paged")
    fill(database, store, 2 * PAGE)
    _, told = examined(database, lambda: [None for _ in store.list_images()])
    returned = [each.get("nreturned", 0) for each in told if each["ns"] == "paged.fs.files"]
    assert sum(returned) == 2 * PAGE + 1
    assert max(returned) <= PAGE
    database["fs.files"].delete_many({"filename": {"$ne": "first"}})
    _, told = examined(database, lambda: [None for _ in store.find_garbage(0)])
    assert max(each.get("nreturned", 0) for each in told) <= PAGE


# -- Other clients of GridFS ----------------------------------------------------------------------------------


def test_our_image_is_read_by_plain_gridfs(mongod, store, image_id):
    import gridfs

    stored = store.add(image_id, IMAGE)
    plain = gridfs.GridFS(mongod.raw["images"])
    found = plain.get_last_version(image_id)
    assert (found.read(), found.length, found.filename) == (IMAGE, len(IMAGE), image_id)
    assert found.metadata["md5"] == stored.checksum
    assert found.metadata["sha512"] == stored.multihash
    assert plain.get(found._id).read() == IMAGE


def test_image_under_way_has_no_name_and_no_bytes_for_plain_gridfs(mongod, store, image_id):
    import gridfs

    plain = gridfs.GridFS(mongod.raw["images"])
    before = set(plain.list())
    seen = []

    def source():
        yield LARGE[: 5 * MiB]
        seen.append((set(plain.list()), plain.exists(filename=image_id), {found.length for found in plain.find()}))
        yield LARGE[5 * MiB :]

    store.add(image_id, source())
    [(names, exists, lengths)] = seen
    assert names == before
    assert not exists
    assert 5 * MiB not in lengths


@pytest.mark.parametrize("chunk_size", [255 * KiB, 1000, 5 * MiB])
def test_image_of_glance_store_is_read_and_deleted(mongod, store, image_id, chunk_size):
    import gridfs

    data = bytes_of(5 * MiB + 17)
    # As its driver did it: the id is the _id, there is no filename.
    gridfs.GridFS(mongod.raw["images"]).put(data, _id=image_id, chunk_size=chunk_size)
    uri = uri_of(image_id)
    assert read(store, uri) == data
    assert read(store, uri, 254 * KiB, 2 * MiB) == data[254 * KiB :][: 2 * MiB]
    assert store.get_size(uri) == len(data)
    assert [info.size for info in store.list_images() if info.uri == uri] == [len(data)]
    with pytest.raises(Duplicate):
        store.add(image_id, b"other")
    store.delete(uri)
    assert not mongod.raw["images"]["fs.chunks"].count_documents({"files_id": image_id})
    with pytest.raises(NotFound):
        store.get(uri)


def test_file_with_an_objectid_is_read_and_listed_by_it(mongod, store):
    import gridfs

    files_id = gridfs.GridFS(mongod.raw["images"]).put(IMAGE, filename="holiday.jpg")
    uri = f"gridfs://{files_id}"
    assert read(store, uri) == IMAGE
    assert uri in {info.uri for info in store.list_images()}
    store.delete(uri)


def test_token_of_an_image_is_no_second_uri_of_it(store, access, image_id):
    store.add(image_id, IMAGE)
    token = access.files.find_one({"filename": image_id})["_id"]
    with pytest.raises(NotFound):
        store.get(f"gridfs://{token}")


def test_images_of_a_bucket_without_our_index_are_found_by_their_id_alone(mongod):
    import gridfs

    costs = []
    for count in (3, 300):
        database = mongod.raw[f"foreign-{count}"]
        plain = gridfs.GridFS(database)
        plain.put(b"data", _id="image")
        database["fs.files"].insert_many({"_id": f"more-{n}", "length": 0, "chunkSize": 4} for n in range(count))
        store = open_grid(mongod, mongodb_store_db=f"foreign-{count}", read_only=True)

        def look(store=store):
            assert store.get("gridfs://image").data.read() == b"data"
            assert store.stat("gridfs://image").size == store.get_size("gridfs://image") == 4

        costs.append(examined(database, look)[0])
        with pytest.raises(NotFound):
            store.get("gridfs://missing")
        store = open_grid(mongod, mongodb_store_db=f"foreign-{count}")
        costs.append(examined(database, lambda store=store: store.delete("gridfs://image"))[0])
        # An index that was lost hides no image of ours.
        store.add("ours", b"ours")
        database["fs.files"].drop_indexes()
        store = open_grid(mongod, mongodb_store_db=f"foreign-{count}")
        assert store.get("gridfs://ours").data.read() == b"ours"
    assert costs[:2] == costs[2:]


def test_image_of_glance_store_that_appears_meanwhile_stays(mongod, store, image_id):
    import gridfs

    def source():
        yield IMAGE[:10]
        gridfs.GridFS(mongod.raw["images"]).put(b"theirs", _id=image_id)
        yield IMAGE[10:]

    with pytest.raises(Duplicate):
        store.add(image_id, source())
    assert read(store, uri_of(image_id)) == b"theirs"


# -- What is damaged ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 40, len(LARGE) // SMALL])
def test_missing_chunk_is_an_error(store, access, image_id, number):
    uri = store.add(image_id, LARGE).uri
    files_id = access.files.find_one({"filename": image_id})["_id"]
    access.chunks.delete_one({"files_id": files_id, "n": number})
    with store.get(uri).data as stream, pytest.raises(IncompleteRead, match=f"chunk {number} is missing"):
        stream.read()


@pytest.mark.parametrize("wrong", [b"short", bytes(SMALL + 1), "text", None, 5])
def test_chunk_of_the_wrong_size_is_an_error(store, access, image_id, wrong):
    uri = store.add(image_id, IMAGE).uri
    files_id = access.files.find_one({"filename": image_id})["_id"]
    access.chunks.update_one({"files_id": files_id, "n": 1}, {"$set": {"data": wrong}})
    with store.get(uri).data as stream, pytest.raises(IncompleteRead, match="chunk 1 "):
        stream.read()


def test_chunk_without_bytes_is_an_error(store, access, image_id):
    uri = store.add(image_id, IMAGE).uri
    files_id = access.files.find_one({"filename": image_id})["_id"]
    access.chunks.update_one({"files_id": files_id, "n": 1}, {"$unset": {"data": 1}})
    with store.get(uri).data as stream, pytest.raises(IncompleteRead, match="chunk 1 "):
        stream.read()


@pytest.mark.parametrize("chunk", [{"data": "text"}, {"data": 5}, {"data": None}, {}])
def test_damaged_chunks_without_a_file_are_found(mongod, chunk):
    store = open_grid(mongod, mongodb_store_db="damaged")
    store.bucket.chunks_at_primary.insert_one({"files_id": "damaged", "n": 0, **chunk})
    [found] = store.gc(0)
    assert (found.image_id, found.size) == ("damaged", 0)
    assert not store.gc(0)


@pytest.mark.parametrize("metadata", [{"storelib": {"pending": "x"}}, {"storelib": {"image": 5}}, {"storelib": {}}])
def test_records_that_storelib_did_not_write_are_left_alone(mongod, metadata):
    store = open_grid(mongod, mongodb_store_db="damaged")
    document = {"_id": "strange", "length": 0, "chunkSize": 1000, "metadata": metadata}
    store.bucket.files_at_primary.insert_one(document)
    assert not store.gc(0)
    assert not list(store.list_images())
    assert store.bucket.files_at_primary.delete_one(document).deleted_count


@pytest.mark.parametrize("files_id", ["a/b", "", "..", "a\nb", "x" * 256, 17])
def test_file_of_another_client_that_no_uri_can_name_is_not_listed(mongod, files_id):
    import gridfs

    plain = gridfs.GridFS(mongod.raw["foreign"])
    plain.put(IMAGE, _id=files_id)
    store = open_grid(mongod, mongodb_store_db="foreign")
    assert list(store.list_images()) == []
    plain.delete(files_id)


@pytest.mark.parametrize("length", [None, "big", -1, 1.5])
def test_document_without_a_size_is_an_error(mongod, image_id, length):
    store = open_grid(mongod, mongodb_store_db="damaged")
    store.bucket.files_at_primary.insert_one({"_id": image_id, "length": length, "chunkSize": 1000})
    for call in (store.get, store.get_size, store.stat):
        with pytest.raises(StoreError, match="length"):
            call(uri_of(image_id))
    assert list(store.list_images()) == []
    store.bucket.files_at_primary.delete_one({"_id": image_id})


def test_replaced_image_is_not_mixed(store, image_id):
    uri = store.add(image_id, LARGE).uri
    other = bytes_of(len(LARGE), "other")
    with store.get(uri).data as stream:
        first = stream.read(100)
        store.delete(uri)
        store.add(image_id, other)
        with pytest.raises((NotFound, IncompleteRead)):
            stream.seek(len(LARGE) - 100) and stream.read()
    assert first == LARGE[:100]
    assert read(store, uri) == other


# -- Crashes --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def crashing(tmp_path, **options):
    """A mongod of the test's own, and a function that kills it and has it back a little later."""
    with Mongod(tmp_path / "mongod", **options) as server:
        threads = []

        def crash(after=0.3):
            server.kill()
            threads.append(threading.Timer(after, server.start))
            threads[-1].start()

        yield server, crash
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("journal", [False, True])
def test_server_crashes_in_the_middle_of_an_add(tmp_path, journal):
    with crashing(tmp_path) as (server, crash):
        store = open_grid(server, mongodb_store_journal=journal, transfer_retries=6)

        def source():
            for start in range(0, 32 * MiB, MiB):
                if start == 24 * MiB:
                    # So that at least the record is in the journal and parts are on their way.
                    crash()
                yield bytes_of(MiB, start)

        data = b"".join(bytes_of(MiB, start) for start in range(0, 32 * MiB, MiB))
        with contextlib.closing(server.client()) as raw:
            access = Bucket(raw)
            try:
                stored = store.add("image", source())
            except StoreError:
                # What was not in the journal yet is gone, and the add noticed.
                assert not journal
                assert access.read("image") is None
                store.gc(0)
                assert not access.residue("image")
                stored = store.add("image", data)
            assert access.read("image") == data
            assert stored.multihash == hashlib.sha512(data).hexdigest()
            assert len(access.residue("image")) == 1


def test_server_crashes_in_the_middle_of_a_get(tmp_path):
    with crashing(tmp_path) as (server, crash):
        store = open_grid(server, transfer_retries=6)
        uri = store.add("image", LARGE).uri
        with store.get(uri).data as stream:
            first = stream.read(MiB)
            crash()
            assert first + stream.read() == LARGE


def test_server_that_stays_away_is_an_error_in_bounded_time(tmp_path):
    with Mongod(tmp_path / "mongod") as server:
        store = open_grid(server, mongodb_store_server_selection_timeout=0.5, transfer_retries=1)
        uri = store.add("image", LARGE).uri
        stream = store.get(uri).data
        server.kill()
        begun = time.monotonic()
        for call in (stream.read, lambda: store.get(uri), lambda: store.add("other", LARGE), store.check):
            with pytest.raises(RemoteServiceUnavailable):
                call()
        stream.close()
        assert time.monotonic() - begun < 20


SHORT_ANSWERS = {
    "mongodb_store_server_selection_timeout": 0.5,
    "mongodb_store_socket_timeout": 0.5,
    "mongodb_store_connect_timeout": 0.5,
}
LONG_ANSWERS = dict.fromkeys(SHORT_ANSWERS, 60.0)


@pytest.mark.parametrize(
    "timeouts", [SHORT_ANSWERS, {**LONG_ANSWERS, "transfer_timeout": 0.5}], ids=["answers", "transfer"]
)
def test_hung_server_is_an_error_in_bounded_time_and_publishes_nothing_later(tmp_path, timeouts):
    with Mongod(tmp_path / "mongod") as server:
        store = open_grid(server, transfer_retries=1, **timeouts)

        def progress(done, total):
            if done == len(IMAGE):
                # Whatever is sent from now on waits in the server's sockets.
                os.kill(server.pid, signal.SIGSTOP)

        begun = time.monotonic()
        try:
            with pytest.raises((RemoteServiceUnavailable, TransferTimeout)):
                store.add("image", IMAGE, progress=progress)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert time.monotonic() - begun < 20
        time.sleep(1)
        patient = open_grid(server)
        with contextlib.closing(server.client()) as raw:
            access = Bucket(raw)
            if access.read("image") is not None:
                # Only whole.
                assert access.read("image") == IMAGE
            patient.gc(0)
            assert access.read("image") in (None, IMAGE)
            assert len(access.residue("image")) == (access.read("image") is not None)


def test_peer_that_never_answers_is_given_up_within_the_timeout_of_transfers(mongod, image_id):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = "mongodb://{}:{}/".format(*silent.getsockname())
        store = open_grid(mongod, uri, **LONG_ANSWERS, transfer_timeout=0.3, transfer_retries=0)
        begun = time.monotonic()
        for call in everything(store, uri_of(image_id), "new").values():
            assert_refused(call, RemoteServiceUnavailable, TransferTimeout)
        assert time.monotonic() - begun < 30


def test_chunks_that_a_crash_takes_after_they_were_counted_do_not_become_an_image(tmp_path, monkeypatch):
    with Mongod(tmp_path / "mongod") as server, contextlib.closing(server.client()) as raw:
        # So small that the server keeps it in memory until it writes its journal, ten times in a second.
        data = bytes_of(5000)
        options = {"mongodb_store_chunk_size": 4, "mongodb_store_write_concern": "1", "transfer_retries": 6}
        store, access = open_grid(server, **options), Bucket(raw)
        count = Publication._check_chunks

        def crash_when_counted(publication, expected):
            count(publication, expected)
            monkeypatch.undo()
            server.kill()
            server.start()

        monkeypatch.setattr(Publication, "_check_chunks", crash_when_counted)
        store.add("image", data)
        assert access.read("image") == data


WRITER = """
    import sys
    from storelib.drivers.gridfs import GridfsStore
    from storelib.registry import open_store

    uri, image_id, size = sys.argv[1:]
    store = open_store(
        GridfsStore, "grid", mongodb_store_uri=uri, mongodb_store_db="images", mongodb_store_chunk_size=64
    )

    def source():
        for number in range(int(size)):
            yield image_id[:1].encode() * 1048576 if number % 2 else bytes(1048576)
            print(number, flush=True)
        sys.stdin.readline()

    try:
        print(store.add(image_id, source()).multihash, flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


def start_writer(server, image_id, size):
    """A process that adds ``size`` MiB, says so, and ends the image when told to."""
    command = [sys.executable, "-c", textwrap.dedent(WRITER), server.uri, image_id, str(size)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(process, line):
    assert line in iter(lambda: process.stdout.readline().strip(), "")


def test_gc_finds_what_a_killed_process_left(mongod, store, access, image_id):
    # More than a transfer holds, so that some of it is there by then.
    with start_writer(mongod, image_id, 64) as process:
        wait_for(process, "63")
        process.kill()
    left = access.residue(image_id)
    assert len(left) == 1
    assert access.read(image_id) is None
    assert not store.gc(3600, image_id)
    [found] = store.gc(0, image_id)
    assert found.image_id == image_id
    assert found.size >= MiB
    assert not access.residue(image_id)


def test_of_two_processes_one_adds(mongod, store, access, image_id):
    with start_writer(mongod, image_id, 9) as one, start_writer(mongod, image_id, 9) as two:
        for process in (one, two):
            wait_for(process, "8")
        for process in (one, two):
            process.stdin.write("\n")
            process.stdin.flush()
        responses = [process.stdout.readline().strip() for process in (one, two)]
        for process in (one, two):
            process.stdin.close()
    assert responses.count("Duplicate") == 1
    [won] = set(responses) - {"Duplicate"}
    assert hashlib.sha512(access.read(image_id)).hexdigest() == won
    assert len(access.residue(image_id)) == 1


def test_late_requests_of_a_failed_add_publish_nothing(mongod, store, access, image_id, monkeypatch):
    # A network may deliver a request long after its sender has given up, here those that make and change the record.
    from pymongo.collection import Collection

    sent = []
    update, replace = Collection.update_one, Collection.replace_one

    def updating(collection, *what, **how):
        if sent:
            return update(collection, *what, **how)
        sent.append(lambda: update(collection, *what, **how))
        raise RemoteServiceUnavailable("on its way")

    def replacing(collection, query, document):
        sent.append(lambda: replace(collection, query, document))
        raise StorageFull("on its way")

    monkeypatch.setattr(Collection, "update_one", updating)
    monkeypatch.setattr(Collection, "replace_one", replacing)
    with pytest.raises(StorageFull):
        store.add(image_id, IMAGE)
    monkeypatch.undo()
    for late in sent:
        late()
        assert access.read(image_id) is None
    store.gc(0)
    assert not access.residue(image_id)


COLLECTOR = """
    import sys
    from storelib.drivers.gridfs import GridfsStore
    from storelib.registry import open_store

    store = open_store(GridfsStore, "grid", mongodb_store_uri=sys.argv[1], mongodb_store_db="images")
    for prefix in sys.stdin:
        print(len(store.gc(0, prefix.strip())), flush=True)
"""


@contextlib.contextmanager
def collecting(server, by):
    """``gc(0)`` of ids with a prefix by another object or another process."""
    if by == "object":
        other = open_grid(server)
        yield lambda prefix: other.gc(0, prefix)
        return
    command = [sys.executable, "-c", textwrap.dedent(COLLECTOR), server.uri]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def collect(prefix):
            process.stdin.write(f"{prefix}\n")
            process.stdin.flush()
            assert process.stdout.readline().strip().isdecimal()

        yield collect
        process.stdin.close()


def calling_before(store, number, call):
    """Have ``call`` made before the command of that number of the store; returns the list of all their names."""
    from pymongo.monitoring import CommandListener

    names = []

    class Listener(CommandListener):
        def started(self, event):
            names.append(event.command_name)
            if len(names) == number + 1:
                call()

        def succeeded(self, event):
            pass

        failed = succeeded

    store.bucket._options["event_listeners"] = [Listener()]
    return names


@pytest.mark.parametrize("by", ["object", "process"])
def test_gc_of_others_at_any_moment_leaves_no_add_without_data(mongod, store, access, image_id, by):
    store.bucket.prepare()
    with collecting(mongod, by) as collect:
        outcomes, number, names = [], 0, []
        while number <= len(names):
            adding = in_small_parts(open_grid(mongod))
            names = calling_before(adding, number, lambda: collect(image_id))
            outcomes.append(assert_whole_or_nothing(adding, access, store, image_id, IMAGE))
            number += 1
    # Before the record and after publishing there was nothing to take.
    assert outcomes[0] is outcomes[-1] is None
    assert any(outcomes)


def wait_for_chunks(access, image_id, count):
    """Until so many of an add under way have arrived; returns its record."""
    for _ in range(1000):
        record = access.files.find_one({"metadata.storelib.pending": image_id})
        if record and access.chunks.count_documents({"files_id": record["_id"]}) >= count:
            return record
        time.sleep(0.01)
    raise AssertionError("no chunks arrive")


def test_gc_goes_by_the_clock_of_the_server(mongod, store, access, image_id, monkeypatch):
    other = open_grid(mongod)
    now = time.time

    def source():
        yield LARGE[: 5 * MiB]
        wait_for_chunks(access, image_id, 1)
        # Of the one who collects, fast by two hours.
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda: now() + 7200)
            assert not other.gc(3600, image_id)
        yield LARGE[5 * MiB :]

    assert read(store, store.add(image_id, source()).uri) == LARGE


def test_add_of_a_client_whose_clock_is_slow_is_young(mongod, store, access, image_id, monkeypatch):
    other = open_grid(mongod)
    now = time.time

    def source():
        yield LARGE[: 5 * MiB]
        wait_for_chunks(access, image_id, 1)
        monkeypatch.undo()
        assert not other.gc(3600, image_id)
        yield LARGE[5 * MiB :]

    class Slow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) - datetime.timedelta(hours=2)

    monkeypatch.setattr(time, "time", lambda: now() - 7200)
    monkeypatch.setattr(datetime, "datetime", Slow)
    assert read(store, store.add(image_id, source()).uri) == LARGE


@contextlib.contextmanager
def losing_the_answer(monkeypatch, method, meanwhile):
    """The next call of ``method`` of a collection is done, then ``meanwhile`` is, and the answer never arrives."""
    from pymongo.collection import Collection
    from pymongo.errors import AutoReconnect

    plain = getattr(Collection, method)

    def losing(*what, **how):
        patched.undo()
        plain(*what, **how)
        meanwhile()
        raise AutoReconnect("cut")

    with monkeypatch.context() as patched:
        patched.setattr(Collection, method, losing)
        yield


def test_delete_whose_answer_was_lost_leaves_the_next_image_of_that_id(mongod, store, access, image_id, monkeypatch):
    uri = store.add(image_id, IMAGE).uri
    before = access.chunks.distinct("files_id")
    with losing_the_answer(monkeypatch, "delete_one", lambda: open_grid(mongod).add(image_id, b"next")):
        store.delete(uri)
    assert access.read(image_id) == b"next"
    assert len(access.residue(image_id)) == 1
    assert len(access.chunks.distinct("files_id")) == len(before)


def test_delete_whose_answer_was_lost_leaves_the_next_file_of_another_client(mongod, store, image_id, monkeypatch):
    import gridfs

    plain = gridfs.GridFS(mongod.raw["images"])
    plain.put(IMAGE, _id=image_id)

    def put_again():
        mongod.raw["images"]["fs.chunks"].delete_many({"files_id": image_id})
        plain.put(b"next", _id=image_id)

    with losing_the_answer(monkeypatch, "delete_one", put_again):
        store.delete(uri_of(image_id))
    assert plain.get(image_id).read() == b"next"
    plain.delete(image_id)


@pytest.mark.parametrize("method", ["update_one", "replace_one"])
def test_add_whose_answer_was_lost_is_the_one_image(mongod, store, access, image_id, monkeypatch, method):
    store.bucket.prepare()
    with losing_the_answer(monkeypatch, method, lambda: None):
        store.add(image_id, IMAGE)
    assert access.read(image_id) == IMAGE
    assert len(access.residue(image_id)) == 1


def test_delete_that_another_one_was_quicker_with_is_not_found(mongod, store, image_id, monkeypatch):
    uri = store.add(image_id, IMAGE).uri
    find = bucket.Bucket.find

    def find_late(*what):
        found = find(*what)
        monkeypatch.undo()
        open_grid(mongod).delete(uri)
        return found

    monkeypatch.setattr(bucket.Bucket, "find", find_late)
    with pytest.raises(NotFound):
        store.delete(uri)


def test_add_that_gc_took_for_dead_publishes_nothing(mongod, store, access, image_id):
    # The other store stands for another process: it does not know of this one's adds.
    other = open_grid(mongod)

    def source():
        yield LARGE[: 5 * MiB]
        deadline = time.monotonic() + 60
        while not access.chunks.count_documents({}) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert other.gc(0, image_id)
        yield LARGE[5 * MiB :]

    with pytest.raises(StoreError, match="lost"):
        store.add(image_id, source())
    assert access.read(image_id) is None
    assert not access.residue(image_id)


def test_chunk_that_the_server_lost_is_noticed_before_the_image_is_published(store, access, image_id):
    def source():
        yield LARGE[: 5 * MiB]
        deadline = time.monotonic() + 60
        lost = None
        while lost is None and time.monotonic() < deadline:
            record = access.files.find_one({"metadata.storelib.pending": image_id})
            lost = record and access.chunks.find_one_and_delete({"files_id": record["_id"], "n": 3})
        assert lost
        yield LARGE[5 * MiB :]

    with pytest.raises(StoreError, match="the server has 176 of 177 chunks"):
        store.add(image_id, source())
    assert access.read(image_id) is None
    assert not access.residue(image_id)


def test_gc_leaves_an_add_that_has_become_an_image(mongod, store, access, image_id):
    other = open_grid(mongod)
    found = []

    def source():
        yield LARGE
        found.extend(other.find_garbage(0, image_id))

    uri = store.add(image_id, source()).uri
    [item] = found
    assert not other.discard(item)
    assert read(store, uri) == LARGE


@pytest.fixture(params=["record", "record and chunk", "chunk"])
def leftover(request, access, image_id):
    """What an add that died left, or a delete; its _id."""
    files_id = ObjectId()
    if "record" in request.param:
        begun = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
        access.files.insert_one({"_id": files_id, "uploadDate": begun, "metadata": {"storelib": {"pending": image_id}}})
    if "chunk" in request.param:
        access.chunks.insert_one({"files_id": files_id, "n": 0, "data": b"left"})
    return files_id


def found_by(store, leftover):
    [item] = [item for item in store.find_garbage(0) if str(leftover) in item.name]
    return item


def test_gc_does_not_count_what_another_gc_removed_first(mongod, store, leftover):
    other = open_grid(mongod)
    mine, theirs = found_by(store, leftover), found_by(other, leftover)
    assert other.discard(theirs)
    assert not store.discard(mine)
    assert not other.discard(theirs)


@pytest.mark.parametrize("method", ["delete_one", "delete_many"])
def test_gc_counts_what_it_removed_although_the_answer_was_lost(store, access, leftover, monkeypatch, method):
    with losing_the_answer(monkeypatch, method, lambda: None):
        removed = [item for item in store.gc(0) if str(leftover) in item.name]
    assert len(removed) == 1
    assert not access.files.count_documents({"_id": leftover})
    assert not access.chunks.count_documents({"files_id": leftover})


@pytest.mark.parametrize("files_id", ["glance-image", 17])
def test_chunks_without_a_file_are_found(store, access, files_id):
    access.chunks.insert_many([{"files_id": files_id, "n": n, "data": bytes(1000 - 500 * (n == 2))} for n in range(3)])
    [found] = [item for item in store.find_garbage(0) if str(files_id) in item.name]
    assert found.size == 2500
    assert found.image_id == (files_id if isinstance(files_id, str) else None)
    assert not [item for item in store.gc(3600) if str(files_id) in item.name]
    store.gc(0)
    assert not access.chunks.count_documents({"files_id": files_id})


def test_gc_leaves_files_of_other_clients(mongod, store):
    import gridfs

    plain = gridfs.GridFS(mongod.raw["images"])
    ids = [plain.put(IMAGE), plain.put(IMAGE, _id="other client's"), plain.put(IMAGE, _id=5)]
    store.gc(0)
    assert [plain.get(files_id).read() for files_id in ids] == [IMAGE] * 3
    for files_id in ids:
        plain.delete(files_id)


def test_interrupted_delete_is_finished_by_gc(mongod, store, access, image_id):
    uri = store.add(image_id, IMAGE).uri
    files_id = access.files.find_one({"filename": image_id})["_id"]
    # The first delete is of the document, the second of the chunks.
    access.files.delete_one({"_id": files_id})
    with pytest.raises(NotFound):
        store.get(uri)
    assert [item for item in store.gc(0) if str(files_id) in item.name]
    assert not access.chunks.count_documents({"files_id": files_id})


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("used", [False, True], ids=["only configured", "used before"])
def test_forked_child_has_a_client_of_its_own(mongod, store, image_id, used):
    uri = store.add(image_id, IMAGE).uri
    forked = store if used else open_grid(mongod)
    parents = forked.bucket.get() if used else None
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            right = read(forked, uri) == IMAGE and forked.bucket.get() is not parents
            right = right and forked.add(f"{image_id}-child", LARGE).size == len(LARGE)
            os._exit(0 if right else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read(forked, uri) == IMAGE
    assert read(forked, uri_of(f"{image_id}-child")) == LARGE


# -- Users ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server whose users must log in, over TLS."""
    with Mongod(tmp_path_factory.mktemp("guarded"), auth=True, tls=True) as server:
        server.writer_uri = server.add_user("writer", "wr%3Ate-secret", "readWrite").replace("%3A", "%253A")
        server.reader_uri = server.add_user("reader", "read-secret", "read")
        server.stranger_uri = server.add_user("stranger", "strange-secret", "readWrite", database="other")
        yield server


def open_guarded(server, uri, **options):
    return open_grid(server, uri, mongodb_store_tls=True, mongodb_store_tls_ca_file=str(server.certificate), **options)


def assert_refused(call, *errors, secrets=()):
    with pytest.raises(errors) as caught:
        call()
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert not [secret for secret in secrets if secret in shown]


def test_user_with_a_password_adds_and_reads(guarded, image_id):
    store = open_guarded(guarded, guarded.writer_uri)
    stored = store.add(image_id, LARGE)
    assert read(store, stored.uri) == LARGE
    assert store.copy(stored.uri, f"{image_id}-copy", digests=Digests(None, stored.multihash)).size == len(LARGE)
    assert "read and written" in store.check().detail
    store.delete(stored.uri)
    assert not store.gc(0)


def test_no_password_is_forbidden(guarded, image_id):
    store = open_guarded(guarded, f"mongodb://{guarded.host}/")
    for call in everything(store, uri_of(image_id), "new").values():
        assert_refused(call, Forbidden, StorageWriteDenied)


def test_user_who_may_only_read_can_read_and_nothing_else(guarded, image_id):
    uri = open_guarded(guarded, guarded.writer_uri).add(image_id, IMAGE).uri
    store = open_guarded(guarded, guarded.reader_uri)
    assert read(store, uri) == IMAGE
    assert store.get_size(uri) == len(IMAGE)
    assert uri in {info.uri for info in store.list_images()}
    asked = everything(store, uri, "new")
    for name in ("add", "delete", "check", "copy"):
        assert_refused(asked[name], StorageWriteDenied, secrets=["read-secret"])
    assert read(store, uri) == IMAGE
    read_only = open_guarded(guarded, guarded.reader_uri, read_only=True)
    assert "can be read" in read_only.check().detail


#: All that is done with an image; none of it makes an index or asks how full the disk is.
NARROW = ("find", "insert", "update", "remove")


@pytest.mark.parametrize("bucket", ["there", "missing"])
@pytest.mark.parametrize("actions", [(*NARROW, "listIndexes"), NARROW], ids=["sees indexes", "sees none"])
def test_user_who_may_make_no_index_needs_those_that_are_there(guarded, bucket, actions, request):
    database = f"narrow-{bucket}-{len(actions)}"
    options = {"mongodb_store_db": database}
    if bucket == "there":
        administrator = open_guarded(guarded, guarded.uri, **options)
        administrator.bucket.prepare()
    uri = guarded.add_narrow_user(database, "narrow-secret", *actions, database=database)
    store = open_guarded(guarded, uri, **options)
    if (bucket, len(actions)) == ("there", 5):
        stored = store.add("image", LARGE)
        assert read(store, stored.uri) == LARGE
        assert store.copy(stored.uri, "copy", digests=Digests(None, stored.multihash)).size == len(LARGE)
        assert len(list(store.list_images())) == 2
        store.delete(stored.uri)
        assert not store.gc(0)
        health = store.check()
        assert "read and written" in health.detail
        assert (health.free, health.total) == (None, None)
        return
    for call in (store.check, lambda: store.add("image", IMAGE)):
        with pytest.raises(BadStoreConfiguration, match=r"metadata\.storelib\.image.*mongodb_store_uri"):
            call()
    with contextlib.closing(guarded.client()) as raw:
        assert not raw[database]["fs.files"].count_documents({})
        assert not raw[database]["fs.chunks"].count_documents({})


def test_check_of_a_user_who_may_not_delete_is_refused(guarded):
    actions = ("find", "insert", "update", "listIndexes", "createIndex")
    uri = guarded.add_narrow_user("keeper", "keep-secret", *actions)
    store = open_guarded(guarded, uri)
    assert_refused(store.check, StorageWriteDenied, secrets=["keep-secret"])
    with pytest.raises(StorageWriteDenied, match="read_only"):
        store.check()
    assert "can be read" in open_guarded(guarded, uri, read_only=True).check().detail


def test_user_of_another_database_is_forbidden(guarded, image_id):
    store = open_guarded(guarded, guarded.stranger_uri)
    for call in everything(store, uri_of(image_id), "new").values():
        assert_refused(call, Forbidden, StorageWriteDenied, secrets=["strange-secret"])


# -- TLS ------------------------------------------------------------------------------------------------------


def test_certificate_of_another_name_is_refused(guarded, image_id):
    store = open_guarded(guarded, guarded.writer_uri.replace("localhost", "127.0.0.1"))
    with pytest.raises(RemoteServiceUnavailable):
        store.get(uri_of(image_id))


def test_insecure_takes_any_certificate(guarded, image_id):
    options = {"mongodb_store_tls": True, "mongodb_store_tls_insecure": True}
    store = open_grid(guarded, guarded.writer_uri.replace("localhost", "127.0.0.1"), **options)
    assert read(store, store.add(image_id, IMAGE).uri) == IMAGE


def test_client_may_show_a_certificate(guarded, image_id):
    store = open_guarded(guarded, guarded.writer_uri, mongodb_store_tls_certificate_key_file=str(guarded.identity))
    assert read(store, store.add(image_id, IMAGE).uri) == IMAGE


def test_server_that_wants_tls_is_not_talked_to_without(guarded, image_id):
    store = open_grid(guarded, guarded.writer_uri, mongodb_store_server_selection_timeout=0.5, transfer_retries=0)
    with pytest.raises(RemoteServiceUnavailable):
        store.get(uri_of(image_id))


# -- Replica sets ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replicated(tmp_path_factory):
    with Mongod(tmp_path_factory.mktemp("replicated"), replica_set="rs0") as server:
        yield server


def open_replicated(server, **options):
    return open_grid(server, f"mongodb://{server.host}/?replicaSet=rs0", **options)


def test_replica_set(replicated, image_id):
    store = open_replicated(replicated)
    uri = store.add(image_id, LARGE).uri
    assert read(store, uri) == LARGE
    assert store.check().detail == "database images on a primary of replica set rs0 can be read and written"
    store.delete(uri)


@contextlib.contextmanager
def without_primary(server):
    server.command("replSetStepDown", 60, force=True)
    try:
        yield
    finally:
        server.command("replSetFreeze", 0)
        with server.client() as client:
            deadline = time.monotonic() + 60
            while not client.admin.command("hello").get("isWritablePrimary"):
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_add_without_a_primary_is_an_error_in_bounded_time(replicated, image_id):
    options = {"mongodb_store_server_selection_timeout": 0.5, "transfer_retries": 1}
    store = open_replicated(replicated, **options)
    uri = store.add(image_id, IMAGE).uri
    with without_primary(replicated):
        begun = time.monotonic()
        for name, call in everything(store, uri, "new").items():
            if name != "list":
                assert_refused(call, RemoteServiceUnavailable)
        assert time.monotonic() - begun < 40
        secondary = open_replicated(replicated, mongodb_store_read_preference="secondaryPreferred", **options)
        assert read(secondary, uri) == IMAGE
        with pytest.raises(RemoteServiceUnavailable):
            secondary.check()
        options["mongodb_store_read_preference"] = "secondary"
        detail = open_replicated(replicated, read_only=True, **options).check().detail
        assert detail == "database images on a secondary of replica set rs0 can be read"
    assert read(store, uri) == IMAGE


def test_add_survives_the_loss_of_the_primary(replicated, image_id):
    store = open_replicated(replicated, transfer_retries=10)

    def source():
        yield LARGE[: 5 * MiB]
        replicated.command("replSetStepDown", 2, force=True)
        yield LARGE[5 * MiB :]

    stored = store.add(image_id, source())
    assert read(store, stored.uri) == LARGE


def test_replica_set_of_nobody_is_an_error_in_bounded_time(mongod, image_id):
    [port] = free_ports(1)
    options = {"mongodb_store_server_selection_timeout": 0.3, "transfer_retries": 0}
    for uri in (f"mongodb://127.0.0.1:{port}/?replicaSet=nobody", f"mongodb://{mongod.host}/?replicaSet=nobody"):
        store = open_grid(mongod, uri, **options)
        begun = time.monotonic()
        for call in everything(store, uri_of(image_id), image_id).values():
            assert_refused(call, RemoteServiceUnavailable)
        assert time.monotonic() - begun < 25


def test_write_concern_that_cannot_be_met_is_an_error_and_leaves_nothing(replicated, image_id):
    store = open_replicated(replicated, mongodb_store_write_concern="7")
    with pytest.raises(BadStoreConfiguration, match="mongodb_store_write_concern"):
        store.add(image_id, IMAGE)
    with contextlib.closing(replicated.client()) as raw:
        open_replicated(replicated).gc(0)
        assert not Bucket(raw).residue(image_id)


#: What one member can never give.
UNGIVEN = {
    "number": ({"mongodb_store_write_concern": "5"}, ""),
    "name": ({"mongodb_store_write_concern": "nosuchmode"}, ""),
    "number in the URI": ({}, "&w=5"),
    "name in the URI": ({}, "&w=nosuchmode"),
}


@pytest.mark.parametrize("what", UNGIVEN)
@pytest.mark.parametrize("server", ["mongod", "replicated"])
def test_write_concern_that_cannot_be_given_is_named_before_anything_is_written(request, server, what):
    options, said = UNGIVEN[what]
    server = request.getfixturevalue(server)
    store = open_grid(
        server, f"mongodb://{server.host}/?directConnection=true{said}", mongodb_store_db="ungiven", **options
    )
    for call in (lambda: store.add("image", IMAGE), store.check):
        with pytest.raises(BadStoreConfiguration, match=r"mongodb_store_write_concern.*mongodb_store_uri"):
            call()
    with contextlib.closing(server.client()) as raw:
        assert "ungiven" not in raw.list_database_names()


@pytest.mark.parametrize("journal", [False, True])
def test_server_without_a_journal_is_a_configuration_error(tmp_path, journal):
    with Mongod(tmp_path / "mongod", journal=False) as server:
        store = open_grid(server, mongodb_store_journal=journal)
        for call in (lambda: store.add("image", IMAGE), store.check):
            with pytest.raises(BadStoreConfiguration, match=r"journal.*mongodb_store_journal"):
                call()
        with contextlib.closing(server.client()) as raw:
            assert "images" not in raw.list_database_names()


# -- What a server says ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["find", "insert", "update", "aggregate"])
@pytest.mark.parametrize(
    "how",
    [{"errorCode": 11600}, {"errorCode": 10107}, {"errorCode": 91}, {"errorCode": 262}, {"closeConnection": True}],
    ids=lambda how: str(next(iter(how.values()))),
)
def test_transient_error_is_survived(mongod, store, access, image_id, command, how):
    store.bucket.prepare()
    mongod.fail(command, times=1, **how)
    stored = store.add(image_id, LARGE)
    assert access.read(image_id) == LARGE
    assert read(store, stored.uri) == LARGE
    mongod.fail(command, times=0, errorCode=1)


@pytest.mark.parametrize("command", ["insert", "update"])
def test_write_that_was_done_but_not_confirmed_is_done_again(mongod, store, access, image_id, command):
    concern = {"code": 64, "errmsg": "waiting for replication timed out"}
    mongod.fail(command, times=1, writeConcernError=concern)
    store.add(image_id, LARGE)
    assert access.read(image_id) == LARGE
    assert len(access.residue(image_id)) == 1
    mongod.fail(command, times=0, errorCode=1)


@pytest.mark.parametrize(("command", "error"), [("insert", StorageFull), ("aggregate", StorageFull)])
def test_check_does_what_images_do(mongod, store, access, command, error):
    assert store.check().free is not None
    assert not access.residue("storelib-check-")
    mongod.fail(command, times=1, errorCode=14031)
    with pytest.raises(error):
        store.check()
    mongod.fail(command, times=0, errorCode=1)
    assert not access.residue("storelib-check-")


@pytest.mark.parametrize("code", [13, 59, 115, 8000])
def test_check_without_dbstats_does_not_know_the_room(mongod, store, code):
    mongod.fail("dbStats", times=1, errorCode=code)
    health = store.check()
    assert "read and written" in health.detail
    assert (health.free, health.total) == (None, None)
    assert store.check().total is not None


@pytest.mark.parametrize("command", ["insert", "update"])
def test_full_disk_is_reported_and_nothing_left(mongod, store, access, image_id, command):
    mongod.fail(command, times=1, errorCode=14031)
    with pytest.raises(StorageFull):
        store.add(image_id, LARGE)
    assert not access.residue(image_id)


@pytest.mark.parametrize("command", ["find", "insert", "update", "createIndexes"])
def test_error_that_lasts_is_raised_and_nothing_left(mongod, image_id, command):
    # One without indexes yet.
    store = open_grid(mongod, mongodb_store_db=f"lasting-{command}", transfer_retries=1)
    access = Bucket(mongod.raw, f"lasting-{command}")
    # Each of three parts is sent twice.
    mongod.fail(command, times=6, errorCode=91)
    with pytest.raises(RemoteServiceUnavailable):
        store.add(image_id, LARGE)
    mongod.fail(command, times=0, errorCode=1)
    store.gc(0)
    assert not access.residue(image_id)


def test_index_with_other_options_is_named(mongod):
    collection = mongod.raw["indexed"]["fs.chunks"]
    collection.create_index([("files_id", 1), ("n", 1)])
    store = open_grid(mongod, mongodb_store_db="indexed")
    with pytest.raises(BadStoreConfiguration, match="index"):
        store.add("image", IMAGE)
    assert not mongod.raw["indexed"]["fs.files"].count_documents({})


# -- Copies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, SMALL, len(LARGE)])
def test_copy_is_done_by_the_server(store, access, image_id, size):
    stored = store.add(image_id, bytes_of(size))
    done = []
    digests = Digests(stored.checksum, stored.multihash)
    copy = store.copy(stored.uri, f"{image_id}-copy", digests=digests, progress=lambda *at: done.append(at))
    store.delete(stored.uri)
    assert access.read(f"{image_id}-copy") == bytes_of(size)
    assert copy[1:4] == stored[1:4]
    assert done[-1] == (size, size)


def test_copy_of_an_image_of_glance_store_keeps_its_chunks(mongod, store, access, image_id):
    import gridfs

    gridfs.GridFS(mongod.raw["images"]).put(LARGE, _id=image_id)
    store.copy(uri_of(image_id), f"{image_id}-copy", digests=Digests(None, "00"))
    assert access.read(f"{image_id}-copy") == LARGE
    assert access.files.find_one({"filename": f"{image_id}-copy"})["chunkSize"] == 255 * KiB


def test_copy_of_a_damaged_image_is_refused(store, access, image_id):
    uri = store.add(image_id, LARGE).uri
    access.chunks.delete_one({"files_id": access.files.find_one({"filename": image_id})["_id"], "n": 7})
    with pytest.raises(StoreError, match="chunks"):
        store.copy(uri, f"copy-{image_id}", digests=Digests(None, "00"))
    assert not [name for name in access.residue(f"copy-{image_id}") if "orphan" not in name]


def test_cancelled_copy_leaves_nothing(store, access, image_id):
    uri = store.add(image_id, LARGE).uri

    def progress(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.copy(uri, f"copy-{image_id}", digests=Digests(None, "00"), progress=progress)
    assert not access.residue(f"copy-{image_id}")


# -- Faults on the wire ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Cut, Reset])
def test_download_of_many_chunks_survives_one_fault(mongod, store, image_id, fault):
    uri = store.add(image_id, LARGE).uri
    with FaultyProxy(("127.0.0.1", mongod.port)) as proxy:
        for after in (300, 2000, SMALL, MiB, 4 * MiB, 5 * MiB):
            proxy.plan(fault(after=after), connections=3)
            assert read(behind(proxy, mongod, transfer_retries=6), uri) == LARGE
            proxy.forget()


# -- Many at once ---------------------------------------------------------------------------------------------


def test_eight_adds_share_one_client(mongod, monkeypatch):
    made = []
    plain = bucket.Bucket._new
    monkeypatch.setattr(bucket.Bucket, "_new", lambda client: made.append(client) or plain(client))
    store = open_grid(mongod)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda number: store.add(f"shared-client-{number}", LARGE), range(8)))
    assert len(made) == 1
    assert all(read(store, stored.uri) == LARGE for stored in results)


def test_two_stores_share_a_database(mongod, store, image_id):
    other = open_grid(mongod, mongodb_store_bucket="other.images")
    one, two = store.add(image_id, b"one"), other.add(image_id, b"two")
    assert (read(store, one.uri), read(other, two.uri)) == (b"one", b"two")
    assert {info.uri for info in other.list_images()} == {two.uri}


def test_how_many_commands_an_image_takes_has_a_ceiling(mongod, monkeypatch):
    commands = []

    class Listener(pymongo.monitoring.CommandListener):
        def started(self, event):
            commands.append(event.command_name)

        def succeeded(self, event):
            """It was counted when it began."""

        failed = succeeded

    monkeypatch.setattr(pymongo, "MongoClient", functools.partial(pymongo.MongoClient, event_listeners=[Listener()]))
    store = open_grid(mongod, mongodb_store_chunk_size=256)
    # The first one makes the indexes.
    store.add("counted-first", b"x")

    def taken(function):
        del commands[:]
        result = function()
        return len(commands), result

    count, stored = taken(lambda: store.add("counted", b"x" * 4096))
    # Its record is made, sealed and published, chunks are sent and counted; twice others of its id are looked for.
    assert 0 < count <= 7, commands
    large, _ = taken(lambda: store.add("counted-large", iter([bytes_of(MiB)] * 12)))
    assert large <= 9, commands
    for function, ceiling in (
        (lambda: store.get(stored.uri).data.read(), 2),
        (lambda: store.get_size(stored.uri), 1),
        (lambda: store.stat(stored.uri), 1),
        # The record, then its chunks slice by slice until there are none.
        (lambda: store.delete(stored.uri), 5),
    ):
        count, _ = taken(function)
        assert 0 < count <= ceiling, commands
    store.delete(store.find_image("counted-large").uri)
    store.delete(store.find_image("counted-first").uri)

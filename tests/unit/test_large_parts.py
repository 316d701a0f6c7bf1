# SPDX-License-Identifier: Apache-2.0
"""Parts too large to be held are read again from the file that the image comes from, and are what was hashed; where
nothing is hashed, they are read only when they are sent, and parts of any size not even then, if the system can send
files.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import os
import time
import zlib

import pytest
from recording import recording_store
from s3_server import S3Server, error, etag, open_at
from scripted_server import reply

from storelib.driver import Digests
from storelib.drivers.s3 import writer
from storelib.exceptions import IncompleteRead, Invalid, StoreError
from storelib.registry import open_store
from storelib.transfer import MiB, copy, fan_out, ranges, store_upload
from storelib.transfer.memory import MemoryBudget
from storelib.transfer.partfile import PIECE as RANGE_PIECE
from storelib.transfer.partfile import RangeFile, UnreadFile
from storelib.transfer.source import FileAgain
from storelib.transfer.upload import add

PART = 5 * MiB
SIZE = 2 * PART + 3 * MiB + 3
OPTIONS = {"s3_store_large_object_chunk_size": PART // MiB, "s3_store_thread_pools": 2}


@pytest.fixture(autouse=True)
def large_from_five(monkeypatch):
    """Parts of 5 MiB count as large."""
    monkeypatch.setattr(store_upload, "LARGE", 4 * MiB)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    made = tmp_path_factory.mktemp("large") / "image"
    unit = os.urandom(MiB)
    with made.open("wb") as file:
        for number in range(SIZE // MiB):
            file.write(number.to_bytes(4, "big") + unit[4:])
        # It ends in a hole.
        file.truncate(SIZE)
    return made


@pytest.fixture(scope="module")
def digest(path):
    return hashlib.sha512(path.read_bytes()).hexdigest()


@pytest.fixture
def known(path, digest):
    return Digests(hashlib.md5(path.read_bytes()).hexdigest(), digest)


def added(store, path, **options):
    """Adds the file; returns what was stored, and the most that was held meanwhile."""
    store.memory, most = MemoryBudget(1 << 40), []
    stored = add(store, "image", path, progress=lambda done, total: most.append(store.memory._total), **options)
    assert store.memory._total == 0
    return stored, max(most)


def test_parts_of_the_size_that_a_tebibyte_needs_are_not_held(tmp_path, monkeypatch):
    monkeypatch.undo()
    whole = tmp_path / "whole"
    with whole.open("wb") as file:
        file.truncate(105 * MiB + 1)
        file.write(b"begin")
    with S3Server() as server:
        _, most = added(open_at(server, s3_store_large_object_chunk_size=105), str(whole))
        assert len(server.objects["image"][0]) == 105 * MiB + 1
    assert most <= 12 * MiB


@pytest.mark.parametrize("algorithm", ["md5", "crc32", "none", "sha256"])
def test_large_parts_of_a_file_are_not_held(path, digest, algorithm):
    with S3Server() as server:
        store = open_at(server, s3_store_checksum_algorithm=algorithm, **OPTIONS)
        stored, most = added(store, str(path))
        assert stored.multihash == digest
        assert hashlib.sha512(server.objects["image"][0]).hexdigest() == digest
        assert server.operations.count("part") == 3
        assert most <= 12 * MiB
        # What comes only once has to be held.
        with path.open("rb") as file:
            store.add("piped", iter(lambda: file.read(MiB), b""), SIZE)
        assert server.objects["piped"][0] == server.objects["image"][0]


@pytest.mark.parametrize("hashed", [True, False])
def test_a_large_part_is_sent_again_though_nothing_of_it_was_kept(path, digest, known, hashed):
    options = OPTIONS if hashed else OPTIONS | {"s3_store_checksum_algorithm": "none"}
    failed = []

    def after(operation, request):
        if operation == "part" and len(failed) < 2:
            failed.append(1)
            return error(503, "SlowDown")
        return None

    with S3Server(after=after) as server:
        store = open_at(server, transfer_retries=3, **options)
        stored, _ = added(store, str(path), digests=None if hashed else known)
        assert len(failed) == 2
        assert stored.multihash == digest
        assert hashlib.sha512(server.objects["image"][0]).hexdigest() == digest


def is_damaged(request):
    return (
        request.headers["x-amz-checksum-crc32"]
        != base64.b64encode(zlib.crc32(request.body).to_bytes(4, "big")).decode()
    )


def test_the_checksum_of_a_large_part_is_that_of_the_bytes_as_they_were_hashed(path, digest, monkeypatch):
    """They are read once more, to be sent, and not before that for their checksum."""
    computed, reads, read, crc32 = [], [], FileAgain.read, zlib.crc32

    def after(operation, request):
        if operation != "part":
            return None
        name = "x-amz-checksum-crc32"
        return reply(200, {"ETag": etag(request.body), name: request.headers[name]})

    monkeypatch.setattr(zlib, "crc32", lambda data, value=0: computed.append(len(data)) or crc32(data, value))
    monkeypatch.setattr(FileAgain, "read", lambda *given: reads.append(read(*given)) or reads[-1])
    with S3Server(after=after) as server:
        stored = open_at(server, **OPTIONS).add("image", str(path))
        monkeypatch.undo()
        assert stored.multihash == digest
        parts = [request for request in server.requests if "partNumber" in request.target]
        assert len(parts) == 3
        assert not any(map(is_damaged, parts))
    assert (sum(reads), sum(computed)) == (SIZE, 2 * SIZE)


@pytest.mark.parametrize("change", ["other bytes", "shorter"])
@pytest.mark.parametrize("compares", [True, False])
def test_a_file_that_changes_while_it_is_added_is_not_stored(tmp_path, path, change, compares):
    changing = tmp_path / "changing"
    changing.write_bytes(path.read_bytes())

    def progress(done, total):
        if done == PART + MiB:
            with changing.open("r+b") as file:
                if change == "other bytes":
                    file.seek(PART + 3)
                    file.write(b"changed")
                else:
                    file.truncate(PART + 2 * MiB)

    def instead(operation, request):
        return error(400, "BadDigest") if compares and operation == "part" and is_damaged(request) else None

    with S3Server(instead) as server:
        store = open_at(server, **OPTIONS)
        with pytest.raises(StoreError) as caught:
            store.add("image", str(changing), progress=progress)
        assert ("changed" if change == "other bytes" else "ended after") in str(caught.value)
        assert server.objects == {}
        assert server.uploads == {}


@pytest.mark.parametrize("stores", [1, 2])
def test_a_file_that_cannot_be_read_again_is_no_fault_of_the_store(path, monkeypatch, stores):
    def unreadable(file, offset, view):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(FileAgain, "read", unreadable)
    with S3Server() as server:
        targets = [open_at(server, **OPTIONS), recording_store()][:stores]
        with pytest.raises(OSError, match="Input/output error"):
            fan_out(targets, "image", str(path))
        assert server.objects == {}
        assert server.uploads == {}


def test_several_stores_get_it_from_one_read_and_a_file_store_is_a_file(tmp_path, path, digest):
    with S3Server() as server:
        store, other = open_at(server, **OPTIONS), recording_store(has_put=False)
        results = fan_out([store, other], "image", str(path))
        assert [each.multihash for each in results] == [digest] * 2
        files = open_store("file", filesystem_store_datadir=tmp_path / "files")
        uri = files.add("image", str(path)).uri
        read = []
        plain = FileAgain.read
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FileAgain, "read", lambda self, *where: read.append(where[0]) or plain(self, *where))
            assert copy(files, uri, store, "copied").multihash == digest
        assert len({offset // PART for offset in read}) == 3
        assert hashlib.sha512(server.objects["copied"][0]).hexdigest() == digest


@pytest.fixture
def reads(monkeypatch):
    """Offsets and lengths of what is read from files a second time."""
    found, plain = [], FileAgain.read

    def read(file, offset, view):
        count = plain(file, offset, view)
        found.append((offset, count))
        return count

    monkeypatch.setattr(FileAgain, "read", read)
    return found


def test_bytes_of_which_nothing_is_computed_are_read_once_and_never_held(reads, path, digest, known, monkeypatch):
    told = []
    monkeypatch.setattr(FileAgain, "send", lambda *arguments: 0)
    with S3Server() as server:
        store = open_at(server, s3_store_checksum_algorithm="none", **OPTIONS)
        stored, most = added(store, str(path), digests=known)
        assert (stored.size, stored.multihash) == (SIZE, digest)
        assert hashlib.sha512(server.objects["image"][0]).hexdigest() == digest
        assert most == 0
        assert sorted(reads)[0] == (0, RANGE_PIECE)
        assert sum(count for _, count in reads) == SIZE
        with path.open("rb") as file:
            add(store, "again", file, digests=known, progress=lambda *numbers: told.append(numbers))
            assert file.tell() == SIZE
    assert told == [(0, SIZE), (PART, SIZE), (2 * PART, SIZE), (SIZE, SIZE)]


@pytest.mark.parametrize(("end", "said"), [(-1, "shrank"), (0, None), (1, "has more")])
def test_a_file_of_which_nothing_is_computed_keeps_its_length(tmp_path, path, known, end, said):
    changing = tmp_path / "changing"
    changing.write_bytes(path.read_bytes())

    def progress(done, total):
        if done == PART:
            os.truncate(changing, SIZE + end)

    with S3Server() as server:
        store = open_at(server, s3_store_checksum_algorithm="none", **OPTIONS)
        with contextlib.ExitStack() as stack:
            if said:
                stack.enter_context(pytest.raises(Invalid, match=said))
            add(store, "image", str(changing), digests=known, progress=progress)
        assert list(server.objects) == ([] if said else ["image"])
        assert server.uploads == {}


@pytest.mark.parametrize("at", [0, PART, SIZE])
def test_a_file_of_which_nothing_is_computed_is_not_stored_when_it_is_cancelled(path, known, at):
    class CancelledError(Exception):
        pass

    def progress(done, total):
        if done == at:
            raise CancelledError

    with S3Server() as server:
        store = open_at(server, s3_store_checksum_algorithm="none", **OPTIONS)
        with pytest.raises(CancelledError):
            add(store, "image", str(path), digests=known, progress=progress)
        assert server.objects == {}
        assert server.uploads == {}


@pytest.mark.parametrize("hashed", [False, True])
def test_a_part_whose_checksums_are_all_refused_is_sent_from_its_beginning(path, digest, known, hashed):
    def refuse(operation, request):
        if operation == "part" and {"content-md5", "x-amz-checksum-crc32"} & set(request.headers):
            return error(400, "InvalidRequest")
        return None

    with S3Server(instead=refuse) as server:
        store = open_at(server, transfer_timeout=5.0, **OPTIONS)
        add(store, "image", str(path), digests=None if hashed else known)
        assert hashlib.sha512(server.objects["image"][0]).hexdigest() == digest
        assert store.bucket.checksums.algorithm == "none"


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, StoreError), (None, IncompleteRead)])
def test_an_image_of_a_file_store_that_cannot_be_read_again_is_a_fault_of_that_store(
    tmp_path, path, known, monkeypatch, number, kind
):
    def broken(file, offset, view):
        if number is not None:
            raise OSError(number, os.strerror(number))
        return 0

    files = open_store("file", filesystem_store_datadir=tmp_path)
    uri = files.add("image", str(path)).uri
    monkeypatch.setattr(FileAgain, "read", broken)
    monkeypatch.setattr(FileAgain, "send", lambda file, socket, offset, count: broken(file, offset, None))
    with S3Server() as server:
        store = open_at(server, s3_store_checksum_algorithm="none", **OPTIONS)
        with pytest.raises(kind) as caught:
            copy(files, uri, store, "image", digests=known)
        assert type(caught.value) is kind
        assert str(caught.value).startswith(uri)
        assert server.objects == {}
        assert server.uploads == {}


@pytest.mark.parametrize("size", [SIZE, PART, PART + 1])
def test_a_file_of_which_nothing_is_computed_is_sent_and_not_read(tmp_path, path, monkeypatch, size):
    monkeypatch.undo()
    monkeypatch.setattr(FileAgain, "read", lambda *arguments: pytest.fail("was read"))
    data = path.read_bytes()[:size]
    files = open_store("file", filesystem_store_datadir=tmp_path)
    stored = files.add("image", data)
    known = Digests(stored.checksum, stored.multihash)
    with S3Server() as server:
        store = open_at(server, s3_store_checksum_algorithm="none", **OPTIONS)
        store.memory, most = MemoryBudget(1 << 40), []
        copy(files, stored.uri, store, "image", digests=known, progress=lambda *_: most.append(store.memory._total))
        assert hashlib.sha512(server.objects["image"][0]).digest() == hashlib.sha512(data).digest()
        assert server.operations.count("part") == (0 if size == PART else -(-size // PART))
        assert max(most) == 0 or size == PART


@pytest.mark.parametrize(
    ("at_once", "threads", "parts"),
    # None sends more than 1.3 times as much as the busiest call of those that send seven parts: 55, 32, 16 and 8 MiB.
    [
        (32, 1, [32, 23]),
        (16, 1, [16] * 3 + [7]),
        (7, 1, [8] * 6 + [7]),
        (32, 2, [32, 23]),
        (32, 4, [16] * 3 + [7]),
        (32, 7, [8] * 6 + [7]),
    ],
)
def test_several_parts_that_are_not_held_go_out_as_one(tmp_path, monkeypatch, at_once, threads, parts):
    monkeypatch.setattr(writer, "UNREAD_PART", at_once * MiB)
    assert sent_parts(tmp_path, 55, s3_store_thread_pools=threads) == parts


def test_parts_whose_size_an_operator_sets_have_that_size(tmp_path):
    assert sent_parts(tmp_path, 31, s3_store_thread_pools=1, s3_store_large_object_chunk_size=5) == [5] * 6 + [1]


def sent_parts(tmp_path, size, **options):
    """The MiB in each part of an image of so many of which nothing is computed, the largest first."""
    path, lengths = tmp_path / "image", []
    with path.open("wb") as file:
        file.truncate(size * MiB)
        file.seek(20 * MiB)
        file.write(b"data")

    def after(operation, request):
        if operation == "part":
            lengths.append(len(request.body) // MiB)

    with S3Server(after=after) as server:
        store = open_at(server, s3_store_checksum_algorithm="none", **options)
        add(store, "image", str(path), digests=Digests("0" * 32, "0" * 128))
        [(sent, _)] = server.objects.values()
        assert hashlib.sha512(sent).digest() == hashlib.sha512(path.read_bytes()).digest()
    return sorted(lengths, reverse=True)


def test_a_part_may_take_longer_than_a_transfer_without_progress(path, digest, known, monkeypatch):
    def send(file, socket, offset, count):
        time.sleep(0.1)
        return os.sendfile(socket, file._descriptor, offset, min(count, RANGE_PIECE))

    monkeypatch.setattr(FileAgain, "send", send)
    with S3Server() as server:
        store = open_at(server, s3_store_checksum_algorithm="none", transfer_timeout=0.6, **OPTIONS)
        add(store, "image", str(path), digests=known)
        assert hashlib.sha512(server.objects["image"][0]).hexdigest() == digest


@pytest.mark.parametrize("outcome", [OSError(errno.EINVAL, "no such call here"), 0])
def test_a_file_that_the_system_cannot_send_is_read(path, digest, known, monkeypatch, outcome):
    asked = []

    def send(file, socket, offset, count):
        asked.append(offset)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.undo()
    monkeypatch.setattr(FileAgain, "send", send)
    with S3Server() as server:
        store = open_at(server, s3_store_checksum_algorithm="none", **OPTIONS)
        _, most = added(store, str(path), digests=known)
        assert hashlib.sha512(server.objects["image"][0]).hexdigest() == digest
        assert most == 0
    assert {0, PART, 2 * PART} <= set(asked)


def test_what_is_encrypted_has_to_be_read():
    secure, plain = (
        open_store("s3", s3_store_host=f"{scheme}://localhost:1", s3_store_bucket="images", s3_store_access_key="a",
                   s3_store_secret_key="b", s3_store_checksum_algorithm="none")
        for scheme in ("https", "http")
    )  # fmt: skip
    assert not secure.open_writer("image", SIZE, None).sends_at_once
    assert plain.open_writer("image", SIZE, None).sends_at_once
    data = os.urandom(3 * MiB)

    def read(offset, view):
        view[:] = data[offset : offset + len(view)]
        return len(view)

    file = UnreadFile(RangeFile(read, 0, 3 * MiB, send=lambda *_: pytest.fail("was sent")))
    file.seek(MiB)
    # As a connection to a proxy does that is encrypted.
    assert hashlib.sha512(file.read().read()).digest() == hashlib.sha512(data[MiB:]).digest()
    assert not file.read()


def test_small_parts_and_sizes_that_are_not_known_are_held_as_ever(path, monkeypatch):
    monkeypatch.setattr(ranges.RangeCutter, "__init__", lambda *arguments: pytest.fail("not for these"))
    with S3Server() as server:
        monkeypatch.setattr(store_upload, "LARGE", 5 * MiB)
        open_at(server, s3_store_large_object_chunk_size=5).add("small parts", str(path))
        monkeypatch.setattr(store_upload, "LARGE", 4 * MiB)
        store = open_at(server, **OPTIONS)
        store.add("one part", os.urandom(MiB))
        with path.open("rb") as file:
            store.add("not known", iter(lambda: file.read(MiB), b""))
        assert {name: len(data) for name, (data, _) in server.objects.items()} == {
            "small parts": SIZE,
            "one part": MiB,
            "not known": SIZE,
        }


def test_a_range_of_a_file_is_a_file():
    data = os.urandom(3 * MiB)

    def read(offset, view):
        piece = data[offset : offset + min(len(view), 100_000)]
        view[: len(piece)] = piece
        return len(piece)

    file = RangeFile(read, 1000, 2 * MiB, checksum=zlib.crc32(data[1000 : 1000 + 2 * MiB]))
    assert len(file) == 2 * MiB
    assert file.seekable()
    assert file.readable()
    assert b"".join(map(bytes, file.pieces())) == data[1000 : 1000 + 2 * MiB]
    assert file.seek(-5, os.SEEK_END) == 2 * MiB - 5
    assert file.read(1) == data[1000 + 2 * MiB - 5 : 1000 + 2 * MiB]
    assert file.read() == b""
    file.seek(0)
    assert file.read() == data[1000 : 1000 + 2 * MiB]
    assert file.checksums == {file.checksum}
    short = RangeFile(read, 2 * MiB, 2 * MiB)
    with pytest.raises(Invalid, match="shrank"):
        short.read()
    assert isinstance(short.error, Invalid)

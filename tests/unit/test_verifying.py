# SPDX-License-Identifier: Apache-2.0
"""``get(..., verify=...)``: the bytes are those of a digest, or DigestMismatch comes before the last of them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import threading

import pytest
from recording import image_of, recording_store

from storelib import backend
from storelib.driver import Digest, Reader
from storelib.exceptions import DigestMismatch, Invalid, OperationNotSupported, StoreError, UnknownHashingAlgo
from storelib.registry import Registry
from storelib.testing.threads import started_threads
from storelib.transfer import Extent, KiB, MiB, copy

DATA = random.Random(7).randbytes(3 * MiB + 17)
SHA512 = Digest("sha512", hashlib.sha512(DATA).hexdigest())
MD5 = Digest("md5", hashlib.md5(DATA).hexdigest())
FLIPPED = DATA[:-1] + bytes([DATA[-1] ^ 1])
URI = "memory://recording/x"


class FakeReader(Reader):
    def __init__(self, data=DATA, digest=None, concurrency=1, extents=None):
        self.data = data
        self.size = len(data)
        self.digest = digest
        self.concurrency = concurrency
        self.part_size = 256 * KiB
        self.known = extents
        self.closed = 0

    def read_into(self, offset, view):
        piece = self.data[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def extents(self, offset, length):
        return self.known

    def fileno(self):
        return 0

    def close(self):
        self.closed += 1


def store_of(reader):
    store = recording_store()
    store.open_reader = lambda *args: reader
    return store


def opened(reader, verify, offset=0, length=None):
    return store_of(reader).get(URI, offset, length, verify=verify).data


WAYS = {
    "read": lambda stream: stream.read(),
    "small reads": lambda stream: b"".join(iter(lambda: stream.read(100_001), b"")),
    "readinto": lambda stream: b"".join(_read_into(stream)),
    "iterating": lambda stream: b"".join(stream),
    "readall": lambda stream: stream.readall(),
    # A reader that knows the size and never asks for the end of file is told, too.
    "exactly the size": lambda stream: stream.read(stream.size),
}


def _read_into(stream):
    buffer = bytearray(70_000)
    while count := stream.readinto(buffer):
        yield bytes(buffer[:count])


@pytest.mark.parametrize("concurrency", [1, 3], ids=["one stream", "ranges"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
class TestEveryWayOfReading:
    def test_the_right_bytes_are_read_as_without(self, way, concurrency):
        with opened(FakeReader(concurrency=concurrency), SHA512) as stream:
            assert way(stream) == DATA

    def test_a_flipped_bit_is_a_mismatch_at_the_end(self, way, concurrency):
        with opened(FakeReader(FLIPPED, concurrency=concurrency), SHA512) as stream:
            with pytest.raises(DigestMismatch) as caught:
                way(stream)
            assert caught.value.expected == SHA512.value
            assert caught.value.found == hashlib.sha512(FLIPPED).hexdigest()
            with pytest.raises(DigestMismatch):
                stream.read(1)


@pytest.mark.parametrize("algorithm", ["sha512", "md5", "sha3_256", "blake2b", "blake3"])
def test_every_algorithm_of_add_can_be_compared(algorithm):
    store = recording_store()
    added = store.add("x", DATA, hashing_algo=algorithm)
    expected = f"{algorithm}:{added.multihash}"
    assert store.get(added.uri, verify=expected).data.read() == DATA
    store.backend.images["x"].data = FLIPPED
    with pytest.raises(DigestMismatch):
        store.get(added.uri, verify=expected).data.read()


@pytest.mark.parametrize("write", [str.lower, str.upper])
def test_the_digits_may_be_of_either_case(write):
    assert opened(FakeReader(), f"SHA512:{write(SHA512.value)}").read() == DATA


def test_a_digest_of_the_callers_is_of_the_range_that_was_asked_for():
    piece = DATA[5 : 5 + MiB + 3]
    expected = f"sha256:{hashlib.sha256(piece).hexdigest()}"
    assert opened(FakeReader(), expected, 5, MiB + 3).read() == piece
    with pytest.raises(DigestMismatch):
        opened(FakeReader(), expected, 6, MiB + 3).read()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_empty_image_has_a_digest_too(way):
    assert way(opened(FakeReader(b""), f"md5:{hashlib.md5().hexdigest()}")) == b""
    with pytest.raises(DigestMismatch):
        way(opened(FakeReader(b""), SHA512))


def test_true_compares_with_what_the_driver_recorded():
    assert opened(FakeReader(digest=MD5), True).read() == DATA
    with pytest.raises(DigestMismatch):
        opened(FakeReader(FLIPPED, digest=MD5), True).read()


def test_true_where_nothing_was_recorded_is_not_supported_and_frees_the_reader():
    reader = FakeReader()
    with pytest.raises(OperationNotSupported, match="no digest was recorded"):
        opened(reader, True)
    assert reader.closed == 1


@pytest.mark.parametrize(("offset", "length"), [(1, None), (0, 5), (len(DATA), None)])
def test_true_is_for_whole_images(offset, length):
    with pytest.raises(Invalid, match="whole image"):
        opened(FakeReader(digest=MD5), True, offset, length)


def test_true_is_for_ranges_that_are_the_whole_image():
    assert opened(FakeReader(digest=MD5), True, 0, 2 * len(DATA)).read() == DATA


@pytest.mark.parametrize(
    "digest", [("md5", "zz"), ("md5", 5), ("md5",), "md5", ("md5", MD5.value, 1), ("md5", MD5.value + "0")]
)
def test_a_driver_that_recorded_nonsense_is_at_fault_itself(digest):
    with pytest.raises(StoreError) as caught:
        opened(FakeReader(digest=digest), True)
    assert not isinstance(caught.value, Invalid)


@pytest.mark.parametrize("off", [None, False])
def test_off_nothing_is_compared(off):
    with opened(FakeReader(FLIPPED, digest=MD5), off) as stream:
        assert stream.seekable()
        assert stream.read() == FLIPPED


@pytest.mark.parametrize(
    "verify",
    [
        "",
        "md5",
        "md5:",
        ":ab",
        "md5:ab",
        f"md5:{MD5.value}0",
        "md5:" + "g" * 32,
        1,
        0,
        b"md5",
        [*MD5],
        ("md5",),
    ],
)
def test_what_is_no_digest_is_invalid_before_the_back_end_is_asked(verify):
    store = recording_store()
    store.open_reader = lambda *args: pytest.fail("was asked")
    with pytest.raises(Invalid):
        store.get(URI, verify=verify)


@pytest.mark.parametrize("algorithm", ["crc7", "", "shake_128", "\n"])
def test_an_unknown_algorithm_is_named_before_the_back_end_is_asked(algorithm):
    with pytest.raises(UnknownHashingAlgo):
        recording_store().get(URI, verify=Digest(algorithm, "ab"))


def test_every_byte_must_come_in_order():
    with opened(FakeReader(), SHA512) as stream:
        assert not stream.seekable()
        stream.read(10)
        assert stream.seek(0, io.SEEK_CUR) == 10
        for offset, whence in ((0, io.SEEK_SET), (1, io.SEEK_CUR), (0, io.SEEK_END)):
            with pytest.raises(io.UnsupportedOperation):
                stream.seek(offset, whence)
        assert stream.read() == DATA[10:]


def test_no_descriptor_goes_around_the_comparison():
    stream = opened(FakeReader(), SHA512)
    with pytest.raises(io.UnsupportedOperation):
        stream.fileno()
    assert stream.whole_file() is None


def test_closing_early_compares_nothing_and_leaves_no_thread():
    with started_threads() as started, opened(FakeReader(FLIPPED, concurrency=3), SHA512) as stream:
        stream.read(2 * MiB)
    assert not [thread for thread in started if thread.is_alive()]


@pytest.mark.parametrize(
    ("size", "concurrency"), [(0, 1), (0, 3), (1, 1), (1, 3), (256 * KiB, 3), (MiB - 1, 1), (MiB, 1)]
)
@pytest.mark.parametrize("how", ["digest", "recorded", "digest of a range"])
def test_a_small_image_is_compared_without_starting_a_thread(monkeypatch, how, size, concurrency):
    def start(thread):
        raise AssertionError(f"{thread.name} was started")

    monkeypatch.setattr(threading.Thread, "start", start)
    image, offset = DATA[:size], 7 if how == "digest of a range" else 0
    for tail in (b"", b"!"):
        known = Digest("sha512", hashlib.sha512(image[offset:] + tail).hexdigest())
        reader = FakeReader(image, digest=known, concurrency=concurrency)
        with opened(reader, True if how == "recorded" else known, offset) as stream:
            if tail:
                with pytest.raises(DigestMismatch):
                    stream.read()
            else:
                assert stream.read() == image[offset:]
        assert reader.closed == 1


HOLES = [Extent(0, MiB, data=True), Extent(MiB, 2 * MiB, data=False), Extent(3 * MiB, 17, data=True)]
TAIL = [Extent(0, MiB, data=True), Extent(MiB, 2 * MiB + 17, data=False)]


@pytest.mark.parametrize(("known", "end"), [(HOLES, DATA[3 * MiB :]), (TAIL, bytes(17))], ids=["inside", "at the end"])
def test_a_copy_compares_holes_as_zeros_and_does_not_store_what_differs(known, end):
    image = DATA[:MiB] + bytes(2 * MiB) + end
    for expected, raised in ((image, contextlib.nullcontext()), (DATA, pytest.raises(DigestMismatch))):
        source, target = store_of(FakeReader(image, extents=known)), recording_store(sparse=True)
        with raised:
            copy(source, URI, target, "copy", verify=Digest("sha256", hashlib.sha256(expected).hexdigest()))
        assert image_of(target, "copy") == (image if expected == image else None)


def test_get_from_backend_compares_too():
    store = recording_store()
    uri = store.add("x", DATA).uri
    before = backend._default
    backend.use_registry(Registry([store]))
    try:
        assert backend.get_from_backend(uri, verify=SHA512).data.read() == DATA
        with pytest.raises(DigestMismatch):
            backend.get_from_backend(uri, verify=f"md5:{'0' * 32}").data.read()
    finally:
        backend.use_registry(before)


def test_what_was_read_and_not_hashed_yet_is_bounded():
    with opened(FakeReader(bytes(64 * MiB)), f"sha512:{hashlib.sha512(bytes(64 * MiB)).hexdigest()}") as stream:
        for _ in stream:
            assert stream._check._pool.held <= 4 * MiB

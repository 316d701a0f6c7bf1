# SPDX-License-Identifier: Apache-2.0
"""How large the parts of an upload are, and their checksums."""

import base64
import dataclasses
import hashlib
import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storelib.driver import Digests
from storelib.drivers.s3.bucket import Crc, PartChecksums, find_crc
from storelib.drivers.s3.reader import Verification
from storelib.drivers.s3.writer import LARGEST_IMAGE, MOST_PARTS, Body, part_size
from storelib.exceptions import IncompleteRead

MiB = 1024 * 1024
GiB = 1024 * MiB
sizes = st.integers(5, 5 * 1024).map(lambda mebibytes: mebibytes * MiB)


@given(smallest=sizes)
def test_parts_of_an_image_of_unknown_size_hold_the_largest(smallest):
    assert sum(part_size(number, None, smallest) for number in range(MOST_PARTS)) >= LARGEST_IMAGE


@given(smallest=sizes, size=st.integers(0, LARGEST_IMAGE))
def test_parts_of_an_image_of_known_size_hold_it(smallest, size):
    part = part_size(0, size, smallest)
    assert part * MOST_PARTS >= size
    assert part >= smallest
    assert {part_size(number, size, smallest) for number in (1, 999, 1000, 9999)} == {part}


@given(smallest=sizes, number=st.integers(0, MOST_PARTS - 2))
def test_parts_never_shrink(smallest, number):
    assert part_size(number, None, smallest) <= part_size(number + 1, None, smallest)


@given(smallest=sizes, number=st.integers(0, MOST_PARTS - 1), size=st.none() | st.integers(0, LARGEST_IMAGE))
def test_parts_are_what_the_server_and_the_engine_take(smallest, number, size):
    part = part_size(number, size, smallest)
    assert 5 * MiB <= part <= 5 * GiB
    assert part % 4096 == 0


def test_parts_stay_small_for_images_of_a_usual_size():
    assert {part_size(number, None, 8 * MiB) for number in range(1000)} == {8 * MiB}
    assert part_size(0, 78 * GiB, 8 * MiB) == 8 * MiB


def test_largest_parts_of_unknown_size_fit_in_memory_twice():
    assert part_size(MOST_PARTS - 1, None, 8 * MiB) <= 1.1 * GiB


def test_body_hands_out_views_of_all_bytes():
    data = hashlib.shake_128(b"data").digest(3 * MiB + 5)
    body = Body(memoryview(data))
    pieces = list(iter(lambda: body.read(16384), b""))
    assert all(isinstance(piece, memoryview) for piece in pieces)
    assert b"".join(pieces) == data
    assert len(pieces) < 20


# -- Checksums ------------------------------------------------------------------------------------------------


def slow_crc(width, polynomial):
    """The definition, bit by bit: reflected, all ones before and after."""
    ones = (1 << width) - 1

    def update(data, value=0):
        value ^= ones
        for byte in bytes(data):
            value ^= byte
            for _ in range(8):
                value = (value >> 1) ^ (polynomial if value & 1 else 0)
        return value ^ ones

    return update


CRCS = {
    "crc32": Crc("ChecksumCRC32", zlib.crc32, 0xEDB88320, 4),
    "crc32c": Crc("ChecksumCRC32C", slow_crc(32, 0x82F63B78), 0x82F63B78, 4),
    "crc64nvme": Crc("ChecksumCRC64NVME", slow_crc(64, 0x9A6C9329AC4BC9B5), 0x9A6C9329AC4BC9B5, 8),
}
#: Of the nine digits, from the catalogue of CRCs.
CHECKS = {"crc32": 0xCBF43926, "crc32c": 0xE3069283, "crc64nvme": 0xAE8B14860A799888}


@pytest.mark.parametrize("algorithm", CRCS)
def test_crc_is_the_one_of_that_name(algorithm):
    assert CRCS[algorithm].update(b"123456789", 0) == CHECKS[algorithm]


@pytest.mark.parametrize("algorithm", CRCS)
@given(first=st.binary(max_size=40), second=st.binary(max_size=40))
def test_crcs_of_two_runs_make_that_of_both(algorithm, first, second):
    crc = CRCS[algorithm]
    whole = crc.update(first + second, 0)
    assert crc.combine(crc.update(first, 0), crc.update(second, 0), len(second)) == whole


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
def test_digest_that_is_known_is_not_computed_again(algorithm):
    known = Digests("0a" * 16, "0b" * 20, algorithm)
    [value] = PartChecksums(algorithm).of_part(memoryview(b"data"), known).values()
    assert base64.b64decode(value) == (b"\x0a" * 16 if algorithm == "md5" else b"\x0b" * 20)


def test_digest_of_another_algorithm_is_no_help():
    [value] = PartChecksums("sha256").of_part(memoryview(b"data"), Digests(None, "0b" * 64, "sha512")).values()
    assert base64.b64decode(value) == hashlib.sha256(b"data").digest()


DATA = hashlib.shake_128(b"image").digest(1000)
CRC32 = find_crc("crc32")
STORED = CRC32.encode(zlib.crc32(DATA))


def verification(stored=STORED):
    return Verification(CRC32, stored, len(DATA), "the image")


@given(st.lists(st.integers(0, 1000), max_size=6), st.randoms())
def test_image_in_any_order_is_verified(cuts, random):
    edges = sorted({0, len(DATA), *cuts})
    runs = list(itertools.pairwise(edges))
    random.shuffle(runs)
    right, wrong = verification(), verification(CRC32.encode(7))
    for start, end in runs[:-1]:
        right.update(start, memoryview(DATA)[start:end])
        wrong.update(start, memoryview(DATA)[start:end])
    start, end = runs[-1]
    right.update(start, memoryview(DATA)[start:end])
    with pytest.raises(IncompleteRead, match="CRC32"):
        wrong.update(start, memoryview(DATA)[start:end])


def test_bytes_read_twice_are_not_taken_for_the_whole():
    half = verification(CRC32.encode(7))
    half.update(0, memoryview(DATA)[:500])
    half.update(0, memoryview(DATA)[:500])


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"ChecksumCRC32": "AAAAAA==-3", "ChecksumType": "COMPOSITE"},
        {"ChecksumCRC32": "AAAAAA==", "ChecksumType": "COMPOSITE"},
        {"ChecksumSHA256": "AAAA"},
    ],
)
def test_what_is_no_checksum_of_the_whole_is_not_used(answer):
    assert Verification.of_response(answer, 1, "the image") is None


def test_a_part_has_its_checksum_though_another_finds_meanwhile_that_the_server_ignores_it():
    checksums = PartChecksums("crc32")
    plain = checksums._crc

    def update(piece, value):
        # As ``compare`` does in another thread.
        checksums.algorithm, checksums._crc = "md5", None
        return plain.update(piece, value)

    checksums._crc = dataclasses.replace(plain, update=update)
    assert checksums.of_part(memoryview(b"data")) == PartChecksums("crc32").of_part(memoryview(b"data"))
    assert list(checksums.of_part(memoryview(b"data"))) == ["ContentMD5"]

# SPDX-License-Identifier: Apache-2.0
"""The digests of pieces are those of BEP 52, however the bytes come, and torrents those that libtorrent reads."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from typing import Any

import libtorrent
import pytest

from storelib.exceptions import Invalid
from storelib.preload import torrent
from storelib.preload.pieces import BLOCK, PIECE_LENGTH, PieceHasher, Pieces

KiB = 1024
SMALL = 64 * KiB
SIZES = [1, BLOCK - 1, BLOCK, BLOCK + 1, SMALL - 1, SMALL, SMALL + 1, 3 * SMALL, 5 * SMALL + 3 * BLOCK + 7, 17 * SMALL]


def data_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def pieces_of(chunks: Iterable[bytes], piece_length: int = SMALL) -> Pieces:
    hasher = PieceHasher(piece_length)
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.finish()


def libtorrent_reads(pieces: Pieces, **options: str) -> libtorrent.torrent_info:
    return libtorrent.torrent_info(torrent.torrent("image", pieces, **options))


@pytest.mark.parametrize("size", SIZES)
def test_digests_are_those_that_libtorrent_computes_itself(size, tmp_path):
    (tmp_path / "image").write_bytes(data_of(size))
    files = [libtorrent.create_file_entry("image", size)]
    made = libtorrent.create_torrent(files, SMALL, libtorrent.create_torrent.v2_only)
    libtorrent.set_piece_hashes(made, str(tmp_path))
    theirs = made.generate()

    pieces = pieces_of([data_of(size)])

    assert theirs[b"info"][b"file tree"][b"image"][b""][b"pieces root"] == pieces.root
    assert theirs[b"piece layers"] == ({pieces.root: pieces.layer} if size > SMALL else {})


def test_the_way_the_bytes_come_in_makes_no_difference():
    data = data_of(5 * SMALL + 777)
    whole = pieces_of([data])

    for step in (1000, BLOCK, BLOCK + 1, SMALL, 3 * SMALL + 5):
        assert pieces_of(data[at : at + step] for at in range(0, len(data), step)) == whole
    assert pieces_of([memoryview(data), b""]) == whole  # type: ignore[list-item]
    assert pieces_of([bytearray(data)]) == whole


@pytest.mark.parametrize("before", [0, 5, BLOCK, SMALL, SMALL + 5])
@pytest.mark.parametrize("zeros", [0, 7, BLOCK, SMALL, 4 * SMALL, 4 * SMALL + 9])
def test_a_hole_has_the_digests_of_its_zeros(before, zeros):
    hasher = PieceHasher(SMALL)
    hasher.update(data_of(before))
    hasher.zeros(zeros)
    hasher.update(b"end")

    assert hasher.finish() == pieces_of([data_of(before), bytes(zeros), b"end"])


def test_a_hole_of_a_tebibyte_takes_no_time():
    hasher = PieceHasher()
    hasher.zeros(1 << 40)

    pieces = hasher.finish()

    assert pieces.size == 1 << 40
    assert pieces.count == 1 << 20


@pytest.mark.parametrize("end", [b"", b"\0", bytes(BLOCK + 1), b"\0x"])
def test_pieces_of_zeros_are_known_by_their_digests(end):
    pieces = pieces_of([data_of(SMALL), bytes(2 * SMALL), b"x" + bytes(SMALL - 1), end])

    assert list(pieces.zeros()) == [1, 2, *([4] if end and not any(end) else [])]


@pytest.mark.parametrize("size", [9, BLOCK, SMALL])
def test_an_image_of_one_piece_may_be_zeros(size):
    assert list(pieces_of([bytes(size)]).zeros()) == [0]
    assert list(pieces_of([bytes(size - 1) + b"x"]).zeros()) == []


@pytest.mark.parametrize("size", SIZES)
def test_a_piece_fits_only_where_it_is_from(size):
    data = data_of(size)
    pieces = pieces_of([data])

    for number in range(pieces.count):
        piece = data[number * SMALL : (number + 1) * SMALL]
        assert pieces.length(number) == len(piece)
        assert pieces.fits(number, piece)
        assert not pieces.fits(number, piece[:-1])
        assert not pieces.fits(number, piece[:-1] + bytes([piece[-1] ^ 1]))
        assert not pieces.fits(number, piece + b"x")


@pytest.mark.parametrize(
    ("size", "layer", "piece_length"),
    [
        (1, b"", SMALL),
        (0, bytes(32), SMALL),
        (SMALL + 1, bytes(32), SMALL),
        (-1, b"", SMALL),
        (1, bytes(32), 3 * BLOCK),
        # Its digests would not be in the memory of any machine.
        (2**50 + 1, bytes(64), 2**50),
        (2**60, bytes(32), 2**60),
    ],
)
def test_digests_that_cannot_be_those_of_the_image_are_refused(size, layer, piece_length):
    with pytest.raises(Invalid):
        Pieces(size, layer, piece_length)


def test_a_piece_is_a_mebibyte():
    assert pieces_of([bytes(PIECE_LENGTH + 1)], PIECE_LENGTH) == Pieces(PIECE_LENGTH + 1, pieces_of_default())


def pieces_of_default() -> bytes:
    hasher = PieceHasher()
    hasher.update(bytes(PIECE_LENGTH + 1))
    return hasher.finish().layer


@pytest.mark.parametrize("size", SIZES)
def test_libtorrent_reads_our_torrents(size):
    pieces = pieces_of([data_of(size)])

    read = libtorrent_reads(pieces)

    # What pads the last piece counts as a file there.
    assert (read.name(), read.layout().file_size(0), read.piece_length()) == ("image", size, SMALL)
    assert read.priv()
    info: Any = torrent.decode(torrent.torrent("image", pieces))
    assert str(read.info_hashes().v2) == hashlib.sha256(torrent.encode(info[b"info"])).hexdigest()
    assert not read.info_hashes().has_v1()


def test_libtorrent_finds_the_authority_of_a_torrent():
    read = libtorrent_reads(pieces_of([b"x"]), authority="-----BEGIN CERTIFICATE-----")

    assert read.ssl_cert() in (b"-----BEGIN CERTIFICATE-----", "-----BEGIN CERTIFICATE-----")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("authority", [None, "a certificate\n"])
def test_a_torrent_says_what_it_was_made_of(size, authority):
    pieces = pieces_of([data_of(size)])

    assert torrent.read(torrent.torrent("image", pieces, authority)) == torrent.Description("image", pieces, authority)


def test_an_empty_image_has_no_torrent():
    assert pieces_of([]) == Pieces(0, b"", SMALL)
    with pytest.raises(Invalid, match="empty"):
        torrent.torrent("image", pieces_of([]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"d",
        b"i1e",
        b"le",
        b"d1:ai1e",
        b"dei",
        b"5:abc",
        b"d4:infoi1ee",
        b"l" * 5000,
        b"di1ei2ee",
        b"d1:ae",
        b"-1:",
    ],
)
def test_what_is_no_torrent_is_refused(data):
    with pytest.raises(Invalid):
        torrent.read(data)


def test_a_torrent_whose_digests_were_changed_is_refused():
    whole = torrent.torrent("image", pieces_of([data_of(3 * SMALL)]))

    with pytest.raises(Invalid, match="differ"):
        torrent.read(whole[:-10] + bytes([whole[-10] ^ 1]) + whole[-9:])


@pytest.mark.parametrize(
    "more",
    [{b"announce": b"http://192.0.2.1/"}, {b"url-list": [b"http://192.0.2.1/"]}, {b"nodes": [[b"192.0.2.1", 1]]}],
)
def test_a_torrent_that_looks_for_others_is_refused(more):
    found = torrent.decode(torrent.torrent("image", pieces_of([data_of(3 * SMALL)])))

    with pytest.raises(Invalid, match="more in the torrent"):
        torrent.read(torrent.encode({**found, **more}))


@pytest.mark.parametrize(("name", "value"), [(b"private", 0), (b"name", b"another"), (b"files", [])])
def test_a_torrent_that_is_not_private_or_of_more_files_is_refused(name, value):
    found = torrent.decode(torrent.torrent("image", pieces_of([data_of(3 * SMALL)])))

    with pytest.raises(Invalid, match="more in the torrent"):
        torrent.read(torrent.encode({**found, b"info": {**found[b"info"], name: value}}))


def test_the_encoding_is_that_of_bep_3():
    value = {b"b": [1, -2, b""], b"a": {b"x": b"yz"}}

    assert torrent.encode(value) == b"d1:ad1:x2:yze1:bli1ei-2e0:ee"
    assert torrent.decode(torrent.encode(value)) == value

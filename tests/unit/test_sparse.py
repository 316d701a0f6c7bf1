# SPDX-License-Identifier: Apache-2.0
"""Holes cost nothing: work is counted, not timed."""

from __future__ import annotations

import io
import threading

import pytest
from recording import RecordingWriter, recording_store

from storelib.cli import files
from storelib.driver import Committed, Digests, Reader
from storelib.transfer import Extent, KiB, MiB, fan_out
from storelib.transfer.cutting import PartCutter
from storelib.transfer.source import GRAIN

HUGE = 1 << 40


class HugeReader(Reader):
    """An image of HUGE bytes whose first and last four are data."""

    size = HUGE

    def __init__(self):
        self.read = 0

    def read_into(self, offset, view):
        self.read += len(view)
        view[:] = b"d" * len(view)
        return len(view)

    def extents(self, offset, length):
        return [Extent(0, 4, data=True), Extent(4, HUGE - 8, data=False), Extent(HUGE - 4, 4, data=True)]


@pytest.mark.parametrize("count", [1, 2], ids=["one store", "two stores"])
@pytest.mark.parametrize("window", [64 * KiB, 3 * MiB, 8 * MiB])
@pytest.mark.parametrize("begin", [0, 2, GRAIN])
@pytest.mark.parametrize("size", [False, True], ids=["unknown size", "known size"])
def test_what_follows_the_first_data_of_a_sparse_image_is_skipped_too(monkeypatch, count, window, begin, size):
    reader = HugeReader()
    origin = recording_store()
    origin.open_reader = lambda *arguments: reader
    stream = origin.get("memory://recording/x").data
    stream.seek(begin)
    targets = [recording_store(name=f"s{number}", sparse=True, part_size=lambda _: window) for number in range(count)]
    monkeypatch.setattr(RecordingWriter, "commit", lambda self, size, digests: Committed(self.store.location("x")))
    blocks = []
    block = PartCutter.block
    monkeypatch.setattr(PartCutter, "block", lambda upload, *let_go: blocks.append(upload) or block(upload, *let_go))
    added = fan_out(targets, "x", stream, HUGE - begin if size else None, digests=Digests(None, "0"))
    assert [image.size for image in added] == [HUGE - begin] * count
    # The windows of the first and the last bytes are filled, a mebibyte at a time; what lies between is left out.
    assert len(blocks) <= count * 2 * (4 + window // MiB)
    assert reader.read <= 4 * GRAIN
    for target in targets:
        assert sum(length for _, _, length in target.called("write")) <= 4 * GRAIN


class ScatteredReader(Reader):
    """64 KiB of data at the beginning of each 64 MiB; ``told`` cuts what is told of it."""

    size = 1 << 36
    concurrency = 4
    part_size = MiB

    def __init__(self, told=lambda extent: [extent]):
        self.lock = threading.Lock()
        self.told = told
        self.read = 0

    def read_into(self, offset, view):
        with self.lock:
            self.read += len(view)
        view[:] = b"d" * len(view)
        return len(view)

    def extents(self, offset, length):
        for start in range(0, self.size, 64 * MiB):
            for extent in (Extent(start, GRAIN, data=True), Extent(start + GRAIN, 64 * MiB - GRAIN, data=False)):
                yield from self.told(extent)


def in_pieces(length):
    """Each hole in pieces of ``length`` bytes."""

    def told(extent):
        if extent.data:
            return [extent]
        end = extent.offset + extent.length
        return [Extent(start, min(length, end - start), data=False) for start in range(extent.offset, end, length)]

    return told


def stream_of(reader):
    origin = recording_store()
    origin.open_reader = lambda *arguments: reader
    return origin.get("memory://recording/x").data


def test_what_is_read_ahead_ends_where_a_hole_begins(monkeypatch):
    reader = ScatteredReader()
    target = recording_store(name="target", sparse=True, part_size=lambda _: 4 * MiB)
    monkeypatch.setattr(RecordingWriter, "commit", lambda self, size, digests: Committed(self.store.location("x")))
    fan_out([target], "x", stream_of(reader), reader.size, digests=Digests(None, "0"))
    assert reader.read == reader.size // (64 * MiB) * GRAIN


@pytest.mark.parametrize("piece", [16 * KiB, 100_000])
def test_a_hole_that_is_told_of_in_pieces_is_skipped_as_a_whole(monkeypatch, piece):
    reader = ScatteredReader(in_pieces(piece))
    reader.size = 4 * 64 * MiB
    target = recording_store(name="target", sparse=True, part_size=lambda _: 4 * MiB)
    monkeypatch.setattr(RecordingWriter, "commit", lambda self, size, digests: Committed(self.store.location("x")))
    fan_out([target], "x", stream_of(reader), reader.size, digests=Digests(None, "0"))
    assert reader.read == 4 * GRAIN


def test_a_stream_whose_holes_are_known_can_be_read_through_all_the_same():
    reader = ScatteredReader()
    reader.size = 2 * 64 * MiB
    with stream_of(reader) as stream:
        stream.expect_hole(GRAIN)
        assert stream.read(3 * MiB) == b"d" * (3 * MiB)
        stream.expect_hole(None)
        assert stream.read(5 * MiB) == b"d" * (5 * MiB)
        assert stream.tell() == 8 * MiB


def test_the_command_neither_reads_nor_writes_holes(tmp_path):
    reader = HugeReader()
    reader.size = 1 << 38
    reader.extents = lambda offset, length: [
        Extent(0, 4, data=True),
        Extent(4, reader.size - 8, data=False),
        Extent(reader.size - 4, 4, data=True),
    ]
    path, seen = tmp_path / "image", []
    with stream_of(reader) as stream:
        files.save(stream, str(path), lambda done, total: seen.append(done), force=False)
    assert reader.read <= 2 * GRAIN
    assert seen[-1] == path.stat().st_size == reader.size
    with path.open("rb") as file:
        assert file.read(4) == b"dddd"
        file.seek(-4, 2)
        assert file.read() == b"dddd"
    assert path.stat().st_blocks * 512 <= 4 * GRAIN


def test_zeros_are_left_out_of_a_file_however_they_are_read(tmp_path):
    class Slow(io.RawIOBase):
        """Gives 16 KiB at a time."""

        def __init__(self, data):
            self.file = io.BytesIO(data)

        def readinto(self, view):
            return self.file.readinto(view[: 16 * KiB])

    data = b"begin" + bytes(8 * MiB) + b"middle" + bytes(8 * MiB - 1)
    path = tmp_path / "image"
    files.save(Slow(data), str(path), None, force=False)
    assert path.read_bytes() == data
    assert path.stat().st_blocks * 512 <= MiB

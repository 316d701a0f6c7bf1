# SPDX-License-Identifier: Apache-2.0
"""Holes cost nothing: work is counted, not timed."""

from __future__ import annotations

import pytest
from recording import RecordingWriter, recording_store

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
    monkeypatch.setattr(PartCutter, "block", lambda upload: blocks.append(upload) or block(upload))
    added = fan_out(targets, "x", stream, HUGE - begin if size else None, digests=Digests(None, "0"))
    assert [image.size for image in added] == [HUGE - begin] * count
    # The windows of the first and the last bytes are filled, a mebibyte at a time; what lies between is left out.
    assert len(blocks) <= count * 2 * (4 + window // MiB)
    assert reader.read <= 4 * GRAIN
    for target in targets:
        assert sum(length for _, _, length in target.called("write")) <= 4 * GRAIN

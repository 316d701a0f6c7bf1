# SPDX-License-Identifier: Apache-2.0
"""Digests beside what is read and sent: when their threads get what."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import zlib

import pytest
from recording import PART, eventually, recording_store

from storelib.transfer import digests
from storelib.transfer.buffers import FEW, Pool, nothing
from storelib.transfer.contract import MiB
from storelib.transfer.digests import Digesting
from storelib.transfer.memory import MemoryBudget
from storelib.transfer.monitor import Monitor
from storelib.transfer.source import GRAIN


class SlowHasher:
    """Begins when it is told to, and remembers how much it is given at once."""

    def __init__(self):
        self.begin = threading.Event()
        self.lengths = []
        self.hasher = hashlib.sha512()

    def update(self, view):
        self.begin.wait(60)
        self.lengths.append(len(view))
        self.hasher.update(view)

    def hexdigest(self):
        return self.hasher.hexdigest()


@pytest.fixture
def monitor():
    return Monitor(60)


@pytest.fixture
def pool(monitor):
    pool = Pool(monitor.changed, 64 * MiB, MemoryBudget(1 << 40))
    yield pool
    pool.close()


@pytest.fixture
def hasher(monkeypatch):
    hasher = SlowHasher()
    monkeypatch.setattr(digests, "new_hasher", lambda algorithm: hasher)
    return hasher


def test_what_follows_each_other_is_hashed_at_once_while_digests_are_behind(monitor, pool, hasher):
    digesting = Digesting("sha512", False, None, None, monitor)
    buffer = pool.take(16 * MiB, monitor, nothing)
    buffer.memory[:] = data = os.urandom(16 * MiB)
    for start in range(0, 16 * MiB, MiB):
        digesting.update(buffer, start, start + MiB)
    hasher.begin.set()
    assert digesting.finish().multihash == hashlib.sha512(data).hexdigest()
    # The first block waits for a second one, one more is queued, and the rest comes in runs.
    assert hasher.lengths == [2 * MiB, MiB, 8 * MiB, 5 * MiB]


def test_blocks_of_several_buffers_and_holes_are_hashed_in_their_order(monitor, pool, hasher):
    digesting = Digesting("sha512", False, None, None, monitor)
    data = os.urandom(6 * MiB)
    for start in range(0, len(data), 3 * MiB):
        buffer = pool.take(3 * MiB, monitor, nothing)
        buffer.memory[:] = data[start : start + 3 * MiB]
        for at in range(0, 3 * MiB, MiB):
            digesting.update(buffer, at, at + MiB)
        digesting.zeros(2 * MiB + 5)
        buffer.release()
    hasher.begin.set()
    hole = bytes(2 * MiB + 5)
    expected = hashlib.sha512(b"".join([data[: 3 * MiB], hole, data[3 * MiB :], hole]))
    assert digesting.finish().multihash == expected.hexdigest()
    # All memory is back.
    assert pool.held == 6 * MiB
    assert len({id(pool.take(3 * MiB, monitor, nothing)) for _ in range(2)}) == 2
    assert pool.held == 6 * MiB


def test_memory_that_is_needed_is_not_held_back(monitor, pool, hasher):
    """What waits for more to be hashed with it is hashed before anybody waits for its memory."""
    digesting = Digesting("sha512", False, None, None, monitor)
    buffers = [pool.take(32 * MiB, monitor, nothing) for _ in range(2)]
    for buffer in buffers:
        digesting.update(buffer, 0, MiB)
        buffer.release()
    hasher.begin.set()
    pool.take(32 * MiB, monitor, digesting.let_go)
    digesting.finish()
    assert sum(hasher.lengths) == 2 * MiB


def test_what_cannot_be_hashed_soon_is_not_read_yet(hasher):
    """It would fall out of the processor's cache. A transfer whose digests have nothing to do takes all that it may."""
    store = recording_store(concurrency=5, part_size=lambda number: 8 * MiB)
    data, read = os.urandom(MiB), []

    def source():
        for number in range(64):
            read.append(number)
            yield data

    adding = threading.Thread(target=store.add, args=("x", source(), 64 * MiB))
    adding.start()
    try:
        assert eventually(lambda: len(read) == FEW // MiB)
        time.sleep(0.1)
        assert len(read) == FEW // MiB < store.window // MiB
    finally:
        hasher.begin.set()
        adding.join()
    assert len(read) == 64


def test_a_verifier_gets_a_block_at_a_time():
    """However far it is behind: it may be slow, and what it is given is a copy."""
    begin, lengths = threading.Event(), []

    class Verifier:
        def update(self, chunk):
            begin.wait(60)
            lengths.append(len(chunk))

    def source():
        for _ in range(12):
            yield os.urandom(MiB)
        begin.set()

    recording_store(part_size=lambda number: 16 * MiB).add("x", source(), verifier=Verifier())
    assert lengths == [MiB] * 12


class TestChecksumsOfParts:
    """``Part.checksum``, computed as the bytes come in, for writers that send one."""

    @pytest.fixture
    def added(self):
        """``added(data, size)``: the parts that such a writer gets, with the CRC-32 of each as it should be."""

        def added(data, size=None, *, sparse=False, has_put=True, part=PART):
            parts = []
            store = recording_store(concurrency=1, part_size=lambda number: part)
            store.sparse, store.has_put = sparse, has_put
            store.checksum = zlib.crc32
            store.on_write = lambda part: parts.append((part.checksum, zlib.crc32(part.data)))
            store.add("x", iter([data[:100], data[100:]]), size)
            return parts

        return added

    def test_each_part_has_its_own(self, added):
        data = os.urandom(3 * PART + 5)
        parts = added(data, len(data))
        assert len(parts) == 4
        assert all(checksum == expected for checksum, expected in parts)

    def test_the_first_part_of_an_image_of_unknown_size_has_none(self, added):
        """It might have been the whole image, whose checksum is the writer's matter."""
        first, *others = added(os.urandom(3 * PART + 5))
        assert first[0] is None
        assert len(others) == 3
        assert all(checksum == expected for checksum, expected in others)

    def test_a_writer_that_takes_nothing_whole_gets_all(self, added):
        parts = added(os.urandom(PART + 5), has_put=False)
        assert len(parts) == 2
        assert all(checksum == expected for checksum, expected in parts)

    def test_parts_of_a_sparse_image_have_none_where_zeros_are_left_out(self, added):
        data = os.urandom(2 * GRAIN) + os.urandom(GRAIN) + bytes(GRAIN)
        whole, part = added(data, len(data), sparse=True, part=2 * GRAIN)
        assert whole[0] == whole[1]
        assert part[0] is None

    def test_it_is_not_asked_for_an_image_that_goes_out_whole(self):
        asked = []
        store = recording_store(concurrency=1)
        store.has_put = True
        store.checksum = lambda data, value: asked.append(len(data)) or 0
        store.add("small", os.urandom(PART))
        store.add("sized", iter([os.urandom(PART)]), PART)
        assert asked == []
        assert store.called("put") == [PART, PART]

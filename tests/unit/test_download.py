# SPDX-License-Identifier: Apache-2.0
"""ImageStream: exact lengths, retries, ranges ahead, and threads that end."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import os
import threading
import time
import weakref

import pytest
from recording import eventually, recording_store

from storelib import open_store
from storelib.driver import Reader
from storelib.exceptions import IncompleteRead, Invalid, RemoteServiceUnavailable, StoreError, TransferTimeout
from storelib.testing.threads import started_threads
from storelib.transfer import Digest, Extent, KiB, MiB, tasks, threads
from storelib.transfer.memory import MemoryBudget

DATA = os.urandom(3 * MiB + 17)


class FakeReader(Reader):
    """Delivers DATA, at most ``most`` bytes at a time; ``before`` runs first and may raise or answer a count."""

    def __init__(self, concurrency=1, part_size=256 * KiB, most=MiB, before=lambda offset: None):
        self.size = len(DATA)
        self.concurrency = concurrency
        self.part_size = part_size
        self.most = most
        self.before = before
        self.closed = 0
        self.lock = threading.Lock()
        self.in_flight = self.most_in_flight = 0

    def read_into(self, offset, view):
        with self.lock:
            self.in_flight += 1
            self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            response = self.before(offset)
            if response is not None:
                return response
            piece = DATA[offset : offset + min(len(view), self.most)]
            view[: len(piece)] = piece
            return len(piece)
        finally:
            with self.lock:
                self.in_flight -= 1

    def close(self):
        assert not self.in_flight
        self.closed += 1


def opened(reader, offset=0, length=None, **store_options):
    store = recording_store(**store_options)
    store.open_reader = lambda *args: reader
    return store.get("memory://recording/x", offset, length).data


PARALLEL = {"concurrency": 4, "part_size": 64 * KiB}


@pytest.mark.parametrize("kind", [{}, PARALLEL], ids=["one stream", "ranges"])
class TestBothWays:
    def test_iterating_gives_fresh_bytes_of_a_mebibyte(self, kind):
        chunks = list(opened(FakeReader(most=1000, **kind)))
        assert b"".join(chunks) == DATA
        assert [len(chunk) for chunk in chunks] == [MiB, MiB, MiB, 17]

    @pytest.mark.parametrize(
        ("offset", "length"),
        [(0, None), (0, 0), (5, 10), (MiB, None), (len(DATA), None), (len(DATA) + 9, 5), (7, len(DATA) * 2)],
    )
    def test_a_range_is_what_a_slice_would_give(self, kind, offset, length):
        stream = opened(FakeReader(**kind), offset, length)
        expected = DATA[offset:][:length]
        assert stream.size == len(expected)
        assert stream.read() == expected

    def test_seek_drops_what_was_read_ahead(self, kind):
        with opened(FakeReader(**kind)) as stream:
            assert stream.read(10) == DATA[:10]
            stream.seek(-7, io.SEEK_END)
            assert stream.read() == DATA[-7:]
            stream.seek(5)
            assert stream.read(100) == DATA[5:105]
            assert stream.tell() == 105

    def test_a_transient_error_is_tried_again_at_the_same_byte(self, kind):
        offsets = []

        def before(offset):
            offsets.append(offset)
            if offset == 128 * KiB and offsets.count(offset) == 1:
                raise RemoteServiceUnavailable("reset")

        assert opened(FakeReader(most=64 * KiB, before=before, **kind)).read() == DATA
        assert offsets.count(128 * KiB) == 2

    def test_a_cut_is_tried_again(self, kind):
        cuts = {128 * KiB}
        reader = FakeReader(most=64 * KiB, before=lambda o: 0 if o in cuts and not cuts.remove(o) else None, **kind)
        assert opened(reader).read() == DATA

    def test_a_cut_that_lasts_is_an_error_after_the_bytes_before_it(self, kind, monkeypatch):
        monkeypatch.setattr("storelib.transfer.retry.FIRST_WAIT", 0.001)
        reader = FakeReader(most=64 * KiB, before=lambda offset: 0 if offset == 128 * KiB else None, **kind)
        stream = opened(reader)
        assert stream.read(128 * KiB) == DATA[: 128 * KiB]
        with pytest.raises(IncompleteRead, match="cut at byte 131072"):
            stream.read(1)

    def test_a_reader_that_delivers_more_than_asked_is_an_error(self, kind):
        with pytest.raises(IncompleteRead, match="more"):
            opened(FakeReader(before=lambda offset: 10 * MiB, **kind)).read()

    def test_close_is_idempotent_and_closes_the_reader_once(self, kind):
        reader = FakeReader(**kind)
        stream = opened(reader)
        stream.read(1)
        stream.close()
        stream.close()
        assert reader.closed == 1
        with pytest.raises(ValueError, match="closed"):
            stream.read(1)

    def test_a_dropped_stream_ends_its_threads_and_closes_the_reader(self, kind):
        before = set(threading.enumerate())
        reader = FakeReader(**kind)
        stream = opened(reader)
        stream.read(1)
        del stream
        gc.collect()
        assert eventually(lambda: reader.closed == 1 and set(threading.enumerate()) <= before)


def test_a_reader_is_not_closed_under_a_read_in_another_thread():
    reading, go_on, errors = threading.Event(), threading.Event(), []

    def before(offset):
        reading.set()
        go_on.wait(60)

    reader = FakeReader(before=before)
    stream = opened(reader)

    def read():
        try:
            stream.read()
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    reading.wait(60)
    stream.close()
    assert not reader.closed
    go_on.set()
    thread.join(60)
    assert reader.closed == 1
    assert errors == ["read of a closed image stream"]


def test_bytes_of_a_file_are_never_those_of_another_that_was_opened_since(tmp_path, monkeypatch):
    """Once closed, a descriptor is that of whatever is opened next."""
    store = open_store("file", filesystem_store_datadir=str(tmp_path))
    stream = store.get(store.add("mine", b"mine").uri).data
    store.add("foreign", b"not!")
    others, preadv = [], os.preadv

    def late(*arguments):
        thread = threading.Thread(target=stream.close)
        thread.start()
        thread.join(60)
        others.append((tmp_path / "foreign").open("rb"))
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", late)
    buffer = bytearray(4)
    assert stream.readinto(buffer) == 4
    assert buffer == b"mine"
    others[0].close()


def test_a_read_waits_for_nothing_more_once_another_thread_has_closed_the_stream():
    reading, go_on, errors = threading.Event(), threading.Event(), []

    def before(offset):
        reading.set()
        go_on.wait(60)

    stream = opened(FakeReader(before=before, **PARALLEL))

    def read():
        try:
            stream.read()
        except (TransferTimeout, ValueError) as error:
            errors.append(error)

    reader, closer = threading.Thread(target=read), threading.Thread(target=stream.close)
    reader.start()
    assert eventually(lambda: reading.is_set() and stream._ahead is not None)
    closer.start()
    reader.join(10)
    assert errors
    go_on.set()
    closer.join(60)


def test_two_threads_that_close_at_once_close_the_reader_once():
    closing, go_on = threading.Event(), threading.Event()

    class Slow(FakeReader):
        def close(self):
            closing.set()
            go_on.wait(60)
            super().close()

    reader = Slow()
    stream = opened(reader)
    thread = threading.Thread(target=stream.close)
    thread.start()
    closing.wait(60)
    stream.close()
    go_on.set()
    thread.join(60)
    assert reader.closed == 1


def happens_in_a_forked_child(act) -> bool:
    """Whether ``act()`` is true there."""
    child = os.fork()
    if not child:
        status = 1
        try:
            status = 0 if act() else 1
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def is_refused(act) -> bool:
    with contextlib.suppress(StoreError):
        act()
        return False
    return True


@pytest.mark.parametrize("options", [{}, PARALLEL], ids=["one stream", "ranges"])
def test_a_forked_child_is_told_at_once_and_leaves_the_reader_alone(options):
    reader = FakeReader(**options)
    stream = opened(reader)
    stream.read(10)

    def refused_and_closed():
        refused = is_refused(stream.read) and is_refused(stream.readall)
        stream.close()
        return refused and not reader.closed

    assert happens_in_a_forked_child(refused_and_closed)
    assert stream.read() == DATA[10:]
    stream.close()
    assert reader.closed == 1


def test_a_forked_child_reads_on_with_a_reader_that_is_inheritable():
    reader = FakeReader()
    reader.inheritable = True
    stream = opened(reader)
    stream.read(10)

    def read_and_closed():
        read = stream.read() == DATA[10:]
        stream.close()
        return read and reader.closed == 1

    # As if a thread of the parent were reading.
    with stream._feed.in_use._lock:
        assert happens_in_a_forked_child(read_and_closed)


def test_a_forked_child_is_told_that_a_list_is_its_parents():
    store = recording_store()
    for image_id in "abc":
        store.add(image_id, b"x")
    listing = store.list_images()
    found = [next(listing)]
    assert happens_in_a_forked_child(lambda: is_refused(lambda: next(listing)))
    assert [info.image_id for info in [*found, *listing]] == ["a", "b", "c"]


def test_ranges_are_in_flight_side_by_side():
    reader = FakeReader(before=lambda offset: time.sleep(0.01), **PARALLEL)
    opened(reader).read()
    assert reader.most_in_flight == 4


def test_a_stream_whose_reader_pauses_holds_no_thread(monkeypatch):
    monkeypatch.setattr(threads, "_IDLE", 0.01)
    stream = opened(FakeReader(**PARALLEL))
    begin = stream.read(10)
    assert eventually(lambda: not [each for each in threading.enumerate() if each.name == "storelib-range"])
    assert begin + stream.read() == DATA


def test_one_stream_needs_no_thread():
    with started_threads() as started:
        stream = opened(FakeReader())
        stream.read(10)
    assert not started


@pytest.mark.parametrize(("window", "most"), [(48, 3), (128, 8)])
def test_ranges_ahead_are_as_many_as_the_window_of_the_store_holds(window, most):
    asked = []
    reader = FakeReader(concurrency=64, part_size=16 * MiB, before=asked.append)
    reader.size = 1024 * MiB
    stream = opened(reader, window=window * MiB)
    stream.readinto(bytearray(1))
    assert eventually(lambda: len(set(asked)) >= most, 20)
    time.sleep(0.1)
    assert len({offset // (16 * MiB) for offset in asked}) <= most
    stream.close()


def test_a_range_that_never_arrives_is_a_timeout_and_its_thread_is_left_behind():
    release = threading.Event()
    reader = FakeReader(before=lambda offset: release.wait(20) and None, **PARALLEL)
    stream = opened(reader, timeout=0.2)
    try:
        with pytest.raises(TransferTimeout):
            stream.read(1)
        stream.close()
        assert reader.closed == 0
    finally:
        release.set()
    assert eventually(lambda: reader.closed == 1)


def test_extents_are_counted_from_the_start_of_the_range():
    reader = FakeReader()
    reader.extents = lambda offset, length: [Extent(offset, 10, True), Extent(offset + 10, length - 10, False)]
    assert list(opened(reader, 100, 50).extents()) == [Extent(0, 10, True), Extent(10, 40, False)]


def failing_extents(reader, times):
    """Two extents of ten bytes each time, then a transient error, ``times`` over; then the rest."""
    asked = []

    def extents(offset, length):
        asked.append((offset, length))
        for start in range(offset, offset + length, 10):
            if len(asked) <= times and start == offset + 20:
                raise RemoteServiceUnavailable("for a moment")
            yield Extent(start, 10, data=False)

    reader.extents = extents
    return asked


def test_extents_are_asked_for_anew_behind_the_last_one_after_a_transient_error(monkeypatch):
    monkeypatch.setattr("storelib.transfer.retry.FIRST_WAIT", 0.001)
    reader = FakeReader()
    asked = failing_extents(reader, 2)
    stream = opened(reader, 100, 60)
    assert list(stream.extents()) == [Extent(start, 10, data=False) for start in range(0, 60, 10)]
    assert asked == [(100, 60), (120, 40), (140, 20)]


def test_extents_that_fail_again_and_again_are_an_error(monkeypatch):
    monkeypatch.setattr("storelib.transfer.retry.FIRST_WAIT", 0.001)
    reader, asked = FakeReader(), []

    def extents(offset, length):
        asked.append(offset)
        yield from ()
        raise RemoteServiceUnavailable("for ever")

    reader.extents = extents
    with pytest.raises(RemoteServiceUnavailable):
        list(opened(reader).extents())
    assert asked == [0] * 5


def test_without_extents_all_is_data():
    assert list(opened(FakeReader(), 0, 50).extents()) == [Extent(0, 50, True)]
    assert list(opened(FakeReader(), 0, 0).extents()) == []


def test_only_local_files_have_a_descriptor():
    with pytest.raises(io.UnsupportedOperation):
        opened(FakeReader()).fileno()


@pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1), (1.5, None), ("0", None), (True, None)])
def test_a_range_that_is_none_is_invalid(offset, length):
    store = recording_store()
    uri = store.add("x", b"data").uri
    with pytest.raises(Invalid):
        store.get(uri, offset, length)


@pytest.mark.parametrize("name", ["storelib-range", "storelib-digest"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("can't start new thread")])
def test_what_comes_before_a_thread_starts_leaves_no_other_behind(monkeypatch, name, error):
    start, started = threading.Thread.start, []

    def interrupted(thread):
        # The second of the ranges, and the only one of the digest.
        if thread.name == name and (started or name == "storelib-digest"):
            raise error
        started.append(thread)
        start(thread)

    reader = FakeReader(**PARALLEL)
    stream = opened(reader)
    stream.verify(Digest("sha256", hashlib.sha256(DATA).hexdigest()))
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises((KeyboardInterrupt, RuntimeError)) as caught:
        stream.read()
    assert caught.type is (error if isinstance(error, type) else type(error))
    stream.close()
    assert started
    assert not [thread for thread in started if thread.is_alive()]
    assert reader.closed == 1


def refusing_every(monkeypatch, nth):
    """Starts no storelib-range thread whose number is a multiple of ``nth``; none is kept."""
    start, asked = threading.Thread.start, []

    def sometimes(thread):
        if thread.name == "storelib-range":
            asked.append(thread)
            if len(asked) % nth == 0:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threads, "_IDLE", 0.0)
    monkeypatch.setattr(threading.Thread, "start", sometimes)


def test_after_an_error_between_two_ranges_not_a_byte_is_left_out(monkeypatch):
    refusing_every(monkeypatch, 3)
    stream, found, failed = opened(FakeReader(**PARALLEL)), bytearray(), 0
    memory = bytearray(100_000)
    while len(found) < len(DATA):
        try:
            found += memory[: stream.readinto(memory)]
        except RuntimeError:
            failed += 1
        # Threads that have nothing to do end meanwhile.
        time.sleep(0.001)
    stream.close()
    assert failed
    assert found == DATA


@pytest.mark.parametrize("kind", [{}, PARALLEL], ids=["one stream", "ranges"])
def test_a_read_that_failed_reads_the_same_bytes_when_it_is_made_again(kind):
    broken = {MiB}

    def before(offset):
        if offset in broken:
            broken.clear()
            raise LookupError("once")

    stream = opened(FakeReader(most=64 * KiB, before=before, **kind))
    assert stream.read(10) == DATA[:10]
    stream.seek(0)
    with pytest.raises(LookupError):
        stream.read()
    assert stream.tell() == 0
    assert stream.read() == DATA


def test_a_compared_stream_of_which_bytes_were_lost_never_ends_well():
    broken = {MiB}

    def before(offset):
        if offset in broken:
            broken.clear()
            raise LookupError("once")

    stream = opened(FakeReader(most=64 * KiB, before=before))
    stream.verify(Digest("sha256", hashlib.sha256(DATA).hexdigest()))
    for _ in range(2):
        with pytest.raises(LookupError, match="once"):
            stream.read()


def test_a_buffer_that_is_kept_for_other_streams_is_no_longer_this_ones(monkeypatch):
    """Not even where an interruption comes just then: bytes of one image would be read as those of another."""

    def interrupted(self, memory):
        kept(self, memory)
        raise KeyboardInterrupt

    def read_into(offset, view):
        assert all(memory is not view.obj for memory in stream._feed.memory._scratch)
        return plain(offset, view)

    reader, kept = FakeReader(), MemoryBudget.keep_scratch
    plain, reader.read_into = reader.read_into, read_into
    stream = opened(reader)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryBudget, "keep_scratch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream.read()
    assert stream.read() == DATA


def test_a_stream_that_two_threads_read_leaves_nothing_that_is_no_buffer():
    """Which is not allowed, but must harm no other stream of the process."""

    def before(offset):
        # The other thread comes between the reading and the end.
        if not nested:
            nested.append(True)
            stream.seek(0)
            stream.read()

    nested = []
    stream = opened(FakeReader(before=before))
    budget = stream._feed.memory
    with contextlib.suppress(IncompleteRead):
        stream.read()
    kept = list(budget._scratch)
    assert all(isinstance(memory, bytearray) for memory in kept)
    assert len({id(memory) for memory in kept}) == len(kept)


def test_a_position_is_a_whole_number():
    stream = opened(FakeReader())
    with pytest.raises(TypeError):
        stream.seek(1.5)
    assert stream.read(3) == DATA[:3]


class Cycle:
    """Refers to itself, so that only the garbage collector finds that it was dropped."""

    def __init__(self, held):
        self.held, self.itself = held, self


def test_a_stream_is_collected_while_this_thread_starts_another(monkeypatch):
    """The collector comes whenever something is made, under the lock of the threads as well."""
    pool, go_on = threads.ThreadPool("of these two"), threading.Event()
    monkeypatch.setattr(tasks, "pool_of", lambda name: pool)
    # Its threads are busy with what it reads ahead, so that they do not serve the next one.
    reader = FakeReader(before=lambda offset: None if not offset or go_on.wait(60) else 0, **PARALLEL)
    stream = opened(reader)
    stream.read(1)
    make, dropped = threads._Worker.__init__, [Cycle(stream)]
    del stream

    def collecting(*arguments):
        go_on.set()
        dropped.clear()
        gc.collect()
        make(*arguments)

    monkeypatch.setattr(threads._Worker, "__init__", collecting)
    assert opened(FakeReader(**PARALLEL)).read() == DATA
    assert not dropped
    assert eventually(lambda: reader.closed == 1)


@pytest.mark.parametrize("fails", [False, True])
def test_a_closed_stream_is_freed_without_the_collector(fails):
    def before(offset):
        if fails and offset >= MiB:
            raise LookupError("broken")

    reader = FakeReader(before=before, **PARALLEL)
    stream = opened(reader)
    gc.disable()
    try:
        with contextlib.suppress(LookupError):
            stream.read(None if fails else 1)
        stream.close()
        freed = weakref.ref(reader)
        del reader, stream
        assert eventually(lambda: freed() is None)
    finally:
        gc.enable()

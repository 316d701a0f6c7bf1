# SPDX-License-Identifier: Apache-2.0
"""The engine's promises to a Writer and to the caller of add."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import linecache
import os
import sys
import threading
import time
import weakref

import pytest
from recording import PART, RecordingWriter, eventually, image_of, recording_store

from storelib.exceptions import (
    Duplicate,
    Invalid,
    RemoteServiceUnavailable,
    StorageFull,
    StoreError,
    TransferTimeout,
    UnknownHashingAlgo,
)
from storelib.registry import open_store
from storelib.transfer import MiB, fan_out
from storelib.transfer.cutting import PartCutter
from storelib.transfer.memory import MemoryBudget
from storelib.transfer.tasks import TaskQueue
from storelib.transfer.threads import ThreadPool, pool_of


def pattern(length: int) -> bytes:
    """Bytes without zeros that differ from one place to the next."""
    return bytes(1 + (i * 7 + i // 251) % 255 for i in range(length))


def test_parts_are_cut_at_the_part_size_and_numbered_from_zero():
    store = recording_store(concurrency=1)
    data = pattern(2 * PART + 5)
    store.add("x", iter([data]))
    assert store.called("write") == [(0, 0, PART), (1, PART, PART), (2, 2 * PART, 5)]


def test_calls_come_in_the_order_reserve_write_commit():
    store = recording_store(concurrency=1)
    store.add("x", pattern(PART + 1))
    assert [name for name, _ in store.calls] == ["reserve", "write", "write", "commit"]


def test_part_sizes_may_grow_from_part_to_part():
    store = recording_store(concurrency=1, part_size=lambda number: PART * (1 + number))
    store.add("x", iter([pattern(4 * PART)]))
    assert store.called("write") == [(0, 0, PART), (1, PART, 2 * PART), (2, 3 * PART, PART)]


def test_part_sizes_may_grow_after_the_first_part_that_might_have_been_put():
    store = recording_store(concurrency=1, has_put=True, part_size=lambda number: PART * (1 + number))
    data = pattern(4 * PART)
    store.add("x", iter([data]))
    assert store.called("write") == [(0, 0, PART), (1, PART, 2 * PART), (2, 3 * PART, PART)]
    assert image_of(store, "x") == data


@pytest.mark.parametrize("length", [0, 1, PART - 1, PART])
@pytest.mark.parametrize("known", [True, False])
def test_an_image_that_fits_one_part_goes_out_with_put_and_nothing_else(length, known):
    store = recording_store(has_put=True)
    data = pattern(length)
    store.add("x", iter([data]), length if known else None)
    assert store.calls == [("put", length)]
    assert image_of(store, "x") == data


@pytest.mark.parametrize("known", [True, False])
def test_an_image_of_one_byte_more_than_a_part_is_not_put(known):
    store = recording_store(has_put=True)
    data = pattern(PART + 1)
    store.add("x", iter([data]), len(data) if known else None)
    assert not store.called("put")
    assert image_of(store, "x") == data


def test_a_sparse_image_that_fits_one_part_goes_out_with_put_too(tmp_path):
    store = recording_store(has_put=True, sparse=True)
    path = tmp_path / "hole"
    with open(path, "wb") as file:
        file.truncate(PART)
    store.add("x", path)
    assert store.calls == [("put", PART)]


def test_reserve_gets_the_size_when_it_is_known():
    store = recording_store()
    store.add("x", pattern(3 * PART))
    assert store.called("reserve") == [3 * PART]


def test_reserve_is_asked_again_only_when_the_image_outgrows_the_answer():
    store = recording_store(room=lambda end: end + PART)
    store.add("x", iter([pattern(5 * PART)]))
    assert store.called("reserve") == [PART, 3 * PART, 5 * PART]


def test_no_more_writes_are_in_flight_than_the_writer_allows():
    store = recording_store(concurrency=3, on_write=lambda part: threading.Event().wait(0.01))
    store.add("x", pattern(20 * PART))
    assert store.most_in_flight == 3


def test_zero_runs_of_64_kib_are_not_written_by_a_sparse_writer():
    store = recording_store(sparse=True, concurrency=1, part_size=lambda number: 4 * PART)
    data = pattern(PART) + bytes(2 * PART) + pattern(PART + 3)
    result = store.add("x", iter([data]))
    assert store.called("write") == [(0, 0, PART), (1, 3 * PART, PART), (2, 4 * PART, 3)]
    assert image_of(store, "x") == data
    assert result.multihash == hashlib.sha512(data).hexdigest()


def test_holes_of_a_source_file_are_hashed_as_zeros_and_not_written(tmp_path):
    store = recording_store(sparse=True, concurrency=1)
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.write(b"start")
        file.seek(40 * MiB)
        file.write(b"end")
    result = store.add("x", path)
    assert result.checksum == hashlib.md5(path.read_bytes()).hexdigest()
    assert sum(length for _, _, length in store.called("write")) < MiB


@pytest.mark.parametrize("length", [PART - 1, PART + 1])
@pytest.mark.parametrize("has_put", [True, False])
def test_a_wrong_declared_size_is_invalid_and_leaves_nothing(length, has_put):
    store = recording_store(has_put=has_put)
    with pytest.raises(Invalid, match=f"declared size is {PART} bytes"):
        store.add("x", iter([pattern(length)]), PART)
    assert image_of(store, "x") is None
    assert not store.backend.uploads


def test_declared_size_zero_is_enforced():
    with pytest.raises(Invalid, match="declared size is 0 bytes"):
        recording_store().add("x", iter([b"x"]), 0)


@pytest.mark.parametrize("size", [-1, 1.5, "7", True])
def test_a_size_that_is_none_is_invalid_before_the_source_is_touched(size):
    touched = []
    with pytest.raises(Invalid, match="size"):
        recording_store().add("x", (touched.append(1) or b"" for _ in "a"), size)
    assert not touched


@pytest.mark.parametrize("error", [KeyError("mine"), OSError(13, "mine"), KeyboardInterrupt(), SystemExit(3)])
def test_what_the_source_raises_passes_through_and_the_partial_image_is_removed(error):
    store = recording_store()

    def source():
        yield pattern(3 * PART)
        raise error

    with pytest.raises(type(error)) as caught:
        store.add("x", source())
    assert caught.value is error
    assert not store.backend.uploads
    assert store.calls[-1] == ("abort", None)


def test_what_progress_raises_cancels():
    store = recording_store()

    def progress(done, total):
        if done:
            raise InterruptedError("enough")

    with pytest.raises(InterruptedError):
        store.add("x", iter([pattern(3 * PART)]), progress=progress)
    assert image_of(store, "x") is None


def test_progress_runs_in_the_callers_thread_and_ends_at_the_size():
    seen = []
    store = recording_store()
    data = pattern(3 * MiB)
    store.add("x", data, progress=lambda done, total: seen.append((done, total, threading.current_thread())))
    assert [done for done, _, _ in seen] == [0, PART, *range(2 * PART, 3 * MiB + 1, PART)]
    assert {(total, thread) for _, total, thread in seen} == {(len(data), threading.current_thread())}


def test_a_transient_error_is_tried_again():
    failures = [RemoteServiceUnavailable("busy"), RemoteServiceUnavailable("busy")]

    def fail(part):
        if failures:
            raise failures.pop()

    store = recording_store(on_write=fail)
    data = pattern(3 * PART)
    store.add("x", data)
    assert image_of(store, "x") == data


def test_a_transient_error_is_not_tried_again_by_a_writer_of_one_stream():
    calls = []

    def fail(part):
        calls.append(part.number)
        raise RemoteServiceUnavailable("cut")

    store = recording_store(on_write=fail, retryable=False)
    with pytest.raises(RemoteServiceUnavailable):
        store.add("x", pattern(PART))
    assert calls == [0]


def test_a_lasting_error_is_raised_at_once():
    calls = []

    def fail(part):
        calls.append(part.number)
        raise StorageFull("full")

    with pytest.raises(StorageFull):
        recording_store(on_write=fail).add("x", pattern(PART))
    assert calls == [0]


def test_a_commit_whose_answer_was_lost_is_repeated_and_is_no_duplicate():
    store = recording_store()
    lost = [RemoteServiceUnavailable("no answer")]
    writers = []
    original = store.open_writer

    def open_writer(*args):
        writer = original(*args)
        commit = writer.commit

        def commit_and_lose_the_answer(size, digests):
            committed = commit(size, digests)
            if lost:
                raise lost.pop()
            return committed

        writer.commit = commit_and_lose_the_answer
        writers.append(writer)
        return writer

    store.open_writer = open_writer
    store.add("x", b"data")
    assert image_of(store, "x") == b"data"


def test_native_errors_are_mapped_in_one_place():
    store = recording_store(on_write=lambda part: {}["no such key"])
    store.map_error = lambda error, subject: StoreError(f"{subject}: {type(error).__name__}")
    with pytest.raises(StoreError, match="image 'x' in store recording: KeyError"):
        store.add("x", pattern(PART))


def test_duplicate_is_raised_before_the_source_is_read():
    store = recording_store()
    store.add("x", b"first")
    read = []
    with pytest.raises(Duplicate):
        store.add("x", (read.append(1) or b"second" for _ in "a"))
    assert not read
    assert image_of(store, "x") == b"first"


@pytest.mark.parametrize("algorithm", ["shake_128", "no-such", "", None, "SHAKE_256"])
def test_an_unusable_algorithm_is_refused_before_anything_is_touched(algorithm):
    store = recording_store()
    with pytest.raises(UnknownHashingAlgo, match="sha512"):
        store.add("x", b"data", hashing_algo=algorithm)
    assert store.calls == []


@pytest.mark.parametrize("algorithm", ["sha256", "SHA256", "sha1", "md5", "blake2b", "sha3_256"])
def test_the_multihash_is_that_of_the_algorithm(algorithm):
    data = os.urandom(3 * MiB + 1)
    result = recording_store().add("x", data, hashing_algo=algorithm)
    assert result.multihash == hashlib.new(algorithm, data).hexdigest()
    assert result.checksum == hashlib.md5(data).hexdigest()


def test_md5_can_be_switched_off():
    result = open_store("memory", md5_checksum=False).add("x", b"data")
    assert result.checksum is None
    assert result.multihash == hashlib.sha512(b"data").hexdigest()


def test_a_verifier_gets_every_byte_in_order_and_may_keep_what_it_gets():
    class Verifier:
        def __init__(self):
            self.chunks = []

        def update(self, chunk):
            self.chunks.append(chunk)

    verifier = Verifier()
    data = os.urandom(5 * MiB + 3)
    recording_store().add("x", data, verifier=verifier)
    assert b"".join(verifier.chunks) == data


def test_what_a_verifier_raises_passes_through_and_nothing_is_stored():
    class Verifier:
        def update(self, chunk):
            raise ArithmeticError("bad signature")

    store = recording_store()
    with pytest.raises(ArithmeticError):
        store.add("x", os.urandom(5 * MiB), verifier=Verifier())
    assert image_of(store, "x") is None


def test_the_source_runs_ahead_of_a_slow_back_end_by_the_memory_budget_at_most():
    written, ahead = [0], []

    def on_write(part):
        threading.Event().wait(0.002)
        written[0] += len(part.data)

    def source():
        for index in range(100):
            ahead.append(index * MiB - written[0])
            yield bytes(MiB)

    recording_store(on_write=on_write, part_size=lambda number: MiB).add("x", source())
    assert max(ahead) <= 14 * MiB


@pytest.mark.parametrize(("window", "most"), [(2, 2), (6, 6), (64, 16)])
def test_parts_in_flight_fit_into_the_window_of_the_store(window, most):
    """Two parts at least, whatever the window, and never more than the back end takes at once."""
    in_flight, seen, lock = [0], [], threading.Lock()

    def on_write(part):
        with lock:
            in_flight[0] += 1
            seen.append(in_flight[0])
        threading.Event().wait(0.01)
        with lock:
            in_flight[0] -= 1

    store = recording_store(on_write=on_write, part_size=lambda number: MiB, concurrency=16, window=window * MiB)
    store.add("x", iter([bytes(MiB)] * 80))
    assert max(seen) <= most


def test_a_call_that_never_returns_is_left_behind_and_reported():
    release = threading.Event()
    store = recording_store(on_write=lambda part: release.wait(30), timeout=0.2)
    try:
        with pytest.raises(TransferTimeout, match="transfer_timeout"):
            store.add("x", pattern(PART))
        assert ("abort", None) not in store.calls
    finally:
        release.set()


@pytest.mark.parametrize("where", ["write", "commit", "abort"])
def test_what_returns_too_late_is_taken_back_and_closed_then(monkeypatch, where):
    release, closed, hung = threading.Event(), [], []
    store = recording_store(timeout=0.2, concurrency=3)
    abort = RecordingWriter.abort

    def hang(*arguments):
        hung.append(where)
        release.wait(30)

    def fail(*arguments):
        raise ValueError("refused")

    if where == "abort":
        monkeypatch.setattr(RecordingWriter, "abort", lambda writer: (hang(), abort(writer)))
        store.on_write = fail
    else:
        setattr(store, f"on_{where}", hang)
    monkeypatch.setattr(RecordingWriter, "close", lambda writer: closed.append(list(store.calls)))
    try:
        with pytest.raises((TransferTimeout, ValueError)):
            store.add("x", pattern(3 * PART))
        assert hung
        assert not closed
        assert not store.called("abort")
    finally:
        release.set()
    assert eventually(lambda: closed)
    assert [calls[-1] for calls in closed] == [("abort", None)]
    assert store.called("abort") == [None]
    assert image_of(store, "x") is None


def test_too_many_stuck_calls_refuse_new_transfers():
    release = threading.Event()
    store = recording_store(on_write=lambda part: release.wait(30), timeout=0.1)
    store.hung_calls._limit = 1
    try:
        with pytest.raises(TransferTimeout, match="nothing moved"):
            store.add("x", pattern(PART))
        with pytest.raises(TransferTimeout, match="transfer_max_stuck_calls"):
            store.add("y", pattern(PART))
    finally:
        release.set()


def test_no_thread_outlives_an_add():
    before = set(threading.enumerate())
    store = recording_store()
    store.add("x", os.urandom(5 * MiB))
    with pytest.raises(Invalid):
        store.add("y", iter([os.urandom(5 * MiB)]), 1)
    assert eventually(lambda: set(threading.enumerate()) <= before)


def test_a_commit_interrupted_by_the_caller_is_taken_back():
    store = recording_store()

    def interrupt(done, total):
        if done == 4 * PART:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.add("x", pattern(4 * PART), progress=interrupt)
    assert image_of(store, "x") is None


def test_metadata_names_the_store_and_belongs_to_the_caller():
    store = recording_store()
    first = store.add("x", b"1").metadata
    first["mine"] = True
    assert store.add("y", b"2").metadata == {"store": "recording"}


def test_holes_after_data_are_not_worked_on_as_bytes(tmp_path, monkeypatch):
    taken, take = [], PartCutter.take

    def counted(upload, data):
        taken.append(len(data))
        take(upload, data)

    monkeypatch.setattr(PartCutter, "take", counted)
    path = tmp_path / "sparse"
    path.write_bytes(b"data")
    os.truncate(path, 256 * PART)
    store = recording_store(sparse=True, concurrency=1, part_size=lambda number: 4 * PART)
    stored = store.add("image", path)
    assert sum(taken) < 4 * PART
    with store.get(stored.uri).data as stream:
        assert stream.read() == path.read_bytes()


@pytest.mark.parametrize("window", [3, 4, 100])
def test_progress_is_told_within_a_hole_and_whole_windows_are_left_out_all_the_same(tmp_path, monkeypatch, window):
    monkeypatch.setattr("storelib.transfer.cutting.HOLE", 8 * PART)
    taken, take = [], PartCutter.take

    def counted(upload, data):
        taken.append(len(data))
        take(upload, data)

    monkeypatch.setattr(PartCutter, "take", counted)
    path = tmp_path / "sparse"
    path.write_bytes(b"data")
    os.truncate(path, 512 * PART)
    store = recording_store(sparse=True, concurrency=1, part_size=lambda number: window * PART)
    told = []
    store.add("image", path, progress=lambda done, size: told.append(done))
    assert told == sorted(told)
    assert len(told) > 512 // max(8, window) - 2
    assert told[-1] == 512 * PART
    assert sum(taken) < 2 * window * PART


def test_what_progress_raises_within_a_hole_cancels(tmp_path, monkeypatch):
    monkeypatch.setattr("storelib.transfer.cutting.HOLE", 8 * PART)
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 512 * PART)

    def progress(done, size):
        if done > 100 * PART:
            raise KeyError(done)

    store = recording_store(sparse=True, concurrency=1)
    with pytest.raises(KeyError):
        store.add("image", path, progress=progress)
    assert store.find_image("image") is None


def test_holes_are_skipped_at_once_in_stores_with_parts_of_several_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr("storelib.transfer.cutting.HOLE", 8 * PART)
    path = tmp_path / "sparse"
    path.write_bytes(b"data")
    os.truncate(path, 512 * PART)
    for windows in ((4, 4), (3, 4)):
        stores = [
            recording_store(sparse=True, concurrency=1, part_size=lambda number, size=size * PART: size)
            for size in windows
        ]
        told: list[int] = []
        fan_out(stores, "image", path, progress=lambda done, size, told=told: told.append(done))
        assert (len(told) > 60) == (windows == (4, 4))
        for store in stores:
            assert sum(length for _, _, length in store.called("write")) <= 2 * max(windows) * PART


@pytest.mark.parametrize("answer", [-5, 10**9, True, "4", 2.0])
def test_a_source_that_lies_about_what_it_read_is_at_fault(answer):
    class Liar(io.RawIOBase):
        def readinto(self, view):
            view[:5] = b"hello"
            return answer

    store = recording_store()
    with pytest.raises(Invalid, match="the source is at fault"):
        store.add("image", Liar())
    assert store.find_image("image") is None


@pytest.mark.parametrize("name", ["storelib-write", "storelib-digest"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("can't start new thread")])
def test_what_comes_before_a_thread_starts_passes_through(monkeypatch, name, error):
    start = threading.Thread.start

    def interrupted(thread):
        if thread.name == name:
            raise error
        start(thread)

    store = recording_store(has_put=False)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises((KeyboardInterrupt, RuntimeError)) as caught:
        store.add("image", pattern(3 * MiB))
    monkeypatch.undo()
    assert caught.type is (error if isinstance(error, type) else type(error))
    assert "join" not in str(caught.value)
    assert store.find_image("image") is None
    assert not [thread for thread in threading.enumerate() if thread.name == name]


def test_an_abort_that_never_returns_is_left_behind(monkeypatch):
    returns = threading.Event()
    monkeypatch.setattr(RecordingWriter, "abort", lambda writer: returns.wait())
    store = recording_store(timeout=0.2)

    def refuse(part):
        raise ValueError("refused")

    store.on_write = refuse
    with pytest.raises(ValueError, match="refused"):
        store.add("image", pattern(3 * PART))
    assert not [thread for thread in threading.enumerate() if thread.name == "storelib-write"]
    assert [thread.name for thread in store.hung_calls._calls] == ["storelib-abort"]
    returns.set()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("can't start new thread")])
def test_what_comes_before_the_abort_leaves_nothing_in_any_store(monkeypatch, error):
    start = threading.Thread.start

    def interrupted(thread):
        if thread.name == "storelib-abort":
            raise error
        start(thread)

    def failing():
        yield pattern(MiB)
        raise LookupError("the source")

    stores = [recording_store(name=name) for name in ("one", "two")]
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else LookupError):
        fan_out(stores, "image", failing())
    assert [store.calls[-1] for store in stores] == [("abort", None)] * 2


def test_a_process_that_may_start_no_thread_leaves_nothing(monkeypatch):
    def refused(thread):
        raise RuntimeError("can't start new thread")

    store = recording_store()
    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError, match="can't start"):
        store.add("image", pattern(3 * MiB))
    assert store.called("abort") == [None]


def test_a_hung_call_that_returned_is_counted_no_longer_though_its_thread_serves_others():
    release, end, begun = threading.Event(), threading.Event(), threading.Event()
    store = recording_store(on_write=lambda part: release.wait(30), timeout=0.2)
    store.hung_calls._limit = 1
    busy = recording_store(name="busy")

    def source():
        while not end.is_set():
            begun.set()
            yield bytes([1]) * PART
            time.sleep(0.002)

    # As long as this goes on, threads that have nothing to do are kept.
    other = threading.Thread(target=lambda: busy.add("x", source()))
    other.start()
    try:
        assert begun.wait(30)
        with pytest.raises(TransferTimeout, match="nothing moved"):
            store.add("x", pattern(PART))
        hung = list(store.hung_calls._calls)
        assert hung
        release.set()
        assert eventually(lambda: not any(call.is_alive() for call in hung))
        store.on_write = lambda part: None
        store.add("y", pattern(PART))
    finally:
        release.set()
        end.set()
        other.join(30)


@pytest.mark.parametrize("fails", ["open", "write", "commit", "source", "nothing"])
def test_what_was_added_is_freed_without_the_collector(fails):
    def fail(*arguments):
        raise StorageFull("full")

    store = recording_store(**({f"on_{fails}": fail} if fails in ("write", "commit") else {}))
    if fails == "open":
        store.add("x", b"older")

    class Given(io.BytesIO):
        def readinto(self, view):
            return fail() if fails == "source" else super().readinto(view)

    memory = bytearray(pattern(3 * PART))
    given = Given(memory)
    gc.disable()
    try:
        for data in (given, memory):
            with contextlib.suppress(StorageFull, Duplicate):
                store.add("x", data)
        freed = weakref.ref(given)
        del given, data
        assert eventually(lambda: freed() is None)
        # It can be resized once nothing refers to its bytes.
        memory.append(1)
    finally:
        gc.enable()


def interrupted_at(number, functions):
    """Traces this thread; Ctrl-C comes at the line of that number of these functions. Returns whether it came."""
    seen = []

    def trace(frame, event, argument):
        if frame.f_code not in functions:
            return trace if frame.f_back is None else None
        if event == "line":
            seen.append(frame.f_lineno)
            # A with statement is left as a whole.
            source = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
            if len(seen) == number and not source.strip().startswith(("with ", "try:")):
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    return seen


def test_ctrl_c_while_threads_are_called_leaves_nothing_that_is_waited_for():
    functions = {function.__code__ for function in (TaskQueue.put, TaskQueue._call_threads, ThreadPool.run)}
    data, number = os.urandom(2 * PART), 0
    while True:
        number += 1
        store = recording_store(has_put=False, timeout=60.0)
        store.memory = MemoryBudget(64 * PART)
        began = time.monotonic()
        seen = interrupted_at(number, functions)
        try:
            store.add("x", data)
        except KeyboardInterrupt:
            assert image_of(store, "x") is None
        finally:
            sys.settrace(None)
        assert time.monotonic() - began < 50, "it waited for what never comes"
        assert store.memory.held == 0
        assert not store.hung_calls._calls
        if len(seen) < number:
            break
    assert number > 20
    # The pool of those that hash has a limit, of which none may be lost.
    assert eventually(lambda: not pool_of("storelib-digest", processor_bound=True)._workers)

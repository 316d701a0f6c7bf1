# SPDX-License-Identifier: Apache-2.0
"""Server-side copies: what the engine does with a driver's ServerSideCopy, and with calls for many things at once."""

import logging
import threading

import pytest
from recording import PART, RecordingStore, eventually, image_of

from storelib.capabilities import Capability
from storelib.driver import Committed, Digests, Part, ServerSideCopy, WriterCopy
from storelib.exceptions import Duplicate, NotFound, RemoteServiceUnavailable, StoreError, TransferTimeout
from storelib.registry import open_store
from storelib.testing.memory import Image
from storelib.transfer.contract import equal_parts

DIGESTS = Digests("0" * 32, "1" * 128)
DATA = bytes(range(256)) * (PART * 4 // 256) + b"rest"


class Copy(ServerSideCopy):
    def __init__(self, store, source, image_id):
        self.data = store.image(source).data
        self.size = len(self.data)
        self.concurrency = store.copies_at_once
        self.parts = [min(PART, self.size - start) for start in range(0, self.size, PART)] if store.in_parts else ()
        self.store, self.image_id, self.made = store, image_id, bytearray()
        store.note("open", image_id)

    def begin(self):
        self.store.note("begin", None)
        self.made = bytearray(self.size)
        self.store.step("begin")

    def copy_part(self, number, offset, length):
        with self.store.lock:
            self.store.in_flight += 1
            self.store.most_in_flight = max(self.store.most_in_flight, self.store.in_flight)
        try:
            self.store.step("part")
            self.store.note("part", (number, offset, length))
            self.made[offset : offset + length] = self.data[offset : offset + length]
        finally:
            with self.store.lock:
                self.store.in_flight -= 1

    def commit(self, digests):
        self.store.step("commit")
        if self.image_id in self.store.backend.images:
            raise Duplicate(self.image_id)
        made = self.made if self.parts else self.data
        self.store.backend.images[self.image_id] = Image(bytes(made), "copy")
        self.store.note("commit", digests)
        self.store.step("committed")
        return Committed(self.store.location(self.image_id), {"kept": "yes"})

    def abort(self):
        assert not self.store.in_flight, "abort waits for calls in flight"
        self.store.note("abort", None)
        self.store.step("abort")
        found = self.store.backend.images.get(self.image_id)
        if found is not None and found.token == "copy":
            del self.store.backend.images[self.image_id]

    def close(self):
        self.store.note("close", None)


class CopyingStore(RecordingStore):
    capabilities = RecordingStore.capabilities | Capability.COPY
    copies_at_once = 2
    in_parts = True
    able = True

    def step(self, name):
        """What goes wrong."""

    def server_side_copy(self, source, image_id, context):
        return Copy(self, source, image_id) if self.able else None


def copying_store(**attributes):
    step = attributes.pop("step", lambda name: None)
    timeout = attributes.pop("timeout", 30.0)
    store = open_store(CopyingStore, "copies", transfer_timeout=timeout, memory_store_part_size=PART)
    store.backend.images["x"] = Image(DATA, "first")
    store.step = step
    for name, value in attributes.items():
        setattr(store, name, value)
    return store


def copy(store, **options):
    return store.copy(store.location("x").uri, "y", digests=DIGESTS, **options)


def failing(where, error, times=1000):
    left = [times]

    def step(name):
        if name == where and left[0] > 0:
            left[0] -= 1
            raise error

    return step


def test_a_copy_is_made_of_its_parts_and_has_the_digests_it_was_given():
    store = copying_store()
    copied = copy(store)
    assert (copied.uri, copied.size) == (store.location("y").uri, len(DATA))
    assert (copied.checksum, copied.multihash) == (DIGESTS.checksum, DIGESTS.multihash)
    assert copied.metadata == {"kept": "yes", "store": "copies"}
    assert image_of(store, "y") == DATA
    assert sorted(store.called("part")) == [*((i, i * PART, PART) for i in range(4)), (4, 4 * PART, 4)]
    assert store.calls[-1] == ("close", None)
    assert not store.called("abort")


def test_parts_are_copied_side_by_side_and_no_more_than_the_driver_wants():
    both = threading.Barrier(2, timeout=10)
    waited = []

    def step(name):
        if name == "part" and len(waited) < 2:
            waited.append(name)
            both.wait()

    store = copying_store(step=step)
    copy(store)
    assert store.most_in_flight == 2


def test_progress_runs_in_the_calling_thread_from_nothing_to_all_before_the_copy_is_published():
    store, heard = copying_store(), []

    def progress(done, total):
        assert threading.current_thread() is threading.main_thread()
        assert image_of(store, "y") is None
        heard.append((done, total))

    copy(store, progress=progress)
    size = len(DATA)
    assert heard == [(0, size), *((i * PART, size) for i in range(1, 5)), (size, size)]
    heard.clear()
    whole = store = copying_store(in_parts=False)
    copy(whole, progress=progress)
    assert heard == [(0, size), (size, size)]


@pytest.mark.parametrize("at", [0, 2 * PART, len(DATA)])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, ArithmeticError])
def test_what_progress_raises_ends_the_copy_and_passes_through(at, kind):
    def cancel(done, total):
        if done == at:
            raise kind("stop")

    store = copying_store()
    with pytest.raises(kind, match="stop"):
        copy(store, progress=cancel)
    assert store.calls[-2:] == [("abort", None), ("close", None)]
    assert image_of(store, "y") is None


@pytest.mark.parametrize("where", ["begin", "part", "commit", "committed"])
def test_a_rollback_that_fails_does_not_hide_its_cause(where, caplog):
    def step(name):
        if name == where:
            raise StoreError("the cause")
        if name == "abort":
            raise StoreError("the rollback")

    store = copying_store(step=step)
    with pytest.raises(StoreError, match="the cause"):
        copy(store)
    assert "the rollback" in caplog.text
    assert store.calls[-2:] == [("abort", None), ("close", None)]


def test_a_rollback_that_fails_does_not_hide_an_interrupt():
    store = copying_store(step=failing("abort", ValueError("the rollback")))
    with pytest.raises(KeyboardInterrupt):
        copy(store, progress=interrupt)


def interrupt(done, total):
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["begin", "part", "commit"])
def test_transient_errors_are_tried_again(where):
    store = copying_store(step=failing(where, RemoteServiceUnavailable("for a moment"), times=1))
    copy(store)
    assert image_of(store, "y") == DATA


def test_a_transient_error_of_the_rollback_is_tried_again():
    def step(name):
        if name == "committed":
            raise StoreError("the cause")
        passing(name)

    passing = failing("abort", RemoteServiceUnavailable("for a moment"), times=1)
    store = copying_store(step=step)
    with pytest.raises(StoreError, match="the cause"):
        copy(store)
    assert store.called("abort") == [None, None]
    assert image_of(store, "y") is None


def test_after_an_error_no_other_part_is_begun():
    store = copying_store(copies_at_once=1, step=failing("part", StoreError("no")))
    with pytest.raises(StoreError, match="no"):
        copy(store)
    assert not store.called("part")


def test_an_image_that_is_there_or_is_not_there_is_an_error_and_nothing_is_taken_back():
    store = copying_store()
    with pytest.raises(NotFound):
        store.copy(store.location("z").uri, "y", digests=DIGESTS)
    assert not store.called("abort")
    store.backend.images["y"] = Image(b"other", "other")
    with pytest.raises(Duplicate):
        copy(store)
    assert image_of(store, "y") == b"other"


@pytest.mark.parametrize("where", ["part", "commit"])
def test_a_call_that_never_returns_is_left_behind_and_counted(where):
    release = threading.Event()
    store = copying_store(timeout=0.2, step=lambda name: name == where and release.wait(30))
    store.hung_calls._limit = 1
    try:
        with pytest.raises(TransferTimeout, match="transfer_timeout"):
            copy(store)
        assert not store.called("abort")
        assert not store.called("close")
        with pytest.raises(TransferTimeout, match="transfer_max_stuck_calls"):
            copy(store)
    finally:
        release.set()
    assert eventually(lambda: store.called("close"))
    assert [name for name, _ in store.calls[-2:]] == ["abort", "close"]
    assert image_of(store, "y") is None


def test_what_the_back_end_opens_for_a_copy_that_was_given_up_is_closed():
    release = threading.Event()
    store = copying_store(timeout=0.2)
    open_copy = store.server_side_copy
    store.server_side_copy = lambda *arguments: release.wait(30) and open_copy(*arguments)
    try:
        with pytest.raises(TransferTimeout, match="transfer_timeout"):
            copy(store)
        assert not store.calls
    finally:
        release.set()
    assert eventually(lambda: store.called("close"))
    assert [name for name, _ in store.calls] == ["open", "abort", "close"]


def test_a_back_end_that_moves_many_bytes_at_once_is_waited_for_longer():
    store = copying_store(timeout=0.2, step=lambda name: name == "commit" and threading.Event().wait(0.6))
    patient = store.server_side_copy

    def server_side_copy(*arguments):
        made = patient(*arguments)
        made.moved_at_once = 40 * 1024 * 1024
        return made

    store.server_side_copy = server_side_copy
    copy(store)
    assert image_of(store, "y") == DATA


def test_bytes_pass_through_here_where_the_driver_cannot():
    for store in (copying_store(able=False), copying_store(capabilities=RecordingStore.capabilities)):
        assert copy(store).multihash == DIGESTS.multihash
        assert image_of(store, "y") == DATA
        assert not store.called("begin")


class MadeByWriter(WriterCopy):
    def __init__(self, store, source, image_id):
        self.data = store.image(source).data
        super().__init__(store.open_writer(image_id, None, None), len(self.data), equal_parts(len(self.data), PART))

    def copy_part(self, number, offset, length):
        self.writer.write(Part(number, offset, memoryview(self.data)[offset : offset + length]))


@pytest.mark.parametrize("fails", [False, True])
def test_a_copy_may_go_through_a_writer_of_the_driver(fails):
    store = copying_store()
    store.server_side_copy = lambda source, image_id, context: MadeByWriter(store, source, image_id)
    if fails:
        store.on_commit = lambda: interrupt(0, 0)
        with pytest.raises(KeyboardInterrupt):
            copy(store)
        assert store.calls[-1] == ("abort", None)
        assert not store.backend.uploads
        assert image_of(store, "y") is None
    else:
        copy(store)
        assert [name for name, _ in store.calls] == ["reserve", *["write"] * 5, "commit"]
        assert image_of(store, "y") == DATA


@pytest.mark.parametrize(("size", "parts"), [(0, []), (1, [1]), (4, [4]), (5, [4, 1]), (8, [4, 4])])
def test_parts_are_equal_but_for_the_last(size, parts):
    assert equal_parts(size, 4) == parts


def test_a_large_part_is_waited_for_longer():
    store = copying_store(timeout=0.2, step=lambda name: name == "part" and threading.Event().wait(0.6))
    plain = store.server_side_copy

    def server_side_copy(*arguments):
        made = plain(*arguments)
        made.size = 40 * 1024 * 1024
        made.parts = [made.size]
        made.copy_part = lambda number, offset, length: store.step("part")
        return made

    store.server_side_copy = server_side_copy
    assert copy(store).size == 40 * 1024 * 1024


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("can't start new thread")], ids=repr)
@pytest.mark.parametrize("threads", [0, 1])
def test_what_comes_before_a_thread_starts_passes_through_and_nothing_stays(monkeypatch, error, threads):
    store, start, started = copying_store(copies_at_once=3), threading.Thread.start, []

    def interrupted(thread):
        if thread.name == "storelib-write":
            if len(started) == threads:
                raise error
            started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(type(error)) as caught:
        copy(store)
    assert caught.value is error
    assert image_of(store, "y") is None
    assert store.called("abort") == [None] * threads
    assert store.called("close") == [None] * threads
    assert not [thread for thread in started if thread.is_alive()]


def test_a_copy_that_was_opened_when_ctrl_c_came_is_rolled_back(monkeypatch):
    store, start = copying_store(), threading.Thread.start

    def interrupted(thread):
        start(thread)
        if thread.name == "storelib-write":
            assert eventually(lambda: store.called("open"))
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        copy(store)
    assert store.called("abort") == [None]
    assert store.called("close") == [None]


def test_no_thread_outlives_a_copy():
    before = set(threading.enumerate())
    copy(copying_store())
    with pytest.raises(KeyboardInterrupt):
        copy(copying_store(), progress=interrupt)
    assert eventually(lambda: set(threading.enumerate()) <= before)


# -- Calls for many things at once ------------------------------------------------------------------------------------


def test_every_item_has_its_turn_though_others_fail_and_the_first_error_is_raised():
    store, done = copying_store(), []

    def call(item):
        if item in (2, 5):
            raise StoreError(f"no {item}")
        done.append(item)

    with pytest.raises(StoreError, match="no 2"):
        store.for_each(call, range(8), "items", concurrency=1)
    assert done == [0, 1, 3, 4, 6, 7]


def test_items_are_taken_side_by_side_and_tried_again():
    both = threading.Barrier(2, timeout=10)
    together, passing = iter([both.wait, both.wait]), failing("call", RemoteServiceUnavailable("for a moment"), times=1)
    done = []

    def call(item):
        next(together, int)()
        passing("call")
        done.append(item)

    copying_store().for_each(call, range(4), "items", concurrency=2)
    assert sorted(done) == [0, 1, 2, 3]


def test_an_item_that_hangs_is_left_behind_and_counted():
    release = threading.Event()
    store = copying_store(timeout=0.2)
    store.hung_calls._limit = 1
    try:
        with pytest.raises(TransferTimeout, match="transfer_timeout"):
            store.for_each(lambda item: release.wait(30), range(2), "items", concurrency=1)
        with pytest.raises(TransferTimeout, match="transfer_max_stuck_calls"):
            store.for_each(lambda item: None, range(2), "items")
    finally:
        release.set()


def test_what_cannot_be_cleaned_up_is_logged_and_left_for_gc(caplog):
    copying_store().clean_up(lambda: failing("x", StoreError("no such luck"))("x"), "image 'x'")
    assert "no such luck" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING

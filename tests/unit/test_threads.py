# SPDX-License-Identifier: Apache-2.0
"""The threads of the engine: as many as there is work for, shared by all transfers, and none taken by what hangs."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from recording import eventually as eventually_within
from recording import image_of, recording_store

from storelib.exceptions import StoreError
from storelib.transfer import tasks, threads
from storelib.transfer.contract import MiB
from storelib.transfer.guard import InUse
from storelib.transfer.monitor import Monitor
from storelib.transfer.tasks import AGAIN, TaskQueue
from storelib.transfer.threads import ThreadPool

BLOCK = os.urandom(MiB)
eventually = functools.partial(eventually_within, seconds=60.0)


def named(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


@pytest.fixture
def pool():
    made = ThreadPool("of-a-test")
    yield made
    assert eventually(lambda: not named("of-a-test"))


def queue_in(pool, count=1):
    made = TaskQueue("unused", Monitor(30.0), threading.Event(), InUse(), pool)
    made.have_threads(count)
    return made


def test_a_thread_that_has_nothing_to_do_serves_the_next_transfer(pool):
    first, second, served = queue_in(pool), queue_in(pool), []

    def work():
        served.append(threading.current_thread())

    for number, queue in enumerate([first, second, first, second]):
        queue.put(work)
        assert eventually(lambda number=number: len(served) == number + 1 and len(pool._idle) == 1)
    assert len(set(served)) == 1
    assert not first.join(30)
    assert named("of-a-test"), "the second goes on"
    assert not second.join(30)
    assert not named("of-a-test")


def test_a_call_that_hangs_holds_its_own_thread_and_no_other(pool):
    release, hung, made = threading.Event(), queue_in(pool, 3), []
    for _ in range(3):
        hung.put(lambda: release.wait(60))
    assert eventually(lambda: len(hung._working) == 3)
    assert not hung.cancel(0.01)
    assert len(hung.join(0)) == 3
    try:
        for number in range(3):
            other = queue_in(pool)
            other.put(lambda number=number: made.append(number))
            assert eventually(lambda other=other: not other.unfinished)
            assert not other.join(30)
            assert len(named("of-a-test")) == 3, "none is kept for what hangs"
        assert made == [0, 1, 2]
    finally:
        release.set()


def test_a_thread_ends_that_had_nothing_to_do_for_a_while(pool, monkeypatch):
    monkeypatch.setattr(threads, "_IDLE", 0.01)
    queue, made = queue_in(pool), []
    queue.put(lambda: made.append(1))
    assert eventually(lambda: made and not named("of-a-test"))
    queue.put(lambda: made.append(2))
    assert eventually(lambda: len(made) == 2)
    assert not queue.join(30)


def test_what_takes_the_processor_takes_turns(monkeypatch):
    monkeypatch.setattr(tasks, "TURN", 0.0)
    pool, made = ThreadPool("in-turns", most=1), []
    one, other = queue_in(pool), queue_in(pool)
    started = threading.Event()

    def hole():
        started.set()
        # Until the other one had its turn, which it would never have otherwise.
        return AGAIN if len(made) < 5 else None

    one.put(hole)
    assert started.wait(30)
    for number in range(5):
        other.put(lambda number=number: made.append(number))
    assert eventually(lambda: not one.unfinished and not other.unfinished)
    assert made == list(range(5))
    assert not one.join(30)
    assert not other.join(30)
    assert not named("in-turns")


def test_calls_of_one_queue_stay_in_order_while_others_wait(monkeypatch):
    monkeypatch.setattr(tasks, "TURN", 0.0)
    pool, made = ThreadPool("in-turns", most=2), {number: [] for number in range(8)}
    queues = [queue_in(pool) for _ in made]
    for number in range(50):
        for each, queue in enumerate(queues):
            queue.put(lambda each=each, number=number: made[each].append(number))
    assert eventually(lambda: not any(queue.unfinished for queue in queues))
    assert all(found == list(range(50)) for found in made.values())
    assert not any(queue.join(30) for queue in queues)
    assert not named("in-turns")


def test_many_adds_hash_in_few_threads():
    stores = [recording_store(name=f"s{number}", has_put=False) for number in range(40)]
    together, most, started = threading.Barrier(len(stores), timeout=60), [], []
    plain = threading.Thread.start

    def source():
        yield BLOCK
        together.wait()
        for _ in range(4):
            yield BLOCK
            most.append(len(named("storelib-digest")))

    def start(thread):
        started.append(thread.name)
        plain(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with ThreadPoolExecutor(len(stores)) as pool:
            stored = list(pool.map(lambda store: store.add("image", source()), stores))
    assert len({each.multihash for each in stored}) == 1
    assert 1 <= max(most) <= 4 * len(os.sched_getaffinity(0))
    assert eventually(lambda: not named("storelib-digest") and not named("storelib-write"))


def test_a_forked_child_has_threads_of_its_own():
    store = recording_store(has_put=False)

    def source():
        yield BLOCK
        yield BLOCK
        child = os.fork()
        if not child:
            # The parent's are not there, and whatever their locks were they are not held.
            status = 1
            try:
                recording_store(has_put=False).add("image", [BLOCK] * 5)
                status = 0
            finally:
                os._exit(status)
        statuses.append(os.waitpid(child, 0)[1])
        yield BLOCK

    statuses = []
    store.add("image", source())
    assert statuses == [0]


def test_a_forked_child_leaves_an_add_to_its_parent():
    store, children = recording_store(), []

    def source():
        yield BLOCK
        yield BLOCK
        children.append(os.fork())
        if not children[0]:
            raise KeyError("the child goes another way")
        yield BLOCK

    try:
        store.add("image", source())
    except KeyError:
        os._exit(len(store.called("abort")))
    assert os.waitpid(children[0], 0)[1] == 0


def test_a_forked_child_waits_for_no_lock_that_a_thread_of_its_parent_held():
    monitor, held, forked = Monitor(60), threading.Event(), threading.Event()

    def hold():
        with monitor.changed:
            held.set()
            forked.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if not child:
        os._exit(0 if monitor.changed.acquire(timeout=10) else 1)
    forked.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("more", [0, 3], ids=["at its end", "in the middle"])
def test_a_forked_child_that_goes_on_with_an_add_is_told_at_once(more):
    store, children = recording_store(), []

    def source():
        yield BLOCK
        yield BLOCK
        children.append(os.fork())
        yield from [BLOCK] * more

    try:
        store.add("image", source())
    except StoreError as error:
        if not children[0]:
            os._exit(0 if "begun before this process was forked" in str(error) else 1)
    if not children[0]:
        os._exit(2)
    assert os.waitpid(children[0], 0)[1] == 0
    assert image_of(store, "image") == BLOCK * (2 + more)


#: A stream whose ranges come in threads, in a process of its own.
OPEN_STREAM = """
import os, sys
sys.path.insert(0, sys.argv[1])
from test_download import PARALLEL, FakeReader, opened
stream = opened(FakeReader(**PARALLEL))
stream.read(10)
if sys.argv[2] == "forks":
    child = os.fork()
    if not child:
        stream.close()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print("ended", flush=True)
"""


@pytest.mark.parametrize("what", ["forks", "ends"])
def test_a_process_with_an_open_stream_waits_for_no_thread_that_does_not_run(what):
    command = [sys.executable, "-W", "ignore", "-c", OPEN_STREAM, str(Path(__file__).parent), what]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (0, "ended\n"), ran.stderr


ENDING = """
import threading, time
from storelib.transfer.guard import Guard
from storelib.transfer.retry import HungCalls

guard = Guard(5.0, HungCalls("store", 1000))

def work():
    while True:
        guard.call(lambda: None, "call")

for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.05)
"""


def test_a_process_that_ends_while_calls_come_back_does_not_crash():
    """Three in ten did, with Python 3.11.2: a daemon thread started one whose state was freed."""
    command = [sys.executable, "-X", "dev", "-c", ENDING]
    children = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    assert [(child.communicate(timeout=60)[1], child.returncode) for child in children] == [("", 0)] * 6


def test_no_thread_is_started_once_the_process_ends(monkeypatch):
    ended = threading.Event()
    ended.set()
    monkeypatch.setattr(threads, "_ended", ended)
    thread = threading.Thread(target=lambda: None)
    with pytest.raises(RuntimeError, match="the process ends"):
        threads.start(thread)
    with pytest.raises(RuntimeError, match="the process ends"):
        threads.run_apart(lambda: None, "apart")
    assert thread.ident is None
    assert eventually(lambda: not threads._starting)

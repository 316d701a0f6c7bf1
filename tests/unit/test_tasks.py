# SPDX-License-Identifier: Apache-2.0
"""The thread machine: order, the first error, cancelling, and what waits for calls that do not return."""

from __future__ import annotations

import logging
import threading

import pytest
from recording import eventually

from storelib.transfer.guard import InUse
from storelib.transfer.monitor import Monitor
from storelib.transfer.retry import HungCalls
from storelib.transfer.tasks import TaskQueue


@pytest.fixture
def queue():
    made = TaskQueue("a-task", Monitor(30.0), threading.Event(), InUse())
    yield made
    made.cancel(30)
    assert not made.join(30)
    assert not [thread for thread in threading.enumerate() if thread.name == "a-task"]


def test_calls_are_made_in_the_order_given_by_a_thread_beside_this_one(queue):
    made, where = [], []
    tasks = [
        queue.put(lambda number=number: (made.append(number), where.append(threading.current_thread().name)))
        for number in range(9)
    ]
    assert not made
    queue.have_threads(1)
    assert not queue.join(30)
    assert made == list(range(9))
    assert all(task.done for task in tasks)
    assert queue.unfinished == 0
    assert set(where) == {"a-task"}


def test_no_more_calls_are_in_flight_than_there_are_threads(queue):
    meet = threading.Barrier(3)
    tasks = [queue.put(lambda: meet.wait(30)) for _ in range(6)]
    queue.have_threads(3)
    assert not queue.join(30)
    assert all(task.done for task in tasks)


def test_nothing_begins_after_the_first_error(queue):
    made = []

    def fail():
        raise LookupError("the first")

    failed, next_one = queue.put(fail), queue.put(lambda: made.append("next"))
    queue.have_threads(1)
    assert not queue.join(30)
    assert str(queue.error) == "the first"
    assert not made
    assert not failed.done
    assert not next_one.done


def test_cancelling_waits_for_what_is_in_flight_and_begins_nothing_else(queue):
    begun, release, made = threading.Event(), threading.Event(), []
    queue.put(lambda: (begun.set(), release.wait(30), made.append("first")))
    queue.put(lambda: made.append("second"))
    queue.have_threads(1)
    assert begun.wait(30)
    assert not queue.cancel(0.01)
    [hung] = queue.join(0)
    assert hung.is_alive()
    release.set()
    assert queue.cancel(30)
    assert made == ["first"]


def test_steps_wait_for_the_last_call_and_come_in_order():
    in_use, taken = InUse(), []
    in_use.when_free(lambda: taken.append("free"))
    in_use.enter("one")
    in_use.enter("other")
    in_use.when_free(lambda: taken.append("rollback"))
    in_use.when_free(lambda: taken.append("close"))
    in_use.leave("one")
    assert taken == ["free"]
    in_use.leave("other")
    assert taken == ["free", "rollback", "close"]


def test_a_call_that_ended_before_it_began_lets_none_of_the_others_go():
    in_use, taken = InUse(), []
    in_use.enter("one")
    in_use.when_free(lambda: taken.append("close"))
    in_use.leave("other")
    assert taken == []


def test_a_step_that_another_one_asks_for_comes_after_it():
    in_use, taken = InUse(), []
    in_use.when_free(lambda: (in_use.when_free(lambda: taken.append("inner")), taken.append("outer")))
    assert taken == ["outer", "inner"]


def test_an_error_of_a_late_step_is_logged_and_one_of_a_step_taken_now_raised(caplog):
    in_use = InUse()

    def fail():
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        in_use.when_free(fail)
    in_use.enter("call")
    in_use.when_free(fail)
    with caplog.at_level(logging.WARNING):
        in_use.leave("call")
    assert "disk" in caplog.text


def test_a_call_that_runs_is_one_that_uses(queue):
    in_use = queue._in_use
    begun, release, taken = threading.Event(), threading.Event(), []
    queue.put(lambda: (begun.set(), release.wait(30)))
    queue.have_threads(1)
    assert begun.wait(30)
    in_use.when_free(lambda: taken.append(threading.current_thread().name))
    assert not taken
    release.set()
    assert eventually(lambda: taken == ["a-task"])


def test_what_breaks_between_two_calls_is_an_error_and_nobody_waits_for_the_thread(queue, monkeypatch):
    def no_memory(queue, shift):
        raise MemoryError

    monkeypatch.setattr(TaskQueue, "_next", no_memory)
    queue.put(lambda: None)
    queue.have_threads(1)
    assert not queue.join(30)
    assert isinstance(queue.error, MemoryError)


def test_a_forked_child_waits_for_no_call_that_hangs_in_its_parent():
    hung = HungCalls("a store", 1)
    hung.add(threading.current_thread())
    with hung._lock:
        hung.forget_parent()
        hung.check()

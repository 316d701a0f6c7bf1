# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, and threads that cannot be started, where calls that may hang are made: nothing is lost or freed twice."""

from __future__ import annotations

import threading

import pytest
from recording import eventually

from storelib.exceptions import TransferTimeout
from storelib.transfer.guard import Guard, Held, bounded, in_fresh_thread
from storelib.transfer.retry import HungCalls

ERRORS = [KeyboardInterrupt(), RuntimeError("can't start new thread")]


def guard_of(timeout=5.0):
    return Guard(timeout, HungCalls("nfs", 4))


@pytest.fixture
def no_threads(monkeypatch, request):
    """No thread can be started: ``request.param`` comes first."""

    def start(thread):
        raise request.param

    monkeypatch.setattr(threading.Thread, "start", start)
    return request.param


@pytest.mark.parametrize("no_threads", ERRORS, ids=repr, indirect=True)
def test_what_comes_before_a_call_passes_through_and_the_call_is_not_made(no_threads):
    made = []
    for call in (
        lambda: guard_of().call(lambda: made.append(1), "stat"),
        lambda: bounded(guard_of(), lambda: made.append(2), "open", late=made.append),
        lambda: Held(guard_of(), "file", made.append, "read").call(made.append),
    ):
        with pytest.raises(type(no_threads)) as caught:
            call()
        assert caught.value is no_threads
    assert not made


@pytest.mark.parametrize("no_threads", ERRORS, ids=repr, indirect=True)
def test_what_is_held_is_freed_though_no_thread_can_be_started(no_threads):
    freed = []
    held = Held(guard_of(), "file", freed.append, "closing")
    with pytest.raises(type(no_threads)) as caught:
        held.close()
    held.close()
    assert caught.value is no_threads
    assert freed == ["file"]


def interrupt_joins(monkeypatch):
    def join(thread, timeout=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", join)


def test_what_is_opened_after_ctrl_c_is_freed(monkeypatch):
    release, late = threading.Event(), []
    interrupt_joins(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        bounded(guard_of(), lambda: release.wait(10) and "file", "open", late=late.append)
    release.set()
    assert eventually(lambda: late == ["file"])


def test_what_is_held_is_freed_once_though_ctrl_c_ends_the_wait(monkeypatch):
    freed = []
    held = Held(guard_of(), "file", freed.append, "closing")
    interrupt_joins(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        held.close()
    assert eventually(lambda: freed == ["file"])


def test_what_a_call_still_uses_after_ctrl_c_is_freed_when_it_returns(monkeypatch):
    begun, release, freed = threading.Event(), threading.Event(), []
    held = Held(guard_of(), "file", freed.append, "reading")

    def join(thread, timeout=None):
        assert begun.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", join)
    with pytest.raises(KeyboardInterrupt):
        held.call(lambda file: (begun.set(), release.wait(10)))
    held.close()
    assert not freed
    release.set()
    assert eventually(lambda: freed == ["file"])


def test_a_hanging_end_is_left_behind_not_waited_for():
    release, hung = threading.Event(), HungCalls("nfs", 1)
    guard, made = Guard(0.05, hung), []
    try:
        for _ in range(2):
            with pytest.raises(TransferTimeout):
                guard.free(lambda: made.append(1) or release.wait(10), "closing")
        assert made == [1]
    finally:
        release.set()


def test_a_fresh_thread_is_one_that_has_done_nothing_before():
    threads = [in_fresh_thread(threading.current_thread, late=list) for _ in range(2)]
    assert len({threading.current_thread(), *threads}) == 3
    with pytest.raises(KeyError):
        in_fresh_thread(lambda: {}["x"], late=list)


def test_what_a_fresh_thread_makes_after_ctrl_c_is_freed(monkeypatch):
    release, late = threading.Event(), []
    interrupt_joins(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        in_fresh_thread(lambda: release.wait(10) and "connection", late=late.append)
    release.set()
    assert eventually(lambda: late == ["connection"])

# SPDX-License-Identifier: Apache-2.0
"""Trying again, giving up, and calls that hang."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from storelib.exceptions import NotFound, RemoteServiceUnavailable, StoreError, TransferTimeout, causes
from storelib.registry import open_store
from storelib.testing import MemoryStore
from storelib.transfer.deadlines import LazyEvent
from storelib.transfer.guard import Guard
from storelib.transfer.retry import LONGEST_WAIT, HungCalls, RetryPolicy, mapped


def failing(times, error=None):
    left = [error or RemoteServiceUnavailable("busy")] * times
    calls = []

    def function():
        calls.append(time.monotonic())
        if left:
            raise left.pop()
        return "answer"

    return function, calls


def unmapped(error, subject):
    return None


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("storelib.transfer.retry.FIRST_WAIT", 0.001)


def test_a_call_is_made_once_more_than_there_are_retries():
    function, calls = failing(99)
    with pytest.raises(RemoteServiceUnavailable):
        RetryPolicy(retries=3).call(function, unmapped, "x")
    assert len(calls) == 4


def test_waits_double_up_to_the_longest_however_many_there_are(monkeypatch):
    waits = []
    monkeypatch.setattr("storelib.transfer.retry.pause", lambda seconds, cancelled: waits.append(seconds))
    monkeypatch.setattr("random.uniform", lambda least, most: most)
    function, _ = failing(2000)
    assert RetryPolicy(retries=2000, timeout=1e9).call(function, unmapped, "x") == "answer"
    assert waits[:3] == [0.001, 0.002, 0.004]
    assert waits[-1] == max(waits) == LONGEST_WAIT


def test_a_call_that_recovers_gives_its_answer():
    function, _ = failing(3)
    assert RetryPolicy(retries=3).call(function, unmapped, "x") == "answer"


def test_the_wait_the_back_end_asks_for_is_kept():
    function, calls = failing(1, RemoteServiceUnavailable("busy", retry_after=0.2))
    RetryPolicy().call(function, unmapped, "x")
    assert calls[1] - calls[0] >= 0.2


def test_a_wait_beyond_the_timeout_is_not_begun():
    function, calls = failing(1, RemoteServiceUnavailable("busy", retry_after=3600))
    with pytest.raises(RemoteServiceUnavailable):
        RetryPolicy(timeout=5).call(function, unmapped, "x")
    assert len(calls) == 1


def test_cancelling_ends_a_wait_at_once():
    cancelled = LazyEvent()
    function, calls = failing(99, RemoteServiceUnavailable("busy", retry_after=60))
    threading.Timer(0.05, cancelled.set).start()
    with pytest.raises(RemoteServiceUnavailable):
        RetryPolicy(timeout=300).call(function, unmapped, "x", cancelled)
    assert len(calls) == 1


#: A store in a process that has as many files open as it may.
_NO_MORE_FILES = """
import os, resource, sys
import storelib
store = storelib.open_store("file", filesystem_store_datadir=sys.argv[1], transfer_retries=1)
uri = store.add("image", b"data").uri
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
files = []
while len(files) < 64:
    try:
        files.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        break
for call in (lambda: store.get(uri), lambda: store.add("other", b"data")):
    try:
        call()
    except storelib.RemoteServiceUnavailable as error:
        print(error)
"""


def test_a_process_that_can_open_no_more_files_is_told_so(tmp_path):
    command = [sys.executable, "-c", _NO_MORE_FILES, str(tmp_path)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    assert len(told) == 2
    assert all("Too many open files" in line for line in told)


def test_an_error_nobody_maps_passes_unchanged():
    function, calls = failing(1, KeyError("bug"))
    with pytest.raises(KeyError):
        RetryPolicy().call(function, unmapped, "x")
    assert len(calls) == 1


def test_a_native_error_is_mapped_and_its_cause_kept():
    function, _ = failing(1, OSError(5, "io"))
    with pytest.raises(StoreError, match="x: io") as caught:
        RetryPolicy().call(function, lambda error, subject: StoreError(f"{subject}: io"), "x")
    assert isinstance(caught.value.__cause__, OSError)


def test_deleting_again_after_a_lost_answer_is_no_error():
    store = open_store("memory")
    uri = store.add("x", b"data").uri
    remove = store.remove
    lost = [RemoteServiceUnavailable("no answer")]

    def remove_and_lose_the_answer(location, context, deletion):
        remove(location, context, deletion)
        if lost:
            raise lost.pop()

    store.remove = remove_and_lose_the_answer
    store.delete(uri)
    with pytest.raises(NotFound):
        store.get_size(uri)


def test_a_guarded_call_that_hangs_is_given_up_and_counted():
    release = threading.Event()
    hung = HungCalls("nfs", 2)
    guard = Guard(0.05, hung)
    try:
        for _ in range(2):
            with pytest.raises(TransferTimeout, match="did not answer within 0.05 s"):
                guard.call(release.wait, "stat")
        with pytest.raises(TransferTimeout, match="2 calls into the back end hang"):
            Guard(60.0, hung).call(release.wait, "stat")
    finally:
        release.set()


def test_a_guarded_call_recovers_when_the_hung_ones_return():
    release = threading.Event()
    guard = Guard(0.05, HungCalls("nfs", 1))
    with pytest.raises(TransferTimeout):
        guard.call(release.wait, "stat")
    release.set()
    time.sleep(0.05)
    assert guard.call(lambda: "answer", "stat") == "answer"


def test_a_guarded_call_raises_what_it_raises():
    with pytest.raises(FileNotFoundError):
        Guard(5, HungCalls("nfs", 1)).call(lambda: open("/no/such/file"), "open")


def test_request_that_failed_is_not_kept_in_the_error():
    """Clients put it into their exceptions, with the Authorization header, and tools log an exception's attributes."""

    class NativeError(Exception):
        def __init__(self):
            super().__init__("the connection was cut")
            self.request = {"Authorization": "secret"}
            self.kwargs = {"request": self.request, "url": "http://server/"}

    def fail():
        try:
            raise NativeError
        except NativeError as error:
            raise OSError from error

    with pytest.raises(RemoteServiceUnavailable) as caught:
        mapped(fail, lambda error, subject: RemoteServiceUnavailable(subject), "image")
    native = caught.value.__cause__.__cause__
    assert vars(native) == {"kwargs": {"url": "http://server/"}}


def test_error_that_was_raised_from_itself_ends():
    """It is its own cause."""

    def fail():
        try:
            raise OSError
        except OSError as error:
            raise error from error

    with pytest.raises(RemoteServiceUnavailable):
        mapped(fail, lambda error, subject: RemoteServiceUnavailable(subject), "image")


def test_causes_of_an_error_are_told_once_each():
    """Also where they go round: a library may keep an error and raise it again from what it led to."""
    first, second, beside = OSError("first"), OSError("second"), OSError("beside")
    second.__cause__, second.__context__ = first, beside
    assert list(causes(second)) == [second, first]
    first.__context__ = beside
    assert list(causes(second)) == [second, first, beside]
    beside.__cause__ = second
    assert list(causes(second)) == [second, first, beside]


def test_a_delete_whose_answer_was_lost_is_done_though_the_driver_says_not_there_in_its_own_words():
    class Gone(Exception):
        pass

    class Store(MemoryStore):
        def remove(self, location, context, deletion):
            try:
                super().remove(location, context, deletion)
            except NotFound as error:
                raise Gone from error
            raise TimeoutError

        def map_error(self, error, subject):
            return NotFound(subject) if isinstance(error, Gone) else RemoteServiceUnavailable(subject)

    store = open_store(Store)
    uri = store.add("image", b"data").uri
    store.delete(uri)
    with pytest.raises(NotFound):
        store.delete(uri)

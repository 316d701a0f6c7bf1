# SPDX-License-Identifier: Apache-2.0
"""Many threads on one store: races for one id, independent transfers, a slow back end, a forked child."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from storelib.capabilities import Capability
from storelib.driver import Part, Store, StoredImage, Writer
from storelib.exceptions import Duplicate, NotFound, StoreError
from storelib.testing.conformance.bench import Bench, assert_same_bytes, not_applicable, payload
from storelib.testing.conformance.promises import Promises, needs, sampled
from storelib.testing.conformance.sources import chunks
from storelib.transfer.contract import MiB

RACERS = 8
#: What is on its way besides what one transfer may hold.
SLACK = 4 * MiB


class EnoughError(Exception):
    """Ends an add whose point is made."""


@needs(Capability.ADD | Capability.READ)
class Racing(Promises):
    """Promises that hold when much happens at once."""

    @pytest.mark.parametrize("size", ["1", "part+1", "3 parts+1"])
    @sampled(lambda size: size != "part+1")
    def test_racing_adds_of_one_id(self, bench: Bench, size: str) -> None:
        """Of adds racing for one id one image remains, whole, that a successful add returned; the others leave
        nothing. With ATOMIC_ADD exactly one succeeds, and all others are Duplicate."""
        image_id = bench.new_id()
        images = [payload(bench.sizes()[size], f"racer {racer}") for racer in range(RACERS)]
        start, finish = threading.Barrier(RACERS), threading.Barrier(RACERS)

        def race(data: bytes) -> StoredImage | Exception:
            def source() -> Iterator[bytes]:
                yield data[:-1]
                _meet(finish)
                yield data[-1:]

            _meet(start)
            try:
                return bench.add(image_id, source())
            except Exception as error:  # noqa: BLE001  (looked at below)
                # Those that lost before they read anything need not be waited for.
                finish.abort()
                return error

        results = _in_threads([partial(race, data) for data in images])
        won = [result for result in results if isinstance(result, StoredImage)]
        lost = [result for result in results if not isinstance(result, StoredImage)]
        assert {type(error) for error in lost} <= {Duplicate}, f"a loser got another error than Duplicate: {lost}"
        assert won, "nobody won"
        if bench.can(Capability.ATOMIC_ADD):
            assert len(won) == 1, f"{len(won)} adds of one id succeeded in spite of ATOMIC_ADD"
        readable = {hashlib.sha512(image).hexdigest() for image in _readable(bench, won)}
        assert len(readable) == 1, f"{len(readable)} images are readable afterwards"
        assert readable <= {image.multihash for image in won}, "what is readable is not what an add returned"
        self._assert_only_one_image(bench, image_id, won)

    def _assert_only_one_image(self, bench: Bench, image_id: str, won: list[StoredImage]) -> None:
        if bench.can(Capability.LIST):
            bench.eventually(
                lambda: len(bench.find(image_id)) == 1, lambda: f"{len(bench.find(image_id))} images are listed"
            )
        if bench.can(Capability.GC) and not bench.can(Capability.ATOMIC_ADD):
            bench.store.gc(0, prefix=image_id)
        if not bench.can(Capability.DELETE):
            return
        for uri in {image.uri for image in won}:
            try:
                bench.remove(uri)
            except NotFound:
                continue
        bench.assert_nothing_left(image_id)

    @pytest.mark.parametrize("size", ["1", "3 parts+1"])
    def test_threads_do_not_disturb_each_other(self, bench: Bench, size: str) -> None:
        """Eight threads add, read, measure and delete images of their own, each as if it were alone."""
        start = threading.Barrier(RACERS)

        def work(racer: int) -> None:
            for turn in range(1 if self.sample else 3):
                data = payload(bench.sizes()[size] + 1000 * racer, f"{racer} {turn}")
                _meet(start)
                stored = bench.add(bench.new_id(f"thread-{racer}"), chunks(data, 30_011 + racer))
                assert stored.multihash == hashlib.sha512(data).hexdigest()
                assert stored.size == len(data)
                assert bench.store.get_size(stored.uri) == len(data)
                assert_same_bytes(bench.read(stored.uri), data)
                bench.remove(stored.uri)

        _in_threads([partial(work, racer) for racer in range(RACERS)])

    def test_one_image_in_many_threads(self, bench: Bench) -> None:
        """Eight threads read one image, each through a stream of its own, from an offset of its own."""
        uri, data = bench.image(3 * bench.part + 1)
        step = 10_007 if bench.can(Capability.RANGE) else 0

        def read(offset: int) -> bytes:
            with bench.store.get(uri, offset).data as stream:
                return stream.read()

        offsets = [step * racer for racer in range(RACERS)]
        for offset, found in zip(offsets, _in_threads([partial(read, offset) for offset in offsets]), strict=True):
            assert_same_bytes(found, data[offset:])

    def test_memory_is_bounded(self, bench: Bench) -> None:
        """The source of a slow back end waits: no more than transfer_window or two parts are held at a time."""
        if type(bench.store).open_writer is Store.open_writer:
            not_applicable("the driver does not write through open_writer")
        limit = max(bench.store.window, 2 * bench.part) + SLACK
        gauge = _Gauge(limit)
        with bench.writers_changed(gauge.slow_down), self.refuses(bench, EnoughError):
            bench.add(bench.new_id(), gauge.source())
        assert gauge.ahead <= limit, f"the source ran {gauge.ahead / MiB:.0f} MiB ahead of the back end"


class _Gauge:
    """Measures how far a source gets ahead of writes that stand still."""

    def __init__(self, limit: int) -> None:
        self.ahead = 0
        self._limit = limit
        self._taken = 0
        self._written = 0
        self._lock = threading.Lock()
        self._let_go = threading.Event()

    def source(self) -> Iterator[bytes]:
        """More than may be held, in pieces of 1 MiB; ends with EnoughError once the writes go on."""
        chunk = payload(MiB)
        while self._taken <= self._limit + SLACK and not self._let_go.is_set():
            with self._lock:
                self._taken += len(chunk)
                self.ahead = max(self.ahead, self._taken - self._written)
            yield chunk
        self._let_go.set()
        raise EnoughError

    def slow_down(self, writer: Writer) -> None:
        """Writes wait until the source has not moved for a while."""
        plain = writer.write

        def write(part: Part) -> None:
            self._wait_for_standstill()
            plain(part)
            with self._lock:
                self._written += len(part.data)

        vars(writer)["write"] = write

    def _wait_for_standstill(self) -> None:
        seen = -1
        while not self._let_go.wait(0.5):
            if self._taken == seen:
                self._let_go.set()
            seen = self._taken


def _in_threads(functions: list[Callable[[], Any]]) -> list[Any]:
    """Call all at once; returns their results, raises the first error."""
    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result() for future in [pool.submit(function) for function in functions]]


def _meet(barrier: threading.Barrier) -> None:
    """Wait for the others, not for ever, and not once one of them is known not to come."""
    try:
        barrier.wait(2)
    except threading.BrokenBarrierError:
        pass


def _readable(bench: Bench, images: list[StoredImage]) -> list[bytes]:
    """The images of these that can be read, once each."""
    found = []
    for uri in {image.uri for image in images}:
        try:
            found.append(bench.read(uri))
        except NotFound:
            continue
        except StoreError as error:
            raise AssertionError(f"an image that was added cannot be read: {error}") from error
    return found


def _exit_status(child: int, timeout: float) -> int:
    deadline = time.monotonic() + timeout
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGKILL
        time.sleep(0.02)

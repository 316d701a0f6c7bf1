# SPDX-License-Identifier: Apache-2.0
"""What a driver holds: memory, descriptors and threads, during a transfer and after it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from storelib.capabilities import Capability
from storelib.driver import Digests, Store
from storelib.exceptions import Duplicate, NotFound, StoreError
from storelib.testing.conformance.bench import Bench, payload
from storelib.testing.conformance.promises import Promises, needs
from storelib.testing.conformance.sources import raising
from storelib.testing.threads import started_threads
from storelib.transfer.contract import MiB

#: What an interpreter needs besides what one transfer may hold.
BESIDES = 28 * MiB
#: How much larger an image is than what may be held.
BEYOND = 36 * MiB
#: Calls after which what each of them leaves is no coincidence, while a client's pool may still grow a little.
TURNS = 6
#: Calls of which each would have left something: where there is less after them, none did so each time.
ENOUGH = 3


@needs(Capability.READ)
class Holding(Promises):
    """Promises about what reading holds. Applies to read-only stores as well."""

    @pytest.mark.parametrize("what", ["closed at once", "closed in the middle", "read", "asked for a missing one"])
    def test_reading_leaves_nothing_open(self, bench: Bench, what: str) -> None:
        """A stream that is closed, wherever it was, and an image that is not there, leave no descriptor, no thread."""
        uri, data = bench.image(3 * bench.part + 1)
        missing = bench.missing()

        def turn() -> None:
            if what == "asked for a missing one":
                with self.refuses(bench, NotFound):
                    bench.read(missing)
                with self.refuses(bench, NotFound):
                    bench.store.get_size(missing)
                return
            with bench.store.get(uri).data as stream:
                stream.read({"closed at once": 0, "closed in the middle": bench.part + 1}.get(what, len(data)))

        leaves_nothing_open(bench, turn)

    def test_asking_for_the_size_leaves_nothing_open(self, bench: Bench) -> None:
        """``get_size`` leaves no descriptor and no thread."""
        uri, _ = bench.image(1)
        leaves_nothing_open(bench, lambda: bench.store.get_size(uri))

    def test_refusing_a_uri_leaves_nothing_open(self, bench: Bench) -> None:
        """A URI of another place, or of none, leaves no descriptor and no thread."""
        uri, _ = bench.image(1)
        scheme, _, rest = uri.partition("://")

        def turn() -> None:
            for other in (f"{scheme}://x{rest}", f"{scheme}://", f"{uri}/../x"):
                with contextlib.suppress(StoreError):
                    bench.store.get_size(other)

        leaves_nothing_open(bench, turn)

    def test_store_that_is_dropped_leaves_nothing_open(self, bench: Bench) -> None:
        """A store that was used and is no longer, as after each new configuration, leaves no connection, no thread."""
        bench.second_store()
        uri, data = bench.image(3 * bench.part + 1)

        def turn() -> None:
            store = bench.reopened()
            assert store.get_size(uri) == len(data)
            with store.get(uri).data as stream:
                stream.read(1)

        leaves_nothing_open(bench, turn)

    @needs(Capability.STAT)
    def test_stat_leaves_nothing_open(self, bench: Bench) -> None:
        """``stat`` leaves no descriptor and no thread."""
        uri, _ = bench.image(1)
        leaves_nothing_open(bench, lambda: bench.store.stat(uri))

    @needs(Capability.CHECK)
    def test_check_leaves_nothing_open(self, bench: Bench) -> None:
        """``check`` leaves no descriptor and no thread."""
        leaves_nothing_open(bench, bench.store.check)

    @needs(Capability.LIST)
    def test_listing_leaves_nothing_open(self, bench: Bench) -> None:
        """A list leaves no descriptor and no thread, be it read to its end or dropped in the middle."""
        bench.image(1)
        bench.image(0)
        leaves_nothing_open(bench, lambda: next(bench.store.list_images(), None))
        image_id = bench.new_id()
        leaves_nothing_open(bench, lambda: bench.store.find_image(image_id))
        if not bench.shared:  # the list of a live store may be very long
            leaves_nothing_open(bench, lambda: list(bench.store.list_images()))


@needs(Capability.ADD | Capability.READ)
class HoldingWhenAdding(Promises):
    """Promises about what adding holds."""

    @pytest.mark.parametrize("what", ["added", "failed", "refused", "taken"])
    def test_adding_leaves_nothing_open(self, bench: Bench, what: str) -> None:
        """An add, whatever becomes of it, leaves no descriptor and no thread."""
        data = payload(2 * bench.part + 1)
        taken_id = bench.new_id("taken")
        bench.add(taken_id, b"is taken")

        def turn() -> None:
            if what == "taken":
                with self.refuses(bench, Duplicate):
                    bench.add(taken_id, data)
            elif what == "added":
                bench.remove(bench.add(bench.new_id(), data).uri)
            elif what == "failed":
                with self.refuses(bench, ZeroDivisionError):
                    bench.add(bench.new_id(), raising(data, ZeroDivisionError()))
            else:
                with self.refuses(bench, ZeroDivisionError):
                    bench.add(bench.new_id(), iter(data[:1] for _ in range(1)), verifier=_Refusing())

        leaves_nothing_open(bench, turn)

    @needs(Capability.COPY)
    @pytest.mark.parametrize("what", ["copied", "refused", "cancelled"])
    def test_copying_leaves_nothing_open(self, bench: Bench, what: str) -> None:
        """Nor does a copy that the back end makes, whatever becomes of it."""
        original = bench.add(taken_id := bench.new_id(), payload(2 * bench.part + 1))
        digests = Digests(original.checksum, original.multihash)

        def cancel(done: int, total: int | None) -> None:
            raise ZeroDivisionError

        def turn() -> None:
            if what == "copied":
                bench.remove(bench.copy(original.uri, bench.new_id("copy"), digests=digests).uri)
            elif what == "cancelled":
                with self.refuses(bench, ZeroDivisionError):
                    bench.copy(original.uri, bench.new_id("copy"), digests=digests, progress=cancel)
            else:
                with self.refuses(bench, Duplicate):
                    bench.copy(original.uri, taken_id, digests=digests)

        leaves_nothing_open(bench, turn)

    @needs(Capability.GC)
    def test_looking_for_leftovers_leaves_nothing_open(self, bench: Bench) -> None:
        """Nor does ``gc`` that has nothing to remove."""
        image_id = bench.new_id()
        leaves_nothing_open(bench, lambda: bench.store.gc(0, prefix=image_id))

    @needs(Capability.GC)
    def test_collecting_leaves_nothing_open(self, bench: Bench) -> None:
        """Nor does ``gc`` that removes what dead adds left, nor do they."""

        def turn() -> None:
            image_id = bench.new_id()
            assert bench.die(image_id, payload(100)) or bench.collect(image_id)

        leaves_nothing_open(bench, turn)

    @needs(Capability.DELETE)
    def test_deleting_leaves_nothing_open(self, bench: Bench) -> None:
        """Nor does deleting what is not there."""
        missing = bench.missing()

        def turn() -> None:
            with self.refuses(bench, NotFound):
                bench.store.delete(missing)

        leaves_nothing_open(bench, turn)

    def test_configuring_opens_nothing(self, bench: Bench) -> None:
        """Making and configuring a store opens no descriptor, and no thread stays: both are for its first use."""
        bench.reopened()
        descriptors = _descriptors()
        with started_threads() as started:
            stores = [bench.reopened() for _ in range(3)]
        # A check of the configuration that may hang needs one for as long as it takes.
        bench.eventually(lambda: not any(map(threading.Thread.is_alive, started)), lambda: "configuring starts threads")
        assert _descriptors() - descriptors < len(stores), "configuring opens files or connections"

    def test_memory_of_a_process_is_bounded(self, bench: Bench) -> None:
        """A process that adds or reads a large image, or a range, holds transfer_window or two parts, not all of it."""
        kept_elsewhere = bench.seen_by_other_processes
        with bench.process(lambda store: _Transfers(store).serve) as process:
            limit, size = process.ask("sizes", bench.new_id("size"))
            grown = process.ask("add", bench.new_id("large"), size)
            # A store in memory holds what it keeps; that is no fault.
            held = {"adding": grown} if kept_elsewhere else {}
            held["reading"] = process.ask("read", 0, None)
            if bench.can(Capability.RANGE):
                held["reading a range of"] = process.ask("read", size // 2 + 5, 4 * MiB)
            process.ask("remove")
        for what, most in held.items():
            assert most <= limit, f"{what} {size // MiB} MiB took {most // MiB} MiB of memory, not {limit // MiB}"


class _Refusing:
    def update(self, chunk: bytes) -> None:
        raise ZeroDivisionError


class _Transfers:
    """What the second process does; returns how many bytes of memory it took at most."""

    def __init__(self, store: Store[Any]) -> None:
        self._store = store
        self._uri = ""

    def serve(self, words: list[Any]) -> Any:
        """Do what the first word says."""
        return getattr(self, words[0])(*words[1:])

    def sizes(self, image_id: str) -> tuple[int, int]:
        """What a transfer may take, and a size that is much more."""
        writer = self._store.open_writer(image_id, None, None)
        limit = max(self._store.window, 2 * writer.part_size(0, None)) + BESIDES
        writer.abort()
        writer.close()
        return limit, limit + BEYOND

    def add(self, image_id: str, size: int) -> int:
        """From a source that says nothing of its size."""
        piece = payload(MiB)
        with _Peak() as peak:
            stored = self._store.add(image_id, (piece for _ in range(size // MiB)))
        self._uri = stored.uri
        return peak.bytes

    def read(self, offset: int, length: int | None) -> int:
        """Read a range without keeping it; returns the bytes of memory that it took at most."""
        buffer = bytearray(MiB)
        with _Peak() as peak, self._store.get(self._uri, offset, length).data as stream:
            while stream.readinto(buffer):
                pass
        return peak.bytes

    def remove(self) -> None:
        """The image."""
        if Capability.DELETE in self._store.capabilities:
            self._store.delete(self._uri)


class _Peak:
    """How much memory this process took at most while it was inside (proc_pid_status(5), proc_pid_clear_refs(5))."""

    def __init__(self) -> None:
        self.bytes = 0
        self._before = 0

    def __enter__(self) -> _Peak:
        gc.collect()
        _give_back_what_is_free()
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        self._before = _memory("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = max(_memory("VmHWM") - self._before, 0)


def _give_back_what_is_free() -> None:
    """Memory that the process before the fork had and let go would be used again, and hide what is taken now."""
    with contextlib.suppress(OSError, AttributeError):  # malloc_trim(3) is glibc's
        ctypes.CDLL(None).malloc_trim(0)


def _memory(line: str) -> int:
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        for name, _, value in (each.partition(":") for each in file):
            if name == line:
                return int(value.split()[0]) * 1024
    return 0


def leaves_nothing_open(bench: Bench, turn: Callable[[], object]) -> None:
    """Call ``turn`` a few times: the threads and descriptors of this process must not become more with each."""
    # What the client keeps for the next call is there after two of them.
    turn()
    turn()
    # What tests before this one left in circles is not to be freed meanwhile: it would make up for what calls leave.
    gc.collect()
    threads, descriptors = threading.active_count(), _descriptors()

    def left(turns: int) -> list[str]:
        # A driver's object in a circle of references is freed when Python comes around to it.
        gc.collect()
        more = {"threads": threading.active_count() - threads, "descriptors": _descriptors() - descriptors}
        return [f"{count} {what} after {turns} calls" for what, count in more.items() if count >= turns]

    for _ in range(ENOUGH):
        turn()
    if not left(ENOUGH):
        return
    for _ in range(TURNS - ENOUGH):
        turn()
    bench.eventually(lambda: not left(TURNS), lambda: f"left open: {', '.join(left(TURNS))}")


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

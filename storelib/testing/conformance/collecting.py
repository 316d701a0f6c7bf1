# SPDX-License-Identifier: Apache-2.0
"""``gc``: all that is dead, and nothing else, also when another object or process runs it."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from storelib.capabilities import Capability
from storelib.driver import Garbage, Store, StoredImage, Writer
from storelib.exceptions import Duplicate, StoreError
from storelib.testing.conformance.bench import Bench, assert_same_bytes, payload
from storelib.testing.conformance.promises import Promises, assert_no_secret, needs
from storelib.testing.conformance.sources import chunks

HOUR = 3600.0
#: Seconds after which the oldest leftovers of a test are old.
MOMENT = 0.5
#: Ends of an id that PATTERN would take for itself if it were more than letters, and that do not begin so.
NOT_BEGINNING_SO = {
    "regular expression": "Axb_cc\u00e9 -1",
    "LIKE of SQL": "A.bxc*\u00e9 -2",
    "shell pattern": "A.b_cx\u00e9 -3",
    "folded case": "a.B_C*\u00c9 -4",
    "decomposed": "A.b_c*e\u0301 -5",
    "another letter beyond ASCII": "A.b_c*\u00e8 -6",
    "without the blank": "A.b_c*\u00e9-7",
    "shorter": "A.b_c",
}
PATTERN = "A.b_c*\u00e9 "

#: ``gc`` run by another process or object: with an age in seconds and a prefix, returns how much was removed.
Collect = Callable[[float, str], int]


@needs(Capability.ADD | Capability.READ | Capability.GC)
class Collecting(Promises):
    """``gc`` finds what dead adds left, and nothing else."""

    # -- What is found ----------------------------------------------------------------------------------------------

    @pytest.mark.usefixtures("far_from_utc")
    def test_gc_finds_what_a_crash_left(self, bench: Bench) -> None:
        """What an add leaves that never came to an end is found, named and removed, and then is gone."""
        image_id = bench.new_id()
        if bench.die(image_id, payload(bench.part)):
            # The back end does it by itself, so nothing may be left to find.
            bench.assert_nothing_left(image_id)
            return
        found = bench.collect(image_id)
        assert found, (
            "gc found nothing of an add that died after its first part; a writer of which nothing stays says "
            "self_cleaning, a store whose gc finds nothing has no Capability.GC, and the time zone here is not UTC"
        )
        assert {item.image_id for item in found} <= {image_id, None}
        assert all(item.size >= 0 for item in found)
        for item in found:
            off = item.modified - time.time()
            assert abs(off) < HOUR, f"{item} was written {off:+.0f} s from now; is that of another time zone?"
            assert_no_secret(bench.secrets, f"{item} {item.name} {item.image_id}", "the name of a leftover")
        assert not bench.store.gc(0, prefix=image_id), "gc removed the same leftovers twice"
        bench.assert_nothing_left(image_id)

    def test_gc_finds_what_a_reservation_left(self, bench: Bench) -> None:
        """So it does of one that died before its first part: what ``reserve`` made, if it made something."""
        image_id = bench.new_id()
        writer = bench.store.open_writer(image_id, None, None)
        writer.reserve(writer.part_size(0, None))
        del writer
        _collected(bench, image_id)

    @needs(Capability.COPY)
    @pytest.mark.parametrize("died", ["begun", "copied"])
    def test_gc_finds_what_a_dead_copy_left(self, bench: Bench, died: str) -> None:
        """And of a copy within the back end that died, without the image that it was to be a copy of."""
        data = payload(3 * bench.part + 1)
        original = bench.add(bench.new_id(), data)
        image_id = bench.new_id("copy")
        copying = bench.store.server_side_copy(bench.store.locate(original.uri), image_id, None)
        if copying is None:
            return
        copying.begin()
        start = 0
        for number, length in enumerate(copying.parts if died == "copied" else ()):
            copying.copy_part(number, start, length)
            start += length
        del copying
        _collected(bench, image_id)
        assert_same_bytes(bench.read(original.uri), data)

    @pytest.mark.usefixtures("far_from_utc")
    def test_gc_leaves_what_is_young(self, bench: Bench) -> None:
        """Leftovers younger than ``older_than`` seconds stay, and are not reported; when they are older they are."""
        image_id = bench.new_id()
        bench.crash(image_id, payload(bench.part))
        assert not list(bench.store.find_garbage(HOUR, image_id)), (
            "gc takes seconds for an hour (in a time zone far from UTC)"
        )
        assert not bench.store.gc(HOUR, prefix=image_id)
        assert bench.leftovers(MOMENT, image_id)
        time.sleep(0.2)
        assert not list(bench.store.find_garbage(100, image_id)), "gc does not count in seconds"
        assert bench.collect(image_id), "gc removed what was younger than older_than"

    def test_gc_keeps_to_the_prefix(self, bench: Bench) -> None:
        """``prefix`` is how ids begin, letter for letter: no pattern, nothing inside, no other case."""
        base = bench.new_id("")
        prefix = base + PATTERN
        mine = prefix + "-mine"
        others = {what: base + end for what, end in NOT_BEGINNING_SO.items()}
        others["inside"] = bench.new_id("") + prefix
        for image_id in (mine, *others.values()):
            bench.crash(image_id, payload(bench.part))
        found = bench.collect(prefix)
        assert found, f"gc did not find what was left of an id that begins with the prefix: {mine!r}, {prefix!r}"
        assert {item.image_id for item in found} <= {mine, None}
        for what, image_id in others.items():
            assert bench.collect(image_id), f"gc removed leftovers of another prefix ({what}): {image_id!r}, {prefix!r}"

    def test_find_garbage_removes_nothing(self, bench: Bench) -> None:
        """``find_garbage`` tells what ``gc`` would remove, without a prefix of all ids, and removes nothing."""
        image_id = bench.new_id()
        bench.crash(image_id, payload(bench.part))
        names = {item.name for item in bench.leftovers(0, image_id)}
        for prefix in (image_id, None, ""):
            assert names <= {item.name for item in bench.store.find_garbage(0, prefix)}
        assert bench.collect(image_id)
        assert not list(bench.store.find_garbage(0, image_id))

    def test_two_gcs_do_not_disturb_each_other(self, bench: Bench) -> None:
        """A leftover that another ``gc`` has removed when its turn comes is no error, and nothing comes back of it."""
        image_id = bench.new_id()
        if bench.die(image_id, payload(bench.part)):
            assert not list(bench.store.find_garbage(0, image_id))
            return
        seen = bench.leftovers(0, image_id)
        assert bench.collect(image_id)
        for item in seen:
            bench.store.discard(item)
        bench.assert_nothing_left(image_id)

    # -- What is left alone -----------------------------------------------------------------------------------------

    def test_gc_leaves_images(self, bench: Bench) -> None:
        """Published images stay, whole."""
        sizes = ["0", "1", "3 parts+1"]
        images = {bench.new_id("kept"): payload(bench.sizes()[size]) for size in sizes}
        uris = {image_id: bench.add(image_id, data).uri for image_id, data in images.items()}
        found = [item for item in bench.store.gc(0, prefix=bench.prefix) if item.image_id in images]
        assert not found
        for image_id, data in images.items():
            assert_same_bytes(bench.read(uris[image_id]), data)

    def test_gc_of_one_add_leaves_others_of_that_id(self, bench: Bench) -> None:
        """What a dead add left is removed without the image that took its id, and without an add of it under way."""
        image_id = bench.new_id()
        data = payload(3 * bench.part + 1)
        bench.die(image_id, payload(bench.part, "dead"))

        def source() -> Iterator[bytes]:
            yield data[: 2 * bench.part]
            time.sleep(0.02)  # the parts are on their way
            found.extend(bench.store.gc(0, prefix=image_id))
            yield data[2 * bench.part :]

        found: list[Garbage] = []
        try:
            stored = bench.add(image_id, source())
        except Duplicate:
            # What is dead may hold the id until gc comes; then there is nothing beside it.
            return
        except StoreError as error:
            raise AssertionError(_ended(found, error)) from error
        assert_same_bytes(bench.read(stored.uri), data)
        bench.remove(stored.uri)
        bench.die(image_id, payload(bench.part, "dead"))
        stored = bench.add(image_id, data)
        bench.store.gc(0, prefix=image_id)
        assert_same_bytes(bench.read(stored.uri), data)

    def test_gc_leaves_adds_under_way(self, bench: Bench) -> None:
        """An add that is under way goes on to a whole image, however often gc runs meanwhile."""
        image_id = bench.new_id()
        data = payload(4 * bench.part + 1)
        found = []

        def source() -> Iterator[bytes]:
            for chunk in chunks(data, bench.part):
                time.sleep(0.05)
                found.extend(bench.store.gc(0, prefix=image_id))
                yield chunk
            time.sleep(0.05)
            found.extend(bench.store.gc(0, prefix=image_id))

        try:
            stored = bench.add(image_id, source())
        except StoreError as error:
            raise AssertionError(_ended(found, error)) from error
        assert not found, "gc took an add under way for dead"
        assert_same_bytes(bench.read(stored.uri), data)

    # -- gc by another store object or process ------------------------------------------------------------------------

    def test_gc_of_another_object_leaves_no_add_without_data(self, bench: Bench) -> None:
        """An add is spared by ``gc`` of another object of the store, or it fails: it never succeeds without data."""
        _collected_meanwhile(bench, _by_object(bench.second_store()))

    def test_gc_of_another_process_leaves_no_add_without_data(self, bench: Bench) -> None:
        """An add is spared by ``gc`` of another process, or it fails: it never succeeds without data."""
        bench.need_processes()
        with _other_process(bench) as collect:
            _collected_meanwhile(bench, collect)

    def test_gc_of_another_object_finds_what_a_crash_left(self, bench: Bench) -> None:
        """Leftovers are found by whichever object of the store looks for them."""
        image_id = bench.new_id()
        other = bench.second_store()
        if not bench.die(image_id, payload(bench.part)):
            bench.eventually(
                lambda: other.gc(0, prefix=image_id), lambda: "another object of the store finds nothing of a dead add"
            )
        bench.assert_nothing_left(image_id)

    def test_gc_finds_what_a_killed_process_left(self, bench: Bench) -> None:
        """What a process leaves that was killed in the middle of an add is found by another one."""
        bench.need_processes()
        image_id = bench.new_id()
        with bench.process(lambda store: lambda words: _write_and_wait(store, *words)) as process:
            leaves_nothing = process.ask(image_id)
            process.kill()
        if not leaves_nothing:
            # A lease of the dead may have to run out, on Ceph after 30 seconds.
            assert bench.collect(image_id, settle_timeout=4 * bench.settle_timeout), (
                "gc found nothing of a killed process"
            )
        bench.assert_nothing_left(image_id)


def _collected(bench: Bench, image_id: str) -> None:
    """What something dead left of this id, if it left something, goes with ``gc``."""
    gc.collect()
    if bench.residue(image_id):
        bench.collect(image_id)
    bench.assert_nothing_left(image_id)


def _by_object(other: Store[Any]) -> Collect:
    return lambda age, prefix: len(other.gc(age, prefix=prefix))


@contextlib.contextmanager
def _other_process(bench: Bench) -> Iterator[Collect]:
    def serving(store: Store[Any]) -> Callable[[Any], int]:
        return lambda words: _by_object(store)(*words)

    with bench.process(serving) as process:
        yield process.ask


def _write_and_wait(store: Store[Any], image_id: str) -> bool:
    """In the process that will be killed: one part of an image. Returns whether the back end cleans up by itself."""
    writer = Bench.begin(store, image_id, b"half")
    _never_closed.append(writer)
    return writer.self_cleaning


_never_closed: list[Writer] = []


def _collected_meanwhile(bench: Bench, collect: Collect) -> None:
    part = bench.part
    data = payload(3 * part + 1)
    # Of an age that a living add has not.
    image_id = bench.new_id("young")
    stored = bench.add(image_id, _collecting(data, part, lambda: collect(HOUR, image_id)))
    assert_same_bytes(bench.read(stored.uri), data)

    image_id = bench.new_id("written")
    stored_or_not = _outcome(bench, image_id, _collecting(data, part, lambda: collect(0, image_id)))
    _succeeded_or_failed(bench, image_id, data, stored_or_not, collect)

    for form, image in (("committed", data), ("zeros", bytes(3 * part + 1))):
        _collected_before_commit(bench, bench.new_id(form), image, collect)


def _collected_before_commit(bench: Bench, image_id: str, data: bytes, collect: Collect) -> None:
    def change(writer: Writer) -> None:
        plain = writer.commit

        def commit(*arguments: Any) -> Any:
            collect(0, image_id)
            return plain(*arguments)

        vars(writer)["commit"] = commit

    with bench.writers_changed(change):
        stored = _outcome(bench, image_id, chunks(data, bench.part))
    _succeeded_or_failed(bench, image_id, data, stored, collect)


def _outcome(bench: Bench, image_id: str, source: Iterator[bytes]) -> StoredImage | None:
    """What the add returns; None if it fails as it may."""
    try:
        return bench.add(image_id, source)
    except StoreError:
        return None


def _succeeded_or_failed(
    bench: Bench, image_id: str, data: bytes, stored: StoredImage | None, collect: Collect
) -> None:
    if stored is None:
        bench.assert_nothing_left(image_id)
        return
    collect(0, image_id)
    assert stored.size == len(data)
    assert_same_bytes(bench.read(stored.uri), data)


def _ended(found: Sequence[Garbage], error: StoreError) -> str:
    names = [item.name for item in found]
    return f"an add under way ended while gc ran, which removed {names}; gc spares what is not dead: {error}"


def _collecting(data: bytes, size: int, collect: Callable[[], object]) -> Iterator[bytes]:
    for chunk in chunks(data, size):
        yield chunk
        time.sleep(0.02)  # the part is on its way
        collect()

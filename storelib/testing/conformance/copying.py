# SPDX-License-Identifier: Apache-2.0
"""Copies within a store whose digests are known, which the back end makes by itself where it can."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from storelib.capabilities import Capability
from storelib.driver import Digests, ServerSideCopy, StoredImage, Writer
from storelib.exceptions import Duplicate, NotFound, StoreError
from storelib.testing.conformance.bench import Bench, assert_same_bytes, payload, replaced
from storelib.testing.conformance.holes import assert_extents
from storelib.testing.conformance.promises import Promises, needs, sampled
from storelib.transfer.contract import MiB

RACERS = 6


class Cancelled(BaseException):
    """Raised by a progress callback."""


@needs(Capability.ADD | Capability.READ)
class Copying(Promises):
    """Promises of ``copy`` with ``digests``: none of the bytes need to come by here, and all else is as for ``add``."""

    # -- What a copy is ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("size", ["0", "1", "part-1", "part", "part+1", "3 parts+1"])
    @sampled(lambda size: size in ("0", "3 parts+1"))
    def test_known_copy_of_any_size(self, bench: Bench, size: str) -> None:
        """A copy has all bytes of its original, as the store and the back end tell it."""
        data = payload(bench.sizes()[size])
        original = bench.add(bench.new_id(), data)
        image_id = bench.new_id("copy")
        copy = _copy(bench, original, image_id)
        assert_same_bytes(bench.read(copy.uri), data)
        assert bench.store.get_size(copy.uri) == len(data)
        if bench.can(Capability.STAT):
            info = bench.store.stat(copy.uri)
            assert (info.uri, info.size) == (copy.uri, len(data))
            assert info.image_id in (image_id, None)
        if bench.access.can("read"):
            assert_same_bytes(bench.access.read(image_id) or b"", data)

    def test_result_describes_the_known_copy(self, bench: Bench) -> None:
        """The result has the size of the image, the digests that were given, and a URI of this store; nothing else."""
        data = payload(3 * bench.part + 1)
        original = bench.add(bench.new_id(), data, hashing_algo="sha256")
        digests = Digests(None, original.multihash, "sha256")
        image_id = bench.new_id("copy")
        copy = bench.copy(original.uri, image_id, digests=digests)
        assert (copy.size, copy.checksum, copy.multihash) == (len(data), None, original.multihash)
        assert copy.metadata["store"] == bench.store.name
        assert copy.uri != original.uri
        assert bench.location(copy.uri).uri == copy.uri
        assert copy.uri.partition("://")[0] in bench.store.schemes
        if bench.can(Capability.LIST):
            bench.eventually(
                lambda: [(info.uri, info.size) for info in bench.find(image_id)] == [(copy.uri, len(data))],
                lambda: f"the list has {bench.find(image_id)} for the copy {copy.uri} of {len(data)} bytes",
            )

    @pytest.mark.parametrize("size", ["1", "3 parts+1"])
    def test_known_copy_records_its_digest(self, bench: Bench, size: str) -> None:
        """Where the digest of an image is recorded, that of its copy is, and is the right one."""
        data = payload(bench.sizes()[size])
        original = bench.add(bench.new_id(), data)
        copy = _copy(bench, original, bench.new_id("copy"))
        recorded = _recorded(bench, copy.uri)
        assert recorded or not _recorded(bench, original.uri), "no digest is recorded of the copy of an image with one"
        for algorithm, value in recorded:
            assert value == hashlib.new(algorithm, data, usedforsecurity=False).hexdigest(), (
                "a wrong digest is recorded"
            )

    def test_known_copy_keeps_holes(self, bench: Bench) -> None:
        """A copy has holes where its original has, and no byte of data is lost in them."""
        # A store that has no holes is told of nothing by larger ones.
        hole = 8 * MiB if bench.can(Capability.SPARSE) else MiB
        data = payload(MiB) + bytes(hole + 777) + payload(70_001) + bytes(hole // 4)
        original = bench.add(bench.new_id(), data)
        copy = _copy(bench, original, bench.new_id("copy"))
        assert_extents(bench, copy.uri, data, 0, None)
        if bench.can(Capability.SPARSE):
            with bench.store.get(copy.uri).data as stream:
                holes = sum(extent.length for extent in stream.extents() if not extent.data)
            assert holes >= 4 * MiB, "the copy of an image with holes has none"

    # -- What a copy leaves alone -----------------------------------------------------------------------------------

    @pytest.mark.parametrize("size", ["0", "1", "3 parts+1"])
    @sampled(lambda size: size != "1")
    def test_known_copy_to_an_id_that_exists(self, bench: Bench, size: str) -> None:
        """Copying over an image is Duplicate and changes nothing, of the image, its original, or beside them."""
        data, there = payload(bench.sizes()[size]), payload(bench.part + 1, "was here first")
        image_id, original_id = bench.new_id(), bench.new_id()
        target = bench.add(image_id, there)
        original = bench.add(original_id, data)
        before = _seen(bench, target, image_id), _seen(bench, original, original_id)
        with self.refuses(bench, Duplicate):
            _copy(bench, original, image_id)
        assert_same_bytes(bench.read(target.uri), there)
        assert_same_bytes(bench.read(original.uri), data)
        bench.eventually(
            lambda: (_seen(bench, target, image_id), _seen(bench, original, original_id)) == before,
            lambda: f"a copy that was refused changed {before}",
        )

    @pytest.mark.parametrize("size", ["0", "3 parts+1"])
    def test_known_copy_onto_itself(self, bench: Bench, size: str) -> None:
        """Copying an image onto itself is Duplicate and changes nothing; with COPY before a byte is copied."""
        data = payload(bench.sizes()[size])
        image_id = bench.new_id()
        original = bench.add(image_id, data)
        before = _seen(bench, original, image_id)
        copied: list[int] = []
        with self.refuses(bench, Duplicate):
            _copy(bench, original, image_id, progress=lambda done, total: copied.append(done))
        if bench.can(Capability.COPY):
            assert not any(copied), "bytes were copied before it was noticed that the image is the original"
        assert_same_bytes(bench.read(original.uri), data)
        bench.eventually(
            lambda: _seen(bench, original, image_id) == before, lambda: f"a copy onto itself changed {before}"
        )

    @needs(Capability.DELETE)
    @pytest.mark.parametrize("size", ["1", "3 parts+1"])
    @sampled(lambda size: size != "1")
    def test_known_copy_outlives_its_original(self, bench: Bench, size: str) -> None:
        """Original and copy have lives of their own: whichever is deleted, the other stays; after both nothing does."""
        data = payload(bench.sizes()[size])
        original_id, image_id, second_id = bench.new_id(), bench.new_id("copy"), bench.new_id("second")
        original = bench.add(original_id, data)
        copy = _copy(bench, original, image_id)
        bench.remove(copy.uri)
        assert_same_bytes(bench.read(original.uri), data)
        copy, second = _copy(bench, original, image_id), _copy(bench, original, second_id)
        bench.remove(original.uri)
        with self.refuses(bench, NotFound):
            bench.read(original.uri)
        # Nor does what takes the place of the original come through.
        other = bench.add(original_id, payload(len(data), "another"))
        bench.remove(second.uri)
        assert_same_bytes(bench.read(copy.uri), data)
        bench.remove(other.uri)
        if bench.can(Capability.GC):
            bench.store.gc(0, prefix=original_id)
        assert_same_bytes(bench.read(copy.uri), data)
        copy_of_copy = _copy(bench, copy, second_id)
        bench.remove(copy.uri)
        assert_same_bytes(bench.read(copy_of_copy.uri), data)
        bench.remove(copy_of_copy.uri)
        chain = (second_id, image_id, original_id)
        for each in chain if bench.can(Capability.GC) else ():
            # What a copy shares may have had to wait for it, and is gc's once it is gone.
            bench.store.gc(0, prefix=each)
        for each in chain:
            bench.assert_nothing_left(each)

    # -- What goes wrong --------------------------------------------------------------------------------------------

    @needs(Capability.DELETE)
    def test_known_copy_of_missing_image(self, bench: Bench) -> None:
        """Copying what is not there is NotFound and leaves nothing."""
        image_id = bench.new_id("copy")
        uri = bench.missing()
        with self.refuses(bench, NotFound):
            bench.copy(uri, image_id, digests=Digests("0" * 32, "0" * 128))
        bench.assert_nothing_left(image_id)

    @pytest.mark.parametrize("at", ["first", "last"])
    @pytest.mark.parametrize("size", ["1", "3 parts+1"])
    @sampled(lambda size, at: (size == "1") == (at == "first"))
    def test_cancelled_known_copy_leaves_nothing(self, bench: Bench, size: str, at: str) -> None:
        """Until ``progress`` had its last word the copy cannot be seen; what it raises leaves nothing of the copy."""
        data = payload(bench.sizes()[size])
        original = bench.add(bench.new_id(), data)
        image_id = bench.new_id("copy")
        raised = Cancelled()
        visible: list[str] = []

        def progress(done: int, total: int | None) -> None:
            if bench.access.can("read") and bench.access.read(image_id) is not None:
                visible.append("the back end shows it")
            if bench.can(Capability.LIST) and bench.find(image_id):
                visible.append("the list shows it")
            if at == "first" or done >= len(data):
                raise raised

        with bench.no_thread_left(), self.refuses(bench, Cancelled) as caught:
            _copy(bench, original, image_id, progress=progress)
        assert caught.value is raised
        assert not visible, f"a copy is there before it is whole: {visible}"
        bench.assert_nothing_left(image_id)
        if bench.can(Capability.GC):
            assert not bench.store.gc(0, prefix=image_id), "a cancelled copy left something for gc"
        assert_same_bytes(bench.read(original.uri), data)

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_failed_known_copy_leaves_nothing(self, bench: Bench, when: str) -> None:
        """An error before or after the step that publishes the copy is the caller's, and the copy is taken back."""
        data = payload(3 * bench.part + 1)
        original = bench.add(bench.new_id(), data)
        image_id = bench.new_id("copy")

        def failing(commit: Callable[..., Any]) -> Any:
            if when == "after":
                commit()
            raise ZeroDivisionError

        with _commits_changed(bench, failing) as changed, self.refuses(bench, ZeroDivisionError):
            _copy(bench, original, image_id)
        assert changed, "neither a ServerSideCopy nor a Writer was asked to publish the copy"
        bench.assert_nothing_left(image_id)
        assert_same_bytes(bench.read(original.uri), data)

    def test_known_copy_whose_response_was_lost(self, bench: Bench) -> None:
        """The step that publishes is made again after a transient error, and finds what it did: no Duplicate."""
        data = payload(3 * bench.part + 1)
        original = bench.add(bench.new_id(), data)
        image_id = bench.new_id("copy")
        asked: list[Any] = []

        def losing(commit: Callable[..., Any]) -> Any:
            asked.append(commit())
            return commit()

        with _commits_changed(bench, losing):
            copy = _copy(bench, original, image_id)
        assert asked, "neither a ServerSideCopy nor a Writer was asked to publish the copy"
        assert_same_bytes(bench.read(copy.uri), data)
        bench.remove(copy.uri)
        if bench.can(Capability.DELETE):
            bench.assert_nothing_left(image_id)

    @needs(Capability.COPY)
    @pytest.mark.parametrize("step", ["begin", "copy_part", "abort"])
    def test_step_of_a_copy_is_harmless_again(self, bench: Bench, step: str) -> None:
        """Each step of a copy in the back end may be made again after a transient error, which may be late."""
        data = payload(3 * bench.part + 1)
        original = bench.add(bench.new_id(), data)
        image_id = bench.new_id("copy")

        def change(copying: ServerSideCopy) -> None:
            plain = getattr(copying, step)

            def twice(*arguments: Any) -> None:
                plain(*arguments)
                plain(*arguments)

            vars(copying)[step] = twice

        def progress(done: int, total: int | None) -> None:
            if step == "abort" and done == total:
                raise Cancelled

        with _copies_changed(bench, change):
            if step == "abort":
                with self.refuses(bench, Cancelled):
                    _copy(bench, original, image_id, progress=progress)
            else:
                copy = _copy(bench, original, image_id)
                assert_same_bytes(bench.read(copy.uri), data)
                bench.remove(copy.uri)
        if bench.can(Capability.DELETE):
            bench.assert_nothing_left(image_id)

    def test_known_copy_with_wrong_digests(self, bench: Bench) -> None:
        """Digests of another image give a copy of the right bytes, or an error and nothing: never other bytes."""
        data = payload(3 * bench.part + 1)
        original = bench.add(bench.new_id(), data)
        image_id = bench.new_id("copy")
        wrong = Digests("0" * 32, "0" * 128)
        try:
            copy = bench.copy(original.uri, image_id, digests=wrong)
        except StoreError:
            bench.assert_nothing_left(image_id)
            return
        assert (copy.size, copy.checksum, copy.multihash) == (len(data), wrong.checksum, wrong.multihash)
        assert_same_bytes(bench.read(copy.uri), data)

    @needs(Capability.DELETE)
    @pytest.mark.parametrize("size", ["as large", "smaller"])
    def test_original_replaced_during_a_known_copy(self, bench: Bench, size: str) -> None:
        """A copy of an image that is deleted and added anew meanwhile has the old bytes, or fails and leaves nothing:
        size and digests are those of the old."""
        data = payload(3 * bench.part + 1)
        other = payload(len(data) if size == "as large" else bench.part + 1, "another")
        original_id, image_id = bench.new_id(), bench.new_id("copy")
        original = bench.add(original_id, data)
        replaced_by: list[StoredImage] = []

        def progress(done: int, total: int | None) -> None:
            if not replaced_by:
                bench.remove(original.uri)
                replaced_by.append(bench.add(original_id, other))

        try:
            copy = _copy(bench, original, image_id, progress=progress)
        except StoreError:
            bench.assert_nothing_left(image_id)
        else:
            assert_same_bytes(bench.read(copy.uri), data)
            assert bench.store.get_size(copy.uri) == copy.size
        assert replaced_by, "progress was not called during the copy"
        assert_same_bytes(bench.read(replaced_by[0].uri), other)

    # -- Much at once -----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("size", ["1", "3 parts+1"])
    @sampled(lambda size: size != "1")
    def test_racing_known_copies_of_one_id(self, bench: Bench, size: str) -> None:
        """Of copies racing for one id one remains, whole. With ATOMIC_ADD one succeeds; others are Duplicate."""
        images = [payload(bench.sizes()[size], f"original {number}") for number in range(2)]
        originals = [bench.add(bench.new_id(), data) for data in images]
        image_id = bench.new_id("copy")
        start, last = threading.Barrier(RACERS), threading.Barrier(RACERS)

        def race(racer: int) -> StoredImage | Exception:
            original = originals[racer % len(originals)]

            def progress(done: int, total: int | None) -> None:
                if done == original.size:
                    _meet(last)

            _meet(start)
            try:
                return _copy(bench, original, image_id, progress=progress)
            except Exception as error:  # noqa: BLE001  (looked at below)
                last.abort()
                return error

        with ThreadPoolExecutor(RACERS) as pool:
            results = list(pool.map(race, range(RACERS)))
        won = [result for result in results if isinstance(result, StoredImage)]
        lost = [result for result in results if not isinstance(result, StoredImage)]
        assert {type(error) for error in lost} <= {Duplicate}, f"a loser got another error than Duplicate: {lost}"
        assert won, "nobody won"
        if bench.can(Capability.ATOMIC_ADD):
            assert len(won) == 1, f"{len(won)} copies to one id succeeded in spite of ATOMIC_ADD"
        assert len({copy.uri for copy in won}) == 1
        found = hashlib.sha512(bench.read(won[0].uri)).hexdigest()
        assert found in {copy.multihash for copy in won}, "what is readable is not what a copy returned"
        for original, data in zip(originals, images, strict=True):
            assert_same_bytes(bench.read(original.uri), data)
        if bench.can(Capability.DELETE):
            bench.remove(won[0].uri)
            if bench.can(Capability.GC) and not bench.can(Capability.ATOMIC_ADD):
                bench.store.gc(0, prefix=image_id)
            bench.assert_nothing_left(image_id)

    @needs(Capability.GC)
    @pytest.mark.parametrize("when", ["under way", "before it is published"])
    def test_gc_of_another_object_leaves_no_copy_without_data(self, bench: Bench, when: str) -> None:
        """A copy is spared by ``gc`` of another object of the store, or it fails: it never succeeds without data."""
        other = bench.second_store()
        data = payload(3 * bench.part + 1)
        original_id, image_id = bench.new_id(), bench.new_id("copy")
        original = bench.add(original_id, data)

        def collect(*_: object) -> None:
            for prefix in (image_id, original_id):
                other.gc(0, prefix=prefix)

        def committing(commit: Callable[..., Any]) -> Any:
            if when != "under way":
                collect()
            return commit()

        try:
            with _commits_changed(bench, committing):
                copy = _copy(bench, original, image_id, progress=collect if when == "under way" else None)
        except StoreError:
            bench.assert_nothing_left(image_id)
        else:
            collect()
            assert_same_bytes(bench.read(copy.uri), data)
            assert copy.size == bench.store.get_size(copy.uri) == len(data)
        assert_same_bytes(bench.read(original.uri), data)


def _copy(bench: Bench, original: StoredImage, image_id: str, **options: Any) -> StoredImage:
    """With the digests of the original."""
    digests = Digests(original.checksum, original.multihash)
    copy = bench.copy(original.uri, image_id, digests=digests, **options)
    assert (copy.size, copy.checksum, copy.multihash) == original[1:4]
    return copy


def _seen(bench: Bench, stored: StoredImage, image_id: str) -> tuple[object, ...]:
    """All that tells whether an image or something beside it was touched."""
    info = bench.store.stat(stored.uri) if bench.can(Capability.STAT) else None
    return bench.store.get_size(stored.uri), info, bench.residue(image_id)


def _recorded(bench: Bench, uri: str) -> list[tuple[str, str]]:
    with bench.readers_changed(lambda reader: None) as opened, bench.store.get(uri).data:
        return [digest for reader in opened if (digest := getattr(reader, "digest", None)) is not None]


@contextmanager
def _commits_changed(bench: Bench, change: Callable[[Callable[[], Any]], Any]) -> Iterator[list[str]]:
    """Whatever publishes a copy passes through ``change``, be it a ServerSideCopy or a Writer; the list tells what did.

    Twice where a ServerSideCopy publishes by a Writer.
    """
    changed: list[str] = []
    plain_copy = bench.store.server_side_copy

    def through(owner: object, name: str) -> None:
        plain = getattr(owner, name)

        def published(*arguments: Any) -> Any:
            changed.append(name)
            return change(lambda: plain(*arguments))

        vars(owner)[name] = published

    def change_writer(writer: Writer) -> None:
        through(writer, "commit")
        if writer.put is not None:
            through(writer, "put")

    def server_side_copy(*arguments: Any) -> ServerSideCopy | None:
        copy: ServerSideCopy | None = plain_copy(*arguments)
        if copy is not None:
            through(copy, "commit")
        return copy

    with bench.writers_changed(change_writer), replaced(bench.store, "server_side_copy", server_side_copy):
        yield changed


@contextmanager
def _copies_changed(bench: Bench, change: Callable[[ServerSideCopy], None]) -> Iterator[None]:
    """Every copy that the back end makes meanwhile passes through ``change`` first."""
    plain = bench.store.server_side_copy

    def changed(*arguments: Any) -> ServerSideCopy | None:
        copying = plain(*arguments)
        if copying is not None:
            change(copying)
        return copying

    with replaced(bench.store, "server_side_copy", changed):
        yield


def _meet(barrier: threading.Barrier) -> None:
    """Wait for the others, not for ever, and not once one of them is known not to come."""
    try:
        barrier.wait(2)
    except threading.BrokenBarrierError:
        pass

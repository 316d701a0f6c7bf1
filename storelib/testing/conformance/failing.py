# SPDX-License-Identifier: Apache-2.0
"""An add that fails leaves nothing, shows nothing and hides nothing: whose error it was, and what it was."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storelib.capabilities import Capability
from storelib.driver import Part, Store, Writer
from storelib.exceptions import (
    Duplicate,
    Invalid,
    RemoteServiceUnavailable,
    StorageFull,
    StorageWriteDenied,
    StoreError,
    UnknownHashingAlgo,
)
from storelib.testing.conformance.bench import SEVERAL_BLOCKS, Bench, assert_same_bytes, not_applicable, payload
from storelib.testing.conformance.promises import Promises, needs, sampled
from storelib.testing.conformance.sources import RaisingFile, chunks, raising


class Cancelled(BaseException):
    """What a caller raises to cancel; not an Exception, as KeyboardInterrupt is none."""


ERRORS: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("the source broke"),
    "OSError": lambda: OSError(errno.ENOSPC, "no space where the source comes from"),
    "NotFound": lambda: FileNotFoundError("the source is gone"),
    "transient StoreError": lambda: RemoteServiceUnavailable("the store the source comes from"),
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(3),
    "BaseException": Cancelled,
}


@needs(Capability.ADD | Capability.READ)
class Failing(Promises):
    """Promises of an add that fails."""

    @pytest.mark.parametrize("error", ERRORS)
    @sampled(lambda error: error in ("transient StoreError", "BaseException"))
    def test_error_of_the_source_passes_through(self, bench: Bench, error: str) -> None:
        """What the source raises reaches the caller as it is, and nothing is left."""
        raised = ERRORS[error]()
        image_id = bench.new_id()
        with self.refuses(bench, type(raised)) as caught:
            bench.add(image_id, raising(payload(2 * bench.part + 77), raised))
        assert caught.value is raised, "another error than the source's own"
        bench.assert_nothing_left(image_id)

    @pytest.mark.parametrize("size", ["0", "1", "part", "3 parts+1"])
    @pytest.mark.parametrize("kind", ["iterator", "file"])
    @sampled(lambda size, kind: size == ("part" if kind == "file" else "3 parts+1"))
    def test_failed_source_leaves_nothing(self, bench: Bench, size: str, kind: str) -> None:
        """However far a source came before it failed, nothing is left, and no thread."""
        data = payload(bench.sizes()[size])
        raised = ValueError("the source broke")
        image_id = bench.new_id()
        with bench.no_thread_left(), self.refuses(bench, ValueError) as caught:
            bench.add(image_id, raising(data, raised) if kind == "iterator" else RaisingFile(data, raised))
        assert caught.value is raised, "another error than the source's own"
        bench.assert_nothing_left(image_id)

    def test_failed_source_of_declared_size_leaves_nothing(self, bench: Bench) -> None:
        """Nor when all bytes came that were announced, and the error after them."""
        data = payload(2 * bench.part)
        image_id = bench.new_id()
        with self.refuses(bench, ValueError):
            bench.add(image_id, raising(data, ValueError("the source broke")), len(data))
        bench.assert_nothing_left(image_id)

    @pytest.mark.parametrize("after", ["0", "1", "part+1", "all"])
    @sampled(lambda after: after in ("0", "all"))
    def test_cancelled_add_leaves_nothing(self, bench: Bench, after: str) -> None:
        """What ``progress`` raises cancels the add, reaches the caller as it is, and nothing is left."""
        data = payload(3 * bench.part + 1)
        limit = len(data) if after == "all" else bench.sizes()[after]
        raised = Cancelled()
        image_id = bench.new_id()

        def progress(done: int, total: int | None) -> None:
            if done >= limit:
                raise raised

        with bench.no_thread_left(), self.refuses(bench, Cancelled) as caught:
            bench.add(image_id, chunks(data, 65_536), len(data), progress=progress)
        assert caught.value is raised
        bench.assert_nothing_left(image_id)

    @pytest.mark.parametrize("size", ["1", "several blocks"])
    def test_failing_verifier_leaves_nothing(self, bench: Bench, size: str) -> None:
        """A verifier that fails stops the add as a failing digest would, and nothing is left."""
        image_id = bench.new_id()
        data = payload(1 if size == "1" else max(SEVERAL_BLOCKS, 2 * bench.part))

        class Failing:
            def update(self, chunk: bytes) -> None:
                raise ArithmeticError("the digest broke")

        with self.refuses(bench, ArithmeticError):
            bench.add(image_id, chunks(data, 65_536), verifier=Failing())
        bench.assert_nothing_left(image_id)

    @pytest.mark.parametrize("algorithm", ["", "no-such-algorithm", "shake_128", "shake_256"])
    def test_unknown_algorithm_touches_nothing(self, bench: Bench, algorithm: str) -> None:
        """An algorithm that does not exist or has no fixed length is refused before anything else happens."""
        touched = []

        def source() -> Iterator[bytes]:
            touched.append("source")
            yield b"data"

        with bench.writers_changed(lambda writer: None) as opened, self.refuses(bench, UnknownHashingAlgo):
            bench.add(bench.new_id(), source(), hashing_algo=algorithm)
        assert not touched
        assert not opened

    @pytest.mark.parametrize("data", [None, 7, object()], ids=["None", "number", "object"])
    @sampled(lambda data: data is None)
    def test_what_is_no_source_is_refused(self, bench: Bench, data: Any) -> None:
        """Anything but a path, bytes, a file object or an iterator is Invalid."""
        image_id = bench.new_id()
        with self.refuses(bench, Invalid):
            bench.add(image_id, data)
        bench.assert_nothing_left(image_id)

    def test_source_that_yields_text_is_refused(self, bench: Bench) -> None:
        """A source must yield bytes."""
        image_id = bench.new_id()
        with self.refuses(bench, Invalid):
            bench.add(image_id, iter([payload(bench.part), "text"]))
        bench.assert_nothing_left(image_id)

    def test_vanished_path_is_the_callers_error(self, bench: Bench, tmp_path: Path) -> None:
        """A path that is not there is an OSError, not an error of the store."""
        image_id = bench.new_id()
        with self.refuses(bench, OSError):
            bench.add(image_id, tmp_path / "gone")
        bench.assert_nothing_left(image_id)

    @pytest.mark.parametrize("error", [StorageFull, StorageWriteDenied], ids=["full", "denied"])
    @pytest.mark.parametrize("number", [0, 2])
    @sampled(lambda error, number: (number == 0) == (error is StorageFull))
    def test_failed_part_leaves_nothing(self, bench: Bench, error: type[StoreError], number: int) -> None:
        """An error of the back end in the middle reaches the caller, and nothing is left."""

        def change(writer: Writer) -> None:
            plain = writer.write

            def write(part: Part) -> None:
                if part.number == number:
                    raise error("on purpose")
                plain(part)

            vars(writer)["write"] = write

        image_id = bench.new_id()
        with bench.no_thread_left(), bench.writers_changed(change) as opened, self.refuses(bench, error):
            bench.add(image_id, payload(4 * bench.part))
        _must_have_opened(bench, opened)
        bench.assert_nothing_left(image_id)

    @pytest.mark.parametrize("size", ["1", "3 parts+1"])
    def test_failed_commit_leaves_nothing(self, bench: Bench, size: str) -> None:
        """An add whose last step failed after it was done in truth is undone: abort removes its own commit."""
        image_id = bench.new_id()
        lose = _Loses(_LAST_STEP, times=100, error=lambda: StorageWriteDenied("on purpose"))
        with bench.writers_changed(lose) as opened, self.refuses(bench, StorageWriteDenied):
            bench.add(image_id, payload(bench.sizes()[size]))
        _must_have_opened(bench, opened)
        bench.assert_nothing_left(image_id)

    def test_abort_is_harmless_again(self, bench: Bench) -> None:
        """``abort`` of a writer that has written nothing yet, or was aborted before, is no error."""
        image_id = bench.new_id()
        fresh = bench.store.open_writer(image_id, None, None)
        fresh.abort()
        fresh.close()
        writer = bench.begin(bench.store, image_id, payload(bench.part))
        writer.abort()
        writer.abort()
        writer.close()
        bench.assert_nothing_left(image_id)

    @pytest.mark.parametrize("size", ["1", "3 parts+1"])
    @pytest.mark.parametrize("step", ["write", "last"])
    @sampled(lambda step, size: step == "last" or size != "1")
    def test_lost_response_is_no_failure(self, bench: Bench, step: str, size: str) -> None:
        """A step that was done but whose response was lost is done again without harm, and is no Duplicate."""
        if not bench.store.conf.transfer_retries:
            not_applicable("the store is configured not to retry")
        data = payload(bench.sizes()[size])
        steps = _LAST_STEP if step == "last" else ("write",)
        lose = _Loses(steps, times=1, error=lambda: RemoteServiceUnavailable("on purpose"))
        with bench.writers_changed(lose) as opened:
            stored = bench.add(bench.new_id(), data)
        _must_have_opened(bench, opened)
        assert_same_bytes(bench.read(stored.uri), data)

    @pytest.mark.parametrize("size", ["1", "3 parts+1"])
    def test_duplicate_leaves_the_image_untouched(self, bench: Bench, size: str) -> None:
        """Adding an id that exists is Duplicate; the image that is there stays as it is."""
        image_id = bench.new_id()
        data = payload(bench.sizes()[size], "first")
        stored = bench.add(image_id, data)
        before = bench.residue(image_id)
        for other in (payload(len(data), "other"), payload(2 * bench.part + 5, "longer"), b""):
            with self.refuses(bench, Duplicate):
                bench.add(image_id, other)
        assert_same_bytes(bench.read(stored.uri), data)
        assert bench.residue(image_id) == before

    @pytest.mark.parametrize("size", ["1", "3 parts+1"])
    def test_duplicate_is_noticed_at_commit(self, bench: Bench, size: str) -> None:
        """An image that appeared while another of the same id was on its way stays untouched."""
        image_id = bench.new_id()
        first, second = payload(bench.sizes()[size], "first"), payload(bench.sizes()[size], "second")
        uris = []

        def source() -> Iterator[bytes]:
            yield first[: len(first) // 2]
            uris.append(bench.add(image_id, second).uri)
            yield first[len(first) // 2 :]

        with self.refuses(bench, Duplicate):
            bench.add(image_id, source())
        assert_same_bytes(bench.read(uris[0]), second)
        bench.remove(uris[0])
        if bench.can(Capability.DELETE):
            bench.assert_nothing_left(image_id)


#: An image that fits in one part is published by the first if the writer has it, all others by the second.
_LAST_STEP = ("put", "commit")


class _Loses:
    """Makes steps of a writer raise after they were done."""

    def __init__(self, steps: tuple[str, ...], times: int, error: Callable[[], StoreError]) -> None:
        self._steps = steps
        self._times = times
        self._error = error

    def __call__(self, writer: Writer) -> None:
        for name in self._steps:
            step = getattr(writer, name)
            if step is not None and (name != "write" or writer.retryable):
                vars(writer)[name] = self._losing(step)

    def _losing(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def done_but(*arguments: Any) -> Any:
            result = step(*arguments)
            if self._times:
                self._times -= 1
                raise self._error()
            return result

        return done_but


def _must_have_opened(bench: Bench, opened: list[Writer]) -> None:
    if not opened:
        assert type(bench.store).add is not Store.add, "Store.add did not call open_writer"
        not_applicable("the driver does not write through open_writer")

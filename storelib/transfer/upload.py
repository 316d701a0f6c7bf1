# SPDX-License-Identifier: Apache-2.0
"""Adding: one source, one set of digests, one StoreUpload per store; parts are written while the next ones are read.

The caller's thread reads the source and runs ``progress``; digests and writes run beside it. Whatever goes wrong, in
whichever thread, ends here: in-flight calls are waited for, the writer aborts, and the first cause is raised.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

from storelib.exceptions import Invalid, StoreError
from storelib.transfer.blocks import BlockSink
from storelib.transfer.contract import (
    Backend,
    Context,
    Digests,
    Extent,
    MiB,
    Progress,
    StoredImage,
    check_given,
)
from storelib.transfer.cutting import PartCutter
from storelib.transfer.digests import Digesting, Verifier
from storelib.transfer.download import ImageData, ImageStream
from storelib.transfer.memory import MemoryBudget
from storelib.transfer.monitor import Monitor
from storelib.transfer.ranges import RangeCutter
from storelib.transfer.source import Data, GivenFile, Source, file_extents, open_source
from storelib.transfer.store_upload import StoreUpload
from storelib.transfer.verifying import Verify, comparing

_T = TypeVar("_T")

#: Bytes a back end is asked to clone in one call, so that progress and cancelling work in between.
CLONE = 128 * MiB


def add(store: Backend, image_id: str, data: Data | GivenFile, size: int | None = None, **options: Any) -> StoredImage:
    """Add an image to one store: ``fan_out`` with its one result returned or raised."""
    [result] = fan_out([store], image_id, data, size, **options)
    if isinstance(result, StoreError):
        try:
            raise result
        finally:
            # Its traceback refers to this frame, which would refer to it.
            del result
    return result


def fan_out(
    stores: Iterable[Backend],
    image_id: str,
    data: Data | GivenFile,
    size: int | None = None,
    *,
    hashing_algo: str = "sha512",
    digests: Digests | None = None,
    context: Context | None = None,
    verifier: Verifier | None = None,
    progress: Progress | None = None,
    check: Callable[[Digests], object] | None = None,
) -> list[StoredImage | StoreError]:
    """Add one image to several stores with one read and one hash pass.

    Returns one result per store, in order: a StoredImage, or the error of that store; the others go on, and the source
    is read no further once all have failed. What the source, ``verifier`` or ``progress`` raise ends all and passes
    through. With ``digests`` nothing is hashed. ``check`` is given the digests before anything is published; whatever
    it raises ends all. Raises Invalid when no store, or one store twice, is given.
    """
    _check_size(size)
    check_given(progress, digests)
    if verifier is not None and not callable(getattr(verifier, "update", None)):
        raise Invalid(f"verifier must have a method update, which {type(verifier).__name__} has not")
    stores = [a_store(store) for store in stores]
    if not stores:
        raise Invalid("fan_out needs at least one store")
    if twice := [store.name for number, store in enumerate(stores) if store in stores[:number]]:
        raise Invalid(f"store {twice[0]} is named twice: each store keeps an image of one id once")
    monitor = Monitor(max(store.retry_policy.timeout for store in stores))
    md5 = any(store.md5_checksum for store in stores)
    digesting = Digesting(hashing_algo, md5, verifier, digests, monitor)
    source = open_source(data)
    try:
        size = _agreed_size(size, source.size)
        uploads = [
            StoreUpload(
                store,
                image_id,
                size,
                max(store.window // len(stores), 1),
                monitor,
                context,
                source,
                hashed=len(stores) > 1 or not digesting.idle,
            )
            for store in stores
        ]
        try:
            return _transfer(uploads, source, digesting, size, progress, check)
        except BaseException as error:
            monitor.cancel()
            # Ctrl-C in one of them keeps none of the others from its abort.
            with contextlib.ExitStack() as aborts:
                for upload in uploads:
                    aborts.callback(upload.abort)
            if _is_of_the_last_store(error, uploads):
                return [upload.failure() for upload in uploads]
            raise
        finally:
            with contextlib.ExitStack() as ends:
                ends.callback(monitor.forget)
                ends.callback(digesting.join)
                for upload in uploads:
                    ends.callback(upload.end)
                monitor.cancel()
    finally:
        source.close()


class _Readable(Protocol):
    """The store that an image is copied from, as far as ``copy`` knows it."""

    def get(self, location: Any, *, context: Context | None = None, verify: Verify = None) -> ImageData:
        """The image as a stream."""


def copy(
    source: _Readable,
    location: Any,
    target: Backend,
    image_id: str,
    *,
    digests: Digests | None = None,
    hashing_algo: str = "sha512",
    context: Context | None = None,
    progress: Progress | None = None,
    verify: Verify = None,
) -> StoredImage:
    """Copy an image from one store to another, holes included; with ``digests`` nothing is hashed.

    ``verify`` is that of ``Store.get``; what is not as expected is not stored. Raises what ``source.get`` and
    ``target.add`` raise.
    """
    # What was recorded is compared below, in the same pass that hashes.
    late = verify is True and digests is None
    a_store(target)
    with a_store(source).get(location, context=context, verify=None if late else verify).data as stream:
        return add_stream(
            target,
            image_id,
            stream,
            verify=late,
            hashing_algo=hashing_algo,
            digests=digests,
            context=context,
            progress=progress,
        )


def add_stream(
    target: Backend, image_id: str, stream: ImageStream, *, verify: bool, hashing_algo: str = "sha512", **options: Any
) -> StoredImage:
    """Add what comes out of a store; with ``verify`` compared with the digest that was recorded there.

    One of the algorithm ``hashing_algo`` is computed anyway, so nothing is hashed twice. Raises what ``add`` and
    ``ImageStream.verify_recorded`` raise, DigestMismatch among them.
    """
    check = None
    if verify:
        known = stream.digest
        if known is not None and known.algorithm == hashing_algo:
            check = comparing(stream.recorded_digest(), stream.subject)
        else:
            stream.verify_recorded()
    return add(target, image_id, stream, stream.size, hashing_algo=hashing_algo, check=check, **options)


def a_store(given: _T) -> _T:
    """``given``, unless it plainly is no store; raises Invalid then. An id is what is given for one most often."""
    if given is None or isinstance(given, (str, bytes, int, float, os.PathLike)):
        raise Invalid(f"expected a store, such as registry['fast'], not {type(given).__name__}")
    return given


def _check_size(size: int | None) -> None:
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise Invalid(f"size must be a whole number of bytes, 0 or more, or None, not {size!r:.80}")


def _agreed_size(declared: int | None, known: int | None) -> int | None:
    if declared is not None and known is not None and declared != known:
        raise _wrong_size(declared, f"the source has {known}")
    return known if declared is None else declared


def _wrong_size(size: int, found: str) -> Invalid:
    return Invalid(f"the declared size is {size} bytes, but {found}; nothing was stored")


def _is_of_the_last_store(error: BaseException, uploads: list[StoreUpload]) -> bool:
    """Whether ``error`` is what left no store; else it is the source's, or the like."""
    errors = [upload.calls.error for upload in uploads]
    return any(each is error for each in errors) and all(isinstance(each, StoreError) for each in errors)


def _transfer(
    uploads: list[StoreUpload],
    source: Source,
    digesting: Digesting,
    size: int | None,
    progress: Progress | None,
    check: Callable[[Digests], object] | None,
) -> list[StoredImage | StoreError]:
    """Everything between opening the writers and their results."""
    live = _LiveUploads(uploads)
    live.each(StoreUpload.open)
    done = None
    if len(uploads) == 1 and source.descriptor is not None and size is not None:
        parts = uploads[0].parts
        if uploads[0].target.takes_files:
            done = _hand_over(uploads[0], source, digesting, size, progress)
        elif digesting.idle and isinstance(parts, RangeCutter):
            done = parts.send_all(progress)
            source.taken()
            _check_ended(source, size)
    if done is None:
        if len(uploads) == 1:
            done = _pump(source, uploads[0].parts, digesting, size, progress)
        else:
            with _Tee(live, uploads[0].calls.monitor, uploads[0].memory) as tee:
                done = _pump(source, tee, digesting, size, progress)
    live.each(lambda upload: upload.flush())
    digests = digesting.finish()
    if check is not None:
        check(digests)
    live.each(lambda upload: upload.publish(done, digests))
    live.each(StoreUpload.published)
    return [upload.result(done, digests) for upload in uploads]


def _pump(
    source: Source,
    sink: PartCutter | BlockSink,
    digesting: Digesting,
    size: int | None,
    progress: Progress | None,
) -> int:
    """Move all bytes of ``source`` into ``sink`` and the digests, block by block; returns how many."""
    done = 0
    while True:
        if progress is not None:
            progress(done, size)
        hole = source.hole()
        if hole:
            _check_room(done + hole, size)
            while hole:
                count = sink.stretch(hole)
                digesting.zeros(count)
                sink.skip(count)
                done += count
                hole -= count
                if hole and progress is not None:
                    progress(done, size)
            continue
        if done == size:
            _check_ended(source, size)
            return done
        view = sink.block(digesting.let_go, digesting.is_busy)
        buffer, start = sink.buffer, sink.position
        assert buffer is not None  # noqa: S101  (block() got it)
        if size is not None:
            view = view[: size - done]
        count = _fill(source, view)
        if not count:
            if size is not None:
                raise _wrong_size(size, f"the source ended after {done}")
            return done
        digesting.update(buffer, start, start + count)
        sink.push(count)
        done += count


def _fill(source: Source, view: memoryview) -> int:
    """Read until ``view`` is full, the source ends or a hole begins."""
    filled = 0
    while filled < len(view):
        count = source.read_into(view[filled:])
        if not count:
            break
        filled += count
    return filled


def _check_room(done: int, size: int | None) -> None:
    if size is not None and done > size:
        raise _wrong_size(size, "the source has more")


def _check_ended(source: Source, size: int) -> None:
    if source.read_into(memoryview(bytearray(1))) or source.hole():
        raise _wrong_size(size, "the source has more")


def _hand_over(
    upload: StoreUpload, source: Source, digesting: Digesting, size: int, progress: Progress | None
) -> int | None:
    """Let the back end take a local file by itself; None where it must be read after all."""
    target = upload.target
    descriptor = source.descriptor
    assert descriptor is not None  # noqa: S101  (the caller asked)
    copied = target.share(descriptor, size)
    if copied is None and source.given:
        copied = target.take(descriptor, size)
    if copied is None and digesting.idle and target.writer.clone is not None:
        extents = file_extents(descriptor, 0, size) if target.writer.sparse else [Extent(0, size, data=True)]
        for extent in extents:
            end = extent.offset + extent.length
            for offset in range(extent.offset, end, CLONE) if extent.data else ():
                target.clone(descriptor, offset, min(CLONE, end - offset))
                if progress is not None:
                    progress(min(offset + CLONE, end), size)
        source.taken()
        return size
    if copied is None:
        return None
    if not digesting.idle:
        # The digests are those of the writer's own copy, whatever happens to the source meanwhile.
        own = open_source(f"/proc/self/fd/{copied}")
        try:
            monitor = upload.calls.monitor
            with BlockSink(monitor, monitor.changed, upload.memory) as sink:
                _pump(own, sink, digesting, size, progress)
        finally:
            own.close()
    elif progress is not None:
        progress(size, size)
    source.taken()
    return size


class _LiveUploads:
    """The uploads that have not failed."""

    def __init__(self, uploads: list[StoreUpload]) -> None:
        self.uploads = list(uploads)

    def each(self, step: Callable[[StoreUpload], None]) -> None:
        """Take one step in every upload; those that fail drop out. Raises when none is left."""
        for upload in list(self.uploads):
            try:
                step(upload)
            except StoreError as error:
                upload.drop(error)
                self.uploads.remove(upload)
                if not self.uploads:
                    raise


class _Tee(BlockSink):
    """Copies each block into the uploads that are still live."""

    def __init__(self, live: _LiveUploads, monitor: Monitor, memory: MemoryBudget) -> None:
        super().__init__(monitor, monitor.changed, memory)
        self._live = live

    def take(self, data: memoryview) -> None:
        """Copy the block into every upload."""
        self._live.each(lambda upload: upload.parts.take(data))

    def stretch(self, length: int) -> int:
        """The same for all uploads, or all of it: none is to write a part that it could leave out."""
        found = {upload.parts.stretch(length) for upload in self._live.uploads}
        return found.pop() if len(found) == 1 else length

    def skip(self, length: int) -> None:
        """A hole in every upload."""
        self._live.each(lambda upload: upload.parts.skip(length))

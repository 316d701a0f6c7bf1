# SPDX-License-Identifier: Apache-2.0
"""StoreUpload: one writer's side of an upload: its buffers and the order of its calls, which a TaskQueue makes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from storelib.exceptions import StoreError
from storelib.transfer.buffers import IN_ORDER, Buffer, Pool
from storelib.transfer.contract import (
    Backend,
    Committed,
    Digests,
    Part,
    StoredImage,
    Writer,
    at_fault,
    check_numbers,
    is_whole,
)
from storelib.transfer.digests import BLOCK, ZEROS
from storelib.transfer.monitor import Monitor
from storelib.transfer.source import GRAIN
from storelib.transfer.tasks import Task, TaskQueue
from storelib.uris import StoreLocation

#: The room before reserve() was called: less than any image needs, even an empty one.
UNASKED = -1


class StoreUpload:
    """One writer with its buffers, its threads and its error; driven by the caller's thread."""

    def __init__(
        self, store: Backend, image_id: str, size: int | None, budget: int, monitor: Monitor, context: Any
    ) -> None:
        self.store = store
        self.monitor = monitor
        self.writer: Writer
        self.buffer: Buffer | None = None
        self._pool: Pool | None = None
        self._image_id = image_id
        self._size = size
        self._context = context
        self._budget = budget
        self._subject = f"image {image_id!r} in store {store.name}"
        self._tasks = TaskQueue(store, self._subject, monitor)
        self._opened = False
        self._unclosed: Writer | None = None
        # The window is the part being filled: `_filled` bytes of the `_window` bytes that begin at `_offset`.
        self._number = 0
        self._offset = 0
        self._window = 0
        self._filled = 0
        self._held: Buffer | None = None  # a full first part, while it may be the only one
        self._room: int | None = UNASKED  # what reserve() answered
        self._commit: Task | None = None

    # -- Steps of a transfer, in order ------------------------------------------------------------------------

    def open(self) -> None:
        """Get the writer from the driver."""
        policy, store = self.store.retry_policy, self.store
        self.writer = policy.ask(
            lambda: store.start_writer(self._image_id, self._size, self._context), store.map_error, self._subject
        )
        if not isinstance(self.writer, Writer):
            raise at_fault(self._subject, "what open_writer gave", self.writer)
        self._opened = True
        self._unclosed = self.writer
        self._window = self._next_window()
        check_numbers(self.writer, self._subject, concurrency=1)
        in_order = self.writer.concurrency == 1
        budget = IN_ORDER if in_order else (self.writer.concurrency + 1) * self._window
        self._pool = Pool(self.monitor.changed, min(max(budget, IN_ORDER), self._budget))

    @property
    def takes_files(self) -> bool:
        """The writer may be able to take a local file by itself."""
        return self._opened and (self.writer.clone is not None or self.writer.share is not None)

    def block(self) -> memoryview:
        """Memory for the next bytes of the image, a block at most; waits until there is some."""
        self._tasks.check()
        if self.buffer is None:
            assert self._pool is not None  # noqa: S101  (open() made it)
            self.buffer = self._pool.take(self._window, self._tasks.wait_for)
        return self.buffer.memory[self._filled : min(self._filled + BLOCK, self._window)]

    def push(self, count: int) -> None:
        """``count`` bytes of ``block()`` have been filled."""
        self._write_held()
        self._filled += count
        if self._filled == self._window:
            self._submit()

    def take(self, data: memoryview) -> None:
        """Copy ``data`` in."""
        while data:
            view = self.block()
            count = min(len(view), len(data))
            view[:count] = data[:count]
            self.push(count)
            data = data[count:]

    def skip(self, length: int) -> None:
        """``length`` zero bytes follow; whole windows of them are never written by a sparse writer."""
        while length:
            if self.writer.sparse and self.buffer is None and length >= self._window and not self._fits_put:
                self._tasks.check()
                skipped = length // self._window * self._window
                self._offset += skipped
                length -= skipped
            else:
                # Up to the end of the window: the next one may be left out as a whole.
                count = min(length, BLOCK, self._window - self._filled)
                self.take(memoryview(ZEROS)[:count])
                length -= count

    def share(self, descriptor: int, size: int) -> int | None:
        """Let the writer share a whole local file; None if it cannot."""
        share = self.writer.share
        copied: int | None = None if share is None else self._tasks.call(lambda: share(descriptor, size))
        if copied is not None:
            self._room = None
        return copied

    def clone(self, descriptor: int, offset: int, length: int) -> None:
        """Let the writer copy a range of a local file."""
        clone = self.writer.clone
        assert clone is not None  # noqa: S101  (the caller asked)
        self._ensure_room(offset + length)
        self._tasks.call(lambda: clone(descriptor, offset, length))

    def flush(self) -> None:
        """Wait until every byte is written, unless all of them go out with ``put``."""
        if self._fits_put:
            return
        if self._filled:
            self._submit()
        self._tasks.drain()

    def publish(self, size: int, digests: Digests) -> None:
        """Start the call that makes the image visible."""
        writer, put = self.writer, self.writer.put
        if put is not None and self._fits_put:
            memory = self._only_part()
            self._commit = self._tasks.start(lambda: put(memory, digests))
            return
        self._ensure_room(size)
        self._commit = self._tasks.start(lambda: writer.commit(size, digests))

    def published(self) -> None:
        """Wait for that call."""
        self._tasks.drain()
        assert self._commit is not None  # noqa: S101  (publish() started it)
        location = getattr(self._commit.answer, "location", None)
        if not isinstance(location, StoreLocation):
            raise self._at_fault("what publishing answered", self._commit.answer)

    def result(self, size: int, digests: Digests) -> StoredImage | StoreError:
        """The outcome of this upload."""
        if (error := self._tasks.error) is not None:
            assert isinstance(error, StoreError)  # noqa: S101  (others were raised)
            return error
        assert self._commit is not None  # noqa: S101
        committed: Committed = self._commit.answer
        metadata = {**committed.metadata, "store": self.store.name}
        return StoredImage(committed.location.uri, size, digests.checksum, digests.multihash, metadata)

    # -- When it goes wrong -----------------------------------------------------------------------------------

    def drop(self, error: StoreError) -> None:
        """This upload failed and the others go on."""
        self._tasks.error = error
        self.abort()

    def abort(self) -> None:
        """Wait for calls in flight, then have the writer remove everything; harmless when done twice."""
        if not self._opened:
            return
        self._opened = False
        self._tasks.abort(self.writer.abort)

    def join(self) -> None:
        """End the threads that are not inside the driver."""
        self._tasks.join()
        # Errors refer to frames and frames to uploads: without this, memory would wait for the garbage collector.
        self.buffer = self._held = None
        self._commit = None
        writer, self._unclosed = self._unclosed, None
        if writer is not None:
            self._tasks.close(writer.close)
        if self._pool is not None:
            self._pool.clear()

    # -- Parts ------------------------------------------------------------------------------------------------

    @property
    def _fits_put(self) -> bool:
        """So far the image is no more than the first part of a writer with ``put``."""
        first = self._held is not None or not self._offset
        return self.writer.put is not None and first and self._room == UNASKED

    def _only_part(self) -> memoryview:
        if self._held is not None:
            return self._held.memory[: self._offset]
        return self.buffer.memory[: self._filled] if self.buffer is not None else memoryview(b"")

    def _submit(self) -> None:
        """Write the window, or hold a full first one back while it may be all there is; begin the next."""
        buffer, offset, length = self.buffer, self._offset, self._filled
        assert buffer is not None  # noqa: S101  (there are bytes in it)
        hold = self._fits_put and (self._size is None or self._size <= self._window)
        self.buffer = None
        self._filled = 0
        self._offset += self._window
        if hold:
            self._held = buffer
        else:
            self._write(buffer, offset, length)
        # A part held back counts, too: what follows it goes into a buffer of this size before it is written.
        self._window = self._next_window(self._number + hold)

    def _next_window(self, number: int = 0) -> int:
        window = self.writer.part_size(number, self._size)
        if not is_whole(window) or window < 1:
            raise self._at_fault(f"part_size({number}, {self._size})", window)
        return window

    def _at_fault(self, what: str, answer: object) -> StoreError:
        return at_fault(self._subject, f"{what} of {type(self.writer).__name__}", answer)

    def _write_held(self) -> None:
        """There is more than the first part, so that one is written like the others."""
        if self._held is not None:
            buffer, self._held = self._held, None
            self._write(buffer, 0, self._offset)

    def _write(self, buffer: Buffer, offset: int, length: int) -> None:
        """Queue ``length`` bytes of the image from ``offset`` on; a sparse writer's zeros are left out."""
        window = buffer.memory[:length]
        for start, end in _runs(window) if self.writer.sparse else [(0, length)]:
            self._ensure_room(offset + end)
            part = Part(self._number, offset + start, window[start:end])
            self._number += 1
            buffer.hold()
            self._tasks.start(
                functools.partial(self.writer.write, part),
                at_once=self.writer.concurrency,
                repeatable=self.writer.retryable,
                release=buffer.release,
            )
        buffer.release()

    def _ensure_room(self, end: int) -> None:
        if self._room is None or end <= self._room:
            return
        self._tasks.drain()
        wanted = self._size if self._room == UNASKED and self._size is not None else end
        room = self._tasks.call(lambda: self.writer.reserve(wanted))
        if room is not None and (not is_whole(room) or room < end):
            raise self._at_fault(f"reserve({wanted})", room)
        self._room = room


def _runs(window: memoryview) -> Iterator[tuple[int, int]]:
    """Start and end of each run of grains that are not all zeros."""
    start: int | None = None
    for position in range(0, len(window), GRAIN):
        # bytes.startswith compares with memcmp and copies nothing: over 30 GB/s.
        if ZEROS.startswith(window[position : position + GRAIN]):
            if start is not None:
                yield start, position
            start = None
        elif start is None:
            start = position
    if start is not None:
        yield start, len(window)

# SPDX-License-Identifier: Apache-2.0
"""Reading: ImageStream over a driver's Reader, with retries, exact lengths and, where it pays, ranges ahead."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import operator
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from storelib.exceptions import IncompleteRead, Invalid, OperationNotSupported, StoreError, TransferTimeout
from storelib.transfer.buffers import new_pages
from storelib.transfer.calls import GRACE
from storelib.transfer.contract import Context, Digest, Extent, MiB, Readable, Reader, at_fault, check_numbers, is_whole
from storelib.transfer.deadlines import Deadline, LazyEvent, is_watched, while_wanted
from storelib.transfer.guard import InUse
from storelib.transfer.monitor import Monitor
from storelib.transfer.retry import mapped
from storelib.transfer.tasks import TaskQueue
from storelib.transfer.threads import run_apart
from storelib.transfer.verifying import Check, normal, recorded

LOG = logging.getLogger(__name__)
T = TypeVar("T")

#: Iterating yields this many bytes at a time.
CHUNK = MiB


class ImageData(NamedTuple):
    """What ``Store.get`` returns: the stream and how many bytes it delivers."""

    data: ImageStream
    size: int


def open_stream(
    store: Readable,
    location: Any,
    offset: int,
    length: int | None,
    context: Context | None,
    verify: Digest | bool = False,
) -> ImageStream:
    """A stream of that range of an image, clipped to the image as a slice would be, and compared with a digest."""
    subject = str(location)
    if verify is True and offset:
        raise _not_whole(subject)
    reader: Reader = store.retry_policy.ask(
        lambda: store.open_reader(location, offset, length, context), store.map_error, subject
    )
    if not isinstance(reader, Reader):
        raise at_fault(subject, "what open_reader gave", reader)
    try:
        _check_reader(reader, subject)
    except StoreError:
        mapped(reader.close, store.map_error, subject)
        raise
    start = min(offset, reader.size)
    end = reader.size if length is None else min(start + length, reader.size)
    stream = ImageStream(_Feed(store, reader, subject), start, end)
    try:
        if verify is True:
            stream.verify_recorded()
        elif verify:
            stream.verify(verify)
    except BaseException:
        stream.close()
        raise
    return stream


def _check_reader(reader: Reader, subject: str) -> None:
    """Raise StoreError for numbers that cannot be."""
    if reader.size is None:
        raise StoreError(f"{subject}: the back end does not tell the size of the image")
    check_numbers(reader, subject, size=0, part_size=1, concurrency=1)


def _not_whole(subject: str) -> Invalid:
    return Invalid(f"{subject}: what was recorded is the digest of the whole image, not of a range of it")


class ImageStream(io.RawIOBase):
    """A range of an image as a seekable file; ``size`` is its length in bytes.

    ``readinto`` allocates nothing; ``read(n)`` and iterating give fresh bytes and are filled up. Errors of the back end
    surface here, after the engine's retries; a stream never ends early without one. Close it, or use ``with``. One
    thread reads it at a time; any thread may close it, also under a read, which fails then. A forked child may read on
    with its parent's where the driver says so (``file``, and what comes by HTTP); else that is a StoreError.

    A stream that is compared with a digest cannot seek and has no descriptor.
    """

    _ahead: _ReadAhead | None = None
    _check: Check | None = None

    def __init__(self, feed: _Feed, start: int, end: int) -> None:
        self.size = end - start
        self._feed = feed
        self._start = start
        self._end = end
        self._position = start
        # One buffer, taken out while it is read into: what two threads, which are not allowed, or a signal make of a
        # stream must not have one buffer end up in two streams.
        self._scratch: list[bytearray] = []
        self._streaming = feed.reader.concurrency > 1 and self.size > feed.reader.part_size
        self._data_end = end  # as far as is known: where a hole begins that will be skipped

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.size} bytes of {self.subject}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A copy would close the reader of this one.
        raise TypeError(f"cannot copy or pickle an {type(self).__name__}; get the image once more")

    @property
    def subject(self) -> str:
        """What it is a stream of, without credentials, for messages."""
        return self._feed.subject

    @property
    def digest(self) -> Digest | None:
        """The digest that the driver recorded for the whole image, None where it did not; may ask the back end."""
        return self._feed.digest()

    @property
    def verified_with(self) -> Digest | None:
        """The digest that this stream is compared with, None where it is with none."""
        return None if self._check is None else self._check.expected

    def verify(self, digest: Digest) -> None:
        """Compare what will be read, from here on to the end, with ``digest``: DigestMismatch comes at the end.

        Raises Invalid for what is no digest, UnknownHashingAlgo.
        """
        self._check_open()
        if self._position != self._start or self._check is not None:
            raise Invalid(f"{self._feed.subject}: say what to compare with once, before reading")
        self._check = Check(normal(digest), self._feed.subject, self._feed.policy.timeout, self._feed.memory)

    def verify_recorded(self) -> None:
        """Compare with ``digest``; raises OperationNotSupported where there is none, Invalid for a range."""
        self.verify(self.recorded_digest())

    def recorded_digest(self) -> Digest:
        """``digest``, once it is known to be one of all these bytes; raises what ``verify_recorded`` does."""
        self._check_open()
        subject = self._feed.subject
        if self._start or self._end != self._feed.reader.size:
            raise _not_whole(subject)
        known = self.digest
        if known is None:
            raise OperationNotSupported(f"{subject}: no digest was recorded to compare with; give one of your own")
        return recorded(known, subject)

    def readable(self) -> bool:
        """True, as long as it is open."""
        return True

    def seekable(self) -> bool:
        """Unless it is compared with a digest."""
        return self._check is None

    def tell(self) -> int:
        """The position, counted from the start of the range."""
        self._check_open()
        return self._position - self._start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position within the range; what was read ahead is dropped.

        Raises io.UnsupportedOperation when the stream is compared with a digest, which wants every byte in order.
        """
        self._check_open()
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self.size}.get(whence)
        if base is None or base + offset < 0:
            raise ValueError(f"cannot seek to {offset} (whence {whence})")
        position = self._start + base + operator.index(offset)
        if position != self._position:
            if self._check is not None:
                raise io.UnsupportedOperation("a stream that is compared with a digest is read in order")
            self._drop_ahead()
            self._position = position
        return position - self._start

    def skip_zeros(self, length: int) -> None:
        """Step over a hole of ``length`` bytes that ``extents`` told of, without reading it."""
        if self._check is None:
            self.seek(length, io.SEEK_CUR)
            return
        self._check_open()
        self._drop_ahead()
        self._check.zeros(length)
        self._position += length
        self._check_end()

    def expect_hole(self, position: int | None) -> None:
        """Where the next hole begins that will be skipped, counted from the start of the range; None: there is none.

        What lies behind it is not read ahead.
        """
        self._data_end = self._end if position is None else self._start + position

    def _reading_ahead(self, wanted: int) -> _ReadAhead | None:
        """What reads ahead up to the next hole; None where a single call gets all there is."""
        if self._ahead is not None and self._ahead.exhausted:
            self._drop_ahead()
        if self._ahead is None and self._streaming:
            end = self._data_end if self._data_end > self._position else self._end
            if end - self._position > min(wanted, self._feed.reader.part_size):
                self._ahead = _ReadAhead(self._feed, self._position, end)
                if self._feed.closed.is_set():
                    # Who closed it meanwhile did not know of these threads.
                    self._drop_ahead()
                    self._check_open()
        return self._ahead

    def readinto(self, buffer: Any) -> int:
        """Read up to ``len(buffer)`` bytes into ``buffer``; 0 only at the end of the range."""
        self._check_open()
        view = memoryview(buffer).cast("B")[: max(self._end - self._position, 0)]
        if not view:
            self._check_end()
            return 0
        before = self._position
        try:
            ahead = self._reading_ahead(len(view))
            count = self._feed.read_into(before, view) if ahead is None else ahead.read_into(view)
            self._position += count
            if self._check is not None:
                self._check.update(view[:count])
                self._check_end()
        except BaseException as error:
            self._step_back(before, error)
            raise
        return count

    def _step_back(self, before: int, error: BaseException) -> None:
        """The caller got nothing of what was read since ``before``, because of ``error``; nor has it read ahead."""
        self._drop_ahead()
        if self._check is None:
            self._position = before
        elif self._position != before:
            self._check.give_up(error)

    def _check_end(self) -> None:
        if self._check is not None and self._position >= self._end:
            self._check.finish()

    def read(self, size: int | None = -1) -> bytes:
        """Exactly ``size`` bytes unless the range ends before; all that is left for None or -1."""
        self._check_open()
        before = self._position
        left = max(self._end - before, 0)
        asked = -1 if size is None else operator.index(size)
        want = left if asked < 0 else min(asked, left)
        try:
            return b"".join(self._chunks(want)) if want > CHUNK else self._filled(want)
        except BaseException as error:
            self._step_back(before, error)
            raise

    def _filled(self, want: int) -> bytes:
        """The next ``want`` bytes."""
        if not want:
            self._check_end()
            return b""
        # Read into memory used before and copied once: fresh pages cost more than the copy (measured: ten times).
        scratch = self._scratch.pop() if self._scratch else bytearray()
        if len(scratch) < want:
            scratch = self._feed.memory.scratch(want)
        view = memoryview(scratch)[:want]
        filled = 0
        while filled < want:
            count = self.readinto(view[filled:])
            if not count:
                raise IncompleteRead(f"{self._feed.subject} ended after {self.tell()} of {self.size} bytes")
            filled += count
        data = bytes(view)
        if self._position >= self._end:
            self._feed.memory.keep_scratch(scratch)
        else:
            self._scratch = [scratch]
        return data

    def _chunks(self, want: int) -> Iterator[bytes]:
        while want:
            chunk = self._filled(min(want, CHUNK))
            want -= len(chunk)
            yield chunk

    def readall(self) -> bytes:
        """All that is left."""
        return self.read()

    def __next__(self) -> bytes:
        chunk = self.read(CHUNK)
        if not chunk:
            raise StopIteration
        return chunk

    def extents(self) -> Iterator[Extent]:
        """Data and holes of the range, counted from its start; all data where the back end cannot tell."""
        self._check_open()
        known = self._feed.extents(self._start, self.size)
        if known is None:
            return iter([Extent(0, self.size, data=True)] if self.size else [])
        return (Extent(extent.offset - self._start, extent.length, extent.data) for extent in known)

    def fileno(self) -> int:
        """For an image in a local file: its descriptor, positioned where this stream is, for ``size`` bytes.

        Raises io.UnsupportedOperation for all others.
        """
        self._check_open()
        if self._check is not None:
            raise io.UnsupportedOperation("a stream that is compared with a digest has to be read")
        descriptor = self._feed.fileno()
        if descriptor is None:
            raise io.UnsupportedOperation("not a local file")
        os.lseek(descriptor, self._position, os.SEEK_SET)
        return descriptor

    def whole_file(self) -> int | None:
        """The descriptor of a local file that holds exactly this stream's bytes, if there is one."""
        whole = self._start == 0 and self._end == self._feed.reader.size and self._check is None
        return self._feed.fileno() if whole else None

    def mapped(self, read: Callable[[], T]) -> T:
        """``read()`` of that file; raises what reading this stream does."""
        return self._feed.mapped(read)

    def close(self) -> None:
        """Stop reading ahead, wait for the threads, free the reader; harmless when done twice."""
        if self.closed:
            return
        self._feed.closed.set()
        try:
            self._drop_ahead()
        finally:
            try:
                if self._check is not None:
                    self._check.close()
            finally:
                try:
                    self._feed.close()
                finally:
                    super().close()

    def __del__(self) -> None:
        """Close what was dropped, in a thread of its own where this one may hold what others are waited for with."""
        if self.closed:
            return
        if self._check is None and self._ahead is None:
            self.close()
            return
        try:
            run_apart(self.close, "storelib-close")
        except RuntimeError:
            self.close()

    def _check_open(self) -> None:
        self._feed.check_open()

    def _drop_ahead(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.close()


class _Feed:
    """A Reader with its store's retries and error mapping; what the stream and its threads share."""

    def __init__(self, store: Readable, reader: Reader, subject: str) -> None:
        self.reader = reader
        self.policy = store.retry_policy
        self.hung_calls = store.hung_calls
        self.memory = store.memory
        self.window = store.window
        self.subject = subject
        self._map_error = store.map_error
        self._digest: Digest | None = None
        #: Entered by all that uses the reader: a read may hang, and another thread than the one that reads may close.
        self.in_use = InUse()
        #: Nothing more is to be asked of the reader.
        self.closed = LazyEvent()
        self._reader_closed = False
        self._process = os.getpid()

    def read_into(self, offset: int, view: memoryview, cancelled: LazyEvent | None = None) -> int:
        """Read at least one byte; transient errors and cuts are tried again from the same byte."""

        def attempt() -> int:
            count = self.reader.read_into(offset, view)
            if not is_whole(count) or not 0 <= count <= len(view):
                raise IncompleteRead(
                    f"{self.subject}: the driver is at fault: no more than {len(view)} bytes were asked for; "
                    f"it gave {count!r:.80}"
                )
            if count == 0:
                raise IncompleteRead(f"{self.subject}: cut at byte {offset} of {self.reader.size}", transient=True)
            return count

        def attempts() -> int:
            with Deadline(self.policy.timeout, stream=True):
                return self.policy.call(attempt, self._map_error, self.subject, cancelled or self.closed)

        return self._using(attempts)

    def extents(self, offset: int, length: int) -> Iterator[Extent] | None:
        """Extents in the image's own coordinates."""
        known = self._ask(lambda: self.reader.extents(offset, length))
        return None if known is None else self._lazily(known, offset, offset + length)

    def _lazily(self, known: Iterable[Extent], position: int, end: int) -> Iterator[Extent]:
        """Each extent where the one before it ended; raises StoreError for a driver that leaves out or repeats any.

        After a transient error the driver is asked anew for what comes behind the last one.
        """
        entries: Iterator[Extent] | None = None

        def step() -> Extent | None:
            nonlocal known, entries
            try:
                if entries is None:
                    entries = iter(known)
                return next(entries, None)
            except Exception:
                # A generator that failed gives nothing more.
                entries, known = None, _Again(self.reader, position, end - position)
                raise

        while (extent := self._ask(step)) is not None:
            offset, length, _ = extent
            if not (is_whole(offset) and is_whole(length) and offset == position and 0 < length <= end - position):
                raise StoreError(
                    f"{self.subject}: the driver is at fault: after byte {position} of {end} comes {extent!r:.200}"
                )
            yield extent
            position += length
        if position != end:
            raise StoreError(f"{self.subject}: the driver is at fault: its extents end at byte {position} of {end}")

    def _ask(self, function: Callable[[], T]) -> T:
        return self._using(lambda: self.policy.ask(function, self._map_error, self.subject))

    def digest(self) -> Digest | None:
        """What the driver recorded, which some back ends are asked for only now."""
        if self._digest is None:
            found: Any = self._ask(lambda: self.reader.digest)
            if found is not None and not (
                isinstance(found, tuple) and len(found) == 2 and all(isinstance(item, str) for item in found)
            ):
                raise at_fault(self.subject, f"digest of {type(self.reader).__name__}", found)
            self._digest = None if found is None else Digest(*found)
        return self._digest

    def fileno(self) -> int | None:
        """The descriptor of a local file, if it is one."""
        return self._using(lambda: self.mapped(self.reader.fileno))

    def mapped(self, function: Callable[[], T]) -> T:
        """``function()``, once, with its errors as this store tells them."""
        return mapped(function, self._map_error, self.subject)

    def close(self) -> None:
        """Close the reader, or leave that to a call that is still in it; a forked child leaves its parent's alone."""
        self.closed.set()
        if self._is_own():
            self.in_use.when_free(self._close)

    def _using(self, function: Callable[[], T]) -> T:
        """``function()``, under which the reader is not closed; raises ValueError once it is to be, and StoreError."""
        if not self._is_own():
            raise StoreError(f"{self.subject}: the stream was opened before this process was forked; open another one")
        try:
            self.in_use.enter(function)
            self.check_open()
            return function()
        finally:
            self.in_use.leave(function)

    def _is_own(self) -> bool:
        """Whether this process may use the reader, as its parent may that of which it was forked."""
        process = os.getpid()
        if process != self._process and self.reader.inheritable:
            # Calls that are under way there are none here, and a lock may have been held.
            self.in_use, self._process = InUse(), process
        return process == self._process

    def check_open(self) -> None:
        """Raise ValueError once it is closed, or about to be."""
        if self.closed.is_set():
            raise ValueError("read of a closed image stream")

    def _close(self) -> None:
        # Two threads may close at once, of which one comes after the other here.
        if self._reader_closed:
            return
        self._reader_closed = True
        with Deadline(self.policy.timeout):
            mapped(self.reader.close, self._map_error, self.subject)


class _Again:
    """The extents of a range, asked for when they are iterated over."""

    def __init__(self, reader: Reader, offset: int, length: int) -> None:
        self._reader = reader
        self._offset = offset
        self._length = length

    def __iter__(self) -> Iterator[Extent]:
        known = self._reader.extents(self._offset, self._length)
        return iter([Extent(self._offset, self._length, data=True)] if known is None else known)


class _Range:
    """One range in flight, or read and waiting for its turn."""

    def __init__(self, offset: int, memory: memoryview) -> None:
        self.offset = offset
        self.length = len(memory)
        self.memory = memory
        self.filled = 0
        self.taken = 0
        self.error: BaseException | None = None

    @property
    def has_news(self) -> bool:
        """There are bytes that were not taken yet, or an error."""
        return self.filled > self.taken or self.error is not None


class _ReadAhead:
    """Several ranges in flight, handed on in order, as many as there is memory for.

    The threads refer to this object, never to the stream, so that a dropped stream is collected and closes it.
    """

    def __init__(self, feed: _Feed, start: int, end: int) -> None:
        self._feed = feed
        self._next = start
        self._end = end
        self._part_size = min(feed.reader.part_size, feed.window // 2)
        self._monitor = Monitor(feed.policy.timeout)
        # Then the threads, too, give up what they wait for as soon as the stream is closed.
        self._watched = is_watched()
        self._queue = TaskQueue("storelib-range", self._monitor, self._monitor.cancelled, feed.in_use)
        self._account = feed.memory.account()
        self._hangs = False
        self._ranges: deque[_Range] = deque()
        self._free: deque[memoryview] = deque()
        # One more than are in flight, so that the caller can take a range while the others are being read.
        self._slots = max(2, min(feed.reader.concurrency + 1, feed.window // self._part_size))
        try:
            self._queue_ranges()
        except BaseException:
            # Nobody else knows of the threads that did start.
            self.close()
            raise

    @property
    def exhausted(self) -> bool:
        """Everything was handed on."""
        return not self._ranges

    def read_into(self, view: memoryview) -> int:
        """Copy bytes that have arrived of the first range, waiting for some."""
        head = self._ranges[0]
        try:
            self._monitor.wait_for(lambda: head.has_news)
        except TransferTimeout:
            self._hangs = True
            raise
        ready = head.filled
        if head.taken == ready:
            assert head.error is not None  # noqa: S101  (what has_news promised)
            raise head.error
        count = min(len(view), ready - head.taken)
        view[:count] = head.memory[head.taken : head.taken + count]
        head.taken += count
        if head.taken == head.length:
            self._ranges.popleft()
            self._take_back(head.memory)
            self._queue_ranges()
        return count

    def close(self) -> None:
        """Stop and join the threads; one that never returns is left to itself."""
        try:
            self._monitor.cancel()
            for call in self._queue.join(GRACE if self._hangs else self._feed.policy.timeout):
                self._feed.hung_calls.add(call)
        finally:
            self._account.give_back(self._account.held)
            self._queue.forget()
            for piece in self._ranges:
                # It refers to frames that refer to the piece.
                piece.error = None

    def _queue_ranges(self) -> None:
        """Have ranges read, at least the next one, if there is one."""
        while self._next < self._end and len(self._ranges) < self._slots:
            length = min(self._part_size, self._end - self._next)
            memory = self._memory(length)
            if memory is None:
                break
            piece = _Range(self._next, memory[:length])
            self._next += length
            self._ranges.append(piece)
            self._queue.put(functools.partial(self._fetch, piece))
        self._queue.have_threads(min(len(self._ranges), self._slots - 1))

    def _memory(self, length: int) -> memoryview | None:
        """Memory for a range; None where there is no more beside that of others. The first may have to wait."""
        if self._free:
            return self._free.popleft()
        if not self._account.held:
            self._account.take(length, self._check_open)
        elif not self._account.take_more(length):
            return None
        return memoryview(new_pages(length, will_be_full=True))

    def _take_back(self, memory: memoryview) -> None:
        if self._account.is_short:
            self._account.give_back(len(memory))
        else:
            self._free.append(memory)

    def _fetch(self, piece: _Range) -> None:
        try:
            with while_wanted(self._check_open) if self._watched else contextlib.nullcontext():
                self._fill(piece)
        except BaseException as error:
            piece.error = error
            raise

    def _fill(self, piece: _Range) -> None:
        while piece.filled < piece.length:
            self._check_open()
            view = piece.memory[piece.filled : piece.length]
            piece.filled += self._feed.read_into(piece.offset + piece.filled, view, self._monitor.cancelled)
            self._monitor.beat()

    def _check_open(self) -> None:
        if self._monitor.cancelled.is_set():
            raise TransferTimeout("the stream was closed")

# SPDX-License-Identifier: Apache-2.0
"""StoreUpload: one writer's side of an upload, from its begin to its end, whatever comes between."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

from storelib.exceptions import StoreError
from storelib.transfer.calls import DriverCalls
from storelib.transfer.contract import Backend, Committed, Context, Digests, StoredImage, Writer, at_fault
from storelib.transfer.cutting import PartCutter
from storelib.transfer.monitor import Monitor
from storelib.transfer.ranges import LARGE, RangeCutter
from storelib.transfer.source import Source
from storelib.transfer.tasks import Task
from storelib.transfer.writing import PartWriter
from storelib.uris import StoreLocation


class StoreUpload:
    """One writer with its parts, its calls and their error; driven by the caller's thread."""

    #: From ``open`` on.
    target: PartWriter
    parts: PartCutter | RangeCutter

    def __init__(
        self,
        store: Backend,
        image_id: str,
        size: int | None,
        budget: int,
        monitor: Monitor,
        context: Context | None,
        source: Source,
        *,
        hashed: bool,
    ) -> None:
        self.calls = DriverCalls(store, f"image {image_id!r} in store {store.name}", monitor)
        #: What the transfers of its store may hold together.
        self.memory = store.memory
        self._store = store
        self._start_writer = functools.partial(store.start_writer, image_id, size, context)
        self._size = size
        self._budget = budget
        self._source = source
        self._hashed = hashed
        self._commit: Task | None = None
        self._abort: Callable[[], None] | None = None
        self._ends = contextlib.ExitStack()

    # -- Steps of a transfer, in order ------------------------------------------------------------------------

    def open(self) -> None:
        """Get the writer from the driver."""
        store, subject = self._store, self.calls.subject
        writer = store.retry_policy.ask(self._start_writer, store.map_error, subject)
        if not isinstance(writer, Writer):
            raise at_fault(subject, "what open_writer gave", writer)
        self._abort = writer.abort
        self._ends.callback(self.calls.close, writer.close)
        self.target = PartWriter(writer, self._size, self.calls)
        self.parts = self._cutter()
        self._ends.callback(self.parts.clear)

    def _cutter(self) -> PartCutter | RangeCutter:
        """What cuts the parts; those are not held that are large and can be read again, or need not be read at all."""
        size, writer, part = self._size, self.target.writer, self.target.part_size(0)
        unread = 0 if self._hashed else writer.sends_at_once
        if writer.write_range is not None and size is not None and size > part and (part > LARGE or unread):
            again = self._source.again()
            if again is not None:
                self._ends.callback(self.calls.close, again.close)
                return RangeCutter(self.target, size, again, self.memory, unread)
        return PartCutter(self.target, self._budget, self.memory)

    def flush(self) -> None:
        """Wait until every byte is written, unless all of them go out with ``put``."""
        self.parts.flush()
        self.calls.drain()

    def publish(self, size: int, digests: Digests) -> None:
        """Start the call that makes the image visible."""
        writer, put = self.target.writer, self.target.writer.put
        whole = self.parts.only_part() if self.target.untouched else None
        if put is not None and whole is not None:
            self._commit = self.calls.start(lambda: put(whole, digests))
            return
        self.target.make_room(size)
        self._commit = self.calls.start(lambda: writer.commit(size, digests))

    def published(self) -> None:
        """Wait for that call."""
        self.calls.drain()
        assert self._commit is not None  # noqa: S101  (publish() started it)
        location = getattr(self._commit.result, "location", None)
        if not isinstance(location, StoreLocation):
            raise self.target.at_fault("what publishing gave", self._commit.result)

    def result(self, size: int, digests: Digests) -> StoredImage | StoreError:
        """The outcome of this upload."""
        if self.calls.error is not None:
            return self.failure()
        assert self._commit is not None  # noqa: S101
        committed: Committed = self._commit.result
        metadata = {**committed.metadata, "store": self._store.name}
        return StoredImage(committed.location.uri, size, digests.checksum, digests.multihash, metadata)

    def failure(self) -> StoreError:
        """The error that ended this upload."""
        error = self.calls.error
        assert isinstance(error, StoreError)  # noqa: S101  (others were raised)
        return error

    # -- When it goes wrong -----------------------------------------------------------------------------------

    def drop(self, error: StoreError) -> None:
        """This upload failed and the others go on."""
        self.calls.fail(error)
        self.abort()

    def abort(self) -> None:
        """Wait for calls in flight, then have the writer remove everything; harmless when done twice."""
        abort, self._abort = self._abort, None
        if abort is not None:
            self.calls.abort(abort)

    def end(self) -> None:
        """Close the writer, and end the threads that are not inside the driver."""
        self._ends.close()
        self.calls.forget()
        self._commit = None

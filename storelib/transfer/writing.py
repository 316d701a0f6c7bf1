# SPDX-License-Identifier: Apache-2.0
"""PartWriter: how a driver's writer gets the bytes of an image: room first, then part by part or file by file."""

from __future__ import annotations

import functools
from collections.abc import Callable

from storelib.exceptions import StoreError
from storelib.transfer.calls import DriverCalls
from storelib.transfer.contract import Part, Writer, at_fault, check_numbers, is_whole

#: The room before reserve() was called: less than any image needs, even an empty one.
UNASKED = -1
#: No process has addresses for more.
LARGEST_PART = 1 << 56


class PartWriter:
    """One writer of an image of ``size`` bytes, None if that is unknown; raises StoreError for one that cannot be."""

    def __init__(self, writer: Writer, size: int | None, calls: DriverCalls) -> None:
        check_numbers(writer, calls.subject, concurrency=1)
        self.writer = writer
        self.size = size
        self.calls = calls
        self._room: int | None = UNASKED  # what reserve() returned

    @property
    def untouched(self) -> bool:
        """The writer was given nothing yet."""
        return self._room == UNASKED

    @property
    def takes_files(self) -> bool:
        """The writer may be able to take a local file by itself."""
        writer = self.writer
        return writer.clone is not None or writer.share is not None or writer.take is not None

    def part_size(self, number: int) -> int:
        """Bytes in part ``number``."""
        size = self.writer.part_size(number, self.size)
        if not is_whole(size) or not 1 <= size <= LARGEST_PART:
            raise self.at_fault(f"part_size({number}, {self.size})", size)
        return size

    def share(self, descriptor: int, size: int) -> int | None:
        """Let the writer share a whole local file; None if it cannot."""
        return self._whole(self.writer.share, descriptor, size)

    def take(self, descriptor: int, size: int) -> int | None:
        """Let the writer make a whole local file, which is given away, the image; None if it cannot."""
        return self._whole(self.writer.take, descriptor, size)

    def _whole(self, call: Callable[[int, int], int | None] | None, descriptor: int, size: int) -> int | None:
        copied: int | None = None if call is None else self.calls.call(lambda: call(descriptor, size))
        if copied is not None:
            self._room = None
        return copied

    def clone(self, descriptor: int, offset: int, length: int) -> None:
        """Let the writer copy a range of a local file."""
        clone = self.writer.clone
        assert clone is not None  # noqa: S101  (the caller asked)
        self.make_room(offset + length)
        self.calls.call(lambda: clone(descriptor, offset, length))

    def write(self, part: Part, release: Callable[[], None]) -> None:
        """Queue one part; ``release`` is called when its memory may be used again."""
        self.make_room(part.offset + len(part.data))
        self.calls.start(
            functools.partial(self.writer.write, part),
            at_once=self.writer.concurrency,
            repeatable=self.writer.retryable,
            release=release,
        )

    def make_room(self, end: int) -> None:
        """Reserve room for ``end`` bytes, unless there is as much already; never beside a write."""
        if self._room is None or end <= self._room:
            return
        self.calls.drain()
        wanted = self.size if self.untouched and self.size is not None else end
        room = self.calls.call(lambda: self.writer.reserve(wanted))
        if room is not None and (not is_whole(room) or room < end):
            raise self.at_fault(f"reserve({wanted})", room)
        self._room = room

    def at_fault(self, what: str, given: object) -> StoreError:
        """The error for a writer that gave what cannot be."""
        return at_fault(self.calls.subject, f"{what} of {type(self.writer).__name__}", given)

# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of an add come from: paths, bytes, file objects, iterators, streams of other stores.

Everything here runs in the caller's thread, and a source's own exceptions pass through unchanged.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import io
import itertools
import os
import stat
import sys
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Set
from typing import Any, NamedTuple, Protocol, Union

from storelib.exceptions import IncompleteRead, Invalid
from storelib.readables import fills
from storelib.system_calls import let_go
from storelib.transfer.contract import Extent, KiB, MiB
from storelib.transfer.download import ImageStream

#: Zeros are found and left out in runs of this many bytes, aligned.
GRAIN = 64 * KiB
#: Bytes that are asked of a file object which gives memory of its own: fewer are more calls through readers of readers,
#: more fall out of the processor's cache (measured with Glance's: 256 KiB and 4 MiB take a tenth longer).
_READ = MiB
#: Bytes of one block that is allocated and freed before: glibc then keeps as many (mallopt(3), M_MMAP_THRESHOLD).
_KEPT = 4 * MiB
_NONE = memoryview(b"")


class SupportsRead(Protocol):
    """A file object with ``read``."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, empty at the end."""


class SupportsReadInto(Protocol):
    """A file object with ``readinto``."""

    def readinto(self, buffer: Any, /) -> int | None:
        """Fill ``buffer`` with the next bytes; returns how many, 0 at the end."""


#: What can be iterated over, or has methods of files, but has no bytes in order.
_NO_SOURCES = (type, Mapping, Set)

Data = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, SupportsRead, SupportsReadInto, Iterable[bytes]]


class GivenFile(NamedTuple):
    """The path of a local file that nobody will write to any more: a back end may keep it instead of a copy.

    It keeps the name it has; who gives it removes that.
    """

    path: str


def open_source(data: Data | GivenFile) -> Source:
    """The Source for anything ``add`` takes; raises Invalid for anything else, OSError for a path that fails."""
    if isinstance(data, tuple) and data and isinstance(data[0], ImageStream):
        data = data[0]
    if isinstance(data, GivenFile):
        source = _open_path(data.path)
        source.given = True
        return source
    if isinstance(data, (str, os.PathLike)):
        return _open_path(os.fspath(data))
    if isinstance(data, (bytes, bytearray, memoryview)):
        return BytesSource(_bytes_of(data))
    if isinstance(data, ImageStream):
        return StreamSource(data)
    if _has_descriptor_alone(data):
        if isinstance(data, io.BufferedRandom):
            # What was written and is still in its buffer is nowhere else.
            data.flush()
        return DescriptorSource(data.fileno(), data.tell(), data)  # type: ignore[union-attr]
    if isinstance(data, io.TextIOBase):
        raise Invalid("the source is a text file; open it in binary mode")
    if not isinstance(data, _NO_SOURCES):
        if fills(data):
            return ReadIntoSource(data)
        if callable(getattr(data, "read", None)):
            return ChunkSource(_reads(data))
        if isinstance(data, Iterable):
            return ChunkSource(_items(data))
    if isinstance(data, AsyncIterable):
        raise _asynchronous(data)
    shown = f"the class {data.__name__} itself" if isinstance(data, type) else type(data).__name__
    raise Invalid(f"data must be a path, bytes, a file object or an iterator of bytes, not {shown}")


class Source:
    """Bytes read once from front to back. This one has none; it is the base of the others."""

    #: Length in bytes where the source itself knows it.
    size: int | None = None
    #: Descriptor of a local regular file that holds exactly these bytes from its start on.
    descriptor: int | None = None
    #: Nobody writes to that file any more.
    given = False

    def read_into(self, view: memoryview) -> int:
        """Fill up to ``len(view)`` bytes; returns how many, 0 at the end or where a hole begins."""
        return 0

    def hole(self) -> int:
        """Skip the hole that begins here; returns its length, 0 where there is none."""
        return 0

    def taken(self) -> None:
        """All bytes were taken by way of ``descriptor``."""

    def again(self) -> FileAgain | None:
        """The bytes of a local file, to be read once more at any place; None where they come only once."""
        return None if self.descriptor is None else FileAgain(self.descriptor, 0)

    def close(self) -> None:
        """Close what this source opened itself."""


class FileAgain:
    """A local file from ``origin`` on, by a descriptor of its own."""

    def __init__(self, descriptor: int, origin: int) -> None:
        self._descriptor = os.dup(descriptor)
        self._origin = origin

    def read(self, offset: int, view: memoryview) -> int:
        """Fill ``view`` with bytes from ``offset`` on; returns how many, 0 at the end."""
        return os.preadv(self._descriptor, [view], self._origin + offset)

    def send(self, socket: int, offset: int, count: int) -> int:
        """Send some of ``count`` bytes from ``offset`` on into a socket that takes some; raises OSError."""
        return os.sendfile(socket, self._descriptor, self._origin + offset, count)

    def close(self) -> None:
        """Close the descriptor, once."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            let_go(descriptor)

    __del__ = close


class _ImageAgain(FileAgain):
    """The file of an image in a store, whose errors are those of that store."""

    def __init__(self, descriptor: int, stream: ImageStream) -> None:
        super().__init__(descriptor, 0)
        self._stream = stream

    def read(self, offset: int, view: memoryview) -> int:
        """See FileAgain; raises what reading the stream does."""
        count = self._stream.mapped(functools.partial(super().read, offset, view))
        if not count:
            raise IncompleteRead(f"{self._stream.subject} shrank: it had {self._stream.size} bytes, now {offset}")
        return count


class BytesSource(Source):
    """Bytes that the caller has in memory."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.size = len(data)

    def read_into(self, view: memoryview) -> int:
        """Copy the next bytes."""
        piece = self._data[: len(view)]
        view[: len(piece)] = piece
        self._data = self._data[len(piece) :]
        return len(piece)

    def close(self) -> None:
        """Let a bytearray be resized again, though an error may refer to this."""
        self._data.release()


class ReadIntoSource(Source):
    """A file object that fills a buffer by itself."""

    def __init__(self, file: Any) -> None:
        self._readinto = file.readinto
        http = sys.modules.get("http.client")
        if http is not None and isinstance(file, http.HTTPResponse):
            # One that was cut ends like one that is whole: only what it announced tells.
            self.size = file.length

    def read_into(self, view: memoryview) -> int:
        """Have the file fill ``view`` by one ``readinto``; raises Invalid for a number that cannot be."""
        # It may do with its view what it likes, release it for one.
        room = len(view)
        count = self._readinto(view[:])
        if count is None:
            raise _non_blocking()
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= room:
            raise Invalid(f"the source is at fault: its readinto returned {count!r:.80} for {room} bytes")
        return count


class ChunkSource(Source):
    """An iterator of bytes with chunks of any size, empty ones too."""

    def __init__(self, chunks: Iterator[bytes | memoryview]) -> None:
        self._chunks = chunks
        self._rest = _NONE

    def read_into(self, view: memoryview) -> int:
        """Copy from the chunk at hand, or from the next one that is not empty."""
        while not self._rest:
            try:
                chunk = next(self._chunks)
            except StopIteration:
                return 0
            self._rest = _bytes_of(chunk)
            del chunk
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        # The source may use the memory of this chunk for the next one.
        self._rest = self._rest[count:] if count < len(self._rest) else _NONE
        return count


class _SourceWithHoles(Source):
    """A source that knows its extents: data is read, holes are stepped over in whole grains."""

    def __init__(self, extents: Iterator[Extent] | None, position: int) -> None:
        self._holes = _holes(extents or ())
        self._hole_start: int | None = None
        self._position = self._origin = position
        self._next_hole()

    def read_into(self, view: memoryview) -> int:
        """Read data up to the next hole."""
        if self._hole_start is not None:
            view = view[: self._hole_start - self._position]
        count = self._read(self._position, view) if view else 0
        self._position += count
        return count

    def hole(self) -> int:
        """Step over the hole that begins here."""
        if self._hole_start is None or self._position < self._hole_start:
            return 0
        length = self._hole_end - self._position
        self._position = self._hole_end
        self._next_hole()
        return length

    def taken(self) -> None:
        """Stand at the end."""
        self._position = self._origin + (self.size or 0)
        self._hole_start = None

    def _next_hole(self) -> None:
        """Find the next hole that still has a whole grain in it once its ends are aligned inwards."""
        self._hole_start = None
        for extent in self._holes:
            end = self._origin + extent.offset + extent.length
            start = self._origin + -(-extent.offset // GRAIN) * GRAIN
            if self.size is None or end - self._origin < self.size:
                end = self._origin + (end - self._origin) // GRAIN * GRAIN
            if end > start:
                self._hole_start, self._hole_end = start, end
                return

    def _read(self, position: int, view: memoryview) -> int:
        raise NotImplementedError


class DescriptorSource(_SourceWithHoles):
    """A regular file, read from ``position`` on without moving the descriptor's own position."""

    def __init__(self, descriptor: int, position: int, file: Any = None) -> None:
        self._descriptor = descriptor
        self._file = file
        status = os.fstat(descriptor)
        # Files of /proc and the like have contents but say size 0.
        self.size = max(status.st_size - position, 0) or None
        holes = self.size is not None and status.st_blocks * 512 < status.st_size
        if position == 0 and self.size is not None:
            self.descriptor = descriptor
        super().__init__(file_extents(descriptor, position, self.size or 0) if holes else None, position)

    def _read(self, position: int, view: memoryview) -> int:
        return os.preadv(self._descriptor, [view], position)

    def close(self) -> None:
        """Close the path that was opened, or leave the caller's file where reading stopped."""
        if self._file is None:
            let_go(self._descriptor)
        elif not self._file.closed:
            self._file.seek(self._position)


class StreamSource(_SourceWithHoles):
    """The stream of an image in some store."""

    def __init__(self, stream: ImageStream) -> None:
        self._stream = stream
        position = stream.tell()
        self.size = max(stream.size - position, 0)
        if position == 0:
            self.descriptor = stream.whole_file()
        # Extents count from where the stream is, as far as this source is concerned.
        super().__init__(_from(stream.extents(), position), position)

    def hole(self) -> int:
        """Step over the hole that begins here, in the stream too, which may have to hash it."""
        length = super().hole()
        if length:
            self._stream.skip_zeros(length)
        return length

    def again(self) -> FileAgain | None:
        """The same, with the errors of the store."""
        return None if self.descriptor is None else _ImageAgain(self.descriptor, self._stream)

    def _next_hole(self) -> None:
        super()._next_hole()
        self._stream.expect_hole(self._hole_start)

    def _read(self, position: int, view: memoryview) -> int:
        if self._stream.tell() != position:
            self._stream.seek(position)
        return self._stream.readinto(view)


def _holes(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Each hole as a whole, also where it is told of in several pieces, none of which may have a grain in it."""
    for data, run in itertools.groupby(extents, key=lambda extent: extent.data):
        if not data:
            begin, length, _ = next(run)
            yield Extent(begin, length + sum(extent.length for extent in run), data=False)


def _from(extents: Iterator[Extent], position: int) -> Iterator[Extent]:
    """What of ``extents`` lies at ``position`` and behind it, counted from there."""
    for offset, length, data in extents:
        begin = max(offset, position)
        if begin < offset + length:
            yield Extent(begin - position, offset + length - begin, data)


def file_extents(descriptor: int, offset: int, length: int) -> Iterator[Extent]:
    """Data and holes of a range of a local file, relative to ``offset`` (lseek(2), SEEK_HOLE).

    Moves the descriptor's position and puts it back. A file system that cannot tell reports data.
    """
    position, end = offset, offset + length
    while position < end:
        hole_end = min(_seek(descriptor, position, os.SEEK_DATA, end), end)
        if hole_end > position:
            yield Extent(position - offset, hole_end - position, data=False)
        if hole_end < end:
            data_end = min(_seek(descriptor, hole_end, os.SEEK_HOLE, end), end)
            yield Extent(hole_end - offset, data_end - hole_end, data=True)
            hole_end = data_end
        position = hole_end


def _seek(descriptor: int, position: int, whence: int, end: int) -> int:
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        return os.lseek(descriptor, position, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data up to the end
            return end
        if error.errno == errno.EINVAL:
            return position if whence == os.SEEK_DATA else end
        raise
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)


def _open_path(path: str) -> Source:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return DescriptorSource(descriptor, 0) if stat.S_ISREG(mode) else _OwnFileSource(io.FileIO(descriptor))
    except BaseException:
        let_go(descriptor)
        raise


class _OwnFileSource(ReadIntoSource):
    """A pipe or device that was given by its path."""

    def __init__(self, file: io.FileIO) -> None:
        super().__init__(file)
        self._file = file

    def close(self) -> None:
        """Close the file, which ``open_source`` opened."""
        with contextlib.suppress(OSError):
            self._file.close()


def _has_descriptor_alone(data: Any) -> bool:
    """Whether it is a regular file whose bytes nobody changes: GzipFile, under a buffer, has a descriptor, too."""
    if type(data) not in (io.FileIO, io.BufferedReader, io.BufferedRandom):
        return False
    raw = data if type(data) is io.FileIO else data.raw
    if type(raw) is not io.FileIO or any(not {"read", "readinto"}.isdisjoint(vars(each)) for each in (data, raw)):
        return False
    return bool(data.readable() and stat.S_ISREG(os.fstat(data.fileno()).st_mode))


def _reads(file: Any) -> Iterator[memoryview]:
    # What the file gives could go back to the system each time and be made of fresh pages, which costs half as much
    # again as all else that an add takes of a processor (measured).
    bytearray(_KEPT)
    while True:
        try:
            # Some wrappers ignore the number and give more, which does no harm.
            chunk = file.read(_READ)
        except TypeError as error:
            if _takes_a_number(file.read):
                raise
            raise Invalid(f"{type(file).__name__}.read cannot be told how much to read; give an iterator") from error
        if chunk is None:
            raise _non_blocking()
        view = _bytes_of(chunk)
        del chunk
        if not view:
            return
        yield view
        del view


def _takes_a_number(read: Any) -> bool:
    try:
        inspect.signature(read, follow_wrapped=False).bind(_READ)
    except TypeError:
        return False
    except ValueError:
        # Some of C tell nothing.
        return True
    return True


def _items(data: Iterable[Any]) -> Iterator[Any]:
    try:
        return iter(data)
    except TypeError as error:
        raise Invalid(f"the source is at fault: {error}") from error


def _bytes_of(data: Any) -> memoryview:
    """What a source gave, as plain bytes; raises Invalid for anything else."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        if inspect.isawaitable(data):
            if inspect.iscoroutine(data):
                # Or it is complained of once more, as one that nobody awaited.
                data.close()
            raise _asynchronous(data)
        raise Invalid(f"the source gives {type(data).__name__}, not bytes")
    try:
        return memoryview(data).cast("B")
    except (TypeError, ValueError) as error:
        raise Invalid(f"the source gives a memoryview that is no plain run of bytes: {error}") from error


def _asynchronous(data: object) -> Invalid:
    what = f"{type(data).__name__} has to be awaited"
    return Invalid(f"the source is asynchronous, {what}; give one that is read without, and call from a thread")


def _non_blocking() -> Invalid:
    return Invalid("the source is in non-blocking mode; storelib needs one that waits for data")

# SPDX-License-Identifier: Apache-2.0
"""The two small objects a driver writes, Writer and Reader, and the values that pass between it and the engine.

The engine keeps these promises: calls come in the order described here; nothing calls ``abort`` while
another call is in flight; a memoryview handed to a driver is valid only until the call returns.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeGuard, TypeVar

from storelib.exceptions import Invalid, NotFound, StoreError
from storelib.transfer.memory import MemoryBudget
from storelib.transfer.partfile import RangeFile
from storelib.transfer.retry import HungCalls, RetryPolicy
from storelib.uris import StoreLocation

KiB = 1024
MiB = 1024 * KiB


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a driver or a source gave a whole number where one is expected; truth values are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def at_fault(subject: str, what: str, given: object) -> StoreError:
    """The error for a driver that gave what cannot be; of objects only the type is told, they may hold anything."""
    plain = given is None or isinstance(given, int | float | str)
    shown = f"{given!r:.80}" if plain else f"of the type {type(given).__name__}"
    return StoreError(f"{subject}: the driver is at fault: {what} is {shown}")


def check_numbers(part: object, subject: str, **least: int) -> None:
    """Raise StoreError unless these attributes of a driver's object are whole numbers, and no less than is said."""
    for name, lowest in least.items():
        value = getattr(part, name, None)
        if not is_whole(value) or value < lowest:
            raise at_fault(subject, f"{name} of {type(part).__name__}", value)


class Part(NamedTuple):
    """A run of bytes of an image on its way to a back end; numbers count from 0.

    ``checksum`` is what the writer's ``checksum`` made of ``data``; None where it was not asked as the bytes came in.
    """

    number: int
    offset: int
    data: memoryview
    checksum: int | None = None


class Extent(NamedTuple):
    """A run of an image's bytes, in bytes; ``data=False`` is a hole, which reads as zeros."""

    offset: int
    length: int
    data: bool


class Digests(NamedTuple):
    """Hexadecimal digests of an image: md5 (None when switched off) and one of ``algorithm``."""

    checksum: str | None
    multihash: str
    algorithm: str = "sha512"


class Digest(NamedTuple):
    """One digest of a whole image: ``algorithm`` is one of ``add``'s ``hashing_algo`` or md5, ``value`` hexadecimal.

    Both are written in lower case.
    """

    algorithm: str
    value: str


class Options(Protocol):
    """The options of one store as attributes, its own group first: those of every store, and those of its driver."""

    @property
    def weight(self) -> int:
        """Stores with a higher weight are asked first for an image."""

    @property
    def description(self) -> str | None:
        """One line about this store, for its users."""

    @property
    def read_only(self) -> bool:
        """Whether to refuse to add and delete."""

    @property
    def md5_checksum(self) -> bool:
        """Whether to compute the md5 of added images, too."""

    @property
    def transfer_retries(self) -> int:
        """How often a request is tried again after a transient error."""

    @property
    def transfer_timeout(self) -> float:
        """Seconds without progress after which a transfer is given up."""

    @property
    def transfer_window(self) -> int:
        """MiB that one transfer may hold, unless two parts are more."""

    @property
    def transfer_max_stuck_calls(self) -> int:
        """Calls that never returned after which new transfers are refused."""

    def __getattr__(self, name: str, /) -> Any:
        """An option of the driver."""


class Context(Protocol):
    """Who asks, where a back end has users of its own; the ``context`` of every call, handed on as it was given.

    ``oslo_context.context.RequestContext`` has most of it. A caller may give None, or an object that lacks some of
    these: ask with ``getattr(context, "auth_token", None)``, and raise Forbidden where the driver cannot do without.
    """

    @property
    def auth_token(self) -> str | None:
        """The user's own Keystone token, never to be logged."""

    @property
    def user_id(self) -> str | None:
        """The user's id in Keystone."""

    @property
    def project_id(self) -> str | None:
        """The project in which the user asks; older contexts have it as ``tenant``."""

    @property
    def service_catalog(self) -> Sequence[Mapping[str, Any]] | None:
        """The endpoints that came with the token, in Keystone's form: ``type`` and ``endpoints`` of each service."""


class Progress(Protocol):
    """Called in the caller's thread with bytes taken so far and in all (None: unknown); raising cancels."""

    def __call__(self, done: int, total: int | None, /) -> object:
        """``done`` of ``total`` bytes were taken."""


def check_given(progress: object, digests: object) -> None:
    """Raise Invalid for a ``progress`` that cannot be called, and digests that are none, before anything is done."""
    if progress is not None and not callable(progress):
        raise Invalid(f"progress must be a function of two numbers, or None, not {type(progress).__name__}")
    if digests is not None and not isinstance(digests, Digests):
        raise Invalid(f"digests must be Digests, or None, not {type(digests).__name__}")


class Committed(NamedTuple):
    """What a Writer returns once the image is published."""

    location: StoreLocation
    metadata: Mapping[str, Any] = {}


class StoredImage(NamedTuple):
    """The result of an add. ``size`` is in bytes, digests in hexadecimal; the dict belongs to the caller."""

    uri: str
    size: int
    checksum: str | None
    multihash: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Health:
    """What ``Store.check`` found: one line to be read by the operator, and room in bytes where the back end tells."""

    detail: str
    free: int | None = None
    total: int | None = None


@dataclass(frozen=True)
class ImageInfo:
    """What a back end knows of one image: ``size`` in bytes, ``modified`` in POSIX seconds."""

    uri: str
    size: int
    image_id: str | None = None
    modified: float | None = None
    version: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Garbage:
    """Something a failed add left behind. ``image_id`` is what it was to become, as far as is known."""

    name: str
    image_id: str | None
    size: int
    modified: float
    handle: Any = field(default=None, repr=False, compare=False)


class Writer(abc.ABC):
    """One image on its way into a back end. Making one creates nothing there yet.

    An image that fits in one part of a writer with ``put``: ``put``, nothing else. Otherwise
    ``reserve``, ``write`` ..., ``commit``. ``close`` comes last. ``put`` and ``commit`` may be called again after a
    transient error: leave a random token with what is published, to tell "exists already" from "I did that". A writer
    that is dropped without ``commit`` and ``abort`` is dead, and what it wrote is garbage for ``gc`` to find.
    """

    #: write() calls in flight at most; 1 means in order.
    concurrency: int = 1
    #: Bytes never written read back as zeros up to the committed size. Asked once ``reserve`` was called, if it is.
    sparse: bool = False
    #: A part may be written again; False for one long stream.
    retryable: bool = True
    #: Nothing stays of a writer that died: the back end frees it, as Linux frees a file without a name. Where this is
    #: False and the store has Capability.GC, ``gc`` finds what is left.
    self_cleaning: bool = False
    #: Bytes of the smallest part the back end takes, for tests that lower it; None: parts cannot be lowered.
    smallest_part: int | None = None
    #: ``checksum(data, value) -> value``: a checksum that each part is sent with and that goes on from ``value``, as
    #: ``zlib.crc32`` does. The caller's thread has that of ``Part.checksum`` computed while bytes that just came are in
    #: the processor's cache, in half the time that it takes later. None: the writer sends none.
    checksum: Callable[[memoryview, int], int] | None = None
    #: ``put(data, digests) -> Committed``: publishes a whole image that fits in one part.
    put: Callable[[memoryview, Digests], Committed] | None = None
    #: ``clone(descriptor, offset, length)``: the back end itself copies that range of a local file to the
    #: same offset of the image, faster than reading it would be; used when nothing has to be hashed.
    clone: Callable[[int, int, int], None] | None = None
    #: ``share(descriptor, length)``: take a whole local file without moving bytes (reflink) and return a
    #: descriptor of the writer's own copy, from which the engine hashes; None where that is impossible.
    share: Callable[[int, int], int | None] | None = None
    #: ``take(descriptor, length)``: like ``share``, for a file whose owner gives it away: let the image be another name
    #: of that very file. It keeps the names it has, whatever becomes of the image.
    take: Callable[[int, int], int | None] | None = None

    #: ``write_range(number, file)``: store one part of more than 32 MiB that is not held, the ``RangeFile`` of a local
    #: file, which is read to its end, once or again from its beginning. What ``checksum`` made of its bytes is
    #: ``file.checksum``.
    write_range: Callable[[int, RangeFile], None] | None = None
    #: Bytes that ``write_range`` sends at once without reading them (``UnreadFile``), the faster way for parts of any
    #: size if nothing is hashed: several of them come as one then, of so much at most. 0: it reads them.
    sends_at_once: int = 0

    def part_size(self, number: int, size: int | None) -> int:
        """Bytes in part ``number`` of an image of ``size`` bytes; a pure function.

        A sparse writer's holes begin and end at multiples of 4096 bytes within a part, so those of the image if this is
        one.
        """
        return MiB

    def reserve(self, end: int) -> int | None:
        """Make room for ``end`` bytes; returns how much there is now, None for no limit.

        Called before the first write (with the size when known, for an empty image with 0, unless it goes out with
        ``put``) and again when the image outgrows that, any number of times, never beside a write, so a driver
        grows geometrically and needs no lock. What was written before stays. May be called again after a transient
        error.
        """
        return None

    @abc.abstractmethod
    def write(self, part: Part) -> None:
        """Store one part; repeating it must be harmless unless ``retryable`` is False."""

    @abc.abstractmethod
    def commit(self, size: int, digests: Digests) -> Committed:
        """Publish the image of ``size`` bytes atomically; raises Duplicate if the id exists.

        Raises another StoreError, and publishes nothing, if what was written is no longer all there, as after a ``gc``
        that took this add for dead: compare in the same statement that publishes.
        """

    @abc.abstractmethod
    def abort(self) -> None:
        """Remove everything of this writer, also a commit that did go through, and nothing else's.

        There may be nothing yet: an add can fail before ``reserve``. Like every other call it is made again after a
        transient error. What it raises then is logged, and the caller gets the error that ended the add; what is left
        is for ``gc``.
        """

    def close(self) -> None:  # noqa: B027  (most writers hold nothing)
        """Free what the writer holds; called once, last, whatever became of the image."""


class Deletion:
    """One ``delete``, whose ``remove`` is called again after a transient error: of the image that it met first alone.

    An id may be used again, so by then that image may be gone and another one stand in its place.
    """

    #: What tells the image that was met first from every other, such as its version; None before it is known.
    image: Any = None

    def meet(self, image: object, location: object) -> None:
        """What is there now; raises NotFound if it is not what an earlier attempt met there."""
        if self.image is None:
            self.image = image
        elif self.image != image:
            raise NotFound(f"{location} was removed; there is another image now")


W = TypeVar("W", bound=Writer)


class ServerSideCopy(abc.ABC):
    """A second image that a back end makes of one of its own; the engine has its threads, retries and rollback.

    Making one creates nothing there yet. ``begin``, ``copy_part`` for each of ``parts``, ``commit``; ``close`` comes
    last. Each may be called again after a transient error.
    """

    #: Bytes of the whole image.
    size: int
    #: Bytes of each part that is copied with a call of its own, in order, ``size`` in all; none where that is no use.
    parts: Sequence[int] = ()
    #: copy_part() calls in flight at most.
    concurrency: int = 1
    #: Bytes that the back end moves in ``begin`` or ``commit``, which are waited for accordingly, as parts are by their
    #: size; 0 where it only links.
    moved_at_once: int = 0

    def begin(self) -> None:  # noqa: B027  (some need no more than commit)
        """Make what the parts go into."""

    def copy_part(self, number: int, offset: int, length: int) -> None:
        """Copy one part, ``length`` bytes from byte ``offset`` of the source on; repeating it must be harmless."""
        raise NotImplementedError

    @abc.abstractmethod
    def commit(self, digests: Digests) -> Committed:
        """Publish the copy atomically, as ``Writer.commit`` does; raises Duplicate if the id exists."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Remove everything of this copy, as ``Writer.abort`` does."""

    def close(self) -> None:  # noqa: B027  (most hold nothing)
        """Free what the copy holds; called once, last, whatever became of it."""


class WriterCopy(ServerSideCopy, Generic[W]):
    """A copy into what a Writer of the driver makes; a driver adds ``copy_part``, or what replaces it in ``begin``."""

    def __init__(self, writer: W, size: int, parts: Sequence[int] = ()) -> None:
        self.writer = writer
        self.size = size
        self.parts = parts
        self.concurrency = writer.concurrency

    def begin(self) -> None:
        """Make room for the copy."""
        self.writer.reserve(self.size)

    def commit(self, digests: Digests) -> Committed:
        """Publish it as the writer does."""
        return self.writer.commit(self.size, digests)

    def abort(self) -> None:
        """Remove what the writer made."""
        self.writer.abort()

    def close(self) -> None:
        """Free what the writer holds."""
        self.writer.close()


def equal_parts(size: int, length: int) -> list[int]:
    """Bytes of each part of an image of ``size`` bytes; all but the last have ``length``."""
    return [min(length, size - start) for start in range(0, size, length)]


class Reader(abc.ABC):
    """One image on its way out of a back end, pinned to the version it first saw."""

    #: Bytes of the whole image.
    size: int
    #: Bytes of one range when several are in flight.
    part_size: int = 8 * MiB
    #: Ranges in flight at most; 1: read in the caller's thread.
    concurrency: int = 1
    #: The digest of the whole image that the driver recorded when it was added, where the first response of the back
    #: end tells it; None where it would take another question, or nothing was recorded.
    digest: Digest | None = None
    #: A forked child may read on with it, side by side with its parent: they share no connection and no lock. Else the
    #: engine refuses that, and neither uses nor closes the reader there.
    inheritable: bool = False

    @abc.abstractmethod
    def read_into(self, offset: int, view: memoryview) -> int:
        """Fill ``view`` with bytes from ``offset`` on; returns how many, 1 to len(view). 0 is a cut.

        ``view`` lies within the range that was opened. It has 1 byte or more: at most ``part_size`` when several are in
        flight, else as many as the caller of the stream asks for at once, which may be the whole range.
        After an error or a cut it is called again for the byte where it stopped, and where the caller of the stream
        moves back, for an earlier one: a reader that only goes forward begins anew then, also without Capability.RANGE.
        With ``concurrency`` above 1 it is called from several threads.
        """

    def extents(self, offset: int, length: int) -> Iterable[Extent] | None:
        """Data and holes of a range, in order and without gaps; None when the back end cannot tell.

        May be a generator. After a transient error it is called again for what comes behind the last one.
        """
        return None

    def fileno(self) -> int | None:
        """A descriptor of a local regular file whose bytes are the image's, for sendfile and reflink."""
        return None

    def close(self) -> None:  # noqa: B027  (most readers hold nothing)
        """Free what the reader holds; called once, with no read in flight."""


class Readable(Protocol):
    """What the engine reads from: a store, or whatever else has readers of images."""

    #: When a call is made again, and how long it may take.
    retry_policy: RetryPolicy
    #: Calls that never returned.
    hung_calls: HungCalls
    #: Bytes that one transfer may hold, unless two parts are more.
    window: int
    #: What its transfers may hold together with those of other stores.
    memory: MemoryBudget

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """The StoreError for ``error`` of the back end's client, None for a bug."""

    def open_reader(self, location: Any, offset: int, length: int | None, context: Context | None) -> Reader:
        """A Reader of a range of an image."""


class Backend(Readable, Protocol):
    """A store as the engine sees it: ``storelib.driver.Store`` is one."""

    name: str

    @property
    def md5_checksum(self) -> bool:
        """Whether md5 is computed beside the chosen digest."""

    def start_writer(self, image_id: str, size: int | None, context: Context | None) -> Writer:
        """The Writer of a new image."""

    def server_side_copy(self, source: Any, image_id: str, context: Context | None) -> ServerSideCopy | None:
        """What copies an image within the back end, None where this one must be read and written."""

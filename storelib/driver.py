# SPDX-License-Identifier: Apache-2.0
"""Store: the contract every back end keeps, and the template that leaves a driver only its own few methods.

A driver subclasses ``Store``, supplies the methods under "What a driver writes" and a Writer and a Reader, and keeps
no transfer logic: hashing, retries, buffers, threads, length checks and cleaning up are the engine's (``transfer/``).
"""

from __future__ import annotations

import abc
import functools
import itertools
import logging
import numbers
import os
import unicodedata
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from oslo_config import cfg

from storelib.capabilities import WRITING, Capability
from storelib.exceptions import (
    AclsNotSupported,
    BadStoreConfiguration,
    BadStoreUri,
    Invalid,
    NotFound,
    OperationNotSupported,
    RemoteServiceUnavailable,
    StoreAddDisabled,
    StoreDeleteNotSupported,
    StoreError,
    StoreGetNotSupported,
    StoreRandomGetNotSupported,
    misconfigured,
)
from storelib.option_types import LONGEST
from storelib.transfer import copying, download, parallel, upload
from storelib.transfer.contract import (
    Committed,
    Context,
    Deletion,
    Digest,
    Digests,
    Extent,
    Garbage,
    Health,
    ImageInfo,
    MiB,
    Options,
    Part,
    Progress,
    Reader,
    ServerSideCopy,
    StoredImage,
    Writer,
    WriterCopy,
    at_fault,
    is_whole,
)
from storelib.transfer.deadlines import Deadline
from storelib.transfer.digests import Verifier
from storelib.transfer.download import ImageData
from storelib.transfer.memory import MemoryBudget
from storelib.transfer.retry import HungCalls, RetryPolicy, mapped
from storelib.transfer.source import Data
from storelib.transfer.verifying import Verify, asked_for
from storelib.uris import ParsedLocation, StoreLocation, parse_uri, redact

__all__ = [
    "STORE_OPTIONS",
    "Area",
    "Committed",
    "Context",
    "Deletion",
    "Digest",
    "Digests",
    "Extent",
    "Garbage",
    "Health",
    "ImageData",
    "ImageInfo",
    "Part",
    "Reader",
    "ServerSideCopy",
    "Store",
    "StoreLocation",
    "StoredImage",
    "Writer",
    "WriterCopy",
    "check_expires",
    "check_image_id",
    "tenants_of",
]

LOG = logging.getLogger(__name__)
L = TypeVar("L", bound=StoreLocation)
R = TypeVar("R")
T = TypeVar("T")

#: Options every store has, whatever its driver.
STORE_OPTIONS: Sequence[cfg.Opt] = (
    cfg.IntOpt("weight", default=0, help="Stores with a higher weight are asked first for an image."),
    cfg.StrOpt(
        "description",
        deprecated_name="store_description",
        help="One line for people about this store.",
    ),
    cfg.BoolOpt("read_only", default=False, help="Refuse to add and delete, whatever the back end allows."),
    cfg.BoolOpt(
        "md5_checksum",
        default=True,
        help="Compute the md5 checksum of added images beside the chosen multihash. "
        "Off, adds are faster and the checksum of a stored image is None.",
    ),
    cfg.IntOpt(
        "transfer_retries",
        default=4,
        min=0,
        max=100,
        help="How often one part or one request is tried again after a transient error.",
    ),
    cfg.FloatOpt(
        "transfer_timeout",
        default=300.0,
        min=0.1,
        max=LONGEST,
        help="Seconds without any progress after which a transfer is given up.",
    ),
    cfg.IntOpt(
        "transfer_window",
        default=48,
        min=8,
        max=64 * 1024,
        help="MiB that one transfer may hold in memory, unless two parts are more. Parts in flight are limited by it: "
        "a back end that is far away is faster with more, where its own option for parts in flight allows them.",
    ),
    cfg.IntOpt(
        "transfer_max_stuck_calls",
        default=16,
        min=1,
        help="Calls into the back end that never returned, after which new transfers are refused.",
    ),
)


#: Seconds that nothing is old: more of them lead to times that there are not, at which drivers would look.
_OLDEST = 1e10
#: Ports that a URL need not name; a server at both of them is one.
_USUAL_PORTS = {None: "", 80: "", 443: ""}


def web_server(host: str, port: int | None) -> str:
    """A server of http or https for an Area's container: in one spelling, the usual ports left out."""
    return f"{host.lower().rstrip('.')}:{_USUAL_PORTS.get(port, port)}"


class Area(NamedTuple):
    """What one store has for itself of a back end: everything in ``container`` whose name begins with ``prefix``.

    ``option`` is the one that names it, for the error that says so.
    """

    container: tuple[str | int | None, ...]
    prefix: str
    option: str

    def overlaps(self, other: Area) -> bool:
        """Whether something can lie in both."""
        nested = self.prefix.startswith(other.prefix) or other.prefix.startswith(self.prefix)
        return self.container == other.container and nested


class Store(abc.ABC, Generic[L]):
    """One configured place that keeps images; safe to use from many threads.

    ``name`` is the store's id, ``conf`` has its options as attributes, its own group first.
    """

    #: URI schemes, the one storelib writes first.
    schemes: ClassVar[tuple[str, ...]]
    #: Options of this kind of store, registered by ``config.py``.
    options: ClassVar[Sequence[cfg.Opt]] = ()
    #: The parsed form of this driver's URIs.
    location_class: type[L]
    #: What this store can do; ``configure`` takes away what the configuration does not allow.
    capabilities: Capability = Capability.READ

    def __init__(self, name: str, conf: Options) -> None:
        self.name = name
        self.conf = conf
        #: Why adding is disabled, or None.
        self.add_disabled: str | None = None
        self.retry_policy = RetryPolicy(retries=conf.transfer_retries, timeout=conf.transfer_timeout)
        self.hung_calls = HungCalls(name, conf.transfer_max_stuck_calls)
        #: Bytes that one transfer may hold in memory, unless two parts are more.
        self.window: int = conf.transfer_window * MiB
        #: What its transfers may hold in memory; a registry has one for all its stores.
        self.memory = MemoryBudget()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @property
    def md5_checksum(self) -> bool:
        """Whether the md5 of added images is computed, which the option of this name says."""
        return bool(self.conf.md5_checksum)

    # -- What callers use -------------------------------------------------------------------------------------

    def configure(self) -> None:
        """Check all options; a store where only writing is misconfigured becomes read-only.

        Opens no connection and starts no thread. Raises BadStoreConfiguration when not even reading can work.
        """
        self.configure_get()
        if self.conf.read_only:
            self._disable_writing("option read_only is set")
        if Capability.ADD in self.capabilities:
            try:
                self.configure_add()
            except BadStoreConfiguration as error:
                LOG.warning("store %s is read-only: %s", self.name, error)
                self._disable_writing(str(error))

    def get(
        self,
        location: ParsedLocation | str,
        offset: int = 0,
        length: int | None = None,
        context: Context | None = None,
        *,
        verify: Verify = None,
    ) -> ImageData:
        """The image's bytes from ``offset`` on, ``length`` of them or up to the end, as a slice would give.

        ``verify`` compares what is read with a digest, a Digest or ``"algorithm:hexadecimal"`` of exactly the bytes
        asked for, or True for the one that the driver recorded of the whole image. The stream is then read in order
        only, and instead of the last bytes of a stream with another digest comes DigestMismatch.

        Raises NotFound, BadStoreUri (not of this store), Invalid (negative range, no digest, True with a range),
        StoreRandomGetNotSupported, and with True OperationNotSupported where no digest was recorded.
        Errors while reading surface from the stream; fewer bytes than announced is IncompleteRead.
        """
        expected = asked_for(verify)
        for value, what in ((offset, "offset"), (0 if length is None else length, "length")):
            if not is_whole(value) or value < 0:
                raise Invalid(f"{what} must be a whole number of bytes, 0 or more, not {value!r:.80}")
        self.require(Capability.READ, StoreGetNotSupported)
        if offset or length is not None:
            self.require(Capability.RANGE, StoreRandomGetNotSupported)
        found = self.locate(location)
        self.hung_calls.check()
        stream = download.open_stream(self, found, offset, length, context, expected)
        return ImageData(stream, stream.size)

    def get_size(self, location: ParsedLocation | str, context: Context | None = None) -> int:
        """The image's size in bytes; raises NotFound, or what stands in the way, rather than guess."""
        found = self.locate(location)
        size = self._call(lambda: self.measure(found, context), found)
        if not is_whole(size) or size < 0:
            raise self._at_fault("the size", size)
        return size

    def add(
        self,
        image_id: str,
        data: Data,
        size: int | None = None,
        *,
        hashing_algo: str = "sha512",
        context: Context | None = None,
        verifier: Verifier | None = None,
        progress: Progress | None = None,
    ) -> StoredImage:
        """Store an image under ``image_id``; it becomes visible whole or not at all.

        ``data`` is a path, bytes, a file object or an iterator of bytes; ``size`` is its length in bytes, None if
        unknown, and enforced both ways (Invalid). ``hashing_algo`` is any fixed-length algorithm of hashlib, or blake3
        when installed. ``progress(done, total)`` runs in the calling thread; whatever it or the source raises cancels
        the add and passes through. Raises Duplicate, StorageFull, StorageWriteDenied, StoreAddDisabled,
        UnknownHashingAlgo, TransferTimeout.
        """
        return upload.add(
            self,
            image_id,
            data,
            size,
            hashing_algo=hashing_algo,
            context=context,
            verifier=verifier,
            progress=progress,
        )

    def delete(self, location: ParsedLocation | str, context: Context | None = None) -> None:
        """Remove an image; raises NotFound, Forbidden, InUseByStore or HasSnapshot."""
        self.require(Capability.DELETE, StoreDeleteNotSupported)
        found = self.locate(location)
        deletion = Deletion()
        failed = False

        def attempt() -> None:
            nonlocal failed
            try:
                # A driver's "not there" may be a native error.
                mapped(lambda: self.remove(found, context, deletion), self.map_error, str(found))
            except NotFound:
                # After an attempt whose response was lost, "not there" is what was wanted.
                if not failed:
                    raise
            except Exception:
                failed = True
                raise

        self._call(attempt, found)

    def set_acls(
        self,
        location: ParsedLocation | str,
        public: bool = False,
        read_tenants: Sequence[str] = (),
        write_tenants: Sequence[str] = (),
        context: Context | None = None,
    ) -> None:
        """Let everybody or these tenants read or write an image; raises AclsNotSupported.

        A driver begins with ``tenants_of``.
        """
        raise AclsNotSupported(f"store {self.name} has no access control lists")

    def copy(
        self,
        location: ParsedLocation | str,
        image_id: str,
        *,
        digests: Digests | None = None,
        hashing_algo: str = "sha512",
        context: Context | None = None,
        progress: Progress | None = None,
    ) -> StoredImage:
        """Store a second image with the bytes of the one at ``location`` of this store.

        With ``digests`` nothing is hashed; with Capability.COPY the back end does the work then, where it can.
        ``progress`` runs in the calling thread, whatever it raises cancels. Raises what ``get`` and ``add`` raise.
        """
        if digests is not None and Capability.COPY in self.capabilities:
            source = self.locate(location)
            self.require(Capability.ADD, StoreAddDisabled)
            check_image_id(image_id)
            self.hung_calls.check()
            copied = copying.copy_within(self, source, image_id, digests, context, progress)
            if copied is not None:
                return copied
        return upload.copy(
            self,
            location,
            self,
            image_id,
            digests=digests,
            hashing_algo=hashing_algo,
            context=context,
            progress=progress,
        )

    def list_images(self) -> Iterator[ImageInfo]:
        """All images in this store, in no order; raises OperationNotSupported without Capability.LIST."""
        self.require(Capability.LIST)
        return self._mapped(self.images, "listing images", self._checked)

    def find_image(self, image_id: str) -> ImageInfo | None:
        """The image with this id, None where there is none; raises OperationNotSupported without Capability.LIST.

        As cheap as ``stat`` where the driver knows the ``candidate_locations`` of an id; else all images are listed.
        A place that is away keeps the image from being found in no other, and is an error in the end.
        """
        self.require(Capability.LIST)
        check_image_id(image_id)
        places = (
            self._call(lambda: self.candidate_locations(image_id), image_id)
            if Capability.STAT in self.capabilities
            else None
        )
        if places is None:
            return next((info for info in self.list_images() if info.image_id == image_id), None)
        away: RemoteServiceUnavailable | None = None
        for place in self._all_of(self.location_class, places, "candidate_locations"):
            try:
                info = self._checked(self._call(functools.partial(self.inspect, place, None), place))
            except NotFound:
                continue
            except RemoteServiceUnavailable as error:
                # Only one of several directories may be away, and the image in another.
                away = error
                continue
            if info.image_id not in (image_id, None):
                raise self._at_fault(f"the id of the image where {image_id!r} would be", info.image_id)
            return info
        if away is not None:
            raise away
        return None

    def stat(self, location: ParsedLocation | str, context: Context | None = None) -> ImageInfo:
        """What the back end knows of one image; raises NotFound."""
        self.require(Capability.STAT)
        found = self.locate(location)
        return self._checked(self._call(lambda: self.inspect(found, context), found))

    def gc(self, older_than: float, prefix: str | None = None) -> list[Garbage]:
        """Remove what failed adds left untouched for ``older_than`` seconds; returns what was removed.

        ``prefix`` restricts it to images whose id starts so. Adds under way are never disturbed.
        """
        return list(self.collect(older_than, prefix))

    def collect(self, older_than: float, prefix: str | None = None) -> Iterator[Garbage]:
        """``gc`` as it goes: each is removed when it is asked for, and returned then.

        What cannot be removed, or looked through, keeps nothing else: its error is raised when all others are removed.
        """
        return self._discarded(self.find_garbage(older_than, prefix))

    def find_garbage(self, older_than: float, prefix: str | None = None) -> Iterator[Garbage]:
        """What ``gc`` with the same arguments would remove."""
        if not _is_number(older_than) or not older_than >= 0:
            raise Invalid(f"older_than must be a number of seconds, 0 or more, not {older_than!r:.80}")
        if prefix is not None and not isinstance(prefix, str):
            raise Invalid(f"prefix must be the beginning of an id, or None, not {type(prefix).__name__}")
        if "Cs" in map(unicodedata.category, prefix or ""):
            raise Invalid(f"no id begins with half a character, as in prefix {redact(repr(prefix))[:80]}")
        self.require(Capability.GC)
        age = float(min(older_than, _OLDEST))
        return self._mapped(lambda: self.garbage(age, prefix), "looking for leftovers", self._checked_garbage)

    def check(self) -> Health:
        """Ask the back end whether it works; raises what stands in the way."""
        self.require(Capability.CHECK)
        health = self._call(self.probe, f"store {self.name}: checking")
        if not isinstance(health, Health):
            raise self._at_fault("what probe", health)
        return health

    def presign(self, location: ParsedLocation | str, expires: float) -> str:
        """A URL that reads the image without credentials for ``expires`` seconds.

        A driver begins with ``check_expires``.
        """
        raise OperationNotSupported(f"store {self.name} cannot presign")

    # -- What a driver writes ---------------------------------------------------------------------------------

    def configure_get(self) -> None:
        """What reading needs; raises BadStoreConfiguration."""

    def configure_add(self) -> None:
        """What adding needs; raises BadStoreConfiguration."""

    def prepare(self) -> None:
        """Make now what the first add would make, such as a directory; ``open_store`` asks for it if the store adds.

        A registry does not: a store that is only configured adds all the same, and has no image and no leftover before.
        """

    def details(self) -> Mapping[str, str]:
        """What administrators are told of this store beside its options; may ask the back end, raises StoreError."""
        return {}

    def areas(self) -> Sequence[Area]:
        """Where this store keeps images, as far as its options tell; asks no back end, also where configuring failed.

        A configuration in which two stores have areas in common is refused: what is rubbish to the one may be an image
        of the other. Nothing for stores that may lie anywhere.
        """
        return ()

    @abc.abstractmethod
    def owns(self, location: L) -> bool:
        """Whether ``location`` lies in this store (same pool, bucket, container, directory)."""

    def roots(self) -> Collection[Hashable] | None:
        """What tells the locations of this store from those of others, as far as options say: see ``possible_roots``.

        For registries of many stores, which ask ``owns`` only where the two have something in common. Asked once; asks
        no back end. None: ``owns`` is asked for every location of the scheme.
        """
        return None

    @classmethod
    def possible_roots(cls, location: L) -> Iterable[Hashable] | None:
        """All that could be among the ``roots`` of a store of this class that owns ``location``; None: anything could.

        A driver that is derived from another and has an ``owns`` of its own is taken to have no roots unless it has
        these two as well.
        """
        return None

    @abc.abstractmethod
    def open_reader(self, location: L, offset: int, length: int | None, context: Context | None) -> Reader:
        """A Reader for that range (offset may lie past the end); may already send the first request."""

    def measure(self, location: L, context: Context | None) -> int:
        """The image's size in bytes, asked as cheaply as possible; raises NotFound.

        Written where ``inspect`` is not, or asks for more than the size.
        """
        return self._checked(self.inspect(location, context)).size

    def open_writer(self, image_id: str, size: int | None, context: Context | None) -> Writer:
        """A Writer for a new image; may raise Duplicate, makes nothing in the back end yet."""
        raise StoreAddDisabled(f"driver {type(self).__name__} cannot add")

    def remove(self, location: L, context: Context | None, deletion: Deletion) -> None:
        """Remove one image; raises NotFound. Called again, with the same ``deletion``, after a transient error.

        Where an id can be used again, another image may stand there by then: a driver that can tell them apart gives
        what it found to ``deletion.meet``, before it removes anything.
        """
        raise StoreDeleteNotSupported(f"driver {type(self).__name__} cannot delete")

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """The storelib error for a native one, the only place that knows; None passes it on unchanged.

        ``subject`` says what it was about, in words for the user: ``image 'ID' in store NAME`` for an add, the redacted
        URI for what has one, the id, a name that ``garbage`` gave or what was being done for the rest. Only ever given
        errors raised by this driver's own methods, never those of a source or a progress callback.
        """
        return None

    def images(self) -> Iterable[ImageInfo]:
        """For Capability.LIST: all images, without holding all in memory; of several places, ``everywhere`` in them.

        What cannot be listed is an error, after all that can be: who left it out would have its images taken for gone.
        """
        raise NotImplementedError

    def inspect(self, location: L, context: Context | None) -> ImageInfo:
        """For Capability.STAT: what the back end knows of the image; raises NotFound."""
        raise NotImplementedError

    def candidate_locations(self, image_id: str) -> Sequence[L] | None:
        """Everywhere that an image with this id can be in this store, which ``inspect`` is asked in turn.

        None where that does not follow from the id, or is not known to be all: then images are found by listing.
        """
        return None

    def server_side_copy(self, source: L, image_id: str, context: Context | None) -> ServerSideCopy | None:
        """For Capability.COPY: how the back end itself copies an image; may raise Duplicate, makes nothing yet.

        None where it cannot: the bytes then pass through here.
        """
        return None

    def garbage(self, older_than: float, prefix: str | None) -> Iterable[Garbage]:
        """For Capability.GC: what is dead for ``older_than`` seconds, and only that; ids begin with ``prefix`` exactly.

        Whether an add is alive is known to the back end (a lock, a lease, a watcher, the time of the last write), never
        to this object alone: other objects and processes run ``gc`` on the same back end.
        """
        raise NotImplementedError

    def discard(self, garbage: Garbage) -> bool:
        """For Capability.GC: remove it if it is still dead; returns whether it was."""
        raise NotImplementedError

    def probe(self) -> Health:
        """For Capability.CHECK: ask the back end something, and raise what keeps this store from working."""
        raise NotImplementedError

    # -- What both may use ------------------------------------------------------------------------------------

    def start_writer(self, image_id: str, size: int | None, context: Context | None) -> Writer:
        """What the engine calls to begin an add: the rules of every store, then the driver's ``open_writer``."""
        self.require(Capability.ADD, StoreAddDisabled)
        check_image_id(image_id)
        self.hung_calls.check()
        return self.open_writer(image_id, size, context)

    def locate(self, location: ParsedLocation | str) -> L:
        """The driver's own form of ``location``; raises BadStoreUri if it is not of this store.

        A location with an ``image_id`` is of no store unless that is an id by the rules of all stores.
        """
        found: Any
        if isinstance(location, str):
            found = parse_uri(location, dict.fromkeys(map(str.lower, self.schemes), self.location_class))
        else:
            found = getattr(location, "store_location", None)
            if found is None:
                raise BadStoreUri(f"a location is a URI or a Location, not {type(location).__name__}")
        if not isinstance(found, self.location_class) or not self.owns(found):
            raise BadStoreUri(f"{found} does not belong to store {self.name}")
        image_id = getattr(found, "image_id", None)
        if image_id is not None:
            try:
                check_image_id(image_id)
            except Invalid as error:
                raise BadStoreUri(f"no image can be at {str(found)[:300]}: {error}") from None
        return found

    def canonical(self, location: L) -> L:
        """The same place as ``add`` writes it, for a ``location`` of ``locate`` that may be spelled in another way.

        By that it is seen that two images have the same data. A driver whose URIs may leave something out, or say the
        same in two ways that are not equal, fills it in; it may ask the back end.
        """
        return location

    def uri_of(self, location: ParsedLocation | str) -> str:
        """The URI that ``add`` would have given to what is at ``location``, without credentials.

        Raises BadStoreUri if it is not of this store, and StoreError if the back end had to be asked and failed.
        """
        found = self.locate(location)
        return self._call(lambda: self.canonical(found), found).uri

    def require(self, capability: Capability, error: type[OperationNotSupported] | None = None) -> None:
        """Raise ``error`` unless this store has ``capability``."""
        if capability in self.capabilities:
            return
        why = f": {self.add_disabled}" if self.add_disabled and capability in WRITING else ""
        what = ", ".join(capability.names)
        raise (error or OperationNotSupported)(f"store {self.name} does not support {what}{why}")

    def misconfigured(self, option: str, why: str) -> BadStoreConfiguration:
        """The error of an option that cannot be as it is; ``why`` says what it has to be, and no secret."""
        return misconfigured(self.name, option, why)

    def _disable_writing(self, why: str) -> None:
        self.add_disabled = why
        self.capabilities &= ~WRITING

    def _call(self, function: Callable[[], T], subject: object) -> T:
        return self.retry_policy.ask(function, self.map_error, str(subject))

    def clean_up(self, function: Callable[[], object], subject: object) -> None:
        """``function()``, with the engine's retries; what it cannot remove is logged, and ``gc`` finds it."""
        try:
            self._call(function, subject)
        except StoreError as error:
            LOG.warning("%s: cleaning up: %s; gc will find what is left", subject, error)

    def for_each(
        self, function: Callable[[T], object], items: Iterable[T], subject: object, concurrency: int = 8
    ) -> None:
        """``function(item)`` for all, ``concurrency`` at a time, with the engine's retries and deadline.

        All are tried; the first error is raised then.
        """
        parallel.for_each(self, function, items, str(subject), concurrency)

    def _mapped(self, items: Callable[[], Iterable[T]], what: str, checked: Callable[[object], T]) -> Iterator[T]:
        """What the driver iterates over, each item with a deadline of its own; its end, too, which may be early."""
        subject = f"store {self.name}: {what}"
        process = os.getpid()

        def ask(function: Callable[[], R]) -> R:
            if os.getpid() != process:
                # What the driver uses is the parent's, which would lack what came here.
                raise StoreError(f"{subject}: begun before this process was forked; begin anew")
            with Deadline(self.retry_policy.timeout):
                return mapped(function, self.map_error, subject)

        entries = iter(self._all_of(object, ask(items), what))
        try:
            while found := ask(lambda: list(itertools.islice(entries, 1))):
                yield checked(found[0])
        finally:
            if os.getpid() == process:
                ask(getattr(entries, "close", _nothing))

    def _at_fault(self, what: str, given: object) -> StoreError:
        return at_fault(f"store {self.name}", f"{what} of {type(self).__name__}", given)

    def _all_of(self, kind: type[R], items: Any, what: str) -> Iterable[R]:
        """``items``, which the driver gave for several of ``kind``."""
        if not isinstance(items, Iterable) or isinstance(items, (str, bytes)):
            raise self._at_fault(what, items)
        for item in items if isinstance(items, Sequence) else ():
            if not isinstance(item, kind):
                raise self._at_fault(f"one of {what}", item)
        return items

    def _checked(self, info: object) -> ImageInfo:
        """What the driver knows of an image."""
        if not isinstance(info, ImageInfo):
            raise self._at_fault("what is known of an image", info)
        if not is_whole(info.size) or info.size < 0:
            raise self._at_fault("the size of an image", info.size)
        if not isinstance(info.uri, str):
            raise self._at_fault("the URI of an image", info.uri)
        for value, what in ((info.image_id, "the id of an image"), (info.version, "the version of an image")):
            if value is not None and not isinstance(value, str):
                raise self._at_fault(what, value)
        if info.modified is not None and not _is_time(info.modified):
            raise self._at_fault("when an image was modified", info.modified)
        return info

    def _checked_garbage(self, item: object) -> Garbage:
        if not isinstance(item, Garbage) or not isinstance(item.name, str):
            raise self._at_fault("what is left of an add", item)
        if not is_whole(item.size) or item.size < 0:
            raise self._at_fault("the size of what is left of an add", item.size)
        if not _is_time(item.modified):
            raise self._at_fault("when what is left of an add was modified", item.modified)
        return item

    def _discarded(self, found: Iterator[Garbage]) -> Iterator[Garbage]:
        failure: StoreError | None = None
        for item in found:
            try:
                removed = self._call(functools.partial(self.discard, item), item.name)
            except StoreError as error:
                if error.transient:
                    # The whole back end may be away, and each item would be tried for long.
                    raise
                failure = failure or error
            else:
                if removed:
                    yield item
        if failure is not None:
            raise failure


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_number(given: object) -> bool:
    """One that a caller gave, of any kind; to Python, True is one, too."""
    return isinstance(given, numbers.Real) and not isinstance(given, bool)


def _nothing() -> None:
    """What ends an iterator that is no generator."""


def check_image_id(image_id: str) -> None:
    """Raise Invalid unless ``image_id`` is 1 to 255 bytes of UTF-8 without ``/``, NUL or control characters."""
    if not isinstance(image_id, str):
        raise Invalid(f"an image id is a str, not {type(image_id).__name__}")
    shown = redact(repr(image_id[:80]))
    if image_id in ("", ".", "..") or "/" in image_id:
        raise Invalid(f"image id {shown} is not allowed: it is empty, '.', '..' or has a '/'")
    categories = {unicodedata.category(character) for character in image_id}
    if categories & {"Cc", "Cs"}:
        raise Invalid(f"image id {shown} is not allowed: it has control characters or lone surrogates")
    if len(image_id.encode()) > 255:
        raise Invalid(f"image id {shown}... is not allowed: it has more than 255 bytes of UTF-8")


def tenants_of(
    public: bool, read_tenants: Sequence[str] | None, write_tenants: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Who may read and who may write, as ``set_acls`` is told; raises Invalid where that could mean others.

    A single name is several when iterated over, and the text "false" is true.
    """
    if not isinstance(public, bool):
        raise Invalid(f"public must be True or False, not {public!r:.80}")
    return _names(read_tenants, "read_tenants"), _names(write_tenants, "write_tenants")


def _names(tenants: Any, what: str) -> list[str]:
    several = isinstance(tenants, Iterable) and not isinstance(tenants, (str, bytes, Mapping))
    names = list(tenants) if several else []
    if (tenants is not None and not several) or not all(isinstance(name, str) and name for name in names):
        raise Invalid(f"{what} must be a list of names, not {tenants!r:.80}")
    return names


def check_expires(expires: float, longest: float) -> None:
    """Raise Invalid unless ``presign`` was told a number of seconds, from one to ``longest``."""
    if not _is_number(expires) or not 1 <= expires <= longest:
        raise Invalid(f"expires must be a number of seconds, 1 to {longest}, not {expires!r:.80}")

# SPDX-License-Identifier: Apache-2.0
"""Moving: all images of one store into another, while servers go on reading and writing them.

Each image is copied under the same note in the database as an upload, so that others undo what a killed process left;
then its new place is recorded, and last its old one is dropped. Whatever is done so far needs not be done again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from storelib.api.context import administrator
from storelib.api.db.records import AuditRow, Image, ImageLocation, NewLocation
from storelib.api.db.statuses import WITH_DATA
from storelib.api.errors import (
    ApiError,
    Conflict,
    ImageNotFound,
    LocationNotFound,
    OutcomeUnknown,
    StatusConflict,
    UploadLost,
)
from storelib.api.service.core import LOG
from storelib.api.service.deletion import delete_location, is_unanswered, remove_leftovers
from storelib.api.service.rate_limit import RateLimit
from storelib.capabilities import Capability
from storelib.driver import Store, StoredImage
from storelib.exceptions import (
    BadStoreConfiguration,
    HasSnapshot,
    IncompleteRead,
    InUseByStore,
    StoreAddDisabled,
    StoreDeleteNotSupported,
    StoreError,
    UnknownHashingAlgo,
)
from storelib.transfer import upload
from storelib.transfer.contract import Digest, MiB, Progress
from storelib.transfer.verifying import comparing, normal

if TYPE_CHECKING:
    from storelib.api.service import Service

State = Literal["moved", "gone", "busy", "in use", "failed"]

#: Seconds of ``linger`` at most: after twice that, servers delete what was dropped by themselves.
LONGEST_LINGER = 60.0
#: Bytes in one step of progress above which it was a hole that was stepped over: blocks and clones are smaller.
LEAP = 256 * MiB
_BUFFER = MiB
_BATCH = 500
#: Seconds between two passes, the first and the longest ones.
_PAUSE, _LONGEST_PAUSE = 1.0, 8.0
#: Old copies that wait for their deletion at most.
_LINGERING = 1000


class Moved(NamedTuple):
    """What became of one image; ``detail`` says why it was not moved."""

    image_id: str
    size: int
    state: State
    detail: str = ""
    error: Exception | None = None


@dataclass
class Plan:
    """How many images with how many bytes there are to move, and how many are being written there now."""

    images: int = 0
    size: int = 0
    busy: list[str] = field(default_factory=list)


class _Dropped(NamedTuple):
    """An image that is moved but for its old copy, which may be deleted from ``due`` on (``time.monotonic``)."""

    result: Moved
    location: ImageLocation
    due: float


class _Stopped(BaseException):
    """The move shall end; no error of the image that is being copied."""


class Move:
    """From the store called ``source`` to the one called ``target``; with ``owner`` only the images of one project.

    ``limit`` is a number of images, ``rate`` in bytes per second of what is read and read back, ``linger`` in seconds:
    so long the old copy stays for requests that are about to read it. ``progress(bytes)`` is told how much was copied.
    Raises BadStoreConfiguration, UnknownScheme, StoreAddDisabled, StoreDeleteNotSupported.
    """

    def __init__(
        self,
        service: Service,
        source: str,
        target: str,
        *,
        owner: str | None = None,
        limit: int | None = None,
        workers: int = 2,
        rate: float | None = None,
        linger: float = 10.0,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._service = service
        self._core = service.core
        self._source, self._target = _stores(service, source, target)
        self._owner = owner
        self._limit = limit
        self._workers = workers
        self._linger = min(linger, LONGEST_LINGER)
        self._progress = progress
        self._stop = threading.Event()
        self._rate_limit = RateLimit(rate, self._stop.wait)
        self._lock = threading.Lock()
        self._copied = 0
        self._shared: frozenset[str] = frozenset()

    # -- what there is to do ------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """What there is to do now. Raises DatabaseUnavailable."""
        found = Plan()
        for row in self._rows(found.busy):
            if self._limit is None or found.images < self._limit:
                found.images += 1
                found.size += row.size or 0
        return found

    def rows(self) -> Iterator[AuditRow]:
        """The images that would be moved, in the order of their ids."""
        for number, row in enumerate(self._rows([])):
            if self._limit is not None and number >= self._limit:
                return
            yield row

    def _rows(self, writing: list[str]) -> Iterator[AuditRow]:
        """Images with data in the source; ``writing`` gets the ids of those that may have some there soon."""
        for row in self._core.repository.images.audit(_BATCH):
            if self._owner is not None and row.owner != self._owner:
                continue
            if row.status in WITH_DATA and self._place(row.locations, self._source) is not None:
                yield row
            elif row.status in ("saving", "importing") and self._is_written(row.id):
                writing.append(row.id)

    def _is_written(self, image_id: str) -> bool:
        noted = self._core.repository.uploads.get(image_id)
        return noted is not None and self._source.name in noted.stores

    def _place(self, locations: tuple[ImageLocation, ...], store: Store[Any]) -> ImageLocation | None:
        """Where the image is in this store."""
        for location in locations:
            if location.status == "active" and self._is_in(location, store):
                return location
        return None

    def _is_in(self, location: ImageLocation, store: Store[Any]) -> bool:
        try:
            return self._core.store_of(location, administrator()) is store
        except StoreError:
            return False

    # -- doing it -----------------------------------------------------------------------------------------------------

    def run(self) -> Generator[Moved, None, None]:
        """Move the images; one result for each, as they come. Closing the iterator stops, and undoes what is half done.

        Images that come to the source meanwhile are moved, too, and those that others are working on are waited for
        as long as a dead process may seem to live.
        """
        self._shared = frozenset(self._core.repository.locations.shared())
        with ThreadPoolExecutor(self._workers, thread_name_prefix="storelib-move") as pool:
            try:
                # No copy begins where one is still to be deleted.
                self._end_deletions(self._target)
                yield from self._passes(pool)
                self._end_deletions(self._source)
            finally:
                self._stop.set()

    def _passes(self, pool: ThreadPoolExecutor) -> Iterator[Moved]:
        at_most = self._core.options.lease_timeout + 2 * _PAUSE
        stuck: set[str] = set()
        moved, pause, since = 0, _PAUSE, time.monotonic()
        while True:
            busy: dict[str, Moved] = {}
            writing: list[str] = []
            ended = 0
            rows = (row for row in self._rows(writing) if row.id not in stuck)
            for result in self._each(pool, rows, moved):
                if result.state == "busy":
                    busy[result.image_id] = result
                    continue
                if result.state in ("failed", "in use"):
                    stuck.add(result.image_id)
                moved += result.state == "moved"
                ended, since = ended + 1, time.monotonic()
                yield result
            if self._limit is not None and moved >= self._limit:
                return
            for image_id in writing:
                busy[image_id] = Moved(image_id, 0, "busy", "its data is being written to this store")
            if (not busy and not ended) or time.monotonic() - since > at_most:
                yield from busy.values()
                return
            if busy:
                self._stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _each(self, pool: ThreadPoolExecutor, rows: Iterator[AuditRow], moved: int) -> Iterator[Moved]:
        """The results of one pass. Few images are begun ahead of those that end, and none beyond the limit."""
        running: set[Future[Moved | _Dropped]] = set()
        lingering: deque[_Dropped] = deque()
        while True:
            while lingering and lingering[0].due <= time.monotonic():
                running.add(pool.submit(self._delete_old, lingering.popleft()))
            while len(running) < self._workers and len(lingering) < _LINGERING:
                if self._limit is not None and moved + len(running) + len(lingering) >= self._limit:
                    break
                row = next(rows, None)
                if row is None:
                    break
                running.add(pool.submit(self._one, row.id, row.size or 0))
            if not running and not lingering:
                return
            # With nothing running this only sleeps.
            until_due = max(lingering[0].due - time.monotonic(), 0) if lingering else None
            if not running:
                self._stop.wait(until_due)
                continue
            done, running = wait(running, until_due, FIRST_COMPLETED)
            for future in done:
                result = future.result()
                if isinstance(result, _Dropped):
                    lingering.append(result)
                    continue
                moved += result.state == "moved"
                yield result

    def _one(self, image_id: str, size: int) -> Moved | _Dropped:
        """Move one image but for its old copy; what is in the way is told, not raised."""
        result = Moved(image_id, size, "moved")

        def move() -> Moved | _Dropped:
            image = self._core.repository.images.get(image_id)
            old = self._place(image.locations, self._source)
            if old is None:
                return result._replace(state="gone", detail="its data went away by itself")
            if self._place(image.locations, self._target) is None:
                image = self._copy(image, old)
            else:
                self._prove_copy(image, old)
            self._core.refresh_acls(administrator(), image)
            return self._drop(result, old)

        return self._telling(result, move)

    def _telling(self, result: Moved, step: Callable[[], Moved | _Dropped]) -> Moved | _Dropped:
        image_id = result.image_id
        try:
            return step()
        except ImageNotFound:
            return result._replace(state="gone", detail="it was deleted meanwhile")
        except LocationNotFound:
            return result._replace(state="gone", detail="its old place was taken from it meanwhile")
        except (Conflict, InUseByStore, HasSnapshot) as error:
            if isinstance(error, UploadLost) and self._is_gone(image_id):
                return result._replace(state="gone", detail="it was deleted meanwhile")
            passing = isinstance(error, (StatusConflict, UploadLost))
            return result._replace(state="busy" if passing else "in use", detail=str(error))
        except (ApiError, StoreError) as error:
            if self._is_gone(image_id):
                return result._replace(state="gone", detail="it was deleted meanwhile")
            return result._replace(state="failed", detail=str(error), error=error)

    def _is_gone(self, image_id: str) -> bool:
        try:
            return self._core.repository.images.get(image_id).status not in WITH_DATA
        except ImageNotFound:
            return True
        except ApiError:
            return False

    def _copy(self, image: Image, old: ImageLocation) -> Image:
        """The image with a second, proven place."""
        data, target = self._service.data, self._target
        image, ticket = data.begin(image, from_=(image.status,), to=None, stores=[target.name])
        stored: StoredImage | None = None
        try:
            # What an earlier copy left that never was recorded is in the way.
            remove_leftovers(self._core, target, image.id, ticket)
            with data.watching(ticket, "copied") as wanted:
                stored, digest = self._transfer(image, old, wanted)
                self._read_back(stored.uri, image.size, digest, wanted)
            location = NewLocation(stored.uri, stored.metadata)
            return self._core.repository.uploads.finish(
                image.id, ticket.process_id, token=ticket.token, to=None, locations=[location]
            )
        except OutcomeUnknown:
            # It may be recorded: only the lease, which looks later, may undo it.
            data.undo_later(ticket)
            raise
        except BaseException as error:
            if stored is not None:
                data.discard(administrator(), ticket, [stored])
            elif is_unanswered(error):
                data.may_have(ticket, [target.name])
            data.give_up(ticket, None)
            raise

    def _transfer(self, image: Image, old: ImageLocation, wanted: Progress) -> tuple[StoredImage, Digest]:
        """Copy the bytes; nothing is stored unless they are those on record. Returns what they are, too."""
        expected = _on_record(image)
        algorithm = expected.algorithm if expected else self._core.hashing_algorithm
        subject = f"image {image.id} in store {self._source.name}"
        found = self._source.get(old.uri)
        with closing(found.data) as stream:
            if image.size is not None and found.size != image.size:
                raise IncompleteRead(f"{subject}: it has {found.size} bytes, on record are {image.size}")
            stored = upload.add(
                self._target,
                image.id,
                stream,
                found.size,
                hashing_algo=algorithm,
                check=comparing(expected, subject) if expected else None,
                progress=self._watch(wanted),
            )
        return stored, Digest(algorithm, stored.multihash)

    def _watch(self, wanted: Progress) -> Progress:
        """A transfer's progress callback, which keeps to the rate limit, and ends what is for nothing."""
        known = 0

        def look() -> None:
            if self._stop.is_set():
                raise _Stopped
            wanted(0, None)

        def progress(done: int, total: int | None) -> None:
            nonlocal known
            step, known = done - known, done
            look()
            self._tell(step)
            if step < LEAP:
                self._rate_limit.spend(step, look)

        return progress

    def _tell(self, step: int) -> None:
        with self._lock:
            self._copied += step
            if self._progress is not None:
                self._progress(self._copied)

    def _prove_copy(self, image: Image, old: ImageLocation) -> None:
        """The image is in both stores already: an earlier move ended here, or it was copied."""
        copy = self._place(image.locations, self._target)
        assert copy is not None  # noqa: S101  (the caller looked)
        self._read_back(copy.uri, image.size, _on_record(image) or self._digest_of(old.uri), _whatever)
        self._tell(image.size or 0)

    def _digest_of(self, uri: str) -> Digest:
        """What the data at the old place is, where nothing is on record."""
        from storelib.transfer.digests import new_hasher

        hasher, algorithm = new_hasher(self._core.hashing_algorithm), self._core.hashing_algorithm
        for piece in self._pieces(self._source, uri, None, _whatever):
            hasher.update(piece)
        return Digest(algorithm, hasher.hexdigest())

    def _read_back(self, uri: str, size: int | None, expected: Digest, wanted: Progress) -> None:
        """Raise DigestMismatch, IncompleteRead unless the new copy is what it has to be."""
        count = sum(len(piece) for piece in self._pieces(self._target, uri, expected, wanted))
        if size is not None and count != size:
            raise IncompleteRead(f"store {self._target.name} has {count} bytes of the {size} of the image")

    def _pieces(self, store: Store[Any], uri: str, verify: Digest | None, wanted: Progress) -> Iterator[memoryview]:
        def look() -> None:
            if self._stop.is_set():
                raise _Stopped
            wanted(0, None)

        view = memoryview(bytearray(_BUFFER))
        with closing(store.get(uri, verify=verify).data) as stream:
            while count := stream.readinto(view):
                yield view[:count]
                look()
                self._rate_limit.spend(count, look)

    # -- the old place ------------------------------------------------------------------------------------------------

    def _drop(self, result: Moved, old: ImageLocation) -> Moved | _Dropped:
        """Nobody begins to read the old copy any more. It goes once those have come through who were about to.

        Of several images that have the same data the last one to leave takes it along.
        """
        locations = self._core.repository.locations
        if old.uri in self._shared:
            with self._lock:
                if locations.is_shared(old.uri, result.image_id):
                    locations.detach(result.image_id, old.id)
                    return result
                dropped = locations.drop(result.image_id, old.id)
        else:
            dropped = locations.drop(result.image_id, old.id)
        return _Dropped(result, dropped, time.monotonic() + self._linger)

    def _delete_old(self, dropped: _Dropped) -> Moved | _Dropped:
        """What keeps it from being deleted now is told, and servers delete it later."""
        image_id = dropped.result.image_id

        def delete() -> Moved:
            try:
                delete_location(self._core, administrator(), image_id, dropped.location)
            except (InUseByStore, HasSnapshot):
                self._core.repository.locations.restore(image_id, dropped.location.id)
                raise
            return dropped.result

        return self._telling(dropped.result, delete)

    def _end_deletions(self, store: Store[Any]) -> None:
        """Delete what was dropped before and could not be deleted; what still cannot be, servers try again."""
        delayed = self._core.options.delayed_delete
        for image_id, location in self._core.repository.locations.pending():
            if not self._is_in(location, store) or (delayed and self._is_gone(image_id)):
                continue
            try:
                delete_location(self._core, administrator(), image_id, location)
            except (ApiError, StoreError) as error:
                LOG.warning("image %s: its data at %r cannot be deleted yet: %s", image_id, location, error)


def _whatever(done: int, total: int | None) -> None:
    """What is read is wanted until the end."""


def _stores(service: Service, source: str, target: str) -> tuple[Store[Any], Store[Any]]:
    if source == target:
        raise BadStoreConfiguration(f"both stores are {source!r}")
    found = service.core.registry[source], service.core.registry[target]
    if Capability.ADD not in found[1].capabilities:
        raise StoreAddDisabled(f"store {target} takes no data")
    # Data of a store that never deletes, like the web's, stays there when images leave it.
    if Capability.DELETE not in found[0].capabilities and Capability.ADD in type(found[0]).capabilities:
        raise StoreDeleteNotSupported(f"store {source} is read-only: nothing can be moved out of it")
    return found


def _on_record(image: Image) -> Digest | None:
    """The digest of the image that can be computed here."""
    for algorithm, value in ((image.os_hash_algo, image.os_hash_value), ("md5", image.checksum)):
        if algorithm and value:
            try:
                return normal(Digest(algorithm, value))
            except UnknownHashingAlgo:
                continue
    return None

# SPDX-License-Identifier: Apache-2.0
"""Looking after the image cache of a host: what it holds is told to the database, what it must not hold any more is
removed, and what is queued is fetched. Each process does its part; of what is the host's, one at a time does it.
"""

from __future__ import annotations

import datetime
import functools
import logging
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from storelib.api.context import administrator
from storelib.api.db.cached import CachedImage, Hits, NewCached
from storelib.api.db.records import Image
from storelib.api.errors import ApiError, ImageNotFound
from storelib.api.service.cache.directory import Directory, Entry, Pruned
from storelib.api.service.cache.filling import Dropped, FromStores
from storelib.api.service.cache.reading import Reading, file_name
from storelib.api.service.core import Core
from storelib.api.service.workers import Workers
from storelib.exceptions import StoreError
from storelib.transfer.forking import forget_in_child

LOG = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds between two looks at what the cache of this host holds.
TEND = 10.0
#: Seconds that a list waits for the disk.
SETTLE = 5.0
#: Images asked for in one statement.
BATCH = 500
#: Seconds that stopping waits for the thread in the middle of its work.
JOIN = 5.0


class Keeper:
    """One process's part in keeping the cache in ``directory``."""

    def __init__(self, core: Core, workers: Workers, directory: Directory, stores: FromStores) -> None:
        self._core = core
        self._workers = workers
        self._directory = directory
        self._stores = stores
        self.reading = Reading(directory, self._check_current, self._published)
        self._hits: dict[str, Hits] = {}
        self._thread: threading.Thread | None = None
        self._wanted = False
        #: When it was last tried to fetch an image that is still queued.
        self._tried: dict[str, float] = {}
        self._tended = 0.0
        self.forget_parent()
        forget_in_child(self)

    def forget_parent(self) -> None:
        """In a forked child: the thread is the parent's."""
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._stopped = threading.Event()
        self._thread = None
        self._hits = {}
        self._fetching = False

    @property
    def node(self) -> str:
        """What tells this cache from others in the database; raises OSError where there is no directory."""
        return self._directory.node()

    # -- in the background ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to look after the cache in a thread; in a forked child, with its first download."""
        self._wanted = True
        self._have_thread()

    def _have_thread(self) -> None:
        with self._lock:
            if self._wanted and self._thread is None and not self._stopped.is_set():
                self._thread = threading.Thread(target=self._run, name="storelib-cache", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Drop what is being filled, note the last hits and end the thread."""
        self._stopped.set()
        self._news.set()
        self.reading.stop()
        if self._thread is not None:
            self._thread.join(JOIN)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.note_hits()
                if time.monotonic() - self._tended > TEND:
                    self._tended = time.monotonic()
                    self.tend()
            except ApiError as error:
                LOG.warning("the image cache is not looked after now: %s", error)
            except OSError as error:
                self.reading.complain(error)
            except Exception:
                # It is looked after again the next time.
                LOG.exception("the image cache is not looked after now")
            self._news.wait(TEND)
            self._news.clear()
        try:
            self.note_hits()
        except (ApiError, OSError) as error:
            LOG.warning("the last uses of the image cache are not noted: %s", error)

    def tend(self) -> None:
        """Remove leftovers and what no active image has, tell the database what is there, fetch what is queued.

        Raises OSError, ApiError.
        """
        with self._directory.turn() as mine:
            if mine:
                self._directory.tidy(self._core.options.image_cache_stall_time)
                self._reconcile()
        if self._due():
            self.fetch_soon()

    def _reconcile(self) -> None:
        tables, node = self._core.repository.cached, self.node
        for unfinished in _batches(self._directory.unfinished()):
            known = tables.active([each.image_id for each in unfinished])
            self._directory.remove(*(each.image_id for each in unfinished if each.image_id not in known))
        there: dict[str, Entry] = {}
        for batch in _batches(self._directory.entries()):
            known = tables.active([each.image_id for each in batch])
            for entry in batch:
                data = known.get(entry.image_id)
                if data is not None and file_name(entry.image_id, data) == entry.name and entry.size == data.size:
                    there[entry.image_id] = entry
                else:
                    self._directory.discard(entry)
        told = {each.image_id for each in tables.list(node)}
        for images in _batches(sorted(told - set(there))):
            tables.remove(node, images)
        for images in _batches(sorted(set(there) - told)):
            tables.add(node, _host(), [_row(there[image_id]) for image_id in images])

    def cached(self) -> Sequence[CachedImage]:
        """What is there, the one used last first, with what is known of it; raises OSError, ApiError."""
        # A client that has just received an image expects to find it here.
        self._directory.settle(SETTLE)
        known = {each.image_id: each for each in self._core.repository.cached.list(self.node)}
        found = []
        for entry in sorted(self._directory.entries(), key=lambda entry: -entry.used):
            row = known.get(entry.image_id)
            hits, cached_at = (row.hits, row.cached_at) if row else (0, _time(entry.made))
            used_at = max(row.used_at, cached_at) if row else _time(entry.used)
            found.append(CachedImage(entry.image_id, entry.size, hits, cached_at, used_at))
        return found

    # -- uses and removals --------------------------------------------------------------------------------------------

    def used(self, image_id: str) -> None:
        """A complete file is being sent to a client."""
        with self._lock:
            before = self._hits.get(image_id)
            self._hits[image_id] = Hits((before.times if before else 0) + 1, time.time())
        self._have_thread()
        self._news.set()

    def note_hits(self) -> None:
        """Tell the database how often files were used; raises ApiError, OSError, and tries again the next time."""
        with self._lock:
            hits, self._hits = self._hits, {}
        if not hits:
            return
        try:
            self._core.repository.cached.note(self.node, hits)
        except BaseException:
            with self._lock:
                for image_id, each in hits.items():
                    since = self._hits.get(image_id, Hits(0, 0.0))
                    self._hits[image_id] = Hits(each.times + since.times, max(each.last, since.last))
            raise

    def forget(self, image_id: str) -> Pruned:
        """Remove what is there of an image, and what is being filled. Raises OSError, ApiError."""
        removed = self._directory.remove(image_id)
        if removed.files:
            self._core.repository.cached.remove(self.node, [image_id])
        return removed

    # -- the queue ----------------------------------------------------------------------------------------------------

    def enqueue(self, image_id: str) -> None:
        """Have an image fetched; raises OSError, ApiError."""
        self._core.repository.cached.enqueue(self.node, image_id)
        with self._lock:
            self._tried.pop(image_id, None)

    def fetch_soon(self) -> None:
        """Fetch what is queued in the background, one image after the other, each in its turn among other work."""
        with self._lock:
            if self._fetching:
                return
            self._fetching = True
        try:
            self._workers.start(None, self._fetch_next)
        except BaseException:
            self._fetching = False
            raise

    def _fetch_next(self) -> None:
        try:
            due = self._due()
            if due:
                self.fetch(due[0])
        except OSError as error:
            self.reading.complain(error)
        finally:
            self._fetching = False
        # What is queued meanwhile, too.
        if not self._stopped.is_set() and self._due():
            self.fetch_soon()

    def _due(self) -> list[str]:
        """What is queued and was not tried lately, here."""
        queued = self._core.repository.cached.queued(self.node)
        latest = time.monotonic() - self._core.options.cache_prefetcher_interval
        with self._lock:
            self._tried = {each: self._tried[each] for each in queued if self._tried.get(each, latest) > latest}
            return [each for each in queued if each not in self._tried]

    def fetch(self, image_id: str) -> str:
        """Fetch a queued image into the cache; returns what became of it, in a word or two. Never raises StoreError.

        An image that cannot be fetched for now stays in the queue.
        """
        tables, node = self._core.repository.cached, self.node
        with self._lock:
            self._tried[image_id] = time.monotonic()
        try:
            image = self._core.repository.images.get(image_id)
        except ImageNotFound:
            tables.dequeue(node, [image_id])
            return "no such image"
        if not self.takes(image):
            tables.dequeue(node, [image_id])
            return f"not for the cache ({image.status}, {image.size} bytes)"
        if self._has(image):
            tables.dequeue(node, [image_id])
            return "cached already"
        try:
            if not self.reading.fetch(image, functools.partial(self._stores, administrator(), image)):
                return "not now"
        except (StoreError, ApiError) as error:
            LOG.warning("image %s: it cannot be cached: %s", image_id, error)
            return "failed"
        return "cached" if self._has(image) else "failed"

    def takes(self, image: Image) -> bool:
        """Whether the cache is for this image."""
        fits = image.size is not None and image.size <= self._directory.limit
        return image.status == "active" and bool(image.locations) and fits

    def _has(self, image: Image) -> bool:
        return self._directory.path_of(file_name(image.id, image)).exists()

    # -- when a file is full ------------------------------------------------------------------------------------------

    def _check_current(self, image: Image) -> None:
        """The image may have been deleted or deactivated while it was fetched."""
        found = self._core.repository.cached.active([image.id]).get(image.id)
        if found is None or file_name(image.id, found) != file_name(image.id, image):
            raise Dropped

    def _published(self, image: Image) -> None:
        now = time.time()
        try:
            self._core.repository.cached.add(self.node, _host(), [NewCached(image.id, image.size or 0, now, now)])
        except ApiError as error:
            LOG.warning("image %s: that it is cached is told to the database later: %s", image.id, error)


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)


def _host() -> str:
    return socket.gethostname()[:255]


def _row(entry: Entry) -> NewCached:
    return NewCached(entry.image_id, entry.size, entry.made, entry.used)


def _batches(found: Iterable[T]) -> Iterator[Sequence[T]]:
    left = iter(found)
    while batch := list(islice(left, BATCH)):
        yield batch

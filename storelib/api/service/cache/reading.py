# SPDX-License-Identifier: Apache-2.0
"""Downloads from the image cache: a complete file as it lies there, or one that is being filled, as it grows."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

from storelib.api.db.records import Image
from storelib.api.service.cache.directory import Begun, Directory
from storelib.api.service.cache.filling import Dropped, Fill, FollowingReader, FromStore
from storelib.api.service.foreign import known_digest
from storelib.driver import ImageData, Reader
from storelib.exceptions import NotFound, StoreError
from storelib.registry import open_store
from storelib.transfer.contract import MiB
from storelib.transfer.download import ImageStream, open_stream
from storelib.transfer.forking import forget_in_child
from storelib.transfer.memory import MemoryBudget
from storelib.transfer.retry import HungCalls, RetryPolicy

LOG = logging.getLogger(__name__)

#: Images that one process fetches into the cache at a time; others are read from their stores.
FILLS = 8
#: Seconds between two complaints about a directory that cannot be used.
QUIET = 60.0
#: Seconds that stopping waits for the threads that fill.
JOIN = 5.0

#: What became of a download: read from the cache, beside the request that fills it, or from a store.
Outcome = Literal["hit", "follow", "miss"]


class Data(Protocol):
    """What tells the data of an image from other data of the same id."""

    @property
    def size(self) -> int | None: ...
    @property
    def checksum(self) -> str | None: ...
    @property
    def os_hash_algo(self) -> str | None: ...
    @property
    def os_hash_value(self) -> str | None: ...
    @property
    def created_at(self) -> datetime.datetime: ...


class Found(NamedTuple):
    """Bytes for a client, and where they come from."""

    data: ImageData
    outcome: Outcome


def file_name(image_id: str, data: Data) -> str:
    """The name of an image's file; another one if there is other data under the id."""
    said = (data.size, data.checksum, data.os_hash_algo, data.os_hash_value, data.created_at.isoformat())
    return f"{image_id}.{hashlib.sha256(repr(said).encode()).hexdigest()[:32]}"


class Reading:
    """Gives bytes of the files of ``directory``, and has them filled. Safe from many threads.

    ``before`` is called with an image whose file is full, and may raise to prevent that it becomes complete; ``after``
    once it is.
    """

    def __init__(self, directory: Directory, before: Callable[[Image], None], after: Callable[[Image], None]) -> None:
        self._directory = directory
        self._before, self._after = before, after
        place = str(directory.entries_path)
        self._files = open_store("file", "os_glance_cache", filesystem_store_datadir=place, read_only=True)
        self._fills: dict[str, Fill] = {}
        self._quiet_until = 0.0
        self.forget_parent()
        forget_in_child(self)

    def forget_parent(self) -> None:
        """In a forked child: what the parent fills is locked by the parent alone."""
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._stopped = False
        fills, self._fills = self._fills, {}
        for fill in fills.values():
            with contextlib.suppress(OSError):
                os.close(fill.begun.file)

    def complete(self, image: Image, offset: int, length: int | None) -> ImageData | None:
        """Bytes of a complete file; None if there is none."""
        path = self._directory.path_of(file_name(image.id, image))
        try:
            found = self._files.get(path.as_uri(), offset, length)
        except NotFound:
            return None
        except StoreError as error:
            self.complain(error)
            return None
        if not _is_whole(found, image):
            LOG.error("image %s: its file in the image cache was changed, and is removed", image.id)
            found.data.close()
            self._directory.remove(image.id)
            return None
        self._directory.use(path)
        return found

    def part(self, image: Image, offset: int, length: int, store: FromStore) -> Found | None:
        """A range of an image of which all bytes are there, though the file is not complete yet; None if they are not.

        Raises what ``store`` raises.
        """
        try:
            file = self._directory.open_full(file_name(image.id, image))
        except OSError as error:
            self.complain(error)
            return None
        if file is None:
            return None
        return Found(self._stream(image, file, None, store, offset, length), "follow")

    def follow(self, image: Image, store: FromStore) -> Found | None:
        """The whole of an image that is being filled, by this request or by another; None if the cache has no room.

        Raises what ``store`` raises.
        """
        begun = self._begin(image)
        if begun is None:
            return None
        if not begun.mine:
            return Found(self._stream(image, begun.file, self._fills.get(begun.name), store), "follow")
        fill = Fill(self._directory, begun, image.size or 0)
        try:
            file = self._directory.open_to_read(begun)
        except OSError as error:
            fill.end()
            self.complain(error)
            return None
        try:
            source = store(0).data
        except BaseException:
            fill.end()
            os.close(file)
            raise
        data = self._stream(image, file, fill, store)
        try:
            self._start(fill, lambda: self._run(fill, image, source))
        except BaseException as error:
            source.close()
            fill.end()
            data.data.close()
            if isinstance(error, RuntimeError):
                # There are no more threads: then it is read from its store, which may need none.
                self.complain(error)
                return None
            raise
        return Found(data, "miss")

    def fetch(self, image: Image, store: FromStore) -> bool:
        """Fill the file of an image in this thread. False: another does it, or there is no room at the moment.

        Raises what ``store`` raises.
        """
        begun = self._begin(image)
        if begun is None:
            return False
        if not begun.mine:
            os.close(begun.file)
            return False
        fill = Fill(self._directory, begun, image.size or 0, kept=True)
        try:
            source = store(0).data
        except BaseException:
            fill.end()
            raise
        with self._lock:
            self._fills[begun.name] = fill
        self._run(fill, image, source)
        return True

    def stop(self) -> None:
        """Drop what is being filled and join the threads."""
        with self._lock:
            self._stopped = True
            fills, threads = list(self._fills.values()), list(self._threads)
        for fill in fills:
            fill.cancel()
        deadline = time.monotonic() + JOIN
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))

    def complain(self, error: Exception) -> None:
        """Say that the directory cannot be used, now and then."""
        now = time.monotonic()
        if now > self._quiet_until:
            self._quiet_until = now + QUIET
            reason = error.strerror if isinstance(error, OSError) else error
            LOG.warning("[api] image_cache_dir cannot be used, and images are not cached: %s", reason)

    def _begin(self, image: Image) -> Begun | None:
        name = file_name(image.id, image)
        try:
            if self._stopped or len(self._fills) >= FILLS:
                return self._directory.join(name)
            return self._directory.begin(name, image.size or 0)
        except OSError as error:
            self.complain(error)
            return None

    def _start(self, fill: Fill, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            finally:
                self._threads.discard(thread)

        thread = threading.Thread(target=run, name="storelib-cache-fill", daemon=True)
        with self._lock:
            self._threads.add(thread)
            self._fills[fill.begun.name] = fill
        try:
            thread.start()
        except BaseException:
            self._threads.discard(thread)
            self._fills.pop(fill.begun.name, None)
            raise

    def _run(self, fill: Fill, image: Image, source: ImageStream) -> None:
        def publish(begun: Begun) -> None:
            self._before(image)
            try:
                self._directory.publish(begun)
            except FileNotFoundError:
                raise Dropped from None
            self._after(image)

        try:
            fill.run(source, known_digest(image), publish)
        finally:
            with self._lock:
                self._fills.pop(fill.begun.name, None)

    def _stream(
        self, image: Image, file: int, fill: Fill | None, store: FromStore, offset: int = 0, length: int | None = None
    ) -> ImageData:
        size = image.size or 0
        reader = FollowingReader(file, size, fill, store, known_digest(image))
        stream = open_stream(_Followed(reader), f"image {image.id}", offset, length, None)
        return ImageData(stream, stream.size)


class _Followed:
    """What the engine reads a growing file through: the store's own retries are made before bytes come here."""

    retry_policy = RetryPolicy(retries=0)
    hung_calls = HungCalls("os_glance_cache", 1)
    window = 48 * MiB
    memory = MemoryBudget()

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """Errors of the file; others are the service's own."""
        if isinstance(error, OSError):
            return StoreError(f"{subject}: the image cache cannot be read: {error.strerror}")
        return None

    def open_reader(self, location: Any, offset: int, length: int | None, context: Any) -> Reader:
        """The one reader there is."""
        return self._reader


def _is_whole(found: ImageData, image: Image) -> bool:
    try:
        return os.fstat(found.data.fileno()).st_size == image.size
    except BaseException:
        found.data.close()
        raise

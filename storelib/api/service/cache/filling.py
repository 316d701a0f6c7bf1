# SPDX-License-Identifier: Apache-2.0
"""One image on its way into the cache, and its readers meanwhile.

A thread of its own reads the store and writes the file, so that a slow reader keeps nobody waiting. Readers, of any
process of the host, read what is in the file and wait for more; where it will not come, they read on from the store.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from storelib.api.context import Context
from storelib.api.db.records import Image
from storelib.api.errors import ApiError, BadRequest
from storelib.api.service.cache.directory import Begun, Directory, announce_reader, has_readers, is_alive
from storelib.api.service.workers import check_time
from storelib.driver import ImageData, Reader
from storelib.exceptions import DigestMismatch, StoreError
from storelib.transfer.contract import Digest, MiB
from storelib.transfer.deadlines import while_wanted
from storelib.transfer.digests import Hasher, new_hasher
from storelib.transfer.download import ImageStream
from storelib.transfer.verifying import compare

LOG = logging.getLogger(__name__)

#: Seconds without a new byte after which a reader reads the store itself.
STALL = 60.0
#: Seconds between two looks at a file that another process fills.
POLL = 0.02
#: Bytes written at a time.
BLOCK = MiB

#: Reads an image from its stores, from this byte on.
FromStore = Callable[[int], ImageData]
#: The same of any image, with the rights of a caller.
FromStores = Callable[[Context, Image, int], ImageData]


class Dropped(Exception):
    """Nobody needs this file any more."""


class Fill:
    """The file of one image, filled by ``run`` in whatever thread. Without readers it is dropped unless half is there.

    ``kept`` ones are finished in any case: they were asked for themselves.
    """

    def __init__(self, directory: Directory, begun: Begun, size: int, *, kept: bool = False) -> None:
        self.begun = begun
        self.size = size
        self._directory = directory
        self._kept = kept
        self._written = 0
        self._cancelled = False
        self._changed = threading.Condition()

    def cancel(self) -> None:
        """Stop soon; what is there is removed."""
        self._cancelled = True

    def wait(self, seconds: float) -> None:
        """Wait for more bytes, or for the end."""
        with self._changed:
            self._changed.wait(seconds)

    def run(self, source: ImageStream, digest: Digest | None, publish: Callable[[Begun], object]) -> None:
        """Fill the file and call ``publish`` once all is there and proven. Never raises; closes both."""
        try:
            # The store may keep silent for long.
            with source, while_wanted(self._check_wanted):
                self._copy(source, digest)
            publish(self.begun)
        except DigestMismatch as error:
            # For its readers, too: what they have is worth nothing.
            with suppress(OSError):
                os.ftruncate(self.begun.file, 0)
            LOG.error("image %s: its data is wrong, and is not cached: %s", self.begun.image_id, error)
        except Dropped:
            LOG.info("image %s: nobody needs it in the cache any more", self.begun.image_id)
        except OSError as error:
            LOG.warning("image %s: it cannot be cached: %s", self.begun.image_id, error.strerror)
        except (StoreError, ApiError) as error:
            LOG.warning("image %s: it cannot be cached: %s", self.begun.image_id, error)
        except Exception:
            LOG.exception("image %s: it cannot be cached", self.begun.image_id)
        finally:
            self.end()

    def end(self) -> None:
        """Leave nothing behind but what was published."""
        self._directory.drop(self.begun)
        with self._changed:
            # What others see of the end is that the file is locked no more.
            os.close(self.begun.file)
            self._changed.notify_all()

    def _copy(self, source: ImageStream, digest: Digest | None) -> None:
        if digest is not None and source.verified_with is None:
            # Raises before it gives the last bytes if they are wrong, so that no file is full that is not right.
            source.verify(digest)
        buffer = memoryview(bytearray(min(BLOCK, self.size)))
        while count := source.readinto(buffer):
            self._check_wanted()
            self._write(buffer[:count])
        if self._written != self.size:
            raise StoreError(f"the store has {self._written} of {self.size} bytes")

    def _check_wanted(self) -> None:
        check_time()
        # What was removed meanwhile will not be published, but those that read it already go on.
        removed = not os.fstat(self.begun.file).st_nlink
        worthwhile = not removed and (self._kept or self._written >= self.size / 2)
        if self._cancelled or not (worthwhile or has_readers(self.begun.file)):
            raise Dropped

    def _write(self, view: memoryview) -> None:
        if self._written + len(view) > self.size:
            raise StoreError(f"the store has more than {self.size} bytes")
        while view:
            count = os.write(self.begun.file, view)
            view = view[count:]
            with self._changed:
                self._written += count
                self._changed.notify_all()


class FollowingReader(Reader):
    """Reads a file of the cache as it grows, and the store from where it will grow no more.

    ``file`` is a descriptor of the reader's own; ``fill`` is what fills it, if that is in this process. What comes from
    both is compared with the digest that is ``expected``: the data may have been replaced meanwhile.
    """

    def __init__(
        self, file: int, size: int, fill: Fill | None, store: FromStore, expected: Digest | None = None
    ) -> None:
        self.size = size
        self._expected = expected
        self._hasher: Hasher | None = None
        self._file = file
        self._fill = fill
        self._store = store
        self._rest: ImageData | None = None
        self._rest_begins = 0
        announce_reader(file)

    def read_into(self, offset: int, view: memoryview) -> int:
        """What is in the file, or from the store."""
        if self._rest is None:
            ready = self._await(offset)
            if ready:
                return os.preadv(self._file, [view[:ready]], offset)
            self._rest, self._rest_begins = self._open_rest(offset)
            if self._expected is not None and offset:
                self._hasher = self._hashed(self._expected.algorithm, offset)
            elif self._expected is not None and self._rest.data.verified_with is None:
                # All of it may have been found wrong before this reader came to its first byte.
                self._rest.data.verify(self._expected)
        self._rest.data.seek(offset - self._rest_begins)
        count = self._rest.data.readinto(view)
        if self._hasher is not None and self._expected is not None:
            self._hasher.update(view[:count])
            if offset + count == self.size:
                # The last bytes are given to nobody if these are wrong.
                compare(self._expected, self._hasher.hexdigest(), "what was cached and the rest")
        return count

    def _hashed(self, algorithm: str, length: int) -> Hasher:
        """The hash of what was given so far, which is in the file still."""
        hasher, buffer, position = new_hasher(algorithm), memoryview(bytearray(min(BLOCK, length))), 0
        while position < length:
            count = os.preadv(self._file, [buffer[: length - position]], position)
            if not count:
                raise DigestMismatch("throw away what was read: these bytes are not the image's")
            hasher.update(buffer[:count])
            position += count
        return hasher

    def close(self) -> None:
        """Close the file, and what is open of the store."""
        os.close(self._file)
        if self._rest is not None:
            self._rest.data.close()

    def _await(self, offset: int) -> int:
        """Wait until there are bytes at ``offset`` and return how many; 0: they will not come."""
        deadline = time.monotonic() + STALL
        while True:
            # Asked first: what was written before its end is seen below.
            alive = is_alive(self._file)
            found = os.fstat(self._file).st_size
            if found < offset:
                raise DigestMismatch("throw away what was read: these bytes are not the image's")
            if found > offset:
                return found - offset
            if not alive or time.monotonic() > deadline:
                return 0
            if self._fill is not None:
                self._fill.wait(POLL)
            else:
                time.sleep(POLL)

    def _open_rest(self, offset: int) -> tuple[ImageData, int]:
        try:
            return self._store(offset), offset
        except BadRequest:
            # It reads whole images only.
            if not offset:
                raise
        found = self._store(0)
        try:
            scratch = memoryview(bytearray(min(BLOCK, offset)))
            while (left := offset - found.data.tell()) > 0:
                found.data.readinto(scratch[:left])
        except BaseException:
            found.data.close()
            raise
        return found, 0

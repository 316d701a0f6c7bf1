# SPDX-License-Identifier: Apache-2.0
"""MemoryStore: the smallest complete driver. Reads as the contract's example; serves tests that need a store.

Images live in ``MemoryStore.backend``, a plain object that tests may look into behind the driver's back.
"""

from __future__ import annotations

import secrets
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from oslo_config import cfg

from storelib.capabilities import COMPLETE
from storelib.driver import (
    Committed,
    Deletion,
    Digests,
    Garbage,
    Health,
    ImageInfo,
    Part,
    Reader,
    Store,
    StoreLocation,
    Writer,
)
from storelib.exceptions import BadStoreUri, Duplicate, NotFound, StoreError
from storelib.transfer.contract import Context, KiB, Options
from storelib.uris import quote, redact, unquote


@dataclass(frozen=True, repr=False)
class MemoryLocation(StoreLocation):
    """``memory://<store>/<image id>``, both percent-encoded."""

    store: str
    image_id: str

    @classmethod
    def parse(cls, uri: str) -> MemoryLocation:
        """Split a URI into store and image id."""
        parts = uri.partition("://")[2].split("/")
        if len(parts) != 2 or not all(parts) or "@" in parts[0]:
            raise BadStoreUri(f"expected memory://<store>/<image id>, not {redact(uri)}")
        return cls(unquote(parts[0], uri), unquote(parts[1], uri))

    @property
    def uri(self) -> str:
        """The URI of this location."""
        return f"memory://{quote(self.store)}/{quote(self.image_id)}"


@dataclass
class Upload:
    """Parts of an image not yet published, by offset."""

    image_id: str
    #: The writer that makes it; once it is gone without commit or abort, as after a crash, the upload is dead.
    writer: weakref.ref[MemoryWriter]
    parts: dict[int, bytes] = field(default_factory=dict)
    modified: float = field(default_factory=time.time)


@dataclass
class Image:
    """A published image and the token of the writer that published it."""

    data: bytes
    token: str
    modified: float = field(default_factory=time.time)


class MemoryBackend:
    """What would be a server elsewhere: images and unfinished uploads behind one lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.images: dict[str, Image] = {}
        self.uploads: dict[str, Upload] = {}


class MemoryStore(Store[MemoryLocation]):
    """Keeps images in this process; gone with it."""

    schemes = ("memory",)
    location_class = MemoryLocation
    options: ClassVar[Sequence[cfg.Opt]] = (
        cfg.IntOpt("memory_store_part_size", default=256 * KiB, min=4096, help="Bytes in one part."),
        cfg.IntOpt("memory_store_concurrency", default=2, min=1, help="Parts in flight at most."),
    )
    capabilities = COMPLETE

    def __init__(self, name: str, conf: Options) -> None:
        super().__init__(name, conf)
        self.backend = MemoryBackend()

    def location(self, image_id: str) -> MemoryLocation:
        """Where the image with this id is, or would be."""
        return MemoryLocation(self.name, image_id)

    def owns(self, location: MemoryLocation) -> bool:
        """Whether the location names this store."""
        return location.store == self.name

    def roots(self) -> list[str]:
        """The name of this store."""
        return [self.name]

    @classmethod
    def possible_roots(cls, location: MemoryLocation) -> list[str]:
        """The name of its store."""
        return [location.store]

    def image(self, location: MemoryLocation) -> Image:
        """The image at ``location``; raises NotFound."""
        with self.backend.lock:
            image = self.backend.images.get(location.image_id)
        if image is None:
            raise NotFound(f"no image at {location}")
        return image

    def open_writer(self, image_id: str, size: int | None, context: Context | None) -> MemoryWriter:
        """A writer; raises Duplicate early if the id is taken."""
        if image_id in self.backend.images:
            raise Duplicate(f"image {image_id!r} exists in store {self.name}")
        return MemoryWriter(self, image_id)

    def open_reader(
        self, location: MemoryLocation, offset: int, length: int | None, context: Context | None
    ) -> MemoryReader:
        """A reader of the bytes as they are now."""
        return MemoryReader(self.image(location).data)

    def remove(self, location: MemoryLocation, context: Context | None, deletion: Deletion) -> None:
        """Remove the image from memory."""
        with self.backend.lock:
            image = self.backend.images.get(location.image_id)
            if image is None:
                raise NotFound(f"no image at {location}")
            deletion.meet(image.token, location)
            del self.backend.images[location.image_id]

    def candidate_locations(self, image_id: str) -> list[MemoryLocation]:
        """The one place where an image with this id can be."""
        return [self.location(image_id)]

    def images(self) -> Iterator[ImageInfo]:
        """All images, as they were when the call was made."""
        with self.backend.lock:
            images = list(self.backend.images.items())
        for image_id, image in images:
            yield ImageInfo(self.location(image_id).uri, len(image.data), image_id, image.modified, image.token)

    def inspect(self, location: MemoryLocation, context: Context | None) -> ImageInfo:
        """What is known about one image."""
        image = self.image(location)
        return ImageInfo(location.uri, len(image.data), location.image_id, image.modified, image.token)

    def garbage(self, older_than: float, prefix: str | None) -> Iterable[Garbage]:
        """Unfinished uploads nobody is writing any more."""
        with self.backend.lock:
            uploads = list(self.backend.uploads.items())
        for token, upload in uploads:
            old = upload.modified <= time.time() - older_than
            if upload.writer() is None and old and upload.image_id.startswith(prefix or ""):
                size = sum(map(len, upload.parts.values()))
                yield Garbage(token, upload.image_id, size, upload.modified)

    def discard(self, garbage: Garbage) -> bool:
        """Forget an unfinished upload."""
        with self.backend.lock:
            return self.backend.uploads.pop(garbage.name, None) is not None

    def probe(self) -> Health:
        """How many images there are; memory is always available."""
        return Health(f"{len(self.backend.images)} images in memory")


class MemoryWriter(Writer):
    """Collects parts under a random token; publishing is one assignment under the lock."""

    sparse = True
    smallest_part = 4096

    def __init__(self, store: MemoryStore, image_id: str) -> None:
        self.store = store
        self.backend = store.backend
        self.concurrency = store.conf.memory_store_concurrency
        self.image_id = image_id
        self.token = secrets.token_hex(8)
        self.put = self.put_whole
        self.begun = False

    def part_size(self, number: int, size: int | None) -> int:
        """The same for every part."""
        return int(self.store.conf.memory_store_part_size)

    def reserve(self, end: int) -> None:
        """Announce the upload, for ``garbage`` to find it if we die."""
        with self.backend.lock:
            self.upload()

    def write(self, part: Part) -> None:
        """Keep a copy of one part."""
        with self.backend.lock:
            upload = self.upload()
            upload.parts[part.offset] = bytes(part.data)
            upload.modified = time.time()

    def upload(self) -> Upload:
        """The parts so far, under the lock. Made once: an upload that is gone must not begin anew in the middle."""
        if not self.begun:
            self.backend.uploads[self.token] = Upload(self.image_id, weakref.ref(self))
            self.begun = True
        if self.token not in self.backend.uploads:
            raise StoreError(f"what was written of image {self.image_id!r} is gone from store {self.store.name}")
        return self.backend.uploads[self.token]

    def put_whole(self, data: memoryview, digests: Digests) -> Committed:
        """Publish an image of one part."""
        return self.publish(bytes(data))

    def commit(self, size: int, digests: Digests) -> Committed:
        """Put the parts together; what was never written is zeros."""
        with self.backend.lock:
            upload = self.backend.uploads.get(self.token)
            parts = list(upload.parts.items()) if upload else []
        whole = bytearray(size)
        for offset, data in parts:
            whole[offset : offset + len(data)] = data
        return self.publish(bytes(whole))

    def publish(self, data: bytes) -> Committed:
        """Make the image visible, unless the id is taken by another writer or the upload is gone."""
        with self.backend.lock:
            present = self.backend.images.get(self.image_id)
            if present is not None and present.token != self.token:
                raise Duplicate(f"image {self.image_id!r} exists in store {self.store.name}")
            if present is None:
                if self.begun:
                    self.upload()
                self.backend.images[self.image_id] = Image(data, self.token)
            self.backend.uploads.pop(self.token, None)
        return Committed(self.store.location(self.image_id))

    def abort(self) -> None:
        """Forget the parts, and the image if it is this writer's."""
        with self.backend.lock:
            self.backend.uploads.pop(self.token, None)
            image = self.backend.images.get(self.image_id)
            if image is not None and image.token == self.token:
                del self.backend.images[self.image_id]


class MemoryReader(Reader):
    """Hands out slices of the image it was opened on."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read_into(self, offset: int, view: memoryview) -> int:
        """Copy from the image."""
        piece = memoryview(self.data)[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

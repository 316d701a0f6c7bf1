# SPDX-License-Identifier: Apache-2.0
"""GridfsStore: configuration, and everything but moving bytes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from oslo_config import cfg

from storelib.capabilities import COMPLETE, Capability
from storelib.driver import Area, Context, Deletion, Garbage, Health, ImageInfo, Store, check_image_id
from storelib.drivers.gridfs import garbage
from storelib.drivers.gridfs.bucket import PAGE, Bucket, Stored, any_image, image_id_of, understood
from storelib.drivers.gridfs.errors import storelib_error
from storelib.drivers.gridfs.location import GridfsLocation
from storelib.drivers.gridfs.options import OPTIONS
from storelib.drivers.gridfs.reader import GridfsReader
from storelib.drivers.gridfs.writer import GridfsCopy, GridfsWriter
from storelib.exceptions import Invalid, NotFound, StoreError
from storelib.rehearsal import rehearse

LOG = logging.getLogger(__name__)


class GridfsStore(Store[GridfsLocation]):
    """Images as files in one GridFS bucket; other clients find them by their filename, which is the image's id.

    * Of adds racing for one id exactly one succeeds: a unique index sees to it. It knows nothing of images that
      glance_store adds at the same time; those that are there already are seen.
    * ``gc`` removes adds, of any client, in which nothing happened for ``older_than`` seconds by the server's clock.
      One that is alive after all then fails, since publishing needs the record that ``gc`` removes first.
    * ``copy`` with known digests is done by the server (MongoDB 4.4 or later).
    """

    schemes = ("gridfs",)
    location_class = GridfsLocation
    options: ClassVar[Sequence[cfg.Opt]] = OPTIONS
    capabilities = COMPLETE | Capability.COPY
    bucket: Bucket

    # -- Configuration ----------------------------------------------------------------------------------------

    def configure_get(self) -> None:
        """Which server, database and bucket."""
        self.bucket = Bucket(self.conf, self.name)

    def configure_add(self) -> None:
        """Check the size of chunks."""
        if self.conf.mongodb_store_chunk_size % 4:
            size = self.conf.mongodb_store_chunk_size
            raise self.misconfigured("mongodb_store_chunk_size", f"a multiple of 4 KiB, not {size}")

    def areas(self) -> list[Area]:
        """The bucket, by any of the servers' names."""
        bucket = (self.bucket.database_name, self.conf.mongodb_store_bucket)
        return [Area(("gridfs", host, *bucket), "", "mongodb_store_bucket") for host in self.bucket.hosts]

    def owns(self, location: GridfsLocation) -> bool:
        """Always: the URI names no place."""
        return True

    # -- The driver contract ----------------------------------------------------------------------------------

    def open_writer(self, image_id: str, size: int | None, context: Context | None) -> GridfsWriter:
        """Looks whether the id is taken, before any data is read."""
        writer = GridfsWriter(self.bucket, image_id)
        writer.publication.check_id_is_free()
        return writer

    def open_reader(
        self, location: GridfsLocation, offset: int, length: int | None, context: Context | None
    ) -> GridfsReader:
        """Find the document of the image; its chunks are asked for when they are read."""
        return GridfsReader(self.bucket, self.bucket.find(location), str(location))

    def remove(self, location: GridfsLocation, context: Context | None, deletion: Deletion) -> None:
        """Delete the document that the first attempt met, then its chunks; ``gc`` finds those of a delete that dies."""
        files = self.bucket.files_at_primary
        may_be_done = deletion.image is not None
        met: Stored = deletion.image or self.bucket.find(location, files)
        deletion.image = met
        # Other clients use an _id again; the time tells their files apart.
        deleted = files.delete_one({"_id": met.files_id, "uploadDate": met.uploaded}).deleted_count
        if deleted or (may_be_done and files.find_one({"_id": met.files_id}, {"_id": 1}) is None):
            self.bucket.remove_chunks(met.files_id)
        if not deleted:
            raise NotFound(f"there is no image {location}")

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """The error of storelib for one of pymongo: see errors.py."""
        return storelib_error(error, subject)

    # -- Looking after the store ------------------------------------------------------------------------------

    def candidate_locations(self, image_id: str) -> list[GridfsLocation]:
        """The only one, since an id is all that a URI names."""
        return [GridfsLocation(image_id)]

    def images(self) -> Iterator[ImageInfo]:
        """Every file of the bucket that a URI can name, but what is no file that could be read."""
        with self.bucket.files.find(any_image(), batch_size=PAGE) as found:
            for document in found:
                try:
                    check_image_id(image_id_of(document) or "")
                except Invalid:
                    # A file of another client that no URI can name.
                    continue
                try:
                    stored = understood(document)
                except StoreError as error:
                    LOG.warning("store %s: not listed: %s", self.name, error)
                else:
                    yield _info(stored)

    def inspect(self, location: GridfsLocation, context: Context | None) -> ImageInfo:
        """What its document in the files collection tells."""
        return _info(self.bucket.find(location))

    def garbage(self, older_than: float, prefix: str | None) -> Iterator[Garbage]:
        """Records of adds and chunks in which nothing happens any more: see garbage.py."""
        return garbage.find(self.bucket, older_than, prefix)

    def discard(self, item: Garbage) -> bool:
        """Remove the record, then the chunks, unless something happened since: see garbage.py."""
        return garbage.discard(self.bucket, item)

    def check(self) -> Health:
        """Add, find, read and delete a small image, as far as this store may, then look at the server."""
        self.require(Capability.CHECK)
        rehearse(self)
        return super().check()

    def probe(self) -> Health:
        """Ask which role the server has, and how full the disk is."""
        writing = Capability.ADD in self.capabilities
        files = self.bucket.files_at_primary if writing else self.bucket.files
        hello = files.database.command("hello", read_preference=files.read_preference)
        can = "read and written" if writing else "read"
        return Health(f"database {self.bucket.database_name} on a {_role(hello)} can be {can}", *_room(files))

    # -- What the server does by itself -----------------------------------------------------------------------

    def server_side_copy(self, source: GridfsLocation, image_id: str, context: Context | None) -> GridfsCopy:
        """Chunks are copied on the server, by aggregation."""
        return GridfsCopy(self.bucket, source, image_id)


def _info(stored: Stored) -> ImageInfo:
    uri = GridfsLocation(stored.image_id or "").uri
    version = str(stored.files_id)
    return ImageInfo(uri, stored.size, stored.image_id, stored.modified, version, stored.metadata)


def _room(files: Any) -> tuple[int | None, int | None]:
    """Bytes that are free and in all; None where the server does not tell, or not this user."""
    from pymongo.errors import OperationFailure

    try:
        stats = files.database.command("dbStats", read_preference=files.read_preference)
    except OperationFailure as error:
        LOG.info("how full the disk is is not known: the server answered with error %s to dbStats", error.code)
        return None, None
    total, used = (int(stats.get(field) or 0) for field in ("fsTotalSize", "fsUsedSize"))
    return (max(total - used, 0), total) if total else (None, None)


def _role(hello: Any) -> str:
    if hello.get("msg") == "isdbgrid":
        return "sharded cluster"
    name = hello.get("setName")
    if name is None:
        return "single server"
    role = "primary" if hello.get("isWritablePrimary") else "secondary" if hello.get("secondary") else "other member"
    return f"{role} of replica set {name}"

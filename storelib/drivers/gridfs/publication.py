# SPDX-License-Identifier: Apache-2.0
"""Publication: how an image becomes visible in GridFS.

The record of an add in the files collection is the right to publish: publishing changes the record, and rolling back or
gc removes it first. So a late request, whatever its response was, cannot publish an image whose chunks are gone.
"""

from __future__ import annotations

import datetime
from typing import Any

from storelib.driver import Committed, Digests
from storelib.drivers.gridfs.bucket import PENDING, Bucket, count_chunks, image_with_id
from storelib.drivers.gridfs.location import GridfsLocation
from storelib.exceptions import Duplicate, StoreError

#: What sets the time of a record to the server's, whatever the client's clock says.
_NOW = {"$currentDate": {"uploadDate": True}}


class Publication:
    """The record of one add, from its beginning to the image; nothing is there before ``begin``."""

    def __init__(self, bucket: Bucket, image_id: str, chunk_size: int) -> None:
        #: Of the record, and ``files_id`` of the chunks, so that racers never mix; None before there is one.
        self.files_id: Any = None
        self.chunk_size = chunk_size
        self._bucket = bucket
        self._image_id = image_id
        self._subject = f"image {image_id!r} in store {bucket.store_name}"
        self._now = datetime.datetime.now(datetime.timezone.utc)
        # Records whose making was tried before, the responses lost; they may still come to be.
        self._strays: list[Any] = []
        self._files = bucket.files_at_primary

    def check_id_is_free(self) -> None:
        """Raise Duplicate if there is such an image."""
        if any(found["_id"] != self.files_id for found in self._files.find(image_with_id(self._image_id), {"_id": 1})):
            raise self._duplicate()

    def begin(self) -> None:
        """Leave the record that an add is under way; each attempt another, lest a late one bring a record back."""
        from bson import ObjectId

        self._bucket.prepare()
        if self.files_id is not None:
            self._strays.append(self.files_id)
        self.files_id = ObjectId()
        self._bucket.live.begin(self.files_id, self)
        made = self._files.update_one(
            {"_id": self.files_id}, _under_way(self._image_id, self.chunk_size), upsert=True
        ).upserted_id
        if made != self.files_id:
            raise self._lost("the server did not make its record")

    def publish(self, size: int, digests: Digests) -> Committed:
        """Publish, once all that was written is known to be there; done again it is the same update of one record.

        What removes chunks, any client's ``gc``, removes the record first, so none can go between the look and the
        publishing; and what was looked at is in the journal, so no crash can take it.
        """
        from pymongo.errors import DuplicateKeyError

        # For what glance_store left, which the index does not know.
        self.check_id_is_free()
        self._seal()
        self._check_chunks(count_chunks(size, self.chunk_size))
        self._forget_strays()
        image = published(self.files_id, self._image_id, size, self.chunk_size, digests, self._now)
        try:
            found = self._files.replace_one({"_id": self.files_id}, image).matched_count
        except DuplicateKeyError:
            raise self._duplicate() from None
        if not found:
            raise self._lost("its record was removed, as by gc with an older_than shorter than the add stood still")
        return Committed(GridfsLocation(self._image_id))

    def retract(self) -> None:
        """Remove the record, published or not, then the chunks."""
        self._forget_strays()
        if self.files_id is not None:
            self._files.delete_one({"_id": self.files_id})
            self._bucket.remove_chunks(self.files_id)
            self._bucket.live.end(self.files_id)

    def _forget_strays(self) -> None:
        if self._strays:
            self._files.delete_many({"_id": {"$in": self._strays}})
        for files_id in self._strays:
            self._bucket.live.end(files_id)

    def _seal(self) -> None:
        """Have all chunks in the journal, since this write of the record waits for it, and tell ``gc`` it is alive."""
        self._files.update_one({"_id": self.files_id, PENDING: self._image_id}, _NOW)

    def _check_chunks(self, expected: int) -> None:
        """A server that crashed may have lost what it said it had, until it was in the journal."""
        found = self._bucket.chunks_at_primary.count_documents({"files_id": self.files_id})
        if found != expected:
            raise self._lost(f"the server has {found} of {expected} chunks")

    def _lost(self, how: str) -> StoreError:
        return StoreError(f"{self._subject} was lost while it was added: {how}")

    def _duplicate(self) -> Duplicate:
        return Duplicate(f"{self._subject} exists")


def _under_way(image_id: str, chunk_size: int) -> dict[str, Any]:
    """What makes the record of an add under way: without a filename, and to other clients an empty file."""
    record = {"length": 0, "chunkSize": chunk_size, "metadata": {"storelib": {"pending": image_id}}}
    return {"$setOnInsert": record, **_NOW}


def published(
    files_id: Any, image_id: str, size: int, chunk_size: int, digests: Digests, now: datetime.datetime
) -> dict[str, Any]:
    """The document of an image, which takes the place of its record once all chunks are there."""
    md5 = {} if digests.checksum is None else {"md5": digests.checksum}
    return {
        "_id": files_id,
        "length": size,
        "chunkSize": chunk_size,
        "uploadDate": now,
        "filename": image_id,
        # Deprecated in the specification; older clients look for it.
        **md5,
        "metadata": {"storelib": {"image": image_id}, **md5, digests.algorithm: digests.multihash},
    }

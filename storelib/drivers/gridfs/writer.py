# SPDX-License-Identifier: Apache-2.0
"""GridfsWriter: one image on its way into GridFS.

Its record in the files collection is the right to publish: publishing changes the record, and taking back or gc removes
it first. So a request that is late, whatever its answer was, cannot publish an image whose chunks are gone.
"""

from __future__ import annotations

import datetime
import functools
from typing import TYPE_CHECKING, Any

from storelib.driver import Committed, Digests, Part, Writer
from storelib.drivers.gridfs.errors import raise_for
from storelib.drivers.gridfs.layout import NOW, PENDING, count_chunks, image_with_id, published, under_way
from storelib.drivers.gridfs.location import GridfsLocation
from storelib.exceptions import Duplicate, StoreError
from storelib.transfer.contract import KiB, MiB

if TYPE_CHECKING:
    from storelib.drivers.gridfs.store import GridfsStore

#: Bytes of one request, or one chunk if that is more. Larger ones only cost memory: the client copies each twice.
PART = 4 * MiB


class GridfsWriter(Writer):
    """``_id`` of the record and ``files_id`` of the chunks are this writer's own, so that racers never mix."""

    def __init__(self, store: GridfsStore, image_id: str) -> None:
        self.store = store
        #: Of the record; None before there is one.
        self.files_id: Any = None
        self.chunk_size: int = store.conf.mongodb_store_chunk_size * KiB
        self.smallest_part = self.chunk_size
        self.concurrency = store.conf.mongodb_store_concurrency
        self._image_id = image_id
        self._now = datetime.datetime.now(datetime.timezone.utc)
        # Records whose making was tried before, the answers lost; they may still come to be.
        self._strays: list[Any] = []
        self._chunks = store.client.chunks_at_primary
        self._files = store.client.files_at_primary

    def part_size(self, number: int, size: int | None) -> int:
        """As many chunks as make about ``PART`` bytes."""
        return self.chunk_size * max(1, PART // self.chunk_size)

    def check_id_is_free(self) -> None:
        """Raise Duplicate if there is such an image."""
        if any(found["_id"] != self.files_id for found in self._files.find(image_with_id(self._image_id), {"_id": 1})):
            raise self._duplicate()

    def reserve(self, end: int) -> None:
        """Leave the record that an add is under way; each attempt another, lest a late one bring a record back."""
        from bson import ObjectId

        self.store.client.prepare()
        if self.files_id is not None:
            self._strays.append(self.files_id)
        self.files_id = ObjectId()
        self.store.live[self.files_id] = self
        made = self._files.update_one(
            {"_id": self.files_id}, under_way(self._image_id, self.chunk_size), upsert=True
        ).upserted_id
        if made != self.files_id:
            raise self._lost("the server did not make its record")

    def write(self, part: Part) -> None:
        """Send the chunks of one part; those that are there since an earlier attempt stay."""
        first, rest = divmod(part.offset, self.chunk_size)
        if rest:
            raise ValueError(f"part at byte {part.offset} does not begin with a chunk of {self.chunk_size} bytes")
        # Bytes, since the client's encoder takes no views. The server gives each an _id, whose time, by its own clock,
        # tells gc when something last happened.
        documents = [
            {
                "files_id": self.files_id,
                "n": first + number,
                "data": bytes(part.data[start : start + self.chunk_size]),
            }
            for number, start in enumerate(range(0, len(part.data), self.chunk_size))
        ]
        # Not insert_many: the text of its errors holds the documents.
        insert = {
            "insert": self._chunks.name,
            "ordered": False,
            "writeConcern": self._chunks.write_concern.document,
            "documents": documents,
        }
        raise_for(self._chunks.database.command(insert), len(documents))

    def commit(self, size: int, digests: Digests) -> Committed:
        """Publish, once all that was written is known to be there; done again it is the same update of one record.

        What removes chunks, ``gc`` of anybody, removes the record first, so none can go between the look and the
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

    def copy_chunks(self, source: Any, first: int, end: int) -> None:
        """Have the server copy chunks ``first`` to ``end`` of another file; those that are there already stay."""
        keep = {"into": self._chunks.name, "on": ["files_id", "n"], "whenMatched": "keepExisting"}
        self._chunks.aggregate(
            [
                {"$match": {"files_id": source, "n": {"$gte": first, "$lt": end}}},
                # The server gives each a new _id.
                {"$project": {"_id": 0, "files_id": {"$literal": self.files_id}, "n": 1, "data": 1}},
                {"$merge": {**keep, "whenNotMatched": "insert"}},
            ]
        ).close()

    def abort(self) -> None:
        """Remove the record, published or not, then the chunks."""
        self._forget_strays()
        if self.files_id is not None:
            self._files.delete_one({"_id": self.files_id})
            self.store.remove_chunks(self.files_id)
            self.store.live.pop(self.files_id, None)

    def _forget_strays(self) -> None:
        if self._strays:
            self._files.delete_many({"_id": {"$in": self._strays}})
        for files_id in self._strays:
            self.store.live.pop(files_id, None)

    def _seal(self) -> None:
        """Have all chunks in the journal, since this write of the record waits for it, and tell ``gc`` it is alive."""
        self._files.update_one({"_id": self.files_id, PENDING: self._image_id}, NOW)

    def _check_chunks(self, expected: int) -> None:
        """A server that crashed may have lost what it said it had, until it was in the journal."""
        found = self._chunks.count_documents({"files_id": self.files_id})
        if found != expected:
            raise self._lost(f"the server has {found} of {expected} chunks")

    def _lost(self, how: str) -> StoreError:
        return StoreError(f"{self._subject} was lost while it was added: {how}")

    def _duplicate(self) -> Duplicate:
        return Duplicate(f"{self._subject} exists")

    @functools.cached_property
    def _subject(self) -> str:
        return f"image {self._image_id!r} in store {self.store.name}"

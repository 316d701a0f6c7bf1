# SPDX-License-Identifier: Apache-2.0
"""GridfsWriter: one image on its way into GridFS. GridfsCopy: one that the server makes of another by aggregation.

Both move chunks only; when these become an image is the Publication's to say.
"""

from __future__ import annotations

from storelib.driver import Committed, Digests, Part, ServerSideCopy, Writer
from storelib.drivers.gridfs.bucket import PART, Bucket, count_chunks, whole_chunks
from storelib.drivers.gridfs.errors import raise_for
from storelib.drivers.gridfs.location import GridfsLocation
from storelib.drivers.gridfs.publication import Publication
from storelib.transfer.contract import MiB, equal_parts

#: Bytes that one request copies.
_COPIED_AT_ONCE = 128 * MiB


class GridfsWriter(Writer):
    """Sends parts as requests of some chunks each, in any order."""

    def __init__(self, bucket: Bucket, image_id: str) -> None:
        self.publication = Publication(bucket, image_id, bucket.chunk_size)
        self.chunk_size = self.smallest_part = bucket.chunk_size
        self.concurrency = bucket.concurrency
        self._chunks = bucket.chunks_at_primary

    def part_size(self, number: int, size: int | None) -> int:
        """As many chunks as make about ``PART`` bytes."""
        return whole_chunks(PART, self.chunk_size)

    def reserve(self, end: int) -> None:
        """Leave the record; chunks need no room made for them."""
        self.publication.begin()

    def write(self, part: Part) -> None:
        """Send the chunks of one part; those that are there since an earlier attempt stay."""
        first, rest = divmod(part.offset, self.chunk_size)
        if rest:
            raise ValueError(f"part at byte {part.offset} does not begin with a chunk of {self.chunk_size} bytes")
        # Bytes, since the client's encoder takes no views. The server gives each an _id, whose time, by its own clock,
        # tells gc when something last happened.
        documents = [
            {
                "files_id": self.publication.files_id,
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
        """Turn the record into an image."""
        return self.publication.publish(size, digests)

    def abort(self) -> None:
        """Remove the record and the chunks."""
        self.publication.retract()


class GridfsCopy(ServerSideCopy):
    """Chunks of the same size as the source's under a record of its own, published like an upload."""

    def __init__(self, bucket: Bucket, source: GridfsLocation, image_id: str) -> None:
        original = bucket.find(source, bucket.files_at_primary)
        self.size = original.size
        self._source = original.files_id
        self._chunk_size = original.chunk_size
        self._chunks = bucket.chunks_at_primary
        self._publication = Publication(bucket, image_id, self._chunk_size)
        self._publication.check_id_is_free()
        length = whole_chunks(_COPIED_AT_ONCE, self._chunk_size)
        self.parts = equal_parts(self.size, length)

    def begin(self) -> None:
        """Leave the record of the copy."""
        self._publication.begin()

    def copy_part(self, number: int, offset: int, length: int) -> None:
        """Have the server copy some chunks; those that are there already stay."""
        first = offset // self._chunk_size
        end = first + count_chunks(length, self._chunk_size)
        keep = {"into": self._chunks.name, "on": ["files_id", "n"], "whenMatched": "keepExisting"}
        self._chunks.aggregate(
            [
                {"$match": {"files_id": self._source, "n": {"$gte": first, "$lt": end}}},
                # The server gives each a new _id.
                {"$project": {"_id": 0, "files_id": {"$literal": self._publication.files_id}, "n": 1, "data": 1}},
                {"$merge": {**keep, "whenNotMatched": "insert"}},
            ]
        ).close()

    def commit(self, digests: Digests) -> Committed:
        """Turn the record into an image."""
        return self._publication.publish(self.size, digests)

    def abort(self) -> None:
        """Remove the record and the chunks."""
        self._publication.retract()

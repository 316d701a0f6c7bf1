# SPDX-License-Identifier: Apache-2.0
"""GridfsReader: ranges of one image, by the numbers of their chunks."""

from __future__ import annotations

from collections.abc import Iterator

from storelib.driver import Reader
from storelib.drivers.gridfs.bucket import PART, Bucket, Stored, digest_of, whole_chunks
from storelib.exceptions import IncompleteRead, NotFound


class GridfsReader(Reader):
    """Reads the chunks of the file whose document it was given; a later image of the same id has other chunks.

    The server needs as long to find chunks as they need to get here, so ranges go side by side at any distance.
    """

    def __init__(self, bucket: Bucket, stored: Stored, subject: str) -> None:
        self.size = stored.size
        self.part_size = whole_chunks(PART, stored.chunk_size)
        self.digest = digest_of(stored)
        self.concurrency = bucket.concurrency
        self._bucket = bucket
        self._chunks = bucket.chunks
        self._stored = stored
        self._subject = subject
        # The chunk of which only a part was wanted: the next read is likely to want the rest.
        self._begun: tuple[int, bytes] = (-1, b"")

    def read_into(self, offset: int, view: memoryview) -> int:
        """Fill ``view``, with one request unless the last one had it."""
        first, skip = divmod(offset, self._stored.chunk_size)
        number, data = self._begun
        if number == first:
            piece = memoryview(data)[skip : skip + len(view)]
            view[: len(piece)] = piece
            return len(piece)
        end = min(offset + len(view), self.size, (first * self._stored.chunk_size) + self.part_size)
        filled = 0
        for number, data in self._fetch(first, -(-end // self._stored.chunk_size)):
            piece = memoryview(data)[skip : skip + len(view) - filled]
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
            if skip + len(piece) < len(data):
                self._begun = number, data
            skip = 0
        return filled

    def _fetch(self, first: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Chunks ``first`` to ``end``, each with its number; raises IncompleteRead unless all are there and whole."""
        found = self._chunks.find(
            {"files_id": self._stored.files_id, "n": {"$gte": first, "$lt": end}},
            {"_id": 0, "n": 1, "data": 1},
            sort=[("n", 1)],
            # One more than there are, so that the server says at once that this was all.
            batch_size=end - first + 1,
        )
        expected = first
        with found:
            for chunk in found:
                if chunk["n"] != expected:
                    break
                wanted = min(self._stored.chunk_size, self.size - expected * self._stored.chunk_size)
                data = chunk.get("data")
                if not isinstance(data, bytes) or len(data) != wanted:
                    raise IncompleteRead(f"{self._subject}: chunk {expected} has not the {wanted} bytes it should have")
                yield expected, data
                expected += 1
        if expected < end:
            raise self._missing(expected)

    def _missing(self, number: int) -> NotFound | IncompleteRead:
        if self._bucket.files.find_one({"_id": self._stored.files_id}, {"_id": 1}) is None:
            return NotFound(f"{self._subject} was deleted while it was read")
        return IncompleteRead(f"{self._subject}: chunk {number} is missing")

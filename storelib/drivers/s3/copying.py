# SPDX-License-Identifier: Apache-2.0
"""Copying within a bucket: the server does it, in one request or in parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from storelib.driver import Committed, Digests, ServerSideCopy
from storelib.drivers.s3.claim import recorded_in, version_of
from storelib.drivers.s3.location import S3Location
from storelib.drivers.s3.writer import S3Writer, part_size
from storelib.exceptions import ImageChanged
from storelib.transfer.contract import MiB

if TYPE_CHECKING:
    from storelib.drivers.s3.store import S3Store

#: The most that the protocol copies in one request.
LARGEST_COPY = 5 * 1024 * MiB
#: Bytes of one part when an image is copied in parts.
COPY_PART = 512 * MiB


class S3Copy(ServerSideCopy):
    """One copy of an object under a new id: published like an upload, by a writer with a token of its own."""

    def __init__(self, store: S3Store, source: S3Location, writer: S3Writer, answer: Mapping[str, Any]) -> None:
        """``answer`` is that of a HEAD of the source; raises Duplicate."""
        self.size = int(answer["ContentLength"])
        self._store = store
        self._source = source
        self._version = version_of(answer)
        self._writer = writer
        self.concurrency = self._writer.concurrency
        # What names the source, in the version whose size is known.
        self._original: dict[str, Any] = {
            "CopySource": {"Bucket": source.bucket, "Key": source.key},
            "CopySourceIfMatch": answer["ETag"],
            **{f"CopySource{name}": value for name, value in store.client.customer_key.items()},
        }
        # CopyObject itself overwrites: where the server can refuse that, it is when completing an upload.
        if self.size > (0 if store.conditional_complete else LARGEST_COPY):
            length = part_size(0, self.size, COPY_PART)
            self.parts = [min(length, self.size - start) for start in range(0, self.size, length)]
            self._writer.recorded = recorded_in(answer)
        target = self._writer.claim.location
        if self.parts or (source.bucket, source.key) == (target.bucket, target.key):
            # Parts are many bytes, and only completing the upload would tell.
            self._writer.claim.is_ours()
        self.moved_at_once = max(self.parts, default=self.size)

    def begin(self) -> None:
        """Start an upload if there are parts."""
        if self.parts:
            self._writer.reserve(self.size)

    def copy_part(self, number: int, offset: int, length: int) -> None:
        """Fill one part of the upload."""
        self._writer.copy_part(number, self._original, offset, offset + length)

    def commit(self, digests: Digests) -> Committed:
        """Complete the upload, or copy at once; an empty object cannot be copied in parts."""
        if self.size == 0:
            return self._writer.put_whole(memoryview(b""), digests)
        if self.parts:
            self._check_source()
            return self._writer.commit(self.size, digests)
        committed = self._writer.copy_whole(self._original, digests)
        self._check_source()
        return committed

    def _check_source(self) -> None:
        """Raise unless it is what it was at the start: not every server looks at CopySourceIfMatch."""
        if version_of(self._store.head(self._source)) != self._version:
            raise ImageChanged(f"{self._source} changed while it was copied")

    def abort(self) -> None:
        """Remove the upload, and the copy if it was published."""
        self._writer.abort()

    def close(self) -> None:
        """The writer's."""
        self._writer.close()

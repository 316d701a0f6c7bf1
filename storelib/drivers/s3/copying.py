# SPDX-License-Identifier: Apache-2.0
"""Copying within a bucket: the server does it, in one request or in parts side by side."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any, TypeVar

from storelib.driver import Committed, Digests
from storelib.drivers.s3.location import S3Location
from storelib.drivers.s3.writer import S3Writer, part_size
from storelib.transfer.contract import MiB

if TYPE_CHECKING:
    from storelib.drivers.s3.store import S3Store
    from storelib.transfer.upload import Progress

T = TypeVar("T")

#: The most that the protocol copies in one request.
LARGEST_COPY = 5 * 1024 * MiB
#: Bytes of one part when an image is copied in parts.
COPY_PART = 512 * MiB


class Copier:
    """One copy of an object under a new id: published like an upload, by a writer with a token of its own."""

    def __init__(self, store: S3Store, source: S3Location, image_id: str) -> None:
        self._store = store
        self._source = source
        self._subject = f"image {image_id!r} in store {store.name}"
        self._writer = S3Writer(store, image_id)

    def run(self, digests: Digests, progress: Progress | None) -> tuple[Committed, int]:
        """Where the copy is, and its size; whatever goes wrong, nothing of it is left."""
        original = self._call(lambda: self._store.head(self._source))
        size = int(original["ContentLength"])
        if progress is not None:
            progress(0, size)
        try:
            committed = self._copy(original, size, digests, progress)
            if progress is not None:
                progress(size, size)
        except BaseException:
            self._call(self._writer.abort)
            raise
        return committed, size

    def _copy(self, original: Any, size: int, digests: Digests, progress: Progress | None) -> Committed:
        if size == 0:
            return self._call(lambda: self._writer.put_whole(memoryview(b""), digests))
        # CopyObject itself overwrites: where the server can refuse that, it is when completing an upload.
        if size <= LARGEST_COPY and not self._store.conditional_complete:
            return self._call(lambda: self._writer.copy_whole(self._original(original)))
        self._call(lambda: self._writer.reserve(size))
        self._copy_parts(self._original(original), size, progress)
        return self._call(lambda: self._writer.commit(size, digests))

    def _copy_parts(self, original: dict[str, Any], size: int, progress: Progress | None) -> None:
        length = part_size(0, size, COPY_PART)
        ranges = [(start, min(start + length, size)) for start in range(0, size, length)]
        done = 0
        with ThreadPoolExecutor(min(self._writer.concurrency, len(ranges)), "storelib-copy") as pool:
            futures = {
                pool.submit(self._copy_part, number, original, start, end): end - start
                for number, (start, end) in enumerate(ranges)
            }
            try:
                for future in as_completed(futures):
                    future.result()
                    done += futures[future]
                    if progress is not None:
                        progress(done, size)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _copy_part(self, number: int, original: dict[str, Any], start: int, end: int) -> None:
        self._call(lambda: self._writer.copy_part(number, original, start, end))

    def _original(self, answer: Any) -> dict[str, Any]:
        """What names the source, in the version whose size is known."""
        own_key = self._store.client.customer_key
        return {
            "CopySource": {"Bucket": self._source.bucket, "Key": self._source.key},
            "CopySourceIfMatch": answer["ETag"],
            **{f"CopySource{name}": value for name, value in own_key.items()},
        }

    def _call(self, function: Callable[[], T]) -> T:
        return self._store.retry_policy.call(function, self._store.map_error, self._subject)

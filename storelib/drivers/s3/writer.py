# SPDX-License-Identifier: Apache-2.0
"""S3Writer: one image on its way into a bucket, as a single PUT or as a multipart upload."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from storelib.driver import Committed, Digests, Part, Writer
from storelib.drivers.s3.claim import Claim
from storelib.drivers.s3.errors import GONE, error_code
from storelib.exceptions import Invalid
from storelib.transfer.contract import KiB, MiB
from storelib.transfer.partfile import PartFile

if TYPE_CHECKING:
    from storelib.drivers.s3.store import S3Store

LOG = logging.getLogger(__name__)

#: Limits of the protocol: the last part may be smaller, the image no larger.
SMALLEST_PART = 5 * MiB
MOST_PARTS = 10_000
LARGEST_IMAGE = 5 * MiB * MiB
#: Images of unknown size begin with this many parts of the configured size; so long is each further step up.
STEP = 1000
#: Bytes that go into the socket with one call. Larger ones are a little faster, but each must get out within
#: s3_store_read_timeout, also over a line that is shared. A body of one piece is sent without asking whether it is
#: welcome.
PIECE = 512 * KiB


def part_size(number: int, size: int | None, smallest: int) -> int:
    """Bytes in part ``number`` of an image of ``size`` bytes: ``smallest``, or more where 5 TiB must fit."""
    if size is not None:
        return max(smallest, _round_up(-(-size // MOST_PARTS)))
    steps = MOST_PARTS // STEP
    missing = max(LARGEST_IMAGE - MOST_PARTS * smallest, 0)
    growth = _round_up(-(-missing // (STEP * (steps - 1) * steps // 2)))
    return smallest + min(number // STEP, steps - 1) * growth


def _round_up(size: int) -> int:
    return -(-size // MiB) * MiB


class Body(PartFile):
    """A part as the body of a request. Asked for the 16 KiB that http.client likes, it hands out much more."""

    def read(self, size: int | None = -1) -> memoryview:
        """A view of the next bytes: none of them are copied on their way into the socket."""
        return super().read(size if size is None or size < 0 else max(size, PIECE))


class S3Writer(Writer):
    """Nothing of it can be seen before it is whole."""

    smallest_part = SMALLEST_PART

    def __init__(self, store: S3Store, image_id: str) -> None:
        self.store = store
        self.client = store.client.get()
        self.claim = Claim(store, image_id)
        self.target = self.claim.target
        self.concurrency = store.conf.s3_store_thread_pools
        self.put = self.put_whole
        self.upload_id: str | None = None
        self._parts: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()
        # After the first, an upload may have been started whose id was lost with the answer.
        self._starts = 0

    def part_size(self, number: int, size: int | None) -> int:
        """See the function of that name."""
        return part_size(number, size, self.store.conf.s3_store_large_object_chunk_size * MiB)

    def put_whole(self, data: memoryview, digests: Digests) -> Committed:
        """One PUT, which the server refuses if the id is taken."""
        conditional = self.store.conditional_put
        parameters = {
            **self.claim.new_object,
            **self.store.checksums.of_part(data, digests),
            **({"IfNoneMatch": "*"} if conditional else {}),
        }

        def send() -> None:
            body = bytes(data) if len(data) <= PIECE else Body(data)
            self.client.put_object(**parameters, Body=body)

        self.claim.publish(lambda: self.store.in_bucket(send), look=not conditional)
        return Committed(self.claim.location)

    def reserve(self, end: int) -> None:
        """Start the upload."""
        if self.upload_id is not None:
            return
        parameters = {**self.claim.new_object, **self.store.checksums.of_upload}
        self._starts += 1
        answer = self.store.in_bucket(lambda: self.client.create_multipart_upload(**parameters))
        self.upload_id = answer["UploadId"]
        self.store.live_uploads[answer["UploadId"]] = self

    def write(self, part: Part) -> None:
        """Send one part."""
        if part.number >= MOST_PARTS:
            raise Invalid(f"{self.claim.location} would have more than {MOST_PARTS} parts, which S3 does not allow")
        answer = self.client.upload_part(
            **self._upload,
            PartNumber=part.number + 1,
            Body=Body(part.data),
            **self.store.checksums.of_part(part.data),
            **self.store.client.customer_key,
        )
        self._sent(part.number, answer)

    def commit(self, size: int, digests: Digests) -> Committed:
        """Complete the upload."""
        conditional = self.store.conditional_complete
        parameters = {
            **self._upload,
            "MultipartUpload": {"Parts": [part for _, part in sorted(self._parts.items())]},
            **({"IfNoneMatch": "*"} if conditional else {}),
            **self.store.client.customer_key,
        }
        self.claim.publish(lambda: self.client.complete_multipart_upload(**parameters), look=not conditional)
        if self._starts > 1:
            self._abort_strays()
        return Committed(self.claim.location)

    # -- Copies of other objects ------------------------------------------------------------------------------

    def copy_whole(self, original: dict[str, Any]) -> Committed:
        """Publish a copy, in one request; those overwrite, whatever their headers say."""
        settings = {**self.claim.new_object, "MetadataDirective": "REPLACE"}
        self.claim.publish(lambda: self.client.copy_object(**settings, **original), look=True)
        return Committed(self.claim.location)

    def copy_part(self, number: int, original: dict[str, Any], start: int, end: int) -> None:
        """Fill one part with those bytes of another object."""
        answer = self.client.upload_part_copy(
            **self._upload,
            **original,
            PartNumber=number + 1,
            CopySourceRange=f"bytes={start}-{end - 1}",
            **self.store.client.customer_key,
        )
        self._sent(number, answer["CopyPartResult"])

    # -- Taking back ------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """Take back the upload with its parts, and the image if this add published it."""
        try:
            self.claim.take_back()
        finally:
            if self.upload_id is not None:
                self._abort_upload()

    def _abort_upload(self) -> None:
        """Abort until the server no longer knows it: a part whose connection was cut may arrive after the first."""
        for _ in range(3):
            try:
                self.client.abort_multipart_upload(**self._upload)
                self.client.list_parts(**self._upload, MaxParts=1)
            except Exception as error:
                if error_code(error) not in GONE:
                    raise
                break
        self.store.live_uploads.pop(self._upload["UploadId"], None)

    def _abort_strays(self) -> None:
        """Uploads of this id that never got a part: the answer that told of one was lost.

        Only once the image is published, when no other add of this id can succeed any more.
        """
        try:
            answer = self.client.list_multipart_uploads(Bucket=self.target["Bucket"], Prefix=self.target["Key"])
            for upload in answer.get("Uploads", ()):
                stray = {**self.target, "UploadId": upload["UploadId"]}
                same_id = upload["Key"] == self.target["Key"] and upload["UploadId"] != self.upload_id
                if same_id and not self.client.list_parts(**stray, MaxParts=1).get("Parts"):
                    self.client.abort_multipart_upload(**stray)
        except Exception as error:  # noqa: BLE001  (the image is there; gc finds the rest)
            LOG.warning("looking for strays of %s: %s", self.claim.location, self.store.map_error(error, "uploads"))

    # -- The upload -------------------------------------------------------------------------------------------

    @property
    def _upload(self) -> dict[str, Any]:
        """Parameters of every request about it."""
        return {**self.target, "UploadId": self.upload_id}

    def _sent(self, number: int, answer: dict[str, Any]) -> None:
        """Keep what completing the upload must say of a part."""
        field = self.store.checksums.field
        # Servers that know no checksums do not answer with one and would not understand it later.
        known = {field: answer[field]} if answer.get(field) else {}
        with self._lock:
            self._parts[number] = {"PartNumber": number + 1, "ETag": answer["ETag"], **known}

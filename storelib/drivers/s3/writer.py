# SPDX-License-Identifier: Apache-2.0
"""S3Writer: one image on its way into a bucket, as a single PUT or as a multipart upload."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from storelib.driver import Committed, Digests, Part, Writer
from storelib.drivers.s3.adapting import adapting
from storelib.drivers.s3.answers import listed
from storelib.drivers.s3.checksums import PartChecksums
from storelib.drivers.s3.claim import Claim
from storelib.drivers.s3.errors import GONE, error_code
from storelib.exceptions import Forbidden, Invalid, OperationNotSupported, RemoteServiceUnavailable, StoreError
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
        self.call = store.client.call
        self.claim = Claim(store, image_id)
        self.target = self.claim.target
        self.concurrency = store.conf.s3_store_thread_pools
        self.put = self.put_whole
        self.upload_id: str | None = None
        #: Metadata that tell the digest of what is sent in parts, where it is known before.
        self.recorded: dict[str, str] = {}
        self._parts: dict[int, dict[str, Any]] = {}
        self._lengths: dict[int, int] = {}
        self._lock = threading.Lock()
        # After the first, an upload may have been started whose id was lost with the answer.
        self._starts = 0

    def part_size(self, number: int, size: int | None) -> int:
        """See the function of that name; where the server wants parts of one size, that of the first."""
        number = 0 if self.store.equal_parts else number
        return part_size(number, size, self.store.conf.s3_store_large_object_chunk_size * MiB)

    def put_whole(self, data: memoryview, digests: Digests) -> Committed:
        """One PUT, which the server refuses if the id is taken."""
        adapting(
            self.store,
            lambda conditional, checksums: self._put(data, digests, conditional, checksums),
            "conditional_put",
        )
        return Committed(self.claim.location)

    def _put(self, data: memoryview, digests: Digests, conditional: bool, checksums: PartChecksums) -> None:
        parameters = {**self.claim.new_object(digests), **({"IfNoneMatch": "*"} if conditional else {})}

        def send() -> None:
            body = bytes(data) if len(data) <= PIECE else Body(data)
            sent = checksums.of_part(data, digests)
            answer = self.call("put_object", **parameters, **sent, Body=body)
            checksums.compare(answer, sent, data, digests.checksum, in_clear=self._in_clear)

        self.claim.publish(lambda: self.store.in_bucket(send), look=not conditional)

    def reserve(self, end: int) -> None:
        """Start the upload."""
        if self.upload_id is not None:
            return
        self._starts += 1

        def start(_: bool, checksums: PartChecksums) -> Any:
            parameters = {**self.claim.new_object(recorded=self.recorded), **checksums.of_upload}
            return self.store.in_bucket(lambda: self.call("create_multipart_upload", **parameters))

        answer = adapting(self.store, start)
        self.upload_id = answer["UploadId"]
        self.store.live_uploads[answer["UploadId"]] = self

    def write(self, part: Part) -> None:
        """Send one part."""
        if part.number >= MOST_PARTS:
            raise Invalid(
                f"{self.claim.location} would have more than {MOST_PARTS} parts, which S3 does not allow; "
                "set s3_store_large_object_chunk_size higher"
            )
        adapting(self.store, lambda _, checksums: self._send(part, checksums))

    def _send(self, part: Part, checksums: PartChecksums) -> None:
        sent = checksums.of_part(part.data)
        answer = self.call(
            "upload_part",
            **self._upload,
            PartNumber=part.number + 1,
            Body=Body(part.data),
            **sent,
            **self.store.client.customer_key,
        )
        checksums.compare(answer, sent, part.data, None, in_clear=self._in_clear)
        self._sent(part.number, answer, checksums.field)
        self._lengths[part.number] = len(part.data)

    @property
    def _in_clear(self) -> bool:
        """Nothing but a checksum protects what is sent."""
        return self.store.client.scheme == "s3+http"

    def commit(self, size: int, digests: Digests) -> Committed:
        """Complete the upload."""
        return self.complete(look=not self.store.conditional_complete)

    def complete(self, *, look: bool) -> Committed:
        """The same; ``look`` for an image of the same id before, since the server may not."""
        adapting(
            self.store,
            lambda conditional, _: self._complete(conditional, look or not conditional),
            "asks_at_completion",
        )
        if self._starts > 1:
            self._abort_strays()
        return Committed(self.claim.location)

    def _complete(self, conditional: bool, look: bool) -> None:
        parameters = {
            **self._upload,
            "MultipartUpload": {"Parts": [part for _, part in sorted(self._parts.items())]},
            **({"IfNoneMatch": "*"} if conditional else {}),
            **self.store.client.customer_key,
        }
        try:
            self.claim.publish(lambda: self.call("complete_multipart_upload", **parameters), look=look)
        except Exception as error:
            code = error_code(error)
            # What radosgw answers then.
            lost = code == "InternalError" and self._is_lost()
            if lost or code in GONE:
                if lost and self.claim.is_ours():
                    return
                raise StoreError(f"{self.claim.location}: the upload was removed while it was under way") from error
            if code in ("InvalidPart", "EntityTooSmall", "InvalidRequest") and self._parts_differ():
                self.store.equal_parts = self.store.conf.s3_store_equal_parts != "off"
                raise OperationNotSupported(
                    f"{self.claim.location}: the server answered {code}, which wants parts of one size; images of "
                    "unknown size are sent so from now on, and from the start with s3_store_equal_parts = on"
                ) from error
            raise

    def _is_lost(self) -> bool:
        """The server no longer knows the upload."""
        try:
            self.call("list_parts", **self._upload, MaxParts=1)
        except Exception as error:  # noqa: BLE001  (it was another error that brought us here)
            return error_code(error) in GONE
        return False

    def _parts_differ(self) -> bool:
        return len(set([length for _, length in sorted(self._lengths.items())][:-1])) > 1

    # -- Copies of other objects ------------------------------------------------------------------------------

    def copy_whole(self, original: dict[str, Any], digests: Digests | None = None) -> Committed:
        """Publish a copy, in one request; those overwrite, whatever their headers say."""
        settings = {**self.claim.new_object(digests), "MetadataDirective": "REPLACE"}
        self.claim.publish(lambda: self.call("copy_object", **settings, **original), look=True)
        return Committed(self.claim.location)

    def copy_part(self, number: int, original: dict[str, Any], start: int, end: int) -> None:
        """Fill one part with those bytes of another object."""
        answer = self.call(
            "upload_part_copy",
            **self._upload,
            **original,
            PartNumber=number + 1,
            CopySourceRange=f"bytes={start}-{end - 1}",
            **self.store.client.customer_key,
        )
        self._sent(number, answer["CopyPartResult"], self.store.checksums.field)

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
            if self._is_gone("abort_multipart_upload") or self._is_gone("list_parts", MaxParts=1):
                self.store.live_uploads.pop(self._upload["UploadId"], None)
                return
        raise RemoteServiceUnavailable(f"{self.claim.location}: its upload is still there after it was aborted")

    def _is_gone(self, operation: str, **parameters: Any) -> bool:
        try:
            self.call(operation, **self._upload, **parameters)
        except Exception as error:
            if error_code(error) in GONE:
                return True
            refused = isinstance(self.store.map_error(error, "parts"), (Forbidden, OperationNotSupported))
            # Who may not ask has to take it for done.
            if operation == "list_parts" and refused:
                return True
            raise
        return False

    def _abort_strays(self) -> None:
        """Uploads of this id that never got a part: the answer that told of one was lost.

        Only once the image is published, when no other add of this id can succeed any more.
        """
        place = {"Bucket": self.target["Bucket"], "Prefix": self.target["Key"]}
        try:
            for upload in listed(self.store.client, "list_multipart_uploads", **place):
                stray = {**self.target, "UploadId": upload["UploadId"]}
                same_id = upload["Key"] == self.target["Key"] and upload["UploadId"] != self.upload_id
                if same_id and not self.call("list_parts", **stray, MaxParts=1).get("Parts"):
                    self.call("abort_multipart_upload", **stray)
        except Exception as error:  # noqa: BLE001  (the image is there; gc finds the rest)
            LOG.warning("looking for strays of %s: %s", self.claim.location, self.store.map_error(error, "uploads"))

    # -- The upload -------------------------------------------------------------------------------------------

    @property
    def _upload(self) -> dict[str, Any]:
        """Parameters of every request about it."""
        return {**self.target, "UploadId": self.upload_id}

    def _sent(self, number: int, answer: dict[str, Any], field: str) -> None:
        """Keep what completing the upload must say of a part."""
        # Servers that know no checksums do not answer with one and would not understand it later.
        known = {field: answer[field]} if answer.get(field) else {}
        with self._lock:
            self._parts[number] = {"PartNumber": number + 1, "ETag": answer["ETag"], **known}

# SPDX-License-Identifier: Apache-2.0
"""S3Writer: one image on its way into a bucket, as a single PUT or as a multipart upload. S3Copy: a copy of another."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

from storelib.driver import Committed, Digests, Part, Writer, WriterCopy
from storelib.drivers.s3.bucket import Bucket, PartChecksums
from storelib.drivers.s3.errors import GONE, error_code
from storelib.drivers.s3.location import S3Location
from storelib.drivers.s3.options import PART
from storelib.drivers.s3.publication import Publication, adapting, recorded_in, version_of
from storelib.exceptions import (
    Forbidden,
    ImageChanged,
    Invalid,
    OperationNotSupported,
    RemoteServiceUnavailable,
    StoreError,
)
from storelib.transfer.contract import KiB, MiB, equal_parts
from storelib.transfer.partfile import PartFile, RangeFile, UnreadFile

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
#: The most that the protocol copies in one request.
LARGEST_COPY = 5 * 1024 * MiB
#: Bytes of one part that is not read, unless an option says how large parts are.
UNREAD_PART = 32 * MiB
#: Bytes of one part when an image is copied in parts.
COPY_PART = 512 * MiB


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

    def __init__(self, bucket: Bucket, image_id: str) -> None:
        self._bucket = bucket
        self._call = bucket.call
        self.publication = Publication(bucket, image_id)
        self._target = self.publication.target
        self.concurrency = bucket.conf.s3_store_thread_pools
        self.put = self.put_whole
        self.write_range = self.write_large
        # What has been computed is of no use once the server was found to want others.
        self._checksums = bucket.checksums
        self.checksum = self._checksums.update
        self.sends_at_once = self._sends_at_once()
        self.upload_id: str | None = None
        #: Metadata that tell the digest of what is sent in parts, where it is known before.
        self.recorded: dict[str, str] = {}
        self._parts: dict[int, dict[str, Any]] = {}
        self._lengths: dict[int, int] = {}
        self._lock = threading.Lock()
        # After the first, an upload may have been started whose id was lost with the response.
        self._starts = 0

    def part_size(self, number: int, size: int | None) -> int:
        """See the function of that name; where the server wants parts of one size, that of the first."""
        number = 0 if self._bucket.equal_parts else number
        return part_size(number, size, self._bucket.conf.s3_store_large_object_chunk_size * MiB)

    def _sends_at_once(self) -> int:
        if not self._in_clear or self._bucket.checksums.algorithm != "none":
            return 0
        size = self._bucket.conf.s3_store_large_object_chunk_size
        # A part of another size may be as large as what is in front of the server lets through.
        return UNREAD_PART if size == PART else size * MiB

    def put_whole(self, data: memoryview, digests: Digests) -> Committed:
        """One PUT, which the server refuses if the id is taken."""
        adapting(
            self._bucket,
            lambda conditional, checksums: self._put(data, digests, conditional, checksums),
            "conditional_put",
        )
        return Committed(self.publication.location)

    def _put(self, data: memoryview, digests: Digests, conditional: bool, checksums: PartChecksums) -> None:
        parameters = {**self.publication.new_object(digests), **({"IfNoneMatch": "*"} if conditional else {})}

        def send() -> None:
            body = bytes(data) if len(data) <= PIECE else Body(data)
            sent = checksums.of_part(data, digests)
            response = self._call("put_object", **parameters, **sent, Body=body)
            checksums.compare(response, sent, data, digests.checksum, in_clear=self._in_clear)

        self.publication.publish(lambda: self._bucket.create_if_missing(send), look=not conditional)

    def reserve(self, end: int) -> None:
        """Start the multipart upload, which has room for any size."""
        if self.upload_id is not None:
            return
        self._starts += 1

        def start(_: bool, checksums: PartChecksums) -> Any:
            parameters = {**self.publication.new_object(recorded=self.recorded), **checksums.of_upload}
            return self._bucket.create_if_missing(lambda: self._call("create_multipart_upload", **parameters))

        response = adapting(self._bucket, start)
        self.upload_id = response["UploadId"]
        self._bucket.live.begin(response["UploadId"], self)

    def write(self, part: Part) -> None:
        """Send one part with its checksum."""
        if part.number >= MOST_PARTS:
            raise Invalid(
                f"{self.publication.location} would have more than {MOST_PARTS} parts, which S3 does not allow; "
                "set s3_store_large_object_chunk_size higher"
            )

        def send(_: bool, checksums: PartChecksums) -> None:
            self._send(part.number, Body(part.data), part.data, checksums, part.checksum)

        adapting(self._bucket, send)

    def write_large(self, number: int, file: RangeFile) -> None:
        """The same for a part that is read from a file, for its checksum only where that is not known."""
        body = UnreadFile(file) if self.sends_at_once and file.sendable else file
        adapting(self._bucket, lambda _, checksums: self._send(number, body, file, checksums, file.checksum))

    def _send(
        self,
        number: int,
        body: Body | RangeFile | UnreadFile,
        data: memoryview | RangeFile,
        checksums: PartChecksums,
        value: int | None,
    ) -> None:
        sent = checksums.of_part(data, value=value if checksums is self._checksums else None)
        # The server may have refused another checksum of the same file before.
        body.seek(0)
        response = self._call(
            "upload_part",
            **self._upload,
            PartNumber=number + 1,
            Body=body,
            **sent,
            **self._bucket.customer_key,
        )
        checksums.compare(response, sent, data, None, in_clear=self._in_clear)
        self._sent(number, response, checksums.field)
        self._lengths[number] = len(data)

    @property
    def _in_clear(self) -> bool:
        """Nothing but a checksum protects what is sent."""
        return self._bucket.scheme == "s3+http"

    def commit(self, size: int, digests: Digests) -> Committed:
        """Complete the upload, by which the image becomes visible."""
        return self.complete(look=not self._bucket.conditional_complete)

    def complete(self, *, look: bool) -> Committed:
        """Complete the upload; ``look`` for an image of the same id before, since the server may not."""
        adapting(
            self._bucket,
            lambda conditional, _: self._complete(conditional, look or not conditional),
            "asks_at_completion",
        )
        if self._starts > 1:
            self._abort_strays()
        return Committed(self.publication.location)

    def _complete(self, conditional: bool, look: bool) -> None:
        parameters = {
            **self._upload,
            "MultipartUpload": {"Parts": [part for _, part in sorted(self._parts.items())]},
            **({"IfNoneMatch": "*"} if conditional else {}),
            **self._bucket.customer_key,
        }
        try:
            self.publication.publish(lambda: self._call("complete_multipart_upload", **parameters), look=look)
        except Exception as error:
            code = error_code(error)
            # What radosgw answers then.
            lost = code == "InternalError" and self._is_lost()
            if lost or code in GONE:
                if lost and self.publication.is_ours():
                    return
                raise StoreError(
                    f"{self.publication.location}: the upload was removed while it was under way"
                ) from error
            if code in ("InvalidPart", "EntityTooSmall", "InvalidRequest") and self._parts_differ():
                self._bucket.equal_parts = self._bucket.conf.s3_store_equal_parts != "off"
                raise OperationNotSupported(
                    f"{self.publication.location}: the server answered {code}, which wants parts of one size; images "
                    "of unknown size are sent so from now on, and from the start with s3_store_equal_parts = on"
                ) from error
            raise

    def _is_lost(self) -> bool:
        """The server no longer knows the upload."""
        try:
            self._call("list_parts", **self._upload, MaxParts=1)
        except Exception as error:  # noqa: BLE001  (it was another error that brought us here)
            return error_code(error) in GONE
        return False

    def _parts_differ(self) -> bool:
        return len(set([length for _, length in sorted(self._lengths.items())][:-1])) > 1

    # -- Copies of other objects ------------------------------------------------------------------------------

    def copy_whole(self, original: dict[str, Any], digests: Digests | None = None) -> Committed:
        """Publish a copy, in one request; those overwrite, whatever their headers say."""
        settings = {**self.publication.new_object(digests), "MetadataDirective": "REPLACE"}
        self.publication.publish(lambda: self._call("copy_object", **settings, **original), look=True)
        return Committed(self.publication.location)

    def copy_part(self, number: int, original: dict[str, Any], start: int, end: int) -> None:
        """Fill one part with those bytes of another object."""
        response = self._call(
            "upload_part_copy",
            **self._upload,
            **original,
            PartNumber=number + 1,
            CopySourceRange=f"bytes={start}-{end - 1}",
            **self._bucket.customer_key,
        )
        self._sent(number, response["CopyPartResult"], self._bucket.checksums.field)

    # -- Taking back ------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """Take back the upload with its parts, and the image if this add published it."""
        try:
            self.publication.take_back()
        finally:
            if self.upload_id is not None:
                self._abort_upload()

    def _abort_upload(self) -> None:
        """Abort until the server no longer knows it: a part whose connection was cut may arrive after the first."""
        for _ in range(3):
            if self._is_gone("abort_multipart_upload") or self._is_gone("list_parts", MaxParts=1):
                self._bucket.live.end(self.upload_id)
                return
        raise RemoteServiceUnavailable(f"{self.publication.location}: its upload is still there after it was aborted")

    def _is_gone(self, operation: str, **parameters: Any) -> bool:
        try:
            self._call(operation, **self._upload, **parameters)
        except Exception as error:
            if error_code(error) in GONE:
                return True
            refused = isinstance(self._bucket.map_error(error, "parts"), (Forbidden, OperationNotSupported))
            # Who may not ask has to take it for done.
            if operation == "list_parts" and refused:
                return True
            raise
        return False

    def _abort_strays(self) -> None:
        """Uploads of this id that never got a part: the response that told of one was lost.

        Only once the image is published, when no other add of this id can succeed any more.
        """
        try:
            for upload in self._bucket.listed("list_multipart_uploads", Prefix=self._target["Key"]):
                stray = {**self._target, "UploadId": upload["UploadId"]}
                same_id = upload["Key"] == self._target["Key"] and upload["UploadId"] != self.upload_id
                if same_id and not self._call("list_parts", **stray, MaxParts=1).get("Parts"):
                    self._call("abort_multipart_upload", **stray)
        except Exception as error:  # noqa: BLE001  (the image is there; gc finds the rest)
            LOG.warning(
                "looking for strays of %s: %s", self.publication.location, self._bucket.map_error(error, "uploads")
            )

    # -- The upload -------------------------------------------------------------------------------------------

    @property
    def _upload(self) -> dict[str, Any]:
        """Parameters of every request about it."""
        return {**self._target, "UploadId": self.upload_id}

    def _sent(self, number: int, response: dict[str, Any], field: str) -> None:
        """Keep what completing the upload must say of a part."""
        # Servers that know no checksums do not answer with one and would not understand it later.
        known = {field: response[field]} if response.get(field) else {}
        with self._lock:
            self._parts[number] = {"PartNumber": number + 1, "ETag": response["ETag"], **known}


class S3Copy(WriterCopy[S3Writer]):
    """One copy of an object under a new id: published like an upload, by a writer with a token of its own."""

    def __init__(self, bucket: Bucket, source: S3Location, writer: S3Writer, response: Mapping[str, Any]) -> None:
        """``response`` is that of a HEAD of the source; raises Duplicate."""
        super().__init__(writer, int(response["ContentLength"]))
        self._bucket = bucket
        self._source = source
        self._version = version_of(response)
        # What names the source, in the version whose size is known.
        self._original: dict[str, Any] = {
            "CopySource": {"Bucket": source.bucket, "Key": source.key},
            "CopySourceIfMatch": response["ETag"],
            **{f"CopySource{name}": value for name, value in bucket.customer_key.items()},
        }
        # CopyObject itself overwrites: where the server can refuse that, it is when completing an upload.
        if self.size > (0 if bucket.conditional_complete else LARGEST_COPY):
            self.parts = equal_parts(self.size, part_size(0, self.size, COPY_PART))
            self.writer.recorded = recorded_in(response)
        target = self.writer.publication.location
        if self.parts or (source.bucket, source.key) == (target.bucket, target.key):
            # Parts are many bytes, and only completing the upload would tell.
            self.writer.publication.is_ours()
        if not self.parts:
            self.moved_at_once = self.size

    def begin(self) -> None:
        """Start an upload if there are parts."""
        if self.parts:
            super().begin()

    def copy_part(self, number: int, offset: int, length: int) -> None:
        """Fill one part of the upload."""
        self.writer.copy_part(number, self._original, offset, offset + length)

    def commit(self, digests: Digests) -> Committed:
        """Complete the upload, or copy at once; an empty object cannot be copied in parts."""
        if self.size == 0:
            return self.writer.put_whole(memoryview(b""), digests)
        if self.parts:
            self._check_source()
            return super().commit(digests)
        committed = self.writer.copy_whole(self._original, digests)
        self._check_source()
        return committed

    def _check_source(self) -> None:
        """Raise unless it is what it was at the start: not every server looks at CopySourceIfMatch."""
        if version_of(self._bucket.head(self._source)) != self._version:
            raise ImageChanged(f"{self._source} changed while it was copied")

# SPDX-License-Identifier: Apache-2.0
"""S3Reader: one object read through as few responses as possible, all of one version."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from storelib.driver import Digest
from storelib.drivers.s3.bucket import Bucket, Crc, find_crc, is_md5
from storelib.drivers.s3.errors import BadAnswer, error_code, refuses_extras, size_of
from storelib.drivers.s3.location import S3Location
from storelib.drivers.s3.publication import DIGEST, token_of
from storelib.exceptions import ImageChanged, IncompleteRead, RemoteServiceUnavailable
from storelib.transfer.contract import MiB
from storelib.transfer.http.headers import content_range, is_coded, range_header
from storelib.transfer.http.reading import Body, ResponseReader, discarding_on_error

_RECORDED = re.compile(r"([a-z0-9][a-z0-9_-]{1,19}):((?:[0-9a-f]{2}){16,64})")


class S3Reader(ResponseReader):
    """Reads one version of an object: the first response tells size and ETag, which later requests have in If-Match."""

    #: 20 ms away, twice as many ranges of half the usual size are half as fast again (measured).
    part_size = 4 * MiB

    def __init__(self, bucket: Bucket, location: S3Location, offset: int, length: int | None) -> None:
        super().__init__()
        self._bucket = bucket
        self._call = bucket.call
        self._location = location
        self._target = {"Bucket": location.bucket, "Key": location.key, **bucket.customer_key}
        self._etag: str | None = None
        self._verification: Verification | None = None

        whole = offset == 0 and length is None
        verify = whole and bucket.conf.s3_store_verify_checksum
        first = self._first(offset, length, verify)
        if first is None:
            self.begin(None, offset, length)
            return
        if verify:
            self._verification = Verification.of_response(first, self.size, str(location))
        stop = _range_of(first, offset)[0] if "ContentRange" in first else self.size
        self.begin(Body(_response_of(first), offset, stop), offset, length)
        if self.is_far(offset, bucket.latency) and self._etag:
            self.concurrency = bucket.conf.s3_store_thread_pools

    def received(self, body: Body, offset: int, data: memoryview) -> None:
        """Take the bytes into the checksum of the whole; raises IncompleteRead if that is another in the end."""
        if data and self._verification is not None:
            self._verification.update(offset, data)

    def _first(self, offset: int, length: int | None, verify: bool) -> dict[str, Any] | None:
        """The response to the first request, from which size and version are learnt; None if it has no bytes."""
        parameters = range_header(offset, length)
        try:
            response = self._get(parameters, verify)
        except Exception as error:
            if error_code(error) not in ("InvalidRange", "416"):
                raise
            # The range lies behind the end, and few servers say where that is.
            response = self._bucket.head(self._location)
            self.size, self._etag = int(response["ContentLength"]), _strong(response.get("ETag"))
            self.digest = digest_of(response)
            return None
        with discarding_on_error(_response_of(response)):
            _refuse_encoding(response)
            self._etag = _strong(response.get("ETag"))
            self.digest = digest_of(response)
            if not parameters:
                self.size = self._size_of(response)
            elif "ContentRange" not in response:
                raise RemoteServiceUnavailable(f"the server of {self._location} ignores ranges", transient=False)
            else:
                self.size = _range_of(response, offset)[1]
        return response

    def _get(self, parameters: dict[str, Any], verify: bool) -> dict[str, Any]:
        """Ask for the object, with its checksum if that is to be verified and the server knows any."""
        checked = verify and self._bucket.asks_for_checksums
        extras = {"ChecksumMode": "ENABLED"} if checked else {}
        response: dict[str, Any]
        try:
            response = self._call("get_object", **self._target, **parameters, **extras)
        except Exception as error:
            if not (checked and refuses_extras(error)):
                raise
            response = self._call("get_object", **self._target, **parameters)
            self._bucket.asks_for_checksums = False
        return response

    def _size_of(self, whole: dict[str, Any]) -> int:
        """Of a response that is the whole object; one that does not say is of some proxy that sends it in chunks."""
        if "ContentRange" in whole:
            raise BadAnswer("GetObject", "a part of the image that nobody asked for")
        if "ContentLength" in whole:
            return size_of("GetObject", whole)
        return size_of("HeadObject", self._bucket.head(self._location))

    def ask(self, offset: int, end: int) -> Body:
        """Ask for a range."""
        pinned = {"IfMatch": self._etag} if self._etag else {}
        try:
            response = self._call("get_object", **self._target, **pinned, **range_header(offset, end - offset))
        except Exception as error:
            if error_code(error) in ("InvalidRange", "416"):
                raise ImageChanged(f"{self._location} changed while it was read: it is shorter now") from error
            raise
        with discarding_on_error(_response_of(response)):
            _refuse_encoding(response)
            if _strong(response.get("ETag")) != self._etag:
                raise ImageChanged(f"{self._location} changed while it was read")
            last, total = _range_of(response, offset)
            if total != self.size:
                raise ImageChanged(f"{self._location} changed while it was read: its size is another now")
        return Body(_response_of(response), offset, last)


def _response_of(response: dict[str, Any]) -> Any:
    """The response of urllib3 below the stream that botocore makes of a body."""
    return getattr(response["Body"], "_raw_stream", response["Body"])


def _refuse_encoding(response: dict[str, Any]) -> None:
    """Raise BadAnswer where a proxy encoded the image: storelib stores none so, and the ETags of S3 are strong."""
    theirs = token_of(response) is None and not str(response.get("ETag", "")).startswith("W/")
    if is_coded(response.get("ContentEncoding")) and not theirs:
        raise BadAnswer("GetObject", "the image in an encoding that nobody asked for")


def _range_of(response: dict[str, Any], offset: int) -> tuple[int, int]:
    """Where the range in a response ends, and the size of the whole; raises BadAnswer unless it is from ``offset``."""
    start, stop, size = content_range(response.get("ContentRange"))
    if start != offset or stop is None or size is None or response.get("ContentLength", stop - start) != stop - start:
        raise BadAnswer("GetObject", "another range than the one asked for")
    return stop, size


def digest_of(response: Mapping[str, Any]) -> Digest | None:
    """What storelib recorded with an object of one piece, or its ETag where that is the md5 of its bytes."""
    match = _RECORDED.fullmatch((response.get("Metadata") or {}).get(DIGEST, ""))
    if match is not None:
        return Digest(*match.groups())
    etag = (_strong(response.get("ETag")) or "").strip('"').lower()
    # In directory buckets it is a random number.
    comparable = is_md5(etag, response) and response.get("StorageClass") != "EXPRESS_ONEZONE"
    return Digest("md5", etag) if comparable else None


def _strong(etag: str | None) -> str | None:
    """The ETag that the server gave, which proxies that change the coding call weak."""
    return etag.removeprefix("W/") if etag else None


# -- The checksum of the whole ---------------------------------------------------------------------------------------


@dataclass
class _Run:
    """Bytes from ``start`` to ``end`` and their checksum."""

    start: int
    end: int
    value: int


class Verification:
    """The stored CRC of a whole image against the bytes that were read, in whatever order, each of them once."""

    def __init__(self, crc: Crc, expected: str, size: int, subject: str) -> None:
        self._crc = crc
        self._expected = expected
        self._size = size
        self._subject = subject
        self._lock = threading.Lock()
        self._seen = 0
        self._runs: dict[int, _Run] = {}  # by end

    @classmethod
    def of_response(cls, response: Mapping[str, Any], size: int, subject: str) -> Verification | None:
        """For the object of a GET's response; None where it has no checksum of the whole that can be computed here."""
        for algorithm in ("crc64nvme", "crc32", "crc32c"):
            expected = response.get(f"Checksum{algorithm.upper()}")
            # A dash is followed by the number of parts: a checksum of their checksums.
            if expected and "-" not in expected and response.get("ChecksumType") != "COMPOSITE":
                crc = find_crc(algorithm)
                return cls(crc, expected, size, subject) if crc else None
        return None

    def update(self, offset: int, data: memoryview) -> None:
        """These bytes were read at ``offset``; raises IncompleteRead if they were the last and all are not right."""
        with self._lock:
            run = self._runs.pop(offset, None) or _Run(offset, offset, 0)
        run.value = self._crc.update(data, run.value)
        run.end += len(data)
        with self._lock:
            self._runs[run.end] = run
            self._seen += len(data)
            value = self._whole() if self._seen == self._size else None
        if value is not None and self._crc.encode(value) != self._expected:
            raise IncompleteRead(
                f"{self._subject}: the bytes that came are not those that were stored: their "
                f"{self._crc.name.removeprefix('Checksum')} is another than the one the server keeps"
            )

    def _whole(self) -> int | None:
        """The checksum of all runs put together; None if they are not the whole image, as after seeking."""
        position = value = 0
        for run in sorted(self._runs.values(), key=lambda run: run.start):
            if run.start != position:
                return None
            value = self._crc.combine(value, run.value, run.end - run.start)
            position = run.end
        return value if position == self._size else None

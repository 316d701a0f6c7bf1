# SPDX-License-Identifier: Apache-2.0
"""S3Reader: one object read through as few responses as possible, all of one version."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from storelib.driver import Reader
from storelib.drivers.s3.bucket import Bucket, Crc, find_crc, is_md5
from storelib.drivers.s3.errors import BadAnswer, error_code, refuses_extras, size_of
from storelib.drivers.s3.location import S3Location
from storelib.drivers.s3.publication import DIGEST
from storelib.exceptions import ImageChanged, IncompleteRead, RemoteServiceUnavailable
from storelib.transfer.contract import Digest, KiB, MiB

# One read from the socket. Larger ones are no faster, and what has come of one is lost when the connection fails.
BLOCK = 256 * KiB
# Of a server that has answered anything quicker than this (seconds), one stream is faster than ranges side by side
# (measured). The answer to a GET tells less: radosgw on the same machine begins it after 15 to 30 ms.
QUICK = 0.005
# Reading away what nobody needs is cheaper than a new connection up to about this size.
WORTH_DRAINING = 64 * KiB
_RECORDED = re.compile(r"([a-z0-9][a-z0-9_-]{1,19}):((?:[0-9a-f]{2}){16,64})")
_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")


class S3Reader(Reader):
    """Reads with one response until it ends or is cut, then asks for the rest; far away, with ranges side by side.

    The first answer tells size and ETag; all later requests carry it in If-Match.
    """

    #: 20 ms away, twice as many ranges of half the usual size are half as fast again (measured).
    part_size = 4 * MiB

    def __init__(self, bucket: Bucket, location: S3Location, offset: int, length: int | None) -> None:
        self._bucket = bucket
        self._call = bucket.call
        self._location = location
        self._target = {"Bucket": location.bucket, "Key": location.key, **bucket.customer_key}
        self._lock = threading.Lock()
        # Responses being read, by the offset each would go on with.
        self._bodies: dict[int, Body] = {}
        self._etag: str | None = None
        self._verification: Verification | None = None

        whole = offset == 0 and length is None
        verify = whole and bucket.conf.s3_store_verify_checksum
        first = self._first(offset, length, verify)
        self.end = self.size if length is None else min(offset + length, self.size)
        if first is None:
            return
        if verify:
            self._verification = Verification.of_answer(first, self.size, str(location))
        if offset < self.end:
            ends = _range_of(first, offset)[0] if "ContentRange" in first else self.size
            self._bodies[offset] = Body(first["Body"], offset, ends)
        else:
            first["Body"].close()
        if bucket.latency > QUICK and self.end - offset > self.part_size and self._etag:
            self.concurrency = bucket.conf.s3_store_thread_pools

    def read_into(self, offset: int, view: memoryview) -> int:
        """Read from the response that has come as far as ``offset``, or ask for one that starts there."""
        with self._lock:
            body = self._bodies.pop(offset, None)
        if body is None:
            body = self._ask(offset, offset + len(view) if self.concurrency > 1 else max(self.end, offset + len(view)))
        try:
            count = body.read_into(view)
            if count and self._verification is not None:
                self._verification.update(offset, view[:count])
        except BaseException:
            body.close()
            raise
        # Of ranges side by side, each is wanted only as far as its view goes.
        if count == 0 or body.ended or (self.concurrency > 1 and count == len(view)):
            body.close()
        else:
            self._keep(body)
        return count

    def close(self) -> None:
        """Close what was not read to its end."""
        for body in self._bodies.values():
            body.close()
        self._bodies.clear()

    def _first(self, offset: int, length: int | None, verify: bool) -> dict[str, Any] | None:
        """The answer to the first request, from which size and version are learnt; None if it has no bytes."""
        parameters = {"Range": _range(offset, length)} if offset or length is not None else {}
        try:
            answer = self._get(parameters, verify)
        except Exception as error:
            if error_code(error) not in ("InvalidRange", "416"):
                raise
            # The range lies behind the end, and few servers say where that is.
            answer = self._bucket.head(self._location)
            self.size, self._etag = int(answer["ContentLength"]), _strong(answer.get("ETag"))
            self.digest = digest_of(answer)
            return None
        with closing_unless_right(answer):
            self._etag = _strong(answer.get("ETag"))
            self.digest = digest_of(answer)
            if not parameters:
                self.size = self._size_of(answer)
            elif "ContentRange" not in answer:
                raise RemoteServiceUnavailable(f"the server of {self._location} ignores ranges", transient=False)
            else:
                self.size = _range_of(answer, offset)[1]
        return answer

    def _get(self, parameters: dict[str, Any], verify: bool) -> dict[str, Any]:
        """Ask for the object, with its checksum if that is to be verified and the server knows any."""
        checked = verify and self._bucket.asks_for_checksums
        extras = {"ChecksumMode": "ENABLED"} if checked else {}
        answer: dict[str, Any]
        try:
            answer = self._call("get_object", **self._target, **parameters, **extras)
        except Exception as error:
            if not (checked and refuses_extras(error)):
                raise
            answer = self._call("get_object", **self._target, **parameters)
            self._bucket.asks_for_checksums = False
        return answer

    def _size_of(self, whole: dict[str, Any]) -> int:
        """Of an answer that is the whole object; one that does not say is of some proxy that sends it in chunks."""
        if "ContentRange" in whole:
            raise BadAnswer("GetObject", "a part of the image that nobody asked for")
        if "ContentLength" in whole:
            return size_of("GetObject", whole)
        return size_of("HeadObject", self._bucket.head(self._location))

    def _ask(self, offset: int, end: int) -> Body:
        """A response from ``offset`` on, of the version first seen."""
        pinned = {"IfMatch": self._etag} if self._etag else {}
        try:
            answer = self._call("get_object", **self._target, **pinned, Range=_range(offset, end - offset))
        except Exception as error:
            if error_code(error) in ("InvalidRange", "416"):
                raise ImageChanged(f"{self._location} changed while it was read: it is shorter now") from error
            raise
        with closing_unless_right(answer):
            if _strong(answer.get("ETag")) != self._etag:
                raise ImageChanged(f"{self._location} changed while it was read")
            last, total = _range_of(answer, offset)
            if total != self.size:
                raise ImageChanged(f"{self._location} changed while it was read: its size is another now")
        return Body(answer["Body"], offset, last)

    def _keep(self, body: Body) -> None:
        with self._lock:
            self._bodies[body.position] = body
            # What a seek left behind would otherwise stay open.
            oldest = [self._bodies.pop(next(iter(self._bodies)))] if len(self._bodies) > self.concurrency else []
        for stale in oldest:
            stale.close()


class Body:
    """The bytes of one response; ``position`` is the offset of the next one in the image."""

    def __init__(self, stream: Any, start: int, end: int) -> None:
        self.position = start
        self._end = end
        # Botocore's stream and urllib3's below it copy every byte once more; http.client's reads in place.
        self._response = getattr(stream, "_raw_stream", stream)
        self._file: Any = getattr(self._response, "_fp", None) or self._response

    @property
    def ended(self) -> bool:
        """Whether all of it was read."""
        return self.position == self._end

    def read_into(self, view: memoryview) -> int:
        """Up to BLOCK bytes; 0 at its end, also when that came too early."""
        wanted = min(len(view), BLOCK, self._end - self.position)
        count: int = self._file.readinto(view[:wanted]) if wanted else 0
        self.position += count
        return count

    def close(self) -> None:
        """Give the connection back if little or nothing is left to read, else close it."""
        left = self._end - self.position
        if 0 < left <= WORTH_DRAINING:
            self._drain(left)
        if self._file.isclosed():
            self._response.release_conn()
        self._response.close()

    def _drain(self, left: int) -> None:
        try:
            self._file.read(left)
        except Exception:  # noqa: BLE001  (nobody wanted these bytes)
            pass


@contextlib.contextmanager
def closing_unless_right(answer: dict[str, Any]) -> Iterator[None]:
    """Close the body of an answer in which something is found to be wrong."""
    try:
        yield
    except BaseException:
        answer["Body"].close()
        raise


def _range_of(answer: dict[str, Any], offset: int) -> tuple[int, int]:
    """Where the range in an answer ends, and the size of the whole; raises BadAnswer unless it is from ``offset``."""
    match = _RANGE.fullmatch(answer.get("ContentRange") or "")
    first, last, total = map(int, match.groups()) if match else (0, -1, 0)
    length = last + 1 - first
    if first != offset or not 0 < length <= total - offset or answer.get("ContentLength", length) != length:
        raise BadAnswer("GetObject", "another range than the one asked for")
    return last + 1, total


def digest_of(answer: Mapping[str, Any]) -> Digest | None:
    """What storelib recorded with an object of one piece, or its ETag where that is the md5 of its bytes."""
    match = _RECORDED.fullmatch((answer.get("Metadata") or {}).get(DIGEST, ""))
    if match is not None:
        return Digest(*match.groups())
    etag = (_strong(answer.get("ETag")) or "").strip('"').lower()
    # In directory buckets it is a random number.
    comparable = is_md5(etag, answer) and answer.get("StorageClass") != "EXPRESS_ONEZONE"
    return Digest("md5", etag) if comparable else None


def _strong(etag: str | None) -> str | None:
    """The ETag that the server gave, which proxies that change the coding call weak."""
    return etag.removeprefix("W/") if etag else None


def _range(offset: int, length: int | None) -> str:
    """The Range header; of no bytes one is asked for, since there is no range of none."""
    return f"bytes={offset}-" if length is None else f"bytes={offset}-{offset + max(length, 1) - 1}"


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
    def of_answer(cls, answer: Mapping[str, Any], size: int, subject: str) -> Verification | None:
        """For the object of a GET's answer; None where it has no checksum of the whole that can be computed here."""
        for algorithm in ("crc64nvme", "crc32", "crc32c"):
            expected = answer.get(f"Checksum{algorithm.upper()}")
            # A dash is followed by the number of parts: a checksum of their checksums.
            if expected and "-" not in expected and answer.get("ChecksumType") != "COMPOSITE":
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

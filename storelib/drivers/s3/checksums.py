# SPDX-License-Identifier: Apache-2.0
"""Checksums as S3 knows them: of one part on its way there, of a whole image on its way back."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from storelib.drivers.s3.answers import Damaged
from storelib.exceptions import IncompleteRead, MissingDependency
from storelib.transfer.contract import Digests


@dataclass(frozen=True)
class Crc:
    """A cyclic redundancy check that can be computed in pieces: ``update(data, value)`` goes on from ``value``."""

    #: The parameter and field of requests and answers that hold it.
    name: str
    update: Callable[[Any, int], int]
    #: The polynomial, lowest power last.
    polynomial: int
    size: int

    def encode(self, value: int) -> str:
        """As headers have it."""
        return base64.b64encode(value.to_bytes(self.size, "big")).decode("ascii")

    def combine(self, first: int, second: int, length: int) -> int:
        """The value of two runs of bytes, the second of ``length`` bytes, from the values of each.

        Appending a zero bit is linear, so appending many is a power of that matrix, and what the second run adds is
        added by exclusive or (as zlib's crc32_combine).
        """
        matrix = [self.polynomial] + [1 << bit for bit in range(8 * self.size - 1)]
        zeros = 8 * length
        while zeros:
            if zeros & 1:
                first = _apply(matrix, first)
            matrix = [_apply(matrix, column) for column in matrix]
            zeros >>= 1
        return first ^ second


def _apply(matrix: list[int], vector: int) -> int:
    result = 0
    for column in matrix:
        if not vector:
            break
        if vector & 1:
            result ^= column
        vector >>= 1
    return result


def find_crc(algorithm: str) -> Crc | None:
    """The CRC of that name; None where it is none, or what computes it is not installed."""
    if algorithm == "crc32":
        return Crc("ChecksumCRC32", zlib.crc32, 0xEDB88320, 4)
    if algorithm not in ("crc32c", "crc64nvme"):
        return None
    try:
        from awscrt import checksums
    except ImportError:
        return None
    if algorithm == "crc32c":
        return Crc("ChecksumCRC32C", checksums.crc32c, 0x82F63B78, 4)
    return Crc("ChecksumCRC64NVME", checksums.crc64nvme, 0x9A6C9329AC4BC9B5, 8)


class PartChecksums:
    """The checksum that goes with each part: parameters of the requests that store an image, and what came of them."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        # What is known of the server's ETags: whether one was ever the md5 of what was sent, and whether none is.
        self._md5_seen = False
        self._never_md5 = False
        self._crc = find_crc(algorithm)
        if algorithm in ("crc32c", "crc64nvme") and self._crc is None:
            raise MissingDependency(
                f"option s3_store_checksum_algorithm = {algorithm} needs an extra package: pip install botocore[crt]"
            )
        #: Where answers have the checksum of a part, for the request that completes an upload.
        self.field = self._crc.name if self._crc else f"Checksum{algorithm.upper()}"

    @property
    def of_upload(self) -> dict[str, str]:
        """What the request that starts a multipart upload says of the checksums to come."""
        if self.algorithm in ("none", "md5"):
            return {}
        # Only CRCs can be put together to one of the whole object.
        kind = "FULL_OBJECT" if self._crc else "COMPOSITE"
        return {"ChecksumAlgorithm": self.algorithm.upper(), "ChecksumType": kind}

    def of_part(self, data: memoryview, known: Digests | None = None) -> dict[str, str]:
        """The checksum of ``data``; taken from ``known`` digests of the same bytes where they have it."""
        if self.algorithm == "none":
            return {}
        if self._crc is not None:
            return {self._crc.name: self._crc.encode(self._crc.update(data, 0))}
        digest = _known(self.algorithm, known) or hashlib.new(self.algorithm, data, usedforsecurity=False).digest()
        name = "ContentMD5" if self.algorithm == "md5" else self.field
        return {name: base64.b64encode(digest).decode("ascii")}

    def compare(
        self, answer: Mapping[str, Any], sent: Mapping[str, str], data: memoryview, md5: str | None, *, in_clear: bool
    ) -> None:
        """Raise Damaged if the server stored other bytes than ``data``, which went out with ``sent``.

        A server that does not repeat the checksum has ignored it; then the ETag tells, which mostly is the md5.
        ``md5`` is that of the bytes where it is known; without it, it is computed where nothing else protects them.
        """
        checksums = {name: value for name, value in sent.items() if name != "ContentMD5" and answer.get(name)}
        if checksums:
            if any(answer[name] != value for name, value in checksums.items()):
                raise Damaged("the upload", "its checksum")
            return
        etag = str(answer.get("ETag", "")).strip('"').lower()
        if self._never_md5 or not is_md5(etag, answer):
            return
        if "ContentMD5" in sent:
            md5 = base64.b64decode(sent["ContentMD5"]).hex()
        elif md5 is None and in_clear and self.algorithm != "none":
            md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if md5 is None or etag == md5:
            self._md5_seen |= md5 is not None
            return
        if "ContentMD5" in sent and not self._md5_seen:
            # It has verified the bytes: its ETags are something else.
            self._never_md5 = True
            return
        self.algorithm, self._crc, self.field = "md5", None, "ChecksumMD5"
        raise Damaged("the upload", "its ETag")


def is_md5(etag: str, answer: Mapping[str, Any]) -> bool:
    """Whether an ETag without its quotes may be the md5 of an object: not of one encrypted with other keys."""
    other_keys = answer.get("SSECustomerAlgorithm") or str(answer.get("ServerSideEncryption", "")).startswith("aws:kms")
    return not other_keys and re.fullmatch("[0-9a-f]{32}", etag) is not None


def _known(algorithm: str, digests: Digests | None) -> bytes | None:
    if digests is None:
        return None
    if algorithm == "md5" and digests.checksum is not None:
        return bytes.fromhex(digests.checksum)
    return bytes.fromhex(digests.multihash) if digests.algorithm == algorithm else None


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

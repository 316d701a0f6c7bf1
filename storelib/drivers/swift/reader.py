# SPDX-License-Identifier: Apache-2.0
"""SwiftReader: one image read through as few responses as possible, all of them of one version."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storelib.drivers.swift.errors import check_proof, error_of_status
from storelib.drivers.swift.location import SwiftLocation
from storelib.drivers.swift.service import Account, Service, digest_in, etag_in, length_of
from storelib.drivers.swift.transport import BLOCK, Connections
from storelib.exceptions import ImageChanged, RemoteServiceUnavailable
from storelib.transfer.contract import MiB, Reader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from requests import Response

# Of a server that has answered anything quicker than this (seconds), one stream is faster than ranges side by side
# (measured).
QUICK = 0.005
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19})", re.ASCII)


@dataclass(frozen=True)
class Version:
    """What tells one state of an image from another."""

    etag: str | None
    modified: str | None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Version:
        """The ETag is of the bytes, except that of a dynamic manifest, which may be missing or grow."""
        dynamic = "X-Object-Manifest" in headers
        etag = None if dynamic else etag_in(headers) or None
        return cls(etag, None if etag else headers.get("X-Timestamp") or headers.get("Last-Modified"))


class SwiftReader(Reader):
    """Reads with one response until it ends or is cut, then asks for the rest; far away, with ranges side by side."""

    def __init__(
        self, service: Service, account: Account, location: SwiftLocation, offset: int, length: int | None
    ) -> None:
        self.account = account
        self.part_size = service.conf.swift_store_download_part_size * MiB
        self._location = location
        self._lock = threading.Lock()
        # Responses being read, by the offset each would go on with.
        self._bodies: dict[int, Body] = {}
        first = self._fetch(offset, None if length is None else offset + max(length, 1))
        try:
            self._version = Version.of(first.headers)
            self.digest = digest_in(first.headers)
            self.size = self._size_of(first, offset)
        except BaseException:
            Connections.discard(first)
            raise
        self._end = self.size if length is None else min(offset + length, self.size)
        if first.status_code == 416 or offset >= self._end:
            Connections.discard(first)
        else:
            self._bodies[offset] = self._body(first, offset)
        if account.latency > QUICK and self._end - offset > self.part_size:
            self.concurrency = service.conf.swift_store_download_concurrency
        if self._end - offset > self.part_size:
            self.account = service.with_trust(account)

    def read_into(self, offset: int, view: memoryview) -> int:
        """Read from the response that has come as far as ``offset``, or ask for one that starts there."""
        with self._lock:
            body = self._bodies.pop(offset, None)
        if body is None:
            end = offset + len(view) if self.concurrency > 1 else max(self._end, offset + len(view))
            body = self._ask(offset, min(end, self.size))
        try:
            count = body.read_into(view)
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
        self.account.identity.close()

    def _ask(self, offset: int, end: int) -> Body:
        """A response from ``offset`` on, of the version first seen."""
        answer = self._fetch(offset, end if end < self.size else None)
        version = Version.of(answer.headers)
        if answer.status_code == 416 or version != self._version or self._size_of(answer, offset) != self.size:
            Connections.discard(answer)
            raise ImageChanged(f"{self._location} changed while it was read")
        return self._body(answer, offset)

    def _fetch(self, offset: int, end: int | None) -> Response:
        headers = {}
        if offset or end is not None:
            headers["Range"] = f"bytes={offset}-{'' if end is None else end - 1}"
        answer = self.account.get(self._location.container, self._location.obj, headers=headers)
        try:
            self._check(answer, offset, ranged=bool(headers))
        except BaseException:
            Connections.discard(answer)
            raise
        return answer

    def _check(self, answer: Response, offset: int, *, ranged: bool) -> None:
        """Raise unless it is an image, or a part of one that begins at ``offset``, or says that there is none."""
        status, headers = answer.status_code, answer.headers
        if status == 416 and ranged:
            return
        if not 200 <= status < 300:
            raise error_of_status("GET", status, headers, str(self._location))
        check_proof("GET", status, headers, 2, str(self._location))
        if status == 200:
            return
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        first, last, size = match.groups() if match else (None, None, None)
        if not ranged or first is None or int(first) != offset or not int(first) <= int(last or 0) < int(size or 0):
            raise RemoteServiceUnavailable(f"Swift sent another part of {self._location} than was asked for")

    def _size_of(self, answer: Response, offset: int) -> int:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if match is not None and answer.status_code != 200:
            return int(match[3])
        if answer.status_code == 200:
            return self._length(answer.headers)
        # radosgw refuses a range without saying how much there would be.
        headers = self.account.head(self._location.container, self._location.obj)
        self._version = Version.of(headers)
        self.digest = digest_in(headers)
        return self._length(headers)

    def _length(self, headers: Mapping[str, str]) -> int:
        size = length_of(headers)
        if size is None:
            raise RemoteServiceUnavailable(f"Swift does not tell the size of {self._location}", transient=False)
        return size

    def _body(self, answer: Response, offset: int) -> Body:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if match and match[2] and answer.status_code == 206:
            return Body(answer, offset, int(match[2]) + 1)
        # Of a dynamic image with more segments than a listing has, Swift sends all whatever it is asked for.
        body = Body(answer, 0, self._length(answer.headers))
        body.skip_to(offset)
        return body

    def _keep(self, body: Body) -> None:
        with self._lock:
            self._bodies[body.position] = body
            # What a seek left behind would otherwise stay open.
            oldest = [self._bodies.pop(next(iter(self._bodies)))] if len(self._bodies) > self.concurrency else []
        for stale in oldest:
            stale.close()


class Body:
    """The bytes of one response; ``position`` is the offset of the next one in the image."""

    def __init__(self, answer: Response, position: int, stop: int) -> None:
        self.position = position
        self._stop = stop
        self._answer = answer
        # urllib3's own readinto copies; the file below it reads in place.
        self._file: Any = getattr(answer.raw, "_fp", None) or answer.raw

    @property
    def ended(self) -> bool:
        """Whether all of it was read."""
        return self.position == self._stop

    def read_into(self, view: memoryview) -> int:
        """Up to BLOCK bytes; 0 at its end, also when that came too early."""
        count: int = self._file.readinto(view[: min(len(view), BLOCK, self._stop - self.position)])
        self.position += count
        return count

    def skip_to(self, offset: int) -> None:
        """Read away what comes before ``offset``."""
        scratch = memoryview(bytearray(BLOCK)) if self.position < offset else memoryview(b"")
        while self.position < offset and self.read_into(scratch[: offset - self.position]):
            pass

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""
        if self._answer.raw.isclosed():
            self._answer.raw.release_conn()
        self._answer.close()

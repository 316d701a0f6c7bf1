# SPDX-License-Identifier: Apache-2.0
"""SwiftReader: one image read through as few responses as possible, all of them of one version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from storelib.drivers.swift.errors import TOKEN_HEADER, check_proof, digest_in, error_of_status, etag_in, length_of
from storelib.drivers.swift.location import SwiftLocation
from storelib.drivers.swift.service import Account, Service
from storelib.exceptions import ImageChanged, RemoteServiceUnavailable
from storelib.transfer.contract import MiB
from storelib.transfer.http.headers import ContentRange, content_range, is_coded, range_header
from storelib.transfer.http.reading import Body, ResponseReader, discard, discarding_on_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from requests import Response


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


class SwiftReader(ResponseReader):
    """Reads an object or the segments of a manifest, all of one version; a long transfer may outlive its token."""

    def __init__(
        self, service: Service, account: Account, location: SwiftLocation, offset: int, length: int | None
    ) -> None:
        super().__init__()
        self.account = account
        self.part_size = service.conf.swift_store_download_part_size * MiB
        self._location = location
        first = self._fetch(offset, length)
        with discarding_on_error(first.raw):
            self._version = Version.of(first.headers)
            self.digest = digest_in(first.headers)
            self.size = self._size_of(first)
            if first.status_code == 416:
                self.begin(None, offset, length)
                discard(first.raw)
            else:
                self.begin(self._body(first), offset, length)
        if self.is_far(offset, account.latency):
            self.concurrency = service.conf.swift_store_download_concurrency
        if self.end - offset > self.part_size:
            self.account = service.with_trust(account)

    def close(self) -> None:
        """Close what was not read to its end, and revoke the trust if there is one."""
        super().close()
        self.account.identity.close()

    def ask(self, offset: int, end: int) -> Body:
        """Ask for a range."""
        response = self._fetch(offset, end - offset if end < self.size else None)
        with discarding_on_error(response.raw):
            version = Version.of(response.headers)
            if response.status_code == 416 or version != self._version or self._size_of(response) != self.size:
                raise ImageChanged(f"{self._location} changed while it was read")
            return self._body(response)

    def _fetch(self, offset: int, length: int | None) -> Response:
        wanted = range_header(offset, length)
        response = self.account.get(self._location.container, self._location.obj, headers=wanted)
        with discarding_on_error(response.raw):
            self._check(response, offset, ranged=bool(wanted))
        return response

    def _check(self, response: Response, offset: int, *, ranged: bool) -> None:
        """Raise unless it is an image, or a part of one that begins at ``offset``, or says that there is none."""
        status, headers = response.status_code, response.headers
        if status == 416 and ranged:
            return
        if not 200 <= status < 300:
            raise error_of_status("GET", status, headers, str(self._location))
        check_proof("GET", status, headers, 2, str(self._location))
        # Objects of others may be kept in an encoding; those of storelib are not, and Swift's ETags are strong.
        ours = TOKEN_HEADER in headers or headers.get("Etag", "").startswith("W/")
        if ours and is_coded(headers.get("Content-Encoding")):
            raise RemoteServiceUnavailable(
                f"{self._location} came in an encoding that nobody asked for, of a proxy perhaps", transient=False
            )
        if status == 200:
            return
        part = _part(response)
        if not ranged or part.start != offset or part.size is None:
            raise RemoteServiceUnavailable(f"Swift sent another part of {self._location} than was asked for")

    def _size_of(self, response: Response) -> int:
        size = _part(response).size
        if size is not None and response.status_code != 200:
            return size
        if response.status_code == 200:
            return self._length(response.headers)
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

    def _body(self, response: Response) -> Body:
        part = _part(response)
        if response.status_code == 206 and part.start is not None:
            return Body(response.raw, part.start, part.stop)
        # Of a dynamic image with more segments than a listing has, Swift sends all whatever it is asked for.
        return Body(response.raw, 0, self._length(response.headers))


def _part(response: Response) -> ContentRange:
    return content_range(response.headers.get("Content-Range"))

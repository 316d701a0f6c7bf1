# SPDX-License-Identifier: Apache-2.0
"""HttpReader: one image read through as few responses as possible, all of them of one version."""

from __future__ import annotations

import contextlib

from storelib.drivers.http.location import HttpLocation
from storelib.drivers.http.session import ImageResponse, Session
from storelib.exceptions import Forbidden, ImageChanged, IncompleteRead, Invalid, NotFound, RemoteServiceUnavailable
from storelib.transfer.deadlines import progress
from storelib.transfer.http.headers import range_header
from storelib.transfer.http.reading import BLOCK, Body, ResponseReader, discarding_on_error


class HttpReader(ResponseReader):
    """Reads one version of an image, named by the first response; a later one of another version is ImageChanged.

    Without ETag and settled Last-Modified no later response can be trusted, so a cut is final then.
    """

    def __init__(
        self, session: Session, location: HttpLocation, offset: int, length: int | None, longest: int | None = None
    ) -> None:
        """``longest``: bytes of an image whose server does not tell its size, at most."""
        super().__init__()
        self._longest = longest
        self.part_size = session.part_size
        self._session = session
        self._location = location
        # Where redirects led: asking there again saves the detour and stays with one of several mirrors.
        self._target = location
        self._delivered = False

        first = self._fetch(range_header(offset, length))
        self._version = first.version
        with discarding_on_error(first.raw):
            first.refuse_page()
            self._start(first, offset, length)
        if self.is_far(offset, first.latency) and first.serves_ranges and self._version.is_pinned:
            self.concurrency = session.concurrency

    def received(self, body: Body, offset: int, data: memoryview) -> None:
        """Raise ImageChanged where a body whose length is not told goes on behind the end."""
        if body.stop is None and body.position == self.size and body.has_more():
            raise self._changed("it has grown")
        self._delivered |= len(data) > 0

    def _start(self, first: ImageResponse, offset: int, length: int | None) -> None:
        """Learn the image's size and keep the first response if it tells that."""
        size = first.size
        if size is None:
            # A server that answers one request at a time would not come to the next before this one's end.
            first.close()
            size = self._ask_size()
        if size is None:
            size = self._count()
        self.size = size
        if first.status == 416 and offset < size:
            raise RemoteServiceUnavailable(f"the server refuses a range inside of {self._location}", transient=False)
        self.begin(None if first.size is None else _body(first), offset, length)

    def _ask_size(self) -> int | None:
        """The size from another request, of the version first seen."""
        described = self._session.describe(self._location)
        known = self._version.is_pinned and described.version.is_pinned
        if known and not self._version.same_as(described.version):
            raise self._changed("it was replaced just now", transient=True)
        return described.size

    def _count(self) -> int:
        """The size of an image whose server does not tell it: read to the end once, and again for its bytes.

        That costs the transfer twice, but a body without a length can also be cut without a trace: two passes
        that must agree find that out.
        """
        with contextlib.closing(_body(self._fetch({}))) as body:
            scratch, longest = memoryview(bytearray(BLOCK)), self._longest
            while body.read_into(scratch):
                # However long the image takes, each block is progress; a byte now and then is none.
                progress()
                if longest is not None and body.position > longest:
                    raise Invalid(f"{self._location} has more than the {longest} bytes that are allowed")
            return body.position

    def ask(self, offset: int, end: int) -> Body:
        """Ask for a range; raises IncompleteRead where its bytes could be those of another version."""
        if self._delivered and not self._version.is_pinned:
            raise IncompleteRead(
                f"reading {self._location} cannot go on at byte {offset}: the server sends neither ETag nor a "
                "Last-Modified before its Date, so the bytes could be those of another version; start again"
            )
        headers = range_header(offset, end - offset if end < self.size else None)
        if headers and self._version.if_range is not None:
            headers["If-Range"] = self._version.if_range
        response = self._fetch(headers)
        with discarding_on_error(response.raw):
            if response.status == 416 or (self._version.is_pinned and not self._version.same_as(response.version)):
                raise self._changed("the server has another version now")
            if response.size is not None and response.size != self.size:
                raise self._changed(f"it has {response.size} bytes now, not {self.size}")
        return _body(response)

    def _fetch(self, headers: dict[str, str]) -> ImageResponse:
        target = self._target
        if target is not self._location:
            try:
                return self._session.fetch("GET", target, headers)
            except Exception as error:
                # A signed URL that has expired, or a mirror that has gone: where does the redirect lead now?
                self._target = self._location
                if not isinstance(error, NotFound | Forbidden):
                    raise
        response = self._session.fetch("GET", self._location, headers)
        if response.location != self._location:
            self._target = response.location
        return response

    def _changed(self, how: str, transient: bool = False) -> ImageChanged:
        return ImageChanged(f"{self._location} changed while it was read: {how}", transient=transient)


def _body(response: ImageResponse) -> Body:
    return Body(response.raw, response.start, response.stop)

# SPDX-License-Identifier: Apache-2.0
"""Answer: what the headers of one response say about the image, checked. Version: which state of it they mean."""

from __future__ import annotations

import email.utils
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storelib.drivers.http.errors import error_of_status
from storelib.exceptions import RemoteServiceUnavailable

if TYPE_CHECKING:
    from urllib3 import HTTPResponse

    from storelib.drivers.http.location import HttpLocation

_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19}|\*)", re.ASCII | re.IGNORECASE)

# What servers call a body that is not encoded. S3 keeps the framing of some uploads as if it were an encoding; others
# mistake the name for that of a character set or of a MIME encoding.
_NO_CODING = frozenset({"", "identity", "none", "binary", "aws-chunked", "7bit", "8bit", "utf-8"})
_FRAMING = frozenset({"", "identity", "chunked"})
_PAGES = ("text/html", "application/xhtml+xml")
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body|script|title|meta|\?xml|!--)", re.IGNORECASE)

# Reading away a body that nobody needs is cheaper than a new connection up to about this size.
_WORTH_DRAINING = 64 * 1024
# Bytes of the beginning of an image, to tell it from a page.
_LOOKED_AT = 64


@dataclass(frozen=True)
class Version:
    """The validators of one state of an image (RFC 9110, 8.8)."""

    etag: str | None
    modified: str | None
    size: int | None
    #: Whether ``modified`` tells states apart: two changes within its one second would share it.
    settled: bool

    @classmethod
    def of(cls, headers: Mapping[str, str], size: int | None) -> Version:
        """What the headers say."""
        modified, date = headers.get("Last-Modified"), headers.get("Date")
        age = _seconds(date) - _seconds(modified)
        return cls(headers.get("ETag"), modified, size, settled=age >= 1)

    @property
    def is_pinned(self) -> bool:
        """Whether a later answer can be told to mean the same bytes."""
        return self.etag is not None or self.settled

    @property
    def if_range(self) -> str | None:
        """What If-Range may hold: it must be strong, and a date only where there is no ETag (RFC 9110, 13.1.5)."""
        if self.etag is not None:
            return None if self.etag.startswith("W/") else self.etag
        return self.modified if self.settled else None

    def same_as(self, later: Version) -> bool:
        """Whether ``later`` surely means the same bytes."""
        if None not in (self.size, later.size) and self.size != later.size:
            return False
        if self.etag is not None and later.etag is not None:
            # A weak ETag may outlive small changes, so the date has to agree as well.
            weak = self.etag.startswith("W/")
            return self.etag == later.etag and (not weak or self.modified == later.modified)
        return self.settled and self.modified == later.modified


class Answer:
    """One response to a request for an image or a range of it: 200, 206 or 416, everything else is raised.

    ``start`` and ``stop`` say which bytes its body holds, ``size`` how long the whole image is; None is unknown.
    """

    def __init__(self, response: HTTPResponse, location: HttpLocation, latency: float, asked: str | None) -> None:
        self.response = response
        #: Where the last redirect led.
        self.location = location
        #: Seconds between request and answer.
        self.latency = latency
        self.status = response.status
        self.start = 0
        self.stop: int | None = None
        self.size: int | None = None
        try:
            self._read_headers(response.headers, asked)
        except BaseException:
            self.close()
            raise
        self.version = Version.of(response.headers, self.size)

    @property
    def serves_ranges(self) -> bool:
        """Whether the server says that it can answer with a range."""
        units = self.response.headers.get("Accept-Ranges", "").lower()
        return self.status == 206 or "bytes" in [unit.strip() for unit in units.split(",")]

    @property
    def may_be_page(self) -> bool:
        """Whether it is said to be a web page; but some servers say so of everything they do not know."""
        return self.response.headers.get("Content-Type", "").partition(";")[0].strip().lower() in _PAGES

    def refuse_page(self) -> None:
        """Raise where the image is a page: of a proxy, a captive portal or for logging in. No image begins like one."""
        if self.start or self.status == 416 or not self.may_be_page:
            return
        file: Any = getattr(self.response, "_fp", None)
        # Of an empty body the end has come already, and to look for more would mean to wait.
        if getattr(file, "length", 0) != 0 and _PAGE.match(file.peek(_LOOKED_AT)):
            raise self._garbage("sent a web page")

    def close(self) -> None:
        """Drop the response; its connection is kept when little of the body is left."""
        discard(self.response)

    def _read_headers(self, headers: Mapping[str, str], asked: str | None) -> None:
        if self.status not in (200, 206, 416) or (self.status != 200 and not asked):
            raise error_of_status(self.status, headers, str(self.location))
        if self.status == 416:
            self.size = self._content_range(headers)[2]
            return
        if not (_names(headers, "Content-Encoding") <= _NO_CODING and _names(headers, "Transfer-Encoding") <= _FRAMING):
            raise self._garbage("sent the image in an encoding although none was asked for")
        if self.status == 200:
            self.size = self.stop = self._content_length(headers)
            return
        start, stop, self.size = self._content_range(headers)
        if start is None or stop is None:
            raise self._garbage("sent a range without saying which")
        first, _, last = (asked or "").removeprefix("bytes=").partition("-")
        if start != int(first) or (last and stop > int(last) + 1):
            raise self._garbage("sent another range than was asked for")
        self.start, self.stop = start, stop

    def _content_length(self, headers: Mapping[str, str]) -> int | None:
        value = headers.get("Content-Length")
        if value is None or "chunked" in _names(headers, "Transfer-Encoding"):
            return None
        # RFC 9110, 8.6: some servers repeat the header; only equal values make sense.
        values = {item.strip() for item in value.split(",")}
        if len(values) != 1 or not re.fullmatch(r"[0-9]{1,19}", first := values.pop()):
            raise self._garbage("sent a Content-Length that is no number")
        return int(first)

    def _content_range(self, headers: Mapping[str, str]) -> tuple[int | None, int | None, int | None]:
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        if match is None:
            return None, None, None
        first, last, size = (None if text in (None, "*") else int(text) for text in match.groups())
        if first is None or last is None:
            return None, None, size
        if first > last or (size is not None and last >= size):
            raise self._garbage("sent a Content-Range that contradicts itself")
        return first, last + 1, size

    def _garbage(self, what: str) -> RemoteServiceUnavailable:
        return RemoteServiceUnavailable(f"the server of {self.location} {what}", transient=False)


def _names(headers: Mapping[str, str], name: str) -> set[str]:
    """What a header lists."""
    return {item.strip().lower() for item in headers.get(name, "").split(",")}


def discard(response: HTTPResponse) -> None:
    """Drop a response; its connection is kept when little of the body is left."""
    left = response.length_remaining
    if left is not None and left <= _WORTH_DRAINING:
        response.drain_conn()
        response.release_conn()
    response.close()


def _seconds(date: str | None) -> float:
    """A date in a header as POSIX seconds; not a number when there is none, so that comparisons are false."""
    try:
        return email.utils.parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError, TypeError):
        return float("nan")

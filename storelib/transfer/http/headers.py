# SPDX-License-Identifier: Apache-2.0
"""What headers hold: ranges, numbers, dates, encodings, and how long to wait before asking again."""

from __future__ import annotations

import email.utils
import re
import time
from typing import NamedTuple

from storelib.times import posix_seconds

_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19}|\*)", re.ASCII | re.IGNORECASE)

# What servers call a body that is not encoded. S3 keeps the framing of some uploads as if it were an encoding; others
# mistake the name for that of a character set or of a MIME encoding.
_NO_CODING = frozenset({"", "identity", "none", "binary", "aws-chunked", "7bit", "8bit", "utf-8"})


class ContentRange(NamedTuple):
    """Bytes from ``start`` up to ``stop`` of an image of ``size`` bytes; None is what a server does not tell."""

    start: int | None = None
    stop: int | None = None
    size: int | None = None


def content_range(text: str | None) -> ContentRange:
    """What a Content-Range header says; nothing where it contradicts itself."""
    match = _CONTENT_RANGE.fullmatch((text or "").strip())
    if match is None:
        return ContentRange()
    first, last, size = (None if number in (None, "*") else int(number) for number in match.groups())
    if first is None or last is None:
        return ContentRange(size=size)
    if first > last or (size is not None and last >= size):
        return ContentRange()
    return ContentRange(first, last + 1, size)


def range_header(offset: int, length: int | None) -> dict[str, str]:
    """The Range header for ``length`` bytes from ``offset`` on, None for all that follow; no header for a whole image.

    Of no bytes one is asked for, since there is no range of none.
    """
    if offset == 0 and length is None:
        return {}
    last = "" if length is None else offset + max(length, 1) - 1
    return {"Range": f"bytes={offset}-{last}"}


def names_in(text: str | None) -> set[str]:
    """The items of a header that is a list, in lower case."""
    return {item.strip().lower() for item in (text or "").split(",")}


def is_coded(content_encoding: str | None) -> bool:
    """Whether a body with that Content-Encoding is other bytes than it stands for; some proxies send that unasked."""
    return not names_in(content_encoding) <= _NO_CODING


def whole_number(text: str | None) -> int | None:
    """A number of bytes or things, without signs, spaces between and fractions; None where there is none."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def posix_time(date: str | None) -> float | None:
    """A date in POSIX seconds; None where there is none."""
    try:
        # Of the three forms (RFC 9110, 5.6.7) one names no zone.
        return posix_seconds(email.utils.parsedate_to_datetime(date or ""))
    except (ValueError, OverflowError, TypeError):
        return None


def retry_after(value: str | None) -> float | None:
    """Seconds to wait, from the seconds or the date of a Retry-After header (RFC 9110, 10.2.3)."""
    value = value or ""
    if value.isascii() and value.isdigit() and len(value) < 10:
        return float(value)
    date = posix_time(value)
    return None if date is None else max(0.0, date - time.time())

# SPDX-License-Identifier: Apache-2.0
"""Proof: which successes of Swift are believed. Every answer passes through here; no requests are made here.

Captive portals, login pages and the error pages of proxies are "200 OK" as well, so a status proves nothing by itself.
Swift and radosgw name the transaction in each of their answers; what has no such name needs a proof of its own.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from storelib.exceptions import RemoteServiceUnavailable

Headers = Mapping[str, str]

# What only Swift and its relatives send, in answers of every kind or about what they store.
_MARKS = ("X-Trans-Id", "X-Openstack-Request-Id", "X-Timestamp")
_MD5 = re.compile(r'"?[0-9a-f]{32}"?')
# What they answer where they did what was asked for, and nothing else.
_SUCCESSES = {
    "HEAD": (200, 204),
    "GET": (200, 204, 206),
    "PUT": (201, 202),
    "POST": (201, 202, 204),
    "DELETE": (200, 202, 204),
}


def is_swifts(headers: Headers) -> bool:
    """Whether an answer, of whatever status, surely comes from an object store."""
    return any(mark in headers for mark in _MARKS)


def is_proven(method: str, status: int, headers: Headers, depth: int) -> bool:
    """Whether a success is one of Swift's; ``depth``: 0 for the account, 1 for containers, 2 for objects."""
    if status not in _SUCCESSES.get(method, ()):
        return False
    if is_swifts(headers):
        return True
    if depth == 2 and method in ("HEAD", "GET", "PUT"):
        # No page has the md5 of what it should be for its ETag.
        return _MD5.fullmatch(headers.get("Etag", "")) is not None
    # That a container is made, other requests prove soon enough; that it was there before would be a Duplicate.
    return depth == 1 and method == "PUT" and status == 201


def check(method: str, status: int, headers: Headers, depth: int, subject: str) -> None:
    """Raise the error for a success that is none."""
    if not is_proven(method, status, headers, depth):
        raise unproven(method, status, subject)


def unproven(method: str, status: int, subject: str) -> RemoteServiceUnavailable:
    """The error for it; what stood between may be gone the next time."""
    return RemoteServiceUnavailable(
        f"what answered {status} to {method} of {subject} is not Swift: a proxy, a login page or a captive portal"
    )


def entries(page: Any, subject: str) -> list[dict[str, Any]]:
    """One page of a listing of an account or a container, each entry as it should be; None is an empty one."""
    found = [] if page is None else page
    if not isinstance(found, list) or not all(map(_is_entry, found)):
        raise RemoteServiceUnavailable(f"Swift sent no listing for {subject}")
    return found


def nothing_failed(content: bytes) -> bool:
    """Whether the body of a bulk operation, whose status is always a success, says that all went well (bulk.py)."""
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(told, dict) and told.get("Errors") == [] and str(told.get("Response Status"))[:1] == "2"


def number(text: str | None) -> float | None:
    """A number of a header, 0 or more; None where there is none."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def count(text: str | None) -> int | None:
    """The same for a whole number, without signs, spaces between and fractions."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def date_in(headers: Headers, name: str) -> float | None:
    """A date of a header in POSIX seconds; None where there is none."""
    try:
        return email.utils.parsedate_to_datetime(headers.get(name, "")).timestamp()
    except (ValueError, OverflowError, TypeError):
        return None


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    size = entry.get("bytes", 0)
    named = isinstance(entry.get("name"), str) and bool(entry["name"])
    sized = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    texts = all(isinstance(entry.get(key, ""), str) for key in ("hash", "last_modified", "content_type"))
    return (named or isinstance(entry.get("subdir"), str)) and sized and texts

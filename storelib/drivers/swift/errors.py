# SPDX-License-Identifier: Apache-2.0
"""What a response of Swift means: which error it is, whether a success is believed, and what its headers tell.

Captive portals, login pages and the error pages of proxies are "200 OK" as well, so a status proves nothing by itself.
Swift and radosgw name the transaction in each of their responses; what has no such name needs a proof of its own.
Nothing a server sent is repeated in a message: it may hold what was asked, and with it a token.
"""

from __future__ import annotations

import datetime
import json
import math
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

from storelib.driver import Digest, Digests, ImageInfo
from storelib.drivers.swift.location import SwiftLocation
from storelib.exceptions import (
    BadStoreConfiguration,
    Duplicate,
    Forbidden,
    ImageChanged,
    IncompleteRead,
    RemoteServiceUnavailable,
    StorageFull,
    StorageWriteDenied,
    StoreError,
)
from storelib.times import posix_seconds
from storelib.transfer.http import errors as http_errors
from storelib.transfer.http.headers import posix_time, whole_number
from storelib.transfer.http.keystone import error_of_keystone

Headers = Mapping[str, str]

# What only Swift and its relatives send, in responses of every kind or about what they store.
_MARKS = ("X-Trans-Id", "X-Openstack-Request-Id", "X-Timestamp")
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
# What they answer where they did what was asked for, and nothing else.
_SUCCESSES = {
    "HEAD": (200, 204),
    "GET": (200, 204, 206),
    "PUT": (201, 202),
    "POST": (201, 202, 204),
    "DELETE": (200, 202, 204),
}


class ContainerMissing(BadStoreConfiguration):
    """There is no such container."""


_Meanings = Mapping[int, tuple[type[StoreError], str]]
#: What statuses mean here, with what there is to say of them.
_MEANINGS: _Meanings = {
    401: (Forbidden, "the token is not taken, not even a new one"),
    403: (Forbidden, "check roles, access control lists and quotas"),
    405: (Forbidden, "check roles, access control lists and quotas"),
    412: (ImageChanged, "it changed while it was read"),
}
_NO_CONTAINER = (ContainerMissing, "its container does not exist: make it, or set swift_store_create_container_on_put")
_WRITING: _Meanings = {
    **_MEANINGS,
    **dict.fromkeys((403, 405), (StorageWriteDenied, "check roles, access control lists and quotas")),
    **dict.fromkeys((404, 410), _NO_CONTAINER),
    412: (Duplicate, "it exists"),
    413: (StorageFull, "it is too large, or over the quota"),
    422: (RemoteServiceUnavailable, "the bytes did not arrive as they were sent"),
    # To who reads or deletes, a server of objects says so of a disk that is not mounted, which others stand in for.
    507: (StorageFull, "over the quota, or the disks are full"),
}
_READING: _Meanings = {**_MEANINGS, 409: (IncompleteRead, "a segment is missing or was replaced")}
#: Beside those that pass everywhere: how a login page or a captive portal gets between for a while (302, 303, 307), a
#: container that is not empty yet or a newer timestamp from another server (409), a token (498), a hurry (499).
_TRANSIENT = (302, 303, 307, 409, 498, 499)


def error_of_status(method: str, status: int, headers: Headers, subject: str) -> StoreError:
    """The error for a response that is not what was asked for."""
    text = f"{subject}: Swift answered {status} to {method}"
    meanings = _WRITING if method in ("PUT", "POST", "COPY") else _READING if method == "GET" else _MEANINGS
    if status in meanings:
        kind, hint = meanings[status]
        return kind(f"{text}; {hint}")
    return http_errors.error_of_status(status, headers, text, transient=status in _TRANSIENT or None)


def error_of_exception(error: Exception, subject: str) -> StoreError | None:
    """The error for what went wrong on the way to a response or in the middle of one; None if it is not known."""
    # Imported by now: whatever raised it came from there.
    from requests import exceptions as requests

    known = error_of_keystone(error, subject, "swift_store")
    if known is not None:
        return known
    if http_errors.caused_by(error, requests.InvalidURL, requests.InvalidSchema, requests.MissingSchema):
        return BadStoreConfiguration(f"{subject}: the URL of the service cannot be asked")
    return http_errors.error_of_failure(error, subject, "swift_store_cacert")


# -- Which successes are believed -------------------------------------------------------------------------------------


def is_swifts(headers: Headers) -> bool:
    """Whether a response, of whatever status, surely comes from an object store."""
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


def check_proof(method: str, status: int, headers: Headers, depth: int, subject: str) -> None:
    """Raise the error for a success that is none."""
    if not is_proven(method, status, headers, depth):
        raise unproven(method, status, subject)


def unproven(method: str, status: int, subject: str) -> RemoteServiceUnavailable:
    """The error for it; what stood between may be gone the next time."""
    return RemoteServiceUnavailable(
        f"what answered {status} to {method} of {subject} is not Swift: a proxy, a login page or a captive portal"
    )


def entries(page: Any, subject: str, *, of_objects: bool, delimited: bool) -> list[dict[str, Any]]:
    """One page of a listing of an account or a container, each entry as it should be; None is an empty one."""
    found = [] if page is None else page
    needed = {"name", "bytes", "hash"} if of_objects else {"name", "bytes"}
    if not isinstance(found, list) or not all(_is_entry(entry, needed, delimited) for entry in found):
        raise RemoteServiceUnavailable(f"Swift sent no listing for {subject}")
    return found


def nothing_failed(content: bytes) -> bool:
    """Whether the body of a bulk operation, whose status is always a success, says that all went well (bulk.py)."""
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(told, dict) and told.get("Errors") == [] and str(told.get("Response Status"))[:1] == "2"


def _is_entry(entry: Any, needed: set[str], delimited: bool) -> bool:
    if not isinstance(entry, dict):
        return False
    if delimited and "name" not in entry:
        return isinstance(entry.get("subdir"), str)
    size = entry.get("bytes", 0)
    named = entry.keys() >= needed and isinstance(entry["name"], str) and bool(entry["name"])
    sized = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    texts = all(isinstance(entry.get(key, ""), str) for key in ("hash", "last_modified", "content_type"))
    return named and sized and texts


# -- What headers hold ------------------------------------------------------------------------------------------------

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?")

TOKEN = re.compile(r"[0-9a-f]{16}")
#: Metadata of an object: the token of the add that made it, and where its segments are.
TOKEN_HEADER = "X-Object-Meta-Storelib-Token"  # noqa: S105
SEGMENTS_HEADER = "X-Object-Meta-Storelib-Segments"
#: And the digest of the whole image, as ``algorithm:hexadecimal``; the ETag of a manifest is one of ETags.
DIGEST_HEADER = "X-Object-Meta-Storelib-Digest"
_RECORDED = re.compile(r"([a-z0-9_-]+):((?:[0-9a-f]{2})+)")
#: Listings tell the content type. They tell the size of a manifest's image not always, so it is in there.
_SIZED = re.compile(r"; *x-storelib-size=([0-9]+)")
#: Metadata of an image's own container: that storelib made it, and the token of the add that did.
MADE_HEADER = "X-Container-Meta-Storelib"
CLAIM_HEADER = "X-Container-Meta-Storelib-Token"

#: On it, and beside the segments in a shared one: gc is about to remove what is there, for it belongs to no image.
DEAD_HEADER = "X-Container-Meta-Storelib-Dead"
DEAD = "dead"


def number(text: str | None) -> float | None:
    """A number of a header, 0 or more; None where there is none."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def manifest_type(size: int) -> str:
    """The content type of a manifest of an image of ``size`` bytes."""
    return f"application/octet-stream; x-storelib-size={size}"


def size_in(content_type: str) -> int | None:
    """The size in such a content type."""
    match = _SIZED.search(content_type)
    return whole_number(match[1]) if match else None


def length_of(headers: Headers) -> int | None:
    """The size of an image; of a dynamic one with many segments Swift itself does not tell it."""
    if "Content-Length" in headers:
        return whole_number(headers["Content-Length"])
    return size_in(headers.get("Content-Type", ""))


def digest_headers(digests: Digests) -> dict[str, str]:
    """What records the digest of an image."""
    if digests.multihash:
        return {DIGEST_HEADER: f"{digests.algorithm}:{digests.multihash}"}
    return {DIGEST_HEADER: f"md5:{digests.checksum}"} if digests.checksum else {}


def digest_in(headers: Headers) -> Digest | None:
    """The digest of an image: what was recorded, or the ETag of one that is no manifest."""
    recorded = _RECORDED.fullmatch(headers.get(DIGEST_HEADER, ""))
    if recorded is not None and TOKEN_HEADER in headers:
        return Digest(recorded[1], recorded[2])
    manifest = "X-Object-Manifest" in headers or headers.get("X-Static-Large-Object", "").lower() == "true"
    etag = _MD5.fullmatch(headers.get("Etag", ""))
    return Digest("md5", etag[1]) if etag is not None and not manifest else None


def segment_place(image_id: str, headers: Headers) -> tuple[str, str] | None:
    """Container and prefix of the segments of an image; None if it has none or they have no prefix in common."""
    value = headers.get("X-Object-Manifest")
    if TOKEN_HEADER in headers and SEGMENTS_HEADER in headers:
        value = headers[SEGMENTS_HEADER]
    container, slash, prefix = urllib.parse.unquote(value or "").partition("/")
    # A prefix that is none would mean the whole container.
    return (container, prefix) if slash and prefix.startswith(image_id) else None


def info_of(location: SwiftLocation, headers: Headers) -> ImageInfo:
    """What the headers of an image tell; raises StoreError if not even its size."""
    size = length_of(headers)
    if size is None:
        raise StoreError(f"Swift does not tell the size of {location}")
    modified = number(headers.get("X-Timestamp"))
    if modified is None:
        modified = posix_time(headers.get("Last-Modified"))
    return ImageInfo(location.uri, size, location.obj, modified, etag_in(headers) or None)


def etag_in(headers: Headers) -> str:
    """The ETag without its quotes; empty where there is none."""
    return headers.get("Etag", "").strip('"')


def changed_at(entry: dict[str, Any]) -> float | None:
    """When an entry of a listing was changed, if it tells."""
    match = _TIME.match(entry.get("last_modified", ""))
    try:
        whole = posix_seconds(datetime.datetime.fromisoformat(match[1] if match else ""))
    except ValueError:
        return None
    return whole + float(match[2] or 0) if match else None

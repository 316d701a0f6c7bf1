# SPDX-License-Identifier: Apache-2.0
"""What an answer of Swift, or an error of requests, keystoneauth or the socket means: the only place that knows.

Captive portals, login pages and the error pages of proxies are "200 OK" as well, so a status proves nothing by itself.
Swift and radosgw name the transaction in each of their answers; what has no such name needs a proof of its own.
Nothing a server sent is repeated in a message: it may hold what was asked, and with it a token.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

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
from storelib.transfer.http import errors as http_errors
from storelib.transfer.http.headers import retry_after

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


class ContainerMissing(BadStoreConfiguration):
    """There is no such container."""


_Meanings = Mapping[int, tuple[type[StoreError], str]]
#: What statuses mean here, with what there is to say of them.
_MEANINGS: _Meanings = {
    401: (Forbidden, "the token is not taken, not even a new one"),
    403: (Forbidden, "check roles, access control lists and quotas"),
    405: (Forbidden, "check roles, access control lists and quotas"),
    412: (ImageChanged, "it changed while it was read"),
    413: (StorageFull, "it is too large, or over the quota"),
    507: (StorageFull, "over the quota, or the disks are full"),
    422: (RemoteServiceUnavailable, "the bytes did not arrive as they were sent"),
}
_NO_CONTAINER = (ContainerMissing, "its container does not exist: make it, or set swift_store_create_container_on_put")
_WRITING: _Meanings = {
    **_MEANINGS,
    **dict.fromkeys((403, 405), (StorageWriteDenied, "check roles, access control lists and quotas")),
    **dict.fromkeys((404, 410), _NO_CONTAINER),
    412: (Duplicate, "it exists"),
}
_READING: _Meanings = {**_MEANINGS, 409: (IncompleteRead, "a segment is missing or was replaced")}
#: Beside those that pass everywhere: how a login page or a captive portal gets between for a while (302, 303, 307), a
#: container that is not empty yet or a newer timestamp from another server (409), a token (498), a hurry (499).
_PASSING = (302, 303, 307, 409, 498, 499)


def error_of_status(method: str, status: int, headers: Headers, subject: str) -> StoreError:
    """The error for an answer that is not what was asked for."""
    text = f"{subject}: Swift answered {status} to {method}"
    meanings = _WRITING if method in ("PUT", "POST", "COPY") else _READING if method == "GET" else _MEANINGS
    if status in meanings:
        kind, hint = meanings[status]
        return kind(f"{text}; {hint}")
    return http_errors.error_of_status(status, headers, text, passing=status in _PASSING or None)


def error_of_exception(error: Exception, subject: str) -> StoreError | None:
    """The error for what went wrong on the way to an answer or in the middle of one; None if it is not known."""
    # Imported by now: whatever raised it came from there.
    from requests import exceptions as requests

    known = _error_of_keystone(error, subject)
    if known is not None:
        return known
    if http_errors.caused_by(error, requests.InvalidURL, requests.InvalidSchema, requests.MissingSchema):
        return BadStoreConfiguration(f"{subject}: the URL of the service cannot be asked")
    return http_errors.error_of_failure(error, subject, "swift_store_cacert")


def _error_of_keystone(error: Exception, subject: str) -> StoreError | None:
    """The error for one of keystoneauth, which is not imported unless it is used."""
    if not type(error).__module__.startswith("keystoneauth1"):
        return None
    exceptions: Any = importlib.import_module("keystoneauth1.exceptions")

    if isinstance(error, exceptions.SSLError):
        return RemoteServiceUnavailable(
            f"the certificate of the identity service is not trusted ({subject}); set swift_store_cacert",
            transient=False,
        )
    if isinstance(error, exceptions.ConnectionError):
        return RemoteServiceUnavailable(f"the identity service does not answer ({subject})")
    if isinstance(error, (exceptions.EndpointNotFound, exceptions.EmptyCatalog)):
        return BadStoreConfiguration(
            "the catalog has no such service; see swift_store_region, _endpoint_type, _service_type and _endpoint"
        )
    if isinstance(error, exceptions.InvalidResponse):
        return RemoteServiceUnavailable(
            f"what answers at swift_store_auth_address is no identity service: a page, a redirect, a portal ({subject})"
        )
    status = getattr(error, "http_status", None)
    if status in (401, 403):
        return Forbidden(f"the identity service does not accept the credentials ({subject})")
    if status in (429, 408) or (isinstance(status, int) and status >= 500):
        headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", None) or {}
        return RemoteServiceUnavailable(
            f"the identity service answered {status} ({subject})",
            retry_after=retry_after(headers.get("Retry-After")),
        )
    return BadStoreConfiguration(f"the identity service cannot be used ({subject}): {type(error).__name__}")


# -- Which successes are believed -------------------------------------------------------------------------------------


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


def check_proof(method: str, status: int, headers: Headers, depth: int, subject: str) -> None:
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


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    size = entry.get("bytes", 0)
    named = isinstance(entry.get("name"), str) and bool(entry["name"])
    sized = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    texts = all(isinstance(entry.get(key, ""), str) for key in ("hash", "last_modified", "content_type"))
    return (named or isinstance(entry.get("subdir"), str)) and sized and texts


# -- What headers hold ------------------------------------------------------------------------------------------------


def number(text: str | None) -> float | None:
    """A number of a header, 0 or more; None where there is none."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None

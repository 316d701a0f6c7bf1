# SPDX-License-Identifier: Apache-2.0
"""What an answer of Swift, or an error of requests, keystoneauth or the socket means: the only place that knows.

Captive portals, login pages and the error pages of proxies are "200 OK" as well, so a status proves nothing by itself.
Swift and radosgw name the transaction in each of their answers; what has no such name needs a proof of its own.
Nothing a server sent is repeated in a message: it may hold what was asked, and with it a token.
"""

from __future__ import annotations

import email.utils
import importlib
import json
import math
import re
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from storelib.exceptions import (
    BadStoreConfiguration,
    Duplicate,
    Forbidden,
    ImageChanged,
    IncompleteRead,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StorageWriteDenied,
    StoreError,
)

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


def error_of_status(method: str, status: int, headers: Mapping[str, str], subject: str) -> StoreError:
    """The error for an answer that is not what was asked for."""
    writing = method in ("PUT", "POST", "COPY")
    if status in (404, 410):
        if writing:
            return ContainerMissing(
                f"the container for {subject} does not exist; make it, or set swift_store_create_container_on_put"
            )
        return NotFound(f"there is nothing at {subject}")
    if status == 401:
        return Forbidden(f"Swift does not take the token for {subject}, not even a new one")
    if status in (403, 405):
        kind = StorageWriteDenied if writing else Forbidden
        return kind(f"Swift does not allow {method} of {subject}; check roles, access control lists and quotas")
    if status in (413, 507):
        return StorageFull(f"Swift has no room for {subject}: too large, over its quota, or the disks are full")
    if status == 412:
        if writing:
            return Duplicate(f"{subject} exists")
        return ImageChanged(f"{subject} changed while it was read")
    if status == 409 and method == "GET":
        return IncompleteRead(f"a segment of {subject} is missing or was replaced")
    if status == 409:
        # A container that is not empty yet, or a newer timestamp from another server: both pass.
        return RemoteServiceUnavailable(f"Swift answered 409 to {method} of {subject}")
    if status == 422:
        return RemoteServiceUnavailable(f"the bytes of {subject} did not arrive as they were sent")
    # 302, 303 and 307 are how a login page or a captive portal gets between for a while.
    passing = status in (302, 303, 307, 408, 429, 498, 499) or (500 <= status < 600 and status != 501)
    return RemoteServiceUnavailable(
        f"Swift answered {status} to {method} of {subject}",
        transient=passing,
        retry_after=_retry_after(headers.get("Retry-After")) if passing else None,
    )


def error_of_exception(error: Exception, subject: str) -> StoreError | None:
    """The error for what went wrong on the way to an answer or in the middle of one; None if it is not known."""
    # Imported by now: whatever raised it came from there.
    import http.client
    import ssl

    import requests
    import urllib3

    chain = tuple(_chain(error))

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if caused_by(ssl.SSLCertVerificationError):
        return RemoteServiceUnavailable(
            f"the certificate of the server is not trusted ({subject}); if it should be, set swift_store_cacert",
            transient=False,
        )
    if caused_by(socket.gaierror):
        passing = any(getattr(link, "errno", None) == socket.EAI_AGAIN for link in chain)
        return RemoteServiceUnavailable(f"the host name of the server does not resolve ({subject})", transient=passing)
    known = _error_of_keystone(error, subject)
    if known is not None:
        return known
    # Before time-outs: to urllib3, a connection that was refused is one of them.
    if caused_by(http.client.IncompleteRead, ConnectionError):
        return RemoteServiceUnavailable(f"the connection was refused or cut ({subject})")
    if caused_by(TimeoutError, urllib3.exceptions.TimeoutError, requests.Timeout):
        return RemoteServiceUnavailable(f"the server did not answer in time ({subject})")
    if caused_by(requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema):
        return BadStoreConfiguration(f"the URL of the service cannot be asked ({subject})")
    if caused_by(http.client.HTTPException, urllib3.exceptions.HTTPError, requests.RequestException, OSError):
        return RemoteServiceUnavailable(f"the connection failed ({subject})")
    return None


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
            retry_after=_retry_after(headers.get("Retry-After")),
        )
    return BadStoreConfiguration(f"the identity service cannot be used ({subject}): {type(error).__name__}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it wraps: urllib3 and requests keep the original in the arguments, or as the cause."""
    for _ in range(10):
        if error is None:
            return
        yield error
        wrapped = (argument for argument in error.args if isinstance(argument, BaseException))
        error = next(wrapped, None) or getattr(error, "reason", None) or error.__cause__
        if not isinstance(error, BaseException):
            return


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, from the seconds or the date a server sent (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.isascii() and value.isdigit() and len(value) < 10:
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError, TypeError):
        return None


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

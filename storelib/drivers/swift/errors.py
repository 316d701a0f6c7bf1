# SPDX-License-Identifier: Apache-2.0
"""What an answer of Swift, or an error of requests, keystoneauth or the socket means: the only place that knows.

Nothing a server sent is repeated in a message: it may hold what was asked, and with it a token.
"""

from __future__ import annotations

import email.utils
import importlib
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

# SPDX-License-Identifier: Apache-2.0
"""What an HTTP status or an error of urllib3, http.client or the socket means: the only place that knows.

Nothing a server sent is repeated in a message.
"""

from __future__ import annotations

import email.utils
import http.client
import socket
import time
from collections.abc import Iterator, Mapping

from storelib.exceptions import (
    BadStoreUri,
    Forbidden,
    NotFound,
    RemoteServiceUnavailable,
    StoreError,
)


def error_of_status(status: int, headers: Mapping[str, str], subject: str) -> StoreError:
    """The error for an answer that is no image."""
    if status in (404, 410):
        return NotFound(f"there is no image at {subject}: the server answered {status}")
    if status in (401, 403, 451):
        return Forbidden(f"the server does not allow reading {subject}: it answered {status}")
    if status == 501:
        # "Not implemented" will not change by asking again.
        return RemoteServiceUnavailable(f"the server cannot serve {subject}: it answered 501", transient=False)
    passing = status in (408, 429) or 500 <= status < 600
    return RemoteServiceUnavailable(
        f"the server answered {status} for {subject}",
        transient=passing,
        retry_after=_retry_after(headers.get("Retry-After")) if passing else None,
    )


def error_of_exception(error: Exception, subject: str) -> StoreError | None:
    """The error for what went wrong on the way to an answer or in the middle of one; None if it is not known."""
    # Imported by now: whatever raised it came from there.
    import ssl

    import urllib3.exceptions as urllib3

    chain = tuple(_chain(error))

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if caused_by(ssl.SSLCertVerificationError):
        return RemoteServiceUnavailable(
            f"the certificate of the server is not trusted, reading {subject}; "
            "if it should be, set https_ca_certificates_file",
            transient=False,
        )
    if caused_by(socket.gaierror):
        passing = any(getattr(link, "errno", None) == socket.EAI_AGAIN for link in chain)
        return RemoteServiceUnavailable(f"the host name in {subject} does not resolve", transient=passing)
    if caused_by(urllib3.LocationParseError, http.client.InvalidURL, UnicodeError):
        return BadStoreUri(f"{subject} cannot be asked for")
    # Before time-outs: to urllib3, a connection that was refused is one of them.
    if caused_by(http.client.IncompleteRead, ConnectionError):
        return RemoteServiceUnavailable(f"the connection was refused or cut, reading {subject}")
    if caused_by(TimeoutError, urllib3.TimeoutError):
        return RemoteServiceUnavailable(f"the server did not answer in time, reading {subject}")
    if caused_by(http.client.HTTPException, urllib3.InvalidHeader):
        return RemoteServiceUnavailable(f"what answers for {subject} does not speak HTTP", transient=False)
    if caused_by(urllib3.HTTPError, OSError):
        return RemoteServiceUnavailable(f"the connection failed, reading {subject}")
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it wraps: urllib3 keeps the original in the arguments, or as the cause."""
    for _ in range(10):
        if error is None:
            return
        yield error
        wrapped = (argument for argument in error.args if isinstance(argument, BaseException))
        error = next(wrapped, error.__cause__)


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

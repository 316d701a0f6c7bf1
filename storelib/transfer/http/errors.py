# SPDX-License-Identifier: Apache-2.0
"""What a status or a failure means, through whatever library it comes. Nothing a server sent is repeated in a message.

A driver states what its protocol says otherwise, and has the last word.
"""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Iterator, Mapping

from storelib.exceptions import Forbidden, NotFound, RemoteServiceUnavailable, StoreError
from storelib.transfer.http.headers import retry_after

_KINDS: Mapping[int, type[StoreError]] = {
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    410: NotFound,
    451: Forbidden,
}

#: What http.client says of a proxy that opens no way to the server; the words of the proxy come after it.
_NO_TUNNEL = re.compile(r"Tunnel connection failed: ([0-9]{3})\b")


def is_transient(status: int) -> bool:
    """Whether asking again may help: not where a server lacks what is asked for (501, 505)."""
    return status in (408, 429) or (500 <= status < 600 and status not in (501, 505))


def error_of_status(status: int, headers: Mapping[str, str], text: str, *, transient: bool | None = None) -> StoreError:
    """The error for a status that is no success, with ``text`` for its message. None: see ``is_transient``."""
    if status in _KINDS:
        return _KINDS[status](text)
    transient = is_transient(status) if transient is None else transient
    again = retry_after(headers.get("Retry-After")) if transient else None
    return RemoteServiceUnavailable(text, transient=transient, retry_after=again)


def error_of_failure(
    error: Exception, subject: str, certificates: str, *, garbled_is_transient: bool = True
) -> RemoteServiceUnavailable | None:
    """The error for what went wrong on the way to a response or in the middle of one; None if it is not known.

    ``certificates`` is the option that names whom to trust; ``garbled_is_transient`` says whether what does not speak
    HTTP stands in for a server that does.
    """
    # Imported by now: whatever raised it came from there.
    import ssl

    import urllib3.exceptions as urllib3

    def found(what: str, transient: bool = True) -> RemoteServiceUnavailable:
        return RemoteServiceUnavailable(f"{subject}: {what}", transient=transient)

    if caused_by(error, ssl.SSLCertVerificationError):
        trust = f"the certificate of the server is not trusted; if it should be, set {certificates}"
        return found(trust, transient=False)
    if caused_by(error, socket.gaierror):
        busy = any(getattr(link, "errno", None) == socket.EAI_AGAIN for link in chain(error))
        return found("the host name of the server does not resolve", transient=busy)
    refused = proxy_refusal(error)
    if refused is not None:
        return found(f"the proxy answered {refused}", transient=is_transient(refused))
    # Before time-outs: to urllib3, a connection that was refused is one of them.
    if caused_by(error, http.client.IncompleteRead, ConnectionError):
        return found("the connection was refused or cut")
    if caused_by(error, TimeoutError, urllib3.TimeoutError):
        return found("the server did not answer in time")
    if caused_by(error, http.client.HTTPException, urllib3.InvalidHeader):
        return found("what answers does not speak HTTP", transient=garbled_is_transient)
    if caused_by(error, urllib3.HTTPError, OSError):
        return found("the connection failed")
    return None


def proxy_refusal(error: BaseException) -> int | None:
    """The status with which a proxy refused to open a way to the server; None if it was something else."""
    found = (_NO_TUNNEL.match(str(link)) for link in chain(error) if isinstance(link, OSError))
    return next((int(match[1]) for match in found if match), None)


def caused_by(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Whether the error, or one that it wraps, is of these kinds."""
    return any(isinstance(link, kinds) for link in chain(error))


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps: libraries keep that as an attribute, in the arguments or as the cause."""
    for _ in range(10):
        yield error
        kept = [getattr(error, "kwargs", {}).get("error"), getattr(error, "reason", None), *error.args, error.__cause__]
        inner = next((link for link in kept if isinstance(link, BaseException)), None)
        if inner is None:
            return
        error = inner

# SPDX-License-Identifier: Apache-2.0
"""The requests of an agent to the image API, none of which takes longer than some seconds.

No message of an error has the node's secret, a ticket or a URL in it.
"""

from __future__ import annotations

import json
import socket
import ssl
import urllib.parse
from collections.abc import Mapping
from typing import Any

import urllib3

from storelib._version import __version__
from storelib.exceptions import (
    BadStoreConfiguration,
    Duplicate,
    Forbidden,
    Invalid,
    NotFound,
    RemoteServiceUnavailable,
    StoreError,
)
from storelib.transfer.deadlines import at_most
from storelib.transfer.http.connections import pool_classes
from storelib.transfer.http.headers import retry_after

Document = dict[str, Any]
#: Seconds to connect, and between two bytes of a response.
CONNECT, READ = 5.0, 20.0
#: Seconds for all of a request: who sends a byte now and then is not waited for until the end.
WHOLE = 60.0
#: The digests of an image of 1 TiB have 32 MiB.
_LONGEST = 64 * 1024 * 1024
USER_AGENT = f"storelib-node/{__version__}"
_ERRORS: dict[int, type[StoreError]] = {401: Forbidden, 403: Forbidden, 404: NotFound, 409: Duplicate, 410: NotFound}
_RETRY = (408, 425, 429)
_REDIRECTS = (301, 302, 303, 307, 308)
#: Hops to the data of an image.
MOST_REDIRECTS = 3


class _Elsewhere(Invalid):
    """The server sends to another ``place``."""

    def __init__(self, status: int, place: str) -> None:
        super().__init__(f"the image API refuses: {status}")
        self.place = place


class Api:
    """The image API at ``url``; ``ca_file`` are the authorities to trust, the system's if None.

    Raises BadStoreConfiguration for a file that has none.
    """

    def __init__(self, url: str, ca_file: str | None = None) -> None:
        self.url = url
        try:
            context = ssl.create_default_context(cafile=ca_file)
        except OSError as error:
            raise BadStoreConfiguration(f"[node] ca_file = {ca_file} cannot be used: {error.strerror}") from error
        self._pool = urllib3.PoolManager(
            retries=False,
            # Heartbeats and data go at a time.
            maxsize=4,
            timeout=urllib3.Timeout(connect=CONNECT, read=READ),
            ssl_context=context,
            headers={"User-Agent": USER_AGENT},
        )
        self._pool.pool_classes_by_scheme = pool_classes()

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()

    def local_address(self) -> str:
        """The address from which this machine reaches the API; raises RemoteServiceUnavailable."""
        parts = urllib.parse.urlsplit(self.url)
        try:
            # Connecting a datagram socket sends nothing, and chooses the address from which it would.
            kind, *_, place = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_DGRAM)[0]
            with socket.socket(kind, socket.SOCK_DGRAM) as sock:
                sock.connect(place)
                return str(sock.getsockname()[0])
        except OSError as error:
            raise RemoteServiceUnavailable("the image API's host cannot be reached") from error

    def register(self, document: Document, headers: Mapping[str, str]) -> Document:
        """Make the node known, or more of it; raises Duplicate if the name is another node's, Forbidden."""
        return self._document("POST", "/v2/nodes", headers, document)

    def heartbeat(self, node: str, secret: str, document: Document) -> Document:
        """Tell what the node has and does; returns what it is to have."""
        return self._document("POST", f"/v2/nodes/{_quoted(node)}/heartbeat", {"X-Node-Secret": secret}, document)

    def torrent(self, path: str, secret: str) -> bytes:
        """The torrent of a job, whose path the API told."""
        return self._request("GET", self.absolute(path), {"X-Node-Secret": secret}, None, (200,))

    def read(self, url: str, offset: int, length: int) -> bytes:
        """A range of an image from where the API said, or sends to; raises Invalid if it is not that range.

        Where another server that the API sent to refuses, RemoteServiceUnavailable is raised: the ticket is still good.
        """
        headers = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
        place = self.absolute(url)
        for hops in range(MOST_REDIRECTS + 1):
            try:
                data = self._request("GET", place, headers, None, (206, 200), length)
            except _Elsewhere as redirect:
                place = redirect.place
                if not place.startswith(("http://", "https://")):
                    raise RemoteServiceUnavailable("the source is no place that can be read") from None
            except (Forbidden, NotFound) as error:
                raise RemoteServiceUnavailable("the source refuses") if hops else error from None
            else:
                break
        else:
            raise RemoteServiceUnavailable("the source is always elsewhere")
        if len(data) != length:
            raise Invalid(f"the source sent {len(data)} bytes instead of {length}")
        return data

    def absolute(self, url: str) -> str:
        """A URL that the API told, which may be one of its own paths."""
        return self.url + url if url.startswith("/") else url

    def _document(self, method: str, path: str, headers: Mapping[str, str], document: Document) -> Document:
        body = json.dumps(document).encode()
        data = self._request(method, self.url + path, {"Content-Type": "application/json", **headers}, body, (200, 201))
        try:
            found = json.loads(data)
        # Of a hundred thousand lists in each other.
        except (ValueError, RecursionError) as error:
            raise RemoteServiceUnavailable("the image API sent no JSON") from error
        if not isinstance(found, dict):
            raise RemoteServiceUnavailable("the image API sent no JSON object")
        return found

    def _request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        expected: tuple[int, ...],
        longest: int = _LONGEST,
    ) -> bytes:
        try:
            with at_most(WHOLE):
                response = self._pool.request(
                    method,
                    url,
                    body=body,
                    headers={"User-Agent": USER_AGENT, **headers},
                    preload_content=False,
                    redirect=False,
                )
                with response:
                    # A whole image instead of the range would be read for nothing.
                    whole = longest if response.status in expected else 64 * 1024
                    data: bytes = response.read(whole + 1, decode_content=True)
                    if len(data) <= whole:
                        data += response.read(whole + 1 - len(data))
                    if len(data) > whole:
                        response.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise RemoteServiceUnavailable(f"the image API does not answer: {type(error).__name__}") from error
        if response.status in expected and len(data) <= whole:
            return data
        if response.status in _REDIRECTS and (location := response.headers.get("Location")):
            try:
                place = urllib.parse.urljoin(url, location)
            except ValueError as error:
                raise RemoteServiceUnavailable("the source is no place that can be read") from error
            raise _Elsewhere(response.status, place)
        if response.status in expected:
            raise Invalid("the response is too long")
        raise _error(response.status, data, retry_after(response.headers.get("Retry-After")))


def resolved(name: str) -> str:
    """The address of a host by its name, or address; raises RemoteServiceUnavailable."""
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise RemoteServiceUnavailable(f"there is no address of {name}") from error


def _error(status: int, data: bytes, after: float | None) -> StoreError:
    kind = _ERRORS.get(status, RemoteServiceUnavailable if status >= 500 or status in _RETRY else Invalid)
    try:
        said = json.loads(data)
        said = said.get("error", said)
        text = str(said.get("message") or said.get("description") or said.get("title") or "")
    except (ValueError, AttributeError, RecursionError):
        text = ""
    return kind(f"the image API refuses: {status} {text[:200]}".rstrip(), retry_after=after)


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")

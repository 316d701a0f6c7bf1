# SPDX-License-Identifier: Apache-2.0
"""Api: requests to an image API over urllib3, and its refusals as errors that the exit codes know.

TLS is verified, nothing is redirected, every wait has an end. Nothing is repeated here but a request that a token which
ran out has spoiled.
"""

from __future__ import annotations

import json
import re
import ssl
import uuid
from collections.abc import Iterator
from typing import IO, Any, cast
from urllib.parse import quote, urlencode

import urllib3

from storelib._version import __version__
from storelib.cli.image.connection import Endpoint
from storelib.exceptions import (
    BadStoreConfiguration,
    Duplicate,
    Forbidden,
    InUseByStore,
    Invalid,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StoreError,
    causes,
)
from storelib.transfer.http.connections import pool_classes
from storelib.transfer.http.errors import is_transient

#: Bytes handed to a socket at once.
BLOCK = 1024 * 1024
PATCH = "application/openstack-images-v2.1-json-patch"
OCTETS = "application/octet-stream"
_ERRORS: dict[int, type[StoreError]] = {
    400: Invalid,
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: InUseByStore,
    410: NotFound,
    413: StorageFull,
    415: Invalid,
    416: Invalid,
    502: RemoteServiceUnavailable,
    503: RemoteServiceUnavailable,
    504: RemoteServiceUnavailable,
}

Document = dict[str, Any]


class Told(dict[str, Any]):
    """An object that an image API told of. What it should have in it, and has not, is an error of storelib."""

    def __missing__(self, name: str) -> Any:
        raise StoreError(f"what responds is no image API, or another one than this command knows: it tells no {name}")


class Api:
    """One image API. ``timeout`` is how many seconds it may be silent."""

    def __init__(self, endpoint: Endpoint, timeout: float = 300.0) -> None:
        self.url = endpoint.url
        self._identity = endpoint.identity
        context = None
        try:
            if endpoint.cacert or not endpoint.url.lower().startswith("http:"):
                # With the CAs of the system, or of SSL_CERT_FILE, which take 30 ms.
                context = ssl.create_default_context(cafile=endpoint.cacert)
        except OSError as error:
            raise BadStoreConfiguration(f"--cacert {endpoint.cacert} cannot be used: {error.strerror}") from error
        self._pool = urllib3.PoolManager(
            maxsize=4,
            blocksize=BLOCK,
            ssl_context=context,
            timeout=urllib3.Timeout(connect=min(30.0, timeout), read=timeout),
        )
        self._pool.pool_classes_by_scheme = pool_classes()

    # -- requests -----------------------------------------------------------------------------------------------------

    def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes | IO[bytes] | None = None,
        headers: dict[str, str] | None = None,
        stream: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        """The response, if it is not an error; ``stream`` leaves its body unread. Raises StoreError."""
        response = self._once(method, path, body, headers, stream, renew=False)
        if response.status == 401 and (body is None or isinstance(body, bytes)):
            response.drain_conn()
            response = self._once(method, path, body, headers, stream, renew=True)
        if response.status >= 300:
            raise _refusal(response)
        return response

    def _once(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None,
        headers: dict[str, str] | None,
        stream: bool,
        *,
        renew: bool,
    ) -> urllib3.BaseHTTPResponse:
        sent = {"User-Agent": f"storelib/{__version__}", "Accept-Encoding": "identity"}
        sent |= self._identity(renew) | (headers or {})
        try:
            return self._pool.request(
                method,
                self.url + path,
                body=body,
                headers=sent,
                retries=False,
                redirect=False,
                preload_content=not stream,
                decode_content=False,
            )
        except urllib3.exceptions.NewConnectionError as error:
            raise RemoteServiceUnavailable(
                f"nothing responds at {self.url} ({_reason(error)}); start storelib serve, or name another image API "
                "with --url or OS_IMAGE_URL"
            ) from error
        except urllib3.exceptions.SSLError as error:
            raise RemoteServiceUnavailable(
                f"{self.url} cannot be trusted: {error}; name its certificate authority with --cacert or OS_CACERT",
                transient=False,
            ) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise RemoteServiceUnavailable(f"{self.url} was lost: {_reason(error)}") from error

    def ask(self, method: str, path: str, document: Any = None, kind: str = "application/json") -> Any:
        """Send a JSON document, or none; returns the decoded one that comes back, or None where there is no body."""
        body = None if document is None else json.dumps(document).encode()
        response = self.send(method, path, body=body, headers={"Content-Type": kind} if body is not None else None)
        if not response.data and method != "GET":
            return None
        try:
            found = json.loads(response.data, object_hook=Told)
        except (ValueError, RecursionError) as error:
            raise StoreError(
                f"what responds at {self.url} is no image API: not with JSON to {method} {path}"
            ) from error
        if not isinstance(found, Told):
            raise StoreError(f"what responds at {self.url} is no image API: with no object to {method} {path}")
        return found

    # -- images -------------------------------------------------------------------------------------------------------

    def images(self, filters: list[tuple[str, str]], most: int | None = None) -> Iterator[Document]:
        """Images, page by page, at most so many."""
        if most is not None:
            filters = [*filters, ("limit", str(min(most, 1000)))]
        path: str | None = "/v2/images" + (f"?{urlencode(filters)}" if filters else "")
        count = 0
        while path:
            page = self.ask("GET", path)
            for image in page["images"]:
                if most is not None and count >= most:
                    return
                count += 1
                yield image
            path = page.get("next")

    def find(self, name_or_id: str) -> Document:
        """The image with this id, or the only one with this name; raises NotFound, Invalid for several."""
        try:
            image_id = str(uuid.UUID(name_or_id))
        except ValueError:
            pass
        else:
            try:
                return cast(Document, self.ask("GET", path_of(image_id)))
            except NotFound:
                pass
        quoted = name_or_id.replace('"', "")
        exact = [("name", f'in:"{quoted}"')] if quoted == name_or_id else []
        found = [image for image in self.images(exact) if image["name"] == name_or_id]
        found += [image for image in self.images([*exact, ("os_hidden", "true")]) if image["name"] == name_or_id]
        if not found:
            raise NotFound(f"there is no image with the id or name {name_or_id!r}")
        if len(found) > 1:
            ids = ", ".join(image["id"] for image in found[:8]) + ", ..." * (len(found) > 8)
            raise Invalid(f"there are {len(found)} images with the name {name_or_id!r}: say which by id ({ids})")
        return found[0]

    def patch(self, image_id: str, operations: list[Document]) -> Document:
        """Change an image by JSON patch."""
        return cast(Document, self.ask("PATCH", path_of(image_id), operations, PATCH))

    def upload(self, image_id: str, body: IO[bytes], size: int | None, store: str | None) -> None:
        """Send an image's data; ``size`` in bytes, None if unknown."""
        headers = {"Content-Type": OCTETS}
        if size is not None:
            headers["Content-Length"] = str(size)
        if store is not None:
            headers["X-Image-Meta-Store"] = store
        try:
            self.send("PUT", path_of(image_id, "file"), body=body, headers=headers)
        finally:
            # A server that refuses before it has read everything closes the connection, some time later.
            self._pool.clear()


def path_of(image_id: str, *below: str) -> str:
    """The path of an image, or of something below it; raises Invalid as ``path_below`` does."""
    return path_below("/v2/images", image_id, *below)


def path_below(start: str, *names: str) -> str:
    """A path of the API with such names in it, which may be any text.

    Raises Invalid for one that would make another path of it: the tag ``..`` of an image would be the image itself,
    also percent-encoded, for clients and proxies that normalize paths.
    """
    for name in names:
        if name in ("", ".", ".."):
            raise Invalid(f"{name!r} is no id or name that can be asked for")
    return "/".join((start, *(quote(name, safe="") for name in names)))


def exists_already(error: StoreError) -> StoreError:
    """What a conflict means where something was to be created."""
    return Duplicate(str(error)) if isinstance(error, InUseByStore) else error


def _refusal(response: urllib3.BaseHTTPResponse) -> StoreError:
    status = response.status
    kind = _ERRORS.get(status, StoreError)
    message = _message(response) or f"the image API responds {status} {response.reason or ''}".strip()
    if status == 401:
        message += "; give a token with --token or OS_TOKEN, or set OS_AUTH_URL, OS_USERNAME, OS_PASSWORD ..."
    return kind(message, transient=is_transient(status))


def _message(response: urllib3.BaseHTTPResponse) -> str:
    """The server's own words: storelib's and Keystone's {"error": ...}, Glance's {"message": ...}, or HTML."""
    try:
        text = response.read(64 * 1024, decode_content=False) if not response.closed else b""
        text = text or response.data
    except (urllib3.exceptions.HTTPError, OSError):
        return ""
    finally:
        response.release_conn()
    decoded = text.decode("utf-8", "replace")
    try:
        document = json.loads(decoded)
    except (ValueError, RecursionError):
        return " ".join(re.sub(r"<title>[^<]*</title>|<[^<>]*>", " ", decoded).split())[:500]
    if isinstance(document, dict):
        inner = document.get("error")
        document = inner if isinstance(inner, dict) else document
        return str(document.get("message") or document.get("title") or "")
    return ""


def _reason(error: BaseException) -> str:
    """The innermost cause, in words."""
    *_, error = causes(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__

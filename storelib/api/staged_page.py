# SPDX-License-Identifier: Apache-2.0
"""``/staged``: the data that is staged on this host, for the processes of other hosts that import it.

It needs no user. Each staged image has a token, which is in the database and nowhere else; a client with it gets that
image and no other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs

from storelib.api.errors import ApiError, DatabaseUnavailable
from storelib.api.middleware.versions import WsgiApp
from storelib.api.service.remote_staging import HEADER, PATH
from storelib.api.service.staging import Staging
from storelib.exceptions import StoreError
from storelib.transfer.contract import MiB

__all__ = ["PATH", "page"]

_TOKEN = "HTTP_" + HEADER.upper().replace("-", "_")


def page(staging: Staging) -> WsgiApp:
    """The WSGI application behind ``/staged``."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        if method not in ("GET", "HEAD"):
            return _refuse(start_response, "405 Method Not Allowed")
        asked = parse_qs(environ.get("QUERY_STRING", "")[:1000]).get("image", [""])[0]
        try:
            found = staging.serve(asked, environ.get(_TOKEN, ""))
        except DatabaseUnavailable:
            return _refuse(start_response, "503 Service Unavailable")
        except (ApiError, StoreError):
            return _refuse(start_response, "404 Not Found")
        start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(found.size))])
        if method == "HEAD":
            found.data.close()
            return []
        wrapper = environ.get("wsgi.file_wrapper")
        whole: Iterable[bytes] = wrapper(found.data, MiB) if wrapper is not None else found.data
        return whole

    return app


def _refuse(start_response: Any, status: str) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", "0")])
    return []

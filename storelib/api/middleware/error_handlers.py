# SPDX-License-Identifier: Apache-2.0
"""Errors to responses: the one table of status codes, and the JSON document that every client of the API can read."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import falcon
import falcon.inspect

from storelib import exceptions as store
from storelib.api import errors as api
from storelib.api.json_response import send

LOG = logging.getLogger(__name__)

#: Characters of a message at most.
LONGEST = 2000
#: The first class in an error's ancestry that is in here decides.
STATUSES: dict[type[Exception], int] = {
    api.BadRequest: 400,
    api.NotAuthenticated: 401,
    api.NotPermitted: 403,
    api.ResourceNotFound: 404,
    api.Conflict: 409,
    api.Gone: 410,
    api.PreconditionFailed: 412,
    api.LimitExceeded: 413,
    api.UnsupportedMediaType: 415,
    api.RangeNotSatisfiable: 416,
    api.Unavailable: 503,
    api.ApiError: 500,
    store.NotFound: 404,
    store.Duplicate: 409,
    store.StorageFull: 413,
    store.StorageWriteDenied: 503,
    store.Forbidden: 403,
    store.Invalid: 400,
    store.StoreAddDisabled: 410,
    store.OperationNotSupported: 400,
    store.RemoteServiceUnavailable: 503,
    store.TransferTimeout: 503,
    store.InUseByStore: 409,
    store.HasSnapshot: 409,
    store.IncompleteRead: 503,
    store.StoreError: 500,
}


def status_of(error: Exception) -> int:
    """The status code for an error of the service or of a store."""
    return next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)


#: What stands between the words of a message.
_BETWEEN = re.compile(r"([\s'\"(),;]+)")
#: What is told of them instead, where no more is a client's business.
_GENERAL = (api.DatabaseUnavailable, api.BadDatabase, store.BadStoreConfiguration)


def told(error: Exception) -> str:
    """The message of an error as clients get it: without URLs, paths and addresses of the servers behind this one."""
    if isinstance(error, _GENERAL):
        return (type(error).__doc__ or "").partition("\n")[0].removesuffix(" 503.")
    if isinstance(error, store.StoreError):
        words = _BETWEEN.split(str(error))
        return "".join("..." if "://" in word or word.startswith("/") else word for word in words)
    return str(error)


def respond(resp: falcon.Response, code: int, message: str) -> None:
    """Make ``resp`` the error document of this status code."""
    status = falcon.code_to_http_status(code)
    title = status.partition(" ")[2]
    # Messages quote what the client sent: it may be of any length, and JSON may have halves of characters in it.
    shown = message if len(message) <= LONGEST else f"{message[:LONGEST]} ..."
    message = shown.encode(errors="backslashreplace").decode()
    send(resp, {"error": {"code": code, "title": title, "message": message}}, status)


class ErrorHandlers:
    """Falcon's error handlers. ``challenge`` goes with a 401."""

    def __init__(self, challenge: str = "") -> None:
        self._challenge = challenge
        self._routes: Callable[[], list[falcon.inspect.RouteInfo]] = list

    def install(self, app: falcon.App) -> None:  # type: ignore[type-arg]
        """Handle everything that is raised in ``app``."""
        self._routes = lambda: falcon.inspect.inspect_routes(app)
        app.add_error_handler(Exception, self.on_unknown)
        app.add_error_handler((api.ApiError, store.StoreError), self.on_known)
        app.add_error_handler(falcon.HTTPError, self.on_http)

    def on_known(self, req: falcon.Request, resp: falcon.Response, error: Exception, params: Any) -> None:
        """An error that says what it is."""
        code = status_of(error)
        if code >= 500:
            LOG.error("%s %s: %s", req.method, req.path, error, exc_info=code == 500)
        if code == 401 and self._challenge:
            resp.set_header("WWW-Authenticate", self._challenge)
        if isinstance(error, api.RangeNotSatisfiable):
            resp.set_header("Accept-Ranges", "bytes")
            if error.size is not None:
                resp.set_header("Content-Range", f"bytes */{error.size}")
        if (after := getattr(error, "retry_after", None)) is not None:
            resp.set_header("Retry-After", str(int(after) or 1))
        resp.stream = None
        respond(resp, code, told(error))

    def on_http(self, req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError, params: Any) -> None:
        """What falcon itself finds: no such path, no such method, a header it cannot read."""
        if error.status_code == 400 and req.uri_template and req.method not in falcon.COMBINED_METHODS:
            error = falcon.HTTPMethodNotAllowed(self._methods(req.uri_template))
        if error.headers:
            resp.set_headers(error.headers)
        respond(resp, error.status_code, error.description or error.title)

    def _methods(self, path: str) -> list[str]:
        """Those of a route; falcon tells them only to clients whose method it has heard of."""
        [found] = (route.methods for route in self._routes() if route.path == path)
        return [each.method for each in found or () if not each.internal or each.method == "OPTIONS"]

    def on_unknown(self, req: falcon.Request, resp: falcon.Response, error: Exception, params: Any) -> None:
        """A mistake of ours: the log has everything, the client nothing."""
        LOG.error("%s %s failed", req.method, req.path, exc_info=error)
        resp.stream = None
        respond(resp, 500, "the server made a mistake; its log says which")

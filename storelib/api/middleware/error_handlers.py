# SPDX-License-Identifier: Apache-2.0
"""Errors to responses: the one table of status codes, and the JSON document that every client of the API can read."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import falcon
import falcon.inspect

from storelib import exceptions as store
from storelib.api import errors as api
from storelib.api.json_response import send
from storelib.api.messages import told
from storelib.api.service.preload.secrets import without_tickets

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
    api.TooManyRequests: 429,
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


def respond(req: falcon.Request, resp: falcon.Response, code: int, message: str) -> None:
    """Make ``resp`` the error document of this status code."""
    status = falcon.code_to_http_status(code)
    # It shows "HTTP" and the message, which Glance begins with the status; others show the code, too.
    if "glanceclient" in (req.user_agent or ""):
        message = f"{status}: {message}"
    title = status.partition(" ")[2]
    # Messages quote what the client sent: it may be of any length, and JSON may have halves of characters in it.
    shown = message if len(message) <= LONGEST else f"{message[:LONGEST]} ..."
    message = shown.encode(errors="backslashreplace").decode()
    send(resp, {"error": {"code": code, "title": title, "message": message}}, status)


class ErrorHandlers:
    """Falcon's error handlers. ``challenge`` goes with a 401."""

    def __init__(self, challenge: str = "") -> None:
        self._challenge = challenge
        self._methods: Callable[[str], list[str]] = lambda path: []

    def install(self, app: falcon.App) -> None:  # type: ignore[type-arg]
        """Handle everything that is raised in ``app``."""
        # Looked for once, which takes a second on a busy machine: the routes do not change any more.
        self._methods = functools.cache(lambda path: _methods_of(app, path))
        app.add_error_handler(Exception, self.on_unknown)
        app.add_error_handler((api.ApiError, store.StoreError), self.on_known)
        app.add_error_handler(falcon.HTTPError, self.on_http)

    def on_known(self, req: falcon.Request, resp: falcon.Response, error: Exception, params: Any) -> None:
        """An error that says what it is."""
        code = status_of(error)
        if code >= 500:
            LOG.error("%s %s: %s", req.method, without_tickets(req.path), error, exc_info=code == 500)
        if code == 401 and self._challenge:
            resp.set_header("WWW-Authenticate", self._challenge)
        if isinstance(error, api.RangeNotSatisfiable):
            resp.set_header("Accept-Ranges", "bytes")
            if error.size is not None:
                resp.set_header("Content-Range", f"bytes */{error.size}")
        if (after := getattr(error, "retry_after", None)) is not None:
            resp.set_header("Retry-After", str(int(after) or 1))
        resp.stream = None
        respond(req, resp, code, told(error))

    def on_http(self, req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError, params: Any) -> None:
        """What falcon itself finds: no such path, no such method, a header it cannot read."""
        if error.status_code == 400 and req.uri_template and req.method not in falcon.COMBINED_METHODS:
            error = falcon.HTTPMethodNotAllowed(self._methods(req.uri_template))
        if error.headers:
            resp.set_headers(error.headers)
        respond(req, resp, error.status_code, error.description or error.title)

    def on_unknown(self, req: falcon.Request, resp: falcon.Response, error: Exception, params: Any) -> None:
        """A mistake of ours: the log has everything, the client nothing."""
        LOG.error("%s %s failed", req.method, without_tickets(req.path), exc_info=error)
        resp.stream = None
        respond(req, resp, 500, "the server made a mistake; its log says which")


def _methods_of(app: falcon.App, path: str) -> list[str]:  # type: ignore[type-arg]
    """Those of a route; falcon tells them only to clients whose method it has heard of."""
    [found] = (route.methods for route in falcon.inspect.inspect_routes(app) if route.path == path)
    return [each.method for each in found or () if not each.internal or each.method == "OPTIONS"]

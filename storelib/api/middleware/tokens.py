# SPDX-License-Identifier: Apache-2.0
"""Callers whose token Keystone's middleware confirmed seconds ago: their next requests need not pass through it.

It takes 200 microseconds for a token that it remembers itself, as much as everything else that a small request takes.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from storelib.api.caching import BoundedCache
from storelib.api.context import Context
from storelib.api.middleware.versions import WsgiApp

#: Seconds that a caller is known, which comes on top of the middleware's own token_cache_time.
BELIEVED = 5.0
#: Callers remembered at most.
MEMORY = 1024
#: What in a token makes it valid for some requests only: with a certificate, from an address, for a path.
_CONDITIONS = frozenset({"application_credential", "bind", "oauth2_credential"})
# No client can send what is called so.
_KNOWN = "storelib.caller"
#: What Keystone's middleware says of the user's token, as Keystone does.
TOKEN_INFO = "keystone.token_info"  # noqa: S105  (not a secret)


class _Caller(NamedTuple):
    context: Context
    until: float


class Callers:
    """By their tokens. ``seconds`` as the operator wants tokens to be cached: 0 and less is not at all."""

    def __init__(self, seconds: float) -> None:
        self._seconds = min(BELIEVED, seconds)
        self._callers: BoundedCache[str, _Caller] = BoundedCache(MEMORY)

    def before(self, app: WsgiApp, checked: WsgiApp) -> WsgiApp:
        """WSGI: ``app`` for callers that are known, ``checked``, which is the middleware around it, for all others."""

        def choose(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            environ.pop(_KNOWN, None)
            environ.pop(TOKEN_INFO, None)
            caller = self._callers.get(environ.get("HTTP_X_AUTH_TOKEN", ""))
            if caller is None or caller.until < time.monotonic() or "HTTP_X_SERVICE_TOKEN" in environ:
                return checked(environ, start_response)
            environ[_KNOWN] = caller.context
            return app(environ, start_response)

        return choose

    def remember(self, environ: dict[str, Any], context: Context) -> None:
        """Know the caller whom the middleware has just confirmed."""
        token, found = environ.get("HTTP_X_AUTH_TOKEN"), environ.get(TOKEN_INFO, {}).get("token", {})
        if token is None or "HTTP_X_SERVICE_TOKEN" in environ or not _CONDITIONS.isdisjoint(found):
            return
        if "expires_at" not in found or (seconds := min(self._seconds, _seconds_until(found["expires_at"]))) <= 0:
            return
        self._callers.put(token, _Caller(context, time.monotonic() + seconds))


def known(environ: dict[str, Any]) -> Context | None:
    """The caller of a request that did not pass through the middleware."""
    return environ.get(_KNOWN)


def _seconds_until(moment: str) -> float:
    from oslo_utils import timeutils

    left: datetime.timedelta = timeutils.normalize_time(timeutils.parse_isotime(moment)) - timeutils.utcnow()
    return left.total_seconds()

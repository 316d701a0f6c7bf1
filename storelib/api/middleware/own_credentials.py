# SPDX-License-Identifier: Apache-2.0
"""Requests that bring credentials of their own, a node's secret or a ticket: nobody is asked who their caller is.

They have no user, no project and no roles. What asks Keystone is not in their way, so nothing that a client says of
itself in its headers may be believed: they are marked, and ``identity.py`` looks at the mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

#: The mark, in the environ.
OWN = "storelib.own_credentials"
_PATHS = re.compile(r"/v2/(preloads/sources/[^/]+/[^/]+|nodes/[^/]+/(heartbeat|preloads/[^/]+/torrent))/?")
_REGISTRATION = re.compile(r"/v2/nodes/?")


class OwnCredentials:
    """WSGI: ``app`` for requests with credentials of their own, ``asked`` for all others.

    With ``registration``, a node that registers and says nothing of a user is one of them.
    """

    def __init__(self, app: Any, asked: Any, *, registration: bool) -> None:
        self._app = app
        self._asked = asked
        self._registration = registration

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        found: Iterable[bytes]
        if self._brings_own(environ):
            found = self._app({**environ, OWN: True}, start_response)
        else:
            found = self._asked(environ, start_response)
        return found

    def _brings_own(self, environ: dict[str, Any]) -> bool:
        path = environ.get("PATH_INFO", "")
        if _PATHS.fullmatch(path):
            return True
        registers = self._registration and environ["REQUEST_METHOD"] == "POST" and _REGISTRATION.fullmatch(path)
        return bool(registers) and "HTTP_X_AUTH_TOKEN" not in environ and "HTTP_AUTHORIZATION" not in environ

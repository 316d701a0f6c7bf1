# SPDX-License-Identifier: Apache-2.0
"""Version negotiation, in front of everything that asks who the caller is.

``/v2.7/images``, and ``/images`` with ``Accept: application/vnd.openstack.images-v2.7``, are ``/v2/images``; the
numbers behind the point have never meant anything. Whatever is no known version gets the list of versions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from storelib.api.links import base_url

WsgiApp = Callable[[dict[str, Any], Any], Iterable[bytes]]

CURRENT = "v2.17"
#: What Glance calls its versions when it has several stores and no cache.
V2 = (CURRENT, "v2.15", "v2.13", "v2.12", "v2.11", "v2.10", *(f"v2.{minor}" for minor in range(8, -1, -1)))
V1 = ("v1.1", "v1.0")
#: The newest version of Glance that clients may name: it tells of some only where it has a cache, or one store.
NEWEST = 18
#: Version to the path its routes begin with.
PREFIXES = {
    **dict.fromkeys(("v2", *(f"v2.{minor}" for minor in range(NEWEST + 1))), "/v2"),
    **dict.fromkeys(("v1", *V1), "/v1"),
}
#: Version to its status, newest first.
LISTED = {
    **{name: "CURRENT" if name == CURRENT else "SUPPORTED" for name in V2},
    **dict.fromkeys(V1, "DEPRECATED"),
}
#: The same where images are cached, which is what these minor versions say of Glance.
LISTED_WITH_CACHE = {
    "v2.18": "CURRENT",
    **dict.fromkeys((CURRENT, "v2.16", "v2.15", "v2.14", *V2[2:]), "SUPPORTED"),
    **dict.fromkeys(V1, "DEPRECATED"),
}
_ACCEPT = re.compile(r"application/vnd\.openstack\.images-(v\d+(?:\.\d+)?)")


class VersionNegotiation:
    """WSGI: ``app`` behind, ``prefixes`` (``{"v2": "/v2"}``) are the versions it serves, ``listed`` those it tells of.

    ``pages`` are other WSGI applications by their path: health check and metrics.
    """

    def __init__(
        self,
        app: WsgiApp,
        *,
        public_endpoint: str | None = None,
        prefixes: Mapping[str, str] | None = None,
        listed: Mapping[str, str] | None = None,
        pages: Mapping[str, WsgiApp] | None = None,
    ) -> None:
        self._app = app
        self._public_endpoint = public_endpoint
        self.prefixes = dict(prefixes or PREFIXES)
        self.listed = dict(listed or LISTED)
        self._pages = dict(pages or {})

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path: str = environ.get("PATH_INFO") or "/"
        if path.startswith("/v2/") and path[4:5] not in ("", "/"):
            return self._app(environ, start_response)
        # A load balancer may ask for them with a slash at the end.
        page = self._pages.get(path.rstrip("/"))
        if page is not None:
            return page({**environ, "PATH_INFO": path.rstrip("/")}, start_response)
        if path.rstrip("/") == "/versions":
            return self._list(environ, start_response, "200 OK")
        first, _, rest = path.lstrip("/").partition("/")
        # What a catalogue has as .../v2/, some clients go on from with another slash.
        rest = rest.lstrip("/")
        prefix = self.prefixes.get(first)
        if prefix is None and (match := _ACCEPT.search(environ.get("HTTP_ACCEPT", ""))):
            prefix, rest = self.prefixes.get(match[1]), path.lstrip("/")
        # The root of v1 is a list of images, that of v2 is none of its resources.
        if prefix is None or not (rest or (prefix == "/v1" and first)):
            return self._list(environ, start_response, "300 Multiple Choices")
        return self._app({**environ, "PATH_INFO": f"{prefix}/{rest}"}, start_response)

    def _list(self, environ: dict[str, Any], start_response: Any, status: str) -> list[bytes]:
        base = base_url(environ, self._public_endpoint)
        versions = [
            {
                "id": name,
                "status": state,
                "links": [{"rel": "self", "href": f"{base}{self.prefixes[name]}/"}],
            }
            for name, state in self.listed.items()
        ]
        body = json.dumps({"versions": versions}).encode()
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

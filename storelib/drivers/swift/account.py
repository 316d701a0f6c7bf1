# SPDX-License-Identifier: Apache-2.0
"""Account: what can be asked of one Swift account, each call one request (listings: one for each page)."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from storelib.drivers.swift import proof
from storelib.drivers.swift.connection import discard
from storelib.drivers.swift.errors import error_of_status
from storelib.drivers.swift.proof import Headers
from storelib.exceptions import NotFound, RemoteServiceUnavailable
from storelib.uris import quote

if TYPE_CHECKING:
    from requests import Response

    from storelib.drivers.swift.connection import Body, Connections
    from storelib.drivers.swift.identity import Identity

# Tokens tried for one request: a second one may have ended while it was on its way.
_NEW_TOKENS = 2
# From the version on, the URL of an account is its own; before it is the service's.
_VERSION = re.compile(r"/v[0-9][0-9.]*(/.*)?\Z", re.DOTALL)


class Account:
    """Names are given as they are and percent-encoded here, each ``/`` in them included."""

    def __init__(self, connections: Connections, identity: Identity) -> None:
        self.identity = identity
        self._connections = connections

    @property
    def url(self) -> str:
        """Where the account is."""
        return self.identity.access().url

    @property
    def latency(self) -> float:
        """Seconds that its server needed for its quickest answer."""
        return self._connections.latency(self.url)

    def head(self, *names: str) -> Headers:
        """The headers of the account, a container or an object; raises NotFound."""
        return self.ask("HEAD", names).headers

    def find(self, *names: str) -> Headers | None:
        """The same; None if it is not there."""
        try:
            return self.head(*names)
        except NotFound:
            return None

    def put(
        self,
        *names: str,
        body: Body | bytes = b"",
        headers: Headers | None = None,
        query: str = "",
        extra_timeout: float = 0.0,
        accept: Collection[int] = (),
    ) -> Response:
        """Make a container or an object."""
        return self.ask("PUT", names, query, headers, body, extra_timeout=extra_timeout, accept=accept)

    def post(self, *names: str, headers: Headers) -> None:
        """Change the metadata of a container."""
        self.ask("POST", names, headers=headers)

    def find_surely(self, *names: str) -> Headers | None:
        """The same where something is removed because it is not there: also that has to be proven."""
        answer = self.ask("HEAD", names, accept=(404,))
        if answer.status_code != 404:
            return answer.headers
        if not proof.is_swifts(answer.headers):
            raise proof.unproven("HEAD", 404, _shown(names))
        return None

    def delete(self, *names: str, query: str = "") -> Response:
        """Remove a container or an object; raises NotFound."""
        answer = self.ask("DELETE", names, query, {"Accept": "application/json"}, accept=(200, 202, 204))
        proven = proof.is_proven("DELETE", answer.status_code, answer.headers, len(names))
        if not proven and self.find(*names) is not None:
            raise proof.unproven("DELETE", answer.status_code, _shown(names))
        return answer

    def get(self, *names: str, headers: Headers | None = None, query: str = "") -> Response:
        """Read; the body is still to be read when it is not one of an error, and nothing is proven."""
        return self.send("GET", names, query, headers)

    def load(self, *names: str, query: str) -> Any:
        """A JSON document; None if there is nothing at all in it."""
        response = self.ask("GET", names, query)
        try:
            return json.loads(response.content) if response.content else None
        except (ValueError, RecursionError):
            raise RemoteServiceUnavailable(f"Swift sent no JSON for {_shown(names)}") from None

    def listing(self, *names: str, prefix: str = "", delimiter: str = "") -> Iterator[dict[str, Any]]:
        """The entries of a container, or of the account, page after page; raises NotFound."""
        query = {"format": "json", "prefix": prefix, "delimiter": delimiter}
        query = {name: value for name, value in query.items() if value}
        while True:
            page = proof.entries(self.load(*names, query=urlencode(query)), _shown(names))
            yield from page
            if not page:
                return
            marker = page[-1].get("name") or page[-1]["subdir"]
            if marker == query.get("marker"):
                raise RemoteServiceUnavailable(f"Swift sends the same page of {_shown(names)} again", transient=False)
            query["marker"] = marker

    def about(self) -> dict[str, Any] | None:
        """What the service says it can do; empty if it does not tell, None if something else answered."""
        response = self._connections.send("GET", f"{_VERSION.sub('', self.url)}/info", {})
        if response.status_code != 200:
            return {} if 400 <= response.status_code < 500 else None
        try:
            found = json.loads(response.content)
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def ask(
        self,
        method: str,
        names: tuple[str, ...],
        query: str = "",
        headers: Headers | None = None,
        body: Body | bytes = b"",
        *,
        extra_timeout: float = 0.0,
        accept: Collection[int] = (),
    ) -> Response:
        """One request and its whole answer; raises what it means unless it is in ``accept`` or a proven success."""
        response = self.send(method, names, query, headers, body, extra_timeout)
        _ = response.content
        status = response.status_code
        if status in accept:
            return response
        if not 200 <= status < 300:
            raise error_of_status(method, status, response.headers, _shown(names))
        proof.check(method, status, response.headers, len(names), _shown(names))
        return response

    def send(
        self,
        method: str,
        names: tuple[str, ...],
        query: str = "",
        headers: Headers | None = None,
        body: Body | bytes = b"",
        extra_timeout: float = 0.0,
    ) -> Response:
        """One request, made again with a new token if the one it had is no longer good."""
        path = "".join(f"/{quote(name)}" for name in names) + (f"?{query}" if query else "")

        def attempt() -> tuple[Any, Response]:
            access = self.identity.access()
            sent = {**(headers or {}), "X-Auth-Token": access.token}
            return access, self._connections.send(method, access.url + path, sent, body, extra_timeout)

        access, response = attempt()
        for _ in range(_NEW_TOKENS):
            if response.status_code != 401 or not self.identity.renew(access):
                break
            discard(response)
            if not isinstance(body, bytes):
                body.rewind()
            access, response = attempt()
        return response


def present(entries: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A listing; nothing if the container is not there."""
    try:
        yield from entries
    except NotFound:
        return


def _shown(names: tuple[str, ...]) -> str:
    return "/".join(quote(name) for name in names) or "the account"

# SPDX-License-Identifier: Apache-2.0
"""HttpLocation: an http or https URL as storelib keeps it. No network, no policy."""

from __future__ import annotations

import base64
import dataclasses
import re
import urllib.parse
from dataclasses import dataclass, field

from storelib.exceptions import BadStoreUri
from storelib.uris import StoreLocation, redact, split_endpoint, unquote

DEFAULT_PORTS = {"http": 80, "https": 443}

# The standard library's splitters silently drop some of what is refused here, so the URI is taken apart by hand.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\xa0\\\u2028\u2029\ud800-\udfff]")
_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)", re.IGNORECASE)
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


@dataclass(frozen=True, repr=False)
class HttpLocation(StoreLocation):
    """``http[s]://[user[:password]@]host[:port]/path[?query]``; path and query are kept as they are written.

    Credentials of old URIs are read, percent-decoded, and never written back. Fragments are dropped.
    """

    scheme: str
    host: str
    port: int | None
    #: Path and query, as sent to the server.
    target: str
    user: str | None = field(default=None, repr=False, compare=False)
    password: str = field(default="", repr=False, compare=False)

    @classmethod
    def parse(cls, uri: str) -> HttpLocation:
        """Take a URL apart; raises BadStoreUri for anything a server could read in two ways."""
        if _FORBIDDEN.search(uri):
            raise BadStoreUri(f"spaces, control characters and backslashes must be percent-encoded in {redact(uri)!r}")
        url = _URL.match(uri)
        if url is None:
            raise BadStoreUri(f"expected http[s]://host[:port]/path, not {redact(uri)}")
        scheme, authority, target = url.groups()
        # The last "@" ends the credentials: old URIs hold passwords with an unquoted "@".
        userinfo, at, endpoint = authority.rpartition("@")
        user, _, password = userinfo.partition(":")
        # An empty port is none (RFC 9110, 4.2.3).
        host, port = split_endpoint(endpoint.removesuffix(":"), uri)
        return cls(
            scheme=scheme.lower(),
            host=host,
            port=port,
            target=_NOT_ASCII.sub(_quote_match, target if target.startswith("/") else "/" + target),
            user=unquote(user, uri) if at and userinfo else None,
            password=unquote(password, uri),
        )

    @property
    def uri(self) -> str:
        """The URL without credentials and fragment."""
        port = "" if self.port is None else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}{self.target}"

    @property
    def effective_port(self) -> int:
        """The port that is connected to."""
        return DEFAULT_PORTS[self.scheme] if self.port is None else self.port

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: what credentials belong to (RFC 6454)."""
        return self.scheme, self.host, self.effective_port

    @property
    def authorization(self) -> str | None:
        """The value of the Authorization header (RFC 7617), if the URI came with credentials."""
        if self.user is None:
            return None
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode("ascii")

    def join(self, reference: str) -> HttpLocation:
        """Where a redirect to ``reference`` leads; credentials stay only within one origin.

        Raises BadStoreUri. Credentials a server puts into a redirect are not used.
        """
        reference = re.sub(r"[^\x21-\x7e]+", _quote_bytes, reference.strip(" \t"))
        joined = self.parse(self._resolved(reference))
        same = joined.origin == self.origin
        return dataclasses.replace(joined, user=self.user if same else None, password=self.password if same else "")

    def _resolved(self, reference: str) -> str:
        """What a reference means here; its path is left as it is written unless it continues this one's."""
        start = self.uri.removesuffix(self.target)
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", reference):
            return reference
        if reference.startswith("/"):
            return f"{self.scheme}:{reference}" if reference.startswith("//") else start + reference
        try:
            return urllib.parse.urljoin(self.uri, reference)
        except ValueError:
            raise BadStoreUri(f"{redact(reference)} leads nowhere") from None


def _quote_bytes(match: re.Match[str]) -> str:
    """Percent-encode what a header holds, each of whose characters stands for one byte, of UTF-8 or of Latin-1."""
    try:
        return urllib.parse.quote(match[0].encode("latin-1").decode(), safe="")
    except UnicodeError:
        return _quote_match(match)


def _quote_match(match: re.Match[str]) -> str:
    return urllib.parse.quote(match[0], safe="")

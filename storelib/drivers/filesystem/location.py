# SPDX-License-Identifier: Apache-2.0
"""The URI of an image file."""

from __future__ import annotations

from dataclasses import dataclass

from storelib.driver import StoreLocation
from storelib.exceptions import BadStoreUri
from storelib.uris import quote, redact, scheme_of, unquote

SCHEMES = ("file", "filesystem")


@dataclass(frozen=True, repr=False)
class FileLocation(StoreLocation):
    """``file:///absolute/path``, percent-encoded; ``filesystem:`` and paths that are not encoded are read too."""

    path: str

    @classmethod
    def parse(cls, uri: str) -> FileLocation:
        """The absolute path in ``uri``; raises BadStoreUri for ``..``, hosts, queries and relative paths."""
        scheme = scheme_of(uri)
        rest = uri[len(scheme) + len("://") :]
        host, slash, path = rest.partition("/")
        if scheme not in SCHEMES or host not in ("", "localhost") or not slash:
            raise BadStoreUri(f"expected file:///absolute/path, not {redact(uri)}")
        if "?" in path or "#" in path:
            raise BadStoreUri(f"a query or fragment in {redact(uri)}; write '?' as %3F and '#' as %23")
        parts = [unquote(part, uri) for part in path.split("/") if part not in ("", ".")]
        bad = [part for part in parts if part in ("", ".", "..") or "/" in part or "\0" in part]
        if bad or not parts or path.endswith("/"):
            raise BadStoreUri(f"not the path of a file: {redact(uri)!r}")
        return cls("/" + "/".join(parts))

    @property
    def image_id(self) -> str:
        """The id of the image that is there, if one is."""
        return self.path.rpartition("/")[2]

    @property
    def uri(self) -> str:
        """The URI of this path."""
        return "file://" + "/".join(map(quote, self.path.split("/")))

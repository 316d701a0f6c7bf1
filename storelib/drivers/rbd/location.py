# SPDX-License-Identifier: Apache-2.0
"""RbdLocation: the URI of an RBD image at a snapshot. No network."""

from __future__ import annotations

import re
from dataclasses import dataclass

from storelib.exceptions import BadStoreUri
from storelib.uris import StoreLocation, quote, redact, scheme_of, unquote

SCHEME = "rbd"
#: The snapshot that makes an image readable, under the name every OpenStack service knows.
SNAPSHOT = "snap"

_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, repr=False)
class RbdLocation(StoreLocation):
    """``rbd://fsid/pool/image/snap``, ``rbd://fsid/pool/namespace/image/snap`` or ``rbd://image``.

    All parts are percent-encoded. The short form leaves cluster, pool and namespace to the store.
    """

    image: str
    snapshot: str = SNAPSHOT
    #: None in the short form.
    fsid: str | None = None
    pool: str | None = None
    namespace: str = ""

    @classmethod
    def parse(cls, uri: str) -> RbdLocation:
        """Take a URI apart; raises BadStoreUri."""
        scheme = scheme_of(uri)
        rest = uri[len(scheme) + len("://") :]
        # There is no place for credentials, so what looks like some is not taken for a name and shown as one.
        if scheme != SCHEME or _FORBIDDEN.search(rest) or "@" in rest.partition("/")[0]:
            raise _malformed(uri)
        parts = [unquote(part, uri) for part in rest.split("/")]
        # Neither librbd's tools nor URIs can name such a thing.
        if any(part in ("", ".", "..") or "/" in part or "\0" in part for part in parts):
            raise _malformed(uri)
        if len(parts) == 1:
            return cls(parts[0])
        if len(parts) == 4:
            fsid, pool, image, snapshot = parts
            return cls(image, snapshot, fsid, pool)
        if len(parts) == 5:
            fsid, pool, namespace, image, snapshot = parts
            return cls(image, snapshot, fsid, pool, namespace)
        raise _malformed(uri)

    @property
    def uri(self) -> str:
        """The URI: the short form if that is where it came from."""
        if self.fsid is None or self.pool is None:
            return f"{SCHEME}://{quote(self.image)}"
        namespace = [self.namespace] if self.namespace else []
        return f"{SCHEME}://{'/'.join(map(quote, [self.fsid, self.pool, *namespace, self.image, self.snapshot]))}"


def _malformed(uri: str) -> BadStoreUri:
    return BadStoreUri(f"expected rbd://fsid/pool/[namespace/]image/snapshot or rbd://image, not {redact(uri)!r}")

# SPDX-License-Identifier: Apache-2.0
"""GridfsLocation: the URI of an image in GridFS. No network."""

from __future__ import annotations

import re
from dataclasses import dataclass

from storelib.exceptions import BadStoreUri
from storelib.uris import StoreLocation, quote, redact, scheme_of, unquote

_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\ud800-\udfff/?#@]")


@dataclass(frozen=True, repr=False)
class GridfsLocation(StoreLocation):
    """``gridfs://id``, the id percent-encoded. Where the server is, only the configuration knows."""

    image_id: str

    @classmethod
    def parse(cls, uri: str) -> GridfsLocation:
        """Take a URI apart; raises BadStoreUri."""
        scheme = scheme_of(uri)
        quoted = uri[len(scheme) + len("://") :]
        if scheme != "gridfs" or not quoted:
            raise BadStoreUri(f"expected gridfs://id, not {redact(uri)!r}")
        if _FORBIDDEN.search(quoted):
            raise BadStoreUri(f"an id with '/', '?', '#', '@' or spaces must be percent-encoded: {redact(uri)!r}")
        return cls(unquote(quoted, uri))

    @property
    def uri(self) -> str:
        """The URI, with every character that is special in one percent-encoded."""
        return f"gridfs://{quote(self.image_id)}"

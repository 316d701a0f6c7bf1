# SPDX-License-Identifier: Apache-2.0
"""What clients are told of errors, in responses and in the records of tasks."""

from __future__ import annotations

import re

from storelib import exceptions as store
from storelib.api import errors as api

#: What stands between the words of a message.
_BETWEEN = re.compile(r"([\s'\"(),;]+)")
#: What in a word makes it a URL, a path or an address.
_PLACE = re.compile(r"://|::|(?:^|[=:|\[<{`])/|(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])")
#: What is told of them instead, where no more is a client's business.
_GENERAL = (api.DatabaseUnavailable, api.BadDatabase, store.BadStoreConfiguration)


def told(error: Exception, own: str = "", called: str | None = None) -> str:
    """The message of an error as clients get it: without URLs, paths and addresses of the servers behind this one.

    ``own`` is a URL that the client itself named, redacted, or else is ``called`` so.
    """
    if isinstance(error, _GENERAL):
        return (type(error).__doc__ or "").partition("\n")[0].removesuffix(" 503.")
    if isinstance(error, store.StoreError):
        texts = str(error).split(own) if own else [str(error)]
        return (own if called is None else called).join(map(_without_places, texts))
    return str(error)


def _without_places(text: str) -> str:
    words = _BETWEEN.split(text)
    return "".join("..." if _PLACE.search(word) else word for word in words)

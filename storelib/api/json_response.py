# SPDX-License-Identifier: Apache-2.0
"""Responses in JSON, as every version of the API and the error handlers send them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import falcon

# Made once: building an encoder costs more than encoding a small document.
encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


#: Characters of the images in one response, unless a single one has more.
LARGEST_PAGE = 32 * 1024 * 1024


def within_page(documents: Iterable[str]) -> list[str]:
    """As many of the documents, from the first on, as one response may have."""
    kept: list[str] = []
    room = LARGEST_PAGE
    for document in documents:
        room -= len(document)
        if room < 0 and kept:
            break
        kept.append(document)
    return kept


def send(resp: falcon.Response, document: Any, status: str = falcon.HTTP_200) -> None:
    """Respond with a JSON document."""
    send_encoded(resp, encode(document), status)


def send_encoded(resp: falcon.Response, text: str, status: str = falcon.HTTP_200) -> None:
    """Respond with a document that is JSON already."""
    # Halves of characters, which older versions kept, are written as JSON writes them.
    resp.data = text.encode(errors="backslashreplace")
    resp.content_type = "application/json"
    resp.status = status

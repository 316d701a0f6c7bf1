# SPDX-License-Identifier: Apache-2.0
"""Responses in JSON, as every version of the API and the error handlers send them."""

from __future__ import annotations

import json
from typing import Any

import falcon

# Made once: building an encoder costs more than encoding a small document.
encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


def send(resp: falcon.Response, document: Any, status: str = falcon.HTTP_200) -> None:
    """Respond with a JSON document."""
    send_encoded(resp, encode(document), status)


def send_encoded(resp: falcon.Response, text: str, status: str = falcon.HTTP_200) -> None:
    """Respond with a document that is JSON already."""
    resp.data = text.encode()
    resp.content_type = "application/json"
    resp.status = status

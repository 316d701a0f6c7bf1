# SPDX-License-Identifier: Apache-2.0
"""Secrets of nodes, tokens to enrol with, tickets to read with: kept as digests, and compared in constant time."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets

#: Characters of a secret or a token that is looked at at all.
LONGEST = 256


def new() -> str:
    """A secret of 256 bits."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What is kept of it. A secret of 256 bits needs no slow digest."""
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


def is_secret(given: str | None, kept: str) -> bool:
    """Whether this is the secret whose digest is kept."""
    return given is not None and len(given) <= LONGEST and hmac.compare_digest(digest(given), kept)


def ticket(secret: str, preload_id: str, place: int, granted_at: int) -> str:
    """The ticket of a node for a place it was granted at that moment: the same one at each heartbeat, and kept nowhere.

    Nobody else can know it, and it is worth nothing before its digest is in the database.
    """
    said = f"storelib ticket {preload_id} {place} {granted_at}".encode()
    return base64.urlsafe_b64encode(hmac.digest(secret.encode(), said, "sha256")).decode().rstrip("=")


#: What stands before a ticket in a path, however that is written.
_TICKET = re.compile(r"(preloads(?:/|%2F)+sources(?:/|%2F)+)[^/\s?\"'%]+", re.IGNORECASE)


def without_tickets(text: str) -> str:
    """A path, or a line with one, without the ticket in it.

    >>> without_tickets("GET /v2/preloads/sources/geheim/1 HTTP/1.1")
    'GET /v2/preloads/sources/***/1 HTTP/1.1'
    """
    return _TICKET.sub(r"\1***", text)

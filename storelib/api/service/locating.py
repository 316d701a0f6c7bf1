# SPDX-License-Identifier: Apache-2.0
"""What clients say about where data is, and whether to believe it: URIs, sizes, digests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from storelib.api.context import Context
from storelib.api.errors import BadRequest, NotPermitted
from storelib.api.service.core import Core
from storelib.driver import Store
from storelib.exceptions import BadStoreUri, NotFound, StoreError
from storelib.uris import redact, scheme_of

#: Schemes that would let a client name files of the server or other people's credentials.
RESTRICTED = frozenset({"file", "filesystem", "swift+config"})
#: Schemes of which everybody may name data; the others are the services' own.
PUBLIC_SCHEMES = ("http", "https")


def check_uri(core: Core, uri: str) -> str:
    """The scheme of a URI that a client may give for data; raises BadRequest."""
    try:
        scheme = scheme_of(uri)
    except BadStoreUri as error:
        raise BadRequest(str(error)) from error
    if scheme in RESTRICTED or scheme not in core.registry.schemes:
        raise BadRequest(f"locations of the scheme {scheme!r} are not accepted: {redact(uri)}")
    return scheme


def check_trusted(core: Core, context: Context, uri: str) -> None:
    """``check_uri``, and raise NotPermitted where only services may name data, which might be somebody else's."""
    if check_uri(core, uri) not in PUBLIC_SCHEMES and not (context.is_admin or core.policy.is_service(context)):
        raise NotPermitted("only services may name data in this kind of store")


def measure(core: Core, uri: str, context: Context) -> tuple[Store[Any], int]:
    """The store a client's URI belongs to and the size of the data there, in bytes; raises BadRequest or StoreError."""
    check_uri(core, uri)
    try:
        store = core.registry.resolve(uri, context)
        size = store.get_size(uri, context)
    except (BadStoreUri, NotFound) as error:
        raise BadRequest(f"there is no data at {redact(uri)}: {error}") from error
    except StoreError as error:
        raise BadRequest(f"the data at {redact(uri)} cannot be reached: {error}") from error
    if size == 0:
        raise BadRequest(f"the data at {redact(uri)} is empty")
    return store, size


def check_digests(validation: Mapping[str, str], algorithm: str | None = None) -> None:
    """Raise BadRequest unless these are well-formed digests, of ``algorithm`` if that is given."""
    checksum = validation.get("checksum")
    if checksum is not None and not re.fullmatch("[0-9a-f]{32}", checksum):
        raise BadRequest("checksum is not an md5 in lower-case hexadecimal digits")
    given = validation.get("os_hash_algo", "")
    if algorithm is not None and given != algorithm:
        raise BadRequest(f"os_hash_algo must be {algorithm}, not {given!r}")
    if algorithm is None and given not in ("sha1", "sha256", "sha512", "md5"):
        raise BadRequest(f"os_hash_algo must be sha1, sha256, sha512 or md5, not {given!r}")
    length = hashlib.new(given, usedforsecurity=False).digest_size * 2 if given != "blake3" else 64
    if not re.fullmatch(f"[0-9a-f]{{{length}}}", validation.get("os_hash_value", "")):
        raise BadRequest(f"os_hash_value is not a {given} in {length} lower-case hexadecimal digits")

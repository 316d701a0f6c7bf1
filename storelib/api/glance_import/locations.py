# SPDX-License-Identifier: Apache-2.0
"""The locations of images in Glance: decrypted, with the store that they are in here, and as that writes them."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from storelib.api.db.rows import dump_metadata
from storelib.api.errors import BadRequest
from storelib.api.glance_import.values import Refused, json_object, moment, needed_text
from storelib.api.service.core import own_spelling
from storelib.exceptions import BadStoreConfiguration, BadStoreUri, StoreError
from storelib.registry import Registry
from storelib.uris import redact

LOG = logging.getLogger(__name__)

#: AES's own, which is that of its vectors, too.
_BLOCK = 16


class Cipherer:
    """Decrypts what Glance encrypted with ``metadata_encryption_key``; raises BadStoreConfiguration for no such key."""

    def __init__(self, key: str) -> None:
        try:
            self._key = AES(key.encode())
        except ValueError as error:
            raise BadStoreConfiguration(
                "metadata_encryption_key must have 16, 24 or 32 bytes, as Glance wants"
            ) from error

    def decrypt(self, text: str) -> str | None:
        """The text that was encrypted; None if this key did not do it."""
        try:
            data = base64.urlsafe_b64decode(text.encode())
            decryptor = Cipher(self._key, CBC(data[:_BLOCK])).decryptor()
            padded = decryptor.update(data[_BLOCK:]) + decryptor.finalize()
            # A NUL ends the text, then come random bytes that are none.
            found = padded[: padded.rindex(b"\0")].decode()
        except (ValueError, binascii.Error):
            return None
        return found if "://" in found else None


class Places:
    """Which store of ``registry`` a location is in; ``key`` is Glance's ``metadata_encryption_key``."""

    def __init__(self, registry: Registry, key: str | None = None) -> None:
        self._registry = registry
        self._cipher = Cipherer(key) if key else None
        #: Stores that could not say how they write a location.
        self._silent: set[str] = set()

    def rows(self, locations: Sequence[Any]) -> list[dict[str, Any]]:
        """Rows of locations of one image, in their order; raises Refused."""
        found: dict[str, dict[str, Any]] = {}
        for location in locations:
            uri = self._uri(needed_text("a location", location.value))
            pending = location.status == "pending_delete"
            since = (moment("deleted_at of a location", location.deleted_at) or 0) if pending else None
            metadata = self._metadata(uri, json_object("the metadata of a location", location.meta_data))
            uri = self._spelled(uri, metadata.get("store"))
            if uri not in found or found[uri]["pending_since"] is not None:
                found[uri] = {"uri": uri, "metadata": _dumped(metadata), "pending_since": since}
        return list(found.values())

    def _uri(self, text: str) -> str:
        if "://" in text:
            return text
        if self._cipher is None:
            raise Refused("a location is no URI; if it is encrypted, Glance's metadata_encryption_key is needed")
        uri = self._cipher.decrypt(text)
        if uri is None:
            raise Refused("a location cannot be decrypted: it was encrypted with another metadata_encryption_key")
        return uri

    def _spelled(self, uri: str, name: Any) -> str:
        """As the store writes it, by which images that have the same data are known; as it is where that fails."""
        if not isinstance(name, str) or name in self._silent:
            return uri
        try:
            return own_spelling(self._registry[name], uri)
        except StoreError as error:
            # It would have to be waited for again and again.
            self._silent.add(name)
            LOG.warning(
                "locations in store %s stay as Glance wrote them until an audit in the background: %s", name, error
            )
            return uri

    def _metadata(self, uri: str, metadata: dict[str, Any]) -> dict[str, Any]:
        """With the id of the store as it is here, which may be called otherwise there, or have no name."""
        try:
            owners = [store.name for store in self._registry.owners(uri)]
        except (BadStoreUri, StoreError) as error:
            raise Refused(f"no configured store has the location {redact(uri)}: {error}") from error
        named = metadata.get("store")
        if named not in owners:
            metadata = {name: value for name, value in metadata.items() if name != "store"}
            # Of several, the first that has the data is found when it is read.
            if len(owners) == 1:
                metadata["store"] = owners[0]
        return metadata


def _dumped(metadata: dict[str, Any]) -> str:
    try:
        return dump_metadata(metadata)
    except BadRequest as error:
        raise Refused(str(error)) from error

# SPDX-License-Identifier: Apache-2.0
"""Claim: the key an image is to be published under, and how one add tells what it did itself from what others did."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from storelib.drivers.s3.answers import BadAnswer, Damaged
from storelib.drivers.s3.errors import GONE, error_code, is_kept, is_missing, refuses_extras
from storelib.exceptions import Duplicate, RemoteServiceUnavailable

if TYPE_CHECKING:
    from storelib.driver import Digests
    from storelib.drivers.s3.store import S3Store

#: Under this name the metadata of an object hold the token of the add that made it.
TOKEN = "storelib-token"  # noqa: S105  (no secret)
#: And under this one the digest of the whole image, as algorithm:hexadecimal.
DIGEST = "storelib-digest"
_REFUSED = ("PreconditionFailed", "412")
#: Two requests for one key at the same time; Amazon answers this instead of choosing one.
_CONFLICT = "ConditionalRequestConflict"


class Claim:
    """One add's claim to one key. What it publishes carries a random token in its metadata."""

    def __init__(self, store: S3Store, image_id: str) -> None:
        self.location = store.location(image_id)
        #: Parameters of every request about the object.
        self.target = {"Bucket": self.location.bucket, "Key": self.location.key}
        self._store = store
        self._call = store.client.call
        self._subject = f"image {image_id!r} in store {store.name}"
        self._token = secrets.token_hex(16)
        # A request was sent that may have published the image, whatever became of its answer.
        self._uncertain = False

    def new_object(self, digests: Digests | None = None, recorded: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Parameters of requests that make the object, with its digest where that is known by then, or ``recorded``."""
        recorded = {DIGEST: f"{digests.algorithm}:{digests.multihash}"} if digests else recorded or {}
        return {**self.target, "Metadata": {TOKEN: self._token, **recorded}, **self._store.object_settings}

    def publish(self, send: Callable[[], object], *, look: bool) -> None:
        """Send the request that makes the image visible; harmless when done again after an answer was lost.

        ``look``: the server would overwrite what is there, so see whether there is something. Raises Duplicate.
        """
        if (look or self._uncertain) and self.is_ours():
            return
        again, self._uncertain = self._uncertain, True
        try:
            send()
        except BadAnswer as error:
            # Whoever answered, the image may be there.
            if not self.is_ours():
                raise
            if isinstance(error, Damaged):
                self.take_back()
                raise
        except Exception as error:
            code = error_code(error)
            if code and not again and not self._is_passing(error):
                # The server refused: nothing of this add can be there, so there is nothing to take back.
                self._uncertain = False
                if code in _REFUSED:
                    raise self._duplicate() from error
            if code not in (*_REFUSED, _CONFLICT, *GONE):
                raise
            if self.is_ours():
                return
            if code == _CONFLICT:
                raise RemoteServiceUnavailable(f"{self._subject}: another add of this id is under way") from error
            raise

    def take_back(self) -> None:
        """Remove the image if this add published it.

        That very version, or that very ETag where the server looks at If-Match; elsewhere an image that is put in its
        place between the two requests is deleted for it.
        """
        published = self._head() if self._uncertain else None
        if published is None or not self._has_token(published):
            return
        # In a bucket with versions, no older one of the same id must come to light.
        version = published.get("VersionId") or "null"
        try:
            if version != "null":
                self._call("delete_object", **self.target, VersionId=version)
                return
        except Exception as error:
            if not is_kept(error):
                raise
            # An object lock keeps the version: a marker hides it.
        self._delete_current(published.get("ETag"))

    def _delete_current(self, etag: str | None) -> None:
        try:
            self._call("delete_object", **self.target, **({"IfMatch": etag} if etag else {}))
        except Exception as error:
            if error_code(error) in (*_REFUSED, _CONFLICT):
                return
            if not refuses_extras(error):
                raise
            self._call("delete_object", **self.target)

    def is_ours(self) -> bool:
        """Whether the image is there by this add; raises Duplicate if it is there by another."""
        published = self._head()
        if published is not None and not self._has_token(published):
            raise self._duplicate()
        return published is not None

    def _has_token(self, published: dict[str, Any]) -> bool:
        return token_of(published) == self._token

    def _is_passing(self, error: Exception) -> bool:
        known = self._store.map_error(error, self._subject)
        return known is None or known.transient

    def _head(self) -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] = self._call("head_object", **self.target, **self._store.client.customer_key)
        except Exception as error:
            if is_missing(error):
                return None
            raise
        return answer

    def _duplicate(self) -> Duplicate:
        return Duplicate(f"{self._subject} exists")


def version_of(published: Mapping[str, Any]) -> tuple[object, ...]:
    """What an answer has that is another for another object of the same key."""
    return published.get("VersionId"), published.get("ETag"), published.get("LastModified"), token_of(published)


def recorded_in(published: Mapping[str, Any]) -> dict[str, str]:
    """The digest that the metadata of an object hold, as they hold it."""
    metadata = published.get("Metadata") or {}
    return {DIGEST: metadata[DIGEST]} if DIGEST in metadata else {}


def token_of(published: Mapping[str, Any]) -> str | None:
    """The token of the add that made an object; None for objects of others."""
    token: str | None = (published.get("Metadata") or {}).get(TOKEN)
    return token

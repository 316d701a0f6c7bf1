# SPDX-License-Identifier: Apache-2.0
"""How an image becomes visible under its key, and how one add tells what it did itself from what others did.

Some servers refuse with 501 an If-None-Match, some with 400 checksums that are not in Content-MD5, some want a checksum
on every upload (object lock). What they say of it is no more than a hint, so ``adapting`` tries the other ways that the
options allow until one is taken.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from storelib.driver import Digests
from storelib.drivers.s3.bucket import Bucket, PartChecksums
from storelib.drivers.s3.errors import (
    GONE,
    BadAnswer,
    Damaged,
    error_code,
    is_kept,
    is_missing,
    refuses_extras,
    refuses_plainly,
    speaks_of,
    status_of,
)
from storelib.exceptions import Duplicate, RemoteServiceUnavailable

LOG = logging.getLogger(__name__)
T = TypeVar("T")

#: Under this name the metadata of an object hold the token of the add that made it.
TOKEN = "storelib-token"  # noqa: S105  (no secret)
#: And under this one the digest of the whole image, as algorithm:hexadecimal.
DIGEST = "storelib-digest"
_REFUSED = ("PreconditionFailed", "412")
#: Two requests for one key at the same time; Amazon answers this instead of choosing one.
_CONFLICT = "ConditionalRequestConflict"


class Publication:
    """One image under one key. What is published carries a random token in its metadata."""

    def __init__(self, bucket: Bucket, image_id: str) -> None:
        self.location = bucket.location(image_id)
        #: Parameters of every request about the object.
        self.target = {"Bucket": self.location.bucket, "Key": self.location.key}
        self._bucket = bucket
        self._call = bucket.call
        self._subject = f"image {image_id!r} in store {bucket.store_name}"
        self._token = secrets.token_hex(16)
        # A request was sent that may have published the image, whatever became of its response.
        self._uncertain = False

    def new_object(self, digests: Digests | None = None, recorded: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Parameters of requests that make the object, with its digest where that is known by then, or ``recorded``."""
        recorded = {DIGEST: f"{digests.algorithm}:{digests.multihash}"} if digests else recorded or {}
        return {**self.target, "Metadata": {TOKEN: self._token, **recorded}, **self._bucket.object_settings}

    def publish(self, send: Callable[[], object], *, look: bool) -> None:
        """Send the request that makes the image visible; harmless when done again after a response was lost.

        ``look``: the server would overwrite what is there, so see whether there is something. Raises Duplicate.
        """
        if (look or self._uncertain) and self.is_ours():
            return
        again, self._uncertain = self._uncertain, True
        try:
            send()
        except BadAnswer as error:
            # Whichever server that was, the image may be there.
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
        known = self._bucket.map_error(error, self._subject)
        return known is None or known.transient

    def _head(self) -> dict[str, Any] | None:
        try:
            return self._bucket.head(self.location)
        except Exception as error:
            if is_missing(error):
                return None
            raise

    def _duplicate(self) -> Duplicate:
        return Duplicate(f"{self._subject} exists")


def version_of(published: Mapping[str, Any]) -> tuple[object, ...]:
    """What a response has that is another for another object of the same key."""
    return published.get("VersionId"), published.get("ETag"), published.get("LastModified"), token_of(published)


def recorded_in(published: Mapping[str, Any]) -> dict[str, str]:
    """The digest that the metadata of an object hold, as they hold it."""
    metadata = published.get("Metadata") or {}
    return {DIGEST: metadata[DIGEST]} if DIGEST in metadata else {}


def token_of(published: Mapping[str, Any]) -> str | None:
    """The token of the add that made an object; None for objects of others."""
    token: str | None = (published.get("Metadata") or {}).get(TOKEN)
    return token


# -- What a server takes --------------------------------------------------------------------------------------------

#: What s3_store_checksum_algorithm = auto is, the first that the server takes.
CHECKSUMS = ("crc32", "md5", "none")

#: Which attribute of the bucket says whether a request carries If-None-Match.
Condition = Literal["conditional_put", "asks_at_completion"]


def adapting(bucket: Bucket, send: Callable[[bool, PartChecksums], T], condition: Condition | None = None) -> T:
    """``send(conditional, checksums)`` as the store does now; where the server refuses, as it takes it from now on."""
    usual = bool(condition and getattr(bucket, condition)), bucket.checksums
    try:
        return send(*usual)
    except Exception as error:
        if not refuses_extras(error):
            raise
        refusal = error
    for conditional, checksums in _others(bucket, refusal, *usual):
        try:
            response = send(conditional, checksums)
        except Exception as error:
            if refuses_extras(error):
                continue
            if refuses_plainly(error):
                raise refusal from error
            raise
        bucket.checksums = checksums
        if conditional != usual[0]:
            # A server that honours it anywhere does so in a PUT.
            bucket.conditional_put = bucket.conditional_put and condition != "conditional_put"
            bucket.asks_at_completion = False
        LOG.warning(
            "store %s: the server refuses what was asked; from now on: checksums %s, If-None-Match %s",
            bucket.store_name,
            checksums.algorithm,
            "as before" if conditional == usual[0] else "not in such requests, so adds are not atomic",
        )
        return response
    raise refusal


def _others(
    bucket: Bucket, refusal: Exception, conditional: bool, checksums: PartChecksums
) -> Iterator[tuple[bool, PartChecksums]]:
    """The other ways that the options allow, the most likely ones first."""
    about = speaks_of(refusal)
    if about in ("s3_store_storage_class", "s3_store_encryption"):
        return
    algorithms: tuple[str, ...] = ()
    if bucket.conf.s3_store_checksum_algorithm == "auto":
        algorithms = CHECKSUMS[CHECKSUMS.index(checksums.algorithm) + 1 :]
    may_drop = conditional and bucket.conf.s3_store_conditional_writes == "auto"
    sums = [PartChecksums(algorithm) for algorithm in algorithms]
    without = [(False, checksums)] if may_drop else []
    changed = [(conditional, other) for other in sums]
    if about == "s3_store_conditional_writes" or (status_of(refusal) == 501 and not about):
        yield from (*without, *changed)
    else:
        yield from (*changed, *without)
    yield from ((False, other) for other in sums if may_drop)

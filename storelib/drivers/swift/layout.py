# SPDX-License-Identifier: Apache-2.0
"""Layout: which container an image is in, and what else is called how. No requests here.

Segments are named ``<image id>/<token>/<number>``. No image id has a ``/``, so a listing with that delimiter tells
images and segments apart, even in one container; the token is new for each add.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

from storelib.drivers.swift.proof import count
from storelib.transfer.contract import Digest, Digests

TOKEN = re.compile(r"[0-9a-f]{16}")
#: Metadata of an object: the token of the add that made it, and where its segments are.
TOKEN_HEADER = "X-Object-Meta-Storelib-Token"  # noqa: S105
SEGMENTS_HEADER = "X-Object-Meta-Storelib-Segments"
#: And the digest of the whole image, as ``algorithm:hexadecimal``; the ETag of a manifest is one of ETags.
DIGEST_HEADER = "X-Object-Meta-Storelib-Digest"
_RECORDED = re.compile(r"([a-z0-9_-]+):((?:[0-9a-f]{2})+)")
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
#: Listings tell the content type. They tell the size of a manifest's image not always, so it is in there.
_SIZED = re.compile(r"; *x-storelib-size=([0-9]+)")
#: Metadata of an image's own container: that storelib made it, and the token of the add that did.
MADE_HEADER = "X-Container-Meta-Storelib"
CLAIM_HEADER = "X-Container-Meta-Storelib-Token"

#: On it, and beside the segments in a shared one: gc is about to remove what is there, for it belongs to no image.
DEAD_HEADER = "X-Container-Meta-Storelib-Dead"
DEAD = "dead"

_DIGEST = re.compile(r"[0-9a-f]{64}")
# Bytes in the name of a container: 256 in OpenStack, 255 in radosgw.
_LONGEST = 255


@dataclass(frozen=True)
class Layout:
    """The options that say so."""

    container: str
    seed: int = 0
    #: Each image has a container of its own.
    own: bool = False
    segments: str | None = None

    @property
    def containers(self) -> list[str]:
        """How the names of all containers of images begin; a ``/``, which is in no name, ends a whole one."""
        whole, several = f"{self.container}/", f"{self.container}_"
        if self.own:
            return [several]
        return [whole, several] if self.seed else [whole]

    def container_for(self, image_id: str) -> str:
        """The container of a new image."""
        if self.own:
            name = f"{self.container}_{image_id}"
            if len(name.encode()) <= _LONGEST:
                return name
            return f"{self.container}_{hashlib.sha256(image_id.encode()).hexdigest()}"
        if not self.seed:
            return self.container
        # As glance_store counts: dashes are taken along but not counted.
        start = image_id.lower()
        return f"{self.container}_{start[: self.seed + start[: self.seed].count('-')]}"

    def may_be_for(self, container: str, prefix: str) -> bool:
        """Whether an image's own container may be that of an id with this prefix."""
        rest = container.removeprefix(f"{self.container}_")
        return rest.startswith(prefix) or _DIGEST.fullmatch(rest) is not None

    def segment_container_for(self, container: str) -> str:
        """The container of the segments of an image in ``container``."""
        return container if self.own or not self.segments else self.segments

    def holds(self, container: str, image_id: str) -> bool:
        """Whether an image of that id may be in that container, with this seed or another."""
        if container == self.container:
            return not self.own
        base, mark, rest = container.partition(f"{self.container}_")
        if base or not mark or not rest:
            return False
        if self.own:
            return container == self.container_for(image_id)
        return image_id.lower().startswith(rest)


def manifest_type(size: int) -> str:
    """The content type of a manifest of an image of ``size`` bytes."""
    return f"application/octet-stream; x-storelib-size={size}"


def size_in(content_type: str) -> int | None:
    """The size in such a content type."""
    match = _SIZED.search(content_type)
    return count(match[1]) if match else None


def length_of(headers: Mapping[str, str]) -> int | None:
    """The size of an image; of a dynamic one with many segments Swift itself does not tell it."""
    if "Content-Length" in headers:
        return count(headers["Content-Length"])
    return size_in(headers.get("Content-Type", ""))


def digest_headers(digests: Digests) -> dict[str, str]:
    """What records the digest of an image."""
    if digests.multihash:
        return {DIGEST_HEADER: f"{digests.algorithm}:{digests.multihash}"}
    return {DIGEST_HEADER: f"md5:{digests.checksum}"} if digests.checksum else {}


def digest_in(headers: Mapping[str, str]) -> Digest | None:
    """The digest of an image: what was recorded, or the ETag of one that is no manifest."""
    recorded = _RECORDED.fullmatch(headers.get(DIGEST_HEADER, ""))
    if recorded is not None and TOKEN_HEADER in headers:
        return Digest(recorded[1], recorded[2])
    manifest = "X-Object-Manifest" in headers or headers.get("X-Static-Large-Object", "").lower() == "true"
    etag = _MD5.fullmatch(headers.get("Etag", ""))
    return Digest("md5", etag[1]) if etag is not None and not manifest else None


def new_token() -> str:
    """Tells what one add made from what any other made."""
    return secrets.token_hex(8)


def segment_prefix(image_id: str, token: str) -> str:
    """What the names of all segments of one add begin with."""
    return f"{image_id}/{token}/"


def segment_place(image_id: str, headers: Mapping[str, str]) -> tuple[str, str] | None:
    """Container and prefix of the segments of an image; None if it has none or they have no prefix in common."""
    value = headers.get("X-Object-Manifest")
    if TOKEN_HEADER in headers and SEGMENTS_HEADER in headers:
        value = headers[SEGMENTS_HEADER]
    container, slash, prefix = urllib.parse.unquote(value or "").partition("/")
    # A prefix that is none would mean the whole container.
    return (container, prefix) if slash and prefix.startswith(image_id) else None

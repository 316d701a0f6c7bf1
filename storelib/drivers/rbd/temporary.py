# SPDX-License-Identifier: Apache-2.0
"""Names of images under way, and the marks by which storelib knows its own leftovers from what others keep in a pool.

An image under way is called ``<image id>.storelib-<token>`` and carries the token in its metadata, too. The token
stays when the image is renamed to its id, so an id that happens to look like such a name is not taken for one.

Clones and copies inherit the metadata of their original, whoever makes them: a mark counts only on the image whose
RBD id it names.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from typing import Any

from storelib.transfer.contract import Digest, Digests

#: The token of the add that made an image, and RBD's id of that image.
TOKEN = "storelib.token"  # noqa: S105  (a name)
#: Set, to RBD's id of the image, before the snapshot of an image goes away because the image is being deleted.
DELETING = "storelib.deleting"

#: RBD's id of an image, and the digest of its bytes.
DIGEST = "storelib.digest"

_NAME = re.compile(r"(.+)\.storelib-([0-9a-f]{24})", re.DOTALL)


def new_name(image_id: str) -> tuple[str, str]:
    """A name for an image under way, and its token."""
    token = secrets.token_hex(12)
    return f"{image_id}.storelib-{token}", token


def split(name: str) -> tuple[str, str] | None:
    """Image id and token in the name of an image under way; None for other names."""
    match = _NAME.fullmatch(name)
    return (match[1], match[2]) if match else None


def mark(image: Any, key: str) -> str | None:
    """One of the marks above."""
    try:
        return str(image.metadata_get(key))
    except KeyError:
        return None


def set_token(image: Any, token: str) -> None:
    """Note which add made the image."""
    image.metadata_set(TOKEN, f"{token} {image.id()}")


def set_digest(image: Any, digests: Digests) -> None:
    """Note the digest of the image's bytes."""
    image.metadata_set(DIGEST, f"{image.id()} {digests.algorithm}:{digests.multihash}")


def digest_of(image: Any) -> Digest | None:
    """The digest that was noted for this image, and not for one from which it was cloned and then written to."""
    owner, _, digest = (mark(image, DIGEST) or "").partition(" ")
    algorithm, colon, value = digest.partition(":")
    return Digest(algorithm, value) if colon and owner == str(image.id()) else None


def is_temporary(name: str, image: Any) -> bool:
    """Whether an image with its snapshot is one under way all the same."""
    found = split(name)
    return found is not None and (mark(image, TOKEN) or "").partition(" ")[0] == found[1]


def set_deleting(image: Any) -> None:
    """Note that the image is on its way out."""
    image.metadata_set(DELETING, str(image.id()))


def unset_deleting(image: Any) -> None:
    """It stays after all."""
    with contextlib.suppress(KeyError):
        image.metadata_remove(DELETING)


def is_being_deleted(image: Any) -> bool:
    """Whether this image is on its way out, and not that from which it was cloned or copied."""
    deleting, image_id = mark(image, DELETING), str(image.id())
    if deleting is None or deleting == image_id:
        return deleting is not None
    # Earlier versions noted no id there.
    return (mark(image, TOKEN) or "").partition(" ")[2] == image_id

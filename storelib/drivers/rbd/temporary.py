# SPDX-License-Identifier: Apache-2.0
"""Names of images under way, and the marks by which storelib knows its own leftovers from what others keep in a pool.

An image under way is called ``<image id>.storelib-<token>`` and carries the token in its metadata, too. The token
stays when the image is renamed to its id, so an id that happens to look like such a name is not taken for one.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

#: The token of the add that made an image.
TOKEN = "storelib.token"  # noqa: S105  (a name)
#: Set before the snapshot of an image goes away because the image is being deleted.
DELETING = "storelib.deleting"

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


def is_temporary(name: str, image: Any) -> bool:
    """Whether an image with its snapshot is one under way all the same."""
    found = split(name)
    return found is not None and mark(image, TOKEN) == found[1]

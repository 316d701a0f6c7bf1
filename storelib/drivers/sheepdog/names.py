# SPDX-License-Identifier: Apache-2.0
"""What vdis are called: those of images like their ids, those of adds under way so that no id can look like them.

Ids have no "/", so a name with one is free for other uses. Names and tags are at most 255 bytes long.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

LONGEST = 255
_PREFIX = "storelib/"
_TEMPORARY = re.compile(r"storelib/([0-9a-f]{16})(~?)/(.+)", re.DOTALL)


def name_of(image_id: str) -> str:
    """The name of the vdi that holds an image: its id, but "/" for a first "-", which would begin an option."""
    return f"/{image_id[1:]}" if image_id.startswith("-") else image_id


def id_of(name: str) -> str | None:
    """The id of the image in the vdi with this name; None if it is none that an id would lead to."""
    if name.startswith("/"):
        return f"-{name[1:]}" if "/" not in name[1:] else None
    return None if "/" in name or name in (".", "..") else name


def is_image_name(name: str) -> bool:
    """Whether an image may be read from a vdi called so, whoever made it: one that can be an argument of dog."""
    categories = {unicodedata.category(character) for character in name}
    return (
        name not in ("", ".", "..")
        and not name.startswith(("-", _PREFIX))
        and not categories & {"Cc", "Cs"}
        and len(name.encode()) <= LONGEST
    )


class Temporary(NamedTuple):
    """The name of a vdi, or the tag of a snapshot, that belongs to one add."""

    token: str
    #: What the image is to be called, or only how that begins.
    image_id: str
    cut: bool = False

    def __str__(self) -> str:
        whole = f"{_PREFIX}{self.token}/{self.image_id}"
        if not self.cut and len(whole.encode()) <= LONGEST:
            return whole
        start = f"{_PREFIX}{self.token}~/".encode()
        return (start + self.image_id.encode()[: LONGEST - len(start)]).decode(errors="ignore")

    @classmethod
    def parse(cls, name: str) -> Temporary | None:
        """None for what is not the name of such a vdi."""
        match = _TEMPORARY.fullmatch(name)
        return cls(match[1], match[3], bool(match[2])) if match else None


def is_temporary(name: str) -> bool:
    """Whether it is a name that only storelib gives."""
    return name.startswith(_PREFIX)

# SPDX-License-Identifier: Apache-2.0
"""Vdi: one line of what ``dog vdi list -r`` prints. No commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from storelib.exceptions import StoreError

#: FLAG name id size used shared ctime vid copies tag bshift, each after one space. A tag may be empty or have spaces,
#: but is no number; versions before 0.9 print no bshift.
_LINE = re.compile(
    r"([=sc]) ((?:\\[\s\S]|[^\\ \n])*) [0-9]+ ([0-9]{1,20}) ([0-9]{1,20}) ([0-9]{1,20}) ([0-9]{1,20}) ([0-9a-fA-F]+)"
    r" \S+ ([^\n]*?)(?: ([0-9]{1,2}))?(?:\n|\Z)"
)
_ESCAPED = re.compile(r"\\([\s\S])")
#: Of clusters that do not tell: objects of 4 MiB.
_USUAL_SHIFT = "22"
#: Bytes of the largest vdi.
LARGEST = 4 << 40


class Vdi(NamedTuple):
    """A vdi, or one snapshot of it; sizes are in bytes, ``created`` in POSIX seconds."""

    name: str
    snapshot: bool
    size: int
    #: Bytes of objects of its own, and of those it has in common with others.
    used: int
    shared: int
    created: int
    vid: str
    tag: str
    #: Bytes of one object are two to the power of this.
    block_shift: int

    @property
    def stored(self) -> int:
        """Bytes of all its objects."""
        return self.used + self.shared

    @property
    def content(self) -> tuple[int, int]:
        """What is another once the vdi is being deleted: dog takes away the objects before the name."""
        return self.size, self.stored

    def has_all_of(self, other: Vdi) -> bool:
        """Whether it is as large as the other, and no object of that is missing."""
        return self.size == other.size and self.stored >= other.stored

    @property
    def identity(self) -> tuple[str, int, int, int]:
        """What is another for another vdi of the same name, and after a snapshot."""
        return self.vid, self.created, *self.content


def parse(output: bytes) -> Iterator[Vdi]:
    """The entries of a listing; raises StoreError for what does not look like one."""
    text = output.decode(errors="surrogateescape")
    position = 0
    while position < len(text):
        match = _LINE.match(text, position)
        if match is None:
            line = text[position:].partition("\n")[0]
            raise StoreError(f"dog vdi list printed a line that cannot be understood: {line[:300]!r}")
        position = match.end()
        flag, name, size, used, shared, created, vid, tag, shift = match.groups()
        yield Vdi(
            _ESCAPED.sub(r"\1", name),
            flag == "s",
            int(size),
            int(used),
            int(shared),
            int(created),
            vid,
            tag,
            int(shift or _USUAL_SHIFT),
        )

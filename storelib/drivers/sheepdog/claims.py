# SPDX-License-Identifier: Apache-2.0
"""Claim: the attribute of an image's vdi that says which add made it, and of which vdi it says so.

Attributes outlive their vdi: the next one of that name has them again. So a claim tells what the vdi was like, and one
that fits no more is nobody's. No commands.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace

from storelib.driver import Digests
from storelib.drivers.sheepdog.listing import Vdi
from storelib.transfer.contract import Digest

#: The attribute's name.
TOKEN = "storelib-token"  # noqa: S105  (no secret)
#: Stands in place of the token while the image is being deleted.
DELETING = "deleting"
_NUMBER = r"([0-9]{1,20})"
_FORM = re.compile(rf"(\S+) {_NUMBER} ([0-9a-fA-F]+) {_NUMBER} {_NUMBER} {_NUMBER} (-|[a-z][a-z0-9_-]*) (-|[0-9a-f]+)")


@dataclass(frozen=True)
class Claim:
    """What an add, or whoever deletes an image, says of a vdi."""

    token: str
    #: POSIX nanoseconds.
    made: int = 0
    #: None in attributes of earlier versions, which are no more than a token.
    vid: str | None = None
    created: int = 0
    size: int = 0
    #: Bytes of its objects.
    stored: int = 0
    #: Of the bytes of the image, hexadecimal; "-" where nobody knows.
    algorithm: str = "-"
    multihash: str = "-"

    @classmethod
    def of(cls, vdi: Vdi, token: str, digests: Digests | None = None) -> Claim:
        """The claim to a vdi as it is now."""
        known = ("-", "-") if digests is None else (digests.algorithm, digests.multihash)
        return cls(token, time.time_ns(), vdi.vid, vdi.created, vdi.size, vdi.stored, *known)

    @classmethod
    def parse(cls, text: str) -> Claim:
        """What an attribute says, whoever wrote it."""
        match = _FORM.fullmatch(text)
        if match is None:
            return cls(text)
        token, made, vid, created, size, stored, algorithm, multihash = match.groups()
        return cls(token, int(made), vid, int(created), int(size), int(stored), algorithm, multihash)

    @property
    def text(self) -> str:
        """As it stands in the attribute."""
        if self.vid is None:
            return self.token
        fields = (self.made, self.vid, self.created, self.size, self.stored, self.algorithm, self.multihash)
        return " ".join(map(str, (self.token, *fields)))

    def moved_to(self, vdi: Vdi) -> Claim:
        """The same claim to what a snapshot of the vdi made of it."""
        return replace(self, made=time.time_ns(), vid=vdi.vid, created=vdi.created, size=vdi.size, stored=vdi.stored)

    def fits(self, vdi: Vdi) -> bool:
        """Whether that vdi is meant, and not an earlier one of its name."""
        return (self.vid, self.created, self.size) == (vdi.vid, vdi.created, vdi.size)

    def misses_data(self, vdi: Vdi) -> bool:
        """Whether the vdi was deleted by half: dog takes away the objects before the name."""
        return self.fits(vdi) and vdi.stored < self.stored

    def digest_of(self, vdi: Vdi) -> Digest | None:
        """What its add noted of the image's bytes; None of an earlier vdi's, or where nothing was noted."""
        return Digest(self.algorithm, self.multihash) if self.fits(vdi) and self.multihash != "-" else None

    def rivals(self, vdi: Vdi, since: int, unbound: bool) -> bool:
        """Whether somebody claims that vdi who can mean no earlier one, since none was there at ``since``.

        Of claims that are no more than a token ``unbound`` is believed.
        """
        if self.token == DELETING:
            return False
        return unbound if self.vid is None else self.fits(vdi) and self.made >= since

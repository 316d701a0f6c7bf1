# SPDX-License-Identifier: Apache-2.0
"""Publication: how one add gives its image a name, and tells what it did itself from what others did.

A clone either makes the vdi with the final name or fails. When nobody knows which, the claim in an attribute decides:
it is set exclusively, and only by an add whose bytes are those of the vdi. Claims to earlier vdis of the name, which
dog leaves there, count for nothing.

Attributes outlive their vdi: the next one of that name has them again. So a claim tells what the vdi was like, and one
that fits no more is nobody's.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from storelib.driver import Deletion, Digest, Digests
from storelib.drivers.sheepdog.cluster import SheepdogCluster, Vdi, not_deleted
from storelib.drivers.sheepdog.errors import CommandFailed, meaning_of
from storelib.drivers.sheepdog.location import SheepdogLocation, Temporary, name_of
from storelib.exceptions import Duplicate, NotFound, StoreError
from storelib.transfer.contract import MiB
from storelib.transfer.digests import new_hasher

#: The attribute's name.
TOKEN = "storelib-token"  # noqa: S105  (no secret)
#: Stands in place of the token while the image is being deleted.
DELETING = "deleting"
_NUMBER = r"([0-9]{1,20})"
_FORM = re.compile(rf"(\S+) {_NUMBER} ([0-9a-fA-F]+) {_NUMBER} {_NUMBER} {_NUMBER} (-|[a-z][a-z0-9_-]*) (-|[0-9a-f]+)")


class Publication:
    """One add's or copy's way to the name of its image; made while no image is called so."""

    def __init__(self, cluster: SheepdogCluster, image_id: str) -> None:
        token = secrets.token_hex(8)
        #: The name of the vdi, or the tag of the snapshot, that this add works with.
        self.temporary = str(Temporary(token, image_id))
        self.location = cluster.location(name_of(image_id))
        self._name = self.location.vdi
        self._cluster = cluster
        self._subject = f"image {image_id!r} in store {cluster.store_name}"
        self._token = token
        self._digests: Digests | None = None
        self._whole: Vdi | None = None
        # A clone was asked for, and what became of it is not known; or it is known to have been made.
        self._uncertain = False
        self._cloned = False
        #: The vdi that it made, as far as it was looked at.
        self._made: Vdi | None = None
        #: POSIX nanoseconds of a moment when no vdi had the name; what was claimed before is not there any more.
        self._free_at = time.time_ns()
        #: The image is there by this add.
        self.done = False
        cluster.live.begin(token, self)

    def publish(self, source: str, tag: str, whole: Vdi, digests: Digests) -> None:
        """Clone that snapshot to the final name; harmless when done again. Raises Duplicate.

        What comes of it must be as large as ``whole`` and have as many objects, or something was taken away.
        """
        self._digests, self._whole = digests, whole
        if not self._cloned and not self._is_there():
            self._clone(source, tag)
        self._made = self._made or self._cluster.find(self._name)
        # It may be deleted as soon as it can be seen.
        if self._made is not None:
            if not self._made.has_all_of(whole):
                raise StoreError(f"{self._subject}: another client deleted what it was made of; nothing is stored")
            self._claim(self._made)
        self.done = True

    def withdraw(self) -> None:
        """Remove the image if this add published it; harmless when done again."""
        vdi = self._own()
        if vdi is not None:
            # What an attempt whose response was lost did is not there any more.
            with contextlib.suppress(NotFound):
                delete_vdi(self._cluster, vdi)

    def close(self) -> None:
        """The add has come to its end."""
        self._cluster.live.end(self._token)

    def _clone(self, source: str, tag: str) -> None:
        again, self._uncertain = self._uncertain, True
        started = time.time_ns()
        try:
            self._cluster.dog.call("clone", "-s", tag, source, self._name)
        except CommandFailed as error:
            if error.meaning is not Duplicate:
                raise
            if not again:
                # Another client's: this was the first attempt, and it was refused.
                self._uncertain = False
                raise self._duplicate() from error
            if not self._is_there():
                raise
            return
        self._cloned, self._uncertain, self._free_at = True, False, started

    def _is_there(self) -> bool:
        """After an attempt whose outcome is not known: whether it did succeed. Raises Duplicate."""
        vdi = self._cluster.find(self._name) if self._uncertain else None
        if vdi is None:
            return False
        if not self._is_same(vdi):
            raise self._duplicate()
        self._made, self._cloned = vdi, True
        return True

    def _is_same(self, vdi: Vdi) -> bool:
        """Whether the vdi is of this add by its claim, or of nobody and has the same bytes."""
        claim, digests, whole = claim_to(self._cluster, self._name), self._digests, self._whole
        if claim is not None and claim.token == self._token:
            return True
        if claim is not None and self._is_rival(claim, vdi):
            return False
        if digests is None or whole is None or not vdi.has_all_of(whole):
            return False
        return self._read_digest(digests.algorithm) == digests.multihash

    def _is_rival(self, claim: Claim, vdi: Vdi) -> bool:
        return claim.rivals(vdi, self._free_at, unbound=self._uncertain)

    def _claim(self, vdi: Vdi) -> None:
        """Write the claim; raises Duplicate if another add was quicker, with the same bytes."""
        claim = Claim.of(vdi, self._token, self._digests)

        def stands(found: Claim) -> bool:
            return found.token == self._token or self._is_rival(found, vdi)

        # It may be deleted as soon as it can be seen.
        with contextlib.suppress(NotFound):
            if set_claim(self._cluster, self._name, claim, stands).token != self._token:
                self._cloned = False
                raise self._duplicate()

    def _own(self) -> Vdi | None:
        """The vdi with the final name if this add made it."""
        try:
            if not self._cloned and not self._is_there():
                return None
        except Duplicate:
            return None
        vdi = self._cluster.find(self._name)
        made = self._made or vdi
        if vdi is None or made is None or (vdi.vid, vdi.created) != (made.vid, made.created):
            return None
        claim = claim_to(self._cluster, self._name)
        if claim is not None and claim.token != self._token and self._is_rival(claim, vdi):
            return None
        return vdi

    def _read_digest(self, algorithm: str) -> str:
        hasher = new_hasher(algorithm)
        memory = memoryview(bytearray(MiB))
        with self._cluster.dog.start("read", self._name) as running:
            while count := running.read_into(memory):
                hasher.update(memory[:count])
            running.finish()
        return hasher.hexdigest()

    def _duplicate(self) -> Duplicate:
        return Duplicate(f"{self._subject} exists")


# -- Claims -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What an add, or the deletion of an image, says of a vdi, in an attribute of that."""

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
        """What an attribute says."""
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
        """Whether another add claims that vdi, which can mean no earlier one, since none was there at ``since``.

        Of claims that are no more than a token ``unbound`` is believed.
        """
        if self.token == DELETING:
            return False
        return unbound if self.vid is None else self.fits(vdi) and self.made >= since


def claim_to(cluster: SheepdogCluster, name: str) -> Claim | None:
    """What the attribute of an image, or of an earlier vdi of its name, says of who made it."""
    text = cluster.attribute(name, TOKEN)
    return None if text is None else Claim.parse(text)


def whole_claim_to(cluster: SheepdogCluster, vdi: Vdi) -> Claim | None:
    """The claim to an image; raises NotFound if the image is being deleted, or was by half."""
    claim = claim_to(cluster, vdi.name)
    if claim is not None and claim.misses_data(vdi):
        raise NotFound(f"{cluster.location(vdi.name)} is being deleted, or was not deleted to the end")
    return claim


def set_claim(cluster: SheepdogCluster, name: str, claim: Claim, stands: Callable[[Claim], bool]) -> Claim:
    """Write a claim where there is none that ``stands``; returns the one that is there now. Raises NotFound."""
    try:
        try:
            cluster.dog.call("setattr", "-x", name, TOKEN, claim.text)
        except CommandFailed as error:
            if error.meaning is not Duplicate:
                raise
            found = claim_to(cluster, name)
            if found is not None and stands(found):
                return found
            cluster.dog.call("setattr", name, TOKEN, claim.text)
    except CommandFailed as error:
        if error.meaning is NotFound:
            raise NotFound(f"no image at {cluster.location(name)}") from error
        raise
    return claim


# -- Deleting ---------------------------------------------------------------------------------------------------


def delete_vdi(cluster: SheepdogCluster, vdi: Vdi) -> None:
    """Delete it, and see that it is gone: dog ends with 0 whatever happened. Raises NotFound.

    One that is deleted by half reads as zeros, so readers are warned before.
    """
    _delete_marked(cluster, vdi.name, _mark(cluster, vdi))


def remove(cluster: SheepdogCluster, location: SheepdogLocation, deletion: Deletion) -> None:
    """The same, of the vdi alone that was first deleted: commands know only names, and it may be another's soon."""
    found = cluster.existing(location)
    # Another one, made in the same second, has the same number, but not the mark.
    if deletion.image is not None and not _is_marked(cluster, found, deletion.image):
        raise NotFound(f"{location} was removed; there is another image now")
    deletion.image = deletion.image or _mark(cluster, found)
    _delete_marked(cluster, found.name, deletion.image)


def _mark(cluster: SheepdogCluster, vdi: Vdi) -> Claim:
    """Say that it is being deleted; returns what was said."""
    mark = Claim.of(vdi, DELETING)
    cluster.dog.call("setattr", vdi.name, TOKEN, mark.text)
    return mark


def _is_marked(cluster: SheepdogCluster, vdi: Vdi, mark: Claim) -> bool:
    return (vdi.vid, vdi.created) == (mark.vid, mark.created) and claim_to(cluster, vdi.name) == mark


def _delete_marked(cluster: SheepdogCluster, name: str, mark: Claim) -> None:
    _, complaint = cluster.dog.call("delete", name)
    if meaning_of(complaint) is NotFound:
        raise NotFound(f"no image at {cluster.location(name)}")
    left = cluster.find(name)
    # Another one, made in the same second, has the same number, and sooner or later a claim of its own.
    if left is not None and _is_marked(cluster, left, mark):
        raise not_deleted(name, complaint)

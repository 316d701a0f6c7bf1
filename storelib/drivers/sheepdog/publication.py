# SPDX-License-Identifier: Apache-2.0
"""Publication: how one add gives its image a name, and tells what it did itself from what others did.

A clone either makes the vdi with the final name or fails. When nobody knows which, the claim in an attribute decides:
it is set exclusively, and only by an add whose bytes are those of the vdi. Claims to earlier vdis of the name, which
dog leaves there, count for nothing.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import TYPE_CHECKING

from storelib.driver import Digests
from storelib.drivers.sheepdog.claims import Claim
from storelib.drivers.sheepdog.errors import CommandFailed
from storelib.drivers.sheepdog.listing import Vdi
from storelib.drivers.sheepdog.names import Temporary, name_of
from storelib.exceptions import Duplicate, NotFound, StoreError
from storelib.transfer.contract import MiB
from storelib.transfer.digests import new_hasher

if TYPE_CHECKING:
    from storelib.drivers.sheepdog.store import SheepdogStore


class Publication:
    """One add's or copy's way to the name of its image; made while no image is called so."""

    def __init__(self, store: SheepdogStore, image_id: str) -> None:
        token = secrets.token_hex(8)
        #: The name of the vdi, or the tag of the snapshot, that this add works with.
        self.temporary = str(Temporary(token, image_id))
        self.location = store.location(name_of(image_id))
        self._name = self.location.vdi
        self._store = store
        self._subject = f"image {image_id!r} in store {store.name}"
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
        store.live[token] = self

    def publish(self, source: str, tag: str, whole: Vdi, digests: Digests) -> None:
        """Clone that snapshot to the final name; harmless when done again. Raises Duplicate.

        What comes of it must be as large as ``whole`` and have as many objects, or somebody took something away.
        """
        self._digests, self._whole = digests, whole
        if not self._cloned and not self._is_there():
            self._clone(source, tag)
        self._made = self._made or self._store.find(self._name)
        # It may be deleted as soon as it can be seen.
        if self._made is not None:
            if not self._made.has_all_of(whole):
                raise StoreError(f"{self._subject}: somebody deleted what it was made of; nothing is stored")
            self._claim(self._made)
        self.done = True

    def withdraw(self) -> None:
        """Remove the image if this add published it; harmless when done again."""
        vdi = self._own()
        if vdi is not None:
            # What an attempt whose answer was lost did is not there any more.
            with contextlib.suppress(NotFound):
                self._store.delete_vdi(vdi)

    def close(self) -> None:
        """The add has come to its end."""
        self._store.live.pop(self._token, None)

    def _clone(self, source: str, tag: str) -> None:
        again, self._uncertain = self._uncertain, True
        started = time.time_ns()
        try:
            self._store.dog.call("clone", "-s", tag, source, self._name)
        except CommandFailed as error:
            if error.meaning is not Duplicate:
                raise
            if not again:
                # Somebody else's: this was the first attempt, and it was refused.
                self._uncertain = False
                raise self._duplicate() from error
            if not self._is_there():
                raise
            return
        self._cloned, self._uncertain, self._free_at = True, False, started

    def _is_there(self) -> bool:
        """After an attempt whose outcome is not known: whether it did succeed. Raises Duplicate."""
        vdi = self._store.find(self._name) if self._uncertain else None
        if vdi is None:
            return False
        if not self._is_same(vdi):
            raise self._duplicate()
        self._made, self._cloned = vdi, True
        return True

    def _is_same(self, vdi: Vdi) -> bool:
        """Whether the vdi is of this add by its claim, or of nobody and has the same bytes."""
        claim, digests, whole = self._store.claim(self._name), self._digests, self._whole
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
            if self._store.set_claim(self._name, claim, stands).token != self._token:
                self._cloned = False
                raise self._duplicate()

    def _own(self) -> Vdi | None:
        """The vdi with the final name if this add made it."""
        try:
            if not self._cloned and not self._is_there():
                return None
        except Duplicate:
            return None
        vdi = self._store.find(self._name)
        made = self._made or vdi
        if vdi is None or made is None or (vdi.vid, vdi.created) != (made.vid, made.created):
            return None
        claim = self._store.claim(self._name)
        if claim is not None and claim.token != self._token and self._is_rival(claim, vdi):
            return None
        return vdi

    def _read_digest(self, algorithm: str) -> str:
        hasher = new_hasher(algorithm)
        memory = memoryview(bytearray(MiB))
        with self._store.dog.start("read", self._name) as running:
            while count := running.read_into(memory):
                hasher.update(memory[:count])
            running.finish()
        return hasher.hexdigest()

    def _duplicate(self) -> Duplicate:
        return Duplicate(f"{self._subject} exists")

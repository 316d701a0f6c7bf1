# SPDX-License-Identifier: Apache-2.0
"""Publication: how one add gives its image a name, and tells what it did itself from what others did.

A clone either makes the vdi with the final name or fails. When nobody knows which, the token in an attribute decides:
it is set exclusively, and only by an add whose bytes are those of the vdi.
"""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING

from storelib.driver import Digests
from storelib.drivers.sheepdog.errors import CommandFailed
from storelib.drivers.sheepdog.names import Temporary, name_of
from storelib.exceptions import Duplicate, NotFound
from storelib.transfer.contract import MiB
from storelib.transfer.digests import new_hasher

if TYPE_CHECKING:
    from storelib.drivers.sheepdog.store import SheepdogStore

#: The attribute of an image that says which add made it.
TOKEN = "storelib-token"  # noqa: S105  (no secret)
#: Stands there instead while the image is being deleted.
DELETING = "deleting"


class Publication:
    """One add's or copy's way to the name of its image."""

    def __init__(self, store: SheepdogStore, image_id: str) -> None:
        token = secrets.token_hex(8)
        #: The name of the vdi, or the tag of the snapshot, that this add works with.
        self.temporary = str(Temporary(token, image_id))
        self.location = store.location(name_of(image_id))
        self._store = store
        self._subject = f"image {image_id!r} in store {store.name}"
        self._token = token
        self._digests: Digests | None = None
        # A clone was asked for, and what became of it is not known; or it is known to have been made.
        self._uncertain = False
        self._cloned = False
        self._withdrawing = False
        #: The image is there by this add.
        self.done = False
        store.live[token] = self

    def publish(self, source: str, tag: str, digests: Digests) -> None:
        """Clone that snapshot to the final name; harmless when done again. Raises Duplicate."""
        self._digests = digests
        if not self._cloned and not self._is_there():
            self._clone(source, tag)
        self._claim()
        self.done = True

    def withdraw(self) -> None:
        """Remove the image if this add published it; harmless when done again."""
        if not self._withdrawing and not self._is_own():
            return
        if self._store.token(self.location.vdi) in (self._token, DELETING):
            self._withdrawing = True
            # What an attempt whose answer was lost did is not there any more.
            with contextlib.suppress(NotFound):
                self._store.delete_image(self.location.vdi)

    def close(self) -> None:
        """The add has come to its end."""
        self._store.live.pop(self._token, None)

    def _clone(self, source: str, tag: str) -> None:
        again, self._uncertain = self._uncertain, True
        try:
            self._store.dog.call("clone", "-s", tag, source, self.location.vdi)
        except CommandFailed as error:
            if error.meaning is not Duplicate:
                raise
            if not again:
                # Somebody else's: this was the first attempt, and it was refused.
                self._uncertain = False
                raise self._duplicate() from error
            self._check_same(self._digests)
        self._cloned, self._uncertain = True, False

    def _is_there(self) -> bool:
        """After an attempt whose outcome is not known: whether it did succeed. Raises Duplicate."""
        if not self._uncertain or self._store.find(self.location.vdi) is None:
            return False
        self._check_same(self._digests)
        self._cloned, self._uncertain = True, False
        return True

    def _is_own(self) -> bool:
        try:
            if self._cloned or self._is_there():
                self._claim()
                return self._store.token(self.location.vdi) == self._token
        except Duplicate:
            pass
        return False

    def _check_same(self, digests: Digests | None) -> None:
        """Raise Duplicate unless the vdi is of this add by its token, or of nobody and has the same bytes."""
        owner = self._store.token(self.location.vdi)
        if owner == self._token:
            return
        if owner is not None or digests is None or self._read_digest(digests.algorithm) != digests.multihash:
            raise self._duplicate()

    def _claim(self) -> None:
        """Write the token into the image; raises Duplicate if another add was quicker, with the same bytes."""
        try:
            self._store.dog.call("setattr", "-x", self.location.vdi, TOKEN, self._token)
        except CommandFailed as error:
            if error.meaning is Duplicate and self._store.token(self.location.vdi) != self._token:
                self._cloned = False
                raise self._duplicate() from error
            # It may be deleted as soon as it can be seen.
            if error.meaning not in (Duplicate, NotFound):
                raise

    def _read_digest(self, algorithm: str) -> str:
        hasher = new_hasher(algorithm)
        memory = memoryview(bytearray(MiB))
        with self._store.dog.start("read", self.location.vdi) as running:
            while count := running.read_into(memory):
                hasher.update(memory[:count])
            running.finish()
        return hasher.hexdigest()

    def _duplicate(self) -> Duplicate:
        return Duplicate(f"{self._subject} exists")

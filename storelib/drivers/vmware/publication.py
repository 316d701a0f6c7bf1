# SPDX-License-Identifier: Apache-2.0
"""How an image becomes visible under its id, and how one add tells what it did itself from what others did.

Each add has a token. Its bytes go into a file that is named by it, in a directory beside the images; moving that file
to the name of the image publishes it, and fails where there is one.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Sequence

from storelib.driver import Committed
from storelib.drivers.vmware.errors import is_fault, storelib_error
from storelib.drivers.vmware.options import Target
from storelib.drivers.vmware.vcenter import Datastores, File
from storelib.exceptions import Duplicate, Invalid, StorageFull, StoreError

LOG = logging.getLogger(__name__)

#: In the directory of the images: where those are that are not whole yet. No image can have this id.
UPLOADS = ".storelib-uploads"
#: Bytes that the name of a file may have.
_LONGEST_NAME = 255
_TEMPORARY = re.compile(r"(.*)\.([0-9a-f]{24})(\+?)", re.DOTALL)
#: Seconds that another add of this id has to see that it was too late, where both have published.
_WITHDRAWAL = 5.0
_LOOK_AGAIN = 0.05
#: Characters that XML cannot carry.
_NOT_IN_XML = re.compile("[\ufffe\uffff]")


class Publication:
    """One image on its way into one datastore of a store."""

    def __init__(self, datastores: Datastores, image_id: str, target: Target) -> None:
        self.datastores = datastores
        self.target = target
        self.location = datastores.location(target, image_id)
        self.subject = f"image {image_id!r} in store {datastores.store_name}"
        #: The file with the bytes, once it is whole.
        self.sealed: File | None = None
        self._image_id = image_id
        self._name = (*datastores.directory, image_id)
        # Every temporary name that something was, or may have been, written to.
        self._tried: list[str] = []
        # The request that moves the file was sent.
        self._moving = False
        self._published = False

    # -- Before it is visible ---------------------------------------------------------------------------------

    def refuse_duplicate(self) -> None:
        """Raise Duplicate where there is such an image, in whichever datastore that can be reached."""
        for target in self._reachable():
            if self.datastores.size(target, self._name) is not None:
                raise self._duplicate()

    def new_file(self) -> Sequence[str]:
        """The names on the way to a temporary file that nothing was written to yet."""
        name = temporary_name(self._image_id)
        self.datastores.live.begin(name, self)
        self._tried.append(name)
        return self._temporary

    @property
    def _temporary(self) -> Sequence[str]:
        return (*self.datastores.directory, UPLOADS, self._tried[-1])

    def seal(self, size: int) -> None:
        """See that all bytes have arrived: vCenter answers a PUT with success also where the datastore got full."""
        found = self.datastores.find(self.target, self._temporary)
        if found is None:
            raise StoreError(f"{self.subject}: its file was removed while it was under way")
        if found.size != size:
            self.check_room(size - found.size)
            raise StoreError(f"{self.subject}: {found.size} bytes have arrived of {size}")
        self.sealed = found

    def check_room(self, missing: int) -> None:
        """Raise StorageFull where so many bytes more would not fit."""
        room = self.datastores.rooms(refresh=True)[self.target]
        if room.free < missing:
            raise StorageFull(f"{self.subject}: {self.target} has no room for {missing} bytes more")

    # -- Making it visible ------------------------------------------------------------------------------------

    def publish(self) -> Committed:
        """Move the file to its name; harmless when done again after a response was lost. Raises Duplicate."""
        others = [target for target in self._reachable() if target != self.target]
        if not self._published:
            for target in others:
                if self.datastores.size(target, self._name) is not None:
                    raise self._duplicate()
            self._move()
        if not all(self._is_alone(target) for target in others):
            self._withdraw()
            raise self._duplicate()
        try:
            self._remove_temporary(self._tried[:-1])
        except Exception as error:  # noqa: BLE001  (the image is there; gc finds the rest)
            LOG.warning("%s: removing what was sent before: %s", self.subject, storelib_error(error, "a file"))
        return Committed(self.location)

    def _move(self) -> None:
        again, self._moving = self._moving, True
        try:
            self.datastores.move(self.target, self._temporary, self._name)
        except Exception as error:
            if not is_fault(error, "FileAlreadyExists", "FileNotFound"):
                raise
            if not again and is_fault(error, "FileAlreadyExists"):
                self._moving = False
                raise self._duplicate() from error
            if not self._is_there():
                raise self._lost_race(error) from error
        self._published = True

    def _lost_race(self, error: Exception) -> StoreError:
        if is_fault(error, "FileAlreadyExists"):
            return self._duplicate()
        return StoreError(f"{self.subject}: its file was removed while it was under way")

    def _is_there(self) -> bool:
        """This add has published the image: the file of that name is the one that was sealed.

        Where times have no fractions, the image of another add may look the same; but then this file was not moved.
        """
        found = self.datastores.find(self.target, self._name)
        if found is None or self.sealed is None or found.version != self.sealed.version:
            return False
        return self.datastores.find(self.target, self._temporary) is None

    def _is_alone(self, target: Target) -> bool:
        """No other add has published the image in that datastore; both would have found out only now.

        The one in the datastore that comes later in the alphabet withdraws at once. The other waits for that: an add
        that stays has published before this one looked.
        """
        end = time.monotonic() + _WITHDRAWAL
        comes_later = (target.datacenter, target.name) < (self.target.datacenter, self.target.name)
        while self.datastores.size(target, self._name) is not None:
            if comes_later or time.monotonic() > end:
                return False
            time.sleep(_LOOK_AGAIN)
        return True

    # -- Taking back ------------------------------------------------------------------------------------------

    def take_back(self) -> None:
        """Remove all that this add has made, and nothing else."""
        # The datastore may have failed it: full, away or in maintenance by now.
        self.datastores.forget_rooms()
        if self._moving:
            self._withdraw()
            # Should this be done again: without the temporary file, the image of another add could not be told from it.
            self._moving = False
        self._remove_temporary(self._tried)

    def _withdraw(self) -> None:
        if self._is_there():
            self._remove(self._name)
        self._published = False

    def _remove_temporary(self, names: Sequence[str]) -> None:
        # One that cannot be removed keeps none of the others. (An ExitStack cannot raise a fault of pyVmomi.)
        failure: Exception | None = None
        for name in names:
            try:
                self._remove((*self.datastores.directory, UPLOADS, name))
            except Exception as error:  # noqa: BLE001  (raised below)
                failure = error
        if failure is not None:
            raise failure

    def _remove(self, names: Sequence[str]) -> None:
        try:
            self.datastores.delete(self.target, names)
        except Exception as error:
            if not is_fault(error, "FileNotFound"):
                raise

    def _reachable(self) -> list[Target]:
        """The datastores that can be asked: without one that is away the others go on."""
        if len(self.datastores.targets) == 1:
            return [self.target]
        rooms = self.datastores.rooms()
        return [target for target in self.datastores.targets if rooms[target].accessible]

    def _duplicate(self) -> Duplicate:
        return Duplicate(f"{self.subject} exists")


def new_publication(datastores: Datastores, image_id: str, size: int | None) -> Publication:
    """A publication in the datastore that is best for it; raises Duplicate, StorageFull and Invalid."""
    if _NOT_IN_XML.search(image_id) or image_id == UPLOADS:
        raise Invalid(f"image id {image_id[:80]!r} cannot be the name of a file in a datastore")
    publication = Publication(datastores, image_id, datastores.choose(size))
    publication.refuse_duplicate()
    return publication


def temporary_name(image_id: str) -> str:
    """A name that no other add has; a long id is cut, which ``+`` at its end tells."""
    token = secrets.token_hex(12)
    known = image_id.encode()
    room = _LONGEST_NAME - len(f".{token}+")
    if len(known) <= room:
        return f"{image_id}.{token}"
    return f"{known[:room].decode(errors='ignore')}.{token}+"


def split_temporary(name: str) -> tuple[str, bool] | None:
    """The id in a temporary name, and whether that is all of it; None for other names."""
    match = _TEMPORARY.fullmatch(name)
    return None if match is None else (match[1], not match[3])

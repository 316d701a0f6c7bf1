# SPDX-License-Identifier: Apache-2.0
"""SheepdogStore: configuration, and everything but moving bytes."""

from __future__ import annotations

import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from oslo_config import cfg

from storelib.capabilities import Capability
from storelib.driver import Area, Garbage, Health, ImageInfo, Store
from storelib.drivers.sheepdog.claims import DELETING, TOKEN, Claim
from storelib.drivers.sheepdog.command import Dog
from storelib.drivers.sheepdog.copying import SheepdogCopy
from storelib.drivers.sheepdog.errors import CommandFailed, first_line, meaning_of, storelib_error
from storelib.drivers.sheepdog.listing import LARGEST, Vdi, parse
from storelib.drivers.sheepdog.location import SCHEMES, SheepdogLocation, normalised
from storelib.drivers.sheepdog.names import Temporary, id_of, is_image_name, name_of
from storelib.drivers.sheepdog.options import OPTIONS
from storelib.drivers.sheepdog.publication import Publication
from storelib.drivers.sheepdog.reader import SheepdogReader
from storelib.drivers.sheepdog.writer import TOUCHED, SheepdogWriter
from storelib.exceptions import (
    BadStoreConfiguration,
    Duplicate,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StoreError,
)
from storelib.rehearsal import rehearse
from storelib.transfer.contract import MiB

COMMANDS = ("dog", "collie")
#: Deletions of the parts of one leftover, as a limit to what may go wrong in them.
_MOST_PASSES = 5


class SheepdogStore(Store[SheepdogLocation]):
    """Images as vdis of one cluster, reached by one of its daemons.

    * An image is a vdi called like its id, as glance_store's are; only a first "-" is a "/" there.
    * Deleting is possible while there are snapshots of the vdi; what these share with it stays.
    * A read ends with ImageChanged when somebody else takes a snapshot of the image meanwhile: Sheepdog gives the vdi
      another identity then, and takes away the attribute by which storelib knows it.
    * ``gc`` knows the adds of this store that are under way. For those of others ``older_than`` must be longer than
      two minutes and two times sheepdog_store_timeout: Sheepdog has no locks. An add that loses what it wrote to a
      hastier gc fails, and publishes nothing.
    """

    schemes = SCHEMES
    location_class = SheepdogLocation
    options: ClassVar[Sequence[cfg.Opt]] = OPTIONS
    capabilities = (
        Capability.READ
        | Capability.RANGE
        | Capability.ADD
        | Capability.DELETE
        | Capability.ATOMIC_ADD
        | Capability.LIST
        | Capability.STAT
        | Capability.GC
        | Capability.CHECK
        | Capability.COPY
    )
    dog: Dog

    def __init__(self, name: str, conf: Any) -> None:
        super().__init__(name, conf)
        #: Held while a copy has taken away the claim to its source.
        self.taking_snapshots = threading.Lock()
        #: Adds that are under way, by token, so that gc leaves them alone.
        self.live: weakref.WeakValueDictionary[str, Publication] = weakref.WeakValueDictionary()
        #: Bytes of one object, as far as is known.
        self.block_size = 4 * MiB

    # -- Configuration ----------------------------------------------------------------------------------------

    def configure_get(self) -> None:
        """Find the command."""
        conf = self.conf
        wanted = (conf.sheepdog_store_command,) if conf.sheepdog_store_command else COMMANDS
        path = next(filter(None, map(shutil.which, wanted)), None)
        if path is None:
            raise BadStoreConfiguration(
                f"store {self.name}, option sheepdog_store_command: there is no program {' or '.join(wanted)}; "
                "it comes with the package sheepdog"
            )
        timeout = min(conf.sheepdog_store_timeout, conf.transfer_timeout)
        self.dog = Dog(path, conf.sheepdog_store_address, conf.sheepdog_store_port, timeout)

    # -- Locations and names ----------------------------------------------------------------------------------

    def location(self, vdi: str) -> SheepdogLocation:
        """Where the vdi with this name is."""
        return SheepdogLocation(normalised(self.conf.sheepdog_store_address), int(self.conf.sheepdog_store_port), vdi)

    def areas(self) -> list[Area]:
        """The whole cluster of the daemon."""
        here = self.location("")
        return [Area(("sheepdog", here.address, here.port), "", "sheepdog_store_address")]

    def owns(self, location: SheepdogLocation) -> bool:
        """Whether it names this daemon, or none."""
        return location.address is None or location == self.location(location.vdi)

    # -- What is in the cluster -------------------------------------------------------------------------------

    def vdis(self, name: str | None = None) -> Iterator[Vdi]:
        """All vdis and snapshots, or those with this name; dog ends with 0 where there are none."""
        output, _ = self.dog.call("list", "-r", *(() if name is None else (name,)))
        # Some versions take the name for part of a longer one.
        return (vdi for vdi in parse(output) if name is None or vdi.name == name)

    def find(self, name: str) -> Vdi | None:
        """The vdi with this name, not its snapshots."""
        return next((vdi for vdi in self.vdis(name) if not vdi.snapshot), None)

    def existing(self, location: SheepdogLocation) -> Vdi:
        """The vdi of an image; raises NotFound."""
        found = self.find(location.vdi)
        if found is None:
            raise NotFound(f"no image at {location}")
        return found

    def claim(self, name: str) -> Claim | None:
        """What the attribute of an image, or of an earlier vdi of its name, says of who made it."""
        text = self._attribute(name, TOKEN)
        return None if text is None else Claim.parse(text)

    def set_claim(self, name: str, claim: Claim, stands: Callable[[Claim], bool]) -> Claim:
        """Write a claim where there is none that ``stands``; answers the one that is there now. Raises NotFound."""
        try:
            try:
                self.dog.call("setattr", "-x", name, TOKEN, claim.text)
            except CommandFailed as error:
                if error.meaning is not Duplicate:
                    raise
                found = self.claim(name)
                if found is not None and stands(found):
                    return found
                self.dog.call("setattr", name, TOKEN, claim.text)
        except CommandFailed as error:
            if error.meaning is NotFound:
                raise NotFound(f"no image at {self.location(name)}") from error
            raise
        return claim

    def _attribute(self, name: str, key: str) -> str | None:
        try:
            output, _ = self.dog.call("getattr", name, key)
        except CommandFailed as error:
            if error.meaning is NotFound:
                return None
            raise
        return output.decode(errors="replace").strip()

    def delete_vdi(self, vdi: Vdi) -> None:
        """Delete it, and see that it is gone: dog ends with 0 whatever happened. Raises NotFound.

        One that is deleted by half reads as zeros, so readers are warned before.
        """
        self._delete_marked(vdi, self._mark(vdi))

    def _mark(self, vdi: Vdi) -> Claim:
        """Say that it is being deleted; answers what was said."""
        mark = Claim.of(vdi, DELETING)
        self.dog.call("setattr", vdi.name, TOKEN, mark.text)
        return mark

    def _delete_marked(self, vdi: Vdi, mark: Claim) -> None:
        name = vdi.name
        _, complaint = self.dog.call("delete", name)
        if meaning_of(complaint) is NotFound:
            raise NotFound(f"no image at {self.location(name)}")
        left = self.find(name)
        # Another one, made in the same second, has the same number, and sooner or later a claim of its own.
        if left is not None and (left.vid, left.created) == (vdi.vid, vdi.created) and self.claim(name) == mark:
            raise _not_deleted(name, complaint)

    def delete_all(self, name: str, known: Sequence[Vdi] = ()) -> None:
        """Delete a temporary vdi and its snapshots, as far as there are any, and see that they are gone.

        With ``known`` these are deleted first, without a look.
        """
        complaint = ""
        found = list(known)
        # A snapshot may be there twice when the answer to the first one was lost.
        for _ in range(_MOST_PASSES):
            found = found or list(self.vdis(name))
            if not found:
                return
            for vdi in found:
                complaint += self.dog.call("delete", *(("-s", vdi.tag) if vdi.snapshot else ()), name)[1]
            found = []
        if self.find_any(name):
            raise _not_deleted(name, complaint)

    def find_any(self, name: str) -> bool:
        """Whether there is a vdi with this name, or a snapshot of it."""
        return next(self.vdis(name), None) is not None

    def delete_snapshot(self, name: str, tag: str) -> None:
        """Delete a snapshot, and see that it is gone; clones of it keep what they have in common with it."""
        _, complaint = self.dog.call("delete", "-s", tag, name)
        if self.find_snapshot(name, tag) is not None:
            raise _not_deleted(f"{name}, snapshot {tag}", complaint)

    def find_snapshot(self, name: str, tag: str) -> Vdi | None:
        """The snapshot of a vdi with this tag."""
        return next((vdi for vdi in self.vdis(name) if vdi.snapshot and vdi.tag == tag), None)

    # -- The driver contract ----------------------------------------------------------------------------------

    def open_writer(self, image_id: str, size: int | None, context: Any) -> SheepdogWriter:
        """See whether the id is taken; raises Duplicate."""
        made = SheepdogWriter(self, image_id)
        self.refuse_existing(image_id)
        return made

    def refuse_existing(self, image_id: str) -> None:
        """Raise Duplicate if the id is taken."""
        if self.find(name_of(image_id)) is not None:
            raise Duplicate(f"image {image_id!r} exists in store {self.name}")

    def open_reader(self, location: SheepdogLocation, offset: int, length: int | None, context: Any) -> SheepdogReader:
        """Look at the vdi and at the claim that says which one it is."""
        found = self.existing(location)
        end = found.size if length is None else min(offset + length, found.size)
        return SheepdogReader(self, location, found, self.whole_claim(found), end)

    def whole_claim(self, vdi: Vdi) -> Claim | None:
        """The claim to an image; raises NotFound if the image is being deleted, or was by half."""
        claim = self.claim(vdi.name)
        if claim is not None and claim.misses_data(vdi):
            raise NotFound(f"{self.location(vdi.name)} is being deleted, or was not deleted to the end")
        return claim

    def measure(self, location: SheepdogLocation, context: Any) -> int:
        """The size of the vdi."""
        return self.existing(location).size

    def remove(self, location: SheepdogLocation, context: Any) -> None:
        """Delete the vdi."""
        self.delete_vdi(self.existing(location))

    def removal(self, location: SheepdogLocation, context: Any) -> Callable[[], None]:
        """The same, of the vdi alone that was first deleted: commands know only names, and it may be another's soon."""
        mark: Claim | None = None

        def remove() -> None:
            nonlocal mark
            found = self.existing(location)
            # Another one, made in the same second, has the same number, but not the mark.
            if mark is not None and not self._is_marked(found, mark):
                raise NotFound(f"{location} was removed; there is another image now")
            mark = mark or self._mark(found)
            self._delete_marked(found, mark)

        return remove

    def _is_marked(self, vdi: Vdi, mark: Claim) -> bool:
        return (vdi.vid, vdi.created) == (mark.vid, mark.created) and self.claim(vdi.name) == mark

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """See errors.py."""
        return storelib_error(error, subject)

    # -- Looking after the store ------------------------------------------------------------------------------

    def candidate_locations(self, image_id: str) -> list[SheepdogLocation]:
        """The only one."""
        return [self.location(name_of(image_id))]

    def images(self) -> Iterator[ImageInfo]:
        """Every vdi that an id leads to."""
        for vdi in self.vdis():
            if not vdi.snapshot and is_image_name(vdi.name) and id_of(vdi.name) is not None:
                yield self._info(vdi)

    def inspect(self, location: SheepdogLocation, context: Any) -> ImageInfo:
        """What the listing says of one vdi, and which of the images that had this name it is."""
        vdi = self.existing(location)
        claim = self.claim(vdi.name)
        # Vdis made within one second of the same name can have the same number and time.
        version = f"{vdi.vid}-{vdi.created}" if claim is None else claim.token
        return replace(self._info(vdi), version=version)

    def _info(self, vdi: Vdi) -> ImageInfo:
        where, image_id = self.location(vdi.name), id_of(vdi.name)
        return ImageInfo(where.uri, vdi.size, image_id, float(vdi.created))

    def garbage(self, older_than: float, prefix: str | None) -> Iterator[Garbage]:
        """Temporary vdis with their snapshots, and snapshots that a copy left at its source."""
        latest = time.time() - older_than
        leftovers: dict[tuple[str, str | None], list[Vdi]] = {}
        for vdi in self.vdis():
            if Temporary.parse(vdi.name) is not None:
                leftovers.setdefault((vdi.name, None), []).append(vdi)
            elif vdi.snapshot and Temporary.parse(vdi.tag) is not None:
                leftovers.setdefault((vdi.name, vdi.tag), []).append(vdi)
        for (name, tag), vdis in leftovers.items():
            temporary = Temporary.parse(tag or name)
            if temporary is None or temporary.token in self.live or not temporary.image_id.startswith(prefix or ""):
                continue
            modified = max(vdi.created for vdi in vdis)
            if modified <= latest:
                modified = max(modified, self._touched(name, tag))
            if modified <= latest:
                image_id = None if temporary.cut else temporary.image_id
                what = name if tag is None else f"{name} (snapshot {tag})"
                size = sum(vdi.used for vdi in vdis)
                yield Garbage(what, image_id, size, float(modified), (name, tag, temporary.token))

    def _touched(self, name: str, tag: str | None) -> int:
        note = None if tag else self._attribute(name, TOUCHED)
        return int(note) if note is not None and note.isdigit() else 0

    def discard(self, garbage: Garbage) -> bool:
        """Delete it unless something was written since."""
        name, tag, token = garbage.handle
        if token in self.live or self._touched(name, tag) > garbage.modified:
            return False
        if tag is not None:
            left = self.find_snapshot(name, tag) is not None
            if left:
                self.delete_snapshot(name, tag)
            return left
        left = self.find_any(name)
        if left:
            self._spoil(name)
            self.delete_all(name)
        return left

    def _spoil(self, name: str) -> None:
        """Make a vdi too large for any image, so that an add that is alive after all notices, whatever it does next.

        Without that it might take what is deleted by half for what it wrote.
        """
        try:
            self.dog.call("resize", name, str(LARGEST))
        except CommandFailed as error:
            # Only its snapshot is there; or it is as large as that.
            if error.meaning not in (NotFound, StorageFull, StoreError):
                raise

    def check(self) -> Health:
        """Ask the daemon, then try it out."""
        try:
            health = super().check()
            rehearse(self)
        except RemoteServiceUnavailable as error:
            options = ["sheepdog_store_address", "sheepdog_store_port"]
            options += ["sheepdog_store_copies"] if self.conf.sheepdog_store_copies else []
            raise RemoteServiceUnavailable(f"{error}; check the options {', '.join(options)}") from error
        return health

    def probe(self) -> Health:
        """Ask the daemon for a vdi that is not there."""
        self.find("storelib/check")
        return Health(f"the sheep daemon at {self.dog.address}, port {self.dog.port}, answers {self.dog.path}")

    # -- What the cluster does by itself ----------------------------------------------------------------------

    def server_side_copy(self, source: SheepdogLocation, image_id: str, context: Any) -> SheepdogCopy:
        """By a snapshot and a clone."""
        return SheepdogCopy(self, source, image_id)


def _not_deleted(name: str, complaint: str) -> RemoteServiceUnavailable:
    said = first_line(complaint) or "nothing"
    return RemoteServiceUnavailable(f"vdi {name!r} is still there after dog deleted it; dog said: {said}")

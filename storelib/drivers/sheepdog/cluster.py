# SPDX-License-Identifier: Apache-2.0
"""SheepdogCluster: the vdis of a cluster, as dog shows, makes and deletes them, and a store's options, read once.

Nothing here decides what becomes visible, or whose a vdi is: that is publication.py.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from storelib.drivers.sheepdog.command import Dog
from storelib.drivers.sheepdog.errors import CommandFailed, first_line
from storelib.drivers.sheepdog.location import SheepdogLocation, name_of, normalised
from storelib.exceptions import Duplicate, NotFound, RemoteServiceUnavailable, StoreError, misconfigured
from storelib.transfer.contract import MiB, Options
from storelib.transfer.live import LiveAdds

_COMMANDS = ("dog", "collie")
#: Deletions of the parts of one leftover, as a limit to what may go wrong in them.
_MOST_PASSES = 5
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
#: The attribute of a temporary vdi that says when something was last written into it, in POSIX seconds.
TOUCHED = "storelib-touched"


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


class SheepdogCluster:
    """The cluster that one daemon leads to; raises BadStoreConfiguration where there is no command.

    ``clean_up`` is the engine's: what it is given to call is tried again, and gc finds what stays. Safe to use from
    many threads.
    """

    def __init__(
        self, conf: Options, store_name: str, clean_up: Callable[[Callable[[], object], object], None]
    ) -> None:
        self.store_name = store_name
        self.clean_up = clean_up
        #: Bytes that one command reads or writes.
        self.chunk_size = int(conf.sheepdog_store_chunk_size) * MiB
        #: Commands of one transfer side by side, at most.
        self.concurrency = int(conf.sheepdog_store_concurrency)
        #: Redundancy of new images as dog takes it; empty: the cluster's.
        self.copies: str = conf.sheepdog_store_copies
        #: Bytes of one object, as far as is known.
        self.block_size = 4 * MiB
        #: Held while a copy has taken away the claim to its source.
        self.taking_snapshots = threading.Lock()
        #: Adds that are under way, by token, so that gc leaves them alone.
        self.live: LiveAdds[object] = LiveAdds()
        wanted = (conf.sheepdog_store_command,) if conf.sheepdog_store_command else _COMMANDS
        path = next(filter(None, map(shutil.which, wanted)), None)
        if path is None:
            why = f"there is no program {' or '.join(wanted)}; it comes with the package sheepdog"
            raise misconfigured(store_name, "sheepdog_store_command", why)
        timeout = min(conf.sheepdog_store_timeout, conf.transfer_timeout)
        self.dog = Dog(path, conf.sheepdog_store_address, conf.sheepdog_store_port, timeout)
        self._address = normalised(conf.sheepdog_store_address)
        self._port = int(conf.sheepdog_store_port)

    def location(self, vdi: str) -> SheepdogLocation:
        """Where the vdi with this name is."""
        return SheepdogLocation(self._address, self._port, vdi)

    # -- What there is ----------------------------------------------------------------------------------------

    def vdis(self, name: str | None = None) -> Iterator[Vdi]:
        """All vdis and snapshots, or those with this name; dog ends with 0 where there are none."""
        output, _ = self.dog.call("list", "-r", *(() if name is None else (name,)))
        # Some versions take the name for part of a longer one.
        return (vdi for vdi in parse(output) if name is None or vdi.name == name)

    def find(self, name: str) -> Vdi | None:
        """The vdi with this name, not its snapshots."""
        return next((vdi for vdi in self.vdis(name) if not vdi.snapshot), None)

    def find_any(self, name: str) -> bool:
        """Whether there is a vdi with this name, or a snapshot of it."""
        return next(self.vdis(name), None) is not None

    def find_snapshot(self, name: str, tag: str) -> Vdi | None:
        """The snapshot of a vdi with this tag."""
        return next((vdi for vdi in self.vdis(name) if vdi.snapshot and vdi.tag == tag), None)

    def existing(self, location: SheepdogLocation) -> Vdi:
        """The vdi of an image; raises NotFound."""
        found = self.find(location.vdi)
        if found is None:
            raise NotFound(f"no image at {location}")
        return found

    def check_id_is_free(self, image_id: str) -> None:
        """Raise Duplicate if there is such an image."""
        if self.find(name_of(image_id)) is not None:
            raise Duplicate(f"image {image_id!r} exists in store {self.store_name}")

    def attribute(self, name: str, key: str) -> str | None:
        """What the vdi with this name, or an earlier one, has there; None if nothing."""
        try:
            output, _ = self.dog.call("getattr", name, key)
        except CommandFailed as error:
            if error.meaning is NotFound:
                return None
            raise
        return output.decode(errors="replace").strip()

    # -- Deleting ---------------------------------------------------------------------------------------------

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
            raise not_deleted(name, complaint)

    def delete_snapshot(self, name: str, tag: str) -> None:
        """Delete a snapshot, and see that it is gone; clones of it keep what they have in common with it."""
        _, complaint = self.dog.call("delete", "-s", tag, name)
        if self.find_snapshot(name, tag) is not None:
            raise not_deleted(f"{name}, snapshot {tag}", complaint)


def not_deleted(name: str, complaint: str) -> RemoteServiceUnavailable:
    """The error for a vdi that dog did not delete, whatever its exit code."""
    said = first_line(complaint) or "nothing"
    return RemoteServiceUnavailable(f"vdi {name!r} is still there after dog deleted it; dog said: {said}")


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

# SPDX-License-Identifier: Apache-2.0
"""SheepdogReader: one image on its way out of a cluster, by commands that read a range each."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from storelib.driver import Reader
from storelib.drivers.sheepdog.claims import Claim
from storelib.drivers.sheepdog.command import Running
from storelib.drivers.sheepdog.listing import Vdi
from storelib.drivers.sheepdog.location import SheepdogLocation
from storelib.exceptions import ImageChanged, NotFound
from storelib.transfer.contract import KiB, MiB

if TYPE_CHECKING:
    from storelib.drivers.sheepdog.store import SheepdogStore

#: No object is smaller.
_SMALLEST_OBJECT = MiB
_ZEROS = bytes(64 * KiB)


class SheepdogReader(Reader):
    """Reads a vdi by its name; that it still is the one that was opened is asked after each command began."""

    def __init__(
        self, store: SheepdogStore, location: SheepdogLocation, vdi: Vdi, claim: Claim | None, end: int
    ) -> None:
        self.size = vdi.size
        self.part_size = int(store.conf.sheepdog_store_chunk_size) * MiB
        self.concurrency = int(store.conf.sheepdog_store_concurrency)
        self._store = store
        self._location = location
        self._vdi = vdi
        self._claim = claim
        self.digest = None if claim is None else claim.digest_of(vdi)
        self._end = end
        self._lock = threading.Lock()
        self._idle: _Range | None = None

    def read_into(self, offset: int, view: memoryview) -> int:
        """Go on with the command that has come as far as ``offset``, or start one there."""
        with self._lock:
            running, self._idle = self._idle, None
        if running is None or running.position != offset:
            if running is not None:
                running.close()
            end = max(offset + len(view), min(offset + self.part_size, self._end))
            end = min(end, self.size)
            running = _Range(self, self._store, self._location.vdi, offset, end, last=end >= self._end)
        try:
            count = running.read_into(view)
        except BaseException:
            running.close()
            raise
        if count > 0 and running.position < running.end:
            self._keep(running)
        else:
            running.close()
        return count

    def check_version(self, *, thoroughly: bool) -> None:
        """Raise ImageChanged or NotFound unless the vdi is still the one that was opened.

        While dog deletes a vdi, what it takes away reads as zeros; only the listing tells then. Nor does the claim
        tell of somebody else's vdi in its place, so what is read last is looked at thoroughly, too.
        """
        claim = None if self._claim is None else self._store.claim(self._location.vdi)
        if claim is not None and claim == self._claim and not thoroughly:
            return
        now = self._store.find(self._location.vdi)
        if now is None:
            raise NotFound(f"{self._location} was deleted while it was read")
        if claim == self._claim:
            same = now.identity == self._vdi.identity
        else:
            # A copy puts back at once what its snapshot takes away, of the vdi as it is called then.
            same = claim is not None and self._claim is not None and claim.token == self._claim.token
            same = same and claim is not None and claim.fits(now) and now.content == self._vdi.content
        if not same:
            passing = claim is None and self._claim is not None
            raise ImageChanged(f"{self._location} changed while it was read", transient=passing)
        self._vdi, self._claim = now, claim

    def close(self) -> None:
        """Kill what was not read to its end."""
        self._keep(None)

    def _keep(self, running: _Range | None) -> None:
        """Until somebody goes on reading there; one that nobody went on with is ended."""
        with self._lock:
            stale, self._idle = self._idle, running
        if stale is not None:
            stale.close()


class _Range:
    """One command that reads from ``position`` to ``end``."""

    def __init__(
        self, reader: SheepdogReader, store: SheepdogStore, name: str, start: int, end: int, *, last: bool
    ) -> None:
        self.position = start
        self.end = end
        self._reader = reader
        self._last = last
        self._checked = self._checked_zeros = False
        self._running: Running = store.dog.start("read", name, str(start), str(end - start))

    def read_into(self, view: memoryview) -> int:
        """Fill ``view``, or what there is left; raises where fewer bytes come."""
        wanted = view[: self.end - self.position]
        count = self._running.read_into(wanted)
        self.position += count
        if count < len(wanted):
            # The exit code tells why, unless the vdi has become shorter.
            self._running.finish()
            self._reader.check_version(thoroughly=True)
            return 0
        zeros = not self._checked_zeros and has_zeros(wanted, self.position - count)
        if zeros or not self._checked:
            thoroughly = zeros or self._last
            self._reader.check_version(thoroughly=thoroughly)
            self._checked, self._checked_zeros = True, self._checked_zeros or zeros
        if self.position == self.end:
            self._running.finish()
        return count

    def close(self) -> None:
        """End the command."""
        self._running.close()


def has_zeros(view: memoryview, offset: int) -> bool:
    """Whether all there is of some object in ``view``, which begins at ``offset``, is zeros."""
    position = 0
    while position < len(view):
        end = min(len(view), position + _SMALLEST_OBJECT - (offset + position) % _SMALLEST_OBJECT)
        if _is_zero(view[position:end]):
            return True
        position = end
    return False


def _is_zero(view: memoryview) -> bool:
    # bytes.startswith compares with memcmp and copies nothing.
    return all(_ZEROS.startswith(view[at : at + len(_ZEROS)]) for at in range(0, len(view), len(_ZEROS)))

# SPDX-License-Identifier: Apache-2.0
"""SheepdogReader: one image on its way out of a cluster, by commands that read a range each."""

from __future__ import annotations

import threading

from storelib.driver import Reader
from storelib.drivers.sheepdog.cluster import Running, SheepdogCluster
from storelib.drivers.sheepdog.location import SheepdogLocation
from storelib.drivers.sheepdog.publication import claim_to, whole_claim_to
from storelib.exceptions import ImageChanged, NotFound
from storelib.transfer.contract import KiB, MiB

#: No object is smaller.
_SMALLEST_OBJECT = MiB
_ZEROS = bytes(64 * KiB)


class SheepdogReader(Reader):
    """Reads a vdi by its name; that it still is the one that was opened is asked after each command began."""

    def __init__(self, cluster: SheepdogCluster, location: SheepdogLocation, offset: int, length: int | None) -> None:
        self._vdi = cluster.existing(location)
        self._claim = whole_claim_to(cluster, self._vdi)
        self.size = self._vdi.size
        self.part_size = cluster.chunk_size
        self.concurrency = cluster.concurrency
        self.digest = None if self._claim is None else self._claim.digest_of(self._vdi)
        self._end = self.size if length is None else min(offset + length, self.size)
        self._cluster = cluster
        self._location = location
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
            running = _Range(self, self._cluster, self._location.vdi, offset, end, last=end >= self._end)
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
        tell of another client's vdi in its place, so what is read last is looked at thoroughly, too.
        """
        claim = None if self._claim is None else claim_to(self._cluster, self._location.vdi)
        if claim is not None and claim == self._claim and not thoroughly:
            return
        now = self._cluster.find(self._location.vdi)
        if now is None:
            raise NotFound(f"{self._location} was deleted while it was read")
        if claim == self._claim:
            same = now.identity == self._vdi.identity
        else:
            # A copy puts back at once what its snapshot takes away, of the vdi as it is called then.
            same = claim is not None and self._claim is not None and claim.token == self._claim.token
            same = same and claim is not None and claim.fits(now) and now.content == self._vdi.content
        if not same:
            transient = claim is None and self._claim is not None
            raise ImageChanged(f"{self._location} changed while it was read", transient=transient)
        self._vdi, self._claim = now, claim

    def close(self) -> None:
        """Kill what was not read to its end."""
        self._keep(None)

    def _keep(self, running: _Range | None) -> None:
        """Until the reading goes on there; one that it did not go on with is ended."""
        with self._lock:
            stale, self._idle = self._idle, running
        if stale is not None:
            stale.close()


class _Range:
    """One command that reads from ``position`` to ``end``."""

    def __init__(
        self, reader: SheepdogReader, cluster: SheepdogCluster, name: str, start: int, end: int, *, last: bool
    ) -> None:
        self.position = start
        self.end = end
        self._reader = reader
        self._last = last
        self._checked = self._checked_zeros = False
        self._running: Running = cluster.dog.start("read", name, str(start), str(end - start))

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
        """Kill the command if it is not at its end, and wait for it."""
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

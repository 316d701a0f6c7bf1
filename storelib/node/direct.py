# SPDX-License-Identifier: Apache-2.0
"""The way without libtorrent, or without the trust of other nodes: pieces from the API alone, one after another, as
long as the API says that it is this node's turn.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Sequence

from storelib.exceptions import Invalid, StoreError
from storelib.node.engine import Address, Broken, Complete, Event, Part, Progress
from storelib.node.reading import PAUSE, Reader, Reading
from storelib.preload import torrent

#: How often one piece may come wrong.
_ATTEMPTS = 3


class _Fetch:
    """A preload that is being fetched."""

    def __init__(self, part: Part, events: deque[Event]) -> None:
        self.part = part
        pieces = torrent.read(part.torrent).pieces
        self.have = list(part.have)
        self.descriptor = -1  # of the file, as long as it is written
        self.done = sum(pieces.length(number) for number, there in enumerate(self.have) if there)
        self.reading = Reading(part.preload, pieces, self._lacks, self._put, events.append)

    def _lacks(self, number: int) -> bool:
        return not self.have[number]

    def _put(self, number: int, piece: bytes) -> None:
        at = number * self.reading.pieces.piece_length
        # Of the last bytes that a disk has room for it says how many there were.
        if os.pwrite(self.descriptor, piece, at) != len(piece):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.have[number] = True
        self.done += len(piece)


class Direct:
    """An Engine that knows no peers."""

    has_peers = False

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._jobs: dict[str, _Fetch] = {}
        self._events: deque[Event] = deque()

    def add(self, part: Part) -> None:
        """Begin; raises Invalid for what is no torrent."""
        job = self._jobs[part.preload] = _Fetch(part, self._events)
        if not all(job.have):
            self._reader.begin(job.reading, lambda: self._run(job))

    def remove(self, preload: str) -> None:
        """Stop after the request under way."""
        if (job := self._jobs.pop(preload, None)) is not None:
            job.reading.stop()

    def holds(self, preload: str) -> bool:
        """Whether it was begun."""
        return preload in self._jobs

    def certify(self, part: Part) -> None:
        """There is nobody to show a certificate to."""

    def meet(self, preload: str, peers: Sequence[Address]) -> None:
        """Others are not asked."""

    def source(self, preload: str, url: str | None) -> None:
        """Go on with this one."""
        if (job := self._jobs.get(preload)) is not None:
            job.reading.read_from(url)

    def limit(self, preload: str, down: int, up: int) -> None:
        """Bytes per second to fetch at most, 0 for no limit; nothing is sent."""
        if (job := self._jobs.get(preload)) is not None:
            job.reading.limit = down

    def progress(self, preload: str) -> Progress:
        """How far it is."""
        job = self._jobs.get(preload)
        return Progress(job.done, job.reading.fetched, 0) if job else Progress()

    def poll(self) -> Sequence[Event]:
        """What happened since the last call."""
        found = []
        while self._events:
            found.append(self._events.popleft())
        return found

    def close(self) -> None:
        """Stop fetching all preloads."""
        for preload in list(self._jobs):
            self.remove(preload)

    def _run(self, job: _Fetch) -> None:
        try:
            with open(job.part.data, "r+b") as file:
                job.descriptor = file.fileno()
                self._fetch(job)
        except (StoreError, OSError) as error:
            self._events.append(Broken(job.part.preload, getattr(error, "strerror", None) or str(error)))
            return
        self._events.append(Complete(job.part.preload))

    def _fetch(self, job: _Fetch) -> None:
        """Raises Invalid when pieces keep coming wrong; all that the source has right are there by then."""
        attempts = 0
        while attempts < _ATTEMPTS:
            wrong, missing = self._reader.read_all(job.reading, range(job.reading.pieces.count))
            if not wrong and not missing:
                return
            attempts += bool(wrong)
            job.reading.pause(PAUSE)
        raise Invalid("the source sends wrong bytes")

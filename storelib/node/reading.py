# SPDX-License-Identifier: Apache-2.0
"""Pieces of images from where the API said, each by a request of its own and verified: for nodes that exchange nothing,
and for what a web seed of libtorrent cannot give.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from storelib.exceptions import Forbidden, Invalid, NotFound, StoreError
from storelib.node.engine import Broken, Event, SourceLost
from storelib.preload.pieces import Pieces

LOG = logging.getLogger(__name__)
#: Seconds between two attempts.
PAUSE = 1.0


class Stopped(Exception):
    """The image is not wanted any more."""


class Outcome(NamedTuple):
    """How many pieces came wrong, and how many did not come."""

    wrong: int
    missing: int


class Reading:
    """One image that is read.

    In a thread of the reader ``lacks`` says whether a piece is not there, ``put`` takes one that is right, and ``tell``
    hears of what happens.
    """

    def __init__(
        self,
        preload: str,
        pieces: Pieces,
        lacks: Callable[[int], bool],
        put: Callable[[int, bytes], None],
        tell: Callable[[Event], None],
    ) -> None:
        self.preload = preload
        self.pieces = pieces
        self.lacks, self.put, self.tell = lacks, put, tell
        self.fetched = 0
        #: Bytes per second, 0 for no limit.
        self.limit = 0
        self._url: str | None = None
        self._named = False
        self._stopped = threading.Event()
        self._changed = threading.Event()

    def read_from(self, url: str | None) -> None:
        """Go on with this source; None: wait for one."""
        self._url, self._named = url, True
        self._changed.set()

    def stop(self) -> None:
        """End after the request under way."""
        self._stopped.set()
        self._changed.set()

    def await_source(self, refused: str | None) -> str:
        """A source that is not the one that was refused, or was named again since; raises Stopped."""
        while True:
            self._changed.clear()
            if self._stopped.is_set():
                raise Stopped
            if (url := self._url) is not None and (self._named or url != refused):
                self._named = False
                return url
            self._changed.wait(5.0)

    def pause(self, seconds: float) -> None:
        """Sleep for so many seconds; raises Stopped."""
        if self._stopped.wait(seconds):
            raise Stopped


class Reader:
    """Reads images, at ``down_limit`` bytes per second each, 0 for no limit, and at most ``most`` of them: others wait.

    ``read`` returns a range of a URL, as ``Api.read`` does; there is one request at a time.
    """

    def __init__(self, read: Callable[[str, int, int], bytes], down_limit: int, most: int) -> None:
        self._read = read
        self._down_limit = down_limit
        self._executor = ThreadPoolExecutor(most, "storelib-reading")
        self._turn = threading.Lock()
        self._begun: set[Reading] = set()

    def begin(self, reading: Reading, work: Callable[[], None]) -> None:
        """Have ``work``, which reads, done in a thread; Stopped is no error of it."""

        def run() -> None:
            try:
                work()
            except Stopped:
                pass
            except Exception as error:
                # Nobody looks at what becomes of a thread: the image would be fetched for ever.
                LOG.exception("reading an image")
                reading.tell(Broken(reading.preload, f"the agent failed: {type(error).__name__}"))
            finally:
                self._begun.discard(reading)

        self._begun.add(reading)
        self._executor.submit(run)

    def read_all(self, reading: Reading, numbers: Iterable[int]) -> Outcome:
        """Read each of these pieces that is not there, once.

        One that comes wrong, or not, keeps no other from being read. Raises Stopped, and what ``put`` raises.
        """
        wrong = missing = 0
        for number in numbers:
            if not reading.lacks(number):
                continue
            began = time.monotonic()
            try:
                piece = self._piece(reading, number)
            except Invalid:
                wrong += 1
            except StoreError:
                missing += 1
                reading.pause(PAUSE)
                continue
            else:
                reading.put(number, piece)
                reading.fetched += len(piece)
            self._slow_down(reading, reading.pieces.length(number), began)
        return Outcome(wrong, missing)

    def close(self) -> None:
        """Stop all, and wait for the requests under way."""
        for reading in list(self._begun):
            reading.stop()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _piece(self, reading: Reading, number: int) -> bytes:
        """One piece; raises Invalid if it came wrong, other StoreErrors if it did not come."""
        pieces, refused = reading.pieces, None
        while True:
            url = reading.await_source(refused)
            try:
                with self._turn:
                    piece = self._read(url, number * pieces.piece_length, pieces.length(number))
            except (Forbidden, NotFound):
                # Its time is over, or the node drains; the next heartbeat may bring another, or this one again.
                refused = url
                reading.tell(SourceLost(reading.preload))
                continue
            if not pieces.fits(number, piece):
                raise Invalid("the source sends wrong bytes")
            return piece

    def _slow_down(self, reading: Reading, length: int, began: float) -> None:
        limits = [limit for limit in (self._down_limit, reading.limit) if limit > 0]
        if limits:
            reading.pause(max(length / min(limits) - (time.monotonic() - began), 0.0))

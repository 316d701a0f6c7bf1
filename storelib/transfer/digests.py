# SPDX-License-Identifier: Apache-2.0
"""Digests of an image as it passes: each in a thread of its own, fed in order, block by block."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from storelib.exceptions import UnknownHashingAlgo
from storelib.extras import needs
from storelib.transfer.buffers import Buffer
from storelib.transfer.contract import Digests, MiB
from storelib.transfer.guard import InUse
from storelib.transfer.monitor import Monitor
from storelib.transfer.tasks import AGAIN, TaskQueue
from storelib.transfer.threads import pool_of

#: Larger blocks fall out of the processor's cache between the threads that hash them (measured: 256 KiB to 1 MiB).
BLOCK = MiB
#: Bytes of a hole that are skipped in one step.
HOLE = 256 * MiB
ZEROS = bytes(BLOCK)
#: Blocks of a hole that are hashed before others may have their turn.
_PIECE = 16
#: Bytes that a digest is given at once while all of them have enough to do: each time takes some hand-overs.
_RUN = 8 * MiB
_THREADS = "storelib-digest"
Update: TypeAlias = Callable[[memoryview], object]
#: A verifier that hangs is its owner's; its thread is a daemon and is left behind after this long.
JOIN_SECONDS = 5.0


class Verifier(Protocol):
    """One more digest, of the caller's own: it is fed every byte, in order."""

    def update(self, chunk: bytes, /) -> object:
        """Take the next bytes."""


class Hasher(Protocol):
    """The part of hashlib's interface that is used here."""

    def update(self, data: memoryview | bytes, /) -> object:
        """Take the next bytes."""

    def hexdigest(self) -> str:
        """The digest in hexadecimal."""


def new_hasher(algorithm: str) -> Hasher:
    """A hash object for any fixed-length algorithm of hashlib, or blake3 when that is installed.

    Raises UnknownHashingAlgo, naming those that work.
    """
    if algorithm == "blake3":
        try:
            import blake3
        except ImportError:
            raise UnknownHashingAlgo(needs("the algorithm blake3", "blake3")) from None
        hasher: Hasher = blake3.blake3()
        return hasher
    try:
        found = hashlib.new(algorithm, usedforsecurity=False)
        # The shake algorithms pass hashlib's own test but have no digest without a length.
        if found.digest_size:
            return found
    except (TypeError, ValueError):
        pass
    usable = sorted({name.lower() for name in hashlib.algorithms_available if not name.startswith("shake")})
    raise UnknownHashingAlgo(f"unusable hashing algorithm {algorithm!r:.80}; usable are: blake3, {', '.join(usable)}")


class Digesting:
    """All digests of one transfer. An image of one block is hashed where it stands, without threads."""

    def __init__(
        self,
        algorithm: str,
        md5: bool,
        verifier: Verifier | None,
        known: Digests | None,
        monitor: Monitor,
    ) -> None:
        # In one spelling, which is that of what is recorded: hashlib takes several.
        self.algorithm = algorithm = str(algorithm).lower()
        self._known = known
        self._monitor = monitor
        self._hashers: dict[str, Hasher] = {}
        if known is None:
            names = [algorithm, "md5"] if md5 else [algorithm]
            self._hashers = {name: new_hasher(name) for name in names}
        #: Each with whether it is sure to take nothing but the processor.
        self._updates: list[tuple[Update, bool]] = [(hasher.update, True) for hasher in self._hashers.values()]
        if verifier is not None:
            self._updates.append((functools.partial(_verify, verifier, monitor), False))
        self._md5 = md5
        self._run: _Run | None = None  # what is held back
        self._queues: list[TaskQueue] = []

    @property
    def idle(self) -> bool:
        """Nothing is to be computed."""
        return not self._updates

    def update(self, buffer: Buffer, start: int, end: int) -> None:
        """Feed the bytes of ``buffer`` from ``start`` to ``end``; it is held until every digest has seen them."""
        self._take(_Run(buffer.memory, start, end, buffer))

    def zeros(self, length: int) -> None:
        """Feed ``length`` zero bytes."""
        blocks, rest = divmod(length, BLOCK)
        if blocks and self._updates:
            self.let_go()
            self._put(_Run(memoryview(ZEROS), 0, BLOCK), blocks)
        if rest:
            self._take(_Run(memoryview(ZEROS), 0, rest))

    def _take(self, run: _Run) -> None:
        """Hold back the first bytes as long as there are no others, and what comes while all digests are behind."""
        if not self._updates:
            return
        held = self._run
        if held is not None and held.goes_on_with(run):
            run.start = held.start
        else:
            self.let_go()
            run.hold()
        self._run = run
        may_be_all = held is None and not self._queues
        if not may_be_all and (run.length >= _RUN or self._is_wanting()):
            self.let_go()

    def let_go(self) -> None:
        """Have hashed what was held back: for one thing, its memory is needed."""
        run, self._run = self._run, None
        if run is not None:
            self._put(run)
            run.release()

    def is_busy(self) -> bool:
        """Whether every digest has something to do when it is done with what it is at."""
        return bool(self._queues) and not self._is_wanting()

    def _is_wanting(self) -> bool:
        return any(queue.unfinished < 2 for queue in self._get_queues())

    def _put(self, run: _Run, repeat: int = 1) -> None:
        for (update, _), queue in zip(self._updates, self._get_queues(), strict=True):
            run.hold()
            queue.put(_Feed(self._monitor, update, run, repeat))

    def _get_queues(self) -> list[TaskQueue]:
        """A queue and its thread for each digest, from the second block on."""
        if not self._queues:
            monitor = self._monitor
            pools = [pool_of(_THREADS, processor_bound=bound) for _, bound in self._updates]
            self._queues = [
                TaskQueue(_THREADS, monitor, monitor.cancelled, InUse(), pool, as_one=True) for pool in pools
            ]
            for queue in self._queues:
                queue.have_threads(1)
        return self._queues

    def finish(self) -> Digests:
        """Wait for all digests and return them."""
        if self._queues:
            self.let_go()
        run, self._run = self._run, None
        if run is not None:
            for update, _ in self._updates:
                update(run.view)
            run.release()
        for queue in self._queues:
            self._monitor.wait_for(lambda queue=queue: not queue.unfinished)  # type: ignore[misc]
            queue.join()
        self._monitor.check()
        if self._known is not None:
            return self._known
        md5 = self._hashers["md5"].hexdigest() if self._md5 else None
        return Digests(md5, self._hashers[self.algorithm].hexdigest(), self.algorithm)

    def join(self) -> None:
        """After the monitor was cancelled: wait for the threads, each of which ends after one run at most."""
        for queue in self._queues:
            queue.join(JOIN_SECONDS)
            queue.forget()


@dataclass(slots=True)
class _Run:
    """Bytes that follow each other, and the buffer that they are in."""

    memory: memoryview
    start: int
    end: int
    buffer: Buffer | None = None

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def view(self) -> memoryview:
        return self.memory[self.start : self.end]

    def goes_on_with(self, run: _Run) -> bool:
        return self.buffer is not None and self.buffer is run.buffer and self.end == run.start

    def hold(self) -> None:
        if self.buffer is not None:
            self.buffer.hold()

    def release(self) -> None:
        if self.buffer is not None:
            self.buffer.release()


def _verify(verifier: Verifier, monitor: Monitor, view: memoryview) -> None:
    """Feed a verifier of the caller's: it may keep what it is given, so it gets bytes of its own, and may be slow."""
    for start in range(0, len(view), BLOCK):
        if monitor.cancelled.is_set():
            break
        verifier.update(bytes(view[start : start + BLOCK]))
        monitor.move()


class _Feed:
    """One run on its way into one digest, ``repeat`` times; a long hole takes turns with what others hash."""

    def __init__(self, monitor: Monitor, update: Update, run: _Run, repeat: int) -> None:
        self._monitor = monitor
        self._update = update
        self._run = run
        self._left = repeat

    def __call__(self) -> object:
        try:
            for _ in range(min(self._left, _PIECE)):
                self._update(self._run.view)
                # A hole of many blocks takes its time, too.
                self._monitor.move()
                if self._monitor.cancelled.is_set():
                    self._left = 1
                    break
        except BaseException as error:
            self._monitor.fail(error)
            raise
        self._left -= min(self._left, _PIECE)
        if self._left:
            return AGAIN
        self._run.release()
        return None

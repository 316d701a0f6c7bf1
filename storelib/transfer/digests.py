# SPDX-License-Identifier: Apache-2.0
"""Digests of an image as it passes: each in a thread of its own, fed in order, block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
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
            # A verifier may keep what it is given, so it gets bytes of its own.
            self._updates.append((lambda view: verifier.update(bytes(view)), False))
        self._md5 = md5
        self._only: tuple[memoryview, Buffer | None] | None = None  # the first block, as long as there is no other
        self._queues: list[TaskQueue] = []

    @property
    def idle(self) -> bool:
        """Nothing is to be computed."""
        return not self._updates

    def update(self, view: memoryview, buffer: Buffer | None = None, repeat: int = 1) -> None:
        """Feed one block, ``repeat`` times; ``buffer`` is held until every digest has seen it."""
        if not self._updates:
            return
        if not self._queues and self._only is None and repeat == 1:
            if buffer is not None:
                buffer.hold()
            self._only = view, buffer
            return
        if not self._queues:
            self._start()
        self._put(view, buffer, repeat)

    def let_go(self) -> None:
        """Have the first block hashed though there is no other yet: its memory is needed."""
        if self._only is not None:
            self._start()

    def _start(self) -> None:
        """Have a thread for each digest, and the block that was held back done by them."""
        monitor = self._monitor
        pools = [pool_of(_THREADS, processor_bound=bound) for _, bound in self._updates]
        self._queues = [TaskQueue(_THREADS, monitor, monitor.cancelled, InUse(), pool, as_one=True) for pool in pools]
        if self._only is not None:
            (view, buffer), self._only = self._only, None
            self._put(view, buffer, 1)
            if buffer is not None:
                buffer.release()
        for queue in self._queues:
            queue.have_threads(1)

    def _put(self, view: memoryview, buffer: Buffer | None, repeat: int) -> None:
        for (update, _), queue in zip(self._updates, self._queues, strict=True):
            if buffer is not None:
                buffer.hold()
            queue.put(_Feed(self._monitor, update, view, buffer, repeat))

    def zeros(self, length: int) -> None:
        """Feed ``length`` zero bytes."""
        blocks, rest = divmod(length, BLOCK)
        if blocks:
            self.update(memoryview(ZEROS), repeat=blocks)
        if rest:
            self.update(memoryview(ZEROS)[:rest])

    def finish(self) -> Digests:
        """Wait for all digests and return them."""
        if self._only is not None:
            view, buffer = self._only
            for update, _ in self._updates:
                update(view)
            if buffer is not None:
                buffer.release()
        for queue in self._queues:
            queue.complete()
        for queue in self._queues:
            self._monitor.wait_for(lambda queue=queue: not queue.unfinished)  # type: ignore[misc]
            queue.join()
        self._monitor.check()
        if self._known is not None:
            return self._known
        md5 = self._hashers["md5"].hexdigest() if self._md5 else None
        return Digests(md5, self._hashers[self.algorithm].hexdigest(), self.algorithm)

    def join(self) -> None:
        """After the monitor was cancelled: wait for the threads, each of which ends after one block at most."""
        for queue in self._queues:
            queue.join(JOIN_SECONDS)
            queue.forget()


class _Feed:
    """One block on its way into one digest, ``repeat`` times; a long hole takes turns with what others hash."""

    def __init__(self, monitor: Monitor, update: Update, view: memoryview, buffer: Buffer | None, repeat: int) -> None:
        self._monitor = monitor
        self._update = update
        self._view = view
        self._buffer = buffer
        self._left = repeat

    def __call__(self) -> object:
        try:
            for _ in range(min(self._left, _PIECE)):
                self._update(self._view)
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
        if self._buffer is not None:
            self._buffer.release()
        return None

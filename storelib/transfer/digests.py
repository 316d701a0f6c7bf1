# SPDX-License-Identifier: Apache-2.0
"""Digests of an image as it passes: each in a thread of its own, fed in order, block by block."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from storelib.exceptions import UnknownHashingAlgo
from storelib.extras import needs
from storelib.transfer.buffers import Buffer
from storelib.transfer.contract import Digests, MiB
from storelib.transfer.monitor import Monitor

#: Larger blocks fall out of the processor's cache between the threads that hash them (measured: 256 KiB to 1 MiB).
BLOCK = MiB
ZEROS = bytes(BLOCK)
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
    raise UnknownHashingAlgo(f"unusable hashing algorithm {algorithm!r}; usable are: blake3, {', '.join(usable)}")


class DigestWorker:
    """One consumer: its queue of blocks and, from the second block on, its thread."""

    def __init__(self, update: Callable[[memoryview], object]) -> None:
        self.update = update
        self.queue: deque[tuple[memoryview, int, Buffer | None]] = deque()
        self.thread: threading.Thread | None = None
        self.done = False


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
        self.algorithm = algorithm
        self._known = known
        self._monitor = monitor
        self._hashers: dict[str, Hasher] = {}
        if known is None:
            names = [algorithm, "md5"] if md5 else [algorithm]
            self._hashers = {name: new_hasher(name) for name in names}
        self._workers = [DigestWorker(hasher.update) for hasher in self._hashers.values()]
        if verifier is not None:
            # A verifier may keep what it is given, so it gets bytes of its own.
            self._workers.append(DigestWorker(lambda view: verifier.update(bytes(view))))
        self._md5 = md5
        self._blocks = 0
        self._finished = False

    @property
    def idle(self) -> bool:
        """Nothing is to be computed."""
        return not self._workers

    def update(self, view: memoryview, buffer: Buffer | None = None, repeat: int = 1) -> None:
        """Feed one block, ``repeat`` times; ``buffer`` is held until every digest has seen it."""
        if not self._workers:
            return
        for _ in self._workers if buffer else ():
            buffer.hold()  # type: ignore[union-attr]
        with self._monitor.changed:
            for worker in self._workers:
                worker.queue.append((view, repeat, buffer))
            self._monitor.changed.notify_all()
        self._blocks += repeat
        if self._blocks > 1 and self._workers[0].thread is None:
            self._start()

    def zeros(self, length: int) -> None:
        """Feed ``length`` zero bytes."""
        blocks, rest = divmod(length, BLOCK)
        if blocks:
            self.update(memoryview(ZEROS), repeat=blocks)
        if rest:
            self.update(memoryview(ZEROS)[:rest])

    def finish(self) -> Digests:
        """Wait for all digests and answer them."""
        with self._monitor.changed:
            self._finished = True
            self._monitor.changed.notify_all()
        for worker in self._workers:
            if worker.thread is None:
                self._drain(worker)
            else:
                self._monitor.wait_for(lambda worker=worker: worker.done)  # type: ignore[misc]
                worker.thread.join()
        self._monitor.check()
        if self._known is not None:
            return self._known
        md5 = self._hashers["md5"].hexdigest() if self._md5 else None
        return Digests(md5, self._hashers[self.algorithm].hexdigest(), self.algorithm)

    def join(self) -> None:
        """After the monitor was cancelled: wait for the threads, each of which ends after one block at most."""
        for worker in self._workers:
            if worker.thread is not None:
                worker.thread.join(JOIN_SECONDS)

    def _start(self) -> None:
        for worker in self._workers:
            thread = threading.Thread(target=self._run, args=(worker,), name="storelib-digest", daemon=True)
            # Ctrl-C may come before it runs; only one that does can be joined.
            thread.start()
            worker.thread = thread

    def _run(self, worker: DigestWorker) -> None:
        try:
            self._drain(worker)
        except BaseException as error:  # noqa: BLE001  (handed to the caller's thread)
            self._monitor.fail(error)
        with self._monitor.changed:
            worker.done = True
            self._monitor.changed.notify_all()

    def _drain(self, worker: DigestWorker) -> None:
        changed, cancelled = self._monitor.changed, self._monitor.cancelled
        while True:
            with changed:
                while not worker.queue and not self._finished and not cancelled.is_set():
                    changed.wait()
                if cancelled.is_set() or not worker.queue:
                    return
                view, repeat, buffer = worker.queue.popleft()
            for _ in range(repeat):
                worker.update(view)
                # A hole of many blocks takes its time, too.
                self._monitor.beat()
                if cancelled.is_set():
                    break
            if buffer is not None:
                buffer.release()

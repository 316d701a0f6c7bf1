# SPDX-License-Identifier: Apache-2.0
"""Comparing what is read with a digest: what ``get(..., verify=...)`` means, and the hashing beside the reading."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from storelib.exceptions import DigestMismatch, Invalid, StoreError, UnknownHashingAlgo
from storelib.transfer.buffers import Buffer, Pool
from storelib.transfer.contract import Digest, Digests
from storelib.transfer.digests import BLOCK, Digesting, new_hasher
from storelib.transfer.memory import MemoryBudget
from storelib.transfer.monitor import Monitor

#: Bytes that may have been read and not yet hashed.
AHEAD = 4 * BLOCK

#: ``None``: nothing is compared; ``True``: with the digest that the driver recorded; else with this one.
Verify: TypeAlias = "Digest | str | bool | None"


def asked_for(verify: Verify) -> Digest | bool:
    """What ``verify`` means: a digest that can be computed here, True for the recorded one, False for none.

    Raises Invalid for what is neither, and UnknownHashingAlgo.
    """
    if verify is None or isinstance(verify, bool):
        return bool(verify)
    if isinstance(verify, str):
        return parse(verify)
    if isinstance(verify, tuple) and len(verify) == 2 and all(isinstance(item, str) for item in verify):
        return normal(Digest(*verify))
    raise Invalid(f"verify is a Digest, 'algorithm:hexadecimal', True or None, not {type(verify).__name__}")


def parse(text: str) -> Digest:
    """The digest that ``"algorithm:hexadecimal"`` means; raises Invalid for any other text, and UnknownHashingAlgo."""
    algorithm, colon, value = text.strip().partition(":")
    if not colon:
        raise Invalid(f"a digest is written 'algorithm:hexadecimal', not {text[:200]!r}")
    return normal(Digest(algorithm.strip().lower(), value))


def normal(digest: Digest) -> Digest:
    """``digest`` in lower case; raises Invalid unless it is one of its algorithm, and UnknownHashingAlgo."""
    value = digest.value.strip().lower()
    length = len(new_hasher(digest.algorithm).hexdigest())
    if len(value) != length or set(value) - set("0123456789abcdef"):
        raise Invalid(f"a {digest.algorithm} digest has {length} hexadecimal digits, unlike {value[:200]!r}")
    return Digest(digest.algorithm, value)


def recorded(digest: Digest, subject: str) -> Digest:
    """What a driver recorded, once it is known to be a digest; raises StoreError, and UnknownHashingAlgo."""
    try:
        return normal(Digest(*digest))
    except UnknownHashingAlgo:
        raise
    except Invalid as error:
        raise StoreError(f"{subject}: what was recorded is no digest, so nothing can be compared: {error}") from None
    except (TypeError, AttributeError):
        raise StoreError(f"{subject}: the digest that was recorded is none, so nothing can be compared") from None


def compare(expected: Digest, found: str, subject: str) -> None:
    """Raise DigestMismatch unless ``found`` is the digest that was expected of ``subject``."""
    algorithm, value = expected
    if found != value:
        raise DigestMismatch(
            f"{subject}: throw away what was read: its {algorithm} digest is {found}, not {value}",
            algorithm=algorithm,
            expected=value,
            found=found,
        )


def comparing(expected: Digest, subject: str) -> Callable[[Digests], None]:
    """A ``check`` of an add that computes digests of that algorithm: what is not as expected is stored nowhere."""
    return lambda digests: compare(expected, digests.multihash, subject)


class Check:
    """The digest of a stream as it is read, in a thread beside it from the second block on."""

    def __init__(self, expected: Digest, subject: str, timeout: float, memory: MemoryBudget) -> None:
        self.expected = expected
        self._subject = subject
        self._monitor = Monitor(timeout)
        self._digesting = Digesting(expected.algorithm, False, None, None, self._monitor)
        self._pool = Pool(self._monitor.changed, AHEAD, memory)
        self._buffer: Buffer | None = None
        self._filled = 0
        self._ended: BaseException | bool = False

    def update(self, data: memoryview) -> None:
        """These bytes come next; they are copied, so their memory may be used again."""
        while data:
            if self._buffer is None:
                self._buffer = self._pool.take(BLOCK, self._monitor, self._digesting.let_go)
            count = min(len(data), BLOCK - self._filled)
            self._buffer.memory[self._filled : self._filled + count] = data[:count]
            self._filled += count
            data = data[count:]
            if self._filled == BLOCK:
                self._flush()

    def zeros(self, length: int) -> None:
        """A hole of ``length`` bytes comes next."""
        self._flush()
        self._digesting.zeros(length)

    def finish(self) -> None:
        """There are no more bytes; raises DigestMismatch, every time."""
        if self._ended is False:
            self._flush()
            found = self._digesting.finish().multihash
            self._ended = True
            try:
                compare(self.expected, found, self._subject)
            except DigestMismatch as mismatch:
                self._ended = mismatch
        if isinstance(self._ended, BaseException):
            raise self._ended

    def give_up(self, error: BaseException) -> None:
        """Bytes were taken that the reader never got, because of ``error``, which ``finish`` raises from now on."""
        self._ended = error

    def close(self) -> None:
        """Stop hashing and join the thread."""
        try:
            self._monitor.cancel()
            self._digesting.join()
        finally:
            self._buffer = None
            self._pool.close()
            self._monitor.forget()
            self._ended = False

    def _flush(self) -> None:
        buffer, count = self._buffer, self._filled
        self._buffer, self._filled = None, 0
        if buffer is not None:
            self._digesting.update(buffer, 0, count)
            buffer.release()

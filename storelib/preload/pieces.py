# SPDX-License-Identifier: Apache-2.0
"""The digests of an image's parts, as BEP 52 (BitTorrent v2) has them: a tree of SHA-256 over blocks of 16 KiB.

They are computed as the bytes pass, in a few KiB of memory beside 32 bytes for each piece. Zeros are not hashed: what a
piece of zeros amounts to is known.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from storelib.exceptions import Invalid

#: Bytes below one leaf of the tree; the last block of an image may be shorter.
BLOCK = 16 * 1024
#: Bytes of a piece: what nodes verify and pass on as a whole, and what a web seed is asked for at once.
PIECE_LENGTH = 1024 * 1024
#: Bytes of any piece: all digests below one are in memory at a time.
LONGEST_PIECE = 64 * 1024 * 1024
#: Bytes of a digest.
DIGEST = 32

_ZERO_BLOCK = bytes(BLOCK)
#: What stands for blocks beyond the end of the image.
_BEYOND = bytes(DIGEST)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The digests of all pieces of one image: a piece layer.

    ``size`` is that of the image and ``piece_length`` that of all pieces but the last, in bytes; ``layer`` has 32 bytes
    for each piece. Raises Invalid for values that do not fit together.
    """

    size: int
    layer: bytes
    piece_length: int = PIECE_LENGTH

    def __post_init__(self) -> None:
        if not BLOCK <= self.piece_length <= LONGEST_PIECE or self.piece_length & (self.piece_length - 1):
            raise Invalid(
                f"a piece has {BLOCK} bytes times a power of two, {LONGEST_PIECE} at most, not {self.piece_length}"
            )
        if self.size < 0 or len(self.layer) != self.count * DIGEST:
            raise Invalid(f"{len(self.layer)} bytes of digests are not those of an image of {self.size} bytes")

    @property
    def count(self) -> int:
        """How many pieces there are; none in an empty image."""
        return -(-self.size // self.piece_length)

    @property
    def root(self) -> bytes:
        """The digest of the whole tree, BEP 52's ``pieces root``; empty for an empty image."""
        digests = [self.digest(number) for number in range(self.count)]
        if len(digests) <= 1:
            return self.layer
        return _root(digests, _beyond(self.piece_length // BLOCK))

    def digest(self, number: int) -> bytes:
        """The digest of one piece, the first of which has the number 0."""
        return self.layer[number * DIGEST : (number + 1) * DIGEST]

    def length(self, number: int) -> int:
        """Bytes of one piece."""
        return min(self.piece_length, self.size - number * self.piece_length)

    def digest_of_zeros(self, number: int) -> bytes:
        """The digest that the piece would have if it were all zeros."""
        return _zeros(self.length(number), self._leaves)

    def zeros(self) -> Iterator[int]:
        """The numbers of the pieces that are all zeros, and so need not be transferred."""
        return (number for number in range(self.count) if self.digest(number) == self.digest_of_zeros(number))

    def fits(self, number: int, data: bytes | memoryview) -> bool:
        """Whether ``data`` is the piece with that number."""
        if len(data) != self.length(number):
            return False
        leaves = [_leaf(memoryview(data)[start : start + BLOCK]) for start in range(0, len(data), BLOCK)]
        return _root(_padded(leaves, self._leaves), _BEYOND) == self.digest(number)

    @property
    def _leaves(self) -> int:
        # The tree of an image of one piece is only as high as its blocks need.
        return self.piece_length // BLOCK if self.count > 1 else 1


class PieceHasher:
    """Computes the digests of an image's pieces from its bytes, in order. ``update`` is that of a hash object, so that
    it can be the verifier of an upload.
    """

    def __init__(self, piece_length: int = PIECE_LENGTH) -> None:
        self._piece_length = Pieces(0, b"", piece_length).piece_length
        self._size = 0
        self._rest = bytearray()  # of a block that is not whole yet
        self._leaves: list[bytes] = []  # of a piece that is not whole yet
        self._layer = bytearray()

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Take the next bytes."""
        view = memoryview(data).cast("B")
        self._size += len(view)
        if self._rest:
            missing = BLOCK - len(self._rest)
            self._rest += view[:missing]
            view = view[missing:]
            if len(self._rest) < BLOCK:
                return
            self._add(_leaf(memoryview(bytes(self._rest))))
            self._rest.clear()
        whole = len(view) - len(view) % BLOCK
        for start in range(0, whole, BLOCK):
            self._add(_leaf(view[start : start + BLOCK]))
        self._rest += view[whole:]

    def zeros(self, length: int) -> None:
        """Take ``length`` bytes of zeros, which a hole of any size is."""
        # To the end of a piece, pieces, and what remains.
        first = min(length, -self._size % self._piece_length)
        self._few_zeros(first)
        whole, last = divmod(length - first, self._piece_length)
        self._layer += _zeros(self._piece_length, self._piece_length // BLOCK) * whole
        self._size += whole * self._piece_length
        self._few_zeros(last)

    def finish(self) -> Pieces:
        """Return the digests of all the bytes that were taken; nothing may be taken after that."""
        if self._rest:
            self._add(_leaf(memoryview(bytes(self._rest))))
            self._rest.clear()
        if self._leaves:
            self._layer += _root(_padded(self._leaves, self._piece_length // BLOCK if self._layer else 1), _BEYOND)
            self._leaves = []
        return Pieces(self._size, bytes(self._layer), self._piece_length)

    def _few_zeros(self, length: int) -> None:
        for _ in range(length // BLOCK):
            self.update(_ZERO_BLOCK)
        self.update(_ZERO_BLOCK[: length % BLOCK])

    def _add(self, leaf: bytes) -> None:
        self._leaves.append(leaf)
        if len(self._leaves) * BLOCK == self._piece_length:
            self._layer += _root(self._leaves, _BEYOND)
            self._leaves = []


def _leaf(block: memoryview) -> bytes:
    """The digest of one block."""
    # A comparison of bytes takes a twentieth of the time of a digest, and most blocks differ at their first byte.
    if not block[0] and len(block) == BLOCK and bytes(block) == _ZERO_BLOCK:
        return _zeros(BLOCK, 1)
    return hashlib.sha256(block).digest()


def _padded(leaves: Sequence[bytes], count: int) -> Sequence[bytes]:
    return [*leaves, *[_BEYOND] * (count - len(leaves))]


def _root(digests: Sequence[bytes], beyond: bytes) -> bytes:
    """The root of the tree over digests of one layer; ``beyond`` stands for those that a whole tree has more."""
    layer = list(digests)
    while len(layer) > 1:
        if len(layer) % 2:
            layer.append(beyond)
        layer = [hashlib.sha256(layer[at] + layer[at + 1]).digest() for at in range(0, len(layer), 2)]
        beyond = hashlib.sha256(beyond + beyond).digest()
    return layer[0]


@functools.cache
def _beyond(leaves: int) -> bytes:
    """The digest of a piece beyond the end."""
    return _root([_BEYOND] * leaves, _BEYOND)


@functools.lru_cache(maxsize=64)
def _zeros(length: int, leaves: int) -> bytes:
    """The root of the tree over ``length`` bytes of zeros, which has at least that many leaves."""
    whole, rest = divmod(length, BLOCK)
    digests = [hashlib.sha256(_ZERO_BLOCK).digest()] * whole
    if rest:
        digests.append(hashlib.sha256(bytes(rest)).digest())
    return _root(_padded(digests, leaves), _BEYOND)

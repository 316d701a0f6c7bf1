# SPDX-License-Identifier: Apache-2.0
"""What is on the disk of a node: which pieces of an image are there, and whether a whole image is what it should be.

Holes are not read: what they amount to is known. Every function calls ``check`` often, and stops when that raises.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from storelib.exceptions import DigestMismatch
from storelib.extras import needing
from storelib.preload.pieces import Pieces
from storelib.transfer.digests import new_hasher

BLOCK = 1024 * 1024
_ZEROS = bytes(BLOCK)


def reserve(path: Path, size: int) -> None:
    """Have a file of that size, of holes where it has nothing yet; raises OSError."""
    with open(path, "ab") as file:
        os.truncate(file.fileno(), size)


def present(path: Path, pieces: Pieces, check: Callable[[], None]) -> list[bool]:
    """Which pieces of an image a file has."""
    zeros = set(pieces.zeros())
    found = []
    with open(path, "rb") as file:
        for number in range(pieces.count):
            check()
            start, length = number * pieces.piece_length, pieces.length(number)
            if _data_from(file, start) >= start + length:
                found.append(number in zeros and start + length <= os.fstat(file.fileno()).st_size)
            else:
                found.append(pieces.fits(number, os.pread(file.fileno(), length, start)))
    return found


def verify(path: Path, algorithm: str, value: str, check: Callable[[], None]) -> None:
    """Compare the digest of a whole file; raises DigestMismatch, UnknownHashingAlgo."""
    hasher = new_hasher(algorithm)
    with open(path, "rb") as file:
        for block in _blocks(file):
            check()
            hasher.update(block)
    if hasher.hexdigest() != value.lower():
        raise DigestMismatch(f"the {algorithm} of the image's bytes is not the one that was recorded for it")


def prepare() -> None:
    """Have what images are inspected with; raises MissingDependency."""
    with needing("inspecting images", "node"):
        import storelib.inspection.source  # noqa: F401


def inspect(path: Path, disk_format: str | None, container_format: str | None) -> None:
    """Raise Invalid for a disk that is not of its format, or would make a hypervisor open other files.

    It is what the image API does with an upload. What is no bare disk is looked at for other files only.
    """
    from storelib.inspection.source import Guarded, Inspected

    kind = Inspected if container_format in (None, "bare") else Guarded
    with open(path, "rb") as file:
        kind(file, disk_format or "raw").look()


def _blocks(file: IO[bytes]) -> Iterator[bytes | memoryview]:
    """All bytes of a file, zeros for its holes."""
    size = os.fstat(file.fileno()).st_size
    at = 0
    while at < size:
        data = min(_data_from(file, at), size)
        while at < data:
            length = min(BLOCK, data - at)
            yield memoryview(_ZEROS)[:length]
            at += length
        if at == size:
            return
        end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
        while at < end:
            block = os.pread(file.fileno(), min(BLOCK, end - at), at)
            if not block:
                return
            yield block
            at += len(block)


def _data_from(file: IO[bytes], offset: int) -> int:
    """Where the first byte of data is from ``offset`` on; the end of the file, or beyond, if there is none."""
    try:
        return os.lseek(file.fileno(), offset, os.SEEK_DATA)
    except OSError:
        # There is only a hole, or nothing, behind it.
        return 1 << 62

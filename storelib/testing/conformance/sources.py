# SPDX-License-Identifier: Apache-2.0
"""Sources of every kind that ``add`` takes, and some that misbehave."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: A kind of source: from the bytes and an empty directory to what is given to ``add``.
Kind = Callable[[bytes, Path], Any]


class OnlyRead:
    """An object with ``read`` and nothing else, which gives less than asked for, by turns."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        self._turn = 0

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes, mostly fewer."""
        self._turn += 1
        return self._file.read(max(1, size * (self._turn % 4 + 1) // 4) if size > 0 else size)


def chunks(data: bytes, size: int) -> Iterator[bytes]:
    """The bytes in pieces of ``size``."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def with_empty_chunks(data: bytes, size: int) -> Iterator[bytes]:
    """The bytes in pieces, with nothing before, between and after them."""
    yield b""
    for chunk in chunks(data, size):
        yield chunk
        yield b""
    yield b""


def _file(data: bytes, directory: Path) -> Path:
    path = directory / "source"
    path.write_bytes(data)
    return path


def _file_with_offset(data: bytes, directory: Path) -> Any:
    file = _file(b"not part of it" + data, directory).open("rb")
    file.seek(14)
    return file


KINDS: dict[str, Kind] = {
    "path": _file,
    "path as str": lambda data, directory: str(_file(data, directory)),
    "bytes": lambda data, directory: data,
    "bytearray": lambda data, directory: bytearray(data),
    "memoryview": lambda data, directory: memoryview(data),
    "BytesIO": lambda data, directory: io.BytesIO(data),
    "file": lambda data, directory: _file(data, directory).open("rb"),
    "unbuffered file": lambda data, directory: _file(data, directory).open("rb", buffering=0),
    "file not at its start": _file_with_offset,
    "object with only read()": lambda data, directory: OnlyRead(data),
    "list of chunks": lambda data, directory: list(chunks(data, 70_001)),
    "generator": lambda data, directory: chunks(data, 65_536),
    "generator with odd chunks": lambda data, directory: chunks(data, 9_973),
    "generator with empty chunks": lambda data, directory: with_empty_chunks(data, 50_021),
    "generator with one huge chunk": lambda data, directory: chunks(data, len(data)),
}


def raising(data: bytes, error: BaseException, size: int = 65_536) -> Iterator[bytes]:
    """The bytes in pieces, then ``error`` instead of an end."""
    yield from chunks(data, size)
    raise error


class RaisingFile(io.RawIOBase):
    """The same as a file object."""

    def __init__(self, data: bytes, error: BaseException) -> None:
        self._file = io.BytesIO(data)
        self._error = error

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """From the bytes, then the error."""
        count = self._file.readinto(buffer)
        if not count:
            raise self._error
        return count

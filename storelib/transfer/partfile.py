# SPDX-License-Identifier: Apache-2.0
"""PartFile: a part's bytes as the seekable file that many client libraries want, without copying them."""

from __future__ import annotations

import io
from typing import Any


class PartFile(io.RawIOBase):
    """A read-only file over a memoryview; ``read`` hands out views of it, valid as long as the part is."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def __len__(self) -> int:
        return len(self._data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; returns the new one."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._data)}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> memoryview:
        """Up to ``size`` bytes, all that is left for None or -1, as a view; empty at the end."""
        end = len(self._data) if size is None or size < 0 else self._position + size
        piece = self._data[self._position : end]
        self._position += len(piece)
        return piece

    def readinto(self, buffer: Any) -> int:
        """Copy bytes into ``buffer``; returns how many."""
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

# SPDX-License-Identifier: Apache-2.0
"""Objects with ``read``, of which some fill memory of others as well, which spares a copy of each byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def fills(data: object) -> bool:
    """Whether it has a ``readinto`` that gives what its ``read`` does.

    Wrappers that look at the bytes, or change them, replace ``read`` alone: of ``readinto`` they have that of the class
    above, or of the file that they wrap.
    """
    if not callable(getattr(data, "readinto", None)):
        return False
    for names in (getattr(data, "__dict__", {}), *map(vars, type(data).__mro__)):
        if "readinto" in names or "read" in names:
            return "readinto" in names
    return True


def filler(source: Any) -> Callable[[memoryview], int]:
    """What fills memory with the next bytes of ``source`` and returns how many: its own ``readinto``, if it has one."""
    if fills(source):
        readinto: Callable[[memoryview], int] = source.readinto
        return readinto

    rest = b""

    def copied(buffer: memoryview) -> int:
        nonlocal rest
        # Some give more than they are asked for.
        chunk = rest or source.read(len(buffer))
        piece, rest = chunk[: len(buffer)], chunk[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)

    return copied

# SPDX-License-Identifier: Apache-2.0
"""What a configured store can do now, so that callers ask instead of trying."""

from __future__ import annotations

import enum


class Capability(enum.Flag):
    """Flags that are true of one configured store; the conformance suite checks that they are."""

    READ = enum.auto()
    """``get`` and ``get_size``."""
    RANGE = enum.auto()
    """``get`` with an offset or a length."""
    ADD = enum.auto()
    """``add``."""
    DELETE = enum.auto()
    """``delete``."""
    ATOMIC_ADD = enum.auto()
    """Of adds racing for one id exactly one succeeds."""
    SPARSE = enum.auto()
    """Long runs of zeros take no room, and reads tell where they are."""
    ACLS = enum.auto()
    """``set_acls``."""
    LIST = enum.auto()
    """``list_images``."""
    STAT = enum.auto()
    """``stat``."""
    GC = enum.auto()
    """``gc`` finds what failed adds left behind."""
    CHECK = enum.auto()
    """``check`` asks the back end for its health."""
    COPY = enum.auto()
    """``copy`` within the store passes no bytes through this process: server-side, clone or reflink."""
    PRESIGN = enum.auto()
    """``presign`` makes URLs that work without credentials for a while."""

    @property
    def names(self) -> tuple[str, ...]:
        """The single flags in this value, in declaration order, as lower-case words."""
        return tuple((flag.name or "").lower() for flag in Capability if flag in self)


#: What every store has that can be written to.
READ_WRITE = (
    Capability.READ | Capability.RANGE | Capability.ADD | Capability.DELETE | Capability.STAT | Capability.CHECK
)
#: What a store has whose back end lists names and lets one of several adds win.
COMPLETE = READ_WRITE | Capability.ATOMIC_ADD | Capability.LIST | Capability.GC
#: All that a store which cannot be written to loses.
WRITING = Capability.ADD | Capability.DELETE | Capability.ATOMIC_ADD | Capability.ACLS | Capability.GC | Capability.COPY

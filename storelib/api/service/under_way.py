# SPDX-License-Identifier: Apache-2.0
"""What this process is doing now, for monitoring: uploads, imports, bytes that are being staged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from storelib.transfer.contract import Progress

What = Literal["uploads", "imports", "staging_bytes"]
KINDS: tuple[What, ...] = ("uploads", "imports", "staging_bytes")


class UnderWay:
    """Tells ``on_change(what, by)`` how much more or less of something is under way. Safe from many threads."""

    def __init__(self) -> None:
        self.on_change: Callable[[What, int], None] = lambda what, by: None

    @contextmanager
    def one_of(self, what: What) -> Iterator[None]:
        """Count one more of a kind within the ``with`` block."""
        self.on_change(what, 1)
        try:
            yield
        finally:
            self.on_change(what, -1)

    @contextmanager
    def bytes_of(self, what: What, progress: Progress) -> Iterator[Progress]:
        """The ``progress`` of a transfer, whose bytes so far are under way, within."""
        known = 0

        def tell(done: int, total: int | None) -> None:
            nonlocal known
            step, known = done - known, done
            self.on_change(what, step)
            progress(done, total)

        try:
            yield tell
        finally:
            self.on_change(what, -known)

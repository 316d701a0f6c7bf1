# SPDX-License-Identifier: Apache-2.0
"""WholeResponse: an HTTP response whose headers must have ended, for drivers whose client builds on http.client.

http.client takes headers that are cut for all there are, in the middle of a number too, so that a cut answer would tell
of a shorter image.
"""

from __future__ import annotations

import http.client
from typing import Any


class _Lines:
    """A file that remembers whether it came to its end."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.ended = False

    def readline(self, *arguments: int) -> bytes:
        line: bytes = self.file.readline(*arguments)
        self.ended |= not line.endswith(b"\n")
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


class WholeResponse(http.client.HTTPResponse):
    """A response whose headers ended as they should."""

    def begin(self) -> None:
        """Read status and headers; raises RemoteDisconnected where they were cut."""
        lines = _Lines(self.fp)
        self.fp: Any = lines
        super().begin()
        if self.fp is lines:
            self.fp = lines.file
        if lines.ended:
            self.close()
            raise http.client.RemoteDisconnected("the answer was cut in its headers")

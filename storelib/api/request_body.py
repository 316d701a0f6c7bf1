# SPDX-License-Identifier: Apache-2.0
"""The body of a request to gunicorn, read straight from the socket into memory that is used over and over.

gunicorn gathers what it receives in buffers of its own, out of which each block is copied twice.
"""

from __future__ import annotations

import io
from typing import Any

from gunicorn.http.body import Body, LengthReader
from gunicorn.http.unreader import SocketUnreader


def direct(body: Any) -> Any:
    """``body``, which fills memory too if its length is known."""
    reader = body.reader
    if isinstance(reader, LengthReader) and isinstance(reader.unreader, SocketUnreader):
        return _DirectBody(reader)
    return body


class _DirectBody(Body):  # type: ignore[misc]
    """With a ``readinto`` beside gunicorn's ``read``; either goes on where the other has stopped."""

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer`` with the next bytes; returns how many, 0 at the end."""
        unreader = self.reader.unreader
        # What was gathered already, and no more: asked for that, neither of them waits for the socket.
        for holder, held in ((self, self.buf.tell()), (self.reader, unreader.buf.seek(0, io.SEEK_END))):
            chunk: bytes = holder.read(min(len(buffer), held))
            if chunk:
                buffer[: len(chunk)] = chunk
                return len(chunk)
        if not self.reader.length:
            return 0
        try:
            count: int = unreader.sock.recv_into(buffer[: self.reader.length])
        except Exception:
            self.failed = True
            raise
        self.reader.length -= count
        return count

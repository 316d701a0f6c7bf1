# SPDX-License-Identifier: Apache-2.0
"""WholeResponse: an HTTP response that is the final one, its headers ended, for clients that build on http.client.

http.client takes headers that are cut for all there are, in the middle of a number too, so that a cut response would
tell of a shorter image. And of the interim responses that a server may send before the final one, as many as it likes
and unasked (RFC 9110, 15.2), it knows 100 only, so that 103 would be the response to any request.
"""

from __future__ import annotations

import http.client
import io
import re
from typing import Any

from storelib.transfer import deadlines

#: Interim responses to one request that are read before it is given up: more than any server has reason to send.
MOST_INTERIM = 1000
#: Bytes of one of them.
_LONGEST = 256 * 1024
#: A number of bytes, if it is told (RFC 9112, 6.3), of no more digits than 63 bits have.
_LENGTH = re.compile(r"[0-9]{0,19}", re.ASCII)
#: Bytes that io.BufferedReader asks for where less is wanted of it: of them fewer may come, and then nothing more.
_BUFFER = io.DEFAULT_BUFFER_SIZE
_SWITCHING = b"101"
_CONTINUE = b"100"


class EarlyResponse:
    """What a server sends while a request is still on its way to it, taken byte by byte and never one too many."""

    def __init__(self) -> None:
        #: Bytes taken of a response that has not ended: what reads on has to begin with them.
        self.begun = b""
        #: Interim responses that have ended.
        self.interim = 0
        #: The response that has begun is no interim one: the server wants no more of the request.
        self.final = False

    def take(self, byte: bytes) -> bool:
        """Take the next byte, none at the end of the connection; returns whether it ended a "100 Continue".

        Raises HTTPException where there are too many interim responses, or one has no end.
        """
        self.begun += byte
        # "HTTP/1.1 1", and then all but "101 Switching Protocols", which nobody asked for.
        start, status = self.begun[:10], self.begun[9:12]
        as_interim = b"HTTP/1." + start[7:8] + b" 1"
        if not byte or start != as_interim[: len(start)] or status == _SWITCHING:
            self.final = True
            return False
        if self.begun.endswith((b"\n\r\n", b"\n\n")):
            self.begun = b""
            self.interim += 1
        if self.interim > MOST_INTERIM or len(self.begun) > _LONGEST:
            raise _too_many()
        return not self.begun and status == _CONTINUE


class _PunctualFile(io.RawIOBase):
    """What a socket receives, read no later than the deadline of the thread that reads."""

    def __init__(self, received: io.RawIOBase, sock: Any) -> None:
        self._received = received
        self._socket = sock
        self.headers_ended = False
        #: The reader wants all of the buffer, not only what comes first of it, unless it is one of _BUFFER bytes.
        self.fills = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        own = self._socket.gettimeout()
        seconds = deadlines.within(own)
        deadlines.await_bytes(self._socket, seconds)
        if seconds != own:
            self._socket.settimeout(seconds)
            try:
                count = self._received.readinto(buffer)
            finally:
                self._socket.settimeout(own)
        elif self.fills and len(buffer) > _BUFFER and self.headers_ended and deadlines.is_moved_by_bytes():
            count = self._fill(memoryview(buffer))
        else:
            count = self._received.readinto(buffer)
        if self.headers_ended:
            deadlines.bytes_came()
        return count

    def _fill(self, view: memoryview) -> int:
        """Read until ``view`` is full or all has come.

        TLS gives 16 KiB at a time (RFC 8446, 5.1). To look at the deadline for each of them would be a fifth of what
        reading costs (measured).
        """
        filled = 0
        while filled < len(view) and (count := self._socket.recv_into(view[filled:])):
            filled += count
        return filled

    def fileno(self) -> int:
        return self._received.fileno()

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._received.close()


class _Lines:
    """A file that begins with bytes read before, and remembers whether it came to its end."""

    def __init__(self, file: Any, begun: bytes) -> None:
        self.file = file
        self.ended = False
        self._begun = begun

    def readline(self, *arguments: int) -> bytes:
        first, newline, self._begun = self._begun.partition(b"\n")
        line: bytes = first + (newline or self.file.readline(*arguments))
        self.ended |= not line.endswith(b"\n")
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


class WholeResponse(http.client.HTTPResponse):
    """The final response to a request, whose headers ended as they should; ``early`` is what was read of it before."""

    def __init__(self, *arguments: Any, early: EarlyResponse | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._early = early or EarlyResponse()
        self._received = _PunctualFile(self.fp.detach(), arguments[0])
        self.fp: Any = io.BufferedReader(self._received, _BUFFER)

    def begin(self) -> None:
        """Read status and headers; raises RemoteDisconnected where they were cut."""
        lines = _Lines(self.fp, self._early.begun)
        self.fp = lines
        super().begin()
        if self.fp is lines:
            self.fp = lines.file
        if lines.ended:
            self.close()
            raise http.client.RemoteDisconnected("the response was cut in its headers")
        # urllib3 refuses it, too, but forgets to close what it has of the connection by then.
        lengths = {length.strip() for length in self.getheader("Content-Length", "").split(",")}
        if len(lengths) > 1:
            self.close()
            raise http.client.HTTPException("the response has several lengths")
        if not _LENGTH.fullmatch(lengths.pop()):
            self.close()
            raise http.client.HTTPException("the response has a length that is no number of bytes")
        self._received.headers_ended = True
        if http.HTTPStatus.OK <= self.status < http.HTTPStatus.MULTIPLE_CHOICES:
            deadlines.progress()

    def readinto(self, buffer: Any) -> int:
        """Read as many bytes of the body as ``buffer`` has room for; fewer only at its end."""
        self._received.fills = True
        try:
            return super().readinto(buffer)
        finally:
            self._received.fills = False

    def _read_status(self) -> tuple[str, int, str]:
        """The status line of the final response: http.client begins with it, and clients that open a tunnel."""
        for _ in range(MOST_INTERIM + 1 - self._early.interim):
            line: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
            if line[1] == http.HTTPStatus.SWITCHING_PROTOCOLS:
                raise http.client.UnknownProtocol("the server switches to a protocol that nobody asked for")
            if line[1] >= http.HTTPStatus.OK:
                return line
            http.client.parse_headers(self.fp)
        raise _too_many()


def _too_many() -> http.client.HTTPException:
    return http.client.HTTPException(f"the server sends interim responses without end, or more than {MOST_INTERIM}")

# SPDX-License-Identifier: Apache-2.0
"""ResponseReader: an image read through open responses of urllib3, all of one version."""

from __future__ import annotations

import abc
import contextlib
import threading
from typing import Any

from storelib.transfer.contract import KiB, Reader
from storelib.transfer.deadlines import at_most
from storelib.transfer.forking import forget_in_child

#: Bytes of one read from the socket. Of 1 MiB each they take a sixth less of a processor, but what has come of a read
#: is held back while the server pauses in the middle, and lost when the connection fails.
BLOCK = 256 * KiB
#: Seconds. Of a server whose responses begin sooner, one stream is faster than ranges side by side (measured).
QUICK = 0.005
# Reading away a body that nobody needs is cheaper than a new connection up to about so many bytes, if they come at all.
_WORTH_DRAINING = 64 * KiB
_DRAINED_IN = 1.0


class Body:
    """The bytes of one response; ``position`` is the offset of the next one in the image."""

    def __init__(self, response: Any, start: int, stop: int | None) -> None:
        """``start`` and ``stop`` say which bytes of the image it holds; ``stop`` is None where that is not known."""
        self.position = start
        self.stop = stop
        self._response = response
        self._file = _file_of(response)

    @property
    def ended(self) -> bool:
        """Whether all of it was read."""
        return self.position == self.stop

    def read_into(self, view: memoryview) -> int:
        """Fill ``view`` with up to BLOCK bytes; returns how many, 0 at its end, also when that came too early."""
        wanted = min(len(view), BLOCK)
        if self.stop is not None:
            wanted = min(wanted, self.stop - self.position)
        count: int = self._file.readinto(view[:wanted]) if wanted else 0
        self.position += count
        return count

    def skip_to(self, offset: int) -> None:
        """Read away what comes before ``offset``, from a server that sends all whatever it is asked for."""
        if self.position >= offset:
            return
        scratch = memoryview(bytearray(BLOCK))
        while self.position < offset and self.read_into(scratch[: offset - self.position]):
            pass

    def has_more(self) -> bool:
        """Whether a body that should be over goes on."""
        return bool(self._file.readinto(memoryview(bytearray(1))))

    def close(self) -> None:
        """Give the connection back if little or nothing is left to read, else close it."""
        discard(self._response)


def discard(response: Any) -> None:
    """Drop a response of urllib3; its connection is kept when little of the body is left."""
    if not response.closed:
        _drain(_file_of(response))
    if response.closed:
        response.release_conn()
    response.close()


def _drain(file: Any) -> None:
    left = getattr(file, "length", None)
    if left is not None and left <= _WORTH_DRAINING:
        # Nobody wants these bytes.
        with contextlib.suppress(Exception), at_most(_DRAINED_IN):
            file.read()


class discarding_on_error:  # noqa: N801  (as contextlib.suppress)
    """``with discarding_on_error(response)``: discard a response in which something is found to be wrong."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            discard(self._response)


def _file_of(response: Any) -> Any:
    """The response of http.client below one of urllib3, whose own methods copy every byte once more.

    That is 8 % less CPU (measured, plain HTTP).
    """
    return getattr(response, "_fp", None) or response


class ResponseReader(Reader):
    """Reads with one response until it ends or is cut, then asks for the rest; far away, with ranges side by side.

    A driver's reader learns ``size`` and the version of the image from the first response, and begins with it.
    """

    inheritable = True
    #: Offset of the end of the range that was opened.
    end: int

    def __init__(self) -> None:
        self._inherited: list[dict[int, Body]] = []
        # Responses being read, by the offset each would go on with.
        self._bodies: dict[int, Body] = {}
        self.forget_parent()
        forget_in_child(self)

    def forget_parent(self) -> None:
        """In a forked child: bytes that it took from a connection, to close it or not, would lack in the parent."""
        self._lock = threading.Lock()
        self._inherited.append(self._bodies)
        self._bodies = {}

    def begin(self, first: Body | None, offset: int, length: int | None) -> None:
        """Go on with the first response, None if it cannot be used, to read ``length`` bytes, None for all."""
        self.end = self.size if length is None else min(offset + length, self.size)
        if first is not None and offset < self.end:
            self._bodies[offset] = first
        elif first is not None:
            first.close()

    def is_far(self, offset: int, latency: float) -> bool:
        """Whether ranges side by side are faster: ``latency`` is what the server took to respond, in seconds."""
        return latency > QUICK and self.end - offset > self.part_size

    @abc.abstractmethod
    def ask(self, offset: int, end: int) -> Body:
        """Ask for the bytes from ``offset`` up to ``end``, which may be behind the end of the image.

        They must be of the version first seen; raises ImageChanged where there is another one now.
        """

    def received(self, body: Body, offset: int, data: memoryview) -> None:
        """Look at bytes that came, none at the end of a response; raises what is to end the reading."""

    def read_into(self, offset: int, view: memoryview) -> int:
        """Read from the response that has come as far as ``offset``, or ask for one that starts there."""
        with self._lock:
            body = self._bodies.pop(offset, None)
        if body is None:
            end = offset + len(view)
            body = self.ask(offset, end if self.concurrency > 1 else max(self.end, end))
        try:
            body.skip_to(offset)
            count = body.read_into(view)
            self.received(body, offset, view[:count])
        except BaseException:
            body.close()
            raise
        # Of ranges side by side, each is wanted only as far as its view goes.
        if count == 0 or body.ended or (self.concurrency > 1 and count == len(view)):
            body.close()
        else:
            self._keep(body)
        return count

    def close(self) -> None:
        """Close what was not read to its end."""
        for body in self._bodies.values():
            body.close()
        self._bodies.clear()

    def _keep(self, body: Body) -> None:
        with self._lock:
            self._bodies[body.position] = body
            # What a seek left behind would otherwise stay open.
            oldest = [self._bodies.pop(next(iter(self._bodies)))] if len(self._bodies) > self.concurrency else []
        for stale in oldest:
            stale.close()

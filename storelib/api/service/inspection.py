# SPDX-License-Identifier: Apache-2.0
"""Bytes on their way from a client to a store: counted, limited, and looked at for what format they are.

A stream that is not what the image says, or that would, raises UnsupportedMediaType when it is read, which makes the
store's add fail before anything is published.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from storelib.api.errors import ApiError, BadRequest, LimitExceeded, UnsupportedMediaType
from storelib.exceptions import StoreError
from storelib.inspection.source import Errors, Guarded, Inspected, Readable
from storelib.readables import filler
from storelib.transfer.deadlines import check_wanted

T = TypeVar("T")

#: Those of an upload.
_ERRORS = Errors(UnsupportedMediaType, (ApiError, StoreError))


class ClientDisconnected(BadRequest):
    """The client went away before it had sent everything. 400."""


class Body:
    """The body of a request: ``length`` bytes (None: up to its end), at most ``limit``; counts what it gives."""

    def __init__(self, stream: Readable, length: int | None, limit: int) -> None:
        self._stream = stream
        self._fill = filler(stream)
        self._left = length
        self._limit = limit
        self.count = 0

    def read(self, size: int) -> bytes:
        """The next bytes; raises ClientDisconnected, LimitExceeded, and why the transfer is not wanted any more."""
        size = self._wanted(size)
        chunk = self._explained(lambda: self._stream.read(size)) if size else b""
        self._count(len(chunk), size)
        return chunk

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer`` with the next bytes; returns how many, 0 at the end. Raises what ``read`` raises."""
        size = self._wanted(len(buffer))
        count = self._explained(lambda: self._fill(buffer[:size])) if size else 0
        self._count(count, size)
        return count

    def _wanted(self, size: int) -> int:
        check_wanted()
        return size if self._left is None else min(size, self._left)

    def _explained(self, read: Callable[[], T]) -> T:
        """What ``read`` returns, its errors as those of a request."""
        try:
            return read()
        except (ApiError, StoreError):
            raise
        except (OSError, ValueError) as error:
            raise ClientDisconnected(f"the connection was lost after {self.count} bytes") from error
        except Exception as error:  # what a server raises for chunks that are none is its own
            raise BadRequest(f"the body cannot be read after {self.count} bytes: {error}") from error

    def _count(self, count: int, wanted: int) -> None:
        if self._left is not None and wanted:
            if not count:
                raise ClientDisconnected(f"the connection ended after {self.count} bytes, {self._left} were to come")
            self._left -= count
        self.count += count
        if self.count > self._limit:
            raise LimitExceeded(f"the image has more than the {self._limit} bytes that are allowed")


def inspected(options: Any, disk_format: str, container_format: str | None, source: Readable) -> Guarded:
    """``source`` with its format checked as far as the ``[api]`` options and its container demand."""
    if container_format != "bare":
        return Guarded(source, disk_format, errors=_ERRORS)
    return Inspected(
        source,
        disk_format,
        enforce=options.require_image_format_match,
        nonfatal=options.gpt_safety_checks_nonfatal,
        errors=_ERRORS,
    )


def virtual_size(checked: Guarded, disk_format: str | None, container_format: str | None, size: int) -> int | None:
    """Bytes of the disk that data of ``size`` bytes is, of which ``checked`` has seen enough; None: not known."""
    if disk_format == "raw" and container_format == "bare":
        return size
    return checked.virtual_size_of(size)

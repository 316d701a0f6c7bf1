# SPDX-License-Identifier: Apache-2.0
"""Bytes on their way from a client to a store: counted, limited, and looked at for what format they are.

oslo.utils recognises the formats. A stream that is not what the image says, or that would make a hypervisor open other
files, raises UnsupportedMediaType from ``read``, which makes the store's add fail before anything is published.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import IO, Any, Protocol, cast

from oslo_utils.imageutils import format_inspector

from storelib.api.errors import ApiError, Invalid, LimitExceeded, UnsupportedMediaType
from storelib.exceptions import StoreError

#: What may be found besides the format itself: a disk with a partition table is a raw disk to everybody else, and
#: bootable ISO images have one, too.
_ALSO = {"raw": [{"gpt"}], "iso": [{"iso", "gpt"}]}
#: Formats of which no header tells how large the disk is.
_AS_LONG_AS_THE_DATA = frozenset({"gpt", "luks"})


class Readable(Protocol):
    """What a body is read from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, empty at the end."""


class ClientDisconnected(Invalid):
    """The client went away before it had sent everything. 400."""


class Body:
    """The body of a request: ``length`` bytes (None: up to its end), at most ``limit``; counts what it gives."""

    def __init__(self, stream: Readable, length: int | None, limit: int) -> None:
        self._stream = stream
        self._left = length
        self._limit = limit
        self.count = 0

    def read(self, size: int) -> bytes:
        """The next bytes; raises ClientDisconnected and LimitExceeded."""
        if self._left is not None:
            size = min(size, self._left)
        if not size:
            return b""
        try:
            chunk = self._stream.read(size)
        except (ApiError, StoreError):
            raise
        except (OSError, ValueError) as error:
            raise ClientDisconnected(f"the connection was lost after {self.count} bytes") from error
        except Exception as error:  # what a server raises for chunks that are none is its own
            raise Invalid(f"the body cannot be read after {self.count} bytes: {error}") from error
        if self._left is not None:
            if not chunk:
                raise ClientDisconnected(f"the connection ended after {self.count} bytes, {self._left} were to come")
            self._left -= len(chunk)
        self.count += len(chunk)
        if self.count > self._limit:
            raise LimitExceeded(f"the image has more than the {self._limit} bytes that are allowed")
        return chunk


class Inspected:
    """A source whose format is checked against ``disk_format`` as it is read."""

    def __init__(
        self, source: Readable, disk_format: str, *, enforce: bool = True, nonfatal: Collection[str] = ()
    ) -> None:
        self._source = source
        self._format = disk_format
        self._enforce = enforce
        self._nonfatal = frozenset(nonfatal)
        expected = disk_format if enforce and disk_format in format_inspector.ALL_FORMATS else None
        self._wrapper = format_inspector.InspectWrapper(cast(IO[bytes], source), expected_format=expected)
        self._decided = False
        self._found: Any = None
        self._behind = 0

    def read(self, size: int) -> bytes:
        """The next bytes; raises UnsupportedMediaType."""
        if self._decided:
            chunk = self._source.read(size)
            self._behind += len(chunk)
            return chunk
        try:
            chunk = self._wrapper.read(size)
        except (ApiError, StoreError):
            raise
        except Exception as error:  # parsers of hostile data raise anything
            raise UnsupportedMediaType(f"the data is not of format {self._format}: {error}") from error
        if not chunk:
            self._wrapper.close()
        if not chunk or self._wrapper.formats is not None:
            self._decide()
        return chunk

    def _decide(self) -> None:
        self._decided = True
        found: dict[str, Any] = {str(inspector): inspector for inspector in self._wrapper.formats or ()}
        if self._enforce:
            self._check(set(found))
        for inspector in found.values():
            self._check_safety(inspector)
        self._found = found.get(self._format)

    @property
    def virtual_size(self) -> int | None:
        """Bytes of the disk in the image, once all was read; None for raw data, whose size it is."""
        if self._found is None or self._format == "raw":
            return None
        size: int = self._found.virtual_size
        # oslo.utils tells it as if the image ended where it stopped looking.
        if self._format in _AS_LONG_AS_THE_DATA:
            size += self._behind
        return size if size > 0 else None

    def _check(self, found: set[str]) -> None:
        # Formats nobody can recognise (ami, ploop) look like raw data.
        wanted = self._format if self._format in format_inspector.ALL_FORMATS else "raw"
        if found not in ({wanted}, *_ALSO.get(wanted, ())):
            shown = " and ".join(sorted(found)) or "unknown"
            raise UnsupportedMediaType(f"the image's disk_format is {self._format}, but the data is {shown}")

    def _check_safety(self, inspector: Any) -> None:
        try:
            inspector.safety_check()
        except format_inspector.SafetyCheckFailed as error:
            if str(inspector) == "gpt" and set(error.failures) <= self._nonfatal:
                return
            names = ", ".join(sorted(error.failures))
            raise UnsupportedMediaType(f"the data is not safe to use as {inspector}: {names}") from error
        except format_inspector.ImageFormatError as error:
            raise UnsupportedMediaType(f"the data cannot be checked as {inspector}: {error}") from error

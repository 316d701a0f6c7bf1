# SPDX-License-Identifier: Apache-2.0
"""Bytes on their way from a client to a store: counted, limited, and looked at for what format they are.

oslo.utils recognises the formats, ``probing`` what would make a hypervisor open other files. A stream that is not what
the image says, or that would, raises UnsupportedMediaType from ``read``, which makes the store's add fail before
anything is published.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import IO, Any, Protocol, cast

from oslo_utils.imageutils import format_inspector

from storelib.api.errors import ApiError, BadRequest, LimitExceeded, UnsupportedMediaType
from storelib.api.service import probing
from storelib.exceptions import StoreError

#: What may be found besides the format itself: a disk with a partition table is a raw disk to all other programs, and
#: bootable ISO images have one, too.
_ALSO = {"raw": [{"gpt"}], "iso": [{"iso", "gpt"}]}
#: Formats of which no header tells how large the disk is.
_AS_LONG_AS_THE_DATA = frozenset({"gpt", "luks"})
_ANY_VERSION = frozenset({"version"})
#: Bytes that are looked at at once, until it is known what they are.
BLOCK = 256 * 1024
#: The most that the database can say of a disk, in bytes.
_LARGEST_DISK = 2**63 - 1


class Readable(Protocol):
    """What a body is read from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, empty at the end."""


class ClientDisconnected(BadRequest):
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
            raise BadRequest(f"the body cannot be read after {self.count} bytes: {error}") from error
        if self._left is not None:
            if not chunk:
                raise ClientDisconnected(f"the connection ended after {self.count} bytes, {self._left} were to come")
            self._left -= len(chunk)
        self.count += len(chunk)
        if self.count > self._limit:
            raise LimitExceeded(f"the image has more than the {self._limit} bytes that are allowed")
        return chunk


class _Ahead:
    """A source whose first bytes are looked at before they are read."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._pending = b""
        self._ended = False

    def peek(self, length: int) -> bytes:
        """The next ``length`` bytes, fewer where there are no more, which stay to be read."""
        self._pending = self.read_all(length)
        return self._pending

    def read(self, size: int, /) -> bytes:
        """The next bytes, empty at the end."""
        if self._pending:
            chunk, self._pending = self._pending[:size], self._pending[size:]
            return chunk
        # A source may not like to be asked again.
        if self._ended or not size:
            return b""
        chunk = self._source.read(size)
        self._ended = not chunk
        return chunk

    def read_all(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer at the end only."""
        chunks: list[bytes] = []
        while size > 0 and (chunk := self.read(size)):
            chunks.append(chunk)
            size -= len(chunk)
        return b"".join(chunks)


class _Blocks:
    """What oslo.utils reads: each of its reads costs it as much for one byte as for many."""

    def __init__(self, source: _Ahead) -> None:
        self._source = source

    def read(self, size: int, /) -> bytes:
        return self._source.read_all(min(size, BLOCK))


def inspected(options: Any, disk_format: str, container_format: str | None, source: Readable) -> Guarded:
    """``source`` with its format checked as far as the ``[api]`` options and its container demand."""
    if container_format != "bare":
        return Guarded(source, disk_format)
    return Inspected(
        source,
        disk_format,
        enforce=options.require_image_format_match,
        nonfatal=options.gpt_safety_checks_nonfatal,
    )


class Guarded:
    """A source that is checked for making a hypervisor open other files, whatever else it is."""

    def __init__(self, source: Readable, disk_format: str) -> None:
        self._source = _Ahead(source)
        self._format = disk_format
        self._began = False

    def read(self, size: int) -> bytes:
        """The next bytes; raises UnsupportedMediaType."""
        if not self._began:
            self._check_head()
        return self._source.read(size)

    def look(self) -> None:
        """Read no more than is needed to know, unless it is known; raises UnsupportedMediaType."""
        if not self._began:
            self._check_head()

    @property
    def virtual_size(self) -> int | None:
        """Bytes of the disk in the image, once all was read; None where it is not known, or that of the data."""
        return None

    def _check_head(self) -> bytes:
        """Returns what was looked at."""
        self._began = True
        head = self._source.peek(probing.FIRST)
        if (needed := probing.needed(head, self._format)) > len(head):
            head = self._source.peek(needed)
        if why := probing.danger(head, self._format):
            raise UnsupportedMediaType(why)
        return head


class Inspected(Guarded):
    """A source whose format is checked against ``disk_format`` as it is read."""

    def __init__(
        self, source: Readable, disk_format: str, *, enforce: bool = True, nonfatal: Collection[str] = ()
    ) -> None:
        super().__init__(source, disk_format)
        self._enforce = enforce
        self._nonfatal = frozenset(nonfatal)
        self._wrapper: format_inspector.InspectWrapper | None = None
        self._probed: set[str] = set()
        #: The end so far of a VHD, which has a footer there, too.
        self._last = b""
        self._decided = False
        #: What the header says, without the data that came after the decision.
        self._disk_size: int | None = None
        self._behind = 0

    def read(self, size: int) -> bytes:
        """The next bytes; raises UnsupportedMediaType."""
        if self._decided:
            chunk = self._source.read(size)
            self._behind += len(chunk)
            return chunk
        try:
            if self._wrapper is None:
                self._wrapper = self._begin()
            chunk = self._wrapper.read(size)
            if not chunk:
                self._wrapper.close()
            found = self._wrapper.formats
            if "vhd" in self._probed:
                self._last = (self._last + chunk)[-probing.FOOTER :]
                found = None if chunk else found
            if found is not None:
                self._decide({str(inspector): inspector for inspector in found})
        except (ApiError, StoreError):
            raise
        except Exception as error:  # parsers of hostile data raise anything
            raise UnsupportedMediaType(f"the data cannot be read as {self._format}: {error}") from error
        return chunk

    def look(self) -> None:
        """Read no more than is needed to know, unless it is known; raises UnsupportedMediaType."""
        while not self._decided:
            self.read(BLOCK)

    def _begin(self) -> format_inspector.InspectWrapper:
        head = self._check_head()
        self._probed = probing.formats_of(head)
        # oslo.utils takes texts for VMDK, and looks far into everything for what only VHDX has.
        names = [name for name in format_inspector.ALL_FORMATS if name not in ("vmdk", "vhdx") or name in self._probed]
        expected = self._format if self._enforce and self._format in names else None
        return format_inspector.InspectWrapper(cast(IO[bytes], _Blocks(self._source)), expected, names)

    def _decide(self, found: Mapping[str, Any]) -> None:
        self._decided = True
        self._check_other_files(found)
        if self._enforce:
            self._check(set(found))
        for inspector in found.values():
            self._check_safety(inspector)
        # Raw disks are as large as the data, whatever a guest has written into them.
        if self._format != "raw" and self._format in found:
            self._disk_size = found[self._format].virtual_size
            if self._disk_size > _LARGEST_DISK:
                raise UnsupportedMediaType(f"the disk has {self._disk_size} bytes, which is more than there can be")

    @property
    def virtual_size(self) -> int | None:
        """Bytes of the disk in the image, once all was read; None for raw data, whose size it is."""
        if self._disk_size is None:
            return None
        # oslo.utils tells it as if the image ended where it stopped looking.
        size = self._disk_size + (self._behind if self._format in _AS_LONG_AS_THE_DATA else 0)
        return size if size > 0 else None

    def _check_other_files(self, found: Mapping[str, Any]) -> None:
        """Refuse what may make a hypervisor open other files although oslo.utils does not recognise or mind it."""
        if unknown := self._probed - found.keys():
            name = min(unknown)
            raise UnsupportedMediaType(f"the data begins like {name}, but is no {name} that is safe to use")
        if why := probing.danger_in_footer(self._last):
            raise UnsupportedMediaType(why)
        if "vhdx" in found:
            inspector = found["vhdx"]
            if not inspector.has_region("vds"):
                raise UnsupportedMediaType("the data is not safe to use as vhdx: its metadata cannot be found")
            if why := probing.danger_in_vhdx(inspector.region("metadata").data):
                raise UnsupportedMediaType(why)

    def _check(self, found: set[str]) -> None:
        # What guests and block storage make of a raw disk (LUKS, ISO, a disk image in it) is a raw disk still; each is
        # checked for what it would make a hypervisor do.
        if self._format == "raw" and (len(found) == 1 or found in _ALSO["iso"]):
            return
        # Formats that cannot be recognised (ami, ploop) look like raw data.
        wanted = self._format if self._format in format_inspector.ALL_FORMATS else "raw"
        if found not in ({wanted}, *_ALSO.get(wanted, ())):
            shown = " and ".join(sorted(found)) or "unknown"
            raise UnsupportedMediaType(f"the image's disk_format is {self._format}, but the data is {shown}")

    def _check_safety(self, inspector: Any) -> None:
        try:
            inspector.safety_check()
        except format_inspector.SafetyCheckFailed as error:
            if set(error.failures) <= self._accepted(str(inspector)):
                return
            names = ", ".join(sorted(error.failures))
            raise UnsupportedMediaType(f"the data is not safe to use as {inspector}: {names}") from error
        except format_inspector.ImageFormatError as error:
            raise UnsupportedMediaType(f"the data cannot be checked as {inspector}: {error}") from error

    def _accepted(self, found: str) -> frozenset[str]:
        """Names of the checks that data of the format ``found`` may fail."""
        if found == "gpt":
            return self._nonfatal
        # oslo.utils reads version 1 of LUKS only; as a raw disk version 2 is as good.
        return _ANY_VERSION if found == "luks" and self._format == "raw" else frozenset()

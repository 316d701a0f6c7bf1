# SPDX-License-Identifier: Apache-2.0
"""Data that is looked at as it is read: of what format it is, and whether it would make a hypervisor open other files.

oslo.utils recognises the formats, ``probing`` what would make a hypervisor open other files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import IO, Any, NamedTuple, Protocol, cast

from oslo_utils.imageutils import format_inspector

from storelib.exceptions import Invalid, StoreError
from storelib.inspection import probing
from storelib.readables import filler

#: What may be found besides the format itself: a disk with a partition table is a raw disk to all other programs, and
#: bootable ISO images have one, too.
_ALSO = {"raw": [{"gpt"}], "iso": [{"iso", "gpt"}]}
#: Formats of which no header tells how large the disk is.
_AS_LONG_AS_THE_DATA = frozenset({"gpt", "luks"})
_ANY_VERSION = frozenset({"version"})
_ANY_FEATURES = frozenset({"unknown_features"})
#: Bytes that are looked at at once, until it is known what they are.
BLOCK = 256 * 1024
#: The most that the database can say of a disk, in bytes.
_LARGEST_DISK = 2**63 - 1


class Readable(Protocol):
    """What a body is read from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, empty at the end."""


class Errors(NamedTuple):
    """``refused`` is raised for data that is not what it should be; what the source raises of ``passed`` stays."""

    refused: type[Exception] = Invalid
    passed: tuple[type[Exception], ...] = (StoreError, OSError)


_OWN = Errors()


class Ahead:
    """A source whose first bytes are looked at before they are read."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._fill = filler(source)
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

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer`` with the next bytes; returns how many, 0 at the end."""
        if self._pending or self._ended or not buffer:
            chunk = self.read(len(buffer))
            buffer[: len(chunk)] = chunk
            return len(chunk)
        count = self._fill(buffer)
        self._ended = not count
        return count

    def read_all(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer at the end only."""
        chunks: list[bytes] = []
        while size > 0 and (chunk := self.read(size)):
            chunks.append(chunk)
            size -= len(chunk)
        return b"".join(chunks)


class _Blocks:
    """What oslo.utils reads: each of its reads costs it as much for one byte as for many."""

    def __init__(self, source: Ahead) -> None:
        self._source = source

    def read(self, size: int, /) -> bytes:
        return self._source.read_all(min(size, BLOCK))


class Guarded:
    """A source that is checked for making a hypervisor open other files, whatever else it is."""

    def __init__(self, source: Readable, disk_format: str, *, errors: Errors = _OWN) -> None:
        self._errors = errors
        self._source = Ahead(source)
        self._format = disk_format
        self._began = False

    def read(self, size: int) -> bytes:
        """The next bytes; raises what ``errors`` says."""
        if not self._began:
            self._check_head()
        return self._source.read(size)

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer`` with the next bytes; returns how many, 0 at the end. Raises what ``errors`` says."""
        if not self._began:
            self._check_head()
        return self._source.readinto(buffer)

    def look(self) -> None:
        """Read no more than is needed to know, unless it is known; raises what ``errors`` says."""
        if not self._began:
            self._check_head()

    @property
    def virtual_size(self) -> int | None:
        """``virtual_size_of`` what was read, once that is all."""
        return None

    def virtual_size_of(self, size: int) -> int | None:
        """Bytes of the disk in data of ``size`` bytes; None where that is not known, or is that of the data."""
        return None

    def _check_head(self) -> bytes:
        """Returns what was looked at."""
        self._began = True
        head = self._source.peek(probing.FIRST)
        if (needed := probing.needed(head, self._format)) > len(head):
            head = self._source.peek(needed)
        if why := probing.danger(head, self._format):
            raise self._errors.refused(why)
        return head


class Inspected(Guarded):
    """A source whose format is checked against ``disk_format`` as it is read."""

    def __init__(
        self,
        source: Readable,
        disk_format: str,
        *,
        enforce: bool = True,
        nonfatal: Collection[str] = (),
        errors: Errors = _OWN,
    ) -> None:
        super().__init__(source, disk_format, errors=errors)
        self._enforce = enforce
        self._nonfatal = frozenset(nonfatal)
        self._wrapper: format_inspector.InspectWrapper | None = None
        self._probed: set[str] = set()
        #: The end so far of a VHD, which has a footer there, too, or nowhere else.
        self._last = b""
        self._has_footer = False
        self._decided = False
        #: What the header says, as if the data ended where it was decided what it is.
        self._disk_size: int | None = None
        self._seen = self._behind = 0

    def read(self, size: int) -> bytes:
        """The next bytes; raises what ``errors`` says."""
        if self._decided:
            chunk = self._source.read(size)
            self._behind += len(chunk)
            return chunk
        try:
            if self._wrapper is None:
                self._wrapper = self._begin()
            chunk = self._wrapper.read(size)
            self._seen += len(chunk)
            if not chunk:
                self._wrapper.close()
            found = self._wrapper.formats
            if self._has_footer:
                self._last = (self._last + chunk)[-probing.FOOTER :]
                found = None if chunk else found
            if found is not None:
                self._decide({str(inspector): inspector for inspector in found})
        except (self._errors.refused, *self._errors.passed):
            raise
        except Exception as error:  # parsers of hostile data raise anything
            raise self._errors.refused(f"the data cannot be read as {self._format}: {error}") from error
        return chunk

    def readinto(self, buffer: memoryview) -> int:
        """The same, copied only as long as it is not known what they are."""
        if self._decided:
            count = self._source.readinto(buffer)
            self._behind += count
            return count
        chunk = self.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def look(self) -> None:
        """Read no more than is needed to know, unless it is known; raises what ``errors`` says."""
        while not self._decided:
            self.read(BLOCK)

    def _begin(self) -> format_inspector.InspectWrapper:
        head = self._check_head()
        self._probed = probing.formats_of(head)
        # oslo.utils takes texts for VMDK, and looks far into everything for what only VHDX has.
        names = [name for name in format_inspector.ALL_FORMATS if name not in ("vmdk", "vhdx") or name in self._probed]
        # Of a fixed VHD only its end says so.
        fixed = self._format == "vhd" and "vhd" not in self._probed
        self._has_footer = fixed or "vhd" in self._probed
        expected = self._format if self._enforce and self._format in names and not fixed else None
        return format_inspector.InspectWrapper(cast(IO[bytes], _Blocks(self._source)), expected, names)

    def _decide(self, found: Mapping[str, Any]) -> None:
        self._decided = True
        self._check_other_files(found)
        if self._enforce:
            self._check(set(found))
        for inspector in found.values():
            self._check_safety(inspector)
        if self._format == "vhd" and "vhd" not in found:
            self._disk_size = probing.size_in_footer(self._last)
        # Raw disks are as large as the data, whatever a guest has written into them.
        if self._format != "raw" and self._format in found:
            self._disk_size = found[self._format].virtual_size
        if self._disk_size is not None and self._disk_size > _LARGEST_DISK:
            raise self._errors.refused(f"the disk has {self._disk_size} bytes, which is more than there can be")

    @property
    def virtual_size(self) -> int | None:
        """``virtual_size_of`` what was read, once that is all."""
        return self.virtual_size_of(self._seen + self._behind)

    def virtual_size_of(self, size: int) -> int | None:
        """The same, from what its beginning said; None for raw data, whose size it is."""
        if self._disk_size is None:
            return None
        # oslo.utils tells it as if the image ended where it stopped looking.
        behind = size - self._seen if self._format in _AS_LONG_AS_THE_DATA else 0
        return max(self._disk_size + behind, 0) or None

    def _check_other_files(self, found: Mapping[str, Any]) -> None:
        """Refuse what may make a hypervisor open other files although oslo.utils does not recognise or mind it."""
        if unknown := self._probed - found.keys():
            name = min(unknown)
            raise self._errors.refused(f"the data begins like {name}, but is no {name} that is safe to use")
        if why := probing.danger_in_footer(self._last):
            raise self._errors.refused(why)
        if "vhdx" in found:
            inspector = found["vhdx"]
            if not inspector.has_region("vds"):
                raise self._errors.refused("the data is not safe to use as vhdx: its metadata cannot be found")
            metadata, size = inspector.region("metadata"), inspector.region("vds")
            if why := probing.danger_in_vhdx(metadata.data, metadata.offset, size.offset):
                raise self._errors.refused(why)

    def _check(self, found: set[str]) -> None:
        # What guests and block storage make of a raw disk (LUKS, ISO, a disk image in it) is a raw disk still; each is
        # checked for what it would make a hypervisor do.
        if self._format == "raw" and (len(found) == 1 or found in _ALSO["iso"]):
            return
        # A raw disk with a footer is one to all who do not know of the footer.
        if self._format == "vhd" and found in ({"raw"}, {"gpt"}) and probing.size_in_footer(self._last) is not None:
            return
        # Formats that cannot be recognised (ami, ploop) look like raw data.
        wanted = self._format if self._format in format_inspector.ALL_FORMATS else "raw"
        if found not in ({wanted}, *_ALSO.get(wanted, ())):
            shown = " and ".join(sorted(found)) or "unknown"
            raise self._errors.refused(f"the image's disk_format is {self._format}, but the data is {shown}")

    def _check_safety(self, inspector: Any) -> None:
        try:
            inspector.safety_check()
        except format_inspector.SafetyCheckFailed as error:
            if set(error.failures) <= self._accepted(str(inspector)):
                return
            names = ", ".join(sorted(error.failures))
            raise self._errors.refused(f"the data is not safe to use as {inspector}: {names}") from error
        except format_inspector.ImageFormatError as error:
            raise self._errors.refused(f"the data cannot be checked as {inspector}: {error}") from error

    def _accepted(self, found: str) -> frozenset[str]:
        """Names of the checks that data of the format ``found`` may fail."""
        if found == "gpt":
            return self._nonfatal
        # oslo.utils does not know those that ``probing`` knows.
        if found == "qcow2":
            return _ANY_FEATURES
        # oslo.utils reads version 1 of LUKS only; as a raw disk version 2 is as good.
        return _ANY_VERSION if found == "luks" and self._format == "raw" else frozenset()

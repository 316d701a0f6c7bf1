# SPDX-License-Identifier: Apache-2.0
"""VmwareReader: one image read with as few requests as possible, all of them of one version."""

from __future__ import annotations

import email.utils
import re
from dataclasses import dataclass

from storelib.drivers.vmware.connections import Answer
from storelib.drivers.vmware.datastores import Datastores, File
from storelib.drivers.vmware.errors import HttpError
from storelib.drivers.vmware.location import VmwareLocation
from storelib.drivers.vmware.options import Target
from storelib.exceptions import ImageChanged, IncompleteRead, NotFound, RemoteServiceUnavailable
from storelib.transfer.contract import Reader

_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,19})-([0-9]{1,19})|\*)/([0-9]{1,19})")
_REFUSED_RANGE = 416


@dataclass(frozen=True)
class Version:
    """What the headers of an answer tell of the file, in whole seconds."""

    etag: str | None
    modified: str | None

    @classmethod
    def of(cls, answer: Answer) -> Version:
        """That of one answer."""
        return cls(answer.headers.get("ETag"), answer.headers.get("Last-Modified"))


class VmwareReader(Reader):
    """Reads with one response until it ends or is cut, then asks for the rest."""

    def __init__(self, datastores: Datastores, location: VmwareLocation, offset: int, length: int | None) -> None:
        self._datastores = datastores
        self._location = location
        self._target = Target(location.datacenter, location.datastore)
        # What the datastore tells more closely than headers do, of a file that is younger than a second.
        self._file: File | None = None
        end = None if length is None else offset + max(length, 1)
        answer = self._get(offset, end)
        if not _is_settled(answer):
            # Another file could take its place within the same second.
            answer.close()
            self._file = self._look()
            answer = self._get(offset, end)
        try:
            self._version = Version.of(answer)
            self.size = self._size_of(answer)
        except BaseException:
            answer.close()
            raise
        self._end = self.size if length is None else min(offset + length, self.size)
        self._body: Body | None = None
        if answer.status == _REFUSED_RANGE or offset >= self._end:
            answer.close()
        else:
            self._body = Body(answer, offset)

    def read_into(self, offset: int, view: memoryview) -> int:
        """Read from the response that has come as far as ``offset``, or ask for one that starts there."""
        body, self._body = self._body, None
        if body is not None and body.position != offset:
            body.close()
            body = None
        if body is None:
            body = self._ask(offset, max(self._end, offset + len(view)))
        try:
            count = body.read_into(view)
        except BaseException:
            body.close()
            raise
        if count == 0 or body.ended:
            body.close()
        else:
            self._body = body
        return count

    def close(self) -> None:
        """Close what was not read to its end."""
        if self._body is not None:
            self._body.close()
            self._body = None

    def _ask(self, offset: int, end: int) -> Body:
        """A response from ``offset`` on, of the version first seen."""
        if self._file is not None and self._file.modified.is_integer():
            raise IncompleteRead(
                f"reading {self._location} cannot go on at byte {offset}: the image was added less than a second "
                "before, and vCenter does not tell it from another that takes its place; start again"
            )
        answer = self._get(offset, end if end < self.size else None)
        try:
            same = Version.of(answer) == self._version and self._size_of(answer) == self.size
            if answer.status == _REFUSED_RANGE or not same or (self._file is not None and self._look() != self._file):
                raise ImageChanged(f"{self._location} changed while it was read")
        except BaseException:
            answer.close()
            raise
        return Body(answer, offset)

    def _get(self, offset: int, end: int | None) -> Answer:
        """An answer that is the image, from that byte on, or that there are not so many bytes."""
        answer = self._datastores.get(self._location, offset, end)
        try:
            self._check(answer, offset)
        except BaseException:
            answer.close()
            raise
        return answer

    def _check(self, answer: Answer, offset: int) -> None:
        if answer.status == _REFUSED_RANGE:
            return
        if answer.status not in (200, 206):
            raise HttpError("GET", answer.status)
        if answer.status == 200:
            # A server of files gives the range that was asked for; this may be a page, whatever its status.
            if offset or answer.length != self._look().size:
                raise RemoteServiceUnavailable(f"vCenter answered with something else than {self._location}")
            return
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        first, last, size = match.groups() if match else (None, None, None)
        if first is None or int(first) != offset or not int(first) <= int(last or 0) < int(size or 0):
            raise RemoteServiceUnavailable(f"vCenter sent another part of {self._location} than was asked for")

    def _size_of(self, answer: Answer) -> int:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if match is not None:
            return int(match[3])
        if answer.status == 200 and answer.length is not None:
            return answer.length
        size = self._datastores.size(self._target, self._names)
        if size is None:
            raise NotFound(f"there is no image at {self._location}")
        return size

    def _look(self) -> File:
        found = self._datastores.find(self._target, self._names)
        if found is None or found.is_folder:
            raise NotFound(f"there is no image at {self._location}")
        return found

    @property
    def _names(self) -> tuple[str, ...]:
        return (*self._datastores.directory, self._location.image_id)


class Body:
    """The bytes of one response; ``position`` is the offset of the next one in the image."""

    def __init__(self, answer: Answer, position: int) -> None:
        self.position = position
        self._stop = position + (answer.length or 0)
        self._answer = answer

    @property
    def ended(self) -> bool:
        """Whether all of it was read."""
        return self.position == self._stop

    def read_into(self, view: memoryview) -> int:
        """Some bytes; 0 at its end, also when that came too early."""
        count = self._answer.read_into(view[: self._stop - self.position])
        self.position += count
        return count

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""
        self._answer.close()


def _is_settled(answer: Answer) -> bool:
    """No other state of the file can have the time that the headers tell (RFC 9110, 8.8.2.2)."""
    if answer.headers.get("ETag"):
        return True
    try:
        date, modified = (email.utils.parsedate_to_datetime(answer.headers[name]) for name in ("Date", "Last-Modified"))
        return (date - modified).total_seconds() >= 1
    except (TypeError, ValueError, OverflowError):
        return False

# SPDX-License-Identifier: Apache-2.0
"""VmwareReader: one image read with as few requests as possible, all of them of one version."""

from __future__ import annotations

from storelib.drivers.vmware.location import VmwareLocation
from storelib.drivers.vmware.options import Target
from storelib.drivers.vmware.vcenter import Datastores, File
from storelib.exceptions import ImageChanged, IncompleteRead, NotFound, RemoteServiceUnavailable
from storelib.transfer.http.headers import content_range, is_coded, posix_time, range_header
from storelib.transfer.http.reading import Body, ResponseReader, discarding_on_error
from storelib.transfer.http.server import Answer, HttpError

_REFUSED_RANGE = 416


class VmwareReader(ResponseReader):
    """Reads with one response until it ends or is cut, a large image from far away with ranges side by side.

    Headers tell the time of a file in whole seconds. So of one that is younger than that, which another could replace
    within the same second, the datastore is asked as well.
    """

    def __init__(
        self, datastores: Datastores, location: VmwareLocation, offset: int, length: int | None, concurrency: int
    ) -> None:
        super().__init__()
        self._datastores = datastores
        self._location = location
        self._place = Target(location.datacenter, location.datastore), (*datastores.directory, location.image_id)
        self._file: File | None = None
        answer = self._get(offset, length)
        if not _is_settled(answer):
            answer.discard()
            self._file = self._look()
            answer = self._get(offset, length)
        with discarding_on_error(answer):
            self._version = _version_of(answer)
            self.size = self._size_of(answer)
        if answer.status == _REFUSED_RANGE:
            answer.discard()
            self.begin(None, offset, length)
        else:
            self.begin(Body(answer, offset, _stop_of(answer, self.size)), offset, length)
            if not self._is_coarse and self.is_far(offset, datastores.session.latency):
                self.concurrency = concurrency

    def ask(self, offset: int, end: int) -> Body:
        """Ask for a range."""
        if self._is_coarse:
            raise IncompleteRead(
                f"reading {self._location} cannot go on at byte {offset}: the image was added less than a second "
                "before, and vCenter does not tell it from another that takes its place; start again"
            )
        answer = self._get(offset, min(end, self.size) - offset)
        with discarding_on_error(answer):
            same = (_version_of(answer), self._size_of(answer)) == (self._version, self.size)
            if answer.status == _REFUSED_RANGE or not same or (self._file is not None and self._look() != self._file):
                raise ImageChanged(f"{self._location} changed while it was read")
        return Body(answer, offset, _stop_of(answer, self.size))

    @property
    def _is_coarse(self) -> bool:
        """The datastore tells no more than headers do."""
        return self._file is not None and self._file.modified.is_integer()

    def _get(self, offset: int, length: int | None) -> Answer:
        """An answer that is the image, from that byte on, or that there are not so many bytes."""
        # Of a whole image, too: a page that answers for it, whatever its status, gives no range.
        wanted = range_header(offset, length).get("Range", "bytes=0-")
        answer = self._datastores.get(self._location, wanted)
        with discarding_on_error(answer):
            self._check(answer, offset)
        return answer

    def _check(self, answer: Answer, offset: int) -> None:
        if answer.status == _REFUSED_RANGE:
            return
        if answer.status == 404:
            # A proxy that has lost its vCenter says so of every image.
            self._look()
            raise RemoteServiceUnavailable(f"vCenter does not find {self._location}, which is in its datastore")
        if answer.status not in (200, 206):
            raise HttpError("GET", answer.status)
        if answer.status == 200:
            right = offset == 0 and answer.length == self._look().size
        else:
            start, stop, size = content_range(answer.headers.get("Content-Range"))
            right = start == offset and stop is not None and size is not None
        if not right or is_coded(answer.headers.get("Content-Encoding")):
            raise RemoteServiceUnavailable(f"vCenter answered with something else than {self._location}")

    def _size_of(self, answer: Answer) -> int:
        told = content_range(answer.headers.get("Content-Range")).size
        if told is None and answer.status == 200:
            told = answer.length
        if told is None:
            told = self._datastores.size(*self._place)
        if told is None:
            raise NotFound(f"there is no image at {self._location}")
        return told

    def _look(self) -> File:
        found = self._datastores.find(*self._place)
        if found is None or found.is_folder:
            raise NotFound(f"there is no image at {self._location}")
        return found


def _stop_of(answer: Answer, size: int) -> int:
    """Where the bytes of an answer end."""
    return content_range(answer.headers.get("Content-Range")).stop or size


def _version_of(answer: Answer) -> tuple[str | None, str | None]:
    """What headers tell of the file."""
    return answer.headers.get("ETag"), answer.headers.get("Last-Modified")


def _is_settled(answer: Answer) -> bool:
    """No other state of the file can have the time that the headers tell (RFC 9110, 8.8.2.2)."""
    date, modified = (posix_time(answer.headers.get(name)) for name in ("Date", "Last-Modified"))
    return bool(answer.headers.get("ETag")) or (date is not None and modified is not None and date - modified >= 1)

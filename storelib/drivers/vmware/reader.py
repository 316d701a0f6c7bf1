# SPDX-License-Identifier: Apache-2.0
"""VmwareReader: one image read with as few requests as possible, all of them of one version."""

from __future__ import annotations

from storelib.drivers.vmware.location import VmwareLocation
from storelib.drivers.vmware.options import Target
from storelib.drivers.vmware.vcenter import Datastores, File
from storelib.exceptions import ImageChanged, IncompleteRead, NotFound, RemoteServiceUnavailable
from storelib.transfer.http.headers import content_range, is_coded, posix_time, range_header
from storelib.transfer.http.reading import Body, ResponseReader, discarding_on_error
from storelib.transfer.http.server import HttpError, Response

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
        response = self._get(offset, length)
        if not _is_settled(response):
            response.discard()
            self._file = self._look()
            response = self._get(offset, length)
        with discarding_on_error(response):
            self._version = _version_of(response)
            self.size = self._size_of(response)
        if response.status == _REFUSED_RANGE:
            response.discard()
            self.begin(None, offset, length)
        else:
            self.begin(Body(response, offset, _stop_of(response, self.size)), offset, length)
            if not self._is_coarse and self.is_far(offset, datastores.session.latency):
                self.concurrency = concurrency

    def ask(self, offset: int, end: int) -> Body:
        """Ask for a range."""
        if self._is_coarse:
            raise IncompleteRead(
                f"reading {self._location} cannot go on at byte {offset}: the image was added less than a second "
                "before, and vCenter does not tell it from another that takes its place; start again"
            )
        response = self._get(offset, min(end, self.size) - offset)
        with discarding_on_error(response):
            same = (_version_of(response), self._size_of(response)) == (self._version, self.size)
            if response.status == _REFUSED_RANGE or not same or (self._file is not None and self._look() != self._file):
                raise ImageChanged(f"{self._location} changed while it was read")
        return Body(response, offset, _stop_of(response, self.size))

    @property
    def _is_coarse(self) -> bool:
        """The datastore tells no more than headers do."""
        return self._file is not None and self._file.modified.is_integer()

    def _get(self, offset: int, length: int | None) -> Response:
        """A response that is the image, from that byte on, or that there are not so many bytes."""
        # Of a whole image, too: a page that answers for it, whatever its status, gives no range.
        wanted = range_header(offset, length).get("Range", "bytes=0-")
        response = self._datastores.get(self._location, wanted)
        with discarding_on_error(response):
            self._check(response, offset)
        return response

    def _check(self, response: Response, offset: int) -> None:
        if response.status == _REFUSED_RANGE:
            return
        if response.status == 404:
            # A proxy that has lost its vCenter says so of every image.
            self._look()
            raise RemoteServiceUnavailable(f"vCenter does not find {self._location}, which is in its datastore")
        if response.status not in (200, 206):
            raise HttpError("GET", response.status)
        if response.status == 200:
            right = offset == 0 and response.length == self._look().size
        else:
            start, stop, size = content_range(response.headers.get("Content-Range"))
            right = start == offset and stop is not None and size is not None
        if not right or is_coded(response.headers.get("Content-Encoding")):
            raise RemoteServiceUnavailable(f"vCenter answered with something else than {self._location}")

    def _size_of(self, response: Response) -> int:
        told = content_range(response.headers.get("Content-Range")).size
        if told is None and response.status == 200:
            told = response.length
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


def _stop_of(response: Response, size: int) -> int:
    """Where the bytes of a response end."""
    return content_range(response.headers.get("Content-Range")).stop or size


def _version_of(response: Response) -> tuple[str | None, str | None]:
    """What headers tell of the file."""
    return response.headers.get("ETag"), response.headers.get("Last-Modified")


def _is_settled(response: Response) -> bool:
    """No other state of the file can have the time that the headers tell (RFC 9110, 8.8.2.2)."""
    date, modified = (posix_time(response.headers.get(name)) for name in ("Date", "Last-Modified"))
    return bool(response.headers.get("ETag")) or (date is not None and modified is not None and date - modified >= 1)

# SPDX-License-Identifier: Apache-2.0
"""VmwareWriter: one image on its way into a datastore, as one PUT. VmwareCopy: a copy that vCenter makes of another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from storelib.driver import Committed, Digests, Part, ServerSideCopy, Writer
from storelib.drivers.vmware.errors import is_fault
from storelib.drivers.vmware.location import VmwareLocation
from storelib.drivers.vmware.options import Target
from storelib.drivers.vmware.publication import new_publication
from storelib.drivers.vmware.vcenter import Datastores
from storelib.exceptions import ImageChanged, NotFound, RemoteServiceUnavailable
from storelib.transfer.contract import KiB, MiB
from storelib.transfer.copying import SLOWEST
from storelib.transfer.http.server import FileUpload, HttpError

#: Images up to this size are held until they are whole, and sent again where a connection is cut.
WHOLE = 4 * MiB


class VmwareWriter(Writer):
    """One stream, in order, which cannot be taken up again where it breaks off; small images are sent again whole."""

    retryable = False
    smallest_part = 64 * KiB

    def __init__(self, datastores: Datastores, image_id: str, size: int | None) -> None:
        self.publication = new_publication(datastores, image_id, size)
        self.put = self.put_whole
        self._datastores = datastores
        self._size = size
        self._upload: FileUpload | None = None
        self._sent = 0
        self._ended = False
        self._failure: Exception | None = None

    def part_size(self, number: int, size: int | None) -> int:
        """The first part may be all there is."""
        return WHOLE if number == 0 else MiB

    def put_whole(self, data: memoryview, digests: Digests) -> Committed:
        """Send, compare the size, publish."""
        publication = self.publication
        if publication.sealed is None:
            self._begin(len(data))
            self._send(data)
            self._end()
            publication.seal(len(data))
        return publication.publish()

    def reserve(self, end: int) -> int | None:
        """Begin the PUT, which has room for any size."""
        if self._upload is None:
            self._begin(self._size)
        return None

    def write(self, part: Part) -> None:
        """Send the next bytes."""
        self._datastores.session.keep_alive()
        self._send(part.data)

    def commit(self, size: int, digests: Digests) -> Committed:
        """End the PUT, compare the size, publish."""
        if not self._ended:
            self._end()
        if self.publication.sealed is None:
            self.publication.seal(size)
        return self.publication.publish()

    def abort(self) -> None:
        """Break off the PUT; remove its file, and the image if this add published it."""
        self.close()
        self.publication.take_back()

    def close(self) -> None:
        """Close the connection, unless it is in use for something else by now."""
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.close()

    def _begin(self, size: int | None) -> None:
        self.close()
        self._failure = None
        self._sent = 0
        publication = self.publication
        self._upload = self._datastores.upload(publication.target, publication.new_file(), size)

    def _send(self, data: memoryview) -> None:
        self._sent += len(data)
        with self._under_way() as upload:
            upload.send(data)

    def _end(self) -> None:
        """Once: the response cannot be asked for again."""
        if self._failure is not None:
            raise self._failure
        try:
            with self._under_way() as upload:
                upload.finish()
        except Exception as error:
            self._failure = error
            raise
        self._upload = None
        self._ended = True

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[FileUpload]:
        """What a response to a PUT on its way means: that the session has ended is no matter of permissions."""
        assert self._upload is not None  # noqa: S101  (reserve() began it)
        try:
            yield self._upload
        except HttpError as error:
            if error.status < 300:
                # In the middle: what can be known is how much has arrived, and what room there is.
                self.publication.seal(self._sent + 1)
            if error.status != 401:
                raise
            self._datastores.session.doubt(self._upload)
            raise RemoteServiceUnavailable(
                f"{self.publication.subject}: vCenter ended the session in the middle of the transfer"
            ) from error


class VmwareCopy(ServerSideCopy):
    """One file copied under a temporary name by vCenter, and published as an upload is."""

    def __init__(self, datastores: Datastores, source: VmwareLocation, image_id: str) -> None:
        """Raises NotFound and Duplicate."""
        self._datastores = datastores
        self._source = source
        self._origin = datastores.target_of(source) or Target(source.datacenter, source.datastore)
        self._source_name = (*datastores.directory, source.image_id)
        self._original = datastores.find(self._origin, self._source_name)
        if self._original is None or self._original.is_folder:
            raise NotFound(f"there is no image at {source}")
        self.size = self.moved_at_once = self._original.size
        self.publication = new_publication(datastores, image_id, self.size)

    def commit(self, digests: Digests) -> Committed:
        """Copy, see that it is a copy of what was meant, publish."""
        publication = self.publication
        if publication.sealed is None:
            self._copy()
            if self._datastores.find(self._origin, self._source_name) != self._original:
                raise ImageChanged(f"{self._source} changed while it was copied")
            publication.seal(self.size)
        return publication.publish()

    def _copy(self) -> None:
        publication = self.publication
        name = publication.new_file()
        allowance = self.size / SLOWEST
        try:
            self._datastores.copy(self._origin, self._source_name, publication.target, name, allowance)
        except Exception as error:
            if is_fault(error, "CannotCreateFile", "CannotAccessFile"):
                publication.check_room(self.size)
            raise

    def abort(self) -> None:
        """Remove the copy, published or not."""
        self.publication.take_back()

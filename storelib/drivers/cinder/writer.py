# SPDX-License-Identifier: Apache-2.0
"""CinderWriter: one image on its way into a volume of its own."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from storelib.driver import Committed, Digests, Part, Writer, WriterCopy
from storelib.drivers.cinder import publication
from storelib.drivers.cinder.errors import status_of
from storelib.drivers.cinder.publication import Shelf
from storelib.drivers.cinder.service import Api, Service, User, Volume
from storelib.exceptions import NotFound, StoreError
from storelib.transfer.contract import KiB, MiB
from storelib.volumes.attachments import Attachment, attach, reserve
from storelib.volumes.disks import Disk

LOG = logging.getLogger(__name__)

GiB = 1024 * MiB
#: Of one write at most: two of 4 MiB beside each other are faster than one of 8 (measured with librbd).
WRITE = 4 * MiB
#: GiB by which a volume of unknown size grows at most: volumes do not shrink again.
LARGEST_STEP = 16


def gibibytes(size: int) -> int:
    """GiB of a volume for so many bytes."""
    return max(-(-size // GiB), 1)


class CinderWriter(Writer):
    """Writes side by side, each acknowledged before it returns. The volume stays attached until it is an image."""

    smallest_part = 64 * KiB

    def __init__(self, service: Service, shelf: Shelf, user: User, image_id: str, size: int | None) -> None:
        self.concurrency = service.conf.cinder_concurrency
        self.sparse = service.conf.cinder_thin_provisioning
        self._service = service
        self._shelf = shelf
        self._api = user.api
        self._image_id = image_id
        self._size = size
        self.hold = user.holds.take()
        #: Whether Cinder was asked for a volume, which may be there though no response came.
        self._asked = False
        self._volume: Volume | None = None
        self._attachment: Attachment | None = None
        self._disk: Disk | None = None
        self._room = 0
        self._publishing = False
        self._published = False
        #: Nothing is left of it in Cinder, or it is an image without an attachment.
        self._settled = False

    def part_size(self, number: int, size: int | None) -> int:
        """Parts lie within one object of Ceph each."""
        return WRITE

    def reserve(self, end: int) -> int:
        """Make the volume, or make it larger."""
        if self._disk is None:
            self._open(gibibytes(end))
        if end > self._room:
            self._grow(gibibytes(end))
        if self._room < end:
            raise StoreError(f"image {self._image_id!r}: its volume is smaller than Cinder says")
        return self._room

    def _open(self, size: int) -> None:
        volume = self.make_volume(size, None)
        if self._attachment is None:
            connectors = self._service.connectors
            self._attachment = attach(self._api, self.hold, connectors, volume.id, self._image_id, "rw", alone=True)
        self.sparse = self.sparse and self._attachment.connection.reads_zeros
        self._disk = self._attachment.connection.open(read_only=False)
        self._room = self._disk.await_size(volume.size * GiB)

    def make_volume(self, size: int, source: str | None) -> Volume:
        """The volume of this writer, made once and ready; ``source``: the one that it is a clone of."""
        if self._volume is None:
            found = self._find() if self._asked else None
            self._asked = True
            self._volume = found or self._create(size, source)
        self._volume = self._api.wait(self._volume, lambda volume: volume.status != "creating", "making")
        if self._volume.status not in ("available", "in-use", "reserved"):
            raise StoreError(
                f"image {self._image_id!r}: Cinder could not make a volume ({self._volume.status}); see the log of "
                "cinder-scheduler or cinder-volume"
            )
        return self._volume

    def _create(self, size: int, source: str | None) -> Volume:
        entries = self._shelf.entries(self._image_id, self.hold.token, self._size)
        name = f"image-{entries[publication.IMAGE_ID]}"[:255]
        return self._api.create(size, name, entries, self._service.conf.cinder_volume_type, source)

    def _find(self) -> Volume | None:
        """What a request has made whose response was lost."""
        return next(self._api.volumes({publication.TOKEN: self.hold.token}), None)

    def _grow(self, needed: int) -> None:
        """Grow by as much as there is, up to a limit, so that few steps make a large volume."""
        assert self._volume is not None  # noqa: S101  (it has a disk)
        size = self._room // GiB
        wanted = needed if self._size is not None else max(needed, size + min(size, LARGEST_STEP))
        attachment = self._attachment
        if attachment is not None and not attachment.connection.grows:
            self._let_go(attachment)
        try:
            self._volume = self._api.grow(self._volume.id, wanted)
        except Exception as error:
            # Growing by less may be within the quota.
            if status_of(error) != 413 or wanted == needed:
                raise
            self._volume = self._api.grow(self._volume.id, needed)
        if self._attachment is None or self._disk is None:
            self._open(needed)
        else:
            self._attachment.connection.rescan()
            self._room = self._disk.await_size(self._volume.size * GiB)

    def _let_go(self, attachment: Attachment) -> None:
        """Detach a volume that cannot grow otherwise."""
        if self._disk is not None:
            self._disk.flush()
        self._close_disk()
        attachment.detach()
        self._attachment = None

    def write(self, part: Part) -> None:
        """Write one part where it belongs."""
        if self._disk is None:
            raise StoreError(f"image {self._image_id!r}: its volume is closed")
        self._disk.write(part.offset, part.data)

    def commit(self, size: int, digests: Digests) -> Committed:
        """Publish while it is attached, so that nobody deletes it meanwhile; then let it go, and make it read-only."""
        if self._disk is not None:
            self._disk.flush()
        return self.publish(size, digests, self._attachment.detach if self._attachment is not None else None)

    def publish(self, size: int, digests: Digests, detach: Callable[[], None] | None) -> Committed:
        """See ``commit``; may be repeated."""
        volume = self._volume
        if volume is None:
            raise StoreError(f"image {self._image_id!r} was never made")
        with _removed(self._image_id):
            if not self._published:
                again, self._publishing = self._publishing, True
                self._shelf.publish(self._api, volume.id, self._image_id, size, digests, again=again)
                self._published = True
            self._close_disk()
            if detach is not None:
                detach()
            self._make_readonly(volume.id)
        self._settled = True
        return Committed(self._service.location(volume.id))

    def _make_readonly(self, volume: str) -> None:
        """The last step, without which it is an image all the same."""
        try:
            self._api.set_readonly(volume)
        except Exception as error:
            # Another client reads it already, or the policy does not allow it.
            if status_of(error) not in (400, 403):
                raise
            LOG.warning("image %r: its volume %s could not be made read-only", self._image_id, volume)

    def abort(self) -> None:
        """Detach and delete whatever was made, the published image, too."""
        self._close_disk()
        if self._attachment is not None:
            self._attachment.connection.disconnect()
        volume = self._volume or (self._find() if self._asked else None)
        if volume is not None:
            self._api.delete_with_attachments(volume.id)
        self._settled = True

    def close(self) -> None:
        """Free what is held here; what is left in Cinder, gc finds."""
        self._close_disk()
        if self._settled:
            self.hold.release()
        self.hold.drop()

    def _close_disk(self) -> None:
        disk, self._disk = self._disk, None
        if disk is not None:
            disk.close()


@contextlib.contextmanager
def _removed(image_id: str) -> Iterator[None]:
    """A volume that is gone in the middle of an add was removed by another client."""
    try:
        yield
    except Exception as error:
        if isinstance(error, NotFound) or status_of(error) == 404:
            raise StoreError(
                f"image {image_id!r}: another client removed what was written; nothing is stored"
            ) from error
        raise


class CinderCopy(WriterCopy[CinderWriter]):
    """A clone that is published like an upload; reserved until then, so that nobody deletes it."""

    def __init__(self, api: Api, source: Volume, image_id: str, writer: CinderWriter) -> None:
        super().__init__(writer, publication.size_of(source))
        self._api = api
        self._source = source
        self._image_id = image_id
        self._reservation: str | None = None

    def begin(self) -> None:
        """Ask for a clone of the volume."""
        volume = self.writer.make_volume(self._source.size, self._source.id)
        if self._reservation is None:
            self._reservation = reserve(self._api, self.writer.hold, volume.id, self._image_id, "ro", alone=True)

    def commit(self, digests: Digests) -> Committed:
        """Publish the clone as an image."""
        reservation = self._reservation
        return self.writer.publish(
            self.size, digests, None if reservation is None else lambda: self._api.detach(reservation)
        )

# SPDX-License-Identifier: Apache-2.0
"""CinderReader: one image, its volume attached read-only as long as this process reads it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from storelib.driver import Extent, Reader
from storelib.drivers.cinder import publication
from storelib.drivers.cinder.service import Service, Volume
from storelib.exceptions import IncompleteRead
from storelib.transfer.contract import MiB
from storelib.volumes.attachments import SharedAttachments

#: Of one read at most.
READ = 4 * MiB


class CinderReader(Reader):
    """Reads side by side. Cinder lets nobody delete the volume meanwhile."""

    part_size = READ

    def __init__(self, service: Service, attachments: SharedAttachments, volume: Volume) -> None:
        self.concurrency = service.conf.cinder_concurrency
        self.size = publication.size_of(volume)
        self.digest = publication.digest_of(volume)
        self._attachments = attachments
        self._attachment = attachments.acquire(volume.id, publication.image_id_of(volume) or "")
        with contextlib.ExitStack() as undo:
            undo.callback(attachments.release, self._attachment)
            self._disk = self._attachment.connection.open(read_only=True)
            undo.callback(self._disk.close)
            if self._disk.await_size(self.size) < self.size:
                raise IncompleteRead(f"volume {volume.id} is smaller on this host than the image in it")
            undo.pop_all()

    def read_into(self, offset: int, view: memoryview) -> int:
        """Read from the volume."""
        return self._disk.read_into(offset, view[:READ])

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """As the volume knows them."""
        return self._disk.extents(offset, length)

    def close(self) -> None:
        """Detach, unless another reader of this process uses it."""
        try:
            self._disk.close()
        finally:
            self._attachments.release(self._attachment)

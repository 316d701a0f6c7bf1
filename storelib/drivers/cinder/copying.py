# SPDX-License-Identifier: Apache-2.0
"""Copying within Cinder: a volume made from another one, which the back end clones where it can."""

from __future__ import annotations

from storelib.drivers.cinder import publication
from storelib.drivers.cinder.api import Api, Volume
from storelib.drivers.cinder.attaching import reserve
from storelib.drivers.cinder.writer import CinderWriter
from storelib.transfer.contract import Committed, Digests, WriterCopy


class CinderCopy(WriterCopy[CinderWriter]):
    """A clone that is published like an upload; reserved until then, so that nobody deletes it."""

    def __init__(self, api: Api, source: Volume, image_id: str, writer: CinderWriter) -> None:
        super().__init__(writer, publication.size_of(source))
        self._api = api
        self._source = source
        self._image_id = image_id
        self._reservation: str | None = None

    def begin(self) -> None:
        """Make the clone."""
        volume = self.writer.make_volume(self._source.size, self._source.id)
        if self._reservation is None:
            self._reservation = reserve(self._api, self.writer.hold, volume.id, self._image_id, "ro", alone=True)

    def commit(self, digests: Digests) -> Committed:
        """Publish it."""
        return self.writer.publish(self.size, digests, self._reservation)

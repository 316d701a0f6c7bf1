# SPDX-License-Identifier: Apache-2.0
"""CinderStore: configuration, and everything but moving bytes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import ClassVar

from oslo_config import cfg

from storelib.capabilities import READ_WRITE, Capability
from storelib.driver import Context, Deletion, Garbage, Health, ImageInfo, Store
from storelib.drivers.cinder import garbage, publication
from storelib.drivers.cinder.errors import status_of, storelib_error
from storelib.drivers.cinder.location import SCHEME, CinderLocation
from storelib.drivers.cinder.options import OPTIONS
from storelib.drivers.cinder.reader import CinderReader
from storelib.drivers.cinder.service import LEAVING, Api, Service, Volume, import_clients
from storelib.drivers.cinder.writer import CinderCopy, CinderWriter, GiB
from storelib.exceptions import HasSnapshot, InUseByStore, NotFound, StoreError
from storelib.rehearsal import rehearse

LOG = logging.getLogger(__name__)


class CinderStore(Store[CinderLocation]):
    """Images as volumes of OpenStack's block storage, each as large as the image, in whole GiB.

    * With a user of the store's own all volumes are in one project. Without, each request uses its own token and
      project, and the store neither lists, nor collects, nor checks, for which nobody has a token.
    * While an image is read its volume is attached, and Cinder refuses to delete it (InUseByStore).
    """

    schemes = (SCHEME,)
    location_class = CinderLocation
    options: ClassVar[tuple[cfg.Opt, ...]] = tuple(OPTIONS)
    capabilities = READ_WRITE | Capability.SPARSE | Capability.LIST | Capability.GC | Capability.COPY

    service: Service
    shelf: publication.Shelf

    # -- Configuration ------------------------------------------------------------------------------------------------

    def configure_get(self) -> None:
        """Who asks, and where."""
        import_clients()
        self.service = Service(self.name, self.conf)
        self.shelf = publication.Shelf(self.name, self.conf.cinder_volume_type)
        if not self.service.has_user:
            self.capabilities &= ~(Capability.LIST | Capability.GC | Capability.CHECK)

    def configure_add(self) -> None:
        """How images are stored."""
        if not self.conf.cinder_thin_provisioning:
            self.capabilities &= ~Capability.SPARSE

    def owns(self, location: CinderLocation) -> bool:
        """Whether it names this store, or none."""
        return location.store in (None, self.name)

    def roots(self) -> list[str]:
        """The name of this store, which its URIs begin with."""
        return [self.name]

    @classmethod
    def possible_roots(cls, location: CinderLocation) -> list[str] | None:
        """The name of a store, which old URIs lack."""
        return None if location.store is None else [location.store]

    def canonical(self, location: CinderLocation) -> CinderLocation:
        """With the name of this store, which old URIs lack."""
        return self.service.location(location.volume)

    # -- The driver contract ------------------------------------------------------------------------------------------

    def open_writer(self, image_id: str, size: int | None, context: Context | None) -> CinderWriter:
        """Look whether there is such an image."""
        user = self.service.user(context)
        self.shelf.refuse_duplicate(user.api, image_id)
        return CinderWriter(self.service, self.shelf, user, image_id, size)

    def open_reader(
        self, location: CinderLocation, offset: int, length: int | None, context: Context | None
    ) -> CinderReader:
        """Read from the volume, which is attached for it."""
        user = self.service.user(context)
        return CinderReader(self.service, user.attachments, self.shelf.image(user.api, location))

    def inspect(self, location: CinderLocation, context: Context | None) -> ImageInfo:
        """What the volume tells."""
        return self._info(self._image(location, context))

    def _image(self, location: CinderLocation, context: Context | None) -> Volume:
        return self.shelf.image(self.service.user(context).api, location)

    def _info(self, volume: Volume) -> ImageInfo:
        image_id = publication.image_id_of(volume)
        size = publication.size_of(volume)
        return ImageInfo(self.service.location(volume.id).uri, size, image_id, volume.created, volume.id)

    def remove(self, location: CinderLocation, context: Context | None, deletion: Deletion) -> None:
        """Have it deleted, and wait for that."""
        user = self.service.user(context)
        api = user.api
        try:
            volume = self.shelf.removable(api, location).id
        except NotFound:
            self._await_end(api, location)
            raise
        try:
            api.delete(volume)
        except Exception as error:
            if status_of(error) != 400:
                raise
            # What a killed process of this host has left attached is not in use.
            if not garbage.end_dead_attachments(user, volume):
                raise self._obstacle(api, volume, location) from error
            api.delete(volume)
        api.wait_until_gone(volume)

    def _await_end(self, api: Api, location: CinderLocation) -> None:
        """What is on its way out, by an attempt whose answer was lost or another client's, may never get there."""
        found = api.look_at(location.volume)
        if found is not None and found.status in LEAVING and self.shelf.holds(api, found):
            api.wait_until_gone(found.id)

    def _obstacle(self, api: Api, volume: str, location: CinderLocation) -> StoreError:
        """What keeps a volume from being deleted."""
        found = api.volume(volume)
        if api.has_snapshots(volume):
            return HasSnapshot(f"{location}: there are snapshots of the volume")
        if api.attachments(volume):
            return InUseByStore(
                f"{location}: the volume is {found.status}: another client reads it, or has it attached; if that is "
                "dead, run gc on its host, or delete its attachment in Cinder"
            )
        return InUseByStore(
            f"{location}: Cinder does not delete the volume, which is {found.status}: it may be migrated, backed up, "
            "transferred, in a group, or have dependents"
        )

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """The error for what one of the clients raised."""
        return self.service.connectors.map_error(error, subject) or storelib_error(error, subject)

    # -- Looking after the store --------------------------------------------------------------------------------------

    def candidate_locations(self, image_id: str) -> list[CinderLocation]:
        """All volumes with the tag of this id."""
        volumes = self.shelf.of_image(self.service.user(None).api, image_id)
        return [self.service.location(volume.id) for volume in volumes]

    def images(self) -> Iterator[ImageInfo]:
        """Every image in the project that is this store's."""
        api = self.service.user(None).api
        for volume in api.volumes():
            if publication.is_image(volume) and self.shelf.holds(api, volume):
                try:
                    found = self._info(volume)
                except StoreError as error:
                    # Its metadata was changed by hand, or it is another program's; the others are images all the same.
                    LOG.warning("not listed: %s", error)
                else:
                    yield found

    def garbage(self, older_than: float, prefix: str | None) -> Iterator[Garbage]:
        """Volumes and attachments that dead processes left; see garbage.py."""
        return garbage.find(self.shelf, self.service.user(None), older_than, prefix or "")

    def discard(self, item: Garbage) -> bool:
        """Remove a leftover; see garbage.py."""
        return garbage.discard(self.service.user(None), item.handle)

    def probe(self) -> Health:
        """Whether there is the volume type, how much of the quota is left; then a small image goes in and out."""
        api = self.service.user(None).api
        wanted = self.conf.cinder_volume_type
        if wanted and not api.has_type(wanted):
            raise self.misconfigured("cinder_volume_type", f"Cinder has no volume type {wanted!r}")
        room = api.room()
        rehearse(self)
        free, total = (None, None) if room is None else (room[0] * GiB, room[1] * GiB)
        return Health(f"connected to Cinder, volume type {wanted or 'its default'}", free, total)

    # -- What Cinder does by itself -----------------------------------------------------------------------------------

    def server_side_copy(self, source: CinderLocation, image_id: str, context: Context | None) -> CinderCopy:
        """A clone of the volume."""
        user = self.service.user(context)
        volume = self.shelf.image(user.api, source)
        return CinderCopy(user.api, volume, image_id, self.open_writer(image_id, publication.size_of(volume), context))

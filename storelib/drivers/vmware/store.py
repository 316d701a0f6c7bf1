# SPDX-License-Identifier: Apache-2.0
"""VmwareStore: configuration, and everything but moving bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from oslo_config import cfg

from storelib.capabilities import COMPLETE, Capability
from storelib.driver import Area, Context, Deletion, Garbage, Health, ImageInfo, Store, web_server
from storelib.drivers.vmware.errors import is_fault, storelib_error
from storelib.drivers.vmware.location import SCHEME, VmwareLocation
from storelib.drivers.vmware.options import OPTIONS, Settings, Target, check_credentials
from storelib.exceptions import NotFound, RemoteServiceUnavailable, StoreError
from storelib.extras import needing
from storelib.rehearsal import rehearse

if TYPE_CHECKING:
    from storelib.drivers.vmware.reader import VmwareReader
    from storelib.drivers.vmware.vcenter import Datastores, File
    from storelib.drivers.vmware.writer import VmwareCopy, VmwareWriter


class VmwareStore(Store[VmwareLocation]):
    """Images as files in one directory of one or more datastores of a vCenter.

    * Of adds racing for one id exactly one succeeds, in one datastore because files are moved without overwriting, in
      several because the later one withdraws.
    * The PUT of a large image cannot be taken up again: an add whose connection is cut fails. Images of up to 4 MiB
      are sent again. A session that ends while nothing is asked of it is made anew.
    * ``gc`` removes files of adds to which nothing was written for ``older_than`` seconds: an add that ``gc(0)`` takes
      for dead fails.
    * A cut read goes on where it stopped, unless the image is younger than a second and vCenter tells no fractions.
    """

    schemes = (SCHEME,)
    location_class = VmwareLocation
    options: ClassVar[Sequence[cfg.Opt]] = OPTIONS
    capabilities = COMPLETE | Capability.COPY
    datastores: Datastores

    # -- Configuration ----------------------------------------------------------------------------------------

    def configure_get(self) -> None:
        """Where the images are and who asks."""
        with needing("a vmware store", "vmware"):
            import pyVmomi  # noqa: F401

            from storelib.drivers.vmware.vcenter import Datastores

        check_credentials(self.conf, self.name)
        self.datastores = Datastores(self.conf, self.name)

    # -- Locations --------------------------------------------------------------------------------------------

    def areas(self) -> list[Area]:
        """The directory in each datastore."""
        settings = Settings.from_conf(self.conf, self.name)
        server = web_server(settings.host, settings.port)
        prefix = f"{settings.directory}/" if settings.directory else ""
        option = "vmware_store_image_dir" if prefix else "vmware_datastores"
        return [Area(("vmware", server, target.datacenter, target.name), prefix, option) for target in settings.targets]

    def owns(self, location: VmwareLocation) -> bool:
        """Whether it is in this directory of one of the datastores of this server."""
        settings = self.datastores.settings
        return (
            (location.host, location.port) == (settings.host, settings.port)
            and location.directory == settings.directory
            and self.datastores.target_of(location) is not None
        )

    def roots(self) -> list[tuple[str | int, ...]]:
        """Server, directory and datastore."""
        where = self.datastores.settings
        place = (where.host, where.port, where.directory)
        return [(*place, target.datacenter, target.name) for target in self.datastores.targets]

    @classmethod
    def possible_roots(cls, location: VmwareLocation) -> list[tuple[str | int, ...]]:
        """Server, directory and datastore of the URI."""
        return [(location.host, location.port, location.directory, location.datacenter, location.datastore)]

    # -- The driver contract ----------------------------------------------------------------------------------

    def open_writer(self, image_id: str, size: int | None, context: Context | None) -> VmwareWriter:
        """Look whether the id is taken, and choose a datastore; moving the file finds out for good."""
        from storelib.drivers.vmware.writer import VmwareWriter

        return VmwareWriter(self.datastores, image_id, size)

    def open_reader(
        self, location: VmwareLocation, offset: int, length: int | None, context: Context | None
    ) -> VmwareReader:
        """Send the first request."""
        from storelib.drivers.vmware.reader import VmwareReader

        return VmwareReader(self.datastores, location, offset, length, self.conf.vmware_download_concurrency)

    def measure(self, location: VmwareLocation, context: Context | None) -> int:
        """The size that a HEAD tells."""
        target, names = self._place(location)
        size = self.datastores.size(target, names)
        # A proxy that has lost its vCenter says of every image that there is none.
        return self._find(location).size if size is None else size

    def remove(self, location: VmwareLocation, context: Context | None, deletion: Deletion) -> None:
        """Delete the file, once it was seen to be one: a folder would be deleted with all in it."""
        deletion.meet(self._find(location), location)
        try:
            self.datastores.delete(*self._place(location))
        except Exception as error:
            if is_fault(error, "FileNotFound"):
                raise NotFound(f"there is no image at {location}") from error
            raise

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """The error of storelib for one of vCenter, http.client or the socket: see errors.py."""
        return storelib_error(error, subject)

    def _place(self, location: VmwareLocation) -> tuple[Any, tuple[str, ...]]:
        """The datastore, and the names on the way to the file."""
        return self.datastores.target_of(location), (*self.datastores.directory, location.image_id)

    def _find(self, location: VmwareLocation) -> File:
        found = self.datastores.find(*self._place(location))
        if found is None or found.is_folder:
            raise NotFound(f"there is no image at {location}")
        return found

    # -- Looking after the store ------------------------------------------------------------------------------

    def candidate_locations(self, image_id: str) -> list[VmwareLocation]:
        """One in each datastore."""
        return [self.datastores.location(target, image_id) for target in self.datastores.targets]

    def images(self) -> Iterator[ImageInfo]:
        """Every file of the directory in each datastore, no matter which program made it."""

        def look(target: Target) -> Iterator[ImageInfo]:
            for file in self.datastores.files(target, self.datastores.directory):
                if not file.is_folder:
                    yield _info(self.datastores.location(target, file.name), file)

        # A vCenter that cannot be asked, or refuses the user, is told at once, and not asked for each datastore.
        self.datastores.session.now()
        return self.datastores.everywhere(look)

    def inspect(self, location: VmwareLocation, context: Context | None) -> ImageInfo:
        """What the datastore tells of the file."""
        return _info(location, self._find(location))

    def garbage(self, older_than: float, prefix: str | None) -> Iterator[Garbage]:
        """Files of adds to which nothing was written for that long."""
        from storelib.drivers.vmware import garbage

        return garbage.find(self.datastores, older_than, prefix)

    def discard(self, item: Garbage) -> bool:
        """Remove the file unless something was written to it since."""
        from storelib.drivers.vmware import garbage

        return garbage.discard(self.datastores, item)

    def check(self) -> Health:
        """Ask the vCenter, then try it out."""
        health = super().check()
        rehearse(self)
        return health

    def probe(self) -> Health:
        """Log in and ask all datastores how they are."""
        rooms = self.datastores.rooms(refresh=True)
        away = [str(target) for target, room in rooms.items() if not room.accessible]
        if away:
            raise RemoteServiceUnavailable(f"store {self.name}: not accessible: {', '.join(away)}")
        resting = [str(target) for target, room in rooms.items() if not room.usable]
        detail = f"logged in to {self.datastores.settings.host}, {len(rooms)} datastore{'s' * (len(rooms) > 1)}"
        if resting:
            detail += f"; in maintenance: {', '.join(resting)}"
        free, total = (sum(getattr(room, what) for room in rooms.values()) for what in ("free", "total"))
        return Health(detail, free, total)

    # -- What vCenter does by itself --------------------------------------------------------------------------

    def server_side_copy(self, source: VmwareLocation, image_id: str, context: Context | None) -> VmwareCopy:
        """A copy within or between datastores."""
        from storelib.drivers.vmware.writer import VmwareCopy

        return VmwareCopy(self.datastores, source, image_id)


def _info(location: VmwareLocation, file: File) -> ImageInfo:
    return ImageInfo(location.uri, file.size, location.image_id, file.modified, file.version)

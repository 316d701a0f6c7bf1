# SPDX-License-Identifier: Apache-2.0
"""SheepdogStore: configuration, and everything but moving bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

from oslo_config import cfg

from storelib.capabilities import COMPLETE, Capability
from storelib.driver import Area, Context, Deletion, Garbage, Health, ImageInfo, Store
from storelib.drivers.sheepdog import garbage, publication
from storelib.drivers.sheepdog.cluster import SheepdogCluster, Vdi
from storelib.drivers.sheepdog.errors import storelib_error
from storelib.drivers.sheepdog.location import SCHEMES, SheepdogLocation, id_of, is_image_name, name_of, normalised
from storelib.drivers.sheepdog.options import OPTIONS
from storelib.drivers.sheepdog.reader import SheepdogReader
from storelib.drivers.sheepdog.writer import SheepdogCopy, SheepdogWriter
from storelib.exceptions import RemoteServiceUnavailable, StoreError
from storelib.rehearsal import rehearse


class SheepdogStore(Store[SheepdogLocation]):
    """Images as vdis of one cluster, reached by one of its daemons.

    * An image is a vdi called like its id, as glance_store's are; only a first "-" is a "/" there.
    * Deleting is possible while there are snapshots of the vdi; what these share with it stays.
    * A read ends with ImageChanged when another client takes a snapshot of the image meanwhile: Sheepdog gives the vdi
      another identity then, and takes away the attribute by which storelib knows it.
    * ``gc`` knows the adds of this store that are under way. For those of others ``older_than`` must be longer than
      two minutes and two times sheepdog_store_timeout: Sheepdog has no locks. An add that loses what it wrote to a
      hastier gc fails, and publishes nothing.
    """

    schemes = SCHEMES
    location_class = SheepdogLocation
    options: ClassVar[Sequence[cfg.Opt]] = OPTIONS
    capabilities = COMPLETE | Capability.COPY
    cluster: SheepdogCluster

    # -- Configuration ----------------------------------------------------------------------------------------

    def configure_get(self) -> None:
        """Find the command, and which daemon it is to talk to."""
        self.cluster = SheepdogCluster(self.conf, self.name, self.clean_up)

    def areas(self) -> list[Area]:
        """The whole cluster of the daemon."""
        here = (normalised(self.conf.sheepdog_store_address), self.conf.sheepdog_store_port)
        return [Area(("sheepdog", *here), "", "sheepdog_store_address")]

    def owns(self, location: SheepdogLocation) -> bool:
        """Whether it names this daemon, or none."""
        return location.address is None or location == self.cluster.location(location.vdi)

    def roots(self) -> list[tuple[str | None, int | None]]:
        """Address and port of the daemon."""
        location = self.cluster.location("")
        return [(location.address, location.port)]

    @classmethod
    def possible_roots(cls, location: SheepdogLocation) -> list[tuple[str | None, int | None]] | None:
        """The same, unless it is left open."""
        return None if location.address is None else [(location.address, location.port)]

    def canonical(self, location: SheepdogLocation) -> SheepdogLocation:
        """With the daemon, which the short form leaves out."""
        return self.cluster.location(location.vdi)

    # -- The driver contract ----------------------------------------------------------------------------------

    def open_writer(self, image_id: str, size: int | None, context: Context | None) -> SheepdogWriter:
        """See whether the id is taken; raises Duplicate."""
        made = SheepdogWriter(self.cluster, image_id)
        self.cluster.check_id_is_free(image_id)
        return made

    def open_reader(
        self, location: SheepdogLocation, offset: int, length: int | None, context: Context | None
    ) -> SheepdogReader:
        """Look at the vdi and at the claim that says which one it is."""
        return SheepdogReader(self.cluster, location, offset, length)

    def measure(self, location: SheepdogLocation, context: Context | None) -> int:
        """The size of the vdi."""
        return self.cluster.existing(location).size

    def remove(self, location: SheepdogLocation, context: Context | None, deletion: Deletion) -> None:
        """Delete the vdi, however often that is tried no other one: see publication.py."""
        publication.remove(self.cluster, location, deletion)

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """The error of storelib for a command that failed: see errors.py."""
        return storelib_error(error, subject)

    # -- Looking after the store ------------------------------------------------------------------------------

    def candidate_locations(self, image_id: str) -> list[SheepdogLocation]:
        """The only one, since the name follows from the id."""
        return [self.cluster.location(name_of(image_id))]

    def images(self) -> Iterator[ImageInfo]:
        """Every vdi that an id leads to."""
        for vdi in self.cluster.each_vdi():
            if not vdi.snapshot and is_image_name(vdi.name) and id_of(vdi.name) is not None:
                yield self._info(vdi)

    def inspect(self, location: SheepdogLocation, context: Context | None) -> ImageInfo:
        """What the listing says of one vdi, and which of the images that had this name it is."""
        vdi = self.cluster.existing(location)
        claim = publication.claim_to(self.cluster, vdi.name)
        # Vdis made within one second of the same name can have the same number and time.
        version = f"{vdi.vid}-{vdi.created}" if claim is None else claim.token
        return replace(self._info(vdi), version=version)

    def _info(self, vdi: Vdi) -> ImageInfo:
        where, image_id = self.cluster.location(vdi.name), id_of(vdi.name)
        return ImageInfo(where.uri, vdi.size, image_id, float(vdi.created))

    def garbage(self, older_than: float, prefix: str | None) -> Iterator[Garbage]:
        """Temporary vdis, and snapshots that copies left: see garbage.py."""
        return garbage.find(self.cluster, older_than, prefix or "")

    def discard(self, item: Garbage) -> bool:
        """Delete it unless something was written since: see garbage.py."""
        return garbage.discard(self.cluster, item)

    def check(self) -> Health:
        """Ask the daemon, then try it out."""
        try:
            health = super().check()
            rehearse(self)
        except RemoteServiceUnavailable as error:
            options = ["sheepdog_store_address", "sheepdog_store_port"]
            options += ["sheepdog_store_copies"] if self.conf.sheepdog_store_copies else []
            raise RemoteServiceUnavailable(f"{error}; check the options {', '.join(options)}") from error
        return health

    def probe(self) -> Health:
        """Ask the daemon for a vdi that is not there."""
        self.cluster.find("storelib/check")
        dog = self.cluster.dog
        return Health(f"the sheep daemon at {dog.address}, port {dog.port}, answers {dog.path}")

    # -- What the cluster does by itself ----------------------------------------------------------------------

    def server_side_copy(self, source: SheepdogLocation, image_id: str, context: Context | None) -> SheepdogCopy:
        """By a snapshot and a clone."""
        return SheepdogCopy(self.cluster, source, image_id)

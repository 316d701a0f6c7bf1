# SPDX-License-Identifier: Apache-2.0
"""The service: every rule of the image API, once, for both versions of the API and the command line. No HTTP in here.

``Service(conf, repository, registry)`` has one part for each thing clients work with; each public method takes the
caller's Context first and raises what ``storelib.api.errors`` and ``storelib.exceptions`` say.
"""

from __future__ import annotations

from oslo_config import cfg

from storelib.api.context import Context, administrator
from storelib.api.db.repository import Repository
from storelib.api.service.core import Core
from storelib.api.service.data import Data, Source
from storelib.api.service.draft import Operation
from storelib.api.service.images import Images, Listing
from storelib.api.service.imports import Imports
from storelib.api.service.imports import Request as ImportRequest
from storelib.api.service.lease import Lease
from storelib.api.service.locations import Locations
from storelib.api.service.members import Members
from storelib.api.service.metadefs import Metadefs
from storelib.api.service.notifications import Notifier
from storelib.api.service.stores import Stores
from storelib.api.service.tasks import Tasks
from storelib.api.service.workers import Workers
from storelib.registry import Registry

__all__ = ["Context", "ImportRequest", "Listing", "Operation", "Service", "Source", "administrator"]


class Service:
    """All parts of the image service over one repository and one registry. Safe from many threads."""

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        repository: Repository,
        registry: Registry,
        *,
        notifier: Notifier | None = None,
        renew: float | None = None,
    ) -> None:
        self.core = Core(conf, repository, registry, notifier)
        self.lease = Lease(self.core, renew)
        self.workers = Workers(conf.api.import_workers)
        self.data = Data(self.core, self.lease)
        self.tasks = Tasks(self.core)
        self.imports = Imports(self.core, self.data, self.workers, self.tasks)
        self.lease.on_undo = self.imports.abandoned
        self.lease.on_scrub = self.imports.scrub
        self.images = Images(self.core, self.lease, self.imports.discard)
        self.members = Members(self.core)
        self.locations = Locations(self.core, self.data, self.workers, self.tasks)
        self.stores = Stores(self.core)
        self.metadefs = Metadefs(self.core)

    def start(self) -> None:
        """Join the other API processes and undo what dead ones left behind."""
        self.lease.start()

    def stop(self) -> None:
        """Finish the work in the background and leave."""
        self.workers.stop()
        self.lease.stop()

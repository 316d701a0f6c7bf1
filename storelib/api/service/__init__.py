# SPDX-License-Identifier: Apache-2.0
"""The service: every rule of the image API, once, for both versions of the API and the command line. No HTTP in here.

``Service(conf, repository, registry)`` has one part for each thing clients work with; each public method takes the
caller's Context first and raises what ``storelib.api.errors`` and ``storelib.exceptions`` say.
"""

from __future__ import annotations

from oslo_config import cfg

from storelib.api.context import Context, administrator
from storelib.api.db.repository import Repository
from storelib.api.service.background import Background
from storelib.api.service.bus import bus_from
from storelib.api.service.cache import Cache
from storelib.api.service.core import Core
from storelib.api.service.data import Data, Source
from storelib.api.service.draft import Operation
from storelib.api.service.images import Images, Listing
from storelib.api.service.import_jobs import Request as ImportRequest
from storelib.api.service.imports import Imports
from storelib.api.service.lease import Lease
from storelib.api.service.locations import Locations
from storelib.api.service.members import Members
from storelib.api.service.metadefs import Metadefs
from storelib.api.service.notifications import Notifier
from storelib.api.service.preload import Preloading
from storelib.api.service.remote_images import RemoteImage
from storelib.api.service.stores import Stores
from storelib.api.service.task_requests import TaskRequests
from storelib.api.service.tasks import Tasks
from storelib.api.service.workers import Workers
from storelib.messaging import transport_url
from storelib.registry import Registry

__all__ = ["Context", "ImportRequest", "Listing", "Operation", "RemoteImage", "Service", "Source", "administrator"]


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
        is_worker: bool = False,
    ) -> None:
        self.core = Core(conf, repository, registry, notifier)
        self.lease = Lease(self.core, renew, is_worker=is_worker)
        self.workers = Workers(conf.api.import_workers, conf.api.import_time_limit)
        self.bus = bus_from(conf)
        self.background = Background(self.core, self.lease, self.workers, self.bus, transport_url(conf))
        self.data = Data(self.core, self.lease)
        self.cache = Cache(self.core, self.workers, self.data.read)
        self.data.cache = self.cache
        self.tasks = Tasks(self.core)
        self.imports = Imports(self.core, self.data, self.background, self.tasks)
        self.lease.on_undo = self.imports.abandoned
        self.lease.on_scrub = self.imports.scrub
        self.images = Images(self.core, self.lease, self.tasks, self.imports.staging.discard, self.cache.forget)
        self.members = Members(self.core)
        self.locations = Locations(self.core, self.data, self.workers, self.background, self.tasks)
        self.task_requests = TaskRequests(self.core, self.images, self.imports, self.locations)
        self.stores = Stores(self.core)
        self.preload = Preloading(self.core, self.data, self.background, self.lease, conf)
        self.metadefs = Metadefs(self.core)

    def start(self) -> None:
        """Join the other API processes and undo what dead ones left behind."""
        self.background.open()
        self.lease.start()
        self.cache.start()

    def stop(self) -> None:
        """Finish the work in the background and leave."""
        self.cache.stop()
        self.workers.stop()
        self.lease.stop()

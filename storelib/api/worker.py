# SPDX-License-Identifier: Apache-2.0
"""A worker: a process that does what the API puts off (imports, copies, hashing), and serves no requests.

It looks for work when the message bus says so, when it has finished something, and now and then. Stopping finishes what
is under way; what does not end in time is interrupted, and begun again by another process.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable

from oslo_config import cfg

from storelib.api import config
from storelib.api.db import open_repository
from storelib.api.errors import ApiError
from storelib.api.service import Service
from storelib.api.systemd import Manager
from storelib.api.unknown_options import warn_of_unknown_options
from storelib.exceptions import BadStoreConfiguration
from storelib.messaging import oslo_messaging
from storelib.registry import Registry

LOG = logging.getLogger(__name__)

#: Seconds between two looks for work that no message told of.
LOOK = 5.0
#: Seconds that interrupted work has for removing what it wrote.
CLEANUP = 15.0


def run(conf: cfg.ConfigOpts, grace: float, announce: Callable[[], None]) -> None:
    """Work until SIGTERM or SIGINT. ``announce`` is called once work may come; ``grace`` is in seconds.

    Raises BadStoreConfiguration, MissingDependency, BadDatabase, DatabaseUnavailable.
    """
    oslo_messaging("storelib worker")
    config.register_opts(conf)
    repository = open_repository(conf)
    try:
        service = Service(conf, repository, Registry.from_conf(conf), is_worker=True)
        if service.bus is None:
            raise BadStoreConfiguration(
                "[DEFAULT] transport_url is not set: without a message bus the processes of the API do all work "
                "themselves"
            )
        warn_of_unknown_options(conf)
        _Worker(service, grace).run(announce)
    finally:
        repository.close()


class _Worker:
    def __init__(self, service: Service, grace: float) -> None:
        self._service = service
        self._grace = grace
        self._stop = False
        self._wake = threading.Event()

    def run(self, announce: Callable[[], None]) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        service = self._service
        assert service.bus is not None  # noqa: S101  (looked at above)
        service.workers.on_end = self._wake.set
        service.bus.listen(self._wake.set)
        service.background.open()
        service.lease.start()
        announce()
        manager = Manager()
        manager.ready("waiting for work")
        while not self._stop:
            manager.alive()
            try:
                service.background.fill()
            except ApiError as error:
                LOG.warning("the database does not say what work there is: %s", error)
            self._wake.wait(LOOK)
            self._wake.clear()
        manager.stopping()
        self._finish()

    def _end(self, *_: object) -> None:
        self._stop = True
        self._wake.set()

    def _finish(self) -> None:
        workers = self._service.workers
        self._service.background.close()
        idle = workers.wait(self._grace)
        if not idle:
            workers.interrupt()
            idle = workers.wait(CLEANUP)
        if idle:
            self._service.lease.stop()
            return
        # Others see that this process is gone. Its threads may hang in a store for ever.
        logging.shutdown()
        os._exit(0)

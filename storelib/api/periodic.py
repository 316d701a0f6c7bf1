# SPDX-License-Identifier: Apache-2.0
"""Periodic: a thread that looks every so often whether there is work for this process, until it is stopped."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod

from storelib.api.errors import ApiError
from storelib.api.service import Service
from storelib.api.service.rate_limit import RateLimit

#: Seconds that stopping waits for what is under way.
JOIN = 10.0


class Periodic(ABC):
    """Work in the background that one process of all does at a time: ``look`` every ``every`` seconds.

    ``rate`` is for ``self._rate_limit``, in units of the work per second; 0 is as fast as it goes.
    """

    #: Its part in the thread's name, and what the log calls it.
    name: str
    called: str

    def __init__(self, service: Service, every: float, rate: float) -> None:
        self._service = service
        self._core = service.core
        self._every = every
        self._stop = threading.Event()
        self._rate_limit = RateLimit(rate or None, self._stop.wait)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look, in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name=f"storelib-{self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; another process goes on."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(JOIN)

    @abstractmethod
    def look(self) -> object:
        """Do what is due, if nobody is at it; raises ApiError."""

    def _run(self) -> None:
        log = logging.getLogger(type(self).__module__)
        while not self._stop.wait(self._every):
            try:
                self.look()
            except ApiError as error:
                log.warning("%s has to wait: %s", self.called, error)
            except Exception:
                log.exception("%s failed", self.called)

# SPDX-License-Identifier: Apache-2.0
"""Purging: ``storelib db purge`` as work in the background, at a gentle rate, by one process of all."""

from __future__ import annotations

import datetime
import logging

from storelib.api.periodic import Periodic
from storelib.api.service import Service

LOG = logging.getLogger(__name__)

#: Its name in the table of rounds.
NAME = "purge"
#: Seconds between two looks at whether there is something to do, and between two beginnings.
LOOK, INTERVAL = 60.0, 3600.0
#: Images forgotten in one transaction.
BATCH = 50


class Purging(Periodic):
    """Forgets images that were deleted ``after`` seconds ago, ``rate`` of them per second; 0 is as fast as it goes."""

    name, called = NAME, "purging"

    def __init__(self, service: Service, after: float, rate: float) -> None:
        super().__init__(service, LOOK, rate)
        self._after = datetime.timedelta(seconds=after)

    def look(self) -> int | None:
        """Forget what is due, if nobody is at it or was within the last hour; returns how many, None if not its turn.

        One that is stopped, or that seemed dead so that another has taken over, ends early.
        """
        rounds, process_id = self._core.repository.rounds, self._service.lease.id
        if rounds.claim(NAME, process_id, self._core.options.lease_timeout, INTERVAL) is None:
            return None
        earliest, _ = self._core.repository.processes.clocks()
        before = earliest - self._after
        purged = 0
        while batch := self._core.repository.images.purge(before, BATCH):
            purged += batch
            mine = rounds.note(NAME, process_id, "", {"images": purged})
            self._rate_limit.spend(batch)
            if self._stop.is_set() or not mine:
                rounds.leave(NAME, process_id)
                return purged
        rounds.finish(NAME, process_id, {"images": purged})
        if purged:
            LOG.info("purged %d images that were deleted before %s", purged, before.isoformat(timespec="seconds"))
        return purged

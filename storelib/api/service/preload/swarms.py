# SPDX-License-Identifier: Apache-2.0
"""What all heartbeats need to know of the others, asked of the database now and then and not for each of them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from storelib.api.caching import BoundedCache
from storelib.api.db.preload_records import Peer
from storelib.api.db.repository import Repository
from storelib.api.db.rows import now
from storelib.api.service.preload import plan

#: Seconds for which it is believed how many nodes there are.
COUNTED = 10.0
#: Preloads whose peers are remembered.
MOST = 500


class Swarms:
    """How many nodes there are, and who has parts of which preload. Safe from many threads."""

    def __init__(self, repository: Repository, limits: plan.Limits) -> None:
        self._repository = repository
        self._limits = limits
        self._peers: BoundedCache[str, tuple[float, Sequence[Peer]]] = BoundedCache(MOST)
        self._counted: tuple[float, int] | None = None

    def nodes(self) -> int:
        """How many nodes were seen in the last time."""
        known, moment = self._counted, time.monotonic()
        if known is None or moment - known[0] > COUNTED:
            seconds = plan.longest(self._limits, known[1] if known else 0)
            known = moment, self._repository.nodes.count(now() - int(seconds * plan.SECOND))
            self._counted = known
        return known[1]

    def peers(self, preload_id: str) -> Sequence[Peer]:
        """Who has parts of it and is to be told of."""
        moment, known = time.monotonic(), self._peers.get(preload_id)
        # As old as a part of the time between two heartbeats; it matters to nobody sooner.
        if known is None or moment - known[0] > min(self._limits.interval / 4, 2.0):
            since = now() - int(plan.longest(self._limits, self.nodes()) * plan.SECOND)
            found = plan.told_of(self._limits, self._repository.preloads.peers(preload_id, since))
            known = moment, found
            self._peers.put(preload_id, known)
        return known[1]

# SPDX-License-Identifier: Apache-2.0
"""Maintenance: what one process of all does now and then. Groups get what they keep, what is over is removed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from storelib.api.context import administrator
from storelib.api.db.preload_records import Group
from storelib.api.db.rows import now
from storelib.api.service.core import LOG, Core
from storelib.api.service.preload import plan
from storelib.api.service.preload.jobs import Jobs, Target
from storelib.api.service.preload.piece_digests import PieceDigests

#: Its name in the table of rounds.
NAME = "preload"
#: Seconds between two rounds.
INTERVAL = 2.0
#: Images that a group keeps at most; more are logged.
MOST_KEPT = 1000
#: Preloads that are made, and that are forgotten, in one round at most: each has a row for each node, and as long as a
#: hundred thousand are written, which takes a second, SQLite writes nothing else.
MOST_AT_ONCE = 20
#: Images whose pieces are begun to be computed in one round, and seconds after which it is tried again.
MOST_READ, AGAIN = 4, 600
#: Seconds for which two requests may not see each other's, clocks included, and after which all is looked at again.
MISSING, COVER = 120, 600.0


class Maintenance:
    """Rounds over all groups and preloads."""

    def __init__(self, core: Core, jobs: Jobs, piece_digests: PieceDigests, process_id: Callable[[], str]) -> None:
        self._core = core
        self._jobs = jobs
        self._piece_digests = piece_digests
        self._process_id = process_id
        self._lock = threading.Lock()
        self._covered: float | None = None
        #: The groups of which it was told that they keep too many images.
        self._too_large: set[str] = set()

    def look(self, interval: float = INTERVAL) -> bool:
        """Do a round if the last one was ``interval`` seconds ago, and nobody is at it; returns whether it was done.

        Raises ApiError.
        """
        rounds, process_id = self._core.repository.rounds, self._process_id()
        # The database tells processes apart, and not threads of one.
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if rounds.claim(NAME, process_id, self._core.options.lease_timeout, interval) is None:
                return False
            try:
                self._round()
            except BaseException:
                rounds.leave(NAME, process_id)
                raise
            rounds.finish(NAME, process_id, {})
            return True
        finally:
            self._lock.release()

    def _round(self) -> None:
        preloads = self._core.repository.preloads
        moment = now()
        groups = self._core.repository.nodes.groups()
        left = MOST_AT_ONCE
        for group in groups:
            left -= self._keep(group, left)
        preloads.end_orphans([group.name for group in groups])
        self._cover(moment)
        preloads.forget(moment - self._core.options.preload.keep_hours * 3600 * plan.SECOND, MOST_AT_ONCE)
        missing = self._core.repository.pieces.missing(MOST_READ, moment - AGAIN * plan.SECOND)
        self._piece_digests.begin(missing)

    def _cover(self, moment: int) -> None:
        """Have no node lack a preload. Two requests miss each other only where both made something new at a time; to be
        sure all are looked at now and then, which with ten thousand nodes takes seconds."""
        preloads, looked = self._core.repository.preloads, time.monotonic()
        full = self._covered is None or looked - self._covered > COVER
        if full:
            self._covered = looked
        since = 0 if full else moment - MISSING * plan.SECOND
        if preloads.uncovered(since):
            preloads.cover_all(since)

    def _keep(self, group: Group, most: int) -> int:
        """Have the images of a group on its nodes, and those that it keeps no longer not.

        Makes so many preloads at most, and returns how many: the next round makes others.
        """
        preloads = self._core.repository.preloads
        there = preloads.of_rules(group.name)
        wanted = preloads.kept(group, MOST_KEPT + 1)
        if len(wanted) > MOST_KEPT:
            if group.name not in self._too_large:
                LOG.warning("group %s: it keeps %d images, more are not distributed", group.name, MOST_KEPT)
            self._too_large.add(group.name)
        else:
            self._too_large.discard(group.name)
        kept = {image.id: image for image in wanted[:MOST_KEPT]}
        # One that is deactivated may come back.
        over = [preload_id for image_id, preload_id in there.items() if image_id not in kept]
        if over:
            preloads.end(over, "ended")
        new = [image_id for image_id, image in kept.items() if image_id not in there and image.status == "active"]
        if new := new[:most]:
            self._jobs.make(administrator(), new, Target(group.name), pinned=True, origin="rule")
        return len(new)

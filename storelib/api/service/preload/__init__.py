# SPDX-License-Identifier: Apache-2.0
"""Distributing images to nodes before instances there need them: what administrators ask for, what nodes are told.

``plan`` decides who gets what, from records alone; ``jobs`` is for administrators, ``agents`` for nodes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from oslo_config import cfg

from storelib.api.db.preload_records import Totals
from storelib.api.errors import ResourceNotFound
from storelib.api.service.background import Background
from storelib.api.service.bus import bus_from
from storelib.api.service.core import Core
from storelib.api.service.data import Data
from storelib.api.service.lease import Lease
from storelib.api.service.preload import plan
from storelib.api.service.preload.agents import Agents
from storelib.api.service.preload.authority import Authorities
from storelib.api.service.preload.jobs import Jobs
from storelib.api.service.preload.maintenance import Maintenance
from storelib.api.service.preload.piece_digests import PieceDigests
from storelib.api.service.preload.swarms import Swarms
from storelib.messaging import NODES

__all__ = ["Preloading"]


class Preloading:
    """All parts of it. One that is not enabled does nothing, and says so when asked."""

    def __init__(self, core: Core, data: Data, background: Background, lease: Lease, conf: cfg.ConfigOpts) -> None:
        options: Any = core.options.preload
        self.enabled = bool(options.enabled)
        limits = limits_from(options)
        authorities = Authorities(options.encryption_key)
        self._jobs = Jobs(core, limits, authorities)
        self._swarms = Swarms(core.repository, limits)
        self._agents = Agents(core, data, limits, authorities, self._swarms)
        self._repository = core.repository
        self.piece_digests = PieceDigests(core, data, background)
        if self.enabled:
            data.pieces = self.piece_digests
            self._jobs.on_new = lambda context, image_ids: self.piece_digests.begin(image_ids)
            self.maintenance = Maintenance(core, self._jobs, self.piece_digests, lambda: lease.id)
            self._jobs.tend = partial(self.maintenance.look, 0.0)
            lease.on_beat = self.maintenance.look
            bus = bus_from(conf, NODES)
            if bus is not None:
                self._jobs.wake = self.piece_digests.wake = bus.wake

    @property
    def jobs(self) -> Jobs:
        """For administrators; raises ResourceNotFound where it is not enabled."""
        self._check()
        return self._jobs

    @property
    def agents(self) -> Agents:
        """For nodes; raises ResourceNotFound where it is not enabled."""
        self._check()
        return self._agents

    def counts(self) -> tuple[int, int, Totals]:
        """How many nodes are registered, how many are there, and how far all are with all active preloads."""
        self._check()
        return self._repository.nodes.count(), self._swarms.nodes(), self._repository.preloads.total()

    def _check(self) -> None:
        if not self.enabled:
            raise ResourceNotFound("images are not distributed to nodes here: [preload] enabled is off")


def limits_from(options: Any) -> plan.Limits:
    """``[preload]`` as the plan needs it."""
    return plan.Limits(
        options.interval,
        options.idle_interval,
        options.heartbeats_per_second,
        options.web_seeds,
        options.peers,
        options.ticket_lifetime,
        options.ban_reports,
    )

# SPDX-License-Identifier: Apache-2.0
"""What ``/metrics`` tells of nodes and of the images that are distributed to them: what the database knows."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from storelib.api.db.preload_records import STATES
from storelib.api.errors import DatabaseUnavailable, ResourceNotFound
from storelib.api.service import Service


class PreloadMetrics:
    """A collector for a registry of prometheus_client."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        """Nothing: the names are known when they are collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """What is known now; nothing where the database does not answer."""
        try:
            nodes, alive, totals = self._service.preload.counts()
        except (DatabaseUnavailable, ResourceNotFound):
            return
        gauge = GaugeMetricFamily("storelib_nodes", "Nodes that are registered, and that are there.", labels=["which"])
        gauge.add_metric(["registered"], nodes)
        gauge.add_metric(["alive"], alive)
        yield gauge
        gauge = GaugeMetricFamily(
            "storelib_preload_nodes", "Images on nodes, of active preloads, by how far they are.", labels=["state"]
        )
        for state in STATES:
            gauge.add_metric([state], totals.nodes.get(state, 0))
        yield gauge
        gauge = GaugeMetricFamily(
            "storelib_preload_bytes", "Bytes that nodes got, of active preloads, and where from.", labels=["origin"]
        )
        gauge.add_metric(["source"], totals.from_source)
        gauge.add_metric(["peers"], totals.from_peers)
        yield gauge

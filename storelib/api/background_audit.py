# SPDX-License-Identifier: Apache-2.0
"""BackgroundAudit: ``storelib audit --deep`` in the background, slowly and again and again, by one process of all.

What it finds is logged, sent as a notification, and counted for ``/metrics``.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

from storelib.api.auditing import LISTED, Audit, Counts, Finding
from storelib.api.db.records import AuditRow, Round
from storelib.api.errors import ApiError, DatabaseUnavailable
from storelib.api.periodic import Periodic
from storelib.api.service import Service
from storelib.api.service.core import own_spelling, store_of
from storelib.exceptions import StoreError

LOG = logging.getLogger(__name__)

#: Its name in the table of rounds.
NAME = "audit"
#: Seconds between two looks at whether a round is due, at most and as a part of the interval.
LOOK, PART = 60.0, 10
#: Findings of one round that are logged and notified; all are counted.
MOST = 1000
_BATCH = 200


class _Stopped(BaseException):
    """The process is about to end, or another one has taken over."""


class BackgroundAudit(Periodic):
    """Rounds over all images every ``interval`` seconds, with ``rate`` bytes per second, 0 for as fast as it goes."""

    name, called = NAME, "the audit in the background"

    def __init__(self, service: Service, interval: float, rate: float) -> None:
        super().__init__(service, min(LOOK, interval / PART), rate)
        self._interval = interval

    def look(self) -> bool:
        """Do a round, or the rest of one, if it is due and nobody is at it; returns whether it came to its end."""
        rounds, process_id = self._core.repository.rounds, self._service.lease.id
        found = rounds.claim(NAME, process_id, self._core.options.lease_timeout, self._interval)
        if found is None:
            return False
        try:
            counts = self._round(found, process_id)
        except _Stopped:
            rounds.leave(NAME, process_id)
            return False
        rounds.finish(NAME, process_id, counts)
        told = sum(counts["findings"].values())
        LOG.log(
            logging.WARNING if told else logging.INFO,
            "audit: %d disagreements; %d images, %d bytes read",
            *(told, counts["images"], counts["bytes"]),
        )
        return True

    def _round(self, begun: Round, process_id: str) -> dict[str, Any]:
        counts: dict[str, Any] = {"images": 0, "bytes": 0, "findings": {}, **begun.counts}
        findings = Counter(counts["findings"])
        already = Counts(images=counts["images"], read=counts["bytes"])
        audit = Audit(
            self._core.repository,
            self._core.registry,
            staging=self._service.imports.staging.store,
            deep=True,
            rate_limit=self._rate_limit,
            progress=self._check,
        )
        audit.counts = already

        def note(position: str) -> None:
            counts.update(images=already.images, bytes=already.read, findings=dict(findings))
            # Of another process: it has gone on where this one, which seemed dead, was.
            if not self._core.repository.rounds.note(NAME, process_id, position, counts):
                raise _Stopped

        if not begun.position:
            # What no image has, and the like, needs lists of all there is, and no reading.
            shallow = Audit(self._core.repository, self._core.registry, staging=self._service.imports.staging.store)
            self._tell((found for found in self._interruptible(shallow.run()) if found.kind in LISTED), findings)
        for row in self._rows(begun.position):
            self._tell((found for found in audit.check(row) if found.kind not in LISTED), findings)
            self._respell(row)
            note(row.id)
        return {**counts, "findings": dict(findings)}

    def _rows(self, after: str) -> Iterator[AuditRow]:
        return self._core.repository.images.audit(_BATCH, after=after)

    def _respell(self, row: AuditRow) -> None:
        """Record the locations of an image as their stores write them, where they were recorded before that was done.

        Where that cannot be said now, the next round does it; the audit itself tells why.
        """
        for location in row.locations:
            if location.status != "active":
                continue
            with contextlib.suppress(StoreError, ApiError):
                uri = own_spelling(store_of(self._core.registry, location), location.uri)
                if uri != location.uri:
                    self._core.repository.locations.respell(row.id, location, uri)

    def _interruptible(self, found: Iterable[Finding]) -> Iterator[Finding]:
        for each in found:
            self._check(0)
            yield each

    def _check(self, done: int) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _tell(self, found: Iterable[Finding], findings: Counter[str]) -> None:
        for each in found:
            findings[each.kind] += 1
            if findings.total() > MOST:
                continue
            where = f"store {each.store}" if each.store else "no store"
            LOG.error("audit: %s: image %s in %s: %s", each.kind, each.image_id, where, each.detail)
            # No URI: listeners need not know where data is.
            self._core.notify.error("audit", f"{each.kind}: image {each.image_id} in {where}")
        self._check(0)


class AuditMetrics:
    """What the database knows of the rounds, for a registry of prometheus_client."""

    def __init__(self, service: Service) -> None:
        self._rounds = service.core.repository.rounds

    def describe(self) -> list[Metric]:
        """Nothing: the names are known when they are collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """What is known now; nothing where the database does not answer."""
        try:
            found = self._rounds.get(NAME)
        except DatabaseUnavailable:
            return
        if found is None:
            return
        yield _gauge("started_seconds", "When the audit in the background began, since 1970.", found.started_at)
        yield _gauge("finished_seconds", "When it last came to its end, since 1970.", found.finished_at)
        for name, key, help_text in (
            ("images", "images", "Images that were audited."),
            ("bytes", "bytes", "Bytes that were read."),
        ):
            gauge = GaugeMetricFamily(f"storelib_audit_{name}", help_text, labels=["round"])
            for which, counts in (("current", found.counts), ("last", found.last)):
                gauge.add_metric([which], float(counts.get(key, 0)))
            yield gauge
        gauge = GaugeMetricFamily("storelib_audit_findings", "Disagreements by kind.", labels=["round", "kind"])
        for which, counts in (("current", found.counts), ("last", found.last)):
            for kind, number in counts.get("findings", {}).items():
                gauge.add_metric([which, kind], float(number))
        yield gauge


def _gauge(name: str, help_text: str, moment: Any) -> Metric:
    return GaugeMetricFamily(
        f"storelib_audit_{name}", help_text, value=moment.timestamp() if moment is not None else 0.0
    )

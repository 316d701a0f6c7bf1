# SPDX-License-Identifier: Apache-2.0
"""Background: where work goes on after the response. In worker processes if there are any, or else in this one.

Work that workers may do is a job in the database, which goes with the upload it is done under. A process that dies
leaves it to be begun again, a few times; without workers, the API takes what waits for them.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from storelib.api.context import Context
from storelib.api.db.records import Image, Job, Ticket
from storelib.api.errors import OutcomeUnknown, UploadLost
from storelib.api.service.bus import Bus
from storelib.api.service.core import LOG, Core
from storelib.api.service.lease import Lease
from storelib.api.service.sealing import Sealing
from storelib.api.service.workers import Workers

#: Seconds for each piece of work that is done here, before another is taken.
PAUSE = 0.02

#: Goes on with an upload for a caller; the mapping is what was given when it was put off. Cleans up whatever it raises.
Handler = Callable[[Context, Ticket, Mapping[str, Any]], None]


class Background:
    """Starts work here or has workers do it, and does in turn what waits in the database."""

    def __init__(self, core: Core, lease: Lease, workers: Workers, bus: Bus | None, secret: str) -> None:
        self._core = core
        self._lease = lease
        self._workers = workers
        self._bus = bus
        self._sealing = Sealing(secret)
        self._handlers: dict[str, Handler] = {}
        self._filling = threading.Lock()
        # Tokens under which a job may have been taken, which the database did not say.
        self._unsure: set[str] = set()
        self._alone = False
        self._closed = False

    def handle(self, kind: str, handler: Handler) -> None:
        """Have ``handler`` do the jobs of this kind."""
        self._handlers[kind] = handler

    def start(
        self,
        kind: str,
        context: Context,
        image: Image,
        ticket: Ticket,
        given: Mapping[str, Any],
        here: Callable[[], None],
    ) -> None:
        """Have the upload ``ticket`` gone on with soon, by ``here`` in this process or by a handler of ``kind``.

        It is undone if that cannot be.
        """
        try:
            if self._bus is not None and self._has_workers():
                document = {"context": self._sealing.seal(context), "given": dict(given)}
                self._core.repository.jobs.put(ticket, kind, document, image.owner)
                self._bus.wake()
            else:
                self._workers.start(image.owner, partial(self._counted, here))
        except BaseException:
            self._lease.undo_later(ticket)
            raise

    def _counted(self, work: Callable[[], None]) -> None:
        with self._core.under_way.one_of("imports"):
            work()

    def open(self) -> None:
        """Look for work from now on, with each beat of the lease. Programs that only use the service do none."""
        self._lease.on_waiting = self.look

    def look(self) -> None:
        """Do what waits, if it is this process's to do; raises ApiError."""
        if self._lease.is_worker or (self._core.repository.jobs.count_waiting() and not self._has_workers()):
            self.fill()

    def fill(self) -> None:
        """Take as many of the jobs that wait as this process may do at a time; raises ApiError."""
        with self._filling:
            self._settle()
            while not self._closed and (room := self._workers.room()) is not None:
                # Those with less to do come first.
                time.sleep(PAUSE * self._workers.count())
                job = self._take(owners_at_rest=room == "new")
                if job is None:
                    return
                self._workers.start(job.owner, partial(self._do, job))

    def close(self) -> None:
        """Begin no more jobs; those that run go on."""
        self._closed = True

    def _has_workers(self) -> bool:
        found = self._core.repository.processes.has_workers(self._core.options.lease_timeout)
        if self._alone is found:
            self._alone = not found
            if not found:
                LOG.warning("no worker runs (storelib worker), so this process does their work")
        return found

    def _take(self, *, owners_at_rest: bool) -> Job | None:
        token = str(uuid.uuid4())
        try:
            return self._core.repository.jobs.take(self._lease.id, token=token, owners_at_rest=owners_at_rest)
        except OutcomeUnknown:
            self._unsure.add(token)
            raise
        except UploadLost:
            return None  # the lease ran out; the next look has a new one

    def _settle(self) -> None:
        """Have what may have been taken under a lost response begun again."""
        if not self._unsure:
            return
        for upload in self._core.repository.uploads.list_for(self._lease.id):
            if upload.token in self._unsure:
                self._lease.undo_later(upload.ticket)
        self._unsure.clear()

    def _do(self, job: Job) -> None:
        try:
            handler = self._handlers[job.kind]
            context = self._sealing.unseal(job.document["context"])
        except (LookupError, TypeError, ValueError):
            LOG.exception("image %s: this is no job that can be done here", job.ticket.image_id)
            self._lease.undo_later(job.ticket)
            return
        self._counted(partial(handler, context, job.ticket, job.document["given"]))

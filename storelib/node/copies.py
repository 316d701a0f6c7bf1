# SPDX-License-Identifier: Apache-2.0
"""One image on a node, from the first job that wants it to the moment when nothing of it is left: a state machine whose
steps return at once. What takes long is done in the thread of the workshop, or by an engine.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any

from storelib.exceptions import DigestMismatch, StoreError
from storelib.node import checking
from storelib.node.disk import Disk, Record
from storelib.node.engine import Engine, Part, Progress
from storelib.node.jobs import Job
from storelib.node.publishing import Target
from storelib.preload import torrent

LOG = logging.getLogger(__name__)
#: Seconds before what failed is tried again: doubled each time.
FIRST_RETRY, LAST_RETRY = 10.0, 600.0
#: Seconds without a byte after which an image that is fetched lets others go before.
STANDSTILL = 120.0
#: How often it is doubled at most: a disk may be full for weeks.
_MOST_DOUBLED = 10


class Phase(enum.Enum):
    """Where an image is on its way."""

    QUEUED = "queued"
    CHECKING = "checking"
    FETCHING = "fetching"
    VERIFYING = "verifying"
    READY = "ready"
    FAILED = "failed"


class Cancelled(Exception):
    """The image is not wanted any more."""


@dataclass(frozen=True)
class Workshop:
    """What all images on a node share. ``executor`` does one long thing at a time."""

    disk: Disk
    target: Target
    executor: Executor


class Copy:
    """An image on this node. ``jobs`` are those that want it, by their ids."""

    def __init__(self, record: Record, workshop: Workshop) -> None:
        self.record = record
        self.jobs: dict[str, Job] = {}
        in_place = record.published is not None and _has_place(record, workshop.target)
        self.phase = Phase.READY if in_place else Phase.QUEUED
        self.reason: str | None = None
        self.leaving = False
        self.progress = Progress(record.size if in_place else 0)
        #: It made room for others, and is not fetched again as long as the same jobs want it.
        self.evicted = False
        #: What the disk refused last, so that it is logged once.
        self.trouble: str | None = None
        self._workshop = workshop
        self._engine: Engine | None = None
        #: What passes on the bytes, which may be another one than what fetched them, also before a restart.
        self._passes_on: Engine | None = None
        self._fetching_for: str | None = None
        #: The job that the bytes of ``progress`` came for, and those that came before for which job.
        self._counted_for: str | None = None
        self._got: dict[str, Progress] = {}
        self._future: Future[Any] | None = None
        self._have: list[bool] | None = None
        self._weight: tuple[str, int] | None = None
        self._cancelled = threading.Event()
        self._failures = 0
        self._retry_at = 0.0
        self._seen, self._moved_at = -1, 0.0
        self._is_still = False
        self._mended = False

    @property
    def image(self) -> str:
        """The id of the image that is copied."""
        return self.record.image

    @property
    def state(self) -> str:
        """What the API is told."""
        # Looking which pieces are there is a part of fetching the others.
        return Phase.FETCHING.value if self.phase is Phase.CHECKING else self.phase.value

    @property
    def told_reason(self) -> str | None:
        """What the API is told of why it is as it is."""
        if not self._is_still:
            return self.reason
        job = self.jobs.get(str(self._fetching_for))
        if job is not None and job.ca and not job.certificate and self._engine is not None and self._engine.has_peers:
            return "the image API gives the node no certificate to exchange it with"
        return "nothing comes, neither from the image API nor from other nodes"

    @property
    def needed(self) -> int:
        """Bytes of disk that it takes when it is complete, as far as that is known."""
        size = self._size_on_disk()
        if self._workshop.target.converts(self.record.disk_format):
            # Most of a virtual disk is holes; packed data seldom has a third of what it was.
            size += min(self.record.virtual_size or self.record.size, 3 * self.record.size)
        return size

    def _size_on_disk(self) -> int:
        """Without the pieces that are zeros."""
        job = self.startable
        if job is None or job.torrent is None:
            return self.record.size
        if self._weight is None or self._weight[0] != job.preload:
            pieces = torrent.read(job.torrent).pieces
            self._weight = job.preload, pieces.size - sum(map(pieces.length, pieces.zeros()))
        return self._weight[1]

    @property
    def used(self) -> int:
        """Bytes of disk that it takes now."""
        return self._workshop.disk.used(
            self.image, None if self.record.foreign else self._workshop.target.path(self.image)
        )

    @property
    def is_working(self) -> bool:
        """It takes room that it does not fill yet."""
        return self.phase in (Phase.CHECKING, Phase.FETCHING, Phase.VERIFYING)

    def stands_still(self, now: float) -> bool:
        """Whether it is fetched, and nothing comes: from no source, no other node, or for want of a certificate."""
        return self.phase is Phase.FETCHING and now - self._moved_at > STANDSTILL

    def may_start(self, now: float) -> bool:
        """Whether it only waits to be begun."""
        if self.leaving or self.evicted or self.startable is None:
            return False
        return self.phase is Phase.QUEUED or (self.phase is Phase.FAILED and now >= self._retry_at)

    @property
    def startable(self) -> Job | None:
        """The job that it is, or would be, fetched for."""
        return next((job for job in self.jobs.values() if job.torrent or not job.size), None)

    def start(self, engine: Engine, note: str | None) -> None:
        """See what is on disk, then have the engine fetch the rest. ``note`` is what people should know of it."""
        job = self.startable
        if job is None:
            return
        self._count_for(job.preload)
        self._engine, self._fetching_for, self.reason = engine, job.preload, note
        self._cancelled.clear()
        self.phase = Phase.CHECKING
        self._future = self._workshop.executor.submit(self._prepare, job)

    def _count_for(self, preload: str) -> None:
        """Keep what was counted until now: an engine that begins counts from zero."""
        self._got = {each: self.told(each) for each in self.jobs}
        self._counted_for, self.progress = preload, Progress(self.progress.done)

    def told(self, preload: str) -> Progress:
        """How far it is, and what came for this job: bytes count once, however many jobs want them."""
        before, now = self._got.get(preload, Progress()), self.progress
        if preload != self._counted_for:
            return replace(before, done=now.done)
        return Progress(now.done, before.from_source + now.from_source, before.from_peers + now.from_peers)

    def fail(self, reason: str, now: float) -> None:
        """Stop for a while."""
        self._stop_fetching()
        self.phase, self.reason = Phase.FAILED, reason
        self._retry_at = now + min(FIRST_RETRY * 2 ** min(self._failures, _MOST_DOUBLED), LAST_RETRY)
        self._failures += 1
        LOG.warning("image %s: %s", self.image, reason)

    def interrupt(self) -> None:
        """Begin again from what is on disk: with another job, or another engine."""
        if self.phase in (Phase.CHECKING, Phase.FETCHING):
            self._cancelled.set()
            self._stop_fetching()
            self.phase = Phase.QUEUED

    def doubt(self, why: str) -> None:
        """Look which bytes of an image that is ready are on disk, and fetch the others; raises OSError.

        Until then nobody is to use the published file, which may have the same bytes.
        """
        LOG.warning("image %s is doubted, its bytes are looked at again: %s", self.image, why)
        self._stop_fetching()
        self.phase, self.reason = Phase.QUEUED, why
        self._rescue()
        self._workshop.target.withdraw(self.record)

    def evict(self) -> None:
        """Make room: remove the bytes of an image that is ready, although jobs may want it."""
        self._workshop.target.withdraw(self.record)
        self._workshop.disk.remove(self.image)
        self.evicted = True
        self.record.published = None
        self.phase, self.reason, self.progress = Phase.FAILED, "removed to make room for others", Progress()
        self._retry_at = float("inf")

    def want(self, job: Job) -> None:
        """One more job, or what the API says of it now."""
        if job.preload not in self.jobs and self.phase is Phase.FAILED:
            # A new request does not wait for what became of an older job, nor hears that.
            self.evicted, self.phase, self.reason, self._failures = False, Phase.QUEUED, None, 0
        self.jobs[job.preload] = job

    def leave(self) -> None:
        """Have all of it removed, as soon as nothing works on it any more."""
        self.leaving = True
        self._cancelled.set()
        self._stop_fetching()

    @property
    def is_gone(self) -> bool:
        """Removes what can be removed now; whether nothing is left."""
        if self._future is not None and not self._future.done():
            return False
        self._future = None
        self._workshop.target.withdraw(self.record)
        self._workshop.disk.remove(self.image)
        return True

    def stop(self) -> None:
        """The agent ends; what is on disk stays."""
        self._cancelled.set()

    def is_fetched_by(self, preload: str) -> bool:
        """Whether an event of an engine for this job concerns the image's bytes."""
        return self.phase is Phase.FETCHING and self._fetching_for == preload

    def completed(self) -> None:
        """All bytes are on disk."""
        if self._engine is not None and self._fetching_for is not None and self._engine.holds(self._fetching_for):
            self.progress = self._engine.progress(self._fetching_for)
        self.progress = replace(self.progress, done=self.record.size)
        self.phase = Phase.VERIFYING
        self._future = self._workshop.executor.submit(self._verify)

    def step(self, now: float) -> None:
        """Go on if what was waited for is there."""
        if self.phase in (Phase.CHECKING, Phase.FETCHING) and self._fetching_for not in self.jobs:
            self.interrupt()
        try:
            if self.phase is Phase.FETCHING and self._engine is not None:
                self._see_progress(self._engine)
            if self._future is not None and self._future.done():
                future, self._future = self._future, None
                self._go_on(future)
        except Cancelled:
            self.phase = Phase.QUEUED
        except DigestMismatch as error:
            self._mend(str(error), now)
        # What libtorrent refuses it says by a RuntimeError.
        except (StoreError, OSError, RuntimeError) as error:
            self.fail(why(error), now)
        except Exception as error:
            # One image that nobody thought of must not be the end of all others on this node, and on all nodes.
            LOG.exception("image %s", self.image)
            self.fail(f"the agent failed: {type(error).__name__}", now)
        if self.phase is not Phase.FETCHING or self.progress.done != self._seen:
            self._seen, self._moved_at = self.progress.done, now
        self._is_still = self.stands_still(now)

    def _go_on(self, future: Future[Any]) -> None:
        if self.phase is Phase.CHECKING:
            self._have_fetched(future.result())
        elif self.phase is Phase.VERIFYING:
            future.result()
            self._be_ready()
        else:
            # It was for a phase that was left.
            future.exception()

    def take_part(self, engine: Engine) -> None:
        """Pass on what is here, in every job that wants it."""
        for preload, job in self.jobs.items():
            if job.torrent and job.certified and not job.is_refused and not engine.holds(preload):
                self._passes_on = engine
                try:
                    engine.add(self.part_of(job, [True] * torrent.read(job.torrent).pieces.count))
                    job.met = False
                except (StoreError, RuntimeError) as error:
                    job.is_refused = True
                    LOG.warning("image %s cannot be passed on: %s", self.image, error)

    def _rescue(self) -> None:
        """Have the bytes of a published file again where their other name was removed: they may be right."""
        target, record = self._workshop.target, self.record
        if record.foreign or target.converts(record.disk_format) or target.identity(self.image) != record.published:
            return
        try:
            os.link(target.path(self.image), self._workshop.disk.data(self.image))
        except OSError:
            # They are there, or are fetched again.
            return
        for job in self.jobs.values():
            job.is_refused = False

    def part_of(self, job: Job, have: Sequence[bool]) -> Part:
        """One job's share, for an engine."""
        data = self._workshop.disk.data(self.image)
        return Part(job.preload, job.torrent or b"", data, have, job.key, job.certificate)

    def look_after(self, pinned: bool) -> bool:
        """Whether the published file is still there, or is again; one that is pinned is kept from nova's cleaner."""
        target = self._workshop.target
        if pinned:
            target.refresh(self.image)
        if target.identity(self.image) is not None or self.phase is not Phase.READY:
            if self.phase is Phase.READY and self._is_cut():
                self.doubt("the length of its file was changed")
            return True
        if not self.jobs and not pinned:
            return False
        LOG.info("image %s: its file is gone and is published again", self.image)
        self.completed()
        return True

    def _is_cut(self) -> bool:
        """Whether what is passed on has another length than the image, or what is published than when it was."""
        length = None if self.record.foreign else self._workshop.target.length(self.image)
        if self.record.length is None:
            # Published by an agent that did not note it.
            self.record.length = length
        return length not in (None, self.record.length) or self._workshop.disk.is_cut(self.record)

    def _see_progress(self, engine: Engine) -> None:
        job = self.jobs[str(self._fetching_for)]
        if engine.holds(job.preload):
            self.progress = engine.progress(job.preload)
        elif (job.certified or not engine.has_peers) and self._have is not None and job.torrent:
            engine.add(self.part_of(job, self._have))
            self._have, job.met = None, False

    def _have_fetched(self, have: list[bool]) -> None:
        if all(have):
            self.completed()
            return
        self._have = have
        self.phase = Phase.FETCHING

    def _be_ready(self) -> None:
        # The torrent by which it came goes on for others.
        self.phase, self.reason, self._failures, self._mended = Phase.READY, None, 0, False
        LOG.info("image %s is ready", self.image)

    def _mend(self, why: str, now: float) -> None:
        """Look once which pieces are wrong on disk; if none is, what was recorded of the image is."""
        self._stop_fetching()
        if self._mended:
            self.fail(why, now)
            return
        self._mended = True
        self.phase = Phase.QUEUED

    def _stop_fetching(self) -> None:
        for engine in filter(None, (self._engine, self._passes_on)):
            for preload in {*self.jobs, self._fetching_for or ""}:
                engine.remove(preload)
        self._fetching_for = self._have = None

    # In the workshop's thread.

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled

    def _check_room(self) -> None:
        """What an image converts to may be much more than it was taken for."""
        self._check()
        if self._workshop.target.converts(self.record.disk_format) and not self._workshop.disk.free():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _prepare(self, job: Job) -> list[bool]:
        """Have a file of the right size; returns which pieces it has."""
        self._check()
        disk, target = self._workshop.disk, self._workshop.target
        target.withdraw(self.record)
        if target.identity(self.image) != self.record.published:
            self.record.published = None
        # One on which an instance stands stays, and is exchanged later; after a kill it is none that is ready.
        disk.save(replace(self.record, published=None))
        data = disk.data(self.image)
        checking.reserve(data, self.record.size)
        return checking.present(data, torrent.read(job.torrent).pieces, self._check) if job.torrent else []

    def _verify(self) -> None:
        """Compare the whole digest, look at the format, publish."""
        self._check()
        disk, record = self._workshop.disk, self.record
        data = disk.data(self.image)
        with open(data, "rb") as file:
            os.fsync(file.fileno())
        checking.verify(data, record.os_hash_algo, record.os_hash_value, self._check)
        checking.inspect(data, record.disk_format, record.container_format)
        self._workshop.target.publish(record, data, self._check_room, lambda: disk.save(record))


def _has_place(record: Record, target: Target) -> bool:
    """Whether the image's place has the file that was published."""
    try:
        return target.identity(record.image) == record.published
    except OSError as error:
        # It is verified and published again, or fails by that.
        LOG.warning("image %s: %s", record.image, why(error))
        return False


def why(error: Exception) -> str:
    """What people are told of an error, with the file that it is about."""
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return "the disk is full"
        said, place = error.strerror or type(error).__name__, error.filename2 or error.filename
        return said if place is None else f"{said}: {place}"
    return str(error)

# SPDX-License-Identifier: Apache-2.0
"""The agent: one loop that tells the API what this node has, hears what it is to have, and sees to that."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from oslo_config import cfg

from storelib.exceptions import (
    Forbidden,
    Invalid,
    MissingDependency,
    NotFound,
    RemoteServiceUnavailable,
    StoreError,
)
from storelib.node import checking, identity, jobs, reports, wakeup
from storelib.node.api import Api, Document, resolved
from storelib.node.copies import Copy, Phase, Workshop, why
from storelib.node.direct import Direct
from storelib.node.disk import Disk, lock
from storelib.node.engine import BadPeer, Broken, Complete, Engine, Event, Remark, SourceLost
from storelib.node.jobs import Job
from storelib.node.options import Settings
from storelib.node.publishing import Target
from storelib.node.reading import Reader
from storelib.node.room import Room
from storelib.node.swarm import Swarm

LOG = logging.getLogger(__name__)
#: Seconds between two looks at everything, and two looks at the files of images that are ready.
TICK, LOOK = 0.25, 5.0
#: Seconds between heartbeats before the API says anything, and the least between two.
INTERVAL, SOONEST = 10.0, 1.0
#: The most: nobody could tell a node more that would not be asked.
LATEST = 24 * 3600.0
#: Seconds within which all nodes ask when a message wakes them.
SPREAD = 2.0
#: Seconds by which the clock may differ from the API's before certificates are not to be trusted.
CLOCK = 300.0
#: A source is exchanged for another one this many seconds before its time is over.
_BEFORE_EXPIRY = 60.0
#: Bad peers that are remembered until the API hears of them.
_MOST_BAD_PEERS = 100


class Agent:
    """The agent of one node. Raises BadStoreConfiguration for what cannot work, MissingDependency."""

    def __init__(self, settings: Settings, conf: cfg.ConfigOpts) -> None:
        self._settings, self._conf = settings, conf
        # Nothing is published without it: not after a whole image was fetched.
        checking.prepare()
        target = Target(settings)
        target.prepare()
        self._lock = lock(settings.state_dir)
        self._api = Api(settings.api_url, settings.ca_file)
        self._target = target
        self._disk = Disk(settings)
        self._executor = ThreadPoolExecutor(1, "storelib-node")
        self._workshop = Workshop(self._disk, target, self._executor)
        self._room = Room(settings, self._disk, target)
        self._reader = Reader(self._api.read, settings.down_limit, settings.max_fetching)
        self._direct = Direct(self._reader)
        self._swarm: Swarm | None = None
        self._why_direct: str | None = None
        try:
            self._swarm = Swarm(settings, self._reader)
        except MissingDependency:
            self._why_direct = "libtorrent is not installed: fetching from the image API alone"
            LOG.warning("%s; install it with: pip install 'storelib[node]'", self._why_direct)
        self._jobs: dict[str, Job] = {}
        self._copies: dict[str, Copy] = {}
        self._bad_peers: list[dict[str, Any]] = []
        self._identity: identity.Identity | None = None
        self._interval = INTERVAL
        self._next_heartbeat = self._next_look = self._last_heartbeat = 0.0
        self._told: list[tuple[str, str]] = []
        self._woken = threading.Event()
        self._draining = self._refused = False
        self._clock_is_wrong = False
        self._kept: list[Job] | None = None

    def enrol(self, stop: threading.Event) -> identity.Identity | None:
        """Who the node is, waiting for the API where it is not known yet; None: stopped before. Raises Forbidden."""
        found = identity.load(self._settings.state_dir)
        while found is None and not stop.is_set():
            try:
                found = identity.enrol(self._settings, self._conf, self._api, self._address, self._port)
            except RemoteServiceUnavailable as error:
                LOG.warning("%s; trying again", error)
                stop.wait(min(INTERVAL, SOONEST * 5))
        self._identity = found
        return found

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set; what is on disk stays and is gone on with at the next start."""
        self._remember()
        wakeup.listen(self._conf, self._settings.name, self._woken.set)
        while not stop.is_set():
            try:
                self._tick()
            except OSError as error:
                LOG.error("the state cannot be kept: %s", error.strerror)
            stop.wait(TICK)

    def close(self) -> None:
        """Stop all; returns when nothing runs any more."""
        for copy in self._copies.values():
            copy.stop()
        # It asks libtorrent what is there: that goes after it.
        self._reader.close()
        for engine in self._engines:
            engine.close()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._api.close()
        self._lock.close()

    @property
    def _engines(self) -> list[Engine]:
        return [self._direct, *([self._swarm] if self._swarm is not None else [])]

    @property
    def _port(self) -> int:
        """Where others reach this node; 0: they do not."""
        return 0 if self._swarm is None or self._clock_is_wrong else self._settings.port

    @property
    def _address(self) -> str:
        bind = None if self._settings.bind in ("0.0.0.0", "::") else self._settings.bind  # noqa: S104
        # Others look up no names.
        name = self._settings.address or bind
        return self._api.local_address() if name is None else resolved(name)

    def _remember(self) -> None:
        """What is on disk since the last start, with the jobs of then until the API tells others."""
        for record in self._disk.records():
            self._copies[record.image] = Copy(record, self._workshop)
        self._take(jobs.load(self._settings.state_dir))

    def _tick(self) -> None:
        now = time.monotonic()
        if self._woken.is_set():
            self._woken.clear()
            # All nodes hear of it at the same moment, and do not ask in the same.
            soon = max(now + random.uniform(0, SPREAD), self._last_heartbeat + self._soonest)  # noqa: S311
            self._next_heartbeat = min(self._next_heartbeat, soon)
        if now >= self._next_heartbeat or (self._has_news() and now - self._last_heartbeat >= self._soonest):
            self._heartbeat()
        if not self._refused:
            self._fetch_torrents()
        for engine in self._engines:
            for event in engine.poll():
                self._hear(event, now)
        for copy in list(self._copies.values()):
            with self._alone(copy):
                self._step(copy, now)
        self._start_waiting(now)
        if now >= self._next_look:
            self._next_look = now + LOOK
            self._look_after_all()

    # -- the API

    @property
    def _soonest(self) -> float:
        return min(SOONEST, self._interval)

    def _has_news(self) -> bool:
        return self._told != self._states()

    def _states(self) -> list[tuple[str, str]]:
        found = []
        for job in self._jobs.values():
            copy = self._copies.get(job.image)
            lacks = bool(job.ca and not job.certificate and self._swarm)
            found.append((job.preload, f"{copy.state if copy else ''}{lacks}"))
        return found

    def _heartbeat(self) -> None:
        if self._identity is None:
            return
        self._last_heartbeat = before = time.monotonic()
        # Nodes that were started together do not ask together for ever.
        self._next_heartbeat = before + self._interval * random.uniform(0.9, 1.1)  # noqa: S311
        # Told or not: where the API is away, or refuses, nobody asks more often than else.
        self._told = self._states()
        try:
            document = self._document()
            began = time.time()
            response = self._api.heartbeat(self._identity.id, self._identity.secret, document)
            self._compare_clocks(response, (began + time.time()) / 2)
            self._obey(response)
        except (Forbidden, NotFound) as error:
            self._be_refused(str(error))
            return
        except (StoreError, TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
            # Whatever the API says or does not say, the nodes go on with each other.
            LOG.warning("heartbeat: %s", error)
            if isinstance(error, StoreError) and error.retry_after is not None:
                # What was to be told or heard would wait as long as nothing is new else.
                again = time.monotonic() + max(error.retry_after, self._soonest)
                self._next_heartbeat = min(self._next_heartbeat, again)
            return
        self._refused = False
        del self._bad_peers[: len(document["bad_peers"])]

    def _document(self) -> Document:
        exchanges = self._swarm is not None and not self._clock_is_wrong
        name = self._identity.name if self._identity is not None and exchanges else None
        return {
            "address": self._address,
            "port": self._port,
            "budget": self._settings.budget,
            "free": self._free(),
            "bad_peers": list(self._bad_peers),
            **reports.everything(self._jobs.values(), self._copies, name),
        }

    def _free(self) -> int | None:
        """None: the disk says nothing. The API hears of the node, and of what its images fail by, all the same."""
        try:
            return self._disk.free()
        except OSError as error:
            LOG.error("%s", why(error))
            return None

    def _compare_clocks(self, response: Document, here: float) -> None:
        there = jobs.seconds(response.get("time"))
        difference = 0.0 if there is None else here - there
        wrong = abs(difference) > CLOCK
        if wrong and not self._clock_is_wrong:
            LOG.warning("the clock differs by %.0f s from the image API's: no other node trusts this one", difference)
            for copy in self._copies.values():
                copy.interrupt()
        self._clock_is_wrong = wrong

    def _be_refused(self, why: str) -> None:
        """The node is not one any more, or not for now: it takes part in nothing, and what is on disk stays."""
        if not self._refused:
            LOG.error(
                "%s; this node does nothing meanwhile. If the API has forgotten it, remove %s and enrol it again",
                why,
                self._settings.state_dir / identity.FILE,
            )
        self._refused = True
        for copy in self._copies.values():
            copy.interrupt()
        for job in self._jobs:
            for engine in self._engines:
                engine.remove(job)

    def _obey(self, response: Document) -> None:
        interval = response.get("interval")
        if isinstance(interval, (int, float)) and 0 < interval < math.inf:
            self._interval = float(min(interval, LATEST))
            self._next_heartbeat = min(self._next_heartbeat, self._last_heartbeat + self._interval * 1.1)
        self._draining = bool(response.get("draining"))
        found = []
        for document in response.get("jobs") or ():
            try:
                found.append(jobs.read(document, self._jobs.get(str(document.get("preload")))))
            except Invalid as error:
                LOG.warning("%s", error)
        self._take(found)
        for image in response.get("drop") or ():
            if (copy := self._copies.get(str(image))) is not None and not copy.leaving:
                LOG.info("image %s is to be removed", image)
                copy.leave()
        self._keep()

    def _take(self, found: list[Job]) -> None:
        """Have these jobs and no other ones."""
        for preload in self._jobs.keys() - {job.preload for job in found}:
            for engine in self._engines:
                engine.remove(preload)
        old, self._jobs = self._jobs, {job.preload: job for job in found}
        for copy in self._copies.values():
            copy.jobs = {preload: job for preload, job in copy.jobs.items() if preload in self._jobs}
        for job in found:
            self._attach(job, old.get(job.preload))
        for copy in self._copies.values():
            # As long as one of those that want it does: what a group keeps no longer may go for others.
            copy.record.pinned = any(job.pinned for job in copy.jobs.values())
            if not copy.jobs and copy.phase is not Phase.READY and not copy.leaving:
                copy.leave()

    def _attach(self, job: Job, old: Job | None) -> None:
        copy = self._copies.get(job.image)
        if copy is None:
            copy = self._copies[job.image] = Copy(job.record(), self._workshop)
        if copy.leaving:
            return
        if (copy.record.os_hash_algo, copy.record.os_hash_value) != (job.os_hash_algo, job.os_hash_value):
            LOG.warning("image %s has another digest than it had", job.image)
            copy.leave()
            return
        copy.want(job)
        if old is not None and old.source and job.source and _is_good(old.expires):
            job.source, job.expires = old.source, old.expires
        self._tell_engines(copy, job, old)

    def _tell_engines(self, copy: Copy, job: Job, old: Job | None) -> None:
        source = self._api.absolute(job.source) if job.source else None
        peers = [peer for peer in job.peers if peer.port and peer != (self._settings.address, self._settings.port)]
        for engine in self._engines:
            if engine.holds(job.preload):
                if old is not None and job.certificate != old.certificate:
                    engine.certify(copy.part_of(job, ()))
                engine.meet(job.preload, peers)
                engine.source(job.preload, source)
                engine.limit(job.preload, job.down_limit, job.up_limit)

    def _keep(self) -> None:
        """The jobs for the next start."""
        found = list(self._jobs.values())
        if found != self._kept:
            try:
                jobs.save(self._settings.state_dir, found)
            except OSError as error:
                LOG.error("the jobs cannot be kept for the next start: %s", why(error))
                return
            self._kept = [Job(**vars(job)) for job in found]

    def _fetch_torrents(self) -> None:
        """One at a time: heartbeats go before."""
        for job in self._jobs.values():
            if job.torrent is None and job.torrent_url and job.size and self._identity is not None:
                try:
                    data = self._api.torrent(job.torrent_url, self._identity.secret)
                    jobs.check_torrent(job, data)
                    job.torrent = data
                    self._say_of_queued(job, None)
                    self._keep()
                except StoreError as error:
                    LOG.warning("the torrent of image %s: %s", job.image, error)
                    self._say_of_queued(job, f"the digests of its parts do not come: {error}")
                    # Not again before the API has been asked again.
                    job.torrent_url = None
                return

    def _say_of_queued(self, job: Job, reason: str | None) -> None:
        copy = self._copies.get(job.image)
        if copy is not None and copy.phase is Phase.QUEUED and copy.startable in (None, job):
            copy.reason = reason

    # -- images

    @contextlib.contextmanager
    def _alone(self, copy: Copy) -> Iterator[None]:
        """What the disk refuses for one image is tried again, and keeps none of the others waiting."""
        try:
            yield
        except OSError as error:
            if copy.trouble != why(error):
                LOG.error("image %s: %s", copy.image, why(error))
            copy.trouble = why(error)
        except Exception as error:
            # As in a step of the image itself.
            if copy.trouble != type(error).__name__:
                LOG.exception("image %s", copy.image)
            copy.trouble = type(error).__name__
        else:
            copy.trouble = None

    def _hear(self, event: Event, now: float) -> None:
        job = self._jobs.get(event.preload)
        copy = self._copies.get(job.image) if job else None
        if job is None or copy is None:
            return
        if isinstance(event, BadPeer):
            LOG.warning("the node at %s port %d sent wrong bytes and is banned", *event.address)
            if len(self._bad_peers) < _MOST_BAD_PEERS:
                # What stands behind a % means something on this machine only: the API would refuse all that is told.
                place = {"address": event.address.host.partition("%")[0], "port": event.address.port}
                self._bad_peers.append({"preload": event.preload, **place})
                self._told = []
        elif isinstance(event, SourceLost):
            job.source = None
        elif isinstance(event, Complete):
            if copy.is_fetched_by(event.preload):
                copy.completed()
        elif isinstance(event, Broken):
            self._give_up(event, job, copy, now)
        elif isinstance(event, Remark) and copy.is_fetched_by(event.preload):
            copy.reason = event.reason

    def _give_up(self, event: Broken, job: Job, copy: Copy, now: float) -> None:
        if copy.is_fetched_by(event.preload):
            copy.fail(event.reason, now)
            return
        for engine in self._engines:
            engine.remove(event.preload)
        if copy.phase is Phase.READY:
            # Given to the engine again as it is it would be refused again, at each look.
            job.is_refused = True
            with self._alone(copy):
                copy.doubt(event.reason)

    def _step(self, copy: Copy, now: float) -> None:
        if copy.leaving:
            if copy.is_gone:
                del self._copies[copy.image]
                LOG.info("image %s is removed", copy.image)
            return
        before = copy.phase
        copy.step(now)
        may_exchange = self._swarm is not None and not self._clock_is_wrong and not self._refused
        if copy.phase is Phase.READY and may_exchange:
            copy.take_part(self._swarm)  # type: ignore[arg-type]
        if copy.phase is not before or any(not job.met for job in copy.jobs.values()):
            for job in copy.jobs.values():
                self._introduce(copy, job)

    def _introduce(self, copy: Copy, job: Job) -> None:
        """An engine that has just begun with a job does not know of peers and source yet."""
        if any(engine.holds(job.preload) for engine in self._engines):
            job.met = True
            self._tell_engines(copy, job, None)

    def _start_waiting(self, now: float) -> None:
        if self._draining or self._refused:
            return
        for copy in list(self._copies.values()):
            if copy.may_start(now):
                working = sum(1 for other in self._copies.values() if other.is_working)
                if working >= self._settings.max_fetching and not self._let_others_go(now):
                    return
                try:
                    fits = self._make_room(copy)
                except OSError as error:
                    copy.fail(why(error), now)
                    continue
                if fits:
                    copy.start(*self._engine(copy))
                else:
                    copy.fail("there is no room for it on the disk", now)

    def _let_others_go(self, now: float) -> bool:
        """Have an image that comes no further wait behind all others; whether there is one."""
        still = next((copy for copy in self._copies.values() if copy.stands_still(now)), None)
        if still is None:
            return False
        still.interrupt()
        still.reason = "nothing came of it for a while: others go first"
        LOG.warning("image %s: %s", still.image, still.reason)
        self._copies[still.image] = self._copies.pop(still.image)
        return True

    def _engine(self, copy: Copy) -> tuple[Engine, str | None]:
        """What fetches, and what people should know of that."""
        if self._swarm is None:
            return self._direct, self._why_direct
        if self._clock_is_wrong:
            return self._direct, "the node's clock is wrong: fetching from the image API alone"
        if copy.startable is not None and not copy.startable.ca:
            return self._direct, "the job has no authority: fetching from the image API alone"
        return self._swarm, None

    def _make_room(self, copy: Copy) -> bool:
        """Whether an image fits, after others have gone for it."""
        going = self._room.for_one(copy, self._copies.values())
        for other in going or ():
            LOG.info("image %s makes room for %s", other.image, copy.image)
            for preload in other.jobs:
                for engine in self._engines:
                    engine.remove(preload)
            other.evict()
            if not other.jobs:
                del self._copies[other.image]
        return going is not None

    def _look_after_all(self) -> None:
        for copy in list(self._copies.values()):
            if copy.phase is Phase.READY and not copy.leaving:
                with self._alone(copy):
                    if not copy.look_after(self._room.is_pinned(copy)):
                        copy.leave()
        self._disk.sweep(self._copies)


def _is_good(expires: float | None) -> bool:
    return expires is not None and time.time() < expires - _BEFORE_EXPIRY

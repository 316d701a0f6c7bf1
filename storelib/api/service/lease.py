# SPDX-License-Identifier: Apache-2.0
"""This process's lease, and undoing what processes left behind that died in the middle of an upload.

A thread renews the lease, takes over the uploads of processes whose lease ran out, removes what they left in the stores
and puts the images back to what they were. It also deletes data that could not be deleted when its image was.
"""

from __future__ import annotations

import datetime
import logging
import os
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence

from storelib.api.context import administrator
from storelib.api.db.processes import this_boot, ticks
from storelib.api.db.records import NewLocation, Process, Ticket, Upload
from storelib.api.errors import ApiError, Conflict, ImageNotFound, UploadLost
from storelib.api.service.core import Core
from storelib.api.service.deletion import (
    delete_abandoned,
    delete_claimed_by_dead,
    finish_deletion,
    finish_if_deleting,
    is_unanswered,
    remove_leftovers,
    resume_deletion,
    somewhere_in,
)
from storelib.driver import StoredImage
from storelib.exceptions import NotFound, StoreError

LOG = logging.getLogger(__name__)

#: Renewals in the time after which a process without one counts as dead.
RENEWALS = 6
#: Renewals that one whose lease has run out still has to be back.
GRACE = 2
#: Seconds that the clocks of this machine and the database may differ.
CLOCKS = 60.0
#: Seconds that stopping waits for a thread in the middle of its work.
JOIN = 10.0
#: How often one piece of work is begun at most: what kills its process would else kill all of them.
ATTEMPTS = 3
#: Seconds after which no request is deleting an image any more that is pending_delete.
ABANDONED = 120.0


def this_host() -> str:
    """The machine and its process ids' name space, so that equal pids of two containers are not taken for one."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{socket.gethostname()} {space}".strip()[:255]


class Lease:
    """Joins when first needed, again in a forked child.

    ``renew`` is in seconds, by default a part of ``lease_timeout``; 0 starts no threads (for tests).

    One thread renews and nothing else, so that the lease lasts however long cleaning up takes in the other.
    """

    def __init__(self, core: Core, renew: float | None = None, *, is_worker: bool = False) -> None:
        self._core = core
        #: Whether this process is there for work that others were asked for.
        self.is_worker = is_worker
        core.process_id = lambda: self.id
        self._ttl: float = core.options.lease_timeout
        self._every = self._ttl / RENEWALS if renew is None else renew
        self._lock = threading.Lock()
        self._id: str | None = None
        # Ids under which this process was taken for dead, and when the lease was last seen to be in force (``ticks``).
        self._former: set[str] = set()
        self._seen = ticks()
        # Processes whose lease has run out, with when it was renewed last, and since when that is known.
        self._silent: dict[tuple[str, tuple[int, int | None]], int] = {}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        # Uploads of this process whose end could not be recorded, data of uploads that others gave up, and images
        # whose deletion by this process was interrupted.
        self._unfinished: set[Ticket] = set()
        self._lost: set[tuple[str, str, str]] = set()
        self._deleting: set[str] = set()
        # The token under which uploads of the dead are taken over; None once that is done.
        self._taking: str | None = None
        self._scrubbed: float | None = None
        self._scrubber: threading.Thread | None = None
        #: Called with the upload that is undone.
        self.on_undo: Callable[[Ticket], None] | None = None
        #: Called when things are looked for that could not be removed before; may raise ApiError and StoreError.
        self.on_scrub: Callable[[], None] | None = None
        #: Called to look for work that waits; may raise ApiError.
        self.on_waiting: Callable[[], None] | None = None
        #: Called at each look at what others left; may raise ApiError.
        self.on_beat: Callable[[], object] | None = None
        weak = weakref.WeakMethod(self._forget_parent)
        os.register_at_fork(after_in_child=lambda: (found := weak()) and found())

    def _forget_parent(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._id = None
        self._threads = []
        self._scrubber = None
        self._unfinished, self._lost, self._deleting = set(), set(), set()
        self._silent = {}
        self._core.unsure_claims.clear()
        self._taking = None

    @property
    def id(self) -> str:
        """The id of this process in the database."""
        with self._lock:
            if self._id is None:
                self._seen = ticks()
                joined = self._core.repository.processes.join(
                    this_host(), os.getpid(), "worker" if self.is_worker else ""
                ).id
                try:
                    self._expire_dead_local_peers(joined)
                    if self._every and not self._threads:
                        self._threads = self._start_threads()
                except BaseException:
                    # A lease that is never renewed is worse than none.
                    self._give_back(joined)
                    raise
                self._id = joined
            return self._id

    def _start_threads(self) -> list[threading.Thread]:
        """Both or none: they begin when both have started."""
        begin = threading.Barrier(3)
        started = []
        try:
            for work in (Lease.renew, Lease.recover):
                arguments = (weakref.ref(self), work, self._stop, self._every, begin)
                thread = threading.Thread(target=_run, args=arguments, name=f"storelib-{work.__name__}", daemon=True)
                thread.start()
                started.append(thread)
            begin.wait()
        except BaseException:
            begin.abort()
            for thread in started:
                thread.join(JOIN)
            raise
        return started

    def _give_back(self, process_id: str) -> None:
        try:
            self._core.repository.processes.leave(process_id)
        except ApiError as error:
            LOG.warning("the lease of this process runs out by itself: %s", error)

    def start(self) -> None:
        """Join, and begin to undo what dead processes left. A database that does not answer is asked again later."""
        try:
            if self._every:
                _ = self.id
            else:
                self.beat()
        except ApiError as error:
            LOG.warning("recovery has to wait: %s", error)

    def beat(self) -> None:
        """Renew the lease and clean up; raises ApiError when the database does not answer."""
        self.renew()
        self.recover()

    def renew(self) -> None:
        """Renew the lease, or get a new one if it was given up."""
        process_id, asked = self.id, ticks()
        if self._core.repository.processes.heartbeat(process_id):
            self._seen = asked
            return
        LOG.warning("this process was taken for dead; its uploads were given up")
        with self._lock:
            self._former.add(process_id)
            # Another thread may have been faster.
            if self._id == process_id:
                self._id = None
        _ = self.id

    def keeps(self, ticket: Ticket) -> bool:
        """Whether this process was not taken for dead since it began this upload, as far as can be known.

        The database is asked only by a process that did not run for so long that it may have been.
        """
        now = ticks()
        if now - self._seen > self._ttl * 1_000_000:
            self._seen = now
            try:
                self.renew()
            except ApiError as error:
                LOG.warning("whether this process was taken for dead is not known yet: %s", error)
        return ticket.process_id not in self._former

    def recover(self) -> None:
        """Undo what dead processes left behind, and what of this one could not be ended."""
        process_id = self.id
        self._look_for_work()
        self._take_over(process_id)
        delete_claimed_by_dead(self._core)
        for ticket in list(self._unfinished):
            self._finish_late(ticket)
        for image_id, name, uri in list(self._lost):
            self._remove_lost(image_id, name, uri)
        for image_id in list(self._deleting):
            self._delete_late(image_id)
        if self.on_beat is not None:
            self.on_beat()
        # There may be more by now; and cleaning up in a store that does not answer takes its time.
        self._look_for_work()
        if self._scrubbed is None or time.monotonic() - self._scrubbed > self._core.options.wakeup_time:
            self._scrubbed = time.monotonic()
            self._scrub_beside()

    def _look_for_work(self) -> None:
        if self.on_waiting is not None:
            self.on_waiting()

    def _scrub_beside(self) -> None:
        """``scrub`` in a thread of its own, which may take as long as stores let it, unless one still does."""
        if not self._every:
            self.scrub()
        elif self._scrubber is None or not self._scrubber.is_alive():
            self._scrubber = threading.Thread(
                target=_scrub, args=(weakref.ref(self),), name="storelib-scrub", daemon=True
            )
            self._scrubber.start()

    def _take_over(self, process_id: str) -> None:
        # Noted first: if the response to the commit is lost, no other process would look for what this one has taken.
        repository, dead = self._core.repository, self._dead()
        again, self._taking = self._taking, self._taking or str(uuid.uuid4())
        taken = list(repository.uploads.take_over(process_id, self._ttl, dead=dead, token=self._taking))
        if again is not None:
            taken = [each for each in repository.uploads.list_for(process_id) if each.token == again]
        for upload in taken:
            self.undo(upload)
        self._taking = None

    def _dead(self) -> Collection[str]:
        """The processes that do not come back although they could have renewed their lease since it ran out.

        Where the database was away, or its clock has jumped, all leases have run out, and the first that renews its own
        must not take the others for dead.
        """
        now, known = ticks(), self._silent
        silent = self._core.repository.processes.silent(self._ttl)
        self._silent = {each: known.get(each, now) for each in silent.items()}
        grace = self._every * GRACE * 1_000_000
        return [process_id for (process_id, _), since in self._silent.items() if now - since >= grace]

    def stop(self) -> None:
        """Stop the threads and give the lease back; what is unfinished is for others to undo."""
        self._stop.set()
        with self._lock:
            process_id, self._id = self._id, None
            threads, self._threads = self._threads, []
        for thread in threads:
            _join(thread)
        # The threads above may have started it after they were told to stop.
        if self._scrubber is not None:
            _join(self._scrubber)
        if process_id is not None:
            self._core.repository.processes.leave(process_id)

    def ticket(self, image_id: str) -> Ticket:
        """For something new that is done to this image by this process."""
        return Ticket(image_id, self.id, str(uuid.uuid4()))

    def undo_later(self, ticket: Ticket) -> None:
        """An upload of this process ended, and the database would not take note of it."""
        self._unfinished.add(ticket)

    def delete_later(self, image_id: str) -> None:
        """A deletion by this process was interrupted: it is gone on with, if the image still is pending_delete."""
        self._deleting.add(image_id)

    def interrupted(self, image_id: str) -> bool:
        """Whether this process was interrupted while it deleted the image."""
        return image_id in self._deleting

    def remove_lost(self, image_id: str, stored: Iterable[StoredImage]) -> None:
        """Remove what an upload stored that was given up by others, now or later, but none that is the image's now."""
        for item in stored:
            lost = image_id, str(item.metadata["store"]), item.uri
            self._lost.add(lost)
            self._remove_lost(*lost)

    def undo(self, upload: Upload) -> None:
        """Remove what an upload left in its stores, then put the image back to what it was; or delete it to the end."""
        mine = self.ticket(upload.image_id)
        # Noted first, under both tokens: the response to any commit may be lost, and no other process would look.
        noted = {upload.ticket, mine}
        self._unfinished.update(noted)
        try:
            self._undo(upload.ticket, mine)
        except (ApiError, StoreError) as error:
            LOG.warning("image %s: an upload cannot be undone yet: %s", upload.image_id, error)
        except Exception:
            # The others must not wait for it.
            LOG.exception("image %s: an upload cannot be undone", upload.image_id)
        else:
            self._unfinished.difference_update(noted)

    def _undo(self, ticket: Ticket, mine: Ticket) -> None:
        repository = self._core.repository
        # No other process undoes it, and none writes to the same place, as long as this is noted.
        upload = repository.uploads.claim(ticket, mine.process_id, token=mine.token)
        if upload is None:
            return
        left: Sequence[NewLocation] = ()
        try:
            if upload.status == "pending_delete":
                finish_deletion(self._core, administrator(), upload.image_id, upload.restore)
                LOG.warning("image %s: a deletion that was never finished is done", upload.image_id)
                return
            left = self._remove_what_is_left(upload, mine)
            if repository.jobs.put_back(mine, ATTEMPTS):
                LOG.warning("image %s: work that was never finished waits to be begun again", upload.image_id)
                return
            if self.on_undo is not None:
                self.on_undo(mine)
            repository.uploads.finish(upload.image_id, mine.process_id, to=upload.restore, token=mine.token, left=left)
            LOG.warning("image %s: an upload that was never finished is undone", upload.image_id)
        except (UploadLost, ImageNotFound):
            finish_if_deleting(self._core, upload.image_id)
            repository.uploads.forget(upload.image_id, mine.process_id, token=mine.token, left=left)

    def _remove_what_is_left(self, upload: Upload, mine: Ticket) -> Sequence[NewLocation]:
        """Remove what it left in its stores; returns what may be in those that are away, or not configured here.

        The image does not wait for them: that is looked for later. Only work that is begun again does. Raises ApiError,
        StoreError.
        """
        left, away = [], None
        for name in upload.stores:
            try:
                if name in self._core.registry:
                    remove_leftovers(self._core, self._core.registry[name], upload.image_id, mine)
                    continue
            except StoreError as error:
                if not is_unanswered(error):
                    raise
                away = error
            left.append(somewhere_in(name))
        if away is not None and self._core.repository.jobs.exists(upload.image_id):
            raise away
        return left

    def scrub(self) -> None:
        """Delete data of images that are gone, where it could not be deleted before."""
        delete_abandoned(self._core, ABANDONED)
        if self.on_scrub is not None:
            try:
                self.on_scrub()
            except (ApiError, StoreError) as error:
                LOG.warning("what was staged and is not needed cannot be removed yet: %s", error)

    def _finish_late(self, ticket: Ticket) -> None:
        """If it is not noted any more, its end was recorded, or others undid it; a later upload is none of this."""
        upload = self._core.repository.uploads.get(ticket.image_id)
        self._unfinished.discard(ticket)
        if upload is not None and upload.ticket == ticket:
            self.undo(upload)

    def _delete_late(self, image_id: str) -> None:
        try:
            image = self._core.repository.images.get(image_id)
            if image.status == "pending_delete":
                resume_deletion(self._core, administrator(), image_id)
        except (ImageNotFound, Conflict):
            pass
        except ApiError as error:
            LOG.warning("image %s: its deletion cannot be finished yet: %s", image_id, error)
            return
        self._deleting.discard(image_id)

    def _remove_lost(self, image_id: str, name: str, uri: str) -> None:
        """Never raises; what cannot be removed now is tried again."""
        lost = image_id, name, uri
        repository = self._core.repository
        ticket: Ticket | None = None
        try:
            try:
                image = repository.images.get(image_id)
            except ImageNotFound:
                self._remove_from(name, uri)
                self._lost.discard(lost)
                return
            if any(location.uri == uri for location in image.locations):
                self._lost.discard(lost)
                return
            # A process that was taken for dead has no lease to claim anything with.
            self.renew()
            ticket = self.ticket(image_id)
            # Its own claim keeps all uploads from writing there while the data is removed.
            claimed = repository.uploads.begin(
                image_id, ticket.process_id, from_=(image.status,), to=None, stores=(), token=ticket.token
            )
            try:
                # Another process may have finished between the two.
                if all(location.uri != uri for location in claimed.locations):
                    self._remove_from(name, uri)
                self._lost.discard(lost)
            except StoreError as error:
                # The claim ends all the same: if it were undone, what is staged for the image would go with it.
                LOG.warning("image %s: what it does not have stays in store %s for now: %s", image_id, name, error)
            repository.uploads.finish(image_id, ticket.process_id, to=None, token=ticket.token)
        except (ApiError, StoreError) as error:
            LOG.warning("image %s: what an upload left that was given up is removed later: %s", image_id, error)
            if ticket is not None:
                self._unfinished.add(ticket)

    def _remove_from(self, name: str, uri: str) -> None:
        try:
            self._core.registry[name].delete(uri)
        except NotFound:
            pass

    def _expire_dead_local_peers(self, own: str) -> None:
        """Processes of this machine that are gone need not be waited for."""
        for process in self._core.repository.processes.list():
            if process.id != own and process.host == this_host() and not _runs(process):
                self._core.repository.processes.leave(process.id)


def _runs(process: Process) -> bool:
    """Whether a process of this machine still is what it was: not gone, not a zombie, not another of the same pid."""
    try:
        with open(f"/proc/{process.pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        with open("/proc/uptime", encoding="ascii") as file:
            uptime = float(file.read().split()[0])
    except FileNotFoundError:
        return not os.path.exists("/proc/self/stat")
    # proc(5): the state is field 3, the start in ticks since boot field 22.
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    if process.ticks is not None and process.boot == this_boot():
        # Another process of the same pid started after this one was last seen. No clock that may be set is asked.
        return fields[0] not in "ZX" and started <= process.ticks / 1_000_000 + 1
    age = uptime - started
    known_for = datetime.datetime.now(datetime.timezone.utc) - process.started_at
    return fields[0] not in "ZX" and age > known_for.total_seconds() - CLOCKS


def _join(thread: threading.Thread) -> None:
    if thread is not threading.current_thread():
        thread.join(JOIN)


def _scrub(lease: weakref.ref[Lease]) -> None:
    current = lease()
    if current is None:
        return
    try:
        current.scrub()
    except ApiError as error:
        LOG.warning("scrub has to wait: %s", error)
    except Exception:
        LOG.exception("scrub failed")


def _run(
    lease: weakref.ref[Lease],
    work: Callable[[Lease], None],
    stop: threading.Event,
    every: float,
    begin: threading.Barrier,
) -> None:
    """Work at once and every so often as long as the lease exists; the thread holds it only while it works."""
    try:
        begin.wait()
    except threading.BrokenBarrierError:
        return
    while not stop.is_set():
        current = lease()
        if current is None:
            return
        try:
            work(current)
        except ApiError as error:
            LOG.warning("%s has to wait: %s", work.__name__, error)
        except Exception:
            LOG.exception("%s failed", work.__name__)
        del current
        stop.wait(every)

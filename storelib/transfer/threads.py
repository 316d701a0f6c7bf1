# SPDX-License-Identifier: Apache-2.0
"""ThreadPool: the threads in which the engine works beside its callers', as many as there is work for now.

A thread that has nothing to do serves whichever transfer needs one next, and ends where none does. A call that hangs
holds its own thread and no other: none waits for it. What is queued, and in which order, is tasks.py's.
"""

from __future__ import annotations

import _thread
import atexit
import functools
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

from storelib.transfer.forking import forget_in_child

#: Seconds after which a thread ends that had nothing to do, while transfers go on.
_IDLE = 2.0
#: Threads for each processor that only take the processor: between two blocks they wait for the interpreter's lock, and
#: beside 200 callers for long. One for each was 1.8 times slower, four as fast as one for each digest (measured).
_PER_PROCESSOR = 4

Job = Callable[[], object]


class _Worker:
    """One thread, and the job that it is given next."""

    def __init__(self, name: str, live: Callable[[_Worker], None]) -> None:
        self.thread = threading.Thread(target=live, args=(self,), name=name, daemon=True)
        self.wake = threading.Semaphore(0)
        self.job: Job | None = None
        #: It is in no job, and in none of the pool's lists once it is told to end.
        self.free = False
        self.ending = False


class ThreadPool:
    """Daemon threads of one ``name``; ``most`` at once, for work that only takes the processor, None: one for each job.

    A job raises nothing. Safe to use from many threads; making one starts none.
    """

    def __init__(self, name: str, most: int | None = None) -> None:
        self.name = name
        self._most = most
        self.forget_parent()
        forget_in_child(self)

    def forget_parent(self) -> None:
        """In a forked child: there are no threads, and no lock is held."""
        self._lock = threading.Lock()
        self._users: weakref.WeakSet[object] = weakref.WeakSet()
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        # Told to end, or about to.
        self._leaving: set[_Worker] = set()
        self._waiting: deque[Job] = deque()

    def use(self, user: object) -> None:
        """Keep threads that have nothing to do for a while, until ``leave``, or until ``user`` is collected."""
        with self._lock:
            self._users.add(user)

    def run(self, job: Job) -> None:
        """Have ``job()`` called by a thread that has nothing to do, or by a new one; raises if that cannot start."""
        new: _Worker | None = None
        try:
            with self._lock:
                if self._idle:
                    worker = self._idle.pop()
                    worker.free, worker.job = False, job
                    worker.wake.release()
                    return
                if self._most is not None and len(self._workers) >= self._most:
                    self._waiting.append(job)
                    return
                new = _Worker(self.name, self._live)
                new.job = job
                self._workers.add(new)
            start(new.thread)
        except BaseException:
            with self._lock:
                # Ctrl-C may come once it has started.
                if new is not None and new.thread.ident is None:
                    self._workers.discard(new)
            raise

    def others_wait(self) -> bool:
        """Whether jobs wait for a thread."""
        return bool(self._waiting)

    def run_later(self, job: Job) -> None:
        """Called at the end of a job: have another one called behind those that wait."""
        with self._lock:
            self._waiting.append(job)

    def done(self) -> None:
        """Called at the end of a job, before waiting threads are told: this thread is in none any more."""
        worker = _current.worker
        assert worker is not None  # noqa: S101  (it is a thread of a pool)
        worker.free = True

    def leave(self, user: object) -> None:
        """``user`` needs no more threads. When the last one goes, those with nothing to do have ended on return."""
        if sys.is_finalizing():
            return
        with self._lock:
            self._users.discard(user)
            if not self._users:
                for worker in [each for each in self._workers if each.free]:
                    self._dismiss(worker)
                    worker.wake.release()
            leaving = [each for each in self._leaving if each.thread is not threading.current_thread()]
        for worker in leaving:
            worker.thread.join()
        with self._lock:
            self._leaving.difference_update(leaving)

    def _live(self, worker: _Worker) -> None:
        _current.worker = worker
        job, worker.job = worker.job, None
        while job is not None:
            job()
            # What it was about, a part of an image perhaps, is not held while this thread has nothing to do.
            job = None
            job = self._next(worker)

    def _next(self, worker: _Worker) -> Job | None:
        with self._lock:
            worker.free = True
            if worker.ending:
                return None
            if self._waiting:
                worker.free = False
                return self._waiting.popleft()
            if not self._users:
                self._dismiss(worker)
                return None
            self._idle.append(worker)
        worker.wake.acquire(timeout=_IDLE)
        with self._lock:
            job, worker.job = worker.job, None
            if job is None and not worker.ending:
                self._dismiss(worker)
        return job

    def _dismiss(self, worker: _Worker) -> None:
        """With the lock held: it gets no more jobs."""
        worker.ending = True
        self._workers.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        # Those that nobody joined have ended meanwhile.
        self._leaving = {each for each in self._leaving if each.thread.is_alive()} | {worker}


class _Current(threading.local):
    worker: _Worker | None = None


_current = _Current()


@functools.cache
def pool_of(name: str, *, processor_bound: bool = False) -> ThreadPool:
    """The pool of this process with that name. That two threads that come first may get one each does no harm."""
    return ThreadPool(name, _PER_PROCESSOR * len(os.sched_getaffinity(0)) if processor_bound else None)


def run_apart(function: Callable[[], object], name: str) -> None:
    """``function()`` in a thread of its own, for finalizers: the garbage collector may call them under any lock.

    Raises RuntimeError where there can be no more threads.
    """
    thread = threading.Thread(target=function, name=name, daemon=True)

    def start_it() -> None:
        _starting.pop()
        try:
            start(thread)
        except Exception:  # noqa: BLE001  (no more threads than this one)
            function()

    _starting.append(None)
    try:
        _check_going_on()
        # threading's own locks are among those, so it is started from a thread that holds none.
        _thread.start_new_thread(start_it, ())
    except BaseException:
        _starting.pop()
        raise


# A thread that a daemon thread starts while Python ends may find its own state freed, which ended the process with
# SIGSEGV (seen with 3.11.2; from 3.12 on Python refuses). Calls that hung and come back at that moment start some. No
# lock: finalizers come here, which the garbage collector may call under any; of a deque each step is whole.
_starting: deque[None] = deque()
_ended = threading.Event()
#: Seconds that the end of the process waits for threads that begin.
_BEGIN = 5.0


def start(thread: threading.Thread) -> None:
    """``thread.start()``, unless Python ends: then a daemon thread stops here, and others get RuntimeError."""
    _starting.append(None)
    try:
        _check_going_on()
        thread.start()
    finally:
        _starting.pop()


def _check_going_on() -> None:
    if not _ended.is_set():
        return
    if threading.current_thread().daemon:
        _starting.pop()
        # Python lets it go no further either.
        while True:
            time.sleep(60)
    raise RuntimeError("no thread can be started any more: the process ends")


@atexit.register
def _end() -> None:
    _ended.set()
    deadline = time.monotonic() + _BEGIN
    while _starting and time.monotonic() < deadline:
        time.sleep(0.001)


os.register_at_fork(after_in_child=_starting.clear)

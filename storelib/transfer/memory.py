# SPDX-License-Identifier: Apache-2.0
"""MemoryBudget: what all transfers of a process may hold together, shared fairly.

A transfer that holds nothing waits for its first buffer, one that holds some goes on with what it has. How much one
transfer may hold is said in buffers.py.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from storelib.transfer.deadlines import LOOK, check_wanted, progress
from storelib.transfer.forking import forget_in_child

#: Which part of the machine's memory, or of its cgroup's, transfers may hold.
_SHARE = 4
#: Seconds in which no waiting transfer got anything, after which one goes on though there is no room: others may
#: wait for it, or never give back what they hold. The next one waits twice as long, up to the longest.
_FIRST_WAIT, _LONGEST_WAIT = 2.0, 8.0
_NO_LIMIT = 1 << 60
#: Pieces of memory that are kept though nobody uses them; none is larger than what one read copies from.
_KEPT = 4


class MemoryBudget:
    """Bytes that transfers may hold together: ``limit``, or a quarter of what this process may use.

    Safe to use from many threads. A transfer has an ``Account`` for each of its pools.
    """

    def __init__(self, limit: int | None = None) -> None:
        #: Bytes.
        self.limit = usable_memory() // _SHARE if limit is None else limit
        self.forget_parent()
        forget_in_child(self)

    def forget_parent(self) -> None:
        """In a forked child: nothing is held, and no lock."""
        # Taken without code of Python's own, in which Ctrl-C could come when it is held and would never be let go.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        # By thread, whatever it is for.
        self._held: dict[object, int] = {}
        self._total = 0
        self._holding = 0
        self._waiting: deque[object] = deque()
        # When one of those was served last, or began to wait alone.
        self._served = time.monotonic()
        self._longest_wait = _FIRST_WAIT
        # Bytes beyond the limit that were let out after that wait, and go round as long as the limit is held by
        # transfers that do not move: of a client that does not read, for example.
        self._beyond = 0
        self._process = object()
        self._scratch: deque[bytearray] = deque(maxlen=_KEPT)

    @property
    def held(self) -> int:
        """Bytes that transfers hold now."""
        return self._total

    def account(self) -> Account:
        """Where the calling thread notes what one of its pools holds."""
        return Account(self)

    def scratch(self, size: int) -> bytearray:
        """At least ``size`` bytes for the calling thread alone, used before if there are such."""
        with contextlib.suppress(IndexError):
            used = self._scratch.pop()
            if len(used) >= size:
                return used
        return bytearray(size)

    def keep_scratch(self, memory: bytearray) -> None:
        """Have ``memory`` used again."""
        self._scratch.append(memory)

    # -- What accounts call -------------------------------------------------------------------------------------------

    def wait(self, account: Account, size: int, check: Callable[[], None]) -> None:
        """The first ``size`` bytes of an account. Waiting callers get theirs in turn; ``check`` may end the waiting."""
        ticket = object()
        try:
            if self._has_at_once(account, size, ticket):
                return
            while not self._is_next(account, size, ticket):
                check()
                check_wanted()
                progress()
        finally:
            # Wherever Ctrl-C came: behind a ticket that stays, nobody is ever served again.
            with self._lock:
                if ticket in self._waiting:
                    self._waiting.remove(ticket)
                    self._changed.notify_all()

    def _has_at_once(self, account: Account, size: int, ticket: object) -> bool:
        """Whether the bytes are granted without waiting; else ``ticket`` stands behind the waiting ones."""
        with self._lock:
            # Where this thread holds some for another stage of its transfer, that one waits for this.
            if account.owner in self._held:
                self._count(account, size)
                return True
            if not self._waiting and self._has_room(size):
                self._serve(account, size)
                return True
            self._waiting.append(ticket)
            if len(self._waiting) == 1:
                self._served = time.monotonic()
        return False

    def _is_next(self, account: Account, size: int, ticket: object) -> bool:
        with self._lock:
            for wait in (LOOK, 0.0):
                late = time.monotonic() - self._served >= self._longest_wait
                if self._waiting[0] is ticket and (self._has_room(size) or late):
                    self._serve(account, size)
                    return True
                if wait:
                    self._changed.wait(wait)
            return False

    def _has_room(self, size: int) -> bool:
        return self._total + size <= self.limit + self._beyond or not self._total

    def more(self, account: Account, size: int) -> bool:
        """Whether an account that holds some gets ``size`` bytes more: nobody waits, and it has not its share yet."""
        with self._lock:
            if self._waiting or self._total + size > self.limit or account.held + size > self._share():
                return False
            self._count(account, size)
            return True

    def give_back(self, account: Account, size: int) -> None:
        """``size`` bytes are free again."""
        with self._lock:
            if account.process is not self._process:
                # A forked child counts nothing that its parent took.
                account.held -= size
                return
            self._count(account, -size)
            if self._waiting:
                self._changed.notify_all()

    def is_short(self, account: Account) -> bool:
        """Whether an account had better give back what it does not need now."""
        return bool(self._waiting) or account.held > self._share()

    def _share(self) -> int:
        return self.limit // max(self._holding, 1)

    def _serve(self, account: Account, size: int) -> None:
        """Grant what was waited for, or need not be."""
        impatient = not self._has_room(size)
        self._count(account, size)
        self._served = time.monotonic()
        self._beyond = max(self._total - self.limit, 0)
        if impatient:
            self._longest_wait = min(2 * self._longest_wait, _LONGEST_WAIT)
        elif not self._beyond:
            self._longest_wait = _FIRST_WAIT

    def _count(self, account: Account, size: int) -> None:
        """``size`` bytes more are held, or less."""
        owner, held = account.owner, account.held + size
        owned = self._held.get(owner, 0) + size
        # Nothing is called from here on, so that Ctrl-C comes before or after it.
        if owned:
            self._held[owner] = owned
        elif owner in self._held:
            del self._held[owner]
        self._holding += (held > 0) - (account.held > 0)
        self._total += size
        account.held = held


class Account:
    """What one pool of a transfer holds of the budget: ``held`` bytes."""

    __slots__ = ("_budget", "held", "owner", "process")

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self.process = budget._process
        self.held = 0
        #: The thread that drives the transfer. Its number may become another one's, while this still holds some.
        self.owner = _this_thread.token

    def take(self, size: int, check: Callable[[], None]) -> None:
        """Hold ``size`` bytes while nothing is held; waits for them, and raises what ``check`` raises meanwhile."""
        self._budget.wait(self, size, check)

    def take_more(self, size: int) -> bool:
        """Hold ``size`` bytes more, unless there is too little."""
        return self._budget.more(self, size)

    def give_back(self, size: int) -> None:
        """Hold ``size`` bytes less."""
        if size:
            self._budget.give_back(self, size)

    def __del__(self) -> None:
        """What was dropped is held no longer: a second Ctrl-C may have ended what was to give it back."""
        if self.held:
            self._budget.give_back(self, self.held)

    @property
    def is_short(self) -> bool:
        """Whether others need what is not used now."""
        return self._budget.is_short(self)


class _ThisThread(threading.local):
    def __init__(self) -> None:
        self.token = object()


_this_thread = _ThisThread()


@functools.cache
def usable_memory() -> int:
    """Bytes that this process may use at most: the machine's, or what its cgroup or a resource limit leaves."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(machine, *_cgroup_limits(), _address_space())


def _address_space() -> int:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return _NO_LIMIT if soft == resource.RLIM_INFINITY else soft


def _cgroup_limits(proc: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> list[int]:
    """The limits of this process's cgroup and of those around it, of both versions (cgroups(7)); if none, no limit."""
    limits = []
    for line in _read(proc).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, name = (f"{root}/memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):
            text = _read("/".join([folder, *parts[:depth], name])).strip()
            if text.isdecimal():
                limits.append(int(text))
    return limits or [_NO_LIMIT]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""

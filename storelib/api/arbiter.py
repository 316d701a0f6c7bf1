# SPDX-License-Identifier: Apache-2.0
"""The parent of the workers: starts and replaces them, reads the configuration again, speaks to the service manager."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from gunicorn.arbiter import Arbiter as GunicornArbiter
from gunicorn.errors import HaltServer
from oslo_config import cfg

from storelib.api.systemd import Manager

#: Tells a worker to take no more requests, and to end when those it has are done, however long that takes.
RETIRE = signal.SIGUSR2
#: Held back until a worker handles them: one in between would be lost, or kill it.
HELD_BACK = {signal.SIGTERM, RETIRE}
#: Seconds between two looks at whether new workers serve.
_SOON = 0.05


class Arbiter(GunicornArbiter):  # type: ignore[misc]
    """SIGINT is as graceful as SIGTERM; SIGHUP has new workers take over with a new configuration.

    ``read_again`` returns it, or raises what is wrong with it; then everything stays as it was.
    """

    def __init__(self, app: Any, url: str, read_again: Callable[[], cfg.ConfigOpts]) -> None:
        super().__init__(app)
        self._url = url
        self._read_again = read_again
        self._manager = Manager()
        # Workers add 1 when they serve.
        self._serving = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._awaited = self.num_workers
        # Workers of the configuration before; and that one, as long as those of the new one may fail to start.
        self._leaving: set[int] = set()
        self._former: cfg.ConfigOpts | None = None

    def setup(self, app: Any) -> None:
        """Take the settings over; called by the base class."""
        super().setup(app)
        app.on_worker = lambda: os.eventfd_write(self._serving, 1)

    def spawn_worker(self) -> Any:
        """Fork, with signals held back until the worker handles them."""
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        try:
            return super().spawn_worker()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)

    def wait_for_signals(self, timeout: float = 1.0) -> Any:
        """What came; looks more often as long as workers are starting."""
        self._manager.alive()
        self._look_for_new_workers()
        return super().wait_for_signals(_SOON if self._awaited > 0 else timeout)

    def manage_workers(self) -> None:
        """As many workers as there should be, besides those that are leaving."""
        leaving = {pid: self.WORKERS.pop(pid) for pid in self._leaving & self.WORKERS.keys()}
        self._leaving.intersection_update(leaving)
        try:
            super().manage_workers()
        finally:
            self.WORKERS.update(leaving)

    def reap_workers(self) -> None:
        """Reap dead workers. If one of a new configuration cannot start, the former one stays."""
        try:
            super().reap_workers()
        except HaltServer:
            if self._former is None:
                raise
            self._roll_back()

    def stop(self, graceful: bool = True) -> None:
        """Stop all workers; ``graceful``: when they have finished their requests."""
        self._manager.stopping()
        super().stop(graceful)

    def handle_int(self) -> None:
        """Stop gracefully; a second one, at once."""
        raise StopIteration

    def handle_hup(self) -> None:
        """Read the configuration again, and have new workers go on with it."""
        self._manager.reloading()
        try:
            conf = self._read_again()
        except Exception as error:  # noqa: BLE001  (whatever is wrong with it, the server goes on)
            self.log.error("the configuration stays as it is: %s", error)
            self._manager.ready(f"serving {self._url}; the new configuration was refused")
            return
        self._former, self.app.conf = self._former or self.app.conf, conf
        self._leaving.update(self.WORKERS)
        # Those that began before are not waited for.
        self._new_workers()
        self._awaited = self.num_workers
        self.log.reopen_files()
        self.manage_workers()

    def handle_usr2(self) -> None:
        """Nothing is executed again."""
        self.log.warning("SIGUSR2 does nothing: SIGHUP reads the configuration again, a new version needs a new start")

    def _new_workers(self) -> int:
        """How many workers have begun to serve since this was asked."""
        try:
            return os.eventfd_read(self._serving)
        except BlockingIOError:
            return 0

    def _look_for_new_workers(self) -> None:
        if self._awaited <= 0:
            return
        self._awaited -= self._new_workers()
        if self._awaited > 0 and self._former is not None:
            return
        if self._awaited == self.num_workers:
            return
        # At the start, one is enough.
        self._awaited = 0
        self._former = None
        for pid in self._leaving & self.WORKERS.keys():
            self.kill_worker(pid, RETIRE)
        self._manager.ready(f"serving {self._url}")

    def _roll_back(self) -> None:
        self.log.error("the configuration stays as it is: a worker with the new one did not start")
        self.app.conf, self._former = self._former, None
        for pid in self.WORKERS.keys() - self._leaving:
            self.kill_worker(pid, signal.SIGTERM)
        self._leaving = self.WORKERS.keys() - self._leaving
        self._awaited = 0
        self._manager.ready(f"serving {self._url}; the new configuration was refused")

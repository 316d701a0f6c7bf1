# SPDX-License-Identifier: Apache-2.0
"""Work that goes on after the response is sent: a few threads, started when first needed, anew in a forked child."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

LOG = logging.getLogger(__name__)


class Workers:
    """At most ``count`` pieces of work at a time; the others wait."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._pid = 0
        self._pending: set[Future[None]] = set()

    def start(self, work: Callable[[], None]) -> None:
        """Run ``work`` soon. What it raises is logged; it is expected to have cleaned up by then."""
        with self._lock:
            if self._pool is None or self._pid != os.getpid():
                self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="storelib-work")
                self._pid = os.getpid()
                self._pending = set()
            future = self._pool.submit(_logged, work)
            self._pending.add(future)
        future.add_done_callback(self._pending.discard)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is under way, at most ``timeout`` seconds; returns whether that is so."""
        for future in list(self._pending):
            try:
                future.result(timeout)
            except TimeoutError:
                return False
        return True

    def stop(self) -> None:
        """Finish what is under way; take no more."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.shutdown(wait=True)


def _logged(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception:
        LOG.exception("work in the background failed")

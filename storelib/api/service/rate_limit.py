# SPDX-License-Identifier: Apache-2.0
"""RateLimit: a limit to the bytes per second that background work takes from the requests of others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: Seconds of one wait at most, so that a waiting thread notices soon that it shall stop.
STEP = 1.0


class RateLimit:
    """At most ``rate`` bytes per second over all threads that share it; None is no limit.

    ``pause`` waits for so many seconds, or returns True sooner: nothing more is waited for.
    """

    def __init__(self, rate: float | None, pause: Callable[[float], object] = time.sleep) -> None:
        self._rate = rate
        self._pause = pause
        self._lock = threading.Lock()
        # When everything that was told so far may have been done.
        self._due = time.monotonic()

    def spend(self, count: int, check: Callable[[], object] = lambda: None) -> None:
        """Wait until ``count`` bytes more may have passed. ``check`` is called meanwhile; what it raises passes."""
        if self._rate is None:
            return
        with self._lock:
            due = self._due = max(self._due, time.monotonic()) + count / self._rate
        while (left := due - time.monotonic()) > 0:
            check()
            if self._pause(min(left, STEP)):
                # Else it would go round here, and at once, for as long as it had to wait.
                return

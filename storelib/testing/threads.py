# SPDX-License-Identifier: Apache-2.0
"""Which threads a call starts, while other threads of the process do as they like."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from unittest import mock


@contextlib.contextmanager
def started_threads() -> Iterator[list[threading.Thread]]:
    """The threads that the calling thread starts inside, ended or not; none of those that other threads start."""
    # What others dropped would be closed in here by the garbage collector, which may take a thread.
    gc.collect()
    caller, start = threading.get_ident(), threading.Thread.start
    started: list[threading.Thread] = []

    def recording(thread: threading.Thread) -> None:
        if threading.get_ident() == caller:
            started.append(thread)
        start(thread)

    with mock.patch.object(threading.Thread, "start", recording):
        yield started

# SPDX-License-Identifier: Apache-2.0
"""What a heartbeat tells of the images on a node."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping

from storelib._version import __version__
from storelib.exceptions import MissingDependency
from storelib.node.api import Document
from storelib.node.copies import Copy, Phase
from storelib.node.engine import Progress
from storelib.node.jobs import Job

#: Images that the API is told of at a time.
MOST_HELD = 4000


def everything(jobs: Iterable[Job], copies: Mapping[str, Copy], name: str | None) -> Document:
    """The states of all jobs and what is on disk. ``name`` is the node's, None if it takes part in no exchange and so
    wants no certificates.
    """
    now = time.time()
    ready = [copy.image for copy in copies.values() if copy.phase is Phase.READY and not copy.leaving]
    if len(ready) > MOST_HELD:
        # Others at each heartbeat, so that none stays that is to be dropped.
        ready = random.sample(ready, MOST_HELD)
    return {
        "version": __version__,
        "time": now,
        "used": sum(copy.used for copy in copies.values()),
        "holds": ready,
        "states": [_state(job, copies.get(job.image), name, now) for job in jobs],
    }


def _state(job: Job, copy: Copy | None, name: str | None, now: float) -> Document:
    # One that is being removed comes again afterwards.
    copy = None if copy is None or copy.leaving else copy
    progress = copy.told(job.preload) if copy is not None else Progress()
    reason = copy.told_reason if copy is not None else None
    try:
        request = None if name is None else job.wanted_csr(name, now)
    except MissingDependency as error:
        # The API is to hear of the node, and of that.
        request, reason = None, str(error)
    return {
        "preload": job.preload,
        "state": copy.state if copy is not None else Phase.QUEUED.value,
        "done": progress.done,
        "from_source": progress.from_source,
        "from_peers": progress.from_peers,
        "reason": None if reason is None else _readable(reason),
        "wanted_csr": request,
    }


def _readable(text: str) -> str:
    """A text with names of files in it, which may be any bytes: the API refuses a heartbeat that is no Unicode."""
    return text.encode(errors="backslashreplace").decode()

# SPDX-License-Identifier: Apache-2.0
"""The files in which the workers of a server count for ``/metrics``: those of dead ones are put together in one.

prometheus_client keeps a file for each process that ever was. Each request for ``/metrics`` reads them all.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import multiprocess
from prometheus_client.mmap_dict import MmapedDict

LOG = logging.getLogger(__name__)

_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
_KINDS = ("counter", "histogram")


def together() -> bool:
    """Whether several processes count together."""
    return _DIRECTORY in os.environ


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Around reading them all: none is being put together meanwhile, which would count it twice or not at all."""
    with _locked(fcntl.LOCK_SH):
        yield


def mark_process_dead(pid: int) -> None:
    """Count what a dead process counted among what the dead did, and drop its files."""
    if not together():
        return
    directory = Path(os.environ[_DIRECTORY])
    with _locked(fcntl.LOCK_EX):
        # What it was doing it does no more.
        multiprocess.mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]
        for kind in _KINDS:
            dead = directory / f"{kind}_{pid}.db"
            if dead.exists():
                _add(dead, directory / f"{kind}_dead.db")


def _add(dead: Path, to: Path) -> None:
    try:
        # Read first: a process that was killed may have left half of a line.
        values = list(MmapedDict.read_all_values_from_file(str(dead)))  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        LOG.warning("what a worker counted for /metrics is lost: %s", error)
    else:
        sums = MmapedDict(str(to))  # type: ignore[no-untyped-call]
        try:
            for key, value, moment, _ in values:
                sums.write_value(key, sums.read_value(key)[0] + value, moment)  # type: ignore[no-untyped-call]
        finally:
            sums.close()  # type: ignore[no-untyped-call]
    dead.unlink()


@contextlib.contextmanager
def _locked(how: int) -> Iterator[None]:
    with open(Path(os.environ[_DIRECTORY]) / "lock", "a") as file:
        fcntl.flock(file, how)
        yield

# SPDX-License-Identifier: Apache-2.0
"""Processes that stand still, as on a host that is paused, and yet hold no lock that nobody could take from them."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from pathlib import Path


def freeze(group: int, database: Path) -> None:
    """Stop a group of processes with SIGSTOP, but not while one of them holds the only lock of an SQLite database."""
    os.killpg(group, signal.SIGSTOP)
    while not _can_write(database):
        os.killpg(group, signal.SIGCONT)
        time.sleep(0.05)
        os.killpg(group, signal.SIGSTOP)


def _can_write(file: Path) -> bool:
    if not file.exists():
        return True
    # Those that are not stopped hold it for moments only.
    with contextlib.closing(sqlite3.connect(file, timeout=5, isolation_level=None)) as database:
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        database.execute("ROLLBACK")
    return True

# SPDX-License-Identifier: Apache-2.0
"""Environments of their own for servers that come from Python packages, so that storelib's stays free of them."""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]


def install(name: str, requirements: Sequence[str]) -> Path:
    """``.venv-NAME`` in the checkout with ``requirements`` in it, made unless it is there; returns its ``bin``."""
    environment = CHECKOUT / f".venv-{name}"
    stamp = environment / "stamp"
    wanted = "\n".join((sys.version, str(environment), *requirements))
    with locked(name):
        if not stamp.exists() or stamp.read_text() != wanted:
            # Not the interpreter of the tests' own environment: what it has installed must not be seen.
            if environment.is_symlink():
                # Of another checkout, which may be using it.
                environment.unlink()
            python = getattr(sys, "_base_executable", sys.executable)
            pip = [str(environment / "bin/python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
            for command in ([python, "-m", "venv", "--clear", str(environment)], [*pip, *requirements]):
                subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
            stamp.write_text(wanted)
    return environment / "bin"


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Nobody else changes that environment meanwhile."""
    (CHECKOUT / ".cache").mkdir(exist_ok=True)
    with open(CHECKOUT / ".cache" / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

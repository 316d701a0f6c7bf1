# SPDX-License-Identifier: Apache-2.0
"""Writes what an agent must not lose by a power cut."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_private(path: Path, data: bytes) -> None:
    """Replace a file, which only its owner may read, by a rename once the data is on disk; raises OSError."""
    part = path.with_name(f"{path.name}.part")
    with contextlib.suppress(FileNotFoundError):
        part.unlink()
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    rename(part, path)


def rename(old: Path, new: Path) -> None:
    """Give a file its name, which lasts when this returns; raises OSError."""
    old.rename(new)
    descriptor = os.open(new.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

# SPDX-License-Identifier: Apache-2.0
"""Names below a data directory, and opening them without ever following a symbolic link."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Sequence

#: An image id has no control character, so no image can ever have the name of a part file.
PART = re.compile(r"\.part\x01(?P<token>[0-9a-f]{16})\x01(?P<image_id>.*)", re.DOTALL)
SHARD = re.compile(r"[0-9a-f]{2}")
DEEPEST_SHARD = 2


def shards(image_id: str, levels: int) -> list[str]:
    """The subdirectories for an id: the first bytes of its SHA-256 in hexadecimal."""
    digest = hashlib.sha256(image_id.encode()).hexdigest()
    return [digest[2 * level : 2 * level + 2] for level in range(levels)]


def open_directory(path: str, below: Sequence[str]) -> int:
    """A descriptor of a directory below ``path``, which itself may be a symbolic link; the rest may not."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in below:
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(name, flags, dir_fd=directory)
        finally:
            os.close(directory)
        directory = inner
    return directory


def make_directory(path: str, below: Sequence[str]) -> int:
    """Like open_directory, but makes what is missing below ``path`` and flushes it."""
    for depth, name in enumerate(below):
        parent = open_directory(path, below[:depth])
        try:
            os.mkdir(name, dir_fd=parent)
            os.fsync(parent)
        except FileExistsError:
            pass
        finally:
            os.close(parent)
    return open_directory(path, below)


def is_held(path: str) -> bool:
    """Whether some writer, in any process of this host, has this part file open."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False

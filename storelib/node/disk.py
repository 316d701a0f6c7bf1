# SPDX-License-Identifier: Apache-2.0
"""The agent's own directory: for each image its bytes, as they come and to serve other nodes from, and what is known of
it. What an image may take there, and which goes when there is no more room.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from storelib.exceptions import BadStoreConfiguration
from storelib.node.files import write_private
from storelib.node.options import Settings

LOG = logging.getLogger(__name__)
_RECORD, _DATA = "image.json", "data"
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")


@dataclass
class Record:
    """What is known of an image on this node.

    ``published`` is device and inode of the verified file that has, or is about to get, the image's place in the target
    directory, ``length`` how many bytes it has; ``foreign`` if that is a file of another program's.
    """

    image: str
    size: int
    os_hash_algo: str
    os_hash_value: str
    disk_format: str | None = None
    container_format: str | None = None
    virtual_size: int | None = None
    pinned: bool = False
    published: tuple[int, int] | None = None
    foreign: bool = False
    length: int | None = None


def is_usable_id(image: str) -> bool:
    """Whether the id can be the name of a file."""
    return isinstance(image, str) and _ID.fullmatch(image) is not None


def is_sound(record: Record) -> bool:
    """Whether what is said of an image is what it says it is: files may be damaged, and an API may lie."""
    texts = (record.os_hash_algo, record.os_hash_value, record.disk_format or "", record.container_format or "")
    sizes = (record.size, record.virtual_size or 0, record.length or 0)
    return (
        is_usable_id(record.image)
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(size, int) and 0 <= size < 1 << 63 for size in sizes)
    )


def lock(directory: Path) -> IO[bytes]:
    """A lock on a directory, held until it is closed; raises BadStoreConfiguration if another agent has it."""
    file = open(directory / "lock", "ab")  # noqa: SIM115  (it is the caller's to close)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise BadStoreConfiguration(f"another agent uses {directory}") from error
    return file


class Disk:
    """The directory ``images`` in ``state_dir``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._directory = settings.state_dir / "images"
        self._made()

    def _made(self) -> Path:
        """The directory, also after it was removed. Without ``state_dir`` there is none."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        return self._directory

    def directory(self, image: str) -> Path:
        """What belongs to one image."""
        return self._directory / image

    def data(self, image: str) -> Path:
        """The bytes of one image."""
        return self.directory(image) / _DATA

    def records(self) -> Iterator[Record]:
        """All images, complete or not; what cannot be read is as good as not there."""
        # The number of a file system may be another one since the machine was started; target_dir is in this one.
        device = self._directory.stat().st_dev
        for place in sorted(self._directory.iterdir()):
            try:
                found: dict[str, Any] = json.loads((place / _RECORD).read_bytes())
                record = Record(**found)
                if record.published is not None:
                    _, inode = record.published
                    record.published = device, inode
            except (OSError, ValueError, TypeError):
                continue
            if record.image == place.name and is_sound(record):
                yield record

    def save(self, record: Record) -> None:
        """Keep what is known of an image; raises OSError."""
        place = self._made() / record.image
        place.mkdir(mode=0o700, exist_ok=True)
        write_private(place / _RECORD, json.dumps(asdict(record)).encode())

    def remove(self, image: str) -> None:
        """Remove all that belongs to an image here."""
        shutil.rmtree(self.directory(image), ignore_errors=True)

    def sweep(self, known: Collection[str]) -> None:
        """Remove what belongs to no image of these: left by a kill, or written by a transfer as it ended."""
        for place in self._made().iterdir():
            if place.name not in known:
                LOG.debug("removing what is left of %s", place.name)
                shutil.rmtree(place, ignore_errors=True)

    def used(self, image: str, target: Path | None = None) -> int:
        """Bytes of disk that an image takes, its published file included."""
        found = {}
        for path in (self.data(image), target):
            try:
                status = path.stat() if path else None
            # One whose disk fails, too, is to be told of.
            except OSError:
                status = None
            if status is not None:
                found[status.st_dev, status.st_ino] = status.st_blocks * 512
        return sum(found.values())

    def is_cut(self, record: Record) -> bool:
        """Whether the bytes of a complete image are there, and fewer or more than it has."""
        try:
            return self.data(record.image).stat().st_size != record.size
        except FileNotFoundError:
            return False

    def last_used(self, image: str, target: Path) -> float:
        """When an image was last read or, as by nova, touched; seconds since the epoch."""
        times = [0.0]
        for path in (self.data(image), target):
            try:
                status = path.stat()
            except OSError:
                continue
            times += [status.st_atime, status.st_mtime]
        return max(times)

    def free(self) -> int:
        """Bytes that the file system has besides those that stay free; raises OSError."""
        found = os.statvfs(self._made())
        return max(found.f_bavail * found.f_frsize - self._settings.reserve, 0)

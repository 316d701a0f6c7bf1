# SPDX-License-Identifier: Apache-2.0
"""How a complete image gets its place in the target directory, by one rename, and how it leaves it.

The published file is the one that other nodes are served from, under a second name; only a converted one is another.
Files in the target directory that others put there are left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import struct
import time
from collections.abc import Callable, Set
from pathlib import Path

from storelib import qemu_img
from storelib.exceptions import BadStoreConfiguration, Invalid
from storelib.node import files, raw
from storelib.node.disk import Record
from storelib.node.options import Settings

#: Seconds after which the time of a pinned file is renewed. Nova removes what nobody used for a day, by its default.
FRESH = 3600.0
_QCOW2 = struct.Struct(">4sIQI")


class Target:
    """The directory in which images appear."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._directory = settings.target_dir

    def prepare(self) -> None:
        """Have the directory; raises BadStoreConfiguration if files cannot be moved there from ``state_dir``."""
        own = self._settings.state_dir
        try:
            own.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.mkdir(parents=True, exist_ok=True)
            same = own.stat().st_dev == self._directory.stat().st_dev
        except OSError as error:
            raise BadStoreConfiguration(f"[node] state_dir, target_dir: {error.strerror}: {error.filename}") from error
        if not same:
            raise BadStoreConfiguration("[node] state_dir has to be in the file system of target_dir")

    def path(self, image: str) -> Path:
        """Where an image is once it is complete."""
        if self._settings.layout == "nova":
            return self._directory / hashlib.sha1(image.encode(), usedforsecurity=False).hexdigest()
        return self._directory / image

    def converts(self, disk_format: str | None) -> bool:
        """Whether an image of this format is published as a raw one."""
        return self._settings.convert_to_raw and disk_format in qemu_img.FORMATS

    def publish(self, record: Record, data: Path, check: Callable[[], None], save: Callable[[], None]) -> None:
        """Put a verified file in its place; raises Invalid, OSError and what ``check`` does.

        ``save`` keeps the record just before, so that a kill leaves no file that nobody knows of. In nova's layout a
        file that nova made itself stays: instances may stand on it.
        """
        part = data.with_name("publishing")
        part.unlink(missing_ok=True)
        try:
            self._publish(record, data, part, check, save)
        finally:
            # Of two names of one file rename leaves both. What could not be converted must not fill the disk.
            part.unlink(missing_ok=True)

    def _publish(
        self, record: Record, data: Path, part: Path, check: Callable[[], None], save: Callable[[], None]
    ) -> None:
        if self.converts(record.disk_format):
            raw.convert(data, str(record.disk_format), part, check)
        else:
            os.link(data, part)
        self._finish(part)
        check()
        found = self.identity(record.image)
        ours = part.stat()
        record.foreign = self._settings.layout == "nova" and found not in (None, record.published, _identity(ours))
        if record.foreign and not self.path(record.image).is_file():
            raise Invalid(f"what has the image's place is no file: {self.path(record.image)}")
        record.published = found if record.foreign else _identity(ours)
        record.length = None if record.foreign else ours.st_size
        save()
        if not record.foreign:
            files.rename(part, self.path(record.image))

    def withdraw(self, record: Record) -> None:
        """Remove a file that was published, unless it is another one now, or instances stand on it."""
        if record.published is None or record.foreign or self.identity(record.image) != record.published:
            return
        if not self.in_use(record.image):
            self.path(record.image).unlink(missing_ok=True)

    def identity(self, image: str) -> tuple[int, int] | None:
        """Which file has the image's place; None: there is none."""
        try:
            found = self.path(image).stat()
        except FileNotFoundError:
            return None
        return _identity(found)

    def length(self, image: str) -> int | None:
        """Bytes of the file that has the image's place; None: there is none."""
        try:
            return self.path(image).stat().st_size
        except FileNotFoundError:
            return None

    def refresh(self, image: str) -> None:
        """Have the file of a pinned image look used, so that nova does not clean it away."""
        place = self.path(image)
        with contextlib.suppress(FileNotFoundError):
            if time.time() - place.stat().st_mtime > FRESH:
                os.utime(place)

    def in_use(self, image: str) -> bool:
        """Whether, in nova's layout, the disk of an instance on this node is an overlay of the image's file."""
        return self.path(image).name in self.backing_files()

    def backing_files(self) -> Set[str]:
        """The names of all files that disks of instances are overlays of; none but in nova's layout.

        Every disk is opened for that: who asks of many images asks once.
        """
        if self._settings.layout != "nova":
            return frozenset()
        return {name for disk in self._directory.parent.glob("*/disk*") if (name := _backing_file(disk)) is not None}

    def _finish(self, part: Path) -> None:
        """Owner, mode and time, all of it on disk."""
        os.chmod(part, self._settings.mode)
        if owner := self._settings.owner:
            user, _, group = owner.partition(":")
            try:
                # shutil takes names or numbers.
                shutil.chown(part, _number(user), _number(group) if group else None)
            except LookupError as error:
                raise Invalid(f"[node] owner: there is no {owner} on this node") from error
        os.utime(part)
        with open(part, "rb") as file:
            os.fsync(file.fileno())


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _number(name: str) -> str | int:
    return int(name) if name.isdecimal() else name


def _backing_file(disk: Path) -> str | None:
    """The name, without directory, of the file that a qcow2 disk is an overlay of."""
    try:
        with open(disk, "rb") as file:
            magic, _, offset, length = _QCOW2.unpack(file.read(_QCOW2.size))
            if magic != b"QFI\xfb" or not offset or length > 1023:
                return None
            file.seek(offset)
            return os.path.basename(file.read(length).decode(errors="replace"))
    except (OSError, struct.error):
        return None

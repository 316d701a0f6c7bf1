# SPDX-License-Identifier: Apache-2.0
"""Holds: which transfers of this host are alive, as the kernel knows it.

A transfer locks a file that is named after its token and notes its attachments in it. The lock ends with the transfer,
however that ends; so what an unlocked file tells of, nobody holds. Transfers of other hosts are none of ours to judge.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from storelib.exceptions import BadStoreConfiguration
from storelib.transfer.forking import forget_in_child

_TOKEN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Note:
    """An attachment, and the image for which it was made."""

    volume: str
    attachment: str
    image_id: str


class Hold:
    """The lock of one transfer: ``release`` it, ``drop`` it, or let go of the object."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.token = os.path.basename(path)
        self._path = path
        self._descriptor: int | None = descriptor
        self._is_empty = True
        forget_in_child(self)

    def note(self, volume: str, attachment: str, image_id: str) -> None:
        """The transfer has this attachment from now on."""
        self._is_empty = False
        if self._descriptor is not None:
            os.write(self._descriptor, json.dumps([volume, attachment, image_id]).encode() + b"\n")

    def release(self) -> None:
        """The transfer is over, and so are its attachments."""
        if self._descriptor is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
        self._close()

    def drop(self) -> None:
        """The transfer is over; what became of its attachments, if it had some, nobody knows: gc will look."""
        if self._is_empty:
            self.release()
        self._close()

    __del__ = drop

    def forget_parent(self) -> None:
        """In a forked child: the lock is the parent's, and would outlive it here."""
        self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class Holds:
    """Those of one cloud, in a directory of its own."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def take(self) -> Hold:
        """A new one, with a token that was never used."""
        token = secrets.token_hex(16)
        path = os.path.join(self._directory, token)
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            # Locked before it has the name under which others look for it.
            descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.rename(f"{path}.new", path)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise BadStoreConfiguration(
                f"cinder_state_path: {self._directory} cannot be written to: {error.strerror}"
            ) from error
        return Hold(path, descriptor)

    def is_alive(self, token: str) -> bool | None:
        """Whether the transfer with that token is at work; None if this host knows nothing of it."""
        if not _TOKEN.fullmatch(token):
            return None
        try:
            with open(os.path.join(self._directory, token), encoding="utf-8") as file:
                return not _lock(file)
        except FileNotFoundError:
            return None

    def dead(self) -> Iterator[tuple[str, float]]:
        """The tokens of all that nobody holds, and when each last noted something (POSIX seconds)."""
        try:
            names = sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return
        for name in filter(_TOKEN.fullmatch, names):
            with contextlib.suppress(FileNotFoundError):
                if self.is_alive(name) is False:
                    yield name, os.stat(os.path.join(self._directory, name)).st_mtime

    def notes(self, token: str) -> list[Note]:
        """The attachments of one transfer; a line that was cut short tells of none."""
        found = []
        with contextlib.suppress(FileNotFoundError), open(os.path.join(self._directory, token), encoding="utf-8") as f:
            for line in f:
                with contextlib.suppress(ValueError, TypeError):
                    found.append(Note(*map(str, json.loads(line))))
        return found

    def forget(self, token: str) -> None:
        """A dead one has left nothing any more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._directory, token))


def _lock(file: IO[str]) -> bool:
    """Whether nobody else has the lock; it is had until the file is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def default_directory() -> str:
    """Where such things are kept if no option says where."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "storelib", "cinder")

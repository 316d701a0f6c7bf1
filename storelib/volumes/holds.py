# SPDX-License-Identifier: Apache-2.0
"""Holds: what is attached by whom, noted in files so that it can be told after a crash.

A transfer has a hold, a locked file named after its token, in which each attachment is noted as soon as it is there.
The lock ends with the transfer, however that ends: what an unlocked file tells of, nobody holds, and gc finds it.
Transfers of other hosts are none of ours to judge.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
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
    """An attachment, the image for which it was made, and what it has on this host.

    Of one that was only asked for, the id is not known: it is empty. ``device``: JSON of what has to be undone here;
    empty where nothing is, as for volumes in Ceph. ``owner``: who can see the attachment, as ``Holds`` were told.
    """

    volume: str
    attachment: str
    image_id: str
    device: str = ""
    owner: str = ""


class Hold:
    """The lock of one transfer: ``release`` it, ``drop`` it, or let go of the object."""

    def __init__(self, path: str, descriptor: int, owner: str = "") -> None:
        self.token = os.path.basename(path)
        self._path = path
        self._descriptor: int | None = descriptor
        self._owner = owner
        #: The attachments that were noted and may be there.
        self._open: set[str] = set()
        forget_in_child(self)

    def note(self, note: Note) -> None:
        """The transfer has this attachment from now on, or more of it than it had before, or is asking for it.

        Raises BadStoreConfiguration where that cannot be written down.
        """
        if self._descriptor is not None:
            line = json.dumps(dataclasses.astuple(dataclasses.replace(note, owner=self._owner))).encode() + b"\n"
            try:
                if os.write(self._descriptor, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                raise _unusable(os.path.dirname(self._path), "written to", error) from error
        # An id that is known stands for what was asked for.
        self._open.discard("")
        self._open.add(note.attachment)

    def settle(self, attachment: str) -> None:
        """There is no such attachment any more, or what was asked for was refused."""
        self._open.discard(attachment)

    def release(self) -> None:
        """The transfer is over, and so are its attachments."""
        if self._descriptor is not None:
            # What cannot be removed, as where the disk became read-only, nobody holds once it is closed: gc will look.
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self._close()

    def drop(self) -> None:
        """The transfer is over; what became of the attachments that it may have, nobody knows: gc will look."""
        if not self._open:
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
    """Those of one cloud, in a directory of its own.

    ``owner`` is the project as which attachments are made and looked for: of those of others nothing is known.
    """

    def __init__(self, directory: str, owner: str = "") -> None:
        self._directory = directory
        self._owner = owner

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
                with contextlib.suppress(OSError):
                    os.unlink(f"{path}.new")
                raise
        except OSError as error:
            raise _unusable(self._directory, "written to", error) from error
        return Hold(path, descriptor, self._owner)

    def is_alive(self, token: str) -> bool | None:
        """Whether the transfer with that token is at work; None if this user of this host knows nothing of it."""
        if not _TOKEN.fullmatch(token):
            return None
        try:
            with open(os.path.join(self._directory, token), encoding="utf-8") as file:
                return not _lock(file)
        except FileNotFoundError:
            return None
        except PermissionError as error:
            if not os.access(self._directory, os.X_OK):
                raise _unusable(self._directory, "read", error) from error
            # One of another user, as of root, who tried something out: that user's gc looks after it.
            return None

    def dead(self) -> Iterator[tuple[str, float]]:
        """The tokens of all that nobody holds, and when each last noted something (POSIX seconds)."""
        try:
            names = sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unusable(self._directory, "read", error) from error
        for name in filter(_TOKEN.fullmatch, names):
            with contextlib.suppress(FileNotFoundError):
                if self.is_alive(name) is False:
                    yield name, os.stat(os.path.join(self._directory, name)).st_mtime

    def notes(self, token: str) -> list[Note]:
        """The attachments of one transfer, as last noted; a line that was cut short tells of none."""
        found: dict[str, Note] = {}
        path = os.path.join(self._directory, token)
        # After a crash of the host there may be anything in it.
        with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError, TypeError):
                    note = Note(*map(str, json.loads(line)))
                    found.pop("", None)
                    found[note.attachment] = note
        return list(found.values())

    def sees(self, note: Note) -> bool:
        """Whether what Cinder tells here of that attachment is all there is to tell."""
        return note.owner in ("", self._owner)

    def forget(self, token: str) -> None:
        """A dead one has left nothing any more; raises BadStoreConfiguration where it cannot be removed."""
        try:
            os.unlink(os.path.join(self._directory, token))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _unusable(self._directory, "written to", error) from error


def _unusable(directory: str, how: str, error: OSError) -> BadStoreConfiguration:
    return BadStoreConfiguration(f"cinder_state_path: {directory} cannot be {how}: {error.strerror}")


def _lock(file: IO[str]) -> bool:
    """Whether nobody else has the lock; it is had until the file is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

# SPDX-License-Identifier: Apache-2.0
"""Attachments: volumes connected to this host, each for one transfer or shared by the readers of one image.

Only Cinder's attachment API is used. Each attachment is noted in a hold (holds.py) as soon as it is there.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from storelib.exceptions import RemoteServiceUnavailable, StoreError
from storelib.transfer.deadlines import within
from storelib.transfer.forking import forget_in_child
from storelib.volumes.connectors import Connection, Connectors, Unknown
from storelib.volumes.holds import Hold, Holds, Note

LOG = logging.getLogger(__name__)

#: Seconds that others may take between reserving a volume and connecting it, while a client looks for what a request
#: without a response has reserved. Who is slower tries again.
_CONNECTING = 1.0
#: States in which a volume is for a moment, while a client attaches, grows or leaves it. Nobody else can do so then:
#: of ten that begin to read one image at once, nine wait for their turn.
_TRANSIENT = ("reserved", "attaching", "detaching", "extending")
#: Seconds that a client waits for its turn, and at most between two tries.
_TURN, _FIRST_PAUSE, _LONGEST_PAUSE = 60.0, 0.1, 2.0
#: Refusals in a row of a volume that nothing seems to keep from being attached: others were faster each time, or not.
_UNEXPLAINED = 10
#: States that end by themselves some day, in which nobody can attach a volume.
_BUSY = ("backing-up", "restoring-backup", "uploading", "retyping", "maintenance", "awaiting-transfer", "reverting")


@dataclass(frozen=True)
class AttachmentState:
    """What Cinder tells of an attachment."""

    id: str
    volume: str
    #: Nobody has connected it yet, and it is not meant for an instance of Nova.
    reserved: bool


class VolumeState(Protocol):
    """What Cinder tells of a volume."""

    @property
    def status(self) -> str:
        """As Cinder calls it."""

    @property
    def multiattach(self) -> bool:
        """Several may have it attached at a time."""


class BlockStorage(Protocol):
    """What is asked of Cinder as one user. It raises what it likes, of which ``status_of`` knows."""

    def volume(self, volume_id: str) -> VolumeState:
        """One volume; raises NotFound."""

    def reserve(self, volume_id: str, mode: str) -> str:
        """The id of a new attachment ('rw' or 'ro'), connected to nothing yet; nobody can delete the volume now."""

    def connect(self, attachment_id: str, connector: Mapping[str, Any]) -> Mapping[str, Any]:
        """Connect it to this host; returns how the volume is reached (``connection_info``)."""

    def complete(self, attachment_id: str) -> None:
        """The volume is in use from now on."""

    def attachments(self, volume_id: str) -> Sequence[AttachmentState]:
        """All attachments of a volume, those that are only reserved, too."""

    def detach(self, attachment_id: str) -> None:
        """End an attachment; nothing to do if there is none."""

    def status_of(self, error: BaseException) -> int | None:
        """The HTTP status with which Cinder refused; None for any other error."""


class Attachment:
    """One volume, connected to this host."""

    def __init__(self, api: BlockStorage, hold: Hold, volume: str, attachment_id: str, connection: Connection) -> None:
        self.volume = volume
        #: How it is reached.
        self.connection = connection
        self.hold = hold
        self._id = attachment_id
        self._api = api

    def detach(self) -> None:
        """Take it away from this host and end it. May be called again after an error; the hold stays."""
        self.connection.disconnect()
        self._api.detach(self._id)


def reserve(api: BlockStorage, hold: Hold, volume: str, image_id: str, mode: str, *, alone: bool) -> str:
    """The id of a new attachment, which keeps the volume from being deleted; noted in ``hold``, before and after.

    ``alone``: nobody else attaches this volume. Waits while others attach or leave it, and raises
    RemoteServiceUnavailable where it stays busy.
    """
    hold.note(Note(volume, "", image_id))
    try:
        attachment_id = _reserve_in_turn(api, volume, mode)
    except Exception as error:
        # Of a refusal that was explained, that is Cinder's own.
        status = api.status_of(error.__cause__ or error)
        if status is not None and status < 500:
            hold.settle("")
        else:
            # It may be reserved all the same.
            with contextlib.suppress(Exception):
                end_unanswered(api, volume, alone=alone)
                hold.settle("")
        raise
    try:
        hold.note(Note(volume, attachment_id, image_id))
    except BaseException:
        with contextlib.suppress(Exception):
            api.detach(attachment_id)
            hold.settle("")
        raise
    return attachment_id


def _reserve_in_turn(api: BlockStorage, volume: str, mode: str) -> str:
    """Reserve it as soon as those are done who attach or leave it; raises a refusal from Cinder's error."""
    end, pause, unexplained = time.monotonic() + within(_TURN), _FIRST_PAUSE, 0
    while True:
        try:
            return api.reserve(volume, mode)
        except Exception as error:
            if api.status_of(error) != 400:
                raise
            found = api.volume(volume)
            is_free = found.status == "available" or (found.status == "in-use" and found.multiattach)
            unexplained = unexplained + 1 if is_free else 0
            is_over = unexplained == _UNEXPLAINED or time.monotonic() > end
            if is_over or not (is_free or found.status in _TRANSIENT):
                raise _refusal(volume, found) from error
        # At random, so that clients that were refused together do not come back together.
        time.sleep(within(random.uniform(0, pause)))  # noqa: S311  (nothing secret)
        pause = min(1.5 * pause, _LONGEST_PAUSE)


def attach(
    api: BlockStorage, hold: Hold, connectors: Connectors, volume: str, image_id: str, mode: str, *, alone: bool
) -> Attachment:
    """Attach a volume ('rw' or 'ro'); leaves no attachment behind when it fails."""
    try:
        return _attach(api, hold, connectors, volume, image_id, mode, alone=alone)
    except Unknown:
        connectors.tell_more()
    return _attach(api, hold, connectors, volume, image_id, mode, alone=alone)


def _attach(
    api: BlockStorage, hold: Hold, connectors: Connectors, volume: str, image_id: str, mode: str, *, alone: bool
) -> Attachment:
    attachment_id = reserve(api, hold, volume, image_id, mode, alone=alone)
    connection: Connection | None = None
    try:
        info = _connect(api, connectors, attachment_id, mode)
        connection = connectors.connect(
            info, volume, lambda device: hold.note(Note(volume, attachment_id, image_id, device))
        )
        api.complete(attachment_id)
    except BaseException as error:
        with contextlib.suppress(Exception):
            if connection is not None:
                connection.disconnect()
            api.detach(attachment_id)
            hold.settle(attachment_id)
        if isinstance(error, Exception) and api.status_of(error) == 404:
            raise RemoteServiceUnavailable(
                f"another client ended the attachment of volume {volume} before it was used"
            ) from error
        raise
    return Attachment(api, hold, volume, attachment_id, connection)


def _connect(api: BlockStorage, connectors: Connectors, attachment_id: str, mode: str) -> Mapping[str, Any]:
    """How the volume is reached; raises Unknown where Cinder says that it cannot do with what it was told."""
    try:
        return api.connect(attachment_id, connectors.properties(mode))
    except Exception as error:
        if api.status_of(error) == 400 and connectors.can_tell_more:
            raise Unknown from error
        raise


def end_unanswered(api: BlockStorage, volume: str, *, alone: bool) -> bool:
    """End the reservation of a volume that nobody knows of, since its response was lost: one that nobody follows up.

    Returns whether there was one.
    """
    before = {each.id for each in api.attachments(volume) if each.reserved}
    if before and not alone:
        time.sleep(_CONNECTING)
    after = [each.id for each in api.attachments(volume) if each.reserved and each.id in before] if before else []
    for attachment_id in after:
        api.detach(attachment_id)
    return bool(after)


def _refusal(volume: str, found: VolumeState) -> StoreError:
    if found.status == "in-use" and not found.multiattach:
        return RemoteServiceUnavailable(
            f"volume {volume} is in-use: another client has it attached; volumes of a type with "
            "multiattach='<is> True' several can read at a time"
        )
    if found.status in ("available", "in-use"):
        # Who had it left it since.
        return RemoteServiceUnavailable(
            f"volume {volume} could not be attached though it is {found.status} now: try again"
        )
    if found.status in _TRANSIENT:
        return RemoteServiceUnavailable(
            f"volume {volume} stays {found.status}: another client began to attach or leave it; if that is dead, run "
            "gc on its host, or delete its attachment in Cinder",
            transient=False,
        )
    if found.status in _BUSY:
        return RemoteServiceUnavailable(
            f"volume {volume} cannot be attached while it is {found.status}: try again when that is over",
            transient=False,
        )
    return StoreError(f"volume {volume} cannot be attached: it is {found.status}")


class SharedAttachments:
    """Attachments for reading: one for each volume, however many readers it has. Safe to use from many threads."""

    def __init__(self, api: BlockStorage, holds: Holds, connectors: Connectors) -> None:
        self._api = api
        self._holds = holds
        self._connectors = connectors
        self._lock = threading.Lock()
        self._shared: dict[str, _Shared] = {}
        forget_in_child(self)

    def acquire(self, volume: str, image_id: str) -> Attachment:
        """The attachment of that volume; every one must be given back with ``release``."""
        asked = time.monotonic()
        with self._lock:
            shared = self._shared.setdefault(volume, _Shared())
            shared.users += 1
        try:
            with shared.lock:
                if shared.attachment is None:
                    shared.attachment = self._try_to_attach(volume, image_id, shared, asked)
                return shared.attachment
        except BaseException:
            self._leave(volume, shared)
            raise

    def release(self, attachment: Attachment) -> None:
        """One reader less; the last one detaches. What Cinder refuses then is left to gc."""
        shared = self._shared.get(attachment.volume)
        if shared is not None and shared.attachment is attachment:
            self._leave(attachment.volume, shared)

    def _try_to_attach(self, volume: str, image_id: str, shared: _Shared, asked: float) -> Attachment:
        """Attach; who waited for another one's attempt gets its error, or many would wait one after the other."""
        if shared.refusal is not None and shared.refused_at >= asked:
            raise shared.refusal.with_traceback(None)
        try:
            return self._attach(volume, image_id)
        except Exception as error:
            shared.refusal, shared.refused_at = error, time.monotonic()
            raise

    def _attach(self, volume: str, image_id: str) -> Attachment:
        hold = self._holds.take()
        try:
            return attach(self._api, hold, self._connectors, volume, image_id, "ro", alone=False)
        except BaseException:
            hold.drop()
            raise

    def _leave(self, volume: str, shared: _Shared) -> None:
        # Who comes while the last one detaches waits: most volumes can be attached once at a time.
        with shared.lock:
            with self._lock:
                shared.users -= 1
                last = not shared.users
            attachment = shared.attachment
            if last and attachment is not None:
                shared.attachment = None
                self._detach(attachment)
        with self._lock:
            if not shared.users and self._shared.get(volume) is shared:
                del self._shared[volume]

    def _detach(self, attachment: Attachment) -> None:
        try:
            attachment.detach()
        except Exception as error:  # noqa: BLE001  (what was read was read)
            LOG.warning("volume %s could not be detached: %s; gc will do it", attachment.volume, type(error).__name__)
            attachment.hold.drop()
        else:
            attachment.hold.release()

    def forget_parent(self) -> None:
        """In a forked child: all of them are the parent's."""
        self._lock = threading.Lock()
        self._shared = {}


class _Shared:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.attachment: Attachment | None = None
        #: What the latest attempt to attach it ended with, if it failed, and when.
        self.refusal: Exception | None = None
        self.refused_at = 0.0

# SPDX-License-Identifier: Apache-2.0
"""Attachments: volumes connected to this host, each for one transfer or shared by the readers of one image.

Only Cinder's attachment API is used. An attachment is noted in the hold of its transfer as soon as it is there, so that
gc finds those of a process that was killed.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from storelib.drivers.cinder.api import Api
from storelib.drivers.cinder.errors import status_of
from storelib.drivers.cinder.holds import Hold, Holds
from storelib.exceptions import RemoteServiceUnavailable, StoreError
from storelib.transfer.forking import forget_in_child

LOG = logging.getLogger(__name__)

#: What Cinder shows people as the device of our attachments.
MOUNTPOINT = "storelib"
#: Seconds that others may take between reserving a volume and connecting it, while a client looks for what a request
#: without an answer has reserved. Who is slower tries again.
_CONNECTING = 1.0
#: States in which a volume is for a moment, while a client attaches, grows or leaves it.
_BUSY = ("reserved", "attaching", "detaching", "extending", "in-use")


class Attachment:
    """One volume, connected to this host."""

    def __init__(self, api: Api, hold: Hold, volume: str, attachment_id: str, info: Mapping[str, Any]) -> None:
        self.volume = volume
        self.id = attachment_id
        #: How the volume is reached.
        self.info = info
        self.hold = hold
        self._api = api

    def detach(self) -> None:
        """End it. May be called again after an error; the hold stays."""
        self._api.detach(self.id)


def reserve(api: Api, hold: Hold, volume: str, image_id: str, mode: str, *, alone: bool) -> str:
    """The id of a new attachment, which keeps the volume from being deleted; noted in ``hold``.

    ``alone``: nobody else attaches this volume. Raises RemoteServiceUnavailable while the volume is busy.
    """
    try:
        attachment_id = api.reserve(volume, mode)
    except Exception as error:
        status = status_of(error)
        if status == 400:
            raise _refusal(api, volume) from error
        if status is None or status >= 500:
            # It may be reserved all the same.
            with contextlib.suppress(Exception):
                _end_unanswered(api, volume, alone)
        raise
    hold.note(volume, attachment_id, image_id)
    return attachment_id


def attach(api: Api, hold: Hold, volume: str, image_id: str, mode: str, *, alone: bool) -> Attachment:
    """Attach a volume ('rw' or 'ro'); leaves no attachment behind when it fails."""
    attachment_id = reserve(api, hold, volume, image_id, mode, alone=alone)
    try:
        info = api.connect(attachment_id, _connector(mode))
        api.complete(attachment_id)
    except BaseException as error:
        with contextlib.suppress(Exception):
            api.detach(attachment_id)
        if isinstance(error, Exception) and status_of(error) == 404:
            raise RemoteServiceUnavailable(
                f"another client ended the attachment of volume {volume} before it was used"
            ) from error
        raise
    return Attachment(api, hold, volume, attachment_id, info)


def _end_unanswered(api: Api, volume: str, alone: bool) -> None:
    """End the reservation of a volume that nobody knows of, since its answer was lost: one that nobody follows up."""
    before = {each.id for each in api.attachments(volume) if each.reserved}
    if before and not alone:
        time.sleep(_CONNECTING)
    for each in api.attachments(volume) if before else ():
        if each.reserved and each.id in before:
            api.detach(each.id)


def _refusal(api: Api, volume: str) -> StoreError:
    found = api.volume(volume)
    if found.status in _BUSY:
        return RemoteServiceUnavailable(
            f"volume {volume} is {found.status}: another client has it attached; volumes of a type with "
            "multiattach='<is> True' several can read at a time"
        )
    return StoreError(f"volume {volume} cannot be attached: it is {found.status}")


def _connector(mode: str) -> dict[str, Any]:
    """This host as Cinder wants to know it; all that volumes in Ceph need."""
    return {
        "host": socket.gethostname(),
        "ip": _own_address(),
        "platform": platform.machine(),
        "os_type": sys.platform,
        "multipath": False,
        "do_local_attach": False,
        "mountpoint": MOUNTPOINT,
        "mode": mode,
    }


def _own_address() -> str:
    """An address of this host, for Cinder's records; connecting a datagram socket sends nothing."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return "127.0.0.1"


class SharedAttachments:
    """Attachments for reading: one for each volume, however many readers it has. Safe to use from many threads."""

    def __init__(self, api: Api, holds: Holds) -> None:
        self._api = api
        self._holds = holds
        self._lock = threading.Lock()
        self._shared: dict[str, _Shared] = {}
        forget_in_child(self)

    def acquire(self, volume: str, image_id: str) -> Attachment:
        """The attachment of that volume; every one must be given back with ``release``."""
        with self._lock:
            shared = self._shared.setdefault(volume, _Shared())
            shared.users += 1
        try:
            with shared.lock:
                if shared.attachment is None:
                    shared.attachment = self._attach(volume, image_id)
                return shared.attachment
        except BaseException:
            self._leave(volume, shared)
            raise

    def release(self, attachment: Attachment) -> None:
        """One reader less; the last one detaches. What Cinder refuses then is left to gc."""
        shared = self._shared.get(attachment.volume)
        if shared is not None and shared.attachment is attachment:
            self._leave(attachment.volume, shared)

    def _attach(self, volume: str, image_id: str) -> Attachment:
        hold = self._holds.take()
        try:
            return attach(self._api, hold, volume, image_id, "ro", alone=False)
        except BaseException:
            hold.drop()
            raise

    def _leave(self, volume: str, shared: _Shared) -> None:
        with self._lock:
            shared.users -= 1
            last = not shared.users
            if last and self._shared.get(volume) is shared:
                # Who comes now gets another one.
                del self._shared[volume]
        attachment = shared.attachment
        if not last or attachment is None:
            return
        try:
            attachment.detach()
        except Exception as error:  # noqa: BLE001  (what was read was read)
            LOG.warning("volume %s could not be detached: %s; gc will do it", volume, type(error).__name__)
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

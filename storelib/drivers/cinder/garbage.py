# SPDX-License-Identifier: Apache-2.0
"""What failed adds and killed processes left: volumes that never became images, attachments that nobody holds.

Whether a transfer of this host is alive, its hold tells. Of transfers of other hosts nothing is known: as long as their
volumes are attached, they are left to the gc of that host.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

from storelib.driver import Garbage
from storelib.drivers.cinder import publication
from storelib.drivers.cinder.errors import status_of
from storelib.drivers.cinder.publication import Shelf
from storelib.drivers.cinder.service import LEAVING, Api, User, Volume
from storelib.exceptions import InUseByStore, NotFound
from storelib.transfer.http.headers import whole_number
from storelib.volumes.attachments import end_unanswered
from storelib.volumes.holds import Holds, Note

LOG = logging.getLogger(__name__)

#: Seconds after which a hold is forgotten that never had an attachment.
_EMPTY = 60.0
#: States from which Cinder deletes a volume, or gets to such a one once it is detached.
_MOVABLE = ("available", "error", "error_extending", "in-use", "reserved", "attaching", "detaching")


@dataclass(frozen=True)
class DeadVolume:
    """A volume that nobody writes any more."""

    id: str


@dataclass(frozen=True)
class DeadAttachment:
    """An attachment of a process that is gone, and the hold that notes it."""

    note: Note
    token: str


def find(shelf: Shelf, user: User, older_than: float, prefix: str) -> Iterator[Garbage]:
    """Everything dead for ``older_than`` seconds: volumes by Cinder's clock, attachments by that of this host."""
    api, holds = user.api, user.holds
    volumes: set[str] = set()
    for volume in shelf.unfinished(api):
        image_id = publication.image_id_of(volume)
        if image_id is None or not image_id.startswith(prefix) or volume.id in volumes:
            continue
        if volume.updated <= api.now() - older_than and is_dead(api, holds, volume):
            volumes.add(volume.id)
            known = whole_number(volume.metadata.get(publication.SIZE)) or 0
            yield Garbage(f"volume {volume.id}", image_id, known, volume.updated, DeadVolume(volume.id))
    yield from _attachments(user, time.time() - older_than, prefix, volumes)


def is_dead(api: Api, holds: Holds, volume: Volume) -> bool:
    """Whether the volume is no image and nobody is at work on it."""
    if volume.metadata.get(publication.STATE) == publication.COMPLETE or volume.status not in _MOVABLE:
        return False
    alive = holds.is_alive(volume.metadata.get(publication.TOKEN, ""))
    if alive is None:
        # Of another host, or of one of ours that came to an end and could not remove it.
        return not api.attachments(volume.id)
    return not alive


def _attachments(user: User, latest: float, prefix: str, removed: set[str]) -> Iterator[Garbage]:
    api, holds = user.api, user.holds
    for token, modified in holds.dead():
        notes = holds.notes(token)
        if not notes and modified < time.time() - _EMPTY:
            holds.forget(token)
        over = bool(notes)
        for note in notes:
            wanted = modified <= latest and note.image_id.startswith(prefix) and note.volume not in removed
            # One of another project that project's store looks after.
            if not wanted or not holds.sees(note):
                over = False
            elif _is_there(api, note):
                over = False
                name = f"attachment {note.attachment or 'without a known id'} of volume {note.volume}"
                yield Garbage(name, note.image_id, 0, modified, DeadAttachment(note, token))
            else:
                over = over and _is_gone(api, note.volume)
        if over:
            for note in notes:
                _disconnect(user, note)
            holds.forget(token)


def _is_there(api: Api, note: Note) -> bool:
    """Whether that attachment is there; of one whose id is not known, whether it may be."""
    found = api.attachments(note.volume)
    return any(each.id == note.attachment if note.attachment else each.reserved for each in found)


def _is_gone(api: Api, volume: str) -> bool:
    found = api.look_at(volume)
    return found is None or found.metadata.get(publication.STATE) == publication.COMPLETE


def discard(user: User, dead: DeadVolume | DeadAttachment) -> bool:
    """Remove it if it is still dead."""
    api, holds = user.api, user.holds
    if isinstance(dead, DeadAttachment):
        return _detach(user, dead)
    found = api.look_at(dead.id)
    if found is None or found.status in LEAVING or not is_dead(api, holds, found):
        return False
    # Its add may have come to its end since that look, and only therefore have no attachment any more.
    found = api.look_at(dead.id)
    if found is None or found.metadata.get(publication.STATE) == publication.COMPLETE:
        return False
    token = found.metadata.get(publication.TOKEN, "")
    for note in holds.notes(token):
        _disconnect(user, note)
    try:
        api.delete_with_attachments(dead.id)
        api.wait_until_gone(dead.id)
    except (NotFound, InUseByStore) as error:
        LOG.info("volume %s is left to a later gc: %s", dead.id, error)
        return False
    except Exception as error:
        # Another client began to use it just now, or another gc was faster.
        if status_of(error) not in (400, 404):
            raise
        return False
    holds.forget(token)
    return True


def _disconnect(user: User, note: Note) -> None:
    """Take away from this host what a dead process has left of an attachment."""
    if note.device:
        user.connectors.disconnect_dead(note.device, note.volume, user.api.connection_info(note.attachment))


def _detach(user: User, dead: DeadAttachment) -> bool:
    api, holds = user.api, user.holds
    if holds.is_alive(dead.token) is not False:
        return False
    there = _is_there(api, dead.note)
    _disconnect(user, dead.note)
    if there and dead.note.attachment:
        api.detach(dead.note.attachment)
    elif there:
        there = end_unanswered(api, dead.note.volume, alone=False)
    if not any(not holds.sees(note) or _is_there(api, note) for note in holds.notes(dead.token)):
        holds.forget(dead.token)
    return there


def end_dead_attachments(user: User, volume: str) -> bool:
    """End the attachments of one volume that nobody on this host holds any more; returns whether there were some."""
    found = False
    for token, _ in list(user.holds.dead()):
        for note in user.holds.notes(token):
            if note.volume == volume:
                found |= _detach(user, DeadAttachment(note, token))
    return found

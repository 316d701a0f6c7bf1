# SPDX-License-Identifier: Apache-2.0
"""Everything that is asked of the database, each question one short transaction; safe from many threads and processes.

No policy: every caller may do everything here, except that a list shows what its caller may see. What must happen
exactly once among racers (a status, a change of a version that was read, a lease) is compared and set in one statement.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, TypeVar

from oslo_config import cfg
from sqlalchemy.engine import Connection

from storelib.api.db import images, leases, locations, members
from storelib.api.db.engine import Database, from_conf
from storelib.api.db.image_cache import ImageCache
from storelib.api.db.listing import list_page
from storelib.api.db.migrate import prepare
from storelib.api.db.records import (
    AuditRow,
    Changes,
    Image,
    ImageLocation,
    Member,
    MemberStatus,
    NewImage,
    NewLocation,
    Page,
    Process,
    Query,
    Status,
    Ticket,
    Upload,
    Usage,
)
from storelib.api.db.rows import from_time, load, now

NOTHING: Mapping[str, str | None] = MappingProxyType({})

_P = ParamSpec("_P")
_T = TypeVar("_T")


def open_repository(conf: cfg.ConfigOpts) -> Repository:
    """The repository that ``[database]`` names, ready to be used: an absent or empty SQLite database is made.

    Raises BadDatabase (SchemaOutOfDate: its tables are not this storelib's), DatabaseUnavailable.
    """
    database = from_conf(conf)
    try:
        prepare(database)
    except BaseException:
        database.close()
        raise
    return Repository(database)


class Repository:
    """The images of one database.

    Every method raises DatabaseUnavailable when the database does not answer (after retries), and the writing ones
    OutcomeUnknown when it was lost at the commit. Text that is too long for its column or holds a NUL is BadRequest.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._known = ImageCache()

    def close(self) -> None:
        """Close the connections nobody uses; the repository stays usable and connects again."""
        self.database.close()

    # Images

    def create(self, image: NewImage) -> Image:
        """Record an image; raises AlreadyExists if the id was ever used (deleted images keep theirs until purged)."""
        return self._write(images.create, image)

    def get(self, image_id: str, *, deleted: bool = False) -> Image:
        """The image, a deleted one only with ``deleted``; raises ImageNotFound. Whoever asks: see policy."""
        return self.database.read(lambda connection: load(connection, image_id, deleted=deleted, known=self._known))

    def list(self, query: Query) -> Page:
        """One page of what the query's caller may see. Raises InvalidMarker, and BadRequest for bad values."""
        return self._read(list_page, query, self._known)

    def update(self, image: Image, changes: Changes) -> Image:
        """Apply ``changes`` if nobody changed the image since it was read, else StaleImage: read again and repeat.

        Raises ImageNotFound when it was deleted, StatusConflict when ``changes.status`` is not allowed from here.
        """
        return self._write(images.update, image, changes)

    def transition(
        self,
        image_id: str,
        *,
        from_: Collection[Status],
        to: Status,
        version: int | None = None,
        **values: Any,
    ) -> Image:
        """Set the status to ``to`` if it is one of ``from_``; of racers exactly one succeeds. ``values`` as in Changes.

        To pending_delete and deleted: the active locations become pending_delete too, and stay so until
        ``forget_location``; from pending_delete back to active or deactivated they come back. To deleted: deleted and
        deleted_at are set. To queued: size, checksum, hash, virtual_size are cleared unless given.
        With ``version`` the image must also be unchanged since it was read.
        Raises ImageNotFound, StatusConflict (with the status it has), StaleImage; ValueError for a transition that
        the table in ``statuses`` does not have, or pending_delete among other statuses in ``from_``.
        """
        return self._write(images.transition, image_id, from_, to, version, values)

    def image_count(self, owner: str | None) -> int:
        """How many images the owner has that are not deleted, pending_delete or killed."""
        return self._read(images.image_count, owner)

    def usage(self, owner: str | None, *, without: str | None = None) -> Usage:
        """What the owner holds, one image (``without``) left out if asked."""
        return self._read(images.usage, owner, without)

    def purge(self, before: datetime.datetime, limit: int = 1000) -> int:
        """Remove for good up to ``limit`` rows of images deleted before this time that have no location left."""
        return self._write(images.purge, from_time(before), limit)

    # Tags and properties: changed one by one, without a version, because adding one cannot undo another's change

    def add_tag(self, image_id: str, tag: str, *, limit: int | None = None) -> None:
        """Tag the image; nothing happens if it has the tag. Raises ImageNotFound, LimitExceeded beyond ``limit``."""
        self._write(images.add_tag, image_id, tag, limit)

    def remove_tag(self, image_id: str, tag: str) -> None:
        """Raises ImageNotFound, TagNotFound."""
        self._write(images.remove_tag, image_id, tag)

    def set_properties(self, image_id: str, values: Mapping[str, str | None], remove: Iterable[str] = ()) -> None:
        """Set and remove single properties whatever else changes; raises ImageNotFound."""
        self._write(images.set_properties, image_id, values, tuple(remove))

    # Members

    def add_member(
        self,
        image_id: str,
        member: str,
        *,
        can_share: bool = False,
        status: MemberStatus = "pending",
        limit: int | None = None,
    ) -> Member:
        """Share the image; raises ImageNotFound, AlreadyExists, LimitExceeded beyond ``limit`` members."""
        return self._write(members.add, image_id, member, can_share, status, limit)

    def member(self, image_id: str, member: str) -> Member:
        """Raises MemberNotFound, also when the image is deleted or unknown."""
        return self._read(members.one, image_id, member)

    def members(self, image_id: str) -> Sequence[Member]:
        """All of an image, oldest first; empty for an unknown image."""
        return self._read(members.of, image_id)

    def update_member(
        self, image_id: str, member: str, *, status: MemberStatus | None = None, can_share: bool | None = None
    ) -> Member:
        """Change what is given; raises MemberNotFound."""
        return self._write(members.update, image_id, member, status, can_share)

    def remove_member(self, image_id: str, member: str) -> None:
        """Raises MemberNotFound."""
        self._write(members.remove, image_id, member)

    def replace_members(self, image_id: str, wanted: Mapping[str, bool | None]) -> Sequence[Member]:
        """v1: exactly these, member to can_share (None: as it was, or False); new ones are pending.

        Raises ImageNotFound.
        """
        return self._write(members.replace, image_id, dict(wanted))

    def shared_with(self, member: str) -> Sequence[Member]:
        """Every image that is not deleted and has this member, by image id; whatever its visibility."""
        return self._read(members.shared_with, member)

    # Locations

    def append_location(self, image_id: str, location: NewLocation, *, limit: int | None = None) -> ImageLocation:
        """Add behind the last. Raises ImageNotFound, StatusConflict unless the image is active or deactivated,
        AlreadyExists if it has this URI, LimitExceeded beyond ``limit``. Anything else about locations: ``update``."""
        return self._write(images.append_location, image_id, location, limit)

    def drop_location(self, image_id: str, location_id: int, *, keep_last: bool = True) -> ImageLocation:
        """Make an active location pending_delete: nobody reads it any more and its data may be deleted.

        Raises LocationNotFound, and Conflict when it is the last and ``keep_last``. Of racers exactly one succeeds.
        """
        return self._write(images.drop_location, image_id, location_id, keep_last)

    def restore_location(self, image_id: str, location_id: int) -> None:
        """The data could not be deleted (in use): make a pending_delete location active again, behind the others.

        Raises LocationNotFound.
        """
        self._write(images.restore_location, image_id, location_id)

    def claim_location(
        self, image_id: str, location_id: int, process_id: str, token: str, unsure: Collection[str] = ()
    ) -> bool:
        """Say that ``process_id`` is about to delete the data at a pending_delete location; returns whether it may.

        It may not while another claim of a process that lives is there, unless its token is among ``unsure``: those of
        which the process does not know whether it gave them up. As long as a claim is there, no data comes to be at
        that URI as the image's.
        """
        return self._write(locations.claim, image_id, location_id, process_id, token, unsure)

    def release_location(self, image_id: str, location_id: int, token: str) -> None:
        """The data was not deleted: give the claim with this token up."""
        self._write(locations.release, image_id, location_id, token)

    def forget_location(self, image_id: str, location_id: int, token: str | None = None) -> None:
        """The data is gone: remove the row of a pending_delete location. Nothing happens if it is gone already.

        With a ``token`` only under that claim.
        """
        self._write(locations.forget, image_id, location_id, token)

    def update_location(self, image_id: str, location_id: int, metadata: Mapping[str, Any]) -> None:
        """Other metadata for one location; raises LocationNotFound."""
        self._write(images.update_location, image_id, location_id, metadata)

    def pending_locations(self, image_id: str) -> Sequence[ImageLocation]:
        """The locations of one image whose data is still to be deleted."""
        return self._read(locations.pending, image_id)

    def all_pending_locations(
        self, before: datetime.datetime | None = None, batch: int = 500
    ) -> Iterator[tuple[str, ImageLocation]]:
        """(image id, location) of everything to be deleted, made pending before this time: what a scrubber works on."""
        moment = now() if before is None else from_time(before)
        after = 0
        while found := self._read(locations.all_pending, moment, after, batch):
            yield from found
            after = found[-1][1].id

    def images_in(self, statuses: Collection[Status], batch: int = 500) -> Iterator[str]:
        """The ids of all images in these statuses, read in batches (start-up recovery: pending_delete)."""
        after = ""
        while found := self._read(images.ids_in, statuses, after, batch):
            yield from found
            after = found[-1]

    # Uploads: a lease for each API process, so that what a dead one left behind is found and undone by a living one

    def join(self, host: str, pid: int) -> Process:
        """Announce an API process; it has to call ``heartbeat`` more often than the ``ttl`` others are patient for."""
        return self._write(leases.join, host, pid)

    def heartbeat(self, process_id: str) -> bool:
        """Renew the lease. False: it was given up for dead; its uploads belong to others, join again."""
        return self._write(leases.heartbeat, process_id)

    def leave(self, process_id: str) -> None:
        """A clean end; its unfinished uploads, if any, can be taken over at once."""
        self._write(leases.leave, process_id)

    def processes(self) -> Sequence[Process]:
        """All that joined and neither left nor were given up, oldest first."""
        return self._read(leases.members)

    def begin_upload(
        self,
        image_id: str,
        process_id: str,
        *,
        from_: Collection[Status] = frozenset[Status]({"queued"}),
        to: Status | None = "saving",
        stores: Sequence[str] = (),
        token: str | None = None,
        **values: Any,
    ) -> Image:
        """``transition`` to saving, uploading or importing, and note who is writing to which stores.

        ``to`` None keeps the status: an active image is copied to another store. Raises what ``transition`` raises,
        StatusConflict also if somebody is writing already, and UploadLost if the process has no lease. ``token``
        tells this upload from all others of the image; what ends it gives it again.
        """
        return self._write(leases.begin, image_id, process_id, from_, to, stores, token, values)

    def begin_deletion(
        self, image_id: str, process_id: str, *, from_: Collection[Status], token: str | None = None
    ) -> Image:
        """``transition`` to pending_delete, and note who deletes the data, as an upload with that status.

        A ``transition`` from pending_delete ends it. Nothing is noted where a copy is being written, whose end is then
        this one's, too, or where the process has no lease. Raises ImageNotFound, StatusConflict.
        """
        return self._write(leases.begin_deletion, image_id, process_id, from_, token)

    def advance_upload(
        self,
        image_id: str,
        process_id: str,
        *,
        to: Status | None = None,
        stores: Sequence[str] | None = None,
        token: str | None = None,
    ) -> None:
        """Note other stores, or the next status of the same upload (uploading to importing); raises UploadLost."""
        self._write(leases.advance, image_id, process_id, to, stores, token)

    def finish_upload(
        self,
        image_id: str,
        process_id: str,
        *,
        to: Status | None = "active",
        locations: Sequence[NewLocation] = (),
        properties: Mapping[str, str | None] = NOTHING,
        token: str | None = None,
        **values: Any,
    ) -> Image:
        """End the upload: status, values and more locations at once. ``to`` queued or killed gives it up.

        ``properties`` are set, or removed where they are None, at the same time.

        ``to`` None, or the status it has, ends it without a change of status. Raises UploadLost if the image was
        deleted or the upload was taken over: then the caller removes the data and calls ``forget_upload``.
        """
        return self._write(leases.finish, image_id, process_id, to, locations, properties, token, values)

    def forget_upload(self, image_id: str, process_id: str, *, token: str | None = None) -> None:
        """End an upload without touching the image; its data must be gone. Nothing happens if it is not this one's.

        The upload of an image that was deleted meanwhile stays until then, so that a crash in between is cleaned up.
        """
        self._write(leases.forget, image_id, process_id, token)

    def claim_upload(self, ticket: Ticket, process_id: str, *, token: str | None = None) -> Upload | None:
        """Make this upload one of ``process_id`` with a new token (``token``), before it is undone; None if it is over.

        As long as its row is there, nobody else begins to write the image's data.
        """
        return self._write(leases.claim, ticket, process_id, token)

    def uploads_of(self, process_id: str) -> Sequence[Upload]:
        """What a process writes or has taken over, by image id."""
        return self._read(leases.by, process_id)

    def upload(self, image_id: str) -> Upload | None:
        """Who is writing the data of this image now."""
        return self._read(leases.of, image_id)

    def take_over_uploads(self, process_id: str, ttl: float, *, token: str | None = None) -> Sequence[Upload]:
        """Make the uploads of processes not seen for ``ttl`` seconds this one's; each is given to one taker only.

        The caller removes what they left in ``stores`` under the image's id, then ends each with
        ``finish_upload(..., to=upload.restore)``, or after UploadLost with ``forget_upload``. Should it die over that,
        they are taken over again. One that is pending_delete is a deletion, to be gone on with. All get ``token``, by
        which ``uploads_of`` tells them if the answer is lost.
        """
        return self._write(leases.take_over, process_id, ttl, token)

    # Audit

    def audit(self, batch: int = 1000) -> Iterator[AuditRow]:
        """Every image that is not deleted, or still has locations, in the order of ids, in bounded memory."""
        after = ""
        while found := self._read(images.audited, after, batch):
            yield from found
            after = found[-1].id

    def _read(self, work: Callable[Concatenate[Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self.database.read(lambda connection: work(connection, *args, **kwargs))

    def _write(self, work: Callable[Concatenate[Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self.database.write(lambda connection: work(connection, *args, **kwargs))

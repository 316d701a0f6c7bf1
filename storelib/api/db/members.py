# SPDX-License-Identifier: Apache-2.0
"""The table of members: the projects an image is shared with. They are no part of the image, so its version stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db.image_row import check_room, lock
from storelib.api.db.records import Caller, Member, MemberStatus, SharedImage
from storelib.api.db.rows import check_text, from_time, now, to_time
from storelib.api.db.schema import image_members, images
from storelib.api.db.table import Table, reads, writes
from storelib.api.errors import AlreadyExists, ImageNotFound, MemberNotFound

c = image_members.c
_SELECT = sa.select(c.image_id, c.member, c.status, c.can_share, c.created_at, c.updated_at)
# Deleted images keep theirs, so that lists of changes still show them to members, but are not told of.
_LIVING = _SELECT.join(images, images.c.id == c.image_id).where(images.c.deleted == sa.false())

_SHARED = _LIVING.add_columns(*(images.c[name] for name in SharedImage._fields[1:]))


class Members(Table):
    """Who an image is shared with."""

    @writes
    def add(
        self,
        connection: Connection,
        image_id: str,
        member: str,
        *,
        can_share: bool = False,
        status: MemberStatus = "pending",
        limit: int | None = None,
    ) -> Member:
        """Share the image; raises ImageNotFound, AlreadyExists, LimitExceeded beyond ``limit`` members."""
        check_text("a member", member, 255)
        lock(connection, image_id)
        there = sa.select(c.member).where(c.image_id == image_id, c.member == member)
        if connection.execute(there).first() is not None:
            raise AlreadyExists(f"image {image_id} is shared with {member} already")
        check_room(connection, image_members, image_id, limit, "members")
        return _insert(connection, image_id, member, status, can_share, now())

    @reads
    def get(self, connection: Connection, image_id: str, member: str) -> Member:
        """One membership; raises MemberNotFound, also when the image is deleted or unknown."""
        return _get(connection, image_id, member)

    @reads
    def list_for(
        self, connection: Connection, image_id: str, *, after: Member | None = None, limit: int | None = None
    ) -> Sequence[Member]:
        """Those of an image, oldest first, behind one of them and at most ``limit``; empty for an unknown image."""
        return _list_for(connection, image_id, after, limit)

    @reads
    def shared_with(
        self, connection: Connection, member: str, caller: Caller, *, after: str = "", limit: int | None = None
    ) -> Sequence[SharedImage]:
        """Images that are not deleted, have this member, and are the caller's own, public, community ones or shared
        with the caller; all for administrators. By id, those behind the id ``after``, at most ``limit``.
        """
        check_text("a member", member, 65535)
        check_text("marker", after, 65535)
        found = _SHARED.where(c.member == member, c.image_id > after, *_known_to(caller))
        found = found.order_by(c.image_id).limit(limit)
        return [SharedImage(_member(row), *row[6:]) for row in connection.execute(found)]

    @writes
    def update(
        self,
        connection: Connection,
        image_id: str,
        member: str,
        *,
        status: MemberStatus | None = None,
        can_share: bool | None = None,
    ) -> Member:
        """Change the status, or whether the member may share the image, where given; raises MemberNotFound."""
        _lock(connection, image_id, member)
        values: dict[str, Any] = {"updated_at": now()}
        if status is not None:
            values["status"] = status
        if can_share is not None:
            values["can_share"] = can_share
        changed = image_members.update().where(c.image_id == image_id, c.member == member).values(**values)
        if not connection.execute(changed).rowcount:
            raise _no_member(image_id, member)
        return _get(connection, image_id, member)

    @writes
    def remove(self, connection: Connection, image_id: str, member: str) -> None:
        """Share it no longer; raises MemberNotFound."""
        _lock(connection, image_id, member)
        if not connection.execute(image_members.delete().where(c.image_id == image_id, c.member == member)).rowcount:
            raise _no_member(image_id, member)

    @writes
    def replace(self, connection: Connection, image_id: str, wanted: Mapping[str, bool | None]) -> Sequence[Member]:
        """v1: exactly these, member to can_share (None: as it was, or False); new ones are pending.

        Raises ImageNotFound.
        """
        for member in wanted:
            check_text("a member", member, 255)
        lock(connection, image_id)
        had = {member.member: member for member in _list_for(connection, image_id)}
        gone = sorted(had.keys() - wanted.keys())
        if gone:
            connection.execute(image_members.delete().where(c.image_id == image_id, c.member.in_(gone)))
        moment = now()
        for member, can_share in wanted.items():
            if member not in had:
                _insert(connection, image_id, member, "pending", bool(can_share), moment)
            elif can_share is not None and can_share != had[member].can_share:
                mine = image_members.update().where(c.image_id == image_id, c.member == member)
                connection.execute(mine.values(can_share=can_share, updated_at=moment))
        return _list_for(connection, image_id)


def _get(connection: Connection, image_id: str, member: str) -> Member:
    check_text("a member", member, 65535)
    row = connection.execute(_LIVING.where(c.image_id == image_id, c.member == member)).one_or_none()
    if row is None:
        raise _no_member(image_id, member)
    return _member(row)


def _list_for(
    connection: Connection, image_id: str, after: Member | None = None, limit: int | None = None
) -> list[Member]:
    found = _LIVING.where(c.image_id == image_id).order_by(c.created_at, c.member).limit(limit)
    if after is not None:
        moment = from_time(after.created_at)
        found = found.where((c.created_at > moment) | ((c.created_at == moment) & (c.member > after.member)))
    return [_member(row) for row in connection.execute(found)]


def _known_to(caller: Caller) -> Iterator[sa.ColumnElement[bool]]:
    if caller.is_admin:
        return
    known: sa.ColumnElement[bool] = images.c.visibility.in_(["public", "community"])
    if caller.project is not None:
        theirs = image_members.alias()
        member = sa.exists().where(theirs.c.image_id == images.c.id, theirs.c.member == caller.project)
        known = (images.c.owner == caller.project) | known | ((images.c.visibility == "shared") & member)
    yield known


def _insert(
    connection: Connection, image_id: str, member: str, status: MemberStatus, can_share: bool, moment: int
) -> Member:
    values = {"image_id": image_id, "member": member, "status": status, "can_share": can_share}
    connection.execute(image_members.insert(), {**values, "created_at": moment, "updated_at": moment})
    return Member(image_id, member, status, can_share, to_time(moment), to_time(moment))


def _lock(connection: Connection, image_id: str, member: str) -> None:
    check_text("a member", member, 65535)
    try:
        lock(connection, image_id)
    except ImageNotFound as error:
        raise _no_member(image_id, member) from error


def _member(row: Any) -> Member:
    return Member(row[0], row[1], row[2], row[3], to_time(row[4]), to_time(row[5]))


def _no_member(image_id: str, member: str) -> MemberNotFound:
    return MemberNotFound(f"image {image_id} is not shared with {member}")

# SPDX-License-Identifier: Apache-2.0
"""The tables of preloads: which image which nodes are to have, how far they are, and who reads it from the API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db.preload_records import (
    Beat,
    Change,
    Claim,
    Group,
    ImageFacts,
    NewPreload,
    Peer,
    Place,
    Preload,
    Progress,
    Totals,
    Work,
)
from storelib.api.db.preload_schema import (
    nodes,
    piece_layers,
    preload_nodes,
    preload_reports,
    preload_sources,
    preloads,
)
from storelib.api.db.rows import now
from storelib.api.db.schema import HEAD, image_properties, images
from storelib.api.db.statuses import WITH_DATA
from storelib.api.db.table import Table, reads, writes
from storelib.api.errors import ResourceNotFound, TooManyRequests

p, s, pn, n, r = preloads.c, preload_sources.c, preload_nodes.c, nodes.c, preload_reports.c
_COLUMNS = (
    *(p.id, p.image_id, p.group_name, p.everyone, p.pinned, p.origin, p.status, p.project_id, p.created_at),
    p.ended_at,
)
_PRELOADS = sa.select(*_COLUMNS)
_FACTS = tuple(images.c[name] for name in ImageFacts._fields)
_PROGRESS = (pn.state, pn.done, pn.from_source, pn.from_peers, pn.reason, pn.moved_at)
#: Nodes, and the bytes of all. What thousands of them say is no number of 64 bits any more, which SQLite would refuse.
_SUMS = (
    sa.func.count(),
    *(sa.func.sum(column * sa.literal_column("1.0")) for column in (pn.done, pn.from_source, pn.from_peers)),
)
_PLACES = sa.select(s.preload_id, s.place, s.node_id, s.granted_at, s.expires_at)
#: Preloads that one node works on at a time; it is told of the others when it has these.
MOST_WORK = 1000
#: How often nodes are given their preloads where another request does the same.
_ATTEMPTS = 3
#: Peers of one preload that are looked at; a node is told of a few of them.
MOST_PEERS = 1000


class Preloads(Table):
    """Jobs, and the progress of nodes with them."""

    @writes
    def add(self, connection: Connection, new: Sequence[NewPreload], places: int) -> Sequence[Preload]:
        """Make preloads, with ``places`` to read each from the API; they are of the nodes there are, and of later
        ones of their groups. Returns them in the order of ``new``.
        """
        moment = now()
        for each in new:
            values = {"pinned": each.pinned, "origin": each.origin, "project_id": each.project_id, "status": "active"}
            keys = {"authority": each.authority, "authority_key": each.authority_key}
            row = {"id": each.id, "image_id": each.image_id, "group_name": each.group, "everyone": each.everyone}
            connection.execute(preloads.insert(), {**row, **values, **keys, "created_at": moment})
            free = {"node_id": "", "ticket_digest": "", "granted_at": 0, "expires_at": 0}
            rows = [{"preload_id": each.id, "place": number, **free} for number in range(places)]
            connection.execute(preload_sources.insert(), rows)
            cover(connection, preload_id=each.id, named=each.nodes)
        ids = [each.id for each in new]
        made = {row.id: _preload(row) for row in connection.execute(_PRELOADS.where(p.id.in_(ids)))}
        return [made[each] for each in ids]

    @reads
    def get(self, connection: Connection, preload_id: str) -> Preload:
        """One of them; raises ResourceNotFound."""
        return _get(connection, preload_id)

    @reads
    def list(
        self,
        connection: Connection,
        limit: int,
        marker: str | None = None,
        *,
        status: str | None = None,
        image_id: str | None = None,
        group: str | None = None,
    ) -> Sequence[Preload]:
        """Preloads, the latest first, after the one with the id ``marker``."""
        query = _PRELOADS.order_by(p.created_at.desc(), p.id.desc()).limit(limit)
        for column, wanted in ((p.status, status), (p.image_id, image_id), (p.group_name, group)):
            if wanted is not None:
                query = query.where(column == wanted)
        if marker is not None:
            last = _get(connection, marker)
            earlier = sa.or_(p.created_at < last.created_at, sa.and_(p.created_at == last.created_at, p.id < last.id))
            query = query.where(earlier)
        return [_preload(row) for row in connection.execute(query)]

    @writes
    def end(self, connection: Connection, preload_ids: Collection[str], status: str) -> int:
        """Make active ones ``cancelled`` or ``ended``; returns how many were active."""
        ended = preloads.update().where(p.id.in_(preload_ids), p.status == "active")
        found: int = connection.execute(ended.values(status=status, ended_at=now(), authority_key="")).rowcount
        places = preload_sources.update().where(s.preload_id.in_(preload_ids))
        connection.execute(places.values(node_id="", ticket_digest="", expires_at=0))
        return found

    @reads
    def totals(self, connection: Connection, preload_ids: Collection[str]) -> dict[str, Totals]:
        """How far the nodes of these are, all together; those without nodes are left out."""
        rows = connection.execute(
            sa.select(pn.preload_id, pn.state, *_SUMS)
            .where(pn.preload_id.in_(preload_ids))
            .group_by(pn.preload_id, pn.state)
        )
        found: dict[str, Totals] = {}
        for preload_id, state, count, *sizes in rows:
            old = found.get(preload_id, Totals({}, 0, 0, 0))
            more = [before + int(each or 0) for before, each in zip(old[1:], sizes, strict=True)]
            found[preload_id] = Totals({**old.nodes, state: count}, *more)
        return found

    @reads
    def total(self, connection: Connection) -> Totals:
        """How far all nodes are with all active preloads."""
        active = sa.select(p.id).where(p.status == "active")
        rows = connection.execute(sa.select(pn.state, *_SUMS).where(pn.preload_id.in_(active)).group_by(pn.state)).all()
        sizes = [sum(int(row[column] or 0) for row in rows) for column in (2, 3, 4)]
        return Totals({row[0]: row[1] for row in rows}, *sizes)

    @reads
    def progress(
        self, connection: Connection, preload_id: str, limit: int, marker: str | None = None
    ) -> Sequence[Progress]:
        """How far each node is, in the order of their names, after the one with the id ``marker``."""
        columns = (pn.preload_id, pn.node_id, n.name, *_PROGRESS)
        query = sa.select(*columns).join_from(preload_nodes, nodes, n.id == pn.node_id).order_by(n.name).limit(limit)
        if marker is not None:
            query = query.where(n.name > name_of(connection, marker))
        return [Progress(*row) for row in connection.execute(query.where(pn.preload_id == preload_id))]

    @reads
    def authority(self, connection: Connection, preload_id: str) -> tuple[str, str] | None:
        """The certificate and the sealed private key of an active preload's authority; None if it is not active."""
        found = sa.select(p.authority, p.authority_key).where(p.id == preload_id, p.status == "active")
        row = connection.execute(found).one_or_none()
        return None if row is None else (row[0], row[1])

    # -- heartbeats ---------------------------------------------------------------------------------------------------

    @writes
    def beat(
        self,
        connection: Connection,
        node_id: str,
        beat: Beat,
        gap: int,
        changes: Sequence[Change],
        claims: Sequence[Claim],
    ) -> Sequence[Place]:
        """Note a heartbeat and what is said in it, at least ``gap`` microseconds after the last one.

        Returns the places that the node has now: of those it is to keep or take, without any that another node was
        faster to take. Raises TooManyRequests, ResourceNotFound.
        """
        moment = now()
        # As plan.is_too_soon: a node that was seen in the future is heard, since a clock was set back.
        due = sa.or_(n.seen_at <= moment - gap, n.seen_at > moment + gap)
        mine = nodes.update().where(n.id == node_id, due)
        if not connection.execute(mine.values(seen_at=moment, **beat._asdict())).rowcount:
            if connection.execute(sa.select(n.id).where(n.id == node_id)).one_or_none() is None:
                raise ResourceNotFound(f"there is no node {node_id}")
            raise TooManyRequests("this node sends heartbeats too fast", retry_after=gap / 1_000_000)
        if changes:
            bound: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in Change._fields[1:]}
            update = preload_nodes.update().where(
                pn.node_id == sa.bindparam("node"), pn.preload_id == sa.bindparam("new_preload_id")
            )
            rows = [{f"new_{name}": value for name, value in each._asdict().items()} for each in changes]
            connection.execute(update.values(**bound), [{**row, "node": node_id} for row in rows])
        return [held for each in claims if (held := _claim(connection, node_id, each, moment)) is not None]

    @writes
    def release(self, connection: Connection, node_id: str, preload_ids: Collection[str]) -> None:
        """Free the places of a node from which it reads nothing any more."""
        held = preload_sources.update().where(s.node_id == node_id, s.preload_id.in_(preload_ids))
        connection.execute(held.values(node_id="", ticket_digest="", expires_at=0))

    @reads
    def peers(self, connection: Connection, preload_id: str, since: int) -> Sequence[Peer]:
        """Nodes seen at or after ``since`` that have parts of a preload and exchange them."""
        reports = sa.select(r.node_id, sa.func.count().label("number")).where(r.preload_id == preload_id)
        told = reports.group_by(r.node_id).subquery()
        columns = (n.id, n.address, n.port, pn.state, sa.func.coalesce(told.c.number, 0))
        query = (
            sa.select(*columns)
            .select_from(preload_nodes.join(nodes, n.id == pn.node_id).outerjoin(told, told.c.node_id == n.id))
            .where(pn.preload_id == preload_id, pn.state != "failed", n.port > 0, n.seen_at >= since)
            # Those that have all of it, then those that began.
            .order_by(sa.case({"ready": 0, "verifying": 1, "fetching": 2}, value=pn.state, else_=3), n.id)
            .limit(MOST_PEERS)
        )
        return [Peer(*row) for row in connection.execute(query)]

    @writes
    def report(
        self, connection: Connection, preload_id: str, reporter_id: str, places: Collection[tuple[str, int]]
    ) -> Sequence[str]:
        """Note that a node found wrong parts with those at these addresses and ports; returns the names of those of
        which it had not told before.

        A peer that connects does so from a port of the system's choice: at a port that is no node's it is the only node
        with that address.
        """
        columns = sa.select(n.id, n.name, n.address, n.port).join_from(nodes, preload_nodes, n.id == pn.node_id)
        addresses = {address for address, _ in places}
        rows = connection.execute(columns.where(pn.preload_id == preload_id, n.address.in_(addresses)))
        there = rows.all()
        known, at = {(row.address, row.port) for row in there}, Counter(row.address for row in there)
        connected = {address for address, port in places if (address, port) not in known and at[address] == 1}
        named = []
        for node_id, name, address, port in there:
            if node_id == reporter_id or not ((address, port) in places or address in connected):
                continue
            row = {"preload_id": preload_id, "node_id": node_id, "reporter_id": reporter_id, "created_at": now()}
            try:
                with connection.begin_nested():
                    connection.execute(preload_reports.insert(), row)
            except sa.exc.IntegrityError:
                continue
            named.append(name)
        return named

    @reads
    def facts(self, connection: Connection, image_ids: Collection[str]) -> dict[str, ImageFacts]:
        """What there is to know of images, by their ids; without those that are deleted."""
        rows = connection.execute(sa.select(*_FACTS).where(images.c.id.in_(image_ids), ~images.c.deleted))
        return {row[0]: ImageFacts(*row) for row in rows}

    @reads
    def ticket(self, connection: Connection, digest: str) -> tuple[str, str] | None:
        """The node, and the image of the active preload, that a ticket is for that is valid now; None for no such."""
        joined = preload_sources.join(preloads, p.id == s.preload_id).join(nodes, n.id == s.node_id)
        query = sa.select(s.node_id, p.image_id).select_from(joined)
        valid = (s.ticket_digest == digest, s.expires_at >= now(), p.status == "active", ~n.draining)
        row = connection.execute(query.where(*valid)).first()
        return None if row is None else (row[0], row[1])

    # -- what groups keep ---------------------------------------------------------------------------------------------

    @reads
    def of_rules(self, connection: Connection, group: str) -> dict[str, str]:
        """The active preloads that a group's rules made: their ids by those of their images."""
        mine = (p.group_name == group, p.origin == "rule", p.status == "active")
        return {row[0]: row[1] for row in connection.execute(sa.select(p.image_id, p.id).where(*mine))}

    @reads
    def kept(self, connection: Connection, group: Group, limit: int) -> Sequence[ImageFacts]:
        """The images that a group keeps and its nodes may have: active or deactivated, with a digest."""
        meant: list[sa.ColumnElement[bool]] = []
        if group.images:
            meant.append(images.c.id.in_(group.images))
        if group.properties:
            meant.append(sa.and_(*(_has(name, value) for name, value in group.properties.items())))
        if not meant:
            return []
        there = (images.c.status.in_(WITH_DATA), ~images.c.deleted)
        query = sa.select(*_FACTS).where(sa.or_(*meant), *there, images.c.os_hash_value.is_not(None))
        if group.visibility:
            query = query.where(images.c.visibility.in_(group.visibility))
        if group.projects:
            query = query.where(images.c.owner.in_(group.projects))
        return [ImageFacts(*row) for row in connection.execute(query.order_by(images.c.created_at).limit(limit))]

    @writes
    def end_orphans(self, connection: Connection, groups: Collection[str]) -> None:
        """End the preloads of deleted images, and those of rules of groups that are not among these."""
        there = sa.select(images.c.id).where(~images.c.deleted)
        gone = sa.and_(p.origin == "rule", p.group_name.not_in(groups))
        over = preloads.update().where(p.status == "active", sa.or_(p.image_id.not_in(there), gone))
        connection.execute(over.values(status="ended", ended_at=now(), authority_key=""))

    @writes
    def forget(self, connection: Connection, before: int, most: int) -> None:
        """Forget preloads that ended before that time, those first that ended first, with what each node said."""
        over = sa.select(p.id).where(p.status != "active", p.ended_at < before).order_by(p.ended_at).limit(most)
        ids = connection.execute(over).scalars().all()
        connection.execute(preloads.delete().where(p.id.in_(ids)))

    @writes
    def cover_all(self, connection: Connection, since: int) -> None:
        """Give each node the preloads that are its, where two requests at once did not see each other: of nodes and
        preloads that were both made at or after ``since``."""
        cover(connection, since=since)

    @reads
    def uncovered(self, connection: Connection, since: int) -> bool:
        """Whether there is anything for ``cover_all``, which looks at each node with each preload: a question keeps no
        heartbeat waiting."""
        return connection.execute(_uncovered(since).limit(1)).first() is not None


def cover(
    connection: Connection,
    *,
    node_id: str | None = None,
    preload_id: str | None = None,
    named: Sequence[str] = (),
    since: int = 0,
) -> None:
    """Give nodes the active preloads of their groups, and those that are ``named`` this one, where they have not."""
    query = _uncovered(since, named if preload_id is not None else ())
    if node_id is not None:
        query = query.where(n.id == node_id)
    if preload_id is not None:
        query = query.where(p.id == preload_id)
    names = ["node_id", "preload_id", "state", "done", "from_source", "from_peers", "moved_at"]
    for _ in range(_ATTEMPTS):
        try:
            with connection.begin_nested():
                connection.execute(preload_nodes.insert().from_select(names, query))
        except sa.exc.IntegrityError:
            # Another request does the same; this one sees by now what it did.
            continue
        return


def _uncovered(since: int, named: Sequence[str] = ()) -> sa.Select[Any]:
    """The rows that lack of nodes and active preloads that were both made at or after ``since``."""
    meant = sa.or_(p.everyone, p.group_name == n.group_name)
    if named:
        meant = sa.or_(meant, n.id.in_(named))
    there = sa.select(pn.node_id).where(pn.node_id == n.id, pn.preload_id == p.id).correlate(nodes, preloads)
    zero, queued = sa.literal(0, sa.BigInteger), sa.literal("queued")
    query = sa.select(n.id, p.id, queued, zero, zero, zero, sa.literal(now(), sa.BigInteger))
    query = query.where(p.status == "active", meant, ~there.exists())
    if since:
        query = query.where(n.created_at >= since, p.created_at >= since)
    return query


def _has(name: str, value: str) -> sa.ColumnElement[bool]:
    c = image_properties.c
    same = (c.image_id == images.c.id, c.name == name, c.head == value[:HEAD], c.value == value)
    return sa.exists().where(*same).correlate(images)


def name_of(connection: Connection, node_id: str) -> str:
    """The name of the node that a page ended with; raises ResourceNotFound if it was removed meanwhile."""
    found: str | None = connection.execute(sa.select(n.name).where(n.id == node_id)).scalar_one_or_none()
    if found is None:
        raise ResourceNotFound(f"there is no node {node_id}")
    return found


def work_of(connection: Connection, node_id: str) -> Sequence[Work]:
    """The active preloads of a node whose images are there, the oldest first of those that are not ready, then of
    those that are."""
    columns = (p.id, p.pinned, p.authority, *_PROGRESS, piece_layers.c.state == "ready", *_FACTS)
    joined = (
        preload_nodes.join(preloads, p.id == pn.preload_id)
        .join(images, images.c.id == p.image_id)
        .outerjoin(piece_layers, piece_layers.c.image_id == p.image_id)
    )
    wanted = (pn.node_id == node_id, p.status == "active", ~images.c.deleted)
    # What a node has is not in the way of what it is to get.
    order = (sa.case((pn.state == "ready", 1), else_=0), p.created_at, p.id)
    query = sa.select(*columns).select_from(joined).where(*wanted).order_by(*order).limit(MOST_WORK)
    rows = connection.execute(query)
    return [Work._make((*row[:9], bool(row[9]), ImageFacts._make(row[10:]))) for row in rows]


def places_of(connection: Connection, preload_ids: Collection[str]) -> Sequence[Place]:
    """The places of these preloads."""
    query = _PLACES.where(s.preload_id.in_(preload_ids)).order_by(s.preload_id, s.place)
    return [Place(*row) for row in connection.execute(query)]


def _claim(connection: Connection, node_id: str, claim: Claim, moment: int) -> Place | None:
    place = claim.place
    mine = (s.preload_id == place.preload_id, s.place == place.place)
    # Or it is as it was when it was found to be free.
    same = sa.and_(s.node_id == place.node_id, s.expires_at == place.expires_at)
    free = sa.or_(s.node_id == node_id, s.expires_at < moment, same)
    values = {"granted_at": claim.granted_at, "expires_at": claim.expires_at}
    taken = preload_sources.update().where(*mine, free)
    if not connection.execute(taken.values(node_id=node_id, ticket_digest=claim.ticket_digest, **values)).rowcount:
        return None
    return Place(place.preload_id, place.place, node_id, claim.granted_at, claim.expires_at)


def _get(connection: Connection, preload_id: str) -> Preload:
    row = connection.execute(_PRELOADS.where(p.id == preload_id)).one_or_none()
    if row is None:
        raise ResourceNotFound(f"there is no preload {preload_id}")
    return _preload(row)


def _preload(row: Any) -> Preload:
    return Preload(*row)

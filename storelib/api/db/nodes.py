# SPDX-License-Identifier: Apache-2.0
"""The tables of nodes, of the tokens with which they enrol, and of the rules of their groups."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db.preload_records import Group, Known, Node, group_from
from storelib.api.db.preload_schema import node_enrolments, node_groups, nodes
from storelib.api.db.preloads import cover, name_of, places_of, work_of
from storelib.api.db.rows import check_long_text, check_text, now
from storelib.api.db.table import Table, reads, writes
from storelib.api.errors import AlreadyExists, BadRequest, NotAuthenticated, ResourceNotFound

c, e, g = nodes.c, node_enrolments.c, node_groups.c
_COLUMNS = (
    *(c.id, c.name, c.group_name, c.address, c.port, c.version, c.free, c.used, c.budget, c.skew, c.draining),
    *(c.created_at, c.seen_at),
)
_NODES = sa.select(*_COLUMNS)
_ONE = sa.select(*_COLUMNS, c.secret_digest, g.document).select_from(
    nodes.outerjoin(node_groups, g.name == c.group_name)
)


class Nodes(Table):
    """The nodes, each of which has a name and a secret of its own."""

    @writes
    def enrol(self, connection: Connection, token_digest: str, group: str, uses: int, expires_at: int) -> None:
        """Let so many nodes register in a group with the token of this digest."""
        check_text("the group", group, 255)
        moment = now()
        connection.execute(node_enrolments.delete().where(e.expires_at < moment))
        row = {"token_digest": token_digest, "group_name": group, "uses": uses, "expires_at": expires_at}
        connection.execute(node_enrolments.insert(), row)

    @writes
    def add(self, connection: Connection, node: Node, secret_digest: str, token_digest: str | None) -> Node:
        """Register a node, which has all preloads of its group from then on.

        With a token it is in the token's group, which uses the token up. Raises NotAuthenticated for a token that is
        not valid, BadRequest if the node names another group than the token's, AlreadyExists for a name that is taken.
        """
        if token_digest is not None:
            node = node._replace(group=_used(connection, token_digest, node.group))
        check_text("the name", node.name, 255)
        check_text("the group", node.group, 255)
        row = {"group_name" if name == "group" else name: value for name, value in node._asdict().items()}
        try:
            with connection.begin_nested():
                connection.execute(nodes.insert(), {**row, "secret_digest": secret_digest})
        except sa.exc.IntegrityError:
            raise AlreadyExists(f"there is a node {node.name!r} already") from None
        cover(connection, node_id=node.id)
        return node

    @writes
    def change(self, connection: Connection, /, node_id: str, **values: Any) -> Node:
        """Set columns of a node; raises ResourceNotFound."""
        if not connection.execute(nodes.update().where(c.id == node_id).values(**values)).rowcount:
            raise ResourceNotFound(f"there is no node {node_id}")
        if "group_name" in values:
            cover(connection, node_id=node_id)
        return _node(connection.execute(_NODES.where(c.id == node_id)).one())

    @reads
    def get(self, connection: Connection, node_id: str) -> Node:
        """One of them; raises ResourceNotFound."""
        row = connection.execute(_NODES.where(c.id == node_id)).one_or_none()
        if row is None:
            raise ResourceNotFound(f"there is no node {node_id}")
        return _node(row)

    @reads
    def named(self, connection: Connection, name: str) -> Known | None:
        """The node of this name, without its work; None if there is none."""
        return _known(connection.execute(_ONE.where(c.name == name)).one_or_none())

    @reads
    def known(self, connection: Connection, node_id: str) -> Known | None:
        """The node with its work, in three statements; None if there is none."""
        found = _known(connection.execute(_ONE.where(c.id == node_id)).one_or_none())
        if found is None:
            return None
        work = work_of(connection, node_id)
        open_ = [each.preload_id for each in work if each.state != "ready"]
        places = places_of(connection, open_) if open_ else ()
        return Known(found.node, found.group, found.secret_digest, work, places)

    @reads
    def list(
        self, connection: Connection, limit: int, marker: str | None = None, group: str | None = None
    ) -> Sequence[Node]:
        """Nodes in the order of their names, after the one with the id ``marker``."""
        query = _NODES.order_by(c.name).limit(limit)
        if group is not None:
            query = query.where(c.group_name == group)
        if marker is not None:
            query = query.where(c.name > name_of(connection, marker))
        return [_node(row) for row in connection.execute(query)]

    @reads
    def by_names(self, connection: Connection, names: Sequence[str]) -> Sequence[Node]:
        """Those of these names or ids that there are."""
        return [_node(row) for row in connection.execute(_NODES.where(sa.or_(c.name.in_(names), c.id.in_(names))))]

    @reads
    def count(self, connection: Connection, since: int = 0) -> int:
        """How many there are that were seen at or after ``since``."""
        found: int = connection.execute(sa.select(sa.func.count()).where(c.seen_at >= since)).scalar_one()
        return found

    @writes
    def remove(self, connection: Connection, node_id: str) -> None:
        """Forget a node, whose name is free then; raises ResourceNotFound."""
        if not connection.execute(nodes.delete().where(c.id == node_id)).rowcount:
            raise ResourceNotFound(f"there is no node {node_id}")

    # -- groups -------------------------------------------------------------------------------------------------------

    @reads
    def groups(self, connection: Connection) -> Sequence[Group]:
        """All of which something is said, in the order of their names."""
        rows = connection.execute(sa.select(g.name, g.document).order_by(g.name))
        return [group_from(row[0], json.loads(row[1])) for row in rows]

    @reads
    def group(self, connection: Connection, name: str) -> Group:
        """The rule of a group; raises ResourceNotFound."""
        text = connection.execute(sa.select(g.document).where(g.name == name)).scalar_one_or_none()
        if text is None:
            raise ResourceNotFound(f"there is no rule for a group {name!r}")
        return group_from(name, json.loads(text))

    @writes
    def put_group(self, connection: Connection, group: Group) -> None:
        """Say what there is of a group, in place of what was said before."""
        check_text("the group", group.name, 255)
        document = group._asdict()
        document.pop("name")
        text = json.dumps(document, separators=(",", ":"))
        check_long_text("the group", text)
        values = {"document": text, "updated_at": now()}
        change = node_groups.update().where(g.name == group.name).values(**values)
        if connection.execute(change).rowcount:
            return
        try:
            with connection.begin_nested():
                connection.execute(node_groups.insert(), {"name": group.name, **values})
        except sa.exc.IntegrityError:
            # Another request said something of it meanwhile, for the first time.
            connection.execute(change)

    @writes
    def remove_group(self, connection: Connection, name: str) -> None:
        """Say nothing of it any more; its nodes stay. Raises ResourceNotFound."""
        if not connection.execute(node_groups.delete().where(g.name == name)).rowcount:
            raise ResourceNotFound(f"there is no rule for a group {name!r}")


def _used(connection: Connection, token_digest: str, group: str) -> str:
    """Use a token up, which is for this group, or any if it is empty; returns the group."""
    valid = (e.token_digest == token_digest, e.uses > 0, e.expires_at >= now())
    if not connection.execute(node_enrolments.update().where(*valid).values(uses=e.uses - 1)).rowcount:
        raise NotAuthenticated("the token to enrol with is not valid, or not any more")
    found: str = connection.execute(sa.select(e.group_name).where(e.token_digest == token_digest)).scalar_one()
    if group and group != found:
        raise BadRequest("the token to enrol with is for another group")
    return found


def _node(row: Any) -> Node:
    return Node(*row[: len(_COLUMNS)])


def _known(row: Any) -> Known | None:
    if row is None:
        return None
    node = _node(row)
    return Known(node, group_from(node.group, json.loads(row.document or "{}")), row.secret_digest)

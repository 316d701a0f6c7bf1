# SPDX-License-Identifier: Apache-2.0
"""Metadefs: the tables of metadata definitions, which say what properties images and other resources may have.

A namespace is changed by the id under which it was read, never by its name: a later namespace may have the same.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db.rows import check_long_text, check_text, load_object, now, to_time
from storelib.api.db.schema import (
    metadef_associations,
    metadef_definitions,
    metadef_namespaces,
    metadef_resource_types,
)
from storelib.api.db.table import Table, reads, writes
from storelib.api.errors import AlreadyExists, BadRequest, InvalidMarker, LimitExceeded, Protected, ResourceNotFound

Kind = Literal["object", "property", "tag"]

#: Definitions of one kind, and associations, that one namespace may have, and bytes of all its documents:
#: one response has them all.
MOST = 1000
LARGEST = 4 * 1024 * 1024
SORT_KEYS = ("created_at", "updated_at", "namespace", "display_name", "visibility", "protected", "owner")

_n = metadef_namespaces.c
_a = metadef_associations.c
_d = metadef_definitions.c
_r = metadef_resource_types.c


@dataclass(frozen=True, slots=True)
class Association:
    """That a namespace's properties are for resources of one type; on them, their names begin with ``prefix``."""

    name: str
    prefix: str | None = None
    properties_target: str | None = None
    created_at: datetime.datetime | None = None
    updated_at: datetime.datetime | None = None


@dataclass(frozen=True, slots=True)
class Definition:
    """An object, a property or a tag; ``document`` is all of it but its name."""

    name: str
    document: Mapping[str, Any] = field(default_factory=dict)
    created_at: datetime.datetime | None = None
    updated_at: datetime.datetime | None = None


@dataclass(frozen=True, slots=True)
class NewNamespace:
    """A namespace to be made, with all that is in it."""

    namespace: str
    display_name: str | None = None
    description: str | None = None
    visibility: str = "private"
    protected: bool = False
    owner: str | None = None
    associations: Sequence[Association] = ()
    definitions: Mapping[Kind, Sequence[Definition]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace, without what is in it."""

    id: int
    namespace: str
    display_name: str | None
    description: str | None
    visibility: str
    protected: bool
    owner: str | None
    created_at: datetime.datetime
    updated_at: datetime.datetime


@dataclass(frozen=True, slots=True)
class ResourceType:
    """A type of resource that some namespace was associated with."""

    name: str
    created_at: datetime.datetime
    updated_at: datetime.datetime


@dataclass(frozen=True, slots=True)
class NamespaceQuery:
    """One page of a list. ``owner`` sees public namespaces and its own; with ``everything`` the caller sees all."""

    owner: str | None = None
    everything: bool = False
    visibility: str | None = None
    resource_types: Collection[str] | None = None
    sort_key: str = "created_at"
    descending: bool = True
    limit: int = 25
    marker: str | None = None


class Metadefs(Table):
    """Namespaces of metadata definitions and what is in them."""

    # -- Namespaces -------------------------------------------------------------------------------------------------

    @reads
    def page(self, connection: Connection, query: NamespaceQuery) -> list[Namespace]:
        """One page, and one namespace more where there are more. Raises BadRequest, InvalidMarker."""
        return _page(connection, query)

    @reads
    def get(self, connection: Connection, name: str) -> Namespace:
        """The namespace of this name, for any caller; raises ResourceNotFound."""
        return _find(connection, name)

    @writes
    def create(self, connection: Connection, new: NewNamespace) -> Namespace:
        """Make a namespace with all that is in it; raises AlreadyExists, LimitExceeded, BadRequest."""
        moment = now()
        values = {**_values(new), "created_at": moment, "updated_at": moment}
        with _taken(f"namespace {new.namespace!r}"):
            made = connection.execute(metadef_namespaces.insert(), values)
        _fill(connection, made.inserted_primary_key[0], new, moment)  # type: ignore[index]
        return _find(connection, new.namespace)

    @writes
    def update(self, connection: Connection, namespace_id: int, new: NewNamespace) -> Namespace:
        """Give it other values, the name included, and leave what is in it; raises AlreadyExists, ResourceNotFound."""
        values = _values(new)
        _lock(connection, namespace_id)
        changed = metadef_namespaces.update().where(_n.id == namespace_id)
        with _taken(f"namespace {new.namespace!r}"):
            connection.execute(changed.values(**values, updated_at=now()))
        return _find(connection, new.namespace)

    @writes
    def replace(self, connection: Connection, new: NewNamespace) -> Namespace:
        """Give the namespace of this name these values and contents, and no others; its owner stays.

        Protection keeps clients from removing things, not the operator from bringing them up to date. Raises
        ResourceNotFound, LimitExceeded, BadRequest.
        """
        values = _values(new)
        del values["owner"]
        old = _find(connection, new.namespace)
        _lock(connection, old.id)
        moment = now()
        connection.execute(metadef_namespaces.update().where(_n.id == old.id).values(**values, updated_at=moment))
        connection.execute(metadef_associations.delete().where(_a.namespace_id == old.id))
        connection.execute(metadef_definitions.delete().where(_d.namespace_id == old.id))
        _fill(connection, old.id, new, moment)
        return _find(connection, new.namespace)

    @writes
    def delete(self, connection: Connection, namespace_id: int, *, protected: bool = False) -> None:
        """Remove it and all that is in it; raises Protected unless ``protected`` ones are meant, ResourceNotFound."""
        _lock(connection, namespace_id, removing=not protected)
        connection.execute(metadef_namespaces.delete().where(_n.id == namespace_id))

    # -- Resource types ---------------------------------------------------------------------------------------------

    @reads
    def resource_types(self, connection: Connection) -> Sequence[ResourceType]:
        """The types that some namespace was ever associated with, by name."""
        select = sa.select(_r.name, _r.created_at, _r.updated_at).order_by(_r.name).limit(MOST)
        rows = connection.execute(select)
        return [ResourceType(name, to_time(created), to_time(updated)) for name, created, updated in rows]

    @reads
    def associations(
        self, connection: Connection, namespace_ids: Collection[int]
    ) -> Mapping[int, Sequence[Association]]:
        """The associations of each of these namespaces, the latest first."""
        return _associations(connection, namespace_ids)

    @writes
    def associate(self, connection: Connection, namespace_id: int, association: Association) -> Association:
        """Add an association; raises AlreadyExists, LimitExceeded, ResourceNotFound."""
        _lock(connection, namespace_id)
        _associate(connection, namespace_id, [association], now())
        found = _associations(connection, [namespace_id])[namespace_id]
        return next(each for each in found if each.name == association.name)

    @writes
    def dissociate(self, connection: Connection, namespace_id: int, resource_type: str) -> None:
        """Remove an association; raises ResourceNotFound, Protected."""
        _lock(connection, namespace_id, removing=True)
        mine = (_a.namespace_id == namespace_id, _a.resource_type == resource_type)
        if not connection.execute(metadef_associations.delete().where(*mine)).rowcount:
            raise ResourceNotFound(f"the namespace is not associated with {resource_type!r}")

    # -- Objects, properties, tags ----------------------------------------------------------------------------------

    @reads
    def contents(self, connection: Connection, namespace_id: int) -> Mapping[Kind, Sequence[Definition]]:
        """All definitions of one namespace, by kind, the latest first."""
        found: dict[Kind, list[Definition]] = {"object": [], "property": [], "tag": []}
        for row in connection.execute(_DEFINITIONS.add_columns(_d.kind).where(_d.namespace_id == namespace_id)):
            found[row.kind].append(_definition(row))
        return found

    @reads
    def definitions(self, connection: Connection, namespace_id: int, kind: Kind) -> Sequence[Definition]:
        """Those of one kind, the latest first."""
        select = _DEFINITIONS.where(_d.namespace_id == namespace_id, _d.kind == kind)
        return [_definition(row) for row in connection.execute(select)]

    @reads
    def definition(self, connection: Connection, namespace_id: int, kind: Kind, name: str) -> Definition:
        """One of them; raises ResourceNotFound."""
        return _one(connection, namespace_id, kind, name)

    @writes
    def define(
        self,
        connection: Connection,
        namespace_id: int,
        kind: Kind,
        definitions: Sequence[Definition],
        *,
        replacing: bool = False,
    ) -> Sequence[Definition]:
        """Add definitions, all or none, instead of those there are if ``replacing``; returns those added.

        Raises AlreadyExists, LimitExceeded, BadRequest, ResourceNotFound; when replacing, Protected.
        """
        _lock(connection, namespace_id, removing=replacing)
        if replacing:
            _clear(connection, namespace_id, kind)
        _define(connection, namespace_id, kind, definitions, now())
        return [_one(connection, namespace_id, kind, definition.name) for definition in definitions]

    @writes
    def redefine(
        self, connection: Connection, namespace_id: int, kind: Kind, name: str, definition: Definition
    ) -> Definition:
        """Change one, its name too where that is another; raises AlreadyExists, BadRequest, ResourceNotFound."""
        values = _row(namespace_id, kind, definition)
        _lock(connection, namespace_id)
        mine = (_d.namespace_id == namespace_id, _d.kind == kind, _d.name == name)
        with _taken(f"{kind} {definition.name!r}"):
            changed = connection.execute(metadef_definitions.update().where(*mine).values(**values, updated_at=now()))
        if not changed.rowcount:
            raise _no_definition(kind, name)
        return _one(connection, namespace_id, kind, definition.name)

    @writes
    def undefine(self, connection: Connection, namespace_id: int, kind: Kind, name: str) -> None:
        """Remove one; raises ResourceNotFound, Protected."""
        _lock(connection, namespace_id, removing=True)
        mine = (_d.namespace_id == namespace_id, _d.kind == kind, _d.name == name)
        if not connection.execute(metadef_definitions.delete().where(*mine)).rowcount:
            raise _no_definition(kind, name)

    @writes
    def clear(self, connection: Connection, namespace_id: int, kind: Kind) -> None:
        """Remove all of one kind; raises ResourceNotFound, Protected."""
        _lock(connection, namespace_id, removing=True)
        _clear(connection, namespace_id, kind)


@contextlib.contextmanager
def _taken(what: str) -> Iterator[None]:
    """Raise AlreadyExists where the database says that the name is taken."""
    try:
        yield
    except sa.exc.IntegrityError as error:
        raise AlreadyExists(f"there is a {what} already") from error


_NAMESPACES = sa.select(*(_n[name] for name in Namespace.__slots__))
# Those made by one request have times that tell their order.
_DEFINITIONS = sa.select(_d.name, _d.document, _d.created_at, _d.updated_at).order_by(_d.created_at.desc(), _d.name)


def _page(connection: Connection, query: NamespaceQuery) -> list[Namespace]:
    if query.sort_key not in SORT_KEYS:
        raise BadRequest(f"namespaces cannot be sorted by {query.sort_key!r}; only by {', '.join(SORT_KEYS)}")
    select = _NAMESPACES
    if not query.everything:
        seen = [_n.visibility == "public", _n.owner.is_(None)]
        if query.owner is not None:
            seen.append(_n.owner == query.owner)
        select = select.where(sa.or_(*seen))
    if query.visibility is not None:
        select = select.where(_n.visibility == query.visibility)
    if query.resource_types is not None:
        of_types = sa.select(_a.namespace_id).where(_a.resource_type.in_(query.resource_types))
        select = select.where(_n.id.in_(of_types))
    column: sa.ColumnElement[Any] = _n[query.sort_key]
    if column.nullable:
        column = sa.func.coalesce(column, "")
    if isinstance(column.type, sa.Boolean):
        column = sa.cast(column, sa.Integer)  # databases disagree on whether false is less than true
    if query.marker is not None:
        # The marker is one that the caller could see: it is looked for among the same.
        marked = select.with_only_columns(column, _n.id).where(_n.namespace == query.marker)
        row = connection.execute(marked).one_or_none()
        if row is None:
            raise InvalidMarker(f"the marker {query.marker!r} is no namespace of this list")
        value, number = row
        after = column < value if query.descending else column > value
        next_id = _n.id < number if query.descending else _n.id > number
        select = select.where(sa.or_(after, sa.and_(column == value, next_id)))
    order = (column.desc(), _n.id.desc()) if query.descending else (column, _n.id)
    return [_namespace(row) for row in connection.execute(select.order_by(*order).limit(query.limit + 1))]


def _find(connection: Connection, name: str) -> Namespace:
    row = connection.execute(_NAMESPACES.where(_n.namespace == name)).one_or_none()
    if row is None:
        raise _no_namespace(name)
    return _namespace(row)


def _lock(connection: Connection, namespace_id: int, *, removing: bool = False) -> None:
    """Make others who change this namespace, or what is in it, wait; raises ResourceNotFound, Protected."""
    select = sa.select(_n.protected).where(_n.id == namespace_id).with_for_update()
    protected = connection.execute(select).scalar_one_or_none()
    if protected is None:
        raise ResourceNotFound("the namespace is gone")
    if protected and removing:
        raise Protected("the namespace is protected; nothing in it can be removed")


def _values(new: NewNamespace) -> dict[str, Any]:
    check_text("the namespace", new.namespace, 80)
    check_text("display_name", new.display_name, 80)
    check_long_text("description", new.description)
    check_text("owner", new.owner, 255)
    names = ("namespace", "display_name", "description", "visibility", "protected", "owner")
    return {name: getattr(new, name) for name in names}


def _fill(connection: Connection, namespace_id: int, new: NewNamespace, moment: int) -> None:
    """Put all that a new namespace has in it into an empty one."""
    _associate(connection, namespace_id, new.associations, moment)
    for kind, definitions in new.definitions.items():
        _define(connection, namespace_id, kind, definitions, moment)


def _associate(connection: Connection, namespace_id: int, associations: Sequence[Association], moment: int) -> None:
    _check_room(connection, associations, _a.resource_type, (_a.namespace_id == namespace_id,))
    for number, association in enumerate(associations):
        check_text("a resource type", association.name, 80)
        check_text("prefix", association.prefix, 80)
        check_text("properties_target", association.properties_target, 80)
        times = {"created_at": moment + number, "updated_at": moment + number}
        _know_type(connection, association.name, times)
        values = {"prefix": association.prefix, "properties_target": association.properties_target}
        key = {"namespace_id": namespace_id, "resource_type": association.name}
        connection.execute(metadef_associations.insert(), {**key, **values, **times})


def _know_type(connection: Connection, name: str, times: Mapping[str, int]) -> None:
    if connection.execute(sa.select(_r.name).where(_r.name == name)).one_or_none() is None:
        try:
            with connection.begin_nested():
                connection.execute(metadef_resource_types.insert(), {"name": name, **times})
        except sa.exc.IntegrityError:
            pass  # made by another request meanwhile


def _associations(connection: Connection, namespace_ids: Collection[int]) -> Mapping[int, Sequence[Association]]:
    select = sa.select(
        _a.namespace_id, _a.resource_type, _a.prefix, _a.properties_target, _a.created_at, _a.updated_at
    ).where(_a.namespace_id.in_(namespace_ids))
    found: dict[int, list[Association]] = {namespace_id: [] for namespace_id in namespace_ids}
    for row in connection.execute(select.order_by(_a.created_at.desc(), _a.resource_type)):
        found[row[0]].append(Association(row[1], row[2], row[3], to_time(row[4]), to_time(row[5])))
    return found


def _define(
    connection: Connection, namespace_id: int, kind: Kind, definitions: Sequence[Definition], moment: int
) -> None:
    _check_room(connection, definitions, _d.name, (_d.namespace_id == namespace_id, _d.kind == kind))
    rows = [
        {**_row(namespace_id, kind, definition), "created_at": moment + number, "updated_at": moment + number}
        for number, definition in enumerate(definitions)
    ]
    total = sa.select(sa.func.coalesce(sa.func.sum(sa.func.length(_d.document)), 0))
    held = connection.execute(total.where(_d.namespace_id == namespace_id)).scalar_one()
    if held + sum(len(row["document"].encode()) for row in rows) > LARGEST:
        raise LimitExceeded(f"what is in a namespace may have {LARGEST} bytes in all")
    if rows:
        connection.execute(metadef_definitions.insert(), rows)


def _check_room(
    connection: Connection,
    new: Iterable[Association | Definition],
    column: sa.Column[str],
    mine: tuple[Any, ...],
) -> None:
    """Raise AlreadyExists for a name that is taken, LimitExceeded for more than there may be."""
    taken = set(connection.execute(sa.select(column).where(*mine)).scalars())
    for each in new:
        if each.name in taken:
            raise AlreadyExists(f"the namespace has {each.name!r} already")
        taken.add(each.name)
    if len(taken) > MOST:
        raise LimitExceeded(f"a namespace may have {MOST} definitions of one kind")


def _row(namespace_id: int, kind: Kind, definition: Definition) -> dict[str, Any]:
    check_text(f"the name of the {kind}", definition.name, 80)
    try:
        document = json.dumps(definition.document, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise BadRequest(f"the {kind} {definition.name!r} has a number that JSON has no form for") from error
    check_long_text(f"the {kind} {definition.name!r}", document)
    return {"namespace_id": namespace_id, "kind": kind, "name": definition.name, "document": document}


def _one(connection: Connection, namespace_id: int, kind: Kind, name: str) -> Definition:
    mine = (_d.namespace_id == namespace_id, _d.kind == kind, _d.name == name)
    row = connection.execute(_DEFINITIONS.where(*mine)).one_or_none()
    if row is None:
        raise _no_definition(kind, name)
    return _definition(row)


def _clear(connection: Connection, namespace_id: int, kind: Kind) -> None:
    connection.execute(metadef_definitions.delete().where(_d.namespace_id == namespace_id, _d.kind == kind))


def _namespace(row: Any) -> Namespace:
    values = dict(row._mapping)
    return Namespace(**values | {name: to_time(values[name]) for name in ("created_at", "updated_at")})


def _definition(row: Any) -> Definition:
    return Definition(row.name, load_object(row.document), to_time(row.created_at), to_time(row.updated_at))


def _no_namespace(name: str) -> ResourceNotFound:
    return ResourceNotFound(f"there is no namespace {name!r}")


def _no_definition(kind: Kind, name: str) -> ResourceNotFound:
    return ResourceNotFound(f"the namespace has no {kind} {name!r}")

# SPDX-License-Identifier: Apache-2.0
"""Namespaces of metadata definitions of another service's catalogue, with all that is in them, in the tables here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db.imported.entry import Entries, Entry, Row, insert_all
from storelib.api.db.metadefs import LARGEST, MOST
from storelib.api.db.rows import check_long_text, check_text
from storelib.api.db.schema import (
    metadef_associations,
    metadef_definitions,
    metadef_namespaces,
    metadef_resource_types,
)
from storelib.api.errors import LimitExceeded

_n = metadef_namespaces.c
COLUMNS = tuple(column.name for column in _n if column.name != "id")
ASSOCIATION = ("resource_type", "prefix", "properties_target", "created_at", "updated_at")
DEFINITION = ("kind", "name", "document", "created_at", "updated_at")
_CHILDREN = (metadef_associations, metadef_definitions)


@dataclass(frozen=True)
class NamespaceEntry(Entry):
    """A namespace: the columns of its row, and the rows of what is in it, without its number."""

    row: Row
    associations: Sequence[Row]
    definitions: Sequence[Row]

    @property
    def key(self) -> str:
        """The namespace's name."""
        return str(self.row["namespace"])

    @property
    def content(self) -> Any:
        """All but its number, which is counted here."""
        return [self.row, _sorted(self.associations), _sorted(self.definitions)]

    def check(self) -> None:
        """Raise BadRequest for what is too long or no text, LimitExceeded for more than a namespace may have."""
        for name, length in (("namespace", 80), ("display_name", 80), ("visibility", 32), ("owner", 255)):
            check_text(name, self.row[name], length)
        check_long_text("description", self.row["description"])
        for association in self.associations:
            for name in ("resource_type", "prefix", "properties_target"):
                check_text(name, association[name], 80)
        counts: dict[str, int] = {"association": len(self.associations)}
        size = 0
        for definition in self.definitions:
            kind, name, document = (definition[column] for column in ("kind", "name", "document"))
            check_text(f"the name of the {kind}", name, 80)
            check_long_text(f"the {kind} {name!r}", document)
            counts[kind] = counts.get(kind, 0) + 1
            size += len(document.encode())
        if max(counts.values()) > MOST or size > LARGEST:
            raise LimitExceeded(f"a namespace may have {MOST} definitions of one kind, and {LARGEST} bytes in all")


class NamespaceEntries(Entries):
    """Namespaces by their names."""

    def present(self, connection: Connection, keys: Collection[str], *, lock: bool) -> set[str]:
        """Which of these names are taken."""
        select = sa.select(_n.namespace).where(_n.namespace.in_(keys)).order_by(_n.id)
        return set(connection.execute(select.with_for_update() if lock else select).scalars())

    def digests(self, connection: Connection, keys: Collection[str]) -> dict[str, str]:
        """What these namespaces are."""
        wanted = sa.select(_n.id, *(_n[name] for name in COLUMNS)).where(_n.namespace.in_(keys))
        found = {}
        for row in connection.execute(wanted).mappings().all():
            values = dict(row)
            number = values.pop("id")
            associations, definitions = (
                [
                    dict(each)
                    for each in connection.execute(
                        sa.select(*(table.c[name] for name in names)).where(table.c.namespace_id == number)
                    ).mappings()
                ]
                for table, names in ((metadef_associations, ASSOCIATION), (metadef_definitions, DEFINITION))
            )
            found[row["namespace"]] = NamespaceEntry(values, associations, definitions).digest
        return found

    def insert(self, connection: Connection, entries: Sequence[NamespaceEntry]) -> None:
        """Make namespaces with all that is in them."""
        for entry in entries:
            made = connection.execute(metadef_namespaces.insert(), dict(entry.row))
            _insert_children(connection, made.inserted_primary_key[0], entry)  # type: ignore[index]

    def replace(self, connection: Connection, entries: Sequence[NamespaceEntry]) -> None:
        """Make the namespaces like these."""
        for entry in entries:
            number = connection.execute(sa.select(_n.id).where(_n.namespace == entry.key)).scalar_one()
            connection.execute(metadef_namespaces.update().where(_n.id == number).values(**entry.row))
            for table in _CHILDREN:
                connection.execute(table.delete().where(table.c.namespace_id == number))
            _insert_children(connection, number, entry)

    def delete(self, connection: Connection, keys: Collection[str]) -> None:
        """Remove the namespaces and all that is in them, protected ones too."""
        connection.execute(metadef_namespaces.delete().where(_n.namespace.in_(keys)))


def _insert_children(connection: Connection, number: int, entry: NamespaceEntry) -> None:
    know_types(
        connection,
        [
            {"name": each["resource_type"], **{name: each[name] for name in ("created_at", "updated_at")}}
            for each in entry.associations
        ],
    )
    for table, rows in ((metadef_associations, entry.associations), (metadef_definitions, entry.definitions)):
        insert_all(connection, table, [{"namespace_id": number, **row} for row in rows])


def know_types(connection: Connection, rows: Sequence[Row]) -> int:
    """Make the resource types that there are not yet; returns how many."""
    c = metadef_resource_types.c
    names = [row["name"] for row in rows]
    known = set(connection.execute(sa.select(c.name).where(c.name.in_(names))).scalars())
    new: Mapping[str, Row] = {row["name"]: row for row in rows if row["name"] not in known}
    insert_all(connection, metadef_resource_types, list(new.values()))
    return len(new)


def _sorted(rows: Sequence[Row]) -> list[list[Any]]:
    return sorted([sorted(row.items()) for row in rows], key=repr)

# SPDX-License-Identifier: Apache-2.0
"""Metadata definitions of a Glance database as entries for this one: namespaces with all that is in them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from storelib.api.db.imported import NamespaceEntry
from storelib.api.errors import BadRequest, LimitExceeded
from storelib.api.glance_import.source import Source
from storelib.api.glance_import.values import (
    Refused,
    dumped,
    flag,
    json_object,
    moment,
    needed_moment,
    needed_text,
    one_of,
    text,
)

_NAMESPACE = (
    *("id", "namespace", "display_name", "description", "visibility", "protected", "owner"),
    *("created_at", "updated_at"),
)
_VISIBILITIES = ("public", "private")


def has_namespaces(source: Source) -> bool:
    """Whether that Glance has definitions; there were none before Juno."""
    return source.has("metadef_namespaces")


def namespaces(source: Source) -> Iterator[NamespaceEntry | tuple[str, Refused]]:
    """Every namespace: as an entry, or its name and why it cannot be taken."""
    types = {row.id: row.name for row in source.rows("metadef_resource_types", ("id", "name"))}
    for row in source.rows("metadef_namespaces", _NAMESPACE):
        try:
            entry = _namespace(source, types, row)
            entry.check()
        except Refused as refused:
            yield str(row.namespace), refused
        except (BadRequest, LimitExceeded) as error:
            yield str(row.namespace), Refused(str(error))
        else:
            yield entry


def missing(source: Source, names: Collection[str]) -> list[str]:
    """Which of these namespaces that Glance does not have any more."""
    there = {row.namespace for row in source.rows("metadef_namespaces", ("namespace",), order=())}
    return [name for name in names if name not in there]


def resource_types(source: Source) -> list[dict[str, Any]]:
    """The types of resources that namespaces were ever associated with; those that are no text are left out."""
    found = []
    for row in source.rows("metadef_resource_types", ("id", "name", "created_at", "updated_at")):
        if isinstance(row.name, str) and row.name and len(row.name) <= 80:
            found.append({"name": row.name, **_times(f"resource type {row.name}", row)})
    return found


def _namespace(source: Source, types: Mapping[Any, str], row: Any) -> NamespaceEntry:
    values = {
        "namespace": needed_text("the name", row.namespace),
        "visibility": one_of("the visibility", row.visibility or "private", _VISIBILITIES),
        "protected": flag("protected", row.protected),
        **{name: text(name, getattr(row, name)) for name in ("display_name", "description", "owner")},
        **_times("the namespace", row),
    }
    return NamespaceEntry(values, _associations(source, types, row.id), list(_definitions(source, row.id)))


def _associations(source: Source, types: Mapping[Any, str], number: Any) -> list[dict[str, Any]]:
    names = ("resource_type_id", "prefix", "properties_target", "created_at", "updated_at")
    table = "metadef_namespace_resource_types"
    return [
        {
            "resource_type": needed_text("a resource type", types.get(row.resource_type_id)),
            "prefix": text("prefix", row.prefix),
            "properties_target": text("properties_target", row.properties_target),
            **_times("a resource type", row),
        }
        for row in source.rows(table, names, _in(number), order=("resource_type_id",))
    ]


def _definitions(source: Source, number: Any) -> Iterator[dict[str, Any]]:
    objects = ("id", "name", "description", "required", "json_schema", "created_at", "updated_at")
    for row in source.rows("metadef_objects", objects, _in(number)):
        yield _definition("object", row, _object(row))
    properties = ("id", "name", "json_schema", "created_at", "updated_at")
    for row in source.rows("metadef_properties", properties, _in(number)):
        yield _definition("property", row, _schema(f"property {row.name}", row.json_schema))
    if source.has("metadef_tags"):
        for row in source.rows("metadef_tags", ("id", "name", "created_at", "updated_at"), _in(number)):
            yield _definition("tag", row, {})


def _definition(kind: str, row: Any, document: Mapping[str, Any]) -> dict[str, Any]:
    name = needed_text(f"the name of a {kind}", row.name)
    return {
        "kind": kind,
        "name": name,
        "document": dumped(f"the {kind} {name}", document),
        **_times(f"the {kind} {name}", row),
    }


def _object(row: Any) -> dict[str, Any]:
    schema = json_object(f"the schema of object {row.name}", row.json_schema)
    required = text(f"required of object {row.name}", row.required)
    document: dict[str, Any] = {
        "required": required.split(",") if required else [],
        "properties": {name: _property(each) for name, each in schema.items()},
    }
    description = text(f"the description of object {row.name}", row.description)
    return document if description is None else {"description": description, **document}


def _schema(what: str, value: Any) -> dict[str, Any]:
    schema = _property(json_object(what, value))
    # Its name is that of the row.
    return {name: each for name, each in schema.items() if name != "name"}


def _property(schema: Any) -> dict[str, Any]:
    """The schema of a property as Glance shows it: without what is not set, and with a default that is a text."""
    if not isinstance(schema, dict):
        raise Refused("the schema of a property is no object in JSON")
    shown = {name: value for name, value in schema.items() if value is not None}
    if isinstance(shown.get("default"), (int, float)):
        shown["default"] = str(shown["default"])
    return shown


def _times(what: str, row: Any) -> dict[str, int]:
    created = needed_moment(f"created_at of {what}", row.created_at)
    return {"created_at": created, "updated_at": moment(f"updated_at of {what}", row.updated_at) or created}


def _in(number: Any) -> Any:
    return sa.column("namespace_id") == number

# SPDX-License-Identifier: Apache-2.0
"""Metadefs: what the API can do with metadata definitions, and who may."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from storelib.api import metadef_schemas as schemas
from storelib.api.context import Context
from storelib.api.db.metadefs import (
    MOST,
    Association,
    Definition,
    Kind,
    Namespace,
    NamespaceQuery,
    NewNamespace,
    ResourceType,
)
from storelib.api.errors import BadRequest, LimitExceeded, NotPermitted, ResourceNotFound
from storelib.api.schemas import Schema
from storelib.api.service.core import Core

#: The schema that the body of each kind is checked against.
SCHEMAS: Mapping[Kind, Schema] = {
    "object": schemas.OBJECT,
    "property": schemas.PROPERTY,
    "tag": schemas.TAG,
}
#: What policies call several of a kind.
PLURAL: Mapping[Kind, str] = {"object": "objects", "property": "properties", "tag": "tags"}

Contents = Mapping[Kind, Sequence[Definition]]


class Metadefs:
    """Namespaces and what is in them. A namespace that the caller may not see does not exist for the caller.

    Names are of namespaces; each method raises ResourceNotFound for one that is not there, NotPermitted for what the
    caller may not do to one that is visible, BadRequest for a body that is not as its schema says.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._tables = core.repository.metadefs

    # -- Namespaces -------------------------------------------------------------------------------------------------

    def list(self, context: Context, query: NamespaceQuery) -> tuple[Sequence[Namespace], str | None]:
        """A page of namespaces the caller may see, and the marker of the next page. Raises InvalidMarker."""
        self._may(context, "get_metadef_namespaces")
        self._may(context, "list_metadef_resource_types")
        asked = replace(query, owner=context.owner, everything=context.is_admin)
        found = self._tables.page(asked)
        more = found[query.limit - 1].namespace if query.limit and len(found) > query.limit else None
        return [each for each in found[: query.limit] if self._allows(context, "get_metadef_namespace", each)], more

    def associations_of(self, namespaces: Collection[Namespace]) -> Mapping[int, Sequence[Association]]:
        """The associations of namespaces that ``list`` returned, by their ids."""
        return self._tables.associations([namespace.id for namespace in namespaces])

    def show(self, context: Context, name: str) -> tuple[Namespace, Sequence[Association], Contents]:
        """A namespace and all that is in it."""
        namespace = self._visible(context, name)
        for action in ("list_metadef_resource_types", *(f"get_metadef_{plural}" for plural in PLURAL.values())):
            self._require(context, action, namespace)
        return namespace, *self.contents(namespace)

    def contents(self, namespace: Namespace) -> tuple[Sequence[Association], Contents]:
        """All that is in a namespace that the caller has just made."""
        return self._tables.associations([namespace.id])[namespace.id], self._tables.contents(namespace.id)

    def create(self, context: Context, body: Mapping[str, Any]) -> Namespace:
        """Make a namespace with all that ``body`` has; raises AlreadyExists."""
        self._core.writable(context)
        self._may(context, "add_metadef_namespace")
        if body.get("resource_type_associations"):
            self._may(context, "add_metadef_resource_type_association")
        for kind, plural in PLURAL.items():
            if body.get(plural):
                self._may(context, f"add_metadef_{kind}")
        made = self._tables.create(new_namespace(body, context.owner))
        self._core.notify.metadef("namespace", "create", namespace_payload(made))
        return made

    def update(self, context: Context, name: str, body: Mapping[str, Any]) -> Namespace:
        """Give a namespace other values, its name too; what is in it stays. Raises AlreadyExists."""
        old = self._changing(context, "modify_metadef_namespace", name)
        check_counts(body)
        schemas.check(schemas.NAMESPACE, body)
        contents = ("resource_type_associations", *PLURAL.values())
        changed = new_namespace({key: value for key, value in body.items() if key not in contents}, context.owner)
        updated = self._tables.update(old.id, changed)
        self._core.notify.metadef("namespace", "update", namespace_payload(updated) | {"namespace_old": old.namespace})
        return updated

    def delete(self, context: Context, name: str) -> None:
        """Delete a namespace and all that is in it; raises Protected."""
        namespace = self._changing(context, "delete_metadef_namespace", name)
        self._tables.delete(namespace.id)
        self._core.notify.metadef("namespace", "delete", namespace_payload(namespace))

    # -- Resource types ---------------------------------------------------------------------------------------------

    def resource_types(self, context: Context) -> Sequence[ResourceType]:
        """All resource types that there are namespaces for."""
        self._may(context, "list_metadef_resource_types")
        return self._tables.resource_types()

    def associations(self, context: Context, name: str) -> Sequence[Association]:
        """The resource types that a namespace is for."""
        namespace = self._visible(context, name)
        self._require(context, "list_metadef_resource_types", namespace)
        if not self._allows(context, "get_metadef_resource_type", namespace):
            return []
        return self._tables.associations([namespace.id])[namespace.id]

    def associate(self, context: Context, name: str, body: Mapping[str, Any]) -> Association:
        """Say that a namespace is for a resource type; raises AlreadyExists."""
        namespace = self._changing(context, "add_metadef_resource_type_association", name)
        schemas.check(schemas.ASSOCIATION, body)
        made = self._tables.associate(namespace.id, _association(body))
        self._core.notify.metadef("resource_type", "create", association_payload(namespace, made))
        return made

    def dissociate(self, context: Context, name: str, resource_type: str) -> None:
        """Take that back; raises Protected."""
        namespace = self._changing(context, "remove_metadef_resource_type_association", name)
        self._tables.dissociate(namespace.id, resource_type)
        gone = Association(resource_type)
        self._core.notify.metadef("resource_type", "delete", association_payload(namespace, gone))

    # -- Objects, properties, tags ----------------------------------------------------------------------------------

    def definitions(self, context: Context, name: str, kind: Kind) -> Sequence[Definition]:
        """All definitions of one kind in a namespace."""
        namespace = self._visible(context, name)
        self._require(context, f"get_metadef_{PLURAL[kind]}", namespace)
        return self._tables.definitions(namespace.id, kind)

    def definition(self, context: Context, name: str, kind: Kind, definition: str) -> Definition:
        """One definition of a namespace, by its kind and name."""
        namespace = self._visible(context, name)
        self._require(context, f"get_metadef_{kind}", namespace)
        return self._tables.definition(namespace.id, kind, definition)

    def property_on(self, context: Context, name: str, prefixed: str, resource_type: str) -> Definition:
        """The property that is called ``prefixed`` on resources of a type."""
        namespace = self._visible(context, name)
        self._require(context, "get_metadef_property", namespace)
        self._require(context, "get_metadef_resource_type", namespace)
        prefix = prefix_of(self._tables.associations([namespace.id])[namespace.id], resource_type)
        if not prefix or not prefixed.startswith(prefix):
            raise ResourceNotFound(f"on {resource_type!r} no property of namespace {name!r} is called {prefixed!r}")
        return self._tables.definition(namespace.id, "property", prefixed.removeprefix(prefix))

    def define(self, context: Context, name: str, kind: Kind, body: Mapping[str, Any]) -> Definition:
        """Add a definition; raises AlreadyExists, LimitExceeded."""
        namespace = self._changing(context, f"add_metadef_{kind}", name)
        schemas.check(SCHEMAS[kind], body)
        [made] = self._tables.define(namespace.id, kind, [_definition(body)])
        self._core.notify.metadef(kind, "create", definition_payload(namespace, made))
        return made

    def put_tags(self, context: Context, name: str, body: Mapping[str, Any], *, append: bool) -> Sequence[Definition]:
        """Give a namespace these tags, beside or instead of those it has. Raises AlreadyExists, LimitExceeded."""
        namespace = self._changing(context, "add_metadef_tags", name)
        check_counts(body)
        schemas.check(schemas.TAGS, body)
        tags = [_definition(tag) for tag in body["tags"]]
        made = self._tables.define(namespace.id, "tag", tags, replacing=not append)
        for tag in made:
            self._core.notify.metadef("tag", "create", definition_payload(namespace, tag))
        return made

    def redefine(self, context: Context, name: str, kind: Kind, definition: str, body: Mapping[str, Any]) -> Definition:
        """Change a definition, its name too; raises AlreadyExists."""
        namespace = self._changing(context, f"modify_metadef_{kind}", name)
        schemas.check(SCHEMAS[kind], body)
        changed = self._tables.redefine(namespace.id, kind, definition, _definition(body))
        payload = definition_payload(namespace, changed) | {"name_old": definition}
        self._core.notify.metadef(kind, "update", payload)
        return changed

    def undefine(self, context: Context, name: str, kind: Kind, definition: str) -> None:
        """Remove a definition; raises Protected."""
        action = "remove_metadef_property" if kind == "property" else f"delete_metadef_{kind}"
        namespace = self._changing(context, action, name)
        self._tables.undefine(namespace.id, kind, definition)
        self._core.notify.metadef(kind, "delete", definition_payload(namespace, Definition(definition)))

    def clear(self, context: Context, name: str, kind: Kind) -> None:
        """Remove all definitions of one kind; raises Protected."""
        namespace = self._changing(context, "delete_metadef_namespace", name)
        if kind == "tag":
            self._require(context, "delete_metadef_tags", namespace)
        self._tables.clear(namespace.id, kind)
        self._core.notify.metadef("namespace", f"delete_{PLURAL[kind]}", namespace_payload(namespace))

    # -- Who may do what --------------------------------------------------------------------------------------------

    def _visible(self, context: Context, name: str) -> Namespace:
        namespace = self._tables.get(name)
        own = namespace.owner is None or namespace.owner == context.owner
        seen = own or context.is_admin or namespace.visibility == "public"
        if not seen or not self._allows(context, "get_metadef_namespace", namespace):
            raise ResourceNotFound(f"there is no namespace {name!r}")
        return namespace

    def _changing(self, context: Context, action: str, name: str) -> Namespace:
        self._core.writable(context)
        namespace = self._visible(context, name)
        self._require(context, action, namespace)
        return namespace

    def _may(self, context: Context, action: str) -> None:
        self._core.policy.require(context, action, {"project_id": context.project_id})

    def _allows(self, context: Context, action: str, namespace: Namespace) -> bool:
        return self._core.policy.allows(context, action, _target(namespace))

    def _require(self, context: Context, action: str, namespace: Namespace) -> None:
        if not self._allows(context, action, namespace):
            raise NotPermitted(f"you are not allowed to do this ({action})")


def _target(namespace: Namespace) -> dict[str, Any]:
    target: dict[str, Any] = {"visibility": namespace.visibility, "protected": namespace.protected}
    # Left out where it is not set: a context without a project must not match a namespace without an owner.
    return target if namespace.owner is None else target | {"project_id": namespace.owner, "owner": namespace.owner}


def check_counts(body: Mapping[str, Any]) -> None:
    """Raise LimitExceeded for more of one kind than a namespace may have, before each of them is looked at."""
    for name in ("resource_type_associations", *PLURAL.values()):
        several = body.get(name)
        if isinstance(several, (list, dict)) and len(several) > MOST:
            raise LimitExceeded(f"a namespace may have {MOST} {name.replace('_', ' ')}")


def new_namespace(body: Mapping[str, Any], owner: str | None) -> NewNamespace:
    """What a body, as a client or a file has it, says of a namespace; raises BadRequest, LimitExceeded."""
    check_counts(body)
    schemas.check(schemas.NAMESPACE, body)
    if "/" in body["namespace"]:
        raise BadRequest("a namespace has no / in its name: it is part of paths")
    properties = [Definition(name, value) for name, value in body.get("properties", {}).items()]
    for definition in properties:
        schemas.check(schemas.PROPERTY, {**definition.document, "name": definition.name})
    return NewNamespace(
        body["namespace"],
        body.get("display_name"),
        body.get("description"),
        body.get("visibility", "private"),
        body.get("protected", False),
        body.get("owner", owner),
        [_association(each) for each in body.get("resource_type_associations", ())],
        {
            "object": [_definition(each) for each in body.get("objects", ())],
            "property": [_definition({**each.document, "name": each.name}) for each in properties],
            "tag": [_definition(each) for each in body.get("tags", ())],
        },
    )


def prefix_of(associations: Sequence[Association], resource_type: str) -> str | None:
    """What property names begin with on resources of a type; None where nothing is known of it."""
    return next((each.prefix for each in associations if each.name == resource_type), None)


def _association(body: Mapping[str, Any]) -> Association:
    return Association(body["name"], body.get("prefix"), body.get("properties_target"))


def _definition(body: Mapping[str, Any]) -> Definition:
    unnamed = {key: value for key, value in body.items() if key != "name" and key not in schemas.READ_ONLY}
    return Definition(body["name"], unnamed)


# -- Notifications --------------------------------------------------------------------------------------------------


def namespace_payload(namespace: Namespace) -> dict[str, Any]:
    """A namespace as notifications tell it."""
    names = ("namespace", "display_name", "protected", "visibility", "owner", "description")
    payload = {name: getattr(namespace, name) for name in names}
    times = {"created_at": namespace.created_at.isoformat(), "updated_at": namespace.updated_at.isoformat()}
    return payload | times | {"namespace_old": namespace.namespace}


def definition_payload(namespace: Namespace, definition: Definition) -> dict[str, Any]:
    """A definition as notifications tell it."""
    names = {"namespace": namespace.namespace, "name": definition.name, "name_old": definition.name}
    return {**definition.document, **names, **_times(definition)}


def association_payload(namespace: Namespace, association: Association) -> dict[str, Any]:
    """An association as notifications tell it."""
    values = {"prefix": association.prefix, "properties_target": association.properties_target}
    names = {"namespace": namespace.namespace, "name": association.name, "name_old": association.name}
    return {**names, **values, **_times(association)}


def _times(of: Association | Definition) -> dict[str, str | None]:
    return {
        "created_at": of.created_at.isoformat() if of.created_at else None,
        "updated_at": of.updated_at.isoformat() if of.updated_at else None,
    }

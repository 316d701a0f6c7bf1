# SPDX-License-Identifier: Apache-2.0
"""``/v2/metadefs``: namespaces, their objects, properties, tags and resource types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import falcon
from oslo_utils import strutils

from storelib.api.db.metadefs import Association, Definition, Kind, Namespace, NamespaceQuery
from storelib.api.describing import PAGE, Parameter, choice, described
from storelib.api.errors import BadRequest, InvalidMarker
from storelib.api.json_response import send
from storelib.api.links import location
from storelib.api.parsing import page_size
from storelib.api.service import Service
from storelib.api.service.metadefs import prefix_of
from storelib.api.v2.serializers import query_pairs, read_object, refuse_body, time_text

#: Values of a namespace with all that may be in it.
MOST_VALUES = 200_000

ROOT = "/v2/metadefs"
SCHEMAS = "/v2/schemas/metadefs"


def add_routes(app: falcon.App, service: Service) -> None:  # type: ignore[type-arg]
    """Every path of metadata definitions."""
    one = f"{ROOT}/namespaces/{{namespace}}"
    app.add_route(f"{ROOT}/resource_types", ResourceTypesResource(service))
    app.add_route(f"{ROOT}/namespaces", NamespacesResource(service))
    app.add_route(one, NamespaceResource(service))
    app.add_route(f"{one}/resource_types", AssociationsResource(service))
    app.add_route(f"{one}/resource_types/{{name:path}}", AssociationResource(service))
    app.add_route(f"{one}/objects", ObjectsResource(service, "object"))
    app.add_route(f"{one}/objects/{{name:path}}", DefinitionResource(service, "object"))
    app.add_route(f"{one}/properties", PropertiesResource(service, "property"))
    app.add_route(f"{one}/properties/{{name:path}}", PropertyResource(service, "property"))
    app.add_route(f"{one}/tags", TagsResource(service, "tag"))
    app.add_route(f"{one}/tags/{{name:path}}", TagResource(service, "tag"))


_DIRECTION = choice("sort_dir", "In which direction the list is sorted", ["asc", "desc"])
_NAMESPACES = [
    *PAGE,
    choice("visibility", "Namespaces with this visibility", ["public", "private"]),
    Parameter("resource_types", "Namespaces for one of these types, with commas between them"),
    choice("sort_key", "What the list is sorted by", ["namespace", "created_at", "updated_at"]),
    _DIRECTION,
]
_DEFINITIONS = [
    *PAGE,
    choice("sort_key", "What the list is sorted by", ["created_at", "updated_at", "name"]),
    _DIRECTION,
]
_RESOURCE_TYPE = Parameter("resource_type", "With the prefix that names have on resources of this type")


def _of_kind(resource: DefinitionResource) -> str:
    return f"metadef-{resource.kind}"


class NamespacesResource:
    """The collection of namespaces."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: "metadef-namespaces"}, query=_NAMESPACES)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List namespaces, with the resource types they are for."""
        asked = dict(query_pairs(req))
        query = _namespace_query(self._service, asked)
        namespaces, more = self._service.metadefs.list(req.context.caller, query)
        associations = self._service.metadefs.associations_of(namespaces)
        documents = [namespace_document(each, associations[each.id]) for each in namespaces]
        send(resp, {"namespaces": documents} | _links(f"{ROOT}/namespaces", "namespaces", asked, more))

    @described(
        {201: "metadef-namespace"},
        body="metadef-namespace",
        errors=(409, 413, 415),
        response_headers={"Location": "Where the namespace is"},
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Make a namespace, with what is in it."""
        context = req.context.caller
        made = self._service.metadefs.create(context, read_object(req, MOST_VALUES))
        document = _whole(made, *self._service.metadefs.contents(made))
        resp.set_header("Location", location(req.env, self._service.core.options.public_endpoint, document["self"]))
        send(resp, document, falcon.HTTP_201)


class NamespaceResource:
    """One namespace, with what is in it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: "metadef-namespace"}, query=[_RESOURCE_TYPE])
    def on_get(self, req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
        """Show a namespace with all that is in it, with names as on resources of a type if one is asked for."""
        found, associations, contents = self._service.metadefs.show(req.context.caller, namespace)
        prefix = prefix_of(associations, req.get_param("resource_type", default="")) or ""
        send(resp, _whole(found, associations, contents, prefix))

    @described({200: "metadef-namespace"}, body="metadef-namespace", errors=(409, 413, 415))
    def on_put(self, req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
        """Change a namespace, not what is in it."""
        updated = self._service.metadefs.update(req.context.caller, namespace, read_object(req, MOST_VALUES))
        send(resp, namespace_document(updated, ()))

    @described({204: None}, errors=(409,))
    def on_delete(self, req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
        """Delete a namespace and all that is in it."""
        refuse_body(req)
        self._service.metadefs.delete(req.context.caller, namespace)
        resp.status = falcon.HTTP_204


class ResourceTypesResource:
    """The resource types of all namespaces."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: "metadef-resource-types-of-all"})
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List the resource types that there are namespaces for."""
        found = self._service.metadefs.resource_types(req.context.caller)
        send(resp, {"resource_types": [{"name": each.name, **_times(each)} for each in found]})


class AssociationsResource:
    """The resource types that a namespace is for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: "metadef-resource_types"})
    def on_get(self, req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
        """List the associations of a namespace."""
        found = self._service.metadefs.associations(req.context.caller, namespace)
        send(resp, {"resource_type_associations": [association_document(each) for each in found]})

    @described({201: "metadef-resource_type"}, body="metadef-resource_type", errors=(409, 413, 415))
    def on_post(self, req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
        """Say that a namespace is for a resource type."""
        made = self._service.metadefs.associate(req.context.caller, namespace, read_object(req))
        send(resp, association_document(made), falcon.HTTP_201)


class AssociationResource:
    """One resource type that a namespace is for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({204: None}, errors=(409,))
    def on_delete(self, req: falcon.Request, resp: falcon.Response, namespace: str, name: str) -> None:
        """Say that a namespace is not for a resource type any more."""
        refuse_body(req)
        self._service.metadefs.dissociate(req.context.caller, namespace, name)
        resp.status = falcon.HTTP_204


class DefinitionsResource:
    """All definitions of one kind in a namespace."""

    def __init__(self, service: Service, kind: Kind) -> None:
        self._service = service
        self._kind = kind

    @described({204: None}, errors=(409,))
    def on_delete(self, req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
        """Remove all definitions of one kind from a namespace."""
        refuse_body(req)
        self._service.metadefs.clear(req.context.caller, namespace, self._kind)
        resp.status = falcon.HTTP_204


class DefinitionResource:
    """One definition in a namespace."""

    def __init__(self, service: Service, kind: Kind) -> None:
        self._service = service
        self.kind = kind
        self._document = DOCUMENTS[kind]

    @described({200: _of_kind})
    def on_get(self, req: falcon.Request, resp: falcon.Response, namespace: str, name: str) -> None:
        """Show a definition of this kind."""
        found = self._service.metadefs.definition(req.context.caller, namespace, self.kind, name)
        send(resp, self._document(namespace, found))

    @described({200: _of_kind}, body=_of_kind, errors=(409, 413, 415))
    def on_put(self, req: falcon.Request, resp: falcon.Response, namespace: str, name: str) -> None:
        """Change a definition, its name too."""
        body = read_object(req)
        changed = self._service.metadefs.redefine(req.context.caller, namespace, self.kind, name, body)
        send(resp, self._document(namespace, changed))

    @described({204: None}, errors=(409,))
    def on_delete(self, req: falcon.Request, resp: falcon.Response, namespace: str, name: str) -> None:
        """Remove a definition from its namespace."""
        refuse_body(req)
        self._service.metadefs.undefine(req.context.caller, namespace, self.kind, name)
        resp.status = falcon.HTTP_204


class ObjectsResource(DefinitionsResource):
    """The objects of a namespace."""

    @described({200: "metadef-objects"}, query=_DEFINITIONS)
    def on_get(self, req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
        """List the objects of a namespace."""
        found = self._service.metadefs.definitions(req.context.caller, namespace, "object")
        asked = dict(query_pairs(req))
        page, more = _page(self._service, found, asked)
        documents = [object_document(namespace, each) for each in page]
        path = f"{ROOT}/namespaces/{quote(namespace)}/objects"
        send(resp, {"objects": documents} | _links(path, "objects", asked, more))

    @described({201: "metadef-object"}, body="metadef-object", errors=(409, 413, 415))
    def on_post(self, req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
        """Add an object to a namespace."""
        made = self._service.metadefs.define(req.context.caller, namespace, "object", read_object(req))
        send(resp, object_document(namespace, made), falcon.HTTP_201)


class PropertiesResource(DefinitionsResource):
    """The properties of a namespace."""

    @described({200: "metadef-properties"})
    def on_get(self, req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
        """List the properties of a namespace, by their names."""
        found = self._service.metadefs.definitions(req.context.caller, namespace, "property")
        send(resp, {"properties": {each.name: property_document(namespace, each) for each in found}})

    @described({201: "metadef-property"}, body="metadef-property", errors=(409, 413, 415))
    def on_post(self, req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
        """Add a property to a namespace."""
        made = self._service.metadefs.define(req.context.caller, namespace, "property", read_object(req))
        send(resp, property_document(namespace, made), falcon.HTTP_201)


class PropertyResource(DefinitionResource):
    """One property of a namespace."""

    @described({200: "metadef-property"}, query=[_RESOURCE_TYPE])
    def on_get(self, req: falcon.Request, resp: falcon.Response, namespace: str, name: str) -> None:
        """Show a property, by its name on resources of a type if one is asked for."""
        resource_type = req.get_param("resource_type")
        if not resource_type:
            return super().on_get(req, resp, namespace, name)
        found = self._service.metadefs.property_on(req.context.caller, namespace, name, resource_type)
        send(resp, property_document(namespace, found))
        return None


class TagsResource(DefinitionsResource):
    """The tags of a namespace."""

    @described({200: "metadef-tags"}, query=_DEFINITIONS)
    def on_get(self, req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
        """List the tags of a namespace."""
        found = self._service.metadefs.definitions(req.context.caller, namespace, "tag")
        asked = dict(query_pairs(req))
        page, more = _page(self._service, found, asked)
        path = f"{ROOT}/namespaces/{quote(namespace)}/tags"
        send(resp, {"tags": [{"name": each.name} for each in page]} | _links(path, "tags", asked, more))

    @described(
        {201: "metadef-new-tags"},
        body="metadef-new-tags",
        headers=[Parameter("X-OpenStack-Append", "true: keep the tags that there are")],
        errors=(409, 413, 415),
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
        """Give a namespace these tags, in place of those it has unless X-Openstack-Append says otherwise."""
        append = strutils.bool_from_string(req.get_header("X-Openstack-Append"))
        made = self._service.metadefs.put_tags(req.context.caller, namespace, read_object(req), append=append)
        send(resp, {"tags": [{"name": each.name} for each in made]}, falcon.HTTP_201)


class TagResource(DefinitionResource):
    """One tag of a namespace."""

    @described({201: "metadef-tag"}, errors=(409, 413))
    def on_post(self, req: falcon.Request, resp: falcon.Response, namespace: str, name: str) -> None:
        """Add a tag, which the path names."""
        refuse_body(req)
        made = self._service.metadefs.define(req.context.caller, namespace, "tag", {"name": name})
        send(resp, tag_document(namespace, made), falcon.HTTP_201)


# -- Documents ------------------------------------------------------------------------------------------------------


def namespace_document(namespace: Namespace, associations: Sequence[Association]) -> dict[str, Any]:
    """A namespace, with the resource types it is for but nothing else that is in it."""
    names = ("namespace", "display_name", "description", "visibility", "protected", "owner")
    document = {name: value for name in names if (value := getattr(namespace, name)) is not None}
    document |= _times(namespace)
    document |= {"self": f"{ROOT}/namespaces/{quote(namespace.namespace)}", "schema": f"{SCHEMAS}/namespace"}
    if associations:
        document["resource_type_associations"] = [association_document(each) for each in associations]
    return document


def association_document(association: Association) -> dict[str, Any]:
    """A resource type that a namespace is for."""
    names = ("name", "prefix", "properties_target")
    document = {name: value for name in names if (value := getattr(association, name)) is not None}
    return document | _times(association)


def object_document(namespace: str, definition: Definition, prefix: str = "") -> dict[str, Any]:
    """An object, the names of its properties with ``prefix`` before them."""
    document = {"name": definition.name, **definition.document}
    if prefix and "properties" in document:
        document["properties"] = {prefix + name: value for name, value in document["properties"].items()}
    if prefix and "required" in document:
        document["required"] = [prefix + name for name in document["required"]]
    path = f"{ROOT}/namespaces/{quote(namespace)}/objects/{quote(definition.name)}"
    return document | _times(definition) | {"self": path, "schema": f"{SCHEMAS}/object"}


def property_document(namespace: str, definition: Definition) -> dict[str, Any]:
    """A property, as the API shows it."""
    return {"name": definition.name, **definition.document}


def tag_document(namespace: str, definition: Definition) -> dict[str, Any]:
    """A tag, as the API shows it."""
    return {"name": definition.name, **_times(definition)}


DOCUMENTS: Mapping[Kind, Callable[[str, Definition], dict[str, Any]]] = {
    "object": object_document,
    "property": property_document,
    "tag": tag_document,
}


def _whole(
    namespace: Namespace,
    associations: Sequence[Association],
    contents: Mapping[Kind, Sequence[Definition]],
    prefix: str = "",
) -> dict[str, Any]:
    document = namespace_document(namespace, associations)
    name = namespace.namespace
    if contents["object"]:
        document["objects"] = [object_document(name, each, prefix) for each in contents["object"]]
    if contents["property"]:
        document["properties"] = {prefix + each.name: dict(each.document) for each in contents["property"]}
    if contents["tag"]:
        document["tags"] = [{"name": each.name} for each in contents["tag"]]
    return document


def _times(of: Any) -> dict[str, str]:
    times = {name: getattr(of, name) for name in ("created_at", "updated_at")}
    return {name: time_text(value) for name, value in times.items() if value is not None}


# -- Pages ----------------------------------------------------------------------------------------------------------


def _namespace_query(service: Service, asked: Mapping[str, str]) -> NamespaceQuery:
    visibility = asked.get("visibility") or None
    if visibility not in (None, "public", "private"):
        raise BadRequest(f"visibility must be public or private, not {visibility!r}")
    types = asked.get("resource_types")
    return NamespaceQuery(
        visibility=visibility,
        resource_types=types.split(",") if types is not None else None,
        sort_key=asked.get("sort_key", "created_at"),
        descending=_descending(asked),
        limit=_limit(service, asked),
        marker=asked.get("marker"),
    )


def _limit(service: Service, asked: Mapping[str, str], default: int | None = None) -> int:
    options = service.core.options
    return page_size(
        asked.get("limit"), options.limit_param_default if default is None else default, options.api_limit_max
    )


def _descending(asked: Mapping[str, str]) -> bool:
    direction = asked.get("sort_dir", "desc")
    if direction not in ("asc", "desc"):
        raise BadRequest(f"sort_dir must be asc or desc, not {direction!r}")
    return direction == "desc"


def _page(
    service: Service, found: Sequence[Definition], asked: Mapping[str, str]
) -> tuple[Sequence[Definition], str | None]:
    """What of a namespace's definitions one response has, and the marker of the next one."""
    key = asked.get("sort_key", "created_at")
    if key not in ("created_at", "updated_at", "name"):
        raise BadRequest(f"what is in a namespace cannot be sorted by {key!r}; only by created_at, updated_at, name")
    ordered = sorted(found, key=lambda each: (getattr(each, key), each.name), reverse=_descending(asked))
    if "marker" in asked:
        names = [each.name for each in ordered]
        if asked["marker"] not in names:
            raise InvalidMarker(f"the marker {asked['marker']!r} is nothing in this namespace")
        ordered = ordered[names.index(asked["marker"]) + 1 :]
    limit = _limit(service, asked, default=int(service.core.options.api_limit_max))
    page = ordered[:limit]
    return page, page[-1].name if page and len(ordered) > limit else None


def _links(path: str, schema: str, asked: Mapping[str, str], more: str | None) -> dict[str, str]:
    others = {name: value for name, value in asked.items() if name != "marker"}
    links = {"first": f"{path}?{urlencode(others)}" if others else path, "schema": f"{SCHEMAS}/{schema}"}
    return links if more is None else links | {"next": f"{path}?{urlencode({**others, 'marker': more})}"}

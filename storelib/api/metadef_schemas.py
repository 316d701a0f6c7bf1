# SPDX-License-Identifier: Apache-2.0
"""The JSON schemas of metadata definitions: what ``/v2/schemas/metadefs/*`` serves and what bodies are checked against.

Source: the Image API reference, "Metadata Definitions"; names, limits and required keys are those that clients expect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from storelib.api.errors import BadRequest, NotPermitted
from storelib.api.schemas import FORMATS, Schema, Validator, first_error

#: Characters of names.
LONGEST_NAME = 80
#: What the service sets itself.
READ_ONLY = frozenset({"self", "schema", "created_at", "updated_at"})

_TYPES = ["array", "boolean", "integer", "number", "object", "string", None]
_NAME: Schema = {"type": "string", "minLength": 1, "maxLength": LONGEST_NAME}
_SET_BY_SERVICE: Schema = {"type": "string", "readOnly": True}


def _time(of: str) -> Schema:
    return {**_SET_BY_SERVICE, "description": f"When {of} (ISO 8601)", "format": "date-time"}


_COUNT = {"$ref": "#/definitions/positiveInteger"}
_COUNT_FROM_0 = {"$ref": "#/definitions/positiveIntegerDefault0"}

#: One property, whose name stands elsewhere.
_PROPERTY: Schema = {
    "name": {**_NAME, "description": "Name of the property"},
    "title": {"type": "string", "description": "Name of the property for people"},
    "description": {"type": "string"},
    "operators": {"type": "array", "items": {"type": "string"}},
    "type": {"type": ["string", "null"], "enum": _TYPES},
    "required": {"$ref": "#/definitions/stringArray"},
    "minimum": {"type": "number"},
    "maximum": {"type": "number"},
    "maxLength": _COUNT,
    "minLength": _COUNT_FROM_0,
    "pattern": {"type": "string", "format": "regex"},
    "enum": {"type": "array"},
    "readonly": {"type": "boolean"},
    "confidential": {"type": "boolean"},
    "default": {},
    "items": {
        "type": "object",
        "properties": {"type": {"type": ["string", "null"], "enum": _TYPES}, "enum": {"type": "array"}},
    },
    "maxItems": _COUNT,
    "minItems": _COUNT_FROM_0,
    "uniqueItems": {"type": "boolean", "default": False},
    "additionalItems": {"type": "boolean"},
}
_PROPERTY_KEYS = ["title", "type"]

DEFINITIONS: Schema = {
    "positiveInteger": {"type": "integer", "minimum": 0},
    "positiveIntegerDefault0": {"allOf": [_COUNT, {"default": 0}]},
    "stringArray": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    "property": {
        "type": "object",
        "additionalProperties": {
            "type": "object",
            "required": _PROPERTY_KEYS,
            "additionalProperties": False,
            "properties": _PROPERTY,
        },
    },
}

_OBJECT: Schema = {
    "name": _NAME,
    "description": {"type": "string"},
    "required": {"$ref": "#/definitions/stringArray"},
    "properties": {"$ref": "#/definitions/property"},
}
_ASSOCIATION: Schema = {
    "name": {**_NAME, "description": "Resource type, where possible named as Heat names it"},
    "prefix": {
        "type": "string",
        "maxLength": LONGEST_NAME,
        "description": "What the namespace's properties begin with on resources of this type, separator included",
    },
    "properties_target": {
        "type": "string",
        "maxLength": LONGEST_NAME,
        "description": "Which of several sets of properties of such a resource is meant",
    },
}


def _document(name: str, properties: Schema, required: Iterable[str], *, definitions: bool = False) -> Schema:
    schema: Schema = {"name": name, "properties": properties, "additionalProperties": False, "required": [*required]}
    return schema | {"definitions": DEFINITIONS} if definitions else schema


def _named(properties: Schema) -> Schema:
    """A list of things that have a name and nothing that is not in ``properties``."""
    item = {"type": "object", "required": ["name"], "additionalProperties": False, "properties": properties}
    return {"type": "array", "items": item}


NAMESPACE = _document(
    "namespace",
    {
        "namespace": {**_NAME, "description": "Name of the namespace, which no other has"},
        "display_name": {"type": "string", "maxLength": 80, "description": "Name of the namespace for people"},
        "description": {"type": "string", "maxLength": 500},
        "visibility": {"type": "string", "enum": ["public", "private"], "description": "Who may see it"},
        "protected": {"type": "boolean", "description": "If true, the namespace cannot be deleted"},
        "owner": {"type": "string", "maxLength": 255, "description": "Project that owns the namespace"},
        "created_at": _time("the namespace was made"),
        "updated_at": _time("the namespace was last changed"),
        "schema": _SET_BY_SERVICE,
        "self": _SET_BY_SERVICE,
        "resource_type_associations": _named(
            {
                **_ASSOCIATION,
                "created_at": _time("it was associated"),
                "updated_at": _time("that was last changed"),
            }
        ),
        "properties": {"$ref": "#/definitions/property"},
        "objects": _named(
            {
                **_OBJECT,
                "created_at": _time("the object was made"),
                "updated_at": _time("the object was last changed"),
                "schema": _SET_BY_SERVICE,
                "self": _SET_BY_SERVICE,
            }
        ),
        "tags": _named({"name": _NAME}),
    },
    ["namespace"],
    definitions=True,
)
OBJECT = _document(
    "object",
    {
        **_OBJECT,
        "schema": _SET_BY_SERVICE,
        "self": _SET_BY_SERVICE,
        "created_at": _time("the object was made"),
        "updated_at": _time("the object was last changed"),
    },
    ["name"],
    definitions=True,
)
PROPERTY = _document("property", _PROPERTY, [*_PROPERTY_KEYS, "name"], definitions=True)
TAG = _document(
    "tag",
    {"name": _NAME, "created_at": _time("the tag was made"), "updated_at": _time("the tag was last changed")},
    ["name"],
)
TAGS = _document(
    "tags",
    {"tags": _named({"name": _NAME})},
    ["tags"],
)
ASSOCIATION = _document(
    "resource_type_association",
    {**_ASSOCIATION, "created_at": _time("it was associated"), "updated_at": _time("that was last changed")},
    ["name"],
)


def _collection(name: str, item: Schema, items: Schema) -> Schema:
    links = [{"rel": "describedby", "href": "{schema}"}]
    paged = {"first": {"type": "string"}, "next": {"type": "string"}, "schema": {"type": "string"}}
    links = [{"rel": "first", "href": "{first}"}, {"rel": "next", "href": "{next}"}, *links]
    schema: Schema = {"name": name, "properties": {name: items, **paged}, "links": links}
    return schema | {"definitions": item["definitions"]} if "definitions" in item else schema


def _list_of(name: str, item: Schema) -> Schema:
    inner = {key: value for key, value in item.items() if key != "definitions"}
    return _collection(name, item, {"type": "array", "items": inner})


def documents() -> dict[str, Schema]:
    """What is below ``/v2/schemas/metadefs``."""
    unnamed = {key: value for key, value in PROPERTY.items() if key != "definitions"} | {"required": _PROPERTY_KEYS}
    properties = {"type": "object", "additionalProperties": unnamed}
    return {
        "namespace": NAMESPACE,
        "namespaces": _list_of("namespaces", NAMESPACE),
        "object": OBJECT,
        "objects": _list_of("objects", OBJECT),
        "property": PROPERTY,
        "properties": _collection("properties", PROPERTY, properties),
        "tag": TAG,
        "tags": _list_of("tags", TAG),
        "resource_type": ASSOCIATION,
        "resource_types": _list_of("resource_type_associations", ASSOCIATION),
    }


_VALIDATORS = {
    id(schema): Validator({**schema, "type": "object"}, format_checker=FORMATS)
    for schema in (NAMESPACE, OBJECT, PROPERTY, TAG, TAGS, ASSOCIATION)
}


def check(schema: Schema, body: Mapping[str, Any]) -> None:
    """Raise BadRequest, naming the place, unless ``body`` is as ``schema``, one of this module's, says.

    Raises NotPermitted for what only the service sets.
    """
    given = sorted(READ_ONLY & body.keys())
    if given:
        raise NotPermitted(f"{given[0]!r} is set by the service and cannot be given")
    error = first_error(_VALIDATORS[id(schema)], body)
    if error is not None:
        where = "/".join(map(str, error.absolute_path))
        raise BadRequest(f"{where or 'the body'}: {error.message[:500]}")

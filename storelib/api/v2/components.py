# SPDX-License-Identifier: Apache-2.0
"""The schemas of what the v2 API takes and returns, by the names that its operations use in the API's description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storelib.api import metadef_schemas, schemas
from storelib.api.config import IMPORT_METHODS
from storelib.api.service.core import Core
from storelib.api.service.draft import LONGEST_NAME
from storelib.api.v2 import patch, preload_components

Schema = Mapping[str, Any]

_TEXT: Schema = {"type": "string"}
_DIGESTS: Schema = schemas.base_properties((), ())["locations"]["items"]["properties"]["validation_data"]
_LOCATION: Schema = {
    "type": "object",
    "required": ["url", "metadata"],
    "properties": {"url": _TEXT, "metadata": {"type": "object"}},
}
#: What an image always has.
_ALWAYS = (
    *("id", "name", "status", "visibility", "protected", "os_hidden", "checksum", "os_hash_algo", "os_hash_value"),
    *("owner", "size", "virtual_size", "container_format", "disk_format", "created_at", "updated_at", "tags"),
    *("min_ram", "min_disk", "self", "file", "schema"),
)
_STORE: Schema = {
    "type": "object",
    "required": ["id"],
    "properties": {
        "id": _TEXT,
        "description": _TEXT,
        "default": {"type": "string", "enum": ["true"]},
        "read-only": {"type": "string", "enum": ["true"]},
    },
}
_STORE_DETAIL: Schema = {
    "type": "object",
    "required": ["id", "type", "weight", "properties"],
    "properties": {
        **_STORE["properties"],
        "type": {"type": "string", "description": "The driver"},
        "weight": {"type": "integer"},
        "properties": {"type": "object", "description": "Where it keeps the data"},
    },
}
_CACHED: Schema = {
    "type": "object",
    "required": ["image_id", "size", "hits", "last_accessed", "last_modified"],
    "properties": {
        "image_id": _TEXT,
        "size": {"type": "integer"},
        "hits": {"type": "integer"},
        "last_accessed": {"type": "number", "description": "Seconds since 1970"},
        "last_modified": {"type": "number", "description": "Seconds since 1970"},
    },
}
_PATH: Schema = {"type": "string", "pattern": "^/.", "description": "JSON pointer to a property of the image"}


def _listed(name: str, item: Schema) -> Schema:
    return {"type": "object", "required": [name], "properties": {name: {"type": "array", "items": item}}}


_INTERFACE = {"type": "string", "maxLength": 255, "description": "Interface of the other service; public if not given"}
_METHOD_OF_ITS_OWN = ("web-download", "glance-download")
#: Each method with what it takes.
_IMPORT_METHOD: Schema = {
    "type": "object",
    "required": ["name"],
    "oneOf": [
        {
            "properties": {
                "name": {"enum": [name for name in IMPORT_METHODS if name not in _METHOD_OF_ITS_OWN]},
                "uri": {"type": "null"},
            },
        },
        {
            "required": ["uri"],
            "properties": {
                "name": {"const": "web-download"},
                "uri": {"type": "string", "format": "uri", "description": "Where the data is"},
            },
        },
        {
            "required": ["glance_region", "glance_image_id"],
            "properties": {
                "name": {"const": "glance-download"},
                "uri": {"type": "null"},
                "glance_region": {"type": "string", "maxLength": 255, "description": "Region of the other service"},
                "glance_image_id": {"type": "string", "pattern": schemas.UUID, "description": "The image there"},
                "glance_service_interface": _INTERFACE,
            },
        },
    ],
}
FIXED: Mapping[str, Schema] = {
    "member": {**schemas.MEMBER, "required": ["member_id", "image_id", "status", "created_at", "updated_at", "schema"]},
    "task": {**schemas.TASK, "required": ["id", "type", "status", "created_at", "updated_at", "self", "schema"]},
    "members": schemas.collection("members", {"$ref": "#/components/schemas/member"}, paged=True),
    "tasks": schemas.collection("tasks", {"$ref": "#/components/schemas/task"}, paged=True),
    "images": schemas.collection("images", {"$ref": "#/components/schemas/image"}, paged=True),
    "image-tasks": _listed("tasks", {"$ref": "#/components/schemas/task"}),
    "locations": {"type": "array", "items": _LOCATION},
    "new-location": {
        "type": "object",
        "required": ["url"],
        "properties": {"url": {"type": "string", "minLength": 1, "maxLength": 255}, "validation_data": _DIGESTS},
    },
    "patch": {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["op", "path"],
            "properties": {"op": {"type": "string", "enum": [*patch.OPS]}, "path": _PATH, "value": {}},
        },
    },
    "old-patch": {
        "type": "array",
        "items": {
            "type": "object",
            "oneOf": [{"required": [op]} for op in patch.OPS],
            "properties": {**dict.fromkeys(patch.OPS, _PATH), "value": {}},
        },
    },
    "import": {
        "type": "object",
        "required": ["method"],
        "properties": {
            "method": _IMPORT_METHOD,
            "stores": {"type": "array", "minItems": 1, "items": _TEXT, "description": "Ids of the stores to fill"},
            "all_stores": {"type": "boolean", "description": "Fill all stores that take data"},
            "all_stores_must_succeed": {"type": "boolean", "description": "Take the image back if one of them fails"},
        },
        "not": {"required": ["stores", "all_stores"], "properties": {"all_stores": {"const": True}}},
    },
    "new-task": {
        "type": "object",
        "required": ["type", "input"],
        "properties": {"type": schemas.TASK["properties"]["type"], "input": {"type": "object"}},
    },
    "info-import": {
        "type": "object",
        "required": ["import-methods"],
        "properties": {
            "import-methods": {
                "type": "object",
                "required": ["description", "type", "value"],
                "properties": {"description": _TEXT, "type": _TEXT, "value": {"type": "array", "items": _TEXT}},
            }
        },
    },
    "info-stores": _listed("stores", _STORE),
    "info-stores-detail": _listed("stores", _STORE_DETAIL),
    "info-usage": {
        "type": "object",
        "required": ["usage"],
        "properties": {
            "usage": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "required": ["limit", "usage"],
                    "properties": {"limit": {"type": "integer"}, "usage": {"type": "integer"}},
                },
            }
        },
    },
    "cache": {
        "type": "object",
        "properties": {
            "cached_images": {"type": "array", "items": _CACHED},
            "queued_images": {"type": "array", "items": _TEXT, "description": "Ids of images"},
        },
    },
    "cache-pruned": {
        "type": "object",
        "required": ["total_files_pruned", "total_bytes_pruned"],
        "properties": {"total_files_pruned": {"type": "integer"}, "total_bytes_pruned": {"type": "integer"}},
    },
    "cache-deleted": {
        "type": "object",
        "required": ["num_deleted"],
        "properties": {"num_deleted": {"type": "integer"}},
    },
    "metadef-new-tags": metadef_schemas.TAGS,
    "metadef-resource-types-of-all": _listed(
        "resource_types",
        {
            "type": "object",
            "required": ["name"],
            "properties": {"name": _TEXT, "created_at": _TEXT, "updated_at": _TEXT},
        },
    ),
}


def components(core: Core) -> dict[str, Schema]:
    """All schemas for this configuration, without the operator's own properties, which only users may know."""
    options = core.options
    base = schemas.base_properties(options.container_formats, options.disk_formats)
    shown = schemas.bounded({**base, **schemas.WELL_KNOWN})
    # What is not named is text, unless the operator says more about it, or that there is nothing else.
    kept: Any = core.schema.additional and {"type": ["string", "null"]}
    taken: Any = core.schema.additional and {"type": "string"}
    if options.property_schema_file:
        kept = taken = {}
    image = {"properties": shown, "required": [*_ALWAYS], "additionalProperties": kept}
    writable = {name: schema for name, schema in shown.items() if name not in schemas.READ_ONLY and name != "locations"}
    names = {"minLength": 1, "maxLength": LONGEST_NAME}
    given = {"properties": writable, "additionalProperties": taken, "propertyNames": names}
    metadefs = {f"metadef-{name}": schema for name, schema in metadef_schemas.documents().items()}
    return {**FIXED, **preload_components.COMPONENTS, **metadefs, "image": image, "new-image": given}

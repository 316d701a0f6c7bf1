# SPDX-License-Identifier: Apache-2.0
"""The schemas of what ``/v2/nodes`` and ``/v2/preloads`` take and return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storelib.api.db.preload_records import STATES

Schema = Mapping[str, Any]

_TEXT: Schema = {"type": "string"}
_NULLABLE_TEXT: Schema = {"type": ["string", "null"]}
_TRUTH: Schema = {"type": "boolean"}
_BYTES: Schema = {"type": "integer", "minimum": 0, "maximum": 2**53}
_SOME_BYTES: Schema = {"type": ["integer", "null"], "minimum": 0, "maximum": 2**53}
_PORT: Schema = {"type": "integer", "minimum": 0, "maximum": 65535}
_NAME: Schema = {"type": "string", "pattern": r"^[A-Za-z0-9_.@:\-]{1,255}$"}
_IDS: Schema = {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 36}}
_STATE: Schema = {"type": "string", "enum": [*STATES]}


def _object(properties: Mapping[str, Schema], *optional: str, **more: Any) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": dict(properties), **more}


_NODE = _object(
    {
        **dict.fromkeys(("id", "name", "group", "address", "version", "created_at"), _TEXT),
        "port": _PORT,
        **dict.fromkeys(("free", "used", "budget"), _SOME_BYTES),
        "clock_ahead": {"type": ["number", "null"], "description": "Seconds"},
        "draining": _TRUTH,
        "seen_at": _NULLABLE_TEXT,
    }
)
_PRELOAD: Mapping[str, Schema] = {
    **dict.fromkeys(("id", "image", "origin", "created_at"), _TEXT),
    **dict.fromkeys(("group", "project_id", "ended_at"), _NULLABLE_TEXT),
    "all": _TRUTH,
    "pinned": _TRUTH,
    "status": {"type": "string", "enum": ["active", "cancelled", "ended"]},
    "nodes": {"type": "object", "description": "Nodes by state", "additionalProperties": {"type": "integer"}},
    **{name: {"type": "integer"} for name in ("done", "from_source", "from_peers")},
}
_PROGRESS = _object(
    {
        **dict.fromkeys(("node_id", "node", "moved_at"), _TEXT),
        "state": _STATE,
        **{name: {"type": "integer"} for name in ("done", "from_source", "from_peers")},
        "reason": _NULLABLE_TEXT,
    }
)
_GROUP: Mapping[str, Schema] = {
    "images": {**_IDS, "description": "Ids of images that its nodes keep", "maxItems": 500},
    "properties": {
        "type": "object",
        "description": "Its nodes keep all images that have all of these",
        "maxProperties": 16,
        "additionalProperties": {"type": "string", "maxLength": 255},
    },
    "visibility": {"type": "array", "items": {"enum": ["public", "community", "shared", "private"]}, "maxItems": 4},
    "projects": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 255}, "maxItems": 500},
}
_SAID = _object(
    {
        "preload": {"type": "string", "minLength": 1, "maxLength": 36},
        "state": _STATE,
        **dict.fromkeys(("done", "from_source", "from_peers"), _BYTES),
        "reason": _NULLABLE_TEXT,
        "wanted_csr": _NULLABLE_TEXT,
    },
    *("done", "from_source", "from_peers", "reason", "wanted_csr"),
)
_PEER: Mapping[str, Schema] = {"address": _TEXT, "port": _PORT}
_JOB = _object(
    {
        **dict.fromkeys(("preload", "image", "state_wanted", "os_hash_algo", "os_hash_value", "ca"), _TEXT),
        "size": {"type": "integer"},
        "virtual_size": {"type": ["integer", "null"]},
        **dict.fromkeys(("disk_format", "container_format", "torrent_url", "certificate"), _NULLABLE_TEXT),
        "pinned": _TRUTH,
        "peers": {"type": "array", "items": _object(_PEER)},
        "source": {**_object({"url": _TEXT, "expires": {"type": "number"}}), "type": ["object", "null"]},
        "up_limit": {"type": "integer"},
        "down_limit": {"type": "integer"},
    }
)

COMPONENTS: Mapping[str, Schema] = {
    "node": _NODE,
    "nodes": _object({"nodes": {"type": "array", "items": _NODE}, "next": _TEXT}, "next"),
    "new-node": _object(
        {"name": _NAME, "group": _TEXT, "token": _TEXT, "address": _TEXT, "port": _PORT, "version": _TEXT},
        *("group", "token", "version"),
    ),
    "registered-node": _object(
        {**dict.fromkeys(("id", "name", "group", "secret"), _TEXT), "interval": {"type": "number"}}
    ),
    "new-enrolment": _object(
        {
            "group": _NAME,
            "expires_in": {"type": "integer", "minimum": 1, "maximum": 30 * 86400},
            "uses": {"type": "integer", "minimum": 1, "maximum": 100_000},
        },
        *("expires_in", "uses"),
    ),
    "enrolment": _object({"token": _TEXT, "group": _TEXT, "uses": {"type": "integer"}, "expires_at": _TEXT}),
    "heartbeat": _object(
        {
            "address": _TEXT,
            "port": _PORT,
            "version": _TEXT,
            "time": {"type": ["number", "null"]},
            **dict.fromkeys(("free", "used", "budget"), _SOME_BYTES),
            "states": {"type": "array", "items": _SAID, "maxItems": 1000},
            "bad_peers": {"type": "array", "items": _object({"preload": _TEXT, **_PEER}), "maxItems": 1000},
            "holds": {**_IDS, "maxItems": 4000},
        },
        *("version", "time", "free", "used", "budget", "states", "bad_peers", "holds"),
    ),
    "heartbeat-response": _object(
        {
            "interval": {"type": "number"},
            "time": {"type": "number"},
            "jobs": {"type": "array", "items": _JOB},
            "drop": _IDS,
            "draining": _TRUTH,
        }
    ),
    "new-preload": {
        "type": "object",
        "properties": {
            "images": {**_IDS, "minItems": 1, "maxItems": 100},
            "cache": {"type": "array", "items": _object({"id": _TEXT}), "minItems": 1, "maxItems": 100},
            "group": _NAME,
            "nodes": {"type": "array", "items": _NAME, "maxItems": 1000},
            "all": _TRUTH,
            "pinned": _TRUTH,
        },
        "oneOf": [{"required": ["images"]}, {"required": ["cache"]}],
    },
    "new-preloads": _object({"preloads": {"type": "array", "items": _object(_PRELOAD)}}),
    "preloads": _object({"preloads": {"type": "array", "items": _object(_PRELOAD)}, "next": _TEXT}, "next"),
    "preload": _object({**_PRELOAD, "states": {"type": "array", "items": _PROGRESS}, "next": _TEXT}, "next"),
    "node-group": _object({"name": _TEXT, **_GROUP}),
    "new-node-group": _object(_GROUP, *_GROUP, additionalProperties=False),
    "node-groups": _object({"groups": {"type": "array", "items": _object({"name": _TEXT, **_GROUP})}}),
}

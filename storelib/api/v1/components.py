# SPDX-License-Identifier: Apache-2.0
"""The schemas of what the v1 API takes and returns in bodies, by the names that its operations use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

_TEXT: Schema = {"type": "string"}
_TEXT_OR_NONE: Schema = {"type": ["string", "null"]}
_NUMBER_OR_NONE: Schema = {"type": ["integer", "null"]}
_CAN_SHARE: Schema = {"type": "boolean", "description": "Whether it may share the image itself"}
_BRIEF: Schema = {
    "id": _TEXT,
    "name": _TEXT_OR_NONE,
    "size": _NUMBER_OR_NONE,
    "disk_format": _TEXT_OR_NONE,
    "container_format": _TEXT_OR_NONE,
    "checksum": _TEXT_OR_NONE,
}
_IMAGE: Schema = {
    "type": "object",
    "required": [*_BRIEF],
    "properties": {
        **_BRIEF,
        "status": _TEXT,
        "is_public": {"type": "boolean"},
        "properties": {"type": "object", "description": "Custom properties"},
    },
}


def _listed(name: str, item: Schema) -> Schema:
    return {"type": "object", "required": [name], "properties": {name: {"type": "array", "items": item}}}


def _membership(name: str) -> Schema:
    return {"type": "object", "required": [name], "properties": {name: _TEXT, "can_share": _CAN_SHARE}}


COMPONENTS: Mapping[str, Schema] = {
    "v1-image": {"type": "object", "required": ["image"], "properties": {"image": _IMAGE}},
    "v1-images": _listed("images", _IMAGE),
    "v1-members": _listed("members", _membership("member_id")),
    "v1-memberships": _listed("memberships", _membership("member_id")),
    "v1-member": {
        "type": "object",
        "required": ["member"],
        "properties": {"member": {"type": "object", "properties": {"can_share": _CAN_SHARE}}},
    },
    "v1-shared-images": _listed("shared_images", _membership("image_id")),
}

# SPDX-License-Identifier: Apache-2.0
"""The two JSON-patch media types of the v2 API, read into operations (drafts 10 and 4 of what became RFC 6902).

Only the form is judged here: what may be changed is the service's.
"""

from __future__ import annotations

from typing import Any

from storelib.api.errors import BadRequest
from storelib.api.service import Operation

DRAFT_10 = "application/openstack-images-v2.1-json-patch"
DRAFT_4 = "application/openstack-images-v2.0-json-patch"
MEDIA_TYPES = (DRAFT_10, DRAFT_4)
OPS = ("add", "remove", "replace")


def parse(kind: str, body: Any) -> list[Operation]:
    """The operations of a decoded body of the media type ``kind``; raises BadRequest for a wrong form."""
    if not isinstance(body, list):
        raise BadRequest("the body must be an array of operations")
    return [_operation(entry, draft_4=kind == DRAFT_4) for entry in body]


def _operation(entry: Any, *, draft_4: bool) -> Operation:
    if not isinstance(entry, dict):
        raise BadRequest("an operation must be an object")
    op, pointer = _draft_4(entry) if draft_4 else _draft_10(entry)
    path = _path(pointer)
    if op == "remove":
        return Operation("remove", path)
    if "value" not in entry:
        raise BadRequest(f"the operation {op!r} needs a member 'value'")
    if draft_4 and op == "add" and path[0] != "locations":
        return Operation("insert", path, entry["value"])
    return Operation("replace" if op == "replace" else "add", path, entry["value"])


def _draft_10(entry: dict[str, Any]) -> tuple[str, Any]:
    op = entry.get("op")
    if op not in OPS:
        raise BadRequest(f"the member 'op' of an operation must be one of {', '.join(OPS)}, not {op!r}")
    if "path" not in entry:
        raise BadRequest(f"the operation {op!r} needs a member 'path'")
    return op, entry["path"]


def _draft_4(entry: dict[str, Any]) -> tuple[str, Any]:
    found = [op for op in OPS if op in entry]
    if len(found) != 1:
        raise BadRequest(f"an operation must have exactly one of the members {', '.join(OPS)}")
    return found[0], entry[found[0]]


def _path(pointer: Any) -> tuple[str, ...]:
    """A JSON pointer (RFC 6901) of one part, or of two below /locations."""
    if not isinstance(pointer, str) or not pointer.startswith("/"):
        raise BadRequest(f"{pointer!r} is not a path: it must begin with '/'")
    parts = pointer[1:].split("/")
    if not all(parts):
        raise BadRequest(f"{pointer!r} is not a path: a part of it is empty")
    path = tuple(_unescape(part, pointer) for part in parts)
    if len(path) > (2 if path[0] == "locations" else 1):
        raise BadRequest(f"there is nothing at {pointer!r} that could be changed")
    return path


def _unescape(part: str, pointer: str) -> str:
    for piece in part.split("~")[1:]:
        if not piece.startswith(("0", "1")):
            raise BadRequest(f"{pointer!r} is not a path: '~' must be followed by 0 or 1")
    return part.replace("~1", "/").replace("~0", "~")

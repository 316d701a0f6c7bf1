# SPDX-License-Identifier: Apache-2.0
"""What the v2 API puts on the wire: the documents of images, members and locations, and how bodies are read."""

from __future__ import annotations

import datetime
from typing import Any
from urllib.parse import parse_qsl

import falcon

from storelib.api.db.records import Image, ImageLocation, Member, Task
from storelib.api.errors import BadRequest, LimitExceeded, UnsupportedMediaType
from storelib.api.parsing import MOST_VALUES, from_json, media_type
from storelib.api.service import Context
from storelib.api.service.core import Core
from storelib.api.service.tasks import REFUSED, shown_properties
from storelib.uris import redact

#: Bytes of a JSON body at most; the largest image document within the quotas is far smaller.
LARGEST_BODY = 4 * 1024 * 1024
JSON = "application/json"
OCTETS = "application/octet-stream"


def query_pairs(req: falcon.Request) -> list[tuple[str, str]]:
    """The query string in its order, with all values of a name; Falcon's own mapping keeps neither."""
    return parse_qsl(req.query_string, keep_blank_values=True)


def require_type(req: falcon.Request, *expected: str) -> str:
    """The media type of the body, without parameters; raises UnsupportedMediaType unless it is as ``expected``."""
    kind = media_type(req.content_type)
    if kind not in expected:
        raise UnsupportedMediaType(f"the body must be of the type {' or '.join(expected)}, not {kind or 'of none'}")
    return kind


def decoded(req: falcon.Request, most: int = MOST_VALUES) -> Any:
    """The body, decoded from JSON, of at most so many values; raises BadRequest, LimitExceeded."""
    body = read_body(req)
    if not body:
        raise BadRequest("a body in JSON is expected")
    return from_json(body, most)


def read_object(req: falcon.Request, most: int = MOST_VALUES) -> dict[str, Any]:
    """A body in JSON that must be an object of at most so many values.

    Raises UnsupportedMediaType, BadRequest, LimitExceeded.
    """
    kind = media_type(req.content_type)
    # Many clients leave the type out, or let curl write that of a form. Pages of other sites, which may send one of
    # these without being asked for leave, cannot send a token.
    if kind and not kind.endswith("+json") and not req.get_header("X-Auth-Token"):
        require_type(req, JSON)
    body = decoded(req, most)
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


def read_body(req: falcon.Request) -> bytes:
    """The whole body; raises LimitExceeded."""
    length = body_length(req)
    if length is not None and length > LARGEST_BODY:
        raise LimitExceeded(f"the body may have {LARGEST_BODY} bytes")
    if length == 0:
        return b""
    try:
        body: bytes = req.stream.read(LARGEST_BODY + 1 if length is None else length)
    except Exception as error:  # what a server raises for chunks that are none is its own
        raise BadRequest(f"the body cannot be read: {error}") from error
    if len(body) > LARGEST_BODY:
        raise LimitExceeded(f"the body may have {LARGEST_BODY} bytes")
    return body


def body_length(req: falcon.Request) -> int | None:
    """Bytes of the body, None when it is sent in chunks (RFC 9112, 6.3: without either there is none).

    Raises HTTPNotImplemented for other transfer codings, which nothing here decodes (6.1).
    """
    if req.content_length is not None:
        return req.content_length
    coding = (req.get_header("Transfer-Encoding") or "").strip().lower()
    if coding not in ("", "chunked"):
        raise falcon.HTTPNotImplemented(description=f"bodies come in chunks, not in the coding {coding[:80]!r}")
    return None if coding else 0


def refuse_body(req: falcon.Request) -> None:
    """Raise BadRequest when there is a body."""
    if body_length(req) != 0:
        raise BadRequest("a body is not expected with this request")


def time_text(moment: datetime.datetime) -> str:
    """A time as the API writes it; ``moment`` is UTC."""
    # A tenth of isoformat's time, which a list of a thousand images pays two thousand times.
    return "%d-%02d-%02dT%02d:%02d:%02dZ" % (  # noqa: UP031  (faster than an f-string here)
        moment.year,
        moment.month,
        moment.day,
        moment.hour,
        moment.minute,
        moment.second,
    )


def image_document(core: Core, context: Context, image: Image) -> dict[str, Any]:
    """An image as the caller may see it."""
    properties = image.properties
    document: dict[str, Any] = {}
    if properties:
        document = core.schema.shown(shown_properties(core.protection.readable(context, properties)))
    path = "/v2/images/" + image.id
    document |= {
        "name": image.name,
        "disk_format": image.disk_format,
        "container_format": image.container_format,
        "visibility": image.visibility,
        "size": image.size,
        "virtual_size": image.virtual_size,
        "status": image.status,
        "checksum": image.checksum,
        "protected": image.protected,
        "min_ram": image.min_ram,
        "min_disk": image.min_disk,
        "owner": image.owner,
        "os_hidden": image.os_hidden,
        "os_hash_algo": image.os_hash_algo,
        "os_hash_value": image.os_hash_value,
        "id": image.id,
        "created_at": time_text(image.created_at),
        "updated_at": time_text(image.updated_at),
        "tags": image.tags,
        "self": path,
        "file": path + "/file",
        "schema": "/v2/schemas/image",
    }
    if image.locations:
        _add_places(core, context, image, document)
    else:
        if image.status == "queued" and (refused := properties.get(REFUSED)):
            document["stores"] = refused
        if core.show_locations:
            document["locations"] = []
    return document


def _add_places(core: Core, context: Context, image: Image, document: dict[str, Any]) -> None:
    locations = core.by_weight(image.locations)
    stores = [location.metadata["store"] for location in locations if "store" in location.metadata]
    if stores:
        document["stores"] = ",".join(stores)
    if not core.shows_places(context, image):
        if core.show_locations and core.hides_places(context, image):
            document["locations"] = []
        return
    if core.show_locations:
        document["locations"] = [location_document(location) for location in locations]
    if core.show_direct_url:
        document["direct_url"] = redact(locations[0].uri)


def location_document(location: ImageLocation) -> dict[str, Any]:
    """A location. Credentials that old or foreign URIs have in them are left out."""
    return {"url": redact(location.uri), "metadata": dict(location.metadata)}


def task_document(task: Task) -> dict[str, Any]:
    """A task. What it does not have is left out."""
    document: dict[str, Any] = {
        "id": task.id,
        "type": task.kind,
        "status": task.status,
        "input": dict(task.given),
        "result": None if task.result is None else dict(task.result),
        "owner": task.owner,
        "message": task.message,
        "created_at": time_text(task.created_at),
        "updated_at": time_text(task.updated_at),
        "self": f"/v2/tasks/{task.id}",
        "schema": "/v2/schemas/task",
    }
    for name in ("image_id", "user_id", "request_id"):
        if value := getattr(task, name):
            document[name] = value
    if task.expires_at is not None:
        document["expires_at"] = time_text(task.expires_at)
    return document


def member_document(member: Member) -> dict[str, Any]:
    """A membership, as the project and the owner see it."""
    return {
        "member_id": member.member,
        "image_id": member.image_id,
        "status": member.status,
        "created_at": time_text(member.created_at),
        "updated_at": time_text(member.updated_at),
        "schema": "/v2/schemas/member",
    }

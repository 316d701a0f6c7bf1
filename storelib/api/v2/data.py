# SPDX-License-Identifier: Apache-2.0
"""``/v2/images/{id}/file``, ``stage`` and ``import``: the bytes of an image.

Bytes of a local file leave through the server's ``wsgi.file_wrapper``, which gunicorn turns into sendfile; those of
other stores in blocks of the transfer engine.
"""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import falcon

from storelib.api.db.records import Image
from storelib.api.describing import BINARY, Parameter, described, number
from storelib.api.errors import BadRequest, RangeNotSatisfiable, ResourceNotFound
from storelib.api.parsing import required_number, whole_number
from storelib.api.schemas import UUID
from storelib.api.service import ImportRequest, RemoteImage, Service, Source
from storelib.api.v2.serializers import OCTETS, body_length, read_object, require_type
from storelib.transfer.contract import MiB
from storelib.transfer.download import ImageData, ImageStream

_RANGE = re.compile(r"bytes\s*=\s*(\d*)-(\d*)\s*", re.IGNORECASE | re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes\s+(\d+)-(\d+)/(?:\d+|\*)\s*", re.IGNORECASE | re.ASCII)


_STORE = Parameter("X-Image-Meta-Store", "Id of the store that takes the data")
_SIZE = number("X-OpenStack-Image-Size", "Bytes that the data must have")


class FileResource:
    """The data of an image, as it was uploaded."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({204: None}, body=BINARY, headers=[_STORE, _SIZE], errors=(409, 410, 413, 415))
    def on_put(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Upload data into the default store, or the one that a header names."""
        source = upload_source(req)
        store = req.get_header("x-image-meta-store")
        req.context.received = self._service.data.upload(req.context.caller, image_id, source, store).size
        resp.status = falcon.HTTP_204

    @described(
        {200: BINARY, 204: None, 206: BINARY},
        query=[Parameter("prefer", "Stores to read from first, with commas between them")],
        headers=[
            Parameter("Range", "One range of bytes"),
            Parameter("If-Range", "Entity tag of the data that the range is of; everything is sent if it is another"),
        ],
        errors=(416,),
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Download the data of an image, or one range of it."""
        preferred = [name.strip() for name in req.get_param("prefer", default="").split(",") if name.strip()]
        image, found, offset = self._service.data.download(
            req.context.caller, image_id, lambda image: asked_range(req, image), preferred
        )
        send_download(req, resp, image, found, offset)


class StageResource:
    """Data that is kept until it is imported."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({204: None}, body=BINARY, headers=[_SIZE], errors=(409, 410, 413, 415))
    def on_put(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Stage data, which is kept until an import begins."""
        if "glance-direct" not in self._service.imports.methods:
            raise ResourceNotFound("data cannot be staged here")
        req.context.received = self._service.imports.staging.stage(
            req.context.caller, image_id, upload_source(req)
        ).size
        resp.status = falcon.HTTP_204


class ImportResource:
    """Data that is fetched from elsewhere."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({202: None}, body="import", headers=[_STORE], errors=(409, 413, 415))
    def on_post(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Begin an import, which goes on after the response."""
        asked = import_request(read_object(req), req.get_header("x-image-meta-store"))
        self._service.imports.start(req.context.caller, image_id, asked)
        resp.status = falcon.HTTP_202
        # Clients decode what calls itself JSON, and this has no body.
        resp.content_type = "text/plain"


def send_download(
    req: falcon.Request, resp: falcon.Response, image: Image, found: ImageData | None, offset: int | None
) -> None:
    """Respond with the bytes of an image: all, those from ``offset`` on, or nothing for an image that has none."""
    if found is None:
        resp.status = falcon.HTTP_204
        return
    if offset is not None:
        resp.status = falcon.HTTP_206
        resp.set_header("Content-Range", f"bytes {offset}-{offset + found.size - 1}/{image.size}")
    elif image.checksum:
        resp.set_header("Content-MD5", image.checksum)
    if tags := entity_tags(image):
        resp.set_header("ETag", tags[0])
    resp.set_header("Accept-Ranges", "bytes")
    send_data(req, resp, found)


def upload_source(req: falcon.Request) -> Source:
    """The body of an upload; raises UnsupportedMediaType and BadRequest."""
    require_type(req, OCTETS)
    declared = req.get_header("x-openstack-image-size")
    size = None if declared is None else required_number("x-openstack-image-size", declared)
    return Source(req.stream, body_length(req), size)


def entity_tags(image: Image) -> list[str]:
    """The entity tags of an image's data (RFC 9110, 8.8.3), the one that is sent first: its digests."""
    return [f'"{digest}"' for digest in (image.checksum, image.os_hash_value) if digest]


def asked_range(req: falcon.Request, image: Image) -> tuple[int, int] | None:
    """Offset and length that the client asks for (RFC 9110, 14.2), None for everything.

    Everything is also for clients that want a range of other data than the image has (``If-Range``, 13.1.5). Some
    clients say the range in a Content-Range header. Raises RangeNotSatisfiable, and BadRequest for several ranges.
    """
    size = image.size or 0
    header, condition = req.get_header("Range"), req.get_header("If-Range")
    if header is not None:
        # A date, or a weak tag, is none of these.
        if condition is not None and condition.strip() not in entity_tags(image):
            return None
        if "," in header:
            raise BadRequest("only one range can be asked for")
        match = _RANGE.fullmatch(header.strip())
        if match is None or match.groups() == ("", ""):
            raise RangeNotSatisfiable(f"{header!r} is not a range of bytes", size=size)
        first, last = match.groups()
        if first:
            return _clipped(_position(first), _position(last) if last else size - 1, size)
        return _clipped(max(size - _position(last), 0), size - 1, size)
    legacy = req.get_header("Content-Range")
    if legacy is None:
        return None
    match = _CONTENT_RANGE.fullmatch(legacy.strip())
    if match is None:
        raise RangeNotSatisfiable(f"{legacy!r} is not a range of bytes", size=size)
    return _clipped(_position(match[1]), _position(match[2]), size)


def _position(digits: str) -> int:
    """A place in an image; one of more digits than a number may have is behind the end of any."""
    found = whole_number(digits)
    return sys.maxsize if found is None else found


def _clipped(first: int, last: int, size: int) -> tuple[int, int]:
    if first >= size or last < first:
        raise RangeNotSatisfiable(f"the image has {size} bytes, there are none from {first} to {last}", size=size)
    return first, min(last, size - 1) - first + 1


def import_request(body: dict[str, Any], header_store: str | None) -> ImportRequest:
    """What a body asks for; raises BadRequest."""
    method = body.get("method")
    if not isinstance(method, dict) or not isinstance(method.get("name"), str):
        raise BadRequest("'method' must be an object with a 'name'")
    uri = method.get("uri")
    if method["name"] == "web-download" and not isinstance(uri, str):
        raise BadRequest("web-download needs a 'uri'")
    if uri is not None and method["name"] != "web-download":
        raise BadRequest(f"{method['name']} takes no 'uri'")
    remote = _remote_image(method) if method["name"] == "glance-download" else None
    stores = body.get("stores")
    if stores is not None and not (isinstance(stores, list) and stores and all(isinstance(s, str) for s in stores)):
        raise BadRequest("'stores' must be a list of ids of stores")
    flags = {
        name: body.get(name, default) for name, default in (("all_stores", False), ("all_stores_must_succeed", True))
    }
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise BadRequest(f"{name!r} must be true or false, not {value!r}")
    # openstacksdk says the same store in both.
    if header_store is not None and (flags["all_stores"] or stores not in (None, [header_store])):
        raise BadRequest("the header x-image-meta-store cannot be used together with other 'stores' or 'all_stores'")
    if stores and flags["all_stores"]:
        raise BadRequest("'stores' and 'all_stores' cannot be used together")
    wanted = [header_store] if header_store is not None else stores
    return ImportRequest(method["name"], uri, wanted, flags["all_stores"], flags["all_stores_must_succeed"], remote)


def _remote_image(method: dict[str, Any]) -> RemoteImage:
    for name in ("glance_region", "glance_image_id"):
        if not isinstance(method.get(name), str):
            raise BadRequest(f"glance-download needs a {name!r}")
    interface = method.get("glance_service_interface", "public")
    if not isinstance(interface, str):
        raise BadRequest("'glance_service_interface' must be a string")
    if not re.fullmatch(UUID, method["glance_image_id"]):
        raise BadRequest(f"the remote image id does not look like a UUID: {method['glance_image_id'][:80]!r}")
    if max(len(method["glance_region"]), len(interface)) > 255:
        raise BadRequest("the names of regions and interfaces have at most 255 characters")
    return RemoteImage(method["glance_region"], method["glance_image_id"], interface)


def send_data(req: falcon.Request, resp: falcon.Response, found: ImageData) -> None:
    """Respond with the bytes of an image."""
    req.context.sent = found.size
    resp.content_type = OCTETS
    resp.set_header("Content-Length", str(found.size))
    resp.stream = sendable(found.data, req.env.get("wsgi.file_wrapper"))


def sendable(stream: ImageStream, wrapper: Any) -> Any:
    """The stream in the form in which a WSGI server sends it fastest."""
    if wrapper is not None:
        try:
            stream.fileno()
        except io.UnsupportedOperation:
            pass
        else:
            return wrapper(stream, MiB)
    return _Blocks(stream)


class _Blocks:
    """A stream without ``read``: falcon would hand anything with it to the file wrapper, in 8 KiB blocks."""

    def __init__(self, stream: ImageStream) -> None:
        self._stream = stream

    def __iter__(self) -> _Blocks:
        return self

    def __next__(self) -> bytes:
        return next(self._stream)

    def close(self) -> None:
        """Free the stream, which the server does when the client is gone, too."""
        self._stream.close()

# SPDX-License-Identifier: Apache-2.0
"""``/v1/images``: the lists, and one image with its metadata in headers and its data in the body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import falcon
from oslo_utils import strutils

from storelib.api.db.records import Image
from storelib.api.db.statuses import WITH_DATA
from storelib.api.describing import BINARY, Parameter, described
from storelib.api.errors import (
    BadRequest,
    Conflict,
    Gone,
    NotPermitted,
    PreconditionFailed,
    ResourceNotFound,
    StaleImage,
)
from storelib.api.json_response import encode, send, send_encoded, within_page
from storelib.api.links import location
from storelib.api.parsing import media_type
from storelib.api.service import Context, Operation, Service, Source
from storelib.api.service.core import Core
from storelib.api.v1 import meta, query
from storelib.api.v1.meta import Meta
from storelib.api.v2.data import send_data
from storelib.api.v2.serializers import OCTETS, body_length, query_pairs

BRIEF = ("id", "name", "size", "disk_format", "container_format", "checksum")
#: The commonest of the headers that describe an image; a property is X-Image-Meta-Property-NAME.
_HEADERS = [
    Parameter("X-Image-Meta-Name", "Name of the image"),
    Parameter("X-Image-Meta-Disk-Format", "Format of the disk"),
    Parameter("X-Image-Meta-Container-Format", "Format of the container"),
    Parameter("X-Image-Meta-Is-Public", "Whether everybody may see it"),
    Parameter("X-Image-Meta-Size", "Bytes that the data must have"),
    Parameter("X-Image-Meta-Checksum", "md5 that the data must have"),
]


def brief_document(image: Image, core: Core, context: Context) -> dict[str, Any]:
    """An image in a brief list."""
    return {name: getattr(image, name) for name in BRIEF}


detailed_document = meta.document


class ListResource:
    """A list of images, each as ``document`` shows it."""

    def __init__(self, service: Service, document: Callable[[Image, Core, Context], dict[str, Any]]) -> None:
        self._service = service
        self._document = document
        self._default_limit: int = service.core.options.limit_param_default
        self._largest_limit: int = service.core.options.api_limit_max

    @described({200: "v1-images"}, query=query.PARAMETERS)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List the images that the query string asks for."""
        context = req.context.caller
        pairs = query_pairs(req)
        asked = query.parse(pairs, context, default_limit=self._default_limit, largest_limit=self._largest_limit)
        found = self._service.images.list(context, asked.query, as_user=asked.as_user).images
        # Clients go on behind the last image until there are none.
        documents = within_page(encode(self._document(image, self._service.core, context)) for image in found)
        send_encoded(resp, f'{{"images":[{",".join(documents)}]}}')


class ImagesResource(ListResource):
    """The collection: a list, and where images are made."""

    @described({201: "v1-image"}, body=BINARY, headers=_HEADERS, errors=(409, 410, 413, 415))
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Create an image, with data or without."""
        service, context = self._service, req.context.caller
        found = meta.read(req.env)
        origin = _origin(req, found, service)
        size, fields = found.fields.get("size"), found.fields
        values = meta.base_values(found, context) | meta.custom_properties(found, service.core)
        if fields.get("id") is not None:
            values["id"] = fields["id"]
        if origin.copy_from is not None:
            size = size or service.locations.check_copy(context, origin.copy_from)
        image = service.images.create(
            context,
            values,
            # Of data that is somewhere, a size of 0 says nothing.
            size=(size or None) if any(part is not None for part in origin) else size,
            checksum=fields.get("checksum"),
            location=origin.location,
        )
        image = _fill(service, req, image, origin)
        send(resp, {"image": meta.document(image, service.core, context)}, falcon.HTTP_201)
        resp.set_header("Location", location(req.env, service.core.options.public_endpoint, f"/v1/images/{image.id}"))
        _set_etag(resp, image)


class ImageResource:
    """One image: metadata in headers, data in the body."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: None})
    def on_head(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Send the metadata of an image as headers."""
        image = self._service.images.show(req.context.caller, image_id, deleted=True)
        self._set_headers(req, resp, image)
        # Clients decode what calls itself JSON.
        resp.content_type = "text/plain"

    @described({200: BINARY})
    def on_get(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Send the metadata of an image as headers, and its data."""
        image, found, _ = self._service.data.download(req.context.caller, image_id)
        if found is not None:
            send_data(req, resp, found)
        elif image.status in WITH_DATA:
            resp.data = b""
            resp.content_type = OCTETS
        else:
            raise ResourceNotFound(f"Image {image_id} is not active")
        self._set_headers(req, resp, image)

    @described({200: "v1-image"}, body=BINARY, headers=_HEADERS, errors=(409, 410, 413, 415))
    def on_put(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Change the metadata of an image, or give it data."""
        service, context = self._service, req.context.caller
        image = service.images.show(context, image_id, deleted=True)
        found = meta.read(req.env)
        origin = _origin(req, found, service)
        _check_unchangeable(image, found)
        if image.status != "queued":
            if origin.data is not None:
                raise Conflict(f"image {image_id} is {image.status}, data is taken by queued images")
            if origin.copy_from is not None or origin.location is not None:
                raise BadRequest(f"image {image_id} is {image.status}, a location is taken by queued images")
        fields = found.fields
        if origin.copy_from is not None:
            fields["size"] = fields.get("size") or service.locations.check_copy(context, origin.copy_from)
        purge = origin.data is None and strutils.bool_from_string(
            req.get_header("x-glance-registry-purge-props"), default=True
        )
        operations = _operations(image, found, service.core, context, purge=purge)
        if origin.location is not None:
            operations.append(Operation("locate", ("locations",), origin.location))
        try:
            image = service.images.update(context, image_id, operations)
        except StaleImage as error:
            raise Conflict("Image operation conflicts") from error
        image = _fill(service, req, image, origin)
        send(resp, {"image": meta.document(image, service.core, context)})
        _set_etag(resp, image)

    @described({200: None}, errors=(409,))
    def on_delete(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Delete an image and its data."""
        self._service.images.delete(req.context.caller, image_id)
        resp.content_type = "text/plain"

    def _set_headers(self, req: falcon.Request, resp: falcon.Response, image: Image) -> None:
        for name, value in meta.headers(meta.document(image, self._service.core, req.context.caller)):
            resp.set_header(name, value)
        _set_etag(resp, image)


class Origin(NamedTuple):
    """Where the data of an image comes from: one of these, or none."""

    data: Source | None
    copy_from: str | None
    location: str | None
    #: The store that data and copies go to; None is the default one.
    store: str | None


def _origin(req: falcon.Request, found: Meta, service: Service) -> Origin:
    """Where the request says that the data is; raises BadRequest."""
    length = body_length(req)
    data = None if length == 0 else Source(req.stream, length, found.fields.get("size"))
    copy_from = req.get_header("x-glance-api-copy-from")
    if copy_from is not None:
        copy_from = meta.decoded_uri(copy_from)
    location, store = found.fields.get("location"), found.fields.get("store")
    if sum(part is not None for part in (data, copy_from, location)) > 1:
        raise BadRequest("It's invalid to provide multiple image sources.")
    if data and media_type(req.content_type) != OCTETS:
        raise BadRequest(f"data is of the Content-Type {OCTETS}")
    service.core.store(store)
    return Origin(data, copy_from, location, store)


def _fill(service: Service, req: falcon.Request, image: Image, origin: Origin) -> Image:
    """Give a queued image its data, or begin to; raises what upload raises, and the image is killed."""
    context = req.context.caller
    if origin.copy_from is not None:
        service.locations.copy(context, image, origin.copy_from, origin.store)
    if origin.data is None:
        return image
    try:
        filled = service.data.upload(context, image.id, origin.data, origin.store, failed="killed")
    except Gone as error:
        raise PreconditionFailed(str(error)) from error
    req.context.received = filled.size
    return filled


def _check_unchangeable(image: Image, found: Meta) -> None:
    if image.deleted:
        raise NotPermitted(f"image {image.id} is deleted and cannot be changed")
    for name in ("id", "status"):
        if found.fields.get(name) not in (None, getattr(image, name)):
            raise NotPermitted(f"Forbidden to modify '{name}' of image.")


def _operations(image: Image, found: Meta, core: Core, context: Context, *, purge: bool) -> list[Operation]:
    """What has to be done to ``image`` to make it what the headers say; ``purge`` removes other properties."""
    values = meta.base_values(found, context, image)
    operations = [Operation("replace", (n,), value) for n, value in values.items() if getattr(image, n) != value]
    for name in ("size", "checksum"):
        value = found.fields.get(name)
        if value is not None and value != getattr(image, name):
            operations.append(Operation("expect", (name,), value))
    wanted = meta.custom_properties(found, core)
    present = meta.own_properties(image, core, context)
    operations += [
        Operation("add", (name,), value)
        for name, value in wanted.items()
        if name not in image.properties or image.properties[name] != value
    ]
    if purge:
        operations += [Operation("remove", (name,)) for name in present if name not in wanted]
    return operations


def _set_etag(resp: falcon.Response, image: Image) -> None:
    if image.checksum:
        resp.set_header("ETag", image.checksum)

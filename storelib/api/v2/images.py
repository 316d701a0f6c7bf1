# SPDX-License-Identifier: Apache-2.0
"""``/v2/images``, one image, its tags and its actions."""

from __future__ import annotations

from urllib.parse import urlencode

import falcon

from storelib.api.describing import Content, described
from storelib.api.errors import BadRequest
from storelib.api.json_response import encode, send_encoded, within_page
from storelib.api.links import location
from storelib.api.service import Service
from storelib.api.v2 import patch, query
from storelib.api.v2.documents import ImageDocuments
from storelib.api.v2.serializers import decoded, query_pairs, read_object, refuse_body, require_type


class ImagesResource:
    """The collection: a list in pages, and where images are made."""

    def __init__(self, service: Service, documents: ImageDocuments) -> None:
        self._service = service
        self._documents = documents
        self._default_limit: int = service.core.options.limit_param_default
        self._largest_limit: int = service.core.options.api_limit_max
        self._public_endpoint: str | None = service.core.options.public_endpoint

    @described({200: "images"}, query=query.PARAMETERS)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List a page of the images that the query string asks for, with a link to the next."""
        pairs = query_pairs(req)
        asked = query.parse(pairs, default_limit=self._default_limit, largest_limit=self._largest_limit)
        context = req.context.caller
        found = self._service.images.list(context, asked)
        others = urlencode([pair for pair in pairs if pair[0] != "marker"])
        links = {"first": f"/v2/images?{others}" if others else "/v2/images", "schema": "/v2/schemas/images"}
        documents = within_page(self._documents.encode(context, image) for image in found.images)
        last = found.last if len(documents) == len(found.images) else found.images[len(documents) - 1].id
        if last is not None:
            marker = urlencode({"marker": last})
            links["next"] = f"/v2/images?{others}&{marker}" if others else f"/v2/images?{marker}"
        send_encoded(resp, f'{{"images":[{",".join(documents)}],{encode(links)[1:]}')

    @described(
        {201: "image"},
        body="new-image",
        errors=(409, 413, 415),
        response_headers={
            "Location": "Where the image is",
            "OpenStack-image-import-methods": "How it may get data",
            "OpenStack-image-store-ids": "Stores that there are",
        },
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Create an image, which has no data yet."""
        service, context = self._service, req.context.caller
        image = service.images.create(context, read_object(req))
        send_encoded(resp, self._documents.encode(context, image), falcon.HTTP_201)
        resp.set_header("Location", location(req.env, self._public_endpoint, f"/v2/images/{image.id}"))
        if methods := service.imports.methods:
            resp.set_header("OpenStack-image-import-methods", ",".join(methods))
        resp.set_header("OpenStack-image-store-ids", ",".join(service.stores.ids()))


class ImageResource:
    """One image without its data."""

    def __init__(self, service: Service, documents: ImageDocuments) -> None:
        self._service = service
        self._documents = documents

    @described({200: "image"})
    def on_get(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Show all that the caller may see of an image."""
        context = req.context.caller
        send_encoded(resp, self._documents.encode(context, self._service.images.show(context, image_id)))

    @described(
        {200: "image"},
        body=[Content("patch", (patch.DRAFT_10,)), Content("old-patch", (patch.DRAFT_4,))],
        errors=(409, 413, 415),
        response_headers={"Accept-Patch": "Media types of patches"},
    )
    def on_patch(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Change an image by one of the two kinds of JSON patch."""
        context = req.context.caller
        resp.set_header("Accept-Patch", ", ".join(patch.MEDIA_TYPES))
        kind = require_type(req, *patch.MEDIA_TYPES)
        operations = patch.parse(kind, decoded(req))
        image = self._service.images.update(context, image_id, operations)
        send_encoded(resp, self._documents.encode(context, image))

    @described({204: None}, errors=(409,))
    def on_delete(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Delete an image and its data."""
        refuse_body(req)
        self._service.images.delete(req.context.caller, image_id)
        resp.status = falcon.HTTP_204


class TagResource:
    """One tag of an image."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({204: None}, errors=(409, 413))
    def on_put(self, req: falcon.Request, resp: falcon.Response, image_id: str, tag: str) -> None:
        """Tag an image; harmless when done twice."""
        refuse_body(req)
        self._service.images.add_tag(req.context.caller, image_id, named_tag(req))
        resp.status = falcon.HTTP_204

    @described({204: None}, errors=(409,))
    def on_delete(self, req: falcon.Request, resp: falcon.Response, image_id: str, tag: str) -> None:
        """Remove a tag from an image."""
        refuse_body(req)
        self._service.images.remove_tag(req.context.caller, image_id, named_tag(req))
        resp.status = falcon.HTTP_204


def named_tag(req: falcon.Request) -> str:
    """The tag that a path ends with, which may itself end with a slash; raises BadRequest."""
    _, _, quoted = req.env["PATH_INFO"].partition("/tags/")
    try:
        # PEP 3333: bytes, each as a character.
        return str(quoted.encode("latin-1").decode())
    except UnicodeDecodeError:
        raise BadRequest("the tag is not UTF-8") from None


class DeactivateResource:
    """The action that stops downloads."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({204: None})
    def on_post(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Stop downloads of an image by all but administrators."""
        refuse_body(req)
        self._service.images.deactivate(req.context.caller, image_id)
        resp.status = falcon.HTTP_204


class ReactivateResource:
    """The action that lets downloads happen again."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({204: None})
    def on_post(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Allow downloads of an image by all who may see it."""
        refuse_body(req)
        self._service.images.reactivate(req.context.caller, image_id)
        resp.status = falcon.HTTP_204

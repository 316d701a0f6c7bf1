# SPDX-License-Identifier: Apache-2.0
"""``/v1/images/{id}/members`` and ``/v1/shared-images/{member}``: the projects that an image is shared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import falcon

from storelib.api.describing import PAGE, Content, described
from storelib.api.errors import BadRequest, NotAuthenticated, NotPermitted, ResourceNotFound
from storelib.api.json_response import send
from storelib.api.parsing import page_size
from storelib.api.service import Context, Service
from storelib.api.v2.serializers import body_length, query_pairs, read_object


class MembersResource:
    """The members of an image."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: "v1-members"}, query=PAGE)
    def on_get(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """List the members of an image; not shared, it has none. ``limit`` and ``marker`` as for images."""
        service, context = self._service, req.context.caller
        shared = service.images.show(context, image_id).visibility == "shared"
        limit, marker = _page_of(req, service)
        members = service.members.list(context, image_id, limit, marker).items if shared else ()
        send(resp, {"members": [{"member_id": item.member, "can_share": item.can_share} for item in members]})

    @described({204: None}, body="v1-memberships", errors=(409, 413, 415))
    def on_put(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Share an image with exactly these projects."""
        context = req.context.caller
        memberships = read_object(req).get("memberships")
        if not isinstance(memberships, list):
            raise BadRequest("the body must have 'memberships', a list")
        wanted = dict(_membership(item) for item in memberships)
        with _refusal_hidden(context):
            self._service.members.replace(context, image_id, wanted)
        _no_content(resp)


class MemberResource:
    """One member of an image."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({204: None}, body=Content("v1-member", required=False), errors=(409, 413, 415))
    def on_put(self, req: falcon.Request, resp: falcon.Response, image_id: str, member_id: str) -> None:
        """Share an image with a project, or change whether that may share the image."""
        context = req.context.caller
        can_share = None
        if body_length(req) != 0:
            body = read_object(req).get("member")
            if not isinstance(body, dict):
                raise BadRequest("the body must have a 'member', an object")
            can_share = _can_share(body)
        with _refusal_hidden(context):
            self._service.members.put(context, image_id, member_id, can_share)
        _no_content(resp)

    @described({204: None}, errors=(409,))
    def on_delete(self, req: falcon.Request, resp: falcon.Response, image_id: str, member_id: str) -> None:
        """Stop sharing an image with a project."""
        context = req.context.caller
        with _refusal_hidden(context):
            self._service.members.remove(context, image_id, member_id)
        _no_content(resp)


class SharedImagesResource:
    """The images that are shared with a project."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: "v1-shared-images"}, query=PAGE)
    def on_get(self, req: falcon.Request, resp: falcon.Response, member_id: str) -> None:
        """List a page of the images shared with a project, by id, as far as the caller may know of them."""
        limit, marker = _page_of(req, self._service)
        found = self._service.members.shared_with(req.context.caller, member_id, limit, marker or "").items
        images = [{"image_id": image.id, "can_share": image.membership.can_share} for image in found]
        send(resp, {"shared_images": images})


def _page_of(req: falcon.Request, service: Service) -> tuple[int, str | None]:
    """How many the client asks for, all that a page may have unless it says, and behind which."""
    asked = dict(query_pairs(req))
    largest = service.core.options.api_limit_max
    return page_size(asked.get("limit"), largest, largest), asked.get("marker")


@contextmanager
def _refusal_hidden(context: Context) -> Iterator[None]:
    """v1 has 404 for callers who may not share an image."""
    if context.read_only:
        raise NotAuthenticated("sharing needs a token")
    try:
        yield
    except NotPermitted as error:
        raise ResourceNotFound(str(error)) from error


def _membership(item: Any) -> tuple[str, bool | None]:
    if not isinstance(item, dict) or not isinstance(item.get("member_id"), str):
        raise BadRequest("each of the 'memberships' must be an object with a 'member_id', the id of a project")
    return item["member_id"], _can_share(item)


def _can_share(item: dict[str, Any]) -> bool | None:
    can_share = item.get("can_share")
    if can_share is not None and not isinstance(can_share, bool):
        raise BadRequest(f"'can_share' must be true or false, not {can_share!r}")
    return can_share


def _no_content(resp: falcon.Response) -> None:
    resp.status = falcon.HTTP_204

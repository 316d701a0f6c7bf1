# SPDX-License-Identifier: Apache-2.0
"""``/v2/images/{id}/members``: the projects that an image is shared with."""

from __future__ import annotations

from urllib.parse import urlencode

import falcon

from storelib.api.describing import PAGE, described
from storelib.api.errors import BadRequest
from storelib.api.json_response import send
from storelib.api.parsing import page_size
from storelib.api.service import Service
from storelib.api.v2.serializers import member_document, query_pairs, read_object, refuse_body

_NEW = {
    "type": "object",
    "required": ["member"],
    "properties": {"member": {"type": "string", "minLength": 1, "maxLength": 255, "description": "Id of a project"}},
}
_STATUS = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"type": "string", "enum": ["pending", "accepted", "rejected"]}},
}


class MembersResource:
    """The members of an image."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: "members"}, query=PAGE)
    def on_get(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """List the members of an image that the caller may see: all that a page may have if no limit is given."""
        asked = dict(query_pairs(req))
        largest = self._service.core.options.api_limit_max
        limit = page_size(asked.get("limit"), largest, largest)
        found = self._service.members.list(req.context.caller, image_id, limit, asked.pop("marker", None))
        document = {"members": [member_document(member) for member in found.items], "schema": "/v2/schemas/members"}
        if found.more:
            following = urlencode({**asked, "marker": found.items[-1].member})
            document["next"] = f"/v2/images/{image_id}/members?{following}"
        send(resp, document)

    @described({200: "member"}, body=_NEW, errors=(409, 413, 415))
    def on_post(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Share an image with one more project."""
        body = read_object(req)
        if not isinstance(body.get("member"), str) or not body["member"]:
            raise BadRequest("the body must have a 'member', the id of a project")
        send(resp, member_document(self._service.members.add(req.context.caller, image_id, body["member"])))


class MemberResource:
    """One member of an image."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: "member"})
    def on_get(self, req: falcon.Request, resp: falcon.Response, image_id: str, member_id: str) -> None:
        """Show whether a member has accepted the image."""
        send(resp, member_document(self._service.members.show(req.context.caller, image_id, member_id)))

    @described({200: "member"}, body=_STATUS, errors=(409, 413, 415))
    def on_put(self, req: falcon.Request, resp: falcon.Response, image_id: str, member_id: str) -> None:
        """Accept or reject an image."""
        body = read_object(req)
        if "status" not in body:
            raise BadRequest("the body must have a 'status'")
        updated = self._service.members.set_status(req.context.caller, image_id, member_id, body["status"])
        send(resp, member_document(updated))

    @described({204: None}, errors=(409,))
    def on_delete(self, req: falcon.Request, resp: falcon.Response, image_id: str, member_id: str) -> None:
        """Stop sharing an image with a project."""
        refuse_body(req)
        self._service.members.remove(req.context.caller, image_id, member_id)
        resp.status = falcon.HTTP_204

# SPDX-License-Identifier: Apache-2.0
"""``/v2/preloads``: images that are distributed to nodes, what groups of nodes keep, and the bytes for nodes."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import falcon

from storelib.api.db.preload_records import Group, Preload, Progress, Totals
from storelib.api.db.rows import to_time
from storelib.api.describing import BINARY, PAGE, Parameter, choice, described
from storelib.api.errors import BadRequest
from storelib.api.json_response import send
from storelib.api.parsing import page_size
from storelib.api.service import Service
from storelib.api.service.preload.jobs import Target
from storelib.api.v2.data import asked_range, send_download
from storelib.api.v2.serializers import query_pairs, read_object, time_text

STATUSES = ["active", "cancelled", "ended"]


def add_routes(app: falcon.App, service: Service) -> None:  # type: ignore[type-arg]
    """Every path of preloads."""
    app.add_route("/v2/preloads", PreloadsResource(service))
    app.add_route("/v2/preloads/groups", GroupsResource(service))
    app.add_route("/v2/preloads/groups/{name}", GroupResource(service))
    app.add_route("/v2/preloads/sources/{ticket}/{image_id}", SourceResource(service))
    app.add_route("/v2/preloads/{preload_id}", PreloadResource(service))


class PreloadsResource:
    """The preloads that are wanted or under way."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described(
        {200: "preloads"},
        query=[
            *PAGE,
            choice("status", "Preloads with this status", STATUSES),
            Parameter("image", "Preloads of the image with this id"),
            Parameter("group", "Preloads for this group"),
        ],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List a page of the preloads, the latest first, with a link to the next."""
        options = self._service.core.options
        asked = dict(query_pairs(req))
        limit = page_size(asked.get("limit"), options.limit_param_default, options.api_limit_max)
        if (status := asked.get("status")) is not None and status not in STATUSES:
            raise BadRequest(f"status must be one of {', '.join(STATUSES)}")
        filters = {"status": status, "image_id": asked.get("image"), "group": asked.get("group")}
        found, totals, more = self._service.preload.jobs.list(
            req.context.caller, limit, asked.pop("marker", None), **filters
        )
        none = Totals({}, 0, 0, 0)
        documents = [preload_document(each, totals.get(each.id, none)) for each in found]
        document: dict[str, Any] = {"preloads": documents}
        if more:
            document["next"] = f"/v2/preloads?{urlencode({**asked, 'marker': found[-1].id if found else ''})}"
        send(resp, document)

    @described({201: "new-preloads"}, body="new-preload")
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Have images on nodes, fetched after the response. The body may be as Nova's: of all nodes then."""
        body = read_object(req)
        jobs = self._service.preload.jobs
        pinned = body.get("pinned", False)
        if not isinstance(pinned, bool):
            raise BadRequest("'pinned' must be true or false")
        found = jobs.add(req.context.caller, _images(body), _target(body), pinned=pinned)
        none = Totals({}, 0, 0, 0)
        send(resp, {"preloads": [preload_document(each, none) for each in found]}, falcon.HTTP_201)


class PreloadResource:
    """One preload, by its id."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: "preload"}, query=PAGE)
    def on_get(self, req: falcon.Request, resp: falcon.Response, preload_id: str) -> None:
        """Show a preload with one page of its nodes, in the order of their names, and a link to the next."""
        options = self._service.core.options
        asked = dict(query_pairs(req))
        limit = page_size(asked.get("limit"), options.api_limit_max, options.api_limit_max)
        preload, totals, nodes, more = self._service.preload.jobs.show(
            req.context.caller, preload_id, limit, asked.pop("marker", None)
        )
        document = preload_document(preload, totals)
        document["states"] = [progress_document(each) for each in nodes]
        if more:
            last = nodes[-1].node_id if nodes else ""
            document["next"] = f"/v2/preloads/{preload_id}?{urlencode({**asked, 'marker': last})}"
        send(resp, document)

    @described({204: None}, errors=(409,))
    def on_delete(self, req: falcon.Request, resp: falcon.Response, preload_id: str) -> None:
        """Cancel a preload that is not done."""
        self._service.preload.jobs.cancel(req.context.caller, preload_id)
        resp.status = falcon.HTTP_204


class GroupsResource:
    """The groups of nodes that have a rule."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: "node-groups"})
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List the groups of nodes that have a rule."""
        found = self._service.preload.jobs.groups(req.context.caller)
        send(resp, {"groups": [group_document(each) for each in found]})


class GroupResource:
    """The rule of a group: which images its nodes keep and may have."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: "node-group"})
    def on_get(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """Show the rule of a group."""
        send(resp, group_document(self._service.preload.jobs.group(req.context.caller, name)))

    @described({200: "node-group"}, body="new-node-group")
    def on_put(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """Set the rule of a group, in place of the one before."""
        found = self._service.preload.jobs.put_group(req.context.caller, name, read_object(req))
        send(resp, group_document(found))

    @described({204: None})
    def on_delete(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """Remove the rule of a group."""
        self._service.preload.jobs.remove_group(req.context.caller, name)
        resp.status = falcon.HTTP_204


class SourceResource:
    """The data of an image, for a node with a ticket."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: BINARY, 206: BINARY, 302: None}, headers=[Parameter("Range", "One range of bytes")], errors=(416,))
    def on_get(self, req: falcon.Request, resp: falcon.Response, ticket: str, image_id: str) -> None:
        """Send the data of an image, or one range of it, or redirect to its store."""
        found = self._service.preload.agents.source(ticket, image_id, lambda image: asked_range(req, image))
        if isinstance(found, str):
            resp.status = falcon.HTTP_302
            resp.location = found
            resp.set_header("Cache-Control", "no-store")
            return
        send_download(req, resp, *found)


def preload_document(preload: Preload, totals: Totals) -> dict[str, Any]:
    """A preload, and how far its nodes are together; sizes are in bytes."""
    return {
        "id": preload.id,
        "image": preload.image_id,
        "group": preload.group,
        "all": preload.everyone,
        "pinned": preload.pinned,
        "origin": preload.origin,
        "status": preload.status,
        "project_id": preload.project_id,
        "created_at": time_text(to_time(preload.created_at)),
        "ended_at": None if preload.ended_at is None else time_text(to_time(preload.ended_at)),
        "nodes": dict(totals.nodes),
        "done": totals.done,
        "from_source": totals.from_source,
        "from_peers": totals.from_peers,
    }


def progress_document(progress: Progress) -> dict[str, Any]:
    """How far one node is; sizes are in bytes."""
    return {
        "node_id": progress.node_id,
        "node": progress.node,
        "state": progress.state,
        "done": progress.done,
        "from_source": progress.from_source,
        "from_peers": progress.from_peers,
        "reason": progress.reason,
        "moved_at": time_text(to_time(progress.moved_at)),
    }


def group_document(group: Group) -> dict[str, Any]:
    """The rule of a group as a document."""
    return {
        "name": group.name,
        "images": list(group.images),
        "properties": dict(group.properties),
        "visibility": list(group.visibility),
        "projects": list(group.projects),
    }


def _images(body: dict[str, Any]) -> list[str]:
    """The ids of the images that a body names, in Nova's way or in ours; raises BadRequest."""
    if ("cache" in body) is ("images" in body):
        raise BadRequest("the body needs 'images', a list of ids, or 'cache', a list of objects with an 'id'")
    if "images" in body:
        found = body["images"]
    else:
        found = body["cache"]
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise BadRequest("'cache' must be a list of objects with an 'id'")
        found = [each.get("id") for each in found]
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise BadRequest("images are named by their ids")
    return found


def _target(body: dict[str, Any]) -> Target:
    """The nodes that a body is about: all where it is as Nova's and says nothing of that; raises BadRequest."""
    group, nodes, everyone = body.get("group"), body.get("nodes", []), body.get("all", False)
    if not (group is None or isinstance(group, str)) or not isinstance(everyone, bool):
        raise BadRequest("'group' must be a string, 'all' true or false")
    if not isinstance(nodes, list) or not all(isinstance(each, str) for each in nodes):
        raise BadRequest("'nodes' must be a list of names or ids")
    if "cache" in body and group is None and not nodes:
        everyone = True
    return Target(group, nodes, everyone)

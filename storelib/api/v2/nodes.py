# SPDX-License-Identifier: Apache-2.0
"""``/v2/nodes``: what nodes ask for, with secrets of their own, and what administrators see of them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import falcon

from storelib.api.db.preload_records import Node
from storelib.api.db.rows import to_time
from storelib.api.describing import PAGE, Content, Parameter, described
from storelib.api.json_response import send
from storelib.api.parsing import page_size
from storelib.api.service import Service
from storelib.api.v2.serializers import query_pairs, read_object, time_text

#: The header with a node's secret.
SECRET = "X-Node-Secret"  # noqa: S105
TORRENT = "application/x-bittorrent"
#: Values in a heartbeat: thousands of images on disk, and ten for each of a thousand jobs.
MOST_VALUES = 20_000
_SECRET = Parameter(SECRET, "The secret of the node, which it may choose when it registers")


def add_routes(app: falcon.App, service: Service) -> None:  # type: ignore[type-arg]
    """Every path of nodes."""
    app.add_route("/v2/nodes", NodesResource(service))
    app.add_route("/v2/nodes/enrolments", EnrolmentsResource(service))
    app.add_route("/v2/nodes/{node_id}", NodeResource(service))
    app.add_route("/v2/nodes/{node_id}/drain", DrainResource(service))
    app.add_route("/v2/nodes/{node_id}/heartbeat", HeartbeatResource(service))
    app.add_route("/v2/nodes/{node_id}/preloads/{preload_id}/torrent", TorrentResource(service))


class NodesResource:
    """The nodes that have registered."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: "nodes"}, query=[*PAGE, Parameter("group", "Nodes of this group")])
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List a page of the nodes, in the order of their names, with a link to the next."""
        options = self._service.core.options
        asked = dict(query_pairs(req))
        limit = page_size(asked.get("limit"), options.limit_param_default, options.api_limit_max)
        found, more = self._service.preload.jobs.nodes(
            req.context.caller, limit, asked.pop("marker", None), asked.get("group")
        )
        document: dict[str, Any] = {"nodes": [node_document(node) for node in found]}
        if more:
            document["next"] = f"/v2/nodes?{urlencode({**asked, 'marker': found[-1].id if found else ''})}"
        send(resp, document)

    @described({201: "registered-node", 200: "registered-node"}, body="new-node", headers=[_SECRET], errors=(409,))
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Register a node with a token, or as a service; with its secret, change it."""
        agents = self._service.preload.agents
        made = agents.register(req.context.caller, read_object(req), req.get_header(SECRET))
        document = {
            "id": made.node.id,
            "name": made.node.name,
            "group": made.node.group,
            "secret": made.secret,
            "interval": made.interval,
        }
        send(resp, document, falcon.HTTP_201 if made.is_new else falcon.HTTP_200)
        resp.set_header("Cache-Control", "no-store")


class EnrolmentsResource:
    """Tokens with which nodes register."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({201: "enrolment"}, body="new-enrolment")
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Make a token with which nodes register; it is shown this once."""
        body = read_object(req)
        made = self._service.preload.jobs.enrol(
            req.context.caller, body.get("group"), body.get("expires_in", 3600), body.get("uses", 1)
        )
        expires = time_text(to_time(made.expires_at))
        document = {"token": made.token, "group": made.group, "uses": made.uses, "expires_at": expires}
        send(resp, document, falcon.HTTP_201)
        resp.set_header("Cache-Control", "no-store")


class NodeResource:
    """One node, by its id."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: "node"})
    def on_get(self, req: falcon.Request, resp: falcon.Response, node_id: str) -> None:
        """Show a node to an administrator."""
        send(resp, node_document(self._service.preload.jobs.node(req.context.caller, node_id)))

    @described({204: None})
    def on_delete(self, req: falcon.Request, resp: falcon.Response, node_id: str) -> None:
        """Remove a node, and its secret."""
        self._service.preload.jobs.remove(req.context.caller, node_id)
        resp.status = falcon.HTTP_204


class DrainResource:
    """Whether a node fetches what is new."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({204: None})
    def on_post(self, req: falcon.Request, resp: falcon.Response, node_id: str) -> None:
        """Have a node fetch nothing new."""
        self._service.preload.jobs.drain(req.context.caller, node_id, draining=True)
        resp.status = falcon.HTTP_204

    @described({204: None})
    def on_delete(self, req: falcon.Request, resp: falcon.Response, node_id: str) -> None:
        """Have a node that was drained fetch images again."""
        self._service.preload.jobs.drain(req.context.caller, node_id, draining=False)
        resp.status = falcon.HTTP_204


class HeartbeatResource:
    """What a node reports now and then."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: "heartbeat-response"}, body="heartbeat", headers=[_SECRET], errors=(413, 429))
    def on_post(self, req: falcon.Request, resp: falcon.Response, node_id: str) -> None:
        """Note how far a node is, and tell it which images to have, and from where."""
        agents = self._service.preload.agents
        send(resp, agents.heartbeat(node_id, req.get_header(SECRET), read_object(req, MOST_VALUES)))
        resp.set_header("Cache-Control", "no-store")


class TorrentResource:
    """The description of an image by which nodes exchange it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: Content({}, (TORRENT,))}, headers=[_SECRET])
    def on_get(self, req: falcon.Request, resp: falcon.Response, node_id: str, preload_id: str) -> None:
        """Send the torrent of an image to a node that is to have it."""
        resp.data = self._service.preload.agents.torrent(node_id, req.get_header(SECRET), preload_id)
        resp.content_type = TORRENT


def node_document(node: Node) -> dict[str, Any]:
    """A node as administrators see it; sizes are in bytes, by how much its clock is ahead in seconds."""
    return {
        "id": node.id,
        "name": node.name,
        "group": node.group,
        "address": node.address,
        "port": node.port,
        "version": node.version,
        "free": node.free,
        "used": node.used,
        "budget": node.budget,
        "clock_ahead": None if node.skew is None else node.skew / 1_000_000,
        "draining": node.draining,
        "created_at": time_text(to_time(node.created_at)),
        "seen_at": time_text(to_time(node.seen_at)) if node.seen_at else None,
    }

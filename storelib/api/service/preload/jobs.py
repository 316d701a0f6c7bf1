# SPDX-License-Identifier: Apache-2.0
"""Jobs: what administrators and services ask for. Which images which nodes are to have, and which nodes there are."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from storelib.api.context import Context
from storelib.api.db.preload_records import Group, NewPreload, Node, Preload, Progress, Totals
from storelib.api.db.records import Image
from storelib.api.db.rows import now
from storelib.api.errors import ApiError, BadRequest, Conflict, ResourceNotFound
from storelib.api.service.core import LOG, Core
from storelib.api.service.preload import node_requests, plan, secrets
from storelib.api.service.preload.authority import Authorities

#: Images, and nodes by name, of one request.
MOST_IMAGES, MOST_NODES = 100, 1000
#: Seconds for which a token may be valid, and nodes that it may be for.
LONGEST_TOKEN, MOST_USES = 30 * 86400, 100_000
#: Images that a group keeps by name, and the properties that all others that it keeps have.
MOST_OF_GROUP, MOST_PROPERTIES = 500, 16
_VISIBILITY = ("public", "community", "shared", "private")


class Target(NamedTuple):
    """Which nodes: those of a group, all, or those of these names or ids."""

    group: str | None = None
    nodes: Sequence[str] = ()
    everyone: bool = False


class Token(NamedTuple):
    """A token to enrol with, which is told once. ``expires_at`` is in microseconds since 1970."""

    token: str
    group: str
    uses: int
    expires_at: int

    def __repr__(self) -> str:
        return f"Token(group={self.group!r})"


class Jobs:
    """The side of the API that administrators see."""

    def __init__(self, core: Core, limits: plan.Limits, authorities: Authorities) -> None:
        self._core = core
        self._limits = limits
        self._authorities = authorities
        #: Called with what is new to do: images whose pieces are to be known.
        self.on_new: Callable[[Context, Sequence[str]], None] = lambda context, image_ids: None
        #: Called when nodes should ask at once.
        self.wake: Callable[[], None] = lambda: None
        #: Called when it should be seen at once what groups keep.
        self.tend: Callable[[], object] = lambda: None

    # -- nodes --------------------------------------------------------------------------------------------------------

    def enrol(self, context: Context, group: Any, expires_in: Any = 3600, uses: Any = 1) -> Token:
        """A token with which so many nodes register in a group; ``expires_in`` is in seconds."""
        self._core.policy.require(context, "preload_enrol", {})
        group = node_requests.name("'group'", group)
        for what, value, most in (("expires_in", expires_in, LONGEST_TOKEN), ("uses", uses, MOST_USES)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise BadRequest(f"{what!r} must be a whole number from 1 to {most}")
        token, expires_at = secrets.new(), now() + expires_in * plan.SECOND
        self._core.repository.nodes.enrol(secrets.digest(token), group, uses, expires_at)
        return Token(token, group, uses, expires_at)

    def nodes(
        self, context: Context, limit: int, marker: str | None = None, group: str | None = None
    ) -> tuple[Sequence[Node], bool]:
        """One page of the nodes in the order of their names, and whether there are more."""
        self._core.policy.require(context, "get_nodes", {})
        return _page(self._core.repository.nodes.list(limit + 1, marker, group), limit)

    def node(self, context: Context, node_id: str) -> Node:
        """A node by its id; raises ResourceNotFound."""
        self._core.policy.require(context, "get_nodes", {})
        return self._core.repository.nodes.get(node_id)

    def drain(self, context: Context, node_id: str, *, draining: bool) -> None:
        """Have a node fetch nothing new, or go on again."""
        self._core.policy.require(context, "modify_node", {})
        node = self._core.repository.nodes.change(node_id, draining=draining)
        self._core.notify.preload("node.drain" if draining else "node.undrain", {"id": node.id, "name": node.name})
        self.wake()

    def remove(self, context: Context, node_id: str) -> None:
        """Forget a node, whose secret is worth nothing from then on."""
        self._core.policy.require(context, "modify_node", {})
        node = self._core.repository.nodes.get(node_id)
        self._core.repository.nodes.remove(node_id)
        LOG.info("node %s was removed", node.name)
        self._core.notify.preload("node.delete", {"id": node.id, "name": node.name})

    # -- preloads -----------------------------------------------------------------------------------------------------

    def add(
        self, context: Context, image_ids: Sequence[str], target: Target, *, pinned: bool = False
    ) -> Sequence[Preload]:
        """Have images on nodes, one preload for each image, whose work goes on after the response.

        Raises BadRequest (no images or nodes; an image that is not active or has no digest), ImageNotFound,
        NotPermitted.
        """
        self._core.policy.require(context, "add_preload", {})
        if not 1 <= len(image_ids) <= MOST_IMAGES:
            raise BadRequest(f"there must be 1 to {MOST_IMAGES} images")
        if [bool(target.group), bool(target.nodes), target.everyone].count(True) != 1:
            raise BadRequest("there must be one of 'group', 'nodes' and 'all'")
        images = [
            self._core.get_authorized(context, image_id, "download_image") for image_id in dict.fromkeys(image_ids)
        ]
        for image in images:
            _check_image(image)
        nodes = self._named(target.nodes)
        if target.group:
            node_requests.name("'group'", target.group)
        made = self.make(context, [image.id for image in images], target._replace(nodes=nodes), pinned=pinned)
        return made

    def make(
        self, context: Context, image_ids: Iterable[str], target: Target, *, pinned: bool, origin: str = "request"
    ) -> Sequence[Preload]:
        """``add`` for images and nodes that were checked."""
        new = []
        for image_id in image_ids:
            preload_id = str(uuid.uuid4())
            authority = self._authorities.make(preload_id)
            new.append(
                NewPreload(
                    preload_id,
                    image_id,
                    target.group,
                    target.everyone,
                    target.nodes,
                    pinned,
                    origin,
                    context.project_id,
                    authority.certificate,
                    authority.sealed_key,
                )
            )
        made = self._core.repository.preloads.add(new, plan.places_for(self._limits))
        for preload in made:
            self._core.notify.preload("create", payload(preload))
        try:
            self.on_new(context, [each.image_id for each in new])
        except ApiError as error:
            # The preloads are there, and one of their images is gone, say. Maintenance looks for all others again.
            LOG.info("the digests of pieces are computed later: %s", error)
        self.wake()
        return made

    def list(
        self, context: Context, limit: int, marker: str | None = None, **filters: str | None
    ) -> tuple[Sequence[Preload], Mapping[str, Totals], bool]:
        """One page of preloads, the latest first, how far the nodes of each are, and whether there are more."""
        self._core.policy.require(context, "get_preloads", {})
        found, more = _page(self._core.repository.preloads.list(limit + 1, marker, **filters), limit)
        totals = self._core.repository.preloads.totals([each.id for each in found]) if found else {}
        return found, totals, more

    def show(
        self, context: Context, preload_id: str, limit: int, marker: str | None = None
    ) -> tuple[Preload, Totals, Sequence[Progress], bool]:
        """A preload, how far its nodes are together, a page of how far each is, and whether there are more."""
        self._core.policy.require(context, "get_preloads", {})
        preload = self._core.repository.preloads.get(preload_id)
        totals = self._core.repository.preloads.totals([preload_id]).get(preload_id, Totals({}, 0, 0, 0))
        progress, more = _page(self._core.repository.preloads.progress(preload_id, limit + 1, marker), limit)
        if preload.status == "active" and (why := self._core.repository.pieces.failure(preload.image_id)) is not None:
            # Nodes do not know what they wait for.
            progress = [each if each.reason else each._replace(reason=_without_pieces(each, why)) for each in progress]
        return preload, totals, progress, more

    def cancel(self, context: Context, preload_id: str) -> None:
        """End a preload; what nodes have of it that is not ready goes. Raises Conflict if it is over."""
        self._core.policy.require(context, "delete_preload", {})
        preload = self._core.repository.preloads.get(preload_id)
        if preload.origin == "rule":
            # It would come again at once.
            raise Conflict(f"the group {preload.group} keeps this image; change the rule of the group")
        if not self._core.repository.preloads.end([preload_id], "cancelled"):
            raise Conflict(f"preload {preload_id} is over")
        self._core.notify.preload("delete", payload(preload))
        self.wake()

    # -- groups -------------------------------------------------------------------------------------------------------

    def groups(self, context: Context) -> Sequence[Group]:
        """All groups of which something is said."""
        self._core.policy.require(context, "preload_groups", {})
        return self._core.repository.nodes.groups()

    def group(self, context: Context, name: str) -> Group:
        """The rule of a group."""
        self._core.policy.require(context, "preload_groups", {})
        return self._core.repository.nodes.group(name)

    def put_group(self, context: Context, name: str, document: Mapping[str, Any]) -> Group:
        """Say which images the nodes of a group keep and may have; raises BadRequest."""
        self._core.policy.require(context, "preload_groups", {})
        group = _group(node_requests.name("the name of a group", name), document)
        self._core.repository.nodes.put_group(group)
        self._core.notify.preload("group.update", {"name": name})
        self.tend()
        return group

    def remove_group(self, context: Context, name: str) -> None:
        """Say nothing of it any more. Its nodes stay, and keep nothing for it."""
        self._core.policy.require(context, "preload_groups", {})
        self._core.repository.nodes.remove_group(name)
        self._core.notify.preload("group.delete", {"name": name})
        self.tend()

    def _named(self, names: Sequence[str]) -> Sequence[str]:
        """The ids of nodes by their names or ids; raises ResourceNotFound."""
        if not names:
            return []
        if len(names) > MOST_NODES:
            raise BadRequest(f"at most {MOST_NODES} nodes can be named; use a group")
        wanted = [node_requests.name("the name of a node", name) for name in names]
        found = self._core.repository.nodes.by_names(wanted)
        # A node chooses its name, which may be the id of another one.
        known = {node.name: node.id for node in found} | {node.id: node.id for node in found}
        for name in wanted:
            if name not in known:
                raise ResourceNotFound(f"there is no node {name}")
        return list(dict.fromkeys(known[name] for name in wanted))


def payload(preload: Preload) -> dict[str, Any]:
    """A preload as notifications tell it."""
    return {"id": preload.id, "image": preload.image_id, "group": preload.group, "all": preload.everyone}


def _without_pieces(progress: Progress, why: str) -> str | None:
    return f"the digests of its parts cannot be computed: {why}" if progress.state == "queued" else None


def _check_image(image: Image) -> None:
    if image.status != "active":
        raise BadRequest(f"only active images can be distributed, image {image.id} is {image.status}")
    if not image.os_hash_value or image.size is None:
        raise BadRequest(f"image {image.id} has no digest (yet), by which nodes would verify it")


def _group(name: str, document: Mapping[str, Any]) -> Group:
    unknown = document.keys() - {"images", "properties", "visibility", "projects"}
    if unknown:
        raise BadRequest(f"a group has no {', '.join(sorted(unknown))[:80]}")
    images = _texts(document, "images", MOST_OF_GROUP, 36)
    properties = document.get("properties", {})
    if not isinstance(properties, dict) or len(properties) > MOST_PROPERTIES:
        raise BadRequest(f"'properties' must be an object of at most {MOST_PROPERTIES} strings")
    for key, value in properties.items():
        # The index of values knows their beginnings.
        if not isinstance(value, str) or not 0 < len(key) <= 255 or len(value) > 255 or "\0" in key + value:
            raise BadRequest("'properties' must have names and values of at most 255 characters")
    visibility = _texts(document, "visibility", len(_VISIBILITY), 32)
    if not set(visibility) <= set(_VISIBILITY):
        raise BadRequest(f"'visibility' may have {', '.join(_VISIBILITY)}")
    return Group(name, images, properties, visibility, _texts(document, "projects", MOST_OF_GROUP, 255))


def _texts(document: Mapping[str, Any], key: str, most: int, longest: int) -> list[str]:
    found = document.get(key, [])
    if not isinstance(found, list) or len(found) > most:
        raise BadRequest(f"{key!r} must be a list of at most {most} strings")
    for each in found:
        if not isinstance(each, str) or not 0 < len(each) <= longest or "\0" in each:
            raise BadRequest(f"{key!r} must have strings of at most {longest} characters")
    return list(dict.fromkeys(found))


def _page(found: Sequence[Any], limit: int) -> tuple[Any, bool]:
    return found[:limit], len(found) > limit

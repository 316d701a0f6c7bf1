# SPDX-License-Identifier: Apache-2.0
"""Agents: what nodes ask for. They register, tell how far they are, and are told what to fetch from where."""

from __future__ import annotations

import datetime
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from storelib.api.context import Context, administrator
from storelib.api.db.preload_records import Change, Claim, Known, Node, Place, Work
from storelib.api.db.records import Image
from storelib.api.db.rows import now
from storelib.api.errors import (
    AlreadyExists,
    BadRequest,
    NotAuthenticated,
    ResourceNotFound,
    TooManyRequests,
    Unavailable,
)
from storelib.api.service.core import LOG, Core
from storelib.api.service.data import Data, Download
from storelib.api.service.preload import access, node_requests, plan, secrets
from storelib.api.service.preload.authority import Authorities, Authority
from storelib.api.service.preload.redirects import Redirects
from storelib.api.service.preload.swarms import Swarms
from storelib.preload import torrent
from storelib.preload.pieces import Pieces

#: Certificates that are made for one heartbeat; a node asks for the others with the next one.
MOST_CERTIFICATES = 16


class Registered(NamedTuple):
    """A node that may send heartbeats from now on. ``is_new``: it was not known before."""

    node: Node
    secret: str
    interval: float
    is_new: bool

    def __repr__(self) -> str:
        return f"Registered({self.node.name!r})"


class Agents:
    """The side of the API that nodes see."""

    def __init__(self, core: Core, data: Data, limits: plan.Limits, authorities: Authorities, swarms: Swarms) -> None:
        self._core = core
        self._data = data
        self._limits = limits
        self._authorities = authorities
        self._swarms = swarms
        self._options = core.options.preload
        self._redirects = Redirects(core)
        # Who gets which place, or is told of whom, is no secret.
        self._chance = random.Random()  # noqa: S311

    def register(self, context: Context, document: Mapping[str, Any], secret: str | None) -> Registered:
        """Make a node known, or change one whose secret this is.

        A node that chooses its secret itself may ask again when no response came, and is the same node.

        Raises NotAuthenticated (a token that is not valid, or nothing that says who asks), NotPermitted, BadRequest,
        and AlreadyExists for the name of another node.
        """
        name = node_requests.name("'name'", document.get("name"))
        token, group = document.get("token"), document.get("group") or ""
        if token is not None and not isinstance(token, str):
            raise BadRequest("'token' must be a string")
        group = group if group == "" else node_requests.name("'group'", group)
        port, version = node_requests.port(document.get("port")), node_requests.version(document.get("version", ""))
        address = node_requests.address(document.get("address"))
        values = {"address": address, "port": port, "version": version}
        if secret is not None and (known := self._core.repository.nodes.named(name)) is not None:
            return self._renew(known, secret, group, values)
        if token is None:
            if not context.roles and not context.service_roles:
                raise NotAuthenticated("a node needs a token to enrol with, or a user of its own")
            self._core.policy.require(context, "node_register", {})
            if not group:
                raise BadRequest("'group' must be the name of a group")
        elif len(token) > secrets.LONGEST:
            raise NotAuthenticated("the token to enrol with is not valid, or not any more")
        new, moment = secrets.new() if secret is None else node_requests.secret(secret), now()
        node = Node(str(uuid.uuid4()), name, group, address, port, version, None, None, None, None, False, moment, 0)
        digest = None if token is None else secrets.digest(token)
        try:
            node = self._core.repository.nodes.add(node, secrets.digest(new), digest)
        except AlreadyExists:
            # Its own request before this one, which took so long that no response came.
            if secret is None or (known := self._core.repository.nodes.named(name)) is None:
                raise
            return self._renew(known, secret, group, values)
        LOG.info("node %s registered in group %s", node.name, node.group)
        self._core.notify.preload("node.create", {"id": node.id, "name": node.name, "group": node.group})
        return Registered(node, new, self._interval(busy=True), True)

    def _renew(self, known: Known, secret: str, group: str, values: Mapping[str, Any]) -> Registered:
        if not secrets.is_secret(secret, known.secret_digest):
            raise AlreadyExists(f"there is a node {known.node.name!r} already")
        if group and group != known.node.group:
            raise BadRequest(f"the node is in another group than {group}; remove it and enrol it again")
        node = self._core.repository.nodes.change(known.node.id, **values)
        return Registered(node, secret, self._interval(busy=True), False)

    def heartbeat(self, node_id: str, secret: str | None, document: Mapping[str, Any]) -> dict[str, Any]:
        """Take note of what a node says; returns what it is told.

        Raises NotAuthenticated for strangers, whether there is such a node or not; TooManyRequests, BadRequest.
        """
        known = self._authenticated(node_id, secret)
        moment, gap = now(), plan.gap(self._limits)
        if plan.is_too_soon(known.node.seen_at, moment, gap):
            raise TooManyRequests("this node sends heartbeats too fast", retry_after=gap / plan.SECOND)
        said = node_requests.heartbeat(document, moment)
        node = known.node._replace(address=said.beat.address, port=said.beat.port)
        refused = self._refused(known)
        changes, work = self._changes(known.work, said, refused, moment)
        allowed = [each for each in work if _is_given(each, refused)]
        over = self._over(node, known.places, allowed, moment)
        there = [place for place in known.places if place.node_id != node.id or place.preload_id not in over]
        going_on = [each for each in allowed if each.preload_id not in over]
        claims = self._claims(node, there, going_on, str(secret), moment)
        places = self._core.repository.preloads.beat(node.id, said.beat, gap, changes, claims)
        if over:
            self._core.repository.preloads.release(node.id, sorted(over))
        self._after(node, known, work, changes, said)
        held = {place.preload_id: place for place in places}
        certificates = self._certificates(node, allowed, said)
        jobs = [
            self._job(node, each, held.get(each.preload_id), str(secret), certificates.get(each.preload_id))
            for each in allowed
        ]
        return {
            "interval": self._interval(busy=plan.is_busy(allowed)),
            "time": now() / plan.SECOND,
            "jobs": jobs,
            "drop": self._drop(known, work, said.holds),
            "draining": node.draining,
        }

    def torrent(self, node_id: str, secret: str | None, preload_id: str) -> bytes:
        """The torrent of a preload of a node; raises NotAuthenticated, and ResourceNotFound if it has none (yet)."""
        known = self._authenticated(node_id, secret)
        refused = self._refused(known)
        for each in known.work:
            if each.preload_id == preload_id and each.has_pieces and _is_given(each, refused):
                found = self._core.repository.pieces.get(each.image.id)
                if found is not None and found[0] == each.image.size and found[0]:
                    return torrent.torrent(each.image.id, Pieces(*found), each.authority)
        raise ResourceNotFound(f"there is no torrent of a preload {preload_id} for this node")

    def source(self, ticket: str, image_id: str, part: Callable[[Image], tuple[int, int] | None]) -> Download | str:
        """The bytes of an image for the node with this ticket, or a part of them, or the URL that has them.

        Raises ResourceNotFound for a ticket that is not valid, and what a download raises.
        """
        found = None
        if len(ticket) <= secrets.LONGEST:
            found = self._core.repository.preloads.ticket(secrets.digest(ticket))
        if found is None or found[1] != image_id:
            raise ResourceNotFound("there is nothing to read with this ticket, or not any more")
        return self._redirects.url(ticket, image_id) or self._data.for_node(administrator(), image_id, part)

    # -- below --------------------------------------------------------------------------------------------------------

    def _authenticated(self, node_id: str, secret: str | None) -> Known:
        known = self._core.repository.nodes.known(node_id) if len(node_id) <= 36 and "\0" not in node_id else None
        # In the same time for nodes that do not exist.
        valid = secrets.is_secret(secret, known.secret_digest if known else secrets.digest(""))
        if known is None or not valid:
            raise NotAuthenticated("this is no node with this secret")
        return known

    def _interval(self, *, busy: bool) -> float:
        return plan.interval(self._limits, self._swarms.nodes(), busy=busy)

    def _changes(
        self, work: Sequence[Work], said: node_requests.Heartbeat, refused: Mapping[str, str], moment: int
    ) -> tuple[list[Change], list[Work]]:
        """What is to be noted, and the work as it is then. What a node says of the work of others is nothing, and of
        what it may not have, and is not told of, neither: it would be thought to have it, or to get it soon.
        """
        changes, after = [], []
        for each in work:
            of_this = said.states.get(each.preload_id)
            if (why := refused.get(each.preload_id)) is not None:
                of_this = node_requests.refused(why)
            change = None if of_this is None else node_requests.changed(each, of_this, moment)
            if change is not None:
                changes.append(change)
                each = each._replace(**change._asdict())
            after.append(each)
        return changes, after

    def _refused(self, known: Known) -> dict[str, str]:
        """Why a node may not have images, by its preloads of them."""
        context = access.context_of(known.node)
        found = {
            each.preload_id: access.why_not(self._core, context, known.node, known.group, each.image)
            for each in known.work
        }
        return {preload_id: why for preload_id, why in found.items() if why is not None}

    def _over(self, node: Node, there: Sequence[Place], work: Sequence[Work], moment: int) -> set[str]:
        """The preloads of which a node gives its place back: it reads nothing more of them, or comes no further."""
        reading = {each.preload_id: each for each in work if each.state not in ("ready", "failed")}
        return {
            place.preload_id
            for place in there
            if place.node_id == node.id
            and (place.preload_id not in reading or plan.has_stalled(reading[place.preload_id], place, moment))
        }

    def _claims(
        self, node: Node, there: Sequence[Place], work: Sequence[Work], secret: str, moment: int
    ) -> list[Claim]:
        wanted = []
        for each in work:
            # A node that reads reads to the end.
            holds = any(
                place.preload_id == each.preload_id and place.node_id == node.id and place.expires_at >= moment
                for place in there
            )
            complete = 0
            if not holds and node.port and each.state not in ("ready", "failed"):
                complete = plan.seeds(self._swarms.peers(each.preload_id), node.id)
            if plan.wants_source(node, each, complete, moment):
                wanted.append(each.preload_id)
        found = []
        expires = plan.expiry(self._limits, self._swarms.nodes(), moment) if wanted else 0
        for place in plan.places(self._limits, node, wanted, there, moment, self._chance):
            mine = place.node_id == node.id and place.expires_at >= moment
            granted = place.granted_at if mine else moment
            ticket = secrets.ticket(secret, place.preload_id, place.place, granted)
            found.append(Claim(place, granted, expires, secrets.digest(ticket)))
        return found

    def _after(
        self,
        node: Node,
        known: Known,
        work: Sequence[Work],
        changes: Sequence[Change],
        said: node_requests.Heartbeat,
    ) -> None:
        """What else follows from a heartbeat."""
        images = {each.preload_id: each.image.id for each in work}
        before = {each.preload_id: each.state for each in known.work}
        for change in changes:
            if change.state in ("ready", "failed") and before[change.preload_id] != change.state:
                told = {"preload": change.preload_id, "image": images[change.preload_id], "node": node.name}
                self._core.notify.preload(change.state, {**told, "reason": change.reason})
        for preload_id in sorted(said.bad_peers.keys() & images.keys()):
            places = said.bad_peers[preload_id]
            for name in self._core.repository.preloads.report(preload_id, node.id, places):
                LOG.warning("preload %s: node %s got wrong parts from node %s", preload_id, node.name, name)
                self._core.notify.preload("bad_peer", {"preload": preload_id, "node": name, "reporter": node.name})

    def _certificates(self, node: Node, work: Sequence[Work], said: node_requests.Heartbeat) -> dict[str, str]:
        lifetime = datetime.timedelta(hours=self._options.certificate_hours)
        found: dict[str, str] = {}
        for each in work:
            of_this = said.states.get(each.preload_id)
            if of_this is None or of_this.request is None or len(found) >= MOST_CERTIFICATES:
                continue
            authority = self._core.repository.preloads.authority(each.preload_id)
            if authority is None:
                continue
            made = Authority(*authority)
            try:
                found[each.preload_id] = self._authorities.issue(
                    made, of_this.request, node.id, each.image.id, lifetime
                )
            except Unavailable as error:
                # The node has other work, and what it has of this one.
                LOG.error("preload %s: nodes get no certificates: %s", each.preload_id, error)
        return found

    def _job(self, node: Node, work: Work, place: Place | None, secret: str, certificate: str | None) -> dict[str, Any]:
        image, source = work.image, None
        if place is not None:
            ticket = secrets.ticket(secret, work.preload_id, place.place, place.granted_at)
            url = f"/v2/preloads/sources/{ticket}/{image.id}"
            source = {"url": url, "expires": place.expires_at / plan.SECOND}
        peers = []
        if node.port and work.state != "ready":
            there = self._swarms.peers(work.preload_id)
            peers = plan.some(self._limits, there, node.id, self._chance)
        known = work.has_pieces and image.size
        return {
            "preload": work.preload_id,
            "image": image.id,
            "size": image.size,
            "state_wanted": "ready",
            "disk_format": image.disk_format,
            "container_format": image.container_format,
            "os_hash_algo": image.os_hash_algo,
            "os_hash_value": image.os_hash_value,
            "virtual_size": image.virtual_size,
            "pinned": work.pinned,
            "torrent_url": f"/v2/nodes/{node.id}/preloads/{work.preload_id}/torrent" if known else None,
            "ca": work.authority,
            "certificate": certificate,
            "peers": [{"address": peer.address, "port": peer.port} for peer in peers],
            "source": source,
            "up_limit": self._options.up_limit,
            "down_limit": self._options.down_limit,
        }

    def _drop(self, known: Known, work: Sequence[Work], holds: Sequence[str]) -> list[str]:
        """The images on its disk that the node may not have any more."""
        facts = {each.image.id: each.image for each in work}
        others = [image_id for image_id in holds if image_id not in facts]
        if others:
            facts.update(self._core.repository.preloads.facts(others))
        context = access.context_of(known.node)
        return [
            image_id
            for image_id in holds
            if (image := facts.get(image_id)) is None
            or not access.may_have(self._core, context, known.node, known.group, image)
        ]


def _is_given(work: Work, refused: Mapping[str, str]) -> bool:
    """Whether a node gets an image: what has no digest (yet) could not be verified."""
    return work.preload_id not in refused and bool(work.image.os_hash_value)

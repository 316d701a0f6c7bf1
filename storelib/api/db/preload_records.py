# SPDX-License-Identifier: Apache-2.0
"""What the tables of pre-loading return. Times are microseconds since 1970, as in the tables; sizes are bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from storelib.api.db.records import Status, Visibility

State = Literal["queued", "fetching", "verifying", "ready", "failed"]
STATES: tuple[State, ...] = ("queued", "fetching", "verifying", "ready", "failed")


class Node(NamedTuple):
    """A node as administrators see it. ``port`` 0: it exchanges nothing with others; ``seen_at`` 0: no heartbeat."""

    id: str
    name: str
    group: str
    address: str
    port: int
    version: str
    free: int | None
    used: int | None
    budget: int | None
    skew: int | None
    draining: bool
    created_at: int
    seen_at: int


class Group(NamedTuple):
    """A group of nodes: ``images`` (ids) and images with all of ``properties`` are kept on its nodes.

    Its nodes get images of ``visibility`` and of ``projects`` only; empty means any.
    """

    name: str
    images: Sequence[str] = ()
    properties: Mapping[str, str] = {}
    visibility: Sequence[str] = ()
    projects: Sequence[str] = ()


class Preload(NamedTuple):
    """One image for some nodes: those of a group, all (``everyone``), or those that are named."""

    id: str
    image_id: str
    group: str | None
    everyone: bool
    pinned: bool
    origin: str
    status: str
    project_id: str | None
    created_at: int
    ended_at: int | None


@dataclass(frozen=True, slots=True)
class NewPreload:
    """A preload to be made, with its authority's certificate and its sealed private key."""

    id: str
    image_id: str
    group: str | None
    everyone: bool
    nodes: Sequence[str]
    pinned: bool
    origin: str
    project_id: str | None
    authority: str
    authority_key: str = field(repr=False)


class Progress(NamedTuple):
    """How far one node is with one preload."""

    preload_id: str
    node_id: str
    node: str
    state: State
    done: int
    from_source: int
    from_peers: int
    reason: str | None
    moved_at: int


class Totals(NamedTuple):
    """How far all nodes of one preload are: nodes by state, and the bytes of all."""

    nodes: Mapping[str, int]
    done: int
    from_source: int
    from_peers: int


class ImageFacts(NamedTuple):
    """What a node has to know of an image, and policies ask about; ``core.Judged``."""

    id: str
    owner: str | None
    visibility: Visibility
    status: Status
    protected: bool
    os_hidden: bool
    size: int | None
    virtual_size: int | None
    disk_format: str | None
    container_format: str | None
    os_hash_algo: str | None
    os_hash_value: str | None


class Work(NamedTuple):
    """One preload for one node, as its heartbeat needs it."""

    preload_id: str
    pinned: bool
    authority: str
    state: State
    done: int
    from_source: int
    from_peers: int
    reason: str | None
    moved_at: int
    #: Whether the digests of its pieces are known.
    has_pieces: bool
    image: ImageFacts


class Place(NamedTuple):
    """A place from which one node at a time reads a preload from the API; free when ``expires_at`` is over."""

    preload_id: str
    place: int
    node_id: str
    granted_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Known:
    """A node with all that its heartbeat needs."""

    node: Node
    group: Group
    secret_digest: str = field(repr=False)
    work: Sequence[Work] = ()
    places: Sequence[Place] = ()


class Peer(NamedTuple):
    """A node that has parts of a preload; ``reports`` is by how many it was found with wrong ones."""

    node_id: str
    address: str
    port: int
    state: State
    reports: int = 0


class Beat(NamedTuple):
    """What a node says of itself."""

    address: str
    port: int
    free: int | None
    used: int | None
    budget: int | None
    skew: int | None


class Change(NamedTuple):
    """What a node says of one preload."""

    preload_id: str
    state: State
    done: int
    from_source: int
    from_peers: int
    reason: str | None
    moved_at: int


class Claim(NamedTuple):
    """A place that a node takes (``held`` False) or keeps; ``ticket_digest`` is the digest of its ticket."""

    place: Place
    granted_at: int
    expires_at: int
    ticket_digest: str


def group_from(name: str, document: Mapping[str, Any]) -> Group:
    """A group of the document that is kept of it."""
    return Group(
        name,
        tuple(document.get("images", ())),
        dict(document.get("properties", {})),
        tuple(document.get("visibility", ())),
        tuple(document.get("projects", ())),
    )

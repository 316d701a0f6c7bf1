# SPDX-License-Identifier: Apache-2.0
"""``storelib preload``: have images on nodes before the first instance there needs them, by a running image API."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

import click

from storelib.cli import exits
from storelib.cli.image.command import command, connection_options
from storelib.cli.output import percentage, size_text, warn
from storelib.cli.parameters import Age, Seconds
from storelib.cli.session import Session, fail_with

if TYPE_CHECKING:
    from storelib.cli.image.client import Api, Document

T = TypeVar("T")

_STARTED = ("id", "image", "group")
_LISTED = ("id", "image", "status", "origin", "group", "nodes", "created_at")
_STATE = ("node", "image", "state", "from_source", "from_peers", "reason")
_NODE = ("id", "name", "group", "address", "version", "free", "draining", "seen_at")
_GROUP = ("name", "images", "properties", "visibility", "projects")
#: What a node is that has come to an end with an image.
_OVER = ("ready", "failed")
#: Seconds between two looks at most, where an API that is away is waited for.
_LONGEST_PAUSE = 30.0
#: Entries of one page of a list; an API that gives fewer says where the rest is.
_PAGE = 1000


@click.group("preload")
def preload() -> None:
    """Have images on nodes before the first instance there needs them.

    The nodes run 'storelib node'. The image API is named as for 'storelib image'; an IMAGE is an id or a name.
    """


preload.params += connection_options()


@command("start")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--group", metavar="NAME", help="The nodes of this group, also those that join later.")
@click.option("--node", "nodes", metavar="NAME", multiple=True, help="This node; may be repeated.")
@click.option("--all", "everyone", is_flag=True, help="All nodes, also those that join later.")
@click.option("--pin", is_flag=True, help="Nodes remove other images first when their room runs out.")
def start(
    session: Session,
    api: Api,
    images: Sequence[str],
    group: str | None,
    nodes: Sequence[str],
    everyone: bool,
    pin: bool,
) -> None:
    """Begin to distribute images; 'status --watch' shows how far it is."""
    if [group is not None, bool(nodes), everyone].count(True) != 1:
        raise click.UsageError("say which nodes with one of --group, --node and --all")
    body: dict[str, Any] = {"images": [api.find(image)["id"] for image in images], "pinned": pin}
    body |= {"all": True} if everyone else {"nodes": list(nodes)} if nodes else {"group": group}
    session.output.many(_STARTED, api.ask("POST", "/v2/preloads", body)["preloads"])


@command("status")
@click.argument("preloads", metavar="PRELOAD...", nargs=-1)
@click.option("--watch", is_flag=True, help="Wait until all nodes have all images, or some have failed for good.")
@click.option("--every", metavar="SECONDS", type=Seconds(0.1), default=2.0, help="How often to look [default: 2].")
def status(session: Session, api: Api, preloads: Sequence[str], watch: bool, every: float) -> int:
    """Show how far each node is with these preloads, or all that are active.

    With --watch the exit code is 1 if a node failed, or has not got an image when its preload is over, or no node is
    to have it. An image API that goes away meanwhile is waited for.
    """
    if not watch:
        session.output.many(_STATE, (_row(session, state) for state in _states(api, preloads or _active(api))))
        return 0
    # Those that are over leave the list of active ones, and are still to be told.
    watched = dict.fromkeys(preloads)
    found: list[Document] = []

    def look() -> list[Document]:
        if not preloads:
            watched.update(dict.fromkeys(_active(api)))
        return _states(api, watched)

    def looks() -> Iterator[list[Document]]:
        for states in _as_long_as_it_takes(look, every):
            found[:] = states
            yield [_row(session, state) for state in states]
            if all(map(_is_over, found)):
                return

    session.output.watch(_STATE, looks(), key=("node_id", "preload"), told="state")
    nobody = _for_nobody(api, watched.keys() - {state["preload"] for state in found})
    for each in nobody:
        warn(f"preload {each}: there is no node (yet) that is to have it; see storelib preload nodes")
    return 0 if not nobody and all(state["state"] == "ready" for state in found) else exits.FAILED


@command("list")
@click.option(
    "--status", "wanted", type=click.Choice(["active", "cancelled", "ended"]), help="Only preloads of this status."
)
@click.option("--group", metavar="NAME", help="Only preloads for this group.")
def list_preloads(session: Session, api: Api, wanted: str | None, group: str | None) -> None:
    """List preloads, the latest first."""
    filters = {"status": wanted, "group": group}
    session.output.many(_LISTED, _pages(api, "/v2/preloads", "preloads", filters))


@command("cancel")
@click.argument("preloads", metavar="PRELOAD...", nargs=-1, required=True)
def cancel(session: Session, api: Api, preloads: Sequence[str]) -> None:
    """End preloads. What nodes have of them that is not ready is removed there."""
    from storelib.exceptions import StoreError

    failed: list[StoreError] = []
    for each in preloads:
        try:
            api.ask("DELETE", _path("/v2/preloads", each))
        except StoreError as error:
            failed.append(error)
    fail_with(failed)


@command("enrol")
@click.option("--group", metavar="NAME", required=True, help="The group that nodes with this token are in.")
@click.option("--uses", type=click.IntRange(1), default=1, help="How many nodes may register with it [default: 1].")
@click.option("--expires-in", metavar="AGE", type=Age(), default="1h", help="How long it is valid [default: 1h].")
def enrol(session: Session, api: Api, group: str, uses: int, expires_in: float) -> None:
    """Print a token with which nodes enrol, to be told to them and nobody else."""
    body = {"group": group, "uses": uses, "expires_in": int(expires_in)}
    made = api.ask("POST", "/v2/nodes/enrolments", body)
    if session.output.json:
        session.output.one(made)
    else:
        session.output.say(made["token"])


@command("nodes")
@click.option("--group", metavar="NAME", help="Only nodes of this group.")
def nodes(session: Session, api: Api, group: str | None) -> None:
    """List the nodes that have registered."""
    rows = _pages(api, "/v2/nodes", "nodes", {"group": group})
    session.output.many(_NODE, (_node_row(session, node) for node in rows))


@command("drain")
@click.argument("node")
@click.option("--undo", is_flag=True, help="Let the node fetch new images again.")
def drain(session: Session, api: Api, node: str, undo: bool) -> None:
    """Have NODE fetch nothing new. It goes on passing on what it has."""
    api.ask("DELETE" if undo else "POST", _path("/v2/nodes", _node(api, node), "drain"))


@command("remove")
@click.argument("node")
def remove(session: Session, api: Api, node: str) -> None:
    """Forget NODE, which has to enrol again; what is on its disk stays there."""
    api.ask("DELETE", _path("/v2/nodes", _node(api, node)))


@click.group("group")
def group() -> None:
    """What the nodes of a group keep, and may have."""


@command("list")
def list_groups(session: Session, api: Api) -> None:
    """List the groups that have a rule."""
    session.output.many(_GROUP, api.ask("GET", "/v2/preloads/groups")["groups"])


@command("show")
@click.argument("name")
def show_group(session: Session, api: Api, name: str) -> None:
    """Show the rule of a group."""
    session.output.one(api.ask("GET", _path("/v2/preloads/groups", name)))


@command("set")
@click.argument("name")
@click.option("--image", "images", metavar="IMAGE", multiple=True, help="An image to keep; may be repeated.")
@click.option(
    "--property", "properties", metavar="NAME=VALUE", multiple=True, help="Keep images that have all of these."
)
@click.option(
    "--visibility",
    type=click.Choice(["public", "community", "shared", "private"]),
    multiple=True,
    help="Only images of this visibility; may be repeated.",
)
@click.option("--project", "projects", metavar="PROJECT", multiple=True, help="Only images of this project.")
def set_group(
    session: Session,
    api: Api,
    name: str,
    images: Sequence[str],
    properties: Sequence[str],
    visibility: Sequence[str],
    projects: Sequence[str],
) -> None:
    """Say what a group keeps and may have, in place of what was said before."""
    pairs = [each.partition("=") for each in properties]
    if not all(key and equals for key, equals, _ in pairs):
        raise click.UsageError("a property is NAME=VALUE")
    body = {
        "images": [api.find(image)["id"] for image in images],
        "properties": {key: value for key, _, value in pairs},
        "visibility": list(visibility),
        "projects": list(projects),
    }
    session.output.one(api.ask("PUT", _path("/v2/preloads/groups", name), body))


@command("unset")
@click.argument("name")
def unset_group(session: Session, api: Api, name: str) -> None:
    """Remove the rule of a group: its nodes keep nothing for it."""
    api.ask("DELETE", _path("/v2/preloads/groups", name))


for each in (start, status, list_preloads, cancel, enrol, nodes, drain, remove, group):
    preload.add_command(each)
for each in (list_groups, show_group, set_group, unset_group):
    group.add_command(each)


def _pages(api: Api, path: str, key: str, filters: dict[str, str | None]) -> Iterator[Document]:
    """All entries of a list, in the largest pages that the API gives."""
    asked = {name: value for name, value in filters.items() if value is not None}
    return _following(api, f"{path}?{urlencode({'limit': _PAGE, **asked})}", key)


def _following(api: Api, url: str | None, key: str) -> Iterator[Document]:
    """The entries of this page and of those that come behind it."""
    while url:
        page = api.ask("GET", url)
        yield from page[key]
        url = page.get("next")


def _as_long_as_it_takes(look: Callable[[], T], every: float) -> Iterator[T]:
    """What each ``look`` finds. An API that went away is told of once, and waited for; it may be restarted.

    One that was never there may be the wrong one, and no waiting changes a refusal: those are raised.
    """
    from storelib.exceptions import StoreError

    reached, failures = False, 0
    while True:
        try:
            found = look()
        except StoreError as error:
            if not (reached and error.transient):
                raise
            failures += 1
            if failures == 1:
                warn(f"waiting for the image API: {error}")
        else:
            if failures:
                warn("the image API answers again")
            reached, failures = True, 0
            yield found
        time.sleep(max(every, min(every * 2 ** min(failures, 10), _LONGEST_PAUSE)))


def _active(api: Api) -> list[str]:
    return [each["id"] for each in _pages(api, "/v2/preloads", "preloads", {"status": "active"})]


def _states(api: Api, preloads: Iterable[str]) -> list[Document]:
    """How far each node is with each of these preloads."""
    found = []
    for preload_id in preloads:
        path = _path("/v2/preloads", preload_id)
        facts = api.ask("GET", path)
        size = None if facts["status"] != "active" else _size(api, facts["image"])
        rest = _following(api, facts.get("next"), "states")
        more = {"preload": facts["id"], "preload_status": facts["status"], "image": facts["image"], "size": size}
        found += [{**state, **more} for state in (*facts["states"], *rest)]
    return found


def _for_nobody(api: Api, preloads: Iterable[str]) -> list[str]:
    """Those of these preloads, which no node has, that were asked for. A group without nodes may have a rule."""
    return [each for each in sorted(preloads) if api.ask("GET", _path("/v2/preloads", each))["origin"] != "rule"]


def _is_over(state: Document) -> bool:
    """Whether a node goes no further with an image: of a preload that was cancelled none does."""
    return state["state"] in _OVER or state["preload_status"] != "active"


def _size(api: Api, image_id: str) -> int | None:
    from storelib.cli.image.client import path_of
    from storelib.exceptions import NotFound

    try:
        size: int | None = api.ask("GET", path_of(image_id))["size"]
    except NotFound:
        return None
    return size


def _row(session: Session, state: Document) -> Document:
    """A state, as people read it if they do: ``fetching 43 %``."""
    if session.output.json:
        return state
    shown = state["state"]
    if shown not in _OVER and _is_over(state):
        shown = state["preload_status"]
    elif shown in ("fetching", "verifying") and state["size"]:
        shown = f"{shown} {percentage(state['done'], state['size'])}"
    sizes = {name: size_text(state[name]) for name in ("from_source", "from_peers")}
    return {**state, "state": shown, **sizes}


def _node_row(session: Session, node: Document) -> Document:
    return node if session.output.json else {**node, "free": size_text(node["free"])}


def _node(api: Api, name_or_id: str) -> str:
    """The id of a node by its id or its name; raises NotFound."""
    from storelib.exceptions import NotFound

    named = None
    for node in _pages(api, "/v2/nodes", "nodes", {}):
        if name_or_id == node["id"]:
            return name_or_id
        if name_or_id == node["name"]:
            # A node chooses its name, which may be the id of another one.
            named = str(node["id"])
    if named is not None:
        return named
    raise NotFound(f"there is no node with the id or name {name_or_id!r}")


def _path(start: str, *names: str) -> str:
    from storelib.cli.image.client import path_below

    return path_below(start, *names)

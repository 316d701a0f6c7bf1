# SPDX-License-Identifier: Apache-2.0
"""Commands about what belongs to images: member, tag, location; and the stores an API offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from storelib.cli.image.command import command
from storelib.cli.parameters import DigestText
from storelib.cli.session import Session

if TYPE_CHECKING:
    from storelib.cli.image.client import Api
    from storelib.driver import Digest

_MEMBER = ("member_id", "status", "image_id")
_STATUSES = ("accepted", "rejected", "pending")


@click.group("member")
def member() -> None:
    """Projects that an image is shared with."""


@command("list")
@click.argument("image")
def list_members(session: Session, api: Api, image: str) -> None:
    """List the members of IMAGE."""
    from storelib.cli.image.client import path_of

    session.output.many(_MEMBER, api.ask("GET", path_of(api.find(image)["id"], "members"))["members"])


@command("add")
@click.argument("image")
@click.argument("project")
def add_member(session: Session, api: Api, image: str, project: str) -> None:
    """Share IMAGE with PROJECT, which has to accept."""
    from storelib.cli.image.client import exists_already, path_of
    from storelib.exceptions import StoreError

    try:
        found = api.ask("POST", path_of(api.find(image)["id"], "members"), {"member": project})
    except StoreError as error:
        raise exists_already(error) from error
    session.output.one(_without_schema(found))


@command("show")
@click.argument("image")
@click.argument("project")
def show_member(session: Session, api: Api, image: str, project: str) -> None:
    """Tell how PROJECT takes that IMAGE is shared with it."""
    from storelib.cli.image.client import path_of

    session.output.one(_without_schema(api.ask("GET", path_of(api.find(image)["id"], "members", project))))


@command("set")
@click.argument("image")
@click.argument("project")
@click.argument("status", type=click.Choice(_STATUSES))
def set_member(session: Session, api: Api, image: str, project: str, status: str) -> None:
    """Accept or reject IMAGE, as PROJECT."""
    from storelib.cli.image.client import path_of

    path = path_of(api.find(image)["id"], "members", project)
    session.output.one(_without_schema(api.ask("PUT", path, {"status": status})))


@command("remove")
@click.argument("image")
@click.argument("project")
def remove_member(session: Session, api: Api, image: str, project: str) -> None:
    """Stop sharing IMAGE with PROJECT."""
    from storelib.cli.image.client import path_of

    api.ask("DELETE", path_of(api.find(image)["id"], "members", project))


@click.group("tag")
def tag() -> None:
    """List, add and remove the tags of an image."""


@command("list")
@click.argument("image")
def list_tags(session: Session, api: Api, image: str) -> None:
    """List the tags of IMAGE."""
    session.output.many(("tag",), ({"tag": found} for found in api.find(image)["tags"]))


@command("add")
@click.argument("image")
@click.argument("tags", metavar="TAG...", nargs=-1, required=True)
def add_tags(session: Session, api: Api, image: str, tags: tuple[str, ...]) -> None:
    """Put tags on IMAGE; those it has stay."""
    _each_tag(api, "PUT", image, tags)


@command("remove")
@click.argument("image")
@click.argument("tags", metavar="TAG...", nargs=-1, required=True)
def remove_tags(session: Session, api: Api, image: str, tags: tuple[str, ...]) -> None:
    """Take tags off IMAGE."""
    _each_tag(api, "DELETE", image, tags)


def _each_tag(api: Api, method: str, image: str, tags: tuple[str, ...]) -> None:
    from storelib.cli.image.client import path_of

    image_id = api.find(image)["id"]
    for each in tags:
        api.ask(method, path_of(image_id, "tags", each))


@click.group("location")
def location() -> None:
    """Where the data of images is; most image APIs keep that from most callers."""


@command("list")
@click.argument("image")
def list_locations(session: Session, api: Api, image: str) -> None:
    """List the locations of IMAGE."""
    session.output.many(("url", "metadata"), _locations(api, api.find(image)))


@command("add")
@click.argument("image")
@click.argument("place", metavar="URL")
@click.option("--digest", type=DigestText(), metavar="NAME:HEX", help="What the data must be, such as sha512:cf83e1...")
def add_location(session: Session, api: Api, image: str, place: str, digest: Digest | None) -> None:
    """Let the data of IMAGE be what is at URL; it is not copied."""
    from storelib.cli.image.client import path_of

    found = api.find(image)
    validation = {}
    if digest is not None:
        validation = {"validation_data": {"os_hash_algo": digest.algorithm, "os_hash_value": digest.value}}
    if found["status"] == "queued":
        api.ask("POST", path_of(found["id"], "locations"), {"url": place, **validation})
    else:
        value_of = {"url": place, "metadata": {}, **validation}
        api.patch(found["id"], [{"op": "add", "path": "/locations/-", "value": value_of}])


@command("remove")
@click.argument("image")
@click.argument("place", metavar="URL")
def remove_location(session: Session, api: Api, image: str, place: str) -> None:
    """Delete the data of IMAGE at URL; it must have another location."""
    from storelib.exceptions import NotFound

    found = api.find(image)
    urls = [each["url"] for each in found.get("locations") or ()]
    if place not in urls:
        raise NotFound(
            f"image {found['id']} shows no such location; where locations are secret, use: "
            "storelib image delete --store STORE"
        )
    api.patch(found["id"], [{"op": "remove", "path": f"/locations/{urls.index(place)}"}])


@command("stores")
def stores(session: Session, api: Api) -> None:
    """List the stores that the image API offers."""
    columns = ("id", "default", "read-only", "description")
    session.output.many(columns, api.ask("GET", "/v2/info/stores")["stores"])


def _locations(api: Api, image: dict[str, Any]) -> Any:
    from storelib.cli.image.client import path_of

    if "locations" in image:
        return image["locations"]
    return api.ask("GET", path_of(image["id"], "locations"))


def _without_schema(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "schema"}


for _group, _commands in (
    (member, (list_members, add_member, show_member, set_member, remove_member)),
    (tag, (list_tags, add_tags, remove_tags)),
    (location, (list_locations, add_location, remove_location)),
):
    for _each in _commands:
        _group.add_command(_each)

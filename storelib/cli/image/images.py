# SPDX-License-Identifier: Apache-2.0
"""Commands about images themselves: create, list, show, set, unset, upload, save, delete."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

import click

from storelib.cli.image.command import command
from storelib.cli.output import size_text, warn
from storelib.cli.parameters import Name
from storelib.cli.session import Session, fail_with

if TYPE_CHECKING:
    from storelib.cli.image.client import Api, Document
    from storelib.cli.output import Progress

F = TypeVar("F", bound=Callable[..., Any])

VISIBILITIES = ("public", "private", "community", "shared")
COLUMNS = ("id", "name", "status", "size", "disk_format", "visibility", "stores")
#: Of an image document: links that say nothing to people.
_LINKS = ("self", "file", "schema")
#: Of an image document: lists of stores, which the image API writes as one text, for Glance's clients.
_JOINED = ("stores", "os_glance_importing_to_stores", "os_glance_failed_import")
_REPEATABLE = "Repeatable."


# ParamType is generic from click 8.2 on.
class Property(click.ParamType):  # type: ignore[type-arg]
    """A property, written as NAME=VALUE."""

    name = "property"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[str, str]:
        """The name and the value."""
        if isinstance(value, tuple):
            return value[0], value[1]
        name, equals, text = value.partition("=")
        if not (name and equals):
            self.fail(f"{value!r} is not NAME=VALUE", parameter, context)
        return name, text


def _metadata(function: F) -> F:
    """The options that create and set share; not given ones are None."""
    options = (
        click.option("--visibility", type=click.Choice(VISIBILITIES), help="Who sees it."),
        click.option("--disk-format", type=Name(), metavar="FORMAT", help="qcow2, raw, iso, vmdk, vhd, vhdx, vdi, ..."),
        click.option("--container-format", type=Name(), metavar="FORMAT", help="bare, ovf, ova, docker, ..."),
        click.option("--min-disk", type=click.IntRange(0), metavar="GIB", help="Disk an instance needs."),
        click.option("--min-ram", type=click.IntRange(0), metavar="MIB", help="Memory an instance needs."),
        click.option("--protected/--unprotected", default=None, help="Whether it cannot be deleted."),
        click.option("--hidden/--unhidden", "os_hidden", default=None, help="Whether lists leave it out."),
        click.option("--owner", type=Name(), metavar="PROJECT", help="Project that owns it; for administrators."),
        click.option(
            "--property", "properties", type=Property(), multiple=True, metavar="NAME=VALUE", help=_REPEATABLE
        ),
        click.option("--tag", "tags", type=Name(), multiple=True, metavar="TAG", help=_REPEATABLE),
    )
    for option in reversed(options):
        function = option(function)
    return function


@command("create")
@click.argument("name")
@click.option(
    "--file",
    "-i",
    "source",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="File with the data; - is stdin. Without it the image waits for 'storelib image upload'.",
)
@click.option("--store", type=Name(), metavar="STORE", help="Where the data goes, else the default store.")
@click.option("--id", type=Name(), metavar="ID", help="A UUID; a new one if not given.")
@_metadata
def create(session: Session, api: Api, name: str, source: str | None, store: str | None, **values: Any) -> None:
    """Create the image NAME and send its data.

    The disk format is told from FILE if it is not given. If the data does not arrive, the image is deleted again.
    """
    from storelib.cli.image.client import exists_already
    from storelib.cli.image.data import guess_format
    from storelib.exceptions import StoreError

    if source is None and store is not None:
        raise click.UsageError("--store says where data goes, and there is none: give it with --file")
    document = _document(values) | {"name": name}
    if source is not None:
        document.setdefault("container_format", "bare")
        if "disk_format" not in document:
            document["disk_format"] = guess_format(source)
    try:
        image = api.ask("POST", "/v2/images", document)
    except StoreError as error:
        raise exists_already(error) from error
    if source is not None:
        try:
            _send(session, api, image, source, store)
        except BaseException:
            _take_back(api, image)
            raise
        image = api.find(image["id"])
    session.output.one(_shown(image))


@command("upload")
@click.argument("image")
@click.argument("source", metavar="FILE", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--store", type=Name(), metavar="STORE", help="Where the data goes, else the default store.")
def upload(session: Session, api: Api, image: str, source: str, store: str | None) -> None:
    """Send the data of IMAGE, which has none yet; FILE - is stdin."""
    found = api.find(image)
    _send(session, api, found, source, store)
    session.output.one(_shown(api.find(found["id"])))


@command("list")
@click.option("--name", type=Name(), metavar="NAME", help="Only images of this name.")
@click.option(
    "--status",
    type=Name(),
    metavar="STATUS",
    help="Only images of this status: active, queued, saving, deactivated, ...",
)
@click.option("--visibility", type=click.Choice([*VISIBILITIES, "all"]), help="Only images of this visibility.")
@click.option("--owner", type=Name(), metavar="PROJECT", help="Only images of this project.")
@click.option("--disk-format", type=Name(), metavar="FORMAT", help="Only images of this format.")
@click.option(
    "--member-status",
    type=click.Choice(["pending", "accepted", "rejected", "all"]),
    help="Only shared images of this member status.",
)
@click.option("--hidden", "os_hidden", is_flag=True, default=None, help="Only hidden images.")
@click.option("--tag", "tags", type=Name(), multiple=True, metavar="TAG", help="Only images with this tag; repeatable.")
@click.option("--property", "properties", type=Property(), multiple=True, metavar="NAME=VALUE", help=_REPEATABLE)
@click.option("--sort", metavar="KEY[:DIR],...", help="By name, size, created_at ..., asc or desc.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many images.")
def list_images(
    session: Session,
    api: Api,
    tags: tuple[str, ...],
    properties: tuple[tuple[str, str], ...],
    limit: int | None,
    name: str | None,
    os_hidden: bool | None,
    **filters: str | None,
) -> None:
    """List the images that you may see."""
    asked = [(key, value) for key, value in filters.items() if value is not None]
    if name is not None:
        # Quoted, so that a name with a colon is no operator.
        asked.append(("name", f'in:"{name}"' if ":" in name or "," in name else name))
    if os_hidden:
        asked.append(("os_hidden", "true"))
    asked += [("tag", tag) for tag in tags]
    asked += properties
    session.output.many(COLUMNS, (_listed(session, image) for image in api.images(asked, limit)))


@command("show")
@click.argument("image")
def show(session: Session, api: Api, image: str) -> None:
    """Tell everything about IMAGE."""
    session.output.one(_shown(api.find(image)))


@command("set")
@click.argument("image")
@click.option("--name", metavar="NAME", help="New name of the image.")
@click.option("--activate", "action", flag_value="reactivate", help="Allow downloads again.")
@click.option("--deactivate", "action", flag_value="deactivate", help="Allow downloads by administrators only.")
@_metadata
def set_image(session: Session, api: Api, image: str, action: str | None, **values: Any) -> None:
    """Change IMAGE; what is not named stays."""
    from storelib.cli.image.client import path_of

    found = api.find(image)
    tags = values.pop("tags")
    properties = dict(values.pop("properties"))
    operations: list[Document] = [
        {"op": "replace", "path": f"/{name}", "value": value} for name, value in values.items() if value is not None
    ]
    operations += [{"op": "add", "path": _pointer(name), "value": value} for name, value in properties.items()]
    if not (operations or tags or action):
        raise click.UsageError("say what to change, see storelib image set --help")
    if operations:
        api.patch(found["id"], operations)
    for tag in tags:
        api.ask("PUT", path_of(found["id"], "tags", tag))
    if action is not None:
        api.ask("POST", path_of(found["id"], "actions", action))
    session.output.one(_shown(api.find(found["id"])))


@command("unset")
@click.argument("image")
@click.option("--property", "properties", multiple=True, metavar="NAME", help="Remove this property; repeatable.")
@click.option("--tag", "tags", type=Name(), multiple=True, metavar="TAG", help="Remove this tag; repeatable.")
def unset(session: Session, api: Api, image: str, properties: tuple[str, ...], tags: tuple[str, ...]) -> None:
    """Remove properties and tags of IMAGE."""
    from storelib.cli.image.client import path_of

    if not (properties or tags):
        raise click.UsageError("say what to remove with --property or --tag")
    found = api.find(image)
    if properties:
        api.patch(found["id"], [{"op": "remove", "path": _pointer(name)} for name in properties])
    for tag in tags:
        api.ask("DELETE", path_of(found["id"], "tags", tag))
    session.output.one(_shown(api.find(found["id"])))


@command("save")
@click.argument("image")
@click.option(
    "--file",
    "--output",
    "-o",
    "output",
    default="-",
    metavar="FILE",
    type=click.Path(),
    help="File to write; stdout if - or not given.",
)
@click.option("--force", "-f", is_flag=True, help="Replace FILE if it exists.")
def save(session: Session, api: Api, image: str, output: str, force: bool) -> None:
    """Write the data of IMAGE to a file, which appears when it is complete and proven by its digest, or to stdout.

    If the connection is lost for good, or the command is stopped, what has come is kept beside FILE, and the same
    command goes on with it.
    """
    from storelib.cli import files
    from storelib.cli.image.data import Incoming, proof_of
    from storelib.exceptions import NotFound

    if output == "-" and sys.stdout.isatty():
        raise click.UsageError("an image is nothing for a terminal: name a file with -o, or redirect stdout")
    if output != "-" and not force:
        files.refuse_existing(output)
    found = api.find(image)
    if found["size"] is None:
        raise NotFound(f"image {found['id']} is {found['status']} and has no data")
    proof = proof_of(found)
    special = os.path.exists(output) and not os.path.isfile(output)
    with session.output.progress("save") as progress:
        if output == "-":
            with Incoming(api, found) as stream:
                files.pour(stream, sys.stdout.buffer, progress)
            return
        if proof is None or special:
            with Incoming(api, found) as stream:
                files.save(stream, output, progress, force=force)
        else:
            _save_resumably(api, found, output, progress, force=force)
    if proof is None:
        warn("the image API knows no digest of this image: it was saved unproven")
    elif not session.output.json:
        session.output.say(f"{output}: {size_text(found['size'])}, {proof[0]} {proof[1]} is right")
    else:
        algorithm, digest = proof
        session.output.one({"id": found["id"], "file": output, "size": found["size"], algorithm: digest})


def _save_resumably(api: Api, image: Document, output: str, progress: Progress | None, *, force: bool) -> None:
    """What has come is proven as a whole in the end, so it is kept for another run as long as it may be right."""
    from storelib.cli import files
    from storelib.cli.image.data import Incoming
    from storelib.exceptions import DigestMismatch

    with files.Part(output, image["id"]) as part:
        try:
            with Incoming(api, image, part.chunks(), part.recall()) as stream:
                part.note(stream.etag)
                part.fill(stream, progress)
        except BaseException as error:
            if isinstance(error, DigestMismatch) or not part.size:
                part.remove()
            else:
                warn(f"{size_text(part.size)} are kept in {part.place}; the same command goes on with them")
            raise
        part.publish(force=force)


@command("delete")
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--store", type=Name(), metavar="STORE", help="Delete only the copy in this store.")
def delete(session: Session, api: Api, names: tuple[str, ...], store: str | None) -> None:
    """Delete images and their data, without asking."""
    from storelib.cli.image.client import path_below, path_of
    from storelib.exceptions import StoreError

    failed: list[StoreError] = []
    for name in names:
        try:
            image_id = api.find(name)["id"]
            api.ask("DELETE", path_of(image_id) if store is None else path_below("/v2/stores", store, image_id))
        except StoreError as error:
            failed.append(error)
    fail_with(failed)


def _document(values: dict[str, Any]) -> Document:
    """The body of a create."""
    document: Document = dict(values.pop("properties"))
    if tags := values.pop("tags"):
        document["tags"] = sorted(set(tags))
    return document | {name: value for name, value in values.items() if value is not None}


def _send(session: Session, api: Api, image: Document, source: str, store: str | None) -> None:
    from storelib.cli.image.data import Outgoing

    with Outgoing(source) as body, session.output.progress(f"upload {image['name'] or image['id']}") as progress:
        body.progress = progress
        api.upload(image["id"], cast("IO[bytes]", body), body.size, store)


def _take_back(api: Api, image: Document) -> None:
    """Delete the image whose data did not arrive; something else is being raised."""
    from storelib.cli.image.client import path_of
    from storelib.exceptions import NotFound, StoreError

    try:
        with contextlib.suppress(NotFound):
            api.ask("DELETE", path_of(image["id"]))
    except StoreError as error:
        warn(f"image {image['id']} is left without data, delete it later: {error}")


def _shown(image: Document) -> Document:
    shown = {name: value for name, value in image.items() if name not in _LINKS}
    joined = {name: shown[name] for name in _JOINED if isinstance(shown.get(name), str)}
    return shown | {name: text.split(",") if text else [] for name, text in joined.items()}


def _listed(session: Session, image: Document) -> Document:
    shown = _shown(image)
    if session.output.fancy and shown["size"]:
        shown["size"] = size_text(shown["size"])
    return shown


def _pointer(name: str) -> str:
    """A JSON pointer (RFC 6901)."""
    return "/" + name.replace("~", "~0").replace("/", "~1")

# SPDX-License-Identifier: Apache-2.0
"""Commands about single images: add, get, stat, ls, rm, cp, verify, acl."""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from storelib.cli import exits
from storelib.cli.output import size_text, warn
from storelib.cli.parameters import DigestText, Name
from storelib.cli.session import Session, about, command, complete_store, fail_with, from_each

if TYPE_CHECKING:
    from storelib.driver import Digest, ImageInfo, Store, StoredImage
    from storelib.exceptions import StoreError


@command("add")
@click.argument("source", metavar="FILE", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "--store",
    "names",
    metavar="STORE",
    type=Name(),
    multiple=True,
    shell_complete=complete_store,
    help="Store to add to, else the default one; may be repeated, and one read feeds all.",
)
@click.option("--id", "image_id", type=Name(), metavar="ID", help="The image's id; a new UUID if not given.")
@click.option("--size", type=click.IntRange(min=0), metavar="BYTES", help="Size that the data must have.")
@click.option(
    "--hash", "algorithm", default="sha512", show_default=True, metavar="NAME", help="The multihash algorithm."
)
def add(
    session: Session, source: str, names: tuple[str, ...], image_id: str | None, size: int | None, algorithm: str
) -> None:
    """Store FILE, or what comes in on stdin if it is -, as a new image."""
    from storelib.driver import StoredImage
    from storelib.transfer import fan_out

    stores = [session.registry[name] for name in names] or [session.registry.default]
    data: Any = sys.stdin.buffer if source == "-" else source
    image_id = str(uuid.uuid4()) if image_id is None else image_id
    with session.output.progress(f"add {'stdin' if source == '-' else source}") as progress:
        results = fan_out(stores, image_id, data, size, hashing_algo=algorithm, progress=progress)
    for result in results:
        if isinstance(result, StoredImage):
            session.output.one(_stored(result, algorithm))
    fail_with([result for result in results if not isinstance(result, StoredImage)])


@command("get")
@click.argument("uri")
@click.option(
    "--output", "-o", default="-", metavar="FILE", type=click.Path(), help="File to write; stdout if - or not given."
)
@click.option("--offset", default=0, type=click.IntRange(min=0), metavar="BYTES", help="First byte.")
@click.option("--length", type=click.IntRange(min=0), metavar="BYTES", help="Stop after so many bytes.")
@click.option("--force", "-f", is_flag=True, help="Replace FILE if it exists.")
def get(session: Session, uri: str, output: str, offset: int, length: int | None, force: bool) -> None:
    """Write the image at URI to a file, which appears when it is complete, or to stdout."""
    from storelib.cli import files

    if output == "-" and sys.stdout.isatty():
        raise click.UsageError("an image is nothing for a terminal: name a file with -o, or redirect stdout")
    if output != "-" and not force:
        files.refuse_existing(output)
    with about(uri=uri):
        stream = session.registry.resolve(uri).get(uri, offset, length).data
    with about(uri=uri), stream, session.output.progress("get") as progress:
        if output == "-":
            files.pour(stream, sys.stdout.buffer, progress)
        else:
            files.save(stream, output, progress, force=force)


@command("stat")
@click.argument("uri")
def stat(session: Session, uri: str) -> None:
    """Tell what is known of the image at URI."""
    from storelib.capabilities import Capability

    with about(uri=uri):
        store = session.registry.resolve(uri)
        if Capability.STAT in store.capabilities:
            record = _described(store, store.stat(uri))
        else:
            record = {"uri": str(store.locate(uri)), "store": store.name, "size": store.get_size(uri)}
    session.output.one(record)


@command("ls")
@click.argument("names", metavar="[STORE]...", nargs=-1, shell_complete=complete_store)
def ls(session: Session, names: tuple[str, ...]) -> None:
    """List the images of the named stores, or of all that can list."""
    from storelib.capabilities import Capability

    stores = session.stores(names)
    if not names:
        stores = [store for store in stores if Capability.LIST in store.capabilities]
    failures: list[StoreError] = []
    session.output.many(("store", "size", "modified", "id", "uri"), from_each(stores, _listed, failures))
    fail_with(failures)


@command("rm")
@click.argument("uris", metavar="URI...", nargs=-1, required=True)
def rm(session: Session, uris: tuple[str, ...]) -> None:
    """Delete the images at these URIs, without asking."""
    from storelib.exceptions import StoreError

    failed = []
    for uri in uris:
        try:
            with about(uri=uri):
                session.registry.resolve(uri).delete(uri)
        except StoreError as error:
            failed.append(error)
    fail_with(failed)


@command("cp")
@click.argument("uri")
@click.argument("target", metavar="STORE", shell_complete=complete_store)
@click.option("--id", "image_id", type=Name(), metavar="ID", help="The id in STORE; the same as at URI if not given.")
@click.option(
    "--hash", "algorithm", default="sha512", show_default=True, metavar="NAME", help="The multihash algorithm."
)
def cp(session: Session, uri: str, target: str, image_id: str | None, algorithm: str) -> None:
    """Copy the image at URI to another store, or within one; what is not as it was recorded is not stored."""
    from storelib.transfer.upload import add_stream

    with about(uri=uri):
        source = session.registry.resolve(uri)
    destination = session.registry[target]
    with about(uri=uri):
        image_id = _id_at(source, uri) if image_id is None else image_id
        opened = source.get(uri).data
    with opened as stream, session.output.progress(f"cp to {target}") as progress:
        verify = _was_recorded(stream)
        stored = add_stream(destination, image_id, stream, verify=verify, hashing_algo=algorithm, progress=progress)
    session.output.one(_stored(stored, algorithm))


@command("verify")
@click.argument("uri")
@click.option(
    "--digest",
    type=DigestText(),
    metavar="NAME:HEX",
    help="The expected digest, such as sha512:cf83e1...; else the one recorded.",
)
def verify(session: Session, uri: str, digest: Digest | None) -> None:
    """Read the image at URI and compare it with a digest."""
    from storelib.cli import files
    from storelib.exceptions import DigestMismatch

    with about(uri=uri):
        stream = session.registry.resolve(uri).get(uri, verify=digest or True).data
    with about(uri=uri), stream, session.output.progress("verify") as progress:
        assert stream.verified_with is not None  # noqa: S101  (get() was told to)
        algorithm, value = stream.verified_with
        found = value
        try:
            for _ in files.pieces(stream, progress):
                pass
        except DigestMismatch as mismatch:
            found = mismatch.found
    session.output.one({"match": found == value, "algorithm": algorithm, "expected": value, "found": found})
    if found != value:
        warn(f"the image has another {algorithm} digest than expected: {size_text(stream.size)} were read")
        raise click.exceptions.Exit(exits.DIFFERENT)


@command("acl")
@click.argument("uri")
@click.option("--public", is_flag=True, help="All may read, with or without credentials.")
@click.option("--read", "readers", metavar="PROJECT", multiple=True, help="Project that may read; may be repeated.")
@click.option("--write", "writers", metavar="PROJECT", multiple=True, help="Project that may write; may be repeated.")
def acl(session: Session, uri: str, public: bool, readers: tuple[str, ...], writers: tuple[str, ...]) -> None:
    """Set who may use the image at URI; what is not named is taken away."""
    with about(uri=uri):
        session.registry.resolve(uri).set_acls(uri, public, readers, writers)


def _listed(store: Store[Any]) -> Iterator[dict[str, Any]]:
    return (_described(store, info) for info in store.list_images())


def _was_recorded(stream: Any) -> bool:
    """Whether there is a digest to compare with that can be computed here."""
    from storelib.exceptions import UnknownHashingAlgo

    try:
        if stream.digest is not None:
            stream.recorded_digest()
            return True
    except UnknownHashingAlgo as error:
        warn(f"not compared with the digest that was recorded: {error}")
    return False


def _stored(image: StoredImage, algorithm: str) -> dict[str, Any]:
    return {
        "uri": image.uri,
        "store": image.metadata.get("store"),
        "size": image.size,
        "md5": image.checksum,
        algorithm: image.multihash,
    }


def _described(store: Store[Any], info: ImageInfo) -> dict[str, Any]:
    modified = None
    if info.modified is not None:
        modified = datetime.fromtimestamp(info.modified, timezone.utc).isoformat(timespec="seconds")
    return {"store": store.name, "id": info.image_id, "size": info.size, "modified": modified, "uri": info.uri}


def _id_at(store: Store[Any], uri: str) -> str:
    from storelib.capabilities import Capability

    known = None
    if Capability.STAT in store.capabilities:
        with contextlib.suppress(NotImplementedError):
            known = store.stat(uri).image_id
    if known is None:
        raise click.UsageError(f"store {store.name} does not tell the image's id: give the copy one with --id")
    return known

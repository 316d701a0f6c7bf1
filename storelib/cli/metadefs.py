# SPDX-License-Identifier: Apache-2.0
"""``storelib metadefs``: metadata definitions of the image API, loaded from files, exported and removed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from storelib.cli.service import configuration, image_api, repository
from storelib.cli.session import Session, command
from storelib.exceptions import Invalid, NotFound

if TYPE_CHECKING:
    from storelib.api.db import Repository
    from storelib.api.db.metadefs import Metadefs


@click.group("metadefs")
def metadefs() -> None:
    """Load, export and remove metadata definitions, which say what properties images and flavors may have."""


@command("load")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="Give namespaces that are there already what the files say.")
def load(session: Session, path: Path | None, replace: bool) -> None:
    """Load the namespace of the file PATH, or of every .json file of that directory; without PATH, storelib's own.

    All files are read before anything is changed; each namespace is then made in one transaction.
    """
    with _tables(_made(session)) as tables:
        from storelib.api import definition_files

        found = definition_files.read(path or definition_files.OURS)
        records = (
            {"namespace": each.namespace, "outcome": definition_files.load(tables, each, replace=replace)}
            for each in found
        )
        session.output.many(("namespace", "outcome"), records)


@command("export")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.argument("namespaces", nargs=-1)
def export(session: Session, directory: Path, namespaces: tuple[str, ...]) -> None:
    """Write NAMESPACES, or all, to files of DIRECTORY, which load reads again."""
    with _tables(repository(session)) as tables:
        from storelib.api import definition_files

        chosen = [tables.get(name) for name in namespaces] or list(definition_files.stored(tables))
        directory.mkdir(parents=True, exist_ok=True)

        def records() -> Iterator[dict[str, object]]:
            for each in chosen:
                file = directory / definition_files.file_name(each.namespace)
                text = json.dumps(definition_files.document(tables, each), indent=4, ensure_ascii=False)
                file.write_text(text + "\n", encoding="utf-8")
                yield {"namespace": each.namespace, "file": str(file)}

        session.output.many(("namespace", "file"), records())


@command("unload")
@click.argument("namespaces", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Remove all namespaces.")
def unload(session: Session, namespaces: tuple[str, ...], everything: bool) -> None:
    """Remove NAMESPACES with all that is in them, protected ones too."""
    if bool(namespaces) == everything:
        raise click.UsageError("name the namespaces to remove, or give --all")
    with _tables(repository(session)) as tables:
        from storelib.api import definition_files

        chosen = list(definition_files.stored(tables)) if everything else [tables.get(name) for name in namespaces]

        def records() -> Iterator[dict[str, object]]:
            for each in chosen:
                tables.delete(each.id, protected=True)
                yield {"namespace": each.namespace, "outcome": "removed"}

        session.output.many(("namespace", "outcome"), records())


for _each in (load, export, unload):
    metadefs.add_command(_each)


@contextlib.contextmanager
def _made(session: Session) -> Iterator[Repository]:
    """The configured database; an absent SQLite file is made, as a server's start would."""
    from storelib.api.db import open_repository

    found = open_repository(configuration(session))
    try:
        yield found
    finally:
        found.close()


@contextlib.contextmanager
def _tables(opened: AbstractContextManager[Repository]) -> Iterator[Metadefs]:
    """The definitions of the database that ``opened`` gives."""
    with image_api("metadefs"):
        from storelib.api.errors import ApiError, BadDatabase, ResourceNotFound, Unavailable

        try:
            with opened as found:
                yield found.metadefs
        except (Unavailable, BadDatabase):
            raise
        except ResourceNotFound as error:
            raise NotFound(str(error)) from error
        except ApiError as error:
            raise Invalid(str(error)) from error

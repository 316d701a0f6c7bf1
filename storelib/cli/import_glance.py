# SPDX-License-Identifier: Apache-2.0
"""``storelib db import-glance``: the catalogue of a Glance into the database of the image API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storelib.cli import exits
from storelib.cli.output import warn
from storelib.cli.parameters import Name
from storelib.cli.service import image_api, repository
from storelib.cli.session import Session, command
from storelib.exceptions import BadStoreConfiguration, Duplicate

if TYPE_CHECKING:
    from storelib.api.glance_import import Import

COLUMNS = ("kind", "id", "state", "detail")


@command("import-glance")
@click.argument("url", required=False, envvar="STORELIB_GLANCE_DATABASE")
@click.option(
    "--glance-config",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take the URL and metadata_encryption_key from Glance's configuration; may be repeated.",
)
@click.option(
    "--metadata-encryption-key",
    "key",
    type=Name(),
    envvar="STORELIB_METADATA_ENCRYPTION_KEY",
    show_envvar=True,
    metavar="KEY",
    help="Key with which Glance encrypted locations.",
)
@click.option(
    "--source",
    "name",
    type=Name(),
    metavar="NAME",
    help="What this Glance is called, if its database may move  [default: server and name of its database]",
)
@click.option("--dry-run", "-n", is_flag=True, help="Only tell what would be done.")
def import_glance(
    session: Session, url: str | None, files: tuple[Path, ...], key: str | None, name: str | None, dry_run: bool
) -> None:
    """Take images, members, metadata definitions and tasks from the database of a Glance.

    URL is that of its database [env: STORELIB_GLANCE_DATABASE]. Nothing is written there, and no data is read, moved or
    deleted: images stay where their locations say, in stores that the configuration file has, too. When run again it
    takes what is new or was changed there, and deletes what was deleted there; what was changed or deleted here
    meanwhile stays as it is here. It names what cannot be taken, and then exits with 9. It may be interrupted and begun
    again.
    """
    with image_api("db import-glance"):
        from storelib.api.errors import Conflict
        from storelib.api.glance_import import Import, Source

        url, key = _origin(url, files, key)
        with repository(session) as tables, Source(url) as source, session.output.counting("images") as progress:
            work = Import(
                source,
                tables,
                session.registry,
                name=(name or source.name)[-255:],
                key=key,
                dry_run=dry_run,
                progress=progress,
            )
            try:
                session.output.many(COLUMNS, _records(work))
            except Conflict as error:
                raise Duplicate(str(error)) from error
    _tell_counts(session, work, dry_run)
    if refused := work.counts.refused:
        warn(f"{refused} could not be taken")
        raise click.exceptions.Exit(exits.DIFFERENT)


def _origin(url: str | None, files: tuple[Path, ...], key: str | None) -> tuple[str, str | None]:
    """The URL and the key, from Glance's own files where they are not given."""
    if url is None and not files:
        raise click.UsageError("say which database: its URL, or --glance-config FILE")
    if not files:
        assert url is not None  # noqa: S101  (one of them is given)
        return url, key
    found_url, found_key = _read(files)
    url = url or found_url
    if not url:
        raise BadStoreConfiguration(f"{_shown(files)}: there is no [database] connection")
    return url, key or found_key or None


def _read(files: tuple[Path, ...]) -> tuple[str | None, str | None]:
    """The same from the files, as Glance itself reads them: a password has its ``$`` twice there."""
    from oslo_config import cfg

    from storelib.config import read_settings

    for file in files:
        # Its messages have line numbers and quote no line.
        read_settings(str(file))
    conf = cfg.ConfigOpts()
    conf.register_opt(cfg.StrOpt("connection", secret=True), group="database")
    conf.register_opt(cfg.StrOpt("metadata_encryption_key", secret=True))
    # What the environment says is for storelib's own database.
    conf(args=[], default_config_files=[str(file) for file in files], default_config_dirs=[], use_env=False)
    try:
        return conf.database.connection, conf.metadata_encryption_key
    except (cfg.Error, ValueError, RecursionError):
        # What oslo.config says would quote the value.
        raise BadStoreConfiguration(
            f"{_shown(files)}: [database] connection or metadata_encryption_key refers to another option by a '$', "
            "which cannot be followed here: give both as arguments; a '$' that is meant as it is is written '$$'"
        ) from None


def _shown(files: tuple[Path, ...]) -> str:
    return ", ".join(map(str, files))


def _records(work: Import) -> Iterator[dict[str, Any]]:
    for found in work.run():
        yield {"kind": found.kind, "id": found.key, "state": found.state, "detail": found.detail}


def _tell_counts(session: Session, work: Import, dry_run: bool) -> None:
    from storelib.api.glance_import.work import STATES

    counts = ({"kind": kind, **dict(states.items()), "dry_run": dry_run} for kind, states in work.counts.of.items())
    session.output.many(("kind", *STATES), counts)
    if dry_run:
        session.output.say("nothing was changed: this is what would be done")

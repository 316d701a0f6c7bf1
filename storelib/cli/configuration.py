# SPDX-License-Identifier: Apache-2.0
"""``storelib config``: a sample file, and the migration of a file of glance_store."""

from __future__ import annotations

import importlib.util
import io
import sys

import click

from storelib.cli.session import Session, command


@click.group("config")
def config() -> None:
    """Write a sample configuration, or migrate one of glance_store."""


@command("sample")
@click.option(
    "--output", "-o", default="-", type=click.Path(), metavar="FILE", help="File to write; stdout if not given."
)
@click.option("--force", "-f", is_flag=True, help="Replace FILE if it exists.")
def sample(session: Session, output: str, force: bool) -> None:
    """Write a configuration file with every option there is, its default and its help."""
    from oslo_config import cfg, generator

    conf = cfg.ConfigOpts()
    generator.register_cli_opts(conf)
    namespaces = ["storelib", "storelib.api"]
    # Its module is one of those that need the extra.
    if importlib.util.find_spec("sqlalchemy") is not None:
        namespaces.append("storelib.api.db")
    namespaces.append("storelib.node")
    arguments = [word for namespace in namespaces for word in ("--namespace", namespace)]
    conf(arguments, project="storelib", default_config_files=[], default_config_dirs=[])
    text = io.StringIO()
    generator.generate(conf, output_file=text)
    _write(text.getvalue(), output, force=force, private=False)


@command("migrate")
@click.argument("old", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--output", "-o", default="-", type=click.Path(), metavar="FILE", help="File to write, with mode 0600.")
@click.option("--force", "-f", is_flag=True, help="Replace FILE if it exists.")
def migrate(session: Session, old: tuple[str, ...], output: str, force: bool) -> None:
    """Turn OLD, with [glance_store] or enabled_backends, into a configuration of storelib.

    Of several files, as Glance reads them, the later ones go before. The result may hold credentials, as OLD does. What
    could not be migrated is in it as a comment.
    """
    from storelib.cli.migrate import migrated
    from storelib.config import read_settings
    from storelib.extras import needing

    settings = [setting for name in old for setting in read_settings(name)]
    # What becomes of Glance's own options is the image API's to say.
    with needing("storelib config migrate", "api"):
        text, remarks = migrated(settings, ", ".join(old))
    _write(text, output, force=force, private=True)
    if remarks:
        click.echo(f"storelib: look at {remarks} comments that begin with '# migrate:'", err=True)


config.add_command(sample)
config.add_command(migrate)


def _write(text: str, output: str, *, force: bool, private: bool) -> None:
    if output == "-":
        sys.stdout.write(text)
        return
    from storelib.cli import files

    if not force:
        files.refuse_existing(output)
    mode = 0o600 if private else None
    files.save(io.BytesIO(text.encode()), output, None, force=force, mode=mode)

# SPDX-License-Identifier: Apache-2.0
"""``storelib db``: the tables of the image API's database."""

from __future__ import annotations

import click

from storelib.cli.service import configuration, image_api
from storelib.cli.session import Session, command


@click.group("db")
def db() -> None:
    """Create, upgrade and check the database of the image API."""


@command("sync")
def sync(session: Session) -> None:
    """Create the tables, or bring them to the newest revision; harmless when repeated.

    Stop the servers first when their storelib is older than this one.
    """
    with image_api("db"):
        from storelib.api.db import migrate

        found = migrate.sync(_connection(session))
        session.output.one({"before": found.current, "now": found.head})


@command("version")
def version(session: Session) -> None:
    """Tell the revision of the tables, and the one that this storelib needs."""
    with image_api("db"):
        from storelib.api.db import migrate

        found = migrate.version(_connection(session))
        session.output.one({"current": found.current, "needed": found.head})


@command("check")
def check(session: Session) -> None:
    """Exit with 0 if a server can start on the database as it is, else say what to do."""
    with image_api("db"):
        from storelib.api.db.engine import Database
        from storelib.api.db.migrate import check as check_tables

        database = Database(_connection(session))
        try:
            check_tables(database)
        finally:
            database.close()
        session.output.say("the database is as this storelib needs it")


for _each in (sync, version, check):
    db.add_command(_each)


def _connection(session: Session) -> str:
    from storelib.api.db.config import read_options

    return str(read_options(configuration(session)).connection)

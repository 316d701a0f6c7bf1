# SPDX-License-Identifier: Apache-2.0
"""``storelib db``: the tables of the image API's database."""

from __future__ import annotations

import datetime
import time

import click

from storelib.cli.parameters import Age, Seconds
from storelib.cli.service import configuration, image_api, repository
from storelib.cli.session import Session, command

#: Images forgotten in one transaction.
_BATCH = 200
#: Seconds; longer ago than any image was deleted.
_LONG_AGO = 100 * 365.0 * 86400


@click.group("db")
def db() -> None:
    """Create, upgrade, check and clean the database of the image API."""


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
        with repository(session):
            pass
        session.output.say("the database is as this storelib needs it")


@command("purge")
@click.option(
    "--older-than",
    type=Age(),
    default="30d",
    show_default=True,
    metavar="AGE",
    help="Forget images that were deleted so long ago.",
)
@click.option(
    "--pause", type=Seconds(0), default=0.1, show_default=True, metavar="SECONDS", help="Between two batches."
)
def purge(session: Session, older_than: float, pause: float) -> None:
    """Forget deleted images for good: their rows, properties, tags and members.

    Nobody can ask for them afterwards, and their ids may be used again. Images whose data is yet to be deleted stay.
    May run beside servers: it goes in small batches, and may be interrupted and begun again.
    """
    with image_api("db"):
        age = datetime.timedelta(seconds=min(older_than, _LONG_AGO))
        before = datetime.datetime.now(datetime.timezone.utc) - age
        purged = 0
        with repository(session) as tables:
            while batch := tables.images.purge(before, _BATCH):
                purged += batch
                time.sleep(pause)
        session.output.one({"purged": purged})


for _each in (sync, version, check, purge):
    db.add_command(_each)


def _connection(session: Session) -> str:
    from storelib.api.db.config import read_options

    return str(read_options(configuration(session)).connection)

# SPDX-License-Identifier: Apache-2.0
"""``storelib db``: the tables of the image API's database."""

from __future__ import annotations

import datetime
import time

import click

from storelib.cli.import_glance import import_glance
from storelib.cli.parameters import Age, Seconds
from storelib.cli.service import configuration, image_api, repository
from storelib.cli.session import Session, command

#: Images forgotten in one transaction.
_BATCH = 200


@click.group("db")
def db() -> None:
    """Create, upgrade, check and clean the database of the image API."""


@command("sync")
def sync(session: Session) -> None:
    """Create the tables, or bring them to the newest revision; harmless when repeated.

    Servers of the revision before may go on meanwhile, and are restarted afterwards.
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
    "--pause",
    type=Seconds(0),
    default=0.1,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait between two batches.",
)
def purge(session: Session, older_than: float, pause: float) -> None:
    """Forget deleted images for good: their rows, properties, tags and members.

    Nobody can ask for them afterwards, and their ids may be used again. Images whose data is yet to be deleted stay.
    May run beside servers: it goes in small batches, and may be interrupted and begun again.
    """
    with image_api("db"):
        purged = 0
        with repository(session) as tables:
            earliest, _ = tables.processes.clocks()
            before = earliest - datetime.timedelta(seconds=older_than)
            while batch := tables.images.purge(before, _BATCH):
                purged += batch
                time.sleep(pause)
        session.output.one({"purged": purged})


@command("recount")
def recount(session: Session) -> None:
    """Count anew how many bytes each owner has in stores, of those whose sums are kept for quotas, and tell mistakes.

    May run beside servers. Exits with 1 if a sum was wrong; it is right afterwards.
    """
    with image_api("db"):
        with repository(session) as tables:
            owners = tables.images.owners_with_sums()
            found = [(owner, *tables.images.recount(owner)) for owner in owners]
        wrong = [each for each in found if each[1] != each[2]]
        for owner, before, now in wrong:
            session.output.say(f"owner {owner}: {before} bytes were on record, {now} are there")
        session.output.one({"owners": len(found), "wrong": len(wrong)})
    if wrong:
        raise click.exceptions.Exit(1)


for _each in (sync, version, check, purge, recount, import_glance):
    db.add_command(_each)


def _connection(session: Session) -> str:
    from storelib.api.db.config import read_options

    return str(read_options(configuration(session)).connection)

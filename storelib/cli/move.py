# SPDX-License-Identifier: Apache-2.0
"""``storelib image move``: empty a store into another one, on the database and the stores, beside running servers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from storelib.cli import exits
from storelib.cli.audit import COLUMNS as AUDIT_COLUMNS
from storelib.cli.audit import record_of
from storelib.cli.image.command import META
from storelib.cli.output import size_text, warn
from storelib.cli.parameters import Name, Rate, Seconds
from storelib.cli.service import image_api
from storelib.cli.service import service as open_service
from storelib.cli.session import Session, command, complete_store

if TYPE_CHECKING:
    from storelib.api.service import Service
    from storelib.api.service.moving import Move, Moved

COLUMNS = ("image", "size", "state", "detail")


@command("move")
@click.option("--from", "source", required=True, metavar="STORE", shell_complete=complete_store, help="Store to empty.")
@click.option(
    "--to", "target", required=True, metavar="STORE", shell_complete=complete_store, help="Store that takes the images."
)
@click.option("--owner", type=Name(), metavar="PROJECT", help="Only the images of this project.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only so many images.")
@click.option(
    "--workers", type=click.IntRange(1, 64), default=2, show_default=True, metavar="N", help="Images moved at a time."
)
@click.option("--rate", type=Rate(), metavar="BYTES", help="Read at most so much per second in all, like 80M.")
@click.option(
    "--linger",
    type=Seconds(0, 60),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Keep the old copy so long after the new one is in use, for downloads that are just beginning.",
)
@click.option("--dry-run", "-n", is_flag=True, help="Only tell what would be moved.")
def move(
    session: Session,
    source: str,
    target: str,
    owner: str | None,
    limit: int | None,
    workers: int,
    rate: float | None,
    linger: float,
    dry_run: bool,
) -> None:
    """Move the images of one store to another, beside running servers.

    It works on the database and the stores of the configuration file. Every image stays readable; its old copy goes
    only when the new one was read back and has the digest on record. It may be killed and run again at any time. At
    the end both stores are audited. Exits with 0 only if nothing is left to be moved and all agrees.
    """
    if any(key.startswith(META) for key in click.get_current_context().meta):
        raise click.UsageError("it asks no image API: it needs the configuration file of the servers, and no --url")
    with image_api("image move"), open_service(session) as service, session.output.progress("move") as progress:
        from storelib.api.service.moving import Move

        def tell(done: int) -> None:
            if progress is not None:
                progress(done, max(total, done))

        options: dict[str, Any] = {"owner": owner, "limit": limit, "workers": workers, "rate": rate, "linger": linger}
        work = Move(service, source, target, progress=tell, **options)
        if dry_run:
            _tell_plan(session, work)
            return
        # What a process left that died is undone before it is in the way. Of what servers do this is all.
        service.lease.start()
        service.lease.beat()
        total = work.plan().size
        left: list[Moved] = []
        session.output.many(COLUMNS, _records(work, left))
        failed = [each.error for each in left if each.error is not None]
        for each in left:
            warn(f"image {each.image_id} is not moved: {each.detail}")
        agree = _audit(session, service, (source, target))
    if failed:
        raise failed[0]
    if not agree:
        raise click.exceptions.Exit(exits.DIFFERENT)
    if left:
        raise click.exceptions.Exit(exits.IN_USE)


def _tell_plan(session: Session, work: Move) -> None:
    count, size = 0, 0

    def records() -> Iterator[dict[str, Any]]:
        nonlocal count, size
        for row in work.rows():
            count, size = count + 1, size + (row.size or 0)
            yield {"image": row.id, "size": row.size, "state": "would move", "detail": ""}

    session.output.many(COLUMNS, records())
    session.output.say(f"{count} images, {size_text(size)}, would be moved")


def _records(work: Move, left: list[Moved]) -> Iterator[dict[str, Any]]:
    with contextlib.closing(work.run()) as results:
        for each in results:
            if each.state not in ("moved", "gone"):
                left.append(each)
            yield {"image": each.image_id, "size": each.size, "state": each.state, "detail": each.detail}


def _audit(session: Session, service: Service, stores: tuple[str, str]) -> bool:
    """Whether the database and these two stores agree; what does not is told."""
    from storelib.api.auditing import Audit

    work = Audit(service.core.repository, service.core.registry, stores=stores)
    findings = [record_of(found) for found in work.run()]
    if findings:
        session.output.many(AUDIT_COLUMNS, findings)
        warn(f"{len(findings)} disagreement{'' if len(findings) == 1 else 's'} between the database and the two stores")
        return False
    session.output.say(f"database and stores agree: {work.counts.locations} locations")
    return True

# SPDX-License-Identifier: Apache-2.0
"""``storelib audit``: whether the database of the image API and its stores agree."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import click

from storelib.cli import exits
from storelib.cli.output import size_text, warn
from storelib.cli.parameters import Age, Rate
from storelib.cli.service import configuration, image_api, repository
from storelib.cli.session import Session, command

COLUMNS = ("kind", "image", "store", "uri", "detail")


@command("audit")
@click.option("--deep", is_flag=True, help="Read all data and compare its digests, too.")
@click.option(
    "--older-than",
    type=Age(),
    default="1d",
    show_default=True,
    metavar="AGE",
    help="Name what failed adds left behind if nobody touched it for so long.",
)
@click.option("--rate", type=Rate(), metavar="BYTES", help="With --deep: read at most so much per second, like 80M.")
def audit(session: Session, deep: bool, older_than: float, rate: float | None) -> None:
    """Prove that the image API's database and the stores agree exactly, or name every disagreement.

    Missing data, data that no image has, other sizes, with --deep other digests, images that wait for nobody, staged
    data, leftovers. Changes nothing, and may run beside servers. Exits with 0 only if all agree.
    """
    with image_api("audit"):
        from storelib.api.auditing import KINDS, Audit
        from storelib.api.config import read_options
        from storelib.api.service.rate_limit import RateLimit
        from storelib.api.service.staging import open_staging

        conf = configuration(session)
        directory = read_options(conf).staging_dir
        staging = open_staging(directory) if directory else None
        with repository(session) as tables, _progress(session, deep) as progress:
            work = Audit(
                tables,
                session.registry,
                staging=staging,
                deep=deep,
                older_than=older_than,
                rate_limit=RateLimit(rate),
                progress=progress,
            )
            session.output.many(COLUMNS, (record_of(found) for found in work.run()))
    counts = work.counts
    looked = f"{counts.images} images with {counts.locations} locations, {counts.stored} images in the stores"
    if deep:
        looked += f", {size_text(counts.read)} read"
    if counts.pending:
        looked += f"; the data at {counts.pending} more is still to be deleted"
    if counts.findings:
        if session.output.fancy:
            for kind in counts.findings:
                session.output.say(f"{kind}: {KINDS[kind]}")
        found = sum(counts.findings.values())
        warn(f"{found} disagreement{'' if found == 1 else 's'}; looked at {looked}")
        raise click.exceptions.Exit(exits.DIFFERENT)
    session.output.say(f"database and stores agree: {looked}")


@contextlib.contextmanager
def _progress(session: Session, deep: bool) -> Iterator[Any]:
    """How much was read; a listing alone has nothing to measure itself by."""
    if not deep:
        yield None
        return
    with session.output.progress("audit") as progress:
        yield (lambda done: progress(done, None)) if progress else None


def record_of(found: Any) -> dict[str, Any]:
    """``image`` rather than ``image_id``: what people see in a heading."""
    return {"kind": found.kind, "image": found.image_id, "store": found.store, "uri": found.uri, "detail": found.detail}

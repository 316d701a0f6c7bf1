# SPDX-License-Identifier: Apache-2.0
"""``storelib bench``: how fast one configured store is, from here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from storelib.capabilities import Capability
from storelib.cli.output import size_text, warn
from storelib.cli.parameters import Bytes
from storelib.cli.session import Session, about, command, complete_store, places_of

if TYPE_CHECKING:
    from storelib.driver import Store
    from storelib.testing.benchmark import Measurement

_COLUMNS = ("operation", "size", "at once", "variant", "MiB/s", "range", "images/s", "CPU s/GiB", "memory")
_SIZES = ("4K", "1M", "64M")


@command("bench")
@click.option(
    "--store", "name", metavar="STORE", shell_complete=complete_store, help="The store; the default one if not given."
)
@click.option(
    "--size",
    "sizes",
    type=Bytes(),
    multiple=True,
    default=_SIZES,
    show_default=True,
    metavar="SIZE",
    help="Bytes of an image: 4K, 64M, 1.5G; may be repeated.",
)
@click.option(
    "--at-once",
    type=click.IntRange(1, 256),
    multiple=True,
    default=(1, 8),
    show_default=True,
    metavar="N",
    help="Images handled at the same time; may be repeated.",
)
@click.option(
    "--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="How often each kind of work is done."
)
@click.option(
    "--seconds",
    type=click.IntRange(min=1),
    default=600,
    show_default=True,
    help="Begin no new round after so many; what has not been measured then is left out.",
)
@click.option(
    "--limit",
    type=Bytes(),
    default="20G",
    show_default=True,
    metavar="SIZE",
    help="Refuse to begin where more bytes than these would be written in all.",
)
def bench(
    session: Session,
    name: str | None,
    sizes: tuple[int, ...],
    at_once: tuple[int, ...],
    rounds: int,
    seconds: int,
    limit: int,
) -> None:
    """Measure how fast a store takes, gives and deletes images.

    Images of these sizes are added, read twice, looked up and deleted; for the largest size, also of unknown size, with
    digests that are known beforehand, and with holes. Every byte that is read is compared. Touches nothing but images
    with a random prefix of its own, and removes them. A row is the median of the rounds; the first lines tell how fast
    one core hashes, which limits most adds.
    """
    from storelib.testing import benchmark

    store = session.registry[name] if name else session.registry.default
    store.require(Capability.ADD | Capability.DELETE)
    plan = benchmark.cases(sorted(set(sizes)), sorted(set(at_once)))
    total = benchmark.written(plan, rounds)
    if total > limit:
        raise click.UsageError(
            f"this would write {size_text(total)}, which is more than --limit {size_text(limit)}: "
            "choose smaller or fewer --size, --at-once or --rounds, or a higher limit"
        )
    session.output.many(_COLUMNS, _rows(session, store, plan, rounds, seconds), at_once=True)


def _rows(session: Session, store: Store[Any], plan: Sequence[Any], rounds: int, seconds: int) -> Iterator[Any]:
    from storelib.testing import benchmark

    for algorithm, rate in benchmark.hashing_rates().items():
        record = {"operation": f"{algorithm} on one core", "rate": rate}
        yield record if session.output.json else {"operation": record["operation"], "MiB/s": f"{rate:.0f}"}
    measured = set()
    with about(store.name, places_of(store)), session.output.progress(f"bench {store.name}") as progress:
        for found in benchmark.run(store, plan, rounds=rounds, seconds=seconds, progress=progress):
            measured.add(found.case)
            yield _record(found) if session.output.json else _row(found)
    left_out = [case for case in plan if case not in measured]
    if left_out:
        warn(f"{len(left_out)} of {len(plan)} kinds of work were left out after {seconds} seconds; see --seconds")


def _row(found: Measurement) -> dict[str, Any]:
    moves_bytes = found.operation in ("add", "get", "get again")
    return {
        "operation": found.operation,
        "size": size_text(found.case.size),
        "at once": found.case.at_once,
        "variant": found.case.variant,
        "MiB/s": f"{found.rate:.1f}" if moves_bytes else None,
        "range": f"{found.slowest:.1f}-{found.fastest:.1f}" if moves_bytes else None,
        "images/s": f"{found.images:.1f}",
        "CPU s/GiB": f"{found.cpu:.2f}" if moves_bytes and found.case.size >= 1024 * 1024 else None,
        "memory": None if found.memory is None else size_text(found.memory),
    }


def _record(found: Measurement) -> dict[str, Any]:
    return {
        "operation": found.operation,
        "size": found.case.size,
        "at_once": found.case.at_once,
        "known_size": found.case.known_size,
        "digests": found.case.digests,
        "sparse": found.case.sparse,
        "rate": found.rate,
        "slowest": found.slowest,
        "fastest": found.fastest,
        "images": found.images,
        "cpu": found.cpu,
        "memory": found.memory,
    }

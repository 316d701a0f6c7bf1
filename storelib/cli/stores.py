# SPDX-License-Identifier: Apache-2.0
"""Commands about whole stores: stores, check, gc."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from storelib.cli import exits
from storelib.cli.output import Finding, size_text, warn
from storelib.cli.parameters import Age
from storelib.cli.session import Session, command, complete_store, fail_with, from_each

if TYPE_CHECKING:
    from storelib.driver import Store
    from storelib.exceptions import StoreError


@command("stores")
def stores(session: Session) -> None:
    """List the stores, with those that are disabled and why."""
    columns = ("store", "default", "schemes", "weight", "state", "description")
    session.output.many(columns, _all_stores(session))


@command("check")
@click.argument("names", metavar="[STORE]...", nargs=-1, shell_complete=complete_store)
def check(session: Session, names: tuple[str, ...]) -> None:
    """Ask the back ends of the named stores, or of all, whether they work."""
    failures: list[int] = []
    session.output.many(("store", "healthy", "free", "detail"), _healths(session, names, failures))
    if failures:
        raise click.exceptions.Exit(failures[0])


@command("gc")
@click.argument("names", metavar="[STORE]...", nargs=-1, shell_complete=complete_store)
@click.option(
    "--older-than",
    type=Age(),
    default="1d",
    show_default=True,
    metavar="AGE",
    help="Only what nobody touched for so long: 90 (seconds), 15m, 12h, 1d, 2w.",
)
@click.option("--prefix", metavar="TEXT", help="Only of images whose id starts so.")
@click.option("--dry-run", "-n", is_flag=True, help="Only tell what would be removed.")
def gc(session: Session, names: tuple[str, ...], older_than: float, prefix: str | None, dry_run: bool) -> None:
    """Remove what failed adds left behind in the named stores, or in all."""
    from storelib.capabilities import Capability

    found = session.stores(names)
    if not names:
        found = [store for store in found if Capability.GC in store.capabilities]
    failures: list[StoreError] = []
    with session.output.finding("looking for leftovers") as note:
        collected = functools.partial(_collected, older_than=older_than, prefix=prefix, dry_run=dry_run)
        records = from_each(found, collected, failures)
        session.output.many(("store", "size", "id", "name"), _noted(records, note), at_once=True)
    fail_with(failures)


def _noted(records: Iterator[dict[str, Any]], note: Finding | None) -> Iterator[dict[str, Any]]:
    """The same, while ``note`` is told how many there are and of how many bytes."""
    size = 0
    for count, record in enumerate(records, 1):
        size += record["size"] or 0
        if note is not None:
            note(count, size)
        yield record


def _collected(store: Store[Any], older_than: float, prefix: str | None, dry_run: bool) -> Iterator[dict[str, Any]]:
    for item in store.find_garbage(older_than, prefix) if dry_run else store.collect(older_than, prefix):
        yield {
            "store": store.name,
            "id": item.image_id,
            "size": item.size,
            "name": item.name,
            "removed": not dry_run,
        }


def _all_stores(session: Session) -> Iterator[dict[str, Any]]:
    registry = session.registry
    for store in registry:
        yield {
            "store": store.name,
            "default": store.name == registry.default_name,
            "schemes": list(store.schemes),
            "weight": store.conf.weight,
            "state": f"read-only: {store.add_disabled}" if store.add_disabled else "ready",
            "description": store.conf.description,
            "capabilities": list(store.capabilities.names),
        }
    for name, disabled in registry.disabled.items():
        yield {
            "store": name,
            "default": name == registry.default_name,
            "schemes": [],
            "weight": None,
            "state": f"disabled: {disabled.reason}",
            "description": None,
            "capabilities": [],
        }


def _healths(session: Session, names: tuple[str, ...], failures: list[int]) -> Iterator[dict[str, Any]]:
    from storelib.capabilities import Capability
    from storelib.exceptions import StoreError

    registry = session.registry
    for name in names or [*(store.name for store in registry), *registry.disabled]:
        try:
            store = registry[name]
            if Capability.CHECK not in store.capabilities and not names:
                continue
            health = store.check()
        except StoreError as error:
            failures.append(exits.code_of(error))
            yield {"store": name, "healthy": False, "free": None, "detail": str(error)}
        else:
            free = health.free if session.output.json else health.free and size_text(health.free)
            yield {"store": name, "healthy": True, "free": free, "detail": health.detail}
    if failures:
        warn(f"{len(failures)} of the stores do not work")

# SPDX-License-Identifier: Apache-2.0
"""``storelib conformance``: the suite of promises against one configured store."""

from __future__ import annotations

import click

from storelib.cli.session import Session, command, complete_store


@command("conformance")
@click.option(
    "--store", "name", metavar="STORE", shell_complete=complete_store, help="The store; the default one if not given."
)
@click.option("--keep-part-size", is_flag=True, help="Do not lower the part size to make the tests quick.")
def conformance(session: Session, name: str | None, keep_part_size: bool) -> None:
    """Test that a live store keeps every promise of storelib.

    Touches nothing but images with a random prefix of its own, and removes them.
    """
    from storelib.testing import live

    store = session.registry[name] if name else session.registry.default
    raise click.exceptions.Exit(live.run(store, keep_part_size=keep_part_size))

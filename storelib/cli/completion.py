# SPDX-License-Identifier: Apache-2.0
"""``storelib completion``: the script that lets a shell complete commands, options and stores."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from storelib.cli.output import print_line
from storelib.cli.session import Session, command

_VARIABLE = "_STORELIB_COMPLETE"


@command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, session: Session, shell: str) -> None:
    """Print the completion script for a shell: source <(storelib completion bash)"""
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"no completion for {shell}")
    script = found(context.find_root().command, {}, "storelib", _VARIABLE)
    print_line(script.source_template % script.source_vars())

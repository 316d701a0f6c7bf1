# SPDX-License-Identifier: Apache-2.0
"""``storelib``: puts the commands together, and turns whatever goes wrong into one line and an exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from storelib._version import __version__
from storelib.cli import (
    audit,
    bench,
    cache,
    completion,
    configuration,
    conformance,
    db,
    demo,
    exits,
    image,
    images,
    metadefs,
    move,
    node,
    preload,
    scrub,
    serve,
    stores,
    worker,
)
from storelib.cli.output import visible, warn
from storelib.cli.session import Session, shared_options

#: What click raises for a group without a command, with its help for a message; click 8.1 prints the help itself.
_NO_COMMAND: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


class Group(click.Group):
    """The root: takes the shared options, lists commands by theme, ends its help with the exit codes."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Names of the commands, in the order they were added."""
        return list(self.commands)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit codes below the options."""
        with formatter.section("Exit codes"):
            for line in exits.as_text().splitlines():
                formatter.write(f"{line}\n")


@click.group(cls=Group, context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 110})
@click.version_option(__version__, prog_name="storelib", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Image stores: add, read, copy, check and delete images in the stores of a configuration file.

    Where a FILE is expected, - is stdin or stdout. The configuration is --config or STORELIB_CONFIG, else the first of
    ./storelib.ini, ~/.config/storelib/storelib.ini and /etc/storelib/storelib.ini.
    """
    context.ensure_object(Session)


cli.params += shared_options()
for each in (
    *(images.add, images.get, images.stat, images.ls, images.rm, images.cp, images.verify, images.acl),
    *(stores.stores, stores.check, stores.gc),
    *(
        preload.preload,
        node.node,
        serve.serve,
        worker.worker,
        db.db,
        metadefs.metadefs,
        cache.cache,
        image.image,
        audit.audit,
        scrub.scrub,
    ),
    *(configuration.config, conformance.conformance, bench.bench, demo.demo, completion.completion),
):
    cli.add_command(each)
# Of the images of an API, but beside it: it needs the database and the stores.
image.image.add_command(move.move)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; nothing but Ctrl-C and signals ends it otherwise."""
    session = Session()
    try:
        status: Any = cli.main(arguments, prog_name="storelib", standalone_mode=False, obj=session)
        sys.stdout.flush()
    except click.UsageError as error:
        if isinstance(error, _NO_COMMAND):
            click.echo(error.format_message(), err=True)
        else:
            warn(error.format_message())
        return exits.USAGE
    except click.ClickException as error:
        warn(error.format_message())
        return exits.FAILED
    except (click.Abort, KeyboardInterrupt):
        warn("interrupted")
        return exits.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has closed it: it has seen enough.
        _drop_stdout()
        return exits.FAILED
    except Exception as error:
        if session.verbose:
            logging.exception("the error in full")
        warn(_sentence(error))
        _drop_stdout()
        return exits.code_of(error)
    return status if isinstance(status, int) else 0


class _Visible(logging.Formatter):
    """Messages may have names of images in them, which are other people's text."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines of a message, none of which a terminal obeys."""
        return "\n".join(map(visible, super().format(record).split("\n")))


def main() -> NoReturn:
    """Run the command line and exit; the console script ``storelib``."""
    _open_closed_streams()
    handler = logging.StreamHandler()
    handler.setFormatter(_Visible("storelib: %(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Under nohup, SIGHUP is ignored and stays so.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _terminate)
    sys.exit(run())


def _open_closed_streams() -> None:
    """Have stdin, stdout and stderr also where the parent process has closed them.

    The next file that is opened would get the number of one, and print() writes to stdout where there is no stderr.
    Reading the one and writing results to the other still fail.
    """
    for name, mode, way in (("stdin", "r", os.O_WRONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, way)
            setattr(sys, name, open(descriptor, mode, encoding="utf-8"))  # noqa: SIM115  (open as long as the process)


def _drop_stdout() -> None:
    """Let what stdout would not take go nowhere, or Python would complain about it at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, frame: object) -> NoReturn:
    # As an exception, so that an unfinished image or file is removed.
    raise SystemExit(exits.TERMINATED)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if type(error).__module__ == "builtins" and not isinstance(error, OSError):
        # A mistake of ours or of a library: its text alone may be a mere word, such as the key that is missing.
        return f"unexpected {type(error).__name__}: {error}; --verbose tells more"
    return str(error) or type(error).__name__

# SPDX-License-Identifier: Apache-2.0
"""``storelib worker``: a process that does what the image API puts off."""

from __future__ import annotations

import os
import sys
import warnings

import click

from storelib.cli.parameters import Seconds
from storelib.cli.service import configuration, image_api
from storelib.cli.session import Session, command


@command("worker")
@click.option(
    "--grace",
    type=Seconds(0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long work under way may go on after SIGTERM or Ctrl-C; then it is left for another process.",
)
def worker(session: Session, grace: float) -> None:
    """Do the imports, copies and hashings that storelib serve is asked for, until SIGTERM or Ctrl-C.

    [DEFAULT] transport_url names the message bus that tells of them, [api] import_workers how many are done at a time.
    The configuration is that of the API: the same stores, database, transport_url and staging_dir.
    """
    with image_api("worker"), warnings.catch_warnings():
        # What oslo.messaging stands on still imports eventlet, and warns of that.
        warnings.simplefilter("ignore", DeprecationWarning)
        from storelib.api import worker as process

        conf = configuration(session)

        def announce() -> None:
            if session.output.json:
                session.output.one({"workers": conf.api.import_workers, "pid": os.getpid()})
            else:
                session.output.say(f"waiting for work, {conf.api.import_workers} at a time; pid {os.getpid()}")
            sys.stdout.flush()

        process.run(conf, grace, announce)

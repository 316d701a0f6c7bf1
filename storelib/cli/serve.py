# SPDX-License-Identifier: Apache-2.0
"""``storelib serve``: the image API as a server of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import click

from storelib.cli.parameters import Seconds
from storelib.cli.service import configuration, image_api
from storelib.cli.session import Session, command

_AUTH = {
    "noauth": "no authentication: every caller is an administrator",
    "http_basic": "user names and passwords",
    "keystone": "Keystone tokens",
}
#: More processes than this want to be asked for.
_MOST_WORKERS = 8


@command("serve")
@click.option(
    "--bind",
    default="127.0.0.1:9292",
    show_default=True,
    metavar="HOST:PORT",
    help="Address to listen on; port 0: any free one. Also [IPv6]:PORT, unix:PATH, or systemd for the socket it gives.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 512),
    metavar="N",
    help=f"Processes; one for each CPU, but at most {_MOST_WORKERS}, if not given.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    default=64,
    show_default=True,
    metavar="N",
    help="Requests under way in one process.",
)
@click.option("--certfile", type=click.Path(), metavar="FILE", help="Serve HTTPS with this certificate and its chain.")
@click.option("--keyfile", type=click.Path(), metavar="FILE", help="Its key, if FILE of --certfile does not have it.")
@click.option(
    "--grace",
    type=Seconds(0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long requests under way may go on after SIGTERM or Ctrl-C; then they are cut, and uploads undone.",
)
@click.option("--access-log", metavar="FILE", help="Write a line for each request; - is stdout.")
@click.option(
    "--allow-noauth-anywhere",
    is_flag=True,
    help="Serve without authentication on addresses that other machines reach, too.",
)
def serve(
    session: Session,
    bind: str,
    workers: int | None,
    threads: int,
    certfile: str | None,
    keyfile: str | None,
    grace: float,
    access_log: str | None,
    allow_noauth_anywhere: bool,
) -> None:
    """Serve the image API of the configured stores until SIGTERM or Ctrl-C.

    [api] auth_strategy says who may do what, [database] connection where the images are recorded; an absent or empty
    SQLite database is created. SIGHUP has new processes go on with the configuration as it is then.
    """
    with image_api("serve"), warnings.catch_warnings(), _counting_together():
        # WebOb, on which the middleware of OpenStack stands, still imports cgi.
        warnings.simplefilter("ignore", DeprecationWarning)
        from storelib.api import serving

        settings = serving.Settings(
            serving.Address(bind),
            workers or min(len(os.sched_getaffinity(0)), _MOST_WORKERS),
            threads,
            certfile,
            keyfile,
            grace,
            access_log,
            allow_noauth_anywhere,
            session.verbose,
        )
        conf = configuration(session)
        serving.check(conf, settings)

        def announce(url: str) -> None:
            auth = conf.api.auth_strategy
            record = {"url": url, "auth": auth, "workers": settings.workers, "threads": threads, "pid": os.getpid()}
            if session.output.json:
                session.output.one(record)
            else:
                processes = f"{settings.workers} process{'es' if settings.workers > 1 else ''} of {threads} threads"
                session.output.say(f"listening on {url} with {_AUTH[auth]} ({auth}); {processes}, pid {os.getpid()}")
            sys.stdout.flush()

        def read_again() -> Any:
            fresh = Session()
            fresh.config = session.config
            return configuration(fresh)

        serving.run(conf, settings, announce, read_again)


@contextlib.contextmanager
def _counting_together() -> Iterator[None]:
    """A directory in which all workers count for /metrics, unless the operator names one.

    prometheus_client looks for it when it is imported, so nothing of the API may be before.
    """
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        yield
        return
    parent, directory = os.getpid(), tempfile.mkdtemp(prefix="storelib-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    try:
        yield
    finally:
        # Workers come by here, too, when they end.
        if os.getpid() == parent:
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]
            shutil.rmtree(directory, ignore_errors=True)

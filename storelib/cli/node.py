# SPDX-License-Identifier: Apache-2.0
"""``storelib node``: the agent that has images on a node before the first instance needs them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

import click

from storelib.cli.session import Session, command, search_path


@command("node")
def node(session: Session) -> None:
    """Fetch the images that the image API wants on this node, together with other nodes, until SIGTERM or Ctrl-C.

    The configuration has a section [node]; api_url and target_dir are what it needs at least.
    """
    from storelib.node.agent import Agent
    from storelib.node.options import load

    path = session.config or next((place for place in search_path() if place.is_file()), None)
    if path is None:
        raise click.UsageError("no configuration file: name one with --config or STORELIB_CONFIG")
    settings, conf = load(path)
    logging.getLogger("storelib.node").setLevel(logging.DEBUG if session.verbose else logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # As in main(): under nohup, SIGHUP stays ignored.
        if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN):
            signal.signal(number, lambda *_: stop.set())
    agent = Agent(settings, conf)
    try:
        found = agent.enrol(stop)
        if found is None:
            return
        if session.output.json:
            session.output.one({"id": found.id, "name": found.name, "pid": os.getpid()})
        else:
            session.output.say(f"node {found.name}, pid {os.getpid()}: images come to {settings.target_dir}")
        sys.stdout.flush()
        agent.run(stop)
    finally:
        agent.close()

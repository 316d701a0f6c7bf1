# SPDX-License-Identifier: Apache-2.0
"""The message bus between the API and its workers, by oslo.messaging: "there is work", and nothing else.

What work there is stands in the database, where workers also look by themselves now and then. So nothing is lost with
a message, and nobody waits for a bus that is away.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Protocol

from oslo_config import cfg

from storelib.exceptions import MissingDependency
from storelib.messaging import WORKERS, Messages, transport_url

LOG = logging.getLogger(__name__)


class Bus(Protocol):
    """Tells workers that there is work."""

    def wake(self) -> None:
        """Have all workers look for work; returns at once, and raises nothing."""

    def listen(self, woken: Callable[[], None]) -> None:
        """Have ``woken`` called, in another thread, whenever a worker is to look for work."""


class MessageBus:
    """The bus that ``[DEFAULT] transport_url`` names; raises MissingDependency. Connects when it is first needed."""

    def __init__(self, conf: cfg.ConfigOpts, topic: str = WORKERS) -> None:
        self._messages = Messages(conf, topic)
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._sender: threading.Thread | None = None

    def wake(self) -> None:
        self._wanted.set()
        with self._lock:
            if self._sender is not None:
                return
            try:
                sender = threading.Thread(target=self._send, name="storelib-bus", daemon=True)
                sender.start()
                self._sender = sender
            except RuntimeError as error:
                LOG.warning("workers are not told of work, and find it later: %s", error)

    def listen(self, woken: Callable[[], None]) -> None:
        threading.Thread(target=self._listen, args=(woken,), name="storelib-bus", daemon=True).start()

    def _send(self) -> None:
        send: Callable[[], None] | None = None
        while True:
            self._wanted.wait()
            self._wanted.clear()
            try:
                send = send or self._messages.sender()
                send()
            except Exception as error:  # noqa: BLE001  (of several libraries)
                LOG.warning("workers are not told of work, and find it later: %s", type(error).__name__)

    def _listen(self, woken: Callable[[], None]) -> None:
        try:
            self._messages.listen(f"{os.uname().nodename}-{os.getpid()}", woken)
        except Exception as error:  # noqa: BLE001  (of several libraries)
            LOG.warning("this worker is not told of work, and only looks for it: %s", type(error).__name__)


def bus_from(conf: cfg.ConfigOpts, topic: str = WORKERS) -> Bus | None:
    """The bus of ``topic`` that is configured, None where there is none, or nothing to use it with."""
    if not transport_url(conf):
        return None
    try:
        return MessageBus(conf, topic)
    except MissingDependency as error:
        LOG.warning("there are no workers: %s", error)
        return None

# SPDX-License-Identifier: Apache-2.0
"""A message by which the image API has all nodes ask at once: where ``[DEFAULT] transport_url`` is set.

It says nothing else, and nothing is lost with it: nodes ask anyway, only later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from oslo_config import cfg

from storelib.messaging import NODES, Messages, transport_url

LOG = logging.getLogger(__name__)


def listen(conf: cfg.ConfigOpts, name: str, woken: Callable[[], None]) -> None:
    """Have ``woken`` called in another thread whenever nodes are to ask; returns at once.

    Raises MissingDependency where there is a bus and nothing to use it with.
    """
    if not transport_url(conf):
        return
    messages = Messages(conf, NODES)
    threading.Thread(target=_listen, args=(messages, name, woken), name="storelib-node-bus", daemon=True).start()


def _listen(messages: Messages, name: str, woken: Callable[[], None]) -> None:
    try:
        messages.listen(name, woken)
    except Exception as error:  # noqa: BLE001  (of several libraries)
        LOG.warning(
            "the message bus cannot be used, and the image API is asked as often as it says: %s", type(error).__name__
        )

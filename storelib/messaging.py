# SPDX-License-Identifier: Apache-2.0
"""What the image API, its workers and nodes share of oslo.messaging: a message that wakes, and says nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from oslo_config import cfg

from storelib.config import OptionReader
from storelib.extras import needing

WORKERS = "storelib-workers"
#: What the agents on nodes listen to, who then send a heartbeat at once.
NODES = "storelib-nodes"
#: Groups of options that oslo.messaging 18 reads without registering them, except in oslo.config's global object.
_UNREGISTERED = ("oslo_messaging_metrics", "oslo_messaging_tracing")


def transport_url(conf: cfg.ConfigOpts) -> str:
    """``[DEFAULT] transport_url`` as it is written, empty where it is not set; oslo.messaging needs not be there."""
    found = [each.value for each in OptionReader(conf).settings if each.key == "transport_url"]
    return found[0] if found else ""


def oslo_messaging(what: str) -> Any:
    """The library, which ``what`` needs; raises MissingDependency."""
    with needing(what, "notifications"), warnings.catch_warnings():
        # What it stands on still imports eventlet, and warns of that.
        warnings.simplefilter("ignore")
        import oslo_messaging

        return oslo_messaging


class Messages:
    """The messages of ``topic``; raises MissingDependency. Connects when it is first needed."""

    def __init__(self, conf: cfg.ConfigOpts, topic: str) -> None:
        self._library = oslo_messaging("[DEFAULT] transport_url")
        self._conf = conf
        self._topic = topic
        for group in _UNREGISTERED:
            known = cfg.CONF._groups.get(group)
            if known is not None:
                conf.register_opts([each["opt"] for each in known._opts.values()], group=group)

    def sender(self) -> Callable[[], None]:
        """What sends one to all that listen; it raises what several libraries raise."""
        target = self._library.Target(topic=self._topic, fanout=True)
        # A process that misses this one looks by itself.
        client = self._library.get_rpc_client(self._transport(), target, retry=2)
        return lambda: client.cast({}, "wake")

    def listen(self, name: str, woken: Callable[[], None]) -> None:
        """Call ``woken``, in another thread, at each message; ``name`` is nobody else's.

        Waits for a bus that is away, which connects again whenever it was. Raises what several libraries raise.
        """
        target = self._library.Target(topic=self._topic, server=name)
        self._library.get_rpc_server(self._transport(), target, [_Endpoint(woken)]).start()

    def _transport(self) -> Any:
        return self._library.get_rpc_transport(self._conf)


class _Endpoint:
    """The methods that oslo.messaging calls."""

    def __init__(self, woken: Callable[[], None]) -> None:
        self._woken = woken

    def wake(self, context: Any) -> None:
        """There is something new."""
        self._woken()

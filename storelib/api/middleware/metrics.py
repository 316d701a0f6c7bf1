# SPDX-License-Identifier: Apache-2.0
"""What is counted, for Prometheus: requests by route and status with their time, bytes in and out.

Where ``PROMETHEUS_MULTIPROC_DIR`` (prometheus_client's own variable) is set when this is imported, which ``storelib
serve`` sees to, ``/metrics`` of any process tells of all. What processes counted that have ended stays.
"""

from __future__ import annotations

import os
import time
from typing import Any

import falcon
import prometheus_client
from prometheus_client import multiprocess
from prometheus_client.exposition import make_wsgi_app

#: Others are counted as one: what a request calls its method is the client's choice, and each value takes memory.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_TOGETHER = "PROMETHEUS_MULTIPROC_DIR" in os.environ
#: Seconds; uploads and downloads of large images take minutes.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30, 120, 600)


class Metrics:
    """Falcon middleware that counts, in a registry of its own, so that several applications can live in one process."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self._requests = prometheus_client.Histogram(
            "storelib_api_request_seconds",
            "Requests by method, route and status, and how long it took until the response began.",
            ("method", "route", "status"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._sent = prometheus_client.Counter(
            "storelib_api_image_bytes_sent", "Bytes of images that were asked for and found.", registry=self.registry
        )
        self._received = prometheus_client.Counter(
            "storelib_api_image_bytes_received", "Bytes of images that were uploaded.", registry=self.registry
        )
        # Looking children up by label values takes a lock and a tuple of strings each time.
        self._children: dict[tuple[str, str, str], Any] = {}

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Remember when it began."""
        req.context.began = time.perf_counter()

    def process_response(self, req: falcon.Request, resp: falcon.Response, resource: object, succeeded: bool) -> None:
        """Count the request, its time until now and the bytes of data."""
        method = req.method if req.method in METHODS else "other"
        key = (method, req.uri_template or "none", str(resp.status)[:3])
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._requests.labels(*key)
        began = getattr(req.context, "began", None)
        child.observe(0 if began is None else time.perf_counter() - began)
        # Set by those who take and give data: the body of an upload may have no length.
        if received := getattr(req.context, "received", None):
            self._received.inc(received)
        if sent := getattr(req.context, "sent", None):
            self._sent.inc(sent)

    def page(self) -> Any:
        """The WSGI application of ``/metrics``."""
        if not _TOGETHER:
            return make_wsgi_app(self.registry)
        together = prometheus_client.CollectorRegistry()
        multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return make_wsgi_app(together)

# SPDX-License-Identifier: Apache-2.0
"""What is counted, for Prometheus: requests by route and status with their time, bytes in and out.

Where ``PROMETHEUS_MULTIPROC_DIR`` (prometheus_client's own variable) is set when this is imported, which ``storelib
serve`` sees to, ``/metrics`` of any process tells of all. What processes counted that have ended stays; what is under
way is that of living ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import falcon
import prometheus_client
from prometheus_client import multiprocess
from prometheus_client.exposition import make_wsgi_app

from storelib.api.middleware import metrics_files
from storelib.api.middleware.versions import WsgiApp
from storelib.api.service.under_way import What

#: Others are counted as one: what a request calls its method is the client's choice, and each value takes memory.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_TOGETHER = metrics_files.together()
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
        self._in_flight = self._gauge("storelib_api_requests_in_flight", "Requests whose response is not sent yet.")
        self._under_way = {
            "uploads": self._gauge("storelib_api_uploads_in_flight", "Uploads of images that are being received."),
            "imports": self._gauge("storelib_api_imports_in_flight", "Imports, copies and hashings that are running."),
            "staging_bytes": self._gauge("storelib_api_staging_bytes", "Bytes of the data that is being staged."),
        }
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
        # Set by what takes and gives data: the body of an upload may have no length.
        if received := getattr(req.context, "received", None):
            self._received.inc(received)
        if sent := getattr(req.context, "sent", None):
            self._sent.inc(sent)

    def count_downloads(self) -> Callable[[str, int], None]:
        """What counts downloads by where they come from, for a service that has a cache."""
        counters = {
            "hit": self._counter("storelib_api_cache_hits", "Downloads from the image cache."),
            "follow": self._counter("storelib_api_cache_followers", "Downloads of images that were being cached."),
            "miss": self._counter("storelib_api_cache_misses", "Downloads that the image cache did not have."),
        }
        sent = self._counter("storelib_api_cache_bytes_sent", "Bytes of images that were found in the cache.")

        def count(outcome: str, size: int) -> None:
            counters[outcome].inc()
            if outcome == "hit":
                sent.inc(size)

        return count

    def under_way(self, what: What, by: int) -> None:
        """So much more is under way, or less."""
        self._under_way[what].inc(by)

    def _gauge(self, name: str, help_text: str) -> prometheus_client.Gauge:
        return prometheus_client.Gauge(name, help_text, registry=self.registry, multiprocess_mode="livesum")

    def around(self, app: WsgiApp) -> WsgiApp:
        """``app`` with its requests counted as long as their responses are being sent."""
        gauge = self._in_flight

        def counted(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            gauge.inc()
            try:
                return _ending(app(environ, start_response), gauge.dec)
            except BaseException:
                gauge.dec()
                raise

        return counted

    def _counter(self, name: str, help_text: str) -> prometheus_client.Counter:
        return prometheus_client.Counter(name, help_text, registry=self.registry)

    def page(self, more: Iterable[Any] = ()) -> WsgiApp:
        """The WSGI application of ``/metrics``; ``more`` are collectors of what is not counted here."""
        if not _TOGETHER:
            for each in more:
                self.registry.register(each)
            page: WsgiApp = make_wsgi_app(self.registry)
            return page
        together = prometheus_client.CollectorRegistry()
        multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        for each in more:
            together.register(each)
        of_all: WsgiApp = make_wsgi_app(together)

        def read(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            with metrics_files.reading():
                return of_all(environ, start_response)

        return read


def _ending(response: Iterable[bytes], end: Callable[[], None]) -> Iterable[bytes]:
    """``response``, whose ``close`` calls ``end``. The server sends files by itself, if they come as it made them."""
    if isinstance(response, (list, tuple)):
        end()
        return response
    close = getattr(response, "close", None)

    def close_and_end() -> None:
        try:
            if close is not None:
                close()
        finally:
            end()

    try:
        response.close = close_and_end  # type: ignore[attr-defined]
    except AttributeError:
        return _Response(response, close_and_end)
    return response


class _Response:
    """A response with a ``close`` of its own."""

    def __init__(self, chunks: Iterable[bytes], close: Callable[[], None]) -> None:
        self._chunks = chunks
        self.close = close

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._chunks)

# SPDX-License-Identifier: Apache-2.0
"""create_app: the WSGI application, put together from the service, both versions of the API and what is around them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from oslo_config import cfg

from storelib.api import config, openapi, staged_page, v1, v2
from storelib.api.background_audit import AuditMetrics, BackgroundAudit
from storelib.api.db import open_repository
from storelib.api.middleware.cross_origin import shared
from storelib.api.middleware.empty_ids import NoEmptyIds
from storelib.api.middleware.error_handlers import ErrorHandlers
from storelib.api.middleware.identity import Identify, Identity, strategy
from storelib.api.middleware.metrics import Metrics
from storelib.api.middleware.own_credentials import OwnCredentials
from storelib.api.middleware.versions import LISTED, LISTED_WITH_CACHE, VersionNegotiation, WsgiApp
from storelib.api.preload_metrics import PreloadMetrics
from storelib.api.purging import Purging
from storelib.api.service import Service
from storelib.api.v1.components import COMPONENTS
from storelib.api.v2.components import components
from storelib.extras import needing
from storelib.registry import Registry


class Application:
    """A WSGI application with the service behind it. ``close`` finishes background work and leaves the database."""

    def __init__(self, wsgi: WsgiApp, service: Service, rounds: Sequence[BackgroundAudit | Purging] = ()) -> None:
        self._wsgi = wsgi
        self.service = service
        self._finalizer = weakref.finalize(self, _shut_down, service, rounds)
        # Threads must be stopped before the interpreter takes their modules apart.
        self._finalizer.atexit = True

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return self._wsgi(environ, start_response)

    def close(self) -> None:
        """Finish what is under way in the background and give the lease back; harmless when done twice."""
        self._finalizer()


@needing("storelib.api", "api")
def create_app(conf: cfg.ConfigOpts, registry: Registry | None = None) -> Application:
    """The image API as a WSGI application, for any WSGI server.

    ``conf`` is a parsed ConfigOpts; the options it does not know yet are registered. ``registry`` are the stores, by
    default those that ``conf`` lists. Raises BadStoreConfiguration for a mistake in the configuration, and what
    ``storelib.api.db`` raises for a database that cannot be used.
    """
    config.register_opts(conf)
    stores = registry if registry is not None else Registry.from_conf(conf)
    repository = open_repository(conf)
    try:
        service = Service(conf, repository, stores)
        options = service.core.options
        rounds: list[BackgroundAudit | Purging] = []
        if options.audit_interval:
            rounds.append(BackgroundAudit(service, options.audit_interval, options.audit_rate))
        if options.purge_after:
            rounds.append(Purging(service, options.purge_after, options.purge_rate))
        application = Application(build_wsgi(conf, service), service, rounds)
    except BaseException:
        repository.close()
        raise
    service.start()
    for each in rounds:
        each.start()
    return application


def build_wsgi(conf: cfg.ConfigOpts, service: Service, identify: Identify | None = None) -> WsgiApp:
    """Everything between the server and the service. ``identify`` replaces what ``auth_strategy`` says."""
    found, around, challenge = strategy(conf, service.core.policy)
    metrics = Metrics() if conf.api.metrics else None
    if metrics:
        service.core.under_way.on_change = metrics.under_way
    if metrics and service.cache.is_configured:
        service.cache.on_download = metrics.count_downloads()
    identity = Identity(identify or found, conf.api.max_request_id_length)
    app = openapi.Routes(middleware=[metrics, identity] if metrics else [identity])
    app.req_options.strip_url_path_trailing_slash = True
    ErrorHandlers(challenge).install(app)
    v2.add_routes(app, service)
    v1.add_routes(app, service)
    app.add_middleware(NoEmptyIds(path for path, _ in app.routes))
    inner: WsgiApp = app if identify else around(app)
    if service.preload.enabled:
        asks = identify is None and conf.api.auth_strategy != "noauth"
        inner = OwnCredentials(app, inner, registration=asks)
    described = openapi.document(app.routes, {**COMPONENTS, **components(service.core)}, conf.api.auth_strategy)
    pages = {"/healthcheck": _healthcheck(conf), openapi.PATH: openapi.page(described, conf.api.public_endpoint)}
    if conf.api.worker_self_reference_url:
        pages[staged_page.PATH] = staged_page.page(service.imports.staging)
    if metrics:
        more: list[Any] = [AuditMetrics(service)] if conf.api.audit_interval else []
        more += [PreloadMetrics(service)] if service.preload.enabled else []
        pages["/metrics"] = metrics.page(more)
    listed = LISTED_WITH_CACHE if service.cache.is_configured else LISTED
    endpoint = conf.api.public_endpoint
    negotiated = VersionNegotiation(inner, public_endpoint=endpoint, listed=listed, pages=pages)
    whole = _behind_proxy(conf, shared(conf, negotiated))
    return metrics.around(whole) if metrics else whole


def _healthcheck(conf: cfg.ConfigOpts) -> WsgiApp:
    from oslo_middleware import Healthcheck

    page: WsgiApp = Healthcheck(None, conf)
    return page


def _behind_proxy(conf: cfg.ConfigOpts, app: WsgiApp) -> WsgiApp:
    """Believe X-Forwarded headers where ``[oslo_middleware] enable_proxy_headers_parsing`` says so."""
    from oslo_middleware import http_proxy_to_wsgi

    conf.register_opts(http_proxy_to_wsgi.OPTS, group="oslo_middleware")
    if not conf.oslo_middleware.enable_proxy_headers_parsing:
        return app
    wrapped: WsgiApp = http_proxy_to_wsgi.HTTPProxyToWSGI(app, conf)
    return wrapped


def _shut_down(service: Service, rounds: Sequence[BackgroundAudit | Purging]) -> None:
    for each in rounds:
        each.stop()
    service.stop()
    service.core.repository.close()

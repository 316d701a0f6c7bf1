# SPDX-License-Identifier: Apache-2.0
"""create_app: the WSGI application, put together from the service, both versions of the API and what is around them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import falcon
from oslo_config import cfg

from storelib.api import config, v1, v2
from storelib.api.db import open_repository
from storelib.api.middleware.empty_ids import NoEmptyIds
from storelib.api.middleware.error_handlers import ErrorHandlers
from storelib.api.middleware.identity import Identify, Identity, strategy
from storelib.api.middleware.metrics import Metrics
from storelib.api.middleware.versions import VersionNegotiation, WsgiApp
from storelib.api.service import Service
from storelib.extras import needing
from storelib.registry import Registry


class Application:
    """A WSGI application with the service behind it. ``close`` finishes background work and leaves the database."""

    def __init__(self, wsgi: WsgiApp, service: Service) -> None:
        self._wsgi = wsgi
        self.service = service
        self._finalizer = weakref.finalize(self, _shut_down, service)
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
        application = Application(build_wsgi(conf, service), service)
    except BaseException:
        repository.close()
        raise
    service.start()
    return application


def build_wsgi(conf: cfg.ConfigOpts, service: Service, identify: Identify | None = None) -> WsgiApp:
    """Everything between the server and the service. ``identify`` replaces what ``auth_strategy`` says."""
    found, around, challenge = strategy(conf, service.core.policy)
    metrics = Metrics() if conf.api.metrics else None
    identity = Identity(identify or found, conf.api.max_request_id_length)
    app = falcon.App(middleware=[metrics, identity] if metrics else [identity])
    app.req_options.strip_url_path_trailing_slash = True
    ErrorHandlers(challenge).install(app)
    v2.add_routes(app, service)
    v1.add_routes(app, service)
    app.add_middleware(NoEmptyIds(app))
    inner: WsgiApp = app if identify else around(app)
    pages = {"/healthcheck": _healthcheck(conf)}
    if metrics:
        pages["/metrics"] = metrics.page()
    return _behind_proxy(conf, VersionNegotiation(inner, public_endpoint=conf.api.public_endpoint, pages=pages))


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


def _shut_down(service: Service) -> None:
    service.stop()
    service.core.repository.close()

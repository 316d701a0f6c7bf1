# SPDX-License-Identifier: Apache-2.0
"""Web pages of other origins: ``[cors]`` says which may use the API, oslo.middleware tells the browser."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from oslo_config import cfg

from storelib.api.middleware.versions import WsgiApp

GROUP = "cors"
#: What scripts of the API's own users send and read, which no browser lets through by itself.
_DEFAULTS: dict[str, Any] = {
    "allow_methods": ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
    "allow_headers": [
        *("Content-MD5", "Accept-Encoding", "Range", "If-Range"),
        *("X-Auth-Token", "X-Service-Token", "X-Storage-Token", "X-Identity-Status"),
        *("X-Roles", "X-Service-Catalog", "X-User-Id", "X-Tenant-Id", "X-Project-Id"),
        *("X-OpenStack-Request-ID", "X-OpenStack-Image-Size"),
        *("X-Image-Meta-Checksum", "X-Image-Meta-Store"),
    ],
    "expose_headers": [
        *("Location", "ETag", "Content-MD5", "Content-Range", "Accept-Ranges", "Accept-Patch"),
        *("OpenStack-image-import-methods", "OpenStack-image-store-ids"),
        *("X-Image-Meta-Checksum", "X-Auth-Token", "X-Subject-Token", "X-Service-Token", "X-OpenStack-Request-ID"),
    ],
}


def options() -> Sequence[cfg.Opt]:
    """Those of oslo.middleware, with the API's own headers and methods as defaults."""
    from oslo_middleware import cors

    # The library's own list is one for all programs in a process.
    found = copy.deepcopy(cors.OPTS)
    for option in found:
        option.default = _DEFAULTS.get(option.name, option.default)
    return found


def shared(conf: cfg.ConfigOpts, app: WsgiApp) -> WsgiApp:
    """``app`` for the browsers of those origins as well that ``[cors] allowed_origin`` names; for none, as it is."""
    from oslo_middleware import cors

    conf.register_opts(options(), group=GROUP)
    settings = conf[GROUP]
    if not settings.allowed_origin:
        return app
    # It would register its own options, whose defaults are others: it is given a configuration that nobody else has.
    middleware = cors.CORS(app, cfg.ConfigOpts())
    middleware.add_origin(**{option.dest: settings[option.dest] for option in cors.OPTS})
    wrapped: WsgiApp = middleware
    return wrapped

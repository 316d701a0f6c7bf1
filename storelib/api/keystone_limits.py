# SPDX-License-Identifier: Apache-2.0
"""Keystone's unified limits, asked as ``[oslo_limit]`` says.

The options are oslo.limit's. The library itself reads them from the one global configuration of a process, keeps one
connection for all, and asks four questions for each limit; here it is one or two for all of them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from keystoneauth1 import exceptions as keystone
from keystoneauth1 import loading
from oslo_config import cfg

from storelib.api.caching import BoundedCache
from storelib.api.errors import Unavailable
from storelib.exceptions import BadStoreConfiguration

LOG = logging.getLogger(__name__)

GROUP = "oslo_limit"
#: Seconds for one question, where the options name none: a client waits meanwhile.
TIMEOUT = 10.0
#: Seconds in which nobody asks again after Keystone did not answer, so that not every thread waits for it.
PAUSE = 1.0
#: Projects whose limits are remembered at most.
MEMORY = 4096

_INTERFACES = ("public", "internal", "admin")
OPTIONS = (
    cfg.StrOpt("endpoint_id", help="Id of the image service's endpoint, of which the limits are."),
    cfg.StrOpt("endpoint_service_name", help="Name of the image service, to find its endpoint instead of by its id."),
    cfg.StrOpt("endpoint_service_type", help="Type of the image service, for the same."),
    cfg.StrOpt("endpoint_region_name", help="Region of the endpoint, where there are several."),
    cfg.StrOpt(
        "endpoint_interface",
        default="public",
        choices=[*_INTERFACES, *(f"{name}URL" for name in _INTERFACES)],
        help="Interface of the endpoint.",
    ),
)


class _Scope(NamedTuple):
    """What Keystone has the limits under."""

    service_id: str
    region_id: str | None

    def query(self, **more: str) -> dict[str, str]:
        region = {} if self.region_id is None else {"region_id": self.region_id}
        return {"service_id": self.service_id, **region, **more}


class KeystoneLimits:
    """The limits of projects. Safe from many threads; asks nothing before the first question.

    ``remember``: seconds for which limits may be believed that were asked for earlier. Raises BadStoreConfiguration.
    """

    def __init__(self, conf: cfg.ConfigOpts, remember: float) -> None:
        self._keystone = _adapter(conf)
        self._options = conf[GROUP]
        if not self._options.endpoint_id and not (
            self._options.endpoint_service_name or self._options.endpoint_service_type
        ):
            raise BadStoreConfiguration(
                f"[{GROUP}] names no endpoint: set endpoint_id, or endpoint_service_type and endpoint_region_name"
            )
        self._remember = remember
        self._lock = threading.Lock()
        self._scope: _Scope | None = None
        self._limits: BoundedCache[str | None, tuple[Mapping[str, int], float]] = BoundedCache(MEMORY)
        self._away_until = 0.0

    def of(self, project_id: str, resources: Iterable[str]) -> dict[str, int]:
        """The limit of each of these resources for a project, below 0 where there is none.

        What Keystone has no limit for has the limit 0, as all services do it. Raises Unavailable when Keystone does not
        answer, or not with what can be used.
        """
        if time.monotonic() < self._away_until:
            raise _unavailable()
        try:
            own = self._own(project_id)
            defaults = {} if own.keys() >= set(resources) else self._defaults()
            return {name: own.get(name, defaults.get(name, 0)) for name in resources}
        except Unavailable:
            raise
        except keystone.ClientException as error:
            self._away_until = time.monotonic() + PAUSE
            # The messages have URLs in them.
            LOG.error("Keystone does not tell limits: %s %s", type(error).__name__, getattr(error, "http_status", ""))
            raise _unavailable() from error
        except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            LOG.error("what Keystone tells of limits cannot be used: %s", type(error).__name__)
            raise _unavailable() from error

    def _defaults(self) -> Mapping[str, int]:
        return self._remembered(None, "/registered_limits", "registered_limits", "default_limit")

    def _own(self, project_id: str) -> Mapping[str, int]:
        return self._remembered(project_id, "/limits", "limits", "resource_limit", project_id=project_id)

    def _remembered(self, key: str | None, path: str, name: str, value: str, **more: str) -> Mapping[str, int]:
        known = self._limits.get(key)
        now = time.monotonic()
        if known is not None and now < known[1]:
            return known[0]
        scope = self._scope or self._find_scope()
        found = self._get(path, scope.query(**more))[name]
        limits = {entry["resource_name"]: int(entry[value]) for entry in found}
        if self._remember > 0:
            self._limits.put(key, (limits, now + self._remember))
        return limits

    def _find_scope(self) -> _Scope:
        with self._lock:
            if self._scope is None:
                model = self._get("/limits/model", {})["model"]["name"]
                if model != "flat":
                    LOG.error("Keystone's enforcement model for limits is %r; only flat can be used", model)
                    raise _unavailable()
                endpoint = self._endpoint()
                self._scope = _Scope(endpoint["service_id"], endpoint.get("region_id"))
            return self._scope

    def _endpoint(self) -> Any:
        options = self._options
        if options.endpoint_id:
            return self._get(f"/endpoints/{options.endpoint_id}", {})["endpoint"]
        wanted = {"type": options.endpoint_service_type, "name": options.endpoint_service_name}
        service = self._only("services", {name: value for name, value in wanted.items() if value})
        wanted = {"service_id": service["id"], "interface": options.endpoint_interface.removesuffix("URL")}
        region = {"region_id": options.endpoint_region_name} if options.endpoint_region_name else {}
        return self._only("endpoints", wanted | region)

    def _only(self, name: str, query: Mapping[str, str]) -> Any:
        found = self._get(f"/{name}", query)[name]
        if len(found) != 1:
            LOG.error("[%s] has to name one of Keystone's %s, not %d of them", GROUP, name, len(found))
            raise _unavailable()
        return found[0]

    def _get(self, path: str, query: Mapping[str, str]) -> Any:
        return self._keystone.get(path, params=query).json()


def options() -> list[cfg.Opt]:
    """All of ``[oslo_limit]``, with those of the usual ways to authenticate."""
    found: dict[str, cfg.Opt] = {option.dest: option for option in OPTIONS}
    for others in (
        loading.get_auth_common_conf_options(),
        loading.get_session_conf_options(),
        loading.get_adapter_conf_options(include_deprecated=False),
        loading.get_auth_plugin_conf_options("password"),
    ):
        found |= {option.dest: option for option in others}
    return list(found.values())


def _adapter(conf: cfg.ConfigOpts) -> Any:
    conf.register_opts(OPTIONS, group=GROUP)
    loading.register_auth_conf_options(conf, GROUP)
    loading.register_session_conf_options(conf, GROUP)
    loading.register_adapter_conf_options(conf, GROUP, include_deprecated=False)
    try:
        plugin = loading.load_auth_from_conf_options(conf, GROUP)
    except (keystone.ClientException, ImportError) as error:
        raise BadStoreConfiguration(f"[{GROUP}] cannot be used to authenticate: {type(error).__name__}") from error
    if plugin is None:
        raise BadStoreConfiguration(f"use_keystone_limits needs [{GROUP}] auth_type and what that asks for")
    session = loading.load_session_from_conf_options(conf, GROUP, auth=plugin)
    session.timeout = session.timeout or TIMEOUT
    adapter = loading.load_adapter_from_conf_options(conf, GROUP, session=session, auth=plugin)
    adapter.service_type = adapter.service_type or "identity"
    if not (adapter.version or adapter.min_version or adapter.max_version):
        adapter.min_version, adapter.max_version = "3", "3.latest"
    return adapter


def _unavailable() -> Unavailable:
    return Unavailable("the limits of this project cannot be asked for now; try again later")

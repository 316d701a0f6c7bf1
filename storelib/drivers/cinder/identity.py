# SPDX-License-Identifier: Apache-2.0
"""Who asks Cinder: the store's own user, or the user of a request by the token that came with it.

Sessions belong to one store and are never shared with another. keystoneauth renews tokens of the store's own user,
before they expire and when Cinder refuses them.
"""

from __future__ import annotations

import importlib
from typing import Any

from storelib._version import __version__
from storelib.exceptions import Forbidden, misconfigured
from storelib.extras import needing
from storelib.transfer.contract import Context, Options
from storelib.transfer.http.keystone import Endpoint

#: Attachments are completed (3.44), volumes grown while they are attached (3.42), attachments read-only (3.54).
MICROVERSION = "3.54"
#: Idle connections kept: several transfers at once.
_KEPT_CONNECTIONS = 16
_USER = (
    "cinder_store_auth_address",
    "cinder_store_user_name",
    "cinder_store_password",
    "cinder_store_project_name",
)
_APPLICATION = (
    "cinder_store_auth_address",
    "cinder_store_application_credential_id",
    "cinder_store_application_credential_secret",
)


def import_clients() -> None:
    """Raise MissingDependency unless the clients are installed."""
    with needing("the cinder driver", "cinder"):
        for module in ("cinderclient.client", "keystoneauth1.session"):
            importlib.import_module(module)


def has_service_user(name: str, conf: Options) -> bool:
    """Whether the options name a user of the store's own; raises BadStoreConfiguration for half of one."""
    needed = _APPLICATION if conf.cinder_store_application_credential_id else _USER
    missing = [option for option in needed if not getattr(conf, option)]
    if missing and len(missing) < len(needed):
        raise misconfigured(name, missing[0], "a user of the store's own needs it, too")
    return not missing


class Sessions:
    """What makes clients of Cinder. Safe to use from many threads; making one opens no connection."""

    def __init__(self, name: str, conf: Options) -> None:
        parts = str(conf.cinder_catalog_info).split(":")
        if len(parts) != 3 or not parts[0] or not parts[2]:
            raise misconfigured(name, "cinder_catalog_info", "it is type:name:interface, as volumev3::publicURL")
        template: str | None = conf.cinder_endpoint_template
        for old in ("%(tenant)s", "%(tenant_id)s"):
            template = template.replace(old, "%(project_id)s") if template else None
        self._endpoint = Endpoint(
            parts[0], parts[2], conf.cinder_os_region_name, template, "cinder_catalog_info and cinder_os_region_name"
        )
        self._service_name = parts[1] or None
        self._conf = conf
        self._verify: bool | str = conf.cinder_ca_certificates_file or True
        if conf.cinder_api_insecure:
            self._verify = False
        self._timeout = min(conf.cinder_read_timeout, conf.transfer_timeout)

    def of_service(self) -> Any:
        """A client as the store's own user."""
        from keystoneauth1.identity import v3

        conf = self._conf
        url = _with_version(conf.cinder_store_auth_address)
        if conf.cinder_store_application_credential_id:
            return self._client(
                v3.ApplicationCredential(
                    url,
                    application_credential_id=conf.cinder_store_application_credential_id,
                    application_credential_secret=conf.cinder_store_application_credential_secret,
                )
            )
        return self._client(
            v3.Password(
                url,
                username=conf.cinder_store_user_name,
                password=conf.cinder_store_password,
                project_name=conf.cinder_store_project_name,
                user_domain_name=conf.cinder_store_user_domain_name,
                project_domain_name=conf.cinder_store_project_domain_name,
            )
        )

    def of_request(self, context: Context | None) -> Any:
        """A client as the user of a request; raises Forbidden without a token."""
        from keystoneauth1 import token_endpoint

        token = getattr(context, "auth_token", None)
        if not token:
            raise Forbidden(
                "a cinder store without a user of its own (cinder_store_user_name) needs the context of a request with "
                "its token"
            )
        url = self._endpoint.of_request(context)
        return self._client(token_endpoint.Token(url, str(token)), url)

    def _client(self, plugin: Any, url: str | None = None) -> Any:
        from cinderclient import client
        from keystoneauth1 import session

        opened = session.Session(
            plugin,
            verify=self._verify,
            timeout=self._timeout,
            session=_http(),
            # A token goes to the address it is for, not to where a captive portal redirects.
            redirect=False,
            user_agent=f"storelib/{__version__}",
        )
        fixed = self._endpoint.fixed
        if url is None and fixed:
            url = fixed.replace("%(project_id)s", opened.get_project_id() or "") if "%(" in fixed else fixed
        return client.Client(
            MICROVERSION,
            session=opened,
            service_type=self._endpoint.service_type,
            service_name=self._service_name,
            interface=self._endpoint.interface.removesuffix("URL"),
            region_name=self._endpoint.region,
            endpoint_override=url,
        ).client


def _http() -> Any:
    """The HTTP below: nothing from the environment, no cookies, several connections."""
    import http.cookiejar

    import requests
    from requests.adapters import HTTPAdapter

    made = requests.Session()
    made.trust_env = False
    made.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    for scheme in ("https://", "http://"):
        made.mount(scheme, HTTPAdapter(pool_connections=2, pool_maxsize=_KEPT_CONNECTIONS))
    return made


def _with_version(url: str) -> str:
    url = url.rstrip("/")
    return url if url.endswith(("/v3", "/v2.0")) else f"{url}/v3"

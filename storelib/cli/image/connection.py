# SPDX-License-Identifier: Apache-2.0
"""Where the image API is and who asks: from options and the environment variables that openstackclient reads."""

from __future__ import annotations

import re
import urllib.parse
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import click

from storelib.exceptions import Forbidden, MissingDependency, RemoteServiceUnavailable
from storelib.extras import needs
from storelib.transfer.http.connections import pool_classes

#: What ``storelib serve`` listens on if it is not told otherwise.
DEFAULT_URL = "http://127.0.0.1:9292"
#: Of OS_AUTH_TYPE: no Keystone is asked, the endpoint is given.
_WITHOUT_KEYSTONE = ("none", "http_basic", "admin_token")

Headers = dict[str, str]


class Endpoint(NamedTuple):
    """The URL of an image API without its version, what identifies the caller there, and whom to trust for TLS.

    ``identity(renew)`` returns the headers; with ``renew`` after a 401, from a new token where that is possible.
    """

    url: str
    identity: Callable[[bool], Headers]
    cacert: str | None = None

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"


class Options(NamedTuple):
    """What the command line says."""

    url: str | None = None
    token: str | None = None
    cacert: str | None = None
    timeout: float = 300.0


def find(options: Options, environ: Mapping[str, str]) -> Endpoint:
    """The API to talk to; raises click.UsageError, Forbidden, RemoteServiceUnavailable."""

    def setting(*names: str) -> str | None:
        return next((environ[name] for name in names if environ.get(name)), None)

    kind = setting("OS_AUTH_TYPE")
    url = options.url or setting("OS_IMAGE_URL", "OS_IMAGE_ENDPOINT_OVERRIDE")
    if kind in _WITHOUT_KEYSTONE:
        url = url or setting("OS_ENDPOINT")
    token = options.token or setting("OS_TOKEN", "OS_AUTH_TOKEN")
    cacert = options.cacert or setting("OS_CACERT")
    if setting("OS_AUTH_URL") and kind not in _WITHOUT_KEYSTONE and not (url and token):
        found, identity = _keystone(kind or ("token" if token else "password"), url, token, cacert, options, environ)
        return Endpoint(_without_version(found)[0], identity, cacert)
    url, given = _without_version(url or DEFAULT_URL)
    name, password = setting("OS_USERNAME"), setting("OS_PASSWORD")
    if token:
        return Endpoint(url, lambda renew: {"X-Auth-Token": token}, cacert)
    if given is None and name and password and kind != "none":
        given = f"{name}:{password}"
    headers = {"Authorization": f"Basic {b64encode(given.encode()).decode()}"} if given else {}
    return Endpoint(url, lambda renew: headers, cacert)


def _without_version(url: str) -> tuple[str, str | None]:
    """The URL without version, slash and credentials, and the credentials."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        # Not quoted: it may hold a password.
        raise click.UsageError("the URL of the image API must be http://HOST:PORT or https://HOST:PORT")
    given = None
    if parts.username:
        given = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    path = re.sub(r"/v[12](\.\d+)?$", "", parts.path.rstrip("/"))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}", given


def _requests() -> Any:
    """A session of requests whose responses are whole and final ones."""
    import requests
    from keystoneauth1.session import TCPKeepAliveAdapter

    class Adapter(TCPKeepAliveAdapter):
        def init_poolmanager(self, *arguments: Any, **settings: Any) -> None:
            super().init_poolmanager(*arguments, **settings)
            self.poolmanager.pool_classes_by_scheme = pool_classes()

    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, Adapter())
    return session


def _keystone(
    kind: str,
    url: str | None,
    token: str | None,
    cacert: str | None,
    options: Options,
    environ: Mapping[str, str],
) -> tuple[str, Callable[[bool], Headers]]:
    try:
        from keystoneauth1 import exceptions, loading
        from keystoneauth1.session import Session
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"{needs('OS_AUTH_URL is set, and Keystone', 'client', 'keystoneauth1')}, or give --url and --token"
        ) from error
    try:
        loader: Any = loading.get_plugin_loader(kind)
        plugin: Any = loader.load_from_options(**_plugin_options(loader, environ, token))
        session = Session(auth=plugin, verify=cacert or True, timeout=options.timeout, session=_requests())
        if url is None:
            url = plugin.get_endpoint(
                session,
                service_type=environ.get("OS_IMAGE_SERVICE_TYPE") or "image",
                interface=environ.get("OS_INTERFACE") or "public",
                region_name=environ.get("OS_REGION_NAME") or None,
            )
        if url is None:
            raise RemoteServiceUnavailable(
                "Keystone's catalog has no image service; give its URL with --url or OS_IMAGE_ENDPOINT_OVERRIDE",
                transient=False,
            )
    except (exceptions.MissingRequiredOptions, exceptions.OptionError, exceptions.NoMatchingPlugin) as error:
        raise click.UsageError(f"the OS_* variables are not complete: {error}") from error
    except exceptions.Unauthorized as error:
        raise Forbidden(f"Keystone refuses the OS_* variables: {error.message}") from error
    except exceptions.ClientException as error:
        raise RemoteServiceUnavailable(f"Keystone at OS_AUTH_URL: {error}") from error

    def identity(renew: bool) -> Headers:
        if renew:
            plugin.invalidate()
        try:
            return {"X-Auth-Token": plugin.get_token(session)}
        except exceptions.Unauthorized as error:
            raise Forbidden(f"Keystone refuses the OS_* variables: {error.message}") from error
        except exceptions.ClientException as error:
            raise RemoteServiceUnavailable(f"Keystone at OS_AUTH_URL: {error}") from error

    return url, identity


def _plugin_options(loader: Any, environ: Mapping[str, str], token: str | None) -> dict[str, str]:
    """Every option of the plugin that has an OS_ variable, under its name or an older one."""
    found: dict[str, str] = {}
    for option in loader.get_options():
        names = [option.dest, *(old.dest for old in option.deprecated)]
        for name in names:
            value = environ.get(f"OS_{name.upper()}")
            if value:
                found[option.dest] = value
                break
        if option.dest == "token" and token:
            found["token"] = token
    return found
